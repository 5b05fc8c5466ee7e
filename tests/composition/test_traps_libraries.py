"""Traps in pybreaker, tenacity, cachetools and prometheus_client that are left after the tests of each layer.

Each test first shows the trap in the library, put together as it invites one to, and then that a fleet is free of it.
"""

from __future__ import annotations

import gc
import random as global_random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import cachetools
import prometheus_client
import pybreaker
import pytest
import tenacity

from resilient_scan import (
    Breaker,
    Cache,
    PrometheusMetrics,
    Retry,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, flapping, hanging, healthy
from tests.support.draws import SameDraw
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses

DOWN = OSError("down")


def test_a_breakers_lock_is_held_while_the_call_runs() -> None:
    """Why a call must never run inside of `pybreaker.CircuitBreaker.call`; the fleet's side has a figure of its own."""
    naive = pybreaker.CircuitBreaker()
    pause = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        list(pool.map(lambda _n: naive.call(pause.wait, 0.05), range(4)))
        assert time.monotonic() - began >= 0.2


def test_a_timeout_outside_the_breaker_is_invisible_to_it(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    naive = pybreaker.CircuitBreaker(fail_max=1)
    call = background(naive.call, release.wait)
    with pytest.raises(TimeoutError):
        call.result(timeout=0.02)
    assert naive.fail_counter == 0
    ours = fleet(hanging("h", release), policy=bare(breaker=Breaker(failures=1), timeout=Timeout(total=0.2)))
    assert [statuses(ours.run({}))[0] for _ in range(2)] == [Status.TIMEOUT, Status.REJECTED]


def test_ctrl_c_does_not_come_out_as_a_breakers_error(fleet: Fleet, bare: Bare) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(pybreaker.CircuitBreakerError):
        pybreaker.CircuitBreaker(fail_max=1).call(interrupted)
    runner = fleet(flapping("s", [KeyboardInterrupt(), []]), policy=bare(breaker=Breaker(failures=1)))
    (first,) = runner.run({}).results.values()
    assert first.error is not None
    assert (first.status, first.error.type) == (Status.ERROR, "KeyboardInterrupt")
    assert statuses(runner.run({})) == [Status.COMPLETED]  # and it is no failure of the source


def test_the_breaker_is_on_the_runners_clock(fleet: Fleet, bare: Bare) -> None:
    """pybreaker knows the wall clock only."""
    clock = FakeClock()
    runner = fleet(flapping("s", [DOWN, []]), policy=bare(breaker=Breaker(failures=1, open_for=3600)), clock=clock)
    runner.run({})
    assert statuses(runner.run({})) == [Status.REJECTED]
    clock.advance(3600)
    assert statuses(runner.run({})) == [Status.COMPLETED]


def test_a_retry_draws_from_the_runners_chance(fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    """tenacity's random waits use the global `random`."""

    def untouched(*_args: Any) -> float:
        raise AssertionError("the global random was asked")

    for name in ("random", "uniform"):
        monkeypatch.setattr(global_random, name, untouched)
    instants = []
    for _ in range(2):
        clock = FakeClock(auto=True)
        policy = bare(retry=Retry(attempts=3, base=1, cap=10))
        fleet(flapping("s", [DOWN, DOWN, []]), policy=policy, clock=clock, random=Random(7)).run({})
        instants.append(clock.monotonic())
    assert instants[0] == instants[1] > 0


def test_a_cancel_of_a_backoff_is_no_retry_storm(fleet: Fleet, bare: Bare, background: Background) -> None:
    """tenacity's `sleep_using_event` returns when the event is set, and the next attempt follows at once."""
    stop = threading.Event()
    stop.set()
    naive: list[int] = []

    @tenacity.retry(
        sleep=tenacity.sleep_using_event(stop), wait=tenacity.wait_fixed(60), stop=tenacity.stop_after_attempt(5)
    )
    def storm() -> None:
        naive.append(1)
        raise DOWN

    with pytest.raises(tenacity.RetryError):
        storm()
    assert len(naive) == 5

    ours: list[int] = []
    failed = threading.Event()

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        ours.append(1)
        failed.set()
        raise DOWN

    policy = bare(retry=Retry(attempts=5, base=50, cap=50), timeout=Timeout(total=1000))
    runner = fleet(source, policy=policy, random=SameDraw())
    run = background(runner.run, {})
    assert failed.wait(5)
    runner.close()
    assert statuses(run.result(5)) == [Status.SKIPPED]
    assert len(ours) == 1


def test_many_threads_share_a_retry(fleet: Fleet, bare: Bare, background: Background) -> None:
    """`@retry` on a shared function leaks KeyError('idle_for') into callers under a short switch interval."""
    calls = iter(range(10**6))

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        if next(calls) % 3:
            raise DOWN
        return []

    runner = fleet(source, policy=bare(retry=Retry(attempts=50, base=0, cap=0)), max_workers=8)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        runs = [background(lambda: [statuses(runner.run({}))[0] for _ in range(40)]) for _ in range(8)]
        ends = [status for run in runs for status in run.result(30)]
    finally:
        sys.setswitchinterval(interval)
    assert ends == [Status.COMPLETED] * 320


def test_a_cache_is_not_corrupted_by_threads(fleet: Fleet, bare: Bare, background: Background) -> None:
    """`TTLCache` without a lock is corrupted for good within 0.3 s."""
    policy = bare(cache=Cache(ttl=0.001, maxsize=4))

    @scanner(pipeline="test")
    def source(state: dict[str, Any]) -> list[Any]:
        return [{"ticker": f"T{state['n']}"}]

    runner = fleet(source, policy=policy, max_workers=8)

    def hammer(start: int) -> bool:
        return all(
            [found.ticker for found in runner.run({"n": n % 7}).candidates] == [f"T{n % 7}"]
            for n in range(start, start + 100)
        )

    assert all(future.result(30) for future in [background(hammer, start) for start in range(8)])


def test_one_cache_for_two_functions_collides(fleet: Fleet, bare: Bare) -> None:
    """The key does not know the function."""
    cache: cachetools.LRUCache[Any, Any] = cachetools.LRUCache(8)
    first = cachetools.cached(cache)(lambda n: f"first {n}")
    second = cachetools.cached(cache)(lambda n: f"second {n}")
    assert (first(1), second(1)) == ("first 1", "first 1")  # the trap
    runner = fleet(
        healthy("first", [{"ticker": "FIRST"}]), healthy("second", [{"ticker": "SECOND"}]), policy=bare(cache=Cache())
    )
    for _ in range(2):
        assert [found.ticker for found in runner.run({"n": 1}).candidates] == ["FIRST", "SECOND"]


def test_metrics_may_be_made_twice_on_one_registry(fleet: Fleet) -> None:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("twice_total", "Made twice.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        prometheus_client.Counter("twice_total", "Made twice.", registry=registry)
    runner = fleet(healthy("one"), listeners=(PrometheusMetrics(registry=registry),))
    other = fleet(healthy("two"), listeners=(PrometheusMetrics(registry=registry),))
    runner.run({})
    other.run({})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"pipeline": "test", **labels})

    for name in ("one", "two"):
        assert value("resilient_scan_scans_total", scanner=name, status="completed") == 1
        assert value("resilient_scan_scans_total", scanner=name, status="error") == 0  # made at registration


def test_no_nan_and_no_bucket_that_ends_too_soon(fleet: Fleet, bare: Bare) -> None:
    registry = prometheus_client.CollectorRegistry()
    clock = FakeClock()

    @scanner(pipeline="test")
    def slow(_state: dict[str, Any]) -> list[Any]:
        clock.advance(45)
        return []

    runner = fleet(
        slow, policy=bare(timeout=Timeout(total=1000)), clock=clock, listeners=(PrometheusMetrics(registry=registry),)
    )
    runner.run({})
    name, labels = "resilient_scan_execution_duration_seconds", {"scanner": "slow", "pipeline": "test"}
    assert registry.get_sample_value(f"{name}_sum", labels) == 45
    assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "30.0"}) == 0
    assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "60.0"}) == 1


@pytest.mark.slow
def test_a_failed_call_keeps_no_locals_alive(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    class Big:
        alive = 0

        def __init__(self) -> None:
            Big.alive += 1

        def __del__(self) -> None:
            Big.alive -= 1

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        big = Big()
        raise OSError(id(big))

    runner = fleet(source, policy=bare(retry=Retry(attempts=3, base=0, cap=0), breaker=Breaker(), cache=Cache()))
    gc.collect()
    gc.disable()
    try:
        runner.run({})
        eventually(lambda: Big.alive == 0)
    finally:
        gc.enable()
