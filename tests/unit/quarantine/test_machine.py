"""The machine beyond the eight rules: own counts, probes' leases, orders, what is forgotten, what is bounded."""

from __future__ import annotations

import pytest

from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Turn
from resilient_scan.quarantine.records import MAX_ALERTS, MAX_TEXT
from tests.support.quarantine import START, Bench, alert

RUN, OUT, PROBE = Turn.RUN, Turn.DISABLED, Turn.PROBE


@pytest.fixture
def bench() -> Bench:
    return Bench("one", "two", "three", "four", options=Quarantine(max_share=1.0, after_failures=3))


# own counts


def test_so_many_failures_in_a_row_quarantine(bench: Bench) -> None:
    bench.executed("one", True, True, False, True, True)
    assert bench.turn("one") is RUN
    bench.executed("one", True)
    assert bench.turn("one") is OUT
    (change,) = bench.changes
    assert (change.source, change.until) == ("failures", START + 60)
    assert change.reason == "3 executions in a row failed, the last one with HTTP 500"
    bench.advance(60)
    bench.probes("one", True, True, True)
    bench.executed("one", True, True)
    assert bench.turn("one") is RUN


def test_without_a_number_nothing_is_counted() -> None:
    bench = Bench("one")
    bench.executed("one", *[True] * 100)
    assert bench.stored is None


def test_a_failure_that_the_fuse_refuses_is_tried_again_with_the_next() -> None:
    bench = Bench("one", "two", options=Quarantine(after_failures=1))
    bench.executed("one", True)
    bench.executed("two", True)
    assert (bench.state("one"), bench.state("two")) == ("quarantined", "enabled")
    bench.advance(60)
    bench.probes("one", True, True, True)
    bench.executed("two", True)
    assert bench.state("two") == "quarantined"


def test_what_fails_while_it_is_out_of_service_by_hand_is_not_counted(bench: Bench) -> None:
    bench.disable("one", 10)
    bench.executed("one", True, True, True)
    bench.advance(10)
    assert bench.turn("one") is RUN


def test_executions_of_unknown_scanners_are_nothing(bench: Bench) -> None:
    bench.executed("five", True, True, True, False)
    assert bench.stored is None


# probes


def test_a_probe_whose_process_died_blocks_for_its_lease_only(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    assert bench.turn("one", "dead", seconds=30) is PROBE
    bench.advance(29)
    assert bench.turn("one", "us") is OUT
    bench.advance(1)
    assert bench.turn("one", "us") is PROBE
    bench.probe("one", False, "dead")  # it was not dead after all: its verdict comes too late
    assert bench.state("one") == "probing"
    bench.probe("one", False, "us")
    assert bench.state("one") == "quarantined"


def test_a_probe_may_end_late_unless_another_has_begun(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.turn("one", "us", seconds=30)
    bench.advance(100)
    bench.probe("one", False, "us")
    assert bench.state("one") == "quarantined"


def test_a_probe_without_a_verdict_changes_nothing(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.probes("one", True)
    bench.turn("one")
    bench.probe("one", None)
    record = bench.record("one")
    assert (record.state, record.passed, record.probe) == ("probing", 1, None)


def test_a_verdict_of_an_unknown_probe_changes_nothing(bench: Bench) -> None:
    bench.probe("one", False)
    bench.alerts(alert("one"))
    bench.probe("one", True)
    assert bench.state("one") == "quarantined"


def test_a_scanner_enabled_by_hand_during_its_probe_stays_so(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.turn("one")
    bench.enable("one")
    bench.probe("one", False)
    assert bench.turn("one") is RUN


def test_probes_that_succeed_beneath_a_disable_show_when_it_expires(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(60)
    bench.probes("one", True, True)
    bench.turn("one")
    bench.disable("one", 10)
    bench.probe("one", True)
    assert bench.turn("one") is OUT
    bench.advance(10)
    assert bench.turn("one") is RUN
    assert bench.moves("one")[-1] == ("disabled", "enabled", "expiry")


def test_a_level_is_forgotten_each_longest_cool_off_in_service() -> None:
    bench = Bench("one", options=Quarantine(cooloff=60, cooloff_cap=600))
    bench.alerts(alert("one"), alert("one", "resolved"))
    for _ in range(4):
        bench.advance(600)
        bench.probes("one", False)
    bench.advance(600)
    bench.probes("one", True, True, True)
    assert bench.record("one").level == 3
    bench.advance(1199)
    bench.alerts(alert("one", start=2.0), alert("one", "resolved", start=2.0))
    assert bench.record("one").level == 2
    assert bench.record("one").until == bench.now + 240


def test_a_level_has_a_bound(bench: Bench) -> None:
    bench.alerts(alert("one"))
    for _ in range(70):
        bench.advance(3600)
        bench.probes("one", False)
    assert bench.record("one").until == bench.now + 3600


# orders


def test_a_second_order_replaces_the_first(bench: Bench) -> None:
    bench.disable("one", 60)
    bench.advance(30)
    bench.disable("one", 10, "again")
    assert (bench.changes[-1].old, bench.changes[-1].until) == ("disabled", bench.now + 10)
    bench.advance(10)
    assert bench.turn("one") is RUN


def test_enabling_a_scanner_in_service_changes_nothing(bench: Bench) -> None:
    bench.enable("one")
    bench.alerts(alert("one", "resolved"))
    bench.enable("one")
    assert bench.changes == []
    assert bench.alerts(alert("one", start=2.0)) == ("accepted",)


def test_disabling_a_manually_enabled_scanner_is_the_new_order(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.enable("one")
    bench.disable("one", 10)
    assert bench.turn("one") is OUT
    bench.advance(10)
    assert bench.state("one") == "quarantined"  # the alert still fires
    assert bench.moves("one")[-1] == ("disabled", "quarantined", "alert")


def test_the_ejection_cap_holds_when_an_order_expires() -> None:
    bench = Bench("one", "two", options=Quarantine(max_share=0.5))
    bench.disable("one", 10)
    bench.alerts(alert("one"), alert("two"))
    bench.advance(10)
    assert bench.turn("one") is RUN
    assert bench.moves("one")[-1] == ("disabled", "enabled", "expiry")


def test_an_enable_that_expires_without_an_alert_is_not_sent(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.enable("one", 10)
    bench.advance(10)
    assert bench.turn("one") is RUN
    assert len(bench.changes) == 2


# what is kept


def test_an_alert_that_makes_no_sense_is_ignored(bench: Bench) -> None:
    for start in (float("nan"), float("inf"), 1e300):
        assert bench.alerts(alert("one", start=start)) == ("ignored",)
    assert bench.alerts(alert("one", "pending")) == ("ignored",)
    assert bench.turn("one") is RUN


def test_what_others_write_is_kept_on_one_line_and_short(bench: Bench) -> None:
    bench.disable("one", reason="a\n b\ud800" + "x" * 1000)
    order = bench.record("one").order
    assert order is not None
    assert order.reason.startswith("a b?xxx")
    assert len(order.reason) == MAX_TEXT


def test_a_limited_number_of_alerts_is_kept_and_resolved_ones_go_first(bench: Bench) -> None:
    bench.alerts(alert("one", mark="over"), alert("one", "resolved", mark="over"))
    for number in range(MAX_ALERTS + 5):
        bench.advance(1)
        bench.alerts(alert("one", mark=str(number)))
    assert list(bench.record("one").alerts) == [str(number) for number in range(5, MAX_ALERTS + 5)]
    bench.advance(1)
    bench.alerts(alert("one", "resolved", mark="newest"))
    assert "newest" not in bench.record("one").alerts  # however new: it keeps nobody out


def test_alerts_resolved_long_ago_are_forgotten(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(60)
    bench.probes("one", True, True, True)
    bench.advance(7200)
    bench.turn("two")
    assert bench.fleet.scanners == {}


def test_alerts_of_probing_scanners_that_are_forgotten_block_nothing(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(7200)
    assert bench.record("one").alerts == {}
    bench.probes("one", True, True, True)
    assert bench.turn("one") is RUN


def test_scanners_of_other_fleets_on_the_same_record_are_left_alone(bench: Bench) -> None:
    bench.alerts(alert("one"))
    other = Bench("five", options=Quarantine(max_share=0.0))
    other.stored = bench.stored
    assert other.alerts(alert("five")) == ("accepted",)  # its own fleet's first
    assert set(other.fleet.scanners) == {"one", "five"}


def test_a_resolved_heartbeat_does_not_count(bench: Bench) -> None:
    bench.alerts(alert("", "resolved", action="heartbeat"))
    assert bench.fleet.heard is None
    assert bench.alerts(alert("", action="heartbeat")) == ("accepted",)
    assert bench.fleet.heard == START


def test_resolved_before_a_heartbeat_is_believed_while_unreachable() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10))
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(1)
    bench.heartbeat()
    bench.advance(60)
    assert bench.unreachable()
    bench.probes("one", True, True, True)
    assert bench.state("one") == "enabled"


def test_while_unreachable_a_resolved_alert_ejects_no_scanner_again() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10))
    bench.disable("one", 60)
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(60)
    assert bench.unreachable()
    assert bench.state("one") == "enabled"


def test_of_two_expired_orders_the_earlier_ends_first() -> None:
    bench = Bench("one", "two", options=Quarantine(max_share=0.5))
    bench.disable("one", 20)
    bench.disable("two", 10)
    bench.alerts(alert("one"), alert("two"))
    bench.advance(20)
    assert (bench.state("one"), bench.state("two")) == ("enabled", "quarantined")


def test_after_the_first_heartbeat_ever_the_period_is_taken_for_five_minutes(bench: Bench) -> None:
    bench.heartbeat()
    bench.advance(899)
    assert not bench.unreachable()
    bench.advance(1)
    assert bench.unreachable()


def test_an_enables_words_are_kept_on_one_line_and_short_too(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.enable("one", reason="fixed\nby " + "x" * 1000)
    assert bench.changes[-1].reason.startswith("fixed by xx")
    assert len(bench.changes[-1].reason) == MAX_TEXT
