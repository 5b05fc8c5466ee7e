"""pyresilience: one decorator that takes all options."""

from __future__ import annotations

from typing import Any

import pyresilience
from pyresilience.contrib.http import retry_after_delay
from pyresilience.contrib.prometheus import PrometheusListener

from tests.peers.stacks.base import PAUSE, Call, NotOffered, Stack, Wanted, not_offered

_registry = pyresilience.ResilienceRegistry()


class Pyresilience(Stack):
    """Its own order of layers, which is fixed."""

    packages = ("pyresilience",)

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        not_offered(wanted, "within", "counts", "doubts")
        if wanted.stale or wanted.lasting:
            raise NotOffered("")
        options: dict[str, Any] = {}
        seconds = wanted.timeout or wanted.total
        if seconds is not None:
            options["timeout"] = pyresilience.TimeoutConfig(seconds=seconds, per_attempt=wanted.total is None)
        if wanted.attempts > 1:
            options["retry"] = pyresilience.RetryConfig(
                max_attempts=wanted.attempts,
                delay=PAUSE,
                backoff_factor=1,
                retry_on=(OSError,),
                delay_func=retry_after_delay(),
            )
        if wanted.failures is not None:
            options["circuit_breaker"] = pyresilience.CircuitBreakerConfig(
                failure_threshold=wanted.failures, recovery_timeout=wanted.open_for
            )
        if wanted.ttl is not None:
            options["cache"] = pyresilience.CacheConfig(ttl=wanted.ttl)
        if wanted.metrics:
            options["listeners"] = [PrometheusListener()]
        return _decorator(options, wanted.provider)(source)


def _decorator(options: dict[str, Any], provider: str) -> Any:
    if not provider:
        return pyresilience.resilient(**options)
    if _registry.get(provider) is None:
        _registry.register(provider, pyresilience.ResilienceConfig(**options))
    return _registry.decorator(provider)


STACK = Pyresilience()
