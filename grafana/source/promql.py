"""What the dashboards ask Prometheus: selectors, the functions around them, and the questions about scanners.

Both dashboards ask the same question with the same function, so that they show the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grafana.source.theme import VERDICT

ANY = ("job", "instance", "scanner")
BY = "by (scanner)"

WINDOW = "${window}s"  # chosen at the top of the dashboard; `boards.WINDOWS` says from what
RANGE = "$__range"
BUDGET_WINDOW, OBJECTIVE = "1d", 0.99


@dataclass(frozen=True)
class Query:
    """One query to Prometheus, and the name of what it returns."""

    expr: str
    legend: str = ""
    instant: bool = False


def series(name: str, *matchers: str, by: Sequence[str] = ANY) -> str:
    """Return a selector for one of our metrics, narrowed to what is chosen at the top of the dashboard."""
    chosen = [f'{label}=~"${label}"' for label in by]
    return f"resilient_scan_{name}{{{', '.join([*chosen, *matchers])}}}"


def process(name: str, *matchers: str) -> str:
    """Return a selector for a metric that has no label `scanner`."""
    return series(name, *matchers, by=("job", "instance"))


FAILED = series("executions_total", 'outcome=~"error|timeout"')
ENDED = series("executions_total", 'outcome=~"success|error|timeout"')
ANSWERED = series("scans_total", 'status=~"completed|cached|stale"')
ASKED = series("scans_total", 'status!="disabled"')
STALE = series("scans_total", 'status="stale"')
DURATION = series("execution_duration_seconds_bucket")
HITS = series("cache_requests_total", 'result=~"hit|shared"')
LOOKED = series("cache_requests_total", 'result!="bypass"')
DISABLED = series("scanner_state", 'state="disabled"')
QUARANTINED = series("scanner_state", 'state=~"quarantined|probing"')
OUT = series("scanner_state", 'state!="enabled"')
NOT_CLOSED = series("breaker_state", 'state=~"open|half_open"')
NOT_REACHED = process("provider_state", 'state!="closed"')
KNOWN = series("scanner_state", 'state="enabled"')  # one series for each scanner, whatever its state is


# Counts and shares


def grown(selector: str, window: str = WINDOW) -> str:
    """Return the growth of a counter in the window."""
    return f"increase({selector}[{window}])"


def counted(by: str, selector: str) -> str:
    """Return how many there were in the window, as a whole number, of what is counted from the beginning."""
    return f"round(sum {by} ({grown(selector)}))"


def rare(by: str, name: str, *matchers: str, window: str = WINDOW) -> str:
    """Return how many there were in a window, of what only its first occurrence creates.

    `increase` sees a series grow, and does not see that it was not there before: the only quarantine of a day would
    count as none. So the first value counts too, if the series began in the window, later than its scanner. A series
    that Prometheus has known as long as the scanner began before Prometheus looked; one that was there a window ago
    began again with its process, which `increase` does see.
    """
    selector = series(name, *matchers)
    later = (
        f"count_over_time({selector}[{window}])"
        f"\n    < on (job, instance, scanner) group_left () count_over_time({KNOWN}[{window}])"
    )
    first = f"(min_over_time({selector}[{window}]) and {later}) unless {selector} offset {window}"
    return f"round(sum {by} (\n  {grown(selector, window)} + ({first})\n  or {grown(selector, window)}\n))"


def rare_or_none(by: str, name: str, *matchers: str) -> str:
    """Return the same, and 0 for the scanners where it has not occurred yet."""
    return f"{rare(by, name, *matchers)}\nor 0 * sum {by} ({KNOWN})"


def _share(by: str, part: str, whole: str, window: str = WINDOW) -> str:
    """Return a share where there is something to share: without executions no number is right, neither 0 nor NaN."""
    return f"sum {by} ({grown(part, window)})\n  / (sum {by} ({grown(whole, window)}) > 0)"


def failing(by: str = BY) -> str:
    """Return the share of the executions in the window that failed."""
    return _share(by, FAILED, ENDED)


def answered(by: str = "") -> str:
    """Return the share of the scans in the window that were answered."""
    return _share(by, ANSWERED, ASKED)


def budget_left() -> str:
    """Return the share of each scanner's error budget that is left; 0 if it is used up.

    With an objective of its own it exports that; for the others it is what the alerts take for theirs, of a day.
    """
    own = f"min {BY} ({series('slo_budget_ratio')})"
    failed = _share(BY, FAILED, ENDED, BUDGET_WINDOW)
    return f"clamp_min({own}\n  or 1 - ({failed}) / {1 - OBJECTIVE:g}, 0)"


def hits() -> str:
    """Return the share of each scanner's scans in the window that the cache answered."""
    looked = f"sum {BY} ({grown(LOOKED)})"
    return f"(sum {BY} ({grown(HITS)}) or 0 * {looked})\n  / ({looked} > 0)"


def complete() -> str:
    """Return the share of the runs in the window in which every scanner in service answered."""
    return _share("", process("runs_total", 'result="complete"'), process("runs_total"))


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Return a quantile of a histogram in the window, grouped by the label `by` if there is one, and no NaN."""
    return f"histogram_quantile({share}, sum by ({by + ', ' if by else ''}le) ({grown(buckets)})) >= 0"


# Times and states


def ago(gauge: str, by: str = "") -> str:
    """Return the time since a moment, in seconds below 0, which Grafana shows as "3 minutes ago"."""
    return f"max {by} ({gauge} > 0) - time()"


def success_ago() -> str:
    """Return when each scanner last succeeded; see `ago`."""
    return ago(series("last_success_timestamp_seconds"), BY)


def hung(by: str = BY) -> str:
    """Return how many threads hang."""
    return f"sum {by} ({series('abandoned_threads')})\nor 0 * sum {by} ({KNOWN})"


def breaker_number() -> str:
    """Return the breakers' states as numbers, the worst of each scanner; see `theme.BREAKER`."""
    return _worst("breaker_state", {"open": 2, "half_open": 1})


def state_number() -> str:
    """Return the scanners' states as numbers, the worst of each scanner; see `theme.STATE`."""
    return _worst("scanner_state", {"disabled": 3, "quarantined": 2, "probing": 1})


def flapping_number() -> str:
    """Return 1 for the scanners that are flapping, 0 for the others; see `theme.FLAPPING`."""
    return f"max {BY} ({series('flapping')})"


def provider_number() -> str:
    """Return the providers' states as numbers, the worst of each provider; see `theme.PROVIDER`."""
    return _worst("provider_state", {"open": 3, "held": 2, "half_open": 1}, of="provider", select=process)


def of_its_provider(numbers: str) -> str:
    """Return the numbers of those providers that the chosen scanner calls."""
    return f"(\n{numbers}\n) and on (provider) max by (provider) ({series('scanner_info')})"


def _worst(name: str, numbers: Mapping[str, int], *, of: str = "scanner", select: Callable[..., str] = series) -> str:
    chosen = {number: select(name, f'state="{state}"') for state, number in numbers.items()}
    terms = [f"{number} * (max by ({of}) ({selector}) > 0)" for number, selector in chosen.items()]
    return "\n  or ".join([*terms, f"max by ({of}) (0 * {select(name)})"])


def where_it_happened(numbers: str, happened: str, of: str = "scanner") -> str:
    """Return states of those only for which `happened` was 1 at some time that the dashboard shows."""
    return f"(\n{numbers}\n) and on ({of}) max by ({of}) (max_over_time({happened}[{RANGE}] @ end())) > 0"


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
        (8, f"sum {BY} ({series('abandoned_threads')})"),
        (7, f"max {BY} ({QUARANTINED})"),
        (6, f"max {BY} ({NOT_CLOSED})"),
        (5, f"({failing()}) > bool 0.5"),
        (4, f"({failing()}) > bool 0.1"),
        (3, f"max {BY} ({DISABLED})"),
        (2, counted(BY, STALE)),
        (1, rare(BY, "suspicious_results_total")),
    )
    return {
        **{number: f"{number} * (({expr}) > bool 0 > 0)" for number, expr in seen},
        0: f"0 * max {BY} ({KNOWN})",
    }


# Moments


def became(name: str, state: str, old: str) -> str:
    """Return a series at the moment when a scanner got into one of the states `state`, out of `old`.

    Gauges tell it, not counters, which begin with the first change and do not show that one.
    """
    now, before = series(name, f'state=~"{state}"'), series(name, f'state=~"{old}"')
    return f"{now} == 1\n  and on (job, instance, scanner) {before} offset 1m == 1"
