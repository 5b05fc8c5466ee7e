"""The gate on a store that others share, that fails, that holds garbage, under clocks that jump."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from resilient_scan._dispatch import Bus
from resilient_scan.errors import StoreError
from resilient_scan.events import AlertReceived, HeartbeatSeen, ProbeEnded, ScannerStateChanged
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.gate import Gate
from resilient_scan.quarantine.machine import Turn
from resilient_scan.quarantine.store import KEY
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder
from tests.support.clocks import JumpingClock
from tests.support.control import counts
from tests.support.quarantine import alert
from tests.support.stores import AWAY, FailingStore

START = 1_000_000.0
RUN, OUT, PROBE = Turn.RUN, Turn.DISABLED, Turn.PROBE


class Side:
    """A gate with a bus of its own, as each process has them."""

    def __init__(self, store: MemoryStore, clock: FakeClock, **options: Any) -> None:
        self.recorder, self.failed = Recorder(), list[str]()
        self.bus = Bus([self.recorder])
        self.gate = Gate(
            ("one", "two", "three", "four"),
            clock,
            self.bus,
            options=Quarantine(**options),
            store=store,
            on_error=lambda operation, _error: self.failed.append(operation),
        )
        self.bus.subscribe(self.gate)

    def turn(self, name: str) -> Turn:
        self.gate.refresh()
        return self.gate.turn(name, 30.0)[0]

    def probe(self, name: str, outcome: str) -> None:
        self.gate.refresh()
        turn, mark = self.gate.turn(name, 30.0)
        assert turn is PROBE
        self.bus.send(ProbeEnded(name, outcome, "OSError: HTTP 500", mark))

    def changes(self) -> list[tuple[str, str, str]]:
        return [(event.old, event.new, event.source) for event in self.recorder.of(ScannerStateChanged)]


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock(START)


@pytest.fixture
def store(clock: JumpingClock) -> FailingStore:
    return FailingStore(clock)


@pytest.fixture
def side(store: FailingStore, clock: JumpingClock) -> Callable[..., Side]:
    return lambda **options: Side(store, clock, **options)


# shared


def test_an_alert_at_one_process_counts_for_another(side: Callable[..., Side], clock: JumpingClock) -> None:
    service, runner = side(), side()
    assert service.gate.alerts([alert("one")], "alertmanager")["accepted"] == 1
    assert runner.turn("one") is OUT
    clock.advance(60)
    runner.probe("one", "error")
    service.gate.refresh()
    assert service.gate.state_of("one") == "quarantined"
    assert service.changes() == [("enabled", "quarantined", "alert")]
    assert runner.changes() == [("quarantined", "probing", "probe"), ("probing", "quarantined", "probe")]


def test_only_one_of_two_processes_probes(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours, theirs = side(), side()
    ours.gate.alerts([alert("one")], "alertmanager")
    clock.advance(60)
    ours.gate.refresh(), theirs.gate.refresh()
    assert [ours.gate.turn("one", 30.0)[0], theirs.gate.turn("one", 30.0)[0]] == [PROBE, OUT]


def test_an_expiry_is_sent_once_by_the_process_that_notices_it(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours, theirs = side(), side()
    ours.gate.disable("one", "quota", 60.0)
    theirs.gate.refresh()
    clock.advance(60)
    assert [theirs.gate.turn("one", 30.0)[0], ours.gate.turn("one", 30.0)[0]] == [RUN, RUN]
    assert theirs.changes() == [("disabled", "enabled", "expiry")]
    assert ours.changes() == [("enabled", "disabled", "hand")]


def test_the_audit_trail_has_every_change_of_all_processes(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours, theirs = side(), side()
    ours.gate.disable("one", "quota", 60.0, who="kim")
    clock.advance(1)
    theirs.gate.alerts([alert("two")], "grafana")
    newest, oldest = ours.gate.audit(10)
    assert oldest.to_dict() == {
        "at": START,
        "scanner": "one",
        "from": "enabled",
        "to": "disabled",
        "source": "hand",
        "who": "kim",
        "reason": "quota",
        "until": START + 60,
    }
    assert (newest.scanner, newest.source, newest.who) == ("two", "alert", "grafana")
    assert ours.gate.audit(1) == (newest,)


def test_a_failed_probe_is_one_entry_although_it_is_two_events(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours = side(successes=1)
    ours.gate.alerts([alert("one"), alert("one", "resolved")], "alertmanager")
    clock.advance(60)
    ours.probe("one", "error")
    clock.advance(120)
    ours.probe("one", "success")
    assert [(entry.old, entry.new) for entry in reversed(ours.gate.audit(10))] == [
        ("enabled", "quarantined"),
        ("probing", "quarantined"),
        ("probing", "enabled"),
    ]
    assert ours.changes()[1:3] == [("quarantined", "probing", "probe"), ("probing", "quarantined", "probe")]


def test_what_the_machine_does_does_not_push_out_what_people_have_ordered(
    side: Callable[..., Side], clock: JumpingClock
) -> None:
    ours = side(after_failures=1, cooloff=60, cooloff_cap=60)
    ours.gate.disable("two", "quota", 1e6, who="kim")
    for _ in range(1_001):
        ours.gate.alerts([alert("one")], "alertmanager")
        clock.advance(60)
        ours.probe("one", "error")
    trail = ours.gate.audit(2_000)
    assert [entry.who for entry in trail if entry.source == "hand"] == ["kim"]
    assert len(trail) == 1_001
    assert [entry.at for entry in trail] == sorted((entry.at for entry in trail), reverse=True)
    assert len(ours.gate.audit(3)) == 3


def test_garbage_in_the_audit_trail_is_left_out(side: Callable[..., Side], store: FailingStore) -> None:
    ours = side()
    store.append("audit", b"\xff\xfe", 10)
    ours.gate.disable("one", "quota", 60.0)
    assert len(ours.gate.audit(10)) == 1


def test_two_that_count_failures_count_together(side: Callable[..., Side]) -> None:
    ours, theirs = side(after_failures=2), side(after_failures=2)
    for each in (ours, theirs):
        each.gate._executed(failure("one"))
    assert theirs.gate.state_of("one") == "quarantined"


def failure(name: str, outcome: str = "error") -> Any:
    from resilient_scan.events import ExecutionEnded
    from resilient_scan.results import ErrorInfo

    return ExecutionEnded(name, "test", outcome, 1.0, 1, ErrorInfo("builtins.OSError", "HTTP 500"))


def test_a_success_is_brought_to_the_store_only_where_failures_are_counted(
    side: Callable[..., Side], store: FailingStore
) -> None:
    ours = side(after_failures=3)
    store.error = AWAY
    ours.bus.send(failure("one", "success"))
    ours.bus.send(failure("one", "cancelled"))
    assert ours.failed == []
    store.error = None
    ours.bus.send(failure("one"))
    assert ours.gate.view("one").failures == 1
    ours.bus.send(failure("one", "success"))
    assert ours.gate.view("one").failures == 0


def test_without_a_number_executions_are_not_heard(side: Callable[..., Side]) -> None:
    ours = side()
    assert ours.gate.events == (ProbeEnded,)
    ours.bus.send(failure("one"))


def test_alerts_are_sent_as_events(side: Callable[..., Side]) -> None:
    ours = side()
    said = ours.gate.alerts([alert("one"), alert("nine"), alert("", action="heartbeat")], "grafana")
    assert said == counts(accepted=2, unknown_scanner=1)
    assert ours.recorder.of(AlertReceived) == [
        AlertReceived("grafana", result, START) for result in ("accepted", "unknown_scanner", "accepted")
    ]
    assert ours.recorder.of(HeartbeatSeen) == [HeartbeatSeen(START)]


def test_the_list_is_asked_for_before_it_is_compared(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours = side()

    def fetch() -> list[Any]:
        clock.advance(1)
        ours.gate.alerts([alert("one")], "alertmanager")  # fires while the list is on its way
        return []

    assert ours.gate.reconcile(fetch, "alertmanager")["accepted"] == 0
    assert [each.status for each in ours.gate.view("one").evidence] == ["firing"]
    clock.advance(1)
    ours.gate.reconcile(list, "alertmanager")
    assert [each.status for each in ours.gate.view("one").evidence] == ["resolved"]


def test_a_list_that_does_not_come_changes_nothing(side: Callable[..., Side]) -> None:
    ours = side()
    ours.gate.alerts([alert("one")], "alertmanager")

    def fetch() -> list[Any]:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        ours.gate.reconcile(fetch, "alertmanager")
    assert [each.status for each in ours.gate.view("one").evidence] == ["firing"]


# a store that fails


@pytest.mark.parametrize("why", [StoreError("the store cannot be reached"), RuntimeError("secret")])
def test_a_manual_order_survives_a_store_that_fails(
    side: Callable[..., Side], store: FailingStore, clock: JumpingClock, why: Exception
) -> None:
    ours, theirs = side(), side()
    store.error = why
    with pytest.raises(StoreError, match="one is disabled in this process only") as caught:
        ours.gate.disable("one", "quota", 100.0, who="kim")
    assert "secret" not in str(caught.value)
    assert ours.turn("one") is OUT
    assert ours.changes() == [("enabled", "disabled", "hand")]
    assert "update" in ours.failed
    store.error = None
    clock.advance(40)
    assert theirs.turn("one") is RUN
    assert ours.turn("one") is OUT  # it looks, and brings the order along
    assert theirs.turn("one") is OUT
    (entry,) = theirs.gate.audit(10)
    assert (entry.who, entry.reason, entry.at) == ("kim", "quota", START + 40)
    assert ours.changes() == [("enabled", "disabled", "hand")]  # sent once
    clock.advance(60)
    assert [ours.turn("one"), theirs.turn("one")] == [RUN, RUN]


def test_the_last_of_several_orders_counts_when_the_store_is_back(
    side: Callable[..., Side], store: FailingStore
) -> None:
    ours, theirs = side(), side()
    ours.gate.disable("one", "quota", 100.0)
    store.error = AWAY
    for order in (ours.gate.enable, ours.gate.disable, ours.gate.enable):
        with pytest.raises(StoreError):
            order("one", "by hand", 100.0)
    assert ours.turn("one") is RUN
    store.error = None
    ours.gate.refresh()
    assert theirs.turn("one") is RUN


def test_an_expired_order_is_not_brought_to_the_store(
    side: Callable[..., Side], store: FailingStore, clock: JumpingClock
) -> None:
    ours, theirs = side(), side()
    store.error = AWAY
    with pytest.raises(StoreError):
        ours.gate.disable("one", "quota", 100.0)
    clock.advance(100)
    store.error = None
    assert ours.turn("one") is RUN
    assert theirs.turn("one") is RUN
    assert ours.gate.audit(10) == ()


def test_alerts_are_refused_while_the_store_fails(side: Callable[..., Side], store: FailingStore) -> None:
    """The sender tries again; it would be lost otherwise."""
    ours = side()
    store.error = AWAY
    with pytest.raises(StoreError, match="away"):
        ours.gate.alerts([alert("one")], "alertmanager")
    assert ours.turn("one") is RUN
    assert ours.recorder.of(AlertReceived) == []
    store.error = None
    assert ours.gate.alerts([alert("one")], "alertmanager")["accepted"] == 1


def test_without_a_store_a_quarantine_goes_its_way_alone(
    side: Callable[..., Side], store: FailingStore, clock: JumpingClock
) -> None:
    ours = side(successes=1)
    ours.gate.alerts([alert("one"), alert("one", "resolved")], "alertmanager")
    store.error = AWAY
    assert ours.turn("one") is OUT
    clock.advance(60)
    ours.probe("one", "success")
    assert ours.turn("one") is RUN
    store.error = None
    assert ours.turn("one") is PROBE  # the store knows of no probe


def test_an_audit_trail_that_cannot_be_written_stops_nothing(side: Callable[..., Side], store: FailingStore) -> None:
    ours = side()
    ours.gate._quarantine.store.append = refuse  # type: ignore[method-assign]
    ours.gate.disable("one", "quota", 60.0)
    assert ours.failed == ["append"]
    assert ours.turn("one") is OUT


def refuse(*_arguments: object) -> None:
    raise StoreError("away")


# what is in it


def test_garbage_is_logged_once(
    side: Callable[..., Side], store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    ours = side()
    for garbage in (b"\xff", b"\xfe"):
        store.update(KEY, lambda _old, _now, garbage=garbage: (garbage, None))
        with caplog.at_level(logging.WARNING, "resilient_scan"):
            assert ours.turn("one") is RUN
    assert [record.getMessage() for record in caplog.records] == [
        "the store memory: holds a quarantine record that cannot be read; it starts again with every scanner in service"
    ]


def test_next_to_a_newer_version_manual_orders_are_refused(
    side: Callable[..., Side], store: FailingStore, clock: JumpingClock
) -> None:
    newer = msgspec.msgpack.encode({"schema": 2, "born": 1.0})
    store.update(KEY, lambda _old, _now: (newer, None))
    ours = side()
    for order, state in ((ours.gate.disable, "disabled"), (ours.gate.enable, "enabled")):
        with pytest.raises(StoreError, match=f"^one is not {state}, no order can be given: a newer version of this"):
            order("one", "quota", 60.0)
    assert ours.turn("one") is RUN, "nor does the order hold here only"
    assert store.read(KEY)[KEY] == newer


def test_alerts_of_another_sender_are_counted_as_unknown(side: Callable[..., Side]) -> None:
    ours = side()
    ours.gate.alerts([alert("one")], "my own\nalerting")
    assert [event.source for event in ours.recorder.of(AlertReceived)] == ["unknown"]
    assert ours.gate.audit(1)[0].who == "my own alerting"


def test_a_probe_that_waits_beneath_an_order_is_due_when_that_expires(
    side: Callable[..., Side], clock: JumpingClock
) -> None:
    ours = side()
    ours.gate.alerts([alert("one")], "alertmanager")
    ours.gate.disable("one", "quota", 100.0)
    clock.advance(99)
    assert ours.gate.probes_due() == ()
    clock.advance(1)
    assert ours.gate.probes_due() == ("one",)


def test_a_record_that_is_gone_is_a_fresh_one(side: Callable[..., Side], store: FailingStore) -> None:
    ours = side()
    ours.gate.disable("one", "quota", 60.0)
    store.update(KEY, lambda _old, _now: (None, None))
    assert ours.turn("one") is RUN


def test_a_look_at_what_is_known_costs_no_step(side: Callable[..., Side], store: FailingStore) -> None:
    ours = side()
    ours.gate.disable("one", "quota", 60.0)
    fleet = ours.gate._quarantine.fleet
    ours.gate.refresh()
    assert ours.gate._quarantine.fleet is fleet


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_is_noticed_when_somebody_looks(
    side: Callable[..., Side], clock: JumpingClock, jump: float
) -> None:
    ours, theirs = side(), side()
    ours.gate.disable("one", "quota", 100.0)
    theirs.gate.refresh()
    clock.advance(10)
    clock.jumped = jump
    assert [ours.turn("one"), theirs.turn("one")] == [OUT, OUT]
    assert ours.gate.view("one").until == pytest.approx(START + 100 + jump)
    clock.advance(89)
    assert [ours.turn("one"), theirs.turn("one")] == [OUT, OUT]
    clock.advance(1)
    assert [ours.turn("one"), theirs.turn("one")] == [RUN, RUN]


# alerting unreachable


def test_unreachable_alerting_is_logged_once_and_ends_with_a_heartbeat(
    side: Callable[..., Side], clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    ours = side(heartbeat=10)
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        for _ in range(5):
            ours.gate.refresh()
            clock.advance(10)
    assert len(caplog.records) == 1
    assert "no heartbeat of the alerting for 3 periods" in caplog.records[0].getMessage()
    assert ours.gate.unreachable_since() == START + 30
    ours.gate.alerts([alert("", action="heartbeat")], "alertmanager")
    ours.gate.refresh()
    assert ours.gate.unreachable_since() is None


# who asks


def test_the_view_of_a_scanner(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours = side()
    ours.gate.alerts([alert("one")], "alertmanager")
    state = ours.gate.view("one")
    assert (state.state, state.source, state.who) == ("quarantined", "alert", "alertmanager")
    assert state.reason == "ScannerErrorRatioHigh: one fails"
    assert (state.since, state.until, state.next_probe) == (START, START + 60, START + 60)
    (evidence,) = state.evidence
    assert (evidence.fingerprint, evidence.status, evidence.blocks) == ("f1", "firing", True)
    clock.advance(60)
    ours.gate.turn("one", 30.0)
    state = ours.gate.view("one")
    assert (state.state, state.probing, state.passed, state.needed) == ("probing", True, 0, 3)
    assert (state.until, state.next_probe) == (None, clock.time() + 120)
    ours.gate.disable("one", "quota", 10.0, who="kim")
    state = ours.gate.view("one")
    assert (state.state, state.by_hand, state.beneath, state.next_probe) == ("disabled", True, "probing", None)
    assert (state.source, state.who, state.reason, state.until) == ("hand", "kim", "quota", clock.time() + 10)
    clock.advance(10)
    assert ours.gate.view("one").state == "probing"
    plain = ours.gate.view("two")
    assert (plain.state, plain.source, plain.since, plain.until) == ("enabled", "", None, None)
    assert plain.to_dict()["evidence"] == []


def test_views_read_the_store(side: Callable[..., Side], clock: JumpingClock) -> None:
    ours, theirs = side(), side()
    ours.gate.disable("two", "quota", 60.0)
    assert [state.state for state in theirs.gate.views()] == ["enabled", "disabled", "enabled", "enabled"]
    clock.advance(60)
    assert {state.state for state in theirs.gate.views()} == {"enabled"}
    assert theirs.changes() == [("disabled", "enabled", "expiry")]


def test_a_gate_with_a_store_of_its_own_reads_nothing(clock: JumpingClock) -> None:
    gate = Gate(("one",), clock, Bus([]))
    gate.disable("one", "quota", 60.0)
    fleet = gate._quarantine.fleet
    gate.refresh()
    assert gate._quarantine.fleet is fleet
