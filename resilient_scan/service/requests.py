"""What comes in over HTTP, read within bounds: size, time, type, credentials; what is wrong becomes one sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from resilient_scan.service.answers import Bounds
from resilient_scan.shapes import ready

T = TypeVar("T")


class Fault(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        code: the kind of error, for programs.
        message: one sentence for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def body_of(request: Request, bounds: Bounds) -> bytes:
    """Return a request's body.

    Raises:
        Fault: it is too large, or did not come in time.
    """
    try:
        async with asyncio.timeout(bounds.body):
            return await _read(request, bounds)
    except TimeoutError:
        raise Fault(408, "too_slow", f"the body did not come within {bounds.body:g} s; send it in one go") from None
    except ClientDisconnect:
        raise Fault(400, "disconnected", "the sender went away before the body had come") from None


async def _read(request: Request, bounds: Bounds) -> bytes:
    """Read a body; of one that is too large go on for a while, and keep nothing."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= bounds.size:
            chunks.append(chunk)
        elif size > bounds.size + bounds.discard:
            break
        else:
            chunks.clear()
    if size > bounds.size:
        raise Fault(413, "too_large", f"the body is larger than {bounds.size} bytes; send less at a time")
    return b"".join(chunks)


def check_once(request: Request, names: Sequence[str]) -> None:
    """Refuse a request with one of these headers twice: a proxy may have looked at the other one.

    Raises:
        Fault: it has.
    """
    for name in names:
        if len(request.headers.getlist(name)) > 1:
            raise Fault(400, "malformed", f"the header {name} came more than once; send it once")


def check_json(request: Request) -> None:
    """Refuse what does not call itself plain JSON.

    Raises:
        Fault: the content type is another, or none, or the body is encoded.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Fault(415, "encoded", "the body must not be compressed; send it without 'Content-Encoding'")
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise Fault(415, "not_json", "the body must be JSON; send it with 'Content-Type: application/json'")


def decoded(body: bytes, kind: type[T]) -> T:
    """Return what a JSON body says.

    Raises:
        Fault: it is no JSON (400), or says something else (422).
    """
    try:
        return msgspec.convert(msgspec.json.decode(body), ready(kind))
    except msgspec.ValidationError as error:
        raise Fault(422, "invalid", f"the body says something wrong: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(400, "malformed", f"the body is not valid JSON: {error}") from None


def number_in(query: Any, name: str, default: int, most: int) -> int:
    """Return a whole number from 1 to `most` of the query.

    Raises:
        Fault: it is none.
    """
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Fault(422, "invalid", f"{name} must be a whole number from 1 to {most}, got {text[:40]!r}")
    return int(text)
