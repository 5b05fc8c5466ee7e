"""What a cluster costs next to threads of this process: `python -m tests.benchmarks.cluster [--scans N] [--seconds S]`.

Sixteen places at two workers on loopback, next to sixteen threads. The time is compared with the threads', and the
processor's time is the driver's, for each scan. A *map* is of inputs that take 10 ms, next to Dask's own `client.map`
of the same work: tasks that each take 10 ms a hundred times.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from resilient_scan import Policy, ScanRunner, Timeout
from tests.cluster import fleet
from tests.support.clusters import DaskCluster, children_of

PLACES = 16
POLICY = Policy(cache=None, timeout=Timeout(total=60))
BATCH, SHORT = 100, 0.01  # what `client.map` is given: so many in a task, of so many seconds
TICKS = os.sysconf("SC_CLK_TCK")


class Cost:
    """What work takes: seconds on the clock, and of each party's processor.

    Args:
        cluster: where it runs.
    """

    def __init__(self, cluster: DaskCluster) -> None:
        self._cluster = cluster
        self._began, self._before = time.perf_counter(), self._spent()
        self.seconds = self.driver = self.scheduler = self.workers = 0.0

    def end(self, scans: int) -> Cost:
        """Note the end; the processors' times are for each scan."""
        self.seconds = time.perf_counter() - self._began
        spent = [(after - before) / scans for before, after in zip(self._before, self._spent(), strict=True)]
        self.driver, self.scheduler, self.workers = spent
        return self

    def _spent(self) -> tuple[float, float, float]:
        workers = sum(processor(worker.pid) for worker in self._cluster.workers)
        return time.process_time(), processor(self._cluster.scheduler.pid), workers

    def __str__(self) -> str:
        parties = {"driver": self.driver, "scheduler": self.scheduler, "workers": self.workers}
        return f"{self.seconds:6.2f} s   " + ", ".join(f"{name} {each * 1e3:.2f} ms" for name, each in parties.items())


def processor(pid: int) -> float:
    """Return the seconds of the processor that a process and its children have taken, those that have ended too."""
    spent = 0
    for one in {pid, *children_of(pid)}:
        with suppress(OSError):
            spent += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return spent / TICKS


def nap(times: int) -> int:
    """Take 10 ms, so many times."""
    for _ in range(times):
        time.sleep(SHORT)
    return times


def runs(runner: ScanRunner, scans: int, seconds: float) -> int:
    """Make runs of all scanners; return how many scans that were."""
    rounds = -(-scans // len(fleet.SLEEPERS))
    for _ in range(rounds):
        assert runner.run({"seconds": seconds}).complete
    return rounds * len(fleet.SLEEPERS)


def mapped(runner: ScanRunner, inputs: int) -> int:
    """Map a scanner that takes 10 ms; return how many inputs came back."""
    found = [result for _, result in runner.map("short", ({"number": number} for number in range(inputs)))]
    assert {result.status.value for result in found} == {"completed"}
    return len(found)


def dask_mapped(client: Any, inputs: int) -> int:
    """Have Dask do the same work without us."""
    done: int = sum(client.gather(client.map(nap, [BATCH] * (inputs // BATCH), pure=False)))
    return done


def measured(cluster: DaskCluster, call: Callable[[], int]) -> Cost:
    """Measure a call that returns how many scans it has made."""
    cost = Cost(cluster)
    return cost.end(call())


def until_ready(runner: ScanRunner) -> None:
    """Wait until all places can be taken."""
    while runner._runs.fleet.children.slots() < PLACES:
        time.sleep(0.05)


def main() -> None:
    """Measure."""
    import distributed

    logging.disable(logging.ERROR)  # its clients mind that the cluster ends
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=480)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--inputs", type=int, default=10_000)
    options = parser.parse_args()
    print(
        f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, {options.scans} scans of {options.seconds} s"
    )
    with TemporaryDirectory() as folder, DaskCluster(Path(folder)) as cluster:
        cluster.add(2, PLACES // 2)
        given = {"policy": POLICY, "listeners": (), "max_workers": PLACES}
        with (
            distributed.Client(cluster.address, set_as_default=False) as client,
            ScanRunner(fleet.SLEEPERS, **given) as local,
            ScanRunner(fleet.SLEEPERS, engine="dask", cluster=cluster.address, **given) as remote,
            ScanRunner([fleet.short], engine="dask", cluster=cluster.address, **given) as mapper,
        ):
            until_ready(remote)
            until_ready(mapper)
            for runner in (local, remote):
                runner.run({"seconds": 0.0})
            here = measured(cluster, lambda: runs(local, options.scans, options.seconds))
            there = measured(cluster, lambda: runs(remote, options.scans, options.seconds))
            print(f"threads      {here} a scan")
            print(f"cluster      {there} a scan   {there.seconds / here.seconds:.2f} x threads   goal 1.2 x, 3 ms")
            bare = measured(cluster, lambda: dask_mapped(client, options.inputs))
            ours = measured(cluster, lambda: mapped(mapper, options.inputs))
            print(f"client.map   {bare} an input of {SHORT * 1e3:g} ms")
            print(f"runner.map   {ours} an input   {ours.seconds / bare.seconds:.2f} x client.map   goal 1.5 x")


if __name__ == "__main__":
    main()
