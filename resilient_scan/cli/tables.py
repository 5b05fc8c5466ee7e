"""Draw tables: fitted to a terminal's width, as aligned plain lines everywhere else. Knows rich.

No word is broken on a terminal that has room for it. The columns but the last are never wrapped; the last one, which
holds sentences, gets the rest of the width. If that is too little for its longest word, it goes below its row; if even
that does not fit, columns that a reader can do without are left out.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resilient_scan._text import clean
from resilient_scan.results import Status

GAP: Final = 2  # between two columns
INDENT: Final = 4  # of what goes below its row
NARROW: Final = 20  # a last column that is narrower would be a strip of single words
LONGEST_WORD: Final = 30  # in the last column; what is longer (an address, say) may be broken
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
Rows = Sequence[Sequence[str]]


def draw(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    stream: TextIO,
    *,
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Write rows under their headings to `stream`.

    Args:
        columns: the headings.
        rows: one text per column; statuses are coloured on a terminal that wants colours.
        stream: where to; a terminal gets a table that fits its width, anything else lines that are never cut.
        right: headings of the columns that are aligned to the right.
        spare: headings of the columns that are left out first where there is no room.
    """
    cleaned = [[clean(cell) for cell in row] for row in rows]
    if stream.isatty():
        _draw_table(columns, cleaned, stream, right, spare)
    else:
        stream.writelines(_plain_lines(columns, cleaned, right))


def write(sentence: str, stream: TextIO) -> None:
    """Write a line, which a terminal gets without broken words."""
    if sentence and stream.isatty():
        console_of(stream).print(Text(sentence))
    else:
        stream.write(f"{sentence}\n")


def console_of(stream: TextIO) -> Console:
    """Return what draws on a stream, as wide as the terminal is."""
    console = Console(file=stream, color_system=None if os.environ.get("NO_COLOR") else "auto")
    if stream.isatty() and not os.environ.get("COLUMNS"):
        # rich asks the standard descriptors only, of which none may lead to this stream
        console.width = os.get_terminal_size(stream.fileno()).columns or console.width
    return console


def live_table(columns: Sequence[str], rows: Rows, right: Sequence[str]) -> Table:
    """Return a table of one line per row; if there is not enough room, the note is cut first."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != "note")
    for row in rows:
        cells = _cells(columns, row)
        for cell in cells:
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def elapsed(value: float) -> str:
    """Write a duration the way people do: `<0.1ms`, `0.4ms`, `12ms`, `1.50s`, `95s`."""
    if value < 0.0001:
        return "<0.1ms" if value > 0 else "0ms"
    if value < 0.001:
        return f"{value * 1000:.1f}ms"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    return f"{value:.2f}s" if value < 10 else f"{value:.0f}s"


def _plain_lines(columns: Sequence[str], rows: Rows, right: Sequence[str]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        yield "  ".join(cells).rstrip() + "\n"


def _draw_table(columns: Sequence[str], rows: Rows, stream: TextIO, right: Sequence[str], spare: Sequence[str]) -> None:
    console = console_of(stream)
    beside = _width(_widths(columns, rows)) + GAP + _needed(columns, rows) <= console.width
    for name in () if beside else spare:
        if _width(_widths(columns, rows)) > console.width:
            columns, rows = _without(name, columns, rows)
    widths = _shrunk(_widths(columns, rows), console.width)
    if beside:
        rest = console.width - _width(widths) - GAP
        widths.append(min(rest, max(cell_len(row[-1]) for row in (columns, *rows))))
    rule = ["─" * width for width in widths] + [""] * (not beside)
    for row in (columns, rule, *rows):
        cells = _cells(columns, row)
        lines = _side_by_side(cells[: len(widths)], widths, columns, right, console)
        if not beside and row is not columns:
            below = cells[-1].wrap(console, max(1, console.width - INDENT))
            lines += [Text(" " * INDENT) + part for part in below if part]
        for line in lines:
            line.rstrip()
            console.print(line, style="bold" if row is columns else None)


def _side_by_side(
    cells: Sequence[Text], widths: Sequence[int], columns: Sequence[str], right: Sequence[str], console: Console
) -> list[Text]:
    """Return the lines of a row; a cell that is wider than its column takes several."""
    parts = [list(cell.wrap(console, width)) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for line in itertools.zip_longest(*parts):
        filled = [part or Text() for part in line]
        for part, width, name in zip(filled, widths, columns, strict=False):
            part.rstrip()
            part.align("right" if name in right else "left", width)
        lines.append(Text(" " * GAP).join(filled))
    return lines


def _shrunk(widths: list[int], room: int) -> list[int]:
    """Return widths that fit, if there is room for anything at all: the widest column gives way first."""
    while _width(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def _needed(columns: Sequence[str], rows: Rows) -> int:
    """Return how much room the last column needs next to the others: for its words, and to be no narrow strip."""
    texts = [row[-1] for row in (columns, *rows)]
    word = max(cell_len(word) for text in texts for word in text.split() or [""])
    return max(min(word, LONGEST_WORD), min(max(map(cell_len, texts)), NARROW))


def _without(name: str, columns: Sequence[str], rows: Rows) -> tuple[Sequence[str], Rows]:
    at = columns.index(name)
    cut, *others = ([*row[:at], *row[at + 1 :]] for row in (columns, *rows))
    return cut, others


def _widths(columns: Sequence[str], rows: Rows) -> list[int]:
    """Return how wide each column but the last is."""
    return [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)][:-1]


def _width(widths: Sequence[int]) -> int:
    """Return how wide these columns are, side by side."""
    return sum(widths) + GAP * (len(widths) - 1)


def _cells(columns: Sequence[str], row: Sequence[str]) -> list[Text]:
    return [Text(cell, style=_style(name, cell)) for name, cell in zip(columns, row, strict=True)]


def _style(column: str, cell: str) -> str:
    return STYLES.get(Status(cell), "") if column == "status" and cell in set(Status) else ""
