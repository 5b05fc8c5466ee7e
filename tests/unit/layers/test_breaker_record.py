"""What a store has of a breaker: after the clock has jumped, under other options, and when it is none."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker.record import BreakerRecord, decode, encode
from tests.support.breakers import CLOSED, KEY, OPENED, Fleet, fail, record, refusal, succeed

# the clock


def test_a_jump_back_costs_one_open_time_at_most() -> None:
    fleet = Fleet()
    fail(fleet.breaker())
    fleet.clock.advance(4)
    fleet.clock.jumped -= 86_400
    assert refusal(fleet.breaker()) == "the breaker of one is open, next trial in 8s"
    fleet.clock.advance(7.5)
    assert refusal(fleet.breaker()) == "the breaker of one is open, next trial in 0.5s", "counted from the jump"
    fleet.clock.advance(0.5)
    assert succeed(fleet.breaker()) == CLOSED


def test_a_jump_back_does_not_matter_to_the_process_that_saw_the_opening() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    fail(breaker)
    fleet.clock.advance(4)
    fleet.clock.jumped -= 6
    fleet.look(breaker)
    assert breaker.next_trial_in() == 4
    fleet.clock.advance(4)
    assert succeed(breaker) == CLOSED


def test_a_jump_ahead_brings_the_trial_earlier() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    fail(breaker)
    fleet.clock.jumped += 86_400
    assert succeed(fleet.breaker()) == CLOSED
    fleet.look(breaker)
    assert breaker.state == "closed"


def test_an_opening_in_a_future_that_was_taken_back() -> None:
    fleet = Fleet()
    fleet.clock.jumped += 86_400
    fail(fleet.breaker())
    fleet.clock.jumped -= 86_400
    fleet.breaker()
    fleet.clock.advance(8)
    assert succeed(fleet.breaker()) == CLOSED


def test_a_trial_of_the_dead_does_not_last_longer_after_a_jump_back() -> None:
    fleet = Fleet()
    fail(fleet.breaker())
    fleet.clock.advance(8)
    fleet.breaker().admit()
    fleet.clock.jumped -= 86_400
    refusal(fleet.breaker())
    fleet.clock.advance(7.5)
    refusal(fleet.breaker())
    fleet.clock.advance(0.5)
    assert succeed(fleet.breaker()) == CLOSED


def test_the_growth_survives_a_jump() -> None:
    fleet = Fleet()
    fail(fleet.breaker())
    fleet.clock.advance(8)
    fail(fleet.breaker())
    fleet.clock.jumped -= 86_400
    assert fleet.breaker().next_trial_in() > 8


# other options than before


@pytest.mark.parametrize(
    "changed", [{"failures": 2}, {"failure_rate": 0.1, "window": 2, "minimum": 1}, {"trials": 5}, {"failures": 50}]
)
def test_other_options_take_a_closed_one_on(changed: dict[str, Any]) -> None:
    fleet = Fleet(failures=6)
    for _ in range(4):
        fail(fleet.breaker())
    breaker = fleet.breaker(**changed)
    assert (breaker.state, breaker.failures) == ("closed", 4)
    opens = "trials" not in changed and changed.get("failures") != 50
    assert (fail(breaker) == OPENED) is opens
    assert record(fleet).failures == 5


def test_a_shorter_cap_shortens_what_was_opened_for_longer() -> None:
    fleet = Fleet(open_for=1000)
    fail(fleet.breaker())
    assert fleet.breaker(open_for=8, open_cap=8).next_trial_in() == 8
    fleet.clock.advance(8)
    assert succeed(fleet.breaker(open_for=8, open_cap=8)) == CLOSED


def test_fewer_trials_than_are_under_way() -> None:
    fleet = Fleet(trials=3)
    fail(fleet.breaker())
    fleet.clock.advance(8)
    breakers = [fleet.breaker() for _ in range(3)]
    permits = [breaker.admit()[0] for breaker in breakers]
    breakers[0].vote(permits[0], False)
    strict = fleet.breaker(trials=1)
    refusal(strict)
    assert strict.next_trial_in() == 8
    breakers[1].vote(permits[1], None)
    breakers[2].vote(permits[2], None)
    assert succeed(strict) == CLOSED


def test_a_window_that_is_shorter_or_gone() -> None:
    fleet = Fleet(failures=100, failure_rate=1.0, window=8, minimum=8)
    for _ in range(7):
        fail(fleet.breaker())
    assert fleet.breaker(window=2, minimum=2).window_counts() == (2, 2, 0)
    assert fail(fleet.breaker(failure_rate=None)) is None
    assert fleet.breaker().window_counts() == (0, 0, 0)


# what is no record


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({**msgspec.structs.asdict(BreakerRecord(state="open")), **fields})


GARBAGE = [
    b"",
    b"\x00",
    b"\xff" * 40,
    b"not a record",
    b"\x91" * 5000,
    msgspec.msgpack.encode([1, 2]),
    msgspec.msgpack.encode({"version": 1, "state": "ajar"}),
    packed(state="ajar"),
    packed(generation=-1),
    packed(failures="many"),
    packed(failures=2**63),
    packed(open_until=float("nan")),
    packed(opened_at=float("inf")),
    packed(open_for=float("-inf")),
    packed(trials={"a": float("nan")}),
    packed(trials=[1]),
    packed(failed_at=[float("nan")]),
    packed(window_at=[float("inf")]),
    packed(failed_by_at=[float("nan")]),
    packed(window="text"),
    packed(version="1"),
    encode(BreakerRecord(state="open"))[:-1],
]


def test_what_the_garbage_is_made_of_can_be_read() -> None:
    assert decode(packed()) == BreakerRecord(state="open")


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_a_new_breaker_with_one_warning(data: bytes, look: bool, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(failures=2)
    fleet.put(data)
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        breaker = fleet.breaker(look=look)
        assert breaker.state == "closed"
        assert [fail(breaker), fail(breaker)] == [None, OPENED]
    assert [entry.getMessage() for entry in caplog.records] == [
        "one: what the store keeps of its breaker cannot be read; it begins again, breaker/one"
    ]
    assert record(fleet).state == "open"
    assert fleet.errors == []


def test_garbage_that_comes_again_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(failures=2)
    breaker = fleet.breaker()
    for _ in range(3):
        fleet.put(b"garbage")
        succeed(breaker)
        fail(breaker)
        succeed(breaker)
    assert len(caplog.records) == 1


def test_absurd_numbers_end() -> None:
    fleet = Fleet(open_cap=20)
    now = fleet.clock.time()
    absurd = BreakerRecord(
        state="open",
        reopened=2**60,
        failures=2**60,
        opened_at=now,
        open_for=1e300,
        open_until=1e308,
        window=b"\xff" * 99,
    )
    fleet.put(encode(absurd))
    assert fleet.breaker().next_trial_in() == 20
    fleet.clock.advance(20)
    assert fail(fleet.breaker()) == BreakerChanged("one", "half_open", "open", 20)


def test_a_newer_versions_record_is_left_alone() -> None:
    fleet = Fleet()
    data = packed(version=2, novelty=True)
    fleet.put(data)
    breaker = fleet.breaker()
    assert fail(breaker) == OPENED
    assert breaker.state == "open"
    assert fleet.store.read(KEY)[KEY] == data
    assert {operation for operation, _ in fleet.errors} == {"update"}
    assert str(fleet.errors[0][1]) == (
        "a newer version of this package keeps breaker/one in the store; upgrade this one"
    )


def test_a_hold_and_the_begin_of_an_outage_are_on_the_other_clock_too() -> None:
    dated = BreakerRecord(failed_at=(1.0,), window_at=(2.0,), failed_by=("a",), failed_by_at=(3.0,)).shifted(100.0)
    assert (dated.failed_at, dated.window_at, dated.failed_by_at) == ((101.0,), (102.0,), (103.0,))
    shifted = BreakerRecord(down_since=1.0, held_until=5.0).shifted(100.0)
    assert (shifted.down_since, shifted.held_until) == (101.0, 105.0)
    assert BreakerRecord().shifted(100.0).held_until == 0.0  # no hold stays none
