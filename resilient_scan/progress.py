"""Show runs, reports and lists to people: tables on a terminal, aligned plain lines everywhere else.

The only file that knows rich. What is shown came from outside sources, so it is drawn without markup and without
control characters: a headline must not be able to drive a terminal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resilient_scan.events import AttemptEnded, Event, RunEnded, RunStarted, ScanEnded, ScannersRegistered
from resilient_scan.outcome import ScanResult, Status, plain
from resilient_scan.report import Merged
from resilient_scan.words import clean

MAX_CANDIDATES: Final = 40
MAX_ROWS: Final = 20
PER_SECOND: Final = 4
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
    cleaned = [[clean(cell) for cell in row] for row in rows]
    if stream.isatty():
        _draw_table(columns, cleaned, stream, right)
    else:
        stream.writelines(_plain_lines(columns, cleaned, right))


def show_results(results: Iterable[ScanResult], stream: TextIO) -> None:
    """Write one line per scan: how it ended, what it found, how long it took, and what went wrong."""
    columns = ("scanner", "pipeline", "status", "candidates", "duration", "note")
    rows = [
        (r.scanner, r.pipeline, r.status.value, str(len(r.candidates)), elapsed(r.duration), note(r)) for r in results
    ]
    draw(columns, rows, stream, right=("candidates", "duration"))


def show_candidates(candidates: Sequence[Any], stream: TextIO) -> None:
    """Write one line per candidate, at most 40 of them."""
    rows = [_candidate_row(plain(candidate)) for candidate in candidates[:MAX_CANDIDATES]]
    draw(("ticker", "found by", "priority", "context"), rows, stream)
    if len(candidates) > MAX_CANDIDATES:
        stream.write(f"... and {len(candidates) - MAX_CANDIDATES} more; --json has them all\n")


def show_merged(found: Sequence[Merged], stream: TextIO) -> None:
    """Write one line per thing that was found, at most 40 of them."""
    rows = [(one.ticker, ", ".join(one.sources), one.priority, "; ".join(one.contexts)) for one in found]
    draw(("ticker", "found by", "priority", "context"), rows[:MAX_CANDIDATES], stream)
    if len(found) > MAX_CANDIDATES:
        stream.write(f"... and {len(found) - MAX_CANDIDATES} more; --json has them all\n")


def is_live(stream: TextIO) -> bool:
    """Say whether a table that changes can be drawn on `stream`."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


class LiveTable:
    """A listener that draws a run while it goes on, and wipes the picture away when the run is over.

    A context manager: it leaves no picture behind, whatever ends the run. It is drawn four times a second by a thread
    of its own, from what the events have told, so a fast fleet is not slowed down.

    Args:
        stream: a terminal.
    """

    events: tuple[type[Event], ...] = (ScannersRegistered, RunStarted, AttemptEnded, ScanEnded, RunEnded)

    def __init__(self, stream: TextIO) -> None:
        self._lock = threading.Lock()  # the run's thread writes the rows while the table's thread draws them
        self._names: tuple[str, ...] = ()
        self._ended: dict[str, ScanResult] = {}
        self._notes: dict[str, str] = {}
        self._began = 0.0
        self._live = Live(
            get_renderable=self._drawn,
            console=_console(stream),
            refresh_per_second=PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        with self._lock:
            match event:
                case ScannersRegistered():
                    self._names = tuple(scanner.name for scanner in event.scanners)
                case AttemptEnded(name, attempt, outcome, _, error) if outcome != "success":
                    why = "" if error is None else f": {error.kind}: {error.message}"
                    self._notes[name] = f"attempt {attempt} ended: {outcome}{why}"
                case ScanEnded():
                    self._ended[event.result.scanner] = event.result
        # Outside the lock: to start and to stop draws the table once, which takes the lock.
        if isinstance(event, RunStarted):
            self._ended, self._notes, self._began = {}, {}, time.monotonic()
            self._live.start(refresh=True)
        elif isinstance(event, RunEnded):
            self._live.stop()

    def _drawn(self) -> Group:
        with self._lock:
            ended, notes = dict(self._ended), dict(self._notes)
        bar = Table.grid(padding=(0, 1))
        took = elapsed(time.monotonic() - self._began)
        count = Text(f"{len(ended)} of {len(self._names)} scans ended, {took}")
        bar.add_row(ProgressBar(max(1, len(self._names)), len(ended), width=30), count)
        rows = [live_row(name, ended.get(name), notes.get(name, "")) for name in shown(self._names, ended)]
        table = _table(
            ("scanner", "status", "candidates", "duration", "note"), rows, ("candidates", "duration"), wrap=False
        )
        hidden = len(self._names) - len(rows)
        return Group(bar, table, *([Text(f"... and {hidden} more")] if hidden else []))


def shown(names: Sequence[str], ended: Mapping[str, ScanResult]) -> list[str]:
    """Return the scanners that have a row, in the given order: all, or of many those first that have not ended."""
    first = sorted(names, key=lambda name: name in ended)[:MAX_ROWS]
    return [name for name in names if name in set(first)] if len(names) > MAX_ROWS else list(names)


def live_row(name: str, result: ScanResult | None, note_so_far: str) -> list[str]:
    """Return the cells of a scanner whose scan has ended, or has not."""
    if result is None:
        return [name, "...", "", "", clean(note_so_far)]
    return [
        name,
        result.status.value,
        str(len(result.candidates)),
        elapsed(result.duration),
        clean(note(result)),
    ]


def elapsed(value: float) -> str:
    """Return a duration as people write it: `<0.1ms`, `0.4ms`, `12ms`, `1.50s`, `95s`."""
    if value < 0.0001:
        return "<0.1ms" if value > 0 else "0ms"
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
    if result.suspicious:
        parts.append(f"suspicious: {result.suspicious}")
    if result.dropped:
        parts.append(f"{result.dropped} invalid dropped")
    if result.age:
        parts.append(f"{elapsed(result.age)} old")
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


def _plain_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        yield "  ".join(cells).rstrip() + "\n"


def _draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO, right: Sequence[str]) -> None:
    _console(stream).print(_table(columns, rows, right))


def _console(stream: TextIO) -> Console:
    return Console(file=stream, color_system=None if os.environ.get("NO_COLOR") else "auto")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], *, wrap: bool = True) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=not wrap and name != "note")
    for row in rows:
        cells = [Text(cell, style=_style(name, cell)) for name, cell in zip(columns, row, strict=True)]
        if not wrap:  # one line a row; of what has no room the note gives way first
            for cell in cells:
                cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def _style(column: str, cell: str) -> str:
    return STYLES.get(Status(cell), "") if column == "status" and cell in set(Status) else ""
