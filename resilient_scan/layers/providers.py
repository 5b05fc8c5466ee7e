"""Find the provider of a call: which ones a runner has, with whose numbers, and behind which breaker.

There are three kinds. A scanner's options name one (`Limit("sec")`); several scanners may, and one of them gives the
numbers. A call names one (`context.guarded(..., limit=...)`); it is made when it is first called. And where options
name none, it is the host that the scanner calls: such a one has a breaker, and no numbers. What one provider does with
the scanners that share it is in `layers.limit`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError
from resilient_scan.layers.limit import Provider, Timer
from resilient_scan.options import Breaker, Limit

if TYPE_CHECKING:
    from resilient_scan.layers.breaker.provider import ProviderBreaker

MAX_HOSTS = 256  # that a runner watches as providers, besides those that its scanners name

MakeBreaker = Callable[[str, Breaker, Collection[str] | None], "ProviderBreaker"]
"""`(provider, options, its scanners) -> breaker`; scanners that are `None`: it is a host that nobody names."""


class Providers(dict[str, Provider]):
    """The providers of one runner, by name.

    There are those in its scanners' options, those that scanners name in a call, and the hosts that scanners without a
    provider call.

    Args:
        limits: what the scanners' options say, `[(scanner, limit), ...]`.
        clock, at: each provider's.
        make_breaker: makes a provider's breaker; `None`: there are none.
        breakers: by scanner, its own breaker's options, for providers whose limit does not give any.

    Attributes:
        learning: held while a scanner learns whom it calls, so that what is learned last is reported last.

    Raises:
        ConfigError: two scanners give different numbers for one provider, or the extra `limits` is not installed.
    """

    def __init__(
        self,
        limits: list[tuple[str, Limit]],
        clock: Clock,
        at: Timer,
        make_breaker: MakeBreaker | None = None,
        breakers: Mapping[str, Breaker | None] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._clock = clock
        self._at = at
        self._make_breaker = make_breaker
        self._hosts = 0
        self.learning: threading.Lock = threading.Lock()
        for name, limit in merged(limits).items():
            scanners = [scanner for scanner, own in limits if own.provider == name]
            options = limit.breaker
            if options is UNSET:
                options = next((own for scanner in scanners if (own := breakers.get(scanner)) is not None), None)
            self[name] = self._made(limit, options, scanners)

    def _made(self, limit: Limit, options: Any, scanners: Collection[str] | None) -> Provider:
        breaker = None
        if isinstance(options, Breaker) and self._make_breaker is not None:
            breaker = self._make_breaker(limit.provider, options, scanners)
        return Provider(limit, self._clock, self._at, breaker)

    def at(self, place: str, options: Breaker | None) -> Provider | None:
        """Return the provider that a host and its port are; `None`: there are too many, or it is to have no breaker."""
        known = self.get(place)
        if known is not None or options is None or self._make_breaker is None or self._hosts >= MAX_HOSTS:
            return known
        self._hosts += 1  # two threads may both get here: then it is one too many, which does no harm
        return self.setdefault(place, self._made(Limit(place), options, None))

    def of(self, source: str, limit: Limit | None) -> Provider | None:
        """Return the provider of that name, made with `limit` if it is new; `None` if there is neither."""
        if source in self or limit is None:
            return self.get(source)
        # Two threads may both get here; `setdefault` is atomic, so both get the provider of the first.
        return self.setdefault(source, self._made(limit, limit.breaker, ()))


def merged(limits: list[tuple[str, Limit]]) -> dict[str, Limit]:
    """Return each provider's limit from what several scanners say, `[(scanner, limit), ...]`.

    A `Limit` without numbers only names the provider; the numbers come from another scanner.

    Raises:
        ConfigError: two scanners give different numbers for one provider.
    """
    for _, _, sentence in differing(limits):
        raise ConfigError(sentence)
    return {provider: limit for provider, (_, limit) in _first(limits).items()}


def differing(limits: list[tuple[str, Limit]]) -> Iterator[tuple[str, str, str]]:
    """Yield two scanners and a sentence for each provider that they give different numbers."""
    known = _first(limits)
    for scanner, limit in limits:
        first, there = known[limit.provider]
        if not limit.is_bare and limit != there:
            both = f"{_numbers(there)} by {first}, {_numbers(limit)} by {scanner}"
            way_out = "give the numbers once, the others name the provider only"
            yield first, scanner, f"provider {limit.provider} has two limits: {both}; {way_out}"


def _first(limits: list[tuple[str, Limit]]) -> dict[str, tuple[str, Limit]]:
    """Return, by provider, the first scanner that gives numbers, or else the first that names it, and its limit."""
    known: dict[str, tuple[str, Limit]] = {}
    for scanner, limit in limits:
        there = known.get(limit.provider)
        if there is None or there[1].is_bare:
            known[limit.provider] = (scanner, limit)
    return known


def _numbers(limit: Limit) -> str:
    rates = [f"rate {', '.join(limit.rates)}"] if limit.rates else []
    concurrency = [] if limit.concurrency is None else [f"concurrency {limit.concurrency}"]
    breaker = [] if limit.breaker is UNSET else ["no breaker" if limit.breaker is None else "a breaker"]
    return " and ".join([*rates, *concurrency, *breaker])
