"""What a prefork server does, for `test_prefork.py`: a runner made in the parent, runs in forked workers, one scrape.

`python -m tests.e2e.prefork WORKERS RUNS`, with PROMETHEUS_MULTIPROC_DIR in the environment. Prints the scrape.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from resilient_scan import Breaker, Policy, PrometheusMetrics, ScanRunner
from resilient_scan.observe.metrics import exposition, worker_ended
from resilient_scan.testing import broken, healthy

POLICY = Policy(cache=None, retry=None, breaker=Breaker(failures=2, open_for=3600))


def sizes() -> dict[str, int]:
    """Return the sizes of the files in which values are kept."""
    return {path.name: path.stat().st_size for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).iterdir()}


def work(runner: ScanRunner, runs: int) -> None:
    """Be a worker: run, and see that the files do not grow with the runs."""
    runner.run({})
    before = sizes()
    for _ in range(runs - 1):
        runner.run({})
    own = f"_{os.getpid()}.db"
    grown = {name for name, size in sizes().items() if name.endswith(own) and before.get(name) != size}
    if grown:
        sys.stderr.write(f"files grow: {grown}\n")
        os._exit(1)


def main(workers: int, runs: int) -> int:
    """Be the parent."""
    metrics = PrometheusMetrics(CollectorRegistry())
    runner = ScanRunner([healthy("well", [{"ticker": "A"}]), broken("bad")], policy=POLICY, listeners=(metrics,))
    runner.run({})
    children = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            work(runner, runs)
            os._exit(0)
        children.append(pid)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
    alive = exposition()[1].decode()
    for pid in children:
        worker_ended(pid)
    sys.stdout.write(f"{alive}# after the workers' end\n{exposition()[1].decode()}")
    sys.stdout.write("".join(f"# file {name}\n" for name in sorted(sizes())))
    sys.stdout.flush()
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
