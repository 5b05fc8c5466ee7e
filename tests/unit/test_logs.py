"""The log lines that users know, word by word."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from resilient_scan import Candidate, LogEvents, Policy, ScanResult, ScanRunner, Status, Timeout
from resilient_scan.events import (
    BreakerChanged,
    Event,
    LateCompletion,
    RunEnded,
    RunStarted,
    ScanEnded,
    ScannerStateChanged,
    ThreadAbandoned,
)
from resilient_scan.outcome import ErrorInfo
from resilient_scan.testing import broken, healthy, polite

INFO, WARNING = logging.INFO, logging.WARNING


def ended(status: Status, *, found: int = 0, error: str | None = None, invalid: str = "", **changes: Any) -> ScanEnded:
    fields: dict[str, Any] = {
        "scanner": "one",
        "pipeline": "news",
        "status": status,
        "candidates": [Candidate("A", "one", "")] * found,
        "error": None if error is None else ErrorInfo("OSError", error),
        "attempts": 1,
        "duration": 0.5,
        "queue_wait": 0.0,
        "age": None,
        "partial": False,
        "dropped": 0,
        "tool_logs": [],
        "started_at": 0.0,
    }
    return ScanEnded("run", ScanResult(**{**fields, **changes}), "", invalid)


def lines(event: Event, caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Return level and text of what one event makes."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "resilient_scan"):
        LogEvents()(event)
    assert all(record.name == "resilient_scan" for record in caplog.records)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize(
    ("event", "level", "line"),
    [
        (RunStarted("id", 8, True, 8, 0.0), INFO, "Running 8 scanners concurrently (max 8 workers)..."),
        (RunStarted("id", 500, True, 16, 0.0), INFO, "Running 500 scanners concurrently (max 16 workers)..."),
        (RunStarted("id", 8, False, 8, 0.0), INFO, "Running 8 scanners sequentially..."),
        (ended(Status.COMPLETED, found=10), INFO, "✓ one: 10 candidates"),
        (ended(Status.COMPLETED), INFO, "✓ one: 0 candidates"),
        (ended(Status.CACHED, found=2, age=12.4), INFO, "✓ one: 2 candidates (cached, 12s old)"),
        (ended(Status.CACHED, found=2, age=0.0), INFO, "✓ one: 2 candidates (cached, 0s old)"),
        (
            ended(Status.STALE, found=3, age=400.0, error="HTTP 500 error"),
            WARNING,
            "⚠️ one: 3 candidates (stale, 400s old): HTTP 500 error",
        ),
        (ended(Status.TIMEOUT, error="timeout after 30s"), WARNING, "⏱️ one: timeout after 30s"),
        (
            ended(Status.TIMEOUT, found=2, partial=True, error="timeout after 30s"),
            WARNING,
            "⏱️ one: timeout after 30s (2 candidates before that)",
        ),
        (ended(Status.ERROR, error="HTTP 500 error"), WARNING, "⚠️ one: HTTP 500 error"),
        (
            ended(Status.ERROR, found=1, partial=True, error="HTTP 500 error"),
            WARNING,
            "⚠️ one: HTTP 500 error (1 candidates before that)",
        ),
        (ended(Status.REJECTED, error="it is open"), WARNING, "⚠️ one: rejected: it is open"),
        (ended(Status.DISABLED), INFO, "one: disabled"),
        (ended(Status.SKIPPED), INFO, "one: skipped"),
        (BreakerChanged("one", "closed", "open", 60.0), WARNING, "one: breaker open for 60s"),
        (BreakerChanged("one", "half_open", "open", 107.256), WARNING, "one: breaker open for 107s"),
        (BreakerChanged("one", "open", "half_open", None), INFO, "one: breaker half-open"),
        (BreakerChanged("one", "half_open", "closed", None), INFO, "one: breaker closed"),
        (
            ScannerStateChanged("one", "enabled", "disabled", "hand", "quota used up", 5.0, 0.0),
            WARNING,
            "one: disabled (quota used up)",
        ),
        (ThreadAbandoned("one", "worker-3", 30.0), WARNING, "one: thread worker-3 did not stop in time, left behind"),
        (
            LateCompletion("one", 45.678, "success"),
            INFO,
            "one: the call left behind ended after 45.7s (success)",
        ),
    ],
)
def test_one_thing_that_happened_is_one_line(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert lines(event, caplog) == [(level, line)]


def test_dropped_candidates_are_a_line_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    event = ended(Status.COMPLETED, found=1, dropped=2, invalid="candidate.ticker is missing")
    assert lines(event, caplog) == [
        (INFO, "✓ one: 1 candidates"),
        (WARNING, "⚠️ one: 2 invalid dropped, the first: candidate.ticker is missing"),
    ]


def test_what_it_did_not_ask_for_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    event = RunEnded("id", 1.0, {}, True, 0.0)
    assert type(event) not in LogEvents.events
    assert lines(event, caplog) == []


def test_a_line_below_the_level_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(WARNING, "resilient_scan"):
        LogEvents()(ended(Status.COMPLETED, found=1, dropped=1, invalid="x"))
    assert [record.levelno for record in caplog.records] == [WARNING]


def test_a_text_with_percent_signs_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(ended(Status.ERROR, error="100%s %d"), caplog) == [(WARNING, "⚠️ one: 100%s %d")]


def test_another_logger_may_be_given(caplog: pytest.LogCaptureFixture) -> None:
    own = logging.getLogger("own.logger")
    with caplog.at_level(INFO, "own.logger"):
        LogEvents(own)(RunStarted("id", 2, False, 8, 0.0))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("own.logger", "Running 2 scanners sequentially...")
    ]


@pytest.mark.parametrize("concurrent", [True, False])
def test_a_runner_logs_unless_told_otherwise(concurrent: bool, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(retry=None, timeout=Timeout(total=0.05))
    fleet = [healthy("market_movers", [Candidate("A", "m", "")] * 10), polite("slow_scanner"), broken("broken_scanner")]
    with (
        caplog.at_level(INFO, "resilient_scan"),
        ScanRunner(fleet, policy=policy, concurrent=concurrent, order="given") as runner,
    ):
        runner.run({})
    how = "concurrently (max 8 workers)" if concurrent else "sequentially"
    texts = [record.getMessage() for record in caplog.records]
    assert texts[0] == f"Running 3 scanners {how}..."
    assert {
        "✓ market_movers: 10 candidates",
        "⏱️ slow_scanner: timeout after 0.05s",
        "⚠️ broken_scanner: HTTP 500 error",
    } <= set(texts)


def test_no_listener_no_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "resilient_scan"), ScanRunner([healthy("one")], listeners=()) as runner:
        runner.run({})
    assert caplog.records == []
