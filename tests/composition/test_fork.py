"""A runner in forked children: new threads, locks and loops; the parent's are left alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.engines.loop import EventLoop
from resilient_scan.events import AlertsServed, ScannersRegistered, ScheduleStarted
from resilient_scan.observe.metrics import PrometheusMetrics
from resilient_scan.testing import Recorder, broken, hanging, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.processes import in_child, in_children_amid, needs_fork
from tests.support.results import statuses

pytestmark = needs_fork


def test_a_child_can_run(fleet: Fleet) -> None:
    runner = fleet(healthy("one", [{"ticker": "A"}]), broken("two"))
    runner.run({})

    def check() -> None:
        assert statuses(runner.run({})) == [Status.COMPLETED, Status.ERROR]
        runner.close()

    for _ in range(3):
        in_child(check)
    assert statuses(runner.run({})) == [Status.COMPLETED, Status.ERROR]


def test_a_child_of_a_child_can_run(fleet: Fleet) -> None:
    runner = fleet(healthy("one"))

    def check() -> None:
        runner.run({})
        in_child(lambda: _completes(runner))

    in_child(check)


def _completes(runner: ScanRunner) -> None:
    assert statuses(runner.run({})) == [Status.COMPLETED]


def test_a_runner_that_never_ran_is_of_use_in_the_child(fleet: Fleet) -> None:
    runner = fleet(healthy("one"))
    in_child(lambda: _completes(runner))


def test_deadlines_and_timeouts_hold_in_the_child(fleet: Fleet, release: threading.Event) -> None:
    runner = fleet(hanging("hung", release, timeout=Timeout(total=0.1)), healthy("well"))
    runner.run({})

    def check() -> None:
        assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED], "the parent's hung thread is not here"
        assert len(runner.abandoned()) == 1
        assert statuses(runner.run({}, deadline=2)) == [Status.REJECTED, Status.COMPLETED]

    in_child(check)
    assert len(runner.abandoned()) == 1


def test_orders_by_hand_survive(fleet: Fleet) -> None:
    runner = fleet(healthy("one"), healthy("two"))
    runner.disable("one", reason="maintenance")

    def check() -> None:
        assert statuses(runner.run({})) == [Status.DISABLED, Status.COMPLETED]
        runner.enable("one")
        runner.disable("two")
        assert statuses(runner.run({})) == [Status.COMPLETED, Status.DISABLED]

    in_child(check)
    assert statuses(runner.run({})) == [Status.DISABLED, Status.COMPLETED]


def test_an_order_that_is_the_childs_first_call(fleet: Fleet) -> None:
    runner = fleet(healthy("one"))

    def check() -> None:
        runner.disable("one")
        assert statuses(runner.run({})) == [Status.DISABLED]

    in_child(check)


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_closing_in_the_child_leaves_the_parent_alone(used: bool, fleet: Fleet, release: threading.Event) -> None:
    entered = threading.Event()

    @scanner(pipeline="test")
    def busy(_state: dict[str, Any]) -> list[Any]:
        entered.set()
        release.wait()
        return []

    runner = fleet(healthy("first"), busy)
    stream = runner.stream({})
    assert next(stream).scanner == "first"
    assert entered.wait(5)

    def check() -> None:
        if used:
            release.set()
            runner.run({})
        runner.close()
        runner.close()
        with pytest.raises(RuntimeError, match="closed"):
            runner.run({})

    in_child(check)
    release.set()
    assert [result.status for result in stream] == [Status.COMPLETED]
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2


def test_a_fork_in_the_middle_of_everything(fleet: Fleet, bare: Bare) -> None:
    """Whatever lock the parent's threads hold at the fork, the child does not wait for it."""
    recorder = Recorder()
    policy = bare(cache=Cache(ttl=0.001), breaker=Breaker(), limit=Limit("acme", concurrency=2, rate="100000/s"))
    runner = fleet(*(healthy(f"s{number}") for number in range(6)), policy=policy, listeners=[recorder])

    def check() -> None:
        assert runner.run({}, deadline=5).complete
        runner.close()

    in_children_amid(lambda _number: runner.run({}), 3, check)


def test_states_in_a_child_are_the_child_s(fleet: Fleet) -> None:
    registry, release = CollectorRegistry(), threading.Event()
    hung = hanging("hung", release, timeout=Timeout(total=0.02))
    bad = broken("bad", breaker=Breaker(failures=1))
    runner = fleet(bad, hung, listeners=[PrometheusMetrics(registry)])
    runner.run({})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"resilient_scan_{name}", labels)

    def check() -> None:
        assert value("abandoned_threads", scanner="hung") == 0
        assert value("workers", state="abandoned") == 0
        runner._fleet  # noqa: B018 - makes the child's own live parts, which are registered
        assert value("breaker_state", scanner="bad", state="open") == 0
        assert value("breaker_state", scanner="bad", state="closed") == 1
        assert value("schedule_interval_seconds", scanner="bad") is None  # the parent keeps the schedule
        assert value("alert_last_heartbeat_timestamp_seconds") is None  # and receives the alerts

    runner.tell(ScheduleStarted(("bad",), 60.0, 0.0))
    runner.tell(AlertsServed(0.0))
    assert value("schedule_interval_seconds", scanner="bad") == 60
    assert value("alert_last_heartbeat_timestamp_seconds") == 0
    assert value("breaker_state", scanner="bad", state="open") == 1
    assert value("abandoned_threads", scanner="hung") == 1
    assert value("workers", state="abandoned") == 1
    in_child(check)
    release.set()


def test_what_is_pending_is_counted_once_in_a_child(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    runner = fleet(healthy("one"), listeners=[PrometheusMetrics(registry)])
    for _ in range(5):  # nobody has looked, so nothing is counted yet
        runner.run({})
    labels = {"scanner": "one", "pipeline": "test", "status": "completed"}

    def check() -> None:
        runner.run({})
        for _ in range(2):
            assert registry.get_sample_value("resilient_scan_scans_total", labels) == 6

    in_child(check)
    for _ in range(2):
        assert registry.get_sample_value("resilient_scan_scans_total", labels) == 5


def test_a_child_of_a_parent_that_was_just_counting_can_count(fleet: Fleet) -> None:
    registry, held, release = CollectorRegistry(), threading.Event(), threading.Event()
    listener = PrometheusMetrics(registry)
    runner = fleet(healthy("one"), listeners=[listener])

    def count() -> None:
        with listener._metrics._lock:
            held.set()
            release.wait(30)

    def check() -> None:
        runner.run({})
        labels = {"scanner": "one", "pipeline": "test", "status": "completed"}
        assert registry.get_sample_value("resilient_scan_scans_total", labels) == 1

    counting = threading.Thread(target=count)
    counting.start()
    assert held.wait(5)
    in_child(check)
    release.set()
    counting.join()


def test_metrics_in_a_child(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    runner = fleet(healthy("one"), listeners=[PrometheusMetrics(registry)])
    runner.run({})

    def check() -> None:
        runner.run({})
        labels = {"scanner": "one", "pipeline": "test", "status": "completed"}
        assert registry.get_sample_value("resilient_scan_scans_total", labels) == 2

    in_child(check)


def test_asynchronous_scanners_have_loops_of_their_own_in_the_child(fleet: Fleet) -> None:
    """Used loops are the parent's; a runner that has not run yet has none to leave alone."""

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.001)
        return []

    runner = fleet(one)
    in_child(lambda: _completes(runner))
    assert statuses(asyncio.run(runner.arun({}))) == [Status.COMPLETED]


def test_a_child_has_threads_of_its_own_for_the_blocking_calls_of_coroutines(
    fleet: Fleet, release: threading.Event, eventually: Eventually
) -> None:
    """The parent's threads are not in the child, whether they are idle or hang."""
    hang = True

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        await asyncio.to_thread(lambda: release.wait() if hang else None)
        return []

    runner = fleet(one)
    runner.run({}, deadline=0.1)
    eventually(lambda: len(runner.abandoned()) == 1)
    hang = False

    def check() -> None:
        assert statuses(runner.run({})) == [Status.COMPLETED]
        assert runner.abandoned() == []
        runner.close()

    in_child(check)
    assert len(runner.abandoned()) == 1


def test_a_child_does_not_break_the_event_loops_of_its_parent() -> None:
    """The child collects the inherited loop; closing it takes the parent's wake-up pipe out of the shared epoll."""
    loop = EventLoop()
    task = loop.create_task(asyncio.sleep(3))
    loop.run_until_complete(asyncio.sleep(0))
    pid = os.fork()
    if pid == 0:
        loop.close()
        os._exit(0)
    os.waitpid(pid, 0)
    timer = threading.Timer(0.1, loop.call_soon_threadsafe, (task.cancel,))
    timer.start()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    timer.join()
    loop.close()
    assert time.monotonic() - began < 2.9


def test_a_listener_may_call_the_runner_when_it_hears_of_the_scanners_in_a_child(fleet: Fleet) -> None:
    heard: list[tuple[str, ...]] = []

    def ask(event: Any) -> None:
        if isinstance(event, ScannersRegistered) and runners:
            heard.append(tuple(scanner.name for scanner in runners[0].scanners()))

    runners: list[ScanRunner] = []
    runners.append(fleet(healthy("one"), listeners=(ask,)))
    runners[0].run({})

    def check() -> None:
        _completes(runners[0])
        assert heard == [("one",)]

    in_child(check)


def test_two_threads_of_a_child_share_one_fleet(fleet: Fleet, background: Background) -> None:
    runner = fleet(healthy("one"), healthy("two"))
    runner.disable("two")
    runner._runs.after_fork()  # what the child does; here, so that the threads can be watched
    barrier = threading.Barrier(2, timeout=1)
    make = runner._runs._open

    def slow_open() -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait()  # both threads are here at once, if nothing keeps the second one out
        make()

    runner._runs._open = slow_open  # type: ignore[method-assign]
    runs = [background(runner.run, {}) for _ in range(2)]
    pools = {id(runner._fleet.pool)}
    assert [statuses(run.result(5)) for run in runs] == [[Status.COMPLETED, Status.DISABLED]] * 2
    assert not barrier.broken or len(pools) == 1
    assert barrier.broken, "two fleets were made: two breakers, two caches, two pools"


# what uses forks


_pool_runner: ScanRunner | None = None


def _work_in_pool(number: int) -> list[str]:
    assert _pool_runner is not None
    report = _pool_runner.run({"number": number})
    return [result.status.value for result in report.results.values()]


def test_multiprocessing_with_fork(fleet: Fleet) -> None:
    global _pool_runner  # noqa: PLW0603 - a forked pool's workers see nothing else
    _pool_runner = fleet(healthy("one"), broken("two"))
    _pool_runner.run({})
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_work_in_pool, range(6)) == [["completed", "error"]] * 6
            pool.close()
            pool.join()
    finally:
        _pool_runner = None


@pytest.fixture
def prefork(fleet: Fleet) -> Iterator[Callable[[], str]]:
    """A tiny prefork server: one listening socket, three children that answer with a run; returns a client."""

    @scanner(pipeline="test")
    def who(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": str(os.getpid())}]

    runner = fleet(who, broken("sick"))
    runner.run({})  # a preloaded application has run something already
    listener = socket.create_server(("127.0.0.1", 0))
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                _serve(listener, runner)
            finally:
                os._exit(0)
        children.append(pid)

    def ask() -> str:
        with socket.create_connection(listener.getsockname(), timeout=5) as connection:
            connection.sendall(b"ask")
            return connection.recv(1000).decode()

    yield ask
    for _ in children:
        with socket.create_connection(listener.getsockname(), timeout=5) as connection:
            connection.sendall(b"end")
            connection.recv(1)
    for pid in children:
        os.waitpid(pid, 0)
    listener.close()


def _serve(listener: socket.socket, runner: ScanRunner) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(10) == b"end":
                return
            report = runner.run({})
            ticker = report.candidates[0].ticker
            connection.sendall(f"{ticker} {report.results['sick'].status}".encode())


def test_a_prefork_server(prefork: Callable[[], str]) -> None:
    answers = [prefork().split() for _ in range(24)]
    assert {status for _, status in answers} == {"error"}
    assert str(os.getpid()) not in {pid for pid, _ in answers}


def test_the_interpreter_of_a_child_ends_at_once() -> None:
    """A child that ends in the ordinary way, with a hung thread of its own."""
    code = """
import os, sys, threading
from resilient_scan import Policy, ScanRunner, Timeout
from resilient_scan.testing import hanging
runner = ScanRunner([hanging("hung", threading.Event())], policy=Policy(timeout=Timeout(total=0.1)), listeners=())
pid = os.fork()
os.write(1, f"{runner.run({}).results['hung'].status}\\n".encode())
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "timeout\ntimeout\n", "")


def test_a_lock_that_the_parent_holds_while_it_forks_stops_no_child(fleet: Fleet) -> None:
    metrics = PrometheusMetrics(CollectorRegistry())
    runner = fleet(healthy("one"), listeners=(metrics,))
    runner.run({})
    parts = runner._runs._live_fleet
    stack = parts.stacks["one"]
    with parts.pool._mutex, stack.lock:
        in_child(lambda: _completes(runner))
    assert stack.retired is False


@pytest.mark.parametrize("way", ["returns", "raises", "yields", "on a thread"])
def test_a_child_that_comes_back_from_its_scanner_ends_there(fleet: Fleet, way: str, capfd: Any) -> None:
    codes: list[int] = []

    def forks() -> None:
        pid = os.fork()
        if pid:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        elif way == "raises":
            raise ValueError("in the child")

    def calls(_state: dict[str, Any]) -> list[Any]:
        forks()
        return []

    def yields(_state: dict[str, Any]) -> Any:
        forks()
        yield from ()

    async def awaits(_state: dict[str, Any]) -> list[Any]:
        await asyncio.to_thread(forks)
        return []

    scan = scanner(pipeline="test", name="forks", retry=None)({"yields": yields, "on a thread": awaits}.get(way, calls))
    report = fleet(scan, healthy("sound")).run()
    assert report.complete
    assert codes == [os.EX_SOFTWARE]
    assert "a child that forks forked came back from the scanner; it ends here" in capfd.readouterr().err


def test_a_child_that_comes_back_ends_where_standard_error_is_closed(fleet: Fleet) -> None:
    """The line that says so cannot be written then; the child went on as a second worker."""
    before = os.getpid()

    @scanner(pipeline="test", cache=None)
    def forks(_state: dict[str, Any]) -> list[Any]:
        kept = os.dup(2)
        os.close(2)
        try:
            pid = os.fork()
            if pid:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return []
        finally:
            if os.getpid() == before:
                os.dup2(kept, 2)
                os.close(kept)

    codes: list[int] = []
    assert statuses(fleet(forks).run()) == [Status.COMPLETED]
    assert codes == [os.EX_SOFTWARE]
