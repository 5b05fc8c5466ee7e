"""The breaker around a call: what votes, what does not, and what is refused."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    CircuitOpen,
    LimitExceeded,
    PermanentError,
    Rejected,
    RetryAfter,
    ScanCancelled,
    ScanTimeout,
)
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.layers.local import Fault
from resilient_scan.testing import FakeClock

OPENED = BreakerChanged("one", "closed", "open", 8.0)
TRYING = BreakerChanged("one", "open", "half_open", None)
CLOSED = BreakerChanged("one", "half_open", "closed", None)
DOWN = OSError("down")


class Bench:
    """A breaker around a call that does what the test says."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.breaker = CircuitBreaker(
            "one", Breaker(**{"failures": 1, "open_for": 8, **options}), self.clock, Random(0)
        )
        self.changes: list[BreakerChanged] = []
        self.calls = 0
        call = self.breaker.noting_slow(self._answer, self.changes.append)
        self._call = self.breaker.around(call, self.changes.append)
        self._step: Any = None

    def _answer(self, context: AttemptContext) -> list[Any]:
        self.calls += 1
        context.begin_attempt()
        step = self._step(context) if callable(self._step) else self._step
        if isinstance(step, BaseException):
            raise step
        return [step]

    def context(self, deadline: float = 1e6) -> AttemptContext:
        return AttemptContext("one", clock=self.clock, deadline=deadline)

    def ask(self, step: Any = "found", context: AttemptContext | None = None) -> Any:
        """Return the answer, or the exception."""
        self._step = step
        try:
            return self._call(context or self.context())
        except BaseException as error:
            return error

    def opened(self) -> Bench:
        assert self.ask(DOWN) is DOWN
        assert self.breaker.state == "open"
        self.changes.clear()
        self.calls = 0
        return self


def test_an_answer_comes_through() -> None:
    bench = Bench()
    assert bench.ask("found") == ["found"]
    assert (bench.breaker.state, bench.changes) == ("closed", [])


@pytest.mark.parametrize(("local", "state"), [(True, "closed"), (False, "open")])
def test_a_failure_about_which_it_is_decided_while_it_is_judged_counts_by_the_decision(local: bool, state: str) -> None:
    """Another scanner's thread decides: it was between two looks at the fault, and the failure counted all the same."""
    fault = Fault("memory", "one", "one", 0.0)

    class Judged(AttemptContext):
        def fault(self, _error: BaseException) -> Fault:
            return fault

    def listed(_error: BaseException) -> bool:  # called amid the judgement
        fault.local = local
        fault.settle()
        return True

    bench = Bench(on=listed)
    assert bench.ask(DOWN, Judged("one", clock=bench.clock, deadline=1e6)) is DOWN
    assert bench.breaker.state == state


def test_a_refusal_keeps_no_frame_alive() -> None:
    bench = Bench().opened()
    context = bench.context()
    kept = weakref.ref(context)
    refusals: list[weakref.ref[BaseException]] = []
    gc.disable()
    try:
        for refused in (bench._call, lambda _context: bench.breaker.admit()):
            try:
                refused(context)
            except CircuitOpen as error:
                refusals.append(weakref.ref(error))
        del context
        assert kept() is None
        assert [refusal() for refusal in refusals] == [None, None]
    finally:
        gc.enable()


def test_a_failure_comes_through_and_opens_it() -> None:
    bench = Bench(failures=2)
    assert bench.ask(DOWN) is DOWN
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 1)
    assert bench.ask(DOWN) is DOWN
    assert bench.breaker.state == "open"
    assert bench.changes == [OPENED]


def test_an_open_one_refuses_and_says_for_how_long() -> None:
    bench = Bench().opened()
    bench.clock.advance(5.5)
    refusal = bench.ask()
    assert isinstance(refusal, CircuitOpen)
    assert str(refusal) == "the breaker of one is open, next trial in 2.5s"
    assert bench.breaker.is_open()
    assert bench.calls == 0


def test_a_trial_that_succeeds_closes_it() -> None:
    bench = Bench().opened()
    bench.clock.advance(8)
    assert not bench.breaker.is_open()
    assert bench.ask() == ["found"]
    assert bench.changes == [TRYING, CLOSED]
    assert bench.breaker.failures == 0


def test_a_trial_that_fails_opens_it_for_longer() -> None:
    bench = Bench().opened()
    bench.clock.advance(8)
    assert bench.ask(DOWN) is DOWN
    trying, opened = bench.changes
    assert trying == TRYING
    assert (opened.old, opened.new) == ("half_open", "open")
    assert 12 <= opened.open_for <= 16
    assert bench.breaker.next_trial_in() == opened.open_for


def test_while_a_trial_is_under_way_nobody_else_is_admitted() -> None:
    bench = Bench().opened()
    bench.clock.advance(8)
    refusals: list[Any] = []

    def meanwhile(_context: AttemptContext) -> str:
        refusals.append(bench.ask("other"))
        return "found"

    assert bench.ask(meanwhile) == ["found"]
    assert isinstance(refusals[0], CircuitOpen)
    assert str(refusals[0]) == "the breaker of one is half-open and its trial is still under way"
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize(
    ("error", "votes"),
    [
        (OSError("down"), True),
        (Exception(), True),
        (RetryAfter(5), True),
        (ScanTimeout("attempt 1", by_clock=True), True),
        (ScanTimeout("own"), True),
        (PermanentError("bad key"), False),
        (Rejected("no thread"), False),
        (LimitExceeded("no turn"), False),
        (CircuitOpen("another one's"), False),
        (ScanCancelled("over"), False),
        (KeyboardInterrupt(), False),
        (SystemExit(1), False),
    ],
)
def test_what_is_a_failure_by_default(error: BaseException, votes: bool) -> None:
    bench = Bench()
    assert bench.ask(error) is error
    assert (bench.breaker.state == "open") is votes
    assert bench.breaker.failures == 0 or votes


@pytest.mark.parametrize(
    ("error", "votes"),
    [
        (OSError("down"), True),
        (ConnectionError("down"), True),
        (ValueError("bad"), False),
        (RetryAfter(5), True),  # named or not
        (ScanTimeout("attempt 1", by_clock=True), True),
    ],
)
def test_errors_outside_on_have_no_vote(error: BaseException, votes: bool) -> None:
    bench = Bench(on=(OSError,))
    assert bench.ask(error) is error
    assert (bench.breaker.state == "open") is votes


@pytest.mark.parametrize("error", [ScanTimeout("attempt 1", by_clock=True), RetryAfter(5)])
def test_our_own_verdicts_vote_even_where_no_class_does(error: Exception) -> None:
    bench = Bench(on=())
    bench.ask(error)
    assert bench.breaker.state == "open"


def test_a_wake_up_by_the_scans_own_deadline_is_a_failure() -> None:
    bench = Bench()
    context = bench.context(deadline=3)

    def too_slow(context: AttemptContext) -> Any:
        bench.clock.advance(3)
        context.check()

    assert isinstance(bench.ask(too_slow, context), ScanCancelled)
    assert bench.breaker.state == "open"


def test_a_cancel_before_that_is_none() -> None:
    bench = Bench()
    context = bench.context(deadline=3)

    def cancelled(context: AttemptContext) -> Any:
        context.cancel()
        context.check()

    assert isinstance(bench.ask(cancelled, context), ScanCancelled)
    assert bench.breaker.state == "closed"


def test_neither_vote_resets_a_count() -> None:
    """An error without a vote is not a success either."""
    bench = Bench(failures=2)
    bench.ask(DOWN)
    bench.ask(PermanentError("bad key"))
    assert bench.breaker.failures == 1
    bench.ask("found")
    assert bench.breaker.failures == 0


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_an_attempt_that_is_too_late_does_not_begin_and_does_not_vote(how: str) -> None:
    bench = Bench()
    context = bench.context(deadline=3)
    if how == "cancelled":
        context.cancel()
    else:
        context.limit(10.0, cut_at=3.0)  # the run's deadline: nobody's fault
        bench.clock.advance(3)
    assert isinstance(bench.ask("found", context), ScanCancelled)
    assert (bench.calls, bench.breaker.state) == (0, "closed")


def test_the_permit_is_where_the_watchdog_finds_it() -> None:
    bench = Bench()
    context = bench.context()
    seen: list[Any] = []

    def expired(context: AttemptContext) -> str:
        seen.append(context.permit)
        assert bench.breaker.vote(context.permit, True) == OPENED  # the watchdog, at the deadline
        return "late"

    assert bench.ask(expired, context) == ["late"]
    assert seen[0] is not None
    assert context.permit is None
    assert bench.breaker.state == "open"  # the late answer has no vote
    assert bench.changes == []  # the one that voted announces it


def test_a_trial_that_gives_its_permit_back_makes_room() -> None:
    bench = Bench().opened()
    bench.clock.advance(8)
    assert isinstance(bench.ask(PermanentError("bad key")), PermanentError)
    assert bench.breaker.state == "half_open"
    assert bench.breaker.next_trial_in() == 0
    assert bench.ask() == ["found"]
    assert bench.breaker.state == "closed"


def test_the_next_trial_is_foreseen() -> None:
    bench = Bench()
    assert bench.breaker.next_trial_in() == 0
    bench.opened()
    assert bench.breaker.next_trial_in() == 8
    bench.clock.advance(5)
    assert bench.breaker.next_trial_in() == 3
    bench.clock.advance(5)
    assert bench.breaker.next_trial_in() == 0
    permit, change = bench.breaker.admit()
    assert change == TRYING
    assert bench.breaker.next_trial_in() == 8  # when the permit under way expires
    bench.clock.advance(8)
    assert bench.breaker.next_trial_in() == 0
    assert bench.breaker.vote(permit, False) == CLOSED


def test_the_window_is_counted_if_there_is_one() -> None:
    assert Bench().breaker.window_counts() is None
    bench = Bench(failures=9, slow_after=2, slow_rate=1, window=4, minimum=4)
    bench.ask(DOWN)
    bench.ask("fast")
    bench.ask(lambda _context: bench.clock.advance(2))
    assert bench.breaker.window_counts() == (3, 1, 1)
    bench.ask(lambda _context: bench.clock.advance(2))
    bench.ask(lambda _context: bench.clock.advance(2))
    assert bench.breaker.window_counts() == (4, 0, 3)  # the oldest went


SLOW = {"failures": 9, "slow_after": 2, "slow_rate": 1, "window": 4, "minimum": 4}


@pytest.mark.parametrize(
    ("outcome", "counts"), [("found", (1, 0, 1)), (DOWN, (1, 1, 1)), (PermanentError("gone"), (1, 0, 1))]
)
def test_a_slow_attempt_counts_while_it_is_under_way_and_once(outcome: Any, counts: tuple[int, int, int]) -> None:
    bench, seen = Bench(**SLOW), []

    def takes_long(context: AttemptContext) -> Any:
        for seconds in (1.999, 0.001, 5):
            bench.clock.advance(seconds)
            bench.breaker.note_slow(context.permit, wait=False)  # as the watchdog does
            seen.append(bench.breaker.window_counts())
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    bench.ask(takes_long)
    assert seen == [(0, 0, 0), (1, 0, 1), (1, 0, 1)]
    assert bench.breaker.window_counts() == counts
    assert bench.breaker.failures == counts[1]


def test_a_slow_attempt_that_hangs_until_its_timeout_counts_once() -> None:
    bench = Bench(**SLOW)

    def hangs(context: AttemptContext) -> Any:
        bench.clock.advance(2)
        permit = context.permit
        bench.breaker.note_slow(permit, wait=False)
        bench.breaker.vote(permit, True, wait=False)
        assert bench.breaker.window_counts() == (1, 1, 1)
        return "late"

    assert bench.ask(hangs) == ["late"]
    assert (bench.breaker.window_counts(), bench.breaker.failures) == ((1, 1, 1), 1)


def test_slow_attempts_open_it_while_they_are_under_way() -> None:
    bench, seen = Bench(**{**SLOW, "minimum": 1}), []

    def takes_long(context: AttemptContext) -> str:
        bench.clock.advance(2)
        seen.append(bench.breaker.note_slow(context.permit, wait=False))
        assert bench.breaker.state == "open"
        return "found"

    assert bench.ask(takes_long) == ["found"]
    assert (seen, bench.changes) == ([OPENED], [])  # who noted it tells it, and only that one
    assert bench.breaker.state == "open"  # it was admitted by the generation before, and has no vote any more


def test_an_attempt_whose_watchdog_is_late_notes_by_itself_that_it_is_slow() -> None:
    bench = Bench(**{**SLOW, "minimum": 1})
    bench.ask(lambda _context: bench.clock.advance(2))
    assert bench.changes == [OPENED]


def test_a_slow_attempt_that_was_given_up_is_not_counted() -> None:
    """Cancelled by the user at 1 s, it returns at 5 s."""
    bench = Bench(**SLOW)

    def cancelled(context: AttemptContext) -> None:
        bench.clock.advance(1)
        bench.breaker.vote(context.permit, None)
        bench.clock.advance(4)

    bench.ask(cancelled)
    assert bench.breaker.window_counts() == (0, 0, 0)


def test_a_slow_trial_is_only_a_trial() -> None:
    bench = Bench(**{**SLOW, "failures": 1, "minimum": 1}).opened()
    bench.clock.advance(8)

    def takes_long(context: AttemptContext) -> str:
        bench.clock.advance(2)
        assert bench.breaker.note_slow(context.permit, wait=False) is None
        assert bench.breaker.state == "half_open"
        return "found"

    assert bench.ask(takes_long) == ["found"]
    assert (bench.changes, bench.breaker.window_counts()) == ([TRYING, CLOSED], (0, 0, 0))


def test_a_failure_whose_slow_entry_has_left_the_window_is_counted() -> None:
    bench = Bench(**SLOW)

    def takes_long(context: AttemptContext) -> Any:
        bench.clock.advance(2)
        bench.breaker.note_slow(context.permit, wait=False)
        for _ in range(4):
            bench.breaker.vote(bench.breaker.admit()[0], False)
        assert bench.breaker.window_counts() == (4, 0, 0)
        raise DOWN

    bench.ask(takes_long)
    assert bench.breaker.window_counts() == (4, 1, 1)


def test_no_lock_is_held_while_scanner_code_runs() -> None:
    bench = Bench()
    answers: list[Any] = []

    def asks_elsewhere(_context: AttemptContext) -> str:
        other = threading.Thread(target=lambda: answers.append(bench.ask("other")), daemon=True)
        other.start()
        other.join(5)
        return "found"

    bench.ask(asks_elsewhere)
    assert answers == [["other"]]


def test_changes_are_announced_without_a_lock() -> None:
    breakers: list[CircuitBreaker] = []
    seen: list[str] = []

    def notify(_change: BreakerChanged) -> None:
        other = threading.Thread(target=lambda: seen.append(f"{breakers[0].state} {breakers[0].next_trial_in()}"))
        other.start()
        other.join(5)

    clock = FakeClock()
    breakers.append(CircuitBreaker("one", Breaker(failures=1, open_for=8), clock, Random(0)))

    def fails(context: AttemptContext) -> list[Any]:
        raise DOWN

    call: Callable[[AttemptContext], list[Any]] = breakers[0].around(fails, notify)
    with pytest.raises(OSError, match="down"):
        call(AttemptContext("one", clock=clock))
    assert seen == ["open 8.0"]


def test_an_attempt_that_finds_it_closed_after_all_is_not_a_trial() -> None:
    """Another thread's trial closes it between the look at the state and the lock."""

    class Meanwhile:
        def __enter__(self) -> None:
            bench.breaker._lock = lock  # type: ignore[assignment]
            assert bench.breaker.vote(trial, False) == CLOSED
            lock.acquire()

        def __exit__(self, *_error: object) -> None:
            lock.release()

    bench = Bench().opened()
    bench.clock.advance(8)
    trial, _change = bench.breaker.admit()
    lock = bench.breaker._lock
    bench.breaker._lock = Meanwhile()  # type: ignore[assignment]
    permit, change = bench.breaker.admit()
    assert (permit.expires, change) == (None, None)
    assert bench.breaker.vote(permit, True) == OPENED  # it is of the new generation


def test_a_probe_makes_the_next_attempt_a_trial_at_once() -> None:
    bench = Bench()
    bench.ask(DOWN)
    bench.breaker.allow_trial()
    assert not bench.breaker.is_open()
    assert bench.ask(DOWN) is DOWN
    assert bench.breaker.is_open()
    bench.breaker.allow_trial()
    assert bench.ask("found") == ["found"]
    assert bench.changes[-1] == CLOSED
    bench.breaker.allow_trial()
    assert bench.ask("found") == ["found"]
