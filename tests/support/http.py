"""Servers that speak HTTP byte by byte, with or without TLS; addresses that never answer; the context of a scan."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ScanContext
from resilient_scan.cli.demo_server import LoopbackServer

Handler = Callable[[socket.socket, threading.Event], None]
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def raw_server(handle: Handler, *, port: int = 0) -> Iterator[str]:
    """Serve connections by hand, byte by byte; `handle` gets the connection and an event that ends the server."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as listener:

        def talk(connection: socket.socket) -> None:
            with connection:
                try:
                    handle(connection, over)
                except OSError:
                    return

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def answering(status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"{}") -> Iterator[str]:
    with LoopbackServer(lambda path, query: (status, headers or {}, body)) as server:
        yield server.url


def context_for(seconds: float = 5.0) -> ScanContext:
    return ScanContext("test", deadline=time.monotonic() + seconds)


def read_request(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(4096)
        if not piece:
            raise OSError("the client went away")
        data += piece


def say(answer: bytes) -> Handler:
    """Return a handler that answers every request with the same bytes, and then closes the connection."""

    def handle(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(answer)

    return handle


def hang(connection: socket.socket, over: threading.Event) -> None:
    """Take a connection, and answer nothing on it."""
    over.wait()


def dropped(connection: socket.socket, _over: threading.Event) -> None:
    """Take the request, and go away."""
    read_request(connection)


@contextmanager
def refused() -> Iterator[str]:
    """Yield an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def tls_garbage() -> Iterator[str]:
    """Yield the https address of a server that speaks no TLS."""

    def garbage(connection: socket.socket, _over: threading.Event) -> None:
        connection.recv(4096)
        connection.sendall(b"this is not TLS, and never was\r\n" * 4)

    with raw_server(garbage) as url:
        yield url.replace("http:", "https:")


@contextmanager
def black_holes(count: int) -> Iterator[tuple[list[str], int]]:
    """Yield loopback addresses, and a port at which none of them completes a connection: their queues are full."""
    with ExitStack() as stack:
        port = 0
        addresses = [f"127.0.0.{number}" for number in range(2, 2 + count)]
        for address in addresses:
            listener = stack.enter_context(socket.create_server((address, port), backlog=0))
            port = listener.getsockname()[1]
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex((address, port))
        yield addresses, port


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, addresses: Sequence[str]) -> None:
    """Let a name stand for these addresses in this process: no test may change the machine's own."""
    real = socket.getaddrinfo

    def looked_up(host: str, port: int, *arguments: object, **options: object) -> list[object]:
        places = addresses if host == name else [host]
        return [found for place in places for found in real(place, port, *arguments, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


def no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let names that end in `.invalid` be unknown at once: the machine's own resolver may take its time."""
    real = socket.getaddrinfo

    def looked_up(host: Any, *arguments: object, **options: object) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


def tls_files(folder: Path) -> tuple[Path, Path]:
    """Write a certificate that nobody has signed but itself, for 127.0.0.1 and source.test, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(_CERTIFICATE)
    key.write_text(_KEY)
    return certificate, key


@contextmanager
def tls_server(folder: Path, handle: Handler) -> Iterator[str]:
    """Serve connections by hand behind TLS, with the certificate of `tls_files`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files(folder))

    def wrapped(connection: socket.socket, over: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            handle(secure, over)

    with raw_server(wrapped) as url:
        yield url.replace("http:", "https:")


# Made for these tests, and good for nothing else; valid until 2120.
_KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgkF7fYhC/rf+Igm5l
OZTNRysaI0bTpswSEwrmqBwyMHihRANCAAT6w2o9fxlG9hO6/Y2L8pOCAEcj3BhS
aXlnRzDZaiAQmfSEdRihM1FgVTNUdsYm2YjJiufRd63ji/TXXmQYzp6P
-----END PRIVATE KEY-----
"""
_CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBfjCCASOgAwIBAgIBATAKBggqhkjOPQQDAjAWMRQwEgYDVQQDDAtzb3VyY2Uu
dGVzdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowFjEUMBIGA1UE
AwwLc291cmNlLnRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT6w2o9fxlG
9hO6/Y2L8pOCAEcj3BhSaXlnRzDZaiAQmfSEdRihM1FgVTNUdsYm2YjJiufRd63j
i/TXXmQYzp6Po2AwXjAcBgNVHREEFTAThwR/AAABggtzb3VyY2UudGVzdDAPBgNV
HRMBAf8EBTADAQH/MB0GA1UdDgQWBBR/N2oien198LxBrXTlRIpTHmicUDAOBgNV
HQ8BAf8EBAMCAoQwCgYIKoZIzj0EAwIDSQAwRgIhAMzVpYB63RXV03BljVb3/G4q
xNV1dYJ52IcZe25ClzxjAiEA9nhb30YBlYWNZADEOONlZa07Jg1F1bc+U6TCe3nH
lBE=
-----END CERTIFICATE-----
"""
