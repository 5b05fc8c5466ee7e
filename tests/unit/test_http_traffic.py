"""Recording and replaying: the same answers without a network, no secret in anything written."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from resilient_scan import (
    Breaker,
    Candidate,
    ConfigError,
    Limit,
    PermanentError,
    RetryAfter,
    ScanContext,
    ScanRunner,
    scanner,
)
from resilient_scan.http import REDACTED, Client, NotFound, Recorder, Replay, TransientError
from resilient_scan.testing import FakeClock
from tests.scanners.recorded import Answer, Asked, RecordedServer
from tests.support.disks import no_file_beyond
from tests.support.http import raw_server, say

KEY = "k3y-0f-the-h0use"
TOKEN = "t0ken-fr0m-the-s0urce"


def context_for(traffic: Any, name: str = "mine", clock: Any = None) -> ScanContext:
    context = ScanContext(name, traffic=traffic, clock=clock)
    context.limit(context._own.clock.monotonic() + 10)
    return context


def written(folder: Path) -> str:
    return "\n".join(f"{path} {path.read_text()}" for path in sorted(folder.rglob("*")) if path.is_file())


def echo(asked: Asked) -> Answer:
    """Answer with everything that came, the key included, as some sources do."""
    text = json.dumps([asked.path, asked.query, asked.headers, asked.body.decode()])
    return 200, {"content-type": "application/json", "set-cookie": f"id={KEY}", "x-kept": f"for {KEY}"}, text.encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tape"


@pytest.fixture
def server() -> Iterator[RecordedServer]:
    token = {"access_token": TOKEN, "expires_in": 3600}
    answers = {
        "/token": (200, {"content-type": "application/json"}, json.dumps(token).encode()),
        "/busy": (429, {"retry-after": "7"}, b"slow down"),
        "/broken": (503, {"content-type": "text/html"}, b"<html>sorry</html>"),
        "/*": echo,
    }
    with RecordedServer(answers, manifest=False) as served:
        yield served


def ask(client: Client, context: ScanContext) -> list[Any]:
    told: list[Any] = [client.get("/a b/c", {"q": "x y", "apikey": KEY, "n": 3}, context=context).body]
    form = {"grant_type": "client_credentials", "client_secret": KEY}
    token = client.post("/token", form, context=context, headers={"Authorization": f"Basic {KEY}"}).json()
    told.append(client.get("/me", context=context, headers={"Authorization": f"Bearer {token['access_token']}"}).status)
    for path in ("/busy", "/broken"):
        with pytest.raises((RetryAfter, TransientError)) as caught:
            client.get(path, context=context)
        told.append(str(caught.value))
    return told


def test_what_was_recorded_comes_back_without_a_network_and_holds_no_secret(
    folder: Path, server: RecordedServer
) -> None:
    client = Client(server.url, secrets=[KEY])
    recorder = Recorder(folder)
    recorder.note_run({"trade_date": "2026-05-15"}, ["mine"])
    live = ask(client, context_for(recorder))
    came = len(server.asked)
    replay = Replay(folder)
    again = ask(Client(server.url, secrets=["another"]), context_for(replay))
    assert len(server.asked) == came
    assert live[0] == json.dumps(json.loads(live[0])).encode()
    assert KEY in live[0].decode()
    assert again[0].decode() == live[0].decode().replace(KEY, REDACTED)
    assert again[1:] == live[1:]
    assert KEY not in written(folder)
    assert TOKEN not in written(folder)
    assert replay.state() == {"trade_date": "2026-05-15"}


KEYS = ['qu"ote/and\\slash', "schlüssel-ключ", "a+b/c=d&e", "<tag>&key", r"re.g(e)x*[k]?$"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_taken_out_of_a_body_however_it_is_written_there(key: str, folder: Path) -> None:
    slashed = json.dumps(key).replace("/", r"\/")
    lower = re.sub("%..", lambda found: found[0].lower(), quote_plus(key))
    forms = [key, json.dumps(key), json.dumps(key, ensure_ascii=False), slashed, quote(key), lower, escape(key)]
    body = "\n".join(forms).encode() + b"\xff"
    with RecordedServer({"/*": (200, {}, body)}, manifest=False) as server:
        Client(server.url).get("/a", {"apikey": key}, context=context_for(Recorder(folder)))
    (row,) = json.loads((folder / "manifest.json").read_text())
    kept = (folder / row["file"]).read_bytes()
    words = kept.replace(REDACTED.encode(), b"").replace(b'"', b"")
    assert words.split() == [b"\xff"]


def test_a_crumb_and_every_token_that_an_answer_hands_out_are_taken_out(folder: Path) -> None:
    crumb, token, chain = "cRumb.0f/yahoo", "eyJhbGci.0iJIUz.I1NiIs", "bitcoin"
    said = {"/v1/test/getcrumb": crumb, "/login": json.dumps({"token": token}), "/coins": json.dumps({"token": chain})}
    answers = {path: (200, {}, text.encode()) for path, text in said.items()}
    recorder = Recorder(folder)
    with RecordedServer({**answers, "/*": echo}, manifest=False) as server:
        recorder.note_run({"trade_date": "2026-05-15", "broker": {"api_key": "h1dden"}}, ["mine"])
        for path in said:
            Client(server.url).get(path, context=context_for(recorder))
        Client(server.url).get("/a", {"q": crumb, "p": token}, context=context_for(recorder))
    assert crumb not in written(folder)
    assert token not in written(folder)
    assert "h1dden" not in written(folder)
    assert chain in written(folder)


def test_a_request_made_again_with_a_secret_gets_the_next_recording(folder: Path) -> None:
    """As a crumb that is fetched after a first answer 401."""
    replay = tape(folder, {"status": 401}, {"url": "http://one.example/a?crumb=REDACTED", "text": "1"})
    client, context = Client("http://one.example"), context_for(replay)
    assert client.get("/a", context=context, accept=[401]).status == 401
    assert client.get("/a", {"crumb": "REDACTED"}, context=context, accept=[401]).text == "1"


def test_the_manifest_has_the_shape_that_is_described(folder: Path, server: RecordedServer) -> None:
    clock = FakeClock(datetime(2026, 5, 15, 14, 30, tzinfo=UTC).timestamp())
    Client(server.url).get("/a", {"token": KEY, "q": 1}, context=context_for(Recorder(folder), clock=clock))
    (row,) = json.loads((folder / "manifest.json").read_text())
    body = (folder / row["file"]).read_bytes()
    assert (row["method"], row["status"], row["scanner"], row["request_body"]) == ("GET", 200, "mine", None)
    assert row["url"] == f"{server.url}/a?token=REDACTED&q=1"
    assert row["recorded_at"] == "2026-05-15T14:30:00Z"
    assert (row["bytes"], row["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert row["headers"]["x-kept"] == f"for {REDACTED}"
    assert "set-cookie" not in row["headers"]
    assert row["file"].endswith("/0001-a.json")


def test_a_recording_is_whole_after_every_answer(folder: Path, server: RecordedServer) -> None:
    client, context = Client(server.url), context_for(Recorder(folder))
    for count in range(4):
        assert len(Replay(folder)._rows) == len(json.loads((folder / "manifest.json").read_text())) == count
        client.get("/a", {"page": count}, context=context)
    assert (folder / "manifest.json").read_text().startswith('[\n{\n "file": ')


def test_what_is_not_recorded_is_an_error_that_names_address_and_folder(folder: Path, server: RecordedServer) -> None:
    client = Client(server.url)
    client.get("/a", {"page": 1, "apikey": KEY}, context=context_for(Recorder(folder)))
    context = context_for(Replay(folder))
    client.get("/a", {"apikey": "other", "page": 1}, context=context)
    for path, query in (("/a", {"page": 2}), ("/a", {}), ("/a", {"page": 1, "more": ""}), ("/b", {"page": 1})):
        with pytest.raises(PermanentError, match="not recorded in") as caught:
            client.get(path, {**query, "apikey": KEY}, context=context)
        assert str(folder) in str(caught.value)
        assert f"{server.url}{path}" in str(caught.value)
        assert KEY not in str(caught.value)
    with pytest.raises(PermanentError, match=r"POST .*not recorded"):
        client.post("/a", {"page": 1}, context=context)


def tape(folder: Path, *rows: Mapping[str, Any]) -> Replay:
    """Write a folder by hand, and open it."""
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / str(number)).write_text(row.get("text", "{}"))
    full = [{"file": str(number), "url": "http://one.example/a", **row} for number, row in enumerate(rows)]
    (folder / "manifest.json").write_text(json.dumps(full))
    return Replay(folder, {"one": ["one.example"], "two": ["two.example"], "three": ["three.example"]})


def test_several_recordings_of_one_request_come_in_order_and_the_last_stays(folder: Path) -> None:
    replay = tape(folder, {"status": 503}, {"text": "1"}, {"text": "2"})
    client = Client("http://one.example")
    for name in ("one", "two"):  # each scanner from the beginning
        context = context_for(replay, name)
        with pytest.raises(TransientError):
            client.get("/a", context=context)
        assert [client.get("/a", context=context).text for _ in range(4)] == ["1", "2", "2", "2"]


def test_a_scanner_gets_its_own_recordings_first(folder: Path) -> None:
    replay = tape(folder, {"scanner": "one", "text": "1"}, {"scanner": "two", "text": "2"})
    client = Client("http://one.example")
    assert [client.get("/a", context=context_for(replay, name)).text for name in ("two", "one", "x")] == ["2", "1", "1"]


def test_placeholders_stand_for_any_value(folder: Path) -> None:
    replay = tape(
        folder,
        {"url": "http://one.example/a?from=..&to=MOCK_TO&user=REDACTED", "text": "1"},
        {"url": "http://one.example/a?n=1", "method": "POST", "request_body": "x=1&password=REDACTED", "text": "2"},
    )
    client, context = Client("http://one.example"), context_for(replay)
    assert client.get("/a", {"user": "me", "from": "2026-01-01", "to": "2026-02-01"}, context=context).text == "1"
    with pytest.raises(PermanentError, match="not recorded"):
        client.get("/a", {"user": "me", "from": "2026-01-01"}, context=context)
    assert Client("http://one.example").post("/a?n=1", {"password": KEY, "x": 1}, context=context).text == "2"
    with pytest.raises(PermanentError, match="not recorded"):
        client.post("/a?n=1", {"password": KEY, "x": 2}, context=context)


def test_each_scanners_clock_stands_still_at_its_own_recordings(folder: Path) -> None:
    replay = tape(
        folder,
        {"recorded_at": "2026-05-15T10:00:00-04:00"},
        {"recorded_at": "2026-05-17 (commit date)", "url": "http://one.example/b"},
        {"recorded_at": None, "headers": {"Date": "Fri, 12 Dec 2025 23:04:14 GMT"}, "url": "http://two.example/"},
        {"scanner": "four", "recorded_at": "2024-01-02T03:04:05Z"},
        {"recorded_at": "who knows", "url": "http://three.example/"},
    )
    at = {name: context_for(replay, name).now.isoformat() for name in ("one", "two", "four", "stranger")}
    assert at == {
        "one": "2026-05-17T20:00:00+00:00",
        "two": "2025-12-12T23:04:14+00:00",
        "four": "2024-01-02T03:04:05+00:00",
        "stranger": "2026-05-17T20:00:00+00:00",
    }
    context, client = context_for(replay, "one"), Client("http://one.example")
    client.get("/a", context=context)
    assert context.now.isoformat() == "2026-05-15T14:00:00+00:00"  # the newest that it was given
    client.get("/b", context=context)
    client.get("/a", context=context)
    assert context.now.isoformat() == "2026-05-17T20:00:00+00:00"
    assert 0 < context.remaining() <= 10


def test_without_any_date_the_clock_is_the_machines(folder: Path) -> None:
    context = context_for(tape(folder, {"recorded_at": "2026-99-99"}))
    assert abs(context.now.timestamp() - time.time()) < 60


def test_it_knows_for_whom_there_is_something(folder: Path) -> None:
    replay = tape(folder, {}, {"url": "http://two.example/"})
    assert replay.hosts == {"one.example", "two.example"}
    assert [replay.has(name) for name in ("one", "two", "three", "stranger")] == [True, True, False, True]
    (folder / "scanners.json").write_text('["three", "four"]')
    assert [replay.has(name) for name in ("one", "two", "three", "stranger")] == [False, False, True, False]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, r"no recordings in .*manifest\.json"),
        ("{", "not a manifest of recordings"),
        ('[{"url": "http://a"}]', "not a manifest of recordings: .*file"),
        ('[{"file": "../secret", "url": "http://a"}]', "'../secret', and there is no such file"),
        ('[{"file": "gone", "url": "http://a"}]', "'gone', and there is no such file"),
        ('[{"file": "manifest.json", "url": "http://["}]', r"names 'http://\[', and that is not an address"),
    ],
)
def test_a_folder_that_is_none_is_refused(folder: Path, manifest: str | None, words: str) -> None:
    folder.mkdir()
    (folder.parent / "secret").write_text("x")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ConfigError, match=words):
        Replay(folder)


def test_a_state_or_a_list_of_scanners_that_is_none_is_refused(folder: Path) -> None:
    replay = tape(folder, {})
    assert replay.state() == {}
    (folder / "state.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"state\.json is not a JSON object"):
        replay.state()
    (folder / "scanners.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"scanners\.json is not a JSON list of names"):
        replay.has("one")


def test_nothing_is_recorded_over_what_is_there(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        Recorder(folder)
    with pytest.raises(ConfigError, match="cannot record"):
        Recorder(folder / "mine" / "deeper")


def test_a_runner_records_and_replays_scanners_that_know_nothing_of_it(folder: Path, server: RecordedServer) -> None:
    client = Client(server.url)

    @scanner(pipeline="mine", retry=None)
    def asks(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        said = context.map(lambda page: client.get("/p", {"page": page, "key": KEY}, context=context).json(), range(3))
        return [Candidate(f"T{each[1]['page']}", "asks", context.now.isoformat()) for each in said]

    with ScanRunner([asks], traffic=Recorder(folder), listeners=()) as runner:
        live = runner.run({})
    came = len(server.asked)
    with ScanRunner([asks], traffic=Replay(folder), listeners=()) as runner:
        again = runner.run({})
    assert [each.ticker for each in live.candidates] == ["T0", "T1", "T2"]
    assert [each.ticker for each in again.candidates] == ["T0", "T1", "T2"]
    assert len({each.context for each in again.candidates}) == 1
    assert again.candidates[0].context == json.loads((folder / "manifest.json").read_text())[-1]["recorded_at"].replace(
        "Z", "+00:00"
    )
    assert len(server.asked) == came == 3
    assert KEY not in written(folder)


def test_a_replay_waits_for_no_quota(folder: Path, server: RecordedServer) -> None:
    client = Client(server.url)

    @scanner(pipeline="mine", retry=None, limit=Limit("scarce", rate="3/day"))
    def asks(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        return [Candidate(f"T{n}", "asks", client.get("/p", {"n": n}, context=context).text) for n in range(3)]

    with ScanRunner([asks], traffic=Recorder(folder), listeners=()) as runner:
        assert runner.run({}).complete
    replay = Replay(folder)
    with ScanRunner([asks], traffic=replay, listeners=()) as runner:
        assert [len(runner.run({"run": count}).candidates) for count in range(3)] == [3, 3, 3]


def test_a_replay_opens_no_providers_breaker(folder: Path, server: RecordedServer) -> None:
    """The host is not called, so nothing is learned about the way to it; a recorded 503 would keep all others out."""
    client = Client(server.url)

    @scanner(pipeline="mine", retry=None, breaker=Breaker(failures=1))
    def asks(_state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        client.get("/broken", context=context)
        return []

    for traffic, providers in ((Recorder(folder), 1), (Replay(folder), 0)):
        with ScanRunner([asks], traffic=traffic, listeners=()) as runner:
            assert runner.run().results["asks"].status == "error"
            assert len(runner.providers()) == providers


# ------------------------------------------------------------------------------------------- what is really recorded


@pytest.mark.parametrize("key", ["demo", "t0ken-7", "a.b+c=d"])
def test_a_short_key_is_taken_out_as_a_whole_word_only(key: str, folder: Path) -> None:
    """A key that is a word must not change the news."""
    kept = [f"{key}cracy", f"super{key}", f"{key}_{key}", f"é{key}", f"{key}1"]
    taken = [
        key,
        f'"{key}"',
        f"({key})",
        f"{key}.",
        f"-{key}-",
        f"apikey%3D{quote(key)}%26",
        rf"\n{key}\n",
        rf"\u0022{key}",
        rf"\xe9{key}",
    ]
    if not key[0].isalnum() or not key[-1].isalnum():
        kept = []
    body = "\n".join([*kept, *taken]).encode()
    with RecordedServer({"/*": (200, {}, body)}, manifest=False) as server:
        Client(server.url).get("/a", {"apikey": key}, context=context_for(Recorder(folder)))
    (row,) = json.loads((folder / "manifest.json").read_text())
    lines = (folder / row["file"]).read_text().split("\n")
    assert lines[: len(kept)] == kept
    assert [line.count(REDACTED) for line in lines[len(kept) :]] == [1] * len(taken)
    assert not [line for line in lines[len(kept) :] if key in line]


def test_a_long_key_is_taken_out_wherever_it_is(folder: Path) -> None:
    key = "abcdefgh"
    with RecordedServer({"/*": (200, {}, f"x{key}y".encode())}, manifest=False) as server:
        Client(server.url).get("/a", {"apikey": key}, context=context_for(Recorder(folder)))
    assert f"x{REDACTED}y" in written(folder)


def test_a_token_that_was_handed_out_is_in_no_file_name_and_no_place_that_an_answer_points_to(folder: Path) -> None:
    granted = json.dumps({"access_token": "t0kenfr0mthes0urce"})
    answers = {
        "/login": (200, {}, granted.encode()),
        "/away": (302, {"location": "https://h.example/?session_id=s3ss10n-0f-the-day&page=2"}, b""),
        "/*": (200, {}, b"{}"),
    }
    with RecordedServer(answers, manifest=False) as server:
        client, context = Client(server.url), context_for(Recorder(folder))
        client.get("/login", context=context)
        client.get("/t0kenfr0mthes0urce/me", context=context)
        client.get("/away", context=context, accept=[302])
    names = [row["file"].partition("/")[2] for row in json.loads((folder / "manifest.json").read_text())]
    assert names == ["0001-login.txt", "0002-REDACTED-me.txt", "0003-away.txt"]
    assert "t0kenfr0mthes0urce" not in written(folder)
    assert "s3ss10n-0f-the-day" not in written(folder)
    assert "https://h.example/?session_id=REDACTED&page=2" in written(folder)


def test_parameters_that_come_several_times_are_told_apart(folder: Path) -> None:
    replay = tape(
        folder,
        {"url": "http://one.example/a?id=1&id=2", "text": "12"},
        {"url": "http://one.example/a?id=3&id=2", "text": "32"},
        {"url": "http://one.example/a?id=2", "text": "2"},
        {"url": "http://one.example/a?day=..&day=..", "text": "days"},
        {"method": "POST", "request_body": "id=1&id=2", "text": "form"},
    )
    client, context = Client("http://one.example"), context_for(replay)
    said = [client.get("/a", {"id": ids}, context=context).text for ids in ([3, 2], [2], [1, 2])]
    assert said == ["32", "2", "12"]
    assert client.get("/a", {"day": ["1", "2"]}, context=context).text == "days"
    assert client.post("/a", {"id": [1, 2]}, context=context).text == "form"
    for other in ({"id": [2, 1]}, {"id": [1, 2, 2]}, {"day": ["1"]}):
        with pytest.raises(PermanentError, match="not recorded"):
            client.get("/a", other, context=context)
        with pytest.raises(PermanentError, match="not recorded"):
            client.post("/a", other, context=context)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body + b" ", r"0001-a\.json has \d+ bytes, and .*manifest\.json says \d+; record it again"),
        (lambda body: body[:-1], r"0001-a\.json has \d+ bytes, and .*manifest\.json says \d+; record it again"),
        (lambda body: body[:-1] + b"x", r"0001-a\.json is not what was recorded: .*manifest\.json has another sha256"),
    ],
    ids=["longer", "shorter", "other"],
)
def test_a_body_that_is_not_what_was_recorded_is_refused_when_the_replay_is_opened(
    change: Any, words: str, folder: Path, server: RecordedServer
) -> None:
    Client(server.url).get("/a", context=context_for(Recorder(folder)))
    assert Replay(folder).hosts
    (body,) = folder.rglob("0001-a.json")
    body.write_bytes(change(body.read_bytes()))
    with pytest.raises(ConfigError, match=words):
        Replay(folder)


def test_a_digest_may_be_written_in_capitals_and_may_be_missing(folder: Path) -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    replay = tape(folder, {"sha256": digest.upper(), "bytes": 2}, {"sha256": None, "bytes": None})
    assert len(replay._rows) == 2


# ------------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_is_not_the_scanners_error(
    folder: Path, server: RecordedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest is cut in the middle of a row; what came before can be replayed."""
    client, recorder = Client(server.url), Recorder(folder)
    context = context_for(recorder)
    pages = [client.get("/a", {"page": page}, context=context).text for page in range(2)]
    before = (folder / "manifest.json").read_bytes()
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        with no_file_beyond(len(before) + 100):
            pages += [client.get("/a", {"page": page}, context=context).text for page in range(2, 4)]
        pages += [client.get("/a", {"page": page}, context=context).text for page in range(4, 6)]
    assert [json.loads(page)[1] for page in pages] == [{"page": str(page)} for page in range(6)]
    assert recorder.failure == "File too large"
    assert [record.getMessage() for record in caplog.records] == [
        f"the recording in {folder} ends here: File too large; its replay will miss what comes after. The run goes on"
    ]
    assert (folder / "manifest.json").read_bytes() == before
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3
    again, replayed = Client(server.url), context_for(Replay(folder))
    assert [again.get("/a", {"page": page}, context=replayed).text for page in range(2)] == pages[:2]


def test_a_disk_that_is_full_at_the_first_row_leaves_an_empty_recording(folder: Path, server: RecordedServer) -> None:
    recorder = Recorder(folder)
    with no_file_beyond(100):
        assert Client(server.url).get("/busy", context=context_for(recorder), accept=[429]).text == "slow down"
    assert recorder.failure == "File too large"
    assert (folder / "manifest.json").read_bytes() == b"[]\n"
    assert not Replay(folder).hosts


def test_a_state_that_does_not_fit_ends_the_recording_and_a_folder_without_room_is_refused(folder: Path) -> None:
    recorder = Recorder(folder)
    with no_file_beyond(1):
        recorder.note_run({"tickers": ["A"] * 100}, ["mine"])
        with pytest.raises(ConfigError, match=r"cannot record into .*second: File too large"):
            Recorder(folder / "second")
    assert recorder.failure == "File too large"


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"503 Busy\r\nRetry-After: 7", RetryAfter), (b"500 Oops", TransientError), (b"404 Gone", NotFound)],
)
def test_an_error_is_the_same_error_while_it_is_recorded(head: bytes, kind: type[Exception], folder: Path) -> None:
    """Neither a body that breaks off nor one beyond the limit hides the status."""
    broken = b"HTTP/1.1 %b\r\nContent-Length: 100\r\n\r\nhalf" % head
    huge = b"HTTP/1.1 %b\r\nContent-Length: 100000\r\n\r\n%b" % (head, b"x" * 100_000)
    said = []
    for traffic in (None, Recorder(folder)):
        for answer in (broken, huge):
            with raw_server(say(answer)) as url:
                client = Client(url, max_bytes=1000)
                with pytest.raises(kind) as caught:
                    client.get("/", context=context_for(traffic))
                said.append(str(caught.value).replace(url, ""))
                client.close()
    assert said[:2] == said[2:]
    assert len(Replay(folder)._rows) == 2
