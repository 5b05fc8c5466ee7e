"""Days of a fleet's life in a real Prometheus, without waiting for them: written as a file, and loaded.

A fleet is healthy, then ill, then cured. The real listener is told what happens, run by run, so that the series are the
ones that we export; what it has counted after each run is written with the times at which Prometheus would have scraped
it. The same life is written at several cadences, each as a job of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from resilient_scan import PrometheusMetrics, Status
from resilient_scan.events import (
    AlertReceived,
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    DeadlineActedOn,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    LateCompletion,
    Load,
    ProbeEnded,
    Registered,
    RunEnded,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    ScheduledRunBegins,
    ScheduleStarted,
    SuspiciousResult,
)
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.results import ErrorInfo
from tests.e2e.monitoring import Api, prometheus
from tests.support.needed import binary
from tests.support.results import result

START = 1_793_000_000 - 1_793_000_000 % 86_400  # a midnight in October 2026
WINDOW = 20  # runs
PHASES = {"healthy": 22, "ill": 32, "cured": 26}  # runs; the second is long enough for the window, and a quarantine
TOTAL = 30.0  # seconds that an execution may take

STEADY = ("market_movers", "gap_up")
FLAKY, FAILING, HANGING, BROKEN, BY_HAND, ODD, CACHED = (
    "news_sentiment",
    "analyst_revisions",
    "reddit_dd",
    "insider_buying",
    "filings_8k",
    "rsi_oversold",
    "options_flow",
)
PROVIDER = "sec"  # stands as the breaker of the broken one
NAMES = (*STEADY, FLAKY, FAILING, HANGING, BROKEN, BY_HAND, ODD, CACHED)


@dataclass(frozen=True)
class Cadence:
    """How often the fleet runs, how often it is scraped, and how many runs each phase of its life has."""

    job: str
    every: int
    scrape: int
    scheduled: bool = True  # else only its runs are written: they tell how often they come
    phases: Mapping[str, int] = field(default_factory=lambda: PHASES)

    def runs_until_end(self, phase: str) -> int:
        """Return the number of runs until a phase is over."""
        names = list(self.phases)
        return sum(self.phases[name] for name in names[: names.index(phase) + 1])

    def end(self, phase: str) -> float:
        """Return the time of the last scrape of a phase."""
        return START + self.runs_until_end(phase) * self.every - self.scrape


CADENCES = (
    Cadence("every-1m", 60, 15),
    Cadence("every-5m", 300, 75),
    Cadence("every-1h", 3600, 240),
    Cadence("embedded-5m", 300, 100, scheduled=False),
)


@dataclass
class Scanner:
    """What the listener reads of a scanner, and the truth about its executions, one outcome for each run or None."""

    name: str
    state: str = "enabled"
    breaker: str = "closed"
    hung: int = 0
    outcomes: list[str | None] = field(default_factory=list)
    provider: str = ""

    def registered(self) -> Registered:
        """Return it as the listener sees it."""
        return Registered(
            self.name,
            "live",
            lambda: self.breaker,
            lambda: self.hung,
            lambda: self.state,
            TOTAL,
            lambda: self.provider,
        )


class Life:
    """The life of a fleet, run by run."""

    def __init__(self, cadence: Cadence) -> None:
        self.cadence = cadence
        self.registry = CollectorRegistry()
        self.fleet = {name: Scanner(name) for name in NAMES}
        self.fleet[BROKEN].provider = self.fleet[BY_HAND].provider = PROVIDER
        self.fleet[FLAKY].provider = "news.example:443"
        self._send: Callable[[Event], None] = PrometheusMetrics(self.registry)
        self._send(
            ScannersRegistered(
                tuple(each.registered() for each in self.fleet.values()),
                lambda: Load(0, 0, 8, self._hung),
                lambda: {PROVIDER: self.fleet[BROKEN].breaker, "news.example:443": "closed"},
            )
        )
        self._send(AlertsServed(START))
        if cadence.scheduled:
            self._send(ScheduleStarted(NAMES, float(cadence.every), START))
        self.number = -1

    @property
    def _hung(self) -> int:
        return sum(each.hung for each in self.fleet.values())

    @property
    def at(self) -> float:
        """Return when the current run ended: three seconds after its time."""
        return START + self.number * self.cadence.every + 3.0

    def run(self, phase: str, number: int) -> None:
        """Live through the next run, which is run `number` of its phase."""
        self.number += 1
        ill = phase == "ill"
        self._send(HeartbeatSeen(self.at))
        self._send(ScheduledRunBegins(0.002, self.at - 3))
        self._send(DeadlineActedOn("", 0.002))
        statuses = [self._scan(each, ill, number) for each in self.fleet.values()]
        counts = {status: statuses.count(status) for status in set(statuses)}
        complete = all(status.answered or status is Status.DISABLED for status in counts)
        self._send(RunEnded(f"r{self.number}", 0.9, counts, complete, self.at))

    def _scan(self, scanner: Scanner, ill: bool, number: int) -> Status:
        lived = {HANGING: self._hanging, BROKEN: self._broken, BY_HAND: self._by_hand}.get(scanner.name)
        if lived is not None:
            return lived(scanner, ill, number)
        if scanner.name == FLAKY and ill and (3 * number) % 10 < 3:  # in runs of ten, three
            return self._executed(scanner, "error", Status.ERROR, 0.9, "ConnectionError")
        if scanner.name == FAILING and ill and number % 5 < 4:
            return self._executed(scanner, "error", Status.STALE, 0.1, "ValueError", cache="stale")
        if scanner.name == CACHED and number % 2:
            return self._ended(scanner, Status.CACHED, cache="hit")
        if scanner.name == CACHED:
            return self._executed(scanner, "success", Status.COMPLETED, 28.0 if ill else 2.0, cache="miss")
        if scanner.name == ODD and ill and number % 3 == 0:
            self._send(SuspiciousResult(ODD, "live", "empty", 0, 0))
        return self._executed(scanner, "success", Status.COMPLETED, 0.2)

    def _hanging(self, scanner: Scanner, ill: bool, number: int) -> Status:
        if ill and number == 0:
            scanner.hung = 1
            return self._executed(scanner, "timeout", Status.TIMEOUT, TOTAL)
        if ill:
            return self._ended(scanner, Status.REJECTED)
        if scanner.hung:
            scanner.hung = 0
            self._send(LateCompletion(HANGING, 900.0, "error"))
        return self._executed(scanner, "success", Status.COMPLETED, 0.2)

    def _broken(self, scanner: Scanner, ill: bool, number: int) -> Status:
        """Fail until the breaker opens, then be quarantined by an alert and probed every eight runs, for two runs."""
        if scanner.state == "probing":
            return self._probed(scanner, "error" if ill else "success")
        if scanner.state == "quarantined" and number % 8 == 0:
            self._becomes(scanner, "probing", "probe")
            self._breaker(scanner, "half_open")
            return self._ended(scanner, Status.DISABLED)
        if scanner.state == "quarantined":
            return self._ended(scanner, Status.DISABLED)
        if ill and number < 5:
            if number == 4:
                self._breaker(scanner, "open")
            return self._executed(scanner, "error", Status.ERROR, 0.3, "ConnectionError")
        if ill:
            if number == 7:
                self._send(AlertReceived("alertmanager", "accepted", self.at))
                self._becomes(scanner, "quarantined", "alert")
            return self._ended(scanner, Status.REJECTED)
        return self._executed(scanner, "success", Status.COMPLETED, 0.2)

    def _probed(self, scanner: Scanner, outcome: str) -> Status:
        well = outcome == "success"
        self._send(ProbeEnded(BROKEN, outcome))
        self._breaker(scanner, "closed" if well else "open")
        self._becomes(scanner, "enabled" if well else "quarantined", "probe")
        status = Status.COMPLETED if well else Status.DISABLED
        return self._executed(scanner, outcome, status, 0.2, "" if well else "ConnectionError")

    def _by_hand(self, scanner: Scanner, ill: bool, number: int) -> Status:
        if ill and number == 2:
            self._becomes(scanner, "disabled", "hand")
        if not ill and scanner.state == "disabled":
            self._becomes(scanner, "enabled", "hand")
        if scanner.state == "disabled":
            return self._ended(scanner, Status.DISABLED)
        return self._executed(scanner, "success", Status.COMPLETED, 0.2)

    def _becomes(self, scanner: Scanner, new: str, source: str) -> None:
        self._send(ScannerStateChanged(scanner.name, scanner.state, new, source, "", None, self.at))
        scanner.state = new

    def _breaker(self, scanner: Scanner, new: str) -> None:
        if scanner.breaker != new:
            self._send(BreakerChanged(scanner.name, scanner.breaker, new, 30.0 if new == "open" else None))
            scanner.breaker = new

    def _executed(
        self, scanner: Scanner, outcome: str, status: Status, seconds: float, error: str = "", cache: str = "bypass"
    ) -> Status:
        info = ErrorInfo(error, "it failed") if error else None
        attempts = 2 if outcome == "error" else 1
        for attempt in range(1, attempts + 1):
            self._send(AttemptEnded(scanner.name, attempt, outcome, seconds / attempts, info))
        self._send(
            ExecutionEnded(scanner.name, "live", outcome, seconds, attempts, info, f"r{self.number}", self.at, TOTAL)
        )
        self._ended(scanner, status, cache=cache, attempts=attempts)
        scanner.outcomes[-1] = outcome
        return status

    def _ended(self, scanner: Scanner, status: Status, cache: str = "", attempts: int = 0) -> Status:
        found = [{"ticker": f"T{number}"} for number in range(6)] if status.answered else []
        ended = result(scanner=scanner.name, pipeline="live", status=status, candidates=found, attempts=attempts)
        self._send(ScanEnded(f"r{self.number}", ended, cache, ""))
        scanner.outcomes.append(None)
        return status


def _series(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}"


def _readings(life: Life) -> dict[str, float]:
    """Return the value of each series, by its name and labels."""
    target = {"job": life.cadence.job, "instance": f"{life.cadence.job}:9108"}
    return {
        _series(sample.name, {**sample.labels, **target}): sample.value
        for metric in life.registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def _written(cadence: Cadence) -> tuple[Life, list[str]]:
    """Return a life at one cadence, and its series as OpenMetrics text, each in the order of time."""
    life = Life(cadence)
    readings = [_readings(life)]
    for phase, runs in cadence.phases.items():
        for number in range(runs):
            life.run(phase, number)
            readings.append(_readings(life))
    per_run = cadence.every // cadence.scrape
    kept = readings[-1] if cadence.scheduled else [each for each in readings[-1] if "_runs_total{" in each]
    lines: list[str] = []
    for series in kept:
        for run, values in enumerate(readings[1:]):
            for scrape in range(per_run):
                # A run ends three seconds after its time, so the scrape at that time still finds the one before.
                value = readings[run].get(series) if scrape == 0 else values.get(series)
                if value is not None:
                    lines.append(f"{series} {value:.15g} {START + run * cadence.every + scrape * cadence.scrape}")
    return life, lines


def _alerts(life: Life) -> list[str]:
    """Return the alert that Prometheus itself would have had of the broken scanner."""
    cadence = life.cadence
    first = (cadence.runs_until_end("healthy") + 8) * cadence.every
    last = cadence.runs_until_end("ill") * cadence.every
    labels = {"alertname": "ScannerOutOfService", "alertstate": "firing", "scanner": BROKEN, "severity": "critical"}
    labels |= {"job": cadence.job, "resilient_scan_action": "disable"}
    series = _series("ALERTS", labels)
    return [f"{series} 1 {START + second}" for second in range(first, last, cadence.scrape)]


FOUND_LATE, RESTARTED = "found-late", "restarted"
EARLIER = START - 7 * 86_400  # when nobody else lived


def _cut_short() -> Iterator[str]:
    """Yield an hour of two scanners whose counters began before, or anew.

    One had 500 errors before Prometheus first saw it. The process of the other, with 7 errors, restarted half an hour
    ago, and had its next error 10 minutes later.
    """
    for job, errors in ((FOUND_LATE, {0: 500}), (RESTARTED, {0: 7, 30: None, 40: 1})):
        labels = {"job": job, "instance": job, "scanner": "one"}
        state = _series("resilient_scan_scanner_state", {**labels, "state": "enabled"})
        kind = _series("resilient_scan_errors_total", {**labels, "kind": "ValueError", "blame": "scanner"})
        minutes = range(61)
        yield from (f"{state} 1 {EARLIER + 60 * minute}" for minute in minutes)
        for minute in minutes:
            value = errors[max(each for each in errors if each <= minute)]
            if value is not None:
                yield f"{kind} {value} {EARLIER + 60 * minute}"


@dataclass(frozen=True)
class History:
    """A Prometheus that knows the lives of fleets, and the truth about them."""

    api: Api
    lives: dict[str, Life]

    def truth(self, job: str, scanner: str, phase: str) -> float | None:
        """Return the share of a scanner's executions in the window at the end of a phase that failed."""
        life = self.lives[job]
        last = life.cadence.runs_until_end(phase)
        ended = [each for each in life.fleet[scanner].outcomes[last - WINDOW : last] if each]
        return sum(each != "success" for each in ended) / len(ended) if ended else None


@contextmanager
def history(folder: Path, cadences: Sequence[Cadence] = CADENCES) -> Iterator[History]:
    """Write the lives of fleets, load them into a Prometheus of their own, and yield it."""
    lives = {}
    with (folder / "past.txt").open("w") as out:
        for cadence in cadences:
            lives[cadence.job], lines = _written(cadence)
            out.write("\n".join([*lines, *_alerts(lives[cadence.job]), ""]))
        out.write("\n".join([*_cut_short(), "# EOF\n"]))
    command = ["tsdb", "create-blocks-from", "--max-block-duration=744h", "--quiet", "openmetrics", "past.txt", "data"]
    done = subprocess.run([binary("promtool"), *command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "past.txt").unlink()  # a hundred megabytes
    with prometheus(folder, {}, retention="3650d") as api:
        yield History(api, lives)
