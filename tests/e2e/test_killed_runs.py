"""kill -9 of whole runs at random moments: the next run works, the file is whole, no acknowledged order is lost."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from resilient_scan import Breaker, Cache, Policy, Quarantine, ScanRunner, Timeout
from resilient_scan.stores import Store
from resilient_scan.testing import broken, healthy
from tests.e2e.store_crew import Say, Worker

NAMES = [f"s{number}" for number in range(6)]
_PAUSE = threading.Event()


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "state.db"


def runner_of(path: Path) -> ScanRunner:
    found = [{"ticker": "AAPL", "source": "s", "context": "c" * 500}]
    scanners = [*(healthy(name, found) for name in NAMES), broken("bad", OSError("down"))]
    layers = {"cache": Cache(ttl=0.01, stale_if_error=60), "breaker": Breaker(failures=3, open_for=0.01)}
    policy = Policy(retry=None, timeout=Timeout(0.5), **layers)  # which is how long a killed leader is waited for
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
