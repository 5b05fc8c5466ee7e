"""Call Yahoo's screener and option chains, which sometimes demand a crumb.

    GET /v1/finance/screener/predefined/saved?scrIds=day_gainers    the quotes of a predefined screener
    GET /v7/finance/options/SYMBOL                                  the chain of the nearest expiry

Both may return 401 "Invalid Crumb". A crumb is a word that belongs to a cookie: any page of Yahoo's sets the cookie,
and `GET /v1/test/getcrumb` returns the crumb for it. A request is made with the known crumb, or without one; after a
401, a new crumb is fetched and the request is made once more. If Yahoo gets too many requests, it returns a sentence
instead of a crumb, with status 429 or 200, which must not be taken for a crumb.

For an unknown symbol, or one without options, the response is an empty list with HTTP 200.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec

from resilient_scan import PermanentError, RetryAfter, ScanContext
from resilient_scan.http import NotFound, Response, SchemaDrift, TransientError

from .reading import Count, Epoch, Price, Symbol, Volume, each, shaped
from .yahoo import LIVE, PROVIDER, REFUSED, check_welcome, http_client, pause, yahoo_symbol

COOKIES: Final = "https://fc.yahoo.com"
LANGUAGE: Final = {"lang": "en-US", "region": "US"}
_CRUMB: Final = re.compile(r"[\w./\\=+-]{5,64}", re.ASCII)


class Quote(msgspec.Struct, frozen=True, rename="camel"):
    """A quote in a screener's response: change in percent, times in epoch seconds."""

    symbol: Symbol
    quote_type: str
    regular_market_price: Price
    regular_market_change_percent: Annotated[float, msgspec.Meta(ge=-100, le=1e6)]
    regular_market_previous_close: Price
    regular_market_volume: Volume
    regular_market_time: Epoch


class Contract(msgspec.Struct, frozen=True, rename="camel"):
    """An option contract of 100 shares. Strike and last price in dollars; volume and open interest in contracts.

    If there was no trade, or if Yahoo does not know, `volume` and `open_interest` are missing or 0.
    """

    contract_symbol: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9^.-]{1,10}\d{6}[CP]\d{8}$")]
    strike: Price
    expiration: Epoch
    last_price: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    volume: Count = 0
    open_interest: Count = 0
    last_trade_date: Epoch = 0
    contract_size: str = "REGULAR"


class Chain(msgspec.Struct, frozen=True):
    """The options of one symbol and one expiry; `price` is the underlying's, `None` if Yahoo has none."""

    symbol: str
    price: float | None
    calls: tuple[Contract, ...]
    puts: tuple[Contract, ...]


class _Screened(msgspec.Struct):
    quotes: list[Any]
    count: int | None = None


class _Underlying(msgspec.Struct, rename="camel"):
    regular_market_price: Price | None = None


class _Options(msgspec.Struct):
    calls: list[Any]
    puts: list[Any]


class _Chain(msgspec.Struct):
    options: list[_Options]
    quote: _Underlying


class YahooMarket:
    """The client, which threads share. Get the one of this process for an address from `client`.

    Args:
        base_url: the address of the API.
        transport: the name of what makes an httpx transport; empty: ours.
        cookie_url: the page that sets the cookie; by default the one at `base_url`, unless that is the live address.
    """

    def __init__(self, base_url: str = LIVE, transport: str = "", cookie_url: str | None = None) -> None:
        self._base = base_url
        self._http = http_client(base_url, transport)
        elsewhere = cookie_url or (COOKIES if base_url.rstrip("/") == LIVE else None)
        self._cookies = self._http if elsewhere is None else http_client(elsewhere, transport)
        self._crumb: tuple[str, str] | None = None  # cookie and crumb

    def screener(self, name: str, count: int, context: ScanContext) -> list[Quote]:
        """Return what a predefined screener (`day_gainers`, `day_losers`, `most_actives`) finds.

        Raises:
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as in `resilient_scan.http`.
        """
        what = f"Yahoo's screener {name}"
        query = {**LANGUAGE, "scrIds": name, "count": count}
        found = self._result("finance", "/v1/finance/screener/predefined/saved", query, what, context)
        screened = shaped(found, _Screened, what)
        rows = each(screened.quotes, _quote, f"{what}: quotes", PROVIDER, context)
        if screened.count is not None and len(screened.quotes) < screened.count:
            context.doubt(f"{what} has {len(screened.quotes)} of {screened.count} quotes", kind="incomplete")
        if twice := len(rows) - len({row.symbol for row in rows}):
            context.doubt(f"{what} has {twice} of {len(rows)} quotes twice", kind="duplicate")
        return rows

    def options(self, symbol: str, context: ScanContext) -> Chain:
        """Return the chain of the nearest expiry; it is empty if the symbol has no options.

        Raises:
            NotFound: Yahoo does not know the symbol.
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as in `resilient_scan.http`.
        """
        what = f"Yahoo's options of {symbol}"
        path = f"/v7/finance/options/{quote(yahoo_symbol(symbol), safe='')}"
        found = self._result("optionChain", path, {"formatted": "false", **LANGUAGE}, what, context)
        chain = shaped(found, _Chain, what)
        sides = chain.options[0] if chain.options else _Options([], [])
        price = chain.quote.regular_market_price
        read = partial(_contract, price=price)
        calls, puts = (
            tuple(each(rows, read, f"{what}: {side}", PROVIDER, context))
            for side, rows in (("calls", sides.calls), ("puts", sides.puts))
        )
        return Chain(symbol, price, calls, puts)

    def _result(self, envelope: str, path: str, query: dict[str, Any], what: str, context: ScanContext) -> Any:
        """Return the only result in Yahoo's envelope `{name: {"result": [...], "error": ...}}`."""
        answer = self._ask(path, query, context)
        try:
            holder = shaped(answer.json(), dict[str, Any], what).get(envelope)
        except TransientError:
            if answer.status == 404:
                raise NotFound(f"{what}: there is none") from None
            raise
        if not isinstance(holder, dict):
            raise SchemaDrift(f"{what} has another shape than it used to have: $.{envelope} is not an object")
        if holder.get("error"):
            raise _refusal(holder["error"], what)
        result = holder.get("result")
        if not isinstance(result, list):
            raise SchemaDrift(f"{what} has another shape than it used to have: $.{envelope}.result is not a list")
        if not result:
            raise NotFound(f"{what}: Yahoo has none")
        return result[0]

    def _ask(self, path: str, query: dict[str, Any], context: ScanContext) -> Response:
        before = self._crumb
        answer = self._once(path, query, before, context)
        if answer.status == 401:
            renewed = self._crumb if self._crumb is not before else None  # another thread has renewed it meanwhile
            answer = self._once(path, query, renewed or self._renew(context), context)
        if answer.status == 401:
            raise PermanentError(f"{answer.url}: HTTP 401 with a new crumb as well; Yahoo has changed its ways")
        check_welcome(answer, context)
        return answer

    def _once(self, path: str, query: dict[str, Any], crumb: tuple[str, str] | None, context: ScanContext) -> Response:
        accept = (404, 429, *REFUSED)
        if crumb is None:
            return self._http.get(path, query, context=context, accept=accept)
        cookie, word = crumb
        query, sent = {**query, "crumb": word}, {"Cookie": cookie} if cookie else {}
        return self._http.get(path, query, context=context, accept=accept, headers=sent)

    def _renew(self, context: ScanContext) -> tuple[str, str]:
        """Fetch a cookie and its crumb, once for all scanners that need it at this moment."""
        key = ("yahoo_crumb", self._base, self._crumb)
        self._crumb = context.shared(key, lambda: self._fetch(context), ttl=60.0)
        return self._crumb

    def _fetch(self, context: ScanContext) -> tuple[str, str]:
        page = self._cookies.get("/", context=context, accept=(404, 502, 503))
        cookie = page.headers.get("set-cookie", "").partition(";")[0]  # a recording has none
        sent = {"Cookie": cookie} if cookie else {}
        answer = self._http.get("/v1/test/getcrumb", context=context, accept=(401, 429), headers=sent)
        crumb = answer.text.strip()
        if answer.status == 429 or "too many" in crumb.lower():
            said = f"{answer.url}: no crumb but HTTP {answer.status} ({crumb[:40]})"
            raise RetryAfter(pause(answer, context), said)
        if answer.status == 401 and not cookie:
            raise TransientError(f"{page.url}: no cookie came; Yahoo may want to be left alone")
        if answer.status == 401 or not _CRUMB.fullmatch(crumb):
            raise TransientError(
                f"{answer.url}: what came is not a crumb: {len(crumb)} characters; Yahoo may be in trouble"
            )
        return cookie, crumb


@lru_cache(maxsize=16)
def client(base_url: str, transport: str = "") -> YahooMarket:
    """Return the client for `base_url`; all scanners of a process share its connections and its crumb."""
    return YahooMarket(base_url, transport)


def _refusal(error: Any, what: str) -> Exception:
    code, words = (error.get(name) for name in ("code", "description")) if isinstance(error, dict) else (None, error)
    said = f"{what}: {words or code}"[:300]
    return NotFound(said) if code == "Not Found" else PermanentError(said)


def _quote(data: Any, where: str) -> Quote:
    """Read a quote, and check its prices against its change."""
    quote = shaped(data, Quote, where)
    price, before = quote.regular_market_price, quote.regular_market_previous_close
    percent = quote.regular_market_change_percent
    if abs((price / before - 1) * 100 - percent) > max(1.0, 0.02 * abs(percent)):
        raise SchemaDrift(
            f"{where}: {quote.symbol}: regularMarketPrice, regularMarketPreviousClose and regularMarketChangePercent "
            "contradict each other"
        )
    return quote


def _contract(data: Any, where: str, price: float | None) -> Contract:
    """Read a contract, and check strike and expiry against its symbol.

    The symbol ends with `yymmdd`, C or P, and the strike in thousandths of a dollar. An option never costs more than
    its underlying or its strike; a price above twice that is a mistake.
    """
    contract = shaped(data, Contract, where)
    symbol = contract.contract_symbol
    if abs(int(symbol[-8:]) / 1000 - contract.strike) > 0.001:
        raise SchemaDrift(f"{where}: {symbol}: strike is {contract.strike:g}, which its symbol does not say")
    if f"{datetime.fromtimestamp(contract.expiration, UTC):%y%m%d}" != symbol[-15:-9]:
        raise SchemaDrift(f"{where}: {symbol}: expiration is {contract.expiration}, which its symbol does not say")
    if contract.last_price > 2 * max(contract.strike, price or 0.0):
        raise SchemaDrift(f"{where}: {symbol}: lastPrice is {contract.last_price:g}, beyond strike and underlying")
    return contract
