"""The endpoint's own description, OpenAPI 3.1: what `GET /openapi.json` answers. Tests hold the endpoint to it.

The schemas are generated from the structs that are sent and received, so a new field appears here by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any

import msgspec

from resilient_scan import __version__
from resilient_scan.layers.limit import ProviderState
from resilient_scan.service.alerts import Webhook, WebhookAlert
from resilient_scan.service.bounds import BOUNDS, JSON, Error
from resilient_scan.service.control import (
    MAX_NAME,
    Audit,
    Counts,
    Disable,
    Enable,
    Health,
    Order,
    ScannerDetails,
    Scanners,
)
from resilient_scan.service.door import OPEN

TITLE = "resilient_scan control endpoint"  # by it the command recognizes a service of ours
DEFAULT_LIMIT, MAX_LIMIT = 100, 2000  # entries of the audit trail, which keeps 1,000 of either kind

Json = dict[str, Any]

_BODIES = (
    Audit,
    Counts,
    Disable,
    Enable,
    Error,
    Health,
    Order,
    ProviderState,
    ScannerDetails,
    Scanners,
    Webhook,
    WebhookAlert,
    dict,
    str,
)
_refs, _SCHEMAS = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
_SCHEMA: Mapping[Any, Json] = dict(zip(_BODIES, _refs, strict=True))
for _schema in _SCHEMAS.values():  # msgspec takes docstrings as they stand in the file, indentation included
    _schema["description"] = cleandoc(_schema["description"])

_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A scanner's name.",
    "schema": {"type": "string", "pattern": f"^[a-z0-9_.-]{{1,{MAX_NAME}}}$"},
}
_PROVIDER: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A provider's name; a host and its port, if no scanner's options name it.",
    "schema": {"type": "string", "minLength": 1},
}
_LIMIT: Json = {
    "name": "limit",
    "in": "query",
    "description": "How many, newest first.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
}
_UNKNOWN = {404: "No such scanner."}
_STORE = {503: "The store cannot be reached; try again."}
_NAME_IS_NOT_OURS = {421: "The name in `Host` is neither one of loopback nor in `allowed_hosts`."}
_BODY = {
    **_NAME_IS_NOT_OURS,
    400: "The body is not JSON, or a header came twice.",
    401: "The token is missing or wrong.",
    408: "The body did not come in time.",
    413: f"The body is larger than {BOUNDS.size} bytes.",
    415: "The body does not call itself JSON, or is compressed.",
    422: "The body says something wrong.",
}
_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The token is the password; the user is recorded as the one who gave an order.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Grafana-Alerting-Signature",
        "description": "Hex HMAC-SHA256, keyed with the token, over X-Grafana-Alerting-Timestamp + ':' + body.",
    },
}


def document(*, can_change: bool, protected: bool = False) -> Json:
    """Return the description.

    Args:
        can_change: whether there is a token; without one the addresses that change something do not exist.
        protected: whether reading takes a token too.
    """
    reads = {path: said if path in OPEN else _read(said, protected=protected) for path, said in _READS.items()}
    schemes = {"securitySchemes": _SCHEMES} if can_change or protected else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": "See what a fleet of scanners does; take a scanner out of service, or bring it back.",
        },
        "paths": {**reads, **(_CHANGES if can_change else {})},
        "components": {"schemas": _SCHEMAS, **schemes},
    }


def _read(said: Json, *, protected: bool) -> Json:
    """Return the description of an address where to read: who may, by which name."""
    refused = {**({401: _BODY[401]} if protected else {}), **_NAME_IS_NOT_OURS}
    security: Json = {"security": [{"bearer": []}, {"basic": []}]} if protected else {}
    return {"get": {**said["get"], "responses": {**said["get"]["responses"], **_refusals(refused)}, **security}}


def _responses(
    description: str, body: type, kinds: Sequence[str], errors: Mapping[int, str], status: int = 200
) -> Json:
    success = {"description": description, "content": {kind: {"schema": _SCHEMA[body]} for kind in kinds}}
    return {str(status): success, **_refusals(errors)}


def _refusals(errors: Mapping[int, str]) -> Json:
    return {
        str(status): {"description": why, "content": {JSON: {"schema": _SCHEMA[Error]}}}
        for status, why in errors.items()
    }


def _get(
    summary: str,
    description: str,
    body: type,
    *kinds: str,
    errors: Mapping[int, str] | None = None,
    parameters: Sequence[Json] = (),
) -> Json:
    responses = _responses(description, body, kinds or (JSON,), errors or {})
    return {"get": {"summary": summary, "parameters": [*parameters], "responses": responses}}


def _post(
    summary: str,
    sent: type,
    description: str,
    body: type,
    *schemes: str,
    errors: Mapping[int, str] | None = None,
    parameters: Sequence[Json] = (),
    status: int = 200,
) -> Json:
    return {
        "post": {
            "summary": summary,
            "parameters": [*parameters],
            "requestBody": {"required": True, "content": {JSON: {"schema": _SCHEMA[sent]}}},
            "responses": _responses(description, body, (JSON,), {**_BODY, **_STORE, **(errors or {})}, status),
            "security": [{scheme: []} for scheme in ("bearer", "basic", *schemes)],
        }
    }


_NAMED: Json = {"errors": {**_UNKNOWN, **_STORE}, "parameters": [_NAME]}
_CHANGED = "The scanner as it is now.", ScannerDetails
_READS: Json = {
    "/": _get("The page for people.", "HTML.", str, "text/html", errors=_STORE),
    "/page/{name}": _get("One scanner, for people.", "HTML.", str, "text/html", **_NAMED),
    "/metrics": _get("Prometheus metrics.", "The metrics.", str, "text/plain", "application/openmetrics-text"),
    "/healthz": _get("The process answers.", "It does.", Health),
    "/readyz": _get("Scans can run.", "They can.", Health, errors={503: "They cannot; the message says why."}),
    "/openapi.json": _get("This document.", "This document.", dict),
    "/audit": _get(
        "Who took which scanner out of service, or brought it back, when and why.",
        "The entries, newest first.",
        Audit,
        errors={422: f"The limit is not a number from 1 to {MAX_LIMIT}.", **_STORE},
        parameters=[_LIMIT],
    ),
    "/scanners": _get("All scanners.", "In the given order.", Scanners, errors=_STORE),
    "/scanners/{name}": _get("One scanner, with evidence.", "The scanner.", ScannerDetails, **_NAMED),
}
_CHANGES: Json = {
    "/scanners/{name}/disable": _post("Take a scanner out of service.", Disable, *_CHANGED, **_NAMED),
    "/scanners/{name}/enable": _post("Bring a scanner back.", Enable, *_CHANGED, **_NAMED),
    "/scanners/{name}/reset": _post("Close a scanner's breaker and forget its failures.", Order, *_CHANGED, **_NAMED),
    "/scanners/{name}/forget": _post("Drop a scanner's cached answers.", Order, *_CHANGED, **_NAMED),
    "/scanners/{name}/probe": _post("Make a quarantined scanner's next scan a probe.", Order, *_CHANGED, **_NAMED),
    "/scanners/{name}/run": _post(
        "Run a scanner as soon as no other run is under way.",
        Order,
        "It will run; the scanner as it is before.",
        ScannerDetails,
        **_NAMED,
        status=202,
    ),
    "/providers/{name}/reset": _post(
        "Close a provider's breaker and end its hold.",
        Order,
        "The provider as it is now.",
        ProviderState,
        errors={404: "No such provider.", **_STORE},
        parameters=[_PROVIDER],
    ),
    "/alerts": _post(
        "Alerts of Alertmanager (webhook version 4) or Grafana (version 1).",
        Webhook,
        "What became of the alerts.",
        Counts,
        "signature",
    ),
}
