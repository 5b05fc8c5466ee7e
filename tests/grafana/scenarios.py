"""What each alert is held against: series that make it fire, series that must not, and when it has to clear.

Time is in minutes. A counter or gauge is a list of pieces, each `(minutes, start, step)`. A fleet that runs once an
hour lasts sixty times as long as one that runs once a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from grafana.source.presets import Burn, Preset

Labels = Mapping[str, str]
Piece = tuple[int, float, float]
FLEET = 'job="resilient-scan",instance="a:1"'
HEARTBEAT = "resilient_scan_alert_last_heartbeat_timestamp_seconds"
LAST_RUN, INTERVAL = "resilient_scan_last_run_timestamp_seconds", "resilient_scan_schedule_interval_seconds"
STALE = float("nan")  # nothing is scraped


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
        if math.isnan(start):
            return f"_x{lasting // self.sampled}"
        return f"{start:g}{step * self.sampled:+g}x{lasting // self.sampled - 1}"

    def at(self, minute: int, *labels: Labels) -> None:
        """Say who fires at a time."""
        self.firing[minute] = list(labels)


def scanner(name: str, instance: str = "a:1") -> str:
    return f'job="resilient-scan",instance="{instance}",scanner="{name}"'


def executions(scenario: Scenario, name: str, outcome: str, *pieces: Piece, instance: str = "a:1") -> None:
    labels = f'{scanner(name, instance)},pipeline="p",outcome="{outcome}"'
    scenario.add("resilient_scan_executions_total", labels, *pieces)


def outcomes(scenario: Scenario, name: str, every: int, said: str, instance: str = "a:1", bad: str = "error") -> None:
    """Add the executions of a scanner, one every `every` minutes: `s` succeeds, `f` fails."""
    for outcome, letter in ((bad, "f"), ("success", "s")):
        pieces = [(every, float(said[: number + 1].count(letter)), 0.0) for number in range(len(said))]
        executions(scenario, name, outcome, (every, 0, 0), *pieces, instance=instance)


def by_scanner(name: str, instance: str = "a:1") -> Labels:
    return {"job": "resilient-scan", "instance": instance, "scanner": name}


def of_all(name: str) -> Labels:
    """Return the labels of an alert about a scanner as a whole: its error budget, or runs that are no processes."""
    return {"job": "resilient-scan", "scanner": name}


PROCESS: Labels = {"job": "resilient-scan", "instance": "a:1"}


def scenarios(preset: Preset) -> Iterator[Scenario]:
    every = 60 if preset.one_shot else 1  # minutes from run to run
    yield ratio(preset, every, "ScannerErrorRatioHigh", "error", ("failing", "hanging"))
    yield ratio(preset, every, "ScannerTimeoutRatioHigh", "timeout", ("hanging",))
    yield one_of_two_replicas(preset, every)
    yield out_of_service()
    yield hanging(preset, every)
    for burn in preset.burns:
        yield burning(preset, burn)
        yield spiking(preset, burn)
        yield little_traffic(preset, burn)
    yield slow(preset, every)
    yield slow_by_the_histogram(preset, every)
    yield stale(preset)
    yield suspicious(preset)
    yield quarantined(preset)
    yield flapping(preset)
    yield alternating(preset)
    yield provider_down()
    yield of_a_provider(preset)
    yield webhooks()
    yield webhooks_unsent()
    yield refused()
    yield blind(preset)
    yield not_wired()
    yield target_down()
    yield target_absent()
    yield target_never_there()
    yield runs_missing(preset)
    yield no_run_ever()
    yield saturated()
    yield store()
    yield local_faults()
    yield local_executions(preset, every)
    yield watchdog()
    if preset.one_shot:
        yield from one_shots()
    else:
        yield from (rarely(every) for every in (1, 5, 10, 60))


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
    made.at(bad + 12 * every)
    made.at(whole - 5 * every)
    return made


def _rare(made: Scenario, preset: Preset, whole: int, every: int, outcome: str) -> None:
    """One that executes so rarely that a single failure says nothing."""
    lone = 8 * every
    executions(made, "rare", outcome, (lone, 0, 0), (whole - lone, 1, 0))
    successes = 0 if preset.windows[0].least > 1 else 2  # of cron one execution is enough: there the others succeeded
    executions(made, "rare", "success", (lone - every, 0, 0), (whole - lone + every, successes, 0))


def rarely(every: int) -> Scenario:
    """Fail always with a `PermanentError`, with a run every `every` minutes: no breaker opens, nothing else shows."""
    made = Scenario("ScannerErrorRatioHigh", sampled=1 if every < 60 else 5)
    outcomes(made, "failing", every, "f" * 8 + "s" * 32)
    outcomes(made, "healthy", every, "s" * 40)
    outcomes(made, "one_failure", every, "ss" + "f" + "s" * 37)
    outcomes(made, "one_failure_at_first", every, "f" + "s" * 39)
    outcomes(made, "one_in_three", every, "ssf" * 13)
    made.at(2 * every)
    made.at(5 * every, by_scanner("failing"))
    made.at(8 * every, by_scanner("failing"))
    made.at(24 * every)
    return made


def one_of_two_replicas(preset: Preset, every: int) -> Scenario:
    """Of all executions, exactly half fail: all those of one replica."""
    made = Scenario("ScannerErrorRatioHigh", sampled=5 if preset.one_shot else 1)
    for instance, kind in (("a:1", "success"), ("b:1", "error")):
        for outcome in ("success", "error"):
            step = 1 / every if outcome == kind else 0
            executions(made, "torn", outcome, (20 * every, 0, step), instance=instance)
    made.at(10 * every, by_scanner("torn", "b:1"))
    made.at(19 * every, by_scanner("torn", "b:1"))
    return made


def out_of_service() -> Scenario:
    made = Scenario("ScannerOutOfService")
    state = "resilient_scan_breaker_state"
    made.add(state, f'{scanner("open")},state="open"', (20, 1, 0), (40, 0, 0))
    made.add(state, f'{scanner("trial")},state="open"', (10, 1, 0), (50, 0, 0))
    made.add(state, f'{scanner("trial")},state="half_open"', (10, 0, 0), (10, 1, 0), (40, 0, 0))
    made.add(state, f'{scanner("healthy")},state="open"', (60, 0, 0))
    made.add(state, f'{scanner("healthy")},state="closed"', (60, 1, 0))
    made.add(state, f'{scanner("blip")},state="open"', (8, 0, 0), (1, 1, 0), (51, 0, 0))
    made.add(state, f'{scanner("open", "b:1")},state="open"', (60, 0, 0))  # a replica that is well
    fire = [by_scanner(name) for name in ("open", "trial")]
    made.at(1)
    made.at(10, *fire)
    made.at(19, *fire)
    made.at(30)
    return made


def provider_down() -> Scenario:
    """Down, and tried again and again; held, which is no failure; up, as a replica sees it."""
    made, state = Scenario("ProviderDown"), "resilient_scan_provider_state"
    for provider, instance in (("acme", "a:1"), ("polite", "a:1"), ("acme", "b:1"), ("blip", "a:1")):
        labels = f'job="resilient-scan",instance="{instance}",provider="{provider}"'
        down, held = (provider, instance) == ("acme", "a:1"), provider == "polite"
        tried = [(1, float(minute % 2), 0.0) for minute in range(20)]
        opened = [(1, 1 - value, 0.0) for _, value, _ in tried]
        blip = [(8, 0.0, 0.0), (1, 1.0, 0.0), (51, 0.0, 0.0)] if provider == "blip" else [(60, 0.0, 0.0)]
        made.add(state, f'{labels},state="open"', *([*opened, (40, 0, 0)] if down else blip))
        made.add(state, f'{labels},state="half_open"', *([*tried, (40, 0, 0)] if down else [(60, 0, 0)]))
        made.add(state, f'{labels},state="held"', (60, float(held), 0))
        made.add(state, f'{labels},state="closed"', *([(20, 0, 0), (40, 1, 0)] if down else [(60, 1.0 - held, 0)]))
    acme = {"job": "resilient-scan", "instance": "a:1", "provider": "acme"}
    made.at(1)
    made.at(5, acme)
    made.at(19, acme)
    made.at(30)
    return made


def of_a_provider(preset: Preset) -> Scenario:
    """Name the provider, with which Alertmanager inhibits it; one that has none, and what has been, are not named."""
    made, limit = Scenario("ScannerStale"), preset.stale // 60
    for name, providers in (("feed", ["acme"]), ("two", ["beta", "acme"]), ("alone", []), ("left", ["old"])):
        made.add("resilient_scan_last_success_timestamp_seconds", scanner(name), (limit + 60, 60, 0))
        labels = f'{scanner(name)},pipeline="p"'
        made.add("resilient_scan_scans_total", f'{labels},status="rejected"', (limit + 60, 0, 1))
        for provider in providers:
            made.add("resilient_scan_scanner_info", f'{labels},provider="{provider}"', (limit + 60, name != "left", 0))
        if not providers:
            made.add("resilient_scan_scanner_info", labels, (limit + 60, 1, 0))
    first = {"provider": "acme"}
    named = [by_scanner("feed") | first, by_scanner("two") | first]
    made.at(limit + 30, *named, by_scanner("alone"), by_scanner("left"))
    made.at(1)
    return made


def hanging(preset: Preset, every: int) -> Scenario:
    """Threads hang: of one that can answer no more, of one that has no breaker, and of one that answers as ever."""
    made, bad, good, step = Scenario("ScannerOutOfService"), 20 * every, 40 * every, 1 / every
    made.sampled = 5 if preset.one_shot else 1
    for name, status in (("hanging", "rejected"), ("stale", "stale"), ("answers", "completed"), ("cached", "cached")):
        made.add("resilient_scan_abandoned_threads", scanner(name), (bad, 1, 0), (good, 0, 0))
        labels = f'{scanner(name)},pipeline="p",status='
        made.add("resilient_scan_scans_total", f'{labels}"{status}"', (bad, 0, step), (good, 20, 0))
        made.add("resilient_scan_scans_total", f'{labels}"error"', (bad, 0, step / 5), (good, 4, 0))
        if status != "completed":
            made.add("resilient_scan_scans_total", f'{labels}"completed"', (bad, 0, 0), (good, 0, step))
    made.add("resilient_scan_breaker_state", f'{scanner("hanging")},state="open"', (bad + good, 0, 0))
    rejected = f'{scanner("limited")},pipeline="p",status="rejected"'  # by its provider's limit: nothing hangs
    made.add("resilient_scan_scans_total", rejected, (bad + good, 0, step))
    made.add("resilient_scan_abandoned_threads", scanner("limited"), (bad + good, 0, 0))
    made.at(1)
    made.at(10 * every, by_scanner("hanging"), by_scanner("stale"))
    made.at(19 * every, by_scanner("hanging"), by_scanner("stale"))
    made.at(bad + 15)
    return made


def burning(preset: Preset, burn: Burn) -> Scenario:
    """Above the limit for two hours of the short window, then not; one just below it; idle and rare ones."""
    limit = burn.factor * (1 - preset.objective)
    least = math.ceil(4 / limit)  # executions, one a minute
    while_ = max(120, minutes(burn.short) // 60 * 15, least + 60) // 15 * 15
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
    made.at(while_ - 5, of_all("burning"))
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


def little_traffic(preset: Preset, burn: Burn) -> Scenario:
    """Two failures among what a quiet scanner does in the long window are more than the limit, and no trend."""
    limit = burn.factor * (1 - preset.objective)
    number = max(2, int(2 / limit) - 1)
    made = Scenario(name_of(burn), sampled=sampling(burn))
    every = math.ceil(minutes(burn.long) / number / made.sampled) * made.sampled
    outcomes(made, "quiet", every, "s" * number + "ff" + "s" * 2)
    for tick in range(number, number + 4):
        made.at(every * (tick + 2) - made.sampled)
    return made


def sampling(burn: Burn) -> int:
    """Return how many minutes may lie between two samples, so that the short window has several."""
    return 1 if minutes(burn.short) < 30 else 5 if minutes(burn.short) < 120 else 15


def name_of(burn: Burn) -> str:
    return f"ScannerErrorBudgetBurn{int(burn.factor)}x"


def slow(preset: Preset, every: int) -> Scenario:
    """Where the timeout of an execution is known, that decides; 10 % at 29 of 30 s are too many, 11 s never are."""
    window, made = minutes(preset.slow_windows[0].length), Scenario("ScannerLatencyHigh")
    made.sampled = 5 if preset.one_shot else 1
    whole, step = window + 60, 1 / every
    for name, share in (("slow", 0.1), ("eleven", 0.0), ("seldom", 0.03)):
        executions(made, name, "success", (whole, 0, step), (2 * whole, step * whole, step))
        late = (whole, 0, share * step), (2 * whole, share * step * whole, 0)
        made.add("resilient_scan_slow_executions_total", scanner(name), *late)
        durations(made, preset, name, (whole, 0, step), (2 * whole, step * whole, step), above=1)
    made.at(5)
    made.at(whole - 5, by_scanner("slow"))
    made.at(3 * whole - 5)
    return made


def slow_by_the_histogram(preset: Preset, every: int) -> Scenario:
    """Where it is not known, what lies above an edge of the histogram decides."""
    window, made = minutes(preset.slow_windows[0].length), Scenario("ScannerLatencyHigh")
    made.sampled = 5 if preset.one_shot else 1
    whole, step = window + 60, 1 / every
    pieces = (whole, 0, step), (2 * whole, step * whole, step)
    durations(made, preset, "slow", *pieces, above=0.1)
    durations(made, preset, "eleven", *pieces, above=0)
    made.at(5)
    made.at(whole - 5, by_scanner("slow"))
    return made


def durations(made: Scenario, preset: Preset, name: str, *pieces: Piece, above: float) -> None:
    """Add the histogram of executions, of which a share takes longer than the edge that the rule looks at."""
    metric, labels = "resilient_scan_execution_duration_seconds", f'{scanner(name)},pipeline="p"'
    made.add(f"{metric}_count", labels, *pieces)
    below = [(lasting, start * (1 - above), step * (1 - above)) for lasting, start, step in pieces]
    made.add(f"{metric}_bucket", f'{labels},le="{float(preset.latency)}"', *below)


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
    made.add(scans, f'{scanner("never")},pipeline="p",status="error"', (bad, 0, 1), (good, bad, 0))
    made.add(success, scanner("never"), (bad, STALE, 0), (good, 60 * bad, 60))
    for name in ("cached", "disabled", "idle"):
        made.add(success, scanner(name), (bad + good, 60, 0))
    made.add(success, scanner("healthy"), (bad + good, 0, 60))
    made.at(limit - 2)
    made.at(bad - 5, by_scanner("stuck"), by_scanner("rejected"), by_scanner("never"))
    made.at(bad + 10)
    return made


def suspicious(preset: Preset) -> Scenario:
    made, window = Scenario("ScannerSuspiciouslyEmpty", sampled=5), minutes(preset.long)
    counter, whole = "resilient_scan_suspicious_results_total", window + 60
    made.add(counter, scanner("empty"), (5, 0, 1), (whole, 5, 0))
    made.add(counter, scanner("healthy"), (5 + whole, 0, 0))
    made.add(counter, scanner("once"), (5, 0, 0), (whole, 1 if preset.suspicious > 1 else 0, 0))
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
    made, window = Scenario("ScannerFlapping", sampled=5), minutes(preset.long)
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
    made.at(window + 55)
    return made


def alternating(preset: Preset) -> Scenario:
    """The process says that a scanner is flapping; of two replicas, one."""
    made = Scenario("ScannerFlapping")
    for name, instance, value in (("odd", "a:1", 1), ("odd", "b:1", 0), ("steady", "a:1", 0)):
        made.add("resilient_scan_flapping", scanner(name, instance), (20, 0, 0), (20, value, 0), (20, 0, 0))
    made.at(10)
    made.at(30, by_scanner("odd"))
    made.at(50)
    if preset.one_shot:
        made.add("resilient_scan_flapping", scanner("nightly", "c:1"), (20, 0, 0), (20, 1, 0), (20, 0, 0))
        made.add("resilient_scan_runs_total", 'job="resilient-scan",instance="c:1",result="complete"', (60, 1, 0))
        made.at(30, by_scanner("odd"), of_all("nightly"))
    return made


def webhooks() -> Scenario:
    made = Scenario("ResilientScanWebhookFailing")
    for job, result in (("a", "unauthorized"), ("b", "invalid"), ("c", "unknown_scanner"), ("d", "accepted")):
        labels = f'job="{job}",instance="a:1",source="alertmanager",result="{result}"'
        made.add("resilient_scan_alert_webhooks_total", labels, (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.at(4)
    made.at(12, *({"job": job, "instance": "a:1"} for job in ("a", "b", "c")))
    made.at(30)
    return made


def webhooks_unsent() -> Scenario:
    made = Scenario("ResilientScanWebhookFailing")
    for integration in ("webhook", "email"):
        labels = f'job="{integration}",instance="am:1",integration="{integration}"'
        made.add("alertmanager_notifications_failed_total", labels, (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.at(12, {"job": "webhook", "instance": "am:1"})
    made.at(30)
    return made


def refused() -> Scenario:
    """Refused again and again, every two minutes, and then no more."""
    made = Scenario("ResilientScanFuseBlown")
    for job, result in (("a", "refused"), ("b", "accepted"), ("c", "overruled"), ("d", "ignored")):
        labels = f'job="{job}",instance="a:1",source="alertmanager",result="{result}"'
        rising = [(2, float(number), 0.0) for number in range(1, 11)]
        made.add("resilient_scan_alert_webhooks_total", labels, (5, 0, 0), *rising, (40, 10, 0))
    made.at(4)
    for minute in (8, 13, 19, 24):
        made.at(minute, {"job": "a", "instance": "a:1"})
    made.at(30)
    return made


def blind(preset: Preset) -> Scenario:
    made = Scenario("ResilientScanBlind")
    made.add(HEARTBEAT, FLEET, (5, 0, 60), (15, 240, 0), (20, 1200, 60))
    made.add(HEARTBEAT, 'job="resilient-scan",instance="b:1"', (40, 0, 60))  # a replica that hears
    made.add(HEARTBEAT, 'job="never",instance="b:1"', (40, 0, 0))
    made.at(5 + preset.heartbeat // 60)
    made.at(15, PROCESS)
    made.at(25)
    return made


def not_wired() -> Scenario:
    made = Scenario("ResilientScanNotWired")
    made.add(HEARTBEAT, FLEET, (20, 0, 0), (20, 1200, 60))
    made.add(HEARTBEAT, 'job="restarted",instance="b:1"', (20, 60, 60), (5, 0, 0), (15, 1500, 60))
    made.at(9)
    made.at(15, PROCESS)
    made.at(25)
    return made


def target_absent() -> Scenario:
    """Both targets vanish from the discovery; of another job one stays, and what was pushed has none."""
    made, build = Scenario("ResilientScanTargetAbsent"), "resilient_scan_build_info"
    for instance in ("a:1", "b:1"):
        labels = f'job="resilient-scan",instance="{instance}"'
        made.add("up", labels, (20, 1, 0))
        made.add(build, f'{labels},version="1"', (20, 1, 0))
        lasting = 120 if instance == "a:1" else 20
        made.add("up", f'job="mine",instance="{instance}"', (lasting, 1, 0))
        made.add(build, f'job="mine",instance="{instance}",version="1"', (lasting, 1, 0))
    made.add(build, 'job="pushed",instance="pushed",version="1"', (120, 1, 0))
    made.at(19)
    made.at(40, {"job": "resilient-scan"})
    made.at(100, {"job": "resilient-scan"})
    return made


def target_never_there() -> Scenario:
    made = Scenario("ResilientScanTargetAbsent")
    made.add("up", 'job="node",instance="c:1"', (60, 1, 0))
    made.add("up", FLEET, (1, STALE, 0), (30, STALE, 0), (30, 1, 0))
    made.add("resilient_scan_build_info", f'{FLEET},version="1"', (31, STALE, 0), (30, 1, 0))
    made.at(4)
    made.at(20, {"job": "resilient-scan"})
    made.at(40)
    return made


def target_down() -> Scenario:
    made = Scenario("ResilientScanTargetDown")
    made.add("up", FLEET, (10, 1, 0), (10, 0, 0), (20, 1, 0))
    made.add("up", 'job="mine",instance="b:1"', (10, 1, 0), (10, 0, 0), (20, 1, 0))
    made.add("resilient_scan_build_info", 'job="mine",instance="b:1",version="1"', (10, 1, 0))
    made.add("up", 'job="node",instance="c:1"', (40, 0, 0))
    made.add("up", 'job="pushgateway",instance="d:1"', (40, 1, 0))
    made.at(9)
    made.at(15, PROCESS, {"job": "mine", "instance": "b:1"})
    made.at(25)
    return made


def saturated() -> Scenario:
    made = Scenario("ResilientScanSaturated")
    made.add("resilient_scan_queued_scans", FLEET, (20, 3, 0), (20, 0, 0))
    made.add("resilient_scan_queued_scans", 'job="busy",instance="b:1"', *[(2, 5.0, -5.0)] * 20)
    made.at(2)
    made.at(15, PROCESS)
    made.at(30)
    return made


def store() -> Scenario:
    made = Scenario("ResilientScanStoreErrors")
    made.add("resilient_scan_store_errors_total", f'{FLEET},operation="update"', (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.add("resilient_scan_store_errors_total", 'job="fine",instance="b:1",operation="update"', (60, 0, 0))
    made.at(4)
    made.at(12, PROCESS)
    made.at(30)
    return made


def local_faults() -> Scenario:
    """Of two machines one has no descriptors left for five minutes: that one is named, once, whatever it lacks."""
    made = Scenario("ResilientScanLocalFault")
    for kind in ("descriptors", "names"):
        made.add("resilient_scan_local_faults_total", f'{FLEET},kind="{kind}"', (5, 0, 0), (5, 0, 1), (50, 4, 0))
    made.add("resilient_scan_local_faults_total", 'job="resilient-scan",instance="b:1",kind="disk"', (60, 7, 0))
    made.at(4)
    made.at(12, PROCESS)
    made.at(30)
    return made


def local_executions(preset: Preset, every: int) -> Scenario:
    """Whatever share of a scanner's executions fails by the machine's fault, its ratio is made of the others."""
    made = Scenario("ScannerErrorRatioHigh", sampled=5 if preset.one_shot else 1)
    whole, step = 60 * every, 1 / every
    for name, counts in (
        ("hit", {"local": step, "success": 0, "error": 0}),
        ("mostly_hit", {"local": 8 * step, "success": step, "error": 0}),
        ("broken_too", {"local": 8 * step, "success": 0, "error": step}),
    ):
        for outcome, growth in counts.items():
            executions(made, name, outcome, (whole, 0, growth))
    made.at(1)
    made.at(30 * every, by_scanner("broken_too"))
    return made


def watchdog() -> Scenario:
    made = Scenario("ResilientScanWatchdog")
    made.add("up", FLEET, (10, 0, 0))
    made.at(0, {})
    made.at(9, {})
    return made


def runs_missing(preset: Preset) -> Scenario:
    """Runs stay away: of a schedule of a minute, of one of five, of one of an hour, and of none."""
    made, limit = Scenario("ResilientScanRunsMissing"), preset.missing_run // 60
    good, bad = 30, limit + 200
    for name, every in (("minutely", 1), ("five", 5), ("hourly", 60), ("unscheduled", 0)):
        labels = f'job="resilient-scan",instance="{name}:1"'
        made.add(LAST_RUN, labels, (good, 60, 60), (bad, 60 * good, 0), (30, 60 * (good + bad), 60))
        took(made, labels, 2, good + bad + 30)
        if every:
            for each in ("x", "y"):
                made.add(INTERVAL, f'{labels},scanner="{each}"', (good + bad + 30, every * 60, 0))
    labels = 'job="resilient-scan",instance="long:1"'  # each run takes 20 minutes, and should come every minute
    made.add(LAST_RUN, labels, *[(20, 1200.0 * run, 0.0) for run in range(1, (good + bad + 30) // 20 + 1)])
    made.add(INTERVAL, f'{labels},scanner="x"', (good + bad + 30, 60, 0))
    took(made, labels, 1200, good + bad + 30)
    punctual = [(60, 3600.0 * hour, 0.0) for hour in range(1, (good + bad + 30) // 60 + 1)]
    made.add(LAST_RUN, 'job="resilient-scan",instance="punctual:1"', (60, 60, 0), *punctual)
    made.add(INTERVAL, 'job="resilient-scan",instance="punctual:1",scanner="x"', (good + bad + 60, 3600, 0))
    took(made, 'job="resilient-scan",instance="punctual:1"', 2, good + bad + 60)
    stopped = {name: {"job": "resilient-scan", "instance": f"{name}:1"} for name in ("minutely", "five", "hourly")}
    stopped["unscheduled"] = {"job": "resilient-scan", "instance": "unscheduled:1"}
    made.at(good + 7)
    made.at(good + 15, stopped["minutely"])
    made.at(good + 28, stopped["minutely"], stopped["five"])
    fires = {"minutely": 13, "five": 25, "hourly": 190, "unscheduled": limit + 5}
    for minute in (limit - 2, limit + 8, limit + 195):
        made.at(good + minute, *(stopped[name] for name, after in fires.items() if minute > after))
    made.at(good + bad + 10)
    return made


def took(made: Scenario, labels: str, seconds: float, lasting: int) -> None:
    """Add how long runs take, on average."""
    for part, value in (("sum", 10 * seconds), ("count", 10)):
        made.add(f"resilient_scan_run_duration_seconds_{part}", labels, (lasting, value, 0))


def no_run_ever() -> Scenario:
    """It is up and says how often runs should come, and none has ended for an hour and more."""
    made = Scenario("ResilientScanRunsMissing")
    made.add(LAST_RUN, FLEET, (100, 0, 0), (20, 6000, 60))
    made.add(INTERVAL, scanner("x"), (120, 60, 0))
    made.at(55)
    made.at(70, PROCESS)
    made.at(115)
    return made


def one_shots() -> Iterator[Scenario]:
    """Each run is a process of its own, whose counters begin at 0: what was pushed stands for an hour."""
    for alert, kind in (("ScannerErrorRatioHigh", "error"), ("ScannerTimeoutRatioHigh", "timeout")):
        made = Scenario(alert, sampled=5)
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
        made.at(400, of_all("failing"))
        made.at(1100)
        yield made
    yield _local_run()
    yield _suspicious_run()
    yield _provider_of_runs()
    yield _stale_run()


def _local_run() -> Scenario:
    """Each run is a process of its own, whose counter never grows."""
    made = Scenario("ResilientScanLocalFault")
    made.add("resilient_scan_runs_total", f'{FLEET},result="partial"', (120, 1, 0))
    made.add("resilient_scan_local_faults_total", f'{FLEET},kind="names"', (60, 3, 0), (60, 0, 0))
    made.at(30, PROCESS)
    made.at(90)
    return made


def _suspicious_run() -> Scenario:
    made = Scenario("ScannerSuspiciouslyEmpty")
    made.add("resilient_scan_runs_total", f'{FLEET},result="complete"', (120, 1, 0))
    made.add("resilient_scan_suspicious_results_total", scanner("empty"), (60, 1, 0), (60, 0, 0))
    made.add("resilient_scan_suspicious_results_total", scanner("healthy"), (120, 0, 0))
    made.at(30, of_all("empty"))
    made.at(90)
    return made


def _provider_of_runs() -> Scenario:
    made = Scenario("ProviderDown")
    made.add("resilient_scan_runs_total", f'{FLEET},result="partial"', (120, 1, 0))
    made.add("resilient_scan_provider_state", f'{FLEET},provider="acme",state="open"', (60, 1, 0), (60, 0, 0))
    made.at(30, {"job": "resilient-scan", "provider": "acme"})
    made.at(90)
    return made


def _stale_run() -> Scenario:
    made, labels = Scenario("ScannerStale"), f'{scanner("stuck")},pipeline="p",status="error"'
    made.add("resilient_scan_runs_total", f'{FLEET},result="partial"', (360, 1, 0))
    made.add("resilient_scan_last_success_timestamp_seconds", scanner("stuck"), (300, 60, 0), (60, 18000, 0))
    made.add("resilient_scan_scans_total", labels, (300, 1, 0), (60, 0, 0))
    # Pushed anew by each run: the success of one run is no longer there after the next, which failed.
    labels = f'{scanner("lost")},pipeline="p",status="error"'
    made.add(
        "resilient_scan_last_success_timestamp_seconds", scanner("lost"), (40, 60, 0), (260, STALE, 0), (60, 18000, 0)
    )
    made.add("resilient_scan_scans_total", labels, (40, 0, 0), (260, 1, 0), (60, 0, 0))
    made.at(100)
    made.at(250, of_all("stuck"), of_all("lost"))
    made.at(330)
    return made


def minutes(duration: str) -> int:
    """Return how many minutes `5m`, `1h` or `3d` are."""
    return int(duration[:-1]) * {"m": 1, "h": 60, "d": 1440}[duration[-1]]
