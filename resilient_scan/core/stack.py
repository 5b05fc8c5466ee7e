"""One scanner and its live layers, in their fixed order.

Gate, cache and `timeout.total` come before a worker is taken: `execution` asks them. The rest is folded into one
function, `Stack.call`: retry around breaker around limit around `timeout.attempt` around the scanner.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from resilient_scan.clock import Clock, short
from resilient_scan.context import NEVER, Call, Home, ScanContext, Step, Traffic
from resilient_scan.core.pool import ThreadPool
from resilient_scan.engines.loop import Loops
from resilient_scan.errors import Rejected, ScanCancelled, ScanTimeout
from resilient_scan.events import (
    AttemptEnded,
    AttemptStarted,
    Bus,
    Event,
    ExecutionEnded,
    Registered,
    RetryBudgetExhausted,
)
from resilient_scan.layers.breaker import Guard
from resilient_scan.layers.breaker import Home as BreakerHome
from resilient_scan.layers.cache import ResultCache, Shelf
from resilient_scan.layers.call import attempt
from resilient_scan.layers.limit import Provider, Providers, permitted
from resilient_scan.layers.retry import Budget, retrying
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.layers.suspicion import Baseline
from resilient_scan.layers.timeout import HungThreads, limited
from resilient_scan.options import Breaker, Limit, Policy
from resilient_scan.results import ErrorInfo, ScanResult
from resilient_scan.scanning import ScannerSpec
from resilient_scan.stores.leases import Clerk

# The sources that one scanner tries in turn: each behind a breaker of its own, in a share of the time.
#
# The scanner's own breaker stands around all of them; it sees a failure only when the last source has failed.

T = TypeVar("T")


class Sources:
    """One scanner's sources; a breaker is made when its source is first asked.

    Args:
        scanner: whose they are.
        breaker: the breakers' numbers; `None`: there are none.
        clock, random: where time and chance come from.
        providers: a source that is one of them keeps that one's rate instead of the scanner's own.
    """

    def __init__(
        self, scanner: str, breaker: Breaker | None, clock: Clock, random: Random, providers: Providers
    ) -> None:
        self._scanner = scanner
        self._breaker = breaker
        self._clock = clock
        self._random = random
        self._providers = providers
        self._lock = threading.Lock()
        self._guards: dict[str, Guard] = {}

    def ask(
        self, source: str, call: Callable[[], T], seconds: float, context: ScanContext, limit: Limit | None = None, /
    ) -> T:
        """Return what `call` returns; see `ScanContext.guarded`."""
        guard = self._guard(source)
        if guard is None:
            return self._in_time(source, call, seconds, context, limit)
        permit, _ = guard.admit(min(context.ends, self._clock.monotonic() + seconds))
        failed: bool | None = None
        try:
            answer = self._in_time(source, call, seconds, context, limit)
            failed = False
            return answer
        except BaseException as error:
            failed = guard.verdict(error, context)
            raise
        finally:
            guard.vote(permit, failed)

    def _guard(self, source: str) -> Guard | None:
        if self._breaker is None:
            return None
        with self._lock:
            if source not in self._guards:
                name = f"{self._scanner}'s source {source}"
                self._guards[source] = Guard(name, self._breaker, self._clock, self._random)
            return self._guards[source]

    def _in_time(
        self, source: str, call: Callable[[], T], seconds: float, context: ScanContext, limit: Limit | None
    ) -> T:
        """Call with an earlier end than the scan's, and under the source's own rate, if it has one."""
        own = self._providers.of(source, limit)
        whole, provider, requests = context.ends, context.provider, context.requests
        end = self._clock.monotonic() + seconds
        context.ends = min(whole, end)
        if own is not None:
            context.provider, context.requests = own, 0
        try:
            return call()
        except ScanCancelled:
            if context.abandoned or not end <= self._clock.monotonic() < whole:
                raise
            raise ScanTimeout(f"{source}: no answer within {short(seconds)}s", by_clock=True) from None
        finally:
            context.ends, context.provider, context.requests = whole, provider, requests


SUCCESS, ERROR, TIMEOUT, REJECTED, CANCELLED = "success", "error", "timeout", "rejected", "cancelled"
REMEMBERED = 50


_NOTHING: list[Any] = []


class Flight(msgspec.Struct, frozen=True, gc=False):
    """What the flight recorder keeps of a scan.

    Attributes:
        run_id: of the run that it was part of.
        result: how it ended, without candidates and tool logs.
        cache: what the cache had for it: `hit`, `stale`, `miss`, `shared`, `bypass`, or `""` where it was not asked.
        steps: the attempts that failed, in order.
        found: how many candidates it had.
        probe: whether it tested a scanner that was out of service.
    """

    run_id: str
    result: ScanResult
    cache: str
    steps: tuple[Step, ...]
    found: int = 0
    probe: bool = False


class Stack:
    """The live layers of one scanner; built once, used by all runs, safe to use from any thread.

    Args:
        spec: the scanner.
        policy: the layers' options.
        settings: what the scanner finds in `context.settings`.
        orders: the gate's; without one for this scanner there is no need to ask it.
        turn: the gate; decides what a scan is whose turn has come.
        is_out: the gate; says whether a scan would end `disabled`, and changes nothing.
        service_state: the gate; says in one word whether it is in service.
        pool: where work runs.
        shared: values that several scanners need.
        bus: where events go.
        clock: where time comes from.
        random: where chance comes from.
        provider: whose limit it keeps.
        providers: all that there are.
        breaker_home: where the breaker's state is shared; `None`: it is in this object.
        shelf: where answers outlive this process; `None`: they do not.
        clerk: sees to it that one of several processes works on a key; `None`: nobody else would find the answer.
        traffic: stands between the scanner and the network.
    """

    # In one place in memory: a run goes through all stacks, and none of them is in the processor's cache.
    __slots__ = (
        "__weakref__",
        "_random",
        "_shelf",
        "budget",
        "bus",
        "cache",
        "call",
        "clerk",
        "clock",
        "divided",
        "doubt",
        "expected",
        "flights",
        "guard",
        "home",
        "hung",
        "is_out",
        "lock",
        "loops",
        "name",
        "orders",
        "pipeline",
        "policy",
        "pool",
        "provider",
        "retired",
        "service_state",
        "spec",
        "stored",
        "tell_execution",
        "total",
        "turn",
    )

    def __init__(
        self,
        spec: ScannerSpec,
        policy: Policy,
        *,
        settings: Mapping[str, Any],
        orders: Mapping[str, object],
        turn: Callable[[], tuple[Any, str]],
        is_out: Callable[[], bool],
        service_state: Callable[[], str],
        pool: ThreadPool,
        shared: SharedValues,
        bus: Bus,
        clock: Clock,
        random: Random,
        providers: Providers,
        provider: Provider | None = None,
        breaker_home: BreakerHome | None = None,
        shelf: Shelf | None = None,
        clerk: Clerk | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.pipeline = spec.pipeline
        self.policy = policy
        self.orders = orders
        self.turn = turn
        self.is_out = is_out
        self.service_state = service_state
        self.pool = pool
        self.bus = bus
        self.clock = clock
        self.lock = threading.Lock()  # for the small facts of executions; never held while foreign code runs
        self.provider = provider
        self.total = float(policy.timeout.total)
        self.divided = policy.timeout.attempt is not None  # whether attempts have a time of their own
        self.hung = HungThreads(policy.timeout, clock)
        self.guard = Guard(spec.name, policy.breaker, clock, random, breaker_home) if policy.breaker else None
        self.clerk = clerk
        self.stored = breaker_home is not None  # whether anything of it is in a store
        self._shelf = shelf
        landed = None if clerk is None else self._landed
        self.cache: ResultCache[Any] | None = (
            ResultCache(policy.cache, clock, random, shelf, landed, self.lock) if policy.cache else None
        )
        self.budget = Budget(policy.retry, clock) if policy.retry and policy.retry.budget else None
        own = clock if traffic is None else traffic.clock(spec.name, clock)
        sources = Sources(spec.name, policy.breaker, clock, random, providers)
        self.home = Home(spec.name, settings, own, shared, traffic, sources)
        self.loops = Loops()
        self._random = random
        self.attune()
        self.doubt = Baseline(spec.empty_ok).doubt
        self.expected = NEVER  # seconds that an execution takes, from those seen; unknown: starts first
        self.retired = False  # its runner is closed
        self.flights: deque[Flight] = deque(maxlen=REMEMBERED)

    def address(self, key: bytes) -> str:
        """Return by what name all processes know the work on a key, where there is a shelf."""
        return "" if self._shelf is None else f"flight/{self._shelf.address(key)}"

    def _landed(self, key: bytes) -> None:
        if self.clerk is not None:
            self.clerk.release(self.address(key))

    def attune(self) -> None:
        """See who listens: what nobody wants to know is not told."""
        self.call = self._fold(self._random)
        self.tell_execution = self.bus.teller(ExecutionEnded)

    def _fold(self, random: Random) -> Call:
        """Put the layers that run on a worker around the scanner, innermost first."""
        policy = self.policy
        call = attempt(self.spec, self.loops)
        if policy.timeout.attempt is not None:
            call = limited(policy.timeout.attempt, call, self.clock)
        tell_attempt = self.bus.teller(AttemptEnded)
        if tell_attempt is not None:
            call = self._reporting(call, tell_attempt)
        if self.bus.wants(AttemptStarted):
            call = self._announcing(call)
        if self.provider is not None:
            call = permitted(self.provider, call)
        if self.guard is not None:
            call = self.guard.around(call, self.bus.send)
        if policy.retry is not None:
            call = retrying(
                policy.retry,
                call,
                random=random,
                may_retry=self.may_retry,
                budget=self.budget,
                on_exhausted=self._tell_exhausted,
            )
        return call

    def _tell_exhausted(self, context: ScanContext) -> None:
        if self.bus.wants(RetryBudgetExhausted):
            self.bus.send(RetryBudgetExhausted(self.name, context.attempt, context.run_id))

    def may_retry(self) -> bool:
        """Say whether the breaker lets another attempt through, as far as one can tell beforehand."""
        return self.guard is None or not self.guard.is_open()

    def _announcing(self, call: Call) -> Call:
        def announced(context: ScanContext) -> list[Any]:
            self.bus.send(AttemptStarted(self.name, context.attempt + 1, context.run_id, self.clock.time()))
            return call(context)

        return announced

    def _reporting(self, call: Call, tell: Callable[[Event], None]) -> Call:
        name, now = self.name, self.clock.monotonic

        def reported(context: ScanContext) -> list[Any]:
            outcome, failure = SUCCESS, None
            try:
                return call(context)
            except BaseException as error:
                outcome, failure = kind_of(error, context), ErrorInfo.of(error)
                raise
            finally:
                began = context.close_attempt(self.lock)
                if began is not None:
                    tell(AttemptEnded(name, context.attempt, outcome, now() - began, failure, context.run_id))

        return reported

    def tell(self, events: Sequence[Event], run_id: str) -> None:
        """Send what a watchdog has found out, once its vote is in the store; on a thread that may wait for that."""
        self.settle(run_id)
        self.bus.send_all(events)

    def settle(self, run_id: str) -> None:
        """Bring the breaker's votes that still wait to the store, if it has one."""
        change = None if self.guard is None else self.guard.settle()
        if change is not None:
            self.bus.send(change.during(run_id))

    def took(self, seconds: float) -> None:
        """Remember how long an execution took, newer ones counting more."""
        self.expected = seconds if self.expected == NEVER else 0.5 * (self.expected + seconds)

    def record(self, run_id: str, result: ScanResult, cache: str, steps: tuple[Step, ...], probe: bool = False) -> None:
        """Keep a scan in the flight recorder, without what may be large."""
        found = len(result.candidates)
        # without lists of its own a record is nothing that the garbage collector has to look at, 50 times a scanner
        slim = msgspec.structs.replace(result, candidates=_NOTHING, tool_logs=_NOTHING)
        self.flights.append(Flight(run_id, slim, cache, steps, found, probe))

    def registered(self) -> Registered:
        """Describe this scanner to listeners."""
        this = weakref.ref(self)  # a listener must not keep a runner alive that is gone

        def breaker_state() -> str | None:
            stack = this()
            return stack.guard.state if stack is not None and stack.guard is not None and not stack.retired else None

        def abandoned_threads() -> int:
            stack = this()
            return 0 if stack is None else stack.hung.count

        def state() -> str | None:
            stack = this()
            return None if stack is None or stack.retired else stack.service_state()

        breaker = None if self.guard is None else breaker_state
        return Registered(self.name, self.pipeline, breaker, abandoned_threads, state)


def kind_of(failure: BaseException, context: ScanContext) -> str:
    """Say in one word how an execution or attempt ended that raised this."""
    if isinstance(failure, ScanCancelled):
        return TIMEOUT if context.timed_out else CANCELLED if context.cancelled else ERROR
    if isinstance(failure, ScanTimeout) and failure.by_clock:
        return TIMEOUT
    return REJECTED if isinstance(failure, Rejected) and context.attempt == 0 else ERROR
