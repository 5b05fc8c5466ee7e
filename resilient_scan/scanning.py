"""The scanner's side: what a scanner is, what it is given, what it returns."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
from msgspec import UNSET, UnsetType

from resilient_scan.clock import Clock, SystemClock, Wake
from resilient_scan.errors import InvalidCandidate, PluginError, ScanCancelled
from resilient_scan.options import LAYERS, Breaker, Cache, Retry, Timeout, check_layer
from resilient_scan.state import EMPTY, Snapshot

T = TypeVar("T")
Call = Callable[["ScanContext"], list[Any]]
"""What a layer wraps and what it becomes: asks the scanner and returns its candidates, or raises."""
NAME = re.compile(r"[a-z0-9_.-]{1,64}")


class Candidate(msgspec.Struct, frozen=True):
    """One thing a scanner found.

    Attributes:
        ticker: a non-empty symbol without blanks, such as `AAPL` or `BRK.B`.
        source: who found it, usually the scanner's name.
        context: one sentence for people.
        priority: `unknown`, or any word that the pipeline uses (`critical`, `high`, `medium`, `low`).
        strategy: which strategy it is meant for; may be empty.
        extras: everything else, by name.

    Raises:
        InvalidCandidate: a field has a wrong type, or the ticker is empty or has a blank in it.
    """

    ticker: str
    source: str
    context: str
    priority: str = "unknown"
    strategy: str = ""
    extras: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for field in ("ticker", "source", "context", "priority", "strategy"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise InvalidCandidate(f"candidate.{field} must be text, got {value!r}")
        if not isinstance(self.extras, dict):
            raise InvalidCandidate(f"candidate.extras must be a dict, got {self.extras!r}")
        if not self.ticker or any(map(str.isspace, self.ticker)):
            raise InvalidCandidate(f"candidate.ticker must be a symbol without blanks, got {self.ticker!r}")


class Shared(Protocol):
    """Values that several scanners need, loaded once for all of them."""

    def get(self, key: Any, load: Callable[[], T], ttl: float, context: ScanContext, /) -> T:
        """Return the value for `key`, calling `load` where there is none younger than `ttl` seconds."""


class ScanContext:
    """What a scanner may know about the execution it is part of.

    Attributes:
        scanner: the scanner's name.
        settings: this scanner's table from the configuration, read only.
        attempt: number of the current attempt, counted from 1.
        deadline: the instant, on the runner's monotonic clock, at which the execution's time is over.
    """

    __slots__ = (
        "_clock",
        "_cut",
        "_logs",
        "_shared",
        "_snapshot",
        "_state",
        "_wake",
        "attempt",
        "cut_at",
        "deadline",
        "dropped",
        "found",
        "invalid",
        "lock",
        "open_attempt",
        "permit",
        "scanner",
        "settings",
    )

    def __init__(
        self,
        scanner: str = "scanner",
        *,
        clock: Clock | None = None,
        deadline: float = float("inf"),
        settings: Mapping[str, Any] = MappingProxyType({}),
        shared: Shared | None = None,
        snapshot: Snapshot = EMPTY,
    ) -> None:
        self.scanner = scanner
        self.settings = settings
        self.attempt = 0
        self.deadline = deadline
        self.cut_at = float("inf")  # the run's own deadline, where nobody else can use the answer
        self.lock = threading.Lock()  # for the small facts of one execution; never held while foreign code runs
        self.open_attempt: float | None = None  # when the current attempt began, until somebody reports its end
        self.found: list[Any] = []  # candidates of the current attempt, as far as it has come
        self.dropped = 0
        self.invalid = ""
        self.permit: Any = None  # the breaker's, while an attempt is under way
        self._clock: Clock = clock or SystemClock()
        self._shared = shared
        self._snapshot = snapshot
        self._state: dict[str, Any] = {}
        self._logs: list[dict[str, Any]] = []
        self._cut = False
        self._wake: Wake | None = None

    @property
    def now(self) -> datetime:
        """Return the date and time in UTC, by the runner's clock; never call `datetime.now()` instead."""
        return datetime.fromtimestamp(self._clock.time(), UTC)

    @property
    def cancelled(self) -> bool:
        """Say whether nobody waits for the answer any more: cancelled, or past the deadline."""
        return self._cut or self.remaining() <= 0

    @property
    def timed_out(self) -> bool:
        """Say whether the scanner used up its own time; a run that ended earlier does not count."""
        return self._clock.monotonic() >= self.deadline

    def remaining(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, min(self.deadline, self.cut_at) - self._clock.monotonic())

    def check(self) -> None:
        """Raise `ScanCancelled` when nobody waits for the answer any more."""
        if self.cancelled:
            raise ScanCancelled(f"{self.scanner}: the scan is over")

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, but not past the end of the scan: that raises `ScanCancelled`, at once."""
        if seconds > 0:
            # Whoever cancels sets `_cut` before it reads `_wake`; here `_wake` is set before `_cut` is read. So
            # either the canceller sees the flag and raises it, or `cancelled` is true before the sleep begins.
            wake = self._wake = self._wake or self._clock.event()
            if not self.cancelled:
                self._clock.sleep(min(seconds, self.remaining()), wake)
        self.check()

    def log(self, tool: str, /, **fields: Any) -> None:
        """Add an entry to this scan's tool log: `{"tool", "scanner", "at" (epoch seconds), **fields}`."""
        entry = {"tool": tool, "scanner": self.scanner, "at": self._clock.time(), **fields}
        own = self._state.get("tool_logs")
        (own if isinstance(own, list) else self._logs).append(entry)

    def shared(self, key: Any, load: Callable[[], T], *, ttl: float = 300.0) -> T:
        """Return a value that several scanners need, loaded once for all of them.

        Args:
            key: hashable; the same key means the same value, whoever asks.
            load: makes the value; runs in the first asker's thread, the others wait for it within their own time.
            ttl: seconds for which the value is kept.

        Raises:
            ScanCancelled: the time was over before the value was there.
            Exception: what `load` raised, for all that waited for it.
        """
        return load() if self._shared is None else self._shared.get(key, load, ttl, self)

    def begin_attempt(self) -> dict[str, Any]:
        """Count an attempt, forget what the one before it found, and return a state of its own for it."""
        self._logs = self.tool_logs()
        self.attempt += 1
        self.open_attempt = self._clock.monotonic()
        self.found = []
        self.dropped = 0
        self._state = self._snapshot.copy()
        return self._state

    def close_attempt(self) -> float | None:
        """Return when the attempt under way began, to the first that asks: who gets it reports its end."""
        with self.lock:
            began, self.open_attempt = self.open_attempt, None
        return began

    def tool_logs(self) -> list[dict[str, Any]]:
        """Return what was logged so far, by `log` or into the state's own `tool_logs`."""
        return [*self._logs, *self._snapshot.new_tool_logs(self._state)]

    def wait(self, seconds: float, done: Callable[[], bool]) -> None:
        """Wait until `done()`, for `seconds` at most; whoever makes it true calls `poke`.

        Raises:
            ScanCancelled: the end of the scan came first.
        """
        wake = self._wake = self._wake or self._clock.event()
        until = self._clock.monotonic() + min(seconds, self.remaining())
        while not done() and not self._cut and (left := until - self._clock.monotonic()) > 0:
            wake.clear()
            if not done() and not self._cut:  # asked again: a poke or a cancel just before `clear` left no other trace
                self._clock.sleep(left, wake)
        if not done():
            self.check()

    def poke(self) -> None:
        """Wake the scan if it waits, without ending it."""
        if self._wake is not None:
            self._wake.set()

    def cancel(self) -> None:
        """Tell the scanner that nobody waits any more, and wake it if it sleeps."""
        self._cut = True
        self.poke()


@runtime_checkable
class Scanner(Protocol):
    """Anything that can be asked: an object, or a class without required arguments, with these three.

    Attributes:
        name: unique in a runner; 1 to 64 of `a-z 0-9 _ . -`.
        pipeline: which pipeline it belongs to, free text.
        scan: `scan(state)` or `scan(state, context)`; returns an iterable of candidates or mappings, or yields them;
            `async def` is allowed.
    """

    name: str
    pipeline: str

    @property
    def scan(self) -> Callable[..., Any]:
        """Ask the source."""


class FunctionScanner:
    """A scanner made from a function by `@scanner`; calling it calls the function."""

    def __init__(
        self, function: Callable[..., Any], name: str, pipeline: str, layers: dict[str, Any], candidate: type
    ) -> None:
        self.name = name
        self.pipeline = pipeline
        self.scan = function
        self.layers = layers
        self.candidate = candidate
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, without any layer."""
        return self.scan(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<scanner {self.name} of {self.pipeline}>"


def scanner(
    *,
    pipeline: str,
    name: str | None = None,
    candidate: type = Candidate,
    cache: Cache | None | UnsetType = UNSET,
    retry: Retry | None | UnsetType = UNSET,
    breaker: Breaker | None | UnsetType = UNSET,
    timeout: Timeout | UnsetType = UNSET,
) -> Callable[[Callable[..., Any]], FunctionScanner]:
    """Make a scanner from a function `(state)` or `(state, context)`.

    Args:
        pipeline: which pipeline it belongs to.
        name: the scanner's name; the function's, unless given.
        candidate: what it returns, if not `Candidate`: a dataclass, a msgspec struct, or a pydantic model.
        cache: an option object replaces the runner's whole layer, `None` leaves it out for this scanner; a layer not
            named is the runner's.
        retry: likewise.
        breaker: likewise.
        timeout: likewise, but it cannot be left out.

    Raises:
        ConfigError: a layer got something else than an option object of its own, or `None`.
        PluginError: the name or the pipeline is not valid.
    """
    given = {"cache": cache, "retry": retry, "breaker": breaker, "timeout": timeout}
    layers = {layer: value for layer, value in given.items() if value is not UNSET}

    def make(function: Callable[..., Any]) -> FunctionScanner:
        own = name if name is not None else getattr(function, "__name__", "")
        for layer, value in layers.items():
            check_layer(layer, value, LAYERS[layer], where=f"@scanner {own}")
        made = FunctionScanner(function, own, pipeline, layers, candidate)
        check_identity(made)
        return made

    return make


class ScannerSpec(msgspec.Struct, frozen=True):
    """A scanner in its normal form, as the runner uses it."""

    name: str
    pipeline: str
    call: Callable[[dict[str, Any], ScanContext], Any]
    layers: dict[str, Any]
    candidate: type
    origin: Any


def spec_of(thing: Any) -> ScannerSpec:
    """Bring a scanner object or class into its normal form.

    Raises:
        PluginError: it lacks `name`, `pipeline` or `scan`, or one of them is not valid.
    """
    if inspect.isclass(thing):
        try:
            thing = thing()
        except Exception as error:
            raise PluginError(
                f"scanner class {thing.__qualname__} cannot be made without arguments: {error}"
            ) from error
    check_identity(thing)
    layers = getattr(thing, "layers", None)
    if not isinstance(thing, FunctionScanner):
        layers = {key: getattr(thing, key) for key, kind in LAYERS.items() if isinstance(getattr(thing, key, 0), kind)}
    candidate = getattr(thing, "candidate", Candidate)
    return ScannerSpec(
        name=thing.name,
        pipeline=thing.pipeline,
        call=_two_arguments(thing.scan),
        layers=dict(layers or {}),
        candidate=candidate if inspect.isclass(candidate) else Candidate,
        origin=thing,
    )


def check_identity(thing: Any) -> None:
    """Raise `PluginError` unless `thing` has a valid name, a pipeline and a `scan` that can be called."""
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(f"scanner {thing!r}: name must be 1 to 64 of a-z, 0-9, '_', '.', '-', got {name!r}")
    pipeline = getattr(thing, "pipeline", None)
    if not isinstance(pipeline, str) or not pipeline.strip():
        raise PluginError(f"scanner {name}: pipeline must be a text that is not empty, got {pipeline!r}")
    if not callable(getattr(thing, "scan", None)):
        raise PluginError(f"scanner {name}: it has no method scan(state) or scan(state, context)")


def _two_arguments(scan: Callable[..., Any]) -> Callable[[dict[str, Any], ScanContext], Any]:
    """Make `scan` take a context, whether it wants one or not.

    It gets one if its second positional parameter is required or called `context`: an optional one of another name
    is the scanner's own business.
    """
    try:
        parameters = list(inspect.signature(scan).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    if second is not None and (second.default is second.empty or second.name == "context"):
        return scan
    if any(p.kind is p.KEYWORD_ONLY and p.name == "context" for p in parameters):
        return lambda state, context: scan(state, context=context)
    return lambda state, _context: scan(state)
