"""Every metric: name, type, labels, buckets, meaning. The reference, the dashboards and the rules follow this list."""

from __future__ import annotations

from itertools import product
from typing import Literal

import msgspec

from resilient_scan.events import CANCELLED, ERROR, LOCAL, SUCCESS, TIMEOUT
from resilient_scan.layers.blame import KINDS
from resilient_scan.options import DOUBTS
from resilient_scan.results import Status

PREFIX = "resilient_scan_"
SLOW_SHARE = 0.8  # of its total timeout: an execution that runs longer counts as slow
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LATENESS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60)

OUTCOMES = (SUCCESS, ERROR, TIMEOUT, CANCELLED, LOCAL)
ATTEMPT_OUTCOMES = (SUCCESS, ERROR, TIMEOUT)
CACHE_RESULTS = ("hit", "stale", "miss", "shared", "bypass")
BREAKER_STATES = ("closed", "open", "half_open")
PROVIDER_STATES = ("closed", "open", "half_open", "held")
SCANNER_STATES = ("enabled", "quarantined", "probing", "disabled")
STATE_CHANGES = (  # to, source
    ("enabled", "hand"),
    ("enabled", "expiry"),
    ("enabled", "probe"),
    ("disabled", "hand"),
    ("quarantined", "alert"),
    ("quarantined", "failures"),
    ("quarantined", "probe"),
    ("quarantined", "expiry"),
    ("probing", "probe"),
    ("probing", "expiry"),
)
METHODS = ("cooperative", "cancel", "sockets", "process", "abandoned")
WORKER_STATES = ("busy", "idle", "abandoned")
STORE_OPERATIONS = ("update", "read", "get", "put", "delete", "lease", "release", "append", "tail", "flush")
RUN_RESULTS = ("complete", "partial", "failed")
ALERT_SOURCES = ("alertmanager", "grafana", "unknown")
ALERT_RESULTS = (
    "accepted",
    "duplicate",
    "unauthorized",
    "invalid",
    "unknown_scanner",
    "refused",
    "overruled",
    "ignored",
)

Kind = Literal["counter", "gauge", "histogram", "info"]
Mode = Literal["livemax", "livemin", "livesum", "max", "mostrecent"]


class Family(msgspec.Struct, frozen=True):
    """One metric.

    Attributes:
        name: the full name, as in a query; a histogram's without `_bucket`, `_sum` and `_count`.
        type: `counter`, `gauge`, `histogram` or `info`.
        labels: in order.
        help: one sentence.
        closed: all combinations of values that the labels after `scanner` and `pipeline` can have; a label such as
            `kind` or `version`, whose values are not known beforehand, is left out.
        buckets: a histogram's upper bounds in seconds.
        mode: how prometheus_client's multiprocess mode combines a gauge of several processes.
        optional: whether only some processes export it: those that do what it is about.
        always: whether all series of a scanner exist once it is registered; others appear when they are first used.
    """

    name: str
    type: Kind
    labels: tuple[str, ...]
    help: str
    closed: tuple[tuple[str, ...], ...] = ((),)
    buckets: tuple[float, ...] = ()
    mode: Mode = "livemax"
    optional: bool = False
    always: bool = False

    @property
    def from_the_start(self) -> bool:
        """Whether its series are there before anything is counted, so that a rate sees the first event."""
        return self.always or (self.labels[:1] != ("scanner",) and not self.optional and bool(self.closed))

    @property
    def series(self) -> tuple[str, ...]:
        """Return the names under which its samples can be queried."""
        if self.type == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


Closed = tuple[tuple[str, ...], ...]


def _each(*values: tuple[str, ...]) -> Closed:
    """Return all combinations of the labels' values."""
    return tuple(product(*values))


def _counter(name: str, text: str, *labels: str, closed: Closed = ((),), always: bool = False) -> Family:
    return Family(f"{PREFIX}{name}", "counter", labels, text, closed, always=always)


def _gauge(
    name: str,
    text: str,
    *labels: str,
    mode: Mode = "livemax",
    closed: Closed = ((),),
    optional: bool = False,
    always: bool = False,
) -> Family:
    return Family(f"{PREFIX}{name}", "gauge", labels, text, closed, mode=mode, optional=optional, always=always)


def _histogram(
    name: str, text: str, *labels: str, buckets: tuple[float, ...] = BUCKETS, optional: bool = False
) -> Family:
    return Family(f"{PREFIX}{name}", "histogram", labels, text, buckets=buckets, optional=optional)


_ALL = (
    _counter(
        "scans_total",
        "Scans by the status in which they ended.",
        "scanner",
        "pipeline",
        "status",
        closed=_each(tuple(status.value for status in Status)),
        always=True,
    ),
    _counter(
        "executions_total",
        "Executions (real work, not answered from the cache) by outcome; local: failed by this machine's own fault.",
        "scanner",
        "pipeline",
        "outcome",
        closed=_each(OUTCOMES),
        always=True,
    ),
    _histogram(
        "execution_duration_seconds",
        "Duration of executions, those that timed out included.",
        "scanner",
        "pipeline",
    ),
    _counter(
        "slow_executions_total",
        f"Executions of any outcome that ran past {SLOW_SHARE:g} of their own total timeout.",
        "scanner",
        always=True,
    ),
    _counter(
        "attempts_total",
        "Calls of the scanner's function by outcome; those that were cancelled are not counted.",
        "scanner",
        "outcome",
        closed=_each(ATTEMPT_OUTCOMES),
        always=True,
    ),
    _counter("retries_total", "Attempts after the first one of an execution.", "scanner"),
    _counter("retry_budget_exhausted_total", "Retries that were not made because the budget was used up.", "scanner"),
    _counter(
        "errors_total",
        "Failed executions by exception class and whose fault it is; classes beyond the first 16 of a process count as "
        "other.",
        "scanner",
        "kind",
        "blame",
    ),
    _counter(
        "local_faults_total",
        "Executions that failed by this machine's own fault, by what it lacks.",
        "kind",
        closed=_each(KINDS),
    ),
    _counter(
        "cache_requests_total", "What the cache had for a scan.", "scanner", "result", closed=_each(CACHE_RESULTS)
    ),
    _gauge(
        "breaker_state",
        "State of the breaker: 1 for the current one, 0 for the others.",
        "scanner",
        "state",
        closed=_each(BREAKER_STATES),
        always=True,
    ),
    _counter(
        "breaker_transitions_total", "Changes of a breaker's state.", "scanner", "to", closed=_each(BREAKER_STATES)
    ),
    _gauge(
        "provider_state",
        "State of a provider's breaker: 1 for the current one, 0 for the others.",
        "provider",
        "state",
        closed=(),
    ),
    _gauge(
        "scanner_info",
        "A scanner's pipeline and provider, for joins: always 1.",
        "scanner",
        "pipeline",
        "provider",
        closed=(),
        always=True,
    ),
    _gauge(
        "scanner_state",
        "Whether a scanner is in service: 1 for its current state, 0 for the others.",
        "scanner",
        "state",
        closed=_each(SCANNER_STATES),
        always=True,
    ),
    _counter(
        "scanner_transitions_total",
        "Changes of a scanner's state, by what caused them.",
        "scanner",
        "to",
        "source",
        closed=STATE_CHANGES,
    ),
    _counter(
        "probes_total",
        "Executions that tested whether a quarantined scanner may come back, by outcome.",
        "scanner",
        "outcome",
        closed=_each(OUTCOMES),
    ),
    _gauge("candidates", "Candidates in a scanner's last answer.", "scanner", mode="mostrecent"),
    _counter("candidates_dropped_total", "Candidates that were dropped because they were invalid.", "scanner"),
    _gauge(
        "last_success_timestamp_seconds",
        "When an execution last succeeded, in epoch seconds; 0: not yet.",
        "scanner",
        mode="max",
    ),
    _histogram("queue_wait_seconds", "Time between a scan's turn and a worker's start on it."),
    _gauge("inflight_executions", "Executions under way, without the abandoned ones.", mode="livesum"),
    _gauge("queued_scans", "Scans that wait for a worker.", mode="livesum"),
    _gauge("workers", "Threads of the pools by what they do.", "state", mode="livesum", closed=_each(WORKER_STATES)),
    _gauge("abandoned_threads", "Threads that did not stop in time and still run.", "scanner", mode="livesum"),
    _gauge("flapping", "Whether a scanner's executions succeed and fail in turn: 1 if so.", "scanner", always=True),
    _gauge(
        "slo_budget_ratio",
        "Share of a scanner's error budget that is left, of its last 1,000 executions, below 0 where more failed than "
        "may; only with an objective (slo).",
        "scanner",
        mode="livemin",
    ),
    _histogram(
        "late_completion_duration_seconds",
        "True duration of abandoned work that ended after all; of all scanners together.",
    ),
    _counter(
        "timeout_freed_total",
        "Timed-out scans whose thread came free, by the method that freed it.",
        "scanner",
        "method",
        closed=_each(METHODS),
    ),
    _counter("loop_blocked_total", "Times that a coroutine blocked the event loop it shares with others.", "scanner"),
    _counter(
        "suspicious_results_total",
        "Answers that must not be trusted, although nothing failed, by the reason in one word.",
        "scanner",
        "reason",
        closed=_each(DOUBTS),
    ),
    _counter(
        "listener_events_late_total",
        "Events that slow listeners had not received when their run ended; they receive them later.",
    ),
    _counter("store_errors_total", "Operations of the store that failed.", "operation", closed=_each(STORE_OPERATIONS)),
    _counter(
        "runs_total",
        "Runs: complete (every scanner in service answered), partial, failed (none answered).",
        "result",
        closed=_each(RUN_RESULTS),
    ),
    _histogram(
        "watchdog_lateness_seconds",
        "Seconds between a deadline and what was done about it; seconds mean that code held the interpreter's lock.",
        buckets=LATENESS_BUCKETS,
    ),
    _histogram("run_duration_seconds", "Duration of runs."),
    _gauge("last_run_timestamp_seconds", "When a run last ended, in epoch seconds; 0: not yet.", mode="max"),
    _gauge(
        "schedule_interval_seconds",
        "Seconds from one scheduled run of a scanner to the next; only where runs are made on a schedule.",
        "scanner",
        optional=True,
    ),
    _histogram(
        "schedule_lateness_seconds",
        "How long after their time scheduled runs began; only where runs are made on a schedule.",
        optional=True,
    ),
    _counter(
        "alert_webhooks_total",
        "Alerts that were received, by what became of them.",
        "source",
        "result",
        closed=_each(ALERT_SOURCES, ALERT_RESULTS),
    ),
    _gauge(
        "alert_last_heartbeat_timestamp_seconds",
        "When the alerting's heartbeat was last seen, in epoch seconds; 0: not yet. Only where alerts are received.",
        mode="max",
        optional=True,
    ),
    Family(f"{PREFIX}build_info", "info", ("version",), "The version of resilient_scan that runs."),
)


def families() -> tuple[Family, ...]:
    """Return every metric that `PrometheusMetrics` exports, in the order of the reference."""
    return _ALL
