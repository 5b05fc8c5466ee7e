"""kill -9 of whole runs at random moments: the next run loses nothing, the file is whole, no order is lost."""

from __future__ import annotations

import random
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, Policy, Quarantine, RunReport, ScanRunner, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.stores import Store, attempts, open_store
from resilient_scan.stores.attempts import AttemptReader
from resilient_scan.stores.history import MAX_RUNS, RunHistory
from resilient_scan.testing import broken, healthy
from tests.e2e.store_crew import Say, Worker
from tests.support.waiting import eventually

NAMES = [f"s{number}" for number in range(6)]
FLEET = 24
TAKES = 0.05  # seconds, each of them
_PAUSE = threading.Event()


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "state.db"


def runner_of(path: Path) -> ScanRunner:
    found = [{"ticker": "AAPL", "source": "s", "context": "c" * 500}]
    scanners = [*(healthy(name, found) for name in NAMES), broken("bad", OSError("down"))]
    layers = {"cache": Cache(ttl=0.01, stale_if_error=60), "breaker": Breaker(failures=3, open_for=0.01)}
    policy = Policy(retry=None, **layers)
    quarantine = Quarantine(after_failures=1000)
    return ScanRunner(scanners, policy=policy, quarantine=quarantine, store=f"sqlite:///{path}", listeners=())


def disabled(runner: ScanRunner) -> set[str]:
    return {state.name for state in runner.scanners() if state.state == "disabled"}


def working(path: Path, seed: int) -> Callable[[Store, Say], None]:
    """Return a job without an end: runs, and orders in between that are said once they are acknowledged."""

    def job(_store: Store, say: Say) -> None:
        chance = random.Random(seed)
        runner = runner_of(path)
        say(f"found {','.join(sorted(disabled(runner)))}")
        number = 0
        while True:
            number += 1
            name = chance.choice(NAMES)
            order = "enable" if name in disabled(runner) else "disable"
            say(f"will {order} {name}")
            (runner.enable if order == "enable" else runner.disable)(name, reason="kill")
            say(f"did {order} {name}")
            report = runner.run({"n": number})
            statuses = {str(result.status) for name, result in report.results.items() if name != "bad"}
            if not statuses <= {"completed", "cached", "disabled"}:
                say(f"wrong {statuses}")

    return job


def expected(before: set[str], lines: list[str]) -> list[set[str]]:
    """Return the sets that may be disabled now: as acknowledged, or with the order that was under way besides."""
    known = set(before)
    for line in lines:
        verb, *rest = line.split()
        if verb == "did":
            order, name = rest
            (known.add if order == "disable" else known.discard)(name)
    last = lines[-1].split() if lines else [""]
    if last[0] != "will":
        return [known]
    return [known, known | {last[2]} if last[1] == "disable" else known - {last[2]}]


def rounds(path: Path, count: int) -> None:
    chance = random.Random(count)
    possible: list[set[str]] = [set()]
    for number in range(count):
        worker = Worker("memory:", working(path, number))
        _PAUSE.wait(chance.uniform(0.03, 0.25))
        worker.kill()
        lines = worker.lines
        assert not [line for line in lines if line.split()[0] not in {"found", "will", "did"}], lines
        if not lines:
            continue
        found = set(filter(None, lines[0].partition(" ")[2].split(",")))
        assert found in possible, f"round {number}: {found} instead of {possible}"
        possible = expected(found, lines[1:])
    with runner_of(path) as runner:
        assert disabled(runner) in possible
        assert runner.run({}).results.keys() == {*NAMES, "bad"}
        assert runner.history()
    assert not list(path.parent.glob("*.corrupt-*"))
    for file in (path, path.with_name("state.db-leases")):
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_few_runs_that_are_killed(path: Path) -> None:
    rounds(path, 12)


@pytest.mark.long
def test_many_runs_that_are_killed(path: Path) -> None:
    rounds(path, 300)


def test_two_processes_of_which_one_is_killed_again_and_again(path: Path) -> None:
    """The other one never finds the file locked for good, nor damaged."""
    chance = random.Random(7)
    with runner_of(path) as runner:
        for number in range(6):
            worker = Worker("memory:", working(path, number))
            _PAUSE.wait(chance.uniform(0.03, 0.15))
            report = runner.run({"n": number})
            worker.kill()
            assert {str(result.status) for name, result in report.results.items() if name != "bad"} <= {
                "completed",
                "cached",
                "disabled",
            }
    assert not list(path.parent.glob("*.corrupt-*"))


def scanning(path: Path, only: str) -> Callable[[Store, Say], None]:
    """Return a job without an end: runs in which each scan is an attempt, which are folded all the time."""

    def job(_store: Store, say: Say) -> None:
        attempts.FOLD_AT = 2  # type: ignore[misc]
        scanners = [healthy("shared"), healthy(only)]
        runner = ScanRunner(scanners, policy=Policy(cache=None), store=f"sqlite:///{path}", listeners=())
        while True:
            runner.run()
            say("ran")

    return job


def test_no_attempt_is_lost_or_counted_twice_where_two_processes_are_killed(path: Path) -> None:
    """A run and its attempts are written together: there are as many attempts as scans in the runs that are kept."""
    for number in range(4):
        workers = [Worker("memory:", scanning(path, only)) for only in ("one", "other")]
        eventually(lambda: all(len(worker.lines) > number for worker in workers))  # noqa: B023 - called at once
        for worker in workers:
            worker.kill()
    with closing(open_store(f"sqlite:///{path}", SystemClock())) as store:
        runs = RunHistory(store, lambda *_: None).runs(MAX_RUNS)
        found = AttemptReader(store).read(["shared", "one", "other"])
    assert 10 < len(runs) < MAX_RUNS, "else some are forgotten already"
    counts = {name: sum(map(len, days.values())) for name, days in found.items()}
    assert counts == {name: sum(name in run.scans for run in runs) for name in counts}
    assert not list(path.parent.glob("*.corrupt-*"))


# what is left of a killed run for the next one, with the timeouts that everybody has


def asking(number: int) -> Any:
    """Make a scanner whose source takes its time."""

    @scanner(name=f"s{number}", pipeline="test")
    def scan(_state: dict[str, Any]) -> list[Any]:
        time.sleep(TAKES)
        return [{"ticker": "AAPL", "source": f"s{number}", "context": "c"}]

    return scan


def usual(url: str) -> ScanRunner:
    policy = Policy(cache=Cache(ttl=300))
    return ScanRunner([asking(number) for number in range(FLEET)], policy=policy, store=url, listeners=())


def answered(report: RunReport) -> str:
    return f"{sum(result.status.answered for result in report.results.values())} of {FLEET}: {dict(report.counts)}"


def running(url: str, states: list[int]) -> Callable[[Store, Say], None]:
    """Return a job: run on each of these states, and say how that ended."""

    def job(_store: Store, say: Say) -> None:
        with usual(url) as runner:
            for state in states:
                say(answered(runner.run({"n": state})))

    return job


class Survivor:
    """A process that works on what the others work on, and is never killed."""

    def __init__(self, url: str, states: list[int]) -> None:
        self.worker = Worker("memory:", running(url, states))

    def check(self) -> None:
        lines = self.worker.wait()
        assert lines
        assert all(line.startswith(f"{FLEET} of {FLEET}") for line in lines), lines


def killed_again_and_again(url: str, count: int, *, second: bool) -> str:
    """Kill a process in the middle of a run, `count` times; run the same here each time, and say how long that took.

    Args:
        url: of the store.
        count: how often.
        second: whether another process works on the same all the time.
    """
    chance, took = random.Random(count), []
    with usual(url) as runner:

        def timed(state: int) -> float:
            began = time.monotonic()
            line = answered(runner.run({"n": state}))
            assert line.startswith(f"{FLEET} of {FLEET}"), f"after kill {state}: {line}"
            return time.monotonic() - began

        undisturbed = statistics.median(timed(-1 - number) for number in range(5))
        for number in range(count):
            killed = Worker("memory:", running(url, [number]))
            survivor = Survivor(url, [number]) if second else None
            _PAUSE.wait(chance.uniform(0, 1.5 * undisturbed))
            killed.kill()
            took.append(timed(number))
            if survivor is not None:
                survivor.check()
    assert statistics.median(took) <= 1.2 * undisturbed
    assert max(took) <= 1.2 * undisturbed + 1.0, "nobody waited for the dead; the machine may have been busy"
    return f"undisturbed {undisturbed:.3f} s; median {statistics.median(took):.3f} s, worst {max(took):.3f} s"


@pytest.mark.parametrize("second", [False, True], ids=["alone", "next to another process"])
def test_a_killed_run_costs_the_next_one_nothing(url: str, second: bool) -> None:
    killed_again_and_again(url, 4, second=second)


@pytest.mark.long
@pytest.mark.parametrize("second", [False, True], ids=["alone", "next to another process"])
def test_thirty_killed_runs_cost_the_next_ones_nothing(url: str, second: bool) -> None:
    killed_again_and_again(url, 30, second=second)
