"""What both dashboards ask about scanners."""

from __future__ import annotations

from grafana.source.panels import GREEN, ORANGE, PURPLE, RED, YELLOW, Words, in_range, rate, series

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

VERDICT: Words = {  # what is wrong with a scanner, by number and in words, the worst last
    0: ("healthy", GREEN),
    1: ("suspicious answers", YELLOW),
    2: ("stale answers", YELLOW),
    3: ("fails at times", YELLOW),
    4: ("FAILING", ORANGE),
    5: ("BREAKER OPEN", RED),
    6: ("THREADS HANG", RED),
    7: ("QUARANTINED", RED),
    8: ("DISABLED by hand", PURPLE),
}


def failing(by: str = BY) -> str:
    """Return the share of recent executions that failed."""
    return f"sum {by} ({rate(FAILED)})\n  / sum {by} ({rate(ENDED)})"


def failed() -> str:
    """Return the share of each scanner's executions that failed in the time shown."""
    return f"sum {BY} ({in_range(FAILED)})\n  / sum {BY} ({in_range(ENDED)})"


def answered() -> str:
    """Return the share of scans that were answered in the time shown."""
    return f"sum  ({in_range(ANSWERED)})\n  / sum  ({in_range(ASKED)})"


def verdict() -> str:
    """Return for each scanner what is wrong with it, as a number: see `VERDICT`."""
    return "\n  or ".join(_verdicts().values())


def verdict_in_words() -> str:
    """Return the same with the word for it as a label, `now`."""
    words = (f'label_replace({expr}, "now", "{VERDICT[number][0]}", "", "")' for number, expr in _verdicts().items())
    return "\n  or on (scanner) ".join(words)


def _verdicts() -> dict[int, str]:
    """Return an expression for each word, the worst first."""
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
