"""interlock-cb: a pipeline in the order that its documentation recommends. It has no cache."""

from __future__ import annotations

import functools
import os
from typing import Any

import interlock
import tenacity

from tests.peers.stacks.base import Call, NotOffered, Stack, Wanted, told


class Interlock(Stack):
    """A breaker, with strategies around it."""

    packages = ("interlock-cb", "tenacity")

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        if wanted.metrics:
            raise NotOffered("OpenTelemetry")
        if wanted.ttl is not None:
            raise NotOffered("")
        built = interlock.Pipeline.builder()
        if wanted.total is not None:
            built = built.timeout(wanted.total)
        if wanted.attempts > 1:
            built = built.retry(attempts=wanted.attempts, wait=tenacity.wait_exception(told))
        if wanted.failures is not None:
            built = built.circuit_breaker((_shared if wanted.provider else _breaker)(wanted))
        if wanted.timeout is not None:
            built = built.timeout(wanted.timeout)
        return built.build()(source)


def _breaker(wanted: Wanted) -> interlock.CircuitBreaker:
    options: dict[str, Any] = {}
    if wanted.lasting:
        import redis
        from interlock.integrations.redis import RedisStorage

        options["storage"] = RedisStorage(redis.Redis.from_url(os.environ["PEERS_REDIS"]))
    if wanted.counts is not None or wanted.doubts is not None:
        options["classifier"] = _Classifier(wanted)
    window: dict[str, Any] = {}
    if wanted.within is not None:
        window = {"window_type": interlock.WindowType.TIME_BASED, "window_size": wanted.within}
    config = interlock.Config(minimum_number_of_calls=wanted.failures, wait_duration_in_open=wanted.open_for, **window)
    return interlock.CircuitBreaker(name="source", config=config, **options)


_shared = functools.cache(_breaker)


class _Classifier:
    """Decides what is a failure, of errors and of answers."""

    def __init__(self, wanted: Wanted) -> None:
        self._counts = wanted.counts or (lambda _error: True)
        self._doubts = wanted.doubts or (lambda _result: False)

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        return self._doubts(result) if exception is None else self._counts(exception)


STACK = Interlock()
