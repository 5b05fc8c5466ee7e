"""Define what looks alike wherever it is shown: colours, words for states, thresholds, units and heights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GREEN, YELLOW, ORANGE, RED, DARK_RED = "green", "yellow", "orange", "red", "dark-red"
BLUE, PURPLE, GREY = "blue", "purple", "text"

Steps = Sequence[tuple[float | None, str]]
"""The colours of a number: each from a value on; the first has no value."""
Words = Mapping[float, tuple[str, str]]
"""The words and colours for states that come as numbers."""

# Units, by Grafana's names
COUNT, SHARE, SECONDS, PER_SECOND = "none", "percentunit", "s", "ops"

# Heights of rows, in Grafana's grid
FIGURES, LOW_GRAPHS, GRAPHS, TABLE = 4, 7, 8, 15

# Thresholds
ALL_GREEN: Steps = ((None, GREEN),)
ANY_IS_ODD: Steps = ((None, GREEN), (1, ORANGE))
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
SHARE_OF_FAILURES: Steps = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
SHARE_OF_ANSWERS: Steps = ((None, RED), (0.9, YELLOW), (0.99, GREEN))
NEAR_TIMEOUT = 20  # seconds; the built-in timeout is 30
SECONDS_OF_EXECUTIONS: Steps = ((None, GREEN), (10, YELLOW), (NEAR_TIMEOUT, RED))
SECONDS_OF_SILENCE: Steps = ((None, GREEN), (900, YELLOW), (10_800, RED))

# Words for states
BREAKER: Words = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("OPEN", RED)}
STATE: Words = {0: ("enabled", GREEN), 1: ("probing", YELLOW), 2: ("QUARANTINED", RED), 3: ("DISABLED by hand", PURPLE)}
VERDICT: Words = {  # what is wrong with a scanner, the worst last
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

# Colours of the values of labels
STATUS_COLOURS = {
    "completed": GREEN,
    "cached": BLUE,
    "stale": YELLOW,
    "timeout": ORANGE,
    "error": RED,
    "rejected": DARK_RED,
    "disabled": PURPLE,
    "skipped": GREY,
}
OUTCOME_COLOURS = {"success": GREEN, "error": RED, "timeout": ORANGE, "cancelled": GREY}
CACHE_COLOURS = {"hit": GREEN, "shared": BLUE, "stale": YELLOW, "miss": ORANGE, "bypass": GREY}
WORKER_COLOURS = {"busy": BLUE, "idle": GREEN, "abandoned": RED}
WEBHOOK_COLOURS = {
    "accepted": GREEN,
    "duplicate": GREY,
    "unauthorized": RED,
    "invalid": ORANGE,
    "unknown_scanner": YELLOW,
    "refused": DARK_RED,
}
RUN_COLOURS = {"complete": GREEN, "partial": YELLOW, "failed": RED}
