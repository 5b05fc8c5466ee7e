"""What alerts and recorded series are made of: counters and their growth, comparisons, and what an alert says."""

from __future__ import annotations

from dataclasses import dataclass

from grafana.source.presets import Preset

FLEET = "sum by (job, scanner)"
SCANNER = "sum by (job, instance, scanner)"
ONE_RUN = "sum by (job, instance) (resilient_scan_runs_total) == 1"
RECORDED = "job_scanner:resilient_scan_executions_failed:ratio_rate"
COUNTED = "job_scanner:resilient_scan_executions:increase"
SLOW_SERIES = "resilient_scan_slow_executions_total"
LAST_RUN = "resilient_scan_last_run_timestamp_seconds"
HEARTBEAT = "resilient_scan_alert_last_heartbeat_timestamp_seconds"
PROVIDER = (
    '{{ with printf `resilient_scan_scanner_info{job=%q, scanner=%q, provider!=""} == 1` $labels.job $labels.scanner'
    ' | query }}{{ . | sortByLabel "provider" | first | label "provider" }}{{ end }}'
)
"""The provider of the scanner that an alert is about, as Prometheus asks for it; empty where there is none."""


@dataclass(frozen=True)
class Counter:
    """Something that is counted, and what its growth is called where it is recorded."""

    name: str
    selector: str


FAILED = Counter("executions_failed", 'resilient_scan_executions_total{outcome=~"error|timeout"}')
TIMED_OUT = Counter("executions_timed_out", 'resilient_scan_executions_total{outcome="timeout"}')
ENDED = Counter("executions", 'resilient_scan_executions_total{outcome=~"success|error|timeout"}')
UNANSWERED = Counter("scans_unanswered", 'resilient_scan_scans_total{status=~"timeout|error|rejected|stale"}')
ASKED = Counter("scans", 'resilient_scan_scans_total{status!~"disabled|skipped"}')
SLOW = Counter("executions_slow", SLOW_SERIES)
MEASURED = Counter("executions_measured", "resilient_scan_execution_duration_seconds_count")


def within(preset: Preset) -> Counter:
    """Return the executions that took no longer than `preset.latency`."""
    edge = f"{float(preset.latency)}"
    return Counter("executions_in_time", f'resilient_scan_execution_duration_seconds_bucket{{le="{edge}"}}')


def recorded(preset: Preset) -> list[tuple[Counter, str]]:
    """Return the counters whose growth over a window is recorded, with the window.

    Six hours of 1,000 scanners are some million samples: too many to read for each evaluation of each alert.
    """
    shares = [(each, window) for window in preset.windows[1:] for each in (FAILED, TIMED_OUT, ENDED, UNANSWERED, ASKED)]
    slow = [(each, window) for window in preset.slow_windows for each in (ENDED, SLOW, MEASURED, within(preset))]
    return list(dict.fromkeys((counter, window.length) for counter, window in [*shares, *slow]))


def grown(counter: Counter, window: str, preset: Preset) -> str:
    """Return how much a counter of each process has grown over one of the preset's windows."""
    if (counter, window) in recorded(preset):
        return f"job_instance_scanner:resilient_scan_{counter.name}:increase{window}"
    return growth(counter, window)


def growth(counter: Counter, window: str) -> str:
    """Return the same, computed where it stands."""
    return f"{SCANNER} (increase({counter.selector}[{window}]))"


@dataclass(frozen=True)
class Comparison:
    """`left operator right`."""

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
        summary, description: for people; they may contain the labels `job`, `instance`, `scanner` and `provider`.
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
    def names_provider(self) -> bool:
        """Whether it names its scanner's provider, so that Alertmanager can inhibit it while that one is down.

        Not where the controller acts on it: what is inhibited is not sent, and the scanner would stay in service.
        """
        return self.name.startswith("Scanner") and not self.action


def fleet_ratio(preset: Preset, window: str) -> str:
    """Return the share of a scanner's executions that failed, over all its processes; NaN if there were none."""
    shares = (f"{FLEET} (rate({counter.selector}[{window}]))" for counter in (FAILED, ENDED))
    return "\n  / ".join(shares) + (f"\n  unless on (job) {ONE_RUN}" if preset.one_shot else "")


def ratio_of_runs(bad: Counter, ended: Counter, window: str) -> str:
    """Return a share if each run is a separate process.

    Its counters begin at 0 and never seem to grow: each run pushes its own counts, which stay until the next run. The
    mean over time is then the mean over runs. What has pushed or written them makes no runs, so `instance` is left out.
    """
    shares = (
        f"{FLEET} (avg_over_time({what.selector}[{window}]) and on (job, instance) {ONE_RUN})" for what in (bad, ended)
    )
    return "\n  / ".join(shares)
