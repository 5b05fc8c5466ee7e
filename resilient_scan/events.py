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

from collections.abc import Callable
from typing import Any

import msgspec

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

    `at` is when it ended. Here and in the events below, `run_id` is the id of the run for which the execution began.
    """

    scanner: str
    attempt: int
    outcome: str
    duration: float
    error: ErrorInfo | None
    run_id: str = ""
    at: float = 0.0


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
