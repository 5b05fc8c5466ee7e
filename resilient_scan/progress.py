"""Show reports and lists to people: tables on a terminal, aligned plain lines everywhere else.

The only file that knows rich. What is shown came from outside sources, so it is drawn without markup and without
control characters: a headline must not be able to drive a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resilient_scan.outcome import ScanResult, Status, plain

MAX_CANDIDATES: Final = 40
STYLES: Final = {
    Status.COMPLETED: "green",
    Status.CACHED: "green",
    Status.STALE: "yellow",
    Status.TIMEOUT: "red",
    Status.ERROR: "red",
    Status.REJECTED: "magenta",
    Status.DISABLED: "dim",
    Status.SKIPPED: "dim",
}


def draw(columns: Sequence[str], rows: Iterable[Sequence[str]], stream: TextIO, *, right: Sequence[str] = ()) -> None:
    """Write rows under their headings to `stream`.

    Args:
        columns: the headings.
        rows: one text per column; statuses are coloured on a terminal that wants colours.
        stream: where to; a terminal gets a table that fits its width, anything else lines that are never cut.
        right: headings of the columns that are aligned to the right.
    """
    cleaned = [[_clean(cell) for cell in row] for row in rows]
    if stream.isatty():
        _draw_table(columns, cleaned, stream, right)
    else:
        stream.writelines(_plain_lines(columns, cleaned, right))


def show_results(results: Iterable[ScanResult], stream: TextIO) -> None:
    """Write one line per scan: how it ended, what it found, how long it took, and what went wrong."""
    columns = ("scanner", "pipeline", "status", "candidates", "duration", "note")
    rows = [
        (r.scanner, r.pipeline, r.status.value, str(len(r.candidates)), seconds(r.duration), note(r)) for r in results
    ]
    draw(columns, rows, stream, right=("candidates", "duration"))


def show_candidates(candidates: Sequence[Any], stream: TextIO) -> None:
    """Write one line per candidate, at most 40 of them."""
    rows = [_candidate_row(plain(candidate)) for candidate in candidates[:MAX_CANDIDATES]]
    draw(("ticker", "found by", "priority", "context"), rows, stream)
    if len(candidates) > MAX_CANDIDATES:
        stream.write(f"... and {len(candidates) - MAX_CANDIDATES} more; --json has them all\n")


def seconds(value: float) -> str:
    """Return a duration as people write it: `0.4ms`, `12ms`, `1.50s`, `95s`."""
    if value < 0.001:
        return f"{value * 1000:.1f}ms"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    return f"{value:.2f}s" if value < 10 else f"{value:.0f}s"


def note(result: ScanResult) -> str:
    """Return what a reader should know beside the status, or an empty text."""
    parts = []
    if result.error is not None:
        parts.append(f"{result.error.kind}: {result.error.message}")
    if result.partial:
        parts.append("partial")
    if result.dropped:
        parts.append(f"{result.dropped} invalid dropped")
    if result.age:
        parts.append(f"{seconds(result.age)} old")
    if result.attempts > 1:
        parts.append(f"{result.attempts} attempts")
    return ", ".join(parts)


def _candidate_row(candidate: Any) -> tuple[str, str, str, str]:
    """Return the columns of a `Candidate`; a candidate of another type is shown whole, as its context."""
    if not isinstance(candidate, Mapping) or "ticker" not in candidate:
        return "", "", "", str(candidate)
    ticker, source, priority, context = (
        str(candidate.get(key, "")) for key in ("ticker", "source", "priority", "context")
    )
    return ticker, source, priority, context


def _clean(text: str) -> str:
    """Return `text` on one line and without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _plain_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        yield "  ".join(cells).rstrip() + "\n"


def _draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO, right: Sequence[str]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        styled = (Text(cell, style=_style(name, cell)) for name, cell in zip(columns, row, strict=True))
        table.add_row(*styled)
    Console(file=stream, color_system=None if os.environ.get("NO_COLOR") else "auto").print(table)


def _style(column: str, cell: str) -> str:
    return STYLES.get(Status(cell), "") if column == "status" else ""
