"""Metrics: names, labels and numbers as documented, true after whatever happened."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    Limit,
    Policy,
    PrometheusMetrics,
    Retry,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import (
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    ExecutionEnded,
    LateCompletion,
    LoopBlocked,
    ProbeEnded,
    Registered,
    RetryBudgetExhausted,
    RunEnded,
    RunStarted,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    ScheduledRunBegins,
    ScheduleStarted,
    SuspiciousResult,
)
from resilient_scan.observe.metrics import collectors, counts
from resilient_scan.observe.metrics import families as listed_families
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock, Recorder, broken, flapping, hanging, healthy
from tests.support.metrics import value
from tests.support.results import result

STATUSES = ("completed", "cached", "stale", "timeout", "error", "rejected", "disabled", "skipped")
OUTCOMES = ("success", "error", "timeout", "cancelled", "local")
STATES = ("closed", "open", "half_open")
BUCKETS = ["0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0", "120.0", "300.0", "+Inf"]
S, P = "scanner", "pipeline"
DOCUMENTED = {  # the whole table of metrics: type, labels
    "resilient_scan_scans": ("counter", (S, P, "status")),
    "resilient_scan_executions": ("counter", (S, P, "outcome")),
    "resilient_scan_execution_duration_seconds": ("histogram", (S, P)),
    "resilient_scan_slow_executions": ("counter", (S,)),
    "resilient_scan_attempts": ("counter", (S, "outcome")),
    "resilient_scan_retries": ("counter", (S,)),
    "resilient_scan_retry_budget_exhausted": ("counter", (S,)),
    "resilient_scan_errors": ("counter", (S, "kind", "blame")),
    "resilient_scan_local_faults": ("counter", ("kind",)),
    "resilient_scan_cache_requests": ("counter", (S, "result")),
    "resilient_scan_breaker_state": ("gauge", (S, "state")),
    "resilient_scan_breaker_transitions": ("counter", (S, "to")),
    "resilient_scan_provider_state": ("gauge", ("provider", "state")),
    "resilient_scan_scanner_info": ("gauge", (S, P, "provider")),
    "resilient_scan_scanner_state": ("gauge", (S, "state")),
    "resilient_scan_scanner_transitions": ("counter", (S, "to", "source")),
    "resilient_scan_probes": ("counter", (S, "outcome")),
    "resilient_scan_candidates": ("gauge", (S,)),
    "resilient_scan_candidates_dropped": ("counter", (S,)),
    "resilient_scan_last_success_timestamp_seconds": ("gauge", (S,)),
    "resilient_scan_queue_wait_seconds": ("histogram", ()),
    "resilient_scan_inflight_executions": ("gauge", ()),
    "resilient_scan_queued_scans": ("gauge", ()),
    "resilient_scan_workers": ("gauge", ("state",)),
    "resilient_scan_abandoned_threads": ("gauge", (S,)),
    "resilient_scan_flapping": ("gauge", (S,)),
    "resilient_scan_slo_budget_ratio": ("gauge", (S,)),
    "resilient_scan_late_completion_duration_seconds": ("histogram", ()),
    "resilient_scan_timeout_freed": ("counter", (S, "method")),
    "resilient_scan_loop_blocked": ("counter", (S,)),
    "resilient_scan_suspicious_results": ("counter", (S, "reason")),
    "resilient_scan_listener_events_late": ("counter", ()),
    "resilient_scan_store_errors": ("counter", ("operation",)),
    "resilient_scan_runs": ("counter", ("result",)),
    "resilient_scan_run_duration_seconds": ("histogram", ()),
    "resilient_scan_watchdog_lateness_seconds": ("histogram", ()),
    "resilient_scan_last_run_timestamp_seconds": ("gauge", ()),
    "resilient_scan_schedule_interval_seconds": ("gauge", (S,)),
    "resilient_scan_schedule_lateness_seconds": ("histogram", ()),
    "resilient_scan_alert_webhooks": ("counter", ("source", "result")),
    "resilient_scan_alert_last_heartbeat_timestamp_seconds": ("gauge", ()),
    "resilient_scan_build": ("info", ("version",)),
}
OPTIONAL = {  # exported only by a process that does what they are about
    "resilient_scan_schedule_interval_seconds",
    "resilient_scan_schedule_lateness_seconds",
    "resilient_scan_alert_last_heartbeat_timestamp_seconds",
}
SERVING = (ScheduleStarted(("one",), 60.0, 0.0), ScheduledRunBegins(0.5, 0.0), AlertsServed(0.0))
RARE = (  # what a scanner without troubles never sends: each makes series of its own
    ScannersRegistered((Registered("one", "test", None, lambda: 1, slo_budget=lambda: 0.5),)),
    RetryBudgetExhausted("one", 1),
    AttemptEnded("one", 2, "error", 0.1, None),
    BreakerChanged("one", "closed", "open", 1.0),
    ScannerStateChanged("one", "enabled", "quarantined", "alert", "", None, 0.0),
    ProbeEnded("one", "error"),
    LateCompletion("one", 1.0, "error"),
    LoopBlocked("one", 1.0, "here"),
    SuspiciousResult("one", "test", "empty", 0, 0),
    ScanEnded("run", result(scanner="one", pipeline="test", dropped=1), "miss", ""),
)


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let each test begin with a process that has seen no exception class."""
    fresh: dict[str, int] = {}
    monkeypatch.setattr(counts, "_ranks", fresh)
    monkeypatch.setattr(counts, "_next_rank", itertools.count())
    return fresh


def families(registry: CollectorRegistry) -> dict[str, Metric]:
    return {family.name: family for family in registry.collect()}


def series(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by the values of its labels, in the order of the labels' names."""
    return {
        tuple(value for _label, value in sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"resilient_scan_{name}"
    }


ALWAYS = {  # the series that every scanner has from the beginning, and how many
    "resilient_scan_scans_total": 8,
    "resilient_scan_executions_total": 5,
    "resilient_scan_slow_executions_total": 1,
    "resilient_scan_attempts_total": 3,
    "resilient_scan_breaker_state": 3,
    "resilient_scan_flapping": 1,
    "resilient_scan_scanner_info": 1,
    "resilient_scan_scanner_state": 4,
}


def series_of(registry: CollectorRegistry, family: str) -> bool:
    """Return whether a metric has any series."""
    return bool(families(registry)[family].samples)


def test_what_ratios_are_made_of_is_there_before_the_first_scan(registry: CollectorRegistry) -> None:
    """A child that is born with its first error gives a rate of 0: the first failure would be invisible."""
    with ScanRunner([healthy("one"), healthy("two", pipeline="edge")], listeners=(PrometheusMetrics(registry),)):
        for name, pipeline in (("one", "test"), ("two", "edge")):
            labels = {"scanner": name, "pipeline": pipeline}
            assert [value(registry, "scans_total", **labels, status=status) for status in STATUSES] == [0] * 8
            assert [value(registry, "executions_total", **labels, outcome=outcome) for outcome in OUTCOMES] == [0] * 5
            assert [value(registry, "breaker_state", scanner=name, state=state) for state in STATES] == [1, 0, 0]
            assert value(registry, "slow_executions_total", scanner=name) == 0
            seen = Counter(s.name for f in registry.collect() for s in f.samples if s.labels.get("scanner") == name)
            assert seen == ALWAYS  # and no other: 134 lines a scanner were too many
        by_name = {family.name: family for family in listed_families()}
        assert {family.name for family in by_name.values() if family.always} == set(ALWAYS)
        there = {
            f"{name}{end}"
            for name in families(registry)
            for end in ("", "_total", "_info")
            if series_of(registry, name)
        }
        assert {name for name, family in by_name.items() if family.from_the_start} == there & set(by_name)
        assert series(registry, "runs_total") == {("complete",): 0, ("partial",): 0, ("failed",): 0}
        assert len(series(registry, "scans_total")) == 16  # and no other


def test_names_types_and_labels_are_those_of_the_documentation(registry: CollectorRegistry) -> None:
    one = broken("one", retry=None, limit=Limit("acme"))
    with ScanRunner([one], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
        for event in (*SERVING, *RARE):
            runner.tell(event)
    found = {
        name: (
            family.type,
            tuple(dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")),
        )
        for name, family in families(registry).items()
    }
    assert found == DOCUMENTED
    assert all(family.documentation.endswith(".") for family in families(registry).values())


def test_the_list_of_metrics_says_what_is_exported(registry: CollectorRegistry) -> None:
    """The reference, dashboards and alert rules are held against the list, so the list is held against a scrape."""
    one = broken("one", retry=None, limit=Limit("acme"))
    with ScanRunner([one], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
        for event in (*SERVING, *RARE):
            runner.tell(event)
    listed = {
        family.name.removesuffix("_total").replace("build_info", "build"): (family.type, family.labels, family.help)
        for family in listed_families()
    }
    assert {name: (kind, labels) for name, (kind, labels, _) in listed.items()} == DOCUMENTED
    exported = families(registry)
    assert {name: family.documentation for name, family in exported.items()} == {
        name: text for name, (_, _, text) in listed.items()
    }
    names = {sample.name for family in exported.values() for sample in family.samples}
    assert {name for name in names if not name.endswith("_created")} == {
        name for family in listed_families() for name in family.series
    }


def test_what_only_some_processes_do_is_exported_by_those_only(registry: CollectorRegistry) -> None:
    """A heartbeat of 0 says that none has ever come, a schedule that runs are missing: false in a run from cron."""
    with ScanRunner([healthy("one")], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
        assert set(families(registry)) == set(DOCUMENTED) - OPTIONAL
        for event in SERVING:
            runner.tell(event)
        assert series(registry, "alert_last_heartbeat_timestamp_seconds") == {(): 0}
        assert series(registry, "schedule_interval_seconds") == {("one",): 60}
        assert series(registry, "schedule_lateness_seconds_sum") == {(): 0.5}


def test_durations_have_the_documented_buckets(registry: CollectorRegistry) -> None:
    with ScanRunner([healthy("one")], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
        edges = [
            sample.labels["le"]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "resilient_scan_execution_duration_seconds_bucket"
        ]
    assert edges == BUCKETS


def test_two_on_one_registry_count_together(registry: CollectorRegistry) -> None:
    first, second = PrometheusMetrics(registry), PrometheusMetrics(registry)
    for one in (first, second):
        with ScanRunner([healthy("one")], listeners=(one,)) as runner:
            runner.run({})
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="completed") == 2
    assert value(registry, "runs_total", result="complete") == 2


def test_two_on_one_registry_in_one_runner_count_once(registry: CollectorRegistry) -> None:
    both = [PrometheusMetrics(registry), PrometheusMetrics(registry)]
    with ScanRunner([healthy("one")], listeners=both) as runner:
        runner.run({})
        runner.listen(PrometheusMetrics(registry))
        runner.run({})
    statuses = {"completed": 1, "cached": 1}
    for status, number in statuses.items():
        assert value(registry, "scans_total", scanner="one", pipeline="test", status=status) == number
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="success") == 1
    assert value(registry, "runs_total", result="complete") == 2


def test_one_listener_for_two_runners_counts_each_in_its_pipeline() -> None:
    """children are found by the scanner's name alone, the runner built last has them."""
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)
    with (
        ScanRunner([healthy("news", pipeline="edge")], listeners=(listener,)) as first,
        ScanRunner([healthy("news", pipeline="events")], listeners=(listener,)),
    ):
        first.run({})
    labels = {"scanner": "news", "status": "completed"}
    counted = {
        pipeline: registry.get_sample_value("resilient_scan_scans_total", {**labels, "pipeline": pipeline})
        for pipeline in ("edge", "events")
    }
    assert counted == {"edge": 1, "events": 0}


def test_a_registry_of_its_own_leaves_the_default_one_alone(registry: CollectorRegistry) -> None:
    before = [family.name for family in REGISTRY.collect()]
    with ScanRunner([healthy("one")], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
    assert [family.name for family in REGISTRY.collect()] == before
    assert set(families(registry)) == set(DOCUMENTED) - OPTIONAL


def test_the_default_registry_is_the_process_wide_one() -> None:
    mine = PrometheusMetrics()
    try:
        assert set(DOCUMENTED) - OPTIONAL <= {family.name for family in REGISTRY.collect()}
        PrometheusMetrics()  # a second time
    finally:
        for family in mine._metrics._metrics.values():
            REGISTRY.unregister(family)
        collectors._by_registry.pop(REGISTRY)


def mixed(release: threading.Event) -> list[Any]:
    """Return scanners that end in every status but skipped, given five runs."""
    failure = OSError("down")
    no_cache = {"cache": None}
    return [
        healthy("cached_later", [Candidate("A", "x", "")]),
        healthy("fresh_each_time", cache=None, pipeline="edge"),
        broken("broken", **no_cache),
        hanging("hung", release, cache=None, timeout=Timeout(total=0.05)),
        flapping("stale_later", [[{"ticker": "A"}], failure, failure, failure, failure], cache=Cache(1e-9, 1000)),
        broken("opens", breaker=Breaker(failures=2), **no_cache),
        healthy("out_of_service"),
    ]


def test_after_a_mixed_run_metrics_and_reports_say_the_same(
    registry: CollectorRegistry, release: threading.Event
) -> None:
    recorder = Recorder()
    policy = Policy(retry=None, breaker=None)
    with ScanRunner(mixed(release), policy=policy, listeners=(PrometheusMetrics(registry), recorder)) as runner:
        runner.disable("out_of_service")
        reports = [runner.run({}) for _ in range(4)]
        reports.append(runner.run({}, deadline=0))
    reported: Counter[tuple[str, ...]] = Counter()
    for report in reports:
        reported.update((one.pipeline, one.scanner, one.status.value) for one in report.results.values())
    counted = {labels: count for labels, count in series(registry, "scans_total").items() if count}
    assert counted == reported
    assert {labels[2] for labels in reported} == set(STATUSES)
    assert sum(counted.values()) == 5 * 7

    executions: Counter[tuple[str, ...]] = Counter()
    seconds: Counter[tuple[str, ...]] = Counter()
    for event in recorder.of(ExecutionEnded):
        executions[event.outcome, event.pipeline, event.scanner] += 1
        seconds[event.pipeline, event.scanner] += event.duration
    assert {labels: count for labels, count in series(registry, "executions_total").items() if count} == executions
    assert {labels: one for labels, one in series(registry, "execution_duration_seconds_sum").items() if one} == {
        labels: pytest.approx(one) for labels, one in seconds.items()
    }
    assert executions["timeout", "test", "hung"] == 1
    assert executions["error", "test", "opens"] == 2
    assert executions["success", "test", "cached_later"] == 1
    assert executions["error", "test", "stale_later"] == 3
    assert series(registry, "errors_total") == {
        ("scanner", "ScanError", "broken"): 4,
        ("scanner", "ScanError", "opens"): 2,
        ("scanner", "OSError", "stale_later"): 3,
    }
    assert {labels: count for labels, count in series(registry, "cache_requests_total").items() if count} == {
        ("miss", "cached_later"): 1,
        ("hit", "cached_later"): 3,
        ("miss", "stale_later"): 1,
        ("stale", "stale_later"): 3,
        **{("bypass", name): 4 for name in ("fresh_each_time", "broken", "hung", "opens")},
    }
    assert series(registry, "runs_total") == {("complete",): 0, ("partial",): 4, ("failed",): 1}


def test_every_attempt_and_wait_is_one_execution(registry: CollectorRegistry) -> None:
    policy = Policy(retry=Retry(attempts=3, base=0, cap=0))
    with ScanRunner([broken("one")], policy=policy, listeners=(PrometheusMetrics(registry),)) as runner:
        assert runner.run({}).results["one"].attempts == 3
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="error") == 1
    assert value(registry, "errors_total", scanner="one", kind="ScanError", blame="scanner") == 1


def test_kinds_of_errors_are_few(registry: CollectorRegistry, ranks: dict[str, int]) -> None:
    """A label must not grow with what a source thinks up."""
    listener = PrometheusMetrics(registry)
    listener(ScannersRegistered((Registered("one", "test", None, lambda: 0),)))
    for number in [*range(20), *range(20)]:
        error = ErrorInfo(f"acme.errors.Error{number}", f"message {number}")
        listener(ExecutionEnded("one", "test", "error", 0.1, 1, error))
    counted = series(registry, "errors_total")
    assert counted == {
        **{("scanner", f"Error{number}", "one"): 2 for number in range(16)},
        ("scanner", "other", "one"): 8,
    }
    assert set(ranks) == {f"Error{number}" for number in range(16)}
    other = CollectorRegistry()  # the limit is the process's, not the registry's
    second = PrometheusMetrics(other)
    second(ScannersRegistered((Registered("two", "test", None, lambda: 0),)))
    second(ExecutionEnded("two", "test", "error", 0.1, 1, ErrorInfo("Error3", "")))
    second(ExecutionEnded("two", "test", "error", 0.1, 1, ErrorInfo("New", "")))
    assert series(other, "errors_total") == {("scanner", "Error3", "two"): 1, ("scanner", "other", "two"): 1}


def test_a_kind_is_a_class_and_no_message_or_address(registry: CollectorRegistry) -> None:
    class Outer:
        class HTTPError(Exception):
            """Of some client."""

    secret = Outer.HTTPError("https://user:secret@host/?token=x")
    with ScanRunner([broken("one", secret, retry=None)], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
    assert list(series(registry, "errors_total")) == [("scanner", "HTTPError", "one")]
    assert b"secret" not in generate_latest(registry)


def test_a_timeout_is_no_kind_of_error(registry: CollectorRegistry, release: threading.Event) -> None:
    slow = hanging("one", release, retry=None, timeout=Timeout(total=0.02))
    with ScanRunner([slow], listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="timeout") == 1
    assert value(registry, "execution_duration_seconds_count", scanner="one", pipeline="test") == 1
    assert series(registry, "errors_total") == {}


def test_the_state_of_a_breaker_is_read_at_the_scrape(registry: CollectorRegistry) -> None:
    clock = FakeClock()
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1, open_for=10))

    def state() -> list[float]:
        return [series(registry, "breaker_state")["one", name] for name in STATES]

    during: list[list[float]] = []
    answers = iter([OSError("down"), None, None])

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        during.append(state())
        answer = next(answers)
        if answer is not None:
            raise answer
        return []

    with ScanRunner([one], policy=policy, clock=clock, listeners=(PrometheusMetrics(registry),)) as runner:
        assert state() == [1, 0, 0]
        runner.run({})
        assert state() == [0, 1, 0]
        clock.advance(10)
        assert state() == [0, 1, 0]  # until a trial is admitted
        runner.run({})
        assert state() == [1, 0, 0]
    assert during == [[1, 0, 0], [0, 0, 1]]


def test_a_scanner_without_a_breaker_has_no_breaker_state(registry: CollectorRegistry) -> None:
    fleet = [healthy("with_one"), healthy("without", breaker=None)]
    with ScanRunner(fleet, listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
        assert {labels[0] for labels in series(registry, "breaker_state")} == {"with_one"}


@pytest.mark.parametrize(
    ("counts", "complete", "result"),
    [
        ({Status.COMPLETED: 2}, True, "complete"),
        ({Status.CACHED: 1, Status.STALE: 1, Status.DISABLED: 1}, True, "complete"),
        ({Status.COMPLETED: 1, Status.ERROR: 1}, False, "partial"),
        ({Status.STALE: 1, Status.TIMEOUT: 9}, False, "partial"),
        ({Status.ERROR: 1, Status.TIMEOUT: 9, Status.DISABLED: 1}, False, "failed"),
    ],
)
def test_a_run_is_complete_partial_or_failed(
    counts: dict[Status, int], complete: bool, result: str, registry: CollectorRegistry
) -> None:
    PrometheusMetrics(registry)(RunEnded("id", 1.0, counts, complete, 0.0))
    assert series(registry, "runs_total") == {
        (name,): float(name == result) for name in ("complete", "partial", "failed")
    }


def test_an_execution_that_was_cancelled_is_counted_as_such(registry: CollectorRegistry) -> None:
    began = threading.Event()

    @scanner(pipeline="test", cache=None)
    def one(_state: dict[str, Any], context: Any) -> list[Any]:
        began.set()
        context.sleep(60)
        return []

    with ScanRunner([one], listeners=(PrometheusMetrics(registry),)) as runner:
        running = threading.Thread(target=runner.run, daemon=True)
        running.start()
        assert began.wait(5)
        runner.close()
        running.join(5)
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="cancelled") == 1
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="skipped") == 1


def test_what_it_did_not_ask_for_changes_no_number(registry: CollectorRegistry) -> None:
    listener = PrometheusMetrics(registry)
    event = RunStarted("id", 1, True, 8, 0.0)
    assert type(event) not in PrometheusMetrics.events
    before = generate_latest(registry)
    listener(event)
    assert generate_latest(registry) == before
