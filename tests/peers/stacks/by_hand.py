"""cachetools, tenacity and pybreaker as decorators, on a ThreadPoolExecutor with `future.result(timeout)`.

With what their documentation has for these faults: `condition=` against stampedes, no retry against an open breaker, a
wait that the exception tells.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cachetools
import pybreaker
import tenacity

from tests.peers.stacks.base import AsyncCall, Call, NotOffered, Stack, Wanted, ended, not_offered, told


class ByHand(Stack):
    """The libraries that are here below."""

    packages = ("cachetools", "pybreaker", "tenacity")

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        if wanted.metrics:
            raise NotOffered("what you write")
        call = self._layers(source, wanted)
        pool = ThreadPoolExecutor(max(8, wanted.callers))
        seconds = wanted.timeout or wanted.total

        @functools.wraps(source)
        def limited(*arguments: Any) -> Any:
            return pool.submit(call, *arguments).result(timeout=seconds)

        limited.submit = functools.partial(pool.submit, call)
        return limited

    @staticmethod
    def _layers(function: Call, wanted: Wanted) -> Call:
        call = function
        not_offered(wanted, "within", "doubts")
        if wanted.failures is not None:
            call = (_shared if wanted.provider else _breaker)(wanted)(call)
        if wanted.attempts > 1:
            call = tenacity.retry(
                stop=tenacity.stop_after_attempt(wanted.attempts),
                wait=tenacity.wait_exception(told),
                retry=tenacity.retry_if_exception_type(OSError),
                reraise=True,
            )(call)
        if wanted.stale or (wanted.ttl is not None and wanted.lasting):
            raise NotOffered("")
        if wanted.ttl is not None:
            call = cachetools.cached(cachetools.TTLCache(1024, wanted.ttl), condition=threading.Condition())(call)
        return call

    def within(self, call: Call, seconds: float) -> Any:
        return call.submit().result(timeout=seconds)  # type: ignore[attr-defined]

    def fleet(self, calls: dict[str, Call], wanted: Wanted, workers: int = 8) -> Iterator[tuple[str, str]]:
        with ThreadPoolExecutor(workers) as pool:
            futures = {name: pool.submit(self._layers(call, wanted)) for name, call in calls.items()}
            for name, future in futures.items():
                yield name, ended(functools.partial(future.result, timeout=wanted.timeout))

    def repeated(self, calls: dict[str, Call], wanted: Wanted) -> Call:
        ready = [self._layers(call, wanted) for call in calls.values()]
        pool = ThreadPoolExecutor(8)
        return lambda: [future.result(wanted.timeout) for future in [pool.submit(call) for call in ready]]

    def protect_async(self, function: AsyncCall, wanted: Wanted) -> AsyncCall:
        breaker = pybreaker.CircuitBreaker(fail_max=wanted.failures or 5, reset_timeout=wanted.open_for)

        @tenacity.retry(
            stop=tenacity.stop_after_attempt(wanted.attempts),
            wait=tenacity.wait_exception(told),
            retry=tenacity.retry_if_exception_type(OSError),
            reraise=True,
        )
        async def limited(*arguments: Any) -> Any:
            with breaker.calling():  # `call_async` is for Tornado
                async with asyncio.timeout(wanted.timeout):
                    return await function(*arguments)

        return limited


def _breaker(wanted: Wanted) -> pybreaker.CircuitBreaker:
    counts = wanted.counts
    return pybreaker.CircuitBreaker(
        fail_max=wanted.failures,
        exclude=[] if counts is None else [lambda error: not counts(error)],
        reset_timeout=wanted.open_for,
        state_storage=_redis() if wanted.lasting else None,
    )


_shared = functools.cache(_breaker)


def _redis() -> pybreaker.CircuitRedisStorage:
    import redis

    return pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, redis.StrictRedis.from_url(os.environ["PEERS_REDIS"]))


STACK = ByHand()
