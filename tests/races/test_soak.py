"""A soak: faults of all kinds at random, from several threads, and every number held against the others at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import Breaker, Cache, Limit, Policy, PrometheusMetrics, Retry, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import ExecutionEnded, LateCompletion, ScanEnded, ThreadAbandoned
from resilient_scan.testing import FunctionScanner, Recorder

SECONDS, USERS = 60.0, 3


def troubled(number: int, chance: Random) -> FunctionScanner:
    """Make a scanner that answers, fails, yields a part, or takes longer than it may, by chance."""
    pause = threading.Event()

    @scanner(pipeline="soak", name=f"s{number}", limit=Limit("acme", concurrency=4) if number % 3 == 0 else None)
    def one(_state: dict[str, Any]) -> Any:
        lot = chance.random()
        yield {"ticker": "AAPL"}
        if lot < 0.2:
            raise OSError("down")
        if lot < 0.4:
            pause.wait(0.04)  # back within the grace period
        elif lot < 0.5:
            pause.wait(0.12)

    return one


@pytest.mark.long
def test_every_number_is_true_after_a_long_run_of_faults() -> None:
    chance, recorder, registry = Random(24), Recorder(), CollectorRegistry()
    policy = Policy(
        cache=Cache(ttl=0.05, stale_if_error=0.1),
        retry=Retry(attempts=2, base=0.001, cap=0.002),
        breaker=Breaker(failures=4, open_for=0.05, open_cap=0.1),
        timeout=Timeout(total=0.02, max_abandoned=3),
    )
    runner = ScanRunner(
        [troubled(number, chance) for number in range(12)],
        policy=policy,
        listeners=[recorder, PrometheusMetrics(registry)],
    )
    seen: list[Counter[Status]] = [Counter() for _ in range(USERS)]
    end = time.monotonic() + SECONDS

    def use(mine: Counter[Status]) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            mine.update(runner.run({"turn": number // 3}, deadline=0.015 if number % 7 == 0 else None).counts)

    users = [threading.Thread(target=use, args=(mine,)) for mine in seen]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for _ in range(5000):
        if runner.abandoned() == [] and returned(recorder) >= len(recorder.of(ThreadAbandoned)):
            break
        threading.Event().wait(0.001)
    runner.close()
    threading.Event().wait(0.5)  # what the deadline of a run left at work tells its listeners from its own thread

    reported = sum(seen, Counter[Status]())
    assert reported.total() > 1000
    assert {Status.COMPLETED, Status.CACHED, Status.TIMEOUT, Status.ERROR, Status.REJECTED} <= set(reported)
    assert Counter(event.result.status for event in recorder.of(ScanEnded)) == reported
    assert counted(registry, "scans", "status") == {status.value: count for status, count in reported.items()}
    ended = Counter(event.outcome for event in recorder.of(ExecutionEnded))
    assert counted(registry, "executions", "outcome") == dict(ended)
    assert returned(recorder) == len(recorder.of(ThreadAbandoned)) > 100
    assert runner._fleet.providers["acme"].taken == 0


def returned(recorder: Recorder) -> int:
    """Return how many threads came back after they had been reported as abandoned."""
    return sum(event.abandoned for event in recorder.of(LateCompletion))


def counted(registry: CollectorRegistry, family: str, label: str) -> dict[str, int]:
    """Return the sums of a counter by one label, without those that are zero."""
    sums: Counter[str] = Counter()
    for metric in registry.collect():
        if metric.name == f"resilient_scan_{family}":
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    sums[sample.labels[label]] += int(sample.value)
    return {name: count for name, count in sums.items() if count}
