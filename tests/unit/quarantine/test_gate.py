"""The gate: manual orders, which take precedence and expire."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan._dispatch import Bus
from resilient_scan.events import ScannerStateChanged
from resilient_scan.quarantine import ORDER_DURATION, Gate, Turn
from resilient_scan.testing import FakeClock, Recorder

START = 1_000_000.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def gate(clock: FakeClock, recorder: Recorder) -> Gate:
    return Gate(("one", "two"), clock, Bus([recorder]))


def passes(gate: Gate, name: str) -> bool:
    return gate.turn(name, 30.0)[0] is Turn.RUN


def test_every_scanner_is_in_service_at_first(gate: Gate, recorder: Recorder) -> None:
    assert passes(gate, "one")
    assert passes(gate, "two")
    assert recorder.events_seen == []


def test_an_order_holds_until_it_expires(gate: Gate, clock: FakeClock) -> None:
    gate.disable("one", "quota", 60)
    assert not passes(gate, "one")
    assert passes(gate, "two")
    clock.advance(59.75)
    assert not passes(gate, "one")
    clock.advance(0.25)
    assert passes(gate, "one")


def test_each_change_is_sent_with_its_reason_and_its_end(gate: Gate, clock: FakeClock, recorder: Recorder) -> None:
    gate.disable("one", "quota", 60)
    clock.advance(60)
    passes(gate, "one")
    passes(gate, "one")  # the expiry is sent once
    gate.disable("one", "again", 10)
    clock.advance(1)
    gate.enable("one", "fixed")
    at = START + 60
    assert recorder.events_seen == [
        ScannerStateChanged("one", "enabled", "disabled", "hand", "quota", START + 60, START),
        ScannerStateChanged("one", "disabled", "enabled", "expiry", "quota", None, at),
        ScannerStateChanged("one", "enabled", "disabled", "hand", "again", at + 10, at),
        ScannerStateChanged("one", "disabled", "enabled", "hand", "fixed", None, at + 1),
    ]


def test_a_second_order_replaces_the_first(gate: Gate, clock: FakeClock, recorder: Recorder) -> None:
    gate.disable("one", "first", 60)
    clock.advance(30)
    gate.disable("one", "second", 10)
    clock.advance(10)
    assert passes(gate, "one")
    assert recorder.events_seen[1] == ScannerStateChanged(
        "one", "disabled", "disabled", "hand", "second", START + 40, START + 30
    )


def test_enabling_a_scanner_in_service_changes_nothing(gate: Gate, recorder: Recorder) -> None:
    gate.enable("one", "why not")
    assert recorder.events_seen == []
    assert passes(gate, "one")


def test_an_order_holds_for_24_hours_by_default() -> None:
    assert ORDER_DURATION == 24 * 3600


@pytest.mark.parametrize("name", ["three", "", "ONE", None])
def test_an_unknown_scanner_is_refused(gate: Gate, name: Any) -> None:
    way_out = "did you mean 'one'?" if name in ("ONE", None) else "there are one, two"
    sentence = f"there is no scanner {name!r}; {way_out}"
    for order in (lambda: gate.disable(name, "x", 60), lambda: gate.enable(name, "x")):
        with pytest.raises(ConfigError) as caught:
            order()
        assert str(caught.value) == sentence


@pytest.mark.parametrize("reason", ["", " \n", None, 5])
def test_an_order_says_why(gate: Gate, reason: Any) -> None:
    for verb, order in (
        ("disable", lambda: gate.disable("one", reason, 60)),
        ("enable", lambda: gate.enable("one", reason)),
    ):
        with pytest.raises(ConfigError) as caught:
            order()
        assert str(caught.value) == f"{verb} one: reason must say why, got {reason!r}"
    assert gate.state_of("one") == "enabled"


def test_a_gate_without_scanners_says_so(clock: FakeClock) -> None:
    with pytest.raises(ConfigError, match="there are none"):
        Gate((), clock, Bus([])).enable("one", "x")


@pytest.mark.parametrize("duration", [0, 0.0, -1, math.nan, math.inf, True, None, "60"])
def test_a_duration_is_checked_and_nothing_is_done(gate: Gate, recorder: Recorder, duration: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.disable("one", "x", duration)
    assert str(caught.value) == f"disable one: duration must be a number of seconds > 0, got {duration!r}"
    assert passes(gate, "one")
    assert recorder.events_seen == []


def test_a_child_inherits_the_orders_and_their_time(gate: Gate, clock: FakeClock, recorder: Recorder) -> None:
    gate.disable("one", "quota", 60)
    child = Gate(("one", "two"), clock, Bus([recorder]))
    child.inherit(gate)
    gate.enable("one", "ours alone")
    assert not passes(child, "one")
    clock.advance(60)
    assert passes(child, "one")
    assert passes(gate, "two")


def test_a_listener_may_ask_the_gate(clock: FakeClock) -> None:
    """Events are sent when no lock is held."""
    gates: list[Gate] = []
    answers: list[bool] = []

    def ask(event: Any) -> None:
        other = threading.Thread(target=lambda: answers.append(passes(gates[0], "one")), daemon=True)
        other.start()
        other.join(5)

    gates.append(Gate(("one",), clock, Bus([ask])))
    gates[0].disable("one", "x", 60)
    clock.advance(60)
    passes(gates[0], "one")
    gates[0].disable("one", "x", 60)
    gates[0].enable("one", "x")
    assert answers == [False, True, False, True]


def test_an_expired_order_does_not_hold(gate: Gate, clock: FakeClock, recorder: Recorder) -> None:
    assert not gate.is_out("one")
    gate.disable("one", "quota", 60)
    assert gate.is_out("one")
    assert gate.state_of("one") == "disabled"
    clock.advance(60)
    assert not gate.is_out("one")
    assert gate.state_of("one") == "enabled"
    assert len(recorder.events_seen) == 1  # to look is not to change


@pytest.mark.parametrize("then", ["enable", "disable"])
def test_an_order_that_is_over_is_told_as_over_before_the_next(then: str) -> None:
    """an expired order that no run has looked at is taken for one that holds. `enable`: "nothing happens
    if it is in service", but it tells of a change by hand; `disable`: the way back into service is never told."""
    clock, recorder = FakeClock(), Recorder()
    gate = Gate(("one",), clock, Bus([recorder]))
    gate.disable("one", "first", 60)
    clock.advance(100)
    if then == "enable":
        gate.enable("one", "too late")
    else:
        gate.disable("one", "second", 60)
    told = [(event.old, event.new, event.source) for event in recorder.events_seen]
    assert told[1] == ("disabled", "enabled", "expiry")
    assert told[2:] == ([] if then == "enable" else [("enabled", "disabled", "hand")])


def test_of_two_threads_that_find_an_expired_order_one_sends(recorder: Recorder) -> None:
    """Somebody enables the scanner between the look at the order and the lock."""

    class Meanwhile(FakeClock):
        def monotonic(self) -> float:
            now = super().monotonic()
            if now >= 60 and meanwhile:
                meanwhile.pop()("one", "by hand")
            return now

    meanwhile: list[Any] = []
    clock = Meanwhile(START)
    gate = Gate(("one",), clock, Bus([recorder]))
    gate.disable("one", "quota", 60)
    clock.advance(60)
    meanwhile.append(gate.enable)
    assert passes(gate, "one")
    assert [event.new for event in recorder.events_seen] == ["disabled", "enabled"]
