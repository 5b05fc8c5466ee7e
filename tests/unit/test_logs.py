"""The log lines that users know, word by word."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any

import pytest

from resilient_scan import (
    Candidate,
    ConfigError,
    LogEvents,
    Policy,
    Quarantine,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import (
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    LateCompletion,
    ListenerLate,
    LocalFault,
    ProviderChanged,
    RetryBudgetExhausted,
    RunEnded,
    RunStarted,
    ScanEnded,
    ScannerStateChanged,
    ScheduledRunBegins,
    ScheduleStarted,
    StoreFailed,
    StoreRecovered,
    ThreadAbandoned,
)
from resilient_scan.observe.logs import JsonLines
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock, broken, flapping, healthy, polite
from tests.support.results import result

INFO, WARNING = logging.INFO, logging.WARNING


def ended(status: Status, *, found: int = 0, error: str | None = None, invalid: str = "", **changes: Any) -> ScanEnded:
    candidates, info = [Candidate("A", "one", "")] * found, None if error is None else ErrorInfo("OSError", error)
    return ScanEnded("run", result(status=status, candidates=candidates, error=info, **changes), "", invalid)


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
            "⚠️ one: HTTP 500 error (1 candidate before that)",
        ),
        (ended(Status.REJECTED, error="it is open"), WARNING, "⚠️ one: rejected: it is open"),
        (ended(Status.DISABLED), INFO, "one: disabled"),
        (ended(Status.SKIPPED), INFO, "one: skipped"),
        (BreakerChanged("one", "closed", "open", 60.0), WARNING, "one: breaker open for 60s"),
        (BreakerChanged("one", "half_open", "open", 107.256), WARNING, "one: breaker open for 107s"),
        (BreakerChanged("one", "open", "half_open", None), INFO, "one: breaker half-open"),
        (BreakerChanged("one", "half_open", "closed", None), INFO, "one: breaker closed"),
        (
            ProviderChanged("acme", "closed", "open", 60.0, "one"),
            WARNING,
            "provider acme: breaker open for 60s, tried last by one",
        ),
        (ProviderChanged("acme", "open", "half_open", None, "one"), INFO, "provider acme: breaker half-open"),
        (
            ScannerStateChanged("one", "enabled", "disabled", "hand", "quota used up", 5.0, 0.0),
            WARNING,
            "one: disabled (quota used up)",
        ),
        (ThreadAbandoned("one", "worker-3", 30.0), WARNING, "one: thread worker-3 did not stop in time, abandoned"),
        (
            LateCompletion("one", 45.678, "success"),
            INFO,
            "one: the abandoned call ended after 45.7s (success)",
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
        (INFO, "✓ one: 1 candidate"),
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


@pytest.mark.parametrize(
    ("where", "blame", "tail"),
    [
        ("", "scanner", ""),
        ("OSError at feeds.py:42 in parse", "scanner", " (OSError at feeds.py:42 in parse)"),
        ("OSError at feeds.py:42 in parse", "local", " (OSError at feeds.py:42 in parse, blame=local)"),
        ("", "provider", " (blame=provider)"),
    ],
)
@pytest.mark.parametrize(
    ("status", "head"), [(Status.ERROR, "⚠️ one: full"), (Status.TIMEOUT, "⏱️ one: full"), (Status.STALE, ": full")]
)
def test_a_line_says_whose_fault_it_is_unless_the_scanners(
    status: Status, head: str, where: str, blame: str, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed = result(status=status, error=ErrorInfo("OSError", "full", where, "", blame))
    ((_level, text),) = lines(ScanEnded("run", failed, "", ""), caplog)
    assert text.endswith(head + tail)


def test_another_logger_may_be_given(caplog: pytest.LogCaptureFixture) -> None:
    own = logging.getLogger("own.logger")
    with caplog.at_level(INFO, "own.logger"):
        LogEvents(own)(RunStarted("id", 2, False, 8, 0.0))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("own.logger", "Running 2 scanners sequentially...")
    ]


def test_a_message_of_several_lines_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """ "one line per thing that happened"; a source's text can forge the lines of other scanners."""
    with caplog.at_level(logging.INFO, "resilient_scan"):
        LogEvents()(ended(Status.ERROR, error="HTTP 500\n✓ two: 10 candidates"))
    assert "\n" not in caplog.records[0].getMessage()


def test_coming_back_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """answers at INFO, trouble at WARNING."""
    with caplog.at_level(logging.INFO, "resilient_scan"):
        LogEvents()(ScannerStateChanged("one", "disabled", "enabled", "hand", "fixed", None, 0.0))
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize("concurrent", [True, False])
def test_a_runner_logs_by_default(concurrent: bool, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(retry=None, timeout=Timeout(total=0.05))
    fleet = [healthy("market_movers", [Candidate("A", "m", "")] * 10), polite("slow_scanner"), broken("broken_scanner")]
    with (
        caplog.at_level(INFO, "resilient_scan"),
        ScanRunner(fleet, policy=policy, concurrent=concurrent, order="given") as runner,
    ):
        runner.run({})
    how = "concurrently (max 8 workers)" if concurrent else "sequentially"
    texts = [record.getMessage() for record in caplog.records if "the abandoned call" not in record.getMessage()]
    assert texts[0] == f"Running 3 scanners {how}..."  # but for what the thread of another test says late
    assert {
        "✓ market_movers: 10 candidates",
        "⏱️ slow_scanner: timeout after 0.05s",
        "⚠️ broken_scanner: HTTP 500 error",
    } <= {re.sub(r" \(ScanError at testing\.py:\d+ in scan\)$", "", text) for text in texts}


def test_no_listener_no_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "resilient_scan"), ScanRunner([healthy("one")], listeners=()) as runner:
        runner.run({})
    texts = [record.getMessage() for record in caplog.records]
    assert [text for text in texts if "the abandoned call" not in text] == []  # another test's thread may say that


# secrets


def test_a_secret_in_an_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    event = ended(Status.ERROR, error="GET https://host/x?apikey=hunter2 failed")
    assert lines(event, caplog) == [(WARNING, "⚠️ one: GET https://host/x?apikey=REDACTED failed")]


def test_a_secret_in_what_was_dropped_or_why_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    event = ended(Status.COMPLETED, dropped=1, invalid="token=hunter2")
    assert "hunter2" not in str(lines(event, caplog))
    assert "hunter2" not in str(
        lines(ScannerStateChanged("one", "enabled", "disabled", "hand", "password: hunter2", None, 0.0), caplog)
    )


# no flood


def logged(listener: LogEvents, events: list[Event], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(INFO, "resilient_scan"):
        for event in events:
            listener(event)
    return [record.getMessage() for record in caplog.records]


def test_a_scanner_that_is_rejected_again_and_again_has_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    listener = LogEvents()
    rejected = ended(Status.REJECTED, error="the breaker is open")
    other = ended(Status.REJECTED, error="the breaker is open", scanner="two")
    assert logged(listener, [rejected] * 1000, caplog) == ["⚠️ one: rejected: the breaker is open"]
    assert logged(listener, [other], caplog) == ["⚠️ two: rejected: the breaker is open"]
    well = ended(Status.COMPLETED)
    assert logged(listener, [well, well], caplog) == [
        "one: rejected 999 more times in between",
        "✓ one: 0 candidates",
        "✓ one: 0 candidates",
    ]
    assert logged(listener, [rejected, well], caplog) == ["⚠️ one: rejected: the breaker is open", "✓ one: 0 candidates"]


def test_a_disabled_scanner_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    listener = LogEvents()
    assert logged(listener, [ended(Status.DISABLED)] * 3, caplog) == ["one: disabled"]
    assert logged(listener, [ended(Status.REJECTED, error="x")] * 2, caplog) == ["⚠️ one: rejected: x"]


def test_threads_that_count_at_once_lose_none(caplog: pytest.LogCaptureFixture) -> None:
    listener, rejected = LogEvents(), ended(Status.REJECTED, error="x")
    with caplog.at_level(INFO, "resilient_scan"):
        threads = [threading.Thread(target=lambda: [listener(rejected) for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listener(ended(Status.COMPLETED))
    assert [record.getMessage() for record in caplog.records][:2] == [
        "⚠️ one: rejected: x",
        "one: rejected 3999 more times in between",
    ]


# JSON


def objects(listener: LogEvents, events: list[Event], caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "resilient_scan"):
        for event in events:
            listener(event)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    return [json.loads(record.getMessage()) for record in caplog.records]


def test_an_event_is_one_object(caplog: pytest.LogCaptureFixture) -> None:
    listener = LogEvents(format="json", clock=FakeClock(start=0.25))
    event = ended(Status.ERROR, found=2, error="a\nb token=hunter2", partial=True)
    (line,) = objects(listener, [event], caplog)
    assert line == {
        "ts": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "event": "scan_ended",
        "run_id": "run",
        "cache": "",
        "invalid": "",
        "probe": False,
        "scanner": "one",
        "pipeline": "news",
        "status": "error",
        "candidates": 2,
        "error": {
            "type": "OSError",
            "message": "a\nb token=REDACTED",
            "where": "",
            "traceback": "",
            "blame": "scanner",
        },
        "blame": "scanner",
        "attempts": 1,
        "attempt": 1,
        "duration": 0.5,
        "queue_wait": 0.0,
        "age": None,
        "partial": True,
        "dropped": 0,
        "tool_logs": 0,
        "started_at": 0.0,
        "suspicious": None,
    }


@pytest.mark.parametrize(
    ("event", "name", "level"),
    [
        (RunStarted("id", 8, True, 8, 0.0), "run_started", "info"),
        (RunEnded("id", 1.0, {Status.COMPLETED: 2, Status.REJECTED: 1}, False, 0.0), "run_ended", "info"),
        (AttemptEnded("one", 1, "success", 0.1, None, "id"), "attempt_ended", "debug"),
        (AttemptEnded("one", 1, "error", 0.1, ErrorInfo("OSError", "x"), "id"), "attempt_ended", "info"),
        (ExecutionEnded("one", "p", "success", 0.1, 1, None, "id"), "execution_ended", "debug"),
        (BreakerChanged("one", "closed", "open", 60.0, "id"), "breaker_changed", "warning"),
        (BreakerChanged("one", "half_open", "closed", None, "id"), "breaker_changed", "info"),
        (ScannerStateChanged("one", "enabled", "disabled", "hand", "", None, 0.0), "scanner_state_changed", "warning"),
        (ScannerStateChanged("one", "disabled", "enabled", "hand", "", None, 0.0), "scanner_state_changed", "info"),
        (ThreadAbandoned("one", "worker-1", 1.0, "id", 2), "thread_abandoned", "warning"),
        (LateCompletion("one", 1.0, "success", "id", 2), "late_completion", "info"),
        (RetryBudgetExhausted("one", 2, "id"), "retry_budget_exhausted", "warning"),
        (
            LocalFault("one", "disk", ErrorInfo("OSError", "full", blame="local"), "id", 2, 0.0, first=True),
            "local_fault",
            "warning",
        ),
        (StoreFailed("get", "redis://:hunter2@h: down", 0.0, True), "store_failed", "warning"),
        (StoreRecovered(0.0), "store_recovered", "info"),
        (ListenerLate("slow", 3, "id", 0.0), "listener_late", "warning"),
        (HeartbeatSeen(0.0), "heartbeat_seen", "debug"),
        (AlertsServed(0.0), "alerts_served", "info"),
        (ScheduleStarted(("one",), 60.0, 0.0), "schedule_started", "info"),
        (ScheduledRunBegins(0.1, 0.0), "scheduled_run_begins", "debug"),
    ],
)
def test_every_event_has_its_name_its_level_and_its_context(
    event: Event, name: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = objects(LogEvents(format="json"), [event], caplog)
    assert (line["event"], line["level"]) == (name, level)
    assert "hunter2" not in str(line)
    for field in event.__struct_fields__:
        assert field in line


def test_a_run_s_end_counts_by_status(caplog: pytest.LogCaptureFixture) -> None:
    event = RunEnded("id", 1.0, {Status.COMPLETED: 2, Status.REJECTED: 1}, False, 0.0)
    (line,) = objects(LogEvents(format="json"), [event], caplog)
    assert line["counts"] == {"completed": 2, "rejected": 1}


def test_what_belongs_to_a_run_says_which_run_scanner_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """Each event of a scan, a suspicious answer and a failed probe among them."""
    clock = FakeClock(auto=True)
    fleet = [
        flapping("ill", [OSError("x"), OSError("x"), OSError("x")], retry=None),
        flapping("odd", [[{"bad": 1}]] * 3, cache=None),
    ]
    listeners = [LogEvents(format="json", clock=clock)]
    quarantine = Quarantine(after_failures=2, max_share=1.0)
    with (
        caplog.at_level(logging.DEBUG, "resilient_scan"),
        ScanRunner(fleet, clock=clock, listeners=listeners, quarantine=quarantine) as runner,
    ):
        runner.run({})
        runner.run({})
        clock.advance(60)
        runner.run({})
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    mine = [line for line in lines if "scanner" in line and line["event"] != "scanner_state_changed"]
    assert {line["event"] for line in mine} >= {"attempt_ended", "execution_ended", "probe_ended", "scan_ended"}
    assert "suspicious_result" in {line["event"] for line in mine}
    runs = {line["run_id"] for line in lines if line["event"] == "run_ended"}
    assert len(runs) == 3
    for line in mine:
        assert line["run_id"] in runs, line
        assert line["attempt"] == 1, line


def test_json_has_no_flood_either(caplog: pytest.LogCaptureFixture) -> None:
    rejected = ended(Status.REJECTED, error="x")
    seen = objects(LogEvents(format="json"), [*[rejected] * 5, ended(Status.COMPLETED)], caplog)
    assert [line["event"] for line in seen] == ["scan_ended", "scans_untold", "scan_ended"]
    assert (seen[1]["scanner"], seen[1]["status"], seen[1]["scans"]) == ("one", "rejected", 4)


def test_what_json_cannot_say_is_null(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = objects(LogEvents(format="json"), [LateCompletion("one", float("nan"), "success")], caplog)
    assert line["duration"] is None


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="format must be 'text' or 'json', got 'xml'"):
        LogEvents(format="xml")


def test_other_lines_become_objects_too() -> None:
    formatter = JsonLines()
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a %s", ("password=hunter2",), None)
    line = json.loads(formatter.format(record))
    assert (line["level"], line["event"], line["message"]) == ("warning", "message", "a password=REDACTED")
    try:
        raise ValueError("token=hunter2")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = json.loads(formatter.format(record))
    assert "ValueError" in line["traceback"]
    assert "hunter2" not in line["traceback"]
    record.__dict__.update({"is_json": True, "msg": "{}", "args": (), "exc_info": None})
    assert formatter.format(record) == "{}"


def test_foreign_text_is_one_short_line_that_no_terminal_obeys(caplog: pytest.LogCaptureFixture) -> None:
    @scanner(pipeline="x", retry=None, cache=None)
    def page(state: dict[str, Any]) -> list[Any]:
        raise OSError("\x1b[2J<html>\r\n✓ forged: 5 candidates\u202e" + "x" * 100_000)

    with caplog.at_level(logging.INFO, "resilient_scan"), ScanRunner([page]) as runner:
        runner.run()
        runner.disable("page", reason="\x1b]0;owned\x07\nforged")
        explained = str(runner.explain("page", trace=True))
    assert "⚠️ page: [2J<html> ✓ forged: 5 candidates xxx" in caplog.text
    assert "page: disabled (]0;owned forged)" in caplog.text
    assert all(len(line) < 600 for line in caplog.text.splitlines())
    assert len(explained) < 6_000
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(caplog.text + explained)


# fields next to the text, for the formatters and handlers of others


@pytest.mark.parametrize("form", ["text", "json"])
def test_records_carry_fields(form: str, caplog: pytest.LogCaptureFixture) -> None:
    listener = LogEvents(format=form)
    with caplog.at_level(logging.INFO, "resilient_scan"):
        for event in (ended(Status.ERROR, error="down"), RunStarted("id", 8, True, 8, 0.0), StoreRecovered(0.0)):
            listener(event)
        listener(LateCompletion("one", 3.5, "success", "id", 1, "cooperative"))
    wanted = ("scanner", "pipeline", "status", "run_id", "duration")
    assert [[getattr(record, name) for name in wanted] for record in caplog.records] == [
        ["one", "news", "error", "run", 0.5],
        [None, None, None, "id", None],
        [None] * 5,
        ["one", None, None, "id", 3.5],
    ]


def test_a_line_about_skipped_lines_carries_fields_too(caplog: pytest.LogCaptureFixture) -> None:
    listener = LogEvents()
    with caplog.at_level(logging.INFO, "resilient_scan"):
        for status in (Status.REJECTED, Status.REJECTED, Status.COMPLETED):
            listener(ended(status))
    (record,) = [each for each in caplog.records if "more times" in each.getMessage()]
    assert (record.scanner, record.status, record.run_id) == ("one", "rejected", None)  # type: ignore[attr-defined]
