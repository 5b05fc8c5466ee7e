"""The dashboard Scanner: the life of one of them."""

from __future__ import annotations

from grafana.source import boards
from grafana.source.panels import (
    BREAKER,
    CACHE_COLOURS,
    GREEN,
    ORANGE,
    OUTCOME_COLOURS,
    RED,
    STATE,
    STATUS_COLOURS,
    YELLOW,
    Query,
    breaker_number,
    coloured,
    graph,
    in_range,
    limited,
    quantile,
    rate,
    rows,
    series,
    stacked,
    stat_panel,
    state_number,
    state_panel,
    stepped,
    transformed,
)
from grafana.source.questions import DURATION, RECENT, answered, failing

SHARE_OF_FAILURES = ((None, GREEN), (0.1, YELLOW), (0.5, RED))


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Scanner",
        boards.SCANNER,
        "The life of one scanner: outcomes, latency, attempts, breaker, cache, candidates, and who took it out.",
        [_glance(), _outcomes(), _states(), _latency(), _errors(), _service(), _oddities()],
        one_scanner=True,
    )


def _glance() -> boards.Row:
    return 4, [
        (
            3,
            state_panel(
                "State",
                "Whether it is in service. Quarantined: an alert took it out, probes bring it back.",
                Query(state_number("")),
                STATE,
            ),
        ),
        (
            3,
            state_panel(
                "Breaker",
                "Open: its source is not asked for a while, because attempts failed one after another.",
                Query(breaker_number("")),
                BREAKER,
            ).no_value("no breaker"),
        ),
        (
            3,
            stat_panel(
                "Last success, ago",
                "Time since an execution last succeeded: since when it is in trouble. Yellow after 15 minutes, red "
                "after three hours.",
                Query(f"time() - max({series('last_success_timestamp_seconds')} > 0)"),
                "s",
                ((None, GREEN), (900, YELLOW), (10800, RED)),
            ).no_value("never"),
        ),
        (
            3,
            stat_panel(
                "Executions that fail",
                "Share of the executions of the last minutes that ended in an error or a timeout. Red from one half "
                "on, where the controller takes it out of service.",
                Query(failing(""), least=RECENT),
                "percentunit",
                SHARE_OF_FAILURES,
            ).no_value("no execution"),
        ),
        (
            3,
            stat_panel(
                "Scans answered",
                "Share of the scans of the time shown that were answered: completed, cached or stale.",
                Query(answered(), instant=True),
                "percentunit",
                ((None, RED), (0.9, YELLOW), (0.99, GREEN)),
            ),
        ),
        (
            3,
            stat_panel(
                "95th percentile",
                "Seconds that one execution in twenty exceeds. Red from 20 s on: the built-in timeout is 30 s.",
                Query(quantile(0.95, DURATION), least=RECENT),
                "s",
                ((None, GREEN), (10, YELLOW), (20, RED)),
            ).no_value("no execution"),
        ),
        (
            3,
            stat_panel(
                "Hung threads",
                "Threads that did not stop at their timeout. With one of them (built-in) it gets no other, and its "
                "scans are rejected.",
                Query(f"sum({series('abandoned_threads')})"),
                "none",
                ((None, GREEN), (1, RED)),
            ),
        ),
        (
            3,
            stat_panel(
                "Candidates",
                "Candidates in its last answer. None is yellow: it may be right, or its source changed.",
                Query(f"max({series('candidates')})"),
                "none",
                ((None, YELLOW), (1, GREEN)),
            ),
        ),
    ]


def _outcomes() -> boards.Row:
    return 8, [
        (
            12,
            stacked(
                "Scans by status",
                "Per second. Cached and stale ones are answers without a new success; rejected ones made no attempt.",
                [Query(f"sum by (status) ({rate(series('scans_total'))})", "{{status}}")],
                "ops",
                STATUS_COLOURS,
            ),
        ),
        (
            12,
            stacked(
                "Executions by outcome",
                "Real work per second, which alerts look at: a stale answer hides a failed execution from the left.",
                [Query(f"sum by (outcome) ({rate(series('executions_total'))})", "{{outcome}}")],
                "ops",
                OUTCOME_COLOURS,
            ),
        ),
    ]


def _states() -> boards.Row:
    return 7, [
        (
            8,
            stepped(
                "In service",
                "Enabled at the bottom; a quarantine ends with probes, disabled is by hand.",
                [Query(state_number(""), "state")],
                "none",
                STATE,
            ),
        ),
        (
            8,
            stepped(
                "Breaker over time",
                "Closed at the bottom. Open ones let nothing through; half-open lets one trial through.",
                [Query(breaker_number(""), "breaker")],
                "none",
                BREAKER,
            ),
        ),
        (
            8,
            graph(
                "Hung threads",
                "Threads that still run after their timeout.",
                [Query(f"sum({series('abandoned_threads')})", "hung threads")],
                "none",
            ).decimals(0),
        ),
    ]


def _latency() -> boards.Row:
    lines = [Query(quantile(share, DURATION), f"p{share * 100:g}", least="1m") for share in (0.5, 0.95, 0.99)]
    attempts = stacked(
        "Attempts by outcome",
        "Calls of its function per second, retries included.",
        [Query(f"sum by (outcome) ({rate(series('attempts_total'))})", "{{outcome}}")],
        "ops",
        OUTCOME_COLOURS,
    )
    return 8, [
        (
            12,
            limited(
                graph(
                    "Duration of executions",
                    "Quantiles in seconds, timeouts included. The line is at 20 s: the built-in timeout is 30 s.",
                    lines,
                    "s",
                ),
                ((None, "transparent"), (20, ORANGE)),
            ),
        ),
        (12, attempts),
    ]


def _errors() -> boards.Row:
    return 7, [
        (
            8,
            stacked(
                "Errors by kind",
                "Failed executions per second by the class of the exception. The first one of a kind is not "
                "drawn, its line begins with it. Timeouts are no errors: see outcomes.",
                [Query(f"sum by (kind) ({rate(series('errors_total'))})", "{{kind}}")],
                "ops",
                {},
            ),
        ),
        (
            8,
            stacked(
                "What its scans found in the cache",
                "Per second. A miss executes; shared waits for another scan's execution; stale stands in for a failed "
                "one; bypass has no cache.",
                [Query(f"sum by (result) ({rate(series('cache_requests_total'))})", "{{result}}")],
                "ops",
                CACHE_COLOURS,
            ),
        ),
        (
            8,
            graph(
                "Candidates",
                "Candidates in its last answer, over time.",
                [Query(f"max({series('candidates')})", "candidates")],
                "none",
            ),
        ),
    ]


def _service() -> boards.Row:
    moves = f"sum by (to, source) ({in_range(series('scanner_transitions_total'))}) > 0"
    columns = {"to": "Became", "source": "By", "Value": "Times", "Time": ""}
    return 7, [
        (
            8,
            rows(
                "Changes of its state",
                "How often it became what in the time shown, and by what: alert, failures, probe, expiry or hand.",
                [Query(moves, instant=True)],
                "none",
            )
            .with_transformation(
                transformed(
                    "organize",
                    excludeByName={"Time": True},
                    indexByName={"to": 0, "source": 1, "Value": 2},
                    renameByName={name: shown for name, shown in columns.items() if shown},
                )
            )
            .decimals(0)
            .no_value("none"),
        ),
        (
            8,
            stacked(
                "Probes by outcome",
                "Executions per second that test whether it may come back.",
                [Query(f"sum by (outcome) ({rate(series('probes_total'))})", "{{outcome}}")],
                "ops",
                OUTCOME_COLOURS,
            ),
        ),
        (
            8,
            graph(
                "Retries, and what the breaker did",
                "Per second: attempts after the first one of an execution, retries that the budget forbade, changes "
                "of the breaker.",
                [
                    Query(f"sum({rate(series('retries_total'))})", "retries"),
                    Query(f"sum({rate(series('retry_budget_exhausted_total'))})", "no retry left"),
                    Query(f"sum by (to) ({rate(series('breaker_transitions_total'))})", "breaker: {{to}}"),
                ],
                "ops",
            ),
        ),
    ]


def _oddities() -> boards.Row:
    late = series("late_completion_duration_seconds_bucket")
    return 7, [
        (
            8,
            graph(
                "How long hung work really took",
                "Seconds that half of the work took that ended after it had been left behind, and one in twenty.",
                [
                    Query(quantile(0.5, late), "p50", least="1m"),
                    Query(quantile(0.95, late), "p95", least="1m"),
                ],
                "s",
            ),
        ),
        (
            8,
            graph(
                "What freed threads that had timed out",
                "Per second, by the means: the scanner's own care, a cancel, closed sockets, an end of the process, or "
                "none (abandoned).",
                [Query(f"sum by (rung) ({rate(series('timeout_freed_total'))})", "{{rung}}")],
                "ops",
            ),
        ),
        (
            8,
            coloured(
                graph(
                    "Odd answers",
                    "Per second: candidates dropped as invalid, and suspicious answers: empty where none was, or "
                    "malformed.",
                    [
                        Query(f"sum({rate(series('candidates_dropped_total'))})", "dropped"),
                        Query(f"sum({rate(series('suspicious_results_total'))})", "suspicious"),
                    ],
                    "ops",
                ),
                {"dropped": ORANGE, "suspicious": RED},
            ),
        ),
    ]
