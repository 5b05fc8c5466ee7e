"""Call Finnhub: analysts' recommendations and the calendar of earnings.

`GET /api/v1/stock/recommendation?symbol=..` and `GET /api/v1/calendar/earnings?from=..&to=..`, with the key in the
header `X-Finnhub-Token`, so that URLs do not contain it. A free key allows 60 requests a minute; every key, 30 a
second. For an unknown symbol, the response is an empty list with HTTP 200. Errors:

    401             the key is wrong
    403             the key's plan does not include this endpoint (JSON), or the edge refuses the client (HTML)
    429             the minute's quota is used up (JSON), or there is no key at all (plain text)
    5xx, HTML       trouble
"""

from __future__ import annotations

import math
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from resilient_scan import Limit, PermanentError, RetryAfter, ScanContext
from resilient_scan.http import Client, Response, TransientError

from .reading import each, is_page, shaped, without

LIVE: Final = "https://finnhub.io"
HOST: Final = "finnhub.io"
KEY: Final = "FINNHUB_API_KEY"
PROVIDER: Final = "finnhub"
LIMIT: Final = Limit(PROVIDER, rate=("60/min", "30/s"))
_VERSION: Final = "/api/v1"
_MINUTE: Final = 60.0

_Analysts = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Trend(msgspec.Struct, frozen=True, rename="camel"):
    """The numbers of analysts by their recommendation, in the month that begins on `period`."""

    period: date
    strong_buy: _Analysts
    buy: _Analysts
    hold: _Analysts
    sell: _Analysts
    strong_sell: _Analysts

    @property
    def analysts(self) -> int:
        """Return the number of all analysts."""
        return self.strong_buy + self.buy + self.hold + self.sell + self.strong_sell


class Earnings(msgspec.Struct, frozen=True):
    """A row of the calendar: `hour` is `bmo` (before the market opens), `amc` (after its close), `dmh` or empty."""

    symbol: Annotated[str, msgspec.Meta(min_length=1)]
    date: date
    estimate: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] | None = msgspec.field(name="epsEstimate")
    hour: str | None = None


class _Calendar(msgspec.Struct, rename="camel"):
    earnings_calendar: list[Any]


class Finnhub:
    """The client, which threads share. Get the one of this process for an address from `client`."""

    def __init__(self, base_url: str = LIVE) -> None:
        self._http = Client(base_url.rstrip("/").removesuffix(_VERSION), timeout=10.0)

    def recommendations(self, symbol: str, key: str, context: ScanContext) -> list[Trend]:
        """Return the monthly trends of a symbol, newest first; the list is empty if Finnhub does not know it.

        A month that cannot be read is an error, because a change is computed from two consecutive months.

        Raises:
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as described at the top of this file.
        """
        what = f"Finnhub's stock/recommendation of {symbol}"
        data = self._ask("/stock/recommendation", {"symbol": symbol}, key, context)
        rows = shaped(data, list[Any], what)
        trends = [shaped(row, Trend, f"{what}[{place}]") for place, row in enumerate(rows)]
        months = {trend.period: trend for trend in reversed(trends)}
        return [months[period] for period in sorted(months, reverse=True)]

    def earnings(self, first: date, last: date, key: str, context: ScanContext) -> list[Earnings]:
        """Return the companies that report their earnings from `first` to `last`, both included.

        Raises:
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as described at the top of this file.
        """
        what = "Finnhub's calendar/earnings"
        query = {"from": first.isoformat(), "to": last.isoformat()}
        rows = shaped(self._ask("/calendar/earnings", query, key, context), _Calendar, what).earnings_calendar
        read = f"{what}: earningsCalendar"
        return each(rows, lambda row, where: shaped(row, Earnings, where), read, PROVIDER, context)

    def _ask(self, path: str, query: dict[str, str], key: str, context: ScanContext) -> Any:
        sent = {"X-Finnhub-Token": key}
        answer = self._http.get(f"{_VERSION}{path}", query, context=context, accept=(401, 403, 429), headers=sent)
        answer = without(key, answer)
        if answer.status != 200:
            raise _refusal(answer, context)
        data = answer.json()
        if isinstance(data, dict) and isinstance(data.get("error"), str):
            raise TransientError(f"{answer.url}: {_said(answer)}")
        return data


@lru_cache(maxsize=16)
def client(base_url: str) -> Finnhub:
    """Return the client for `base_url`; all scanners of a process share its connections."""
    return Finnhub(base_url)


def _refusal(answer: Response, context: ScanContext) -> Exception:
    said = f"{answer.url}: HTTP {answer.status}: {_said(answer)}"
    if answer.status == 401:
        return PermanentError(f"{said} - check the key")
    if answer.status == 403 and is_page(answer):
        return PermanentError(f"{said} - Finnhub's edge blocks this network or client; check both, and base_url")
    if answer.status == 403:
        return PermanentError(f"{said} - the key's plan does not have this; leave the scanner out, or change the plan")
    if "sign up" in answer.text.lower():
        return PermanentError(f"{said} - there is no key; set {KEY}")
    return RetryAfter(_wait(answer, context), said)


def _said(answer: Response) -> str:
    """Return the beginning of an error message; pages for people contain nothing useful."""
    return "a page for people, no answer of the API" if is_page(answer) else " ".join(answer.text.split())[:200]


def _wait(answer: Response, context: ScanContext) -> float:
    """Return the seconds until the quota is renewed, by the headers, or else a minute, which always suffices."""
    asked = answer.retry_after(context.now)
    if asked is not None:
        return asked
    reset = _number(answer, "x-ratelimit-reset") - context.now.timestamp()
    return max(1.0, reset) if 0 <= reset <= _MINUTE else _MINUTE


def _number(answer: Response, header: str) -> float:
    try:
        return float(answer.headers.get(header, ""))
    except ValueError:
        return math.nan
