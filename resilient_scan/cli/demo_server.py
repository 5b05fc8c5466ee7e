"""A tiny HTTP server on this machine's loopback address, whose answers come from a plain function.

It serves bundled data to the same client that calls the live source, and knows neither of them. It needs only the
standard library.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
Respond = Callable[[str, dict[str, str]], Answer]
Negotiated = Callable[[str, dict[str, str], str], Answer]

_IDLE_TIMEOUT: Final = 60.0  # seconds that a connection may wait for its next request


class LoopbackServer:
    """Serve `respond` over HTTP/1.1 on 127.0.0.1.

    It is a context manager; `start` and `stop` may also be called by hand, once each. Its threads are daemons: a server
    that was never stopped does not keep the interpreter alive.

    Args:
        respond: takes the path and the query, both decoded (of a name that comes twice, the last value), and returns
            status, headers and body. It is called from several threads at once. If it raises, the client gets 500.
        port: 0 lets the system choose a free one.
        negotiated: replaces `respond`; it also gets what the request accepts.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, respond: Respond | None = None, *, port: int = 0, negotiated: Negotiated | None = None) -> None:
        if respond is not None:
            negotiated = lambda path, query, _accept: respond(path, query)  # noqa: E731
        if negotiated is None:
            raise TypeError("respond or negotiated is required")
        self._server = _Server(negotiated, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="loopback", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, such as `http://127.0.0.1:40213`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> Self:
        """Begin to answer; return the server itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering: close the port and every open connection. A second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.disconnect()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, respond: Negotiated, port: int) -> None:
        self.respond = respond
        self._lock = threading.Lock()
        self._open: set[socket.socket] | None = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection in its own thread, and remember it until it is closed."""
        with self._lock:
            if self._open is not None:
                self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that has ended."""
        with self._lock:
            if self._open is not None:
                self._open.discard(request)
        super().shutdown_request(request)

    def disconnect(self) -> None:
        """Wake the threads that wait for the next request on an open connection."""
        with self._lock:
            connections, self._open = self._open or set(), None
        for connection in connections:
            # Shut down, not closed: its own thread closes it. If we closed it too, the number might by then belong to a
            # new file, and we would close that. If the thread is just ahead of us, we get an OSError.
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away in the middle of its answer is not worth a line."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "loopback"
    sys_version = ""
    timeout = _IDLE_TIMEOUT
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one piece; otherwise the second would wait for the client's delayed ACK
    server: _Server

    def do_GET(self) -> None:
        """Call `respond`, and send its answer."""
        parts = urlsplit(self.path)
        try:
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            status, headers, body = self.server.respond(unquote(parts.path), query, self.headers.get("Accept", ""))
        except Exception as error:
            status, headers, body = _sentence(500, f"the responder failed with {type(error).__name__}")
        self._send(status, headers, body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse anything but a GET request with one sentence, and close the connection."""
        self.close_connection = True
        self._send(*_sentence(code, message or HTTPStatus(code).phrase))

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing on stderr."""


def _sentence(status: int, text: str) -> Answer:
    return status, {"Content-Type": "text/plain; charset=utf-8"}, f"{text}\n".encode()
