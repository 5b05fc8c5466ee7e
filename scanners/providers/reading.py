"""Read responses into declared shapes: errors name the field that does not fit, and single bad rows are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, quote_plus

import msgspec

from resilient_scan import ScanContext
from resilient_scan.http import REDACTED, Replay, Response, SchemaDrift, ready

T = TypeVar("T")

TOLERATED: Final = 0.2
"""Share of items that may be bad or missing: 1 of 5 is left out and logged in the tool log, 2 of 5 are an error."""

# Numbers that no market has seen yet; beyond them, a number is a mistake. The most expensive share cost 0.8 million
# dollars, and the record volume of a penny stock was 10 billion shares a day.
Price = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
Volume = Annotated[int, msgspec.Meta(ge=0, le=10**11)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Epoch = Annotated[int, msgspec.Meta(ge=0, lt=4102444800)]  # seconds, until the year 2100
Symbol = Annotated[str, msgspec.Meta(pattern=r"^[A-Z^][A-Z0-9.^=+/$-]{0,15}$")]


def is_page(answer: Response) -> bool:
    """Say whether a response is an HTML page for people instead of data."""
    return "html" in answer.headers.get("content-type", "") or answer.body.lstrip()[:1] == b"<"


def has_end(answer: Response, context: ScanContext) -> bool:
    """Say whether the source said where the body ends, so that a part of it would have been an error.

    With a length, with chunks and with gzip, `resilient_scan.http` notices a body that was cut off. A body that ends
    with its connection may be cut off anywhere. A recording was whole when it was made.
    """
    if isinstance(context.traffic, Replay):
        return True
    headers = answer.headers
    packed, chunked = headers.get("content-encoding", ""), headers.get("transfer-encoding", "")
    return "content-length" in headers or "chunked" in chunked.lower() or "gzip" in packed.lower()


def without(key: str, answer: Response) -> Response:
    """Return the response without the key, however it is quoted; a key of less than 4 characters is not a secret."""
    if len(key) < 4:
        return answer
    body = answer.body
    in_json = json.dumps(key)[1:-1]
    for form in {key, quote(key, safe=""), quote_plus(key), in_json, in_json.replace("/", "\\/")}:
        body = body.replace(form.encode(), REDACTED.encode())
    return msgspec.structs.replace(answer, body=body)


def shaped(data: Any, kind: type[T], what: str) -> T:
    """Return parsed JSON as an object of `kind`.

    Raises:
        SchemaDrift: it has another shape; the message contains `what` and the field.
    """
    try:
        return msgspec.convert(data, ready(kind))
    except (msgspec.ValidationError, OverflowError) as error:
        raise SchemaDrift(f"{what} has another shape than it used to have: {error}") from None


def each(rows: Iterable[Any], read: Callable[[Any, str], T], what: str, tool: str, context: ScanContext) -> list[T]:
    """Return what `read` returns for each row of a list; rows that do not fit are logged in the tool log.

    Args:
        rows: the list.
        read: takes a row and a name for it, and raises `SchemaDrift` if the row does not fit.
        what: a name for the list.
        tool: the name of the tool in the log entries.
        context: the context of the scan.

    Raises:
        SchemaDrift: more than `TOLERATED` of them do not fit; it is the error of the first one.
    """
    good: list[T] = []
    bad: list[SchemaDrift] = []
    for count, row in enumerate(rows):
        try:
            good.append(read(row, f"{what}[{count}]"))
        except SchemaDrift as error:
            bad.append(error)
    if len(bad) > TOLERATED * (len(good) + len(bad)):
        raise bad[0]
    for drift in bad:
        context.log(tool, left_out=str(drift))
    return good


def number(text: str, what: str, least: float, most: float) -> float:
    """Return the number in a text.

    Raises:
        SchemaDrift: it is not a number from `least` to `most`.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise SchemaDrift(f"{what} is not a number from {least:g} to {most:g}: {text[:40]!r}")
    return value
