"""Blocks of attempts: what is packed comes back, what is damaged is found out, and what a block tells is right."""

from __future__ import annotations

import math
import zlib
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan.stores.columns import (
    DAY,
    DAY_MS,
    MAX_ROWS,
    OUTCOMES,
    RETURNED,
    Columns,
    Measured,
    Row,
    Unreadable,
    measured,
    packed,
    span_code,
    span_seconds,
    summarized,
    unpacked,
)

Given = tuple[int, float, str, int]
ATTEMPTS = st.tuples(
    st.integers(0, DAY_MS - 1),
    st.floats(0, 1e6),
    st.sampled_from(OUTCOMES),
    st.integers(1, 70_000),
)
PARTS = st.dictionaries(st.tuples(st.text(max_size=5), st.integers(0, 40_000)), st.lists(ATTEMPTS, max_size=30))


def columns_of(*attempts: Given) -> Columns:
    columns = Columns()
    for attempt in attempts:
        columns.add(*attempt)
    return columns.ordered()


def values(columns: Columns) -> list[tuple[int, ...]]:
    return list(zip(columns.begins, columns.spans, columns.numbers, columns.outcomes, strict=True))


@given(PARTS)
def test_what_is_packed_comes_back(given_parts: dict[tuple[str, int], list[Given]]) -> None:
    parts = {key: columns_of(*attempts) for key, attempts in given_parts.items()}
    found = unpacked(packed(parts))
    assert list(found) == list(parts)
    assert {key: values(each) for key, each in found.items()} == {key: values(each) for key, each in parts.items()}
    for key, attempts in given_parts.items():
        kept = [
            (begin, span_code(span), min(number, 65_535), OUTCOMES.index(how)) for begin, span, how, number in attempts
        ]
        assert sorted(values(found[key])) == sorted(kept)
        assert all(one <= other for one, other in pairwise(found[key].begins))


@given(st.floats(1e-6, 1e9))
def test_a_duration_keeps_three_digits(seconds: float) -> None:
    found = span_seconds(span_code(seconds))
    assert math.isclose(found, seconds, rel_tol=0.005)
    assert found == float(f"{seconds:.2e}"), "as a decimal: 10 s stay 10 s"


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_codes_are_in_the_order_of_the_durations(one: float, other: float) -> None:
    if one <= other:
        assert span_code(one) <= span_code(other)


@pytest.mark.parametrize("seconds", [0.0, 4e-7, -1.0, math.nan, math.inf])
def test_what_cannot_be_measured_took_no_time(seconds: float) -> None:
    assert span_seconds(span_code(seconds)) == 0.0


@given(st.data())
def test_damage_is_found_out_wherever_it_is(data: Any) -> None:
    block = packed({("a", 1): columns_of((5, 0.5, "success", 1), (9, 1.5, "error", 2))})
    at = data.draw(st.integers(0, len(block) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Unreadable):
        unpacked(block[:at] + bytes([block[at] ^ bit]) + block[at + 1 :])
    with pytest.raises(Unreadable):
        unpacked(block[:at])


def sealed(schema: int, parts: list[Any], raw: bytes) -> bytes:
    data = msgspec.msgpack.encode([schema, parts, zlib.compress(raw)])
    return zlib.crc32(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (sealed(2, [], b""), "its form is 2"),
        (sealed(1, [["a", 1, 1]], bytes(10_000_000)), "another length"),
        (sealed(1, [["a", 1, 2]], bytes(9)), "another length"),
        (sealed(1, [["a", 1, 1]], bytes(8) + b"\x05"), "an outcome is unknown"),
        (sealed(1, [["a", 1, 1]], b"\0\0\0\xff" + bytes(5)), "longer than a day"),
        (sealed(1, [["a", 1, MAX_ROWS + 1]], b""), "<= 500000"),
        (sealed(1, [["a", -1, 0]], b""), "int"),
    ],
)
def test_what_others_have_written_is_refused(block: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        unpacked(block)


def test_a_realistic_day_takes_little_more_than_three_bytes_an_attempt() -> None:
    chance = Random(21)
    day = [
        (minute * 60_000 + int(chance.expovariate(0.02)), chance.lognormvariate(-1.0, 0.4), "success", 1)
        for minute in range(1440)
    ]
    assert len(packed({("gap_up", 20_000): columns_of(*day)})) / len(day) < 3.3


def test_the_newest_are_kept_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilient_scan.stores.columns.MAX_ROWS", 3)
    for begins in ([1, 2, 3, 4, 5], [5, 1, 4, 2, 3]):
        assert list(columns_of(*((begin, 0.1, "success", 1) for begin in begins)).begins) == [3, 4, 5]


# what a block tells


def test_a_thread_that_is_back_is_told_with_its_attempt() -> None:
    columns = columns_of(
        (1000, 10.0, "timeout", 1),
        (1000, 14.0, RETURNED, 1),
        (30_000, 10.0, "timeout", 1),
        (60_000, 0.5, "success", 1),
        (60_000, 3.0, RETURNED, 1),  # of no attempt that has timed out
    )
    assert list(columns.rows(2)) == [
        Row(2 * DAY + 1.0, 10.0, "timeout", 1, 14.0),
        Row(2 * DAY + 30.0, 10.0, "timeout", 1, None),
        Row(2 * DAY + 60.0, 0.5, "success", 1, None),
    ]


def test_a_day_is_summed_up() -> None:
    attempts = [(n, n / 100, "success", 1) for n in range(1, 99)]
    attempts += [
        (200, 2.0, "error", 1),
        (300, 10.0, "timeout", 2),
        (300, 14.0, RETURNED, 2),
        (400, 99.0, "cancelled", 1),
    ]
    day = summarized(20_781, columns_of(*attempts))
    assert (day.day, day.attempts, day.retries) == ("2026-11-24", 101, 1)
    assert (day.errors, day.timeouts, day.cancelled, day.returned, day.returned_after) == (1, 1, 1, 1, 14.0)
    assert (day.p50, day.p90, day.p99, day.longest) == (0.5, 0.9, 2.0, 10.0)


def test_a_day_on_which_all_was_cancelled_has_no_quantiles() -> None:
    day = summarized(0, columns_of((1, 1.0, "cancelled", 1)))
    assert (day.attempts, day.p50, day.longest, day.returned_after) == (1, None, None, None)


def test_waits_between_attempts_are_part_of_an_execution() -> None:
    two = [(0, 1.0, "error", 1), (3000, 1.0, "success", 2)]  # 2 s of waiting
    other = [(10_000, 0.5, "success", 1), (10_000, 9.0, RETURNED, 1)]
    assert columns_of(*two, *other).executions() == (2, 4.5)
    assert columns_of((0, 1.0, "success", 2)).executions() == (0, 1.0), "its first attempt is in another block"
    assert Columns().executions() == (0, 0.0)


def test_nobody_knows_how_long_a_timeout_would_have_taken() -> None:
    days = {
        0: columns_of((1, 0.3, "success", 1), (2, 0.1, "error", 1), (3, 5.0, "timeout", 1), (4, 9.0, "cancelled", 1))
    }
    found = measured(days, 30)
    assert found == Measured(30, (0.1, 0.3), (5.0,))
    assert (found.count, found.quantile(0.5), found.quantile(0.9)) == (3, 0.3, math.inf)
    assert (found.longer_than(0.3), found.longer_than(5.0), found.longer_than(5.1)) == (2, 1, 0)
