"""The flight recorder packs each scan: whatever is in it, it comes out again."""

from __future__ import annotations

import gc
import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import Retry, ScanContext, ScanRunner, scanner
from resilient_scan.core.flights import MAX_FLIGHTS, recorder
from resilient_scan.testing import FakeClock


class Evil:
    """What a scanner may put where its context counts: it ends the run's thread, if that looks at it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit


@pytest.mark.parametrize(
    ("spoil", "shown"),
    [
        (lambda context: setattr(context, "attempt", "two"), 1),
        (lambda context: setattr(context, "attempt", True), 1),
        (lambda context: setattr(context, "attempt", 10**30), 1),
        (lambda context: setattr(context, "attempt", Evil()), 1),
        (lambda context: setattr(context, "steps", [Evil()]), 1),
        (lambda context: setattr(context, "steps", (Evil(),)), 1),
        (lambda context: context.doubt("caf\udce9"), 1),
    ],
)
def test_whatever_a_scanner_does_to_its_context_it_is_remembered(spoil: Any, shown: int) -> None:
    @scanner(pipeline="p", cache=None)
    def odd(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        spoil(context)
        return []

    with ScanRunner([odd], clock=FakeClock(auto=True), listeners=()) as runner:
        runner.run({})
        (flight,) = runner.flights("odd")
    assert (flight.result.status, flight.result.attempts, flight.steps) == ("completed", shown, ())
    assert flight.result.suspicious in {None, "caf\\udce9"}


def test_an_error_with_half_a_character_is_remembered() -> None:
    """Python makes those of a file's name that is not UTF-8."""

    @scanner(pipeline="p", cache=None, retry=Retry(attempts=2))
    def odd(_state: dict[str, Any]) -> list[Any]:
        raise ValueError("no data in caf\udce9.csv")

    with ScanRunner([odd], clock=FakeClock(auto=True), listeners=()) as runner:
        runner.run({})
        (flight,) = runner.flights("odd")
        assert flight.result.error is not None
        assert [state.last_status for state in runner.scanners()] == ["error"]
    assert flight.result.error.message == "no data in caf\\udce9.csv"
    assert {step.error.message for step in flight.steps} == {flight.result.error.message}


def test_a_text_with_half_a_character_costs_the_history_no_run(tmp_path: Path) -> None:
    """Nor the report: what is written as JSON would be, too."""

    @scanner(pipeline="p", cache=None, retry=None)
    def odd(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.doubt("caf\udce9")
        raise ValueError("no data in caf\udce9.csv")

    with ScanRunner([odd], listeners=(), store=f"sqlite:///{tmp_path}/store.db") as runner:
        report = runner.run({})
    json.dumps(report.to_dict(), ensure_ascii=False).encode()
    with ScanRunner([odd], listeners=(), store=f"sqlite:///{tmp_path}/store.db") as runner:
        assert [record.run_id for record in runner.history()] == [report.run_id]


@given(st.lists(st.integers(0, 3 * MAX_FLIGHTS), max_size=4))
def test_the_last_ones_are_kept_newest_first(counts: list[int]) -> None:
    flights, model = recorder(), deque[bytes](maxlen=MAX_FLIGHTS)
    for part, count in enumerate(counts):
        for number in range(count):
            flights.add(b"%d/%d" % (part, number))
            model.append(b"%d/%d" % (part, number))
        assert flights.newest_first() == list(reversed(model))
    assert flights.newest_first() == list(reversed(model))


def test_the_garbage_collector_looks_at_none_of_them() -> None:
    """A list of 50 for each of 10,000 scanners made a full collection half as long again."""
    flights = recorder()
    for number in range(2 * MAX_FLIGHTS):
        flights.add(b"%d" % number)
    gc.collect()
    assert not gc.is_tracked(flights)


def test_the_run_and_the_recorder_agree_on_the_last_fifty() -> None:
    with ScanRunner([scanner(name="one", pipeline="p", cache=None)(lambda _state: [])], listeners=()) as runner:
        ids = [runner.run({}).run_id for _ in range(MAX_FLIGHTS + 3)]
        assert [flight.run_id for flight in runner.flights("one")] == ids[3:]
