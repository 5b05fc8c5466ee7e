"""Build the dashboard Fleet: is it healthy; which scanners fail, are slow or out of service, since when, and why?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import bargauge, stat, statetimeline, timeseries

from grafana.source import boards, scanner_table, theme
from grafana.source.panels import coloured, counts, graph, limited, shares, stacked, stat_panel, timeline, troubles
from grafana.source.promql import (
    BY,
    DURATION,
    NOT_CLOSED,
    NOT_REACHED,
    OUT,
    Query,
    ago,
    answered,
    breaker_number,
    budget_left,
    complete,
    counted,
    failing,
    hits,
    hung,
    process,
    provider_number,
    quantile,
    rare,
    series,
    state_number,
    verdict,
    where_it_happened,
)


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Fleet",
        boards.FLEET_UID,
        "Is the fleet of scanners healthy? Who is failing, slow or out of service, since when, and why?",
        [
            boards.Section(
                "Now",
                [
                    boards.line(theme.FIGURES, *_scanners(), *_runs()),
                    boards.line(theme.TABLE, scanner_table.build()),
                    boards.line(theme.GRAPHS, _out_of_service(), _breakers(), _providers()),
                ],
            ),
            boards.Section(
                "Failures",
                [
                    boards.line(theme.GRAPHS, _failing(), _budget()),
                    boards.line(theme.GRAPHS, _scans(), _executions(), _errors()),
                    boards.line(theme.LOW_GRAPHS, _retries(), _suspicious(), _webhooks()),
                ],
            ),
            boards.Section(
                "Speed",
                [
                    boards.line(theme.GRAPHS, _durations(), _slow()),
                    boards.line(theme.GRAPHS, _cache(), _hits(), _attempts()),
                ],
            ),
            boards.Section(
                "Machine",
                [
                    boards.line(theme.LOW_GRAPHS, _workers(), _queue(), _hung()),
                    boards.line(theme.LOW_GRAPHS, _waits(), _lateness(), _results()),
                    boards.line(theme.FIGURES, _local(), _store(), _listeners()),
                ],
            ),
        ],
        one_scanner=False,
    )


# Now: one number each, and who is out


def _scanners() -> list[stat.Panel]:
    return [
        stat_panel(
            "Scanners in trouble",
            "Scanners that hang, are quarantined, have an open breaker, or of whose executions in the window more than "
            "one in ten failed. The table below names them.",
            Query(f"count((\n{verdict()}\n) >= {theme.IN_TROUBLE}) or vector(0)", instant=True),
            theme.COUNT,
            theme.ANY_IS_BAD,
        ),
        stat_panel(
            "Scans answered",
            "Share of the scans in the window that were answered (completed, cached or stale); disabled ones "
            "are not counted. Red below 90 %. Runbook: ScannerStale",
            Query(answered(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ).no_value("no scan"),
        stat_panel(
            "Executions that fail",
            "Share of the executions in the window that ended in an error or a timeout. What comes from a "
            "cache is not counted. Red from one half on. Runbook: ScannerErrorRatioHigh",
            Query(failing(""), instant=True),
            theme.SHARE,
            theme.SHARE_OF_FAILURES,
        ).no_value("no execution"),
        stat_panel(
            "Out of service",
            "Scanners that are quarantined, being probed or disabled by hand. Runbook: ScannerOutOfService",
            Query(f"sum(max {BY} ({OUT}))", instant=True),
            theme.COUNT,
            theme.ANY_IS_ODD,
        ),
        stat_panel(
            "Hung threads",
            "Threads that did not stop at their timeout and still run. At 16 of one process, the built-in limit, "
            "their places in the pool are lost. Runbook: ScannerOutOfService",
            Query(hung(""), instant=True),
            theme.COUNT,
            ((None, theme.GREEN), (1, theme.ORANGE), (12, theme.RED)),
        ),
    ]


def _runs() -> list[stat.Panel]:
    return [
        stat_panel(
            "Complete runs",
            "Share of the runs in the window in which every scanner in service answered.",
            Query(complete(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ).no_value("no run"),
        stat_panel(
            "Last run ended",
            "Yellow from 15 minutes ago, red from three hours ago, when even an hourly pipeline is late.",
            Query(ago(process("last_run_timestamp_seconds")), instant=True),
            theme.AGO,
            theme.SILENCE,
        )
        .decimals(0)
        .no_value("never"),
        stat_panel(
            "Alerting's heartbeat",
            "When the watchdog was last seen. Three minutes without one, and a resolved alert brings no scanner back. "
            "Runbook: ResilientScanBlind",
            Query(ago(process("alert_last_heartbeat_timestamp_seconds")), instant=True),
            theme.AGO,
            theme.HEARTBEAT,
        )
        .decimals(0)
        .no_value("none seen"),
    ]


def _out_of_service() -> statetimeline.Panel:
    return timeline(
        "In service",
        "Of the scanners that were out of service in the time shown. A quarantine comes from an alert and ends by "
        "probes; disabled is by hand. Runbook: ScannerQuarantinedLong",
        Query(where_it_happened(state_number(), OUT), "{{scanner}}"),
        theme.STATE,
    ).no_value("All scanners were in service.")


def _breakers() -> statetimeline.Panel:
    return timeline(
        "Breakers",
        "Of the scanners whose breaker opened in the time shown. While it is open the source is not called; half-open "
        "lets one trial through. Runbook: ScannerOutOfService",
        Query(where_it_happened(breaker_number(), NOT_CLOSED), "{{scanner}}"),
        theme.BREAKER,
    ).no_value("All breakers were closed.")


def _providers() -> statetimeline.Panel:
    return timeline(
        "Providers",
        "Of the providers that did not answer in the time shown. While one is down, none of "
        "its scanners calls it, and one makes the trial; one that is held has asked us to wait.",
        Query(where_it_happened(provider_number(), NOT_REACHED, "provider"), "{{provider}}"),
        theme.PROVIDER,
    ).no_value("All providers answered.")


# Failures


def _failing() -> timeseries.Panel:
    panel = graph(
        "Executions that fail, by scanner",
        "Share of the executions in the window. Above the line the controller takes a scanner out of service. "
        "Runbook: ScannerErrorRatioHigh",
        [Query(f"(\n{failing()}\n) > 0", "{{scanner}}")],
        theme.SHARE,
    )
    return limited(panel.max(1), 0.5, theme.RED)


def _budget() -> bargauge.Panel:
    return shares(
        "Error budget left, by scanner",
        "Of the executions of a day, 1 % may fail (an objective of 99 %). At 0 the budget is used up. "
        "Runbook: ScannerErrorBudgetBurn14x",
        Query(f"sort({budget_left()})", "{{scanner}}", instant=True),
        theme.SHARE_OF_BUDGET,
    ).no_value("no execution in a day")


def _scans() -> timeseries.Panel:
    return counts(
        "Scans by the status in which they ended",
        "How many in the window. Green and blue are answers; yellow ones come from a stale cache, because the "
        "execution failed. Runbook: ScannerStale",
        "status",
        series("scans_total"),
        theme.STATUS_COLOURS,
    )


def _executions() -> timeseries.Panel:
    return counts(
        "Executions by outcome",
        "How many in the window: real work, which alerts look at. Runbook: ScannerErrorRatioHigh",
        "outcome",
        series("executions_total"),
        theme.OUTCOME_COLOURS,
    )


def _errors() -> timeseries.Panel:
    return troubles(
        "Errors by kind",
        "Failed executions in the window by the class of the exception. Timeouts are not errors. "
        "Runbook: ScannerErrorRatioHigh",
        Query(f"{rare('by (kind)', 'errors_total')} > 0", "{{kind}}"),
        theme.RED,
    )


def _retries() -> timeseries.Panel:
    return troubles(
        "Retries, by scanner",
        "Attempts in the window after the first one of an execution: load that only failures cause.",
        Query(f"{rare(BY, 'retries_total')} > 0", "{{scanner}}"),
        theme.ORANGE,
    )


def _suspicious() -> timeseries.Panel:
    return troubles(
        "Suspicious answers, by scanner",
        "Answers in the window that were empty where none ever was, or malformed. Runbook: ScannerSuspiciouslyEmpty",
        Query(f"{rare(BY, 'suspicious_results_total')} > 0", "{{scanner}}"),
        theme.YELLOW,
    )


def _webhooks() -> timeseries.Panel:
    return stacked(
        "Alerts that the controller received",
        "How many in the window, by what became of them. Unauthorized and invalid ones are faults of the set-up; "
        "refused: too many scanners are out already. Runbook: ResilientScanWebhookFailing",
        [Query(f"{counted('by (result)', process('alert_webhooks_total'))} > 0", "{{result}}")],
        theme.COUNT,
        theme.WEBHOOK_COLOURS,
    )


# Speed


def _durations() -> timeseries.Panel:
    panel = graph(
        "What takes long: 95th percentile of executions",
        "What one execution in twenty exceeds, timeouts included; the ten slowest scanners. Above 20 s it comes near "
        "the built-in timeout of 30 s. Runbook: ScannerLatencyHigh",
        [Query(f"topk(10, {quantile(0.95, DURATION, 'scanner')})", "{{scanner}}")],
        theme.SECONDS,
    )
    return limited(panel, theme.NEAR_TIMEOUT, theme.ORANGE)


def _slow() -> timeseries.Panel:
    return troubles(
        "Executions near their timeout, by scanner",
        "Executions in the window that took more than 80 % of their own timeout. Runbook: ScannerLatencyHigh",
        Query(f"{rare(BY, 'slow_executions_total')} > 0", "{{scanner}}"),
        theme.ORANGE,
    )


def _cache() -> timeseries.Panel:
    return stacked(
        "What scans found in the cache",
        "How many in the window. A miss executes; shared waits for another scan's execution; stale stands in for a "
        "failed one; bypass has no cache.",
        [Query(f"{rare('by (result)', 'cache_requests_total')} > 0", "{{result}}")],
        theme.COUNT,
        theme.CACHE_COLOURS,
    )


def _hits() -> bargauge.Panel:
    return shares(
        "Cache hits, by scanner",
        "Share of the scans in the window that the cache answered, where there is a cache. At 0 the lifetime is "
        "shorter than the time between runs.",
        Query(f"sort_desc({hits()})", "{{scanner}}", instant=True),
        ((None, theme.ORANGE), (0.01, theme.GREEN)),
    ).no_value("no cache")


def _attempts() -> timeseries.Panel:
    return counts(
        "Attempts by outcome",
        "Calls of scanners' functions in the window, retries included.",
        "outcome",
        series("attempts_total"),
        theme.OUTCOME_COLOURS,
    )


# Machine: what all scanners share


def _workers() -> timeseries.Panel:
    return stacked(
        "Workers",
        "Threads of the pools. No idle ones and a queue: too few workers. Abandoned ones hang. "
        "Runbook: ResilientScanSaturated",
        [Query(f"sum by (state) ({process('workers')})", "{{state}}")],
        theme.COUNT,
        theme.WORKER_COLOURS,
    )


def _queue() -> timeseries.Panel:
    panel = graph(
        "Queue",
        "Scans that wait for a worker, and executions under way. Runbook: ResilientScanSaturated",
        [
            Query(f"sum({process('queued_scans')})", "queued"),
            Query(f"sum({process('inflight_executions')})", "in flight"),
        ],
        theme.COUNT,
    )
    return coloured(panel, {"queued": theme.ORANGE, "in flight": theme.BLUE})


def _hung() -> timeseries.Panel:
    panel = troubles(
        "Hung threads, by scanner",
        "Threads that were abandoned at their timeout and still run. The line is the built-in limit of one process. "
        "Runbook: ScannerOutOfService",
        Query(f"sum {BY} ({series('abandoned_threads')}) > 0", "{{scanner}}"),
        theme.RED,
    )
    return limited(panel, 16, theme.RED)


def _waits() -> timeseries.Panel:
    panel = graph(
        "Length of runs, and wait in the queue",
        "What one run, and one scan, in twenty exceeds.",
        [
            Query(quantile(0.95, process("run_duration_seconds_bucket")), "run p95"),
            Query(quantile(0.95, process("queue_wait_seconds_bucket")), "queue wait p95"),
        ],
        theme.SECONDS,
    )
    return coloured(panel, {"run p95": theme.BLUE, "queue wait p95": theme.ORANGE})


def _lateness() -> timeseries.Panel:
    panel = graph(
        "What comes late",
        "What one scheduled run, one deadline, and one piece of abandoned work in twenty exceeds: how late it began, "
        "was acted on, or how long it really took.",
        [
            Query(quantile(0.95, process("schedule_lateness_seconds_bucket")), "scheduled runs p95"),
            Query(quantile(0.95, process("watchdog_lateness_seconds_bucket")), "deadlines p95"),
            Query(quantile(0.95, process("late_completion_duration_seconds_bucket")), "hung work p95"),
        ],
        theme.SECONDS,
    )
    return coloured(
        panel, {"scheduled runs p95": theme.BLUE, "deadlines p95": theme.ORANGE, "hung work p95": theme.RED}
    )


def _results() -> timeseries.Panel:
    return counts(
        "Runs by result",
        "How many in the window. Complete: every scanner in service answered; failed: none did.",
        "result",
        process("runs_total"),
        theme.RUN_COLOURS,
    )


def _local() -> stat.Panel:
    return stat_panel(
        "Own faults",
        "Executions in the window that failed by the machine's own fault (descriptors, threads, memory, disk, network, "
        "names). They count against nobody. Runbook: ResilientScanLocalFault",
        Query(counted("", process("local_faults_total")), instant=True),
        theme.COUNT,
        theme.ANY_IS_BAD,
    )


def _store() -> stat.Panel:
    return stat_panel(
        "Store errors",
        "Operations of the store that failed in the window; runs go on with what the process knows. "
        "Runbook: ResilientScanStoreErrors",
        Query(counted("", process("store_errors_total")), instant=True),
        theme.COUNT,
        theme.ANY_IS_BAD,
    )


def _listeners() -> stat.Panel:
    return stat_panel(
        "Late events",
        "Events in the window that a slow listener had not received when its run ended.",
        Query(counted("", process("listener_events_late_total")), instant=True),
        theme.COUNT,
        theme.ANY_IS_ODD,
    )
