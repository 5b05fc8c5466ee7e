"""The alert loop in a real runner: out of service, probed, and back, with the built-in policy and with others."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Policy,
    Quarantine,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged, ExecutionEnded, ProbeEnded, ScanEnded, ScannerStateChanged
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder, flapping, hanging, healthy
from tests.support.control import counts
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.quarantine import alert
from tests.support.waiting import eventually

ILL = OSError("HTTP 500")


class Source:
    """A scanner whose source is ill until somebody heals it."""

    def __init__(self, name: str = "ill", pipeline: str = "test") -> None:
        self.name, self.pipeline = name, pipeline
        self.well = False
        self.asked = 0

    def scan(self, _state: dict[str, Any]) -> list[dict[str, str]]:
        self.asked += 1
        if not self.well:
            raise ILL
        return [{"ticker": "ABC"}]


def statuses(runner: ScanRunner, **options: Any) -> list[str]:
    return [result.status.value for result in runner.run({}, **options).results.values()]


def states(runner: ScanRunner) -> dict[str, str]:
    return {state.name: state.state for state in runner.scanners()}


def moves(recorder: Recorder) -> list[tuple[str, str, str]]:
    return [(event.old, event.new, event.source) for event in recorder.of(ScannerStateChanged)]


# the way out and back


def test_an_alert_takes_a_scanner_out_and_probes_bring_it_back(fleet: Fleet) -> None:
    clock, recorder, source = FakeClock(), Recorder(), Source()
    runner = fleet(source, healthy("other"), clock=clock, listeners=(recorder,))
    assert statuses(runner) == ["error", "completed"]
    assert runner.alerts([alert("ill")]) == counts(accepted=1)
    clock.advance(59.5)
    assert statuses(runner) == ["disabled", "completed"]
    assert runner.probes_due() == ()
    clock.advance(0.5)
    assert runner.probes_due() == ("ill",)
    source.well = True
    runner.alerts([alert("ill", "resolved")])
    assert [statuses(runner) for _ in range(3)] == [["completed", "completed"]] * 3
    assert moves(recorder) == [
        ("enabled", "quarantined", "alert"),
        ("quarantined", "probing", "probe"),
        ("probing", "enabled", "probe"),
    ]
    assert [(event.scanner, event.outcome) for event in recorder.of(ProbeEnded)] == [("ill", "success")] * 3
    assert states(runner) == {"ill": "enabled", "other": "enabled"}
    assert source.asked == 4


def test_a_failing_probe_quarantines_for_longer(fleet: Fleet) -> None:
    clock, source = FakeClock(), Source()
    runner = fleet(source, clock=clock, quarantine=Quarantine(cooloff=10, cooloff_cap=20))
    runner.alerts([alert("ill")])
    clock.advance(10)
    assert statuses(runner) == ["error"]
    (state,) = runner.scanners()
    assert (state.state, state.level, state.reason) == ("quarantined", 1, "OSError: HTTP 500")
    assert state.until is not None
    assert 15 <= state.until - clock.time() <= 20
    assert statuses(runner) == ["disabled"]


def test_the_built_in_policy_with_own_counts_closes_the_loop_without_an_alert(fleet: Fleet) -> None:
    """Its breaker makes executions rare, and only executions count: ten in a row take hours."""
    clock, recorder, source = FakeClock(auto=True), Recorder(), Source()
    runner = fleet(
        source,
        healthy("other"),
        policy=Policy(),
        clock=clock,
        listeners=(recorder,),
        quarantine=Quarantine(after_failures=10),
    )
    runs = 0
    while states(runner)["ill"] == "enabled":
        clock.advance(60)
        runner.run({})
        runs += 1
        assert runs < 300
    failed = [event for event in recorder.of(ExecutionEnded) if event.scanner == "ill" and event.outcome == "error"]
    assert len(failed) == 10
    assert states(runner)["ill"] == "quarantined"
    source.well = True
    asked = source.asked
    clock.advance(30)
    assert statuses(runner)[0] == "disabled"
    clock.advance(30)
    assert [statuses(runner)[0] for _ in range(3)] == ["completed"] * 3
    assert source.asked == asked + 3
    assert states(runner)["ill"] == "enabled"
    assert moves(recorder) == [
        ("enabled", "quarantined", "failures"),
        ("quarantined", "probing", "probe"),
        ("probing", "enabled", "probe"),
    ]
    assert runner.explain("ill").verdict.answer in {"yes", "cached"}


@pytest.mark.parametrize("interval", [60.0, 600.0, 3600.0])
def test_a_scanner_that_stays_ill_does_not_flap(fleet: Fleet, interval: float) -> None:
    clock, recorder, source = FakeClock(auto=True), Recorder(), Source()
    options = Quarantine(after_failures=10)
    runner = fleet(source, policy=Policy(), clock=clock, listeners=(recorder,), quarantine=options)
    for _ in range(200):
        runner.run({})
        clock.advance(interval)
    assert ("probing", "enabled", "probe") not in moves(recorder)
    assert moves(recorder).count(("enabled", "quarantined", "failures")) == 1


def test_alerts_that_come_and_go_with_the_traffic_do_not_make_it_flap(fleet: Fleet) -> None:
    """Out of service there are no executions, the ratio is 0/0, and the alert resolves; nothing follows from that."""
    clock, recorder, source = FakeClock(), Recorder(), Source()
    runner = fleet(source, clock=clock, listeners=(recorder,))
    for turn in range(100):
        clock.advance(10)
        executed = [event.outcome for event in recorder.of(ExecutionEnded)][-3:]
        ratio_high = executed.count("error") >= 2 and statuses(runner) == ["error"]
        runner.alerts([alert("ill", "firing" if ratio_high else "resolved", start=float(turn))])
        if not ratio_high:
            runner.run({})
    changes = moves(recorder)
    assert changes.count(("enabled", "quarantined", "alert")) == 1
    assert ("probing", "enabled", "probe") not in changes
    assert source.asked < 20


# probes


def test_a_probe_reads_no_cache_but_fills_it(fleet: Fleet, bare: Bare) -> None:
    clock, recorder, source = FakeClock(), Recorder(), Source()
    source.well = True
    policy = bare(cache=Cache(ttl=1000, jitter=0, stale_if_error=1000))
    runner = fleet(source, policy=policy, clock=clock, listeners=(recorder,), quarantine=Quarantine(successes=2))
    assert statuses(runner) == ["completed"]
    runner.alerts([alert("ill"), alert("ill", "resolved")])
    clock.advance(60)
    assert statuses(runner) == ["completed"]
    source.well = False
    assert statuses(runner) == ["error"]  # not stale: no cache is read
    clock.advance(120)
    source.well = True
    assert [statuses(runner) for _ in range(3)] == [["completed"], ["completed"], ["cached"]]
    result = runner.run({}).results["ill"]
    assert (result.status, result.age) == (Status.CACHED, 0)
    marks = [(event.result.status.value, event.probe, event.cache) for event in recorder.of(ScanEnded)]
    assert marks[0] == ("completed", False, "miss")
    assert [mark for mark in marks if mark[1]] == [
        ("completed", True, "bypass"),
        ("error", True, "bypass"),
        ("completed", True, "bypass"),
        ("completed", True, "bypass"),
    ]


def test_a_probe_is_the_breakers_trial_at_once_and_votes_once(fleet: Fleet, bare: Bare) -> None:
    clock, recorder, source = FakeClock(), Recorder(), Source()
    policy = bare(breaker=Breaker(failures=2, open_for=1000), retry=Retry(attempts=3, base=0, cap=0))
    runner = fleet(source, policy=policy, clock=clock, listeners=(recorder,), quarantine=Quarantine(successes=1))
    runner.run({})
    runner.alerts([alert("ill"), alert("ill", "resolved")])
    clock.advance(60)
    assert source.asked == 2
    assert statuses(runner) == ["error"]
    assert source.asked == 3  # one attempt: its failure opens the breaker again
    clock.advance(120)
    source.well = True
    assert statuses(runner) == ["completed"]
    assert [(event.old, event.new) for event in recorder.of(BreakerChanged)] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    assert states(runner) == {"ill": "enabled"}


def test_probes_are_made_one_at_a_time(fleet: Fleet, background: Background, release: threading.Event) -> None:
    clock = FakeClock()
    entered = threading.Event()

    @scanner(pipeline="test")
    def slow(_state: dict[str, Any]) -> list[Any]:
        entered.set()
        release.wait()
        return []

    runner = fleet(slow, clock=clock, quarantine=Quarantine(successes=1))
    runner.alerts([alert("slow"), alert("slow", "resolved")])
    clock.advance(60)
    probing = background(runner.run, {})
    assert entered.wait(5)
    assert statuses(runner) == ["disabled"]
    assert runner.scanners()[0].probing
    assert "its probe is under way" in str(runner.explain("slow"))
    release.set()
    assert probing.result(5).results["slow"].status is Status.COMPLETED
    assert states(runner) == {"slow": "enabled"}


def test_a_probe_that_hangs_fails_with_its_timeout(
    fleet: Fleet, background: Background, release: threading.Event, bare: Bare
) -> None:
    clock, recorder = FakeClock(), Recorder()
    runner = fleet(hanging("stuck", release), policy=bare(timeout=Timeout(total=5)), clock=clock, listeners=(recorder,))
    runner.alerts([alert("stuck")])
    clock.advance(60)
    run = background(runner.run, {})
    eventually(lambda: bool(runner.scanners()[0].probing))
    assert driven(clock, run).results["stuck"].status is Status.TIMEOUT
    (ended,) = recorder.of(ProbeEnded)
    assert (ended.outcome, ended.reason) == ("timeout", "ScanTimeout: timeout after 5s")
    assert states(runner) == {"stuck": "quarantined"}
    assert runner.scanners()[0].level == 1


def driven(clock: FakeClock, run: Any) -> Any:
    """Let time pass until a run has ended, and return its report."""
    pause = threading.Event()
    for _ in range(1000):
        if run.done():
            return run.result()
        clock.advance(0.5)
        pause.wait(0.005)
    pytest.fail("the run did not end")


def test_while_a_thread_hangs_a_probe_comes_to_no_verdict(
    fleet: Fleet, background: Background, release: threading.Event, bare: Bare
) -> None:
    clock, recorder = FakeClock(), Recorder()
    runner = fleet(hanging("stuck", release), policy=bare(timeout=Timeout(total=5)), clock=clock, listeners=(recorder,))
    driven(clock, background(runner.run, {}))
    runner.alerts([alert("stuck")])
    clock.advance(60)
    assert driven(clock, background(runner.run, {})).results["stuck"].status is Status.REJECTED
    assert [event.outcome for event in recorder.of(ProbeEnded)] == ["cancelled"]
    assert "would be a probe, but end `rejected`" in str(runner.explain("stuck"))
    (state,) = runner.scanners()
    assert (state.state, state.level, state.probing) == ("probing", 0, False)


def test_a_probe_that_the_run_cuts_off_goes_on_and_counts(
    fleet: Fleet, background: Background, bare: Bare, eventually: Eventually
) -> None:
    """A run's deadline ends scans, not executions that fill a cache."""
    clock, entered, go = FakeClock(), threading.Event(), threading.Event()

    @scanner(pipeline="test")
    def slow(_state: dict[str, Any]) -> list[Any]:
        entered.set()
        go.wait()
        return []

    runner = fleet(slow, policy=bare(cache=Cache()), clock=clock, quarantine=Quarantine(successes=1))
    runner.alerts([alert("slow"), alert("slow", "resolved")])
    clock.advance(60)
    run = background(runner.run, {}, deadline=1)
    assert entered.wait(5)
    clock.advance(1)
    assert run.result(5).results["slow"].status is Status.TIMEOUT
    assert states(runner) == {"slow": "probing"}
    go.set()
    eventually(lambda: states(runner) == {"slow": "enabled"})


def test_a_probe_that_is_cancelled_comes_to_no_verdict(fleet: Fleet, background: Background, bare: Bare) -> None:
    clock, recorder, entered = FakeClock(), Recorder(), threading.Event()

    @scanner(pipeline="test")
    def polite(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        entered.set()
        context.sleep(1e6)
        return []

    store = MemoryStore(clock)
    runner = fleet(polite, policy=bare(), clock=clock, store=store, listeners=(recorder,))
    runner.alerts([alert("polite")])
    clock.advance(60)
    run = background(runner.run, {})
    assert entered.wait(5)
    runner.close()
    assert run.result(5).results["polite"].status is Status.SKIPPED
    assert [event.outcome for event in recorder.of(ProbeEnded)] == ["cancelled"]
    other = fleet(healthy("polite"), clock=clock, store=store)
    assert (states(other)["polite"], other.probes_due()) == ("probing", ("polite",))


def test_probes_of_an_attempt_that_hangs_are_judged_by_the_next(
    fleet: Fleet, background: Background, release: threading.Event, bare: Bare
) -> None:
    clock, recorder = FakeClock(), Recorder()
    asked: list[int] = []

    @scanner(pipeline="test")
    def once_stuck(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        if len(asked) == 1:
            release.wait()
        return []

    policy = bare(retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=20, attempt=5, max_abandoned=2))
    options = Quarantine(successes=1)
    runner = fleet(once_stuck, policy=policy, clock=clock, listeners=(recorder,), quarantine=options)
    runner.alerts([alert("once_stuck"), alert("once_stuck", "resolved")])
    clock.advance(60)
    run = background(runner.run, {})
    assert driven(clock, run).results["once_stuck"].status is Status.COMPLETED
    assert [event.outcome for event in recorder.of(ProbeEnded)] == ["success"]
    assert states(runner) == {"once_stuck": "enabled"}


def test_a_probe_is_marked_in_the_flight_recorder_and_explained(fleet: Fleet) -> None:
    clock, source = FakeClock(), Source()
    runner = fleet(source, clock=clock, quarantine=Quarantine(cooloff=100))
    runner.run({})
    runner.alerts([alert("ill")])
    text = str(runner.explain("ill"))
    assert "quarantined by an alert (alertmanager) until" in text
    assert "ScannerErrorRatioHigh: ill fails" in text
    assert "wait 1m 40s: the first scan after that is a probe, and 3 successes in a row bring" in " ".join(text.split())
    clock.advance(100)
    said = runner.explain("ill")
    assert said.verdict.answer == "yes"
    assert "as a probe" in said.verdict.says
    runner.run({})
    assert [flight.probe for flight in runner.flights("ill")] == [False, True]
    assert [past.probe for past in runner.explain("ill").past] == [True, False]
    assert "(probe) OSError: HTTP 500" in str(runner.explain("ill"))
    assert "tested whether it may come back" in str(runner.explain("ill", trace=True))
    assert "failed to come back 1 time" in str(runner.explain("ill"))


# ejection cap, critical scanners, manual orders


def test_the_whole_fleet_fails_and_the_ejection_cap_holds(fleet: Fleet) -> None:
    clock = FakeClock()
    runner = fleet(*(Source(f"s{number}") for number in range(5)), clock=clock)
    said = runner.alerts([alert(f"s{number}", mark=str(number)) for number in range(5)])
    assert said == counts(accepted=2, refused=3)
    assert statuses(runner) == ["disabled"] * 2 + ["error"] * 3


def test_a_critical_scanner_stays_in_service(fleet: Fleet) -> None:
    source = Source()
    options = Quarantine(critical=("ill",), after_failures=1)
    runner = fleet(source, clock=FakeClock(), quarantine=options)
    assert runner.alerts([alert("ill")])["refused"] == 1
    assert statuses(runner) == ["error"]
    assert statuses(runner) == ["error"]
    runner.disable("ill", reason="maintenance")
    assert statuses(runner) == ["disabled"]


def test_a_manual_order_takes_precedence_over_alerts_and_probes(fleet: Fleet) -> None:
    clock, recorder, source = FakeClock(), Recorder(), Source()
    runner = fleet(source, clock=clock, listeners=(recorder,))
    runner.alerts([alert("ill")])
    runner.enable("ill", reason="false alarm", who="kim")
    assert runner.alerts([alert("ill")])["overruled"] == 1
    assert statuses(runner) == ["error"]
    runner.disable("ill", reason="quota", duration=60, who="kim")
    assert statuses(runner) == ["disabled"]
    clock.advance(60)
    assert statuses(runner) == ["disabled"]  # the alert still fires
    changes = [(entry.old, entry.new, entry.source, entry.who, entry.reason) for entry in reversed(runner.audit())]
    assert changes == [
        ("enabled", "quarantined", "alert", "alertmanager", "ScannerErrorRatioHigh: ill fails"),
        ("quarantined", "enabled", "hand", "kim", "false alarm"),
        ("enabled", "disabled", "hand", "kim", "quota"),
        ("disabled", "quarantined", "alert", "alertmanager", "ScannerErrorRatioHigh: ill fails"),
    ]
    assert [(old, new) for old, new, _ in moves(recorder)] == [(old, new) for old, new, *_ in changes]
    assert len(runner.audit(1)) == 1


def test_a_run_for_some_scanners_probes_them_only(fleet: Fleet) -> None:
    clock, source, other = FakeClock(), Source(), Source("other")
    source.well = True
    runner = fleet(source, other, clock=clock)
    runner.alerts([alert("ill")])
    clock.advance(60)
    assert statuses(runner, only=runner.probes_due()) == ["completed"]
    assert (source.asked, other.asked) == (1, 0)


def test_a_run_without_time_begins_no_probe(fleet: Fleet) -> None:
    clock, source = FakeClock(), Source()
    runner = fleet(source, clock=clock)
    runner.alerts([alert("ill")])
    assert statuses(runner, deadline=0) == ["disabled"]
    clock.advance(60)
    assert statuses(runner, deadline=0) == ["skipped"]
    assert states(runner) == {"ill": "quarantined"}


# stores


def test_a_restart_keeps_quarantine_orders_and_audit(fleet: Fleet) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    first = fleet(Source(), healthy("other"), clock=clock, store=store)
    first.alerts([alert("ill")])
    first.disable("other", reason="quota", duration=100)
    first.close()
    second = fleet(Source(), healthy("other"), clock=clock, store=store)
    assert statuses(second) == ["disabled", "disabled"]
    assert [entry.scanner for entry in second.audit()] == ["other", "ill"]
    clock.advance(100)
    assert statuses(second) == ["error", "completed"]


def test_two_runners_on_one_store_follow_an_order_to_one(fleet: Fleet) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    service = fleet(Source(), clock=clock, store=store)
    recorder, source = Recorder(), Source()
    runner = fleet(source, clock=clock, store=store, listeners=(recorder,), quarantine=Quarantine(successes=1))
    service.alerts([alert("ill")])
    assert statuses(runner) == ["disabled"]
    clock.advance(60)
    assert statuses(runner) == ["error"]
    assert states(service) == {"ill": "quarantined"}
    clock.advance(120)
    source.well = True
    service.alerts([alert("ill", "resolved")])
    assert statuses(runner) == ["completed"]
    assert states(service) == {"ill": "enabled"}
    assert moves(recorder)[-1] == ("probing", "enabled", "probe")


def test_an_order_that_does_not_reach_the_store_holds_here_and_raises(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    runner = fleet(healthy("one"), clock=clock, store=store)

    def away(*_arguments: object) -> None:
        raise StoreError("the store is away")

    with monkeypatch.context() as patch:
        for operation in ("update", "read", "append"):
            patch.setattr(store, operation, away)
        with pytest.raises(StoreError, match="one is disabled in this process only, until its store is back"):
            runner.disable("one", reason="quota")
        assert statuses(runner) == ["disabled"]
        with pytest.raises(StoreError):
            runner.alerts([alert("one")])
    runner.run({})
    other = fleet(healthy("one"), clock=clock, store=store)
    assert statuses(other) == ["disabled"]


# arguments


def test_a_quarantine_is_one_and_its_critical_scanners_exist(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="quarantine must be a Quarantine, got 5"):
        fleet(healthy("one"), quarantine=5)
    with pytest.raises(ConfigError, match=r"quarantine.critical: there is no scanner 'onee'; did you mean 'one'\?"):
        fleet(healthy("one"), quarantine=Quarantine(critical=("onee",)))


def test_views_have_pipelines_and_the_last_status(fleet: Fleet) -> None:
    clock = FakeClock()
    runner = fleet(healthy("one", pipeline="news"), flapping("two", [ILL]), clock=clock)
    assert [(state.pipeline, state.last_status) for state in runner.scanners()] == [("news", None), ("test", None)]
    runner.run({})
    assert [(state.last_status, state.last_at) for state in runner.scanners()] == [
        ("completed", clock.time()),
        ("error", clock.time()),
    ]


def test_unreachable_alerting_shows(fleet: Fleet) -> None:
    clock = FakeClock()
    runner = fleet(healthy("one"), clock=clock, quarantine=Quarantine(heartbeat=10))
    assert runner.blind_since() is None
    clock.advance(40)
    assert runner.blind_since() == clock.time() - 10


def test_what_is_beneath_an_order_is_explained_and_what_was_counted(fleet: Fleet) -> None:
    clock = FakeClock()
    runner = fleet(Source(), Source("other"), clock=clock, quarantine=Quarantine(after_failures=3))
    runner.run({})
    assert "1 execution in a row failed" in str(runner.explain("ill"))
    runner.alerts([alert("ill")])
    runner.disable("ill", reason="quota", who="kim")
    text = " ".join(str(runner.explain("ill")).split())
    assert "disabled by hand (kim) until" in text
    assert "without the manual order it would be quarantined" in text
    runner.enable("ill", reason="fixed")
    assert "the scanner is in service by hand, against alerts, until" in str(runner.explain("ill"))


def test_a_disabled_scanner_is_disabled_whenever_the_run_ends(bare: Bare) -> None:
    with ScanRunner([healthy("one"), healthy("two")], policy=bare(), listeners=(), concurrent=False) as runner:
        runner.disable("two")
        report = runner.run({}, deadline=0)
    assert [result.status for result in report.results.values()] == [Status.SKIPPED, Status.DISABLED]
