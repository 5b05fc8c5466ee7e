"""Who comes in: by which name the service is asked, and whose token may read."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from resilient_scan import ConfigError, ControlService, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import FakeClock, healthy
from tests.composition.service.conftest import NAMES
from tests.support.control import BASIC, BEARER, JSON, TOKEN, Served, alert, counts, grafana, signed
from tests.support.fixtures import Fleet, Serve

READ_TOKEN = "may-only-look-17"
HEALTH = ("/healthz", "/readyz")
READS = ("/", "/page/gamma", "/metrics", "/openapi.json", "/audit", "/scanners", "/scanners/gamma", "/nothing")
ORDER = "/scanners/gamma/disable"
LOG_IN = (
    "reading takes a token here, and it is missing or wrong; send 'Authorization: Bearer TOKEN', "
    "or log in with any name and the token as the password"
)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# by which name


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9108", "127.8.8.8", "[::1]", "[::1]:65535", "localhost:"],
)
@pytest.mark.parametrize("path", READS[:-1])
def test_by_a_name_of_loopback_everyone_is_served(shared: Served, host: str, path: str) -> None:
    assert shared.get(path, Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:9108",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "127.0.0.1@evil.test",
        "evil.test#localhost",
        "localhost evil.test",
        "localhost,evil.test",
        "localhost:evil",
        "localhost:1:2",
        "[::1",
        "::1",
        "[::2]",
        "[localhost]",
        "10.0.0.1",
        "0.0.0.0",
        "2130706433",
        "localhost.",
        "\xe9",
        "",
    ],
)
def test_by_another_name_nobody_is(shared: Served, host: str) -> None:
    """A page of evil.test may let its name mean 127.0.0.1, and would read what a browser on this machine may read."""
    for path in READS:
        answer = shared.get(path, Host=host)
        assert answer.error[:2] == (421, "not_our_name")
        assert b"gamma" not in answer.body
    said = json.dumps({"reason": "x"}).encode()
    assert shared.ask("POST", ORDER, said, {**JSON, **BEARER, "Host": host}).status == 421
    assert shared.state("gamma") == "enabled"
    assert [shared.get(path, Host=host).status for path in HEALTH] == [200, 200]


def test_the_way_out_is_named(shared: Served) -> None:
    assert shared.get("/", Host="scan.example.org").error[2] == (
        "this service is not called 'scan.example.org'; ask for localhost or 127.0.0.1, or add the name to "
        "allowed_hosts in [service] of its settings"
    )
    assert len(shared.get("/", Host="x" * 5000).error[2]) < 300


def test_a_client_that_knows_no_such_header_is_no_browser(shared: Served) -> None:
    assert shared.raw(b"GET /scanners HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_further_names_are_known(serve: Serve) -> None:
    served = serve(allowed_hosts=["Scan.Example.org", "resilient_scan", "fe80::1"])
    for host in ("scan.example.org", "SCAN.example.ORG:443", "resilient_scan:9108", "[fe80::1]:80", "localhost"):
        assert served.get("/scanners", Host=host).status == 200
    for host in ("example.org", "x.scan.example.org", "scan.example.org.evil.test", "scan-example.org"):
        assert served.get("/scanners", Host=host).status == 421


@pytest.mark.parametrize(("names", "status"), [((), 200), (("scan.example.org",), 421)])
def test_beyond_loopback_any_name_will_do_unless_some_are_given(serve: Serve, names: Any, status: int) -> None:
    """A port of a container that is published on loopback is as open to a browser as loopback itself."""
    served = serve(host="0.0.0.0", allowed_hosts=names)
    assert served.get("/scanners", Host="evil.test").status == status
    for host in ("localhost", "0.0.0.0", *names):
        assert served.get("/scanners", Host=host).status == 200


NONSENSE = ["https://scan.example.org", "scan.example.org:443", "*.example.org", "a b", "", ".", "a..b", "-a", "[::1]"]


@pytest.mark.parametrize("name", [*NONSENSE, "ä.test", "a/b", "a\n"])
def test_what_cannot_be_a_name_is_refused(fleet: Fleet, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ControlService(fleet(healthy("alpha")), registry=CollectorRegistry(), allowed_hosts=["localhost", name])
    wanted = 'names without scheme, port and wildcard, such as "scan.example.org"'
    assert str(caught.value) == f"service.allowed_hosts must be {wanted}, got {name!r}"


@pytest.mark.parametrize("names", ["scan.example.org", None, 1, [1]])
def test_names_are_a_list(fleet: Fleet, names: Any) -> None:
    with pytest.raises(ConfigError, match=r"service\.allowed_hosts must be a tuple of names, got"):
        ControlService(fleet(healthy("alpha")), registry=CollectorRegistry(), allowed_hosts=names)


# whose token


@pytest.fixture(scope="module")
def closed() -> Iterator[Served]:
    """A service whose reading takes a token, for tests that change nothing."""
    registry = CollectorRegistry()
    with (
        ScanRunner(map(healthy, NAMES), listeners=()) as runner,
        ControlService(runner, TOKEN, registry=registry, read_token=READ_TOKEN) as service,
    ):
        yield Served(service, runner, registry)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": READ_TOKEN},
        {"Authorization": f"Bearer {READ_TOKEN}x"},
        {"Cookie": f"token={READ_TOKEN}"},
        basic(READ_TOKEN, ""),
        basic("anna", READ_TOKEN[:-1]),
    ],
)
def test_without_a_token_nothing_can_be_read(closed: Served, method: str, headers: dict[str, str]) -> None:
    for path in READS:
        answer = closed.ask(method, path, headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="resilient_scan", charset="UTF-8"'
        assert answer.headers["Cache-Control"] == "no-store"
        if method != "HEAD":
            assert answer.error == (401, "unauthorized", LOG_IN)
    assert [closed.get(path).status for path in HEALTH] == [200, 200]


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {READ_TOKEN}"}, basic("", READ_TOKEN), basic("anna", READ_TOKEN), BEARER, BASIC],
)
def test_with_either_token_everything_can_be_read(closed: Served, headers: dict[str, str]) -> None:
    statuses = {path: closed.ask("GET", path, headers=headers).status for path in READS}
    assert statuses.pop("/nothing") == 404
    assert set(statuses.values()) == {200}


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {READ_TOKEN}"}, basic("anna", READ_TOKEN), {}])
def test_who_may_read_may_not_change_anything(serve: Serve, headers: dict[str, str]) -> None:
    closed = serve(read_token=READ_TOKEN)
    for path in (ORDER, "/alerts"):
        answer = closed.post(path, {"reason": "x"}, headers)
        assert answer.error[:2] == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"  # a browser would ask for a password, over the page
    assert closed.state("gamma") == "enabled"
    assert closed.webhooks() == {("unknown", "unauthorized"): 1}


def test_orders_and_signed_alerts_need_no_token_to_read(serve: Serve) -> None:
    served = serve(read_token=READ_TOKEN, clock=(clock := FakeClock()))
    assert served.post(ORDER, {"reason": "x"}, BASIC).json["who"] == "anna"
    body = json.dumps(grafana(alert("alpha"))).encode()
    assert served.post("/alerts", body, signed(body, clock.time())).json == counts(accepted=1)


def test_without_a_token_for_changes_there_are_none(serve: Serve) -> None:
    served = serve(token=None, read_token=READ_TOKEN)
    assert served.get("/scanners").status == 401
    assert served.get("/scanners", **basic("", READ_TOKEN)).status == 200
    assert served.post(ORDER, {"reason": "x"}, basic("", READ_TOKEN)).status == 404


def test_a_token_that_comes_twice_is_refused(closed: Served) -> None:
    lines = f"Authorization: Bearer {READ_TOKEN}\r\n" * 2
    data = closed.raw(f"GET /scanners HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode())
    assert data.startswith(b"HTTP/1.1 400 ")


def test_the_description_says_what_takes_a_token(closed: Served) -> None:
    paths = closed.get("/openapi.json", **BEARER).json["paths"]
    for path, verbs in paths.items():
        for verb, said in verbs.items():
            assert ("security" in said) is (path not in HEALTH), (verb, path)
            assert ("401" in said["responses"]) is (path not in HEALTH)


def test_neither_token_is_shown(closed: Served) -> None:
    closed.runner.run()
    for path in READS:
        body = closed.get(path, **BEARER).body.decode()
        assert READ_TOKEN not in body
        assert TOKEN not in body


@pytest.mark.parametrize("token", ["", "two words", "short"])
def test_a_token_to_read_is_one_too(fleet: Fleet, token: str) -> None:
    with pytest.raises(ConfigError, match=r"service\.read_token must (be one word|have at least 8)") as caught:
        ControlService(fleet(healthy("alpha")), registry=CollectorRegistry(), read_token=token)
    assert "nothing can be changed" not in str(caught.value)
