"""An attempt that passes `slow_after` counts as slow at that moment, on workers and on the lane."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resilient_scan import Breaker, Cache, Limit, Retry, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import BreakerChanged, DeadlineActedOn, Event, ExecutionEnded, ScanEnded
from resilient_scan.testing import FakeClock, Recorder
from tests.support.coroutines import FOUND
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses

SLOW = {"failures": 100, "slow_after": 5.0, "slow_rate": 1.0}
AT_ONCE = Breaker(**SLOW, minimum=1)
LONG = Timeout(total=600)


class Threads(Recorder):
    """Notes on which thread the breaker's events arrive, too."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, BreakerChanged):
            self.threads.add(threading.current_thread().name)


class Source:
    """A source that hangs until it is released, and says when it was called."""

    def __init__(self, release: threading.Event, *, fails_first: bool = False) -> None:
        self.release = release
        self.called = threading.Semaphore(0)
        self.fails = fails_first

    def ask(self, _state: dict[str, Any]) -> list[Any]:
        if self.fails:
            self.fails = False
            raise OSError("down")
        self.called.release()
        self.release.wait()
        return FOUND

    @property
    def scanner(self) -> Any:
        return scanner(name="slow", pipeline="test")(self.ask)

    def wait(self) -> None:
        assert self.called.acquire(timeout=10)


def window(runner: ScanRunner) -> tuple[int, int, int] | None:
    breaker = runner._fleet.stacks["slow"].breaker
    assert breaker is not None
    return breaker.window_counts()


def test_a_source_that_has_become_slow_is_not_called_again_while_the_first_calls_wait(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, listener, source = FakeClock(), Threads(), Source(release)
    policy = bare(breaker=Breaker(**SLOW, window=2, minimum=2), timeout=LONG)
    runner = fleet(source.scanner, policy=policy, clock=clock, listeners=(listener,))
    runs = []
    for _ in range(2):
        runs.append(background(runner.run, {}))
        source.wait()
    clock.advance(4.99)
    assert runner.breaker("slow") == "closed"
    clock.advance(0.01)
    eventually(lambda: runner.breaker("slow") == "open")
    eventually(lambda: listener.of(BreakerChanged), "the event, while the calls still wait")
    assert window(runner) == (0, 0, 0)
    assert statuses(runner.run({})) == [Status.REJECTED]
    release.set()
    assert [statuses(run.result(10)) for run in runs] == [[Status.COMPLETED]] * 2
    assert [event.new for event in listener.of(BreakerChanged)] == ["open"]
    assert not any(name.endswith("watchdog") for name in listener.threads)


def test_it_is_told_before_the_end_of_the_scan(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    """The only worker is the one that is slow, and its run's thread is the only one left to send the event."""
    clock, listener, source = FakeClock(), Recorder(), Source(release)
    policy = bare(breaker=AT_ONCE, timeout=LONG)
    runner = fleet(source.scanner, policy=policy, clock=clock, listeners=(listener,), concurrent=False)
    run = background(runner.run, {})
    source.wait()
    clock.advance(5)
    eventually(lambda: listener.of(BreakerChanged))
    release.set()
    report = run.result(10)
    kinds = [type(event) for event in listener.of(BreakerChanged, ExecutionEnded, ScanEnded)]
    assert kinds == [BreakerChanged, ExecutionEnded, ScanEnded]
    assert listener.of(BreakerChanged)[0].run_id == report.run_id


def test_it_is_told_before_the_end_of_a_run_whose_deadline_comes_at_that_moment(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    """The run's thread ends the scan before it takes the message with the event."""
    source, opened = Source(release), threading.Event()

    class Holds(Recorder):
        prompt = True

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, DeadlineActedOn) and not event.scanner:
                assert opened.wait(10)

    class Clock(FakeClock):
        """Lets the run's thread go on once the watchdog waits again."""

        def wait(self, until: float, wake: Any, /) -> None:
            if until > 5:
                opened.set()
            super().wait(until, wake)

    clock, listener = Clock(), Holds()
    policy = bare(breaker=AT_ONCE, timeout=LONG, cache=Cache(ttl=60))
    runner = fleet(source.scanner, policy=policy, clock=clock, listeners=(listener,))
    run = background(runner.run, {}, deadline=5)
    source.wait()
    opened.clear()
    clock.advance(5)
    assert statuses(run.result(10)) == [Status.TIMEOUT]
    assert [event.new for event in listener.of(BreakerChanged)] == ["open"]


def test_it_is_told_where_no_run_waits_any_more(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, listener, source = FakeClock(), Recorder(), Source(release)
    policy = bare(breaker=AT_ONCE, timeout=LONG, cache=Cache(ttl=60))
    runner = fleet(source.scanner, policy=policy, clock=clock, listeners=(listener,))
    run = background(runner.run, {}, deadline=2)
    source.wait()
    clock.advance(2)
    assert statuses(run.result(10)) == [Status.TIMEOUT]  # and the work goes on, for the cache
    clock.advance(3)
    eventually(lambda: listener.of(BreakerChanged))


def test_each_attempt_has_a_limit_of_its_own(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, source = FakeClock(), Source(release, fails_first=True)
    policy = bare(breaker=AT_ONCE, timeout=LONG, retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(source.scanner, policy=policy, clock=clock)
    run = background(runner.run, {})
    source.wait()
    assert window(runner) == (1, 1, 0)
    clock.advance(5)
    eventually(lambda: window(runner) == (2, 1, 1))
    release.set()
    assert statuses(run.result(10)) == [Status.COMPLETED]
    assert window(runner) == (2, 1, 1)


def test_the_limit_of_an_attempt_that_has_ended_says_nothing_about_the_next(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    """The first fails at 3 s; at 5 s the second is two seconds old."""
    clock, called = FakeClock(), threading.Semaphore(0)
    first_ends = threading.Event()

    @scanner(name="slow", pipeline="test")
    def asks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        called.release()
        if context.attempt == 1:
            first_ends.wait()
            raise OSError("down")
        release.wait()
        return FOUND

    breaker = Breaker(**SLOW, window=20, minimum=10)
    policy = bare(breaker=breaker, timeout=LONG, retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(asks, policy=policy, clock=clock)
    run = background(runner.run, {})
    assert called.acquire(timeout=10)
    clock.advance(3)
    first_ends.set()
    assert called.acquire(timeout=10)
    clock.advance(4.99)
    assert window(runner) == (1, 1, 0)
    clock.advance(0.01)
    eventually(lambda: window(runner) == (2, 1, 1))
    release.set()
    assert statuses(run.result(10)) == [Status.COMPLETED]


def test_one_that_times_out_in_the_end_counts_once(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, source = FakeClock(), Source(release)
    policy = bare(breaker=Breaker(**SLOW, window=20, minimum=10), timeout=Timeout(total=8))
    runner = fleet(source.scanner, policy=policy, clock=clock)
    run = background(runner.run, {})
    source.wait()
    clock.advance(5)
    eventually(lambda: window(runner) == (1, 0, 1))
    clock.advance(3)
    assert statuses(run.result(10)) == [Status.TIMEOUT]
    assert window(runner) == (1, 1, 1)
    release.set()
    eventually(lambda: not runner.abandoned())
    assert window(runner) == (1, 1, 1)


def test_one_that_is_slow_and_late_at_once_counts_once(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    """The watchdog finds both in one look, because it was kept from looking before."""
    clock, source = FakeClock(), Source(release)
    policy = bare(breaker=Breaker(**SLOW, window=20, minimum=10), timeout=Timeout(total=8))
    runner = fleet(source.scanner, policy=policy, clock=clock)
    run = background(runner.run, {})
    source.wait()
    clock.advance(9)
    assert statuses(run.result(10)) == [Status.TIMEOUT]
    assert window(runner) == (1, 1, 1)


def test_a_closed_runner_counts_nothing_any_more(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, listener, source = FakeClock(), Recorder(), Source(release)
    runner = fleet(source.scanner, policy=bare(breaker=AT_ONCE, timeout=LONG), clock=clock, listeners=(listener,))
    run = background(runner.run, {})
    source.wait()
    runner.close()
    assert statuses(run.result(10)) == [Status.SKIPPED]
    clock.advance(5)
    release.set()
    eventually(lambda: not runner._fleet.pool._workers)
    assert (window(runner), listener.of(BreakerChanged)) == ((0, 0, 0), [])


def test_other_processes_learn_of_it_while_it_is_under_way(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually, quick_path: Path
) -> None:
    clock, source = FakeClock(), Source(release)
    options = {"policy": bare(breaker=Breaker(**SLOW, window=2, minimum=2), timeout=LONG), "clock": clock}
    runner, other = (fleet(source.scanner, store=f"sqlite:///{quick_path}/s.db", **options) for _ in range(2))
    runs = []

    def learned(what: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: statuses(other.run({}, only=[])) == [] and what()

    for expected in (lambda: window(other) == (1, 0, 1), lambda: other.breaker("slow") == "open"):
        runs.append(background(runner.run, {}))
        source.wait()
        clock.advance(5)
        eventually(learned(expected))
    assert statuses(other.run({})) == [Status.REJECTED]
    release.set()
    assert [statuses(run.result(10)) for run in runs] == [[Status.COMPLETED]] * 2


def test_a_coroutine_that_is_slow_counts_while_it_waits(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    listener = Threads()

    @scanner(name="slow", pipeline="test")
    async def waits(_state: dict[str, Any]) -> list[Any]:
        await asyncio.to_thread(release.wait)
        return FOUND

    breaker = Breaker(failures=100, slow_after=0.05, slow_rate=1.0, minimum=1)
    runner = fleet(waits, policy=bare(breaker=breaker, timeout=LONG), listeners=(listener,))
    run = background(runner.run, {})
    eventually(lambda: listener.of(BreakerChanged))
    assert runner.breaker("slow") == "open"
    release.set()
    assert statuses(run.result(10)) == [Status.COMPLETED]
    assert [event.new for event in listener.of(BreakerChanged)] == ["open"]
    assert not any(name.endswith("watchdog") or "loop" in name for name in listener.threads)


def test_the_wait_for_a_providers_permit_is_not_slow(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    """A further attempt waits for its turn at the provider, and that is nobody's fault."""
    clock, source = FakeClock(), Source(release)
    again = threading.Event()

    @scanner(name="slow", pipeline="test", limit=Limit("shared", concurrency=1))
    def asks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            again.set()
            raise OSError("down")
        return FOUND

    holder = scanner(name="holder", pipeline="test", limit=Limit("shared", concurrency=1), retry=None)(source.ask)
    breaker = Breaker(**SLOW, window=20, minimum=10)
    policy = bare(breaker=breaker, timeout=LONG, retry=Retry(attempts=2, base=1, cap=1))
    runner = fleet(asks, holder, policy=policy, clock=clock, order="given")
    run = background(runner.run, {})
    assert again.wait(10)
    source.wait()  # it has got the permit that the first attempt gave back
    clock.advance(1)  # the second attempt asks for it
    eventually(lambda: runner._fleet.providers["shared"].waiting)
    clock.advance(10)
    release.set()
    assert set(statuses(run.result(10))) == {Status.COMPLETED}
    assert window(runner) == (2, 1, 0)
