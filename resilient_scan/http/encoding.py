"""The content encoding of a body: gzip, decoded in steps, so that a small body cannot become a huge one in memory.

gzip is the only coding that is asked for. zlib can make 1,032 bytes of one, and a second coding a million: 1,143 bytes
that were packed twice took 1.2 GB. So a second coding is refused, and the first one yields at most `STEP` bytes at a
time. The reader counts them and stops at the limit, and then nothing more is decoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from resilient_scan.http.errors import NetworkError, RequestError

ACCEPTED: Final = "gzip"
STEP: Final = 64 * 1024  # bytes that are decoded at a time
_GZIP: Final = {"gzip", "x-gzip"}
_PLAIN: Final = {"", "identity", "none", "binary", "utf-8", "utf8"}  # the last four: what careless servers send
_MAGIC: Final = b"\x1f\x8b"  # each member of a gzip stream begins with it


def decoded(pieces: Iterator[bytes], content_encoding: str) -> Iterator[bytes]:
    """Yield a body without its content encoding; pieces of a decoded one have at most `STEP` bytes.

    Args:
        pieces: the body as it was sent.
        content_encoding: the header, or an empty text.

    Raises:
        RequestError: the encoding is one that was not asked for.
        NetworkError: the body is not what the header says, or ends too early.
    """
    codings = [coding for coding in content_encoding.lower().replace(" ", "").split(",") if coding not in _PLAIN]
    if not codings:
        yield from pieces
    elif len(codings) == 1 and codings[0] in _GZIP:
        yield from _gunzipped(pieces)
    elif any(pieces):  # an answer without content may name any coding
        raise RequestError(
            f"the body has the content encoding {content_encoding!r}, and only {ACCEPTED} was asked for",
            "correct base_url, or send a header Accept-Encoding that this source respects",
        )


def _gunzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what a stream of gzip members holds, one after the other.

    What follows a whole member and is not another one (zeros or a line's end, from careless servers) is ignored, as
    gzip(1) and browsers do. An empty body is whole: an answer without content may name a coding.
    """
    member, begun = _member(), False
    for piece in pieces:
        rest, begun = piece, begun or bool(piece)
        while rest:
            if member.eof:
                if not _MAGIC.startswith(rest[:2]):
                    return
                member = _member()
            yield from _inflated(member, rest)
            rest = member.unused_data
    if begun and not member.eof:
        raise NetworkError("the body ends in the middle of its gzip stream", of_way=True)


def _inflated(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Yield what a member makes of some bytes, in steps."""
    # At the member's end its `unconsumed_tail` is what follows the member, once more: that is not for this member.
    while data and not member.eof:
        try:
            out = member.decompress(data, STEP)
        except zlib.error as error:
            reason = str(error).rpartition(": ")[2]
            raise NetworkError(f"the body is not the gzip that its Content-Encoding promises ({reason})") from None
        if out:
            yield out
        data = member.unconsumed_tail


def _member() -> zlib._Decompress:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
