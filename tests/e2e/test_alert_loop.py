"""From alert to cure, with real servers and the rules that we ship; one loop for all tests, a scanner for each.

The order of the tests is that of a bad day: what hangs does so from the start, because the built-in timeout takes its
30 seconds; what is ill stays ill meanwhile; the last ones leave ruins behind.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.loop import Loop, closing_loop, metric
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers
ILL, HUNG, SILENT, HAND, TWICE = "ill", "hung", "silent", "by_hand", "twice"
STEADY = ("steady_1", "steady_2", "steady_3", "steady_4", "steady_5")
NAMES = (ILL, HUNG, SILENT, HAND, TWICE, *STEADY)
MOST_OUT = 5  # half of them
BLIND = "no heartbeat of the alerting for 3 periods"
GOAL = 20.0  # seconds from the first evaluation in which a rule holds to the quarantine; 5 where nothing else runs


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("loop")
    with closing_loop(folder, *NAMES, moods={HUNG: "hang"}) as made:
        yield made


def in_time(loop: Loop, name: str) -> None:
    """Hold how long it took from the first evaluation in which a rule held until the quarantine against the goal."""
    seconds = loop.quarantined_at(name) - loop.first_fired(name)
    sys.stdout.write(f"{name}: quarantined {seconds:.2f} s after the first evaluation in which a rule held\n")
    assert seconds < GOAL


def own(name: str, *, well: bool = False) -> dict[str, Any]:
    """Post an alert of somebody's own to Alertmanager, as firing or as over."""
    now = time.time()
    ends = now - 1 if well else now + 3600
    return {
        "labels": {"alertname": name, "scanner": TWICE, "resilient_scan_action": "disable"},
        "annotations": {"summary": f"{name} is why"},
        "startsAt": stamp(now - 60),
        "endsAt": stamp(ends),
    }


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def rounds(loop: Loop, count: int = 2) -> None:
    """Wait until so many more messages have come all the way round: what was to happen by then has happened."""
    for _ in range(count):
        before = loop.heartbeats()
        eventually(lambda before=before: loop.heartbeats() > before, "heartbeats go on")


def test_a_scanner_that_starts_to_fail_is_quarantined_and_no_other_unless_it_is_silenced(loop: Loop) -> None:
    assert set(loop.served.states().values()) == {"enabled"}
    loop.silence(scanner=SILENT)
    loop.switches.turn(ILL, "ill")
    loop.switches.turn(SILENT, "ill")
    loop.served.wait_for(ILL, "quarantined")
    in_time(loop, ILL)
    assert loop.served.moves(ILL)[0][1] == "alert"
    shown = loop.served.get(f"/scanners/{ILL}")
    assert [each["status"] for each in shown["evidence"] if each["blocks"]]
    assert "alertmanager" in shown["who"]
    eventually(lambda: loop.firing(SILENT), "the rule fires for the silenced one too")
    rounds(loop)
    assert not any(loop.served.moves(name) for name in NAMES if name not in {ILL, HUNG})


def test_two_alerts_on_one_scanner_both_have_to_be_over(loop: Loop) -> None:
    loop.send("/api/v2/alerts", [own("First"), own("Second")])
    loop.served.wait_for(TWICE, "quarantined")
    loop.send("/api/v2/alerts", [own("First", well=True)])
    eventually(lambda: loop.served.get(f"/scanners/{TWICE}")["passed"] >= 3, "its probes do well")
    rounds(loop, 1)
    assert loop.served.states()[TWICE] == "probing"
    loop.send("/api/v2/alerts", [own("Second", well=True)])
    loop.served.wait_for(TWICE, "enabled")
    assert [each[0] for each in loop.served.moves(TWICE)] == ["quarantined", "enabled"]


def test_while_it_stays_ill_nothing_flaps(loop: Loop) -> None:
    does_not_flap(loop)


@pytest.mark.long
def test_while_it_stays_ill_nothing_flaps_for_30_seconds(loop: Loop) -> None:
    if "quarantined" not in [each[0] for each in loop.served.moves(ILL)]:  # it runs alone
        loop.switches.turn(ILL, "ill")
        loop.served.wait_for(ILL, "quarantined")
    eventually(lambda: time.time() > loop.quarantined_at(ILL) + 30, "30 s pass", 40)
    does_not_flap(loop)


def does_not_flap(loop: Loop) -> None:
    """Count how often an ill scanner came and went, and was asked, since its quarantine."""
    since = loop.quarantined_at(ILL)
    moves = [each[0] for each in loop.served.moves(ILL)]
    assert set(moves) == {"quarantined"}  # a failed probe is one entry
    # The cool-off is 1 s, 2 s, then 4 s, less at most a quarter: so many probes can have failed, and one is under way.
    failed = 2 + max(0.0, time.time() - since - 2.5) / 3
    assert len(moves) <= 1 + failed
    asked = [at for at in loop.switches.asked(ILL) if at > since + 0.9]
    assert len(asked) <= 3 * (1 + failed)  # three attempts a probe, and nothing else


def test_without_prometheus_it_is_blind_and_who_is_well_stays_out_until_heartbeats_come(loop: Loop) -> None:
    told = sum(BLIND in line for line in loop.served.lines)
    loop.stop("prometheus")  # it takes all its alerts with it: Alertmanager says of each that it is resolved
    loop.served.line(BLIND, told + 1)
    assert "No heartbeat from the alerts: " in loop.served.text("/")
    assert loop.served.get("/scanners")["blind_since"] is not None
    assert loop.out() - {HUNG} == {ILL}
    loop.switches.turn(ILL, "well")
    eventually(
        lambda: loop.served.get(f"/scanners/{ILL}")["passed"] >= 3 and loop.resolved({ILL}), "its probes do well"
    )
    asked = len(loop.switches.asked(ILL))
    eventually(lambda: len(loop.switches.asked(ILL)) > asked, "it is probed on")
    eventually(lambda: time.time() - loop.heartbeats() > 3, "the metric stands still")
    assert loop.out() - {HUNG} == {ILL}
    loop.start_prometheus()
    loop.served.wait_for(ILL, "enabled")
    assert loop.served.moves(ILL)[-1][:2] == ("enabled", "probe")
    assert loop.served.get("/scanners")["blind_since"] is None
    assert "No heartbeat from the alerts: " not in loop.served.text("/")


def test_a_scanner_that_hangs_is_quarantined_once_its_time_is_over_and_comes_back(loop: Loop) -> None:
    # Where the tests before took longer than its timeout, it is on probation by now, whose probes get no thread either.
    eventually(lambda: "quarantined" in [each[0] for each in loop.served.moves(HUNG)], "its time is over")
    in_time(loop, HUNG)
    assert loop.served.get(f"/scanners/{HUNG}")["abandoned_threads"] == 1
    loop.switches.turn(HUNG, "well")
    loop.served.wait_for(HUNG, "enabled")
    assert loop.served.moves(HUNG)[-1][:2] == ("enabled", "probe")
    assert not any(loop.served.moves(name) for name in STEADY)


def test_orders_by_hand_win_over_alerts_and_survive_that_all_is_killed_and_started_again(loop: Loop) -> None:
    loop.switches.turn(ILL, "ill")
    loop.switches.turn(HAND, "ill")
    loop.served.wait_for(HAND, "quarantined")
    loop.served.post(f"/scanners/{HAND}/enable", {"reason": "we know"})
    loop.served.wait_for(ILL, "quarantined")
    rounds(loop, 1)
    assert loop.firing(HAND)
    assert loop.served.states()[HAND] == "enabled"
    loop.served.post(f"/scanners/{HAND}/disable", {"reason": "quota"})
    came_back = [each[0] for each in loop.served.moves(ILL)].count("enabled")
    for part in ("service", "alertmanager"):
        loop.stop(part)  # without a word: SIGKILL
    loop.start_alertmanager()
    loop.start_service()
    assert loop.served.states()[ILL] in {"quarantined", "probing"}
    rounds(loop)
    assert loop.served.states()[ILL] in {"quarantined", "probing"}
    assert [each[0] for each in loop.served.moves(ILL)].count("enabled") == came_back
    assert loop.served.get(f"/scanners/{HAND}")["reason"] == "quota"
    assert [each[:2] for each in loop.served.moves(HAND)][-2:] == [("enabled", "hand"), ("disabled", "hand")]


def test_when_the_whole_fleet_fails_the_fuse_holds(loop: Loop) -> None:
    for name in NAMES:
        loop.switches.turn(name, "ill")
    refused = 'resilient_scan_alert_webhooks_total{result="refused",source="alertmanager"}'
    seen = set()

    def out() -> int:
        seen.add(len(loop.out()))
        return max(seen)

    eventually(lambda: out() == MOST_OUT and metric(loop.served, refused) > 0, "the fuse blew")
    for _ in range(20):
        assert out() == MOST_OUT
    assert loop.served.end(signal.SIGTERM) == 0
