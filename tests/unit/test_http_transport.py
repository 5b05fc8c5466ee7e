"""A transport that the user brings: it connects instead of ours, and cannot break what the client promises."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resilient_scan import ConfigError, PermanentError, ScanContext
from resilient_scan.http import Client, TransientError
from resilient_scan.testing import FakeClock
from tests.support.http import context_for

URL = "https://api.example"
asked: list[httpx.Request] = []


def respond(request: httpx.Request) -> httpx.Response:
    asked.append(request)
    return httpx.Response(200, json={"path": request.url.path})


def factory() -> httpx.MockTransport:
    return httpx.MockTransport(respond)


def nothing() -> object:
    return object()


NAME = f"{__name__}:factory"


@pytest.mark.parametrize("transport", [factory(), factory, NAME])
def test_it_is_asked_instead_of_ours(transport: Any) -> None:
    asked.clear()
    client = Client(URL, headers={"X-Ours": "1"}, transport=transport)
    assert client.get("/a", {"q": 1}, context=context_for()).json() == {"path": "/a"}
    assert [str(request.url) for request in asked] == [f"{URL}/a?q=1"]
    assert asked[0].headers["x-ours"] == "1"


def test_one_is_made_for_a_process_and_closed_with_the_client() -> None:
    made: list[httpx.MockTransport] = []

    class Closing(httpx.MockTransport):
        closed = False

        def close(self) -> None:
            self.closed = True

    def make() -> Closing:
        made.append(Closing(respond))
        return made[-1]

    client = Client(URL, transport=make)
    for _ in range(3):
        client.get("/", context=context_for())
    client.close()
    assert [getattr(each, "closed", None) for each in made] == [True]


def test_it_greets_as_it_likes() -> None:
    """A header of ours would contradict the browser that a transport plays."""
    asked.clear()
    Client(URL, transport=factory).get("/", context=context_for())
    default = httpx.Client(trust_env=False).headers
    assert asked[0].headers["accept-encoding"] == default["accept-encoding"]
    assert asked[0].headers["user-agent"] == default["user-agent"]


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        (7, "transport must be an httpx transport, a function that makes one, or its name, got 7"),
        ("nowhere", "transport 'nowhere' cannot be imported: it is not of the form 'package.module:factory'"),
        ("no_such_package:factory", "transport 'no_such_package:factory' cannot be imported: No module named"),
        (f"{__name__}:missing", "cannot be imported: module .* has no attribute 'missing'"),
        (f"{__name__}:URL", "transport must be an httpx transport, a function that makes one, or its name"),
    ],
)
def test_what_is_no_transport_is_refused(transport: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Client(URL, transport=transport)


def test_what_makes_no_transport_is_refused() -> None:
    with pytest.raises(ConfigError, match="an httpx transport has handle_request, and <object"):
        Client(URL, transport=nothing).get("/", context=context_for())


# ---------------------------------------------------------------------------------- what it does, and what comes of it


class Broken(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"{"
        raise RuntimeError("curl: (18) the rest is missing")


class Dripping(httpx.SyncByteStream):
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.clock.advance(1.0)
            yield b" "


def test_its_own_errors_are_transient_ones() -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise RuntimeError("curl: (35) TLS connect error")

    with pytest.raises(TransientError, match=r"the transport failed: RuntimeError: curl: \(35\) TLS connect error"):
        Client(URL, transport=httpx.MockTransport(fail)).get("/", context=context_for())

    def broken(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Broken())

    with pytest.raises(TransientError, match=r"the transport failed: RuntimeError: curl: \(18\) the rest is missing"):
        Client(URL, transport=httpx.MockTransport(broken)).get("/", context=context_for())

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(TransientError, match="ConnectError: refused"):
        Client(URL, transport=httpx.MockTransport(refuse)).get("/", context=context_for())


def test_a_body_without_end_ends_with_the_scan() -> None:
    clock = FakeClock()
    context = ScanContext(clock=clock, deadline=clock.monotonic() + 5)

    def drip(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Dripping(clock))

    began = time.monotonic()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - of the scan
        Client(URL, transport=httpx.MockTransport(drip)).get("/", context=context)
    assert time.monotonic() - began < 5


def test_a_body_without_end_ends_at_the_timeout() -> None:
    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b" "

    def drip(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    with pytest.raises(TransientError, match=r"no whole answer within 0\.05s; try again later"):
        Client(URL, timeout=0.05, transport=httpx.MockTransport(drip)).get("/", context=context_for())


def test_a_body_is_decoded_once() -> None:
    def packed(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"[1]"))

    assert Client(URL, transport=httpx.MockTransport(packed)).get("/", context=context_for()).json() == [1]


def test_no_secret_of_a_failed_request_is_shown() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise RuntimeError(f"cannot open {request.url}")

    with pytest.raises(TransientError) as caught:
        Client(URL, transport=httpx.MockTransport(fail)).get("/", {"apikey": "S3CRET-key"}, context=context_for())
    assert "S3CRET-key" not in str(caught.value)


def test_statuses_are_judged_as_ever() -> None:
    def forbidden(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(403)

    with pytest.raises(PermanentError, match="HTTP 403"):
        Client(URL, transport=httpx.MockTransport(forbidden)).get("/", context=context_for())
