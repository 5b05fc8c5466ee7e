"""Kill -9 at all moments: every scan has one status, nothing is counted twice, and no process stays behind.

    RESILIENT_SCAN_KILLS=300 RESILIENT_SCAN_SEED=7 pytest -n0 -m long -rP tests/cluster/test_kills.py

kills as often, two times of three a worker, else the scheduler or the driver. Each test prints what it has counted.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Policy, Retry, ScanRunner, Timeout
from resilient_scan.events import ExecutionEnded, ScanEnded
from resilient_scan.testing import Recorder
from tests.cluster import fleet
from tests.cluster.test_cluster import DRIVER, until_slots
from tests.support.clusters import DaskCluster, alive, children_of, gone, kill

pytestmark = [
    pytest.mark.servers,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
KILLS = int(os.environ.get("RESILIENT_SCAN_KILLS", "30"))
SEED = int(os.environ.get("RESILIENT_SCAN_SEED", "23"))
DRIVERS = 5  # at a time
TOOK = 0.1
SCANNERS = fleet.SLEEPERS[:40]


class Tally:
    """What the runs of a test came to."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._kills = 0

    def take(self, report: Any, recorder: Recorder, kills: int = 1) -> None:
        """Check a run: one status for each scan, and one event of each kind."""
        self._kills += kills
        once = {scanner.name: 1 for scanner in SCANNERS}
        assert Counter(report.results.keys()) == once
        assert Counter(event.result.scanner for event in recorder.of(ScanEnded)) == once
        executed = Counter(event.scanner for event in recorder.of(ExecutionEnded))
        assert set(executed.values()) <= {1}
        assert {name for name, result in report.results.items() if result.attempts} <= set(executed)
        recorder.events_seen.clear()
        self._counts.update(result.status.value for result in report.results.values())
        self._counts["second attempts"] += sum(result.attempts > 1 for result in report.results.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(self._counts.items()))
        return f"{self._kills} kills in {time.monotonic() - self._began:.0f} s: {counts}; none counted twice, no orphan"


@pytest.fixture
def tally() -> Iterator[Tally]:
    made = Tally()
    yield made
    sys.stdout.write(f"{made}\n")


def test_workers_that_are_killed(tmp_path: Path, tally: Tally) -> None:
    chance = random.Random(SEED)
    recorder = Recorder()
    policy = Policy(cache=None, retry=Retry(attempts=5, base=0.01), breaker=None, timeout=Timeout(total=30))
    with DaskCluster(tmp_path) as cluster:
        cluster.add(3, 2)
        options = {"policy": policy, "listeners": (recorder,), "max_workers": 8, "cluster": cluster.address}
        with ScanRunner(SCANNERS, engine="dask", **options) as runner:
            for number in range(KILLS * 2 // 3):
                until_slots(runner, 6)
                victim = cluster.workers.pop(0)
                children = children_of(victim.pid)
                # In the middle of a scan, and just when results are on their way.
                moment = chance.uniform(0.05, 0.5) if number % 2 else 3 * TOOK + chance.uniform(-0.01, 0.02)
                timer = threading.Timer(moment, kill, [victim])
                timer.start()
                report = runner.run({"seconds": TOOK})
                timer.join()
                assert {result.status.value for result in report.results.values()} == {"completed"}
                tally.take(report, recorder)
                assert gone(children, 2), f"kill {number}"
                cluster.add(1, 2)


def test_schedulers_that_are_killed(tmp_path: Path, tally: Tally) -> None:
    chance = random.Random(SEED)
    policy = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=1))
    for number in range(KILLS // 6):
        folder = tmp_path / str(number)
        folder.mkdir()
        recorder = Recorder()
        with DaskCluster(folder) as cluster:
            cluster.add(2, 2)
            options = {"policy": policy, "listeners": (recorder,), "max_workers": 8, "cluster": cluster.address}
            with ScanRunner(SCANNERS, engine="dask", **options) as runner:
                until_slots(runner, 4)
                children = children_of(*(worker.pid for worker in cluster.workers))
                timer = threading.Timer(chance.uniform(0.05, 0.5), kill, [cluster.scheduler])
                timer.start()
                report = runner.run({"seconds": TOOK}, deadline=5)
                timer.join()
                assert report.duration < 7
                tally.take(report, recorder)
        assert gone(children, 15), f"kill {number}"


def test_drivers_that_are_killed(tmp_path: Path, tally: Tally) -> None:
    chance = random.Random(SEED)
    with DaskCluster(tmp_path) as cluster:
        cluster.add(1, 2)
        cluster.until(1)
        (worker,) = cluster.workers
        before = children_of(worker.pid)
        for _ in range(0, KILLS // 6, DRIVERS):
            with ExitStack() as stack:
                command = [sys.executable, "-W", "ignore", "-c", DRIVER, cluster.address]
                drivers = [
                    stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(DRIVERS)
                ]
                for driver in drivers:
                    stack.callback(kill, driver)
                for driver in drivers:
                    assert driver.stdout is not None
                    assert driver.stdout.readline() == b"ready\n"
                children = children_of(worker.pid) - before
                assert len(alive(children)) >= 2 * DRIVERS
                for driver in drivers:
                    threading.Event().wait(chance.uniform(0.0, 0.5))
                    kill(driver)
            assert gone(children, 15)
            assert worker.poll() is None
            recorder = Recorder()
            policy = Policy(cache=None, retry=None, breaker=None)
            options = {"policy": policy, "listeners": (recorder,), "cluster": cluster.address}
            with ScanRunner(SCANNERS, engine="dask", **options) as runner:
                until_slots(runner, 2)
                report = runner.run({"seconds": 0})
            assert report.complete, "the next driver finds the worker as it was"
            tally.take(report, recorder, DRIVERS)
