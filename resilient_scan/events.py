"""What happened, as frozen records for listeners.

All events of a run arrive before `run` returns, except those of threads that it abandoned, and those that a slow
listener has not got at the run's deadline. None is sent while a lock is held, so a listener may call the runner, and
none on the watchdog's thread, where a slow listener would delay every deadline. Durations are in seconds, and `at` is
in epoch seconds.

Listeners are called on the thread where something happens. While a run has a deadline, a listener is called on a thread
of its own instead, in the same order: a run must not wait for one that hangs. A listener with a true attribute `prompt`
is always called at once, so it has to be quick; those of this package are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import call, length_hint
from typing import Any

import msgspec

from resilient_scan._dispatch import Dispatcher
from resilient_scan._log import log as _log
from resilient_scan.options import DOUBTS
from resilient_scan.results import ErrorInfo, ScanResult, Status

SUCCESS, ERROR, TIMEOUT, CANCELLED = "success", "error", "timeout", "cancelled"  # outcomes of attempts and executions
LOCAL = "local"  # outcome of an execution that this machine failed

traces: dict[str, str] = {}
"""The trace ids of the traced runs under way, in hex, by run id. A listener that traces writes them and one that counts
may read them, so that neither needs to know the other."""


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class Registered(msgspec.Struct, frozen=True):
    """One scanner as listeners see it, with functions that read its live state.

    Attributes:
        name, pipeline: of the scanner.
        breaker_state: returns `closed`, `open` or `half_open`, or None once its runner is closed or gone; is itself
            None if the scanner has no breaker.
        abandoned_threads: returns how many of its threads hang.
        state: returns `enabled`, `quarantined`, `probing` or `disabled`, or None once its runner is closed or gone.
        total: seconds that an execution may take (`timeout.total`); None: there is no such bound.
        provider: returns the provider that its options name, or the one host that it has called; else an empty text.
        flapping: returns whether its executions succeed and fail in turn.
        slo_budget: returns the share of its error budget that is left, or None once its runner is closed or gone; is
            itself None if the scanner has no objective (`slo`).
    """

    name: str
    pipeline: str
    breaker_state: Callable[[], str | None] | None
    abandoned_threads: Callable[[], int]
    state: Callable[[], str | None] = lambda: "enabled"
    total: float | None = None
    provider: Callable[[], str] = str
    flapping: Callable[[], bool] = bool
    slo_budget: Callable[[], float | None] | None = None


class Load(msgspec.Struct, frozen=True):
    """How busy a runner's pool of threads is, and its shared event loop.

    Attributes:
        queued: executions that wait for a worker, or for their turn on the loop.
        busy, idle: executions under way, on workers and on the loop, and workers that wait for one.
        abandoned: threads and coroutines that did not stop in time and still run.
    """

    queued: int = 0
    busy: int = 0
    idle: int = 0
    abandoned: int = 0


class ScannersRegistered(Event, frozen=True, gc=False):
    """A runner was built; sent once to each listener, before any other event.

    `load` returns how busy its threads are, or None once the last of them has ended. `providers` returns the state of
    each provider's breaker by name, `closed`, `open`, `half_open` or `held`; None once the runner is closed or gone.
    """

    scanners: tuple[Registered, ...]
    load: Callable[[], Load | None] = lambda: None
    providers: Callable[[], dict[str, str] | None] = lambda: None


class RunStarted(Event, frozen=True, gc=False):
    """A run began, with this many scanners; in a `demo`, bundled data answer, not the sources."""

    run_id: str
    scanners: int
    concurrent: bool
    max_workers: int
    at: float
    demo: bool = False


class AttemptStarted(Event, frozen=True, gc=False):
    """A scanner's function is about to be called, in these context variables (and on this thread: see `prompt`)."""

    scanner: str
    attempt: int
    run_id: str
    at: float


class AttemptEnded(Event, frozen=True, gc=False):
    """One call of a scanner's function ended: `outcome` is `success`, `error`, `timeout` or `cancelled`.

    Here and in the events below, `run_id` is the id of the run for which the execution began.
    """

    scanner: str
    attempt: int
    outcome: str
    duration: float
    error: ErrorInfo | None
    run_id: str = ""


class ExecutionEnded(Event, frozen=True, gc=False):
    """Real work for a scan ended: `outcome` is `success`, `error`, `timeout`, `cancelled` or `local`.

    `local`: it failed by this machine's fault (`LocalFault`), which counts against nobody.
    `total` is how long it might have taken at most.
    """

    scanner: str
    pipeline: str
    outcome: str
    duration: float
    attempts: int
    error: ErrorInfo | None
    run_id: str = ""
    at: float = 0.0
    total: float | None = None


class LocalFault(Event, frozen=True, gc=False):
    """An execution failed by a fault of this machine; sent before its `ExecutionEnded`.

    `kind` is what the machine lacks: `descriptors`, `threads`, `network`, `disk`, `names` (it resolves none) or
    `memory`. `first` is true if no execution has failed by this kind in the 15 minutes before.
    """

    scanner: str
    kind: str
    error: ErrorInfo
    run_id: str = ""
    attempt: int = 0
    at: float = 0.0
    first: bool = False


class RetryBudgetExhausted(Event, frozen=True, gc=False):
    """A retry was not made, because the scanner's retry budget was used up; `attempt` is the one that failed."""

    scanner: str
    attempt: int
    run_id: str = ""


class ScanEnded(Event, frozen=True, gc=False):
    """A scan has its result.

    `cache` is what the cache had for it: `hit`, `stale`, `miss`, `shared` (another scan's execution answered), `bypass`
    (no cache, or a state without a stable key), or `""` if it was not consulted. `invalid` is the reason why the first
    dropped candidate was dropped. `probe` is true if the scan tested a scanner that was out of service.
    """

    run_id: str
    result: ScanResult
    cache: str
    invalid: str
    probe: bool = False


class RunEnded(Event, frozen=True, gc=False):
    """A run ended; `counts` has the number of scans by status."""

    run_id: str
    duration: float
    counts: dict[Status, int]
    complete: bool
    at: float


class SuspiciousResult(Event, frozen=True, gc=False):
    """An execution answered, but the answer must not be trusted.

    `found` candidates were kept and `dropped` were invalid. It is sent once per execution, before its `ScanEnded`.
    """

    scanner: str
    pipeline: str
    reason: str
    found: int
    dropped: int
    run_id: str = ""
    attempt: int = 0

    @property
    def kind(self) -> str:
        """The word that the reason begins with, `stale: ...`, if it is one of `ScanContext.doubt`; else `other`."""
        word = self.reason.partition(":")[0].replace(" ", "_")
        return word if word in DOUBTS else "other"


class BreakerChanged(Event, frozen=True, gc=False):
    """A breaker changed its state (`closed`, `open`, `half_open`); `open_for` is set when it opened."""

    scanner: str
    old: str
    new: str
    open_for: float | None
    run_id: str = ""

    def during(self, run_id: str) -> BreakerChanged:
        """Return this event as part of a run."""
        return BreakerChanged(self.scanner, self.old, self.new, self.open_for, run_id)


class ProviderChanged(Event, frozen=True, gc=False):
    """A provider's breaker changed its state, for all of its scanners (`closed`, `open`, `half_open`).

    `open_for` is set when it opened. `by` is the scanner whose attempt failed last, if it opened, or an empty text.
    """

    provider: str
    old: str
    new: str
    open_for: float | None
    by: str = ""
    run_id: str = ""


class ScannerStateChanged(Event, frozen=True, gc=False):
    """A scanner went out of service or came back; `until` is epoch seconds or `None`.

    `old` and `new` are `enabled`, `quarantined`, `probing` or `disabled`. `source` is what changed it: `hand`, `expiry`
    (of a manual order), `alert`, `failures` (counted here) or `probe`.
    """

    scanner: str
    old: str
    new: str
    source: str
    reason: str
    until: float | None
    at: float


class ThreadAbandoned(Event, frozen=True, gc=False):
    """A thread did not stop at its deadline and was abandoned; `age` is how long it has been working.

    `hint` says what it does, if only a process could have been stopped in that: it `held the interpreter's lock for
    2.5s`, or `sits in a C call`.
    """

    scanner: str
    thread: str
    age: float
    run_id: str = ""
    attempt: int = 0
    hint: str = ""


class DeadlineActedOn(Event, frozen=True, gc=False):
    """A deadline was acted on, `lateness` seconds after it came; `scanner` is empty if it was a run's deadline.

    A few milliseconds are normal. Seconds mean that other code held the interpreter's lock: then the watchdog cannot
    run, and a scan can even end `completed` after its timeout.
    """

    scanner: str
    lateness: float
    run_id: str = ""
    attempt: int = 0


class LoopBlocked(Event, frozen=True, gc=False):
    """A coroutine has kept the event loop that it shares with others from turning, for `seconds` so far.

    `where` is the place in its code, `file:line in function`. Its scanner takes a worker from its next scan on.
    """

    scanner: str
    seconds: float
    where: str
    run_id: str = ""
    attempt: int = 0


class LateCompletion(Event, frozen=True, gc=False):
    """Work ended after its timeout: `outcome` is `success` or `error`, and `duration` is how long it really took.

    `method` is what freed its thread: `cooperative` (the scanner noticed its deadline), `cancel` (of an `async def`
    scanner), `sockets` (shut down), `process` (killed), or `abandoned` (nothing did; it ended by itself). `abandoned`
    says whether its thread was reported as abandoned before: not if it came back within 50 ms of the deadline (100 ms
    while connections were being shut down).
    """

    scanner: str
    duration: float
    outcome: str
    run_id: str = ""
    attempt: int = 0
    method: str = "abandoned"
    abandoned: bool = True


class ProbeEnded(Event, frozen=True, gc=False):
    """An execution that tested a quarantined scanner ended, with the same `outcome` as the execution.

    If it never called the source, it is `cancelled`. `reason` is why it failed, and `mark` tells it from other probes.
    """

    scanner: str
    outcome: str
    reason: str = ""
    mark: str = ""
    run_id: str = ""
    attempt: int = 0


class ScheduleStarted(Event, frozen=True, gc=False):
    """From now on these scanners run on a schedule, every `every` seconds."""

    scanners: tuple[str, ...]
    every: float
    at: float


class ScheduledRunBegins(Event, frozen=True, gc=False):
    """A run begins whose time has come, `lateness` seconds after that time.

    It is late if the run before it took too long, or if the machine slept. The jitter of the schedule is not lateness.
    """

    lateness: float
    at: float


class StoreFailed(Event, frozen=True, gc=False):
    """An operation of the store (a method of its protocol, such as `update`) failed; `message` contains no secret.

    `first` is true for the first failure since the store last worked.
    """

    operation: str
    message: str
    at: float
    first: bool = False


class StoreRecovered(Event, frozen=True, gc=False):
    """The store works again: a run ended in which none of its operations failed."""

    at: float


class AlertsServed(Event, frozen=True, gc=False):
    """From now on this process receives alerts, so heartbeats of the alerting are to be expected."""

    at: float


class AlertReceived(Event, frozen=True, gc=False):
    """An alert came in.

    `source` is `alertmanager`, `grafana` or `unknown`; `result` is `accepted`, `duplicate`, `unauthorized`, `invalid`,
    `unknown_scanner`, `refused` (critical scanner, or ejection cap), `overruled` (by a manual order) or `ignored` (not
    an action of ours, or meant for another instance).
    """

    source: str
    result: str
    at: float


class ListenerLate(Event, frozen=True, gc=False):
    """A run ended before a slow listener had received `events` of its events; the listener gets them later."""

    listener: str
    events: int
    run_id: str
    at: float


class HeartbeatSeen(Event, frozen=True, gc=False):
    """A heartbeat of the alerting came in."""

    at: float


Listener = Callable[[Any], object]
"""Anything that takes one event. An attribute `events` (a tuple of event classes) may say which ones it wants; others
are then not even built for it. With an attribute `prompt` that is true, it is called at once, deadline or not."""


class Bus:
    """Brings events to listeners; a listener that raises is logged once and breaks nothing."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._dispatchers: list[Dispatcher] = []
        guarded = [(self._guarded(listener), getattr(listener, "events", None)) for listener in listeners]
        self._listeners: dict[type, tuple[_Guarded, ...]] = {
            kind: tuple(notify for notify, wanted in guarded if wanted is None or kind in wanted)
            for kind in Event.__subclasses__()
        }

    def subscribe(self, listener: Listener) -> None:
        """Add a listener, which is notified before all others."""
        notify, wanted = self._guarded(listener), getattr(listener, "events", None)
        for kind in self._listeners:
            if wanted is None or kind in wanted:
                self._listeners[kind] = (notify, *self._listeners[kind])  # an event under way keeps its listeners

    def wants(self, kind: type[Event]) -> bool:
        """Return whether any listener wants events of this class."""
        return bool(self._listeners[kind])

    def sender(self, kind: type[Event]) -> Callable[[Event], None] | None:
        """Return a function that sends events of one class without a look-up, or None if no listener wants them."""
        listeners = self._listeners[kind]
        if len(listeners) > 1:
            return self.send
        return listeners[0] if listeners else None

    def send(self, event: Event) -> None:
        """Send an event to all listeners that want it."""
        for notify in self._listeners[type(event)]:
            notify(event)

    def send_all(self, events: Sequence[Event]) -> None:
        """Send several events, in order."""
        for event in events:
            self.send(event)

    def channel(self, kind: type[Event]) -> Channel:
        """Return what sends events of one class to the listeners that want them now, each of them once."""
        return Channel(self._listeners[kind])

    def _guarded(self, listener: Listener) -> _Guarded:
        if getattr(listener, "prompt", False):
            return _Guarded(listener)
        dispatched = _Dispatched(listener)
        self._dispatchers.append(dispatched.dispatcher)
        return dispatched

    def open(self, *, wanted: bool) -> bool:
        """Call listeners on threads of their own until `close` is called, if a run wants that or another one does.

        Returns:
            Whether `close` is to be called. A run that does not want it joins the others all the same: were the threads
            to end before it does, its channels would lead nowhere.
        """
        if not wanted and not any(each.target() for each in self._dispatchers):
            return False
        for each in self._dispatchers:
            each.open()
        return True

    def close(self) -> None:
        """Call listeners at once again, unless another run wants it otherwise."""
        for each in self._dispatchers:
            each.close()

    def flush(self, until: float) -> list[tuple[str, int]]:
        """Wait until all listeners have had what was sent, but not past an instant of real time (monotonic).

        Returns:
            The name of each listener that lacks events, and how many that no earlier call has returned.
        """
        return [(each.name, late) for each in self._dispatchers if (late := each.flush(until))]


Delivery = tuple[Iterator[Listener], Iterator[Any]]
"""An event on its way: the listeners that were not called yet, and the calls that are left."""


class Channel:
    """Sends events so that each listener gets them once, even if interrupts cut the sending short.

    A signal handler may raise at any point of the main thread's Python code. Take a loop that calls the listeners: if
    the interrupt falls between a call and the note that it was made, nobody can say afterwards whether the listener
    has the event. Here `map` takes a listener and calls it. That is one step in C, between whose halves no handler
    runs, so calling `finish` again goes on with the first listener that was not called. One that was interrupted
    itself counts as called.
    """

    __slots__ = ("_guarded", "listeners")

    def __init__(self, guarded: tuple[_Guarded, ...]) -> None:
        self._guarded = guarded
        self.listeners: tuple[Listener, ...] = tuple(each.target() for each in guarded)

    def begin(self, event: Event) -> Delivery:
        """Return an event that is still to be sent: `finish` does that."""
        left = iter(self.listeners)
        return left, map(call, left, repeat(event))

    def finish(self, delivery: Delivery) -> None:
        """Call the listeners that were not called yet."""
        left, calls = delivery
        while True:
            try:
                for _ in calls:
                    pass
            except KeyboardInterrupt:
                raise
            except BaseException:  # see `_Guarded`
                called = len(self.listeners) - length_hint(left)
                if not called:  # an interrupt before the first
                    raise
                self._guarded[called - 1].failed()
            else:
                return


class _Guarded:
    """A listener whose failures are logged, the first one at least, and break nothing."""

    __slots__ = ("_logged", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._logged = False

    def __call__(self, event: Event) -> None:
        try:
            self.listener(event)
        except KeyboardInterrupt:  # the user's Ctrl-C, not the listener's fault
            raise
        except BaseException:  # foreign code; even its `sys.exit()` must not cost a run its end
            self.failed()

    def target(self) -> Listener:
        """Return what is to be called with an event now, without a guard."""
        return self.listener

    def failed(self) -> None:
        """Log the exception that is being handled, unless one was logged before."""
        if not self._logged:
            self._logged = True
            _log.exception("listener %r failed; this is logged once, its later failures are not", self.listener)


class _Dispatched(_Guarded):
    """A listener that is called on a thread of its own while a run has a deadline."""

    __slots__ = ("dispatcher",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        name = getattr(listener, "__qualname__", type(listener).__qualname__)
        self.dispatcher = Dispatcher(name, super().__call__)

    def __call__(self, event: Event) -> None:
        if not self.dispatcher.take(event):
            super().__call__(event)

    def target(self) -> Listener:
        """Return what takes an event for the listener now, or the listener itself."""
        return self.dispatcher.target() or self.listener
