"""The breaker's rates over a window of attempts, and an open time that grows and shrinks."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from resilient_scan import Breaker, Retry, ScanContext, Status, Timeout, scanner
from resilient_scan.events import BreakerChanged
from resilient_scan.testing import FakeClock, Recorder
from tests.support.fixtures import Bare, Fleet
from tests.support.results import statuses


class Source:
    """A scanner that fails and takes its time as the test says, and a runner for it."""

    def __init__(self, fleet: Fleet, bare: Bare, breaker: Breaker, **layers: Any) -> None:
        self.clock = FakeClock(auto=True)
        self.recorder = Recorder()
        self.fails = False
        self.seconds = 0.0
        policy = bare(breaker=breaker, timeout=Timeout(total=1e6), **layers)
        self.runner = fleet(
            scanner(name="one", pipeline="test")(self.ask),
            policy=policy,
            clock=self.clock,
            listeners=[self.recorder],
            random=Random(3),
        )

    def ask(self, _state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(self.seconds)
        if self.fails:
            raise ValueError("x")
        return []

    def run(self, outcomes: str) -> list[Status]:
        """Run once for each letter: `.` well, `x` failure, `s` slow."""
        ended = []
        for letter in outcomes:
            self.fails, self.seconds = letter == "x", 5.0 if letter == "s" else 0.0
            ended += statuses(self.runner.run({}))
        return ended

    @property
    def state(self) -> str:
        breaker = self.runner._fleet.stacks["one"].breaker
        assert breaker is not None
        return breaker.state

    @property
    def openings(self) -> list[float | None]:
        return [event.open_for for event in self.recorder.of(BreakerChanged) if event.new == "open"]


# rates


@pytest.mark.parametrize(
    ("outcomes", "opens"),
    [
        (".x.x.x", False),  # six of ten: below the minimum
        (".x.x.x.x.x", True),  # half of ten
        ("..x.x.x.x.", False),  # 4 of 10
        ("..x.x.x.xx", True),
        ("." * 20 + "x.x.x.x.x", False),  # 5 of the last 20
        ("." * 20 + "x." * 9, False),  # 9 of the last 20: the window forgets the first ones
        ("." * 20 + "x." * 9 + "x", True),  # 10 of the last 20
    ],
)
def test_the_failure_rate_over_the_window_opens_it(outcomes: str, opens: bool, fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=100, failure_rate=0.5, window=20, minimum=10))
    source.run(outcomes[:-1])
    assert source.state == "closed"
    source.run(outcomes[-1])
    assert source.state == ("open" if opens else "closed")


def test_consecutive_failures_open_it_all_the_same(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=3, failure_rate=0.9, window=20, minimum=10))
    assert source.run("xxx.") == [Status.ERROR] * 3 + [Status.REJECTED]


@pytest.mark.parametrize(
    ("outcomes", "opens"), [("s.s.s.s.s.", False), ("s.s.s.s.ss", True), ("ssss.s", False), ("ssxs.sxs.s", True)]
)
def test_slow_answers_open_it(outcomes: str, opens: bool, fleet: Fleet, bare: Bare) -> None:
    breaker = Breaker(failures=100, slow_after=5.0, slow_rate=0.6, window=10, minimum=10)
    source = Source(fleet, bare, breaker)
    ended = source.run(outcomes)
    assert source.state == ("open" if opens else "closed")
    assert [status for letter, status in zip(outcomes, ended, strict=True) if letter != "x"] == [
        Status.COMPLETED
    ] * sum(letter != "x" for letter in outcomes), "a slow answer is an answer"


@pytest.mark.parametrize(("seconds", "opens"), [(4.999, False), (5.0, True)])
def test_slow_begins_at_the_limit(seconds: float, opens: bool, fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(slow_after=5.0, slow_rate=1.0, window=2, minimum=2))
    for _ in range(2):
        source.seconds = seconds
        source.runner.run({})
    assert (source.state == "open") is opens


@pytest.mark.parametrize(("seconds", "opens"), [(0.9, False), (50.0, True)])
def test_an_attempt_that_fails_may_have_been_slow(seconds: float, opens: bool, fleet: Fleet, bare: Bare) -> None:
    """It is slow when it passes the limit, and nobody knows by then that it will fail."""
    source = Source(fleet, bare, Breaker(failures=100, slow_after=1.0, slow_rate=0.1, window=4, minimum=4))
    source.fails, source.seconds = True, seconds
    for _ in range(4):
        source.runner.run({})
    assert (source.state == "open") is opens


def test_errors_without_a_vote_are_not_in_the_window(fleet: Fleet, bare: Bare) -> None:
    breaker = Breaker(failures=100, on=(KeyError,), failure_rate=0.1, window=4, minimum=2)
    source = Source(fleet, bare, breaker)
    source.run("xxxxxx")
    assert source.state == "closed"


def test_each_attempt_votes(fleet: Fleet, bare: Bare) -> None:
    breaker = Breaker(failures=100, failure_rate=1.0, window=4, minimum=4)
    source = Source(fleet, bare, breaker, retry=Retry(attempts=2, base=0, cap=0))
    assert source.run("x") == [Status.ERROR]
    assert source.state == "closed"
    source.run("x")
    assert source.state == "open"


def test_the_window_is_empty_after_it_closes(fleet: Fleet, bare: Bare) -> None:
    breaker = Breaker(failures=100, failure_rate=0.5, window=4, minimum=2, open_for=10)
    source = Source(fleet, bare, breaker)
    source.run("xx")
    assert source.state == "open"
    source.clock.advance(10)
    assert source.run(".") == [Status.COMPLETED]
    assert source.state == "closed"
    source.run("x")
    assert source.state == "closed", "one failure after the closing is below the minimum"
    source.run("x")
    assert source.state == "open"


# the open time


def test_the_first_open_time_is_exact(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=1, open_for=10))
    source.run("x")
    source.clock.advance(9.999)
    assert source.run(".") == [Status.REJECTED]
    source.clock.advance(0.001)
    assert source.run(".") == [Status.COMPLETED]
    assert source.openings == [10]


def test_it_grows_while_trials_fail_up_to_the_cap(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=1, open_for=10, open_cap=100))
    source.run("x")
    for _ in range(7):
        opened_for = source.openings[-1]
        assert opened_for is not None
        source.clock.advance(opened_for * 0.999)
        assert source.run(".") == [Status.REJECTED]
        source.clock.advance(opened_for * 0.001 + 1e-6)
        assert source.run("x") == [Status.ERROR]
    first, *grown = source.openings
    assert first == 10
    for number, seconds in enumerate(grown, 1):
        assert seconds is not None
        assert min(100, 0.75 * 10 * 2**number) <= seconds <= min(100, 10 * 2**number)
    assert grown[-1] == 100
    assert len(set(grown[:3])) == 3


def test_it_shrinks_again_after_health(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=1, open_for=10))
    source.run("x")
    for letter in "xx.":
        source.clock.advance(source.openings[-1] or 0)
        source.run(letter)
    assert source.state == "closed"
    source.run("x")
    assert source.openings[-1] == 10
    source.clock.advance(10)
    source.run("x")
    assert 15 <= (source.openings[-1] or 0) <= 20, "and grows from there"


def test_a_slow_trial_is_a_success(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Breaker(failures=1, open_for=10, slow_after=1.0, slow_rate=0.5, window=2, minimum=2))
    source.run("x")
    source.clock.advance(10)
    assert source.run("s") == [Status.COMPLETED]
    assert source.state == "closed"
