"""After thousands of random scans reports, events, metrics and JSON logs agree to the last one."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    LogEvents,
    Policy,
    PrometheusMetrics,
    Retry,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import (
    AttemptEnded,
    BreakerChanged,
    ExecutionEnded,
    LateCompletion,
    RetryBudgetExhausted,
    RunEnded,
    ScanEnded,
    ScannerStateChanged,
    ThreadAbandoned,
)
from resilient_scan.testing import FunctionScanner, Recorder

USERS, RUNS, SCANNERS = 3, 110, 12
POLICY = Policy(
    cache=Cache(ttl=0.02, stale_if_error=0.05),
    retry=Retry(attempts=2, base=0.0001, cap=0.0002, budget=0.2),
    breaker=Breaker(failures=3, open_for=0.02, open_cap=0.05),
    timeout=Timeout(total=0.015, max_abandoned=2),
)
Key = tuple[str, ...]


class Lines(logging.Handler):
    """Keeps what is logged, parsed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(json.loads(record.getMessage()))

    def of(self, event: str, *fields: str) -> Counter[Key]:
        return Counter(tuple(str(line[field]) for field in fields) for line in self.seen if line["event"] == event)


def troubled(number: int, chance: Random) -> FunctionScanner:
    """Make a scanner that answers, fails, drops, or hangs, by chance; every third one has no cache."""
    pause = threading.Event()
    own: dict[str, Any] = {"cache": None} if number % 3 == 0 else {}

    @scanner(pipeline=f"p{number % 2}", name=f"s{number}", **own)
    def one(_state: dict[str, Any]) -> list[Any]:
        lot = chance.random()
        if lot < 0.25:
            raise (OSError if lot < 0.15 else ValueError)("down")
        if lot < 0.3:
            pause.wait(0.03)
        return [{"ticker": "A"}, *([{"nothing": 1}] if lot < 0.4 else [])]

    return one


def use(runner: ScanRunner, chance: Random, reported: Counter[Key]) -> None:
    """Run again and again; now and then with too little time, or with a scanner out of service."""
    for turn in range(RUNS):
        if turn % 10 == 3:
            runner.disable(f"s{chance.randrange(SCANNERS)}", reason="by chance")
        if turn % 10 == 7:
            for name in runner.names:
                runner.enable(name)
        deadline = (None, 0.0, 0.004)[min(chance.randrange(12), 2)] if turn % 4 == 0 else None
        report = runner.run({"turn": turn // 4}, deadline=deadline)
        reported.update((one.pipeline, one.scanner, one.status.value) for one in report.results.values())


def settle(runner: ScanRunner, recorder: Recorder) -> None:
    """Wait until what was left behind has ended, and everybody was told."""
    end = time.monotonic() + 20
    while runner.abandoned() or len(recorder.of(LateCompletion)) < len(recorder.of(ThreadAbandoned)):
        assert time.monotonic() < end, "a thread does not come back"
        threading.Event().wait(0.005)
    threading.Event().wait(0.2)  # what a run's deadline left at work tells its listeners from its own thread


class Soaked(msgspec.Struct):
    """What everybody says after the run."""

    recorder: Recorder
    registry: CollectorRegistry
    lines: Lines
    reported: Counter[Key]

    def told(self, kind: type, *fields: str) -> Counter[Key]:
        return Counter(tuple(str(getattr(event, field)) for field in fields) for event in self.recorder.of(kind))

    def counted(self, name: str, *labels: str) -> Counter[Key]:
        """Return a metric's values by some of its labels, without those that are zero."""
        sums: Counter[Key] = Counter()
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name == f"resilient_scan_{name}":
                    sums[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return +sums


@pytest.fixture(scope="module")
def soaked() -> Iterator[Soaked]:
    logger, lines, recorder, registry = logging.getLogger("truth"), Lines(), Recorder(), CollectorRegistry()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(lines)
    listeners = [recorder, PrometheusMetrics(registry), LogEvents(logger, format="json")]
    fleet = [troubled(number, Random(number)) for number in range(SCANNERS)]
    seen: list[Counter[Key]] = [Counter() for _ in range(USERS)]
    with ScanRunner(fleet, policy=POLICY, listeners=listeners, max_workers=6, random=Random(1)) as runner:
        threads = [
            threading.Thread(target=use, args=(runner, Random(number), mine)) for number, mine in enumerate(seen)
        ]
        threads.append(threading.Thread(target=lambda: [list(registry.collect()) for _ in range(20)]))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        settle(runner, recorder)
        yield Soaked(recorder, registry, lines, sum(seen, Counter[Key]()))


def test_the_run_had_everything_in_it(soaked: Soaked) -> None:
    assert soaked.reported.total() == USERS * RUNS * SCANNERS
    assert {status for _, _, status in soaked.reported} == {status.value for status in Status}
    for kind in (BreakerChanged, ScannerStateChanged, LateCompletion, RetryBudgetExhausted):
        assert soaked.recorder.of(kind), f"a run without {kind.__name__} proves little"


def test_scans_agree(soaked: Soaked) -> None:
    results = [event.result for event in soaked.recorder.of(ScanEnded)]
    assert Counter((one.pipeline, one.scanner, one.status.value) for one in results) == soaked.reported
    assert soaked.counted("scans_total", "pipeline", "scanner", "status") == soaked.reported
    logged = soaked.lines.of("scan_ended", "pipeline", "scanner", "status")
    for key, number in soaked.reported.items():
        out = key[2] in {"rejected", "disabled"}
        assert 0 < logged[key] <= number if out else logged[key] == number, key


def test_runs_agree(soaked: Soaked) -> None:
    logged: Counter[str] = Counter()
    for line in soaked.lines.seen:
        if line["event"] == "run_ended":
            logged.update(line["counts"])
    sums: Counter[str] = Counter()
    for (_, _, status), number in soaked.reported.items():
        sums[status] += number
    assert logged == sums
    assert soaked.counted("runs_total").total() == USERS * RUNS == len(soaked.recorder.of(RunEnded))
    assert soaked.counted("run_duration_seconds_count").total() == USERS * RUNS


def test_executions_agree(soaked: Soaked) -> None:
    executions = soaked.told(ExecutionEnded, "pipeline", "scanner", "outcome")
    assert soaked.counted("executions_total", "pipeline", "scanner", "outcome") == executions
    assert soaked.lines.of("execution_ended", "pipeline", "scanner", "outcome") == executions
    assert soaked.counted("execution_duration_seconds_count").total() == executions.total()
    failed = [event for event in soaked.recorder.of(ExecutionEnded) if event.outcome == "error"]
    errors = Counter((event.scanner, event.error.kind, event.error.blame) for event in failed)
    assert soaked.counted("errors_total", "scanner", "kind", "blame") == errors


def test_attempts_agree(soaked: Soaked) -> None:
    attempts = soaked.told(AttemptEnded, "scanner", "outcome")
    assert soaked.lines.of("attempt_ended", "scanner", "outcome") == attempts
    kept = Counter({key: number for key, number in attempts.items() if key[1] != "cancelled"})
    assert soaked.counted("attempts_total", "scanner", "outcome") == kept
    retried = Counter((event.scanner,) for event in soaked.recorder.of(AttemptEnded) if event.attempt > 1)
    assert soaked.counted("retries_total", "scanner") == retried
    assert soaked.counted("retry_budget_exhausted_total", "scanner") == soaked.told(RetryBudgetExhausted, "scanner")


def test_states_agree(soaked: Soaked) -> None:
    breakers = soaked.told(BreakerChanged, "scanner", "new")
    assert soaked.counted("breaker_transitions_total", "scanner", "to") == breakers
    assert soaked.lines.of("breaker_changed", "scanner", "new") == breakers
    changes = soaked.told(ScannerStateChanged, "scanner", "new", "source")
    assert soaked.counted("scanner_transitions_total", "scanner", "to", "source") == changes
    assert soaked.lines.of("scanner_state_changed", "scanner", "new", "source") == changes


def test_what_was_left_behind_agrees(soaked: Soaked) -> None:
    late = soaked.told(LateCompletion, "scanner")
    hung = Counter((event.scanner,) for event in soaked.recorder.of(LateCompletion) if event.abandoned)
    assert soaked.lines.of("late_completion", "scanner") == late
    assert soaked.counted("late_completion_duration_seconds_count") == Counter({(): sum(hung.values())})
    assert soaked.told(ThreadAbandoned, "scanner") == hung
    freed = soaked.counted("timeout_freed_total", "scanner", "method")
    assert freed == soaked.told(LateCompletion, "scanner", "method")
    assert soaked.counted("abandoned_threads", "scanner") == Counter()
    assert soaked.counted("workers", "state")[("busy",)] == 0
    assert soaked.counted("inflight_executions") == Counter()


def test_the_rest_agrees(soaked: Soaked) -> None:
    ends = soaked.recorder.of(ScanEnded)
    asked = Counter((end.result.scanner, end.cache) for end in ends if end.cache)
    assert soaked.counted("cache_requests_total", "scanner", "result") == asked
    dropped: Counter[Key] = Counter()
    for end in ends:
        dropped[end.result.scanner,] += end.result.dropped
    assert soaked.counted("candidates_dropped_total", "scanner") == +dropped
    assert soaked.counted("queue_wait_seconds_count").total() == sum(end.result.attempts > 0 for end in ends)
