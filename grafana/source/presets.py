"""Define the numbers in which the two sets of alert rules differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """How long a rule looks back, and how much must have happened in that time for a share to say something."""

    length: str
    least: int


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
        fits: the longest time from run to run for which these rules work, in seconds.
        windows: over which shares are computed, the shortest first. The shortest one with enough executions decides:
            with a run every minute a failing scanner is noticed after three minutes, with one every five minutes after
            a quarter of an hour, and what a longer window remembers of an outage does not outlast the outage.
        pending, keep: how long a condition must hold before it fires, and how long it keeps firing afterwards.
        objective: share of the executions that have to succeed.
        latency: seconds that an execution may take, where its own timeout is not known; an edge of the histogram's
            buckets, because between two edges nothing is known.
        slow, slow_pending: share of slow executions that is too much, and how long that must hold.
        slow_windows: likewise; one slow execution in twenty is seen among twenty at the earliest.
        stale, stale_pending: seconds without a success, although scans were made, that are too many, and how long that
            must hold.
        long: the window in which rare things are counted: suspicious results, flapping.
        suspicious: suspicious results within `long` that are too many.
        quarantined: how long a quarantine may last before a person should look.
        heartbeat: seconds without a heartbeat after which the alerting counts as unreachable: three of its periods.
        missing_run: seconds without a run that are too many for a process that exports no schedule.
        one_shot: whether each run may be a separate process, whose counters begin at 0.
        evaluation: how often the rules are evaluated.
    """

    name: str
    fits: float
    windows: tuple[Window, ...]
    pending: str
    keep: str
    objective: float
    burns: tuple[Burn, ...]
    latency: float
    slow: float
    slow_windows: tuple[Window, ...]
    slow_pending: str
    stale: int
    stale_pending: str
    long: str
    suspicious: int
    quarantined: str
    heartbeat: int
    missing_run: int
    one_shot: bool
    evaluation: str


SERVICE = Preset(
    name="service",
    fits=300.0,
    windows=(Window("5m", 3), Window("30m", 4), Window("6h", 4)),
    pending="2m",
    keep="5m",
    objective=0.99,
    burns=(
        Burn(14.4, "5m", "1h", "2m", "critical"),
        Burn(6, "30m", "6h", "5m", "critical"),
        Burn(3, "2h", "1d", "15m", "warning"),
        Burn(1, "6h", "3d", "30m", "warning"),
    ),
    latency=30,
    slow=0.05,
    slow_windows=(Window("30m", 20), Window("6h", 20)),
    slow_pending="10m",
    stale=1800,
    stale_pending="5m",
    long="1h",
    suspicious=3,
    quarantined="1h",
    heartbeat=180,
    missing_run=3600,
    one_shot=False,
    evaluation="15s",
)

CRON = Preset(
    name="cron",
    fits=3600.0,
    windows=(Window("5h", 1),),
    pending="2m",
    keep="5m",
    objective=0.95,
    burns=(
        Burn(14.4, "5h", "12h", "2m", "critical"),
        Burn(6, "12h", "1d", "5m", "critical"),
        Burn(3, "1d", "3d", "15m", "warning"),
        Burn(1, "2d", "7d", "30m", "warning"),
    ),
    latency=60,
    slow=0.05,
    slow_windows=(Window("1d", 20),),
    slow_pending="10m",
    stale=3 * 3600,
    stale_pending="5m",
    long="1d",
    suspicious=1,
    quarantined="6h",
    heartbeat=180,
    missing_run=3 * 3600,
    one_shot=True,
    evaluation="1m",
)

PRESETS = {preset.name: preset for preset in (SERVICE, CRON)}
