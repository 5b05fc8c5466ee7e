"""A few shapes, written as SVG: enough for the pictures in the documentation, and the same bytes each time.

The pictures have a background and fonts of their own, so they can be read on a light and on a dark page, and they load
nothing. A text that is wider than its box is an error.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

INK: Final = "#1f2937"
QUIET: Final = "#6b7280"
LINE: Final = "#94a3b8"
PAPER: Final = "#ffffff"
PLAIN, BLUE, GREEN, AMBER, RED, GREY = "#f8fafc", "#dbeafe", "#dcfce7", "#fef3c7", "#fee2e2", "#e5e7eb"
SANS: Final = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
WIDTHS: Final = {SANS: 0.5, MONO: 0.61}  # of an average letter, as a share of the font's size

Point = tuple[float, float]


class Picture:
    """A picture of a fixed size; every method adds a shape.

    Args:
        width, height: in pixels.
        title: what the picture shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._shapes: list[str] = []

    def text(
        self,
        at: Point,
        words: str,
        *,
        size: float = 13,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
        mono: bool = False,
        room: float | None = None,
    ) -> None:
        """Write one line; `room` is the width that it may have."""
        font = MONO if mono else SANS
        if room is not None and len(words) * size * WIDTHS[font] * (1.06 if bold else 1) > room:
            raise ValueError(f"{words!r} is wider than {room:g}")
        weight = ' font-weight="600"' if bold else ""
        x, y = at
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{font}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{html.escape(words)}</text>'
        )

    def frame(self, at: Point, size: Point, *, fill: str = PLAIN, line: str = LINE, dashed: bool = False) -> None:
        """Draw a box with round corners."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<rect x="{at[0]:g}" y="{at[1]:g}" width="{size[0]:g}" height="{size[1]:g}" rx="7" fill="{fill}" '
            f'stroke="{line}" stroke-width="1.2"{dash}/>'
        )

    def box(
        self,
        at: Point,
        size: Point,
        title: str,
        lines: Sequence[str] = (),
        *,
        fill: str = BLUE,
        mono: bool = False,
        dashed: bool = False,
    ) -> None:
        """Draw a box with a title and lines of text in its middle."""
        self.frame(at, size, fill=fill, dashed=dashed)
        x, room = at[0] + size[0] / 2, size[0] - 10
        y = at[1] + size[1] / 2 - len(lines) * 8.5 + 5
        self.text((x, y), title, anchor="middle", bold=True, mono=mono, size=13, room=room)
        for number, line in enumerate(lines, 1):
            self.text((x, y + 17 * number), line, anchor="middle", size=11.5, colour=QUIET, room=room)

    def pill(self, middle: Point, words: str, *, fill: str = GREY) -> None:
        """Draw a status."""
        width = len(words) * 12 * WIDTHS[MONO] + 18
        x, y = middle[0] - width / 2, middle[1] - 11
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="22" rx="11" fill="{fill}" stroke="{LINE}"/>'
        )
        self.text((middle[0], middle[1] + 4), words, size=12, anchor="middle", mono=True)

    def arrow(self, *points: Point, label: str = "", at: Point | None = None, dashed: bool = False) -> None:
        """Draw an arrow along points, with a label at a point of its own."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<path d="M {path}" fill="none" stroke="{QUIET}" stroke-width="1.5" marker-end="url(#tip)"{dash}/>'
        )
        if label:
            for number, line in enumerate(label.split("\n")):
                x, y = at or points[0]
                self.text((x, y + 15 * number), line, size=11.5, colour=QUIET, anchor="middle")

    def line(self, start: Point, end: Point, *, colour: str = LINE, dashed: bool = False) -> None:
        """Draw a line."""
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._shapes.append(
            f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}" stroke="{colour}" '
            f'stroke-width="1.2"{dash}/>'
        )

    def bar(self, at: Point, size: Point, words: str = "", *, fill: str = BLUE, dashed: bool = False) -> None:
        """Draw a piece of a time line, with its name inside."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._shapes.append(
            f'<rect x="{at[0]:g}" y="{at[1]:g}" width="{size[0]:g}" height="{size[1]:g}" rx="3" fill="{fill}" '
            f'stroke="{LINE}"{dash}/>'
        )
        if words:
            middle = (at[0] + size[0] / 2, at[1] + size[1] / 2 + 4)
            self.text(middle, words, size=12, anchor="middle", room=size[0] - 4)

    def svg(self) -> str:
        """Return the picture."""
        width, height = self._size
        shapes = "\n".join(self._shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">\n<title>{html.escape(self._title)}</title>\n'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M 0 0.5 L 8 4 L 0 7.5 z" fill="{QUIET}"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>\n{shapes}\n</svg>\n'
        )
