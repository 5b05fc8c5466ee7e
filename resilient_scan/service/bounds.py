"""What every answer has: headers that keep browsers from doing more than asked, and one form for errors."""

from __future__ import annotations

import msgspec

SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
JSON = "application/json"
LONGEST = 500  # characters of a message: it may quote what was asked for


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much of our time and memory a client may take.

    Attributes:
        head, body: seconds for a whole request head, and for a whole body.
        work: seconds after which a client is told that the runner's store takes too long.
        drain: seconds that running requests get when the service stops.
        size: bytes of a body.
        discard: bytes that are read of a larger one, so that its sender gets to see the answer.
        connections: at a time, idle ones included; twice as many are told that there are too many.
    """

    head: float = 10.0
    body: float = 10.0
    work: float = 30.0
    drain: float = 3.0
    size: int = 1_000_000
    discard: int = 8_000_000
    connections: int = 256


BOUNDS = Bounds()


def problem(code: str, message: str) -> bytes:
    """Return the body of an error.

    Args:
        code: the kind of error, for programs.
        message: one sentence for people.
    """
    return msgspec.json.encode({"error": {"code": code, "message": message[:LONGEST]}})


def readable(text: str) -> str:
    """Return a text on one line, without what would steer the terminal of who reads it in a log."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
