"""What a client may take of us, what a request must look like, and the one form of every refusal. No HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from resilient_scan._once import ready

T = TypeVar("T")

SAFE = {  # headers of every answer: they keep browsers from doing more than was asked
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
JSON = "application/json"
MAX_MESSAGE = 500  # characters of an error message, which may quote the request


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much of our time and memory a client may take.

    Attributes:
        head, body: seconds for a whole request head, and for a whole body.
        work: seconds after which the client learns that the runner's store takes too long.
        drain: seconds that running requests get when the service stops.
        size: bytes of a body.
        discard: bytes of a refused body that are read and thrown away, so that its sender gets to see the answer.
        signed: bodies read at a time whose signature can be checked only when they have come.
        connections: open at a time. One more takes the place of the one that has waited longest for a whole request;
            while all are being answered, up to twice as many are answered with 503.
    """

    head: float = 10.0
    body: float = 10.0
    work: float = 30.0
    drain: float = 3.0
    size: int = 1_000_000
    discard: int = 8_000_000
    signed: int = 8
    connections: int = 256


BOUNDS = Bounds()


class RequestError(Exception):
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


class ErrorDetail(msgspec.Struct, frozen=True):
    """The kind of error, for programs, and one sentence for people."""

    code: str
    message: str


class Error(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def problem(code: str, message: str) -> bytes:
    """Return the body of an error as JSON."""
    return msgspec.json.encode(Error(ErrorDetail(code, message[:MAX_MESSAGE])))


def refusal(status: int, code: str, message: str, more: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an error, with `more` headers, as the two messages in which an ASGI application sends an answer."""
    body = problem(code, message)
    headers = {**SAFE, "Content-Type": JSON, "Content-Length": str(len(body)), **more}
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return (
        {"type": "http.response.start", "status": status, "headers": lines},
        {"type": "http.response.body", "body": body},
    )


def readable(text: str) -> str:
    """Return a text on one line, without characters that would steer the terminal of someone who reads it in a log."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))


def check_json(headers: Mapping[str, str]) -> None:
    """Accept plain JSON only.

    Raises:
        RequestError: the content type is another or missing, or the body is compressed.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(415, "encoded", "the body must not be compressed; send it without 'Content-Encoding'")
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != JSON or charset not in {"", "charset=utf-8"}:
        raise RequestError(415, "not_json", "the body must be JSON; send it with 'Content-Type: application/json'")


def decoded(body: bytes, kind: type[T]) -> T:
    """Decode a JSON body.

    Raises:
        RequestError: the body is not valid JSON (400), or does not have this shape (422).
    """
    try:
        return msgspec.convert(msgspec.json.decode(body), ready(kind))
    except msgspec.ValidationError as error:
        raise RequestError(422, "invalid", f"the body says something wrong: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "malformed", f"the body is not valid JSON: {error}") from None


def number_in(query: Mapping[str, Any], name: str, default: int, most: int) -> int:
    """Return a whole number from 1 to `most` of the query, or the default.

    Raises:
        RequestError: the query holds something else under this name.
    """
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise RequestError(422, "invalid", f"{name} must be a whole number from 1 to {most}, got {text[:40]!r}")
    return int(text)
