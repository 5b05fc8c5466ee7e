"""The dashboard Fleet: is it healthy; who is failing, slow, out of service, since when and why."""

from __future__ import annotations

from grafana_foundation_sdk.builders import timeseries

from grafana.source import boards, roster
from grafana.source.panels import (
    BREAKER,
    CACHE_COLOURS,
    GREEN,
    GREY,
    ORANGE,
    OUTCOME_COLOURS,
    RED,
    STATE,
    STATUS_COLOURS,
    WORKER_COLOURS,
    YELLOW,
    Query,
    bars,
    breaker_number,
    graph,
    in_range,
    limited,
    process,
    quantile,
    rate,
    series,
    stacked,
    stat_panel,
    state_number,
    stepped,
)
from grafana.source.questions import (
    BY,
    DURATION,
    NOT_CLOSED,
    OUT,
    RECENT,
    answered,
    failing,
    verdict,
)

ANY_IS_BAD = ((None, GREEN), (1, RED))
SHARE_OF_FAILURES = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
SHARE_OF_ANSWERS = ((None, RED), (0.9, YELLOW), (0.99, GREEN))
COMPLETE = process("runs_total", 'result="complete"')
LOOKED = series("cache_requests_total", 'result!="bypass"')
HITS = series("cache_requests_total", 'result=~"hit|shared"')


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Fleet",
        boards.FLEET,
        "Is the fleet of scanners healthy? Who is failing, slow or out of service, since when, and why?",
        [_glance(), (15, [(24, roster.build())]), *_trouble(), *_work(), *_process()],
        one_scanner=False,
    )


def _glance() -> boards.Row:
    return 4, [
        (
            3,
            stat_panel(
                "Scanners in trouble",
                "Scanners that fail, hang, have an open breaker or are out of service now. The table below names them.",
                Query(f"count((\n{verdict()}\n) >= 4) or vector(0)", least=RECENT),
                "none",
                ANY_IS_BAD,
            ),
        ),
        (
            3,
            stat_panel(
                "Scans answered",
                "Share of the scans of the time shown that were answered (completed, cached or stale); disabled ones "
                "are not counted. Red below 90 %.",
                Query(answered(), instant=True),
                "percentunit",
                SHARE_OF_ANSWERS,
            ),
        ),
        (
            3,
            stat_panel(
                "Executions that fail",
                "Share of the executions of the last minutes that ended in an error or a timeout. What comes from a "
                "cache is not counted. Red from one half on.",
                Query(failing(""), least=RECENT),
                "percentunit",
                SHARE_OF_FAILURES,
            ),
        ),
        (
            3,
            stat_panel(
                "Out of service",
                "Scanners that are quarantined, being probed or disabled by hand.",
                Query(f"sum(max {BY} ({series('scanner_state', OUT)}))"),
                "none",
                ((None, GREEN), (1, ORANGE)),
            ),
        ),
        (
            3,
            stat_panel(
                "Breakers not closed",
                "Scanners whose breaker is open or half-open: their sources are not asked, or on trial.",
                Query(f"sum(max {BY} ({NOT_CLOSED}))"),
                "none",
                ((None, GREEN), (1, ORANGE)),
            ),
        ),
        (
            3,
            stat_panel(
                "Hung threads",
                "Threads that did not stop at their timeout and still run. At 16 of one process, the built-in limit, "
                "their places in the pool are lost.",
                Query(f"sum({series('abandoned_threads')})"),
                "none",
                ((None, GREEN), (1, ORANGE), (12, RED)),
            ),
        ),
        (
            3,
            stat_panel(
                "Complete runs",
                "Share of the runs of the time shown in which every scanner in service answered.",
                Query(f"sum({in_range(COMPLETE)})\n  / sum({in_range(process('runs_total'))})", instant=True),
                "percentunit",
                SHARE_OF_ANSWERS,
            ),
        ),
        (
            3,
            stat_panel(
                "Last run ended",
                "Time since a run last ended. Yellow after 15 minutes, red after three hours, when even an hourly "
                "pipeline is late.",
                Query(f"time() - max({process('last_run_timestamp_seconds')})"),
                "s",
                ((None, GREEN), (900, YELLOW), (10800, RED)),
            ),
        ),
    ]


def _trouble() -> list[boards.Row]:
    hung = f"sum {BY} ({series('abandoned_threads')}) > 0"
    return [
        (
            8,
            [
                (12, _failing()),
                (
                    12,
                    stacked(
                        "Scans by the status in which they ended",
                        "Scans per second. Green and blue are answers; yellow ones come from a stale cache, because "
                        "the execution failed.",
                        [Query(f"sum by (status) ({rate(series('scans_total'))})", "{{status}}")],
                        "ops",
                        STATUS_COLOURS,
                    ),
                ),
            ],
        ),
        (
            8,
            [
                (
                    8,
                    stepped(
                        "Out of service, since when",
                        "Scanners that are not enabled. A quarantine comes from an alert and ends by probes; disabled "
                        "is by hand.",
                        [Query(f"(\n{state_number(BY)}\n) > 0", "{{scanner}}")],
                        "none",
                        STATE,
                    ),
                ),
                (
                    8,
                    stepped(
                        "Breakers that are not closed",
                        "While a breaker is open its source is not asked; half-open lets one trial through.",
                        [Query(f"(\n{breaker_number(BY)}\n) > 0", "{{scanner}}")],
                        "none",
                        BREAKER,
                    ),
                ),
                (
                    8,
                    limited(
                        stacked_by_scanner(
                            "Hung threads, by scanner",
                            "Threads that were left behind at their timeout and still run. The line is the built-in "
                            "limit of one process.",
                            hung,
                            "none",
                        ).decimals(0),
                        ((None, "transparent"), (16, RED)),
                    ),
                ),
            ],
        ),
    ]


def _failing() -> timeseries.Panel:
    panel = graph(
        "Executions that fail, by scanner",
        "Share of each scanner's executions that ended in an error or a timeout; those without one are not drawn. "
        "Above the line the controller takes the scanner out of service.",
        [Query(f"(\n{failing()}\n) > 0", "{{scanner}}", least="1m")],
        "percentunit",
    )
    return limited(panel.max(1), ((None, "transparent"), (0.5, RED)))


def stacked_by_scanner(title: str, description: str, expr: str, unit: str) -> timeseries.Panel:
    """Return areas upon each other, one for each scanner."""
    return stacked(title, description, [Query(expr, "{{scanner}}")], unit, {})


def _work() -> list[boards.Row]:
    hits = f"sum {BY} ({in_range(HITS)})\n  / sum {BY} ({in_range(LOOKED)})"
    return [
        (
            8,
            [
                (
                    12,
                    limited(
                        graph(
                            "What is slow: 95th percentile of executions",
                            "Seconds that one execution in twenty exceeds, timeouts included; the ten slowest. Above "
                            "20 s it comes near the built-in timeout of 30 s.",
                            [Query(f"topk(10, {quantile(0.95, DURATION, 'scanner')})", "{{scanner}}", least="1m")],
                            "s",
                        ),
                        ((None, "transparent"), (20, ORANGE)),
                    ),
                ),
                (
                    12,
                    stacked_by_scanner(
                        "Retries, by scanner",
                        "Attempts per second after the first one of an execution: load that only failures cause.",
                        f"sum {BY} ({rate(series('retries_total'))}) > 0",
                        "ops",
                    ),
                ),
            ],
        ),
        (
            8,
            [
                (
                    8,
                    stacked(
                        "What scans found in the cache",
                        "Per second. A miss executes; shared waits for another scan's execution; stale stands in for a "
                        "failed one; bypass has no cache.",
                        [Query(f"sum by (result) ({rate(series('cache_requests_total'))})", "{{result}}")],
                        "ops",
                        CACHE_COLOURS,
                    ),
                ),
                (
                    8,
                    bars(
                        "Cache hits, by scanner",
                        "Share of the scans of the time shown that the cache answered, where there is a cache. At 0 "
                        "the lifetime is shorter than the time between runs.",
                        Query(f"sort_desc({hits})", "{{scanner}}", instant=True),
                        "percentunit",
                        ((None, ORANGE), (0.01, GREEN)),
                        1,
                    ),
                ),
                (
                    8,
                    stacked(
                        "Attempts by outcome",
                        "Calls of scanners' functions per second, retries included.",
                        [Query(f"sum by (outcome) ({rate(series('attempts_total'))})", "{{outcome}}")],
                        "ops",
                        OUTCOME_COLOURS,
                    ),
                ),
            ],
        ),
    ]


def _process() -> list[boards.Row]:
    waits = process("queue_wait_seconds_bucket")
    lengths = process("run_duration_seconds_bucket")
    heartbeat = process("alert_last_heartbeat_timestamp_seconds")
    return [
        (
            8,
            [
                (
                    8,
                    stacked(
                        "Workers",
                        "Threads of the pools. No idle ones and a queue: too few workers. Abandoned ones hang.",
                        [Query(f"sum by (state) ({process('workers')})", "{{state}}")],
                        "none",
                        WORKER_COLOURS,
                    ),
                ),
                (
                    8,
                    graph(
                        "Queue",
                        "Scans that wait for a worker, and executions under way.",
                        [
                            Query(f"sum({process('queued_scans')})", "queued"),
                            Query(f"sum({process('inflight_executions')})", "in flight"),
                        ],
                        "none",
                    ),
                ),
                (
                    8,
                    graph(
                        "Wait in the queue, length of runs",
                        "Seconds that one scan, and one run, in twenty exceeds.",
                        [
                            Query(quantile(0.95, waits), "queue wait p95", least="1m"),
                            Query(quantile(0.95, lengths), "run p95", least="1m"),
                        ],
                        "s",
                    ),
                ),
            ],
        ),
        (
            8,
            [
                (
                    8,
                    stacked(
                        "Runs by result",
                        "Per second. Complete: every scanner in service answered; failed: none did.",
                        [Query(f"sum by (result) ({rate(process('runs_total'))})", "{{result}}")],
                        "ops",
                        {"complete": GREEN, "partial": YELLOW, "failed": RED},
                    ),
                ),
                (
                    8,
                    stacked(
                        "Alerts that the controller received",
                        "Per second, by what became of them. Unauthorized and invalid ones are faults of the set-up; "
                        "refused: too many scanners are out already.",
                        [Query(f"sum by (result) ({rate(process('alert_webhooks_total'))})", "{{result}}")],
                        "ops",
                        {
                            "accepted": GREEN,
                            "duplicate": GREY,
                            "unauthorized": RED,
                            "invalid": ORANGE,
                            "unknown_scanner": YELLOW,
                            "refused": "dark-red",
                        },
                    ),
                ),
                (
                    4,
                    stat_panel(
                        "Alerting's heartbeat",
                        "Time since the watchdog was last seen; three minutes without one and alerts are not trusted.",
                        Query(f"time() - max({heartbeat} > 0)"),
                        "s",
                        ((None, GREEN), (90, YELLOW), (180, RED)),
                    ).no_value("none yet"),
                ),
                (
                    4,
                    stat_panel(
                        "Store errors",
                        "Operations of the store that failed in the time shown; meanwhile nothing is shared.",
                        Query(f"sum({in_range(process('store_errors_total'))})", instant=True),
                        "none",
                        ANY_IS_BAD,
                    ),
                ),
            ],
        ),
    ]
