"""nopanic: `compose`, outermost first, in the order that its documentation gives."""

from __future__ import annotations

import functools
import os
from typing import Any

import nopanic

from tests.peers.stacks.base import PAUSE, Call, NotOffered, Stack, Wanted, not_offered


class Nopanic(Stack):
    """One policy for each concern."""

    packages = ("nopanic",)

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        if wanted.metrics:
            raise NotOffered("OpenTelemetry")
        if wanted.ttl is not None and wanted.lasting:
            raise NotOffered("")
        not_offered(wanted, "doubts")
        policies: list[Any] = []
        if wanted.ttl is not None:
            policies.append(nopanic.cache(wanted.ttl, stale_ttl=wanted.stale))
        if wanted.total is not None:
            policies.append(nopanic.deadline(wanted.total))
        if wanted.attempts > 1:
            policies.append(nopanic.retry(wanted.attempts, on=OSError, backoff=nopanic.backoff.fixed(PAUSE)))
        if wanted.failures is not None:
            policies += _shared(wanted) if wanted.provider else [_breaker(wanted)]
        if wanted.timeout is not None:
            policies.append(nopanic.timeout(wanted.timeout))
        return nopanic.compose(*policies)(source) if policies else source

    def within(self, call: Call, seconds: float) -> Any:
        with nopanic.deadline(seconds):
            return call()


def _breaker(wanted: Wanted) -> Any:
    options: dict[str, Any] = {"min_calls": wanted.failures, "reset_timeout": wanted.open_for, "name": "source"}
    if wanted.within is not None:
        options["window"] = wanted.within
    if wanted.counts is not None:
        options["on"] = wanted.counts
    if not wanted.lasting:
        return nopanic.circuit_breaker(failure_threshold=0.5, **options)
    import redis
    from nopanic_redis import redis_circuit_breaker

    return redis_circuit_breaker(redis.Redis.from_url(os.environ["PEERS_REDIS"]), failure_threshold=0.5, **options)


@functools.cache
def _shared(wanted: Wanted) -> list[Any]:
    """Return what is created once and applied to every call to one provider."""
    return [_breaker(wanted), nopanic.adaptive_rate_limit(1000)]


STACK = Nopanic()
