"""A signal handler raises in the middle of a run: what has started ends once, and the next run is none the worse."""

from __future__ import annotations

import gc
import itertools
import linecache
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import resilient_scan
from resilient_scan import Breaker, Cache, Policy, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import Event, RunEnded, RunStarted, ScanEnded
from resilient_scan.results import RunReport
from resilient_scan.testing import broken, hanging, healthy
from tests.support.fixtures import Background, Bare
from tests.support.waiting import WAIT_TIMEOUT

PACKAGE = str(Path(resilient_scan.__file__).parent)
EVERYTHING = ("core/", "layers/", "engines/", "_dispatch.py", "runner.py", "quarantine/", "snapshot.py")
RUN_AND_SCAN = ("core/run.py", "core/runs.py", "core/scan.py", "runner.py")


class Interrupt(BaseException):
    """What the signal handler of a program raises that has one."""


def in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupting(at: int, kind: type[BaseException], files: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Return a trace function that raises before the `at`-th line of these files, and a list of where it did."""
    lines, where = itertools.count(), list[str]()

    def trace(frame: FrameType, what: str, _argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or not any(part in code.co_filename for part in files):
            return None
        if in_finalizer(frame):  # of an object that an earlier round has left; Python only shows what is raised there
            return None
        if what != "line" or linecache.getline(code.co_filename, frame.f_lineno).strip().startswith("with "):
            return trace  # a lock would stay locked: unlike a signal handler, this can raise just before its release
        if next(lines) == at:
            where.append(f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} in {code.co_name}")
            raise kind
        return trace

    return trace, where


def interrupted(runner: ScanRunner, way: str, tracing: tuple[Any, list[str]]) -> tuple[list[str], RunReport | None]:
    """Go through a run that is interrupted; return where that was, and the report if the interrupt brings one."""
    trace, where = tracing
    before, report = sys.gettrace(), None
    sys.settrace(trace)
    try:
        go_through(runner, way)
    except (KeyboardInterrupt, Interrupt) as interrupt:
        report = getattr(interrupt, "report", None)
    finally:
        sys.settrace(before)
    return where, report


def go_through(runner: ScanRunner, way: str) -> None:
    if way == "run":
        runner.run({}, deadline=1000)
        return
    stream = runner.stream({}, deadline=1000)
    try:
        for _ in stream:
            pass
    finally:
        stream.close()  # type: ignore[attr-defined]


def check(seen: list[Event], names: tuple[str, ...], report: RunReport | None) -> None:
    """Fail unless the run started once, ended once, and ended each of its scans once; or never started."""
    kinds = Counter(type(event) for event in seen)
    ends = Counter(event.result.scanner for event in seen if isinstance(event, ScanEnded))
    if not seen and (report is None or not report.results):
        return
    assert (kinds[RunStarted], kinds[RunEnded]) == (1, 1), kinds
    assert ends == dict.fromkeys(names, 1)
    if report is not None:
        assert {event.result.scanner: event.result for event in seen if isinstance(event, ScanEnded)} == report.results


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt in a `__del__`
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("way", ["run", "stream"])
@pytest.mark.parametrize(
    ("files", "store", "every"),
    [
        (RUN_AND_SCAN, None, 1),
        pytest.param(RUN_AND_SCAN, "sqlite", 5, marks=pytest.mark.slow),  # a run writes to the disk
        pytest.param(EVERYTHING, None, 1, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_at_any_line_leaves_no_scan_and_no_run_without_its_end(
    files: tuple[str, ...],
    store: str | None,
    every: int,
    way: str,
    kind: type[BaseException],
    background: Background,
    tmp_path: Path,
) -> None:
    """The interrupt comes before each line that the run's thread executes, in turn."""
    seen: list[Event] = []

    def listener(event: Event) -> None:
        if isinstance(event, RunStarted | ScanEnded | RunEnded):
            seen.append(event)

    scanners = [
        healthy("cached", [{"ticker": "A"}], cache=Cache(ttl=1000)),
        healthy("asked", [{"ticker": "B"}], cache=Cache(ttl=1e-9)),
        healthy("uncached", cache=None),
        broken("broken", ValueError("no"), cache=Cache(ttl=1000)),
    ]
    policy = Policy(retry=None, breaker=Breaker(failures=10**9), timeout=Timeout(total=WAIT_TIMEOUT))
    url = None if store is None else f"sqlite:///{tmp_path}/state.db"
    wrong: list[str] = []

    def build() -> ScanRunner:
        return ScanRunner(scanners, policy=policy, listeners=(listener,), max_workers=2, store=url)

    runner = build()
    for at in itertools.count(0, every):
        seen.clear()
        where, report = background(interrupted, runner, way, interrupting(at, kind, files)).result(WAIT_TIMEOUT)
        if not where:  # it took fewer lines than that
            break
        try:
            check(seen, runner.names, report)
            assert not runner._runs.active
            again = background(runner.run, {}, deadline=WAIT_TIMEOUT).result(2 * WAIT_TIMEOUT)
            assert again.counts["completed"] + again.counts["cached"] == 3, again.counts
            assert again.counts["error"] == 1, again.counts
        except (AssertionError, TimeoutError) as error:
            wrong.append(f"{where[0]}: {str(error).splitlines()[:1]}")
            runner.close()
            runner = build()
    runner.close()
    assert at > 200
    assert not wrong, f"{len(wrong)} of {at}:\n" + "\n".join(wrong)


def test_an_interrupt_at_any_line_of_the_shared_loops_start_costs_the_next_run_nothing(background: Background) -> None:
    """No coroutine would be begun any more where the loop counted as called, or where another one has its place."""
    pytest.importorskip("greenlet")

    @scanner(pipeline="test", cache=None, retry=None)
    async def one(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": "A"}]

    before, wrong = set(threading.enumerate()), list[str]()
    for at in itertools.count():
        with ScanRunner([one, healthy("other")], listeners=()) as runner:
            tracing = interrupting(at, KeyboardInterrupt, ("core/lane.py", "engines/"))
            where, _ = background(interrupted, runner, "run", tracing).result(WAIT_TIMEOUT)
            again = background(runner.run, {}, deadline=WAIT_TIMEOUT).result(2 * WAIT_TIMEOUT)
        if again.results["one"].status is not Status.COMPLETED:
            wrong.append(f"{where}: {again.counts}")
        if not where:
            break
    assert at > 20
    assert not wrong, f"{len(wrong)} of {at}:\n" + "\n".join(wrong)
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_TIMEOUT)
        assert not thread.is_alive(), f"{thread.name} is left behind"
    gc.collect()  # a loop that nobody has closed warns now


@pytest.mark.parametrize(
    ("thread", "runs"), [("worker", True), ("worker", False), ("watchdog", True), ("watchdog", False)]
)
def test_the_start_of_a_thread_is_interrupted_and_timeouts_still_hold(
    thread: str,
    runs: bool,
    release: threading.Event,
    bare: Bare,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows then whether the thread runs: without its worker in the list, no watchdog would time it out."""
    start, interrupts = threading.Thread.start, iter([True])
    here = threading.local()  # threads of an earlier test's runner may still start some, too

    def run() -> Any:
        here.runs = True
        return runner.run({})

    def interrupted(self: threading.Thread) -> None:
        ours = self.name.startswith("resilient-scan") and self.name.endswith("watchdog") == (thread == "watchdog")
        if not (ours and hasattr(here, "runs") and next(interrupts, False)):
            start(self)
            return
        if runs:
            start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with ScanRunner([hanging("hung", release)], policy=bare(timeout=Timeout(total=0.05)), max_workers=1) as runner:
        with pytest.raises(KeyboardInterrupt):
            background(run).result(WAIT_TIMEOUT)
        report = background(run).result(WAIT_TIMEOUT)
        assert report.results["hung"].status is Status.TIMEOUT
