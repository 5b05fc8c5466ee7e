"""The HTTP client against real servers on loopback: in time, the right exception, no secret in any text."""

from __future__ import annotations

import json
import os
import pkgutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from resilient_scan import ConfigError, LimitExceeded, PermanentError, RetryAfter, ScanCancelled, ScanContext
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.http import Client, NotFound, SchemaDrift, TransientError, credential, redact
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock
from tests.scanners.recorded import Answer, Asked, RecordedServer
from tests.support.http import answering, context_for, raw_server, read_request

SECRET = "k3y-0f-the-h0use"


def drip(connection: socket.socket, over: threading.Event, text: bytes) -> None:
    while not over.wait(0.02):
        connection.sendall(text)


# ------------------------------------------------------------------------------------------------------------- answers


def test_an_answer_comes_back_whole() -> None:
    with LoopbackServer(lambda path, query: (200, {"X-Kind": "echo"}, json.dumps([path, query]).encode())) as server:
        answer = Client(server.url + "/api/").get("/v1/a b", {"q": "x&y", "n": 3}, context=context_for())
    assert (answer.status, answer.headers["x-kind"]) == (200, "echo")
    assert answer.json() == ["/api/v1/a b", {"q": "x&y", "n": "3"}]
    assert answer.text.startswith("[")


def test_one_connection_serves_many_requests() -> None:
    peers: list[object] = []

    def handle(connection: socket.socket, over: threading.Event) -> None:
        peers.append(connection)
        while True:
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(handle) as url:
        client = Client(url)
        assert [client.get("/", context=context_for()).text for _ in range(5)] == ["ok"] * 5
        client.close()
    assert len(peers) == 1


def test_one_client_serves_many_threads() -> None:
    with LoopbackServer(lambda path, query: (200, {}, query["n"].encode())) as server:
        client = Client(server.url)
        results: dict[int, str] = {}

        def ask(number: int) -> None:
            results[number] = client.get("/", {"n": number}, context=context_for()).text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
    assert results == {number: str(number) for number in range(50)}


def test_no_cookie_is_kept_from_one_request_to_the_next() -> None:
    cookie = {"set-cookie": "session=S3CRET; path=/"}
    with RecordedServer({"/*": (200, cookie, b"")}, manifest=False) as server:
        client = Client(server.url)
        client.get("/a", context=context_for())
        client.get("/a", context=context_for())
        client.get("/a", context=context_for(), headers={"Cookie": "own=1"})
        client.close()
    assert [asked.headers.get("cookie") for asked in server.asked] == [None, None, "own=1"]


def test_a_closed_client_opens_new_connections() -> None:
    with answering() as url:
        client = Client(url)
        client.get("/", context=context_for())
        client.close()
        client.close()
        assert client.get("/", context=context_for()).status == 200
        client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_gets_connections_of_its_own() -> None:
    ports: list[int] = []

    def handle(connection: socket.socket, over: threading.Event) -> None:
        ports.append(connection.getpeername()[1])
        while True:
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(handle) as url:
        client = Client(url)
        client.get("/", context=context_for())
        pid = os.fork()
        if pid == 0:
            os._exit(0 if client.get("/", context=context_for()).text == "ok" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.get("/", context=context_for()).text == "ok"
        client.close()
    assert len(ports) == 2


# ---------------------------------------------------------------------------------------------------------------- time


def test_a_server_that_never_answers_costs_the_timeout() -> None:
    def hang(connection: socket.socket, over: threading.Event) -> None:
        over.wait()

    with raw_server(hang) as url:
        client, began = Client(url, timeout=0.2), time.monotonic()
        with pytest.raises(TransientError, match=r"no whole answer within 0\.2s"):
            client.get("/", context=context_for())
        assert 0.19 < time.monotonic() - began < 10
        client.close()


def test_the_scans_remaining_time_beats_the_timeout() -> None:
    def hang(connection: socket.socket, over: threading.Event) -> None:
        over.wait()

    with raw_server(hang) as url:
        client, began = Client(url, timeout=30), time.monotonic()
        with pytest.raises(ScanCancelled):
            client.get("/", context=context_for(0.2))
        assert time.monotonic() - began < 10
        client.close()


@pytest.mark.parametrize(
    ("head", "dripped"),
    [
        pytest.param(b"", b"H", id="status-line"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunks"),
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b"x", id="error-body"),
    ],
)
def test_a_dripping_server_is_cut_off_at_the_deadline(head: bytes, dripped: bytes) -> None:
    def handle(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(head)
        drip(connection, over, dripped)

    with raw_server(handle) as url:
        client, began = Client(url, timeout=0.3), time.monotonic()
        with pytest.raises(TransientError):
            client.get("/", context=context_for())
        assert time.monotonic() - began < 10
        client.close()


def test_a_cancel_stops_a_body_between_two_chunks() -> None:
    arrived = threading.Event()

    def handle(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nx")
        arrived.set()
        drip(connection, over, b"x")

    context = context_for()
    with raw_server(handle) as url:
        client = Client(url)
        canceller = threading.Thread(target=lambda: (arrived.wait(), context.cancel()))
        canceller.start()
        with pytest.raises(ScanCancelled):
            client.get("/", context=context)
        canceller.join()
        client.close()


def test_every_request_waits_for_its_turn_at_the_provider() -> None:
    class Limited(ScanContext):
        turns = 2

        def before_request(self) -> None:
            if not self.turns:
                raise LimitExceeded("no turn before the deadline")
            self.turns -= 1

    asked: list[str] = []
    context = Limited("test", deadline=time.monotonic() + 5)
    with LoopbackServer(lambda path, query: (asked.append(path), (200, {}, b""))[1]) as server:
        client = Client(server.url)
        client.get("/1", context=context)
        client.get("/2", context=context)
        with pytest.raises(LimitExceeded):
            client.get("/3", context=context)
    assert asked == ["/1", "/2"]


def test_a_scan_that_is_over_asks_nothing() -> None:
    context = context_for()
    context.cancel()
    with pytest.raises(ScanCancelled):
        Client("http://127.0.0.1:9").get("/", context=context)


# -------------------------------------------------------------------------------------------------- the right exception


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 422, 451])
def test_a_status_that_no_attempt_will_change_is_permanent(status: int) -> None:
    with answering(status) as url, pytest.raises(PermanentError, match=f"{url}/x: HTTP {status} .*; check "):
        Client(url).get("/x", context=context_for())


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 520])
def test_a_status_that_may_pass_is_transient(status: int) -> None:
    with answering(status, body=b"") as url, pytest.raises(TransientError, match=f"{url}/x: HTTP {status}; "):
        Client(url).get("/x", context=context_for())


@pytest.mark.parametrize("status", [403, 429, 503])
@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("9" * 400, 366 * 86400.0)])
def test_retry_after_in_seconds(status: int, text: str, seconds: float) -> None:
    with answering(status, {"Retry-After": text}) as url, pytest.raises(RetryAfter, match=f"HTTP {status}") as caught:
        Client(url).get("/", context=context_for())
    assert caught.value.seconds == seconds


def test_retry_after_as_a_date_is_read_against_the_servers_own_clock() -> None:
    def handle(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(
            b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nDate: Fri, 01 Jan 1999 00:00:00 GMT\r\n"
            b"Retry-After: Fri, 01 Jan 1999 00:01:30 GMT\r\n\r\n"
        )

    with raw_server(handle) as url:
        client = Client(url)
        with pytest.raises(RetryAfter) as caught:
            client.get("/", context=context_for())
        client.close()
    assert caught.value.seconds == 90.0


def test_retry_after_as_a_date_without_a_date_header_is_read_against_the_scans_clock() -> None:
    clock = FakeClock()
    context = ScanContext("test", clock=clock, deadline=60.0)
    later = format_datetime(datetime.fromtimestamp(clock.time(), UTC) + timedelta(seconds=42), usegmt=True)

    def handle(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: {later}\r\n\r\n".encode())

    with raw_server(handle) as url:
        client = Client(url)
        with pytest.raises(RetryAfter) as caught:
            client.get("/", context=context)
        client.close()
    assert caught.value.seconds == pytest.approx(42.0)


def test_retry_after_in_the_past_asks_for_no_wait() -> None:
    headers = {"Retry-After": "Fri, 01 Jan 1999 00:00:00 GMT"}
    with answering(503, headers) as url, pytest.raises(RetryAfter) as caught:
        Client(url).get("/", context=context_for())
    assert caught.value.seconds == 0.0


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e3", "Fri, 99 Foo 1999"])
def test_a_retry_after_that_says_nothing_leaves_the_wait_to_the_backoff(text: str) -> None:
    with answering(429, {"Retry-After": text}) as url, pytest.raises(TransientError, match="ask less often"):
        Client(url).get("/", context=context_for())


@pytest.mark.parametrize("error", [NotFound, SchemaDrift, TransientError])
def test_an_error_is_reported_under_the_name_that_settings_can_import(error: type[Exception]) -> None:
    """`retry.on = [...]` takes what a report says, and a file that moves inside the package changes no report."""
    assert ErrorInfo.of(error("why")).type == f"resilient_scan.http.{error.__name__}"
    assert pkgutil.resolve_name(ErrorInfo.of(error("why")).type) is error


def test_a_status_that_the_caller_accepts_is_an_answer() -> None:
    with answering(404, body=b'{"error": "unknown"}') as url:
        answer = Client(url).get("/", context=context_for(), accept=(404,))
    assert (answer.status, answer.json()) == (404, {"error": "unknown"})


def test_redirects_are_told_and_not_followed() -> None:
    headers = {"Location": f"https://elsewhere.example/login?token={SECRET}"}
    with answering(302, headers) as url, pytest.raises(PermanentError) as caught:
        Client(url).get("/", context=context_for())
    assert "moved to https://elsewhere.example/login?token=REDACTED" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (300, {}, "; check the address and what was asked for"),
        (302, {"Location": ""}, "; check the address and what was asked for"),
        (304, {}, ": not modified, although nothing older was named; a cache on the way is wrong"),
        (
            304,
            {"Location": "/elsewhere"},
            ": not modified, although nothing older was named; a cache on the way is wrong",
        ),
    ],
)
def test_a_status_that_points_nowhere_is_not_called_a_move(status: int, headers: dict[str, str], words: str) -> None:
    with answering(status, headers, body=b"") as url, pytest.raises(PermanentError) as caught:
        Client(url).get("/", context=context_for())
    assert str(caught.value) == f"{url}/: HTTP {status}{words}"


def test_a_second_answer_to_one_request_is_not_the_answer_to_the_next() -> None:
    """As of a server that sends an error page after the page."""
    peers: list[object] = []

    def handle(connection: socket.socket, over: threading.Event) -> None:
        peers.append(connection)
        number = 0
        while True:
            read_request(connection)
            number += 1
            page = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"
            connection.sendall(page + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\noops!" * (number == 2))

    with raw_server(handle) as url:
        client = Client(url)
        assert [client.get("/", context=context_for()).text for _ in range(2)] == ["page", "page"]
        with pytest.raises(TransientError, match="held an answer that nobody had asked for"):
            client.get("/", context=context_for())
        assert client.get("/", context=context_for()).text == "page"
        client.close()
    assert len(peers) == 2


def test_a_body_beyond_the_limit_is_refused() -> None:
    with answering(200, body=b"x" * 2000) as url:
        client = Client(url, max_bytes=1000)
        with pytest.raises(PermanentError, match="larger than 1000 bytes"):
            client.get("/", context=context_for())
        assert Client(url, max_bytes=2000).get("/", context=context_for()).body == b"x" * 2000
        client.close()


@pytest.mark.parametrize("body", [b"<html>Sorry</html>", b"", b'{"cut": [1, 2', b"[" * 200_000])
def test_a_body_that_is_no_json_is_transient(body: bytes) -> None:
    with answering(200, {"Content-Type": "text/html"}, body) as url:
        answer = Client(url).get("/", context=context_for())
    with pytest.raises(TransientError, match=rf"{len(body)} bytes that are not JSON \(text/html\)"):
        answer.json()


def test_error_pages_for_people_are_not_quoted() -> None:
    page = b"<!DOCTYPE html><html><body>" + b"blah " * 1000 + b"</body></html>"
    for headers in ({"Content-Type": "text/html"}, {}):
        with answering(503, headers, page) as url, pytest.raises(TransientError) as caught:
            Client(url).get("/", context=context_for())
        assert "blah" not in str(caught.value)


def test_what_an_error_says_is_quoted_in_one_short_line() -> None:
    with answering(403, body=b"Premium\n\n  endpoint " + b"x" * 500) as url, pytest.raises(PermanentError) as caught:
        Client(url).get("/", context=context_for())
    assert "HTTP 403 (Premium endpoint xxx" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", b"\x00\x01 this is not HTTP\r\n\r\n"],
    ids=["half of an answer", "no HTTP"],
)
def test_a_connection_that_breaks_and_what_is_no_http_are_transient(said: bytes) -> None:
    def say(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(said)

    with raw_server(say) as url:
        client = Client(url)
        with pytest.raises(TransientError, match="RemoteProtocolError"):
            client.get("/", context=context_for())
        client.close()


def test_a_body_in_a_broken_encoding_is_transient() -> None:
    with (
        answering(200, {"Content-Encoding": "gzip"}, b"not gzip") as url,
        pytest.raises(TransientError, match=r"not the gzip .* \(incorrect header check\)"),
    ):
        Client(url).get("/", context=context_for())


def test_a_port_where_nobody_listens_is_transient() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransientError, match=f"http://127.0.0.1:{port}/: no connection to 127.0.0.1: .*refused"):
        Client(f"http://127.0.0.1:{port}").get("/", context=context_for())


def test_tls_with_a_server_that_has_none_is_transient() -> None:
    with answering() as url, pytest.raises(TransientError, match="ConnectError"):
        Client(url.replace("http:", "https:")).get("/", context=context_for())


# ------------------------------------------------------------------------------------------------------------- secrets


def test_who_asks_may_have_an_accent_and_a_key_that_cannot_be_sent_is_not_shown() -> None:
    seen: list[bytes] = []

    def old(connection: socket.socket, over: threading.Event) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nwell")  # without a length: what ends it is the connection's end

    with raw_server(old) as url:
        client = Client(url, headers={"User-Agent": "José jose@example.com"})
        assert client.get("/", context=context_for()).text == "well"
        with pytest.raises(PermanentError, match="Illegal header value") as caught:
            client.get("/", headers={"X-Token": "se\x00cret"}, context=context_for())
        client.close()
    assert "José jose@example.com".encode() in seen[0]
    assert "cret" not in str(caught.value)


def test_redact_takes_out_user_password_and_telling_parameters() -> None:
    url = (
        f"https://user:{SECRET}@host.example/a?apikey={SECRET}&symbol=BRK.B&api_key={SECRET}&crumb={SECRET}&keywords=x"
    )
    assert redact(url) == (
        "https://host.example/a?apikey=REDACTED&symbol=BRK.B&api_key=REDACTED&crumb=REDACTED&keywords=x"
    )


TELLING = ["apikey", "api_key", "API-Key", "X-Api-Key", "token", "access_token", "X-Finnhub-Token", "key", "crumb"]
TELLING += ["Authorization", "client_secret", "password", "sig", "Cookie", "session_id"]


@pytest.mark.parametrize("name", TELLING)
def test_telling_names(name: str) -> None:
    assert SECRET not in redact(f"https://host.example/?{name}={SECRET}")


@pytest.mark.parametrize("name", ["symbol", "keywords", "monkey", "period1", "interval", "hotkey"])
def test_names_that_tell_nothing(name: str) -> None:
    assert "AAPL" in redact(f"https://host.example/?{name}=AAPL")


@pytest.mark.parametrize("status", [301, 403, 404, 429, 500])
def test_no_secret_in_the_texts_of_errors(status: int) -> None:
    said = f"The key {SECRET} has reached its limit, {SECRET}".encode()
    headers = {"Location": f"/{SECRET}", "Retry-After": "5"}
    with answering(status, headers, said) as url:
        client = Client(url.replace("//", f"//me:{SECRET}@"), headers={"Authorization": f"Bearer {SECRET}"})
        with pytest.raises((PermanentError, TransientError, RetryAfter)) as caught:
            client.get("/query", {"apikey": SECRET, "symbol": "IBM"}, context=context_for())
        client.close()
    shown = f"{caught.value} {caught.value!r} {caught.value.args} {caught.value.__cause__}"
    assert SECRET not in shown
    assert "apikey=REDACTED&symbol=IBM" in shown


def test_no_secret_in_the_texts_of_network_errors_and_of_answers() -> None:
    with answering(200, body=b"oops") as url:
        answer = Client(url).get("/x", {"token": SECRET}, context=context_for())
        hidden = Client(url, secrets=(SECRET,)).get(f"/{SECRET}/x", context=context_for())
    assert answer.url == f"{url}/x?token=REDACTED"
    assert hidden.url == f"{url}/REDACTED/x"
    with pytest.raises(TransientError) as caught:
        Client("http://127.0.0.1:9").get("/", {"token": SECRET}, context=context_for())
    assert SECRET not in str(caught.value)
    with answering() as url, pytest.raises(PermanentError) as refused:
        Client(url, headers={"X-Api-Key": f"{SECRET}\n"}).get("/", context=context_for())
    assert SECRET not in f"{refused.value} {refused.value.__cause__}"


def test_a_secret_with_marks_is_hidden_in_every_form() -> None:
    secret = "a/b+c d=é"
    with LoopbackServer(lambda path, query: (400, {}, f"bad key {query['key']}".encode())) as server:
        client = Client(server.url)
        with pytest.raises(PermanentError) as caught:
            client.get("/", {"key": secret}, context=context_for())
        client.close()
    assert "a/b" not in str(caught.value)
    assert "bad key REDACTED" in str(caught.value)


# ------------------------------------------------------------------------------------------------------- configuration


NO_BASES = ["", "host.example", "ftp://host.example", "http://", "http:///path", "http://[bad", "http://h/a?b=1"]


@pytest.mark.parametrize("url", [*NO_BASES, "http://h/#a", "http://h:x", "http://h:99999", "http:// h", "http://h:0"])
def test_a_base_url_must_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url must begin with"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_must_be_a_time(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout must be finite and > 0"):
        Client("http://host.example", timeout=timeout)


def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket, over: threading.Event) -> None:
        seen.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(handle) as proxy:
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//me:word@"))
        client = Client("http://host.example")
        assert client.get("/a", context=context_for()).text == "ok"
        client.close()
    assert seen[0].startswith(b"GET http://host.example/a HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6d29yZA==" in seen[0]


def test_no_proxy_is_respected_and_socks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"put host\.example in NO_PROXY"):
        Client("http://host.example").get("/", context=context_for())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with answering() as url:
        assert Client(url).get("/", context=context_for()).status == 200


def test_without_httpx_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['httpx'] = sys.modules['httpcore'] = None\n"
        "from resilient_scan import ConfigError\n"
        "from resilient_scan.http import Client\n"
        "try: Client('http://host.example')\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "resilient-scan[scanners]" in done.stdout


@pytest.mark.parametrize("url", ["https://me:{}/x@h/", "https://me:{}?x@h", "https://me:{}#x@h", "ftp://h/?apikey={}"])
def test_a_base_url_that_is_refused_is_shown_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(url.format(SECRET))
    assert SECRET not in str(caught.value)


def test_a_key_is_not_shown_in_part_where_an_error_is_cut() -> None:
    said = b"x " * 95 + SECRET.encode()  # the message ends after 200 characters
    with answering(403, body=said) as url, pytest.raises(PermanentError) as caught:
        Client(url, secrets=[SECRET]).get("/", context=context_for())
    assert SECRET[:8] not in str(caught.value)


def test_what_an_address_logs_in_with_is_hidden_however_it_is_sent() -> None:
    def echo(asked: Asked) -> Answer:
        return 400, {}, f"you sent {asked.headers['authorization']}".encode()

    with RecordedServer({"/*": echo}, manifest=False) as server:
        for user, plain in (("me:s%40cret-w0rd", "me:s@cret-w0rd"), (f"{SECRET}:", f"{SECRET}:")):
            client = Client(server.url.replace("//", f"//{user}@"))
            with pytest.raises(PermanentError) as caught:
                client.get(f"/{plain.strip(':').removeprefix('me:')}", context=context_for())
            client.close()
            assert b64encode(plain.encode()).decode() == server.asked[-1].headers["authorization"].split()[1]
            assert "you sent Basic REDACTED" in str(caught.value)
            assert "/REDACTED: HTTP 400" in str(caught.value)


@pytest.mark.parametrize("charset", ["punycode", "IDNA", "unicode_escape", "raw-unicode-escape", "no-such", "hex"])
def test_a_codec_that_is_no_charset_is_not_used(charset: str) -> None:
    """Decoding 16 MB of Punycode would take hours, and no timeout could end it."""
    with answering(200, {"Content-Type": f"text/plain; charset={charset}"}, b"M\\u0041nchen-3ya") as url:
        assert Client(url).get("/", context=context_for()).text == "M\\u0041nchen-3ya"


def test_a_charset_is_used_that_is_one() -> None:
    with answering(200, {"Content-Type": "text/plain; charset=latin-1"}, "é".encode("latin-1")) as url:
        assert Client(url).get("/", context=context_for()).text == "é"


def test_a_header_of_the_callers_own_replaces_the_forms() -> None:
    heads: list[bytes] = []

    def handle(connection: socket.socket, over: threading.Event) -> None:
        heads.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as url:
        client = Client(url)
        client.post("/", {"a": 1}, context=context_for(), headers={"CONTENT-type": "text/plain"})
        client.close()
    assert heads[0].lower().count(b"content-type:") == 1
    assert b"content-type: text/plain" in heads[0].lower()


def test_a_key_that_is_no_text_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"ACME_API_KEY", b"caf\xe9")
    with pytest.raises(ConfigError, match="variable ACME_API_KEY holds bytes that are not UTF-8"):
        credential(context_for(), "api_key", "ACME_API_KEY")
    monkeypatch.setenv("ACME_API_KEY", " café ")
    assert credential(context_for(), "api_key", "ACME_API_KEY") == "café"
