"""An ASGI application on a port of this machine, in a thread that can be started and stopped. Knows uvicorn.

The socket is bound here and handed over: uvicorn's own thread would die without a word on a port that is taken.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resilient_scan.errors import ConfigError

PATIENCE = 10.0  # seconds that a client has for its request's head; for its body see `api`
DRAIN = 3  # seconds that running requests get when the server stops
CONNECTIONS = 256  # at a time, idle ones included


class HttpThread:
    """Serve an application over HTTP/1.1 until `stop`.

    Args:
        application: an ASGI application.
        host, port: where; port 0 lets the system choose a free one.

    Raises:
        ConfigError: the address cannot be had.
    """

    def __init__(self, application: Any, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        address = self._socket.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{name}:{address[1]}"
        self._server = _Server(
            uvicorn.Config(
                application,
                http=_Impatient,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=DRAIN,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="resilient-scan-http", daemon=True)

    def start(self) -> None:
        """Begin to answer; return when it does."""
        self._thread.start()
        self._server.answering.wait()
        if not self._server.started:
            raise ConfigError(f"the control endpoint could not be started at {self.url}")

    def stop(self) -> None:
        """Let running requests end, for at most some seconds, and give the port back."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.answering.set()


class _Server(uvicorn.Server):
    """uvicorn's server that says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.answering.set()


class _Impatient(H11Protocol):
    """A connection that is closed when no whole request head has come for some seconds: uvicorn itself waits."""

    _seen: Any = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle: Any = self.cycle  # None until there is a request, whatever its annotation says
        if cycle is self._seen and (cycle is None or cycle.response_complete):
            self.transport.close()
            return
        self._seen = cycle
        self._timer = self.loop.call_later(PATIENCE, self._look)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"the control endpoint cannot listen at {host}:{port}: {reason}; port 0 takes a free one"
        ) from None
    return bound
