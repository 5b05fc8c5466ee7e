"""Run a fleet sequentially and concurrently, and compare what was found and how long it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from resilient_scan._text import counted
from resilient_scan.cli.choice import Request
from resilient_scan.cli.fleet import open_fleet
from resilient_scan.results import RunReport, ScanResult, plain


class Pair(msgspec.Struct, frozen=True):
    """One scanner's scans in both runs."""

    sequential: ScanResult
    concurrent: ScanResult

    @property
    def answered(self) -> bool:
        """Whether there is something to compare."""
        return self.sequential.status.answered and self.concurrent.status.answered

    @property
    def same(self) -> bool:
        """Whether both answered with the same candidates in the same order."""
        return self.answered and _lines(self.sequential) == _lines(self.concurrent)

    @property
    def verdict(self) -> str:
        """The comparison in a word or two."""
        if not self.answered:
            return "no answer"
        return "same" if self.same else "DIFFERENT"

    def differences(self) -> Iterator[str]:
        """Yield a line for everything that only one of the two has."""
        name, one, other = self.sequential.scanner, self.sequential, self.concurrent
        for how, result in (("sequentially", one), ("concurrently", other)):
            if not result.status.answered:
                why = "" if result.error is None else f": {result.error.kind}: {result.error.message}"
                yield f"{name}: {how} it ended {result.status.value}{why}"
        if not self.answered or self.same:
            return
        left, right = Counter(_lines(one)), Counter(_lines(other))
        yield from (f"{name}: only sequentially: {line}" for line in (left - right).elements())
        yield from (f"{name}: only concurrently: {line}" for line in (right - left).elements())
        if left == right:
            yield f"{name}: the same candidates in another order"


class Verified(msgspec.Struct, frozen=True):
    """Both runs of one fleet.

    Attributes:
        pairs: by scanner, in the given order.
        sequential, concurrent: seconds that the runs took.
        data: the bundled data that answered, or an empty text.
    """

    pairs: tuple[Pair, ...]
    sequential: float
    concurrent: float
    data: str

    @property
    def same(self) -> bool:
        """Whether every scanner answered twice with the same candidates."""
        return all(pair.same for pair in self.pairs)

    @property
    def differences(self) -> Sequence[str]:
        """A line for every difference."""
        return [line for pair in self.pairs for line in pair.differences()]

    @property
    def gain(self) -> str:
        """A sentence about how much time was gained."""
        factor = self.sequential / self.concurrent if self.concurrent else 1.0
        saved = self.sequential - self.concurrent
        text = f"sequentially {self.sequential:.2f}s, concurrently {self.concurrent:.2f}s: "
        if factor < 1.05:
            return f"{text}nothing gained"
        return f"{text}{saved:.2f}s gained, {factor:.1f} times as fast"


def verify(request: Request) -> Verified:
    """Run the fleet twice, each time with a new runner, so that no cache is shared.

    The concurrent run comes first, so that the cost of a first run (connections, imports) does not count as gain.

    Raises:
        ConfigError: as `open_fleet`.
    """
    concurrent, data = _run(request, sequential=False)
    sequential, _ = _run(request, sequential=True)
    pairs = tuple(Pair(result, concurrent.results[name]) for name, result in sequential.results.items())
    return Verified(pairs, sequential.duration, concurrent.duration, data)


def summary(verified: Verified) -> str:
    """Return one line: how many found the same."""
    same = sum(pair.same for pair in verified.pairs)
    return f"{same} of {counted(len(verified.pairs), 'scanner')} found the same both times"


def _run(request: Request, *, sequential: bool) -> tuple[RunReport, str]:
    with open_fleet(msgspec.structs.replace(request, sequential=sequential, alone=True)) as fleet:
        return fleet.run(), "" if fleet.demo is None else fleet.demo.description


def _lines(result: ScanResult) -> list[str]:
    return [_line(candidate) for candidate in result.candidates]


def _line(candidate: Any) -> str:
    """Write a candidate so that equal ones have equal texts."""
    data = plain(candidate)
    if isinstance(data, dict):
        return ", ".join(f"{key}={value!r}" for key, value in sorted(data.items()))
    return repr(data)
