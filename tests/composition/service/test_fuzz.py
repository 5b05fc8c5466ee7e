"""The control endpoint and its own description, fuzzed: what it says of itself is true, and nothing breaks it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from resilient_scan.service.openapi import document
from tests.support.control import BEARER, JSON, Served, alert, alertmanager
from tests.support.examples import examples
from tests.support.fixtures import Serve

pytestmark = pytest.mark.slow

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
QUICK = settings(
    max_examples=examples(20),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
    deadline=None,
)
OPERATIONS = [(verb, path) for path, verbs in document(can_change=True)["paths"].items() for verb in verbs]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@pytest.fixture
def described(serve: Serve) -> tuple[Served, Any]:
    served = serve()
    served.runner.run()
    schema = schemathesis.openapi.from_dict(served.get("/openapi.json").json)
    return served, schema


@pytest.mark.parametrize(("verb", "path"), OPERATIONS)
@pytest.mark.parametrize("headers", [{}, BEARER], ids=["stranger", "friend"])
def test_every_answer_is_as_described(
    described: tuple[Served, Any], verb: str, path: str, headers: dict[str, str]
) -> None:
    served, schema = described

    @QUICK
    @given(case=schema[path][verb.upper()].as_strategy(), known=st.booleans())
    def check(case: Any, known: bool) -> None:
        if known and case.path_parameters:
            case.path_parameters["name"] = "gamma"
        case.headers.pop("X-Grafana-Alerting-Signature", None)
        case.headers.pop("Authorization", None)
        answer = case.call(base_url=served.service.url, headers=headers, timeout=10)
        assert answer.status_code < 500
        case.validate_response(answer, checks=CHECKS)

    check()
    if not headers:
        assert served.get("/audit").json == {"entries": []}
        assert {state.state for state in served.runner.scanners()} == {"enabled"}


def test_no_payload_breaks_it_and_none_costs_a_good_alert(serve: Serve) -> None:
    served = serve()

    @QUICK
    @given(
        ANYTHING,
        st.lists(ANYTHING, max_size=3),
        st.sampled_from(["labels", "annotations", "status", "startsAt", "fingerprint"]),
    )
    def check(thing: Any, things: list[Any], field: str) -> None:
        assert served.post("/alerts", thing).status in {200, 422}
        mixed = alertmanager(*things, {**alert("beta"), field: thing}, alert("gamma"))
        answer = served.post("/alerts", mixed)
        assert answer.status == 200
        assert sum(answer.json.values()) == len(things) + 2

    check()
    assert served.state("gamma") == "quarantined"


@QUICK
@given(st.binary(max_size=200), st.sampled_from(["/alerts", "/scanners/gamma/disable", "/scanners/gamma/enable"]))
def _bytes(shared: Served, body: bytes, path: str) -> None:
    assert shared.ask("POST", path, body, {**BEARER, **JSON}).status in {400, 422}


def test_no_bytes_break_it(shared: Served) -> None:
    _bytes(shared)
    assert json.loads(shared.get("/audit").body) == {"entries": []}


@pytest.mark.parametrize(
    "said",
    [
        alertmanager(),
        alertmanager(None, 1, "x", [], {}),
        alertmanager({"status": "firing", "labels": {}}),
        alertmanager({**alert("nobody"), "annotations": None}),
        alertmanager(version="3"),
        alertmanager(alerts={}),
        {"version": "4"},
        [],
    ],
)
def test_the_description_admits_what_is_accepted_and_nothing_else(shared: Served, said: Any) -> None:
    described = shared.get("/openapi.json").json
    schema = {**described["components"]["schemas"]["Webhook"], "components": described["components"]}
    accepted = shared.post("/alerts", said).status == 200
    assert jsonschema.Draft202012Validator(schema).is_valid(said) is accepted
