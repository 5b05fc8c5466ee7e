"""How answers are read: into declared shapes, with the field that does not fit in the error, and bad rows left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, quote_plus

import msgspec

from resilient_scan import ScanContext
from resilient_scan.http import REDACTED, Response, SchemaDrift, ready

T = TypeVar("T")

TOLERATED: Final = 0.2
"""Share of a list's rows that may be bad before all of it is: 1 of 5 is told in the tool log, 2 are an error."""

# What no market has seen yet; beyond it a number is a mistake. The dearest share cost 0.8 million dollars, and a penny
# stock with 10 billion shares a day was a record.
Price = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
Volume = Annotated[int, msgspec.Meta(ge=0, le=10**11)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Epoch = Annotated[int, msgspec.Meta(ge=0, lt=4102444800)]  # seconds, until the year 2100
Symbol = Annotated[str, msgspec.Meta(pattern=r"^[A-Z^][A-Z0-9.^=+/$-]{0,15}$")]


def without(key: str, answer: Response) -> Response:
    """Return an answer that echoes no key, however it is quoted; a key of less than 4 characters is no secret."""
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
        SchemaDrift: it has another shape; the message names `what` and the field.
    """
    try:
        return msgspec.convert(data, ready(kind))
    except (msgspec.ValidationError, OverflowError) as error:
        raise SchemaDrift(f"{what} has another shape than it used to have: {error}") from None


def each(rows: Iterable[Any], read: Callable[[Any, str], T], what: str, tool: str, context: ScanContext) -> list[T]:
    """Return what `read` makes of each row of a list; those that do not fit are told in the tool log.

    Args:
        rows: the list.
        read: takes a row and what to call it, and raises `SchemaDrift` where it does not fit.
        what: what to call the list.
        tool: whose log entries they are.
        context: the scan's.

    Raises:
        SchemaDrift: more than `TOLERATED` of them do not fit; it is the first one's.
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
    """Return the number that a text stands for.

    Raises:
        SchemaDrift: it stands for none from `least` to `most`.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise SchemaDrift(f"{what} is no number from {least:g} to {most:g}: {text[:40]!r}")
    return value
