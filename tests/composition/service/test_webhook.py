"""Alerts over HTTP, from the bytes of Alertmanager and Grafana to who is in service, and how each was counted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from resilient_scan import Quarantine
from resilient_scan.service.process import Instance
from resilient_scan.testing import FakeClock, healthy
from tests.composition.service.conftest import NAMES
from tests.support.control import BASIC, BEARER, Served, alert, alertmanager, counts, grafana, signed
from tests.support.fixtures import Serve

AWAY = Quarantine(max_share=1.0)


def told(served: Served, message: Any, headers: dict[str, str] = BEARER) -> dict[str, int]:
    """Send a webhook that is understood; return what it was told, which must be what was counted."""
    before = served.webhooks()
    answer = served.post("/alerts", message, headers)
    assert answer.status == 200
    after = served.webhooks()
    grown: dict[str, int] = {}
    for key, count in after.items():
        grown[key[1]] = grown.get(key[1], 0) + count - before.get(key, 0)
    said: dict[str, int] = answer.json
    assert {key: value for key, value in said.items() if value} == {key: value for key, value in grown.items() if value}
    return said


@pytest.mark.parametrize("credentials", [BEARER, BASIC])
@pytest.mark.parametrize(
    ("message", "source"), [(alertmanager(alert()), "alertmanager"), (grafana(alert()), "grafana")]
)
def test_an_alert_takes_its_scanner_out(
    serve: Serve, message: dict[str, Any], source: str, credentials: dict[str, str]
) -> None:
    served = serve()
    assert told(served, message, credentials) == counts(accepted=1)
    assert served.webhooks() == {(source, "accepted"): 1}
    row = served.get("/scanners/gamma").json
    assert (row["state"], row["source"], row["who"]) == ("quarantined", "alert", source)
    assert row["reason"] == "ScannerErrorRatioHigh: gamma fails"
    assert row["next_probe"] - row["since"] == 60
    (evidence,) = row["evidence"]
    assert (evidence["fingerprint"], evidence["status"], evidence["blocks"]) == ("a992dffc315egamma", "firing", True)
    assert [served.state(name) for name in NAMES] == ["enabled", "enabled", "quarantined", "enabled"]
    assert served.runner.run().results["gamma"].status == "disabled"
    (entry,) = served.get("/audit").json["entries"]
    assert (entry["scanner"], entry["from"], entry["to"], entry["source"]) == (
        "gamma",
        "enabled",
        "quarantined",
        "alert",
    )


def test_an_alert_that_is_over_brings_nothing_back(serve: Serve) -> None:
    served = serve()
    told(served, alertmanager(alert()))
    assert told(served, alertmanager(alert(status="resolved"), status="resolved")) == counts(accepted=1)
    assert served.state("gamma") == "quarantined"
    assert told(served, alertmanager(alert(status="resolved"))) == counts(duplicate=1)
    assert told(served, alertmanager(alert())) == counts(duplicate=1)  # it came late
    assert served.state("gamma") == "quarantined"


def test_probes_bring_it_back(serve: Serve) -> None:
    clock = FakeClock()
    served = serve(clock=clock, quarantine=Quarantine(successes=2))
    told(served, alertmanager(alert()))
    told(served, alertmanager(alert(status="resolved")))
    clock.advance(61)
    served.runner.run()
    assert served.get("/scanners/gamma").json["state"] == "probing"
    served.runner.run()
    assert served.get("/scanners/gamma").json["state"] == "enabled"


def test_a_mixed_group_is_taken_one_by_one(serve: Serve) -> None:
    served = serve(quarantine=AWAY)
    told(served, alertmanager(alert("alpha"), alert("beta")))
    message = alertmanager(
        alert("alpha", "resolved"),
        alert("beta"),
        alert("gamma"),
        alert("nobody"),
        alert("delta", labels={"resilient_scan_action": "page"}),
        alert("delta", labels={"resilient_scan_action": ""}),
        alert(None),
        {"status": "firing"},
        commonLabels={"scanner": "delta", "resilient_scan_action": "disable"},
    )
    assert told(served, message) == counts(accepted=2, duplicate=1, unknown_scanner=2, ignored=2, invalid=1)
    assert [served.state(name) for name in NAMES] == ["quarantined", "quarantined", "quarantined", "enabled"]


def test_of_one_alert_twice_in_a_message_one_is_a_duplicate(serve: Serve) -> None:
    assert told(serve(), alertmanager(alert(), alert(), alert())) == counts(accepted=1, duplicate=2)


def test_a_critical_scanner_and_a_blown_fuse_refuse(serve: Serve) -> None:
    served = serve(quarantine=Quarantine(critical=("alpha",), max_share=0.5))
    message = alertmanager(*map(alert, NAMES))
    assert told(served, message) == counts(accepted=2, refused=2)
    assert [served.state(name) for name in NAMES] == ["enabled", "quarantined", "quarantined", "enabled"]
    assert served.webhooks() == {("alertmanager", "accepted"): 2, ("alertmanager", "refused"): 2}


def test_an_order_by_hand_wins(serve: Serve) -> None:
    served = serve()
    served.post("/scanners/gamma/disable", {"reason": "x"})
    assert told(served, alertmanager(alert())) == counts(accepted=1)
    assert served.state("gamma") == "disabled"
    served.post("/scanners/gamma/enable", {"reason": "x"})
    assert told(served, alertmanager(alert())) == counts(overruled=1)
    assert served.state("gamma") == "enabled"


SCRAPE = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}


def scrape(served: Served, host: str) -> None:
    """Ask for the metrics as Prometheus does, which names the target in `Host`."""
    assert served.ask("GET", "/metrics", headers={**SCRAPE, "Host": host}).status == 200


def about(instance: str, scanner: str = "gamma") -> dict[str, Any]:
    return alertmanager(alert(scanner, labels={"instance": instance}, fingerprint=instance))


def test_an_alert_about_another_instance_is_ignored(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(instance=Instance("a:1"), allowed_hosts=("a", "b"))
    scrape(served, "b:1")  # what is set counts
    assert told(served, about("b:1")) == counts(ignored=1)
    assert told(served, about("b:1")) == counts(ignored=1)
    assert served.state("gamma") == "enabled"
    assert told(served, about("a:1")) == counts(accepted=1)
    assert served.state("gamma") == "quarantined"
    (said,) = [record.message for record in caplog.records if "ignored" in record.message]
    assert said == (
        "an alert about the instance 'b:1' is ignored, for this process is 'a:1': among replicas that is right; "
        "otherwise set service.instance"
    )


def test_the_instance_is_that_as_which_it_is_scraped(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[None] = []
    served = serve(ask_again=lambda: asked.append(None), allowed_hosts=("a",))
    assert told(served, about("a:1")) == counts(ignored=1)
    assert "for this process was never scraped: " in caplog.text
    assert served.ask("GET", "/metrics", headers={"Host": "a:1"}).status == 200  # somebody's browser
    assert told(served, about("a:1")) == counts(ignored=1)
    assert asked == []
    scrape(served, "a:1")
    scrape(served, "a:1")
    assert asked == [None]  # Alertmanager's list is asked for: what came until now was not acted on
    assert told(served, about("a:1")) == counts(accepted=1)
    for number in range(2, 6):  # the newest four names count
        scrape(served, f"a:{number}")
    assert [told(served, about(f"a:{number}", "beta"))["ignored"] for number in (1, 2)] == [1, 0]


def test_one_that_receives_for_others_acts_on_alerts_about_every_instance(serve: Serve) -> None:
    served = serve(instance=Instance("*"))
    assert told(served, about("b:1")) == counts(accepted=1)


@pytest.mark.parametrize("cut", [3, 0, -1, None, "3", [1]])
def test_a_message_that_was_cut_off_asks_for_the_rest(serve: Serve, cut: Any, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[None] = []
    served = serve(ask_again=lambda: asked.append(None))
    assert told(served, alertmanager(alert(), truncatedAlerts=cut)) == counts(accepted=1)
    assert len(asked) == (cut == 3)
    told(serve(), alertmanager(alert(), truncatedAlerts=cut))
    assert ("has cut off 3 alerts of a message" in caplog.text) is (cut == 3)


def test_the_heartbeat_is_heard(serve: Serve) -> None:
    clock = FakeClock()
    served = serve(clock=clock, quarantine=Quarantine(heartbeat=30))
    clock.advance(100)
    name = "resilient_scan_alert_last_heartbeat_timestamp_seconds"
    assert served.registry.get_sample_value(name) == 0  # never seen
    assert served.runner.blind_since() is not None
    assert b"No heartbeat" in served.get("/").body
    beat = alert(None, labels={"alertname": "Watchdog", "resilient_scan_action": "heartbeat"})
    assert told(served, alertmanager(beat)) == counts(accepted=1)
    assert served.runner.blind_since() is None
    assert b"No heartbeat" not in served.get("/").body
    assert served.registry.get_sample_value(name) == clock.time()


def test_where_no_alerts_are_served_no_heartbeat_is_exported(serve: Serve) -> None:
    served = serve(token=None)
    assert served.registry.get_sample_value("resilient_scan_alert_last_heartbeat_timestamp_seconds") is None


def test_a_message_without_alerts_is_fine(serve: Serve) -> None:
    assert told(serve(), alertmanager()) == counts()


def test_an_alert_that_cannot_be_read_costs_no_other(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(quarantine=AWAY)
    bad: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        {"status": "firing"},
        alert("alpha", "pending"),
        alert(startsAt="x\x1b[31m"),
    ]
    bad += [{**alert("alpha"), "labels": []}, {**alert("alpha"), "status": [[[1]]]}]
    message = alertmanager(bad[0], alert("gamma"), *bad[1:], alert("beta"))
    assert told(served, message) == counts(accepted=2, invalid=len(bad))
    assert [served.state(name) for name in NAMES] == ["enabled", "quarantined", "quarantined", "enabled"]
    assert served.webhooks() == {("alertmanager", "accepted"): 2, ("alertmanager", "invalid"): len(bad)}
    told_once = "alerts of alertmanager cannot be read, 10 in one message; the first: alerts[0]: an object was expected"
    assert caplog.text.count("cannot be read") == caplog.text.count(told_once) == 1
    assert "\x1b" not in caplog.text


def test_hostile_texts_are_kept_harmless(serve: Serve) -> None:
    served = serve()
    text = "<script>alert(1)</script>\r\n\x1b[2J\x00\u202e" + "x" * 100_000
    told(served, alertmanager(alert(fingerprint=text, annotations={"summary": text}, labels={"alertname": text})))
    row = served.get("/scanners/gamma").json
    assert row["state"] == "quarantined"
    assert len(row["reason"]) <= 700
    assert not {"\r", "\n", "\x1b", "\x00", "\u202e"} & set(row["reason"] + row["evidence"][0]["name"])
    page = served.get("/").body
    assert b"<script>alert" not in page
    assert b"&lt;script&gt;alert" in page


WRONG = [
    (b"[]", 422),
    (b"null", 422),
    (b"{}", 422),
    (b'{"alerts": []}', 422),
    (b'{"alerts": {}, "version": "4"}', 422),
    (b'{"alerts": [], "version": "5"}', 422),
    (b'{"alerts": [], "version": 4}', 422),
    (b'{"alerts": [], "version": ' + b"9" * 5000 + b"}", 422),
    (b'{"alerts": [], "version": ' + b"[" * 200 + b"]" * 200 + b"}", 422),
    (b"{", 400),
    (b'{"alerts": [NaN], "version": "4"}', 400),
]


@pytest.mark.parametrize(("body", "status"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_webhook_is_counted_once(serve: Serve, body: bytes, status: int) -> None:
    served = serve()
    answer = served.post("/alerts", body)
    assert answer.error[0] == status
    assert len(answer.error[2]) < 200
    assert served.webhooks() == {("unknown", "invalid"): 1}


def test_every_way_to_be_turned_away_is_counted_once(serve: Serve) -> None:
    served = serve()
    message = alertmanager(alert())
    assert served.post("/alerts", message, {}).status == 401
    assert served.webhooks() == {("unknown", "unauthorized"): 1}
    assert served.ask("POST", "/alerts", b"{}", BEARER).status == 415
    assert served.post("/alerts", b" " * 1_000_001).status == 413
    assert served.webhooks() == {("unknown", "unauthorized"): 1, ("unknown", "invalid"): 2}
    assert served.ask("PUT", "/alerts", b"{}").status == 405
    assert sum(served.webhooks().values()) == 3
    assert served.state("gamma") == "enabled"


# Grafana's signature


def test_a_signed_message_is_heard(serve: Serve) -> None:
    clock = FakeClock()
    served = serve(clock=clock)
    body = json.dumps(grafana(alert())).encode()
    assert told(served, body, signed(body, clock.time())) == counts(accepted=1)
    assert served.webhooks() == {("grafana", "accepted"): 1}
    assert served.state("gamma") == "quarantined"


@pytest.mark.parametrize(
    "change",
    [
        lambda body, now: {"X-Grafana-Alerting-Signature": signed(body, now)["X-Grafana-Alerting-Signature"]},
        lambda body, now: {"X-Grafana-Alerting-Timestamp": str(int(now))},
        lambda body, now: signed(body, now - 301),
        lambda body, now: signed(body, now + 301),
        lambda body, now: signed(body + b" ", now),
        lambda body, now: signed(body, now, key="another"),
        lambda body, now: {**signed(body, now), "X-Grafana-Alerting-Timestamp": str(int(now) + 1)},
        lambda body, now: {**signed(body, now), "Authorization": "Bearer wrong"},
        lambda body, now: {**signed(body, now), "X-Grafana-Alerting-Timestamp": "soon"},
    ],
)
def test_a_signature_that_is_old_or_anothers_is_worth_nothing(serve: Serve, change: Any) -> None:
    clock = FakeClock()
    served = serve(clock=clock)
    body = json.dumps(grafana(alert())).encode()
    assert served.post("/alerts", body, change(body, clock.time())).status == 401
    assert served.webhooks() == {("unknown", "unauthorized"): 1}
    assert served.state("gamma") == "enabled"


@pytest.mark.parametrize("skew", [-300, 300])
def test_a_clock_that_is_a_little_off_is_fine(serve: Serve, skew: float) -> None:
    clock = FakeClock()
    body = json.dumps(grafana(alert())).encode()
    assert told(serve(clock=clock), body, signed(body, clock.time() + skew)) == counts(accepted=1)


def test_the_clock_is_the_worlds_unless_given(serve: Serve) -> None:
    served = serve(clock=None)
    body = json.dumps(grafana(alert())).encode()
    assert told(served, body, signed(body, time.time())) == counts(accepted=1)


def test_a_resolve_whose_data_are_missing_is_unknown(serve: Serve) -> None:
    served = serve()
    told(served, grafana(alert()))
    over = alert(status="resolved", annotations={"grafana_state_reason": "MissingSeries"})
    assert told(served, grafana(over)) == counts(accepted=1)
    assert served.get("/scanners/gamma").json["evidence"][0]["status"] == "unknown"


def test_two_thousand_alerts_in_one_message(serve: Serve) -> None:
    served = serve(*(healthy(f"s{number}") for number in range(8)))
    many = [alert(f"s{number % 10}", fingerprint=str(number)) for number in range(2_000)]
    for each in many:
        each["annotations"] = {"summary": "x"}
    answer = told(served, alertmanager(*many))
    assert sum(answer.values()) == 2_000
    assert answer["unknown_scanner"] == 400
