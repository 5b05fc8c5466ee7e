"""What each alert is held against: series that make it fire, series that must not, and when it has to clear.

Time is in minutes. A counter or gauge is a list of pieces, each `(minutes, start, step)`. A fleet that runs once an
hour lasts sixty times as long as one that runs once a minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from grafana.source.presets import Burn, Preset

Labels = Mapping[str, str]
Piece = tuple[int, float, float]
FLEET = 'job="resilient-scan",instance="a:1"'


@dataclass
class Scenario:
    """Series, and who fires when.

    Attributes:
        alert: the name.
        series: samples once a minute, as promtool writes them.
        firing: by minute, the labels of what fires then; nothing else may.
        sampled: minutes between two samples, and two evaluations; a week of minutes is more than promtool holds.
    """

    alert: str
    series: dict[str, str] = field(default_factory=dict)
    firing: dict[int, list[Labels]] = field(default_factory=dict)
    sampled: int = 1

    def add(self, name: str, labels: str, *pieces: Piece) -> None:
        """Add one series."""
        selector = f"{name}{{{labels}}}" if labels else name
        self.series[selector] = " ".join(self._written(*piece) for piece in pieces)

    def _written(self, lasting: int, start: float, step: float) -> str:
        return f"{start:g}{step * self.sampled:+g}x{lasting // self.sampled - 1}"

    def at(self, minute: int, *labels: Labels) -> None:
        """Say who fires at a time."""
        self.firing[minute] = list(labels)


def scanner(name: str) -> str:
    return f'{FLEET},scanner="{name}"'


def executions(scenario: Scenario, name: str, outcome: str, *pieces: Piece) -> None:
    scenario.add("resilient_scan_executions_total", f'{scanner(name)},pipeline="p",outcome="{outcome}"', *pieces)


def by_scanner(name: str) -> Labels:
    return {"job": "resilient-scan", "scanner": name}


JOB: Labels = {"job": "resilient-scan"}


def scenarios(preset: Preset) -> Iterator[Scenario]:
    every = 60 if preset.one_shot else 1  # minutes from run to run
    yield ratio(preset, every, "ScannerErrorRatioHigh", "error", ("failing", "hanging"))
    yield ratio(preset, every, "ScannerTimeoutRatioHigh", "timeout", ("hanging",))
    yield out_of_service()
    for burn in preset.burns:
        yield burning(preset, burn)
        yield spiking(preset, burn)
    yield slow(preset, every)
    yield stale(preset)
    yield suspicious(preset)
    yield quarantined(preset)
    yield flapping(preset)
    yield webhooks()
    yield webhooks_unsent()
    yield refused(preset)
    yield blind(preset)
    yield target_down()
    yield saturated()
    yield store()
    yield watchdog()
    if preset.one_shot:
        yield runs_missing(preset)
        yield from one_shots()


def ratio(preset: Preset, every: int, alert: str, outcome: str, fire: Sequence[str]) -> Scenario:
    """20 runs that fail, and 40 that do not, beside scanners that must not fire."""
    bad, good, step = 20 * every, 40 * every, 1 / every
    whole = bad + good
    made = Scenario(alert, sampled=5 if preset.one_shot else 1)
    for name, kind in (("failing", "error"), ("hanging", "timeout")):
        executions(made, name, kind, (bad, 0, step), (good, 20, 0))
        executions(made, name, "success", (bad, 0, 0), (good, 0, step))
    for name in ("healthy", "rejected", "idle"):
        for kind in ("success", "error", "timeout"):
            executions(made, name, kind, (whole, 0, step if (name, kind) == ("healthy", "success") else 0))
    scans = f'{scanner("rejected")},pipeline="p",status="rejected"'
    made.add("resilient_scan_scans_total", scans, (whole, 0, step))
    _rare(made, preset, whole, every, outcome)
    made.at(1)
    made.at(10 * every, *(by_scanner(name) for name in fire))
    made.at(whole - 5 * every)
    return made


def _rare(made: Scenario, preset: Preset, whole: int, every: int, outcome: str) -> None:
    """One that executes so rarely that a single failure says nothing."""
    lone = 8 * every
    executions(made, "rare", outcome, (lone, 0, 0), (whole - lone, 1, 0))
    successes = 0 if preset.min_executions > 1 else 2  # of cron one execution is enough: there the others succeeded
    executions(made, "rare", "success", (lone - every, 0, 0), (whole - lone + every, successes, 0))


def out_of_service() -> Scenario:
    made = Scenario("ScannerOutOfService")
    state = "resilient_scan_breaker_state"
    made.add(state, f'{scanner("open")},state="open"', (20, 1, 0), (40, 0, 0))
    made.add(state, f'{scanner("trial")},state="open"', (10, 1, 0), (50, 0, 0))
    made.add(state, f'{scanner("trial")},state="half_open"', (10, 0, 0), (10, 1, 0), (40, 0, 0))
    made.add(state, f'{scanner("healthy")},state="open"', (60, 0, 0))
    made.add(state, f'{scanner("healthy")},state="closed"', (60, 1, 0))
    made.add(state, f'{scanner("blip")},state="open"', (8, 0, 0), (1, 1, 0), (51, 0, 0))
    made.add(state, f'{scanner("hanging")},state="open"', (60, 0, 0))
    for name, hung in (("open", 0), ("trial", 0), ("healthy", 0), ("blip", 0), ("hanging", 1), ("no_breaker", 1)):
        made.add("resilient_scan_abandoned_threads", scanner(name), (20, hung, 0), (40, 0, 0))
    fire = [by_scanner(name) for name in ("open", "trial", "hanging", "no_breaker")]
    made.at(1)
    made.at(10, *fire)
    made.at(19, *fire)
    made.at(30)
    return made


def burning(preset: Preset, burn: Burn) -> Scenario:
    """Above the limit for two hours of the short window, then not; one just below it; idle and rare ones."""
    limit = burn.factor * (1 - preset.objective)
    while_ = max(120, minutes(burn.short) // 60 * 15)
    after = minutes(burn.short) + 60
    made = Scenario(name_of(burn), sampled=sampling(burn))
    for name, share in (("burning", (limit + 1) / 2), ("below", limit * 0.8), ("healthy", 0.0)):
        executions(made, name, "error", (while_, 0, share), (after, share * while_, 0))
        executions(made, name, "success", (while_, 0, 1 - share), (after, (1 - share) * while_, 1))
    for kind in ("error", "success"):
        executions(made, "idle", kind, (while_ + after, 0, 0))
        made.add(
            "resilient_scan_scans_total",
            f'{scanner("idle")},pipeline="p",status="rejected"',
            (while_ + after, 0, 1),
        )
    made.at(while_ - 5, by_scanner("burning"))
    made.at(while_ + after - 5)
    return made


def spiking(preset: Preset, burn: Burn) -> Scenario:
    """Above the limit in the short window, below it in the long one."""
    limit, short, long = burn.factor * (1 - preset.objective), minutes(burn.short), minutes(burn.long)
    made = Scenario(name_of(burn), sampled=sampling(burn))
    failed = int(short * min(0.9, 0.7 * limit * long / short)) // made.sampled * made.sampled
    executions(made, "spiking", "success", (long - failed, 0, 1), (failed, long - failed, 0))
    executions(made, "spiking", "error", (long - failed, 0, 0), (failed, 0, 1))
    made.at(long - 1)
    return made


def sampling(burn: Burn) -> int:
    """Return how many minutes may lie between two samples, so that the short window has several."""
    return 1 if minutes(burn.short) < 30 else 5 if minutes(burn.short) < 120 else 15


def name_of(burn: Burn) -> str:
    return f"ScannerErrorBudgetBurn{int(burn.factor)}x"


def slow(preset: Preset, every: int) -> Scenario:
    bad, good, step = 30 * every, 60 * every, 1 / every
    made = Scenario("ScannerLatencyHigh", sampled=5 if preset.one_shot else 1)
    for name, below in (("slow", 0.0), ("fast", step)):
        for edge in ("10.0", "30.0", "+Inf"):
            grows = below if edge == "10.0" else step
            made.add(
                "resilient_scan_execution_duration_seconds_bucket",
                f'{scanner(name)},pipeline="p",le="{edge}"',
                (bad, 0, grows),
                (good, grows * bad, step),
            )
        executions(made, name, "success", (bad + good, 0, step))
    made.at(1)
    made.at(20 * every, by_scanner("slow"))
    made.at(bad + good - 5)
    return made


def stale(preset: Preset) -> Scenario:
    limit = preset.stale // 60
    bad, good = limit + 60, 2 * limit
    made = Scenario("ScannerStale")
    success, scans = "resilient_scan_last_success_timestamp_seconds", "resilient_scan_scans_total"
    asked = {
        "stuck": "error",
        "rejected": "rejected",
        "cached": "cached",
        "disabled": "disabled",
        "healthy": "completed",
    }
    for name, status in asked.items():
        until, labels = (bad if status in {"error", "rejected"} else bad + good), f'{scanner(name)},pipeline="p"'
        made.add(scans, f'{labels},status="{status}"', (until, 0, 1), *([(good, until, 0)] if until == bad else []))
    for name in ("stuck", "rejected"):
        made.add(success, scanner(name), (bad, 60, 0), (good, 60 * bad, 60))
    for name in ("cached", "disabled", "idle"):
        made.add(success, scanner(name), (bad + good, 60, 0))
    made.add(success, scanner("healthy"), (bad + good, 0, 60))
    made.at(limit - 2)
    made.at(bad - 5, by_scanner("stuck"), by_scanner("rejected"))
    made.at(bad + 10)
    return made


def suspicious(preset: Preset) -> Scenario:
    made, window = Scenario("ScannerSuspiciouslyEmpty"), minutes(preset.long)
    counter, whole = "resilient_scan_suspicious_results_total", window + 60
    made.add(counter, scanner("empty"), (5, 0, 1), (whole, 5, 0))
    made.add(counter, scanner("healthy"), (5 + whole, 0, 0))
    made.add(counter, scanner("once"), (5, 0, 0), (whole, 1 if preset.min_executions > 1 else 0, 0))
    made.at(10, by_scanner("empty"))
    made.at(whole)
    return made


def quarantined(preset: Preset) -> Scenario:
    made, long = Scenario("ScannerQuarantinedLong"), minutes(preset.quarantined)
    state, half = "resilient_scan_scanner_state", long // 2
    made.add(state, f'{scanner("ill")},state="quarantined"', (half, 1, 0), (1, 0, 0), (long, 1, 0), (30, 0, 0))
    made.add(state, f'{scanner("ill")},state="probing"', (half, 0, 0), (1, 1, 0), (long, 0, 0), (30, 0, 0))
    made.add(state, f'{scanner("short")},state="quarantined"', (half, 1, 0), (long + 31, 0, 0))
    made.add(state, f'{scanner("by_hand")},state="disabled"', (half + long + 31, 1, 0))
    made.add(state, f'{scanner("by_hand")},state="quarantined"', (half + long + 31, 0, 0))
    made.at(long - 2)
    made.at(long + 5, by_scanner("ill"))
    made.at(half + long + 20)
    return made


def flapping(preset: Preset) -> Scenario:
    made, window = Scenario("ScannerFlapping"), minutes(preset.long)
    for name, times in (("flapping", 5), ("ill_once", 1), ("healthy", 0)):
        labels = f'{scanner(name)},to="quarantined",source="alert"'
        rising = [(5, float(index), 0.0) for index in range(times)]
        made.add("resilient_scan_scanner_transitions_total", labels, *rising, (window + 60, times, 0))
        made.add(
            "resilient_scan_scanner_transitions_total",
            f'{scanner(name)},to="enabled",source="probe"',
            (window + 60, 0, 1),
        )
    made.at(30, by_scanner("flapping"))
    made.at(window + 59)
    return made


def webhooks() -> Scenario:
    made = Scenario("ResilientScanWebhookFailing")
    for job, result in (("a", "unauthorized"), ("b", "invalid"), ("c", "unknown_scanner"), ("d", "accepted")):
        labels = f'job="{job}",instance="a:1",source="alertmanager",result="{result}"'
        made.add("resilient_scan_alert_webhooks_total", labels, (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.at(4)
    made.at(12, {"job": "a"}, {"job": "b"}, {"job": "c"})
    made.at(30)
    return made


def webhooks_unsent() -> Scenario:
    made = Scenario("ResilientScanWebhookFailing")
    for integration in ("webhook", "email"):
        labels = f'job="{integration}",instance="am:1",integration="{integration}"'
        made.add("alertmanager_notifications_failed_total", labels, (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.at(12, {"job": "webhook"})
    made.at(30)
    return made


def refused(preset: Preset) -> Scenario:
    made, window = Scenario("ResilientScanFuseBlown"), minutes(preset.long)
    for job, result in (("a", "refused"), ("b", "accepted"), ("c", "duplicate")):
        labels = f'job="{job}",instance="a:1",source="alertmanager",result="{result}"'
        made.add("resilient_scan_alert_webhooks_total", labels, (5, 0, 0), (2, 0, 1), (window + 60, 1, 0))
    made.at(4)
    made.at(10, {"job": "a"})
    made.at(window + 30)
    return made


def blind(preset: Preset) -> Scenario:
    made, seen = Scenario("ResilientScanBlind"), "resilient_scan_alert_last_heartbeat_timestamp_seconds"
    made.add(seen, FLEET, (5, 0, 60), (15, 240, 0), (20, 1200, 60))
    made.add(seen, 'job="never",instance="b:1"', (40, 0, 0))
    made.add(seen, 'job="fine",instance="c:1"', (40, 0, 60))
    made.at(5 + preset.heartbeat // 60)
    made.at(15, JOB)
    made.at(25)
    return made


def target_down() -> Scenario:
    made = Scenario("ResilientScanTargetDown")
    made.add("up", FLEET, (10, 1, 0), (10, 0, 0), (20, 1, 0))
    made.add("up", 'job="mine",instance="b:1"', (10, 1, 0), (10, 0, 0), (20, 1, 0))
    made.add("resilient_scan_build_info", 'job="mine",instance="b:1",version="1"', (10, 1, 0))
    made.add("up", 'job="node",instance="c:1"', (40, 0, 0))
    made.add("up", 'job="pushgateway",instance="d:1"', (40, 1, 0))
    made.at(9)
    made.at(15, {**JOB, "instance": "a:1"}, {"job": "mine", "instance": "b:1"})
    made.at(25)
    return made


def saturated() -> Scenario:
    made = Scenario("ResilientScanSaturated")
    made.add("resilient_scan_queued_scans", FLEET, (20, 3, 0), (20, 0, 0))
    made.add("resilient_scan_queued_scans", 'job="busy",instance="b:1"', *[(2, 5.0, -5.0)] * 20)
    made.at(2)
    made.at(15, JOB)
    made.at(30)
    return made


def store() -> Scenario:
    made = Scenario("ResilientScanStoreErrors")
    made.add("resilient_scan_store_errors_total", f'{FLEET},operation="update"', (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.add("resilient_scan_store_errors_total", 'job="fine",instance="b:1",operation="update"', (60, 0, 0))
    made.at(4)
    made.at(12, JOB)
    made.at(30)
    return made


def watchdog() -> Scenario:
    made = Scenario("ResilientScanWatchdog")
    made.add("up", FLEET, (10, 0, 0))
    made.at(0, {})
    made.at(9, {})
    return made


def runs_missing(preset: Preset) -> Scenario:
    limit = (preset.missing_run or 0) // 60
    made, ended = Scenario("ResilientScanRunsMissing"), "resilient_scan_last_run_timestamp_seconds"
    made.add(ended, FLEET, (limit + 60, 60, 0), (30, 60 * (limit + 60), 60))
    made.add(ended, 'job="hourly",instance="b:1"', *[(60, 3600.0 * hour, 0.0) for hour in range(limit // 60 + 1)])
    made.at(limit - 5)
    made.at(limit + 30, JOB)
    made.at(limit + 70)
    return made


def one_shots() -> Iterator[Scenario]:
    """Each run is a process of its own, whose counters begin at 0: what was pushed stands for an hour."""
    for alert, kind in (("ScannerErrorRatioHigh", "error"), ("ScannerTimeoutRatioHigh", "timeout")):
        made = Scenario(alert)
        made.add("resilient_scan_runs_total", f'{FLEET},result="partial"', (1200, 1, 0))
        executions(made, "failing", kind, (600, 1, 0), (600, 0, 0))
        executions(made, "failing", "success", (600, 0, 0), (600, 1, 0))
        hour = [(60, float(number % 3 == 1), 0.0) for number in range(20)]
        executions(made, "flaky", kind, *hour)
        executions(made, "flaky", "success", *[(60, 1.0 - value, 0.0) for _, value, _ in hour])
        # Seen as counters that go on, this one has grown by one failure and by no success.
        executions(made, "once", kind, (360, 0, 0), (60, 1, 0), (780, 0, 0))
        executions(made, "once", "success", (360, 1, 0), (60, 0, 0), (780, 1, 0))
        for outcome in ("success", kind):
            executions(made, "healthy", outcome, (1200, float(outcome == "success"), 0))
            executions(made, "rejected", outcome, (1200, 0, 0))
        made.at(400, by_scanner("failing"))
        made.at(1100)
        yield made
    yield _suspicious_run()
    yield _stale_run()


def _suspicious_run() -> Scenario:
    made = Scenario("ScannerSuspiciouslyEmpty")
    made.add("resilient_scan_runs_total", f'{FLEET},result="complete"', (120, 1, 0))
    made.add("resilient_scan_suspicious_results_total", scanner("empty"), (60, 1, 0), (60, 0, 0))
    made.add("resilient_scan_suspicious_results_total", scanner("healthy"), (120, 0, 0))
    made.at(30, by_scanner("empty"))
    made.at(90)
    return made


def _stale_run() -> Scenario:
    made, labels = Scenario("ScannerStale"), f'{scanner("stuck")},pipeline="p",status="error"'
    made.add("resilient_scan_runs_total", f'{FLEET},result="partial"', (360, 1, 0))
    made.add("resilient_scan_last_success_timestamp_seconds", scanner("stuck"), (300, 60, 0), (60, 18000, 0))
    made.add("resilient_scan_scans_total", labels, (300, 1, 0), (60, 0, 0))
    made.at(100)
    made.at(250, by_scanner("stuck"))
    made.at(330)
    return made


def minutes(duration: str) -> int:
    """Return how many minutes `5m`, `1h` or `3d` are."""
    return int(duration[:-1]) * {"m": 1, "h": 60, "d": 1440}[duration[-1]]
