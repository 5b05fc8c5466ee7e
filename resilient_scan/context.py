"""What a scanner may know about the execution it is part of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from resilient_scan._fanout import fan_out, this_thread
from resilient_scan._once import ready
from resilient_scan._suspend import off_loop
from resilient_scan._text import writable
from resilient_scan._trace import NOWHERE, Home
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.errors import ConfigError, ScanCancelled
from resilient_scan.options import DOUBTS, Limit
from resilient_scan.snapshot import EMPTY, TOOL_LOGS, Snapshot, new_tool_logs

T = TypeVar("T")
Item = TypeVar("Item")
Context = TypeVar("Context", bound="ScanContext")
NEVER = float("inf")
MAX_DOUBT = 1_000  # characters; a scanner that doubts each of its tickers says enough with the first ones


class Shared(Protocol):
    """Values that several scanners need, loaded once for all of them."""

    def get(self, key: Any, load: Callable[[], T], ttl: float, context: ScanContext, /) -> T:
        """Return the value for `key`, calling `load` where there is none younger than `ttl` seconds."""


class SourcesLike(Protocol):
    """The sources that a scanner tries in turn; `context` is the execution's."""

    def ask(self, source: str, call: Callable[[], T], seconds: float, context: Any, limit: Limit | None = None, /) -> T:
        """Return what `call` returns, behind that source's breaker."""

    def reach(self, place: str, call: Callable[[], T], context: Any, /) -> T:
        """Return what `call` returns, behind the breaker of the host that it calls."""


class NotesLike(Protocol):
    """What one scanner remembers from one scan to the next."""

    def get(self, key: str, /) -> bytes | None:
        """Return what was put under `key`, or `None`."""

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for `seconds`."""


class FaultsLike(Protocol):
    """Judges whether a failure is this machine's own fault."""

    def judge(self, scanner: str, party: str, kind: str, /) -> Any:
        """Return the fault that an attempt has failed by; `None`: it is the scanner's or its provider's."""


class Traffic(Protocol):
    """What stands between the scanners and the network: `resilient_scan.http` has a `Recorder` and a `Replay`."""

    def clock(self, scanner: str, clock: Clock, /) -> Clock:
        """Return the clock that a scanner's time of day comes from."""

    def guarded(self, call: Callable[[Context], T], /) -> Callable[[Context], T]:
        """Return what makes a scanner's attempt, given `call`, which runs the scanner's code."""

    def carried(self, call: Callable[[], T], /) -> Callable[[], T]:
        """Return what makes a blocking call of a coroutine on another thread; called where the coroutine makes it."""


class Wakeable(Protocol):
    """What a cancel or a poke wakes: an event, or an action in its place."""

    def set(self) -> object:
        """Wake; quick, it must not wait."""


class ScannerContext(msgspec.Struct, frozen=True):
    """What all executions of one scanner have in common."""

    scanner: str
    settings: Mapping[str, Any]
    clock: Clock
    shared: Shared | None
    traffic: Traffic | None = None
    sources: SourcesLike | None = None
    home: Home = NOWHERE  # where its own code is
    notes: NotesLike | None = None
    faults: FaultsLike | None = None


class ScanContext:
    """What a scanner may know about the execution it is part of.

    Attributes:
        attempt: number of the current attempt, counted from 1.
        deadline: the instant, on the runner's monotonic clock, at which the execution's time is up.
        abandoned: whether the execution went on, or ended, without this thread.
        incomplete: whether a connection was shut down under it after its deadline: what it reads may be cut off.
        freed_by: the method that made the attempt end once it was no longer waited for, as far as that shows here:
            `cooperative`, `cancel` or `process`.
    """

    # Set only where they differ: a first attempt that succeeds pays for none of them.
    attempt: int = 0
    run_id: str = ""  # of the run for which the execution was begun
    deadline: float = NEVER
    cut_at: float = NEVER  # the run's own deadline, where nobody else can use the answer
    ends: float = NEVER  # the earliest of: deadline, cut_at, the current attempt's own
    doubted: str | None = None  # why the scanner itself does not believe its answer
    provider: Any = None  # whose limit the scan keeps
    prepaid: bool = False  # whether the next attempt has its permit already
    requests: int = 0  # that the permit allows without asking again
    queued: float = 0.0  # seconds for which it has waited for its turn at a provider
    abandoned: bool = False
    incomplete: bool = False
    freed_by: str = ""
    helpers: Sequence[threading.Thread] = ()  # that take part in its `map` just now
    answered: bool = False  # whether a source has answered in this attempt, as far as an HTTP client of ours saw
    canceller: Wakeable | None = None  # what a cancel ends the attempt with, besides what waits for one
    _state: dict[str, Any] | None = None
    _logs: Sequence[dict[str, Any]] = ()  # a list is made for what is put into it: most scans have none
    _wakes: Sequence[Wakeable] = ()
    _known_logs: tuple[Any, ...] = ()  # entries that the state had before the current attempt
    _all_logs: list[dict[str, Any]] | None = None  # once the state was let go

    def __init__(
        self,
        scanner: str = "scanner",
        *,
        clock: Clock | None = None,
        deadline: float = NEVER,
        settings: Mapping[str, Any] = MappingProxyType({}),
        shared: Shared | None = None,
        snapshot: Snapshot = EMPTY,
        traffic: Traffic | None = None,
    ) -> None:
        own = clock or SystemClock()
        if traffic is not None:
            own = traffic.clock(scanner, own)
        self._set(ScannerContext(scanner, settings, own, shared, traffic), snapshot)
        if deadline != NEVER:
            self.limit(deadline)

    def _set(self, own: ScannerContext, snapshot: Snapshot) -> None:
        self._own = own
        self._clock = own.clock
        self._snapshot = snapshot

    @property
    def scanner(self) -> str:
        """The scanner's name."""
        return self._own.scanner

    @property
    def attempt_id(self) -> str:
        """A key of this attempt, the same wherever it runs; for a scanner that writes, to write once.

        A lost worker may have written before it was lost. The attempt after that is another one, with another number
        at the end: leave that out where both are to count as one.
        """
        return f"{self.run_id}/{self.scanner}/{self.attempt}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """This scanner's table from the configuration, read only."""
        return self._own.settings

    @property
    def traffic(self) -> Traffic | None:
        """What records requests, or answers them in the network's stead; for HTTP clients, not for scanners."""
        return self._own.traffic

    @property
    def now(self) -> datetime:
        """Return the date and time in UTC, by the runner's clock; never call `datetime.now()` instead."""
        return datetime.fromtimestamp(self._clock.time(), UTC)

    @property
    def cancelled(self) -> bool:
        """Say whether the answer is no longer waited for: cancelled, or past the deadline."""
        if not (self.abandoned or self._clock.monotonic() >= self.ends):
            return False
        self.freed_by = self.freed_by or "cooperative"  # whatever the scanner does now, it does because it looked
        return True

    @property
    def timed_out(self) -> bool:
        """Say whether the scanner used up its own time; a run that ended earlier does not count."""
        return self._clock.monotonic() >= self.deadline

    def remaining(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, self.ends - self._clock.monotonic())

    def check(self) -> None:
        """Raise `ScanCancelled` when the answer is no longer waited for."""
        if self.cancelled:
            raise ScanCancelled(f"{self.scanner}: the scan has ended")

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, but not past the end of the scan: that raises `ScanCancelled`, at once."""
        self._wait(self._clock.sleep, seconds, lambda: False)

    def log(self, tool: str, /, **fields: Any) -> None:
        """Add an entry to this scan's tool log: `{"tool", "scanner", "at" (epoch seconds), **fields}`."""
        entry = {"tool": tool, "scanner": self.scanner, "at": self._clock.time(), **fields}
        own = (self._state or {}).get(TOOL_LOGS)
        (own if isinstance(own, list) else self._list("_logs")).append(entry)

    def tool_logs(self) -> list[dict[str, Any]]:
        """Return what was logged so far, by `log` or into the state's own `tool_logs`."""
        state = self._state  # before the look at `_all_logs`, which is set before the state is let go
        if self._all_logs is not None:
            return self._all_logs.copy()
        if state is None or TOOL_LOGS not in state:
            return [*self._logs]
        return [*self._logs, *new_tool_logs(state, self._known_logs)]

    def doubt(self, reason: str, *, kind: str = "other") -> None:
        """Mark this answer as suspicious, although nothing failed: it is handed over with the reason, and not cached.

        Called again, it adds a reason; the first one's kind is the one that is counted.

        Args:
            reason: what is wrong with the source's answer, without secrets.
            kind: `empty`, `missing`, `stale`, `incomplete`, `out_of_range`, `duplicate`, `wrong_day` or `other`; the
                result's reason begins with it: `stale: ...`.

        Raises:
            ConfigError: there is no such kind.
        """
        if kind not in DOUBTS:
            raise ConfigError(f"doubt: kind must be one of {', '.join(DOUBTS)}, got {kind!r:.60}")
        said = writable(str.__str__(str(reason)))  # here, where an object may hang or raise at its scanner's expense
        if kind != "other":
            said = f"{kind.replace('_', ' ')}: {said}"
        if self.doubted is None:
            self.doubted = said
        elif said not in self.doubted and len(self.doubted) < MAX_DOUBT:
            self.doubted = f"{self.doubted}; {said}"

    def shared(self, key: Any, load: Callable[[], T], *, ttl: float = 300.0) -> T:
        """Return a value that several scanners need, loaded once for all of them.

        Args:
            key: hashable; the same key means the same value for all scanners.
            load: makes the value; runs in the first caller's thread, the others wait for it within their own time.
            ttl: seconds for which the value is kept.

        Raises:
            ScanCancelled: the time was up before the value was there.
            Exception: what `load` raised, for every caller that waited for it.
        """
        shared = self._own.shared
        return load() if shared is None else shared.get(key, lambda: off_loop(load), ttl, self)

    def remember(self, key: str, value: Any, *, ttl: float) -> None:
        """Keep a value for this scanner's later scans: in the runner's store, or without one as long as the runner.

        Other scanners, other settings and other releases of the scanner do not see it, and `runner.forget` drops it.
        While requests are recorded or replayed nothing is kept: a recording has to hold all that a scan needs.

        Args:
            key: a name of the scanner's own.
            value: what msgspec can encode (texts, numbers, lists, dicts, dates, structs, ...), without secrets.
            ttl: seconds for which it is kept.

        Raises:
            ScanCancelled: the scan has ended. What a request brings after that may be cut off.
            TypeError: the value cannot be encoded.
        """
        data = msgspec.msgpack.encode(value)
        self.check()
        notes = self._own.notes
        if notes is not None and self._own.traffic is None:
            off_loop(lambda: notes.put(key, data, ttl))

    def recall(self, key: str, kind: type[T]) -> T | None:
        """Return what this scanner has remembered under `key`; `None`: nothing, or nothing of this type.

        Be ready for `None` at any time: a store may be unreachable, or short of room.

        Args:
            key: as in `remember`.
            kind: the value's type, such as `dict[str, int]` or a struct.
        """
        notes = self._own.notes
        data = None if notes is None or self._own.traffic is not None else off_loop(lambda: notes.get(key))
        try:
            return None if data is None else msgspec.convert(msgspec.msgpack.decode(data), ready(kind))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def guarded(self, source: str, call: Callable[[], T], *, seconds: float = NEVER, limit: Limit | None = None) -> T:
        """Call one of several sources that this scanner tries in turn, behind a breaker of that source's own.

        The breaker has the scanner's breaker options (if the scanner has no breaker, neither has the source) and lives
        as long as the runner. The same rules apply: `PermanentError` casts no vote, `RetryAfter` and a timeout vote as
        failures. Without a runner, in a test, `call` is just called.

        Args:
            source: its name; if a provider (`Limit`) has this name too, its rate applies during the call.
            call: makes the request.
            seconds: limit for the call, so that the next source has time left; `resilient_scan.http` and this
                context's waits obey it.
            limit: the source's rate, where no scanner's options give its provider one.

        Raises:
            CircuitOpen: the source has failed too often lately; try the next one.
            ScanTimeout: its seconds are up.
            Exception: what `call` raised.
        """
        sources = self._own.sources
        return call() if sources is None else sources.ask(source, lambda: off_loop(call), seconds, self, limit)

    def map(self, function: Callable[[Item], T], items: Iterable[Item], *, concurrency: int = 4) -> list[T]:
        """Call `function` with each item, several at a time, under this scan's deadline.

        Args:
            function: called with one item, in a thread of its own or in the scanner's.
            items: any iterable; read to the end first.
            concurrency: calls at a time, >= 1.

        Returns:
            The results, in the order of the items.

        Raises:
            ScanCancelled: the scan ended before the last item.
            Exception: the first error, after the other calls have stopped.
        """
        if concurrency < 1:
            raise ConfigError(f"map: concurrency must be >= 1, got {concurrency!r}")
        todo = list(items)
        done = off_loop(lambda: fan_out(function, todo, concurrency, lambda: self.cancelled, self._helped))
        if len(done) < len(todo):
            self.check()
        return done

    def _helped(self, helpers: Sequence[threading.Thread]) -> None:
        (this_thread.call or self).helpers = helpers

    def before_request(self) -> None:
        """Wait for the provider's rate; call it before each request to the source (`resilient_scan.http` does).

        The attempt's own permit covers the first request; each further one waits for its turn, within the scan's time.

        Raises:
            LimitExceeded: the turn did not come before the deadline.
        """
        if self.provider is not None and not self.provider.prepaid_request(self):
            self.provider.acquire(self, with_permit=False)

    # for the engine, the layers and HTTP clients, not for scanners

    def fault(self, _error: BaseException, /) -> Any:
        """Return the fault of this machine that a failure may be; `None`: it cannot be, or nobody judges that here."""
        return None

    def reach(self, place: str, call: Callable[[], T]) -> T:
        """Make a request to a host and its port, which are the provider where the scanner's options name none.

        Raises:
            CircuitOpen, LimitExceeded: the host is down, or has asked to be left alone.
            BaseException: what `call` raised.
        """
        sources = self._own.sources
        return call() if self.provider is not None or sources is None else sources.reach(place, call, self)

    @property
    def has_ended(self) -> bool:
        """Say the same as `cancelled`, for those whose look is not the scanner's."""
        return self.abandoned or self._clock.monotonic() >= self.ends

    def cut_off(self) -> bool:
        """Return whether a connection was shut down under the calling thread, or one that it helps."""
        call = this_thread.call
        return self.incomplete or (call is not None and call.incomplete)

    def limit(self, deadline: float, cut_at: float = NEVER) -> None:
        """Set the instants at which the execution's time and the run's time are up."""
        self.deadline, self.cut_at = deadline, cut_at
        self.ends = min(deadline, cut_at) if cut_at != NEVER else deadline

    def wait(self, seconds: float, done: Callable[[], bool], *, watched: ScanContext | None = None) -> None:
        """Wait until `done()`, for `seconds` at most; the thread that makes it true calls `poke`.

        Args:
            seconds: the limit.
            done: quick; called again after every wake-up.
            watched: another execution whose cancels and pokes wake this one too.

        Raises:
            ScanCancelled: the end of the scan came first.
        """
        # Not `sleep`: a clock that advances instead of sleeping would reach the end of the scan before that thread.
        self._wait(getattr(self._clock, "attend", self._clock.sleep), seconds, done, watched)

    def _wait(
        self,
        pause: Callable[[float, Any], None],
        seconds: float,
        done: Callable[[], bool],
        watched: ScanContext | None = None,
    ) -> None:
        # A thread that cancels or pokes first sets its condition (`abandoned`, or what `done` looks at) and then wakes
        # what is in `_wakes`. Here the event is added and cleared before the conditions are read. So a cancel that
        # comes in between either is seen by this read, or sets the event after it was cleared: it cannot be lost, as it
        # would be if the event were cleared after the read. Each waiter has an event of its own, because several
        # threads of one scan (`map`) may wait for different things.
        wake = self._clock.event()
        until = self._clock.monotonic() + min(seconds, self.remaining())
        with self.watched(wake), (watched or self).watched(wake):
            while self._clock.monotonic() < until:
                wake.clear()
                if self.abandoned or done():
                    break
                pause(until, wake)
        if not done():
            self.check()

    def watched(self, wake: Wakeable) -> AbstractContextManager[None]:
        """Let every cancel and poke set `wake` while this context is entered."""
        return _Watched(self, wake)

    def watch(self, wake: Wakeable) -> None:
        """Let every cancel and poke set `wake`, until `unwatch`."""
        self._list("_wakes").append(wake)

    def unwatch(self, wake: Wakeable) -> None:
        """Take `watch` back."""
        self._list("_wakes").remove(wake)

    def _list(self, name: str) -> list[Any]:
        """Return a list of its own; two threads of one scan that ask for it at the same time get the same."""
        found: list[Any] = self.__dict__.setdefault(name, [])  # one step in C
        return found

    def poke(self) -> None:
        """Wake whatever waits in this scan, without ending it."""
        for wake in tuple(self._wakes):
            wake.set()
        canceller = self.canceller
        if canceller is not None:
            canceller.set()

    def cancel(self) -> None:
        """Mark the execution as abandoned, and wake the scanner if it sleeps."""
        self.abandoned = True
        self.poke()


class _Watched:
    """An object of its own, and not a generator with its four."""

    __slots__ = ("_context", "_wake")

    def __init__(self, context: ScanContext, wake: Wakeable) -> None:
        self._context = context
        self._wake = wake

    def __enter__(self) -> None:
        self._context.watch(self._wake)

    def __exit__(self, *_raised: object) -> None:
        self._context.unwatch(self._wake)
