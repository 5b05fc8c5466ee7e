"""What the command line asks of a service: found only when it is ours, refusals in its own words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resilient_scan import ConfigError, ControlService, ScanRunner
from resilient_scan.cli.client import Client, find
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import healthy

TOKEN = "a-token-of-ours"


@contextmanager
def answering(said: bytes, heard: list[bytes] | None = None) -> Iterator[tuple[str, int]]:
    """Answer whatever comes with the same bytes, and note it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    request = connection.recv(65536)
                    if heard is not None:
                        heard.append(request)
                    connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host, port = server.getsockname()
        yield host, port
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.fixture
def service() -> Iterator[ControlService]:
    with ScanRunner([healthy("alpha")], listeners=()) as runner, ControlService(runner, TOKEN) as running:
        yield running


def client(service: ControlService, token: str | None = TOKEN) -> Client:
    found = find("127.0.0.1", int(service.url.rpartition(":")[2]), token, user="anna:b")
    assert found is not None
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_ours_is_found_however_it_listens(service: ControlService, host: str) -> None:
    port = int(service.url.rpartition(":")[2])
    found = find(host, port, None)
    assert found is not None
    assert found.get("/scanners/alpha")["state"] == "enabled"


def test_where_nobody_listens_none_is_found() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert find("127.0.0.1", port, None) is None
    assert find("127.0.0.1", 0, None) is None
    assert find("no.such.host.invalid", 9108, None) is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"-ERR unknown command\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http(b"<html>"),
        http(b"\xff"),
        http(b"[]"),
        http(b'{"info": []}'),
        http(b'{"info": {"title": "another program"}}'),
        http(b"[" * 200_000),
        http(b"{}", "404 Not Found"),
        http(b"{}", "401 Unauthorized"),
        http(b"{}", '401 Unauthorized\r\nWWW-Authenticate: Basic realm="another program"'),
    ],
)
def test_another_program_at_its_port_is_not_taken_for_it(said: bytes) -> None:
    with answering(said) as (host, port):
        assert find(host, port, TOKEN) is None


def test_a_refusal_comes_in_the_words_of_the_service(service: ControlService) -> None:
    with pytest.raises(ConfigError) as caught:
        client(service).post("/scanners/alpah/disable", {"reason": "quota"})
    assert (
        str(caught.value) == f"the service at {service.url} refuses: there is no scanner 'alpah'; did you mean 'alpha'?"
    )


def test_a_wrong_token_is_refused_and_not_repeated(service: ControlService) -> None:
    with pytest.raises(ConfigError) as caught:
        client(service, "another-one").post("/scanners/alpha/disable", {"reason": "quota"})
    assert str(caught.value).startswith(f"the service at {service.url} refuses: the token is missing or wrong")
    assert "another-one" not in str(caught.value)


def test_without_a_token_nothing_is_sent(service: ControlService) -> None:
    with pytest.raises(ConfigError, match="changes nothing without its token; name its file"):
        client(service, None).post("/scanners/alpha/disable", {"reason": "quota"})


@pytest.mark.parametrize("name", ["a b", "ä", "a/b", "a?b", "..", "a\nb", "%"])
def test_a_name_that_is_none_is_an_unknown_scanner(service: ControlService, name: str) -> None:
    with pytest.raises(ConfigError, match="refuses"):
        client(service).get(f"/scanners/{name}")


@pytest.mark.parametrize(
    "said", [b"", b"garbage\r\n\r\n", http(b"<html>"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
)
def test_what_answers_with_garbage_does_not_answer(said: bytes) -> None:
    with answering(said) as (host, port), pytest.raises(ConfigError, match=r"does not answer: \S"):
        Client(f"http://{host}:{port}", TOKEN).get("/scanners/alpha")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"error": 1}', b"<html>"])
def test_a_refusal_without_words_says_its_status(body: bytes) -> None:
    with (
        answering(http(body, "502 Bad Gateway")) as (host, port),
        pytest.raises(ConfigError, match="refuses: HTTP 502"),
    ):
        Client(f"http://{host}:{port}", TOKEN).get("/scanners/alpha")


def test_no_proxy_stands_between(service: ControlService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert client(service).get("/scanners/alpha")["state"] == "enabled"


def test_an_order_that_is_obeyed(service: ControlService) -> None:
    said: Any = client(service).post("/scanners/alpha/disable", {"reason": "quota", "duration": 60})
    assert (said["state"], said["reason"], said["by_hand"]) == ("disabled", "quota", True)
    assert said["who"] == "anna_b"


READ_TOKEN = "a-token-to-read"


@pytest.mark.parametrize(
    ("token", "read_token"), [(TOKEN, None), (None, READ_TOKEN), (TOKEN, READ_TOKEN)], ids=["change", "read", "both"]
)
def test_where_reading_takes_a_token_it_is_shown(token: str | None, read_token: str | None) -> None:
    with (
        ScanRunner([healthy("alpha")], listeners=()) as runner,
        ControlService(runner, TOKEN, registry=CollectorRegistry(), read_token=READ_TOKEN) as service,
    ):
        port = int(service.url.rpartition(":")[2])
        found = find("127.0.0.1", port, token, read_token, user="anna")
        assert found is not None
        assert found.get("/scanners/alpha")["state"] == "enabled"
        without = find("127.0.0.1", port, None)
        assert without is not None
        with pytest.raises(ConfigError, match="refuses: reading takes a token here"):
            without.get("/scanners/alpha")
        if token is not None:
            assert found.post("/scanners/alpha/disable", {"reason": "x"})["who"] == "anna"


def test_who_only_pretends_to_be_the_service_is_shown_no_token() -> None:
    heard = []
    document = b'{"info": {"title": "resilient_scan control endpoint"}}'
    with answering(http(document), heard) as (host, port):
        found = find(host, port, TOKEN, READ_TOKEN)
        assert found is not None
        found.get("/scanners/alpha")
    assert len(heard) == 2
    assert not any(b"Authorization" in each for each in heard)
