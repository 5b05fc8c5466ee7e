"""This library: a scanner in a runner. A call is a run of one scanner, a fleet is a run of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    Limit,
    LogEvents,
    Policy,
    PrometheusMetrics,
    Retry,
    RetryAfter,
    ScanContext,
    ScanResult,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from tests.peers.stacks.base import PAUSE, AsyncCall, Call, Down, Stack, TooMany, Wanted

ENDED = {Status.TIMEOUT: "timeout", Status.REJECTED: "refused", Status.SKIPPED: "timeout"}


class Refused(Exception):
    """A scan ended `rejected`."""


class Here(Stack):
    """The runner lives as long as the process, as the documentation says."""

    packages = ("resilient-scan",)

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        runner = _runner([_scanner("source", source, wanted)], wanted, wanted.callers)

        def call(*arguments: Any, deadline: float | None = None) -> Any:
            return _opened(runner.run({"arguments": arguments}, deadline=deadline).results["source"])

        return call

    def siblings(self, functions: dict[str, Call], wanted: Wanted) -> dict[str, Call]:
        runner = _runner([_scanner(name, each, wanted) for name, each in functions.items()], wanted, 8)

        def calls(name: str) -> Call:
            return lambda: _opened(runner.run({}, only=[name]).results[name])

        return {name: calls(name) for name in functions}

    def within(self, call: Call, seconds: float) -> Any:
        return call(deadline=seconds)

    def fleet(self, calls: dict[str, Call], wanted: Wanted, workers: int = 8) -> Iterator[tuple[str, str]]:
        scanners = [_scanner(name, function, wanted) for name, function in calls.items()]
        with _runner(scanners, wanted, workers) as runner:
            for result in runner.stream({}):
                yield result.scanner, ENDED.get(result.status, "answered" if result.status.answered else "failed")

    def repeated(self, calls: dict[str, Call], wanted: Wanted) -> Call:
        runner = _runner([_scanner(name, function, wanted) for name, function in calls.items()], wanted, 8)
        return lambda: runner.run({}).candidates

    def awaited(self, calls: dict[str, AsyncCall], wanted: Wanted) -> Call:
        scanners = [_async_scanner(name, function) for name, function in calls.items()]
        runner = _runner(scanners, wanted, 8, max_async=len(scanners))
        return lambda: runner.run({}).candidates


def _scanner(name: str, function: Call, wanted: Wanted) -> Any:
    @scanner(name=name, pipeline="peers", **({"limit": Limit(wanted.provider)} if wanted.provider else {}))
    def scan(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        try:
            value = function(*state.get("arguments", ()))
        except TooMany as error:
            raise RetryAfter(error.retry_after) from error
        if wanted.doubts is not None and wanted.doubts(value):
            context.doubt("nothing in it")
        return [Candidate(ticker="ANSWER", source=name, context="", extras={"value": value})]

    return scan


def _async_scanner(name: str, function: AsyncCall) -> Any:
    @scanner(name=name, pipeline="peers")
    async def scan(_state: dict[str, Any]) -> list[Candidate]:
        value = await function()
        return [Candidate(ticker="ANSWER", source=name, context="", extras={"value": value})]

    return scan


def _runner(scanners: list[Any], wanted: Wanted, workers: int, max_async: int = 1000) -> ScanRunner:
    retry = Retry(attempts=wanted.attempts, base=PAUSE, cap=PAUSE, on=(OSError,)) if wanted.attempts > 1 else None
    breaker = None
    if wanted.failures is not None:
        breaker = Breaker(
            failures=wanted.failures,
            open_for=wanted.open_for,
            on=wanted.counts or (Exception,),
            within=wanted.within,
            suspicious=wanted.doubts is not None,
        )
    cache = None if wanted.ttl is None else Cache(ttl=wanted.ttl, stale_if_error=wanted.stale, jitter=0)
    limit: dict[str, int] = {} if wanted.hung is None else {"max_abandoned": wanted.hung}
    timeout = Timeout(total=wanted.timeout or wanted.total or 60, **limit)
    return ScanRunner(
        scanners,
        policy=Policy(cache=cache, retry=retry, breaker=breaker, timeout=timeout),
        max_workers=workers,
        max_async=max_async,
        store="sqlite:///scan.db" if wanted.lasting else None,
        listeners=(LogEvents(), PrometheusMetrics()) if wanted.metrics else (),
    )


def _opened(result: ScanResult) -> Any:
    if result.status.answered:
        (candidate,) = result.candidates
        return candidate.extras["value"]
    if result.status is Status.REJECTED:
        raise Refused
    if result.status in {Status.TIMEOUT, Status.SKIPPED}:
        raise TimeoutError
    raise Down


STACK = Here()
