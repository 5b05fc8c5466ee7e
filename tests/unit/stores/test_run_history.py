"""What is remembered of runs: found again by another runner, forgotten in order, and never in the way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import Candidate, RunReport, ScanResult, Status
from resilient_scan.errors import StoreError
from resilient_scan.observe.explain import Attempt, Past
from resilient_scan.results import ErrorInfo
from resilient_scan.stores import history as stores_history
from resilient_scan.stores.history import MAX_RUNS, MAX_SCANS, RunHistory, RunRecord, ScanRecord
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock
from tests.support.stores import AWAY, FailingStore


@pytest.fixture
def store() -> FailingStore:
    return FailingStore(FakeClock())


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
def history(store: FailingStore, errors: list[str]) -> RunHistory:
    return RunHistory(store, lambda operation, _error: errors.append(operation))


def result(name: str, status: Status = Status.COMPLETED, **fields: Any) -> ScanResult:
    found = [Candidate(ticker="AAPL", source=name, context="")] if status.answered else []
    return msgspec.structs.replace(
        ScanResult(name, "p", status, found, None, 1, 0.5, 0.0, None, False, 0, [], 1000.0), **fields
    )


def report(number: int, *results: ScanResult) -> RunReport:
    return RunReport(f"run-{number}", {each.scanner: each for each in results}, 1000.0 + number, 2.5)


def past(number: int) -> Past:
    attempts = (Attempt(1, 0.2, "ValueError: no", failed=True, pause=0.1), Attempt(2, 0.2, "answered", failed=False))
    return Past(f"run-{number}", 1000.0, "completed", 1, 0.5, 0.0, None, False, 0, "miss", attempts, 3, "")


def test_another_runner_finds_it_all(history: RunHistory, store: FailingStore) -> None:
    failure = result("b", Status.ERROR, error=ErrorInfo("httpx.ConnectError", "refused"), duration=1.5)
    history.keep(report(1, result("a"), failure), {"a": 0.5, "b": 1.5}, {"a": [past(1)], "b": [past(1)]})
    other = RunHistory(store, lambda *_: None)
    assert other.remembered().expected == {"a": 0.5, "b": 1.5}
    assert other.past("a") == (past(1),)
    assert other.past("nobody") == ()
    scans = {"a": ScanRecord("completed", 0.5, 1), "b": ScanRecord("error", 1.5, 0, "ConnectError")}
    assert other.runs(10) == (RunRecord("run-1", 1001.0, 2.5, False, scans),)


def test_a_run_record_is_json_ready() -> None:
    run = RunRecord("r", 1.0, 2.0, True, {"a": ScanRecord("completed", 0.5, 1), "b": ScanRecord("cached", 0.0, 2)})
    assert run.to_dict() == {
        "run_id": "r",
        "started_at": 1.0,
        "duration": 2.0,
        "complete": True,
        "counts": {"completed": 1, "cached": 1},
        "scans": {
            "a": {"status": "completed", "duration": 0.5, "found": 1, "error": ""},
            "b": {"status": "cached", "duration": 0.0, "found": 2, "error": ""},
        },
    }


def test_the_newest_come_first_and_the_oldest_go(history: RunHistory, store: FailingStore) -> None:
    for number in range(MAX_SCANS + 5):
        history.keep(report(number, result("a")), {"a": 0.5}, {"a": [past(number)]})
    found = [scan.run_id for scan in RunHistory(store, lambda *_: None).past("a")]
    assert found == [f"run-{number}" for number in reversed(range(5, MAX_SCANS + 5))]
    assert [run.run_id for run in history.runs(2)] == [f"run-{MAX_SCANS + 4}", f"run-{MAX_SCANS + 3}"]
    for number in range(MAX_RUNS):
        history.keep(report(number, result("a")), {}, {})
    assert len(history.runs(2 * MAX_RUNS)) == MAX_RUNS


def test_the_last_real_outcome_is_kept_however_often_the_scanner_is_turned_away(
    history: RunHistory, store: FailingStore
) -> None:
    history.keep(report(0, result("a")), {}, {"a": [msgspec.structs.replace(past(0), status="error", traceback="t")]})
    for number in range(1, MAX_SCANS + 5):
        out = msgspec.structs.replace(past(number), status=("disabled", "rejected", "skipped")[number % 3])
        history.keep(report(number, result("a")), {}, {"a": [out]})
    found = RunHistory(store, lambda *_: None).past("a")
    assert [scan.run_id for scan in found] == [*(f"run-{number}" for number in range(14, 5, -1)), "run-0"]
    assert (found[-1].status, found[-1].traceback) == ("error", "t")
    history.keep(report(20, result("a")), {}, {"a": [past(20)]})
    assert [scan.run_id for scan in history.past("a")][-1] == "run-6"


def test_what_is_stored_is_read_only_where_that_matters(history: RunHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that succeeded is put before the others as they are; garbage among these costs them, and not it."""
    history.keep(report(0, result("a")), {}, {"a": [past(0)]})
    read: list[object] = []
    decoded = stores_history._decoded
    monkeypatch.setattr(stores_history, "_decoded", lambda data: read.append(data) or decoded(data))
    history.keep(report(1, result("a")), {}, {"a": [past(2), past(1)]})
    assert not read
    failed = msgspec.structs.replace(past(3), status="error", traceback="newest")
    history.keep(report(2, result("a")), {}, {"a": [failed]})
    assert read
    assert [scan.run_id for scan in history.past("a")] == ["run-3", "run-2", "run-1", "run-0"]
    history.keep(report(3, result("a")), {}, {"a": [past(number) for number in range(30, 3, -1)]})
    assert [scan.run_id for scan in history.past("a")] == [f"run-{number}" for number in range(30, 20, -1)]


def test_what_an_earlier_process_left_is_gone_on_with(store: FailingStore) -> None:
    for number in range(2):
        history = RunHistory(store, lambda *_: None)
        history.keep(report(number, result("a")), {str(number): 1.0}, {"a": [past(number)]})
    assert [scan.run_id for scan in history.past("a")] == ["run-1", "run-0"]
    assert history.remembered().expected == {"0": 1.0, "1": 1.0}


def test_the_rest_is_due_now_and_then(history: RunHistory) -> None:
    assert [history.rest_is_due(at) for at in (5.0, 14.9, 15.0, 15.1, 24.9, 25.0)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_an_unreachable_store_is_reported_and_stops_nothing(
    history: RunHistory, store: FailingStore, errors: list[str]
) -> None:
    store.error = AWAY
    assert history.remembered().expected == {}
    assert history.past("a") == ()
    history.keep(report(1, result("a")), {"a": 0.5}, {})
    assert errors == ["get", "get", "get", "put"]
    with pytest.raises(StoreError):
        history.runs(1)


@given(data=st.binary(max_size=60))
def test_garbage_counts_as_forgotten(data: bytes) -> None:
    store = MemoryStore(FakeClock())
    history = RunHistory(store, lambda *_: None)
    for key in ("expected", "last/a"):
        store.put(key, data, 60)
    store.append("runs", data, 10)
    assert isinstance(history.remembered().expected, dict)
    assert isinstance(history.past("a"), tuple)
    assert len(history.runs(10)) <= 1


def test_a_duration_that_is_no_number_counts_as_unknown(history: RunHistory, store: FailingStore) -> None:
    durations = {"a": float("nan"), "b": -1.0, "c": 2.0}
    store.put("expected", msgspec.msgpack.encode({"schema": 1, "expected": durations}), 60)
    assert history.remembered().expected == {"c": 2.0}


def test_what_a_newer_version_wrote_counts_as_forgotten(history: RunHistory, store: FailingStore) -> None:
    store.put("expected", msgspec.msgpack.encode({"schema": 2, "expected": {"a": 1.0}}), 60)
    assert history.remembered().expected == {}
