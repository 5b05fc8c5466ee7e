"""`close()` where it hurts: in a signal handler, in the garbage collector, while its own thread holds a lock."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Cache, Limit, Policy, RunReport, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.core import assembly, runs
from resilient_scan.events import Event, ExecutionEnded, RunEnded, ScanEnded
from resilient_scan.testing import healthy
from tests.support.fixtures import Background, Bare, Eventually
from tests.support.waiting import WAIT_TIMEOUT

LOCKS = (type(threading.Lock()), type(threading.RLock()))
OURS = ("resilient_scan", "threading")  # an event holds a lock too


def locks_of(thing: Any, path: str = "runner", known: dict[int, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every lock that can be reached from an object of ours, with the way to it."""
    known = {} if known is None else known
    if isinstance(thing, LOCKS) and id(thing) not in known:
        yield path, thing
    if id(thing) in known:
        return
    known[id(thing)] = thing
    for way, part in parts_of(thing):
        yield from locks_of(part, path + way, known)


def parts_of(thing: Any) -> list[tuple[str, Any]]:
    """Return what an object of ours, or a collection, refers to, with the way to it."""
    if isinstance(thing, dict):
        return [(f"[{key!r}]", each) for key, each in list(thing.items())]
    if isinstance(thing, list | tuple | set | frozenset):
        return [(f"[{number}]", each) for number, each in enumerate(list(thing))]
    if not type(thing).__module__.startswith(OURS) or isinstance(thing, threading.Thread | type):
        return []
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    names = {*getattr(thing, "__dict__", ()), *slots} - {"__weakref__", "__dict__"}
    return [(f".{name}", getattr(thing, name, None)) for name in sorted(names)]


class Fleet:
    """A runner with a run under way: a scan at work, one queued, an answer in the cache, an idle event loop."""

    def __init__(self, store: str | None) -> None:
        self.begun = begun = threading.Event()
        self.seen: list[Event] = []

        @scanner(pipeline="p", cache=None)
        def held(_state: Any, context: ScanContext) -> list[Any]:
            begun.set()  # not `self`: the finalizer would keep the runner alive
            context.sleep(60)
            return []

        @scanner(pipeline="p", cache=None)
        async def loop(_state: Any) -> list[Any]:
            return []

        limited = healthy("limited", limit=Limit("somebody", concurrency=1))
        cached = healthy("cached", [{"ticker": "A"}], cache=Cache(ttl=1000))
        self.runner = ScanRunner(
            [loop, limited, cached, held, healthy("queued")],
            policy=Policy(timeout=Timeout(total=60)),
            max_workers=1,
            order="given",
            store=store,
            listeners=(self.seen.append,),
        )

    def run(self, background: Background) -> Future[Any]:
        future = background(self.runner.run, {})
        assert self.begun.wait(WAIT_TIMEOUT)
        return future


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `close` wait for a moment only: where its caller holds a lock that is needed, it waits in vain."""
    monkeypatch.setattr(runs, "CLOSE_TIMEOUT", 0.02)


def url(store: str | None, path: Path) -> str | None:
    return None if store is None else f"sqlite:///{path}/state.db"


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("store", [None, "sqlite"])
def test_close_returns_on_a_thread_that_holds_any_of_the_locks(
    store: str | None, background: Background, eventually: Eventually, tmp_path: Path
) -> None:
    """As in a signal handler: it runs on the main thread, wherever that is."""
    probe = Fleet(url(store, tmp_path))
    under_way = probe.run(background)
    ways = [way for way, _ in locks_of(probe.runner)]
    probe.runner.close()
    under_way.result(WAIT_TIMEOUT)
    for needed in ("pool._mutex", "pool._wake._cond._lock", "loops._lock", "runs._lock"):
        assert any(way.endswith(needed) for way in ways), needed
    assert store is None or any(way.endswith("leases._lock") for way in ways)
    for way in ways:
        fleet = Fleet(url(store, tmp_path))
        under_way = fleet.run(background)
        found = dict(locks_of(fleet.runner))
        if way not in found:  # of something that came and went
            fleet.runner.close()
            continue

        def hold_and_close(lock: Any = found[way], close: Any = fleet.runner.close) -> None:
            with lock:
                close()

        closing = threading.Thread(target=hold_and_close, daemon=True)
        closing.start()
        closing.join(WAIT_TIMEOUT)
        assert not closing.is_alive(), f"close() waits for {way}, which its caller holds"
        report = under_way.result(WAIT_TIMEOUT)
        assert report.results["held"].status is report.results["queued"].status is Status.SKIPPED, way
        assert sum(isinstance(event, ScanEnded) for event in fleet.seen) == 5, way
        with pytest.raises(RuntimeError, match="closed"):
            fleet.runner.run({})
    eventually(lambda: not of_ours(), "all threads of the runners end")


_earlier: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _without_earlier_threads() -> None:
    """Leave out threads of other tests: some interrupt a runner where nothing can end what it has begun."""
    _earlier.clear()
    _earlier.update(threading.enumerate())


def of_ours() -> list[threading.Thread]:
    found = (thread for thread in threading.enumerate() if thread not in _earlier)
    return [thread for thread in found if thread.name.startswith("resilient-scan")]


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
def test_a_runner_is_collected_by_a_thread_that_holds_its_lock(background: Background, eventually: Eventually) -> None:
    """The collector runs at any allocation: on a worker that is about to note the end of its task, for example."""
    fleet = Fleet(None)
    runner, pool, loops = fleet.runner, fleet.runner._fleet.pool, fleet.runner._fleet.loops
    runner.run({}, only=("cached", "loop"))
    gone, cycle = weakref.ref(runner), [runner]
    cycle.append(cycle)  # type: ignore[arg-type]
    del runner, cycle, fleet

    def collect() -> None:
        with pool._mutex, loops._lock:
            gc.collect()

    background(collect).result(WAIT_TIMEOUT)
    assert gone() is None
    eventually(lambda: not of_ours(), "its threads end")


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
def test_a_runner_is_collected_by_a_thread_that_holds_a_lock_of_another(background: Background, bare: Bare) -> None:
    other = ScanRunner([healthy("one")], policy=bare(), listeners=())
    with other:
        other.run({})
        runner = ScanRunner([healthy("two")], policy=bare(), listeners=(lambda _event: other.explain("one"),))
        runner.run({})
        cycle = [runner]
        cycle.append(cycle)  # type: ignore[arg-type]
        del runner, cycle

        def collect() -> None:
            with other._fleet.pool._mutex:
                gc.collect()

        background(collect).result(WAIT_TIMEOUT)
        assert other.run({}).complete


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
def test_a_stream_is_collected_with_its_runner_by_a_thread_that_holds_its_locks(
    background: Background, eventually: Eventually
) -> None:
    fleet = Fleet(None)
    stream, pool, lock = fleet.runner.stream({}), fleet.runner._fleet.pool, fleet.runner._fleet.stacks["held"].lock
    next(stream)
    assert fleet.begun.wait(WAIT_TIMEOUT)
    seen, gone, cycle = fleet.seen, weakref.ref(stream), [fleet, stream]
    cycle.append(cycle)
    del fleet, stream, cycle

    def collect() -> None:
        with pool._mutex, lock:
            gc.collect()

    background(collect).result(WAIT_TIMEOUT)
    assert gone() is None
    eventually(lambda: not of_ours(), "its threads end")
    assert [sum(isinstance(event, kind) for event in seen) for kind in (ScanEnded, RunEnded)] == [5, 1]


def test_a_stream_that_is_left_early_has_ended_its_run_in_the_next_statement(background: Background) -> None:
    fleet = Fleet(None)

    def read() -> list[int]:
        for _ in fleet.runner.stream({}):
            break
        return [sum(isinstance(event, kind) for event in fleet.seen) for kind in (ScanEnded, RunEnded)]

    assert background(read).result(WAIT_TIMEOUT) == [5, 1]
    fleet.runner.close()


def test_close_returns_once_everything_is_in_the_store_and_closed(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/state.db"
    one = healthy("one", [{"ticker": "A"}], cache=Cache(ttl=1000))
    for status in (Status.COMPLETED, Status.CACHED):
        runner = ScanRunner([one], store=file, listeners=())
        assert runner.run({}).results["one"].status is status
        runner.close()
        assert not [path for path in tmp_path.iterdir() if path.name.endswith("-wal") and path.stat().st_size]


def test_amid_a_run_close_waits_for_nothing_and_the_next_close_waits_for_it(
    background: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would wait for may need the function that was interrupted to go on."""
    monkeypatch.setattr(runs, "CLOSE_TIMEOUT", 2 * WAIT_TIMEOUT)
    fleet = Fleet(url("sqlite", tmp_path))
    flags: list[bool] = []

    def listener(event: Event) -> None:
        if isinstance(event, ScanEnded) and not flags:
            with fleet.runner._fleet.pool._mutex:
                fleet.runner.close()
            flags.append(fleet.runner._fleet.pool._closed)

    fleet.runner.listen(listener)
    background(fleet.runner.run, {}).result(WAIT_TIMEOUT)
    assert flags == [False]
    fleet.runner.close()
    assert fleet.runner._fleet.pool._closed
    assert fleet.runner._fleet.leases._thread is None or fleet.runner._fleet.leases._last is None  # type: ignore[union-attr]


def test_a_listener_may_close_its_runner_while_it_is_being_closed(background: Background) -> None:
    fleet = Fleet(None)
    under_way = fleet.run(background)
    fleet.runner.listen(lambda event: fleet.runner.close() if isinstance(event, ExecutionEnded) else None)
    background(fleet.runner.close).result(WAIT_TIMEOUT)
    assert under_way.result(WAIT_TIMEOUT).results["held"].status is Status.SKIPPED


@pytest.mark.parametrize("workers", [True, False])
def test_on_a_machine_without_threads_close_still_closes(
    workers: bool, monkeypatch: pytest.MonkeyPatch, bare: Bare, eventually: Eventually
) -> None:
    runner = ScanRunner([healthy("one")], policy=bare(), listeners=())
    if workers:
        runner.run({})
    pool = runner._fleet.pool

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pool._mutex if workers else threading.Lock():  # a worker does it: then no lock is taken here either
        runner.close()
    eventually(lambda: pool._closed, "the pool is shut down")
    eventually(lambda: not of_ours(), "its threads end")


def test_at_the_end_of_the_program_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.is_finalizing", lambda: True)
    assert assembly.start_closer(lambda: None) is None


@pytest.mark.parametrize("store", [None, "sqlite"])
def test_signals_that_close_the_runner_at_any_moment(store: str | None, bare: Bare, tmp_path: Path) -> None:
    """The handler runs between any two steps of the main thread, which goes through runs as fast as it can."""
    began = time.monotonic()
    scanners = [healthy(f"s{number}", cache=Cache(ttl=1e-9) if store else None) for number in range(20)]
    for attempt in range(30 if store is None else 15):
        seen: list[Event] = []
        runner = ScanRunner(
            scanners, policy=bare(), listeners=(seen.append,), max_workers=4, store=url(store, tmp_path)
        )

        def close(*_: Any, runner: ScanRunner = runner) -> None:
            runner.close()

        before = signal.signal(signal.SIGALRM, close)
        reports: list[RunReport] = []
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0007 * attempt)
            with pytest.raises(RuntimeError, match="closed"):
                reports.extend(iter(lambda runner=runner: runner.run({}), None))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert all(len(report.results) == len(scanners) for report in reports)
        assert sum(isinstance(event, ScanEnded) for event in seen) == len(scanners) * len(reports)
    assert time.monotonic() - began < 60
