"""What a runner keeps of its attempts: all of them, in the store it has, and nothing without one."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Cache, Retry, Timeout, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.context import NEVER
from resilient_scan.events import AttemptEnded, LateCompletion, RunEnded, RunStarted, ThreadAbandoned
from resilient_scan.stores import open_store
from resilient_scan.stores.attempts import AttemptReader
from resilient_scan.stores.columns import Row
from resilient_scan.testing import Recorder, flapping, hanging, healthy
from tests.support.fixtures import Bare, Fleet
from tests.support.waiting import eventually


@pytest.fixture
def url(quick_path: Path) -> str:
    return f"sqlite:///{quick_path}/scan.db"


def kept(url: str, name: str) -> list[Row]:
    """Return what another process finds."""
    with closing(open_store(url, SystemClock())) as store:
        days = AttemptReader(store).read([name])[name]
        return [row for day, columns in days.items() for row in columns.rows(day)]


def test_every_attempt_is_kept(fleet: Fleet, bare: Bare, url: str) -> None:
    policy = bare(retry=Retry(attempts=3, base=0.0), cache=Cache(ttl=60))
    answers = [OSError("down"), OSError("down"), []]
    runner = fleet(flapping("a", answers, empty_ok=True), healthy("b", empty_ok=True), policy=policy, store=url)
    runner.run({"n": 1})
    runner.run({"n": 1})
    assert [(row.number, row.outcome) for row in kept(url, "a")] == [(1, "error"), (2, "error"), (3, "success")]
    assert len(kept(url, "b")) == 1, "what the cache has answered was no attempt"
    runner.close()
    again = fleet(healthy("b", empty_ok=True), policy=policy, store=url)
    again.run({"n": 2})
    again.close()
    assert len(kept(url, "b")) == 2


def test_the_inputs_of_a_map_are_kept(fleet: Fleet, url: str) -> None:
    runner = fleet(healthy("a"), store=url)
    assert len(list(runner.map("a", [{"n": n} for n in range(5)]))) == 5
    eventually(lambda: len(kept(url, "a")) == 5)


def test_what_comes_after_the_last_run_is_kept_at_the_end(
    fleet: Fleet, bare: Bare, url: str, release: threading.Event
) -> None:
    recorder = Recorder()
    policy = bare(timeout=Timeout(total=0.05))
    runner = fleet(hanging("a", release), policy=policy, store=url, listeners=(recorder,))
    runner.run()
    (row,) = kept(url, "a")
    assert (row.outcome, row.returned) == ("timeout", None)
    eventually(lambda: recorder.of(ThreadAbandoned))
    release.set()
    eventually(lambda: recorder.of(LateCompletion))
    runner.close()
    (again,) = kept(url, "a")
    assert again.returned is not None
    assert again.returned > again.latency >= 0.05
    started, ended = recorder.of(RunStarted, RunEnded)
    assert started.at - 0.01 <= again.begin <= ended.at, "the begin is that of the attempt, not of its report"


def test_an_attempts_event_says_when_it_ended(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """A reader of a stream may be slow to let the run report a timeout."""
    recorder = Recorder()
    policy = bare(timeout=Timeout(total=0.05))
    runner = fleet(healthy("quick"), hanging("slow", release), policy=policy, listeners=(recorder,))
    clock = SystemClock()
    results = runner.stream()
    next(results)
    eventually(runner.abandoned)
    hung_at = clock.time()
    list(results)
    ends = {event.scanner: event.at for event in recorder.of(AttemptEnded)}
    assert ends["quick"] <= ends["slow"] < hung_at


@pytest.mark.parametrize("options", [{"history": 0}, {"store": "memory:"}, {"store": None}])
def test_where_none_are_kept_none_are_even_noted(fleet: Fleet, url: str, options: dict[str, Any]) -> None:
    runner = fleet(healthy("a"), **{"store": url, **options})
    assert not runner._runs.fleet.bus.wants(AttemptEnded)
    runner.run()
    assert kept(url, "a") == []


def test_expected_durations_come_from_the_attempts(fleet: Fleet, url: str) -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        return scanner(name=name, pipeline="test")(lambda _state: order.append(name) or [])  # type: ignore[func-returns-value]

    def slow(_state: dict[str, Any]) -> list[Any]:
        order.append("slow")
        threading.Event().wait(0.02)
        return []

    scanners = [named("quick"), scanner(name="slow", pipeline="test")(slow)]
    for _ in range(2):
        with fleet(*scanners, store=url, max_workers=1) as runner:
            order.clear()
            runner.run()
    assert order == ["slow", "quick"]
    with closing(open_store(url, SystemClock())) as store:
        store.delete("expected")  # what the last run has summed up; it is made again
    with fleet(*scanners, store=url, max_workers=1) as runner:
        order.clear()
        runner.run()
        assert order == ["slow", "quick"]
        assert all(stack.expected < NEVER for stack in runner._runs.fleet.stacks.values())


@pytest.mark.parametrize("history", [-1, float("nan"), "90d", None])
def test_a_wrong_duration_is_refused(fleet: Fleet, history: Any) -> None:
    with pytest.raises(ValueError, match="history must be a number of seconds >= 0"):
        fleet(healthy("a"), history=history)
