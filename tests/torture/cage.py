"""The cage: runs poisons next to 100 sound scanners in this process, twice, and writes what came of it as JSON.

    python -m tests.torture.cage OUT '{"poisons": [...], ...}'

It holds on to what it needs (clocks, the report's path) before the first poison runs.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import math
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import prometheus_client

if os.environ.get("ZOO_WITHOUT_LANE"):  # as without the extra `async`: each coroutine has a loop of its own
    sys.modules["greenlet"] = None  # type: ignore[assignment]

from resilient_scan import Candidate, LogEvents, PrometheusMetrics, ScanContext, ScanRunner
from resilient_scan.events import Event, RunEnded, RunStarted, ScanEnded
from resilient_scan.scanning import FunctionScanner, scanner
from tests.torture import coroutines, objects, outlaws, raising, scarcity, threads, world  # noqa: F401 - they fill the register
from tests.torture.register import FOREVER, POISONS

SOUND = 100
_monotonic, _sleep = time.monotonic, time.sleep


class Order(msgspec.Struct, frozen=True):
    """What is to run.

    Attributes:
        poisons: their names.
        sound: the kinds of sound scanners; a kind that needs descriptors does not fit into every cage.
        runs: how often.
        deadline: of each run, in seconds.
        options: of the runner.
        limits: of the process, by the name in `resource`, set just before the first run.
        user: whose id the process takes, because root has no limit on threads.
        switch: seconds of switch interval, where threads shall change often.
        metrics: whether Prometheus' counters listen, for which attempts are reported that nobody else wants to hear of.
        longest: seconds after which the cage shows where all its threads are, and ends.
    """

    poisons: tuple[str, ...]
    sound: tuple[str, ...] = ("function", "generator", "coroutine", "mapping", "sharing")
    runs: int = 3
    deadline: float = 30.0
    options: dict[str, Any] = {}
    limits: dict[str, int] = {}
    user: int = 0
    switch: float = 0.0
    metrics: bool = True
    longest: float = 90.0


class Run(msgspec.Struct):
    """What came of one run."""

    statuses: dict[str, str]
    errors: dict[str, str]
    wrong: list[str]
    ended: dict[str, int]
    started_events: int
    ended_events: int
    counts: dict[str, int]
    duration: float
    took: float
    raised: str = ""


class Account(msgspec.Struct):
    """What the cage writes."""

    runs: list[Run] = []
    counted: dict[str, dict[str, float]] = {}  # of Prometheus, by scanner and status
    heard: dict[str, dict[str, int]] = {}  # of all events
    abandoned: list[str] = []  # scanners, one for each thread in the ledger before FOREVER
    left: list[str] = []  # scanners, likewise after it
    threads: list[str] = []  # names of those there are at the end and were not at the beginning
    descriptors: list[str] = []
    stuck: bool = False


# sound scanners


def sound(number: int, kind: str) -> FunctionScanner:
    """Make one; each kind goes another way through the package."""
    name = f"sound_{number:03}"

    def function(state: dict[str, Any]) -> Any:
        _sleep(0.005)
        return answer(number, state)

    def generator(state: dict[str, Any], context: ScanContext) -> Any:
        for one in answer(number, state):
            context.sleep(0.001)
            yield one

    async def coroutine(state: dict[str, Any]) -> Any:
        await asyncio.sleep(0.005)
        return answer(number, state)

    def mapping(state: dict[str, Any], context: ScanContext) -> Any:
        return context.map(lambda item: answer(number, state)[item], range(3), concurrency=2)

    def sharing(state: dict[str, Any], context: ScanContext) -> Any:
        assert context.shared("prices", lambda: 7) == 7
        return answer(number, state)

    kinds: dict[str, Callable[..., Any]] = {
        "function": function,
        "generator": generator,
        "coroutine": coroutine,
        "mapping": mapping,
        "sharing": sharing,
    }
    return scanner(pipeline="sound", name=name)(kinds[kind])


def answer(number: int, state: dict[str, Any]) -> list[Candidate]:
    return [
        Candidate(ticker=f"{ticker}{number}", source=f"sound_{number:03}", context=state["day"], extras={"n": number})
        for ticker in state["tickers"]
    ]


def state_of(run: int) -> dict[str, Any]:
    # The third run asks for what the first one asked for.
    return {"day": f"2026-11-{24 + run % 2}", "tickers": ["A", "B", "C"], "tool_logs": [{"tool": "caller"}]}


# what is counted


class Tally:
    """Counts events; safe without a lock, because each key is written by one thread at a time and runs are counted."""

    events = (RunStarted, ScanEnded, RunEnded)

    def __init__(self) -> None:
        self.scans: Counter[tuple[str, str, str]] = Counter()
        self.runs: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if isinstance(event, ScanEnded):
                self.scans[event.run_id, event.result.scanner, event.result.status.value] += 1
            elif isinstance(event, RunStarted | RunEnded):
                self.runs[event.run_id, type(event).__name__] += 1


def descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            found[int(entry.name)] = str(entry.readlink())
    return found


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


# the cage


class Cage:
    """One process' worth of torture."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.account = Account()
        self.tally = Tally()
        self.reports: list[Any] = []
        self.registry = prometheus_client.CollectorRegistry()

    def torture(self) -> None:
        """Run everything and fill the account."""
        order, account = self.order, self.account
        before, open_before = our_threads(), descriptors()
        poisons = [POISONS[name].scanner() for name in order.poisons]
        kinds = order.sound
        good = [sound(number, kinds[number % len(kinds)]) for number in range(SOUND)]
        step = max(1, math.ceil(len(good) / max(1, len(poisons))))
        mixed: list[Any] = []  # the poisons evenly among the sound ones
        for number, one in enumerate(good):
            if number % step == 0:
                mixed += poisons[number // step : number // step + 1]
            mixed.append(one)
        mixed += [one for one in poisons if one not in mixed]
        counting = (PrometheusMetrics(self.registry),) if order.metrics else ()
        runner = ScanRunner(mixed, **{"listeners": (LogEvents(), self.tally, *counting), **order.options})
        world.RUNNERS.append(runner)
        self._limit()
        for number in range(order.runs):
            account.runs.append(self._run(runner, number))
        kept = {name for name in order.poisons if POISONS[name].keeps}
        self._until(lambda: {thread.name for thread in runner.abandoned()} <= kept)
        account.abandoned = sorted(thread.name for thread in runner.abandoned())
        FOREVER.set()
        self._until(lambda: not runner.abandoned())
        account.left = sorted(thread.name for thread in runner.abandoned())
        runner.close()
        self._until(lambda: not [n for n in our_threads() - before if not n.startswith("poison")])
        account.threads = sorted(our_threads() - before)
        gc.collect()
        self._until(lambda: descriptors().keys() <= open_before.keys())
        account.descriptors = sorted(name for number, name in descriptors().items() if number not in open_before)
        self._count()

    def _limit(self) -> None:
        for name, most in self.order.limits.items():
            number = getattr(resource, name)
            resource.setrlimit(number, (most, resource.getrlimit(number)[1]))
        if self.order.user:
            os.setuid(self.order.user)
        if self.order.switch:
            sys.setswitchinterval(self.order.switch)

    def _run(self, runner: ScanRunner, number: int) -> Run:
        began = _monotonic()
        state = state_of(number)
        report: Any = None
        raised = ""
        try:
            report = runner.run(state, deadline=self.order.deadline)
        except BaseException as error:
            raised, report = f"{type(error).__name__}: {error}"[:300], getattr(error, "report", None)
        took = _monotonic() - began
        self.reports.append(report)  # some candidates hang when they are dropped, and these are the caller's to drop
        if report is None:
            return Run({}, {}, [], {}, 0, 0, {}, 0.0, took, raised)
        scans = {name: count for (run, name, _), count in self.tally.scans.items() if run == report.run_id}
        wrong = [
            name
            for name, result in report.results.items()
            if name.startswith("sound_") and result.candidates != answer(int(name[-3:]), state)
        ]
        return Run(
            statuses={name: result.status.value for name, result in report.results.items()},
            errors={
                name: f"{result.error.type}: {result.error.message[:200]}"
                for name, result in report.results.items()
                if result.error is not None
            },
            wrong=wrong,
            ended=scans,
            started_events=self.tally.runs[report.run_id, "RunStarted"],
            ended_events=self.tally.runs[report.run_id, "RunEnded"],
            counts={status.value: count for status, count in report.counts.items()},
            duration=report.duration,
            took=took,
            raised=raised,
        )

    def _until(self, condition: Callable[[], bool], seconds: float = 8.0) -> None:
        end = _monotonic() + seconds
        while not condition() and _monotonic() < end:
            _sleep(0.02)

    def _count(self) -> None:
        for family in self.registry.collect():
            if family.name == "resilient_scan_scans":
                for sample in family.samples:
                    if sample.name.endswith("_total") and sample.value:
                        labels = sample.labels
                        self.account.counted.setdefault(labels["scanner"], {})[labels["status"]] = sample.value
        for (_, name, status), count in self.tally.scans.items():
            mine = self.account.heard.setdefault(name, {})
            mine[status] = mine.get(status, 0) + count


def main() -> None:
    """Run the order and write the account; whatever happens, do not stay for ever."""
    out = Path(sys.argv[1]).resolve()
    order = msgspec.json.decode(sys.argv[2], type=Order)
    log = os.dup(2)
    faulthandler.dump_traceback_later(order.longest, exit=True, file=log)
    logging.basicConfig(level=logging.INFO)
    cage = Cage(order)
    file = os.open(out, os.O_WRONLY | os.O_CREAT) if order.user else None  # another user may not write there
    try:
        cage.torture()
    finally:
        for limited in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
            resource.setrlimit(limited, (resource.getrlimit(limited)[1],) * 2)
        data = msgspec.json.encode(cage.account)
        file = file or os.open(out, os.O_WRONLY | os.O_CREAT)
        os.write(file, data)
        os.close(file)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
