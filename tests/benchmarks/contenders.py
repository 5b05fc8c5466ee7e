"""Who is measured: a bare pool, two stacks by hand, and this library, all with the same work to do.

| name | what it is |
| --- | --- |
| B | a long-lived `ThreadPoolExecutor` of 8 workers: submit all, take all results |
| N | what people write first: `cachetools.cached` with a lock, `tenacity.retry`, pybreaker, `labels()` at each call |
| N2 | the lean one: a `TTLCache` with a lock, a loop for the retries, pybreaker, labels resolved once; no timeouts |
| ours | a run of as many scanners with cache, retry, breaker and timeout, and its report |

B, N and N2 promise less: no timeout ends a hanging call, no caller has objects of its own, nobody waits for one call
together. N and N2 return the very same list from their caches to everybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cachetools
import msgspec
import prometheus_client
import pybreaker
import tenacity

from resilient_scan import Candidate, PrometheusMetrics, ScanRunner, scanner
from resilient_scan.metrics import exposition

WORKERS = 8
RUNS_A_SCRAPE = 10
State = dict[str, Any]
Answer = Callable[[State], list[Candidate]]


class Work(msgspec.Struct, frozen=True):
    """What a scanner does, and what it is given.

    Attributes:
        candidates: how many it finds, each with four extras.
        tickers: how many the state holds, besides a date and the number of the run.
        fresh: whether every run misses the cache.
        metrics: whether it is counted and timed, and scraped once in ten runs.
        store: the URL of a store, or `None`.
        scanners: how many of them.
    """

    candidates: int = 0
    tickers: int = 0
    fresh: bool = True
    metrics: bool = False
    store: str | None = None
    scanners: int = 1000

    @property
    def runs(self) -> int:
        """Return how many runs are measured at a time."""
        return RUNS_A_SCRAPE if self.metrics else 1

    @property
    def scans(self) -> int:
        """Return how many scans are measured at a time."""
        return self.scanners * self.runs

    def state(self, run: int) -> State:
        """Return what a run is given."""
        state: State = {"trade_date": "2026-11-24", "run": run if self.fresh else 0}
        if self.tickers:
            state["tickers"] = [f"T{number}" for number in range(self.tickers)]
        return state

    def answer(self, _state: State) -> list[Candidate]:
        """Find that many."""
        return [
            Candidate(f"T{n}", "one", "moved", extras={"price": 1.5 * n, "volume": n, "name": "x", "up": True})
            for n in range(self.candidates)
        ]


class Contender:
    """Makes the runs of its work, each time it is called."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.run = 0
        self.registry = prometheus_client.CollectorRegistry()

    def __call__(self) -> None:
        for _ in range(self.work.runs):
            self.run += 1
            self.once(self.work.state(self.run))
        if self.work.metrics:
            exposition(self.registry)

    def once(self, state: State) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of its threads."""


class OnPool(Contender):
    """On a pool by hand."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.pool = ThreadPoolExecutor(WORKERS)
        if work.metrics:
            self.done = prometheus_client.Counter("done", "-", ("scanner", "status"), registry=self.registry)
            self.took = prometheus_client.Histogram("took", "-", ("scanner",), registry=self.registry)
        self.calls = [self.protected(number) for number in range(work.scanners)]

    def protected(self, _number: int) -> Answer:
        raise NotImplementedError

    def once(self, state: State) -> None:
        futures = [self.pool.submit(call, state) for call in self.calls]
        for future in futures:
            future.result()

    def close(self) -> None:
        self.pool.shutdown()


class Bare(OnPool):
    """B."""

    def protected(self, _number: int) -> Answer:
        return self.work.answer


def _key(state: State) -> int:
    key: int = state["run"]
    return key


class ByHand(OnPool):
    """N."""

    def protected(self, number: int) -> Answer:
        breaker, answer, name = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60), self.work.answer, f"s{number}"

        @cachetools.cached(cachetools.TTLCache(1024, 300), key=_key, lock=threading.Lock())
        @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential(0.5, 10))
        def call(state: State) -> list[Candidate]:
            return breaker.call(answer, state)

        def counted(state: State) -> list[Candidate]:
            began = time.perf_counter()
            found = call(state)
            self.took.labels(name).observe(time.perf_counter() - began)
            self.done.labels(name, "completed").inc()
            return found

        return counted if self.work.metrics else call


def _tried(breaker: pybreaker.CircuitBreaker, call: Answer, state: State) -> list[Candidate]:
    for attempt in range(2):
        try:
            return breaker.call(call, state)
        except pybreaker.CircuitBreakerError:
            raise
        except Exception:
            time.sleep(0.5 * 2**attempt)
    return breaker.call(call, state)


class Lean(OnPool):
    """N2."""

    def protected(self, number: int) -> Answer:
        breaker, answer, name = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60), self.work.answer, f"s{number}"
        cache: cachetools.TTLCache[int, list[Candidate]] = cachetools.TTLCache(1024, 300)
        lock = threading.Lock()

        def call(state: State) -> list[Candidate]:
            key = state["run"]
            with lock:
                found = cache.get(key)
            if found is not None:
                return found
            found = _tried(breaker, answer, state)
            with lock:
                cache[key] = found
            return found

        if not self.work.metrics:
            return call
        observe, count = self.took.labels(name).observe, self.done.labels(name, "completed").inc

        def counted(state: State) -> list[Candidate]:
            began = time.perf_counter()
            found = call(state)
            observe(time.perf_counter() - began)
            count()
            return found

        return counted


class Ours(Contender):
    """This library."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        fleet = [scanner(name=f"s{number}", pipeline="p")(work.answer) for number in range(work.scanners)]
        listeners = (PrometheusMetrics(self.registry),) if work.metrics else ()
        self.runner = ScanRunner(fleet, max_workers=WORKERS, listeners=listeners, store=work.store)

    def once(self, state: State) -> None:
        report = self.runner.run(state)
        assert report.complete
        assert len(report.candidates) == self.work.candidates * self.work.scanners

    def close(self) -> None:
        self.runner.close()


CONTENDERS: dict[str, type[Contender]] = {"B": Bare, "N": ByHand, "N2": Lean, "ours": Ours}
