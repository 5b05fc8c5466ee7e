"""The command records and replays: own scanners against a server that goes away, built-in ones on real recordings."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan.cli import main as cli
from resilient_scan.cli.choice import Request
from resilient_scan.cli.fleet import open_fleet
from tests.scanners.filings import COMPANIES, entry, feed, form4, line, owner, submission
from tests.scanners.recorded import Answer, Asked, RecordedServer, folder
from tests.support.disks import no_file_beyond

USER = "Jane Doe jane-d0e@example.com"
ID, SECRET, TOKEN = "my-cl1ent-id", "my-cl1ent-secret", "t0ken-0f-the-day"
FLEET = "insider_buying,filings_8k,reddit_trending,reddit_dd"


def edgar_and_reddit(asked: Asked) -> Answer:
    """Answer for both, and echo the key wherever there is room."""
    if asked.path == "/cgi-bin/browse-edgar":
        form = {"4": "4", "8-K": "8-K"}[asked.query["type"]]
        return 200, {}, feed([entry(1, form=form)])
    if asked.path.startswith("/Archives/"):
        return 200, {}, submission(form4([line(shares=9000, price=50)], owner(officer="1")))
    if asked.path == "/files/company_tickers.json":
        return 200, {}, json.dumps(COMPANIES).encode()
    if asked.path == "/api/v1/access_token":
        return 200, {}, json.dumps({"access_token": TOKEN, "expires_in": 86400}).encode()
    shown = f"{SECRET} {ID} {asked.headers['authorization']}"
    data = {
        "id": "x", "subreddit": "stocks", "title": "DD on ACME", "score": 99,
        "selftext": f"a long story of a small company {shown} " * 40,
        "num_comments": 1, "created_utc": 1772600000, "permalink": "/r/stocks/x", "stickied": False,
    }  # fmt: skip
    answer = {"kind": "Listing", "data": {"children": [{"kind": "t3", "data": data}]}}
    return 200, {"set-cookie": f"session={TOKEN}"}, json.dumps(answer).encode()


@pytest.fixture
def server() -> Iterator[RecordedServer]:
    with RecordedServer({"/*": edgar_and_reddit}, manifest=False) as served:
        yield served


def config(tmp_path: Path, url: str) -> Path:
    text = '[store]\nurl = "memory:"\n[scanners]\n'
    for name in ("insider_buying", "filings_8k"):
        text += f'{name}.settings = {{ base_url = "{url}", user_agent = "{USER}" }}\n'
    for name, more in (("reddit_trending", "min_mentions = 1"), ("reddit_dd", "min_score = 1")):
        text += (
            f'{name}.settings = {{ base_url = "{url}", client_id = "{ID}", client_secret = "{SECRET}", '
            f'sec_user_agent = "{USER}", subreddits = ["stocks"], {more} }}\n'
        )
    path = tmp_path / "scan.toml"
    path.write_text(text)
    return path


def told_of(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what was found; the posts here hold secrets, so that their lengths differ."""
    return [(each["source"], each["ticker"], each["context"]) for each in report["candidates"]]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["run", "--json", "--only", FLEET, *map(str, arguments)])
    said = capsys.readouterr()
    return code, json.loads(said.out or "{}"), said.err


def test_a_full_disk_costs_the_recording_and_no_scanner(
    server: RecordedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, tape = config(tmp_path, server.url), tmp_path / "tape"
    with no_file_beyond(1500):
        code, report, said = run(capsys, "--config", settings, "--record", tape)
    assert report["counts"] == {"completed": 4}
    assert report["complete"]
    assert said.count(f"the recording in {tape} ends here: File too large") == 1
    assert "nothing was recorded" not in said  # of whom, nobody knows
    assert code == 1  # as `tee` does: the results are whole, and something that was asked for is not
    assert 0 < len(json.loads((tape / "manifest.json").read_text())) < len(server.asked)


def test_a_run_is_recorded_replayed_offline_and_no_secret_is_written(
    server: RecordedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, tape = config(tmp_path, server.url), tmp_path / "tape"
    code, live, said = run(capsys, "--config", settings, "--record", tape)
    assert code == 0, said
    rows = json.loads((tape / "manifest.json").read_text())
    (named,) = re.findall(r"nothing was recorded for (.*?):", said) or [""]
    assert set(FLEET.split(",")) - {row["scanner"] for row in rows} == set(named.split(", ")) - {""}
    found = [(each["source"], each["ticker"]) for each in live["candidates"]]
    assert sorted(found) == [(name, "ACME") for name in sorted(FLEET.split(","))]
    asked = len(server.asked)

    def unplugged(*_: object, **__: object) -> None:
        raise AssertionError("a replay asks no network")

    monkeypatch.setattr(socket, "create_connection", unplugged)
    code, again, told = run(capsys, "--config", settings, "--replay", tape)
    assert code == 0, told
    assert told_of(again) == told_of(live)
    assert len(server.asked) == asked
    files = "".join(path.read_text() for path in tape.rglob("*") if path.is_file())
    everything = files + said + told + json.dumps([live, again])
    for secret in (ID, SECRET, TOKEN):
        assert secret not in everything
    assert {row["scanner"] for row in rows} <= set(FLEET.split(","))  # what two share is loaded by one of them
    assert sorted(json.loads((tape / "scanners.json").read_text())) == sorted(FLEET.split(","))


def test_the_bundled_data_are_not_recorded_and_one_line_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--record", str(tmp_path / "tape")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bundled data are recordings already: name a settings file with --config" in line
    assert not (tmp_path / "tape").exists()
    assert cli.main(["run", "--record", str(tmp_path / "tape"), "--only", "gap_up"]) == 2
    assert "set scanners.gap_up.settings.universe" in capsys.readouterr().err
    assert cli.main(["run", "--record", str(tmp_path / "tape"), "--pipeline", "social"]) == 2
    assert "reddit_dd: set scanners.reddit_dd.settings." in capsys.readouterr().err  # which no bundled data answer


def test_what_is_missing_in_a_folder_is_an_error_of_its_scanner(
    server: RecordedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, tape = config(tmp_path, server.url), tmp_path / "tape"
    assert run(capsys, "--config", settings, "--record", tape)[0] == 0
    manifest = tape / "manifest.json"
    rows = json.loads(manifest.read_text())
    manifest.write_text(json.dumps([row for row in rows if "type=8-K" not in row["url"]]))
    code, report, _ = run(capsys, "--config", settings, "--replay", tape)
    assert code == 1
    results = report["results"]
    assert {name: each["status"] for name, each in results.items()} == {
        "insider_buying": "completed", "filings_8k": "error", "reddit_trending": "completed", "reddit_dd": "completed",
    }  # fmt: skip
    message = results["filings_8k"]["error"]["message"]
    assert str(tape) in message
    assert f"GET {server.url}/cgi-bin/browse-edgar?" in message


def test_the_real_recordings_are_replayed_and_the_first_that_is_missing_is_named() -> None:
    """Two pages of the feed of 2025-12-12 are there, the forms that they name are not."""
    with open_fleet(Request(replay=folder(), only=("insider_buying",)), listeners=()) as fleet:
        report = fleet.run()
    (result,) = report.results.values()
    assert result.status == "error"
    assert result.error is not None
    assert "GET https://www.sec.gov/Archives/edgar/data/" in result.error.message
    assert f"not recorded in {folder()}" in result.error.message


@pytest.mark.parametrize("state", [{}, {"tickers": ["TEST"]}])
def test_chart_scanners_want_tickers_from_the_settings_or_the_recorded_state(
    state: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "body").write_text("{}")
    row = {"file": "body", "url": "https://query2.finance.yahoo.com/v8/finance/chart/X"}
    (tmp_path / "manifest.json").write_text(json.dumps([row]))
    (tmp_path / "state.json").write_text(json.dumps(state))
    names = ("gap_up", "high_52w_breakout", "rsi_oversold", "volume_accumulation")
    with open_fleet(Request(replay=tmp_path, only=(*names, "options_flow")), listeners=()) as fleet:
        report = fleet.run()
    lacking = {name: f"set scanners.{name}.settings.universe" for name in names}
    assert fleet.not_configured == ({} if state else lacking)
    if state:
        assert all("not recorded in" in str(report.results[name].error) for name in names)


def test_scanners_without_recordings_are_not_configured(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with (
        pytest.raises(ConfigError, match=r"insider_buying: .* has no recordings of it or of www\.sec\.gov"),
        open_fleet(Request(replay=tmp_path, only=("insider_buying",)), listeners=()),
    ):
        pass
