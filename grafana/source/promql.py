"""What the dashboards ask Prometheus: selectors, the functions around them, and the questions about scanners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana.source.theme import VERDICT

ANY = ("job", "instance", "scanner")


@dataclass(frozen=True)
class Query:
    """One query to Prometheus, and the name of what it returns."""

    expr: str
    legend: str = ""
    instant: bool = False
    least: str = ""  # the shortest window of a rate, such as 5m: for what happens rarely


def series(name: str, *matchers: str, by: Sequence[str] = ANY) -> str:
    """Return a selector for one of our metrics, narrowed to what is chosen at the top of the dashboard."""
    chosen = [f'{label}=~"${label}"' for label in by]
    return f"resilient_scan_{name}{{{', '.join([*chosen, *matchers])}}}"


def process(name: str, *matchers: str) -> str:
    """Return a selector for a metric that has no label `scanner`."""
    return series(name, *matchers, by=("job", "instance"))


def rate(selector: str) -> str:
    """Return the growth of a counter per second."""
    return f"rate({selector}[$__rate_interval])"


def in_range(selector: str) -> str:
    """Return the growth of a counter over the time that the dashboard shows."""
    return f"increase({selector}[$__range])"


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Return a quantile of a histogram, grouped by the label `by` if there is one."""
    return f"histogram_quantile({share}, sum by ({by + ', ' if by else ''}le) ({rate(buckets)}))"


def breaker_number(by: str) -> str:
    """Return the breakers' states as numbers, the worst of each group `by`; see `theme.BREAKER`."""
    return _worst("breaker_state", {"open": 2, "half_open": 1}, by)


def state_number(by: str) -> str:
    """Return the scanners' states as numbers, the worst of each group `by`; see `theme.STATE`."""
    return _worst("scanner_state", {"disabled": 3, "quarantined": 2, "probing": 1}, by)


def _worst(name: str, numbers: Mapping[str, int], by: str) -> str:
    chosen = {number: series(name, f'state="{state}"') for state, number in numbers.items()}
    terms = [f"{number} * (max {by} ({selector}) > 0)" for number, selector in chosen.items()]
    return "\n  or ".join([*terms, f"max {by} (0 * {series(name)})"])


FAILED = series("executions_total", 'outcome=~"error|timeout"')
ENDED = series("executions_total", 'outcome=~"success|error|timeout"')
ANSWERED = series("scans_total", 'status=~"completed|cached|stale"')
ASKED = series("scans_total", 'status!="disabled"')
DURATION = series("execution_duration_seconds_bucket")
DISABLED = series("scanner_state", 'state="disabled"')
QUARANTINED = series("scanner_state", 'state=~"quarantined|probing"')
NOT_CLOSED = series("breaker_state", 'state=~"open|half_open"')
STALE = series("scans_total", 'status="stale"')
OUT = 'state=~"quarantined|probing|disabled"'
BY = "by (scanner)"

RECENT = "5m"  # what "now" means for a scanner that executes every few minutes


def failing(by: str = BY) -> str:
    """Return the share of recent executions that failed."""
    return f"sum {by} ({rate(FAILED)})\n  / sum {by} ({rate(ENDED)})"


def failed() -> str:
    """Return the share of each scanner's executions that failed in the time that the dashboard shows."""
    return f"sum {BY} ({in_range(FAILED)})\n  / sum {BY} ({in_range(ENDED)})"


def answered() -> str:
    """Return the share of scans that were answered in the time that the dashboard shows."""
    return f"sum  ({in_range(ANSWERED)})\n  / sum  ({in_range(ASKED)})"


def verdict() -> str:
    """Return what is wrong with each scanner, as a number; see `theme.VERDICT`."""
    return "\n  or ".join(_verdicts().values())


def verdict_in_words() -> str:
    """Return `verdict` with its word in the label `now`."""
    words = (f'label_replace({expr}, "now", "{VERDICT[number][0]}", "", "")' for number, expr in _verdicts().items())
    return "\n  or on (scanner) ".join(words)


def _verdicts() -> dict[int, str]:
    """Return an expression for each verdict, the worst first."""
    seen = (
        (8, f"max {BY} ({DISABLED})"),
        (7, f"max {BY} ({QUARANTINED})"),
        (6, f"max {BY} ({series('abandoned_threads')})"),
        (5, f"max {BY} ({NOT_CLOSED})"),
        (4, f"({failing()}) > bool 0.5"),
        (3, f"({failing()}) > bool 0.1"),
        (2, f"sum {BY} ({rate(STALE)})"),
        (1, f"sum {BY} ({rate(series('suspicious_results_total'))})"),
    )
    return {
        **{number: f"{number} * (({expr}) > bool 0 > 0)" for number, expr in seen},
        0: f"0 * max {BY} ({series('scanner_state')})",
    }
