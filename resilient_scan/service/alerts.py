"""Read what Alertmanager and Grafana send when an alert fires or resolves.

Both send `{"version", "alerts": [{"status", "labels", "annotations", "startsAt", "fingerprint"}]}`, Alertmanager with
version "4", Grafana with version "1" and an `orgId`. A group mixes firing and resolved alerts, so the payload's own
status says nothing; fields that newer senders add are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from resilient_scan.errors import ConfigError
from resilient_scan.quarantine import Alert
from resilient_scan.service.bounds import readable

ALERTMANAGER, GRAFANA = "alertmanager", "grafana"
ACTION, REASON = "resilient_scan_action", "grafana_state_reason"
MAX_TEXT = 300  # characters that are kept of a sender's text


class WebhookAlert(msgspec.Struct, frozen=True, rename="camel"):
    """One alert, as a sender should write it."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    starts_at: datetime
    annotations: dict[str, str] = {}
    fingerprint: str = ""


class Webhook(msgspec.Struct, frozen=True):
    """What a sender should send. An alert of another shape is counted as invalid, and costs no other alert.

    It describes; `payload_of` reads, and more leniently: msgspec would refuse the whole message for one bad alert.
    """

    version: Literal["1", "4"]
    alerts: list[Annotated[Any, Meta(extra_json_schema={"anyOf": [{"$ref": "#/components/schemas/WebhookAlert"}, {}]})]]
    truncated_alerts: int = msgspec.field(default=0, name="truncatedAlerts")


class Payload(msgspec.Struct, frozen=True):
    """A webhook's content.

    Attributes:
        source: who sent it.
        alerts: those that can be read.
        unreadable: a sentence about each of the others.
        truncated: how many more the sender has cut off.
    """

    source: str
    alerts: tuple[Alert, ...]
    unreadable: tuple[str, ...]
    truncated: int = 0


def payload_of(body: object) -> Payload:
    """Read a decoded webhook body.

    Raises:
        ConfigError: the body is neither Alertmanager's nor Grafana's.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("alerts"), list):
        raise ConfigError("the body must be an object with a list 'alerts', as Alertmanager and Grafana send it")
    source = _source(body)
    alerts, unreadable = [], []
    for position, item in enumerate(body["alerts"]):
        try:
            alerts.append(alert_of(item))
        except (TypeError, ValueError) as error:
            unreadable.append(f"alerts[{position}]: {error}")
    cut = body.get("truncatedAlerts")
    truncated = cut if isinstance(cut, int) and cut > 0 else 0
    return Payload(source, tuple(alerts), tuple(unreadable), truncated)


def alert_of(item: object) -> Alert:
    """Read one alert from a webhook or from Alertmanager's own list.

    Raises:
        TypeError, ValueError: a field is missing or wrong; the message says which.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"an object was expected, got {type(item).__name__}")
    labels, annotations = _texts(item, "labels"), _texts(item, "annotations")
    return Alert(
        action=labels.get(ACTION, ""),
        scanner=labels.get("scanner", ""),
        status=_status(item, labels, annotations),
        fingerprint=_fingerprint(item, labels),
        starts_at=_instant(item.get("startsAt")),
        name=readable(labels.get("alertname", "")[:MAX_TEXT]),
        summary=readable((annotations.get("summary") or annotations.get("description") or "")[:MAX_TEXT]),
        instance=labels.get("instance", ""),
    )


def _source(body: Mapping[str, Any]) -> str:
    found = body.get("version", "")
    version = found[:20] if isinstance(found, str) else f"a JSON {type(found).__name__}"
    if version == "1" or (not version and "orgId" in body):
        return GRAFANA
    if version == "4":
        return ALERTMANAGER
    raise ConfigError(f"version must be '4' (Alertmanager) or '1' (Grafana), got {version!r}")


def _status(
    item: Mapping[str, Any], labels: Mapping[str, str], annotations: Mapping[str, str]
) -> Literal["firing", "resolved", "unknown"]:
    match item.get("status"):
        case "firing":
            return "firing"
        case "resolved":
            return "unknown" if annotations.get(REASON) or labels.get(REASON) else "resolved"
        case other:
            shown = repr(other[:40]) if isinstance(other, str) else type(other).__name__
            raise ValueError(f"status must be 'firing' or 'resolved', got {shown}")


def _texts(item: Mapping[str, Any], field: str) -> dict[str, str]:
    found = item.get(field)
    if found is None:  # how Go writes a map without entries
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f"{field} must be an object of texts, got {type(found).__name__}")
    return {str(name): text for name, text in found.items() if isinstance(text, str)}


def _fingerprint(item: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    found = item.get("fingerprint")
    if isinstance(found, str) and 0 < len(found) <= MAX_TEXT:
        return found
    return hashlib.sha256(repr(sorted(labels.items())).encode(errors="replace")).hexdigest()[:16]


def _instant(text: object) -> float:
    if not isinstance(text, str):
        raise TypeError(f"startsAt must be a time such as 2026-11-24T06:32:20Z, got {type(text).__name__}")
    try:
        instant = datetime.fromisoformat(text)
        return instant.timestamp() if instant.tzinfo is not None else _without_zone(text)
    except (ValueError, OverflowError):
        raise ValueError(f"startsAt must be a time such as 2026-11-24T06:32:20Z, got {text[:40]!r}") from None


def _without_zone(text: str) -> float:
    raise ValueError(text)
