"""The control endpoint and clients that do not behave: slow, huge, malformed, too many, or gone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest

from resilient_scan.service.bounds import SAFE, Bounds
from resilient_scan.testing import FakeClock
from tests.support.control import BEARER, JSON, Served, alert, grafana, head, rest, signed, until, until_cut
from tests.support.fixtures import Background, Eventually, Serve

SHORT = Bounds(head=0.2, body=0.2, work=5.0)
ORDER = b'{"reason": "x"}'
BEARER_LINE = f"Authorization: {BEARER['Authorization']}\r\n".encode()


Connected = Callable[[Served, int], list[socket.socket]]


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Take apart what came over a connection."""
    found = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", 0))
        found.append((int(first.split()[1]), headers, data[:size]))
        data = data[size:]
    return found


def one(data: bytes) -> tuple[int, str, str]:
    """Take the only answer, an error: status, code, message."""
    ((status, headers, body),) = answers(data)
    assert headers["content-type"] == "application/json"
    assert all(headers[name.lower()] == value for name, value in SAFE.items())
    error = json.loads(body)["error"]
    return status, error["code"], error["message"]


def open_connections(served: Served) -> set[Any]:
    """Return the server's own objects."""
    found: set[Any] = served.service._live[0]._server.server_state.connections  # type: ignore[index]
    return found


@pytest.fixture
def connected(eventually: Eventually) -> Iterator[Connected]:
    """Return a function that opens connections until there are so many, each after the server has seen the last."""
    with ExitStack() as stack:

        def connect(served: Served, count: int) -> list[socket.socket]:
            wires = []
            for number in range(len(open_connections(served)) + 1, count + 1):
                wires.append(stack.enter_context(served.connect()))
                eventually(lambda number=number: len(open_connections(served)) == number)
            return wires

        yield connect


# size


def test_a_body_of_a_megabyte_is_read(shared: Served) -> None:
    body = b'{"reason": 1' + b" " * (1_000_000 - 13) + b"}"
    assert len(body) == 1_000_000
    assert shared.post("/scanners/gamma/enable", body).status == 422


@pytest.mark.parametrize("size", [1_000_001, 5_000_000, 9_000_000])
def test_a_larger_one_is_refused_so_that_its_sender_sees_it(shared: Served, size: int) -> None:
    answer = shared.post("/scanners/gamma/disable", b" " * size)
    assert answer.error == (413, "too_large", "the body is larger than 1000000 bytes; send less at a time")
    assert answer.headers["Connection"] == "close"


def test_of_one_that_does_not_end_only_some_megabytes_are_read(serve: Serve) -> None:
    served = serve(bounds=Bounds(size=100_000, discard=400_000))
    with served.connect() as wire:
        wire.sendall(head("POST", "/alerts", Content_Length=10**9, Content_Type="application/json"))
        sent = until_cut(wire, b" " * 65536, 10_000)
    assert 0 < sent < 50_000_000  # what kernels keep on both sides, and the rest


def test_a_body_that_is_not_asked_for_does_not_go_on_for_ever(serve: Serve) -> None:
    served = serve(bounds=SHORT)
    with served.connect() as wire:
        wire.sendall(head("GET", "/healthz", Content_Length=10**9))
        assert answers(until(wire, b'"ok"}'))[0][0] == 200
        assert until_cut(wire, b" " * 1000, 10**9) < 10**9


@pytest.mark.parametrize(
    "line",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_a_head_that_is_too_large_is_refused(shared: Served, line: bytes) -> None:
    with shared.connect() as wire:
        try:
            wire.sendall(line)
            data = rest(wire)
        except ConnectionError:
            return
        assert one(data)[:2] == (400, "malformed")


# before anybody knows who sends it


@pytest.mark.parametrize("path", ["/alerts", "/scanners/gamma/disable"])
def test_no_body_is_waited_for_without_the_token(shared: Served, path: str) -> None:
    with shared.connect() as wire:
        lines = head("POST", path, Content_Type="application/json", Content_Length=1_000_000)
        wire.sendall(lines.replace(b"Bearer ", b"Bearer x"))
        assert one(until(wire, b'"}}'))[:2] == (401, "unauthorized")


@pytest.mark.parametrize("path", ["/alerts", "/scanners/gamma/disable"])
def test_who_is_refused_gets_the_answer_although_it_goes_on_sending(shared: Served, path: str) -> None:
    """Closing at once, with bytes of the body on their way, would reset the connection."""
    with shared.connect() as wire:
        lines = head("POST", path, Content_Type="application/json", Content_Length=1_000_000, Connection="close")
        wire.sendall(lines.replace(b"Bearer ", b"Bearer x"))
        answer = until(wire, b'"}}')
        assert until_cut(wire, b" " * 100_000, 10) == 1_000_000
        assert one(answer + rest(wire))[:2] == (401, "unauthorized")


def test_the_rest_of_a_refused_body_is_not_waited_for_long(serve: Serve) -> None:
    served = serve(bounds=Bounds(body=0.2))
    lines = head("POST", "/alerts", Content_Type="application/json", Content_Length=100, Connection="close")
    began = time.monotonic()
    assert one(served.raw(lines.replace(b"Bearer ", b"Bearer x") + b"["))[:2] == (401, "unauthorized")
    assert time.monotonic() - began < 8  # not until the whole request is cut off


def test_of_a_body_that_nobody_has_asked_for_next_to_nothing_is_kept(
    serve: Serve, release: threading.Event, eventually: Eventually
) -> None:
    def slow() -> str:
        release.wait(10)
        return ""

    served = serve(why_not=slow)
    with served.connect() as wire:
        wire.sendall(head("GET", "/readyz", Content_Length=1_000_000) + b" " * 200_000)
        eventually(lambda: any(each.cycle for each in open_connections(served)))
        (connection,) = open_connections(served)
        assert connection.flow.read_paused
        assert len(connection.cycle.body) <= 16_384
        release.set()
        assert until(wire, b'"ready"}').startswith(b"HTTP/1.1 200")


def test_a_signed_body_gives_its_turn_to_the_next(serve: Serve, connected: Connected, eventually: Eventually) -> None:
    clock = FakeClock()
    served = serve(bounds=Bounds(signed=2), clock=clock)
    body = json.dumps(grafana(alert())).encode()
    lines = head(
        "POST", "/alerts", Content_Type="application/json", Content_Length=len(body), **signed(body, clock.time())
    )
    lines = lines.replace(BEARER_LINE, b"")
    first, second, third = wires = connected(served, 3)
    for number, wire in enumerate(wires, 1):
        wire.sendall(lines + body[:10])
        eventually(lambda number=number: sum(bool(each.cycle) for each in open_connections(served)) == number)
    message = "more than 2 signed messages came at once; send it again, in one go"
    assert one(until(first, b'"}}')) == (503, "busy", message)
    assert served.webhooks() == {("unknown", "invalid"): 1}
    for wire in (second, third):
        wire.sendall(body[10:])
        assert until(wire, b"}").startswith(b"HTTP/1.1 200")
    assert served.state("gamma") == "quarantined"


# time


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", head("GET", "/")[:-2]])
def test_a_slow_head_is_cut_off_and_told_why(serve: Serve, start: bytes) -> None:
    served = serve(bounds=SHORT)
    message = "no whole request came within 0.2 s; send it in one go"
    assert one(served.raw(start)) == (408, "too_slow", message)


def test_a_head_that_drips_is_cut_off_too(serve: Serve, background: Background) -> None:
    served = serve(bounds=SHORT)
    pause = threading.Event()
    with served.connect() as wire:
        dripped = background(until_cut, wire, b"X", 1000, lambda: pause.wait(0.01))
        assert one(until(wire, b'"}}'))[:2] == (408, "too_slow")
        assert dripped.result(5) < 1000


def test_a_client_that_says_nothing_is_let_go(serve: Serve) -> None:
    assert serve(bounds=SHORT).raw(b"") == b""


def test_the_next_head_on_a_connection_has_the_same_time(serve: Serve) -> None:
    served = serve(bounds=SHORT)
    data = served.raw(head("GET", "/healthz") + b"GET /hea")
    (first, _, _), (second, headers, _) = answers(data)
    assert (first, second) == (200, 408)
    assert headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/alerts", "/scanners/gamma/disable"])
def test_a_slow_body_is_cut_off_and_told_why(serve: Serve, path: str) -> None:
    served = serve(bounds=SHORT)
    data = served.raw(head("POST", path, Content_Type="application/json", Content_Length=100) + b'{"rea')
    assert one(data) == (408, "too_slow", "the body did not come within 0.2 s; send it in one go")
    assert served.state("gamma") == "enabled"
    assert served.webhooks() == ({("unknown", "invalid"): 1} if path == "/alerts" else {})


def test_a_client_that_reads_no_answer_is_let_go(serve: Serve, eventually: Eventually) -> None:
    served = serve(bounds=Bounds(head=0.1, body=0.05, work=0.05))
    connections = open_connections(served)
    with served.connect() as wire:
        wire.setblocking(False)
        try:
            for _ in range(20_000):
                wire.send(head("GET", "/metrics"))
        except BlockingIOError:
            pass
        eventually(lambda: not connections)


def test_a_store_that_takes_too_long_is_told(serve: Serve, release: threading.Event) -> None:
    def slow() -> str:
        release.wait(10)
        return ""

    served = serve(bounds=Bounds(work=0.1), why_not=slow)
    message = "the runner's store takes too long; try again, and look what was done"
    assert served.get("/readyz").error == (503, "too_slow", message)
    assert served.get("/healthz").status == 200
    release.set()


# shape


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX Y: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        head("POST", "/alerts", Content_Length="x"),
        head("POST", "/alerts", Content_Length=-1),
        head("POST", "/alerts", Content_Length="1, 2"),
        head("POST", "/alerts", Transfer_Encoding="gzip"),
        head("POST", "/alerts", Transfer_Encoding="chunked") + b"zz\r\n",
        head("POST", "/alerts", Transfer_Encoding="chunked") + b"1\r\n[X",
        head("POST", "/alerts", Transfer_Encoding="chunked") + b"2\r\n[]XX0\r\n\r\n",  # h11 took it before 0.16
        head("POST", "/alerts", Transfer_Encoding="chunked") + b"2\r\n[]\n\n0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_in_the_same_form(shared: Served, data: bytes) -> None:
    message = "this is not an HTTP/1.1 request; send one as RFC 9112 says"
    assert one(shared.raw(data)) == (400, "malformed", message)
    assert shared.get("/healthz").status == 200


def test_junk_after_an_answer_ends_the_connection(shared: Served) -> None:
    first, second = answers(shared.raw(head("GET", "/healthz") + b"junk\r\n\r\n"))
    assert (first[0], second[0]) == (200, 400)


def test_junk_in_a_body_that_nobody_wanted_ends_the_connection(
    shared: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with shared.connect() as wire:
        wire.sendall(head("GET", "/healthz", Transfer_Encoding="chunked"))
        assert answers(until(wire, b'"ok"}'))[0][0] == 200
        wire.sendall(b"zz\r\n")
        assert rest(wire) == b""
    assert caplog.text == ""


def test_chunks_make_a_body(serve: Serve) -> None:
    served = serve()
    sent = head(
        "POST",
        "/scanners/gamma/disable",
        Transfer_Encoding="chunked",
        Content_Type="application/json",
        Connection="close",
    )
    for byte in ORDER:
        sent += b"1\r\n" + bytes([byte]) + b"\r\n"
    ((status, _, body),) = answers(served.raw(sent + b"0\r\n\r\n"))
    assert (status, json.loads(body)["state"]) == (200, "disabled")


def test_chunks_are_bounded_too(shared: Served) -> None:
    sent = head("POST", "/alerts", Transfer_Encoding="chunked", Content_Type="application/json")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert one(shared.raw(sent + chunk * 20 + b"0\r\n\r\n"))[:2] == (413, "too_large")


def test_a_chunked_body_beats_a_length_that_says_else(shared: Served) -> None:
    sent = head(
        "POST",
        "/scanners/gamma/enable",
        Transfer_Encoding="chunked",
        Content_Length=3,
        Content_Type="application/json",
        Connection="close",
    )
    data = shared.raw(sent + b"2\r\n{}\r\n0\r\n\r\n")
    assert [status for status, _, _ in answers(data)] in ([422], [400])


def test_a_body_that_is_shorter_than_said_is_no_order(serve: Serve) -> None:
    served = serve()
    with served.connect() as wire:
        wire.sendall(
            head("POST", "/scanners/gamma/disable", Content_Length=100, Content_Type="application/json") + ORDER
        )
        wire.shutdown(socket.SHUT_WR)
        rest(wire)
    assert served.state("gamma") == "enabled"


def test_what_follows_a_body_is_the_next_request(serve: Serve) -> None:
    served = serve()
    order = head("POST", "/scanners/gamma/disable", Content_Length=len(ORDER), Content_Type="application/json") + ORDER
    data = served.raw(
        order + head("GET", "/scanners/gamma") + head("GET", "/x") + head("GET", "/healthz", Connection="close")
    )
    told = answers(data)
    assert [status for status, _, _ in told] == [200, 200, 404, 200]
    assert json.loads(told[1][2])["state"] == "disabled"


def test_a_connection_goes_on_after_errors(shared: Served) -> None:
    wrong = [
        head("POST", "/alerts", Content_Length=1, Content_Type="application/json") + b"[",
        head("POST", "/alerts", Content_Length=1, Content_Type="text/plain") + b"[",
        head("PUT", "/alerts", Content_Length=1) + b"[",
        head("POST", "/nothing", Content_Length=100_000) + b" " * 100_000,
        head("POST", "/alerts", Content_Length=2, Content_Type="application/json") + b"[]",
    ]
    data = shared.raw(b"".join(wrong) + head("GET", "/healthz", Connection="close"))
    assert [status for status, _, _ in answers(data)] == [400, 415, 405, 404, 422, 200]


def test_who_asks_whether_to_send_a_body_is_told_to_go_on(shared: Served) -> None:
    with shared.connect() as wire:
        wire.sendall(
            head(
                "POST",
                "/alerts",
                Content_Length=2,
                Expect="100-continue",
                Content_Type="application/json",
                Connection="close",
            )
        )
        assert wire.recv(65536).startswith(b"HTTP/1.1 100")
        wire.sendall(b"[]")
        assert answers(rest(wire))[0][0] == 422


def test_an_older_client_is_answered_too(shared: Served) -> None:
    ((status, headers, _),) = answers(shared.raw(b"GET /healthz HTTP/1.0\r\n\r\n"))
    assert (status, headers["connection"]) == (200, "close")


def test_a_websocket_is_not_served(shared: Served, caplog: pytest.LogCaptureFixture) -> None:
    data = shared.raw(head("GET", "/scanners", Upgrade="websocket", Connection="Upgrade, close"))
    assert answers(data)[0][0] == 200
    assert caplog.text == ""


# many, and gone


def test_the_one_that_waits_longest_gives_way(serve: Serve, connected: Connected, eventually: Eventually) -> None:
    served = serve(bounds=Bounds(connections=3))
    oldest, used, youngest = connected(served, 3)
    used.sendall(head("GET", "/healthz"))
    assert until(used, b'"ok"}').startswith(b"HTTP/1.1 200")  # its wait begins again
    assert served.get("/healthz").status == 200
    assert rest(oldest) == b""
    eventually(lambda: len(open_connections(served)) == 2)
    (more,) = connected(served, 3)
    assert served.get("/healthz").status == 200
    assert rest(youngest) == b""
    for wire in (more, used):
        wire.sendall(head("GET", "/healthz"))
        assert until(wire, b'"ok"}').startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "part",
    [
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: y",
        head("POST", "/alerts", Content_Type="application/json", Content_Length=100) + b"[",
    ],
    ids=["head", "body"],
)
def test_a_byte_now_and_then_keeps_no_place(
    serve: Serve, connected: Connected, eventually: Eventually, part: bytes
) -> None:
    served = serve(bounds=Bounds(connections=2))
    (dripping,) = connected(served, 1)
    dripping.sendall(part)
    (idle,) = connected(served, 2)
    dripping.sendall(b"y")
    eventually(
        lambda: any(each.cycle or each.conn.trailing_data[0].endswith(b"yy") for each in open_connections(served))
    )
    assert served.get("/healthz").status == 200
    message = "too many clients are connected, and this request took longest; send it in one go"
    assert one(rest(dripping)) == (503, "busy", message)
    idle.sendall(head("GET", "/healthz"))
    assert until(idle, b'"ok"}').startswith(b"HTTP/1.1 200")


def test_a_request_that_is_answered_never_gives_way(
    serve: Serve, connected: Connected, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    def slow() -> str:
        release.wait(10)
        return ""

    served = serve(bounds=Bounds(connections=2), why_not=slow)
    answered = [background(served.get, "/readyz") for _ in range(2)]
    eventually(lambda: sum(each.answers for each in open_connections(served)) == 2)
    refused = served.get("/healthz")
    assert refused.error == (503, "busy", "too many clients are connected; try again")
    assert refused.headers["X-Content-Type-Options"] == "nosniff"
    eventually(lambda: len(open_connections(served)) == 2)
    connected(served, 3)
    assert served.get("/healthz").status == 503  # it takes the place of the one before, and that is not among the two
    release.set()
    assert [future.result(10).json for future in answered] == [{"status": "ready"}] * 2
    eventually(lambda: not open_connections(served))
    assert served.get("/healthz").status == 200


def test_connections_that_do_not_end_are_bounded_too(serve: Serve) -> None:
    served = serve(bounds=Bounds(connections=2))
    ending = {Mock(**{"transport.is_closing.return_value": True}) for _ in range(3)}
    open_connections(served).update(ending)
    assert served.get("/healthz").status == 200
    ending.add(more := Mock(**{"transport.is_closing.return_value": True}))
    open_connections(served).add(more)
    with served.connect() as wire:
        assert until_cut(wire, b"X", 10_000) < 10_000
    open_connections(served).difference_update(ending)


def test_clients_that_go_away_cost_nothing(
    serve: Serve, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    connections = open_connections(served)
    for sent in (
        b"",
        b"GET",
        head("GET", "/metrics"),
        head("POST", "/alerts", Content_Length=9) + b"[",
        head("GET", "/") * 20,
    ):
        with served.connect() as wire:
            wire.sendall(sent)
    eventually(lambda: not connections)
    assert served.get("/healthz").status == 200
    assert caplog.text == ""


def test_many_at_once_are_all_answered(serve: Serve, background: Background) -> None:
    served = serve()
    meet = threading.Barrier(24, timeout=10)

    def ask(number: int) -> Any:
        meet.wait()
        name = ("alpha", "beta", "gamma", "delta")[number % 4]
        action = "disable" if number % 8 < 4 else "enable"
        return served.ask("POST", f"/scanners/{name}/{action}", ORDER, {**BEARER, **JSON}).status

    assert {future.result(20) for future in [background(ask, number) for number in range(24)]} == {200}
    assert {entry["scanner"] for entry in served.get("/audit").json["entries"]} == {"alpha", "beta", "gamma", "delta"}
