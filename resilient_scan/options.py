"""Options: frozen values that carry their defaults, units and ranges, and check themselves when built.

Durations are seconds. `None` instead of an option object leaves that layer out; inside an object neither zero
nor `None` ever means "default".

A class here is the only place where an option is written down. The settings file, the environment, their errors and
`explain` read its fields: a field of the type `Seconds` takes `"5m"` in a file and is explained with its unit, and
every other type is handled the same way.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from resilient_scan._text import did_you_mean
from resilient_scan.errors import ConfigError, is_number, name_of

Exceptions = tuple[type[BaseException], ...]
Predicate = Callable[[BaseException], bool]
Seconds = Annotated[float, "seconds"]


if TYPE_CHECKING:
    from msgspec import StructMeta
else:
    StructMeta = type(msgspec.Struct)  # older versions do not export it


class _Named(StructMeta):
    """Let a class of options refuse an argument that it does not have in a sentence that names the nearest."""

    if not TYPE_CHECKING:  # type checkers read the arguments from the fields

        def __call__(cls, *args: Any, **given: Any) -> Any:  # noqa: N805 - of a metaclass
            try:
                return super().__call__(*args, **given)
            except TypeError as error:
                if fault := _wrong_arguments(cls.__name__, cls.__struct_fields__, given, str(error)):
                    raise ConfigError(fault) from None
                raise


def _wrong_arguments(name: str, fields: tuple[str, ...], given: Mapping[str, Any], why: str) -> str:
    """Return a sentence about an argument that is unknown or missing; an empty text: the error is about another."""
    for argument in given:
        if argument not in fields:
            return f"{name} has no option {argument!r}; {did_you_mean(argument, fields)}"
    missing = re.fullmatch(r"Missing required argument '(\w+)'", why)
    if missing:
        return f"{name} needs {missing[1]}: write {name}({missing[1]}=...)"
    return f"{name} has {len(fields)} options: {', '.join(fields)}" if why.startswith("Extra positional") else ""


class Option(msgspec.Struct, frozen=True, metaclass=_Named):
    """Checks shared by the option classes; messages name the layer by the class's name."""

    def _fail(self, field: str, must: str) -> ConfigError:
        name = type(self).__name__.lower()
        return ConfigError(f"{name}.{field} must be {must}, got {getattr(self, field)!r}")

    def _whole(self, field: str, least: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._fail(field, "a whole number")
        if value < least:
            raise self._fail(field, f">= {least}")

    def _number(self, field: str, *, above: float | None = None, least: float | None = None, most: float = 1e9) -> None:
        value = getattr(self, field)
        if not is_number(value):
            raise self._fail(field, "a finite number")
        if above is not None and value <= above:
            raise self._fail(field, f"> {above:g}")
        if least is not None and value < least:
            raise self._fail(field, f">= {least:g}")
        if value > most:
            raise self._fail(field, f"<= {most:g}")

    def _optional(self, field: str, **bounds: float) -> None:
        if getattr(self, field) is not None:
            self._number(field, **bounds)

    def _names(self, field: str) -> None:
        value: Any = getattr(self, field)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise self._fail(field, "a tuple of names")

    def _exceptions(self, field: str) -> None:
        value = getattr(self, field)
        if inspect.iscoroutinefunction(value):
            raise self._fail(field, "a predicate that is not async")  # its coroutine would always mean yes
        if is_predicate(value):
            try:
                hash(value)
            except TypeError:
                raise self._fail(field, "a predicate that can be hashed, as every option can") from None
            return
        if not isinstance(value, tuple) or not all(isinstance(e, type) and issubclass(e, BaseException) for e in value):
            raise self._fail(field, "a tuple of exception classes, or a predicate (exception) -> bool")

    def __repr__(self) -> str:
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        said = (f"{name}={name_of(value) if is_predicate(value) else repr(value)}" for name, value in fields)
        return f"{type(self).__name__}({', '.join(said)})"


def is_predicate(value: object) -> bool:
    """Say whether an `on` is a predicate, as opposed to classes."""
    return callable(value) and not isinstance(value, type)


class Cache(Option, frozen=True):
    """Keep answers for a while.

    Attributes:
        ttl: seconds for which an answer is fresh, > 0.
        stale_if_error: seconds after its expiry for which an answer still replaces a failed execution, >= 0.
        inputs: names of the state's keys that the scanner reads; `None`: the whole state except `tool_logs`.
        maxsize: answers kept per scanner, >= 1; the least recently used one is evicted first.
        jitter: share of `ttl`, 0 <= jitter < 1, by which each lifetime is shortened at random, so that the answers of
            a fleet do not all expire at once.
        ttl_empty: the `ttl` of an answer without candidates; `None`: the same as for any other.
        ttl_error: seconds for which a failed execution is remembered and not repeated, > 0; `None`: not at all.
    """

    ttl: Seconds = 300.0
    stale_if_error: Seconds = 0.0
    inputs: tuple[str, ...] | None = None
    maxsize: int = 1024
    jitter: float = 0.1
    ttl_empty: Seconds | None = None
    ttl_error: Seconds | None = None

    def __post_init__(self) -> None:
        self._number("ttl", above=0)
        self._number("stale_if_error", least=0)
        if self.inputs is not None:
            self._names("inputs")
        self._whole("maxsize", 1)
        self._number("jitter", least=0)
        if self.jitter >= 1:
            raise self._fail("jitter", "< 1")
        self._optional("ttl_empty", above=0)
        self._optional("ttl_error", above=0)


class Retry(Option, frozen=True):
    """Try again after a failure, with exponential backoff and full jitter.

    The wait before attempt n + 1 is drawn evenly from 0 to min(cap, base * 2**(n - 1)) seconds
    ("full jitter": Marc Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015).
    An exception group is judged by the exceptions in it; see `resilient_scan.errors`.

    Attributes:
        attempts: attempts in total, >= 1; 1 means that nothing is retried.
        base: upper bound of the first wait in seconds, >= 0.
        cap: upper bound of every wait in seconds, >= base.
        on: exception classes that are worth another attempt, or a predicate `(exception) -> bool` that says which
            are; it is asked for each exception of a group. Where it raises an error itself, its answer counts as yes.
        retry_after_cap: longest wait in seconds that a `RetryAfter` can ask for, >= 0.
        budget: retry budget, as a share of the executions of the last 60 seconds, 0 < budget <= 1; it keeps a fleet
            from doubling the load on a source that is down. `None`: no budget.
        budget_min: retries allowed in 60 seconds even if the budget is smaller, >= 0.
    """

    attempts: int = 3
    base: Seconds = 0.5
    cap: Seconds = 10.0
    on: Exceptions | Predicate = (Exception,)
    retry_after_cap: Seconds = 60.0
    budget: float | None = None
    budget_min: int = 10

    def __post_init__(self) -> None:
        self._whole("attempts", 1)
        self._number("base", least=0)
        self._number("cap", least=0)
        if self.cap < self.base:
            raise self._fail("cap", f">= base ({self.base:g})")
        self._exceptions("on")
        self._number("retry_after_cap", least=0)
        self._optional("budget", above=0, most=1)
        self._whole("budget_min", 0)


class Breaker(Option, frozen=True):
    """Stop calling a source that keeps failing, and try it again later.

    Attributes:
        failures: consecutive failed attempts that open the breaker, >= 1.
        open_for: seconds for which it stays open the first time, > 0; doubles, with jitter, while trials fail.
        open_cap: longest time in seconds that it stays open, >= open_for.
        trials: half-open trials admitted at a time, >= 1; the same number of successes closes the breaker.
        on: exception classes that count as failures, or a predicate `(exception) -> bool` as in `Retry`; others cast
            no vote. A `RetryAfter` and a timeout of ours always count.
        failure_rate: share of failures among the last `window` attempts that also opens it, 0 < rate <= 1.
        slow_after: seconds after which an attempt counts as slow, at that moment and whatever comes of it, > 0.
        slow_rate: share of slow attempts among the last `window` that also opens it, 0 < rate <= 1;
            requires `slow_after`.
        window: how many attempts the rates look back on, >= 1.
        minimum: attempts in the window that a rate needs before it can open the breaker, 1 <= minimum <= window.
        within: seconds, > 0, after which an attempt no longer counts, neither in a row nor in the window; `None`: it
            counts until a success or newer attempts replace it.
        suspicious: whether an answer that is suspicious (`ScanResult.suspicious`) counts as a failure.
    """

    failures: int = 5
    open_for: Seconds = 60.0
    open_cap: Seconds = 3600.0
    trials: int = 1
    on: Exceptions | Predicate = (Exception,)
    failure_rate: float | None = None
    slow_after: Seconds | None = None
    slow_rate: float | None = None
    window: int = 20
    minimum: int = 10
    within: Seconds | None = None
    suspicious: bool = False

    def __post_init__(self) -> None:
        self._whole("failures", 1)
        self._number("open_for", above=0)
        self._number("open_cap", above=0)
        if self.open_cap < self.open_for:
            raise self._fail("open_cap", f">= open_for ({self.open_for:g})")
        self._whole("trials", 1)
        self._exceptions("on")
        self._optional("failure_rate", above=0, most=1)
        self._optional("slow_after", above=0)
        self._optional("slow_rate", above=0, most=1)
        if (self.slow_after is None) != (self.slow_rate is None):
            raise ConfigError("breaker.slow_after and breaker.slow_rate go together; give both, or none")
        self._whole("window", 1)
        self._whole("minimum", 1)
        if self.minimum > self.window:
            raise self._fail("minimum", f"<= window ({self.window})")
        self._optional("within", above=0)
        suspicious: Any = self.suspicious
        if not isinstance(suspicious, bool):
            raise self._fail("suspicious", "True or False")


class Limit(Option, frozen=True):
    """Share a provider's quota, and its breaker, among all scanners that name it.

    Attributes:
        provider: the provider, such as `finnhub`; scanners that name the same provider share its quota.
        rate: requests per window, `"60/min"`, or several rates, `("60/min", "30/s")`; units are s, min, h and day,
            with a number before the unit for a longer window (`"1000/10min"`). Needs the extra `limits`. `None`: no
            rate.
        concurrency: attempts in flight at a time, >= 1; `None`: any number.
        breaker: of the provider itself, for all of its scanners; not given: that of the first of them which has one;
            `None`: the provider has none. Its rates do not apply.
    """

    provider: str
    rate: str | tuple[str, ...] | None = None
    concurrency: int | None = None
    breaker: Breaker | None | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        provider: Any = self.provider
        if not isinstance(provider, str) or not provider.strip():
            raise self._fail("provider", "a name that is not empty")
        if not all(isinstance(rate, str) for rate in self.rates):
            raise self._fail("rate", 'a rate such as "60/min", or a tuple of rates')
        _check_rates(self.rates)
        if self.concurrency is not None:
            self._whole("concurrency", 1)
        if self.breaker is not None and not isinstance(self.breaker, Breaker | msgspec.UnsetType):
            raise self._fail("breaker", "a Breaker or None")

    @property
    def rates(self) -> tuple[str, ...]:
        """The rates, whether one or several were given."""
        if self.rate is None:
            return ()
        return self.rate if isinstance(self.rate, tuple) else (self.rate,)

    @property
    def is_bare(self) -> bool:
        """Whether the limit only names a provider."""
        return not self.rates and self.concurrency is None and self.breaker is msgspec.UNSET


_RATE = re.compile(r"(\d{1,9})\s*/\s*(\d{0,6})\s*(s|secs?|seconds?|mins?|minutes?|h|hours?|d|days?)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_rate(text: str) -> tuple[int, float]:
    """Return `(requests, seconds)` of a rate such as `"60/min"` or `"1000/10min"`.

    Raises:
        ConfigError: the text is not a rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or int(match[1]) < 1 or (match[2] and int(match[2]) < 1):
        raise ConfigError(f'limit.rate must be a rate such as "60/min", "30/s" or "1000/10min", got {text!r}')
    return int(match[1]), int(match[2] or 1) * _UNITS[match[3][0]]


def _check_rates(rates: tuple[str, ...]) -> None:
    """Raise `ConfigError` if a text is not a rate, or if another rate makes it pointless: that is a mistake."""
    by_window = sorted((parse_rate(rate)[::-1], rate) for rate in rates)
    for ((seconds, count), short), ((longer, more), long) in pairwise(by_window):
        if seconds == longer:
            raise ConfigError(f"limit.rate has two numbers for one window, {short} and {long}; keep one of them")
        if more <= count:
            raise ConfigError(f"limit.rate: {short} never matters next to {long}; leave it out, or correct it")
        if more * seconds > count * longer:
            raise ConfigError(f"limit.rate: {long} never matters next to {short}; leave it out, or correct it")


DOUBTS = ("empty", "missing", "stale", "incomplete", "out_of_range", "duplicate", "wrong_day", "other")
"""Why an answer is suspicious, in one word: the kinds of `ScanContext.doubt`, and a label of the metrics."""


class Expect(Option, frozen=True):
    """What every answer of a scanner must be like; an answer that is not is suspicious.

    A name means a candidate's attribute, or else an entry of its `extras`. Two candidates that are the same in
    everything are suspicious too.

    Attributes:
        fields: names that each candidate must have; `None` and an empty text count as missing.
        at_least: the fewest candidates, >= 0.
        max_age: seconds, > 0, that lie at most between the time of each candidate and the scan's (or the end of the
            state's `trade_date`, if that is earlier); no candidate may be of a later day. `None`: any.
        time: the name of a candidate's time, for `max_age`: a date, a datetime, either as ISO text, or epoch seconds.
        ranges: the least and the greatest number, both allowed, by name; what a candidate does not have is not checked.
    """

    fields: tuple[str, ...] = ()
    at_least: int = 0
    max_age: Seconds | None = None
    time: str = "date"
    ranges: Mapping[str, tuple[float, float]] = {}

    def __post_init__(self) -> None:
        self._names("fields")
        self._whole("at_least", 0)
        self._optional("max_age", above=0)
        time: Any = self.time
        ranges: Any = self.ranges
        if not isinstance(time, str) or not time:
            raise self._fail("time", "a name")
        pairs = ranges.values() if isinstance(ranges, Mapping) else (None,)
        if not all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and all(isinstance(bound, int | float) for bound in pair)
            and pair[0] <= pair[1]
            for pair in pairs
        ):
            raise self._fail("ranges", "a dict of (least, greatest) by name")


class Timeout(Option, frozen=True):
    """Bound the time of a scan, counted from the moment when a worker begins it.

    Attributes:
        total: seconds for all attempts and the waits between them, > 0.
        attempt: seconds for one attempt, 0 < attempt <= total; an attempt that hangs continues in its abandoned thread
            while the next one begins in another. `None`: an attempt may take all the time that is left.
        max_abandoned: abandoned threads that this scanner may have at a time, >= 1; beyond that it is rejected.
    """

    total: Seconds = 30.0
    attempt: Seconds | None = None
    max_abandoned: int = 1

    def __post_init__(self) -> None:
        self._number("total", above=0)
        self._optional("attempt", above=0)
        if self.attempt is not None and self.attempt > self.total:
            raise self._fail("attempt", f"<= total ({self.total:g})")
        self._whole("max_abandoned", 1)


class Tls(Option, frozen=True):
    """The files with which a cluster's scheduler, workers and drivers know each other.

    Attributes:
        ca: the certificate of the authority that has signed all the others.
        cert: this side's certificate.
        key: its private key.
    """

    ca: str
    cert: str
    key: str


class Cluster(Option, frozen=True):
    """Where attempts run if not on this machine (`engine="dask"`).

    Attributes:
        address: of the scheduler, such as `"tls://scheduler:8786"`; `"local"`: workers on this machine, to try it out.
        tls: the files for an address that begins with `tls://`.
        insecure: whether an address that is not loopback may be used without TLS: anyone who reaches its port can run
            code on all workers.
        max_result: bytes that the results of an attempt may come to, >= 1.
        grace: seconds that a worker's answer may be late because of its way here, >= 0.
    """

    address: str | None = None
    tls: Tls | None = None
    insecure: bool = False
    max_result: int = 10_000_000
    grace: Seconds = 1.0

    def __post_init__(self) -> None:
        if self.address is not None and not self.address.strip():
            raise ConfigError('cluster.address must be the address of a scheduler, or "local"')
        self._whole("max_result", 1)
        self._number("grace", least=0)


class Quarantine(Option, frozen=True):
    """Take a scanner out of service when an alert fires, and bring it back when probes prove that it is healthy.

    The cool-off after n failed probes is min(cooloff_cap, cooloff * 2**n) seconds: exact the first time, up to a
    quarter shorter at random after that.

    Attributes:
        cooloff: seconds from quarantine to the first probe, > 0; doubles with each failed probe.
        cooloff_cap: longest cool-off in seconds, >= cooloff.
        successes: probes that must succeed in a row before the scanner returns to service, >= 1.
        max_share: share of the scanners, 0 to 1, that may be quarantined at a time; one scanner always may.
        critical: names of scanners that no alert takes out of service.
        lease: seconds after which an alert that is not repeated counts as unknown, > 0; let the sender repeat its
            alerts more often than that.
        heartbeat: seconds between two heartbeats of the alerting, > 0; after three intervals without one, a resolved
            alert is not believed. `None`: the interval is learned from the heartbeats that arrive, if any.
        after_failures: failed executions in a row that quarantine a scanner without any alert, >= 1; `None`: never.
    """

    cooloff: Seconds = 60.0
    cooloff_cap: Seconds = 3600.0
    successes: int = 3
    max_share: float = 0.5
    critical: tuple[str, ...] = ()
    lease: Seconds = 3600.0
    heartbeat: Seconds | None = None
    after_failures: int | None = None

    def __post_init__(self) -> None:
        self._number("cooloff", above=0)
        self._number("cooloff_cap", above=0)
        if self.cooloff_cap < self.cooloff:
            raise self._fail("cooloff_cap", f">= cooloff ({self.cooloff:g})")
        self._whole("successes", 1)
        self._number("max_share", least=0, most=1)
        self._names("critical")
        self._number("lease", above=0)
        self._optional("heartbeat", above=0)
        if self.after_failures is not None:
            self._whole("after_failures", 1)


class Policy(msgspec.Struct, frozen=True, metaclass=_Named):
    """The layers around a scanner; `None` leaves a layer out (`timeout` cannot be left out).

    Attributes:
        cache, retry, breaker, limit, timeout: option objects of these names.
    """

    cache: Cache | None = Cache()
    retry: Retry | None = Retry()
    breaker: Breaker | None = Breaker()
    limit: Limit | None = None
    timeout: Timeout = Timeout()

    def __post_init__(self) -> None:
        for layer, kind in LAYERS.items():
            check_layer(layer, getattr(self, layer), kind, where="policy")

    def replace(self, layers: dict[str, Any]) -> Policy:
        """Return this policy with whole layers replaced, `{name: option object or None}`."""
        return msgspec.structs.replace(self, **layers) if layers else self


SLO_EXECUTIONS = 1000
"""How many of a scanner's last executions its objective, `slo`, is about."""
MAX_SLO = 1 - 1 / SLO_EXECUTIONS  # allows one failure


def check_slo(slo: object, name: str) -> None:
    """Raise `ConfigError` unless an objective is a share of executions that allows for a failure, or `None`."""
    if slo is not None and not (is_number(slo, 0, MAX_SLO) and slo):
        raise ConfigError(
            f"{name} must be a share of the last {SLO_EXECUTIONS} executions, > 0 and <= {MAX_SLO:g}, got {slo!r}"
        )


LAYERS: dict[str, type[Option]] = {
    "cache": Cache,
    "retry": Retry,
    "breaker": Breaker,
    "limit": Limit,
    "timeout": Timeout,
}


def check_layer(layer: str, value: object, kind: type[Option], where: str) -> None:
    """Raise `ConfigError` unless `value` is an option object of its layer, or `None` where that is allowed."""
    if isinstance(value, kind) or (value is None and layer != "timeout"):
        return
    allowed = f"a {kind.__name__}" + ("" if layer == "timeout" else " or None")
    raise ConfigError(f"{where}: {layer} must be {allowed}, got {value!r}")


@functools.cache
def durations(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the fields of an option class that are durations, which no other number is (a rate, a share)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return frozenset(name for name, hint in hints.items() if Seconds in (hint, *typing.get_args(hint)))
