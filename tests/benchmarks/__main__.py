"""`python -m tests.benchmarks [PART...]`: measure what a scan costs, write results.json and the page about it.

All figures are proportions of the processor's time, measured in turns (see `measuring`), as medians with the least of
all rounds in brackets. What does not depend on a machine's load (bytecodes, commits, round trips) is counted by tests.
It exits with 1 if a fleet of 100,000 costs more than 1.3 times as much a scan as one of 1,000.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import json
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks import counts, promptness, rivals, table
from tests.benchmarks.contenders import CONTENDERS, WORKERS, Bare, Ours, Work
from tests.benchmarks.measuring import Call, Cost, in_turns, load, ratio
from tests.docs import reference
from tests.support.servers import RedisServer

STEEPEST = 1.3
Row = dict[str, str]
Rows = dict[str, Row]

WORKS: dict[str, Work] = {
    "miss": Work(),
    "miss, 500 tickers in the state": Work(tickers=500),
    "miss, 20 candidates": Work(candidates=20),
    "miss, metrics": Work(metrics=True),
    "hit": Work(fresh=False),
    "hit, 20 candidates": Work(fresh=False, candidates=20),
    "hit, metrics": Work(fresh=False, metrics=True),
}


@contextmanager
def homes() -> Iterator[dict[str, str]]:
    """Yield the URLs of the stores that this machine has."""
    with tempfile.TemporaryDirectory(prefix="resilient-scan-store-") as name:
        urls = {"SQLite": f"sqlite:///{name}/store.db"}
        program = shutil.which("redis-server")
        server = RedisServer(program, Path(name)) if program else None
        try:
            yield {**urls, "Redis": server.url} if server else urls
        finally:
            if server:
                server.kill()


def compared(calls: Mapping[str, Call], rounds: int, base: str, count: int) -> Row:
    """Return what each costs, in proportion to one of them, whose own cost is in microseconds."""
    costs = in_turns(calls, rounds)
    shown = {name: f"{ratio(cost, costs[base])} x" for name, cost in costs.items()}
    return {**shown, base: microseconds(costs[base].each(count))}


def microseconds(cost: Cost) -> str:
    """Return a cost as a cell of the table."""
    return f"{cost.median * 1e6:,.1f} us ({cost.least * 1e6:,.1f})"


def scans(rounds: int) -> Rows:
    """A scan in a run of 1,000, next to the same work on a bare pool (B) and by hand (N, N2)."""
    rows = {}
    for title, work in WORKS.items():
        with ExitStack() as over:
            calls = {name: over.enter_context(closing(kind(work))) for name, kind in CONTENDERS.items()}
            rows[title] = compared(calls, rounds, "B", work.scans)
    return rows


def stores(rounds: int) -> Rows:
    """A scan in a run of 1,000 with a store, next to one without; by the clock, for it is the disk that takes time."""
    rows: Rows = {}
    with homes() as urls:
        for title, work in {"miss": Work(), "hit": Work(fresh=False)}.items():
            with ExitStack() as over:
                places = {"memory": None, **urls}
                calls = {
                    home: over.enter_context(closing(Ours(Work(fresh=work.fresh, store=url))))
                    for home, url in places.items()
                }
                costs = in_turns(calls, max(3, rounds // 3))
            base = costs["memory"]
            rows[f"{title}, processor"] = {home: f"{ratio(cost, base)} x" for home, cost in costs.items()}
            rows[f"{title}, on the clock"] = {
                home: f"{cost.clock / work.scans * 1e6:,.0f} us" for home, cost in costs.items()
            }
    return rows


def fleets(rounds: int) -> Rows:
    """A scan in fleets of 10 to 100,000: the cost of a scan must not grow with the fleet."""
    row: Row = {}
    each: dict[int, float] = {}
    for scanners in (10, 100, 1_000, 10_000, 100_000):
        work, repeats = Work(scanners=scanners), max(1, 1000 // scanners)
        with ExitStack() as over:
            calls = {
                name: _repeated(over.enter_context(closing(kind(work))), repeats)
                for name, kind in {"B": Bare, "ours": Ours}.items()
            }
            costs = in_turns(calls, max(3, rounds * min(1, 10_000 // scanners)))
        each[scanners] = costs["ours"].least / costs["B"].least
        row[f"{scanners:,}"] = f"{ratio(costs['ours'], costs['B'])} x"
    row["slope"] = f"{each[100_000] / each[1_000]:.2f}"
    return {"miss, in proportion to B": row}


def _repeated(call: Call, times: int) -> Call:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def callers(rounds: int) -> Rows:
    """A scan in runs of 1,000 by one caller, and by 8 at once on the same runner or pool; and a run of one scanner."""
    row: Row = {}
    work = Work()
    with ExitStack() as over:
        both = {name: over.enter_context(closing(kind(work))) for name, kind in {"B": Bare, "ours": Ours}.items()}
        costs = in_turns(both, rounds)
        row["1 caller"] = f"{ratio(costs['ours'], costs['B'])} x"
        costs = in_turns({name: _crowd(call) for name, call in both.items()}, max(3, rounds // 3))
        row[f"{WORKERS} callers"] = f"{ratio(costs['ours'], costs['B'])} x"
    single = Work(scanners=1)
    with ExitStack() as over:
        both = {name: over.enter_context(closing(kind(single))) for name, kind in {"B": Bare, "ours": Ours}.items()}
        costs = in_turns({name: _repeated(call, 200) for name, call in both.items()}, rounds)
        row["a run of one scanner"] = f"{ratio(costs['ours'], costs['B'])} x"
    return {"miss, in proportion to B": row}


def _crowd(call: Call) -> Call:
    def crowd() -> None:
        crew = [threading.Thread(target=call) for _ in range(WORKERS)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    return crowd


def others(rounds: int) -> Rows:
    """Other libraries where they do the same; the first of each row is what the others are compared with."""
    rows: Rows = {}
    with ExitStack() as over:
        trouble = rivals.installed(over)
        if trouble:
            sys.exit(trouble)
        for title, make in rivals.GROUPS.values():
            with ExitStack() as group:
                calls = make(group)
                rows[title] = compared(calls, max(3, rounds // 2), next(iter(calls)), rivals.CALLS)
    return rows


def prompt(rounds: int) -> Rows:
    """On the clock."""
    gc.collect()  # what the parts before have left is not to be collected in the middle of this
    few = max(3, rounds // 5)
    p50, p99 = promptness.lateness(500, few)
    row = {f"first of {n:,}, streamed": f"{promptness.first_result(n, few) * 1000:.1f} ms" for n in (100, 10_000)}
    row["500 timeouts at once, late"] = f"{p50 * 1000:.1f} ms at the median, {p99 * 1000:.1f} at the 99th percentile"
    row["200 unequal scanners, in proportion to the best there can be"] = f"{promptness.length(few):.3f} x"
    without, known = promptness.first_run(few)
    row["the first run of a process, the longest scanner last"] = f"{without:.2f} x, {known:.2f} x with a store"
    return {"ours": row}


def steps(_rounds: int) -> Rows:
    """What a scan consists of, in bytecodes (`tests.benchmarks.counts`), by function."""
    return counts.steps()


PARTS: dict[str, Callable[[int], Rows]] = {
    "scans": scans,
    "steps": steps,
    "stores": stores,
    "fleets": fleets,
    "callers": callers,
    "prompt": prompt,
    "others": others,
}


def main() -> int:
    """Measure what the command line names, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    known: dict[str, Any] = table.results()
    python = platform.python_version()
    before = load()
    measured = {
        part: {"title": PARTS[part].__doc__, "rows": PARTS[part](options.rounds)} for part in options.part or PARTS
    }
    parts = {**known.get(python, {}).get("parts", {}), **measured}
    known[python] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "load": [before, load()],
        "rounds": options.rounds,
        "parts": {part: parts[part] for part in PARTS if part in parts},
    }
    table.RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    print(f"Python {python}, load {before} before and {load()} after, {options.rounds} rounds")
    print(table.tables(measured))
    reference.write()
    slopes = [row.get("slope", "0") for part in measured.values() for row in part["rows"].values()]
    return int(max(map(float, slopes)) > STEEPEST)


if __name__ == "__main__":
    sys.exit(main())
