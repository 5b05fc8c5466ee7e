"""A provider's breaker through the public API: six scanners of one dead host are one outage, not six."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    Policy,
    Quarantine,
    Retry,
    RetryAfter,
    RunReport,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import BreakerChanged, ProviderChanged
from resilient_scan.layers.breaker.provider import ProviderBreaker
from resilient_scan.testing import FakeClock, Recorder
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses

DOWN = ConnectionRefusedError("refused")
ACME = Limit("acme")
NAMES = ("gap_up", "gap_down", "movers", "volume", "news", "filings")
A = [{"ticker": "A"}]


class Source:
    """A provider whose way is up or down, and that counts who calls it."""

    def __init__(self) -> None:
        self.down: BaseException | None = None
        self.broken: dict[str, BaseException] = {}
        self.calls: list[str] = []

    def scanner(self, name: str, limit: Limit | None = ACME, **layers: Any) -> Any:
        @scanner(name=name, pipeline="test", limit=limit, **layers)
        def scan(_state: dict[str, Any]) -> list[Any]:
            self.calls.append(name)
            error = self.broken.get(name, self.down)
            if error is not None:
                raise error
            return A

        return scan


@pytest.fixture
def source() -> Source:
    return Source()


def breaker_of(runner: ScanRunner, provider: str = "acme") -> ProviderBreaker:
    breaker = runner._fleet.provider(provider).breaker
    assert breaker is not None
    return breaker


def state_of(runner: ScanRunner, provider: str = "acme") -> str | None:
    return next(each.state for each in runner.providers() if each.provider == provider)


def error_of(report: RunReport, name: str) -> str:
    error = report.results[name].error
    assert error is not None
    return f"{error.kind}: {error.message}"


# what opens it


@pytest.mark.parametrize("retry", [None, Retry(attempts=3, base=0, cap=0)])
@pytest.mark.parametrize("concurrent", [True, False])
def test_six_scanners_of_one_dead_provider_call_it_six_times_at_most(
    retry: Retry | None, concurrent: bool, source: Source, fleet: Fleet, bare: Bare
) -> None:
    source.down, recorder = DOWN, Recorder()
    runner = fleet(
        *map(source.scanner, NAMES),
        policy=bare(breaker=Breaker(failures=3), retry=retry),
        concurrent=concurrent,
        listeners=(recorder,),
    )
    reports = [runner.run() for _ in range(5)]
    assert len(source.calls) <= 6  # three for each of six, while each scanner has to find out for itself
    assert [runner.breaker(name) for name in NAMES] == ["closed"] * 6
    assert [type(event) for event in recorder.events_seen if isinstance(event, BreakerChanged | ProviderChanged)] == [
        ProviderChanged
    ]
    assert {result.status for result in reports[1].results.values()} == {Status.REJECTED}


def test_one_scanners_503_never_takes_the_provider_from_its_siblings(source: Source, fleet: Fleet, bare: Bare) -> None:
    source.broken["gap_up"] = DOWN
    policy = bare(breaker=Breaker(failures=3), retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(*map(source.scanner, NAMES[:3]), policy=policy, concurrent=False, order="given")
    reports = [runner.run() for _ in range(8)]
    assert {tuple(statuses(report)[1:]) for report in reports} == {(Status.COMPLETED, Status.COMPLETED)}
    assert state_of(runner) == "closed"
    assert runner.breaker("gap_up") == "open"  # it is its own fault, after all
    assert source.calls.count("gap_up") <= 6


def test_a_scanner_whose_siblings_do_not_run_is_not_left_without_a_breaker(
    source: Source, fleet: Fleet, bare: Bare
) -> None:
    source.down = DOWN
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=3)))
    for _ in range(10):
        runner.run(only=["gap_up"])
    assert len(source.calls) == 6
    assert (state_of(runner), runner.breaker("gap_up")) == ("closed", "open")


def test_the_only_scanner_of_a_provider_opens_it_alone(source: Source, fleet: Fleet, bare: Bare) -> None:
    source.down = DOWN
    runner = fleet(source.scanner("gap_up"), policy=bare(breaker=Breaker(failures=3)))
    assert [statuses(runner.run())[0] for _ in range(4)] == [*[Status.ERROR] * 3, Status.REJECTED]
    assert (state_of(runner), runner.breaker("gap_up")) == ("open", "closed")


def test_a_success_in_between_keeps_it_closed(source: Source, fleet: Fleet, bare: Bare) -> None:
    runner = fleet(*map(source.scanner, NAMES[:3]), policy=bare(breaker=Breaker(failures=2)), concurrent=False)
    for _ in range(3):
        source.broken = {"gap_up": DOWN, "movers": DOWN}
        runner.run(only=["gap_up"])
        runner.run(only=["gap_down"])
        runner.run(only=["movers"])
        runner.run(only=["gap_down"])
    assert state_of(runner) == "closed"


@pytest.mark.parametrize(
    "error", [OSError("bare"), ValueError("a parse error"), TimeoutError("slow"), Exception("own")]
)
def test_what_is_not_the_ways_fault_stays_the_scanners(
    error: Exception, source: Source, fleet: Fleet, bare: Bare
) -> None:
    source.down = error
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)))
    for _ in range(3):
        runner.run()
    assert state_of(runner) == "closed"
    assert [runner.breaker(name) for name in NAMES[:2]] == ["open", "open"]


def test_timeouts_stay_the_scanners(fleet: Fleet, bare: Bare) -> None:
    def waits(name: str) -> Any:
        @scanner(name=name, pipeline="test", limit=ACME)
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            context.sleep(100)
            return []

        return scan

    clock = FakeClock(auto=True)
    runner = fleet(waits("one"), waits("two"), policy=bare(breaker=Breaker(failures=1)), clock=clock, concurrent=False)
    assert statuses(runner.run()) == [Status.TIMEOUT, Status.TIMEOUT]
    assert (state_of(runner), runner.breaker("one"), runner.breaker("two")) == ("closed", "open", "open")


def test_a_group_is_judged_by_its_leaves(source: Source, fleet: Fleet, bare: Bare) -> None:
    """Some of it is the way's fault, and some is not: then it counts for both."""
    source.down = ExceptionGroup("tasks", [DOWN, ValueError("own")])
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)))
    runner.run()
    runner.run()
    assert (state_of(runner), runner.breaker("gap_up")) == ("open", "closed")
    runner.reset(provider="acme")
    source.down = ExceptionGroup("tasks", [DOWN, ValueError("own")])
    runner.run()
    assert runner.breaker("gap_up") == "open"


def test_a_provider_without_a_breaker_is_as_before(source: Source, fleet: Fleet, bare: Bare) -> None:
    source.down = DOWN
    limit = Limit("acme", breaker=None)
    scanners = [source.scanner(name, limit) for name in NAMES[:2]]
    runner = fleet(*scanners, policy=bare(breaker=Breaker(failures=2)))
    for _ in range(4):
        runner.run()
    assert len(source.calls) == 4
    assert (state_of(runner), runner.breaker("gap_up")) == (None, "open")
    with pytest.raises(ConfigError, match="reset provider acme: it has no breaker"):
        runner.reset(provider="acme")


def test_its_options_are_its_own_or_those_of_its_first_scanner_that_has_a_breaker(
    source: Source, fleet: Fleet, bare: Bare
) -> None:
    own = Limit("own", breaker=Breaker(failures=7, failure_rate=0.5))
    runner = fleet(
        source.scanner("gap_up", breaker=None),
        source.scanner("gap_down", breaker=Breaker(failures=4, slow_after=1, slow_rate=0.5)),
        source.scanner("movers", own),
        policy=bare(breaker=Breaker(failures=2)),
    )
    assert breaker_of(runner)._options == Breaker(failures=4)
    assert breaker_of(runner, "own")._options == Breaker(failures=7)


# while it is open


def test_while_it_is_down_a_scan_is_rejected_and_says_who_tried_and_when_the_next_one_will(
    source: Source, fleet: Fleet, bare: Bare
) -> None:
    clock = FakeClock(start=1_800_000_000 - 600)
    clock.advance(600)  # 08:00:00 UTC
    source.down = DOWN
    runner = fleet(
        *map(source.scanner, NAMES[:3]),
        policy=bare(breaker=Breaker(failures=2, open_for=60)),
        clock=clock,
        concurrent=False,
        order="given",
    )
    assert statuses(runner.run()) == [Status.ERROR, Status.ERROR, Status.REJECTED]
    clock.advance(40)
    report = runner.run()
    told = "CircuitOpen: provider acme: down since 08:00:00, tried by gap_down, next trial in 20 s"
    assert [error_of(report, name) for name in NAMES[:3]] == [told] * 3
    clock.advance(20)
    report = runner.run()
    assert source.calls[2:] == ["gap_up"]
    assert "down since 08:00:00, tried by gap_up, next trial in" in error_of(report, "gap_down")


def test_exactly_one_scanner_makes_the_trial(
    source: Source, fleet: Fleet, bare: Bare, background: Background, eventually: Eventually, release: threading.Event
) -> None:
    clock, begun = FakeClock(), threading.Event()
    inside: list[str] = []
    source.down = DOWN

    def held(name: str) -> Any:
        @scanner(name=name, pipeline="test", limit=ACME)
        def scan(_state: dict[str, Any]) -> list[Any]:
            if source.down is not None:
                raise source.down
            inside.append(name)
            begun.set()
            release.wait()
            return A

        return scan

    runner = fleet(*map(held, NAMES), policy=bare(breaker=Breaker(failures=3)), clock=clock, max_workers=6)
    runner.run()
    clock.advance(60)
    source.down = None
    ended: list[Status] = []
    run = background(lambda: ended.extend(result.status for result in runner.stream()))
    assert begun.wait(5)
    eventually(lambda: len(ended) == 5)
    second = runner.run()
    assert statuses(second) == [Status.REJECTED] * 6
    assert {error_of(second, name).rpartition(", ")[2] for name in NAMES} == {f"{inside[0]} is trying it now"}
    release.set()
    run.result(5)
    assert sorted(ended) == [Status.COMPLETED, *[Status.REJECTED] * 5]
    assert len(inside) == 1
    assert statuses(runner.run()) == [Status.COMPLETED] * 6


def test_a_stale_answer_stands_in(source: Source, fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    policy = bare(breaker=Breaker(failures=2), cache=Cache(ttl=10, stale_if_error=1000, jitter=0))
    runner = fleet(*map(source.scanner, NAMES[:3]), policy=policy, clock=clock)
    runner.run()
    clock.advance(20)
    source.down = DOWN
    for _ in range(3):
        assert statuses(runner.run()) == [Status.STALE] * 3
    assert state_of(runner) == "open"
    assert len(source.calls) <= 6


def test_after_a_trial_in_vain_another_scanner_has_its_turn(source: Source, fleet: Fleet, bare: Bare) -> None:
    """One scanner's page is broken for good; it is first in every run, and must not make every trial."""
    clock = FakeClock()
    source.down = DOWN
    policy = bare(breaker=Breaker(failures=2, open_for=10))
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=policy, clock=clock, concurrent=False, order="given")
    runner.run()
    clock.advance(10)
    runner.run()
    assert source.calls[2:] == ["gap_up"]
    source.down, source.broken["gap_up"] = None, DOWN
    clock.advance(20)
    report = runner.run()
    assert statuses(report) == [Status.REJECTED, Status.COMPLETED]
    assert error_of(report, "gap_up").endswith("gap_up made the last trial, the next one is another scanner's")
    assert state_of(runner) == "closed"


def test_whoever_made_the_last_trial_makes_the_next_one_too_where_nobody_else_comes(
    source: Source, fleet: Fleet, bare: Bare
) -> None:
    clock = FakeClock()
    source.down = DOWN
    policy = bare(breaker=Breaker(failures=2, open_for=10))
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=policy, clock=clock)
    runner.run()
    clock.advance(10)
    runner.run(only=["gap_up"])
    source.down = None
    clock.advance(20)
    assert statuses(runner.run(only=["gap_up"])) == [Status.REJECTED]
    assert statuses(runner.run(only=["gap_up"])) == [Status.COMPLETED]


def test_a_trial_that_hangs_is_given_back_and_the_next_one_is_anothers(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    clock, trouble = FakeClock(auto=True), [True]

    @scanner(pipeline="test", limit=ACME)
    def hangs(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if trouble[0]:
            raise DOWN
        context.sleep(100)
        return []

    @scanner(pipeline="test", limit=ACME)
    def works(_state: dict[str, Any]) -> list[Any]:
        if trouble[0]:
            raise DOWN
        return A

    policy = bare(breaker=Breaker(failures=2, open_for=10), timeout=Timeout(total=3))
    runner = fleet(hangs, works, policy=policy, clock=clock, concurrent=False, order="given")
    runner.run()
    trouble[0] = False
    clock.advance(10)
    assert statuses(runner.run()) == [Status.TIMEOUT, Status.COMPLETED]
    assert state_of(runner) == "closed"


@pytest.mark.parametrize("ending", ["close", "deadline", "timeout"])
def test_a_trial_that_nobody_waits_for_any_more_is_given_back(
    ending: str, fleet: Fleet, bare: Bare, background: Background, release: threading.Event
) -> None:
    """It is deaf to the cancel: its thread hangs on, and what it comes to in the end does not count."""
    clock, begun, down = FakeClock(), threading.Event(), [True]

    @scanner(pipeline="test", limit=ACME)
    def held(_state: dict[str, Any]) -> list[Any]:
        if down[0]:
            raise DOWN
        begun.set()
        release.wait()
        raise DOWN

    policy = bare(breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=10))
    runner = fleet(held, policy=policy, clock=clock)
    runner.run()
    down[0] = False
    clock.advance(60)
    run = background(runner.run, {}, deadline=5 if ending == "deadline" else None)
    assert begun.wait(5)
    machine = breaker_of(runner)._machine
    assert [trial.rpartition(" ")[2] for trial in machine.trials] == ["held"]
    if ending == "close":
        runner.close()
    else:
        clock.advance(10)
    run.result(5)
    assert not machine.trials
    assert machine.memory.state == "half-open"


def test_a_success_closes_it_for_all_and_so_does_a_reset(source: Source, fleet: Fleet, bare: Bare) -> None:
    clock, recorder = FakeClock(), Recorder()
    source.down = DOWN
    policy = bare(breaker=Breaker(failures=2, open_for=60))
    runner = fleet(*map(source.scanner, NAMES[:2]), policy=policy, clock=clock, concurrent=False, listeners=(recorder,))
    runner.run()
    source.down = None
    clock.advance(60)
    assert statuses(runner.run()) == [Status.COMPLETED] * 2
    source.down = DOWN
    runner.run()
    assert state_of(runner) == "open"
    source.down = None
    runner.reset(provider="acme", reason="it is back", who="ann")
    assert statuses(runner.run()) == [Status.COMPLETED] * 2
    changes = [event for event in recorder.events_seen if isinstance(event, ProviderChanged)]
    assert [(change.old, change.new) for change in changes] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
        ("closed", "open"),
        ("open", "closed"),
    ]
    assert {change.provider for change in changes} == {"acme"}
    assert runner.audit()[0].scanner == "provider acme"


def test_a_reset_names_one_thing_that_there_is(source: Source, fleet: Fleet, bare: Bare) -> None:
    runner = fleet(source.scanner("gap_up"), policy=bare(breaker=Breaker()))
    for arguments in ({}, {"name": "gap_up", "provider": "acme"}):
        with pytest.raises(ConfigError, match="name either a scanner or a provider"):
            runner.reset(**arguments)
    with pytest.raises(ConfigError, match="there is no provider 'acmee'; did you mean 'acme'"):
        runner.reset(provider="acmee")
    with pytest.raises(ConfigError, match="reset provider acme: reason must say why"):
        runner.reset(provider="acme", reason=" ")


def test_a_probe_and_a_scanner_that_is_enabled_by_hand_may_try(source: Source, fleet: Fleet, bare: Bare) -> None:
    """Whoever brings a scanner back wants it called, whatever breakers say."""
    clock = FakeClock()
    source.down = DOWN
    policy = bare(breaker=Breaker(failures=2, open_for=1000))
    runner = fleet(
        *map(source.scanner, NAMES[:2]), policy=policy, clock=clock, quarantine=Quarantine(after_failures=1, cooloff=1)
    )
    runner.run()
    assert state_of(runner) == "open"
    source.down = None
    clock.advance(2)
    assert Status.COMPLETED in statuses(runner.run())
    assert state_of(runner) == "closed"


# Retry-After


class Asking:
    """Scanners of one provider, the first of which is told to wait."""

    def __init__(self, seconds: float, clock: FakeClock) -> None:
        self.seconds = seconds
        self.clock = clock
        self.instants: list[tuple[str, float]] = []
        self.told = 0

    def scanner(self, name: str, limit: Limit = ACME, **layers: Any) -> Any:
        @scanner(name=name, pipeline="test", limit=limit, **layers)
        def scan(_state: dict[str, Any]) -> list[Any]:
            self.instants.append((name, self.clock.monotonic()))
            if not self.told:
                self.told += 1
                raise RetryAfter(self.seconds, "ask less often")
            return A

        return scan


def test_a_sibling_waits_for_the_end_of_a_hold_if_that_fits(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    asking = Asking(30, clock)
    runner = fleet(
        asking.scanner("one"),
        asking.scanner("two"),
        policy=bare(breaker=Breaker(), timeout=Timeout(total=40)),
        clock=clock,
        max_workers=1,
        order="given",
    )
    runner.run(only=["one"])
    assert state_of(runner) == "held"
    assert next(iter(runner.providers())).reason.startswith("provider acme asked to be left alone until ")
    run = background(runner.run, {}, only=["two"])
    eventually(lambda: runner._fleet.provider("acme").waiting == 1)
    # It waits without a worker. The one that ran the first may be handing over still.
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)
    clock.advance(29.75)
    assert asking.instants == [("one", 0.0)]
    clock.advance(0.25)
    assert statuses(run.result(5)) == [Status.COMPLETED]
    assert asking.instants[1] == ("two", 30.0)
    assert state_of(runner) == "closed"


@pytest.mark.parametrize(("total", "deadline"), [(30.0, None), (1000.0, 30.0)])
def test_a_sibling_that_cannot_wait_that_long_is_rejected_at_once(
    total: float, deadline: float | None, fleet: Fleet, bare: Bare
) -> None:
    clock = FakeClock(start=1_800_000_000)
    asking = Asking(90, clock)
    policy = bare(breaker=Breaker(), timeout=Timeout(total=total))
    runner = fleet(asking.scanner("one"), asking.scanner("two"), policy=policy, clock=clock)
    runner.run(only=["one"])
    report = runner.run(only=["two"], deadline=deadline)
    assert statuses(report) == [Status.REJECTED]
    assert error_of(report, "two") == ("LimitExceeded: provider acme asked to be left alone until 08:01:30, in 90 s")
    assert clock.monotonic() == 0


def test_a_stale_answer_stands_in_for_a_held_provider(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    asking = Asking(90, clock)
    asking.told = 1
    policy = bare(breaker=Breaker(), cache=Cache(ttl=1, stale_if_error=100, jitter=0))
    runner = fleet(asking.scanner("one"), asking.scanner("two"), policy=policy, clock=clock)
    runner.run()
    clock.advance(2)
    asking.told = 0
    runner.run(only=["one"])
    assert statuses(runner.run(only=["two"])) == [Status.STALE]


def test_those_who_queue_when_the_hold_begins_wait_or_are_rejected_then(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock, go, inside = FakeClock(), threading.Event(), threading.Event()

    @scanner(pipeline="test", limit=Limit("acme", concurrency=1), timeout=Timeout(total=100))
    def told(_state: dict[str, Any]) -> list[Any]:
        inside.set()
        go.wait()
        raise RetryAfter(30)

    asking = Asking(0, clock)
    asking.told = 1
    runner = fleet(
        told,
        asking.scanner("patient", timeout=Timeout(total=100)),
        asking.scanner("hasty", timeout=Timeout(total=20)),
        policy=bare(breaker=Breaker()),
        clock=clock,
    )
    first = background(runner.run, {}, only=["told"])
    assert inside.wait(5)
    second = background(runner.run, {}, only=["patient", "hasty"])
    eventually(lambda: runner._fleet.provider("acme").waiting == 2)
    go.set()
    first.result(5)
    eventually(lambda: runner._fleet.provider("acme").waiting == 1)
    assert asking.instants == []  # nobody slipped in when the permit came back
    clock.advance(30)
    assert statuses(second.result(5)) == [Status.COMPLETED, Status.REJECTED]
    assert asking.instants == [("patient", 30.0)]


def test_an_execution_that_has_a_permit_and_no_worker_yet_waits_as_well(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock, go, inside = FakeClock(), threading.Event(), threading.Event()

    @scanner(pipeline="test", limit=ACME, timeout=Timeout(total=100))
    def told(_state: dict[str, Any]) -> list[Any]:
        inside.set()
        go.wait()
        raise RetryAfter(30)

    asking = Asking(0, clock)
    asking.told = 1
    sibling = asking.scanner("sibling", timeout=Timeout(total=100))
    runner = fleet(told, sibling, policy=bare(breaker=Breaker()), clock=clock, max_workers=1, order="given")
    run = background(runner.run)
    assert inside.wait(5)
    eventually(lambda: runner._fleet.pool.queued == 1)
    go.set()
    eventually(lambda: runner._fleet.provider("acme").waiting == 1)
    assert asking.instants == []
    clock.advance(30)
    assert statuses(run.result(5)) == [Status.ERROR, Status.COMPLETED]


@pytest.mark.parametrize(("asked", "held"), [(200.0, 200.0), (5000.0, 900.0)])
def test_a_hold_is_what_the_server_said_up_to_open_cap(asked: float, held: float, fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    asking = Asking(asked, clock)
    retry = Retry(retry_after_cap=10)
    runner = fleet(asking.scanner("one"), policy=bare(breaker=Breaker(open_cap=900), retry=retry), clock=clock)
    runner.run()
    assert breaker_of(runner).held_until == held


def test_a_retry_that_the_hold_leaves_no_time_for_is_not_waited_for(fleet: Fleet, bare: Bare) -> None:
    """`retry_after_cap` would fit into the scan's time, but after it the provider would still be held."""
    clock = FakeClock(auto=True)
    asking = Asking(200, clock)
    policy = bare(breaker=Breaker(), retry=Retry(retry_after_cap=10), timeout=Timeout(total=100))
    report = fleet(asking.scanner("one"), policy=policy, clock=clock).run()
    assert error_of(report, "one") == "RetryAfter: ask less often"
    assert clock.monotonic() == 0


def test_the_one_that_was_told_waits_for_what_it_was_told(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    asking = Asking(70, clock)
    policy = bare(breaker=Breaker(), retry=Retry(retry_after_cap=10), timeout=Timeout(total=100))
    runner = fleet(asking.scanner("one"), asking.scanner("two"), policy=policy, clock=clock)
    assert statuses(runner.run(only=["one"])) == [Status.COMPLETED]
    assert asking.instants == [("one", 0.0), ("one", 70.0)]


def test_a_hold_lengthens_the_open_time(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    source = Source()
    policy = bare(breaker=Breaker(failures=2, open_for=10))
    runner = fleet(*map(source.scanner, NAMES[:3]), policy=policy, clock=clock, concurrent=False, order="given")
    source.down = DOWN
    runner.run()
    assert breaker_of(runner).next_trial_in() == 10
    breaker_of(runner).hold(45, "")
    assert breaker_of(runner).next_trial_in() == 45
    source.down = None
    clock.advance(44)
    assert statuses(runner.run()) == [Status.REJECTED] * 3
    clock.advance(1)
    assert statuses(runner.run()) == [Status.COMPLETED] * 3


def test_a_hold_that_comes_first_lengthens_an_opening_that_comes_during_it(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    source = Source()
    runner = fleet(source.scanner("gap_up"), policy=bare(breaker=Breaker(failures=1, open_for=10)), clock=clock)
    breaker = breaker_of(runner)
    permit, _ = breaker.admit()
    breaker.hold(45, "")
    breaker.vote(permit, True, who="gap_up")
    assert breaker.next_trial_in() == 45


def test_a_reset_ends_a_hold_for_those_who_wait(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    asking = Asking(30, clock)
    policy = bare(breaker=Breaker(), timeout=Timeout(total=100))
    runner = fleet(asking.scanner("one"), asking.scanner("two"), policy=policy, clock=clock)
    runner.run(only=["one"])
    run = background(runner.run, {}, only=["two"])
    eventually(lambda: runner._fleet.provider("acme").waiting == 1)
    runner.reset(provider="acme")
    assert statuses(run.result(5)) == [Status.COMPLETED]
    assert asking.instants == [("one", 0.0), ("two", 0.0)]


# sources in turn


def test_a_source_that_is_a_provider_has_that_ones_breaker(fleet: Fleet, bare: Bare) -> None:
    calls: list[str] = []
    down = [True]

    def ask(name: str) -> Callable[[], list[Any]]:
        def call() -> list[Any]:
            calls.append(name)
            if down[0] and name == "acme":
                raise DOWN
            return A

        return call

    def two(name: str) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            try:
                return context.guarded("acme", ask("acme"))
            except Exception:
                return context.guarded("other", ask("other"))

        return scan

    owner = Source().scanner("owner")
    runner = fleet(owner, two("one"), two("two"), policy=bare(breaker=Breaker(failures=2)), concurrent=False)
    for _ in range(3):
        assert statuses(runner.run(only=["one", "two"])) == [Status.COMPLETED] * 2
    assert calls.count("acme") == 2
    assert state_of(runner) == "open"
    assert statuses(runner.run(only=["owner"])) == [Status.REJECTED]


# shared with others, and outliving a process


def test_the_state_is_shared_through_the_store_and_survives_a_restart(
    source: Source, fleet: Fleet, bare: Bare, tmp_path: Path
) -> None:
    clock = FakeClock()
    store = f"sqlite:///{tmp_path}/state.db"
    source.down = DOWN
    options: dict[str, Any] = {
        "policy": bare(breaker=Breaker(failures=2, open_for=60)),
        "store": store,
        "clock": clock,
        "concurrent": False,
        "order": "given",
    }
    first = fleet(*map(source.scanner, NAMES[:3]), **options)
    assert statuses(first.run()) == [Status.ERROR, Status.ERROR, Status.REJECTED]
    first.close()
    clock.advance(20)
    second = fleet(*map(source.scanner, NAMES[:3]), **options)
    report = second.run()
    assert statuses(report) == [Status.REJECTED] * 3
    assert "tried by gap_down, next trial in 40 s" in error_of(report, "movers")
    source.down = None
    clock.advance(40)
    third = fleet(*map(source.scanner, NAMES[:3]), **options)
    assert statuses(third.run()) == [Status.COMPLETED] * 3
    assert statuses(second.run()) == [Status.COMPLETED] * 3
    assert len(source.calls) == 2 + 3 + 3


def test_failures_in_two_processes_add_up(source: Source, fleet: Fleet, bare: Bare, tmp_path: Path) -> None:
    source.down = DOWN
    policy, store = bare(breaker=Breaker(failures=2)), f"sqlite:///{tmp_path}/state.db"
    one, two = (fleet(*map(source.scanner, NAMES[:2]), policy=policy, store=store) for _ in range(2))
    one.run(only=["gap_up"])
    assert state_of(one) == "closed"
    two.run(only=["gap_down"])
    assert state_of(two) == "open"
    assert statuses(one.run()) == [Status.REJECTED] * 2


def test_a_hold_reaches_other_processes(fleet: Fleet, bare: Bare, tmp_path: Path) -> None:
    clock = FakeClock()
    asking = Asking(90, clock)
    policy, store = bare(breaker=Breaker()), f"sqlite:///{tmp_path}/state.db"
    one, two = (
        fleet(asking.scanner("one"), asking.scanner("two"), policy=policy, store=store, clock=clock) for _ in range(2)
    )
    one.run(only=["one"])
    assert statuses(two.run(only=["two"])) == [Status.REJECTED]
    two.reset(provider="acme")
    assert statuses(one.run(only=["two"])) == [Status.COMPLETED]


def test_a_trial_of_a_process_that_is_gone_blocks_nobody_for_long(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event, tmp_path: Path
) -> None:
    """It was killed amid its trial, so it never votes: its slot is another's after `open_for`."""
    clock, begun, down = FakeClock(), threading.Event(), [True]

    @scanner(pipeline="test", limit=ACME)
    def held(_state: dict[str, Any]) -> list[Any]:
        if down[0]:
            raise DOWN
        begun.set()
        release.wait()
        return A

    options: dict[str, Any] = {
        "policy": bare(breaker=Breaker(failures=1, open_for=10), timeout=Timeout(total=1000)),
        "store": f"sqlite:///{tmp_path}/state.db",
        "clock": clock,
    }
    killed, alive = fleet(held, **options), fleet(Source().scanner("held"), **options)
    killed.run()
    down[0] = False
    clock.advance(10)
    background(killed.run)
    assert begun.wait(5)
    assert error_of(alive.run(), "held").endswith("held is trying it now")
    clock.advance(9)
    assert statuses(alive.run()) == [Status.REJECTED]
    clock.advance(1)
    assert statuses(alive.run()) == [Status.COMPLETED]
    assert state_of(alive) == "closed"


# what it leaves alone


def test_a_runner_without_providers_has_none(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    def bare_scanner(_state: dict[str, Any]) -> list[Any]:
        raise DOWN

    runner = fleet(bare_scanner, policy=Policy(cache=None, retry=None, breaker=Breaker(failures=2)))
    assert [statuses(runner.run())[0] for _ in range(3)] == [Status.ERROR, Status.ERROR, Status.REJECTED]
    assert runner.providers() == ()
    assert runner.breaker("bare_scanner") == "open"


def test_an_execution_that_learns_its_provider_goes_on_as_it_began(fleet: Fleet) -> None:
    providers: list[Any] = []

    def fail() -> None:
        raise ValueError("not like this")

    @scanner(pipeline="test", cache=None, retry=Retry(attempts=2, base=0.001), breaker=Breaker())
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        providers.append(context.provider)
        if len(providers) == 1:
            context.reach("host.example:80", fail)
        return A

    runner = fleet(one)
    assert statuses(runner.run()) == [Status.COMPLETED]
    runner.run()
    assert [provider is not None for provider in providers] == [False, False, True]
