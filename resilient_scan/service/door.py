"""The front door: who comes in is decided by a request's head, before anything of its body is read.

Every request is asked two things, except those for health: is it meant for this service (`Host`), and may its sender
read? What changes something asks for its own token (`api`); alerts that are signed are the one thing whose body has to
be read first, and `Turns` bounds what that costs. Knows no HTTP library: an ASGI application around another.

Why `Host`: a page of evil.test may let its name mean 127.0.0.1 once your browser has loaded it. To the browser this
service is then a part of evil.test, so the page may read it, although nobody outside this machine can connect to it.
Only the header gives it away: it still says evil.test.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from resilient_scan.service.auth import REALM, TokenAuth
from resilient_scan.service.bounds import Bounds, RequestError, refusal

OPEN = frozenset({"/healthz", "/readyz"})
"""Nothing is asked of who looks here: probes know no token and call us by whatever address they have, and a service
that is restarted because its own prober was refused is worse than a stranger who learns that it is well."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Door:
    """Let in who may come in, and answer the others.

    Args:
        application: the ASGI application behind it.
        hosts: the names, besides those of loopback, that a request may call us by; `None`: any name.
        readers: whose tokens allow to read; empty: everyone may.
        bounds: what a client may take.
    """

    def __init__(
        self, application: Application, hosts: Collection[str] | None, readers: Collection[TokenAuth], bounds: Bounds
    ) -> None:
        self._application = application
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._readers = tuple(readers)
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"]):
            await _with_body(self._answer, scope, receive, send, self._bounds)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        try:
            if scope["path"] not in OPEN:
                self._check_host(_values(headers, b"host"))
                if scope["method"] != "POST":  # what changes something takes the other token, or does not exist
                    self._check_reader(_values(headers, b"authorization"))
        except RequestError as error:
            more = {"WWW-Authenticate": f'Basic realm="{REALM}", charset="UTF-8"'} if error.status == 401 else {}
            for message in refusal(error.status, error.code, error.message, more):
                await send(message)
        else:
            await self._application(scope, receive, send)

    def _check_host(self, said: list[str]) -> None:
        """Refuse a request that is meant for another. One without the header (HTTP/1.0) cannot be a browser's.

        Raises:
            RequestError: the name is not one of ours.
        """
        if self._hosts is None:
            return
        for host in said:
            name = _name_in(host)
            if name not in self._hosts and not is_loopback(name):
                raise RequestError(
                    421,
                    "not_our_name",
                    f"this service is not called {host[:100]!r}; ask for localhost or 127.0.0.1, or add the name to "
                    "allowed_hosts in [service] of its settings",
                )

    def _check_reader(self, said: list[str]) -> None:
        """Refuse a request whose sender may not read.

        Raises:
            RequestError: the token is missing, wrong, or sent twice: a proxy may have looked at the other one.
        """
        if not self._readers:
            return
        if len(said) > 1:
            raise RequestError(400, "malformed", "the header authorization came more than once; send it once")
        if not any(reader.accepts(text) for reader in self._readers for text in said):
            raise RequestError(
                401,
                "unauthorized",
                "reading takes a token here, and it is missing or wrong; send 'Authorization: Bearer TOKEN', "
                "or log in with any name and the token as the password",
            )


class Turns:
    """Read at most `many` bodies at a time whose senders are not known yet.

    Who comes next takes the turn of the body that has taken longest. Waiting for a turn would be simpler, but then
    `many` clients that send a byte a second would keep everyone else's alerts out; like this, they keep out each other.
    """

    def __init__(self, many: int) -> None:
        self._many = many
        self._taken: list[asyncio.Timeout] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Take a turn.

        Raises:
            RequestError: others came before the body had.
        """
        turn = asyncio.timeout(None)
        try:
            async with turn:
                self._taken.append(turn)
                if len(self._taken) > self._many:
                    self._taken.pop(0).reschedule(0)
                try:
                    yield
                finally:
                    if turn in self._taken:
                        self._taken.remove(turn)
        except TimeoutError:
            if not turn.expired():
                raise
            why = f"more than {self._many} signed messages came at once; send it again, in one go"
            raise RequestError(503, "busy", why) from None


def is_loopback(host: str) -> bool:
    """Say whether a name or an address, without brackets, is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """Return the name in a `Host` header, without brackets and port; empty: there is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::\d{0,5})?", host.strip().lower(), re.ASCII)
    return (found[1] or found[2]) if found else ""


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


async def _with_body(answer: Application, scope: Scope, receive: Receive, send: Send, bounds: Bounds) -> None:
    """Answer a request that has a body, and end the answer only when the body has come.

    The client gets every byte of the answer at once. But if the connection were closed then, with bytes of the body on
    their way, its system would learn that nobody wants them (a reset), and might drop the answer unread: the client
    would see a broken connection instead of what is wrong with its request. The rest is thrown away, after the
    application has returned: an error that it is still handling keeps what it has read.
    """
    coming, held = True, False

    async def receive_more() -> Message:
        nonlocal coming
        message = await receive()
        coming = bool(message.get("more_body"))
        return message

    async def send_or_hold(message: Message) -> None:
        nonlocal held
        held = coming and message["type"] == "http.response.body" and not message.get("more_body")
        await send({**message, "more_body": True} if held else message)

    await answer(scope, receive_more, send_or_hold)
    if held:
        left = bounds.discard
        with suppress(TimeoutError):
            async with asyncio.timeout(bounds.body):
                while coming and left > 0:
                    left -= len((await receive_more()).get("body", b""))
        await send({"type": "http.response.body"})
