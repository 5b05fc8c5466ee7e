"""Traps of threads and executors."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from typing import Any

import pytest

from resilient_scan import Cache, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.layers import timeout
from resilient_scan.testing import Recorder, hanging, healthy, polite
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.results import statuses


def test_a_timeout_is_a_timeout(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """`for f in as_completed(fs): f.result(timeout=...)` never times anything out."""
    began = time.monotonic()
    report = fleet(hanging("hung", release), policy=bare(timeout=Timeout(total=0.1))).run({})
    assert time.monotonic() - began < 4
    assert statuses(report) == [Status.TIMEOUT]
    result = report.results["hung"]
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("resilient_scan.ScanTimeout", "timeout after 0.1s")
    assert 0.1 <= result.duration < 4


def test_timeouts_do_not_add_up(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """`for f in fs: f.result(timeout=t)` waits t for each."""
    began = time.monotonic()
    report = fleet(*(hanging(f"h{n}", release) for n in range(6)), policy=bare(timeout=Timeout(total=0.5))).run({})
    assert time.monotonic() - began < 2.5
    assert statuses(report) == [Status.TIMEOUT] * 6


def test_queueing_is_not_blamed_on_healthy_scanners(fleet: Fleet, bare: Bare) -> None:
    """`wait(fs, timeout=t)` on a small pool reports who waited as timed out."""

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            context.sleep(0.15)
            return []

        return scan

    report = fleet(*(make(n) for n in range(6)), policy=bare(timeout=Timeout(total=0.6)), max_workers=1).run({})
    assert statuses(report) == [Status.COMPLETED] * 6
    waits = sorted(result.queue_wait for result in report.results.values())
    assert waits[0] < 0.6
    assert waits[-1] > 0.7  # five others came before, each shorter than the timeout, all of them longer
    assert all(0.15 <= result.duration < 0.6 for result in report.results.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hung_worker_does_not_keep_its_slot(workers: int, fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    hung = [hanging(f"hung_{n}", release) for n in range(4)]
    well = healthy("well", timeout=Timeout(total=5))
    runner = fleet(*hung, well, policy=bare(timeout=Timeout(total=0.05)), max_workers=workers)
    assert statuses(runner.run({})) == [Status.TIMEOUT] * 4 + [Status.COMPLETED]


def test_the_late_result_harms_no_worker(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    """An exception set on an executor's running future kills its worker when the late result comes."""
    well = healthy("well", timeout=Timeout(total=5))
    runner = fleet(hanging("hung", release), well, policy=bare(timeout=Timeout(total=0.05)), max_workers=1)
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED]
    release.set()
    eventually(lambda: runner.abandoned() == [])
    for _ in range(3):
        assert statuses(runner.run({})) == [Status.COMPLETED, Status.COMPLETED]


def test_the_ledger_lists_who_hangs_and_where(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    def deep_inside(event: threading.Event) -> None:
        event.wait()

    @scanner(pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        deep_inside(release)
        return []

    runner = fleet(hung, policy=bare(timeout=Timeout(total=0.5)))
    assert runner.abandoned() == []
    runner.run({})
    (entry,) = runner.abandoned()
    assert entry.name == "hung"
    assert entry.age >= 0.05
    assert "deep_inside" in entry.stack
    assert entry.thread in {thread.name for thread in threading.enumerate()}
    release.set()
    eventually(lambda: runner.abandoned() == [])


def test_one_scanner_leaves_no_more_threads_than_it_may(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    runner = fleet(hanging("hung", release), policy=bare(timeout=Timeout(total=0.1, max_abandoned=2)))
    assert [statuses(runner.run({}))[0] for _ in range(4)] == [
        Status.TIMEOUT,
        Status.TIMEOUT,
        Status.REJECTED,
        Status.REJECTED,
    ]
    assert len(runner.abandoned()) == 2


def test_a_hanging_api_cannot_eat_the_process(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """Both workers hang, nothing may be replaced: the rest is rejected at once, and says why."""
    hung = [hanging(f"hung_{n}", release) for n in range(6)]
    runner = fleet(*hung, healthy("well"), policy=bare(timeout=Timeout(total=0.1)), max_workers=2, max_abandoned=1)
    began = time.monotonic()
    report = runner.run({})
    took = time.monotonic() - began
    # two hang and one of them is replaced; its successor hangs too: three threads, then no place is left
    assert statuses(report) == [Status.TIMEOUT] * 3 + [Status.REJECTED] * 4
    assert took < 4
    error = report.results["well"].error
    assert error is not None
    assert error.type == "resilient_scan.Rejected"
    assert "max_abandoned" in error.message
    assert len(runner.abandoned()) == 3
    assert sorted(entry.holds_place for entry in runner.abandoned()) == [False, True, True]
    assert statuses(runner.run({})) == [Status.REJECTED] * 7


def test_work_is_taken_again_when_a_hung_thread_ends(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    runner = fleet(
        hanging("hung", release), healthy("well"), policy=bare(timeout=Timeout(0.05)), max_workers=1, max_abandoned=0
    )
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.REJECTED]
    release.set()
    eventually(lambda: runner.abandoned() == [])
    assert statuses(runner.run({})) == [Status.COMPLETED, Status.COMPLETED]


def test_a_cooperative_thread_that_is_just_ending_gets_a_grace(
    fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeout, "GRACE_PERIOD", 5.0)  # however slow the machine is; half of the timeout is the limit
    runner = fleet(polite("polite"), policy=bare(timeout=Timeout(total=0.5)))
    assert [statuses(runner.run({}))[0] for _ in range(3)] == [Status.TIMEOUT] * 3


def test_a_deadline_wakes_who_sleeps_politely(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    runner = fleet(polite("polite"), policy=bare(timeout=Timeout(total=0.05)))
    runner.run({})
    eventually(lambda: runner.abandoned() == [])


def test_no_thread_is_left_by_a_closed_runner(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    before = set(threading.enumerate())
    runner = fleet(*(healthy(f"s{n}") for n in range(4)))
    runner.run({})
    assert set(threading.enumerate()) - before
    runner.close()
    eventually(lambda: not set(threading.enumerate()) - before)


@pytest.mark.slow
def test_no_thread_is_left_by_a_forgotten_runner(eventually: Eventually) -> None:
    before = set(threading.enumerate())
    runner = ScanRunner([healthy("one")], listeners=())
    runner.run({})
    forgotten = weakref.ref(runner)
    del runner
    gc.collect()
    assert forgotten() is None
    eventually(lambda: not set(threading.enumerate()) - before)


def test_a_scanner_that_hangs_keeps_no_run_alive_that_has_ended(release: threading.Event) -> None:
    """It goes on for the cache, and its run's results may be large."""

    class Large:
        pass

    made: list[weakref.ref[Any]] = []

    @scanner(pipeline="test", cache=None)
    def large(_state: dict[str, Any]) -> list[Any]:
        found = Large()
        made.append(weakref.ref(found))
        return [{"ticker": "A", "found": found}]

    with ScanRunner([hanging("hangs", release, cache=Cache(ttl=100)), large], listeners=()) as runner:
        report = runner.run({}, deadline=0.2)
        assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]
        del report
        gc.collect()
        assert made[0]() is None
        release.set()


def test_a_kept_context_keeps_no_layers_alive(eventually: Eventually) -> None:
    """Nor does it keep the pool, the answers in the cache, and all else that they know."""
    kept: list[ScanContext] = []

    @scanner(pipeline="test")
    def keeps(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        kept.append(context)
        return []

    with ScanRunner([keeps], listeners=()) as runner:
        runner.run({})
        stack = weakref.ref(runner._runs.fleet.stacks["keeps"])
    del runner

    def freed() -> bool:
        gc.collect()
        return stack() is None

    eventually(freed, "the worker has left its last execution, too")


def test_an_idle_worker_keeps_nothing_alive(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    class Big:
        """Stands for what a scanner found."""

    made: list[weakref.ref[Big]] = []

    @scanner(pipeline="test", candidate=Big)
    def source(_state: dict[str, Any]) -> list[Any]:
        big = Big()
        made.append(weakref.ref(big))
        return [big]

    runner = fleet(source)
    runner.run({})
    eventually(lambda: gc.collect() >= 0 and made[0]() is None)


def test_an_error_keeps_no_frames_alive(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    class Big:
        """Stands for a local of the scanner."""

    made: list[weakref.ref[Big]] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        big = Big()
        made.append(weakref.ref(big))
        raise OSError("down")

    report = fleet(source).run({})
    gc.disable()
    try:
        eventually(lambda: made[0]() is None)  # without a collection
    finally:
        gc.enable()
    assert statuses(report) == [Status.ERROR]


def test_a_blocked_socket_is_handed_over_on_time(fleet: Fleet, bare: Bare) -> None:
    """A socket's own timeout is per read: a dripping server makes it last for ever."""
    ours, theirs = socket.socketpair()

    @scanner(pipeline="test")
    def dripping(_state: dict[str, Any]) -> list[Any]:
        while ours.recv(1):
            pass
        return []

    with ours, theirs:
        began = time.monotonic()
        report = fleet(dripping, policy=bare(timeout=Timeout(total=0.1))).run({})
        assert time.monotonic() - began < 4
        theirs.shutdown(socket.SHUT_RDWR)
    assert statuses(report) == [Status.TIMEOUT]


def test_eight_scanners_extend_logs_of_their_own(fleet: Fleet) -> None:
    """`state.copy()` is shallow: everybody extends one list, and 8 entries become 64."""

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        def scan(state: dict[str, Any]) -> list[Any]:
            state["tool_logs"].append({"tool": f"t{number}"})
            state["tickers"].append("SPOILT")
            return []

        return scan

    state: dict[str, Any] = {"tool_logs": [], "tickers": ["AAPL"]}
    report = fleet(*(make(n) for n in range(8))).run(state)
    assert [entry["tool"] for entry in report.tool_logs] == [f"t{n}" for n in range(8)]
    assert state == {"tool_logs": report.tool_logs, "tickers": ["AAPL"]}


def test_the_pool_is_an_executor_that_never_holds_the_program(fleet: Fleet, release: threading.Event) -> None:
    from resilient_scan.core.pool import ThreadPool

    pool = ThreadPool(2, name="resilient-scan-as-executor")
    with pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
        failed = pool.submit(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failed.result(5)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(abs, 1)


def test_late_results_of_many_runs_end_in_order(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    """Hung ones of several runs end at once: counts come back to zero and the listeners hear of each."""
    recorder = Recorder()
    runner = fleet(
        *(hanging(f"h{n}", release) for n in range(5)),
        policy=bare(cache=Cache(), timeout=Timeout(total=0.05)),
        listeners=(recorder,),
    )
    assert statuses(runner.run({})) == [Status.TIMEOUT] * 5
    release.set()
    eventually(lambda: runner.abandoned() == [])
    assert statuses(runner.run({})) == [Status.CACHED] * 5  # a late result fills the cache
