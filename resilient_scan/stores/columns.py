"""Attempts in columns: how they are packed into a block of one scanner and day, and what a block tells.

An attempt is four small numbers: when it began (in milliseconds of its UTC day), how long it took, how it ended, and
which attempt of its execution it was. Row by row these are noise to a compressor. Column by column, and each column
split into its low and high bytes, most bytes are the same: a scanner that runs once a minute takes about three bytes an
attempt, of which two are the low bytes of the begin and of the duration.

Durations have three significant digits, as decimals: a timeout after 10 s stays 10 s, and 0.41234 s becomes 0.412 s.

A thread that comes back after its attempt has timed out adds a row of its own, `returned`, with the begin and the
number of that attempt, and the seconds until it was back: blocks only grow, and nobody has to find an older row.
"""

from __future__ import annotations

import math
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, NamedTuple

import msgspec

from resilient_scan.events import CANCELLED, ERROR, SUCCESS, TIMEOUT

SCHEMA: Final = 1
DAY: Final = 86_400.0
DAY_MS: Final = 86_400_000
RETURNED: Final = "returned"
OUTCOMES: Final = (SUCCESS, ERROR, TIMEOUT, CANCELLED, RETURNED)  # by their number in a block: add, never reorder
MAX_ROWS: Final = 500_000  # of one scanner and day: the newest
_CODES: Final = {outcome: code for code, outcome in enumerate(OUTCOMES)}
_TIMEOUT, _CANCELLED, _RETURNED = _CODES[TIMEOUT], _CODES[CANCELLED], _CODES[RETURNED]
_ROW_BYTES: Final = 9  # 4 for the begin, 2 for the duration, 2 for the number, 1 for the outcome
_WIDEST: Final = 0xFFFF


class Unreadable(Exception):
    """A block is damaged, or another version wrote it."""


class Row(NamedTuple):
    """One attempt.

    Attributes:
        begin: epoch seconds.
        latency: seconds that it took.
        outcome: `success`, `error`, `timeout` or `cancelled`.
        number: counted from 1.
        returned: seconds from its begin until its thread was back, if that was after its timeout.
    """

    begin: float
    latency: float
    outcome: str
    number: int
    returned: float | None = None


class Columns:
    """Attempts of one scanner and UTC day, in the order of their begins once `ordered` has put them there."""

    __slots__ = ("begins", "numbers", "outcomes", "spans")

    def __init__(self) -> None:
        self.begins = array("I")  # milliseconds of the day
        self.spans = array("H")  # see `span_code`
        self.numbers = array("H")
        self.outcomes = array("B")

    def __len__(self) -> int:
        return len(self.begins)

    def add(self, begin_ms: int, seconds: float, outcome: str, number: int) -> None:
        """Add an attempt; a number above 65,535 counts as that."""
        self.begins.append(begin_ms)
        self.spans.append(span_code(seconds))
        self.numbers.append(min(number, _WIDEST))
        self.outcomes.append(_CODES[outcome])

    def extend(self, other: Columns) -> None:
        """Add all attempts of another block."""
        for mine, theirs in zip(self._all(), other._all(), strict=True):
            mine.extend(theirs)

    def ordered(self) -> Columns:
        """Return the same attempts in the order of their begins, the newest 500,000 of them."""
        begins = self.begins
        if all(map(int.__le__, begins, begins[1:])):
            return self if len(self) <= MAX_ROWS else self._picked(range(len(self) - MAX_ROWS, len(self)))
        return self._picked(sorted(range(len(self)), key=begins.__getitem__)[-MAX_ROWS:])

    def _picked(self, places: Sequence[int]) -> Columns:
        picked = Columns()
        for mine, theirs in zip(picked._all(), self._all(), strict=True):
            mine.extend([theirs[place] for place in places])
        return picked

    def cut(self, first: int, last: int) -> Columns:
        """Return the attempts from one place up to another."""
        part = Columns()
        for mine, theirs in zip(part._all(), self._all(), strict=True):
            mine.extend(theirs[first:last])
        return part

    def _all(self) -> tuple[array[int], ...]:
        return self.begins, self.spans, self.numbers, self.outcomes

    # what they tell

    def rows(self, day: int) -> Iterator[Row]:
        """Yield the attempts, each with what is known of its thread's return."""
        returned = {
            (begin, number): span
            for begin, span, number, outcome in zip(*self._all(), strict=True)
            if outcome == _RETURNED
        }
        for begin, span, number, outcome in zip(*self._all(), strict=True):
            if outcome != _RETURNED:
                late = returned.get((begin, number)) if outcome == _TIMEOUT else None
                yield Row(
                    day * DAY + begin / 1000,
                    span_seconds(span),
                    OUTCOMES[outcome],
                    number,
                    None if late is None else span_seconds(late),
                )

    def executions(self) -> tuple[int, float]:
        """Return how many executions these attempts are, and how many seconds all of them took.

        The waits between two attempts count: they hold the worker. A wait is known where the second attempt follows
        the first in this block; where executions of one scanner overlap, it may not be, and then counts nothing.
        """
        count, spent, ended, last = 0, 0.0, 0.0, 0
        for begin, span, number, outcome in zip(*self._all(), strict=True):
            if outcome == _RETURNED:
                continue
            took = span_seconds(span)
            if number == 1:
                count += 1
            elif number == last + 1:
                spent += max(0.0, begin / 1000 - ended)
            spent += took
            ended, last = begin / 1000 + took, number
        return count, spent


# durations


def span_code(seconds: float) -> int:
    """Return the number that stands for a duration in a block: three digits and a power of ten.

    The numbers are in the order of the durations, so that quantiles are found without turning one back.
    """
    if not 5e-7 <= seconds < math.inf:  # below a microsecond, or no number
        return 0
    digits = f"{max(seconds, 1e-6):.2e}"
    return (int(digits[5:]) + 6) * 900 + int(digits[0] + digits[2:4]) - 99


def span_seconds(code: int) -> float:
    """Return the duration that a number stands for."""
    if not code:
        return 0.0
    power, digits = divmod(code - 1, 900)
    return (digits + 100) / 10 ** (8 - power) if power <= 8 else float((digits + 100) * 10 ** (power - 8))


# bytes


class _Part(msgspec.Struct, frozen=True, array_like=True):
    """Whose attempts, of which day (counted from 1970), and how many."""

    name: str
    day: Annotated[int, msgspec.Meta(ge=0)]
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROWS)]


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    schema: int
    parts: tuple[_Part, ...]
    columns: bytes


_encode, _decoder = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Packed)

Parts = Mapping[tuple[str, int], Columns]
"""Attempts by scanner and day."""


def packed(parts: Parts) -> bytes:
    """Return attempts as bytes that know whether they are whole; each scanner's and day's in order."""
    heads, joined = [], Columns()
    for (name, day), columns in parts.items():
        heads.append(_Part(name, day, len(columns)))
        begins = columns.begins
        joined.begins.extend(begins[:1])
        joined.begins.extend(map(int.__sub__, begins[1:], begins))
        joined.spans.extend(columns.spans)
        joined.numbers.extend(columns.numbers)
        joined.outcomes.extend(columns.outcomes)
    # A column of each byte, and a code of its own for each column (`Z_BLOCK`): that saves a tenth.
    press = zlib.compressobj()
    columns_of_bytes = [plane for column in joined._all() for plane in _planes(column)]  # noqa: SLF001 - of this file
    pressed = b"".join(press.compress(plane) + press.flush(zlib.Z_BLOCK) for plane in columns_of_bytes)
    data = _encode(_Packed(SCHEMA, tuple(heads), pressed + press.flush()))
    return zlib.crc32(data).to_bytes(4, "little") + data


def unpacked(data: bytes) -> dict[tuple[str, int], Columns]:
    """Return the attempts that `packed` has made bytes of.

    Raises:
        Unreadable: they are not as they were written, or another version wrote them.
    """
    try:
        if zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
            raise Unreadable("it does not fit its checksum")
        stored = _decoder.decode(memoryview(data)[4:])
        if stored.schema != SCHEMA:
            raise Unreadable(f"its form is {stored.schema}, this version knows {SCHEMA}")
        return _parts(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, zlib.error, ValueError, OverflowError) as error:
        raise Unreadable(str(error)) from None


def _parts(stored: _Packed) -> dict[tuple[str, int], Columns]:
    count = sum(part.count for part in stored.parts)
    # Bounded: a few bytes that somebody else has put into a store can be made to swell to gigabytes.
    press = zlib.decompressobj()
    raw = press.decompress(stored.columns, count * _ROW_BYTES + 1)
    if len(raw) != count * _ROW_BYTES or not press.eof:
        raise ValueError("its columns have another length")
    joined, at = Columns(), 0
    for column in joined._all():  # noqa: SLF001 - of this file
        width = column.itemsize
        column.frombytes(_woven([raw[at + count * plane : at + count * (plane + 1)] for plane in range(width)]))
        if sys.byteorder == "big":
            column.byteswap()
        at += count * width
    if count and max(joined.outcomes) >= len(OUTCOMES):
        raise ValueError("an outcome is unknown")
    found, first = {}, 0
    for part in stored.parts:
        columns = joined.cut(first, first + part.count)
        first += part.count
        columns.begins = array("I", _summed(columns.begins))
        found[part.name, part.day] = columns
    return found


def _summed(steps: Iterable[int]) -> Iterator[int]:
    begin = 0
    for step in steps:
        begin += step
        if begin >= DAY_MS:
            raise ValueError("a day is longer than a day")
        yield begin


def _planes(column: array[int]) -> list[bytes]:
    """Return the bytes of a column, all lowest ones first."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    raw = column.tobytes()
    return [raw[plane :: column.itemsize] for plane in range(column.itemsize)]


def _woven(planes: Sequence[bytes]) -> bytes:
    raw = bytearray(len(planes) * len(planes[0]))
    for place, plane in enumerate(planes):
        raw[place :: len(planes)] = plane
    return bytes(raw)


# summaries


class DaySummary(msgspec.Struct, frozen=True):
    """What the attempts of one scanner and day were like.

    Attributes:
        day: in UTC, such as `2026-11-24`.
        attempts: how many there were.
        retries: how many of them were not the first of their execution.
        errors, timeouts, cancelled: how many of them ended like that.
        p50, p90, p99, longest: seconds that half of them, nine tenths, 99 of 100 and all of them took at most, without
            those that were cancelled; a timeout took as long as it was waited for. None: there was no other.
        returned: threads that came back after their attempt had timed out.
        returned_after: seconds from the begin of the attempt until half of them were back; None: none came back.
    """

    day: str
    attempts: int
    retries: int
    errors: int
    timeouts: int
    cancelled: int
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None
    returned: int
    returned_after: float | None


def summarized(day: int, columns: Columns) -> DaySummary:
    """Summarize the attempts of a day."""
    outcomes = columns.outcomes
    late = sorted(s for s, outcome in zip(columns.spans, outcomes, strict=True) if outcome == _RETURNED)
    spans = sorted(
        s for s, outcome in zip(columns.spans, outcomes, strict=True) if outcome not in (_RETURNED, _CANCELLED)
    )
    retries = sum(n > 1 for n, outcome in zip(columns.numbers, outcomes, strict=True) if outcome != _RETURNED)
    return DaySummary(
        day=datetime.fromtimestamp(day * DAY, UTC).date().isoformat(),
        attempts=len(columns) - len(late),
        retries=retries,
        errors=outcomes.count(_CODES[ERROR]),
        timeouts=outcomes.count(_TIMEOUT),
        cancelled=outcomes.count(_CANCELLED),
        p50=_quantile(spans, 0.5),
        p90=_quantile(spans, 0.9),
        p99=_quantile(spans, 0.99),
        longest=_quantile(spans, 1.0),
        returned=len(late),
        returned_after=_quantile(late, 0.5),
    )


def _quantile(codes: Sequence[int], share: float) -> float | None:
    """Return the least duration that a share of them does not exceed."""
    return span_seconds(codes[max(0, math.ceil(share * len(codes)) - 1)]) if codes else None


class Measured(msgspec.Struct, frozen=True):
    """How long a scanner's attempts really took, over several days; for the linter.

    Attributes:
        days: how many days they are of, up to today.
        spans: the seconds of those that ended by themselves, ascending.
        cut: the seconds after which others timed out, ascending: nobody knows how long these would have taken.
    """

    days: int
    spans: tuple[float, ...]
    cut: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many attempts there were."""
        return len(self.spans) + len(self.cut)

    def quantile(self, share: float) -> float:
        """Return the least duration that a share of them does not exceed; infinite where nobody knows."""
        place = max(0, math.ceil(share * self.count) - 1)
        return self.spans[place] if place < len(self.spans) else math.inf

    def longer_than(self, seconds: float) -> int:
        """Return how many are known to have taken that long, or longer."""
        return sum(len(each) - bisect_left(each, seconds) for each in (self.spans, self.cut))


def measured(days: Mapping[int, Columns], over: int) -> Measured:
    """Return how long the attempts of several days took; those that were cancelled say nothing about that."""
    spans: dict[str, list[float]] = {outcome: [] for outcome in OUTCOMES}
    for day, columns in days.items():
        for row in columns.rows(day):
            spans[row.outcome].append(row.latency)
    return Measured(over, tuple(sorted(spans[SUCCESS] + spans[ERROR])), tuple(sorted(spans[TIMEOUT])))
