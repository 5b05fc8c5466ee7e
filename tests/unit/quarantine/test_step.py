"""A step on stored bytes: what is no record, what is not written, and clocks that jump."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from resilient_scan.errors import StoreError
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Turn
from resilient_scan.quarantine.records import SCHEMA, FleetRecord, Order, ScannerRecord, decode, encode
from tests.support.quarantine import START, Bench, Process, alert

RUN, OUT, PROBE = Turn.RUN, Turn.DISABLED, Turn.PROBE
JUMPS = pytest.mark.parametrize("jump", [-1e7, -3600.0, -30.0, 30.0, 3600.0, 1e7])


@pytest.fixture
def bench() -> Bench:
    return Bench("one", "two")


# bytes


def packed(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        packed(scanners=5),
        packed(schema=SCHEMA - 1),
        packed(schema="1"),
        packed(heard=float("nan")),
        packed(written=float("inf")),
        packed(scanners={"one": {"level": -1}}),
        packed(scanners={"one": {"state": "sick"}}),
        packed(scanners={"one": {"until": 1e300}}),
        packed(scanners={"one": {"alerts": {"a": {"status": "firing", "starts_at": 0.0, "said": float("nan")}}}}),
        packed(scanners={"one": {"order": {"state": "probing"}}}),
        packed(gaps=[float("nan")]),
        packed(gaps=[-1.0]),
        b"\x81" * 2000,
    ],
)
def test_garbage_is_a_fresh_record(bench: Bench, garbage: bytes) -> None:
    bench.stored = garbage
    assert bench.turn("one") is RUN
    assert not bench.readable
    bench.alerts(alert("one"))
    assert bench.turn("one") is OUT
    assert bench.readable


def test_a_record_comes_back_as_it_was() -> None:
    fleet = FleetRecord(scanners={"one": ScannerRecord(order=Order("disabled", "kim", "quota", 1.0, 2.0))}, heard=5.0)
    assert decode(encode(fleet)) == (fleet, True)


def test_fields_of_a_later_version_are_not_minded() -> None:
    assert decode(packed(schema=SCHEMA, scanners={}, colour="red")) == (FleetRecord(), True)


def test_what_a_newer_version_has_written_is_left_alone(bench: Bench) -> None:
    bench.stored = newer = packed(schema=SCHEMA + 1, scanners={"one": {"state": "enabled"}}, born=1.0)
    with pytest.raises(StoreError, match="a newer version of this package keeps the quarantine"):
        bench.disable("one")
    assert bench.stored is newer


def test_what_changes_nothing_is_not_written(bench: Bench) -> None:
    assert bench.turn("one") is RUN
    assert bench.stored is None
    bench.alerts(alert("one"))
    stored = bench.stored
    bench.advance(10)
    assert bench.turn("one") is OUT
    assert bench.stored is stored


# clocks


@JUMPS
def test_a_jump_neither_shortens_nor_lengthens_a_cool_off(bench: Bench, jump: float) -> None:
    bench.alerts(alert("one"))
    bench.advance(20)
    bench.jump(jump)
    assert bench.turn("one") is OUT
    bench.advance(39)
    assert bench.turn("one") is OUT
    bench.jump(-jump / 2)
    bench.advance(1)
    assert bench.turn("one") is PROBE


@JUMPS
def test_a_jump_neither_shortens_nor_lengthens_an_order(bench: Bench, jump: float) -> None:
    bench.disable("one", 100)
    bench.advance(50)
    bench.jump(jump)
    bench.advance(49)
    assert bench.turn("one") is OUT
    bench.advance(1)
    assert bench.turn("one") is RUN


@JUMPS
def test_leases_and_heartbeats_keep_their_time(jump: float) -> None:
    bench = Bench("one", options=Quarantine(heartbeat=20, lease=500))
    bench.alerts(alert("one"), alert("", action="heartbeat"))
    bench.jump(jump)
    assert not bench.unreachable()
    bench.advance(60)
    assert bench.unreachable()
    bench.turn("one", seconds=100)
    bench.jump(jump)
    assert bench.turn("one") is OUT
    bench.advance(100)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "probing"
    bench.jump(-jump)
    bench.advance(340)
    bench.probes("one", True)
    assert bench.state("one") == "enabled"


@JUMPS
def test_of_several_processes_only_one_moves_the_instants(bench: Bench, jump: float) -> None:
    ours, theirs = bench.process, Process(bench)
    bench.disable("one", 100)
    theirs.step(lambda machine: None)
    bench.advance(10)
    bench.jump(jump)
    for process in (ours, theirs, ours):
        bench.process = process
        bench.advance(10)
        assert bench.turn("one") is OUT
    bench.advance(59)
    assert bench.turn("one") is OUT
    bench.process = theirs
    bench.advance(1)
    assert bench.turn("one") is RUN


def test_a_new_process_notices_that_time_went_back(bench: Bench) -> None:
    bench.disable("one", 100)
    bench.restart()
    bench.jump(-1e6)
    assert bench.turn("one") is OUT
    bench.advance(99)
    assert bench.turn("one") is OUT
    bench.advance(1)
    assert bench.turn("one") is RUN


def test_an_old_process_learns_what_a_new_one_has_done_about_it(bench: Bench) -> None:
    bench.disable("one", 100)
    old = bench.process
    bench.advance(30)
    bench.jump(-1000)
    bench.restart()
    assert bench.turn("one") is OUT  # it cannot know of the 30 seconds: 100 are left
    bench.process = old
    assert bench.turn("one") is OUT  # but this one does: 70 are left
    bench.advance(70)
    assert bench.turn("one") is RUN


def test_time_that_passed_while_nobody_looked_has_passed(bench: Bench) -> None:
    bench.disable("one", 100)
    bench.advance(100)
    bench.restart()
    assert bench.turn("one") is RUN


def test_a_clock_that_is_slewed_is_followed(bench: Bench) -> None:
    bench.disable("one", 100)
    for _ in range(10):
        bench.advance(9)
        bench.jump(0.5)
        assert bench.turn("one") is OUT
    bench.advance(5)
    assert bench.turn("one") is RUN


def test_a_jump_after_which_the_record_is_gone_moves_nothing(bench: Bench) -> None:
    bench.disable("one", 100)
    bench.jump(1000)
    bench.stored = None
    bench.disable("one", 10)
    bench.advance(10)
    assert bench.turn("one") is RUN


def test_a_step_is_pure(bench: Bench) -> None:
    """A store may call a change more than once."""
    seen: list[bytes | None] = []
    act: Callable[..., None] = lambda machine: machine.disable("one", "kim", "quota", 60.0)  # noqa: E731
    for _ in range(2):
        bench.stored = None
        bench.restart()
        bench.process.step(act)
        seen.append(bench.stored)
    assert seen[0] == seen[1]
    assert bench.record("one").since == START
