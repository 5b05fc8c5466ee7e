"""What came back: the answer, and the exceptions that it may turn into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from resilient_scan.errors import PermanentError, ScanError

_CHARSET: Final = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)
_LONGEST_WAIT: Final = 366 * 86400.0


class TransientError(ScanError):
    """The source did not answer, or not sensibly; another attempt may help: `Retry(on=(TransientError,))`."""


class NotFound(PermanentError):
    """The source has not what was asked for: HTTP 404 or 410, or what says the same in its own language."""


class SchemaDrift(ScanError):
    """The answer has not the shape it used to have; the message names the field."""


class Fault(Exception):
    """The network or the other side failed; becomes a `TransientError` at once."""


class Late(Fault):
    """The time was over before the answer was whole."""


class Misuse(Fault):
    """The request itself cannot be sent; becomes a `PermanentError`."""


class Answer(msgspec.Struct, frozen=True):
    """An answer on its way in: status, headers by lower-case name, and the body piece by piece."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Response(msgspec.Struct, frozen=True):
    """What a source answered.

    Attributes:
        url: where it came from, secrets redacted.
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
        """The body as text, in the charset that its content type names, else in UTF-8; other bytes are replaced."""
        named = _CHARSET.search(self.headers.get("content-type", ""))
        try:
            text = self.body.decode(named[1] if named else "utf-8", errors="replace")
        except (LookupError, ValueError):  # no charset that anybody knows
            text = self.body.decode(errors="replace")
        return text.removeprefix("\ufeff")

    def retry_after(self, now: datetime) -> float | None:
        """Return the seconds that the header `Retry-After` asks for, as a number or a date, or `None`."""
        return wait_asked(self.headers, now)

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            TransientError: it is not JSON (an error page, a cut body).
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "no content type")
            raise TransientError(
                f"{self.url}: answered {self.status} with {len(self.body)} bytes that are not JSON ({kind}); "
                "the source may be in trouble, or base_url is wrong"
            ) from None


def wait_asked(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that `Retry-After` asks for, as a number or as a date (RFC 9110, 10.2.3), else `None`.

    A date is read against the server's own `Date`, so that a clock that is wrong on either side does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _LONGEST_WAIT)
    until = http_date(value)
    if until is None:
        return None
    since = http_date(headers.get("date", "")) or now
    return min(max(0.0, (until - since).total_seconds()), _LONGEST_WAIT)


def http_date(text: str) -> datetime | None:
    """Return the instant that an HTTP date stands for, or `None` if it is none."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
