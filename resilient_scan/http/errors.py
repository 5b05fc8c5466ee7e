"""What comes back from a source: an answer, or one of the exceptions that a scanner raises or the network causes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final

import msgspec

from resilient_scan.errors import PermanentError, ScanError

_CHARSET: Final = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)
# Codecs of Python's that are not charsets. Punycode costs time with the square of its length, and nothing can end that.
_NO_CHARSETS: Final = {"punycode", "idna", "unicode-escape", "raw-unicode-escape"}
_MAX_WAIT: Final = 366 * 86400.0


class TransientError(ScanError):
    """The source gave no answer, or no sensible one; another attempt may help: `Retry(on=(TransientError,))`."""

    blame = "source"


class NotFound(PermanentError):
    """The source does not have what was requested: HTTP 404 or 410, or whatever it says instead of them."""


class NotRecorded(NotFound):
    """A replay was asked for what its folder does not have."""


class SchemaDrift(ScanError):
    """The answer no longer has the shape it used to have; the message names the field."""

    blame = "source"


for _public in (TransientError, NotFound, SchemaDrift):
    _public.__module__ = "resilient_scan.http"  # reports, log lines and traces name them as users import them


class NetworkError(Exception):
    """The network or the other side failed; the client turns it into a `TransientError`.

    Args:
        message: what failed, and whose fault it is.
        advice: the way out.
        of_way: whether the way to the source broke down, so that whatever is asked there fails.
        reason: what the system said, where that is known. Not its cause: httpcore takes the causes off what it passes.
    """

    ADVICE: ClassVar[str] = "the source is in trouble or cannot be reached, try again later"

    def __init__(
        self, message: str, advice: str = "", *, of_way: bool = False, reason: BaseException | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.advice: str = advice or self.ADVICE
        self.of_way = of_way


class DeadlineExceeded(NetworkError):
    """The request's time was up before the answer was whole; the message, if any, says what took it."""

    ADVICE: ClassVar[str] = "try again later"


class RequestError(NetworkError):
    """Another attempt would fail in the same way; the client turns it into a `PermanentError`."""

    ADVICE: ClassVar[str] = "check base_url, the path and the headers"


class Answer(msgspec.Struct, frozen=True):
    """An answer that is still coming in: status, headers by lower-case name, and the body piece by piece."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Response(msgspec.Struct, frozen=True):
    """What a source answered.

    Attributes:
        url: the request's, with secrets redacted.
        status: the HTTP status.
        headers: by lower-case name.
        body: decoded from its content encoding, at most the client's `max_bytes`.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, in the charset that its content type names, else UTF-8; invalid bytes are replaced."""
        named = _CHARSET.search(self.headers.get("content-type", ""))
        try:
            codec = codecs.lookup(named[1] if named else "utf-8").name
            text = self.body.decode("utf-8" if codec in _NO_CHARSETS else codec, errors="replace")
        except (LookupError, ValueError):  # a charset that Python does not know
            text = self.body.decode(errors="replace")
        return text.removeprefix("\ufeff")

    def retry_after(self, now: datetime) -> float | None:
        """Return the seconds that the header `Retry-After` asks for, as a number or a date, or `None`."""
        return retry_after(self.headers, now)

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            TransientError: the body is not JSON (an error page, say, or cut off).
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "no content type")
            raise TransientError(
                f"{self.url}: answered {self.status} with {len(self.body)} bytes that are not JSON ({kind}); "
                "the source may be in trouble, or base_url is wrong"
            ) from None


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that `Retry-After` asks for, as a number or as a date (RFC 9110, 10.2.3), else `None`.

    A date is compared with the server's own `Date`, so a clock that is wrong on either side does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _MAX_WAIT)
    until = http_date(value)
    if until is None:
        return None
    since = http_date(headers.get("date", "")) or now
    return min(max(0.0, (until - since).total_seconds()), _MAX_WAIT)


def http_date(text: str) -> datetime | None:
    """Return the instant that an HTTP date means, or `None` if the text is something else."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
