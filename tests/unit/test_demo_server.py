"""The server of the bundled data, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.parse

import pytest

from resilient_scan.cli.demo_server import LoopbackServer


def connect(server: LoopbackServer) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(server.url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)


def echo(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps([path, query]).encode()


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_path_and_query_arrive_decoded() -> None:
    with LoopbackServer(echo) as server:
        connection = connect(server)
        status, body = get(connection, "/v8/%5EGSPC?a=1&b=x%26y&empty=&a=2")
        connection.close()
    assert (status, json.loads(body)) == (200, ["/v8/^GSPC", {"a": "2", "b": "x&y", "empty": ""}])


def test_status_headers_and_body_are_the_functions() -> None:
    with LoopbackServer(lambda path, query: (404, {"X-Kind": "test"}, b"gone")) as server:
        connection = connect(server)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["X-Kind"], answer.read()) == (404, "test", b"gone")
        connection.close()


def test_a_connection_stays_open_for_the_next_request() -> None:
    with LoopbackServer(echo) as server:
        connection = connect(server)
        get(connection, "/1")
        first = connection.sock
        get(connection, "/2")
        assert connection.sock is first is not None
        connection.close()


def test_requests_are_answered_at_the_same_time() -> None:
    meet = threading.Barrier(3, timeout=5)

    def respond(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        meet.wait()
        return 200, {}, b"met"

    with LoopbackServer(respond) as server:
        answers: list[tuple[int, bytes]] = []

        def ask() -> None:
            connection = connect(server)
            answers.append(get(connection, "/"))
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [(200, b"met")] * 3


@pytest.mark.parametrize("wrong", [lambda path, query: 1 / 0, lambda path, query: None, lambda path, query: {}["x"]])
def test_a_function_that_fails_is_a_500_without_a_traceback(wrong: object, capfd: pytest.CaptureFixture[str]) -> None:
    with LoopbackServer(wrong) as server:  # type: ignore[arg-type]
        connection = connect(server)
        status, body = get(connection, "/")
        assert status == 500
        assert body.startswith(b"the responder failed with ")
        assert body.count(b"\n") == 1
        assert get(connection, "/again")[0] == 500
        connection.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_only_get_is_served(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    with LoopbackServer(echo) as server:
        connection = connect(server)
        connection.request(method, "/")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (501, f"Unsupported method ('{method}')\n".encode())
        connection.close()
    assert capfd.readouterr() == ("", "")


def test_junk_is_refused_and_a_client_that_leaves_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    with LoopbackServer(echo) as server:
        parts = urllib.parse.urlsplit(server.url)
        address = parts.hostname or "", parts.port or 0
        with socket.create_connection(address, timeout=5) as junk:
            junk.sendall(b"\x00\x01\x02\r\n\r\n")
            assert b"Bad request syntax" in junk.recv(4096)
        with socket.create_connection(address, timeout=5) as leaver:
            leaver.sendall(b"GET / HT")
        connection = connect(server)
        assert get(connection, "/")[0] == 200
        connection.close()
    assert capfd.readouterr() == ("", "")


def test_stop_closes_the_port_and_open_connections() -> None:
    server = LoopbackServer(echo).start()
    connection = connect(server)
    get(connection, "/")
    server.stop()
    server.stop()
    assert connection.sock.recv(1) == b""
    connection.close()
    with pytest.raises(OSError, match=r".*"):
        get(connect(server), "/")


def test_a_server_that_was_never_started_can_be_stopped() -> None:
    LoopbackServer(echo).stop()


def test_a_port_of_ones_own_and_one_that_is_taken() -> None:
    with LoopbackServer(echo) as server:
        port = urllib.parse.urlsplit(server.url).port or 0
        with pytest.raises(OSError, match="in use"):
            LoopbackServer(echo, port=port)
    with LoopbackServer(echo, port=port) as again:
        assert again.url == server.url


def test_it_listens_on_loopback_only() -> None:
    with LoopbackServer(echo) as server:
        assert server.url.startswith("http://127.0.0.1:")
