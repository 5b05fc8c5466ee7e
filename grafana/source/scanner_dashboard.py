"""Build the dashboard Scanner: the life of one scanner."""

from __future__ import annotations

from grafana_foundation_sdk.builders import stat, statetimeline, table, timeseries

from grafana.source import boards, theme
from grafana.source.panels import (
    coloured,
    counts,
    graph,
    limited,
    rows,
    stacked,
    stat_panel,
    state_panel,
    timeline,
    transformed,
    troubles,
)
from grafana.source.promql import (
    BY,
    DURATION,
    RANGE,
    Query,
    answered,
    breaker_number,
    budget_left,
    failing,
    flapping_number,
    hung,
    of_its_provider,
    provider_number,
    quantile,
    rare,
    rare_or_none,
    series,
    state_number,
    success_ago,
)


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Scanner",
        boards.SCANNER_UID,
        "The life of one scanner: outcomes, latency, attempts, breaker, cache, candidates, and who took it out.",
        [
            boards.Section(
                "Now",
                [
                    boards.line(theme.FIGURES, *_standing(), *_figures()),
                    boards.line(theme.STATES, _state()),
                    boards.line(theme.STATES, _breaker()),
                    boards.line(theme.TALL_GRAPHS, _scans(), _executions()),
                ],
            ),
            boards.Section(
                "Failures",
                [
                    boards.line(theme.STATES, _provider(), _flapping()),
                    boards.line(theme.GRAPHS, _failing(), _errors(), _candidates()),
                    boards.line(theme.LOW_GRAPHS, _changes(), _probes(), _odd()),
                ],
            ),
            boards.Section(
                "Speed",
                [
                    boards.line(theme.GRAPHS, _durations(), _slow()),
                    boards.line(theme.LOW_GRAPHS, _attempts(), _retries(), _cache()),
                ],
            ),
            boards.Section("Machine", [boards.line(theme.LOW_GRAPHS, _hung(), _freed())]),
        ],
        one_scanner=True,
    )


# Now: one number, or word, each; they ask what the table of the dashboard Fleet asks


def _standing() -> list[stat.Panel]:
    return [
        state_panel(
            "State",
            "Whether it is in service. Quarantined: an alert took it out, probes bring it back. "
            "Runbook: ScannerOutOfService",
            Query(state_number(), instant=True),
            theme.STATE,
        ),
        state_panel(
            "Breaker",
            "Open: its source is not called for a while, because attempts failed one after another. "
            "Runbook: ScannerOutOfService",
            Query(breaker_number(), instant=True),
            theme.BREAKER,
        ).no_value("no breaker"),
        stat_panel(
            "Last success",
            "Since when it is in trouble. Yellow from 15 minutes ago, red from three hours ago. Runbook: ScannerStale",
            Query(success_ago(), instant=True),
            theme.AGO,
            theme.SILENCE,
        )
        .decimals(0)
        .no_value("never"),
    ]


def _figures() -> list[stat.Panel]:
    return [
        stat_panel(
            "Executions that fail",
            "Share of the executions in the window that ended in an error or a timeout. Red from one half on, "
            "where the controller takes it out of service. Runbook: ScannerErrorRatioHigh",
            Query(failing(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_FAILURES,
        ).no_value("no execution"),
        stat_panel(
            "Error budget left",
            "Its objective (slo) says how many of its last 1,000 executions may fail; without one, 1 % of those of a "
            "day may. At 0 the budget is used up. "
            "Runbook: ScannerErrorBudgetBurn14x",
            Query(budget_left(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_BUDGET,
        ).no_value("no execution"),
        stat_panel(
            "Scans answered",
            "Share of the scans in the window that were answered: completed, cached or stale. Runbook: ScannerStale",
            Query(answered(BY), instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ).no_value("no scan"),
        stat_panel(
            "95th percentile",
            "What one execution in twenty exceeds. Red from 20 s on: the built-in timeout is 30 s. "
            "Runbook: ScannerLatencyHigh",
            Query(quantile(0.95, DURATION, "scanner"), instant=True),
            theme.SECONDS,
            theme.SECONDS_OF_EXECUTIONS,
        )
        .decimals(0)
        .no_value("no execution"),
        stat_panel(
            "Hung threads",
            "Threads that did not stop at their timeout. With one of them (built-in) it gets no other, and its scans "
            "are rejected. Runbook: ScannerOutOfService",
            Query(hung(), instant=True),
            theme.COUNT,
            theme.ANY_IS_BAD,
        ),
    ]


def _state() -> statetimeline.Panel:
    return timeline(
        "In service",
        "A quarantine comes from an alert and ends with probes; disabled is by hand. Runbook: ScannerQuarantinedLong",
        Query(state_number(), "state"),
        theme.STATE,
    )


def _breaker() -> statetimeline.Panel:
    return timeline(
        "Breaker over time",
        "While it is open it lets nothing through; half-open lets one trial through. Runbook: ScannerOutOfService",
        Query(breaker_number(), "breaker"),
        theme.BREAKER,
    ).no_value("no breaker")


def _provider() -> statetimeline.Panel:
    return timeline(
        "The provider it calls",
        "Shared with the other scanners of that provider. While it is down, none of them calls it, and one makes the "
        "trial; while it is held, it has asked us to wait.",
        Query(of_its_provider(provider_number()), "{{provider}}"),
        theme.PROVIDER,
    ).no_value("no provider with a breaker")


def _flapping() -> statetimeline.Panel:
    return timeline(
        "Flapping over time",
        "Its last 21 executions succeed and fail in turn: neither the breaker nor a share of failures tells that. "
        "Runbook: ScannerFlapping",
        Query(flapping_number(), "flapping"),
        theme.FLAPPING,
    )


def _scans() -> timeseries.Panel:
    return counts(
        "Scans by status",
        "How many in the window. Cached and stale ones are answers without a new success; rejected ones made no "
        "attempt. Runbook: ScannerStale",
        "status",
        series("scans_total"),
        theme.STATUS_COLOURS,
    )


def _executions() -> timeseries.Panel:
    return counts(
        "Executions by outcome",
        "How many in the window: real work, which alerts look at. A stale answer hides a failed execution from the "
        "left. Runbook: ScannerErrorRatioHigh",
        "outcome",
        series("executions_total"),
        theme.OUTCOME_COLOURS,
    )


# Failures, and how it goes out of service and comes back


def _failing() -> timeseries.Panel:
    panel = graph(
        "Executions that fail, over time",
        "Share of the executions in the window; no line where there was none. Above the line the controller takes it "
        "out of service. Runbook: ScannerErrorRatioHigh",
        [Query(failing(), "failing")],
        theme.SHARE,
    )
    return coloured(limited(panel.max(1), 0.5, theme.RED), {"failing": theme.ORANGE})


def _errors() -> timeseries.Panel:
    return troubles(
        "Errors by kind",
        "Failed executions in the window by the class of the exception. Timeouts are not errors: see outcomes. "
        "Runbook: ScannerErrorRatioHigh",
        Query(f"{rare('by (kind)', 'errors_total')} > 0", "{{kind}}"),
        theme.RED,
    )


def _candidates() -> timeseries.Panel:
    panel = graph(
        "Candidates",
        "Candidates in its last answer, over time. None may be right, or its source changed. "
        "Runbook: ScannerSuspiciouslyEmpty",
        [Query(f"max({series('candidates')})", "candidates")],
        theme.COUNT,
    ).no_value("no answer yet")
    return coloured(panel, {"candidates": theme.BLUE})


def _changes() -> table.Panel:
    moves = f"{rare('by (to, source)', 'scanner_transitions_total', window=RANGE)} > 0"
    columns = transformed(
        "organize",
        excludeByName={"Time": True},
        indexByName={"to": 0, "source": 1, "Value": 2},
        renameByName={"to": "Became", "source": "By", "Value": "Times"},
    )
    panel = rows(
        "Changes of its state",
        "How often it became what in the time shown, and by what: alert, failures, probe, expiry or hand. "
        "Runbook: ScannerFlapping",
        [Query(moves, instant=True)],
        theme.COUNT,
    )
    return panel.with_transformation(columns).decimals(0).no_value("none")


def _probes() -> timeseries.Panel:
    return stacked(
        "Probes by outcome",
        "Executions in the window that tested whether it may come back. Runbook: ScannerQuarantinedLong",
        [Query(f"{rare('by (outcome)', 'probes_total')} > 0", "{{outcome}}")],
        theme.COUNT,
        theme.OUTCOME_COLOURS,
    )


def _odd() -> timeseries.Panel:
    panel = graph(
        "Odd answers",
        "How many in the window: candidates dropped as invalid, suspicious answers (empty where none was, or "
        "malformed), and times that its coroutine blocked the event loop. Runbook: ScannerSuspiciouslyEmpty",
        [
            Query(rare_or_none("", "candidates_dropped_total"), "dropped"),
            Query(rare_or_none("", "suspicious_results_total"), "suspicious"),
            Query(rare_or_none("", "loop_blocked_total"), "loop blocked"),
        ],
        theme.COUNT,
    )
    return coloured(panel, {"dropped": theme.ORANGE, "suspicious": theme.RED, "loop blocked": theme.PURPLE})


# Speed


def _durations() -> timeseries.Panel:
    panel = graph(
        "Duration of executions",
        "Quantiles, timeouts included. The line is at 20 s: the built-in timeout is 30 s. Runbook: ScannerLatencyHigh",
        [Query(quantile(share, DURATION), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)],
        theme.SECONDS,
    )
    panel = coloured(panel, {"p50": theme.BLUE, "p95": theme.PURPLE, "p99": theme.ORANGE})
    return limited(panel, theme.NEAR_TIMEOUT, theme.ORANGE)


def _slow() -> timeseries.Panel:
    panel = graph(
        "Executions near their timeout",
        "Executions in the window that took more than 80 % of their own timeout. Runbook: ScannerLatencyHigh",
        [Query(rare_or_none("", "slow_executions_total"), "slow")],
        theme.COUNT,
    )
    return coloured(panel, {"slow": theme.ORANGE})


def _attempts() -> timeseries.Panel:
    return counts(
        "Attempts by outcome",
        "Calls of its function in the window, retries included.",
        "outcome",
        series("attempts_total"),
        theme.OUTCOME_COLOURS,
    )


def _retries() -> timeseries.Panel:
    panel = graph(
        "Retries, and what the breaker did",
        "How many in the window: attempts after the first one of an execution, retries that the budget forbade, "
        "changes of the breaker. Runbook: ScannerLatencyHigh",
        [
            Query(rare_or_none("", "retries_total"), "retries"),
            Query(rare_or_none("", "retry_budget_exhausted_total"), "no retry left"),
            Query(f"{rare('by (to)', 'breaker_transitions_total')} > 0", "breaker: {{to}}"),
        ],
        theme.COUNT,
    )
    colours = {f"breaker: {name.lower().replace('-', '_')}": colour for name, colour in theme.BREAKER.values()}
    return coloured(panel, {"retries": theme.BLUE, "no retry left": theme.PURPLE, **colours})


def _cache() -> timeseries.Panel:
    return stacked(
        "What its scans found in the cache",
        "How many in the window. A miss executes; shared waits for another scan's execution; stale stands in for a "
        "failed one; bypass has no cache.",
        [Query(f"{rare('by (result)', 'cache_requests_total')} > 0", "{{result}}")],
        theme.COUNT,
        theme.CACHE_COLOURS,
    )


# Machine


def _hung() -> timeseries.Panel:
    panel = graph(
        "Hung threads over time",
        "Threads that still run after their timeout. Runbook: ScannerOutOfService",
        [Query(hung(""), "hung threads")],
        theme.COUNT,
    )
    return coloured(panel, {"hung threads": theme.RED})


def _freed() -> timeseries.Panel:
    return stacked(
        "What freed threads that had timed out",
        "How many in the window, by method: the scanner's own care, a cancel, closed sockets, an end of the process, "
        "or none (abandoned). Runbook: ScannerTimeoutRatioHigh",
        [Query(f"{rare('by (method)', 'timeout_freed_total')} > 0", "{{method}}")],
        theme.COUNT,
        theme.METHOD_COLOURS,
    )
