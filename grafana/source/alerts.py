"""Define every alert once; `rules` writes them for Prometheus and for Grafana.

An alert fires if all comparisons of one of its cases hold. Comparisons are kept apart because the two formats join them
differently: Prometheus drops the series for which a comparison does not hold. Grafana must get 0 for them instead,
because it takes a series that vanishes for "unknown", not for "resolved".
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana.source.presets import Burn, Preset

SCANNER = "sum by (job, scanner)"
FAILED = 'resilient_scan_executions_total{outcome=~"error|timeout"}'
TIMED_OUT = 'resilient_scan_executions_total{outcome="timeout"}'
ENDED = 'resilient_scan_executions_total{outcome=~"success|error|timeout"}'
ONE_RUN = "sum by (job, instance) (resilient_scan_runs_total) == 1"
RECORDED = "job_scanner:resilient_scan_executions_failed:ratio_rate"
COUNTED = "job_scanner:resilient_scan_executions:increase"


@dataclass(frozen=True)
class Comparison:
    """`left operator right`; `left` is never negative, so that 0 can mean "no"."""

    left: str
    operator: str
    right: float


Case = tuple[Comparison, ...]


def one(left: str, operator: str, right: float) -> Case:
    """Return a case of one comparison."""
    return (Comparison(left, operator, right),)


@dataclass(frozen=True)
class Alert:
    """One alert: when it fires, and what it says.

    Attributes:
        name: also its heading in the runbook, `docs/runbook.md`.
        cases: it fires if any of them holds.
        summary, description: for people; they may contain the labels `job` and `scanner`.
        severity: `critical` (somebody should look now), `warning` (today) or `none` (nothing is wrong).
        action: what the controller does with it: `disable`, `heartbeat` or nothing.
        pending, keep: how long a case must hold before it fires, and how long it keeps firing afterwards.
    """

    name: str
    cases: tuple[Case, ...]
    summary: str
    description: str
    severity: str
    action: str = ""
    pending: str = "0s"
    keep: str = "0s"

    @property
    def labels(self) -> dict[str, str]:
        """Labels that are sent in addition to those of the series."""
        return {"severity": self.severity} | ({"resilient_scan_action": self.action} if self.action else {})

    @property
    def by_scanner(self) -> bool:
        """Whether it fires for each scanner separately."""
        return self.name.startswith("Scanner")


def alerts(preset: Preset) -> tuple[Alert, ...]:
    """Return all alerts with the numbers of `preset`."""
    return (
        *_that_disable(preset),
        *(_burn(preset, burn) for burn in preset.burns),
        *_that_tell(preset),
        *_of_the_loop(preset),
        *_of_the_process(preset),
        Alert(
            "ResilientScanWatchdog",
            (one("vector(1)", ">", 0),),
            "Alerting works from end to end.",
            "Always fires. The controller takes it for a heartbeat: when it stays away, alerts cannot be trusted.",
            "none",
            action="heartbeat",
        ),
    )


def ratio(bad: str, preset: Preset, window: str) -> str:
    """Return the share of executions that match `bad`, by scanner; NaN if there were no executions."""
    return f"{SCANNER} (rate({bad}[{window}]))\n  / {SCANNER} (rate({ENDED}[{window}]))" + _of_one_process(preset)


def ratio_of_runs(bad: str, window: str) -> str:
    """Return the same share if each run is a separate process.

    Its counters begin at 0 and never seem to grow: each run pushes its own counts, which stay until the next run. The
    mean over time is then the mean over runs.
    """
    bad, ended = (
        f"{SCANNER} (avg_over_time({what}[{window}]) and on (job, instance) {ONE_RUN})" for what in (bad, ENDED)
    )
    return f"{bad}\n  / {ended}"


def _of_one_process(preset: Preset) -> str:
    """Leave out the jobs whose runs are separate processes, if the preset allows for them."""
    return f"\n  unless on (job) {ONE_RUN}" if preset.one_shot else ""


def _counted(preset: Preset) -> Comparison:
    """Return the condition that there were enough executions to trust a ratio."""
    return Comparison(f"{SCANNER} (increase({ENDED}[{preset.window}]))", ">=", preset.min_executions)


def _more_than(share: float, bad: str, preset: Preset) -> tuple[Case, ...]:
    often: Case = (Comparison(ratio(bad, preset, preset.window), ">", share), _counted(preset))
    return (often, one(ratio_of_runs(bad, preset.window), ">", share)) if preset.one_shot else (often,)


def _that_disable(preset: Preset) -> tuple[Alert, ...]:
    firm = {"severity": "critical", "action": "disable", "pending": preset.pending, "keep": preset.keep}
    return (
        Alert(
            "ScannerErrorRatioHigh",
            _more_than(0.5, FAILED, preset),
            "More than half of the executions of {{ $labels.scanner }} fail.",
            f"Errors and timeouts together, over {preset.window}. The controller takes the scanner out of service.",
            **firm,
        ),
        Alert(
            "ScannerTimeoutRatioHigh",
            _more_than(0.5, TIMED_OUT, preset),
            "More than half of the executions of {{ $labels.scanner }} time out.",
            f"Counted over {preset.window}. The controller takes the scanner out of service.",
            **firm,
        ),
        Alert(
            "ScannerOutOfService",
            (
                one(_worst('resilient_scan_breaker_state{state=~"open|half_open"}'), "==", 1),
                one(_worst("resilient_scan_abandoned_threads"), ">", 0),
            ),
            "{{ $labels.scanner }} gives no answers: its breaker is open, or its threads hang.",
            "It executes too rarely for a ratio to tell. The controller takes it out of service.",
            **firm,
        ),
    )


def _worst(series: str) -> str:
    return f"max by (job, scanner) ({series})"


def _burn(preset: Preset, burn: Burn) -> Alert:
    limit = round(burn.factor * (1 - preset.objective), 6)
    return Alert(
        f"ScannerErrorBudgetBurn{burn.factor:g}x".replace("14.4", "14"),
        (
            (
                Comparison(f"{RECORDED}{burn.short}", ">", limit),
                Comparison(f"{RECORDED}{burn.long}", ">", limit),
                Comparison(f"{COUNTED}{burn.long}", ">=", preset.min_executions),
            ),
        ),
        f"{{{{ $labels.scanner }}}} uses up its error budget {burn.factor:g} times as fast as it may.",
        f"More than {limit:.3%} of its executions failed over {burn.short} and over {burn.long}; "
        f"the objective is {preset.objective:.0%} that succeed.",
        burn.severity,
        pending=burn.pending,
    )


def _that_tell(preset: Preset) -> tuple[Alert, ...]:
    return (
        _slow(preset),
        _stale(preset),
        _suspicious(preset),
        Alert(
            "ScannerQuarantinedLong",
            (one(_worst('resilient_scan_scanner_state{state=~"quarantined|probing"}'), "==", 1),),
            "{{ $labels.scanner }} does not come back from its quarantine.",
            f"Its probes have been failing for {preset.quarantined}, or none is made.",
            "warning",
            pending=preset.quarantined,
        ),
        _flapping(preset),
    )


def _slow(preset: Preset) -> Alert:
    p95 = (
        "histogram_quantile(0.95, sum by (job, scanner, le) "
        f"(rate(resilient_scan_execution_duration_seconds_bucket[{preset.window}])))"
    )
    return Alert(
        "ScannerLatencyHigh",
        ((Comparison(p95, ">", preset.latency), _counted(preset)),),
        "{{ $labels.scanner }} is slow.",
        f"One execution in twenty takes longer than {preset.latency:g} s, measured over {preset.window}.",
        "warning",
        pending=preset.latency_pending,
    )


def _stale(preset: Preset) -> Alert:
    unanswered = 'resilient_scan_scans_total{status=~"stale|timeout|error|rejected"}'
    asked = [f"{SCANNER} (increase({unanswered}[{preset.stale}s]))"]
    if preset.one_shot:
        asked.append(_of_runs(unanswered))
    age = Comparison(f"time() - {_worst('resilient_scan_last_success_timestamp_seconds')}", ">", preset.stale)
    return Alert(
        "ScannerStale",
        tuple((age, Comparison(count, ">", 0)) for count in asked),
        "{{ $labels.scanner }} has not succeeded for a long time, although it is asked.",
        f"Its last success is more than {preset.stale / 60:g} minutes ago.",
        "warning",
        pending=preset.stale_pending,
    )


def _suspicious(preset: Preset) -> Alert:
    odd = "resilient_scan_suspicious_results_total"
    often = one(f"{SCANNER} (increase({odd}[{preset.long}]))", ">=", preset.min_executions)
    return Alert(
        "ScannerSuspiciouslyEmpty",
        (often, one(_of_runs(odd), ">", 0)) if preset.one_shot else (often,),
        "{{ $labels.scanner }} answers, but its answers look wrong.",
        f"Empty where they never were, or malformed: at least {preset.min_executions} within {preset.long}.",
        "warning",
    )


def _of_runs(counter: str) -> str:
    """Return a counter of the jobs whose runs are separate processes."""
    return f"{SCANNER} ({counter}\n  and on (job, instance) {ONE_RUN})"


def _flapping(preset: Preset) -> Alert:
    out = f'resilient_scan_scanner_transitions_total{{to="quarantined"}}[{preset.long}]'
    return Alert(
        "ScannerFlapping",
        (one(f"{SCANNER} (increase({out}))", ">", 3),),
        "{{ $labels.scanner }} goes out of service and comes back again and again.",
        f"More than three times within {preset.long}.",
        "warning",
    )


def _of_the_loop(preset: Preset) -> tuple[Alert, ...]:
    webhooks = "resilient_scan_alert_webhooks_total"
    heartbeat = "max by (job) (resilient_scan_alert_last_heartbeat_timestamp_seconds > 0)"
    unsent = 'alertmanager_notifications_failed_total{integration="webhook"}'
    return (
        Alert(
            "ResilientScanWebhookFailing",
            (
                one(_in_15m(f'{webhooks}{{result=~"unauthorized|invalid|unknown_scanner"}}'), ">", 0),
                one(_in_15m(unsent), ">", 0),
            ),
            "Alerts do not reach the controller, or it does not understand them.",
            "Within 15 minutes one was not sent, had a wrong token, could not be read, or named an unknown scanner.",
            "critical",
        ),
        Alert(
            "ResilientScanFuseBlown",
            (one(f'sum by (job) (increase({webhooks}{{result="refused"}}[{preset.long}]))', ">", 0),),
            "The controller refused to take one more scanner out of service.",
            "Too many are out already, or the scanner is marked critical: the cause is likely common to all of them.",
            "critical",
        ),
        Alert(
            "ResilientScanBlind",
            (one(f"time() - {heartbeat}", ">", preset.heartbeat),),
            "The controller gets no heartbeat from the alerting.",
            f"None for {preset.heartbeat} s. No alert brings a scanner out of service now; breakers go on protecting.",
            "critical",
            pending="1m",
        ),
    )


def _in_15m(counter: str) -> str:
    return f"sum by (job) (increase({counter}[15m]))"


def _of_the_process(preset: Preset) -> tuple[Alert, ...]:
    return (
        _down(),
        Alert(
            "ResilientScanSaturated",
            (one("max by (job) (min_over_time(resilient_scan_queued_scans[5m]))", ">", 0),),
            "{{ $labels.job }} has too few workers: scans wait in its queue without a break.",
            "At no moment of the last five minutes the queue was empty.",
            "warning",
            pending="5m",
        ),
        Alert(
            "ResilientScanStoreErrors",
            (one(_in_15m("resilient_scan_store_errors_total"), ">", 0),),
            "The store of {{ $labels.job }} fails.",
            "Within 15 minutes an operation failed. Runs go on with what the process knows; nothing is shared.",
            "warning",
        ),
        *(() if preset.missing_run is None else (_missing(preset.missing_run),)),
    )


def _down() -> Alert:
    gone = (
        "max by (job, instance) (max_over_time(resilient_scan_build_info[1d]))\n"
        "  * on (job, instance) group_left max by (job, instance) (up == bool 0)"
    )
    ours = 'max by (job, instance) (up{job=~"resilient-scan|pushgateway"} == bool 0)'
    return Alert(
        "ResilientScanTargetDown",
        (one(gone, ">", 0), one(ours, ">", 0)),
        "Prometheus cannot scrape {{ $labels.instance }} of {{ $labels.job }}.",
        "Nothing is known of its scanners; alerts about them resolve, which does not mean health.",
        "critical",
        pending="1m",
    )


def _missing(seconds: int) -> Alert:
    return Alert(
        "ResilientScanRunsMissing",
        (one("time() - max by (job) (resilient_scan_last_run_timestamp_seconds)", ">", seconds),),
        "The runs of {{ $labels.job }} stay away.",
        f"The last one ended more than {seconds // 60} minutes ago.",
        "critical",
        pending="5m",
    )
