"""Define every alert once; `rules` writes them for Prometheus and for Grafana.

An alert fires if all comparisons of one of its cases hold. Comparisons are kept apart because the two formats join them
differently: Prometheus drops the series for which a comparison does not hold. Grafana must get 0 for them instead,
because it takes a series that vanishes for "unknown", not for "resolved".

What each process has for itself (a breaker, a hung thread, a share of failures) is grouped by `instance` as well: of
three replicas, one whose network is broken must neither take the scanner out of the other two nor hide among them. Only
the error budget belongs to a scanner as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from grafana.source.conditions import (
    ASKED,
    COUNTED,
    ENDED,
    FAILED,
    FLEET,
    HEARTBEAT,
    LAST_RUN,
    MEASURED,
    ONE_RUN,
    RECORDED,
    SCANNER,
    SLOW,
    SLOW_SERIES,
    TIMED_OUT,
    UNANSWERED,
    Alert,
    Case,
    Comparison,
    Counter,
    grown,
    one,
    ratio_of_runs,
    within,
)
from grafana.source.presets import Burn, Preset, Window


def alerts(preset: Preset) -> tuple[Alert, ...]:
    """Return all alerts with the numbers of `preset`."""
    return (
        *_that_disable(preset),
        *(_burn(preset, burn) for burn in preset.burns),
        *_that_tell(preset),
        _provider_down(preset),
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


def _of_one_process(preset: Preset) -> str:
    """Leave out the processes that make one run each, if the preset allows for them."""
    return f"\n  unless on (job, instance) {ONE_RUN}" if preset.one_shot else ""


def _shares(
    bad: Callable[[str], str],
    whole: Callable[[str], str],
    share: float,
    windows: Sequence[Window],
    *,
    but: str = "",
) -> list[Case]:
    """Return the cases in which `bad` is more than a share of `whole`, in the shortest window that has seen enough.

    With a run every five minutes, the last five minutes have one execution, of which nothing follows; with one every
    minute, the last six hours remember an outage for hours after it has ended. So a window has its say only if the one
    before has too little.

    Args:
        bad: returns an expression for a window.
        whole: likewise.
        share: that is too much.
        windows: the shortest first.
        but: appended to the share, to leave series out.
    """
    cases: list[Case] = []
    before: Case = ()
    for window in windows:
        seen = whole(window.length)
        part = Comparison(f"{bad(window.length)}\n  / {seen}{but}", ">", share)
        cases.append((part, Comparison(seen, ">=", window.least), *before))
        before = (Comparison(seen, "<", window.least),)
    return cases


def _more_than(share: float, bad: Counter, ended: Counter, preset: Preset) -> tuple[Case, ...]:
    often = _shares(
        lambda window: grown(bad, window, preset),
        lambda window: grown(ended, window, preset),
        share,
        preset.windows,
        but=_of_one_process(preset),
    )
    if preset.one_shot:
        often.append(one(ratio_of_runs(bad, ended, preset.windows[0].length), ">", share))
    return tuple(often)


def _that_disable(preset: Preset) -> tuple[Alert, ...]:
    firm = {"severity": "critical", "action": "disable", "pending": preset.pending, "keep": preset.keep}
    over = " or ".join(window.length for window in preset.windows)
    return (
        Alert(
            "ScannerErrorRatioHigh",
            _more_than(0.5, FAILED, ENDED, preset),
            "More than half of the executions of {{ $labels.scanner }} fail.",
            f"Errors and timeouts together, over {over}. The controller takes the scanner out of service.",
            **firm,
        ),
        Alert(
            "ScannerTimeoutRatioHigh",
            _more_than(0.5, TIMED_OUT, ENDED, preset),
            "More than half of the executions of {{ $labels.scanner }} time out.",
            f"Counted over {over}. The controller takes the scanner out of service.",
            **firm,
        ),
        Alert(
            "ScannerOutOfService",
            (*_not_closed(preset), *_hung(preset)),
            "{{ $labels.scanner }} gives no answers: its breaker is open, or its threads hang.",
            "It executes too rarely for a ratio to tell. The controller takes it out of service.",
            **firm,
        ),
    )


def _not_closed(preset: Preset) -> tuple[Case, ...]:
    return tuple(
        one(worst, "==", 1) for worst in _worst('resilient_scan_breaker_state{state=~"open|half_open"}', preset)
    )


def _hung(preset: Preset) -> tuple[Case, ...]:
    """Return the cases in which threads hang and the scanner does not answer any more.

    With `max_abandoned` above 1, a scanner with a hung thread may answer as ever. Whether it does, its scans tell:
    where no thread is left, they are rejected (or stale, where there is an old answer).
    """
    hung = [Comparison(worst, ">", 0) for worst in _worst("resilient_scan_abandoned_threads", preset)]
    mute = _more_than(0.5, UNANSWERED, ASKED, preset)
    if not preset.one_shot:
        return tuple((hung[0], *case) for case in mute)
    return (*((hung[0], *case) for case in mute[:-1]), (hung[1], *mute[-1]))


def _worst(series: str, preset: Preset, of: str = "scanner") -> list[str]:
    """Return the greatest value of a gauge for each scanner: of each process, and of those that make one run each."""
    of_processes = f"max by (job, instance, {of}) ({series}{_of_one_process(preset)})"
    if not preset.one_shot:
        return [of_processes]
    return [of_processes, f"max by (job, {of}) ({series}\n  and on (job, instance) {ONE_RUN})"]


def _burn(preset: Preset, burn: Burn) -> Alert:
    limit = round(burn.factor * (1 - preset.objective), 6)
    # Below this traffic, more than the limit may be four failures or fewer, and 2 of 12 (17 %) do not make a trend.
    least = math.ceil(4 / limit)
    return Alert(
        f"ScannerErrorBudgetBurn{burn.factor:g}x".replace("14.4", "14"),
        (
            (
                Comparison(f"{RECORDED}{burn.short}", ">", limit),
                Comparison(f"{RECORDED}{burn.long}", ">", limit),
                Comparison(f"{COUNTED}{burn.long}", ">=", least),
            ),
        ),
        f"{{{{ $labels.scanner }}}} uses up its error budget {burn.factor:g} times as fast as it may.",
        f"More than {limit:.3%} of its executions failed over {burn.short} and over {burn.long}, of at least {least}; "
        f"the objective is {preset.objective:.0%} that succeed.",
        burn.severity,
        pending=burn.pending,
    )


def _that_tell(preset: Preset) -> tuple[Alert, ...]:
    out = _worst('resilient_scan_scanner_state{state=~"quarantined|probing"}', preset)
    return (
        _slow(preset),
        _stale(preset),
        _suspicious(preset),
        Alert(
            "ScannerQuarantinedLong",
            tuple(one(worst, "==", 1) for worst in out),
            "{{ $labels.scanner }} does not come back from its quarantine.",
            f"Its probes have been failing for {preset.quarantined}, or none is made.",
            "warning",
            pending=preset.quarantined,
        ),
        _flapping(preset),
    )


def _slow(preset: Preset) -> Alert:
    """Compare what took too long by the scanner's own timeout or, where that is not known, by the histogram.

    Not a quantile: that is an estimate within one bucket, so 11 s everywhere and 29 s here and there look the same.
    """

    def own(counter: Counter) -> Callable[[str], str]:
        return lambda window: grown(counter, window, preset)

    def above(window: str) -> str:
        return f"({grown(MEASURED, window, preset)}\n    - {grown(within(preset), window, preset)})"

    unknown = f"\n  unless on (job, instance, scanner) {SLOW_SERIES}"
    windows = preset.slow_windows
    return Alert(
        "ScannerLatencyHigh",
        (
            *_shares(own(SLOW), own(ENDED), preset.slow, windows, but=_of_one_process(preset)),
            *_shares(above, own(MEASURED), preset.slow, windows, but=unknown + _of_one_process(preset)),
        ),
        "{{ $labels.scanner }} is slow.",
        f"More than {preset.slow:.0%} of its executions use 80 % of their timeout or more (where that is not known: "
        f"take longer than {preset.latency:g} s).",
        "warning",
        pending=preset.slow_pending,
    )


def _stale(preset: Preset) -> Alert:
    """Fire where the last success is too long ago, or where this process has seen none and is old enough for one.

    The time of a success is exported from the first one on: after a restart, a source that is down has none.
    """
    success, span = "resilient_scan_last_success_timestamp_seconds", f"{preset.stale}s"
    asked = [f"{SCANNER} (increase({UNANSWERED.selector}[{span}]){_of_one_process(preset)})"]
    known = [f"{SCANNER} ({UNANSWERED.selector} offset {span})"]
    if preset.one_shot:
        asked.append(_of_runs(UNANSWERED.selector))
        known.append(f"{FLEET} ({UNANSWERED.selector} offset {span})")
    old = [
        (Comparison(f"time() - {age}", ">", preset.stale), Comparison(count, ">", 0))
        for age, count in zip(_worst(success, preset), asked, strict=True)
    ]
    never = [
        (
            Comparison(f"{count}\n  unless on ({labels}) last_over_time({success}[{span}])", ">", 0),
            Comparison(before, ">=", 0),
        )
        for count, before, labels in zip(asked, known, ("job, instance, scanner", "job, scanner"), strict=False)
    ]
    return Alert(
        "ScannerStale",
        (*old, *never),
        "{{ $labels.scanner }} has not succeeded for a long time, although it is asked.",
        f"Its last success is more than {preset.stale / 60:g} minutes ago.",
        "warning",
        pending=preset.stale_pending,
    )


def _suspicious(preset: Preset) -> Alert:
    odd = "resilient_scan_suspicious_results_total"
    often = one(f"{SCANNER} (increase({odd}[{preset.long}]))", ">=", preset.suspicious)
    return Alert(
        "ScannerSuspiciouslyEmpty",
        (often, one(_of_runs(odd), ">", 0)) if preset.one_shot else (often,),
        "{{ $labels.scanner }} answers, but its answers look wrong.",
        f"Empty where they never were, or malformed: at least {preset.suspicious} within {preset.long}.",
        "warning",
    )


def _of_runs(counter: str) -> str:
    """Return a counter of the jobs whose runs are separate processes."""
    return f"{FLEET} ({counter}\n  and on (job, instance) {ONE_RUN})"


def _flapping(preset: Preset) -> Alert:
    out = f'resilient_scan_scanner_transitions_total{{to="quarantined"}}[{preset.long}]'
    return Alert(
        "ScannerFlapping",
        (
            one(f"{SCANNER} (increase({out}))", ">", 3),
            *(one(worst, "==", 1) for worst in _worst("resilient_scan_flapping", preset)),
        ),
        "{{ $labels.scanner }} works and fails in turn, again and again.",
        f"It was taken out of service more than three times within {preset.long}, or its last 21 executions changed "
        "between success and failure too often.",
        "warning",
    )


def _provider_down(preset: Preset) -> Alert:
    """Fire once for all scanners of a provider. One that is held is up: it has asked for a pause, and gets it."""
    down = _worst('resilient_scan_provider_state{state=~"open|half_open"}', preset, of="provider")
    return Alert(
        "ProviderDown",
        tuple(one(worst, "==", 1) for worst in down),
        "The provider {{ $labels.provider }} is down: its scanners are not called, except for trials.",
        "The way to it fails for several of its scanners. They are rejected, or answer with something old, until a "
        "trial succeeds.",
        "critical",
        pending=preset.pending,
        keep=preset.keep,
    )


def _of_the_loop(preset: Preset) -> tuple[Alert, ...]:
    webhooks = "resilient_scan_alert_webhooks_total"
    unsent = 'alertmanager_notifications_failed_total{integration="webhook"}'
    return (
        Alert(
            "ResilientScanWebhookFailing",
            (
                one(_lately(f'{webhooks}{{result=~"unauthorized|invalid|unknown_scanner"}}'), ">", 0),
                one(_lately(unsent), ">", 0),
            ),
            "Alerts do not reach the controller, or it does not understand them.",
            "Within 15 minutes one was not sent, had a wrong token, could not be read, or named an unknown scanner.",
            "critical",
        ),
        Alert(
            "ResilientScanFuseBlown",
            # Alertmanager repeats a refused alert every two minutes: while it is refused, this does not stop.
            (one(_lately(f'{webhooks}{{result="refused"}}', "5m"), ">", 0),),
            "The ejection cap keeps a failing scanner in service, or it is marked critical.",
            "If too many are out already, the cause is likely common to all of them.",
            "critical",
        ),
        Alert(
            "ResilientScanBlind",
            (one(f"time() - max by (job, instance) ({HEARTBEAT} > 0)", ">", preset.heartbeat),),
            "The controller gets no heartbeat from the alerting.",
            f"None for {preset.heartbeat} s. No alert is believed to be resolved now; what still arrives counts.",
            "critical",
            pending="1m",
        ),
        Alert(
            "ResilientScanNotWired",
            (one(f"max by (job, instance) ({HEARTBEAT})", "==", 0),),
            "{{ $labels.instance }} receives alerts, but has never got a heartbeat.",
            "Alertmanager does not send to it, or the watchdog is not routed to it: nothing takes a scanner out.",
            "warning",
            pending="10m",
        ),
    )


def _lately(counter: str, window: str = "15m") -> str:
    return f"sum by (job, instance) (increase({counter}[{window}]))"


def _of_the_process(preset: Preset) -> tuple[Alert, ...]:
    return (
        _down(),
        _absent(),
        Alert(
            "ResilientScanSaturated",
            (one("max by (job, instance) (min_over_time(resilient_scan_queued_scans[5m]))", ">", 0),),
            "{{ $labels.job }} has too few workers: scans wait in its queue without a break.",
            "At no moment of the last five minutes the queue was empty.",
            "warning",
            pending="5m",
        ),
        _of_the_machine(preset),
        Alert(
            "ResilientScanStoreErrors",
            (one(_lately("resilient_scan_store_errors_total"), ">", 0),),
            "The store of {{ $labels.job }} fails.",
            "Within 15 minutes an operation failed. Runs go on with what the process knows; nothing is shared.",
            "warning",
        ),
        _missing(preset.missing_run),
    )


def _of_the_machine(preset: Preset) -> Alert:
    """Fire for the machine as a whole: its scanners have done nothing, and none is taken out of service."""
    faults = "resilient_scan_local_faults_total"
    cases = [one(_lately(faults), ">", 0)]
    if preset.one_shot:
        cases.append(one(f"sum by (job, instance) ({faults}\n  and on (job, instance) {ONE_RUN})", ">", 0))
    return Alert(
        "ResilientScanLocalFault",
        tuple(cases),
        "{{ $labels.instance }} has a fault of its own, by which scans fail.",
        "It has no descriptors, threads, memory, disk or network left, or resolves no names. No scanner is to blame, "
        "and none is taken out of service.",
        "critical",
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


def _absent() -> Alert:
    """Fire where Prometheus has no target: what is not there cannot be down.

    Of several targets of a job, one may vanish because somebody wanted it so; all of them do not. What was pushed has
    no target of its own, but is still there. And where nothing of ours was ever seen, the job is called as in the
    shipped configuration.
    """
    there = "up or resilient_scan_build_info"
    gone = f"max by (job) (max_over_time(resilient_scan_build_info[1d]))\n  unless on (job) ({there})"
    never = 'absent(up{job="resilient-scan"})\n  unless on () max_over_time(resilient_scan_build_info[1d])'
    return Alert(
        "ResilientScanTargetAbsent",
        (one(gone, ">", 0), one(never, ">", 0)),
        "Prometheus has no target of the job {{ $labels.job }} any more.",
        "It vanished from the service discovery, or was never there: no other rule can see anything of it.",
        "critical",
        pending="5m",
    )


def _missing(seconds: int) -> Alert:
    ran = f"max by (job, instance) ({LAST_RUN})"
    schedule = "resilient_scan_schedule_interval_seconds"
    # A run that takes longer than its interval is followed by the next one at once: then its length is the interval.
    took = " / ".join(
        f"sum by (job, instance) (resilient_scan_run_duration_seconds_{part})" for part in ("sum", "count")
    )
    late = f"time() - ({ran} > 0)\n    - 3 * (min by (job, instance) ({schedule}) + {took})"
    unscheduled = f"time() - ({ran} > 0)\n  unless on (job, instance) {schedule}"
    before = f"max by (job, instance) ({LAST_RUN} offset 1h)"
    return Alert(
        "ResilientScanRunsMissing",
        (
            one(late, ">", 300),
            one(unscheduled, ">", seconds),
            (Comparison(before, "==", 0), Comparison(ran, "==", 0)),
        ),
        "The runs of {{ $labels.instance }} stay away.",
        "The last one ended longer ago than three times its interval and its length, and five minutes "
        f"(where no schedule is exported: more than {seconds // 60} minutes ago), or there was none in an hour.",
        "critical",
        pending="5m",
    )
