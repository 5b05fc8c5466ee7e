"""Single metrics: what each event adds, what is read at the scrape, and what is pending in between."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    Limit,
    Policy,
    PrometheusMetrics,
    RetryAfter,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    __version__,
    scanner,
)
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.events import (
    AlertReceived,
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    DeadlineActedOn,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    LateCompletion,
    ListenerLate,
    Load,
    LocalFault,
    ProbeEnded,
    Registered,
    RetryBudgetExhausted,
    RunEnded,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    ScheduledRunBegins,
    ScheduleStarted,
    StoreFailed,
    SuspiciousResult,
    traces,
)
from resilient_scan.http import Client
from resilient_scan.observe.metrics import catalogue, collectors, counts, families
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock, broken, flapping, hanging, healthy
from tests.support.metrics import value
from tests.support.results import result

BARE = Policy(cache=None, retry=None, breaker=None)


@pytest.fixture
def listener(registry: CollectorRegistry) -> PrometheusMetrics:
    listener = PrometheusMetrics(registry)
    listener(ScannersRegistered((Registered("one", "test", lambda: "closed", lambda: 0),)))
    return listener


def ended(**changes: Any) -> ScanEnded:
    return ScanEnded("run", result(**{"pipeline": "test", "queue_wait": 0.2, **changes}), "miss", "")


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (AttemptEnded("one", 1, "success", 0.1, None), "attempts_total", {"scanner": "one", "outcome": "success"}),
        (AttemptEnded("one", 2, "error", 0.1, None), "retries_total", {"scanner": "one"}),
        (RetryBudgetExhausted("one", 1), "retry_budget_exhausted_total", {"scanner": "one"}),
        (BreakerChanged("one", "closed", "open", 1.0), "breaker_transitions_total", {"scanner": "one", "to": "open"}),
        (
            ScannerStateChanged("one", "enabled", "quarantined", "alert", "", None, 0.0),
            "scanner_transitions_total",
            {"scanner": "one", "to": "quarantined", "source": "alert"},
        ),
        (ProbeEnded("one", "error"), "probes_total", {"scanner": "one", "outcome": "error"}),
        (LateCompletion("one", 1.0, "error"), "timeout_freed_total", {"scanner": "one", "method": "abandoned"}),
        (
            LateCompletion("one", 1.0, "error", method="sockets"),
            "timeout_freed_total",
            {"scanner": "one", "method": "sockets"},
        ),
        *(
            (
                SuspiciousResult("one", "test", reason, 0, 0),
                "suspicious_results_total",
                {"scanner": "one", "reason": kind},
            )
            for reason, kind in (
                ("empty: there are no candidates", "empty"),
                ("out of range: close is 9", "out_of_range"),
                ("no volumes today: 3 of 4", "other"),
            )
        ),
        (LateCompletion("one", 7.0, "success"), "late_completion_duration_seconds_count", {}),
        (
            LocalFault("one", "descriptors", ErrorInfo("OSError", "[Errno 24]", blame="local")),
            "local_faults_total",
            {"kind": "descriptors"},
        ),
        (StoreFailed("update", "down", 0.0), "store_errors_total", {"operation": "update"}),
        (ListenerLate("slow", 1, "run", 0.0), "listener_events_late_total", {}),
        (
            AlertReceived("grafana", "refused", 0.0),
            "alert_webhooks_total",
            {"source": "grafana", "result": "refused"},
        ),
        *(
            (
                AlertReceived("alertmanager", result, 0.0),
                "alert_webhooks_total",
                {"source": "alertmanager", "result": result},
            )
            for result in ("overruled", "ignored")
        ),
        (RunEnded("run", 2.0, {}, True, 5.0), "run_duration_seconds_count", {}),
        (DeadlineActedOn("", 0.003), "watchdog_lateness_seconds_count", {}),
        (ended(dropped=1), "candidates_dropped_total", {"scanner": "one"}),
        (ended(), "queue_wait_seconds_count", {}),
    ],
)
def test_an_event_adds_one(
    event: Event, name: str, labels: dict[str, str], listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    """To a series that was there before if it is the fleet's or part of a ratio, else to one that appears now."""
    assert type(event) in PrometheusMetrics.events
    assert value(registry, name, **labels) == (0 if "scanner" not in labels or name == "attempts_total" else None)
    listener(event)
    listener(event)
    assert value(registry, name, **labels) == 2


@pytest.mark.parametrize(
    ("event", "name", "labels", "expected"),
    [
        (RunEnded("run", 2.0, {}, True, 5.0), "last_run_timestamp_seconds", {}, 5.0),
        (
            ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", 9.0),
            "last_success_timestamp_seconds",
            {"scanner": "one"},
            9.0,
        ),
        (ended(candidates=[1, 2, 3]), "candidates", {"scanner": "one"}, 3.0),
        (LateCompletion("one", 7.0, "success"), "late_completion_duration_seconds_sum", {}, 7.0),
        (ended(), "queue_wait_seconds_sum", {}, 0.2),
    ],
)
def test_an_event_sets_a_value(
    event: Event,
    name: str,
    labels: dict[str, str],
    expected: float,
    listener: PrometheusMetrics,
    registry: CollectorRegistry,
) -> None:
    assert value(registry, name, **labels) == (None if "scanner" in labels else 0)
    listener(event)
    assert value(registry, name, **labels) == expected


def test_what_was_asked_for_and_never_succeeded_has_a_last_success_of_zero(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    """Without it, the rule about scanners that have not succeeded for long would see those only that once did."""
    listener(ended(status=Status.ERROR))
    assert value(registry, "last_success_timestamp_seconds", scanner="one") == 0


def test_a_scanner_that_never_hung_has_no_series_for_it(registry: CollectorRegistry) -> None:
    hung = [0]
    PrometheusMetrics(registry)(ScannersRegistered((Registered("one", "test", None, lambda: hung[0]),)))
    seen = []
    for hung[0] in (0, 2, 0):
        seen.append(value(registry, "abandoned_threads", scanner="one"))
    assert seen == [None, 2, 0]


def test_a_heartbeat_is_exported_once_it_can_be_expected(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    name = "alert_last_heartbeat_timestamp_seconds"
    assert value(registry, name) is None
    listener(AlertsServed(5.0))
    assert value(registry, name) == 0
    listener(HeartbeatSeen(7.0))
    listener(AlertsServed(8.0))  # stopped and started again
    assert value(registry, name) == 7


def test_of_a_schedule_its_interval_and_its_lateness_are_exported(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    assert value(registry, "schedule_interval_seconds", scanner="one") is None
    assert value(registry, "schedule_lateness_seconds_count") is None
    listener(ScheduleStarted(("one", "two"), 60.0, 0.0))
    assert value(registry, "schedule_interval_seconds", scanner="one") == 60
    assert value(registry, "schedule_interval_seconds", scanner="two") == 60
    assert value(registry, "schedule_lateness_seconds_count") == 0
    listener(ScheduledRunBegins(0.2, 0.0))
    listener(ScheduledRunBegins(40.0, 0.0))
    assert value(registry, "schedule_lateness_seconds_sum") == 40.2
    assert value(registry, "schedule_lateness_seconds_bucket", le="30.0") == 1


@pytest.mark.parametrize(
    ("outcome", "seconds", "total", "slow"),
    [
        ("success", 8.0, 10.0, 0),
        ("success", 8.001, 10.0, 1),
        ("error", 9.0, 10.0, 1),
        ("timeout", 10.01, 10.0, 1),
        ("cancelled", 9.0, 10.0, 1),
        ("success", 9.0, 100.0, 0),  # of its own total, not of another runner's
        ("success", 9.0, None, 0),
    ],
)
def test_slow_is_what_uses_up_most_of_its_own_total(
    outcome: str, seconds: float, total: float | None, slow: int, registry: CollectorRegistry
) -> None:
    listener = PrometheusMetrics(registry)
    listener(ScannersRegistered((Registered("one", "test", None, lambda: 0, total=10.0),)))
    assert value(registry, "slow_executions_total", scanner="one") == 0  # a share needs it before the first slow one
    listener(ExecutionEnded("one", "test", outcome, seconds, 1, None, "run", 9.0, total))
    assert value(registry, "slow_executions_total", scanner="one") == slow


def test_executions_that_are_counted_together_are_told_apart(registry: CollectorRegistry) -> None:
    """By pipeline, outcome and total: two runners may have a scanner of this name, each with options of its own."""
    listener = PrometheusMetrics(registry)
    for pipeline in ("edge", "test"):
        listener(ScannersRegistered((Registered("one", pipeline, None, lambda: 0, total=10.0),)))
    error = ErrorInfo("OSError", "down", blame="provider")
    for pipeline, outcome, seconds, total in (
        ("edge", "success", 9.0, 10.0),
        ("edge", "success", 9.0, 100.0),
        ("edge", "error", 0.2, None),
        ("test", "success", 0.1, 10.0),
        ("test", "timeout", 11.0, 10.0),
    ):
        failure = error if outcome == "error" else None
        listener(ExecutionEnded("one", pipeline, outcome, seconds, 1, failure, "run", 9.0, total))
    assert value(registry, "slow_executions_total", scanner="one") == 2
    assert value(registry, "errors_total", scanner="one", kind="OSError", blame="provider") == 1
    counted = {
        (pipeline, outcome): value(registry, "executions_total", scanner="one", pipeline=pipeline, outcome=outcome)
        for pipeline in ("edge", "test")
        for outcome in ("success", "error", "timeout")
    }
    assert counted == {
        ("edge", "success"): 2,
        ("edge", "error"): 1,
        ("edge", "timeout"): 0,
        ("test", "success"): 1,
        ("test", "error"): 0,
        ("test", "timeout"): 1,
    }
    for pipeline, seconds in (("edge", 18.2), ("test", 11.1)):
        summed = value(registry, "execution_duration_seconds_sum", scanner="one", pipeline=pipeline)
        assert summed == pytest.approx(seconds)


def test_without_a_total_nothing_says_how_slow_is_slow(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    listener(ExecutionEnded("one", "test", "success", 1e6, 1, None, "run", 9.0))
    assert value(registry, "slow_executions_total", scanner="one") is None


def test_executions_say_how_long_they_might_have_taken(registry: CollectorRegistry) -> None:
    """The timeout of the run's own scanner, whatever another runner gives to one of the same name."""
    clock, listener = FakeClock(), PrometheusMetrics(registry)

    @scanner(pipeline="test", cache=None)
    def one(_state: object) -> list[Any]:
        clock.advance(9.0)
        return []

    for seconds, slow in ((10, 1), (100, 1), (11, 2)):
        with ScanRunner([one], policy=BARE, timeout_seconds=seconds, clock=clock, listeners=(listener,)) as runner:
            runner.run({})
        assert value(registry, "slow_executions_total", scanner="one") == slow


def test_what_has_no_answer_leaves_the_last_one_s_size(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    for event in (
        ended(candidates=[1, 2]),
        ended(status=Status.CACHED, candidates=[1, 2, 3]),
        ended(status=Status.TIMEOUT, candidates=[1]),
        ended(status=Status.REJECTED),
    ):
        listener(event)
    assert value(registry, "candidates", scanner="one") == 3


def test_a_failed_execution_does_not_count_as_a_success(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    listener(ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", 9.0))
    listener(ExecutionEnded("one", "test", "error", 0.1, 1, ErrorInfo("OSError", ""), "run", 10.0))
    listener(ExecutionEnded("one", "test", "timeout", 0.1, 1, None, "run", 11.0))
    assert value(registry, "last_success_timestamp_seconds", scanner="one") == 9


def test_of_successes_sent_out_of_order_the_last_one_counts(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    for at in (9.0, 12.0, 10.0):
        listener(ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", at))
    assert value(registry, "last_success_timestamp_seconds", scanner="one") == 12
    listener(ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", 11.0))
    assert value(registry, "last_success_timestamp_seconds", scanner="one") == 12


def test_a_cancelled_attempt_is_not_counted(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    listener(AttemptEnded("one", 1, "cancelled", 0.1, None))
    outcomes = [value(registry, "attempts_total", scanner="one", outcome=o) for o in ("success", "error", "timeout")]
    assert outcomes == [0, 0, 0]
    assert value(registry, "attempts_total", scanner="one", outcome="cancelled") is None


def test_an_unforeseen_value_is_still_counted(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    listener(ScannerStateChanged("one", "enabled", "disabled", "moon", "", None, 0.0))
    assert value(registry, "scanner_transitions_total", scanner="one", to="disabled", source="moon") == 1


# read at the scrape


def test_whether_a_scanner_is_in_service_is_read_at_the_scrape(registry: CollectorRegistry) -> None:
    clock = FakeClock()

    def states() -> dict[str, float | None]:
        return {
            state: value(registry, "scanner_state", scanner="one", state=state) for state in catalogue.SCANNER_STATES
        }

    off = {"enabled": 0.0, "quarantined": 0.0, "probing": 0.0, "disabled": 0.0}
    with ScanRunner([healthy("one")], clock=clock, listeners=(PrometheusMetrics(registry),)) as runner:
        assert states() == off | {"enabled": 1.0}
        runner.disable("one", duration=10)
        assert states() == off | {"disabled": 1.0}
        clock.advance(10)
        assert states() == off | {"enabled": 1.0}
    assert states() == off


@pytest.mark.parametrize("state", catalogue.SCANNER_STATES)
def test_every_state_of_a_scanner_has_its_series(state: str, registry: CollectorRegistry) -> None:
    listener = PrometheusMetrics(registry)
    listener(ScannersRegistered((Registered("one", "test", None, lambda: 0, lambda: state),)))
    for name in catalogue.SCANNER_STATES:
        assert value(registry, "scanner_state", scanner="one", state=name) == float(name == state)


@pytest.mark.parametrize(("worse", "better"), [("open", "half_open"), ("open", "closed"), ("half_open", "closed")])
def test_of_several_breakers_of_a_name_the_worst_is_shown(worse: str, better: str, registry: CollectorRegistry) -> None:
    """A replica that tries half-open must not hide that another one is still open: the alert would clear."""
    listener = PrometheusMetrics(registry)
    for state in (better, worse, better):
        listener(ScannersRegistered((Registered("one", "test", lambda state=state: state, lambda: 0),)))
    shown = {state: value(registry, "breaker_state", scanner="one", state=state) for state in catalogue.BREAKER_STATES}
    assert shown == {state: float(state == worse) for state in catalogue.BREAKER_STATES}


@pytest.mark.parametrize(
    ("worse", "better"), [("disabled", "quarantined"), ("quarantined", "probing"), ("probing", "enabled")]
)
def test_of_several_states_of_a_name_the_worst_is_shown(worse: str, better: str, registry: CollectorRegistry) -> None:
    listener = PrometheusMetrics(registry)
    for state in (better, worse, better):
        listener(ScannersRegistered((Registered("one", "test", None, lambda: 0, lambda state=state: state),)))
    shown = {state: value(registry, "scanner_state", scanner="one", state=state) for state in catalogue.SCANNER_STATES}
    assert shown == {state: float(state == worse) for state in catalogue.SCANNER_STATES}


def test_of_several_runners_the_worst_state_counts_and_threads_add_up(registry: CollectorRegistry) -> None:
    listener = PrometheusMetrics(registry)
    state = ["quarantined"]
    for breaker, hung, own in (("closed", 1, lambda: "enabled"), ("half_open", 2, lambda: state[0])):
        said = Registered("one", "test", lambda breaker=breaker: breaker, lambda hung=hung: hung, own)
        listener(ScannersRegistered((said,), lambda: Load(queued=1, busy=2, idle=3, abandoned=4)))
    assert value(registry, "breaker_state", scanner="one", state="half_open") == 1
    assert value(registry, "breaker_state", scanner="one", state="closed") == 0
    assert value(registry, "scanner_state", scanner="one", state="quarantined") == 1
    state[0] = "probing"
    assert value(registry, "scanner_state", scanner="one", state="probing") == 1
    assert value(registry, "abandoned_threads", scanner="one") == 3
    assert value(registry, "queued_scans") == 2
    assert value(registry, "inflight_executions") == 4
    assert [value(registry, "workers", state=state) for state in ("busy", "idle", "abandoned")] == [4, 6, 8]


def state_of(registry: CollectorRegistry, state: str) -> float | None:
    return registry.get_sample_value("resilient_scan_breaker_state", {"scanner": "one", "state": state})


def test_of_two_runners_on_one_registry_the_worse_breaker_is_shown_until_its_runner_is_closed() -> None:
    registry = CollectorRegistry()
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1))
    bad = ScanRunner([broken("one")], policy=policy, listeners=(PrometheusMetrics(registry),))
    bad.run({})
    with ScanRunner([healthy("one")], policy=policy, listeners=(PrometheusMetrics(registry),)):
        assert (state_of(registry, "open"), state_of(registry, "closed")) == (1, 0)
        bad.close()
        assert (state_of(registry, "open"), state_of(registry, "closed")) == (0, 1)
    assert (state_of(registry, "open"), state_of(registry, "closed")) == (0, 0)


def test_a_thread_that_hangs_is_seen_until_it_ends(registry: CollectorRegistry) -> None:
    release = threading.Event()
    slow = hanging("slow", release, timeout=Timeout(total=0.02))
    runner = ScanRunner([slow], policy=BARE, listeners=(PrometheusMetrics(registry),))
    runner.run({})
    assert value(registry, "abandoned_threads", scanner="slow") == 1
    assert value(registry, "workers", state="abandoned") == 1
    assert value(registry, "inflight_executions") == 0
    runner.close()
    assert value(registry, "abandoned_threads", scanner="slow") == 1  # of a closed runner, too
    PrometheusMetrics(registry)(ScannersRegistered((Registered("slow", "test", None, lambda: 0),)))
    assert value(registry, "abandoned_threads", scanner="slow") == 1
    release.set()
    while runner.abandoned():
        threading.Event().wait(0.001)
    assert value(registry, "abandoned_threads", scanner="slow") == 0


def test_runners_that_are_gone_leave_nothing_to_read(registry: CollectorRegistry) -> None:
    listener = PrometheusMetrics(registry)
    for _ in range(20):
        with ScanRunner([healthy("one")], policy=BARE, listeners=(listener,)) as runner:
            runner.run({})
        del runner
    gc.collect()
    assert len(listener._metrics.pending["one"].live) <= 2
    assert len(listener._metrics._loads) <= 2
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="completed") == 20


# pending


def test_what_waits_to_be_counted_is_bounded(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    pending = listener._metrics.pending["one"]
    for number in range(10 * collectors.MAX_PENDING):
        listener(ended(candidates=[Candidate("A", "one", "")]))
        listener(AttemptEnded("one", 1, "success", 0.1, None))
        assert max(len(pending.ends), len(pending.queue_waits), len(pending.events)) < collectors.MAX_PENDING, number
    assert (
        value(registry, "scans_total", scanner="one", pipeline="test", status="completed")
        == 10 * collectors.MAX_PENDING
    )
    assert (len(pending.ends), len(pending.queue_waits), len(pending.events)) == (0, 0, 0)


SHORT = (
    (ended(), "scans_total", {"scanner": "one", "pipeline": "test", "status": "completed"}),
    (AttemptEnded("one", 1, "success", 0.1, None), "attempts_total", {"scanner": "one", "outcome": "success"}),
    (
        ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", 9.0),
        "executions_total",
        {"scanner": "one", "pipeline": "test", "outcome": "success"},
    ),
)


@pytest.mark.parametrize(("event", "name", "labels"), SHORT)
def test_what_takes_the_short_way_is_counted_whatever_else_comes(
    event: Event, name: str, labels: dict[str, str], listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    """An execution may end long after its scan did."""
    take = listener.direct(type(event), "one")
    assert take is not None
    for number in (1, 2):
        take(event)
        assert value(registry, name, **labels) == number


def test_a_way_that_was_asked_for_before_the_scanner_was_known_leads_to_it(registry: CollectorRegistry) -> None:
    """A runner puts its layers together first, and then announces its scanners."""
    listener = PrometheusMetrics(registry)
    takes = [listener.direct(type(event), "one") for event, _, _ in SHORT]
    assert b'"one"' not in generate_latest(registry)
    listener(ScannersRegistered((Registered("one", "test", None, lambda: 0),)))
    assert listener._metrics._reserved == {}
    for take, (event, name, labels) in zip(takes, SHORT, strict=True):
        assert take is not None
        take(event)
        assert value(registry, name, **labels) == 1


def test_who_does_not_hear_of_the_end_of_a_scan_has_no_short_way(registry: CollectorRegistry) -> None:
    """That end sees to it that the lists do not grow."""

    class Some(PrometheusMetrics):
        events = tuple(kind for kind in PrometheusMetrics.events if kind is not ScanEnded)

    listener = Some(registry)
    assert [listener.direct(type(event), "one") for event, _, _ in SHORT] == [None] * len(SHORT)


def test_what_takes_the_short_way_is_bounded_too(listener: PrometheusMetrics) -> None:
    """By the end of each scan, however many attempts and executions went before it."""
    takes = [listener.direct(type(event), "one") for event, _, _ in SHORT]
    pending = listener._metrics.pending["one"]
    for _ in range(3 * collectors.MAX_PENDING):
        for take, times, (event, _, _) in zip(takes, (1, 3, 1), SHORT, strict=True):
            assert take is not None
            for _ in range(times):
                take(event)
        waiting = max(map(len, (pending.ends, pending.queue_waits, pending.attempts, pending.executions)))
        assert waiting < collectors.MAX_PENDING + 3


def test_one_that_does_more_than_to_count_is_not_passed_by(registry: CollectorRegistry) -> None:
    heard: list[type] = []

    class More(PrometheusMetrics):
        def __call__(self, event: Event) -> None:
            heard.append(type(event))
            super().__call__(event)

    with ScanRunner([healthy("one")], policy=BARE, listeners=(More(registry),)) as runner:
        runner.run({})
    assert heard == [ScannersRegistered, AttemptEnded, ExecutionEnded, ScanEnded, RunEnded]
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="success") == 1


def test_whatever_way_one_looks_the_numbers_are_exact(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    line = 'resilient_scan_scans_total{pipeline="test",scanner="one",status="completed"}'
    for number in range(1, 5):
        listener(ended())
        only = registry.restricted_registry(["resilient_scan_scans_total"])
        text = (generate_latest(only), generate_latest(registry), openmetrics(registry))[number % 3].decode()
        assert f"{line} {number}.0" in text


def test_threads_that_send_and_threads_that_scrape_lose_nothing(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    def send() -> None:
        for _ in range(3000):
            listener(ended())
            listener(ExecutionEnded("one", "test", "success", 0.1, 1, None, "run", 9.0))

    threads = [threading.Thread(target=send) for _ in range(4)]
    threads += [threading.Thread(target=lambda: [list(registry.collect()) for _ in range(30)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="completed") == 12_000
    assert value(registry, "executions_total", scanner="one", pipeline="test", outcome="success") == 12_000
    assert value(registry, "execution_duration_seconds_count", scanner="one", pipeline="test") == 12_000


def test_a_flush_under_way_is_not_waited_for(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    """A finalizer that the collector runs may send events in the middle of a scrape, on the scrape's own thread."""
    sent = threading.Event()

    def send() -> None:
        for _ in range(collectors.MAX_PENDING + 1):
            listener(ended())
        sent.set()

    with listener._metrics._lock:
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert sent.wait(5)
        send()
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="completed") == 2 * (
        collectors.MAX_PENDING + 1
    )


def test_what_is_appended_while_a_list_is_drained_stays_for_the_next_time() -> None:
    class Busy(list[int]):
        def __getitem__(self, which: Any) -> Any:
            found = super().__getitem__(which)
            self.append(4)  # by another thread, between the copy and the cut
            return found

    pending = Busy([1, 2, 3])
    assert counts._drained(pending) == [1, 2, 3]
    assert list(pending) == [4]


@pytest.mark.parametrize("name", ["one", "two"])
def test_events_of_a_finalizer_amid_a_flush_are_counted_once(
    name: str, listener: PrometheusMetrics, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on the thread that flushes, and so many events make it flush, too."""
    listener(ScannersRegistered((Registered("two", "test", None, lambda: 0),)))
    amid: list[bool] = []
    drained = counts._drained

    def interrupted(pending: list[Any]) -> list[Any]:
        assert not any(amid), "drained in the middle of draining"
        if not amid:
            amid.append(True)
            for _ in range(collectors.MAX_PENDING + 5):
                listener(ended(scanner=name))
            amid[0] = False
        return drained(pending)

    listener(ended())
    monkeypatch.setattr(counts, "_drained", interrupted)
    found = {
        each: value(registry, "scans_total", scanner=each, pipeline="test", status="completed")
        for each in ("one", "two")
    }
    monkeypatch.undo()
    assert sum(filter(None, found.values())) == 1 + collectors.MAX_PENDING + 5
    assert not listener._metrics._flushing


# exemplars, registries


def test_the_newest_run_of_each_bucket_is_its_exemplar(
    listener: PrometheusMetrics, registry: CollectorRegistry
) -> None:
    for number, seconds in enumerate((0.01, 3.0, 0.02, 0.04, 400.0)):
        listener(ExecutionEnded("one", "test", "success", seconds, 1, None, f"run{number}", 9.0))
    samples = [
        sample for family in text_string_to_metric_families(openmetrics(registry).decode()) for sample in family.samples
    ]
    exemplars = {
        sample.labels["le"]: (sample.exemplar.labels["run_id"], sample.exemplar.value)
        for sample in samples
        if sample.exemplar
    }
    assert exemplars == {"0.05": ("run3", 0.04), "5.0": ("run1", 3.0), "+Inf": ("run4", 400.0)}


def test_no_trace_is_kept_once_its_execution_is_counted(
    listener: PrometheusMetrics, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(traces, "run", "abc")
    for seconds in (0.01, 0.02):
        listener(ExecutionEnded("one", "test", "success", seconds, 1, None, "run", 9.0))
    assert b'{run_id="run",trace_id="abc"} 0.02' in openmetrics(registry)
    assert listener._metrics.pending["one"].traces == {}


def test_the_version_is_exported(listener: PrometheusMetrics, registry: CollectorRegistry) -> None:
    assert value(registry, "build_info", version=__version__) == 1


def test_what_somebody_removed_from_a_registry_comes_back(registry: CollectorRegistry) -> None:
    PrometheusMetrics(registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    with ScanRunner([healthy("one")], policy=BARE, listeners=(PrometheusMetrics(registry),)) as runner:
        runner.run({})
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="completed") == 1


def test_a_foreign_metric_of_the_same_name_raises_and_nothing_is_left(registry: CollectorRegistry) -> None:
    foreign = Counter("resilient_scan_runs_total", "Of somebody else.", registry=registry)
    with pytest.raises(ValueError, match="resilient_scan_runs"):
        PrometheusMetrics(registry)
    assert list(registry._collector_to_names) == [foreign]
    registry.unregister(foreign)
    PrometheusMetrics(registry)(RunEnded("run", 1.0, {}, True, 0.0))
    assert value(registry, "runs_total", result="complete") == 1


def test_the_cache_s_answers_count_as_scans_and_not_as_executions(registry: CollectorRegistry) -> None:
    policy = Policy(cache=Cache(ttl=300), retry=None, breaker=None)
    with ScanRunner([healthy("one")], policy=policy, listeners=(PrometheusMetrics(registry),)) as runner:
        for _ in range(3):
            runner.run({})
    assert value(registry, "scans_total", scanner="one", pipeline="test", status="cached") == 2
    assert value(registry, "queue_wait_seconds_count") == 1
    assert value(registry, "attempts_total", scanner="one", outcome="success") == 1


def test_names_of_the_list_are_those_that_promql_needs() -> None:
    by_name = {family.name: family for family in families()}
    assert by_name["resilient_scan_scans_total"].series == ("resilient_scan_scans_total",)
    assert by_name["resilient_scan_queue_wait_seconds"].series == (
        "resilient_scan_queue_wait_seconds_bucket",
        "resilient_scan_queue_wait_seconds_sum",
        "resilient_scan_queue_wait_seconds_count",
    )


def test_the_state_of_a_provider_is_read_at_the_scrape(registry: CollectorRegistry) -> None:
    def states() -> dict[str, float]:
        return {
            state: value(registry, "provider_state", provider="acme", state=state)
            for state in ("closed", "open", "half_open", "held")
        }

    clock = FakeClock()
    down, told = ConnectionError("refused"), RetryAfter(30)
    one = flapping("one", [told, down, down, []], limit=Limit("acme"))
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=2, open_for=10))
    with ScanRunner([one], policy=policy, clock=clock, listeners=(PrometheusMetrics(registry),)) as runner:
        assert states() == {"closed": 1, "open": 0, "half_open": 0, "held": 0}
        runner.run({})
        assert states() == {"closed": 0, "open": 0, "half_open": 0, "held": 1}
        clock.advance(30)
        assert states() == {"closed": 1, "open": 0, "half_open": 0, "held": 0}
        runner.run({})
        runner.run({})
        assert states() == {"closed": 0, "open": 1, "half_open": 0, "held": 0}
    assert set(states().values()) == {0}  # the runner is closed


def test_a_scanners_provider_is_known_once_it_has_called_a_host(registry: CollectorRegistry) -> None:
    def infos() -> set[tuple[str, str, str]]:
        (family,) = [each for each in registry.collect() if each.name == "resilient_scan_scanner_info"]
        assert {sample.value for sample in family.samples} == {1}
        return {(each.labels["scanner"], each.labels["pipeline"], each.labels["provider"]) for each in family.samples}

    with LoopbackServer(lambda _path, _query: (200, {}, b"{}")) as server:
        client = Client(server.url)

        @scanner(pipeline="edge")
        def calls(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            client.get("/", context=context)
            return []

        named = healthy("named", limit=Limit("acme"))
        with ScanRunner([calls, named], policy=BARE, listeners=(PrometheusMetrics(registry),)) as runner:
            assert infos() == {("calls", "edge", ""), ("named", "test", "acme")}
            runner.run({})
            assert infos() == {("calls", "edge", ""), ("named", "test", "acme")}  # without a breaker, no provider
        policy = Policy(cache=None)
        with ScanRunner([calls, named], policy=policy, listeners=(PrometheusMetrics(registry),)) as runner:
            runner.run({})
            assert infos() == {("calls", "edge", server.url.partition("://")[2]), ("named", "test", "acme")}
        client.close()
