"""What the stores cost, as ratios measured in one interleaved run.

Start it by `uv run --group dev python -m tests.benchmarks.store [rounds]`.

A *get* is of one answer of 20 candidates that was written and flushed: the bytes, then the bytes and their candidates.
An *update* is durable before it returns: SQLite's waits for the disk of the directory that is named (`--directory`, the
current one unless given), Redis' for the server. A *run* is of 100 scanners with cache, retry and breaker: all of them
asked, at 50 ms each on 8 workers; and all of them answered by the store, as in a new process, which has to decode each
answer. *Quick* scans do nothing: 1,000 of them that no process has the answers of; the same once the runner knows the
answers; and the same in a new runner, which finds them in the store. *Large* is one answer of 1 MB. These are given in
microseconds of wall time and of CPU time, each the least of all rounds, and as a ratio of the CPU time to that without
a store. No test depends on these figures; `tests/composition/test_store_costs.py` counts what they consist of.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from resilient_scan import Cache, Candidate, Policy, ScanRunner, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.codec import decode_candidates, encode_candidates
from tests.support.servers import RedisServer

EXTRAS = {"price": 12.5, "volume": 1_000_000, "change": -0.031, "sector": "Energy"}
ANSWER = encode_candidates(Candidate, [Candidate(f"T{n}", "one", "moved", extras=EXTRAS) for n in range(20)])
THREADS, PROCESSES = 8, 8
SCANNERS, TOOK = 100, 0.05


def add(old: bytes | None, _now: float) -> tuple[bytes, None]:
    """Count one up."""
    return b"%d" % (int(old or b"0") + 1), None


def look(old: bytes | None, _now: float) -> tuple[bytes | None, None]:
    """Change nothing."""
    return old, None


def seconds_each(call: Callable[[], object], times: int) -> float:
    """Return how long one of so many calls takes."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def write_many(store: Store) -> None:
    """Put a hundred answers and write them."""
    for number in range(100):
        store.put(f"cache/{number}", ANSWER, 600)
    store.flush()


def lease(store: Store) -> None:
    """Take a lease and give it back."""
    store.lease("flight/a", "me", 60)
    store.release("flight/a", "me")


def operations(store: Store) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is measured, and how often in a round."""
    store.put("answer", ANSWER, 600)
    store.flush()
    return {
        "get": (lambda: store.get("answer"), 500),
        "get + decode": (lambda: decode_candidates(Candidate, store.get("answer") or b""), 200),
        "look (update that writes nothing)": (lambda: store.update("look", look), 300),
        "update": (lambda: store.update("count", add), 30),
        "lease + release": (lambda: lease(store), 50),
        "100 puts + flush": (lambda: write_many(store), 2),
    }


@contextmanager
def homes(directory: Path) -> Iterator[dict[str, str]]:
    """Yield the URLs of all homes that this machine has."""
    urls = {"memory": "memory:", "SQLite": f"sqlite:///{directory}/store.db"}
    program = shutil.which("redis-server")
    server = RedisServer(program, directory) if program else None
    try:
        yield {**urls, "Redis": server.url} if server else urls
    finally:
        if server:
            server.kill()


def costs(stores: dict[str, Store], rounds: int) -> None:
    """Print what each operation costs in each home."""
    calls = {home: operations(store) for home, store in stores.items()}
    names = list(next(iter(calls.values())))
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for home, measured in calls.items():
            for name, (call, count) in measured.items():
                took = seconds_each(call, count)
                if number:  # the first round warms up
                    times.setdefault((home, name), []).append(took)
    print(f"{'':<34}" + "".join(f"{f'{home}, us':>14}{'x memory':>10}" for home in stores))
    for name in names:
        medians = {home: statistics.median(times[home, name]) for home in stores}
        cells = (f"{took * 1e6:>14,.1f}{took / medians['memory']:>10,.1f}" for took in medians.values())
        print(f"{name:<34}" + "".join(cells))


def waiting(name: str) -> object:
    """Make a scanner that takes as long as an outside API."""

    @scanner(name=name, pipeline="test")
    def wait(_state: object) -> list[Candidate]:
        time.sleep(TOOK)
        return [Candidate(f"T{n}", name, "moved", extras=EXTRAS) for n in range(20)]

    return wait


def runner_of(url: str | None) -> ScanRunner:
    """Return a runner as it is without settings, but that an answer depends on one thing only."""
    policy = Policy(cache=Cache(ttl=600, inputs=("n",)))
    return ScanRunner([waiting(f"s{n}") for n in range(SCANNERS)], policy=policy, store=url, listeners=())


def run_of(runner: ScanRunner, number: int) -> float:
    """Return how long a run takes."""
    began = time.perf_counter()
    assert runner.run({"n": number}).complete
    return time.perf_counter() - began


def runs(urls: dict[str, str], rounds: int) -> None:
    """Print what whole runs cost with each home and without one."""
    homes = {"no store": None, **{home: url for home, url in urls.items() if home != "memory"}}
    asked: dict[str, list[float]] = {home: [] for home in homes}
    hits: dict[str, list[float]] = {home: [] for home in homes}
    keepers = {home: runner_of(url) for home, url in homes.items()}
    for number in range(rounds + 1):
        for home, keeper in keepers.items():
            took = run_of(keeper, number)
            reader = keeper if homes[home] is None else runner_of(homes[home])
            hit = run_of(reader, number)
            if reader is not keeper:
                reader.close()
            if number:  # the first round warms up
                asked[home].append(took)
                hits[home].append(hit)
    for keeper in keepers.values():
        keeper.close()
    for what, times in ((f"run of {SCANNERS} x {TOOK * 1000:g} ms", asked), (f"run of {SCANNERS} hits", hits)):
        base = statistics.median(times["no store"])
        for home, of_home in times.items():
            took = statistics.median(of_home)
            print(f"{what}, {home}: {took * 1000:,.1f} ms, {took / base:.2f} x without")


def quick_of(url: str | None, number: int = 1000) -> ScanRunner:
    """Return a runner of scanners that do nothing."""
    fleet = [scanner(name=f"q{one}", pipeline="test", empty_ok=True)(lambda _state: []) for one in range(number)]
    return ScanRunner(fleet, policy=Policy(cache=Cache(ttl=600, inputs=("n",))), store=url, listeners=())


def large_of(url: str | None) -> ScanRunner:
    """Return a runner of one scanner whose answer has 1 MB."""
    extras = {**EXTRAS, "tags": ["a", "b"], "text": "x" * 300}
    answer = [Candidate(f"T{n}", "large", "moved", extras=extras) for n in range(2300)]
    one = scanner(name="large", pipeline="test")(lambda _state: answer)
    return ScanRunner([one], policy=Policy(cache=Cache(ttl=600, inputs=("n",))), store=url, listeners=())


def timed(runner: ScanRunner, number: int, scans: int) -> tuple[float, float]:
    """Return what a run takes for each scan: microseconds of wall time, and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    assert runner.run({"n": number}).complete
    return (time.perf_counter() - wall) / scans * 1e6, (time.process_time() - cpu) / scans * 1e6


def quick(urls: dict[str, str], rounds: int) -> None:
    """Print what scans cost that do nothing, and what a large answer does."""
    homes = {"no store": None, **{home: url for home, url in urls.items() if home != "memory"}}
    keepers = {home: (quick_of(url), large_of(url)) for home, url in homes.items()}
    took: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for home, (many, large) in keepers.items():
            found = {"quick, missed": timed(many, number, 1000), "quick, known": timed(many, number, 1000)}
            if homes[home] is not None:
                with quick_of(homes[home]) as reader:
                    found["quick, in the store"] = timed(reader, number, 1000)
            found["large"] = timed(large, number, 1)
            for what, times in found.items() if number else ():  # the first round warms up
                took.setdefault((what, home), []).append(times)
    for many, large in keepers.values():
        many.close()
        large.close()
    print(f"{'':<34}{'wall us':>12}{'CPU us':>12}{'x no store':>12}")
    for (what, home), times in sorted(took.items()):
        base = min(cpu for _, cpu in took["quick, known" if what == "quick, in the store" else what, "no store"])
        wall, cpu = min(wall for wall, _ in times), min(cpu for _, cpu in times)
        print(f"{f'{what}, {home}':<34}{wall:>12,.1f}{cpu:>12,.1f}{cpu / base:>12.2f}")


def count_for(url: str, seconds: float, writer: int) -> None:
    """Count one document up from all threads for a while, and write how often."""
    store = open_store(url, SystemClock())
    until = time.perf_counter() + seconds
    done: list[int] = []
    refused: list[int] = []

    def work() -> None:
        while time.perf_counter() < until:
            try:
                store.update("count", add)
            except StoreError:
                refused.append(1)
            else:
                done.append(1)

    crew = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    os.write(writer, b"%d %d\n" % (len(done), len(refused)))


def rates(urls: dict[str, str], seconds: float = 2.0) -> None:
    """Print how many updates of one document a second all processes make together."""
    for home, url in urls.items():
        if home == "memory":
            continue
        code = "import sys; from tests.benchmarks.store import count_for; count_for(sys.argv[1], float(sys.argv[2]), 1)"
        command = [sys.executable, "-c", code, url, str(seconds)]
        crew = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        told = [process.communicate(timeout=120)[0].split() for process in crew]
        done, refused = (sum(int(counts[column]) for counts in told) for column in (0, 1))
        print(
            f"{home}: {done / seconds:,.0f} updates/s by {PROCESSES} processes x {THREADS} threads, {refused} refused"
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=15)
    parser.add_argument("--directory", default=".")
    given = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, an answer of {len(ANSWER):,} bytes, median of {given.rounds} rounds")
    with TemporaryDirectory(dir=given.directory) as name, homes(Path(name).absolute()) as urls:
        stores = {home: open_store(url, SystemClock()) for home, url in urls.items()}
        costs(stores, given.rounds)
        for store in stores.values():
            store.close()
        runs(urls, given.rounds)
        quick(urls, given.rounds)
        rates(urls)


if __name__ == "__main__":
    main()
