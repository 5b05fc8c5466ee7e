"""Kill -9 at all moments: every scan has one status, nothing is counted twice, and no process stays behind."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from resilient_scan import Policy, Retry, ScanRunner, Timeout
from resilient_scan.events import ExecutionEnded, ScanEnded
from resilient_scan.testing import Recorder
from tests.cluster import fleet
from tests.cluster.test_cluster import until_slots
from tests.support.clusters import DaskCluster, children_of, gone, kill

pytestmark = [
    pytest.mark.servers,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
KILLS, TOOK = 30, 0.1
SCANNERS = fleet.SLEEPERS[:40]


def test_workers_that_are_killed(tmp_path: Path) -> None:
    chance = random.Random(23)
    recorder = Recorder()
    policy = Policy(cache=None, retry=Retry(attempts=5, base=0.01), breaker=None, timeout=Timeout(total=30))
    with DaskCluster(tmp_path) as cluster:
        cluster.add(3, 2)
        options = {"policy": policy, "listeners": (recorder,), "max_workers": 8, "cluster": cluster.address}
        with ScanRunner(SCANNERS, engine="dask", **options) as runner:
            for number in range(KILLS):
                until_slots(runner, 6)
                victim = cluster.workers.pop(0)
                children = children_of(victim.pid)
                # In the middle of a scan, and just when results are on their way.
                moment = chance.uniform(0.05, 0.5) if number % 2 else 3 * TOOK + chance.uniform(-0.01, 0.02)
                threading.Timer(moment, kill, [victim]).start()
                report = runner.run({"seconds": TOOK})
                assert Counter(result.status.value for result in report.results.values()) == {
                    "completed": len(SCANNERS)
                }
                counted = {scanner.name: number + 1 for scanner in SCANNERS}
                assert Counter(event.scanner for event in recorder.of(ExecutionEnded)) == counted
                assert Counter(event.result.scanner for event in recorder.of(ScanEnded)) == counted
                assert gone(children, 2), f"kill {number}"
                cluster.add(1, 2)


def test_schedulers_that_are_killed(tmp_path: Path) -> None:
    chance = random.Random(23)
    policy = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=1))
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with DaskCluster(folder) as cluster:
            cluster.add(2, 2)
            options = {"policy": policy, "listeners": (), "max_workers": 8, "cluster": cluster.address}
            with ScanRunner(SCANNERS, engine="dask", **options) as runner:
                until_slots(runner, 4)
                threading.Timer(chance.uniform(0.05, 0.5), kill, [cluster.scheduler]).start()
                report = runner.run({"seconds": TOOK}, deadline=5)
                assert len(report.results) == len(SCANNERS)
                assert report.duration < 7
