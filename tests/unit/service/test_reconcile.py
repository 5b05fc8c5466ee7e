"""Asking Alertmanager for its list: what is no list changes nothing, and is told once."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.errors import StoreError
from resilient_scan.quarantine import Alert
from resilient_scan.service.reconcile import Reconciler, Unreachable, active_alerts
from tests.unit.test_service_client import answering, http

GOOD = {
    "labels": {"alertname": "ScannerErrorRatioHigh", "scanner": "alpha", "resilient_scan_action": "disable"},
    "annotations": {"summary": "it fails"},
    "startsAt": "2026-11-24T06:32:20.887Z",
    "fingerprint": "a992dffc315e8592",
    "status": {"state": "active"},
}


class Asked:
    """Stands where the runner would, and keeps what it is given."""

    def __init__(self) -> None:
        self.lists: list[list[Alert]] = []
        self.error: Exception | None = None
        self.heard = threading.Semaphore(0)

    def __call__(self, fetch: Callable[[], Iterable[Alert]], *, source: str) -> None:
        assert source == "alertmanager"
        try:
            if self.error is not None:
                raise self.error
            self.lists.append(list(fetch()))
        finally:
            self.heard.release()


def test_its_active_alerts_are_read_and_those_that_make_no_sense_left_out() -> None:
    asked: list[str] = []

    def answer(path: str, query: dict[str, str]) -> Answer:
        asked.append(f"{path} {sorted(query.items())}")
        said: list[Any] = [GOOD, {"labels": 3}, 7, None, [], "text", {**GOOD, "startsAt": "soon"}]
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

    with LoopbackServer(answer) as server:
        (only,) = active_alerts(f"{server.url}/")
    assert (only.action, only.scanner, only.status, only.name) == (
        "disable",
        "alpha",
        "firing",
        "ScannerErrorRatioHigh",
    )
    (request,) = asked
    assert request.startswith("/api/v2/alerts ")
    for word in ("('active', 'true')", "('silenced', 'false')", "('inhibited', 'false')"):
        assert word in request


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"-ERR\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n[",
        http(b"<html>"),
        http(b"\xff"),
        http(b"{}"),
        http(b"null"),
        http(b"[" * 200_000),
        http(b"[]", "500 Internal Server Error"),
        http(b"[" + b" " * 9_000_000 + b"]"),
    ],
)
def test_what_is_no_list_is_no_answer(said: bytes) -> None:
    with answering(said) as (host, port), pytest.raises(Unreachable) as caught:
        active_alerts(f"http://{host}:{port}")
    assert str(caught.value).startswith(f"Alertmanager at http://{host}:{port} gives no list of its alerts")
    assert len(str(caught.value)) < 400


def test_garbage_is_told_once_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resilient_scan")
    asked = Asked()
    bodies = iter([b"-", b"-", b"{}", b"[]", b"[]", b"-"])

    def answer(_path: str, _query: dict[str, str]) -> Answer:
        return 200, {}, next(bodies)

    with LoopbackServer(answer) as server:
        reconciler = Reconciler(asked, server.url, 3600)
        troubles = []
        for _ in range(6):
            reconciler.once()
            troubles.append(bool(reconciler.trouble))
    assert troubles == [True, True, True, False, False, True]
    told = [(record.levelname, record.message.partition(server.url)[2]) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO", "WARNING"]
    assert told[0][1].endswith("what its messages said goes on to count, each for its lease")
    assert told[1][1] == " answers again"
    assert asked.lists == [[], []]


def test_a_store_that_fails_is_not_told_as_alertmanagers_fault(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()
    asked.error = StoreError("the store is away")
    Reconciler(asked, "http://127.0.0.1:9", 3600).once()
    assert caplog.records == []


def test_it_asks_at_once_then_again_and_whatever_happens_does_not_end_it() -> None:
    asked = Asked()
    asked.error = RuntimeError("nobody thought of this")
    reconciler = Reconciler(asked, "http://127.0.0.1:9", 0.001)
    reconciler.start()
    for _ in range(3):
        assert asked.heard.acquire(timeout=5)
    reconciler.stop()
    reconciler.stop()


def test_it_asks_again_when_it_has_to_but_not_as_often_as_anybody_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilient_scan.service.reconcile.PAUSE", 0.05)
    asked = Asked()
    reconciler = Reconciler(asked, "http://127.0.0.1:9", 3600)
    asked.error = StoreError("it need not ask for this test")
    reconciler.start()
    assert asked.heard.acquire(timeout=5)
    began = time.monotonic()
    for _ in range(3):
        reconciler.ask_again()
        assert asked.heard.acquire(timeout=5)
    assert time.monotonic() - began > 0.1
    assert not asked.heard.acquire(timeout=0.15)
    reconciler.stop()


def test_one_that_was_not_started_can_be_stopped() -> None:
    Reconciler(Asked(), "http://127.0.0.1:9", 1).stop()
