"""What breaks first at 10^5 and 10^6 scans an hour: `uv run --group dev python -m tests.benchmarks.volume`.

Each party's processor time for a scan, measured for some seconds, and how many scans an hour fill one core of it: 3,600
seconds divided by that. On the clock everything depends on what else the machine does; this does much less.

*Driver*: scans without work of their own, by the way that they take: threads, the event loop of coroutines, processes,
and a cluster on loopback, where they take 0.6 s (each a call of a worker) or are the inputs of a map of 10 ms each.
With metrics, without a cache. *Scheduler*: while these run, and while nothing does. *Redis*: what a fleet asks of a
shared store, where each scan is asked for, and where the store has the answer. *Prometheus*: the series of a fleet and
what a scrape of it takes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry

from resilient_scan import Cache, Policy, PrometheusMetrics, ScanRunner, Timeout, scanner
from resilient_scan.observe.metrics import exposition
from tests.benchmarks.cluster import PLACES, Cost, measured, until_ready
from tests.cluster import fleet
from tests.support.clusters import DaskCluster, children_of
from tests.support.servers import RedisServer

POLICY = Policy(cache=None, timeout=Timeout(total=60))
LONG, SHORT = 0.6, 0.01  # seconds that a scan takes: too long for a batch, and an input of a map
SIZES = (1_000, 5_000, 10_000)
INPUTS = 5000
HOUR = 3600


def line(party: str, what: str, seconds: float, unit: str = "scan") -> None:
    """Print a cost, and how many fill a core in an hour."""
    most = f"{HOUR / seconds / 1e6:8.1f} million an hour fill a core" if seconds > 1e-7 else ""
    print(f"{party:<12}{what:<44}{seconds * 1e3:>8.3f} ms a {unit:<6}{most}")


def spent(call: Callable[[], int]) -> float:
    """Return the processor time of this process for each scan of a call, the least of three."""
    costs = []
    for _ in range(3):
        gc.collect()
        began = time.process_time()
        scans = call()
        costs.append((time.process_time() - began) / scans)
    return min(costs)


def nothing(number: int) -> Any:
    """Return a scanner that does nothing."""
    return scanner(name=f"n{number}", pipeline="p", empty_ok=True)(lambda _state: [])


@scanner(pipeline="p", isolation="process", empty_ok=True)
def isolated(_state: dict[str, Any]) -> list[Any]:
    """Do nothing, in a process of its own."""
    return []


def awaits(number: int) -> Any:
    """Return a coroutine that does nothing."""

    @scanner(name=f"a{number}", pipeline="p", empty_ok=True)
    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0)
        return []

    return scan


def counted(scanners: Any, **options: Any) -> ScanRunner:
    """Return a runner whose scans are counted."""
    given = {"policy": POLICY, "listeners": (PrometheusMetrics(CollectorRegistry()),), **options}
    return ScanRunner(scanners, **given)


def ran(runner: ScanRunner, state: dict[str, Any]) -> int:
    """Make a run; return how many scans it had."""
    report = runner.run(state)
    assert report.complete
    return len(report.results)


def read(runner: ScanRunner, name: str, inputs: int) -> int:
    """Map one scanner; return how many inputs came back."""
    return sum(1 for _ in runner.map(name, ({"number": number} for number in range(inputs))))


def of_one_process() -> None:
    """Print what scans cost that stay on this machine."""
    for what, make in {"run, on threads": nothing, "run, coroutines": awaits}.items():
        with counted([make(number) for number in range(1000)]) as runner:
            line("driver", what, spent(lambda runner=runner: ran(runner, {})))  # type: ignore[misc]
            name = next(iter(runner.run({}).results))
            line("driver", what.replace("run", "map"), spent(lambda r=runner, n=name: read(r, n, 2000)))  # type: ignore[misc]
    with counted([isolated]) as runner:
        read(runner, "isolated", 100)
        line("driver", "map, in processes", spent(lambda: read(runner, "isolated", 500)))


def of_a_cluster() -> None:
    """Print what scans cost whose attempts are made by workers."""
    with TemporaryDirectory() as folder, DaskCluster(Path(folder)) as cluster:
        cluster.add(2, PLACES // 2)
        given = {"engine": "dask", "cluster": cluster.address, "max_workers": PLACES}
        with counted([*fleet.SLEEPERS, fleet.short], **given) as runner:
            until_ready(runner)
            long, brief = {"seconds": LONG, "number": 0}, {"seconds": 0.0, "number": 0}
            runner.run(brief)
            read(runner, "short", 1000)
            idle = measured(cluster, lambda: int(time.sleep(5) or 5))
            single = measured(cluster, lambda: sum(ran(runner, long) for _ in range(4)))
            memory_of_children(cluster)
            mapped = measured(cluster, lambda: read(runner, "short", INPUTS))
        of_parties(single, mapped, idle)


def memory_of_children(cluster: DaskCluster) -> None:
    """Print what a child of a worker takes, besides what it shares with others."""
    sizes = []
    for pid in children_of(*(worker.pid for worker in cluster.workers)):
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            sizes.append(next(int(each.split()[1]) for each in lines if each.startswith("Pss:")) / 1024)
    print(f"{'workers':<12}{'memory of a child, its part of what is shared':<44}{statistics.median(sizes):>8.1f} MB")


def of_parties(single: Cost, mapped: Cost, idle: Cost) -> None:
    """Print what each party has spent, without what it spends while nothing happens."""
    for what, (cost, scans) in {
        "run, at a cluster": (single, 4 * len(fleet.SLEEPERS)),
        "map, at a cluster, 10 ms an input": (mapped, INPUTS),
    }.items():
        for party in ("driver", "workers", "scheduler"):
            line(party, what, max(0.0, getattr(cost, party) - getattr(idle, party) * cost.seconds / scans))
    for party in ("driver", "scheduler", "workers"):
        print(f"{party:<12}{'while nothing happens':<44}{getattr(idle, party) * 1e3:>8.3f} ms a second")


@contextmanager
def redis() -> Iterator[RedisServer | None]:
    """Yield a server, if this machine has one."""
    program = shutil.which("redis-server")
    with TemporaryDirectory() as folder:
        server = RedisServer(program, Path(folder)) if program else None
        try:
            yield server
        finally:
            if server is not None:
                server.kill()


def of_a_store(scanners: int = 1000) -> None:
    """Print what a shared store is asked for, and what that costs it and the driver."""
    from redis import Redis

    with redis() as server:
        if server is None:
            print("redis       not on this machine")
            return
        client = Redis.from_url(server.url)

        def asked() -> tuple[int, float]:
            info = client.info()
            return info["total_commands_processed"], info["used_cpu_user"] + info["used_cpu_sys"]

        made = [nothing(number) for number in range(scanners)]
        policy = Policy(cache=Cache(ttl=600, inputs=("n",)))
        with counted(made, policy=policy, store=server.url) as runner, counted(made, policy=policy) as without:
            runner.run({"n": -1})
            for what in ("each is asked for", "the store has the answers"):
                commands, of_redis = asked()
                began = time.process_time()
                if what == "each is asked for":
                    scans = sum(ran(runner, {"n": number}) for number in range(3))
                else:
                    scans = 0
                    for number in range(3):
                        with counted(made, policy=policy, store=server.url) as reader:
                            scans += ran(reader, {"n": number})
                driver = (time.process_time() - began) / scans
                more, processor_of_redis = asked()
                line(
                    "redis",
                    f"{what}: {(more - commands) / scans:.2f} commands a scan",
                    (processor_of_redis - of_redis) / scans,
                )
                line("driver", what, driver)
            number = iter(range(10, 20))
            line("driver", "without a store, each is asked for", spent(lambda: ran(without, {"n": next(number)})))


def of_metrics() -> None:
    """Print what a fleet's series are, and what a scrape takes."""
    for size in SIZES:
        registry = CollectorRegistry()
        made = [nothing(number) for number in range(size)]
        with ScanRunner(made, policy=POLICY, listeners=(PrometheusMetrics(registry),)) as runner:
            runner.run({})
            runner.run({})
            cost = spent(lambda registry=registry: len(exposition(registry)[1]) and 1)  # type: ignore[misc]
            text = exposition(registry)[1]
        series = sum(not each.startswith(b"#") for each in text.splitlines())
        print(
            f"prometheus  {size:>6,} scanners: {series:,} series ({series / size:.1f} a scanner), "
            f"{len(text) / 1e6:.1f} MB and {cost:.2f} s of the driver's processor a scrape, "
            f"{cost / 15:.1%} of a core at one each 15 s"
        )


def main() -> None:
    """Measure."""
    logging.disable(logging.ERROR)  # its clients mind that the cluster ends
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    of_one_process()
    of_a_cluster()
    of_a_store()
    of_metrics()


if __name__ == "__main__":
    main()
