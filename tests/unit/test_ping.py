"""The notice to a dead-man's switch: how it ends, how long it may take, and that its address stands nowhere."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilient_scan import ConfigError, load_settings
from resilient_scan._text import hide
from resilient_scan.cli import ping as module
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.cli.main import main
from resilient_scan.cli.ping import Ping, pinging
from tests.support.waiting import WAIT_TIMEOUT
from tests.unit.test_service_client import answering, http

TOKEN = "5f3c9a1e-secret-0b77"
RUN = ("run", "--demo", "--json", "--only", "gap_up")


class Switch:
    """A dead-man's switch, and what it was asked for."""

    def __init__(self, status: int = 200) -> None:
        self.asked: list[str] = []
        self.status = status
        self.url = ""

    def __call__(self, path: str, query: dict[str, str]) -> Answer:
        self.asked.append(path + "".join(f"?{name}={value}" for name, value in query.items()))
        return self.status, {"Content-Type": "text/plain"}, f"no check at {path}".encode()


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch()
    with LoopbackServer(made) as server:
        made.url = f"{server.url}/ping/{TOKEN}"
        yield made


def test_a_run_in_which_all_answered_pings(switch: Switch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--ping", switch.url]) == 0
    assert switch.asked == [f"/ping/{TOKEN}"]
    assert TOKEN not in "".join(capsys.readouterr())


def test_a_run_in_which_one_did_not_pings_fail(
    switch: Switch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESILIENT_SCAN__SCANNERS__gap_up__RETRY", "false")
    monkeypatch.setenv("RESILIENT_SCAN__SCANNERS__gap_up__TIMEOUT__TOTAL", "1ms")
    monkeypatch.setenv("RESILIENT_SCAN__NOTIFY__PING", switch.url)
    assert main(RUN) == 1
    assert switch.asked == [f"/ping/{TOKEN}/fail"]
    assert TOKEN not in "".join(capsys.readouterr())


def test_a_run_that_does_not_even_begin_pings_fail(switch: Switch) -> None:
    assert main(["run", "--only", "nobody", "--ping", switch.url]) == 2
    assert switch.asked == [f"/ping/{TOKEN}/fail"]


def test_what_is_rehearsed_did_not_happen(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENT_SCAN__NOTIFY__PING", switch.url)
    main(["run", "--faults", "--json", "--only", "broken"])
    assert switch.asked == []


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_what_ends_a_run_early_pings_fail(switch: Switch, end: type[BaseException]) -> None:
    def run() -> None:
        with pinging(switch.url) as ping:
            ping.succeeded = True
            raise end

    with pytest.raises(end):
        run()
    assert switch.asked == [f"/ping/{TOKEN}/fail"]


def test_a_query_stays_behind_the_path(switch: Switch) -> None:
    with pinging(f"{switch.url}/?rid=7"):
        pass
    assert switch.asked == [f"/ping/{TOKEN}/fail?rid=7"]


def test_the_command_line_goes_before_the_settings(switch: Switch) -> None:
    with pinging(switch.url) as ping:
        ping.send_to("http://127.0.0.1:9/other")
        ping.send_to(None)
        ping.succeeded = True
    assert switch.asked == [f"/ping/{TOKEN}"]
    with pinging(None):
        pass


@pytest.mark.parametrize(
    "said",
    [
        http(f"no check {TOKEN}".encode(), "404 Not Found"),
        http(b"", "503 Service Unavailable"),
        f"HTTP/1.1 301 Moved\r\nLocation: /login/{TOKEN}\r\nContent-Length: 0\r\n\r\n".encode(),
        b"-ERR\r\n",
        b"",
        http(b"x" * 100_000),
    ],
)
def test_what_goes_wrong_is_logged_without_the_address_and_does_no_harm(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(said) as (host, port), pinging(f"http://{host}:{port}/{TOKEN}") as ping:
        ping.succeeded = True
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"the ping could not be delivered to {host}: ")
    assert record.getMessage().endswith("; the run is not affected")
    assert TOKEN not in record.getMessage()
    assert len(record.getMessage()) < 400


def test_nobody_there_and_one_who_never_answers_take_their_time_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    began = time.monotonic()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") as (host, port):
        taken = Ping(f"http://{host}:{port}/{TOKEN}")
        taken.send()
        assert time.monotonic() - began < 2
    Ping(f"http://{host}:{port}/{TOKEN}").send()
    assert len(caplog.records) == 2
    assert TOKEN not in caplog.text


def test_the_lookup_of_a_name_that_hangs_does_not_hold_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, release: threading.Event
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT", 0.05)
    monkeypatch.setattr(module, "_get", lambda _url, _outcome: release.wait())
    began = time.monotonic()
    Ping(f"http://switch.test/{TOKEN}").send()
    assert time.monotonic() - began < WAIT_TIMEOUT / 2
    assert "no answer within 0.1s" in caplog.text


@pytest.mark.parametrize("url", ["hc-ping.com/x", "ftp://hc-ping.com/x", "http://", "https://h:x/", "http://h/a b"])
def test_what_is_not_an_address_is_refused_without_showing_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--ping must be an address such as"):
        Ping(url)
    assert main([*RUN, "--ping", url]) == 2
    assert url not in capsys.readouterr().err
    if url != "https://h:x/":
        (tmp_path / "scan.toml").write_text(f"[notify]\nping = {json.dumps(url)}\n")
        with pytest.raises(ConfigError, match=r"notify\.ping must be a URL such as") as caught:
            load_settings(tmp_path / "scan.toml", environ={})
        assert url not in str(caught.value)


def test_its_token_is_taken_out_of_other_messages_too() -> None:
    Ping(f"https://hc-ping.com/{TOKEN}")
    assert TOKEN not in hide(f"somebody asked for /{TOKEN}")
