"""The first table in `docs/compare.md`: each line by hand first, then here."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack

import cachetools
import pybreaker
import pytest
import tenacity

from resilient_scan import Breaker, Cache, Policy, Retry, RunReport, ScanRunner, Status, Timeout, scanner
from resilient_scan.testing import broken, hanging, healthy

PLAIN = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=0.1))
SHORT, LONG = 0.1, 10.0


def run(*scanners: object, policy: Policy = PLAIN, workers: int = 8) -> RunReport:
    with ScanRunner(scanners, policy=policy, max_workers=workers, listeners=()) as runner:
        return runner.run({})


def test_a_scanner_hangs(release: threading.Event) -> None:
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        stack.callback(release.set)  # else nobody gets past a failure
        futures = [pool.submit(release.wait)]
        loop: Future[bool] = Future()

        def by_hand() -> None:
            for future in as_completed(futures):
                loop.set_result(future.result(timeout=SHORT / 10))

        thread = threading.Thread(target=by_hand)
        thread.start()
        assert not wait([loop], SHORT).done  # ten times its timeout later it still waits
        release.set()
        assert loop.result(LONG) is True  # and then takes the late answer for one in time
        thread.join()
    release.clear()

    report = run(hanging("hung", release), healthy("sound"))
    assert report.results["hung"].status is Status.TIMEOUT
    assert report.results["sound"].status is Status.COMPLETED
    assert SHORT <= report.duration < LONG


def test_as_many_scanners_hang_as_there_are_workers(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(2)
    for _ in range(2):
        pool.submit(release.wait)
    assert not wait([pool.submit(int)], SHORT).done
    release.set()
    pool.shutdown()
    release.clear()

    report = run(hanging("one", release), hanging("two", release), healthy("sound"), workers=2)
    assert report.results["sound"].status is Status.COMPLETED


def test_eight_calls_at_once_through_one_breaker() -> None:
    breaker = pybreaker.CircuitBreaker()
    together = threading.Barrier(2)

    def meet() -> None:
        together.wait(SHORT)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(breaker.call, meet) for _ in range(2)]
        assert any(isinstance(call.exception(), threading.BrokenBarrierError) for call in calls)

    everybody = threading.Barrier(8)

    @scanner(pipeline="why", cache=None, retry=None, breaker=Breaker(), timeout=Timeout(total=LONG))
    def meeting(_state: dict[str, object]) -> list[object]:
        everybody.wait(LONG)
        return []

    with ScanRunner([meeting], max_workers=8, listeners=()) as runner, ThreadPoolExecutor(8) as callers:
        reports = list(callers.map(lambda number: runner.run({"number": number}), range(8)))
    assert all(report.complete for report in reports)


def test_calls_hang_behind_a_timeout(release: threading.Event) -> None:
    breaker = pybreaker.CircuitBreaker(fail_max=1)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(release.set)
        future = pool.submit(breaker.call, release.wait)
        with pytest.raises(TimeoutError):
            future.result(timeout=SHORT)
        assert breaker.fail_counter == 0
        release.set()
    assert breaker.current_state == pybreaker.STATE_CLOSED
    release.clear()

    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1), timeout=Timeout(total=SHORT, max_abandoned=8))
    with ScanRunner([hanging("hung", release)], policy=policy, listeners=()) as runner:
        assert runner.run({}).results["hung"].status is Status.TIMEOUT
        result = runner.run({}).results["hung"]
    assert result.status is Status.REJECTED
    assert result.error is not None
    assert result.error.type == "resilient_scan.CircuitOpen"


def test_a_retry_around_an_open_breaker() -> None:
    breaker = pybreaker.CircuitBreaker(fail_max=1)
    breaker.open()
    asked = []

    @tenacity.retry(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_none())
    def by_hand() -> None:
        asked.append("again")
        breaker.call(int)

    with pytest.raises(tenacity.RetryError):
        by_hand()
    assert len(asked) == 5

    policy = Policy(cache=None, retry=Retry(attempts=5, base=0, cap=0), breaker=Breaker(failures=2))
    (result,) = run(broken("bad"), policy=policy).results.values()
    assert result.attempts == 2


def test_ten_ask_a_failing_source_at_once_through_one_cache(release: threading.Event) -> None:
    by_hand, here = [], []
    everybody = threading.Barrier(10)

    @cachetools.cached(cachetools.TTLCache(8, 60), lock=threading.Lock())
    def cached() -> None:
        by_hand.append("call")
        everybody.wait(LONG)
        raise ValueError("HTTP 500")

    with ThreadPoolExecutor(10) as pool:
        wait([pool.submit(cached) for _ in range(10)])
    assert len(by_hand) == 10

    @scanner(pipeline="why", cache=Cache(), retry=None, breaker=None, timeout=Timeout(total=LONG))
    def failing(_state: dict[str, object]) -> list[object]:
        here.append("call")
        release.wait()
        raise ValueError("HTTP 500")

    joined = threading.Semaphore(0)

    @scanner(pipeline="why", cache=None)
    def after(_state: dict[str, object]) -> list[object]:
        joined.release()  # this run has asked for the failing scanner before
        return []

    with ScanRunner([failing, after], order="given", listeners=()) as runner, ThreadPoolExecutor(10) as callers:
        reports = [callers.submit(runner.run, {}) for _ in range(10)]
        assert all(joined.acquire(timeout=LONG) for _ in range(10))
        release.set()
        results = [report.result(LONG).results["failing"] for report in reports]
    assert {result.status for result in results} == {Status.ERROR}
    assert here == ["call"]


def test_a_caller_changes_the_list_that_came_from_the_cache() -> None:
    cached = cachetools.cached({})(lambda: ["AAPL"])
    cached().append("changed")
    assert cached() == ["AAPL", "changed"]

    answer = healthy("sound", [{"ticker": "AAPL", "source": "s", "context": "", "seen": []}], cache=Cache())
    with ScanRunner([answer], listeners=()) as runner:
        first = runner.run({})
        first.candidates[0].extras["seen"].append("changed")
        first.results["sound"].candidates.clear()
        second = runner.run({})
    assert second.results["sound"].status is Status.CACHED
    assert [candidate.extras for candidate in second.candidates] == [{"seen": []}]


def test_eight_scanners_log_into_a_list_in_a_shallow_copy_of_the_state() -> None:
    def logging(name: str) -> object:
        def scan(state: dict[str, list[str]]) -> list[object]:
            state["seen"].append(name)
            assert state["seen"] == [name]
            return []

        return scanner(name=name, pipeline="why")(scan)

    state: dict[str, list[str]] = {"seen": []}
    for number in range(8):
        copy.copy(state)["seen"].append(str(number))
    assert len(state["seen"]) == 8

    state = {"seen": []}
    with ScanRunner([logging(f"s{number}") for number in range(8)], listeners=()) as runner:
        assert runner.run(state).complete
    assert state == {"seen": []}
