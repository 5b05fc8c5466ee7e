"""The dashboard Fleet: is it healthy; who is failing, slow, out of service, since when and why."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, table, timeseries
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

from grafana.source import boards
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
    named,
    process,
    quantile,
    rate,
    rows,
    series,
    setting,
    stacked,
    stat_panel,
    state_number,
    stepped,
    thresholds,
    transformed,
)
from grafana.source.questions import (
    BY,
    DURATION,
    FAILED,
    NOT_CLOSED,
    OUT,
    RECENT,
    VERDICT,
    answered,
    failed,
    failing,
    verdict,
    verdict_in_words,
)

ANY_IS_BAD = ((None, GREEN), (1, RED))
SHARE_OF_FAILURES = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
PERCENT_OF_FAILURES = ((None, GREEN), (10, YELLOW), (50, RED))
SHARE_OF_ANSWERS = ((None, RED), (0.9, YELLOW), (0.99, GREEN))
COMPLETE = process("runs_total", 'result="complete"')
ERRORS = series("executions_total", 'outcome="error"')
MOVED_OUT = series("scanner_transitions_total", 'to=~"quarantined|disabled"')
LOOKED = series("cache_requests_total", 'result!="bypass"')
HITS = series("cache_requests_total", 'result=~"hit|shared"')
SLOW = ((None, GREEN), (10, YELLOW), (20, RED))


def build() -> str:
    """Return the dashboard as JSON."""
    return boards.board(
        "Fleet",
        boards.FLEET,
        "Is the fleet of scanners healthy? Who is failing, slow or out of service, since when, and why?",
        [_glance(), (15, [(24, _scanners())]), *_trouble(), *_work(), *_process()],
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


def _scanners() -> table.Panel:
    """One line for each scanner: each query brings a column, those that are asked for a word bring a label."""
    asked = [Query(query, instant=True, least=RECENT) for _, query in _columns()]
    names = {f"Value #{letter}": name for letter, (name, _) in zip("ABCDEFGHI", _columns(), strict=True)}
    words = {"scanner": "Scanner", "now": "Now", "kind": "Most frequent error", "source": "Taken out by"}
    order = ["scanner", "now", "Value #H", "kind", "source", *names]
    shown = {name: title for name, title in {**words, **names}.items() if title}
    columns = {"pattern": "^(scanner|now|kind|source|Value.*)$"}
    panel = (
        rows(
            "Who is in trouble, since when, and why",
            "One line for each scanner, the worst first: what is wrong now, when it last succeeded, its most frequent "
            "error, and what took it out of service. Click a line to see that scanner's life.",
            asked,
            "none",
        )
        .with_transformation(transformed("filterFieldsByName", include=columns))
        .with_transformation(transformed("joinByField", byField="scanner", mode="outer"))
        .with_transformation(transformed("sortBy", sort=[{"field": "Value #A", "desc": True}]))
        .with_transformation(
            transformed(
                "organize",
                excludeByName={name: True for name, title in names.items() if not title},
                indexByName={name: index for index, name in enumerate(dict.fromkeys(order))},
                renameByName=shown,
            )
        )
        .cell_height(shapes.TableCellHeight.SM)
        .no_value("–")
    )
    return _formatted(panel)


def _columns() -> tuple[tuple[str, str], ...]:
    # A kind's series begins with its first error, so its growth may be 0: whether there were errors at all is asked
    # of executions, whose series are there from the beginning.
    kinds = (
        f"sum by (scanner, kind) ({in_range(series('errors_total'))})\n"
        f"  and on (scanner) sum {BY} ({in_range(ERRORS)}) > 0"
    )
    sources = f"sum by (scanner, source) ({in_range(MOVED_OUT)}) > 0"
    success = f"max {BY} ({series('last_success_timestamp_seconds')} > 0)"
    return (
        ("", verdict_in_words()),
        ("Failed, %", f"round(100 * {failed()})"),
        ("Failures", f"round(sum {BY} ({in_range(FAILED)}))"),
        ("", f"topk {BY} (1, {kinds})"),
        ("", f"topk {BY} (1, {sources})"),
        ("p95, s", f"round({quantile(0.95, DURATION, 'scanner')}, 0.01)"),
        ("Hung threads", f"sum {BY} ({series('abandoned_threads')})"),
        ("Success, min ago", f"round((time() - {success}) / 60, 0.1)"),
        ("Candidates", f"max {BY} ({series('candidates')})"),
    )


def _formatted(panel: table.Panel) -> table.Panel:
    link = (
        dashboard.DashboardLink("Open this scanner")
        .type(models.DashboardLinkType.LINK)
        .url(
            f"/d/{boards.SCANNER}?var-scanner=${{__data.fields.Scanner}}&${{job:queryparam}}&${{instance:queryparam}}"
            "&${datasource:queryparam}&${__url_time_range}"
        )
    )
    words = models.ValueMap(
        options={
            word: models.ValueMappingResult(text=word, color=colour, index=index)
            for index, (word, colour) in enumerate(VERDICT.values())
        }
    )
    coloured = {"Failed, %": PERCENT_OF_FAILURES, "p95, s": SLOW, "Hung threads": ANY_IS_BAD}
    panel = (
        panel.data_links([link])
        .mappings([words])
        .with_override(named("Now"), [setting("custom.cellOptions", {"type": "color-background", "mode": "basic"})])
    )
    for name, steps in coloured.items():
        text = setting("custom.cellOptions", {"type": "color-text"})
        panel = panel.with_override(named(name), [text, setting("thresholds", thresholds(steps))])
    return panel


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
