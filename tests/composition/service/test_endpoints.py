"""Every address of the control endpoint, and every way in which it refuses."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, Limit, Policy, Quarantine
from resilient_scan.quarantine import Alert
from resilient_scan.service.bounds import SAFE
from resilient_scan.testing import FakeClock, broken, flapping, healthy
from tests.composition.service.conftest import NAMES
from tests.support.control import BASIC, BEARER, JSON, TOKEN, Served, alert, alertmanager, head, signed
from tests.support.fixtures import Serve
from tests.support.stores import AWAY, FailingStore

LOOKS = ("/", "/metrics", "/healthz", "/readyz", "/openapi.json", "/audit", "/scanners", "/scanners/gamma")
ORDERED = ("reset", "forget", "probe")
ORDERS = tuple(f"/scanners/gamma/{order}" for order in ("disable", "enable", *ORDERED, "run"))
CHANGES = (*ORDERS, "/alerts")
GOOD: dict[str, Any] = {**{path: {"reason": "x"} for path in ORDERS}, "/alerts": alertmanager()}


# to look at


@pytest.mark.parametrize("path", LOOKS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_reaches_the_port_may_look(shared: Served, path: str, method: str) -> None:
    answer = shared.ask(method, path)
    assert answer.status == 200
    assert bool(answer.body) is (method == "GET")


def test_the_scanners_in_the_given_order(shared: Served) -> None:
    rows = shared.get("/scanners").json["scanners"]
    assert [row["name"] for row in rows] == list(NAMES)
    first = rows[0]
    assert first["pipeline"] == "test"
    assert (first["state"], first["reason"], first["source"]) == ("enabled", "", "")
    assert [first[key] for key in ("since", "until", "next_probe", "last_status", "last_at", "last_duration")] == [
        None
    ] * 6
    assert (first["breaker"], first["abandoned_threads"], first["last_error"]) == ("closed", 0, "")


def test_a_scanner_that_failed_shows_how(serve: Serve) -> None:
    served = serve(broken("alpha"), healthy("beta"), clock=(clock := FakeClock()))
    served.runner.run()
    row = served.get("/scanners/alpha").json
    assert row["last_status"] == "error"
    assert row["last_error"] == "ScanError: HTTP 500 error"
    assert row["last_at"] == clock.time()
    assert row["last_duration"] == 0
    assert row["explanation"]["scanner"] == "alpha"
    assert [past["status"] for past in row["explanation"]["past"]] == ["error"]


@pytest.mark.parametrize("path", [*LOOKS[:-1], "/scanners/alpha", "/page/alpha"])
def test_nobody_gets_to_see_the_secrets_in_what_a_source_said(serve: Serve, path: str) -> None:
    said = "https://anna:hunter2@host/q?apikey=hunter3 refused 'Authorization: Bearer hunter4abcdef'"
    served = serve(
        broken("alpha", OSError(said), cache=None, retry=None), healthy("beta"), quarantine=Quarantine(after_failures=2)
    )
    for _ in range(3):
        served.runner.run()
    assert served.state("alpha") == "quarantined"
    answer = served.get(path)
    assert answer.status == 200
    assert b"hunter" not in answer.body
    if path in {"/", "/audit", "/scanners", "/scanners/alpha"}:
        assert b"https://host/q?apikey=REDACTED refused" in answer.body


def test_metrics_are_of_the_runner_and_in_the_asked_form(served: Served) -> None:
    served.runner.run()
    answer = served.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b'resilient_scan_scans_total{pipeline="test",scanner="gamma",status="completed"} 1.0' in answer.body
    newer = served.get("/metrics", Accept="application/openmetrics-text")
    assert newer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert newer.body.endswith(b"# EOF\n")
    for got in (answer, newer):  # it is sent in pieces, and still says how long it is
        assert got.headers["Content-Length"] == str(len(got.body))
        assert got.headers["Transfer-Encoding"] is None


def test_ready_unless_the_runner_is_closed_or_somebody_says_why_not(serve: Serve) -> None:
    reasons = [""]
    served = serve(why_not=lambda: reasons[-1])
    assert served.get("/readyz").json == {"status": "ready"}
    reasons.append("no further run begins")
    assert served.get("/readyz").error == (503, "not_ready", "no further run begins")
    served.runner.close()
    assert served.get("/readyz").error == (503, "not_ready", "the runner is closed")
    assert served.get("/healthz").json == {"status": "ok"}


@pytest.mark.parametrize("path", LOOKS[:-2])
def test_a_closed_runner_can_still_be_looked_at(served: Served, path: str) -> None:
    served.runner.close()
    assert served.get(path).status == (503 if path == "/readyz" else 200)


# orders


@pytest.mark.parametrize(
    ("credentials", "who"), [(BEARER, "control endpoint"), (BASIC, "anna")], ids=["bearer", "basic"]
)
def test_disable_and_enable(served: Served, credentials: dict[str, str], who: str) -> None:
    said = {"reason": "quota is used up", "duration": 3600}
    row = served.post("/scanners/gamma/disable", said, credentials).json
    assert (row["name"], row["state"], row["reason"], row["source"]) == (
        "gamma",
        "disabled",
        "quota is used up",
        "hand",
    )
    assert row["until"] - row["since"] == 3600
    assert row["who"] == who
    assert served.runner.run().results["gamma"].status == "disabled"
    row = served.post("/scanners/gamma/enable", {"reason": "new key"}, credentials).json
    assert row["state"] == "enabled"
    assert served.runner.run().results["gamma"].status == "completed"
    newest, oldest = served.get("/audit").json["entries"]
    assert [(each["from"], each["to"], each["source"], each["who"], each["reason"]) for each in (oldest, newest)] == [
        ("enabled", "disabled", "hand", who, "quota is used up"),
        ("disabled", "enabled", "hand", who, "new key"),
    ]
    assert set(oldest) == {"at", "scanner", "from", "to", "source", "who", "reason", "until"}


def test_an_open_breaker_is_reset_and_given_a_trial(serve: Serve) -> None:
    policy = Policy(retry=None, cache=None, breaker=Breaker(failures=1, open_for=600))
    served = serve(flapping("alpha", [OSError("x"), [], OSError("x"), []]), policy=policy, clock=FakeClock())
    served.runner.run()
    assert served.get("/scanners/alpha").json["breaker"] == "open"
    row = served.post("/scanners/alpha/reset", {"reason": "new key"}, BASIC).json
    assert (row["name"], row["state"], row["breaker"]) == ("alpha", "enabled", "closed")
    assert served.runner.run().results["alpha"].status == "completed"
    (entry,) = served.get("/audit").json["entries"]
    assert entry["action"] == "reset"
    assert [entry[key] for key in ("from", "to", "source", "who", "reason", "until")] == [
        *("enabled", "enabled", "hand"),
        *("anna", "new key", None),
    ]
    served.runner.run()
    served.post("/scanners/alpha/enable", {"reason": "up again"})
    assert served.runner.run().results["alpha"].status == "completed"


def test_a_provider_that_is_down_is_reset(serve: Serve) -> None:
    clock = FakeClock(start=1_800_000_000)
    policy = Policy(retry=None, cache=None, breaker=Breaker(failures=1, open_for=600))
    source = flapping("alpha", [ConnectionError("refused"), []], limit=Limit("acme/eu"))
    served = serve(source, policy=policy, clock=clock)
    served.runner.run()
    assert served.runner.run().results["alpha"].status == "rejected"
    answer = served.post("/providers/acme/eu/reset", {"reason": "it is back"}, BASIC).json
    assert answer == {
        "provider": "acme/eu",
        "state": "closed",
        "reason": "",
        "scanners": ["alpha"],
        "taken": 0,
        "waiting": 0,
        "since": None,
        "until": None,
        "by": "",
    }
    assert served.runner.run().results["alpha"].status == "completed"
    (entry,) = served.get("/audit").json["entries"]
    assert (entry["scanner"], entry["action"], entry["who"]) == ("provider acme/eu", "reset", "anna")
    assert served.post("/providers/acmee/reset", {"reason": "x"}).error == (
        *(404, "unknown_provider"),
        "there is no provider 'acmee'; did you mean 'acme/eu'?",
    )
    assert served.post("/providers/acme/eu/reset", {"reason": " "}).status == 422
    assert served.post("/providers/acme/eu/reset", {"reason": "x"}, {}).status == 401


def test_cached_answers_are_forgotten(serve: Serve) -> None:
    served = serve(healthy("alpha"), policy=Policy(cache=Cache(ttl=300)), clock=FakeClock())
    assert [served.runner.run().results["alpha"].status for _ in range(2)] == ["completed", "cached"]
    assert served.post("/scanners/alpha/forget", {"reason": "bad data"}).json["name"] == "alpha"
    assert served.runner.run().results["alpha"].status == "completed"
    assert served.get("/audit").json["entries"][0]["action"] == "forget"


def test_a_quarantined_scanner_is_probed_now(serve: Serve) -> None:
    quarantine = Quarantine(after_failures=1, successes=1, cooloff=600)
    policy = Policy(cache=None, retry=None)
    served = serve(flapping("alpha", [OSError("x"), []]), policy=policy, quarantine=quarantine, clock=FakeClock())
    served.runner.run()
    assert served.state("alpha") == "quarantined"
    row = served.post("/scanners/alpha/probe", {"reason": "fixed"}).json
    assert (row["state"], row["next_probe"]) == ("quarantined", row["at"])
    served.runner.run()
    assert served.state("alpha") == "enabled"


def test_what_cannot_be_undone_is_refused(serve: Serve) -> None:
    served = serve(healthy("alpha"), policy=Policy(cache=None, breaker=None), clock=FakeClock())
    said = {order: served.post(f"/scanners/alpha/{order}", {"reason": "x"}).error for order in ORDERED}
    assert said == {
        "reset": (422, "invalid", "reset alpha: it has no breaker, and remembers no errors"),
        "forget": (422, "invalid", "forget alpha: it has no cache"),
        "probe": (422, "invalid", "probe alpha: it is enabled; only a quarantined scanner is probed"),
    }
    for order in ORDERED:
        assert served.post(f"/scanners/alpa/{order}", {"reason": "x"}).error == (
            *(404, "unknown_scanner"),
            "there is no scanner 'alpa'; did you mean 'alpha'?",
        )
        assert served.post(f"/scanners/alpha/{order}", {"reason": " "}).status == 422
        assert served.post(f"/scanners/alpha/{order}", {"reason": "x", "duration": 60}).status == 422
        assert served.post(f"/scanners/alpha/{order}", {"reason": "x"}, {}).status == 401
    assert served.get("/audit").json["entries"] == []


def test_a_scanner_is_run_now(serve: Serve) -> None:
    asked: list[str] = []
    reasons = [""]
    served = serve(run=asked.append, why_not=lambda: reasons[-1])
    answer = served.post("/scanners/gamma/run", {"reason": "fixed"}, BASIC)
    assert (answer.status, answer.json["name"], asked) == (202, "gamma", ["gamma"])
    (entry,) = served.get("/audit").json["entries"]
    assert [entry[key] for key in ("action", "who", "reason")] == ["run", "anna", "fixed"]
    served.post("/scanners/beta/disable", {"reason": "x"})
    served.runner.alerts([Alert("disable", "alpha", "firing", "f1", 1.0)])
    refused = [served.post(f"/scanners/{name}/run", {"reason": "x"}).error for name in ("beta", "alpha")]
    assert refused == [
        (422, "invalid", "run beta: it is disabled; enable it first"),
        (422, "invalid", "run alpha: it is quarantined and would be turned away; probe or enable it first"),
    ]
    served.post("/scanners/alpha/probe", {"reason": "x"})
    assert served.post("/scanners/alpha/run", {"reason": "x"}).status == 202  # as a probe
    reasons.append("no further run begins")
    assert served.post("/scanners/gamma/run", {"reason": "x"}).error == (
        *(422, "invalid"),
        "run gamma: no further run begins",
    )
    assert served.post("/scanners/gama/run", {"reason": "x"}).status == 404
    assert asked == ["gamma", "alpha"]


def test_a_service_without_a_schedule_starts_no_runs(served: Served) -> None:
    assert served.post("/scanners/gamma/run", {"reason": "x"}).error == (
        *(422, "invalid"),
        "run gamma: this service starts no runs, the program around it does",
    )
    assert served.get("/audit").json["entries"] == []


def test_the_token_never_gets_into_the_audit_trail(served: Served) -> None:
    confused = {"Authorization": "Basic " + base64.b64encode(f"{TOKEN}:{TOKEN}".encode()).decode()}
    served.post("/scanners/gamma/disable", {"reason": f"my token is {TOKEN}"}, confused)
    assert TOKEN.encode() not in served.get("/audit").body + served.get("/").body + served.get("/page/gamma").body
    (entry,) = served.runner.audit()
    assert (entry.who, entry.reason) == ("REDACTED", "my token is REDACTED")


def test_an_outcome_outlasts_its_scanners_absence(serve: Serve) -> None:
    """A scanner that is out ends `disabled` in each run, and the flight recorder has room for 50 of them."""
    served = serve(broken("alpha", OSError("no route"), cache=None, retry=None), healthy("beta"), clock=FakeClock())
    served.runner.run()
    served.runner.disable("alpha", reason="quota", who="anna")
    for _ in range(51):
        served.runner.run()
    row = served.get("/scanners/alpha").json
    assert (row["last_status"], row["last_error"]) == ("disabled", "")
    assert {key: row["outcome"][key] for key in ("status", "error", "attempts")} == {
        "status": "error",
        "error": "OSError: no route",
        "attempts": 1,
    }
    page = served.get("/").body.decode()
    assert re.search(
        r'id="at-alpha" class="warn".*?disabled</span>.*?>error <small>.*?OSError: no route', page, re.DOTALL
    )
    assert "no route" in served.get("/page/alpha").body.decode()


def test_the_store_remembers_the_outcome_of_another_process(serve: Serve) -> None:
    store = FailingStore(FakeClock())
    first = serve(broken("alpha", OSError("no route"), cache=None, retry=None), healthy("beta"), store=store)
    first.runner.run()
    first.runner.disable("alpha", reason="quota")
    for _ in range(12):
        first.runner.run()
    first.runner.close()
    second = serve(healthy("alpha"), healthy("beta"), store=store)
    assert second.get("/scanners/alpha").json["outcome"]["error"] == "OSError: no route"
    store.error = AWAY
    third = serve(healthy("alpha"), healthy("beta"), store=store)
    assert "The store fails" in third.get("/").body.decode()
    assert third.get("/page/alpha").status == 200
    assert "The store does not tell" in third.get("/page/alpha").body.decode()


def test_enable_takes_a_duration(served: Served) -> None:
    served.runner.alerts([Alert("disable", "gamma", "firing", "f1", 1.0)])
    row = served.post("/scanners/gamma/enable", {"reason": "false alarm", "duration": 60}).json
    assert (row["state"], row["until"] - row["since"]) == ("enabled", 60)
    for wrong in (0, -1, 1e99):
        status, code, message = served.post("/scanners/gamma/enable", {"reason": "x", "duration": wrong}).error
        assert (status, code) == (422, "invalid")
        assert message.startswith("duration must be seconds > 0")


def test_an_order_lasts_a_day_unless_said(served: Served) -> None:
    row = served.post("/scanners/gamma/disable", {"reason": "x"}).json
    assert row["until"] - row["since"] == 86_400


def test_a_reason_is_kept_on_one_line_and_steers_no_terminal(served: Served) -> None:
    row = served.post("/scanners/gamma/disable", {"reason": " a\r\n b\x1b[31m\x00 ü\u202e"}).json
    assert row["reason"] == "a b\ufffd[31m\ufffd ü\ufffd"


def test_audit_shows_as_many_as_are_asked_for(served: Served) -> None:
    for name in NAMES:
        served.post(f"/scanners/{name}/disable", {"reason": "x"})
    assert [entry["scanner"] for entry in served.get("/audit?limit=2").json["entries"]] == ["delta", "gamma"]


@pytest.mark.parametrize("limit", ["0", "-1", "2001", "x", "", "1.5", "٣", "1e2", "9" * 400, "+1", "%00"])
def test_a_limit_is_a_number_in_bounds(shared: Served, limit: str) -> None:
    status, code, message = shared.get(f"/audit?limit={urllib.parse.quote(limit)}").error
    assert (status, code) == (422, "invalid")
    assert message.startswith("limit must be a whole number from 1 to 2000, got ")


# names


@pytest.mark.parametrize("name", ["%67amma", "gamm%61", "%67%61%6D%6d%61"])
def test_a_percent_encoded_name_is_the_same_name(served: Served, name: str) -> None:
    assert served.get(f"/scanners/{name}").json["name"] == "gamma"
    assert served.post(f"/scanners/{name}/disable", {"reason": "x"}).json["state"] == "disabled"


@pytest.mark.parametrize(
    "name", ["gama", "GAMMA", "gamma%20", "%C3%A9%E2%82%AC", "%00", "%ff", "%ED%A0%80", "x" * 5000, "%0d%0aX:%20y"]
)
def test_another_name_is_unknown(shared: Served, name: str) -> None:
    for answer in (shared.get(f"/scanners/{name}"), shared.post(f"/scanners/{name}/enable", {"reason": "x"})):
        status, code, message = answer.error
        assert (status, code) == (404, "unknown_scanner")
        assert message.startswith("there is no scanner ")
        assert len(message) < 300
        assert "\r" not in message


def test_the_nearest_name_is_told(shared: Served) -> None:
    assert shared.get("/scanners/gama").error == (
        404,
        "unknown_scanner",
        "there is no scanner 'gama'; did you mean 'gamma'?",
    )


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/scanners/",
        "/scanners/a/b/c",
        "/scanners/gamma/",
        "/scanners//enable",
        "//",
        "/favicon.ico",
        "/docs",
        "/metrics/",
        "/../etc/passwd",
        "/scanners/gamma%2Fdisable/x",
    ],
)
def test_nothing_else_is_there_and_nobody_is_sent_elsewhere(shared: Served, path: str) -> None:
    answer = shared.get(path, Host="localhost:1")
    assert answer.error == (404, "not_found", "there is nothing at this address; see /openapi.json")
    assert answer.headers["Location"] is None


# refusals


@pytest.mark.parametrize("path", [*LOOKS, *CHANGES])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "HEAD"])
def test_a_method_that_is_not_for_an_address(shared: Served, path: str, method: str) -> None:
    right = {"POST"} if path in CHANGES else {"GET", "HEAD"}
    if method in right:
        return
    answer = shared.ask(method, path, b"{}", {**JSON, **BEARER})
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(", ")) == right
    if method != "HEAD":
        assert answer.error[:2] == (405, "method")
        assert re.fullmatch(rf"{method} is not possible here; use (POST|GET, HEAD|HEAD, GET)", answer.error[2])


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("headers", [{}, BEARER])
def test_without_a_token_what_changes_something_is_not_there(serve: Serve, path: str, headers: dict[str, str]) -> None:
    served = serve(token=None)
    for method in ("POST", "GET", "PUT"):
        answer = served.ask(method, path, json.dumps(GOOD[path]).encode(), {**JSON, **headers})
        assert answer.error[:2] == (404, "not_found")
    assert served.get("/audit").json == {"entries": []}
    assert served.webhooks() == {}


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Digest {TOKEN}"},
        {"Authorization": TOKEN},
        {"Cookie": f"token={TOKEN}"},
        {"X-Token": TOKEN},
        {"Authorization": "Bearer " + "x" * 30_000},
    ],
)
def test_without_the_right_token_nothing_is_changed(shared: Served, path: str, headers: dict[str, str]) -> None:
    answer = shared.post(path, GOOD[path], headers)
    message = "the token is missing or wrong; send 'Authorization: Bearer TOKEN'"
    assert answer.error == (401, "unauthorized", message)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert shared.get("/audit").json == {"entries": []}
    assert shared.state("gamma") == "enabled"


@pytest.mark.parametrize("path", CHANGES)
def test_the_token_in_an_address_is_worth_nothing(shared: Served, path: str) -> None:
    for query in (f"?token={TOKEN}", f"?access_token={TOKEN}", f"?authorization=Bearer%20{TOKEN}"):
        assert shared.post(path + query, GOOD[path], {}).status == 401


@pytest.mark.parametrize("path", CHANGES[:2])
def test_a_signature_is_good_for_alerts_only(shared: Served, path: str) -> None:
    body = b'{"reason": "x"}'
    assert shared.post(path, body, signed(body, FakeClock().time())).status == 401


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json-patch+json",
        "text/json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json, text/plain",
    ],
)
def test_a_body_that_does_not_call_itself_json(shared: Served, path: str, kind: str | None) -> None:
    headers = BEARER if kind is None else {**BEARER, "Content-Type": kind}
    answer = shared.ask("POST", path, json.dumps(GOOD[path]).encode(), headers)
    assert answer.error == (415, "not_json", "the body must be JSON; send it with 'Content-Type: application/json'")
    assert shared.state("gamma") == "enabled"


@pytest.mark.parametrize("path", list(GOOD))
@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", ""])
def test_a_compressed_body_is_refused(shared: Served, path: str, coding: str) -> None:
    answer = shared.post(path, GOOD[path], {**BEARER, "Content-Encoding": coding})
    assert answer.error == (415, "encoded", "the body must not be compressed; send it without 'Content-Encoding'")
    assert shared.state("gamma") == "enabled"


@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Content-Encoding", "X-Grafana-Alerting-Signature"])
@pytest.mark.parametrize("path", list(GOOD))
def test_a_header_that_decides_comes_once(shared: Served, path: str, name: str) -> None:
    """Of two a proxy may have looked at one, and we at the other."""
    body = json.dumps(GOOD[path]).encode()
    first = head("POST", path, Content_Type="application/json", Content_Length=len(body), Connection="close")
    twice = "".join(f"{name}: {value}\r\n" for value in ("application/json", "Bearer x")).encode()
    answer = shared.raw(first.removesuffix(b"\r\n") + twice + b"\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f"the header {name.lower()} came more than once; send it once".encode() in answer
    assert shared.state("gamma") == "enabled"


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_a_body_that_does(served: Served, kind: str) -> None:
    headers = {**BEARER, "Content-Type": kind}
    assert served.ask("POST", CHANGES[0], b'{"reason": "x"}', headers).status == 200


MALFORMED = [
    b"",
    b" ",
    b"{",
    b"{'reason': 'x'}",
    b'{"reason": "x",}',
    b'{"reason": "x"} {}',
    b'\xef\xbb\xbf{"reason": "x"}',
    '{"reason": "x"}'.encode("utf-16"),
    b'{"reason": "\xff"}',
    b'{"reason": "\\ud800"}',
    b'{"reason": "a\nb"}',
    b'{"reason": "x", "duration": NaN}',
    b'{"reason": "x", "duration": Infinity}',
    b'{"reason": "x", "duration": 01}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\x00" * 100,
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("path", CHANGES)
def test_a_body_that_is_no_json(shared: Served, path: str, body: bytes) -> None:
    status, code, message = shared.post(path, body).error
    assert (status, code) == (400, "malformed")
    assert message.startswith("the body is not valid JSON: ")
    assert len(message) < 200
    assert shared.get("/audit").json == {"entries": []}


WRONG = [
    b"null",
    b"1",
    b'"reason"',
    b"[]",
    b"{}",
    b'{"reason": null}',
    b'{"reason": 1}',
    b'{"reason": ["x"]}',
    b'{"reason": ""}',
    b'{"reason": " \\t\\n"}',
    b'{"reason": "' + b"x" * 301 + b'"}',
    b'{"reason": "x", "who": "root"}',
    b'{"reason": "x", "duration": "1h"}',
    b'{"reason": "x", "duration": null}',
    b'{"reason": "x", "duration": true}',
    b'{"reason": "x", "duration": 0}',
    b'{"reason": "x", "duration": -1}',
    b'{"reason": "x", "duration": 31622401}',
    b'{"reason": "x", "duration": 1e308}',
    b'{"reason": "x", "duration": ' + b"9" * 400 + b"}",
    b'{"reason": "x", "' + b"y" * 900_000 + b'": 1}',
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_a_body_that_says_something_wrong(shared: Served, body: bytes) -> None:
    status, code, message = shared.post(CHANGES[0], body).error
    assert (status, code) == (422, "invalid")
    assert len(message) <= 500
    assert shared.get("/audit").json == {"entries": []}


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 5000])
def test_a_number_that_is_none(shared: Served, number: bytes) -> None:
    assert shared.post(CHANGES[0], b'{"reason": "x", "duration": ' + number + b"}").status in {400, 422}
    assert shared.state("gamma") == "enabled"


def test_of_two_equal_keys_the_last_counts(served: Served) -> None:
    row = served.post(CHANGES[0], b'{"reason": "a", "reason": "b", "duration": 5, "duration": 7}').json
    assert (row["reason"], row["until"] - row["since"]) == ("b", 7)


def test_an_order_for_a_scanner_that_is_not_there_is_a_404_after_all_else(served: Served) -> None:
    assert served.post("/scanners/x/disable", {"reason": "x"}, {}).status == 401
    assert served.post("/scanners/x/disable", {}).status == 422
    assert served.post("/scanners/x/disable", {"reason": "x"}).status == 404


# what every answer has


def every_kind(served: Served) -> list[Any]:
    yield_from = [served.get(path) for path in (*LOOKS, "/x", "/audit?limit=0", "/scanners/x")]
    yield_from += [served.ask("OPTIONS", "/alerts", headers={"Origin": "http://evil.test"})]
    yield_from += [served.post(path, GOOD[path], headers) for path in CHANGES for headers in (BEARER, {})]
    yield_from += [
        served.post(CHANGES[0], b"{"),
        served.post(CHANGES[0], b"{}"),
        served.ask("POST", CHANGES[0], b"", BEARER),
    ]
    return yield_from


def test_no_answer_says_more_or_allows_more_than_it_should(served: Served) -> None:
    for answer in every_kind(served):
        for name, value in SAFE.items():
            if name != "Content-Security-Policy":
                assert answer.headers[name] == value
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Server"] is None
        assert answer.headers["Set-Cookie"] is None
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert len(answer.headers.get_all("Content-Type")) == 1
        assert TOKEN.encode() not in answer.body


def test_the_token_is_in_no_log(
    served: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(0)
    every_kind(served)
    served.raw(head("POST", "/alerts", Content_Length=3, Connection="close") + b"[[[")
    served.raw(head("BAD REQUEST", "/"))
    assert TOKEN not in caplog.text
    assert TOKEN not in str(served.get("/audit").json)
    assert TOKEN not in repr(vars(served.service))
    assert capfd.readouterr() == ("", "")


def test_a_defect_of_ours_is_told_without_its_details(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def defect() -> str:
        raise KeyError("a secret of the inside")

    served = serve(why_not=defect)
    answer = served.get("/readyz")
    assert answer.error == (500, "internal", "the service failed here, its log says more")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "the control endpoint failed at GET /readyz" in caplog.text
    assert served.get("/healthz").status == 200


# the store


def test_a_store_that_fails_is_told_and_alerts_change_nothing(serve: Serve) -> None:
    store = FailingStore(FakeClock())
    served = serve(store=store, quarantine=Quarantine())
    store.error = AWAY
    status, code, message = served.post("/alerts", alertmanager(alert("gamma"), {"bad": 1})).error
    assert (status, code) == (503, "store")
    assert message.endswith("; try again")
    assert served.webhooks() == {}
    assert served.get("/audit").status == 503
    assert served.post("/scanners/beta/disable", {"reason": "x"}).status == 503
    assert served.get("/scanners").status == 200  # what is known here
    store.error = None
    assert served.state("gamma") == "enabled"
    assert served.post("/alerts", alertmanager(alert("gamma"), {"bad": 1})).json["accepted"] == 1
    assert served.webhooks() == {("alertmanager", "accepted"): 1, ("alertmanager", "invalid"): 1}
