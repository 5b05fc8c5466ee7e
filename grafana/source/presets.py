"""Define the numbers in which the two sets of alert rules differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Burn:
    """One pair of windows in which the error budget burns `factor` times as fast as it may."""

    factor: float
    short: str
    long: str
    pending: str
    severity: str


@dataclass(frozen=True)
class Preset:
    """The times and numbers of the rules; durations are written as in Prometheus.

    Attributes:
        window: over which ratios are computed; at least five times the interval between two runs.
        pending, keep: how long a condition must hold before it fires, and how long it keeps firing afterwards.
        min_executions: with fewer executions in `window`, a ratio is ignored.
        objective: share of the executions that have to succeed.
        latency: seconds that the 95th percentile of an execution may take.
        stale, stale_pending: seconds without a success, although scans were made, that are too many, and how long that
            must hold.
        long: the window in which rare things are counted: suspicious results, flapping, refused alerts.
        quarantined: how long a quarantine may last before a person should look.
        heartbeat: seconds without a heartbeat after which the alerting counts as unreachable: three of its periods.
        missing_run: seconds without a run that are too many; `None` if there is no schedule.
        one_shot: whether each run may be a separate process, whose counters begin at 0.
        evaluation: how often the rules are evaluated.
    """

    name: str
    window: str
    pending: str
    keep: str
    min_executions: int
    objective: float
    burns: tuple[Burn, ...]
    latency: float
    latency_pending: str
    stale: int
    stale_pending: str
    long: str
    quarantined: str
    heartbeat: int
    missing_run: int | None
    one_shot: bool
    evaluation: str


SERVICE = Preset(
    name="service",
    window="5m",
    pending="2m",
    keep="5m",
    min_executions=3,
    objective=0.99,
    burns=(
        Burn(14.4, "5m", "1h", "2m", "critical"),
        Burn(6, "30m", "6h", "5m", "critical"),
        Burn(3, "2h", "1d", "15m", "warning"),
        Burn(1, "6h", "3d", "30m", "warning"),
    ),
    latency=20,
    latency_pending="10m",
    stale=1800,
    stale_pending="5m",
    long="1h",
    quarantined="1h",
    heartbeat=180,
    missing_run=None,
    one_shot=False,
    evaluation="15s",
)

CRON = Preset(
    name="cron",
    window="5h",
    pending="2m",
    keep="5m",
    min_executions=1,
    objective=0.95,
    burns=(
        Burn(14.4, "5h", "12h", "2m", "critical"),
        Burn(6, "12h", "1d", "5m", "critical"),
        Burn(3, "1d", "3d", "15m", "warning"),
        Burn(1, "2d", "7d", "30m", "warning"),
    ),
    latency=20,
    latency_pending="10m",
    stale=3 * 3600,
    stale_pending="5m",
    long="1d",
    quarantined="6h",
    heartbeat=180,
    missing_run=3 * 3600,
    one_shot=True,
    evaluation="1m",
)

PRESETS = {preset.name: preset for preset in (SERVICE, CRON)}
