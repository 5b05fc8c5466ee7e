"""What a cluster costs next to threads of this process: `python -m tests.benchmarks.cluster [--scans N] [--seconds S]`.

Sixteen places at two workers on loopback, next to sixteen threads. The time is compared with the threads', and the
processor's time is the driver's, for each scan.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from resilient_scan import Policy, ScanRunner, Timeout
from tests.cluster import fleet
from tests.support.clusters import DaskCluster

PLACES = 16
POLICY = Policy(cache=None, timeout=Timeout(total=60))


def measured(runner: ScanRunner, scans: int, seconds: float) -> tuple[float, float]:
    """Return how long so many scans take, and the driver's processor time for each, in runs of 50."""
    began, cpu = time.perf_counter(), time.process_time()
    rounds = scans // len(fleet.SLEEPERS)
    for _ in range(rounds):
        assert runner.run({"seconds": seconds}).complete
    done = rounds * len(fleet.SLEEPERS)
    return time.perf_counter() - began, (time.process_time() - cpu) / done


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=480)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    print(
        f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, {options.scans} scans of {options.seconds} s"
    )
    with TemporaryDirectory() as folder, DaskCluster(Path(folder)) as cluster:
        cluster.add(2, PLACES // 2)
        given = {"policy": POLICY, "listeners": (), "max_workers": PLACES}
        with (
            ScanRunner(fleet.SLEEPERS, **given) as local,
            ScanRunner(fleet.SLEEPERS, engine="dask", cluster=cluster.address, **given) as remote,
        ):
            while remote._runs.fleet.children.slots() < PLACES:
                time.sleep(0.05)
            for runner in (local, remote):
                runner.run({"seconds": 0.0})
            here, cpu_here = measured(local, options.scans, options.seconds)
            there, cpu_there = measured(remote, options.scans, options.seconds)
    print(f"threads {here:.2f} s, {cpu_here * 1000:.2f} ms of the driver's processor a scan")
    print(f"cluster {there:.2f} s, {cpu_there * 1000:.2f} ms   {there / here:.2f} x threads   goal <= 1.2 x, <= 3 ms")


if __name__ == "__main__":
    main()
