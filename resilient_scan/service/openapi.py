"""The endpoint's own description, OpenAPI 3.1: what `GET /openapi.json` answers. Tests hold the endpoint to it."""

from __future__ import annotations

from typing import Any

from resilient_scan import __version__
from resilient_scan.quarantine import MAX_TEXT, RESULTS
from resilient_scan.service.bounds import BOUNDS, JSON
from resilient_scan.service.client import TITLE

_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_MAYBE_TIME: dict[str, Any] = {"type": ["number", "null"], "description": "Epoch seconds."}
_STATE: dict[str, Any] = {"type": "string", "enum": ["enabled", "quarantined", "probing", "disabled"]}
_REASON: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "pattern": r"\S"}
_NAME: dict[str, Any] = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A scanner's name.",
    "schema": {"type": "string", "pattern": "^[a-z0-9_.-]{1,64}$"},
}


def _object(properties: dict[str, Any], *, required: list[str] | None = None, more: bool = True) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": more}


_SCANNER = _object(
    {
        "name": _TEXT,
        "pipeline": _TEXT,
        "state": _STATE,
        "reason": _TEXT,
        "source": _TEXT,
        "since": _MAYBE_TIME,
        "until": _MAYBE_TIME,
        "next_probe": _MAYBE_TIME,
        "last_status": _MAYBE_TEXT,
        "last_at": _MAYBE_TIME,
        "last_duration": {"type": ["number", "null"], "description": "Seconds."},
        "last_error": _TEXT,
        "breaker": _MAYBE_TEXT,
        "abandoned_threads": {"type": "integer", "minimum": 0},
    }
)
_ENTRY = _object(
    {
        "at": {"type": "number"},
        "scanner": _TEXT,
        "from": _TEXT,
        "to": _TEXT,
        "source": _TEXT,
        "who": _TEXT,
        "reason": _TEXT,
        "until": _MAYBE_TIME,
    }
)
_SCHEMAS: dict[str, Any] = {
    "Scanner": _SCANNER,
    "Error": _object({"error": _object({"code": _TEXT, "message": _TEXT})}),
    "Disable": _object(
        {
            "reason": _REASON,
            "duration": {"type": "number", "exclusiveMinimum": 0, "maximum": 366 * 86_400, "default": 86_400},
        },
        required=["reason"],
        more=False,
    ),
    "Enable": _object({"reason": _REASON}, more=False),
    "Counts": _object(
        {name: {"type": "integer", "minimum": 0} for name in (*RESULTS, "invalid")}, required=list(RESULTS), more=False
    ),
    "Alert": _object(
        {
            "status": {"type": "string", "enum": ["firing", "resolved"]},
            "labels": {"type": "object", "additionalProperties": _TEXT},
            "annotations": {"type": "object", "additionalProperties": _TEXT},
            "startsAt": {"type": "string", "format": "date-time"},
            "fingerprint": _TEXT,
        },
        required=["status", "labels", "startsAt"],
    ),
    "Webhook": _object(
        {
            "version": {"type": "string", "enum": ["1", "4"]},
            "alerts": {
                "type": "array",
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/Alert"},
                        {"description": "Anything else is counted as invalid, and costs no other alert."},
                    ]
                },
            },
        }
    ),
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: dict[str, Any], *kinds: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema} for kind in kinds or (JSON,)}}


def _errors(**sentences: str) -> dict[str, Any]:
    return {status.lstrip("_"): _answer(sentence, _ref("Error")) for status, sentence in sentences.items()}


_UNKNOWN = _errors(_404="No such scanner.")
_AWAY = _errors(_503="The store cannot be reached; try again.")
_BODY = _errors(
    _400="The body is no JSON, or a header came twice.",
    _401="The token is missing or wrong.",
    _408="The body did not come in time.",
    _413=f"The body is larger than {BOUNDS.size} bytes.",
    _415="The body does not call itself JSON, or is compressed.",
    _422="The body says something wrong.",
)


def _get(summary: str, *answers: dict[str, Any], parameters: list[Any] | None = None) -> dict[str, Any]:
    responses = {status: answer for each in answers for status, answer in each.items()}
    return {"get": {"summary": summary, "parameters": parameters or [], "responses": responses}}


def _post(summary: str, body: str, answer: dict[str, Any], *, named: bool, schemes: list[str]) -> dict[str, Any]:
    responses = {"200": answer, **_BODY, **_AWAY, **(_UNKNOWN if named else {})}
    return {
        "post": {
            "summary": summary,
            "parameters": [_NAME] if named else [],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
            "responses": responses,
            "security": [{scheme: []} for scheme in schemes],
        }
    }


def _paths() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    scanners = _object({"scanners": {"type": "array", "items": _ref("Scanner")}, "blind_since": _MAYBE_TIME})
    entries = _object({"entries": {"type": "array", "items": _ENTRY}})
    state = _object({"status": _TEXT})
    limits = [{"name": "limit", "in": "query", "description": "How many, newest first.", "schema": limit}]
    return {
        "/": _get("The page for people.", {"200": _answer("HTML.", _TEXT, "text/html")}, _AWAY),
        "/page/{name}": _get(
            "One scanner, for people.", {"200": _answer("HTML.", _TEXT, "text/html")}, _UNKNOWN, parameters=[_NAME]
        ),
        "/metrics": _get(
            "Prometheus metrics.", {"200": _answer("The metrics.", _TEXT, "text/plain", "application/openmetrics-text")}
        ),
        "/healthz": _get("The process answers.", {"200": _answer("It does.", state)}),
        "/readyz": _get(
            "Scans can run.", {"200": _answer("They can.", state)}, _errors(_503="They cannot; the message says why.")
        ),
        "/openapi.json": _get("This document.", {"200": _answer("This document.", {"type": "object"})}),
        "/audit": _get(
            "Who took which scanner out of service, or brought it back, when and why.",
            {"200": _answer("The entries, newest first.", entries)},
            _errors(_422="The limit is no number from 1 to 1000."),
            _AWAY,
            parameters=limits,
        ),
        "/scanners": _get("All scanners.", {"200": _answer("In the given order.", scanners)}, _AWAY),
        "/scanners/{name}": _get(
            "One scanner, with evidence.", {"200": _answer("The scanner.", _ref("Scanner"))}, _UNKNOWN, _AWAY,
            parameters=[_NAME],
        ),
    }  # fmt: skip


def _changes() -> dict[str, Any]:
    scanner = _answer("The scanner as it is now.", _ref("Scanner"))
    return {
        "/scanners/{name}/disable": _post(
            "Take a scanner out of service.", "Disable", scanner, named=True, schemes=["bearer", "basic"]
        ),
        "/scanners/{name}/enable": _post(
            "Bring a scanner back.", "Enable", scanner, named=True, schemes=["bearer", "basic"]
        ),
        "/alerts": _post(
            "Alerts of Alertmanager (webhook version 4) or Grafana (version 1).",
            "Webhook",
            _answer("What became of the alerts.", _ref("Counts")),
            named=False,
            schemes=["bearer", "basic", "signature"],
        ),
    }


def document(*, can_change: bool) -> dict[str, Any]:
    """Return the description.

    Args:
        can_change: whether there is a token; without one the addresses that change something do not exist.
    """
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {
            "type": "http",
            "scheme": "basic",
            "description": "The token is the password; the user is kept as who gave an order.",
        },
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Grafana-Alerting-Signature",
            "description": "Hex HMAC-SHA256, keyed with the token, over X-Grafana-Alerting-Timestamp + ':' + body.",
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": "See what a fleet of scanners does; take a scanner out of service, or bring it back.",
        },
        "paths": {**_paths(), **(_changes() if can_change else {})},
        "components": {"schemas": _SCHEMAS, **({"securitySchemes": schemes} if can_change else {})},
    }
