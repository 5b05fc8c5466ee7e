"""The controller's eight rules, a test or more for each, by their number."""

from __future__ import annotations

import pytest

from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Rules, Turn
from tests.support.quarantine import START, Bench, alert

RUN, OUT, PROBE = Turn.RUN, Turn.DISABLED, Turn.PROBE


@pytest.fixture
def bench() -> Bench:
    return Bench("one", "two", "three", "four")


def test_rule_1_a_firing_alert_quarantines_the_scanner_that_it_names(bench: Bench) -> None:
    assert bench.turn("one") is RUN
    assert bench.alerts(alert("one")) == ("accepted",)
    assert bench.turn("one") is OUT
    assert bench.turn("two") is RUN
    (change,) = bench.changes
    assert (change.old, change.new, change.source) == ("enabled", "quarantined", "alert")
    assert (change.who, change.reason) == ("alertmanager", "ScannerErrorRatioHigh: one fails")
    assert change.until == START + 60


def test_rule_1_an_alert_about_a_scanner_that_is_not_registered_does_nothing(bench: Bench) -> None:
    assert bench.alerts(alert("five"), alert("")) == ("unknown_scanner", "unknown_scanner")
    assert bench.stored is None


@pytest.mark.parametrize("action", ["", "page", "Disable"])
def test_rule_1_an_alert_that_does_not_ask_for_it_never_disables(bench: Bench, action: str) -> None:
    assert bench.alerts(alert("one", action=action)) == ("ignored",)
    assert bench.turn("one") is RUN


def test_rule_1_of_the_alerts_about_one_process_only_ones_own_count(bench: Bench) -> None:
    ours, theirs = alert("one", instance="a:1"), alert("two", instance="b:1")
    assert bench.alerts(ours, theirs, alert("three"), to="a:1") == ("accepted", "ignored", "accepted")
    assert [bench.turn(name) for name in ("one", "two", "three")] == [OUT, RUN, OUT]
    assert bench.alerts(alert("four", instance="b:1")) == ("accepted",)  # a program that does not ask whose they are


def test_rule_1_the_end_of_another_processs_alert_ends_nothing_here(bench: Bench) -> None:
    bench.alerts(alert("one", instance="a:1"), to="a:1")
    assert bench.alerts(alert("one", "resolved", instance="b:1"), to="a:1") == ("ignored",)
    bench.advance(60)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "probing"


def test_rule_4_a_replica_on_the_same_record_does_not_resolve_what_another_was_told(bench: Bench) -> None:
    ours = alert("one", instance="a:1")
    bench.alerts(ours, to="a:1")
    bench.advance(1)
    assert bench.reconcile(ours, to="b:1") == ("ignored",)
    assert bench.record("one").alerts["f1"].status == "firing"
    bench.advance(1)
    bench.reconcile(to="b:1")
    assert bench.record("one").alerts["f1"].status == "resolved"  # it is on nobody's list any more


def test_rule_1_each_fingerprint_of_a_scanner_is_kept(bench: Bench) -> None:
    assert bench.alerts(alert("one", mark="a"), alert("one", mark="b")) == ("accepted", "accepted")
    assert bench.moves("one") == [("enabled", "quarantined", "alert")]
    bench.alerts(alert("one", "resolved", mark="a"))
    bench.advance(60)
    bench.probes("one", True, True, True, True)
    assert bench.state("one") == "probing"
    bench.alerts(alert("one", "resolved", mark="b"))
    bench.probes("one", True)
    assert bench.state("one") == "enabled"


def test_rule_2_resolved_never_enables(bench: Bench) -> None:
    bench.alerts(alert("one"))
    assert bench.alerts(alert("one", "resolved")) == ("accepted",)
    assert bench.turn("one") is OUT
    bench.advance(59.75)
    assert bench.turn("one") is OUT
    bench.advance(0.25)
    assert bench.state("one") == "quarantined"
    assert bench.turn("one") is PROBE
    assert bench.state("one") == "probing"


def test_rule_2_resolved_does_not_enable_after_enough_probes_either(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.probes("one", True, True, True)
    bench.alerts(alert("one", "resolved"))
    assert bench.state("one") == "probing"
    bench.probes("one", True)
    assert bench.state("one") == "enabled"


def test_rule_2_probing_begins_after_the_cool_off_although_the_alert_fires(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    assert bench.turn("one") is PROBE


def test_rule_3_probes_are_made_one_at_a_time(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    assert bench.turn("one", "us") is PROBE
    assert bench.turn("one", "them") is OUT
    bench.probe("one", True, "us")
    assert bench.turn("one", "them") is PROBE


def test_rule_3_enough_successes_enable_and_the_level_goes_down(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(60)
    bench.probes("one", False)
    assert bench.record("one").level == 1
    bench.advance(120)
    bench.probes("one", True, True)
    assert bench.state("one") == "probing"
    bench.probes("one", True)
    assert bench.turn("one") is RUN
    assert bench.record("one").level == 0
    assert bench.moves("one")[-1] == ("probing", "enabled", "probe")


def test_rule_3_a_failure_quarantines_for_longer_up_to_the_cap() -> None:
    bench = Bench("one", options=Quarantine(cooloff=60, cooloff_cap=300))
    bench.alerts(alert("one"))
    lengths = []
    for _ in range(5):
        until = bench.record("one").until
        lengths.append(until - bench.now)
        bench.advance(until - bench.now)
        bench.probes("one", False)
    assert lengths == [60, 120, 240, 300, 300]


def test_rule_3_the_cool_off_is_shortened_by_chance_but_for_the_first() -> None:
    bench = Bench("one", draw=lambda: 0.0)
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.probes("one", False)
    assert bench.record("one").until == bench.now + 0.75 * 120


def test_rule_3_one_failure_among_successes_begins_again(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(60)
    bench.probes("one", True, True, False)
    assert bench.state("one") == "quarantined"
    bench.advance(120)
    bench.probes("one", True, True)
    assert bench.state("one") == "probing"


def test_rule_4_an_alert_that_is_not_asserted_within_its_lease_does_not_disable_for_ever(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(3599)
    bench.probes("one", True, True, True, True)
    assert bench.state("one") == "probing"
    bench.advance(1)
    bench.probes("one", True)
    assert bench.state("one") == "enabled"


def test_rule_4_asserting_an_alert_again_prolongs_its_lease(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(3000)
    assert bench.alerts(alert("one")) == ("duplicate",)
    bench.advance(3000)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "probing"


def test_rule_4_an_alert_whose_data_are_missing_is_unknown_and_probes_decide(bench: Bench) -> None:
    bench.alerts(alert("one"))
    assert bench.alerts(alert("one", "unknown")) == ("accepted",)
    assert bench.turn("one") is OUT
    bench.advance(60)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "enabled"


def test_rule_4_an_unknown_alert_that_is_asserted_again_fires(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "unknown"))
    assert bench.alerts(alert("one")) == ("accepted",)
    bench.advance(60)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "probing"


def test_rule_4_the_list_of_active_alerts_is_the_truth(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("two"))
    bench.advance(60)
    assert bench.reconcile(alert("two"), alert("three")) == ("duplicate", "accepted")
    assert bench.state("three") == "quarantined"
    bench.probes("one", True, True, True)
    bench.probes("two", True, True, True)
    assert (bench.state("one"), bench.state("two")) == ("enabled", "probing")


def test_rule_4_what_fired_after_the_list_was_asked_for_is_not_missing(bench: Bench) -> None:
    asked = bench.now
    bench.advance(1)
    bench.alerts(alert("one"))
    bench.reconcile(since=asked)
    assert bench.record("one").alerts["f1"].status == "firing"
    bench.alerts(alert("two"), source="grafana")
    bench.advance(1)
    bench.reconcile()
    assert bench.record("one").alerts["f1"].status == "resolved"
    assert bench.record("two").alerts["f1"].status == "firing"  # not Alertmanager's


def test_rule_4_the_list_revives_a_resolved_alert(bench: Bench) -> None:
    bench.alerts(alert("one"), alert("one", "resolved"))
    assert bench.alerts(alert("one")) == ("duplicate",)
    assert bench.record("one").alerts["f1"].status == "resolved"
    assert bench.reconcile(alert("one")) == ("accepted",)
    assert bench.record("one").alerts["f1"].status == "firing"


def test_rule_4_what_is_missing_on_the_list_is_resolved_from_now_on() -> None:
    """Whether that is believed hangs on the heartbeats since then."""
    bench = Bench("one", options=Quarantine(heartbeat=10, lease=1000))
    bench.alerts(alert("one"))
    bench.heartbeat()
    bench.advance(60)
    bench.reconcile()
    assert bench.unreachable()
    bench.probes("one", True, True, True)
    assert bench.state("one") == "probing"
    assert bench.record("one").alerts["f1"].said == bench.now


def test_rule_5_without_any_heartbeat_nothing_is_unreachable(bench: Bench) -> None:
    bench.advance(1e6)
    assert not bench.unreachable()


def test_rule_5_unreachable_after_three_periods_without_a_heartbeat() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10))
    bench.heartbeat()
    bench.advance(29)
    assert not bench.unreachable()
    bench.advance(1)
    assert bench.unreachable()
    bench.heartbeat()
    assert not bench.unreachable()


def test_rule_5_where_heartbeats_are_expected_none_at_all_is_unreachable_alerting() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10))
    assert not bench.unreachable()
    bench.advance(30)
    assert bench.unreachable()
    bench.restart()
    assert not bench.unreachable()


def test_rule_5_the_period_is_learned_from_the_heartbeats(bench: Bench) -> None:
    for seconds in (0, 20, 1, 19):
        bench.advance(seconds)
        bench.heartbeat()
    bench.advance(59)
    assert not bench.unreachable()
    bench.advance(1)
    assert bench.unreachable()
    bench.advance(1e5)
    bench.heartbeat()  # an outage is no period
    bench.advance(60)
    assert bench.unreachable()


def test_rule_5_while_unreachable_no_resolved_alert_enables() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10, lease=1000))
    bench.heartbeat()
    bench.alerts(alert("one"))
    bench.advance(1)
    bench.alerts(alert("one", "resolved"))
    bench.advance(60)
    assert bench.unreachable()
    bench.probes("one", True, True, True, True)
    assert bench.state("one") == "probing"
    bench.heartbeat()
    bench.probes("one", True)
    assert bench.state("one") == "enabled"


def test_rule_5_unreachable_alerting_does_not_disable_forever() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10, lease=1000))
    bench.heartbeat()
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.advance(1000)
    bench.probes("one", True, True, True)
    assert bench.state("one") == "enabled"


def test_rule_5_while_unreachable_a_scanner_without_alerts_comes_back() -> None:
    bench = Bench("one", options=Quarantine(heartbeat=10, after_failures=1))
    bench.executed("one", True)
    bench.advance(60)
    assert bench.unreachable()
    bench.probes("one", True, True, True)
    assert bench.state("one") == "enabled"


@pytest.mark.parametrize(
    ("share", "scanners", "most"), [(0.5, 4, 2), (0.5, 5, 2), (0.5, 1, 1), (0.0, 4, 1), (1.0, 4, 4)]
)
def test_rule_6_the_fuse_keeps_a_share_of_the_scanners_in_service(share: float, scanners: int, most: int) -> None:
    names = [f"s{number}" for number in range(scanners)]
    bench = Bench(*names, options=Quarantine(max_share=share))
    said = bench.alerts(*(alert(name, mark=name) for name in names))
    assert said == ("accepted",) * most + ("refused",) * (scanners - most)
    assert [bench.turn(name) for name in names] == [OUT] * most + [RUN] * (scanners - most)


def test_rule_6_a_refused_alert_is_tried_again_when_it_is_asserted_again() -> None:
    bench = Bench("one", "two", options=Quarantine(max_share=0.5))
    bench.alerts(alert("one"), alert("one", "resolved"))
    assert bench.alerts(alert("two")) == ("refused",)
    bench.advance(60)
    bench.probes("one", True, True, True)
    assert bench.alerts(alert("two")) == ("accepted",)


def test_rule_6_a_critical_scanner_is_never_taken_out() -> None:
    bench = Bench("one", "two", options=Quarantine(critical=("one",), after_failures=1))
    assert bench.alerts(alert("one")) == ("refused",)
    bench.executed("one", True, True)
    assert bench.turn("one") is RUN
    bench.disable("one")
    assert bench.turn("one") is OUT


def test_rule_6_an_order_by_hand_is_never_undone_by_an_alert_and_expires(bench: Bench) -> None:
    bench.disable("one", 100)
    assert bench.alerts(alert("one"), alert("one", "resolved")) == ("accepted", "accepted")
    assert bench.state("one") == "disabled"
    bench.advance(99)
    assert bench.turn("one") is OUT
    bench.advance(1)
    assert bench.turn("one") is RUN
    assert bench.moves("one") == [("enabled", "disabled", "hand"), ("disabled", "enabled", "expiry")]


def test_rule_6_enabling_by_hand_is_never_undone_by_an_alert_and_expires(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.enable("one", 3000)
    assert bench.turn("one") is RUN
    assert bench.alerts(alert("one"), alert("one", start=2.0)) == ("overruled", "overruled")
    bench.executed("one", *[True] * 50)
    assert bench.turn("one") is RUN
    bench.advance(3000)
    assert bench.turn("one") is OUT  # the alert still fires
    assert bench.moves("one") == [
        ("enabled", "quarantined", "alert"),
        ("quarantined", "enabled", "hand"),
        ("enabled", "quarantined", "alert"),
    ]


def test_rule_6_enabling_a_disabled_scanner_is_not_undone_by_the_alert_that_came_meanwhile(bench: Bench) -> None:
    bench.disable("one", 3000)
    bench.alerts(alert("one"))
    bench.enable("one", 1000)
    assert bench.alerts(alert("one")) == ("overruled",)  # it is repeated, or on Alertmanager's list
    assert bench.reconcile(alert("one")) == ("overruled",)
    assert bench.turn("one") is RUN
    bench.advance(1000)
    assert bench.turn("one") is OUT  # it fires still
    assert bench.moves("one")[-2:] == [("disabled", "enabled", "hand"), ("enabled", "quarantined", "alert")]


def test_rule_6_enabling_an_unquarantined_scanner_forgets_no_failure_to_come_back(bench: Bench) -> None:
    bench.alerts(alert("one"))
    for _ in range(2):
        bench.advance(10_000)
        bench.probes("one", False)
    bench.advance(10_000)
    bench.alerts(alert("one", "resolved"))
    bench.probes("one", True, True, True)
    level = bench.record("one").level
    bench.disable("one")
    bench.alerts(alert("one", start=2.0))
    bench.enable("one")
    assert bench.record("one").level == level > 0


def test_rule_6_enabling_a_disabled_scanner_does_not_protect_it_from_later_alerts(bench: Bench) -> None:
    bench.disable("one")
    bench.alerts(alert("one"), alert("one", "resolved"))
    bench.enable("one")
    assert bench.alerts(alert("one", start=2.0)) == ("accepted",)
    assert bench.turn("one") is OUT


def test_rule_6_an_alert_quarantines_when_a_manual_disable_expires(bench: Bench) -> None:
    bench.disable("one", 100)
    bench.alerts(alert("one"))
    bench.advance(100)
    assert bench.state("one") == "quarantined"
    assert bench.moves("one")[-1] == ("disabled", "quarantined", "alert")


def test_rule_6_a_quarantine_beneath_an_order_is_there_when_that_expires(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.disable("one", 10)
    bench.advance(10)
    assert bench.state("one") == "quarantined"
    assert bench.moves("one")[-2:] == [("quarantined", "disabled", "hand"), ("disabled", "quarantined", "expiry")]
    assert bench.changes[-1].until == START + 60
    bench.disable("one", 10)
    bench.enable("one")
    assert bench.turn("one") is RUN


def test_rule_6_lifting_a_disable_protects_from_nothing(bench: Bench) -> None:
    bench.disable("one")
    bench.enable("one")
    assert bench.alerts(alert("one")) == ("accepted",)


def test_rule_7_the_same_message_counts_once(bench: Bench) -> None:
    assert bench.alerts(alert("one"), alert("one")) == ("accepted", "duplicate")
    assert bench.alerts(alert("one", "resolved"), alert("one", "resolved")) == ("accepted", "duplicate")
    assert len(bench.changes) == 1


def test_rule_7_a_message_of_an_older_start_is_ignored(bench: Bench) -> None:
    bench.alerts(alert("one", start=5.0))
    assert bench.alerts(alert("one", "resolved", start=4.0)) == ("duplicate",)
    assert bench.record("one").alerts["f1"].status == "firing"
    assert bench.alerts(alert("one", "resolved", start=5.0), alert("one", start=5.0)) == ("accepted", "duplicate")
    assert bench.record("one").alerts["f1"].status == "resolved"
    assert bench.alerts(alert("one", start=6.0)) == ("accepted",)
    assert bench.record("one").alerts["f1"].status == "firing"
    assert bench.alerts(alert("one", start=7.0), alert("one", start=7.0)) == (
        "accepted",
        "duplicate",
    )


def test_rule_7_a_resolve_that_overtakes_its_alert_wins(bench: Bench) -> None:
    assert bench.alerts(alert("one", "resolved"), alert("one")) == ("accepted", "duplicate")
    assert bench.turn("one") is RUN


def test_rule_7_a_restart_keeps_the_quarantine(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.restart()
    assert bench.turn("one") is OUT
    bench.advance(60)
    bench.restart()
    bench.probes("one", False)
    bench.restart()
    assert (bench.turn("one"), bench.record("one").level) == (OUT, 1)


def test_rule_7_every_change_says_who_why_since_and_until(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    bench.probes("one", False)
    bench.disable("one", 500)
    changes = [(c.old, c.new, c.source, c.who, c.reason, c.until) for c in bench.changes]
    at = START + 60
    assert changes == [
        ("enabled", "quarantined", "alert", "alertmanager", "ScannerErrorRatioHigh: one fails", at),
        ("quarantined", "probing", "probe", "", "the cool-off has passed", None),
        ("probing", "quarantined", "probe", "", "HTTP 500", at + 120),
        ("quarantined", "disabled", "hand", "kim", "quota", at + 500),
    ]
    assert bench.record("one").since == at


def test_rule_8_a_failing_probe_never_lengthens_a_disable_by_hand(bench: Bench) -> None:
    bench.alerts(alert("one"))
    bench.advance(60)
    assert bench.turn("one") is PROBE
    bench.disable("one", 100)
    bench.probe("one", False)
    assert bench.state("one") == "disabled"
    order = bench.record("one").order
    assert order is not None
    assert order.until == bench.now + 100
    assert bench.moves("one")[-1] == ("probing", "disabled", "hand")
    bench.advance(100)
    assert bench.state("one") == "quarantined"


def test_rule_8_a_failing_probe_does_not_count_as_a_failed_execution() -> None:
    bench = Bench("one", options=Quarantine(after_failures=2, successes=1))
    bench.executed("one", True, True)
    bench.advance(60)
    bench.probes("one", False)
    bench.executed("one", True)  # began before the quarantine, ended in it
    assert bench.record("one").failures == 0
    bench.advance(120)
    bench.probes("one", True)
    bench.executed("one", True)
    assert bench.turn("one") is RUN


# what only whoever knows the scanner may decide


def test_a_process_with_part_of_the_fleet_leaves_the_orders_of_the_rest_alone() -> None:
    """It knows neither who is critical there nor how many may be out."""
    bench = Bench("critical", "other", options=Quarantine(max_share=1.0, critical=("critical",)))
    bench.alerts(alert("critical"))
    bench.disable("critical", seconds=10)
    bench.advance(11)
    whole, bench.rules = bench.rules, Rules(Quarantine(max_share=1.0), frozenset({"other"}))
    bench.executed("other", True)
    assert bench.fleet.scanners["critical"].order is not None
    bench.rules = whole
    assert bench.state("critical") == "enabled"
    assert bench.moves("critical") == [("enabled", "disabled", "hand"), ("disabled", "enabled", "expiry")]


# the heartbeat that resolves


def over(bench: Bench) -> None:
    bench.alerts(alert("", "resolved", mark="watchdog", action="heartbeat"), alert("a", "resolved"))


def test_a_resolved_heartbeat_makes_the_alerting_unreachable_at_once() -> None:
    """A Prometheus that was stopped takes all its alerts with it, the watchdog among them."""
    bench = Bench("a", options=Quarantine(cooloff=10, heartbeat=60))
    bench.heartbeat()
    bench.alerts(alert("a"))
    bench.advance(20)
    over(bench)
    assert bench.unreachable()
    bench.probes("a", True, True, True, True)
    assert bench.state("a") == "probing"
    bench.heartbeat()
    assert not bench.unreachable()
    bench.probes("a", True)
    assert bench.state("a") == "enabled"


def test_it_does_not_lengthen_the_period_that_is_learnt() -> None:
    bench = Bench("a")
    for _ in range(3):
        bench.heartbeat()
        bench.advance(60)
    over(bench)
    assert bench.unreachable()
    bench.advance(1000)
    bench.heartbeat()
    bench.advance(179)
    assert not bench.unreachable()
    bench.advance(1)
    assert bench.unreachable()


@pytest.mark.parametrize("heard", [0, 1])
def test_where_nothing_is_known_of_heartbeats_it_says_nothing(heard: int) -> None:
    bench = Bench("a")
    for _ in range(heard):
        bench.heartbeat()
    over(bench)
    assert not bench.unreachable()
