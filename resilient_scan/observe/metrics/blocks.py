"""What a metric says when it is collected: blocks of lines that differ only in some labels and in their numbers.

All series of a scanner in one metric (its scans by status, the buckets of its durations) are one block. The lines of a
block look the same for every scanner, so `render` writes those of many scanners in a few steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

Labels = tuple[str, ...]
Line = tuple[str, dict[str, str]]
"""What comes after a metric's name, and the labels that have the same values in all blocks, such as `le`."""


class Shape:
    """What the lines of a metric's blocks look like.

    Args:
        name: the metric's, without `_total`.
        labels: the names of the labels that each block has values of its own for.
        lines: of a block.
    """

    def __init__(self, name: str, labels: Labels, lines: Sequence[Line]) -> None:
        self.name, self.labels, self.lines = name, labels, tuple(lines)

    @cached_property
    def cut(self) -> Cut:
        """The lines as they are written, cut into pieces."""
        order, step = sorted(self.labels), 2 * len(self.labels) + 2
        places = tuple(slice(1 + 2 * order.index(label), None, step) for label in self.labels)
        return Cut([piece for line in self.lines for piece in self._cut(line)], places, slice(step - 1, None, step))

    def _cut(self, line: Line) -> list[str]:
        suffix, fixed = line
        pieces = [f"\n{self.name}{suffix}"]
        for number, label in enumerate(sorted((*self.labels, *fixed))):
            pieces[-1] += f"{',' if number else '{'}{label}="
            if label in fixed:
                pieces[-1] += written(fixed[label])
            else:
                pieces += ["", ""]
        pieces[-1] += "} " if self.labels or fixed else " "
        return [*pieces, ""]


class Cut(NamedTuple):
    """A block's lines in pieces, every other of which is empty: there belongs what differs from block to block.

    The pieces of several blocks can be put together, and the places then are those in all of them.

    Attributes:
        pieces: of all lines, each of which begins with a line break.
        places: of the values of each label.
        numbers: the places of the numbers.
    """

    pieces: list[str]
    places: tuple[slice, ...]
    numbers: slice


Block = tuple[Shape, Labels, Sequence[float], Sequence[Exemplar | None]]
"""A shape; the values of its labels; the number of each line; and the exemplar of each, or nothing, for all blocks of
the shape, where there can be none."""


class Collected(Metric):
    """What one metric says now, as prometheus_client's encoders and parsers know it.

    Args:
        name: without `_total`.
        documentation, kind: as in prometheus_client.
        blocks: returns all that it says; called with whether exemplars are wanted.
    """

    def __init__(self, name: str, documentation: str, kind: str, blocks: Callable[[bool], Iterable[Block]]) -> None:
        super().__init__(name, documentation, kind)
        del self.samples  # an attribute of the base class; what is below is found instead
        self.blocks = blocks

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """All samples with their full names and labels."""
        return [
            Sample(self.name + suffix, {**dict(zip(shape.labels, own, strict=True)), **fixed}, number, None, exemplar)
            for shape, own, numbers, exemplars in self.blocks(True)
            for (suffix, fixed), number, exemplar in zip(
                shape.lines, numbers, exemplars or (None,) * len(numbers), strict=True
            )
        ]


def written(value: str) -> str:
    """Return a label's value as it is written, in quotes."""
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


class _Scrape(threading.local):
    done: set[Callable[[], object]] | None = None


_scrape = _Scrape()


@contextmanager
def one_scrape() -> Iterator[None]:
    """Have what is pending counted once in all that is collected on this thread, not once for each metric.

    Besides its cost, that would show a later moment in each metric than in the one before.
    """
    _scrape.done = set()
    try:
        yield
    finally:
        _scrape.done = None


def bring_up_to_date(before: Callable[[], object]) -> None:
    """Call what counts, unless that was done in this scrape."""
    done = _scrape.done
    if done is None:
        before()
    elif before not in done:
        done.add(before)
        before()
