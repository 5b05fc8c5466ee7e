"""What happened, as frozen records for listeners.

All of a run's events arrive before `run` returns; none is sent while a lock is held or on the watchdog's thread.
Durations are seconds, `at` is epoch seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from resilient_scan.results import ErrorInfo, ScanResult, Status

_log = logging.getLogger("resilient_scan")

SUCCESS, ERROR, TIMEOUT, CANCELLED = "success", "error", "timeout", "cancelled"  # outcomes of attempts and executions

traces: dict[str, str] = {}
"""Of runs under way that are traced: the trace's id, in hex, by the run's. A listener that traces writes it, one that
counts may read it; they do not know each other."""


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class Registered(msgspec.Struct, frozen=True):
    """One scanner as a listener learns of it, with functions that read its live state.

    Attributes:
        name, pipeline: whose it is.
        breaker_state: returns `closed`, `open` or `half_open`, or `None` once its runner is closed or gone; `None`
            instead of a function where the scanner has no breaker.
        abandoned_threads: returns how many of its threads hang.
        state: returns `enabled`, `quarantined`, `probing` or `disabled`, or `None` once its runner is closed or gone.
    """

    name: str
    pipeline: str
    breaker_state: Callable[[], str | None] | None
    abandoned_threads: Callable[[], int]
    state: Callable[[], str | None] = lambda: "enabled"


class Load(msgspec.Struct, frozen=True):
    """How busy a runner's pool of threads is.

    Attributes:
        queued: executions that wait for a worker.
        busy, idle: workers that are at one, and that wait for one.
        abandoned: threads that did not stop in time and still run.
    """

    queued: int = 0
    busy: int = 0
    idle: int = 0
    abandoned: int = 0


class ScannersRegistered(Event, frozen=True, gc=False):
    """A runner was built; sent once to each listener, before any other event.

    `load` returns how busy its threads are, or `None` once the last of them is gone.
    """

    scanners: tuple[Registered, ...]
    load: Callable[[], Load | None] = lambda: None


class RunStarted(Event, frozen=True, gc=False):
    """A run begins with this many scanners."""

    run_id: str
    scanners: int
    concurrent: bool
    max_workers: int
    at: float


class AttemptStarted(Event, frozen=True, gc=False):
    """A scanner's function is about to be called, on this thread and in these context variables."""

    scanner: str
    attempt: int
    run_id: str
    at: float


class AttemptEnded(Event, frozen=True, gc=False):
    """One call of a scanner's function ended: `outcome` is `success`, `error`, `timeout` or `cancelled`.

    `run_id` is, here and in the events below, that of the run for which the execution was begun.
    """

    scanner: str
    attempt: int
    outcome: str
    duration: float
    error: ErrorInfo | None
    run_id: str = ""


class ExecutionEnded(Event, frozen=True, gc=False):
    """Real work for a scan ended: `outcome` is `success`, `error`, `timeout` or `cancelled`."""

    scanner: str
    pipeline: str
    outcome: str
    duration: float
    attempts: int
    error: ErrorInfo | None
    run_id: str = ""
    at: float = 0.0


class RetryBudgetExhausted(Event, frozen=True, gc=False):
    """A retry was not made, because the scanner's retry budget was used up; `attempt` is the one that failed."""

    scanner: str
    attempt: int
    run_id: str = ""


class ScanEnded(Event, frozen=True, gc=False):
    """A scan has its result.

    `cache` tells what the cache had for it: `hit`, `stale`, `miss`, `shared` (another scan's execution answered),
    `bypass` (no cache, or a state without a stable key), or `""` where it was not asked.
    `invalid` is the reason why the first dropped candidate was dropped. `probe` says whether the scan tested a
    scanner that was out of service.
    """

    run_id: str
    result: ScanResult
    cache: str
    invalid: str
    probe: bool = False


class RunEnded(Event, frozen=True, gc=False):
    """A run is over; `counts` by status."""

    run_id: str
    duration: float
    counts: dict[Status, int]
    complete: bool
    at: float


class SuspiciousResult(Event, frozen=True, gc=False):
    """An execution answered, but hardly with the truth: empty or small as never before, or mostly malformed.

    `found` candidates were kept, `dropped` were invalid. It comes once for an execution, before its `ScanEnded`.
    """

    scanner: str
    pipeline: str
    reason: str
    found: int
    dropped: int
    run_id: str = ""
    attempt: int = 0


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


class ScannerStateChanged(Event, frozen=True, gc=False):
    """A scanner went out of service or came back; `until` is epoch seconds or `None`.

    `old` and `new` are `enabled`, `quarantined`, `probing` or `disabled`. `source` says who did it: `hand`, `expiry`
    (of an order by hand), `alert`, `failures` (counted here) or `probe`.
    """

    scanner: str
    old: str
    new: str
    source: str
    reason: str
    until: float | None
    at: float


class ThreadAbandoned(Event, frozen=True, gc=False):
    """A thread did not stop at its deadline and was abandoned; `age` is how long it has been at work."""

    scanner: str
    thread: str
    age: float
    run_id: str = ""
    attempt: int = 0


class LateCompletion(Event, frozen=True, gc=False):
    """Work ended after its scan had been handed over: `outcome` is `success` or `error`, `duration` its true length.

    `method` says what freed its thread: `cooperative` (it noticed that its time was over), `cancel` (of an `async def`
    scanner), or `abandoned` (nothing did, it ended after all); later `sockets` (shut down) and `process` (ended).
    """

    scanner: str
    duration: float
    outcome: str
    run_id: str = ""
    attempt: int = 0
    method: str = "abandoned"


class ProbeEnded(Event, frozen=True, gc=False):
    """An execution that tested a quarantined scanner ended: `outcome` as that of the execution.

    One that did not come to ask the source is `cancelled`. `reason` says why it failed; `mark` tells it from others.
    """

    scanner: str
    outcome: str
    reason: str = ""
    mark: str = ""
    run_id: str = ""
    attempt: int = 0


class StoreFailed(Event, frozen=True, gc=False):
    """An operation of the store (a method of its protocol, such as `update`) failed; `message` holds no secret.

    `first`: it is the first one that failed since the store worked.
    """

    operation: str
    message: str
    at: float
    first: bool = False


class StoreRecovered(Event, frozen=True, gc=False):
    """The store works again: a run was over in which nothing of it failed."""

    at: float


class AlertReceived(Event, frozen=True, gc=False):
    """An alert came in.

    `source` is `alertmanager`, `grafana` or `unknown`; `result` is `accepted`, `duplicate`, `unauthorized`, `invalid`,
    `unknown_scanner` or `refused`.
    """

    source: str
    result: str
    at: float


class HeartbeatSeen(Event, frozen=True, gc=False):
    """The heartbeat of the alerting came in."""

    at: float


Listener = Callable[[Any], object]
"""Anything that takes one event. It may say by an attribute `events` (a tuple of event classes) which ones it wants;
the others are then not even built for it."""


class Bus:
    """Brings events to listeners; one that raises is logged once and breaks nothing."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        tellers = [(_teller(listener), getattr(listener, "events", None)) for listener in listeners]
        self._tellers: dict[type, list[Callable[[Event], None]]] = {
            kind: [tell for tell, wanted in tellers if wanted is None or kind in wanted]
            for kind in Event.__subclasses__()
        }

    def join(self, listener: Listener) -> None:
        """Let one more listen, before all others."""
        tell, wanted = _teller(listener), getattr(listener, "events", None)
        for kind, tellers in self._tellers.items():
            if wanted is None or kind in wanted:
                tellers.insert(0, tell)

    def wants(self, kind: type[Event]) -> bool:
        """Say whether anybody listens to events of this class."""
        return bool(self._tellers[kind])

    def teller(self, kind: type[Event]) -> Callable[[Event], None] | None:
        """Return what sends events of one class, with nothing to look up; `None` where nobody wants them."""
        tellers = self._tellers[kind]
        if len(tellers) > 1:
            return self.send
        return tellers[0] if tellers else None

    def send(self, event: Event) -> None:
        """Hand an event to all that want it."""
        for tell in self._tellers[type(event)]:
            tell(event)

    def send_all(self, events: Sequence[Event]) -> None:
        """Hand over several events, in order."""
        for event in events:
            self.send(event)


def _teller(listener: Listener) -> Callable[[Event], None]:
    logged = False

    def tell(event: Event) -> None:
        nonlocal logged
        try:
            listener(event)
        except KeyboardInterrupt:  # somebody's Ctrl-C, not the listener's fault
            raise
        except BaseException:  # foreign code; `sys.exit()` in it must not cost a run its end
            if not logged:
                logged = True
                _log.exception("listener %r failed; this is logged once, its later failures are not", listener)

    return tell
