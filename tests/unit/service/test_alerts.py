"""Webhook payloads: Alertmanager's and Grafana's, told apart, read leniently, wrong parts named."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import ConfigError
from resilient_scan.service.alerts import alert_of, payload_of

ALERT: dict[str, Any] = {
    "status": "firing",
    "labels": {
        "alertname": "ScannerErrorRatioHigh",
        "resilient_scan_action": "disable",
        "scanner": "gamma",
        "severity": "critical",
    },
    "annotations": {"summary": "gamma fails"},
    "startsAt": "2026-11-24T06:32:20.887123456Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "generatorURL": "http://prometheus.test/graph",
    "fingerprint": "a992dffc315e8592",
}
ALERTMANAGER: dict[str, Any] = {
    "receiver": "control",
    "status": "firing",
    "alerts": [ALERT],
    "groupLabels": {},
    "commonLabels": {},
    "commonAnnotations": {},
    "externalURL": "http://alertmanager.test",
    "version": "4",
    "groupKey": "{}",
    "truncatedAlerts": 0,
}
GRAFANA: dict[str, Any] = {**ALERTMANAGER, "version": "1", "orgId": 1, "title": "x", "state": "alerting", "message": ""}


def test_an_alert_of_alertmanager_is_read() -> None:
    payload = payload_of(ALERTMANAGER)
    (alert,) = payload.alerts
    assert payload.source == "alertmanager"
    assert payload.unreadable == ()
    assert (alert.scanner, alert.status, alert.fingerprint) == ("gamma", "firing", "a992dffc315e8592")
    assert (alert.action, alert.name, alert.summary) == ("disable", "ScannerErrorRatioHigh", "gamma fails")
    assert alert.starts_at == pytest.approx(1_795_501_940.887, abs=0.001)


def test_an_alert_of_grafana_is_read() -> None:
    alert = {**ALERT, "values": {"A": 1}, "valueString": "[ var='A' ]", "dashboardURL": "", "silenceURL": ""}
    payload = payload_of({**GRAFANA, "alerts": [alert]})
    assert payload.source == "grafana"
    assert payload.alerts[0].scanner == "gamma"
    del alert["values"]
    assert payload_of({"orgId": 1, "alerts": [alert]}).source == "grafana"


def test_each_alert_has_its_own_status_whatever_the_group_says() -> None:
    other = {**ALERT, "status": "resolved", "fingerprint": "b"}
    payload = payload_of({**ALERTMANAGER, "status": "firing", "alerts": [ALERT, other]})
    assert [alert.status for alert in payload.alerts] == ["firing", "resolved"]


@pytest.mark.parametrize("where", ["annotations", "labels"])
def test_a_resolve_because_data_are_missing_is_unknown(where: str) -> None:
    item = {**ALERT, "status": "resolved", where: {**ALERT[where], "grafana_state_reason": "MissingSeries"}}
    assert alert_of(item).status == "unknown"
    assert alert_of({**item, "status": "firing"}).status == "firing"


def test_fields_that_newer_senders_add_do_no_harm() -> None:
    newer = {**ALERTMANAGER, "notification_reason": "x", "alerts": [{**ALERT, "notification_reason": 5}]}
    assert payload_of(newer).alerts == payload_of(ALERTMANAGER).alerts


def test_maps_without_entries_are_null_in_go() -> None:
    assert alert_of({**ALERT, "annotations": None}).summary == ""
    assert alert_of({**ALERT, "labels": None}).scanner == ""


def test_an_alert_without_fingerprint_is_told_apart_by_its_labels() -> None:
    bare = {name: value for name, value in ALERT.items() if name != "fingerprint"}
    same, other = alert_of(bare), alert_of({**bare, "labels": {**ALERT["labels"], "scanner": "delta"}})
    assert alert_of({**bare, "startsAt": "2026-11-25T00:00:00Z"}).fingerprint == same.fingerprint != other.fingerprint


def test_one_unreadable_alert_costs_no_other() -> None:
    payload = payload_of({**ALERTMANAGER, "alerts": [{**ALERT, "status": "maybe"}, ALERT, 7]})
    assert [alert.scanner for alert in payload.alerts] == ["gamma"]
    assert payload.unreadable == (
        "alerts[0]: status must be 'firing' or 'resolved', got 'maybe'",
        "alerts[2]: an object was expected, got int",
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"startsAt": "yesterday"}, "startsAt must be a time such as 2026-11-24T06:32:20Z, got 'yesterday'"),
        ({"startsAt": "2026-11-24T06:32:20"}, "startsAt must be a time"),
        ({"startsAt": 5}, "startsAt must be a time such as 2026-11-24T06:32:20Z, got int"),
        ({"startsAt": None}, "startsAt must be a time such as 2026-11-24T06:32:20Z, got NoneType"),
        ({"labels": []}, "labels must be an object of texts, got list"),
        ({"annotations": "x"}, "annotations must be an object of texts, got str"),
        ({"status": None}, "status must be 'firing' or 'resolved', got NoneType"),
    ],
)
def test_what_is_wrong_with_an_alert_is_said(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        alert_of({**ALERT, **changed})


@pytest.mark.parametrize("said", [None, 5, "x", [], {}, {"alerts": {}}, {"alerts": None}])
def test_what_is_no_webhook_is_refused(said: object) -> None:
    with pytest.raises(ConfigError, match="a list 'alerts'"):
        payload_of(said)


@pytest.mark.parametrize("version", ["5", "", 4.5])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ConfigError, match=r"version must be '4' \(Alertmanager\) or '1' \(Grafana\)"):
        payload_of({**ALERTMANAGER, "version": version})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(ALERT)), json_values, max_size=4), st.booleans())
def test_no_field_of_any_value_does_more_than_be_refused(fields: dict[str, Any], whole: bool) -> None:
    item = {**ALERT, **fields} if whole else fields
    payload = payload_of({"version": "4", "alerts": [item, ALERT]})
    assert len(payload.alerts) + len(payload.unreadable) == 2
    assert payload.alerts[-1] == alert_of(ALERT)
    assert all(alert.status in {"firing", "resolved", "unknown"} for alert in payload.alerts)
    assert all(len(sentence) < 200 for sentence in payload.unreadable)
