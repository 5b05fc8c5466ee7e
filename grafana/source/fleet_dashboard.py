"""Build the dashboard Fleet: is it healthy; which scanners fail, are slow or out of service, since when, and why?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import bargauge, stat, timeseries

from grafana.source import boards, scanner_table, theme
from grafana.source.panels import graph, limited, per_second, shares, stacked, stat_panel, stepped
from grafana.source.promql import (
    BY,
    DURATION,
    NOT_CLOSED,
    OUT,
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
    verdict,
)

COMPLETE = process("runs_total", 'result="complete"')
LOOKED = series("cache_requests_total", 'result!="bypass"')
HITS = series("cache_requests_total", 'result=~"hit|shared"')


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Fleet",
        boards.FLEET_UID,
        "Is the fleet of scanners healthy? Who is failing, slow or out of service, since when, and why?",
        [
            boards.row(theme.FIGURES, *_scanners(), *_runs()),
            boards.row(theme.TABLE, scanner_table.build()),
            boards.row(theme.GRAPHS, _failing(), _scans()),
            boards.row(theme.GRAPHS, _out_of_service(), _breakers(), _hung()),
            boards.row(theme.GRAPHS, _slow(), _retries()),
            boards.row(theme.GRAPHS, _cache(), _hits(), _attempts()),
            boards.row(theme.GRAPHS, _workers(), _queue(), _waits()),
            (theme.GRAPHS, [(8, _results()), (7, _webhooks()), (3, _heartbeat()), (3, _store()), (3, _listeners())]),
        ],
        one_scanner=False,
    )


# One number each


def _scanners() -> list[stat.Panel]:
    return [
        stat_panel(
            "Scanners in trouble",
            "Scanners that fail, hang, have an open breaker or are out of service now. The table below names them.",
            Query(f"count((\n{verdict()}\n) >= 4) or vector(0)", least=RECENT),
            theme.COUNT,
            theme.ANY_IS_BAD,
        ),
        stat_panel(
            "Scans answered",
            "Share of the scans of the time shown that were answered (completed, cached or stale); disabled ones "
            "are not counted. Red below 90 %.",
            Query(answered(), instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ),
        stat_panel(
            "Executions that fail",
            "Share of the executions of the last minutes that ended in an error or a timeout. What comes from a "
            "cache is not counted. Red from one half on.",
            Query(failing(""), least=RECENT),
            theme.SHARE,
            theme.SHARE_OF_FAILURES,
        ),
        stat_panel(
            "Out of service",
            "Scanners that are quarantined, being probed or disabled by hand.",
            Query(f"sum(max {BY} ({series('scanner_state', OUT)}))"),
            theme.COUNT,
            theme.ANY_IS_ODD,
        ),
        stat_panel(
            "Breakers not closed",
            "Scanners whose breaker is open or half-open: their sources are not called, or only by a trial.",
            Query(f"sum(max {BY} ({NOT_CLOSED}))"),
            theme.COUNT,
            theme.ANY_IS_ODD,
        ),
        stat_panel(
            "Hung threads",
            "Threads that did not stop at their timeout and still run. At 16 of one process, the built-in limit, "
            "their places in the pool are lost.",
            Query(f"sum({series('abandoned_threads')})"),
            theme.COUNT,
            ((None, theme.GREEN), (1, theme.ORANGE), (12, theme.RED)),
        ),
    ]


def _runs() -> list[stat.Panel]:
    return [
        stat_panel(
            "Complete runs",
            "Share of the runs of the time shown in which every scanner in service answered.",
            Query(f"sum({in_range(COMPLETE)})\n  / sum({in_range(process('runs_total'))})", instant=True),
            theme.SHARE,
            theme.SHARE_OF_ANSWERS,
        ),
        stat_panel(
            "Last run ended",
            "Time since a run last ended. Yellow after 15 minutes, red after three hours, when even an hourly "
            "pipeline is late.",
            Query(f"time() - max({process('last_run_timestamp_seconds')})"),
            theme.SECONDS,
            theme.SECONDS_OF_SILENCE,
        ),
    ]


def _heartbeat() -> stat.Panel:
    return stat_panel(
        "Alerting's heartbeat",
        "Time since the watchdog was last seen; three minutes without one and alerts are not trusted.",
        Query(f"time() - max({process('alert_last_heartbeat_timestamp_seconds')} > 0)"),
        theme.SECONDS,
        ((None, theme.GREEN), (90, theme.YELLOW), (180, theme.RED)),
    ).no_value("none yet")


def _store() -> stat.Panel:
    return stat_panel(
        "Store errors",
        "Operations of the store that failed in the time shown; meanwhile nothing is shared.",
        Query(f"sum({in_range(process('store_errors_total'))})", instant=True),
        theme.COUNT,
        theme.ANY_IS_BAD,
    )


def _listeners() -> stat.Panel:
    return stat_panel(
        "Late events",
        "Events of the time shown that slow listeners had not received when their run ended.",
        Query(f"sum({in_range(process('listener_events_late_total'))})", instant=True),
        theme.COUNT,
        theme.ANY_IS_BAD,
    )


# Who is in trouble


def _failing() -> timeseries.Panel:
    panel = graph(
        "Executions that fail, by scanner",
        "Share of each scanner's executions that ended in an error or a timeout; those without one are not drawn. "
        "Above the line the controller takes the scanner out of service.",
        [Query(f"(\n{failing()}\n) > 0", "{{scanner}}", least="1m")],
        theme.SHARE,
    )
    return limited(panel.max(1), 0.5, theme.RED)


def _scans() -> timeseries.Panel:
    return per_second(
        "Scans by the status in which they ended",
        "Scans per second. Green and blue are answers; yellow ones come from a stale cache, because the execution "
        "failed.",
        "status",
        series("scans_total"),
        theme.STATUS_COLOURS,
    )


def _out_of_service() -> timeseries.Panel:
    return stepped(
        "Out of service, since when",
        "Scanners that are not enabled. A quarantine comes from an alert and ends by probes; disabled is by hand.",
        [Query(f"(\n{state_number(BY)}\n) > 0", "{{scanner}}")],
        theme.COUNT,
        theme.STATE,
    )


def _breakers() -> timeseries.Panel:
    return stepped(
        "Breakers that are not closed",
        "While a breaker is open its source is not called; half-open lets one trial through.",
        [Query(f"(\n{breaker_number(BY)}\n) > 0", "{{scanner}}")],
        theme.COUNT,
        theme.BREAKER,
    )


def _hung() -> timeseries.Panel:
    panel = stacked(
        "Hung threads, by scanner",
        "Threads that were abandoned at their timeout and still run. The line is the built-in limit of one process.",
        [Query(f"sum {BY} ({series('abandoned_threads')}) > 0", "{{scanner}}")],
        theme.COUNT,
        {},
    )
    return limited(panel.decimals(0), 16, theme.RED)


# What the work is


def _slow() -> timeseries.Panel:
    panel = graph(
        "What is slow: 95th percentile of executions",
        "Seconds that one execution in twenty exceeds, timeouts included; the ten slowest. Above 20 s it comes near "
        "the built-in timeout of 30 s.",
        [Query(f"topk(10, {quantile(0.95, DURATION, 'scanner')})", "{{scanner}}", least="1m")],
        theme.SECONDS,
    )
    return limited(panel, theme.NEAR_TIMEOUT, theme.ORANGE)


def _retries() -> timeseries.Panel:
    return stacked(
        "Retries, by scanner",
        "Attempts per second after the first one of an execution: load that only failures cause.",
        [Query(f"sum {BY} ({rate(series('retries_total'))}) > 0", "{{scanner}}")],
        theme.PER_SECOND,
        {},
    )


def _cache() -> timeseries.Panel:
    return per_second(
        "What scans found in the cache",
        "Per second. A miss executes; shared waits for another scan's execution; stale stands in for a failed one; "
        "bypass has no cache.",
        "result",
        series("cache_requests_total"),
        theme.CACHE_COLOURS,
    )


def _hits() -> bargauge.Panel:
    hits = f"sum {BY} ({in_range(HITS)})\n  / sum {BY} ({in_range(LOOKED)})"
    return shares(
        "Cache hits, by scanner",
        "Share of the scans of the time shown that the cache answered, where there is a cache. At 0 the lifetime is "
        "shorter than the time between runs.",
        Query(f"sort_desc({hits})", "{{scanner}}", instant=True),
        ((None, theme.ORANGE), (0.01, theme.GREEN)),
    )


def _attempts() -> timeseries.Panel:
    return per_second(
        "Attempts by outcome",
        "Calls of scanners' functions per second, retries included.",
        "outcome",
        series("attempts_total"),
        theme.OUTCOME_COLOURS,
    )


# What all scanners share


def _workers() -> timeseries.Panel:
    return stacked(
        "Workers",
        "Threads of the pools. No idle ones and a queue: too few workers. Abandoned ones hang.",
        [Query(f"sum by (state) ({process('workers')})", "{{state}}")],
        theme.COUNT,
        theme.WORKER_COLOURS,
    )


def _queue() -> timeseries.Panel:
    return graph(
        "Queue",
        "Scans that wait for a worker, and executions under way.",
        [
            Query(f"sum({process('queued_scans')})", "queued"),
            Query(f"sum({process('inflight_executions')})", "in flight"),
        ],
        theme.COUNT,
    )


def _waits() -> timeseries.Panel:
    return graph(
        "Wait in the queue, length of runs, late deadlines",
        "Seconds that one scan, one run, and one deadline in twenty exceeds.",
        [
            Query(quantile(0.95, process("queue_wait_seconds_bucket")), "queue wait p95", least="1m"),
            Query(quantile(0.95, process("run_duration_seconds_bucket")), "run p95", least="1m"),
            Query(quantile(0.95, process("watchdog_lateness_seconds_bucket")), "late deadlines p95", least="1m"),
        ],
        theme.SECONDS,
    )


def _results() -> timeseries.Panel:
    return per_second(
        "Runs by result",
        "Per second. Complete: every scanner in service answered; failed: none did.",
        "result",
        process("runs_total"),
        theme.RUN_COLOURS,
    )


def _webhooks() -> timeseries.Panel:
    return per_second(
        "Alerts that the controller received",
        "Per second, by what became of them. Unauthorized and invalid ones are faults of the set-up; refused: too many "
        "scanners are out already.",
        "result",
        process("alert_webhooks_total"),
        theme.WEBHOOK_COLOURS,
    )
