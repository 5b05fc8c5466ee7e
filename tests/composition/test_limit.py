"""A provider's quota through the public API: shared by scanners, runs and threads, and never leaked."""

from __future__ import annotations

import threading
import time
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Limit,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.layers.limit import Provider
from resilient_scan.testing import FakeClock, Recorder, broken, flapping, hanging, healthy, polite
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses


def provider(runner: ScanRunner) -> Provider:
    return runner._fleet.providers["acme"]


class Crowd:
    """Scanners that are inside until they are let out, and how many of them were at once."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self.inside = 0
        self.most = 0
        self.entered: list[str] = []
        self.out = threading.Event()

    def member(self, name: str, **layers: Any) -> Any:
        @scanner(name=name, pipeline="test", **layers)
        def scan(_state: dict[str, Any]) -> list[Any]:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.entered.append(name)
                self._lock.notify_all()
            self.out.wait()
            with self._lock:
                self.inside -= 1
            return []

        return scan

    def wait_for(self, count: int) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: self.inside >= count, 5)


@pytest.fixture
def crowd() -> Any:
    crowd = Crowd()
    yield crowd
    crowd.out.set()


# concurrency


def test_scanners_of_one_provider_share_its_places(
    crowd: Crowd, fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    runner = fleet(
        *(crowd.member(f"s{n}") for n in range(6)), policy=bare(limit=Limit("acme", concurrency=2)), max_workers=6
    )
    run = background(runner.run, {})
    crowd.wait_for(2)
    eventually(lambda: provider(runner).waiting == 4)
    assert crowd.inside == provider(runner).taken == 2
    crowd.out.set()
    assert statuses(run.result(5)) == [Status.COMPLETED] * 6
    assert crowd.most == 2
    assert provider(runner).taken == provider(runner).waiting == 0


def test_runs_and_threads_share_them_too(
    crowd: Crowd, fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    runner = fleet(crowd.member("one"), crowd.member("two"), policy=bare(limit=Limit("acme", concurrency=3)))
    runs = [background(runner.run, {}) for _ in range(4)]
    crowd.wait_for(3)
    eventually(lambda: provider(runner).waiting == 5)
    crowd.out.set()
    assert [statuses(run.result(5)) for run in runs] == [[Status.COMPLETED] * 2] * 4
    assert crowd.most == 3


def test_providers_do_not_share_with_each_other(crowd: Crowd, fleet: Fleet, bare: Bare, background: Background) -> None:
    runner = fleet(
        *(crowd.member(f"s{n}", limit=Limit(f"p{n}", concurrency=1)) for n in range(3)),
        crowd.member("free"),
        policy=bare(),
    )
    run = background(runner.run, {})
    crowd.wait_for(4)
    crowd.out.set()
    assert statuses(run.result(5)) == [Status.COMPLETED] * 4


def test_first_come_first_served(
    crowd: Crowd, fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    names = [f"s{n}" for n in range(7)]
    runner = fleet(
        *map(crowd.member, names), policy=bare(limit=Limit("acme", concurrency=1)), max_workers=7, order="given"
    )
    run = background(runner.run, {})
    eventually(lambda: provider(runner).waiting == 6)
    crowd.out.set()
    run.result(5)
    assert crowd.entered == names


def test_scanners_of_a_saturated_provider_hold_no_workers(
    crowd: Crowd, fleet: Fleet, bare: Bare, background: Background
) -> None:
    """The first permit is waited for before a worker is taken; that wait is queue wait."""
    waiting = [crowd.member(f"s{n}", limit=Limit("acme", concurrency=1)) for n in range(8)]
    runner = fleet(*waiting, *(healthy(f"well{n}") for n in range(3)), policy=bare(), max_workers=2, order="given")
    stream = runner.stream({})
    assert [next(stream).scanner for _ in range(3)] == ["well0", "well1", "well2"]
    assert provider(runner).waiting == 7
    began = time.monotonic()
    crowd.wait_for(1)
    waited = time.monotonic() - began
    crowd.out.set()
    rest = list(stream)
    assert [result.status for result in rest] == [Status.COMPLETED] * 8
    assert all(result.queue_wait >= waited for result in rest[1:])


def test_a_thread_left_behind_keeps_its_permit_until_it_ends(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    """The provider still sees its connection."""
    runner = fleet(
        hanging("hung", release),
        healthy("well"),
        policy=bare(limit=Limit("acme", concurrency=1), timeout=Timeout(total=0.1)),
        order="given",
    )
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.REJECTED]
    assert provider(runner).taken == 1
    release.set()
    eventually(lambda: provider(runner).taken == 0)
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2


# a wait that comes to nothing


def test_a_cooperative_scan_that_is_cancelled_gives_its_permit_back_at_once(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    runner = fleet(healthy("free", limit=None), polite("long"), policy=bare(limit=Limit("acme", concurrency=1)))
    for _ in runner.stream({}):
        break
    eventually(lambda: provider(runner).taken == 0)


def test_out_of_time_is_rejected_and_nobodys_fault(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    recorder = Recorder()
    policy = bare(limit=Limit("acme", concurrency=1), retry=Retry(), breaker=Breaker(failures=1))
    hung = hanging("hung", release, timeout=Timeout(total=2))
    late = healthy("late", timeout=Timeout(total=0.1))
    runner = fleet(hung, late, policy=policy, order="given", listeners=[recorder])
    result = next(runner.stream({}))
    assert (result.scanner, result.status, result.attempts) == ("late", Status.REJECTED, 0)
    assert result.error is not None
    assert result.error.type == "resilient_scan.LimitExceeded"
    assert result.error.message == "no turn at provider acme in time: all 1 of its attempts are under way"
    breaker = runner._fleet.stacks["late"].breaker
    assert breaker is not None
    assert breaker.state == "closed"
    assert not [event for event in recorder.events_seen if getattr(event, "scanner", "") == "late"]


def test_the_runs_deadline_while_waiting_is_skipped(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    runner = fleet(
        hanging("hung", release), healthy("late"), policy=bare(limit=Limit("acme", concurrency=1)), order="given"
    )
    assert statuses(runner.run({}, deadline=0.1)) == [Status.TIMEOUT, Status.SKIPPED]
    assert provider(runner).waiting == 0


@pytest.mark.parametrize("way", ["leave", "close"])
def test_cancelled_while_waiting(
    way: str, fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Recorder()
    limited = [hanging("hung", release), healthy("late"), healthy("later")]
    runner = fleet(
        healthy("free", limit=None),
        *limited,
        policy=bare(limit=Limit("acme", concurrency=1)),
        order="given",
        listeners=[recorder],
    )
    stream = runner.stream({})
    assert next(stream).scanner == "free"
    if way == "leave":
        stream.close()  # type: ignore[attr-defined]
    else:
        runner.close()
        assert {result.status for result in stream} == {Status.SKIPPED}
    assert provider(runner).waiting == 0
    release.set()
    eventually(lambda: provider(runner).taken == 0)


def test_an_open_breaker_does_not_stand_in_the_queue(
    crowd: Crowd, fleet: Fleet, bare: Bare, background: Background
) -> None:
    """Nor does it use a permit or a request: it is rejected at once, while the provider is saturated."""
    sick = broken("sick", breaker=Breaker(failures=1), timeout=Timeout(total=60))
    runner = fleet(sick, crowd.member("busy"), policy=bare(limit=Limit("acme", concurrency=1)), order="given")
    crowd.out.set()
    assert statuses(runner.run({})) == [Status.ERROR, Status.COMPLETED]
    crowd.out.clear()
    other = background(runner.run, {})
    crowd.wait_for(1)
    result = next(runner.stream({}))
    assert (result.scanner, result.status) == ("sick", Status.REJECTED)
    assert result.error is not None
    assert result.error.type == "resilient_scan.CircuitOpen"
    crowd.out.set()
    assert statuses(other.result(5)) == [Status.REJECTED, Status.COMPLETED]


def test_a_second_attempt_waits_for_a_permit_of_its_own(fleet: Fleet, bare: Bare) -> None:
    held: list[int] = []

    @scanner(pipeline="test")
    def flaky(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        held.append(provider(runner).taken)
        if context.attempt < 3:
            raise ValueError("again")
        return []

    policy = bare(limit=Limit("acme", concurrency=1), retry=Retry(attempts=3, base=0, cap=0))
    runner = fleet(flaky, policy=policy)
    assert statuses(runner.run({})) == [Status.COMPLETED]
    assert held == [1, 1, 1]
    assert provider(runner).taken == 0


def test_a_request_of_an_attempt_does_not_wait_behind_attempts_that_wait_for_its_permit(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    """Concurrency 1: `one` waits behind `two` in the queue, `two` waits for the permit of `one`: both until the end."""
    queued = threading.Event()

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        assert queued.wait(5)
        for _ in range(3):
            context.before_request()
        return []

    runner = fleet(one, healthy("two"), policy=bare(limit=Limit("acme", concurrency=1)), order="given")
    stream = runner.stream({}, deadline=4)
    threading.Thread(
        target=lambda: [eventually(lambda: runner._fleet.providers["acme"].waiting == 1), queued.set()], daemon=True
    ).start()
    began = time.monotonic()
    assert [result.status for result in stream] == [Status.COMPLETED] * 2
    assert time.monotonic() - began < 3.5


def test_a_worker_that_waits_for_a_permit_does_not_wait_for_one_that_waits_for_a_worker(
    fleet: Fleet, bare: Bare
) -> None:
    """`one` fails and gives its permit back; `two` gets it, and queues for the worker on which `one` waits for it."""
    policy = bare(limit=Limit("acme", concurrency=1), retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=3))
    one = flapping("one", [ValueError("x"), []])
    runner = fleet(one, healthy("two"), policy=policy, max_workers=1, order="given")
    began = time.monotonic()
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2
    assert time.monotonic() - began < 2.5


def test_refusing_a_long_queue_of_one_provider_does_not_recurse(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    """release -> pump -> granted -> execute -> refuse -> give back -> release: eight frames for each that waits."""
    hung = hanging("hung", release, limit=None, timeout=Timeout(total=0.2))
    others = [healthy(f"s{number}") for number in range(400)]
    runner = fleet(
        hung,
        *others,
        policy=bare(limit=Limit("acme", concurrency=1)),
        max_workers=1,
        max_abandoned=0,
        order="given",
    )
    assert runner.run({}, deadline=5).counts == {Status.TIMEOUT: 1, Status.REJECTED: 400}


def test_the_timer_of_a_full_window_does_not_keep_the_watchdog_of_a_closed_runner(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    before = set(threading.enumerate())
    policy = bare(limit=Limit("acme", rate="1/day"), timeout=Timeout(total=0.1))
    runner = fleet(healthy("one"), healthy("two"), policy=policy)
    runner.run({})
    runner.close()
    eventually(lambda: not set(threading.enumerate()) - before)


def test_a_trial_after_an_open_breaker_keeps_the_rate_too(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    """Open when it was queued, half-open when a worker came: its further requests are not counted."""
    clock, go = FakeClock(auto=True), threading.Event()
    asked: list[int] = []

    @scanner(pipeline="test", breaker=Breaker(failures=1, open_for=10), limit=Limit("acme", concurrency=5))
    def flaky(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if not asked:
            asked.append(0)
            raise ValueError("x")
        asked.append(0 if context.provider is None else 1)
        return []

    @scanner(pipeline="test")
    def first(_state: dict[str, Any]) -> list[Any]:
        assert go.wait(5)
        return []

    runner = fleet(first, flaky, policy=bare(), clock=clock, max_workers=1, order="given")
    go.set()
    runner.run({})
    go.clear()
    run = background(runner.run, {})
    eventually(lambda: runner._fleet.pool._unfinished == 2)
    clock.advance(11.0)
    go.set()
    run.result(5)
    assert asked == [0, 1], "the context has no provider: before_request does nothing"


def moody(number: int, chance: Random) -> Any:
    @scanner(name=f"s{number}", pipeline="test")
    def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(chance.choice([0.0, 0.0, 0.02]))
        if chance.random() < 0.3:
            raise ValueError("x")
        return []

    return scan


def test_chaos_leaks_no_permit(fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually) -> None:
    chance = Random(7)
    policy = bare(
        limit=Limit("acme", concurrency=2),
        retry=Retry(attempts=2, base=0.001, cap=0.001),
        breaker=Breaker(failures=2, open_for=0.01, open_cap=0.01),
        timeout=Timeout(total=0.05, max_abandoned=3),
    )
    runner = fleet(
        *(moody(number, chance) for number in range(8)), hanging("hung", release), policy=policy, max_workers=3
    )

    def user(number: int) -> None:
        for turn in range(15):
            if (turn + number) % 3 == 0:
                next(runner.stream({}))
            else:
                assert len(runner.run({}, deadline=0.03 if turn % 2 else None).results) == 9

    users = [threading.Thread(target=user, args=(number,), daemon=True) for number in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(30)
        assert not thread.is_alive()
    release.set()
    eventually(lambda: provider(runner).taken == 0)
    assert provider(runner).waiting == 0
