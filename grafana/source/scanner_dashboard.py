"""Build the dashboard Scanner: the life of one scanner."""

from __future__ import annotations

from grafana_foundation_sdk.builders import stat, table, timeseries

from grafana.source import boards, theme
from grafana.source.panels import (
    coloured,
    graph,
    limited,
    per_second,
    rows,
    stat_panel,
    state_panel,
    stepped,
    transformed,
)
from grafana.source.promql import (
    DURATION,
    RECENT,
    Query,
    answered,
    breaker_number,
    failing,
    in_range,
    process,
    quantile,
    rate,
    series,
    state_number,
)


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Scanner",
        boards.SCANNER_UID,
        "The life of one scanner: outcomes, latency, attempts, breaker, cache, candidates, and who took it out.",
        [
            boards.row(theme.FIGURES, *_standing(), *_figures()),
            boards.row(theme.GRAPHS, _scans(), _executions()),
            boards.row(theme.LOW_GRAPHS, _state(), _breaker(), _hung()),
            boards.row(theme.GRAPHS, _durations(), _attempts()),
            boards.row(theme.LOW_GRAPHS, _errors(), _cache(), _candidates()),
            boards.row(theme.LOW_GRAPHS, _changes(), _probes(), _retries()),
            boards.row(theme.LOW_GRAPHS, _late(), _freed(), _odd()),
        ],
        one_scanner=True,
    )


# One number, or word, each


def _standing() -> list[stat.Panel]:
    return [
        state_panel(
            "State",
            "Whether it is in service. Quarantined: an alert took it out, probes bring it back.",
            Query(state_number("")),
            theme.STATE,
        ),
        state_panel(
            "Breaker",
            "Open: its source is not called for a while, because attempts failed one after another.",
            Query(breaker_number("")),
            theme.BREAKER,
        ).no_value("no breaker"),
        stat_panel(
            "Last success, ago",
            "Time since an execution last succeeded: since when it is in trouble. Yellow after 15 minutes, red after "
            "three hours.",
            Query(f"time() - max({series('last_success_timestamp_seconds')} > 0)"),
            theme.SECONDS,
            theme.SECONDS_OF_SILENCE,
        ).no_value("never"),
    ]


def _figures() -> list[stat.Panel]:
    return [
        stat_panel(
            "Executions that fail",
            "Share of the executions of the last minutes that ended in an error or a timeout. Red from one half on, "
            "where the controller takes it out of service.",
            Query(failing(""), least=RECENT),
            theme.SHARE,
            theme.SHARE_OF_FAILURES,
        ).no_value("no execution"),
        stat_panel(
            "Scans answered",
            "Share of the scans of the time shown that were answered: completed, cached or stale.",
            Query(answered(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ),
        stat_panel(
            "95th percentile",
            "Seconds that one execution in twenty exceeds. Red from 20 s on: the built-in timeout is 30 s.",
            Query(quantile(0.95, DURATION), least=RECENT),
            theme.SECONDS,
            theme.SECONDS_OF_EXECUTIONS,
        ).no_value("no execution"),
        stat_panel(
            "Hung threads",
            "Threads that did not stop at their timeout. With one of them (built-in) it gets no other, and its scans "
            "are rejected.",
            Query(f"sum({series('abandoned_threads')})"),
            theme.COUNT,
            theme.ANY_IS_BAD,
        ),
        stat_panel(
            "Candidates",
            "Candidates in its last answer. None is yellow: it may be right, or its source changed.",
            Query(f"max({series('candidates')})"),
            theme.COUNT,
            ((None, theme.YELLOW), (1, theme.GREEN)),
        ),
    ]


# What became of scans and executions


def _scans() -> timeseries.Panel:
    return per_second(
        "Scans by status",
        "Per second. Cached and stale ones are answers without a new success; rejected ones made no attempt.",
        "status",
        series("scans_total"),
        theme.STATUS_COLOURS,
    )


def _executions() -> timeseries.Panel:
    return per_second(
        "Executions by outcome",
        "Real work per second, which alerts look at: a stale answer hides a failed execution from the left.",
        "outcome",
        series("executions_total"),
        theme.OUTCOME_COLOURS,
    )


def _state() -> timeseries.Panel:
    return stepped(
        "In service",
        "Enabled at the bottom; a quarantine ends with probes, disabled is by hand.",
        [Query(state_number(""), "state")],
        theme.COUNT,
        theme.STATE,
    )


def _breaker() -> timeseries.Panel:
    return stepped(
        "Breaker over time",
        "Closed at the bottom. Open ones let nothing through; half-open lets one trial through.",
        [Query(breaker_number(""), "breaker")],
        theme.COUNT,
        theme.BREAKER,
    )


def _hung() -> timeseries.Panel:
    return graph(
        "Hung threads",
        "Threads that still run after their timeout.",
        [Query(f"sum({series('abandoned_threads')})", "hung threads")],
        theme.COUNT,
    ).decimals(0)


def _durations() -> timeseries.Panel:
    panel = graph(
        "Duration of executions",
        "Quantiles in seconds, timeouts included. The line is at 20 s: the built-in timeout is 30 s.",
        [Query(quantile(share, DURATION), f"p{share * 100:g}", least="1m") for share in (0.5, 0.95, 0.99)],
        theme.SECONDS,
    )
    return limited(panel, theme.NEAR_TIMEOUT, theme.ORANGE)


def _attempts() -> timeseries.Panel:
    return per_second(
        "Attempts by outcome",
        "Calls of its function per second, retries included.",
        "outcome",
        series("attempts_total"),
        theme.OUTCOME_COLOURS,
    )


def _errors() -> timeseries.Panel:
    return per_second(
        "Errors by kind",
        "Failed executions per second by the class of the exception. The first one of a kind is not drawn, its line "
        "begins with it. Timeouts are not errors: see outcomes.",
        "kind",
        series("errors_total"),
        {},
    )


def _cache() -> timeseries.Panel:
    return per_second(
        "What its scans found in the cache",
        "Per second. A miss executes; shared waits for another scan's execution; stale stands in for a failed one; "
        "bypass has no cache.",
        "result",
        series("cache_requests_total"),
        theme.CACHE_COLOURS,
    )


def _candidates() -> timeseries.Panel:
    return graph(
        "Candidates",
        "Candidates in its last answer, over time.",
        [Query(f"max({series('candidates')})", "candidates")],
        theme.COUNT,
    )


# How it goes out of service and comes back


def _changes() -> table.Panel:
    moves = f"sum by (to, source) ({in_range(series('scanner_transitions_total'))}) > 0"
    columns = transformed(
        "organize",
        excludeByName={"Time": True},
        indexByName={"to": 0, "source": 1, "Value": 2},
        renameByName={"to": "Became", "source": "By", "Value": "Times"},
    )
    panel = rows(
        "Changes of its state",
        "How often it became what in the time shown, and by what: alert, failures, probe, expiry or hand.",
        [Query(moves, instant=True)],
        theme.COUNT,
    )
    return panel.with_transformation(columns).decimals(0).no_value(theme.COUNT)


def _probes() -> timeseries.Panel:
    return per_second(
        "Probes by outcome",
        "Executions per second that test whether it may come back.",
        "outcome",
        series("probes_total"),
        theme.OUTCOME_COLOURS,
    )


def _retries() -> timeseries.Panel:
    return graph(
        "Retries, and what the breaker did",
        "Per second: attempts after the first one of an execution, retries that the budget forbade, changes of the "
        "breaker.",
        [
            Query(f"sum({rate(series('retries_total'))})", "retries"),
            Query(f"sum({rate(series('retry_budget_exhausted_total'))})", "no retry left"),
            Query(f"sum by (to) ({rate(series('breaker_transitions_total'))})", "breaker: {{to}}"),
        ],
        theme.PER_SECOND,
    )


# What is odd


def _late() -> timeseries.Panel:
    late = process("late_completion_duration_seconds_bucket")
    return graph(
        "How long hung work really took",
        "True duration of abandoned work that ended after all, of all scanners: the median, and p95.",
        [
            Query(quantile(0.5, late), "p50", least="1m"),
            Query(quantile(0.95, late), "p95", least="1m"),
        ],
        theme.SECONDS,
    )


def _freed() -> timeseries.Panel:
    return graph(
        "What freed threads that had timed out",
        "Per second, by method: the scanner's own care, a cancel, closed sockets, an end of the process, or none "
        "(abandoned).",
        [Query(f"sum by (method) ({rate(series('timeout_freed_total'))})", "{{method}}")],
        theme.PER_SECOND,
    )


def _odd() -> timeseries.Panel:
    panel = graph(
        "Odd answers",
        "Per second: candidates dropped as invalid, suspicious answers (empty where none was, or malformed), and "
        "coroutines that blocked their event loop.",
        [
            Query(f"sum({rate(series('candidates_dropped_total'))})", "dropped"),
            Query(f"sum({rate(series('suspicious_results_total'))})", "suspicious"),
            Query(f"sum({rate(series('loop_blocked_total'))})", "loop blocked"),
        ],
        theme.PER_SECOND,
    )
    return coloured(panel, {"dropped": theme.ORANGE, "suspicious": theme.RED})
