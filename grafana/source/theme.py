"""Define what looks alike wherever it is shown: colours, words for states, thresholds, units and heights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GREEN, YELLOW, AMBER, ORANGE, RED, DARK_RED = "green", "yellow", "semi-dark-yellow", "orange", "red", "dark-red"
BLUE, PURPLE, GREY = "blue", "purple", "text"

Steps = Sequence[tuple[float | None, str]]
"""The colours of a number: each from a value on; the first has no value."""
Words = Mapping[float, tuple[str, str]]
"""The words and colours for states that come as numbers."""

# Units, by Grafana's names
COUNT, SHARE, SECONDS = "none", "percentunit", "s"
AGO = "dtdurations"  # seconds in words; below 0 they are "3 minutes ago"

# Heights of rows, in Grafana's grid
FIGURES, STATES, LOW_GRAPHS, GRAPHS, TALL_GRAPHS, TABLE = 4, 4, 7, 8, 12, 12

# Thresholds
ALL_GREEN: Steps = ((None, GREEN),)
ANY_IS_ODD: Steps = ((None, GREEN), (1, ORANGE))
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
SHARE_OF_FAILURES: Steps = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
SHARE_OF_ANSWERS: Steps = ((None, RED), (0.9, YELLOW), (0.99, GREEN))
SHARE_OF_BUDGET: Steps = ((None, RED), (0.001, YELLOW), (0.5, GREEN))
NEAR_TIMEOUT = 20  # seconds; the built-in timeout is 30
SECONDS_OF_EXECUTIONS: Steps = ((None, GREEN), (10, YELLOW), (NEAR_TIMEOUT, RED))
SILENCE: Steps = ((None, RED), (-10_800, YELLOW), (-900, GREEN))  # seconds, below 0: how long ago
HEARTBEAT: Steps = ((None, RED), (-180, YELLOW), (-90, GREEN))

# Words for states, and what their colours mean: green is in service, amber on trial, red out of service, purple by hand
BREAKER: Words = {0: ("closed", GREEN), 1: ("half-open", AMBER), 2: ("OPEN", RED)}
STATE: Words = {0: ("enabled", GREEN), 1: ("probing", AMBER), 2: ("QUARANTINED", RED), 3: ("DISABLED by hand", PURPLE)}
PROVIDER: Words = {0: ("closed", GREEN), 1: ("half-open", AMBER), 2: ("held", YELLOW), 3: ("DOWN", RED)}
FLAPPING: Words = {0: ("steady", GREEN), 1: ("FLAPPING", ORANGE)}
VERDICT: Words = {  # what is wrong with a scanner, the worst last
    0: ("healthy", GREEN),
    1: ("suspicious answers", YELLOW),
    2: ("stale answers", YELLOW),
    3: ("DISABLED by hand", PURPLE),
    4: ("fails at times", YELLOW),
    5: ("FAILING", ORANGE),
    6: ("BREAKER OPEN", RED),
    7: ("QUARANTINED", RED),
    8: ("THREADS HANG", DARK_RED),
}
IN_TROUBLE = 4  # from this verdict on; what is disabled by hand is so on purpose

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
OUTCOME_COLOURS = {"success": GREEN, "error": RED, "timeout": ORANGE, "cancelled": GREY, "local": PURPLE}
CACHE_COLOURS = {"hit": GREEN, "shared": BLUE, "stale": YELLOW, "miss": ORANGE, "bypass": GREY}
WORKER_COLOURS = {"busy": BLUE, "idle": GREEN, "abandoned": RED}
METHOD_COLOURS = {"cooperative": GREEN, "cancel": BLUE, "sockets": YELLOW, "process": ORANGE, "abandoned": RED}
WEBHOOK_COLOURS = {
    "accepted": GREEN,
    "duplicate": GREY,
    "unauthorized": RED,
    "invalid": ORANGE,
    "unknown_scanner": YELLOW,
    "refused": DARK_RED,
    "overruled": PURPLE,
    "ignored": BLUE,
}
RUN_COLOURS = {"complete": GREEN, "partial": YELLOW, "failed": RED}
