"""A first attempt in one function against the layers that it stands for: whatever scanners do, both say the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import (
    Breaker,
    Cache,
    PermanentError,
    Policy,
    Rejected,
    Retry,
    RetryAfter,
    ScanContext,
    ScanRunner,
    Timeout,
    scanner,
)
from resilient_scan.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    Event,
    ExecutionEnded,
    RetryBudgetExhausted,
    ScanEnded,
    SuspiciousResult,
)
from resilient_scan.testing import FakeClock, Recorder
from tests.support.examples import examples

SEEN = (AttemptEnded, ExecutionEnded, BreakerChanged, ScanEnded, RetryBudgetExhausted, SuspiciousResult)
Act = Callable[[ScanContext, FakeClock], Any]


class Selected(Recorder):
    """Keeps what ends; so nobody wants to hear of an attempt's beginning."""

    events = SEEN


class Beginnings(Recorder):
    """Wants to hear of an attempt's beginning, which only the layers report."""

    events = (AttemptStarted,)


def _raises(make: Callable[[], BaseException]) -> Act:
    def act(_context: ScanContext, _clock: FakeClock) -> Any:
        raise make()

    return act


def _yields(context: ScanContext, clock: FakeClock) -> Any:
    yield {"ticker": "A"}
    clock.advance(1)
    context.log("tool", page=2)
    yield {"no": "ticker"}


def _half(_context: ScanContext, _clock: FakeClock) -> Any:
    yield {"ticker": "A"}
    raise ValueError("broke off")


def _slow(_context: ScanContext, clock: FakeClock) -> Any:
    clock.advance(2.5)
    return [{"ticker": "S"}]


def _late(_context: ScanContext, clock: FakeClock) -> Any:
    clock.advance(1.5)
    raise KeyError("late")


def _doubts(context: ScanContext, _clock: FakeClock) -> Any:
    context.doubt("half of the page", kind="incomplete")
    return [{"ticker": "D"}]


ACTS: dict[str, Act] = {
    "nothing": lambda _context, _clock: [],
    "answers": lambda _context, _clock: [{"ticker": "A"}],
    "yields": _yields,
    "half": _half,
    "slow": _slow,
    "doubts": _doubts,
    "no list": lambda _context, _clock: "text",
    "late": _late,
    "raises": _raises(lambda: ValueError("down")),
    "group": _raises(lambda: ExceptionGroup("both", [ValueError("one"), KeyError("two")])),
    "permanent": _raises(lambda: PermanentError("gone")),
    "rejected": _raises(lambda: Rejected("not now")),
    "retry after": _raises(lambda: RetryAfter("later", seconds=3)),
    "exit": _raises(lambda: SystemExit(3)),
}
RETRIES = (
    None,
    Retry(attempts=1),
    Retry(attempts=3, base=0.5),
    Retry(attempts=3, on=(KeyError,)),
    Retry(attempts=3, budget=0.5, budget_min=1),
)
BREAKERS = (
    Breaker(failures=2, open_for=10),
    Breaker(failures=3, open_for=10, on=(KeyError, RetryAfter), within=20),
    Breaker(failures=50, failure_rate=0.5, window=4, minimum=2, open_for=10),
)


class Twin:
    """A runner of one scanner that does what it is told."""

    def __init__(self, policy: Policy, *, layers: bool) -> None:
        self.clock, self.recorder = FakeClock(auto=True), Selected()
        self.todo: list[str] = []
        listeners = (self.recorder, Beginnings()) if layers else (self.recorder,)

        @scanner(name="one", pipeline="test", candidate=dict)
        def one(_state: dict[str, Any], context: ScanContext) -> Any:
            return ACTS[self.todo.pop(0) if self.todo else "answers"](context, self.clock)

        self.runner = ScanRunner([one], policy=policy, listeners=listeners, clock=self.clock, random=Random(5))
        self.stack = self.runner._runs.fleet.stacks["one"]

    def run(self, number: int, acts: list[str]) -> Any:
        """Run once, and return all that can be seen of it."""
        self.todo, self.recorder.events_seen = list(acts), []
        result = self.runner.run({"run": number}).results["one"]
        breaker = self.stack.breaker
        assert breaker is not None
        kept = (breaker.state, breaker.failures, breaker.next_trial_in(), breaker.window_counts(), len(self.todo))
        steps = [flight.steps for flight in self.stack.recorded()]
        return _shown(result), [_shown(event) for event in self.recorder.events_seen], kept, list(map(_shown, steps))


def _shown(thing: Any) -> Any:
    """Return it in plain values, without the run's id and the lines of the code that the failure came through."""
    if isinstance(thing, Event | msgspec.Struct):
        fields = msgspec.structs.asdict(thing)
        return type(thing).__name__, {
            name: _shown(value) for name, value in fields.items() if name not in {"run_id", "traceback"}
        }
    return [_shown(one) for one in thing] if isinstance(thing, list | tuple) else thing


@settings(settings.get_profile("machines"), max_examples=examples(150))
@given(
    retry=st.sampled_from(RETRIES),
    breaker=st.sampled_from(BREAKERS),
    cache=st.sampled_from((None, Cache(ttl=5, stale_if_error=20, ttl_error=1))),
    runs=st.lists(
        st.tuples(st.lists(st.sampled_from(sorted(ACTS)), max_size=3), st.sampled_from((0.0, 1.0, 7.0, 30.0))),
        min_size=1,
        max_size=8,
    ),
)
def test_both_say_the_same(
    retry: Retry | None, breaker: Breaker, cache: Cache | None, runs: list[tuple[list[str], float]]
) -> None:
    policy = Policy(retry=retry, breaker=breaker, cache=cache, timeout=Timeout(total=60))
    twins = [Twin(policy, layers=layers) for layers in (False, True)]
    try:
        assert [twin.stack._is_plain for twin in twins] == [True, False]
        for number, (acts, pause) in enumerate(runs):
            one, other = [twin.run(number, acts) for twin in twins]
            assert one == other
            for twin in twins:
                twin.clock.advance(pause)
    finally:
        for twin in twins:
            twin.runner.close()


class Down(Exception):
    """One that can be referred to weakly."""


def test_a_failure_is_freed_without_a_garbage_collection() -> None:
    """The exception's traceback has the frames, and these have the context: one of them must let go of it."""
    failures: list[weakref.ref[BaseException]] = []

    @scanner(pipeline="test")
    def fails(_state: dict[str, Any]) -> Any:
        failures.append(weakref.ref(failure := Down()))
        try:
            raise failure
        finally:
            del failure

    policy = Policy(cache=None, retry=Retry(attempts=2, base=0.0), breaker=Breaker())
    with ScanRunner([fails], policy=policy, listeners=()) as runner:
        assert runner._runs.fleet.stacks["fails"]._is_plain
        gc.collect()
        gc.disable()
        try:
            runner.run()
            runner._runs.fleet.pool.submit(lambda: None).result()  # the worker is through with the scan
            assert [failure() for failure in failures] == [None, None]
        finally:
            gc.enable()
