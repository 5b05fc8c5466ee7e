"""One scanner and its live layers, in their fixed order.

Gate, cache and `timeout.total` come before a worker is taken: `scan` and `execution` call them. The rest is folded into
one function, `Stack.call`: retry around breaker around limit around `timeout.attempt` around the engine's call.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from resilient_scan._dispatch import Bus
from resilient_scan._once import IMPORTING
from resilient_scan._suspend import SharedEvent
from resilient_scan._text import without_secrets
from resilient_scan._trace import Home
from resilient_scan.clock import Clock, SystemClock, Wake
from resilient_scan.context import NEVER, ScannerContext
from resilient_scan.core.calls import BlockingCalls
from resilient_scan.core.config import Config
from resilient_scan.core.first import FirstAttempt
from resilient_scan.core.flights import Flight, Recorder, past_of, recorder, unpacked
from resilient_scan.core.outcome import REJECTED, kind_of
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.registration import registration
from resilient_scan.core.shared import Shared, abandoned_in
from resilient_scan.core.sources import Sources
from resilient_scan.engines import Engine
from resilient_scan.engines.loop import Coroutines
from resilient_scan.engines.thread import Once
from resilient_scan.errors import StoreError
from resilient_scan.events import (
    CANCELLED,
    SUCCESS,
    AttemptEnded,
    AttemptStarted,
    Event,
    ExecutionEnded,
    Registered,
    RetryBudgetExhausted,
)
from resilient_scan.layers.attempt import AttemptContext, Call, party_of
from resilient_scan.layers.breaker import BREAKER_PREFIX, BreakerStore, CircuitBreaker
from resilient_scan.layers.cache import ResultCache
from resilient_scan.layers.limit import Provider, permitted
from resilient_scan.layers.local import LocalFaults
from resilient_scan.layers.outcomes import budget_left, is_flapping
from resilient_scan.layers.retry import RetryBudget, retrying
from resilient_scan.layers.suspicion import Baseline, doubting, expecting
from resilient_scan.layers.timeout import Abandoned, HungThreads, limited
from resilient_scan.options import Policy
from resilient_scan.quarantine import Gate
from resilient_scan.quarantine.records import ScannerRecord
from resilient_scan.scanning import ScannerSpec
from resilient_scan.snapshot import stable_key, stable_settings
from resilient_scan.stores.answers import AnswerStore
from resilient_scan.stores.history import Learned, Past
from resilient_scan.stores.leases import LeaseKeeper
from resilient_scan.stores.notes import Notes
from resilient_scan.stores.wrappers import OffLoop

if TYPE_CHECKING:
    from resilient_scan.core.lane import Lane

_folding = threading.Lock()  # a listener may be added while a scanner's provider is learned; no foreign code runs


def _renew_folding() -> None:
    global _folding  # noqa: PLW0603 - a child must not find it locked for ever
    _folding = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_folding)
_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class SharedLoopClock(SystemClock):
    """The machine's clocks, with flags that can be waited for on a loop that others share."""

    event: Callable[[], Wake] = staticmethod(SharedEvent)


_LOOP_CLOCK = SharedLoopClock()


class Stack:
    """The live layers of one scanner; built once, used by all runs, safe to use from any thread.

    Args:
        spec: the scanner.
        config: the runner's options.
        shared: what it has in common with the runner's other scanners.
    """

    # In one place in memory: a run goes through all stacks, and none of them is in the processor's cache.
    __slots__ = (
        "__weakref__",
        "_answers",
        "_config",
        "_kept",
        "_lane",
        "_loops",
        "answered",
        "baseline",
        "breaker",
        "budget",
        "bus",
        "cache",
        "call",
        "calls",
        "clock",
        "doubt",
        "engine",
        "expected",
        "faults",
        "flights",
        "gate",
        "gated",
        "has_alarms",
        "hung",
        "hung_copies",
        "in_batches",
        "in_window",
        "lane",
        "lane_call",
        "leases",
        "lock",
        "name",
        "notes",
        "outcomes",
        "own",
        "pipeline",
        "place",
        "policy",
        "pool",
        "provider",
        "retired",
        "send_execution",
        "sources",
        "spec",
        "stored",
        "total",
    )
    spec: ScannerSpec
    name: str
    pipeline: str
    policy: Policy
    gate: Gate
    gated: dict[str, ScannerRecord]
    pool: ThreadPool
    bus: Bus
    clock: Clock
    lock: threading.Lock
    lane: Lane | None
    provider: Provider | None
    in_window: bool
    in_batches: bool
    doubt: Callable[[int, int], str | None]
    call: Call
    lane_call: Call
    send_execution: Callable[[Event], object] | None

    def __init__(self, spec: ScannerSpec, config: Config, shared: Shared) -> None:
        name, clock, random = spec.name, config.clock, config.random
        in_process = shared.children is not None and (spec.isolation == "process" or config.engine == "dask")
        on_lane = config.engine == "dask" or (spec.is_async and not in_process)
        self.lane = self._lane = shared.lane if on_lane else None
        if self.lane is not None:
            clock = _LOOP_CLOCK
            shared = msgspec.structs.replace(shared, store=None if shared.store is None else OffLoop(shared.store))
        self.spec, self.name, self.pipeline = spec, name, spec.pipeline
        self._config = config
        self.policy = policy = config.policies[name]
        self.gate, self.gated = shared.gate, shared.gate.gated
        self.pool, self.bus, self.clock = shared.pool, shared.bus, clock
        self.lock: threading.Lock = (
            threading.Lock()
        )  # for the small facts of executions; never held while foreign code runs
        self.total: float = float(policy.timeout.total)
        slow_after = None if policy.breaker is None else policy.breaker.slow_after
        # Whether anything about an attempt is due before the scan's deadline.
        self.has_alarms: bool = in_process or policy.timeout.attempt is not None or slow_after is not None
        self.stored: bool = shared.store is not None  # whether anything of it is in a store
        self._answers = _answer_store(spec, config, shared)
        self.leases: LeaseKeeper | None = None if self._answers is None else shared.leases
        self.provider = None if policy.limit is None else shared.providers[policy.limit.provider]
        self._place()
        store = None
        if shared.store is not None:
            store = BreakerStore(shared.store, BREAKER_PREFIX + name, shared.store_failed, shared.awake)
        self.breaker: CircuitBreaker | None = (
            CircuitBreaker(name, policy.breaker, clock, random, store) if policy.breaker else None
        )
        on_landed = None if self.leases is None else self._landed
        self.cache: ResultCache[Any] | None = (
            ResultCache(policy.cache, clock, random, self._answers, on_landed, self.lock) if policy.cache else None
        )
        self.budget: RetryBudget | None = (
            RetryBudget(policy.retry, clock) if policy.retry and policy.retry.budget else None
        )
        self.faults: LocalFaults = shared.faults
        self.answered: array[float] = shared.faults.answered  # when it last succeeded: the number at its `place`
        self.place: int = shared.faults.places[name]
        self.hung: HungThreads = HungThreads(policy.timeout, clock, self.lock)
        self.hung_copies: int = 0  # of its hung threads, those that copy a cached answer
        self.baseline: Baseline = Baseline(spec.empty_ok)
        self.doubt = _doubted_before if self._votes_on_doubts else self.baseline.doubt
        self.calls: BlockingCalls = BlockingCalls(
            name, shared.call_pool, self.hung, shared.send, frees_sockets=spec.free_sockets
        )
        self._loops = shared.loops
        self.engine: Engine | None = None  # what makes the attempts elsewhere
        self.sources: Sources = Sources(name, policy.breaker, clock, random, shared.providers, self)
        self.notes: Notes = Notes(self._answers, clock)
        self.own: ScannerContext = ScannerContext(
            name,
            config.settings.get(name, _NO_SETTINGS),
            clock if config.traffic is None else config.traffic.clock(name, clock),
            shared.values,
            config.traffic,
            self.sources,
            Home.of(getattr(spec.origin, "__module__", None)),
            self.notes,
            self.faults,
        )
        if in_process:
            self.engine = _process_engine(spec, self.own, shared)
        self.expected: float = NEVER  # seconds that an execution takes, from those seen; unknown: starts first
        self.outcomes: int = 0  # of its last executions, see `layers.outcomes`; two that end at once may count as one
        self.retired: bool = False  # its runner is closed
        self.flights: Recorder = recorder()
        self._kept: bytes | None = None  # the last of them that the run history has
        self.update_listeners()

    @property
    def party(self) -> str:
        """Who it testifies for when others fail: its provider, or itself."""
        return party_of(self.name, self.provider)

    @property
    def shares_answers(self) -> bool:
        """Whether its answers are in a store."""
        return self.cache is not None and self._answers is not None

    def address(self, key: bytes) -> str:
        """Return the name by which all processes know the work on a key; empty where answers are not shared."""
        return "" if self._answers is None else f"flight/{self._answers.address(key)}"

    def _landed(self, key: bytes) -> None:
        if self.leases is not None:
            self.leases.release(self.address(key))

    def update_listeners(self) -> None:
        """Fold the call for the listeners there are: an event that no listener wants is never made."""
        with _folding:
            self._refold()

    def _refold(self) -> None:
        if self.lane is None:
            self.call = self._fold(self._loops)
        else:
            self.lane_call = self._fold(self.lane.coroutines)
        self.send_execution = self.bus.sender(ExecutionEnded, self.name)

    def learn_provider(self, provider: Provider | None) -> None:
        """Take over the one host that the scanner calls as its provider, or let go of it: there are several.

        Its options name no provider. Executions under way go on as they began.
        """
        if self.policy.limit is not None:
            return
        with _folding:
            self.provider = provider
            self._place()
            self._refold()

    @property
    def left_lane(self) -> bool:
        """Whether it has blocked the loop that it shared with others."""
        return self._lane is not None and self.lane is None

    def leave_lane(self) -> None:
        """Run on workers from now on: it blocks the loop that it shares with others."""
        with _folding:
            self.call = self._fold(self._loops)  # before its next execution finds no lane
            self.lane = None
            self._place()

    def _place(self) -> None:
        """Note where its executions wait, and whether they can be handed to the pool or the lane in groups.

        They wait for a worker, unless a provider or the lane's loop has its own queue. A store may make the begin of
        the next one wait, and the group with it.
        """
        limited = self.provider is not None
        self.in_window = not (limited or self.lane is not None) or not self._config.concurrent
        self.in_batches = not (limited or self.stored)

    def _fold(self, loops: Coroutines) -> Call:
        """Return what makes an execution's attempts; `loops` run the coroutines of attempts that are made here."""
        if self.engine is not None:
            return self.layers_around(self.engine.attempt(self.spec), self.provider)
        once = Once(self.spec, loops, self.calls)
        if not self._is_plain:
            return self.layers_around(once.call, self.provider)
        send = self.bus.sender(AttemptEnded, self.name)
        return FirstAttempt(self, once, None if send is None else partial(self._report_attempt, send)).call

    def layers_around(self, call: Call, provider: Provider | None) -> Call:
        """Put the layers around an engine's call, innermost first.

        The provider is that of the executions they are for: one may be learned while these are under way.
        """
        policy, traffic = self.policy, self._config.traffic
        call = doubting(self.baseline.doubt if self._votes_on_doubts else None, expecting(self.spec.expect, call))
        if traffic is not None:
            call = traffic.guarded(call)
        if policy.timeout.attempt is not None:
            call = limited(policy.timeout.attempt, call, self.clock)
        send_attempt = self.bus.sender(AttemptEnded, self.name)
        if send_attempt is not None:
            call = self._reporting(call, send_attempt)
        if self.bus.wants(AttemptStarted):
            call = self._announcing(call)
        call = self._admitted(call, provider)
        if policy.retry is not None:
            call = retrying(
                policy.retry,
                call,
                random=self._config.random,
                may_retry=self.may_retry,
                budget=self.budget,
                on_exhausted=self._report_exhausted,
            )
        return call

    @property
    def _is_plain(self) -> bool:
        """Whether no layer has anything to do in a first attempt that succeeds while the breaker is closed."""
        policy = self.policy
        return (
            policy.breaker is not None
            and policy.breaker.slow_after is None
            and not policy.breaker.suspicious
            and policy.timeout.attempt is None
            and self.provider is None
            and self.spec.expect is None
            and self._config.traffic is None
            and not self.bus.wants(AttemptStarted)
        )

    @property
    def _votes_on_doubts(self) -> bool:
        """Whether a suspicious answer is a failure to the breaker, so that it has to be judged before the vote."""
        return self.policy.breaker is not None and self.policy.breaker.suspicious

    def _admitted(self, call: Call, provider: Provider | None) -> Call:
        """Put the breaker, and the provider's limit and breaker, around a call."""
        breaker, send = self.breaker, self.bus.send
        if breaker is not None:  # inside: to wait for a permit makes no source slow
            call = breaker.noting_slow(call, send)
        if provider is not None:
            call = self._at_provider(provider, call)
        return call if breaker is None else breaker.around(call, send)

    def _at_provider(self, provider: Provider, call: Call) -> Call:
        call = permitted(provider, call)
        return call if provider.breaker is None else provider.breaker.attempts_of(self.name, call)

    def _report_exhausted(self, context: AttemptContext) -> None:
        if self.bus.wants(RetryBudgetExhausted):
            self.bus.send(RetryBudgetExhausted(self.name, context.attempt, context.run_id))

    def may_retry(self, context: AttemptContext) -> bool:
        """Say whether the breakers let another attempt through in time, as far as one can tell beforehand."""
        if self.breaker is not None and self.breaker.is_open():
            return False
        provider = None if self.provider is None else self.provider.breaker
        return provider is None or provider.admits_by(min(context.deadline, context.cut_at))

    def _announcing(self, call: Call) -> Call:
        def announced(context: AttemptContext) -> list[Any]:
            self.bus.send(AttemptStarted(self.name, context.attempt + 1, context.run_id, self.clock.time()))
            return call(context)

        return announced

    def _reporting(self, call: Call, send: Callable[[Event], object]) -> Call:
        def reported(context: AttemptContext) -> list[Any]:
            try:
                found = call(context)
            except BaseException as error:
                self._report_attempt(send, context, error)
                raise
            self._report_attempt(send, context, None)
            return found

        return reported

    def _report_attempt(
        self, send: Callable[[Event], object], context: AttemptContext, error: BaseException | None
    ) -> None:
        """Report the end of an attempt, unless the watchdog has done so."""
        outcome, failure = SUCCESS, None
        if error is not None:
            outcome, failure = kind_of(error, context), context.describe(error)
            if outcome == REJECTED:
                outcome = CANCELLED
        began = context.close_attempt(self.lock)
        if began is not None:
            took, at = self.clock.monotonic() - began, self.clock.time()
            send(AttemptEnded(self.name, context.attempt, outcome, took, failure, context.run_id, at))

    def send_stored(self, events: Sequence[Event], run_id: str) -> None:
        """Send the events of a watchdog once its vote is in the store; on a thread that may wait for the store.

        The watchdog itself never waits for a store. Were the events sent first, a listener could hear that a breaker
        opened, ask the store, and find it closed.
        """
        self.flush_votes(run_id)
        self.bus.send_all(events)

    def flush_votes(self, run_id: str) -> None:
        """Bring the breakers' votes that still wait to the store, if they have one."""
        if self.provider is not None and self.provider.breaker is not None:
            self.provider.breaker.store_votes(run_id)
        change = None if self.breaker is None else self.breaker.flush()
        if change is not None:
            self.bus.send(change.during(run_id))

    def end_open_time(self) -> None:
        """Let the next attempt be a trial of the breaker, if it is open; likewise for each source and its provider."""
        self.sources.end_open_time()
        if self.provider is not None and self.provider.breaker is not None:
            self.provider.breaker.try_soon()
        change = None if self.breaker is None else self.breaker.end_open_time()
        if change is not None:
            self.bus.send(change)

    def reset(self) -> StoreError | None:
        """Close the breakers and forget the failures; return why the store could not be changed."""
        self.sources.reset()
        if self.cache is not None:
            self.cache.forget_failures()
        change, error = (None, None) if self.breaker is None else self.breaker.reset()
        if change is not None:
            self.bus.send(change)
        return error

    def adopt_epoch(self, epoch: bytes) -> None:
        """Take over the epoch of the stored answers; a new one means that they were forgotten, by any process."""
        if self._answers is not None and self._answers.adopt_epoch(epoch):
            self.baseline.forget()
            if self.cache is not None:
                self.cache.forget()

    def learned(self) -> Learned | None:
        """Return what its answers were like, for the run history; `None`: nobody could tell whose they are."""
        return None if self._answers is None else self.baseline.learned(self._answers.mark)

    def recall(self, learned: Learned) -> None:
        """Go on with what another process learned about its answers, if it had the same code, settings and epoch."""
        if self._answers is not None and self._answers.mark == learned.mark:
            self.baseline.recall(learned)

    def flapping(self) -> bool:
        """Return whether its executions succeed and fail in turn."""
        return is_flapping(self.outcomes)

    def slo_budget(self) -> float | None:
        """Return the share of its error budget that is left, which may be negative; `None`: it has no objective."""
        return None if self.spec.slo is None else budget_left(self.outcomes, self.spec.slo)

    def unkept(self) -> list[Past]:
        """Return the scans since the last call, newest first, for the run history; on one thread only."""
        flights, last = self.flights.newest_first(), self._kept
        new = takewhile(lambda flight: flight is not last, flights)
        self._kept = flights[0] if flights else None
        return [past_of(flight, self.attempts) for flight in unpacked(new, self.name, self.pipeline)]

    def recorded(self) -> Iterator[Flight]:
        """Return its last scans, newest first."""
        return unpacked(self.flights.newest_first(), self.name, self.pipeline)

    @property
    def attempts(self) -> int:
        """How many attempts an execution may make."""
        return 1 if self.policy.retry is None else self.policy.retry.attempts

    def registered(self) -> Registered:
        """Describe this scanner to listeners."""
        return registration(self)

    def abandoned(self) -> list[Abandoned]:
        """List this scanner's threads that did not stop in time and still run, oldest first."""
        found = abandoned_in(self._lane, self.pool, self.calls.pool)
        return [thread for thread in found if thread.name == self.name]


def _doubted_before(_found: int, _dropped: int) -> None:
    """Learn nothing: the answer was judged when its attempt ended."""


def _process_engine(spec: ScannerSpec, own: ScannerContext, shared: Shared) -> Engine:
    with IMPORTING:
        from resilient_scan.engines.process.engine import ProcessEngine  # noqa: PLC0415 - few fleets need it

    assert shared.children is not None  # noqa: S101 - else nobody asks for this
    return ProcessEngine(spec, own, shared.children)


def _answer_store(spec: ScannerSpec, config: Config, shared: Shared) -> AnswerStore | None:
    """Return where a scanner's answers are kept: by its code, and by its settings without what is secret in them.

    Fleets that share a store may have scanners of one name that do different things, and so have two releases of one
    fleet. Neither may be given the other's answers, nor wait for them.
    """
    settings = stable_key(without_secrets(stable_settings(config.settings.get(spec.name, _NO_SETTINGS))))
    if shared.store is None or settings is None:
        return None
    identity = ascii((spec.pipeline, spec.code.module, spec.code.qualname, spec.code.version)).encode() + settings
    return AnswerStore(shared.store, spec.name, spec.candidate, identity, shared.store_failed, config.clock)
