"""Names, addresses, proxies and certificates: the request's time is shared, and an error names whose fault it is."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from resilient_scan import ConfigError, PermanentError, ScanCancelled, ScanContext
from resilient_scan.http import Client, TransientError
from tests.scanners.recorded import RecordedServer
from tests.support.http import (
    answering,
    black_holes,
    context_for,
    hang,
    raw_server,
    resolve,
    say,
    tls_files,
    tls_server,
)
from tests.support.waiting import eventually

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {"SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"}:
            monkeypatch.delenv(name)


def failure_of(url: str, *, timeout: float = 5.0, headers: dict[str, str] | None = None) -> Exception:
    """Return the exception of a request that fails."""
    client = Client(url, timeout=timeout, headers=headers)
    with pytest.raises((TransientError, PermanentError)) as caught:
        client.get("/", context=context_for(30))
    client.close()
    return caught.value


# ----------------------------------------------------------------------------------------------------------- addresses


def test_a_host_with_several_dead_addresses_costs_its_timeout_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_holes(4) as (addresses, port):
        resolve(monkeypatch, "many.test", addresses)
        began = time.monotonic()
        failure = failure_of(f"http://many.test:{port}", timeout=0.8)
        took = time.monotonic() - began
    assert isinstance(failure, TransientError)
    assert "no whole answer within 0.8s: no connection to many.test at any of its 4 addresses; try" in str(failure)
    assert 0.7 < took < 3  # four times 0.8 s would be 3.2


def test_a_host_with_several_dead_addresses_ends_with_its_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_holes(4) as (addresses, port):
        resolve(monkeypatch, "many.test", addresses)
        client, context, began = Client(f"http://many.test:{port}", timeout=30), context_for(0.8), time.monotonic()
        with pytest.raises(ScanCancelled):
            client.get("/", context=context)
        took = time.monotonic() - began
        client.close()
    assert took < 3


@pytest.mark.parametrize("dead", [1, 3])
def test_a_dead_address_leaves_time_for_the_next_one(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with black_holes(dead) as (addresses, port), raw_server(say(OK), port=port):
        resolve(monkeypatch, "many.test", [*addresses, "127.0.0.1"])
        client = Client(f"http://many.test:{port}", timeout=1.0)
        assert client.get("/", context=context_for(30)).text == "ok"
        client.close()


def test_an_address_that_refuses_leaves_its_share_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_holes(1) as (addresses, port):
        resolve(monkeypatch, "many.test", ["127.0.0.9", *addresses])
        began = time.monotonic()
        failure = failure_of(f"http://many.test:{port}", timeout=0.4)
        took = time.monotonic() - began
    assert "no whole answer within 0.4s: no connection to many.test at any of its 2 addresses; try" in str(failure)
    assert took > 0.35  # not half of it


def test_addresses_that_all_refuse_are_named_by_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    resolve(monkeypatch, "many.test", ["127.0.0.1", "127.0.0.2", "127.0.0.1"])
    failure = str(failure_of(f"http://many.test:{port}"))
    assert "no connection to many.test at any of its 2 addresses: " in failure
    assert "Connection refused; the source is in trouble" in failure


def test_a_name_that_nobody_knows_is_transient_and_one_that_no_host_can_have_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    long = "a" * 64
    failure = failure_of(f"http://{long}.test")
    assert isinstance(failure, PermanentError)
    assert f"no host can have the name of {long}.test" in str(failure)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure = failure_of("http://nosuch.test")
    assert isinstance(failure, TransientError)
    assert "the name of nosuch.test cannot be resolved: Name or service not known; " in str(failure)


def test_a_name_that_is_resolved_too_late_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[object] = []
    real = socket.getaddrinfo

    def slow(*arguments: object, **options: object) -> object:
        asked = time.monotonic()  # later than the timeout's begin
        eventually(lambda: time.monotonic() > asked + 0.1)
        return real(*arguments, **options)  # type: ignore[arg-type]

    with raw_server(lambda connection, over: peers.append(connection)) as url:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        failure = failure_of(url, timeout=0.1)
        monkeypatch.setattr(socket, "getaddrinfo", real)
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)):
            eventually(lambda: peers)
    assert "no whole answer within 0.1s" in str(failure)
    assert len(peers) == 1


def test_a_large_form_is_sent_within_the_timeout() -> None:
    """A server that reads slowly takes it in many pieces, each of them in time."""
    whole, taken = 48 * 2**20, 0

    def sip(connection: socket.socket, over: threading.Event) -> None:
        nonlocal taken
        while not over.wait(0.05):
            taken += len(connection.recv(2**19))

    with raw_server(sip) as url:
        client = Client(url, timeout=0.5)
        with pytest.raises(TransientError, match=r"no whole answer within 0\.5s"):
            client.post("/", {"text": "x" * whole}, context=context_for(60))
        assert 0 < taken < 0.75 * whole  # the time was up long before; counted in bytes, a slow machine changes nothing
        client.close()


# ------------------------------------------------------------------------------------------------------------- proxies


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_and_not_the_source(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:w%2Frd@127.0.0.1:{port}")
    failure = failure_of(f"{scheme}://source.test")
    assert isinstance(failure, TransientError)
    assert (
        f"no connection to the proxy http://127.0.0.1:{port} (of {scheme.upper()}_PROXY): "
        "[Errno 111] Connection refused; start it or correct the variable, or put the source's host in NO_PROXY"
    ) in str(failure)
    assert "the source is in trouble" not in str(failure)


def test_a_proxy_that_cannot_be_reached_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_holes(1) as (addresses, port):
        monkeypatch.setenv("ALL_PROXY", f"{addresses[0]}:{port}")
        failure = failure_of("http://source.test", timeout=0.2)
    named = f"no connection to the proxy http://{addresses[0]}:{port} (of ALL_PROXY)"
    assert f"no whole answer within 0.2s: {named}; try again later" in str(failure)


def test_a_proxy_whose_name_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    failure = str(failure_of("http://source.test"))
    assert "the name of the proxy http://proxy.test:3128 (of HTTP_PROXY) cannot be resolved: Name or service" in failure
    assert failure.endswith("; start it or correct the variable, or put the source's host in NO_PROXY")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_says_nothing_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(hang) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        failure = failure_of(f"{scheme}://source.test", timeout=0.2)
    assert f"within 0.2s: through the proxy {proxy} (of {scheme.upper()}_PROXY); try again later" in str(failure)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("407 Proxy Authentication Required", PermanentError, "check its address, user and password, and NO_PROXY"),
        ("403 Forbidden", PermanentError, "check its address, user and password, and NO_PROXY"),
        ("429 Slow Down", TransientError, "try again later"),
        ("502 Bad Gateway", TransientError, "try again later"),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_named(
    answer: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw_server(say(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())) as proxy:
        monkeypatch.setenv("https_proxy", proxy.replace("//", "//me:word@"))
        failure = failure_of("https://source.test")
    assert isinstance(failure, kind)
    assert f"the proxy {proxy} (of HTTPS_PROXY) " in str(failure)
    assert answer in str(failure)
    assert str(failure).endswith(words)
    assert "word@" not in str(failure)


def test_a_proxy_that_wants_a_password_for_plain_http_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(say(b"HTTP/1.1 407 Who Are You\r\nContent-Length: 0\r\n\r\n")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        failure = failure_of("http://source.test")
    assert isinstance(failure, PermanentError)
    assert str(failure).endswith(
        "HTTP 407; the proxy wants a user and a password: add them to its address, in HTTP_PROXY or ALL_PROXY"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://x", "ftp://x"),
        ("socks5://me:word@x:1", "socks5://x:1"),
        ("http://", "http://"),
        ("http://x:port", "http://x:port"),
        ("http://x:99999", "http://x:99999"),
        ("http://me:wo/rd@x:1", "http://x:1"),
        ("http://me:wo#rd@x:1", "http://x:1"),
        ("http://me:wo@rd@[x", "http://[x"),
        ("me:word@x:port", "http://x:port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_setting_to_correct(
    url: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", url)
    with pytest.raises(ConfigError) as caught:
        Client("http://source.test").get("/", context=context_for())
    assert str(caught.value) == (
        f"the proxy {shown} (of HTTP_PROXY) is not supported; "
        "name an HTTP proxy, http://host:port, or put source.test in NO_PROXY"
    )


def test_a_blank_proxy_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as url, raw_server(say(OK)) as proxy:
        monkeypatch.setenv("http_proxy", "  ")
        assert Client(url).get("/", context=context_for()).text == "{}"
        monkeypatch.setenv("all_proxy", f" {proxy} ")
        client = Client(url)
        assert client.get("/", context=context_for()).text == "ok"
        client.close()


def test_no_proxy_may_name_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering() as url:
        monkeypatch.setenv("no_proxy", urlsplit(url).netloc)
        assert Client(url).get("/", context=context_for()).text == "{}"
    assert "the proxy" in str(failure_of("http://127.0.0.1:8"))


# -------------------------------------------------------------------------------------------------------- certificates


def test_a_certificate_that_is_rejected_is_permanent_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path, say(OK)) as url:
        failure = failure_of(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        client = Client(url)
        assert client.get("/", context=context_for()).text == "ok"
        client.close()
        resolve(monkeypatch, "other.test", ["127.0.0.1"])
        other = failure_of(url.replace("127.0.0.1", "other.test"))
    for each in (failure, other):
        assert isinstance(each, PermanentError)
        assert "try again" not in str(each)
        assert "correct the address, or add who issued it to the file that SSL_CERT_FILE names" in str(each)
    assert "the certificate of 127.0.0.1 is rejected: self" in str(failure)
    assert "the certificate of other.test is rejected: Hostname mismatch" in str(other)


def test_a_connection_that_is_late_for_its_handshake_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Late(ScanContext):
        connected = False

        def remaining(self) -> float:
            return 0.0 if self.connected else super().remaining()

    context = Late("test", deadline=time.monotonic() + 30)

    def handle(connection: socket.socket, over: threading.Event) -> None:
        if not connection.recv(1):
            ended.set()

    with raw_server(handle) as url:
        client = Client(url.replace("http:", "https:"))
        real = socket.create_connection

        def connect(*arguments: object, **options: object) -> socket.socket:
            connection = real(*arguments, **options)  # type: ignore[arg-type]
            context.connected = True
            return connection

        monkeypatch.setattr(socket, "create_connection", connect)
        with pytest.raises(TransientError, match="no whole answer") as caught:
            client.get("/", context=context)
        assert ended.wait(10)  # while `caught` still holds the frames, and with them the connection
        assert caught
        client.close()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SSL_CERT_FILE", "{}/gone.pem", "SSL_CERT_FILE names '{}/gone.pem', and there is no such file or directory"),
        ("SSL_CERT_DIR", "{}/gone", "SSL_CERT_DIR names '{}/gone', and there is no such file or directory"),
        ("SSL_CERT_FILE", "{}/key.pem", "TLS cannot be used with SSL_CERT_FILE={}/key.pem: "),
        ("SSLKEYLOGFILE", "{}/gone/log", "TLS cannot be used with SSLKEYLOGFILE={}/gone/log: No such file"),
    ],
)
def test_certificates_that_are_not_there_are_a_setting_to_correct(
    variable: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_files(tmp_path)
    monkeypatch.setenv(variable, value.format(tmp_path))
    with pytest.raises(ConfigError) as caught:
        Client("https://source.test").get("/", context=context_for())
    assert words.format(tmp_path) in str(caught.value)
    with answering() as url:  # they are none of plain HTTP's business
        assert Client(url).get("/", context=context_for()).text == "{}"


def test_a_proxy_behind_tls_is_trusted_as_a_source_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path, say(OK)) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert "the certificate of 127.0.0.1 is rejected" in str(failure_of("http://source.test"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        client = Client("http://source.test")
        assert client.get("/", context=context_for()).text == "ok"
        client.close()


def test_of_several_directories_one_is_enough_and_beside_a_file_none_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path, say(OK)) as url:
        monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join([f"{tmp_path}/gone", str(tmp_path)]))
        assert isinstance(failure_of(url), PermanentError)  # it holds no certificate under the name that OpenSSL wants
        assert "rejected" in str(failure_of(url))
        monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/gone")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        client = Client(url)
        assert client.get("/", context=context_for()).text == "ok"
        client.close()


# ---------------------------------------------------------------------------------------------------------- parameters


def test_a_parameter_that_is_none_is_left_out_and_a_list_repeats_its_name() -> None:
    given = {"n": None, "q": "", "zero": 0, "ticker": ["A", None, "B"], "of": ("x",)}
    sent = [("q", ""), ("zero", "0"), ("ticker", "A"), ("ticker", "B"), ("of", "x")]
    with RecordedServer({"/*": (200, {}, b"")}, manifest=False) as server:
        client = Client(server.url)
        urls = [client.get("/a", given, context=context_for()).url]
        urls += [client.get("/a?x=1", given, context=context_for()).url]
        urls += [client.get("/a", {"n": None}, context=context_for()).url]
        client.post("/a", given, context=context_for())
    queries = [parse_qsl(urlsplit(url).query, keep_blank_values=True) for url in urls]
    assert queries == [sent, [("x", "1"), *sent], []]
    assert parse_qsl(server.asked[-1].body.decode(), keep_blank_values=True) == sent
    assert [asked.query.get("x") for asked in server.asked] == [None, "1", None, None]
