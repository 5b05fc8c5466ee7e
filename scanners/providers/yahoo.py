"""Call Yahoo's v8 chart API for daily bars.

`GET /v8/finance/chart/SYMBOL?period1=..&period2=..&interval=1d` returns parallel arrays: `timestamp` (epoch
seconds of the session's start, or of the last trade in the current session) and `open`, `high`, `low`, `close`,
`volume`, with null for a missing bar. Prices are adjusted for splits, not for dividends; `events` has both. Days are
those of the exchange, whose time zone is `meta.exchangeTimezoneName`: in Tokyo, Monday's session begins on New York's
Sunday. Errors are JSON as well:
`{"chart": {"result": null, "error": {"code": "Not Found", "description": "..."}}}`.

Yahoo documents no quota. Since 2025 it has refused more and more clients that do not greet like a browser, with 429,
403, 401 or 999, often from the first request on. The limit below is a cautious one: what users report is some 2,000
requests an hour for one address.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Final, NoReturn
from urllib.parse import quote
from zoneinfo import ZoneInfo

import msgspec

from resilient_scan import Limit, PermanentError, RetryAfter, ScanContext
from resilient_scan.http import Client, NotFound, Response, SchemaDrift, TransientError

from .._sessions import NEW_YORK, zone_of
from .reading import Epoch, is_page, shaped

HOST: Final = "query2.finance.yahoo.com"
LIVE: Final = f"https://{HOST}"
PROVIDER: Final = "yahoo"
LIMIT: Final = Limit(PROVIDER, rate=("120/min", "2000/h"))
REFUSED: Final = frozenset({401, 403, 999})
DAILY: Final = "1d"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHARE_CLASS: Final = re.compile(r"([A-Z]+)\.([ABCK])")
_PRICES: Final = ("open", "high", "low", "close")
_DEFAULT_PAUSE: Final = 60.0  # seconds to wait after a 429 that does not say how long
_MAX_PRICE: Final = 1e7  # no share has cost that much; a higher price is a mistake
_MAX_VOLUME: Final = 1e11  # shares per day; likewise
_HUNDREDTHS: Final = frozenset({"GBp", "GBX", "ILA", "ZAc"})  # of a pound, a shekel, a rand
_NOISE: Final = 1e-4  # share of a price, below which a difference of two ratios is a rounding error
_UNITS: Final = 50.0  # times that the price before a chart may differ from its first one; a hundred is another unit
_SLACK: Final = 0.01  # how far open and close may be outside of low and high, which are adjusted and rounded separately

# The parts of the response that are read, as in the JSON; msgspec names the field that does not fit.
_Share = Annotated[float, msgspec.Meta(gt=0)]
_Column = list[float | None]


class _Quote(msgspec.Struct):
    open: _Column = []
    high: _Column = []
    low: _Column = []
    close: _Column = []
    volume: _Column = []


class _Adjusted(msgspec.Struct):
    adjclose: _Column = []


class _Indicators(msgspec.Struct):
    quote: Annotated[list[_Quote], msgspec.Meta(min_length=1)]
    adjclose: list[_Adjusted] = []


class _Split(msgspec.Struct):
    date: Epoch
    numerator: _Share
    denominator: _Share


class _Dividend(msgspec.Struct):
    date: Epoch
    amount: Annotated[float, msgspec.Meta(ge=0)]


class _Events(msgspec.Struct):
    splits: dict[str, _Split] = {}
    dividends: dict[str, _Dividend] = {}


class _Period(msgspec.Struct):
    end: Epoch


class _Periods(msgspec.Struct):
    regular: _Period | None = None


class _Meta(msgspec.Struct, rename="camel"):
    instrument_type: str
    currency: str | None = None
    data_granularity: str = DAILY
    exchange_timezone_name: str = NEW_YORK.key
    first_trade_date: float | None = None
    chart_previous_close: float | None = None
    regular_market_price: float | None = None
    regular_market_time: Epoch | None = None
    current_trading_period: _Periods | None = None


class _Result(msgspec.Struct):
    meta: _Meta
    indicators: _Indicators
    timestamp: list[Epoch] = []  # missing if there are no bars
    events: _Events | None = None


class _Error(msgspec.Struct):
    code: str = ""
    description: str = ""


class _Chart(msgspec.Struct):
    result: list[_Result] | None
    error: _Error | None


class _Envelope(msgspec.Struct):
    chart: _Chart


class UnknownSymbol(NotFound):
    """Yahoo does not know the symbol, or has no data for these days."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One day of the exchange; prices > 0 in the listing's currency, not in pence; volume in shares, >= 0."""

    day: date
    open: float
    high: float
    low: float
    close: float
    volume: int


@dataclass(frozen=True, slots=True)
class PriceHistory:
    """The complete bars of one symbol, oldest first, at most one for each day.

    Attributes:
        symbol: as it was requested.
        instrument: Yahoo's word, such as `EQUITY`, `ETF`, `INDEX` or `CRYPTOCURRENCY`.
        bars: may be empty; without dividends, with splits.
        holes: days with incomplete or implausible bars.
        dividends: paid for one share, by the first day without it.
        zone: of the exchange; its dates are those of the bars.
        listed: the first day on which it was traded, if that is known.
        ends: when the exchange's current or last session ends, if that is known.
    """

    symbol: str
    instrument: str
    bars: tuple[Bar, ...]
    holes: tuple[date, ...] = ()
    dividends: Mapping[date, float] = field(default_factory=dict)
    zone: ZoneInfo = NEW_YORK
    listed: date | None = None
    ends: datetime | None = None


class Yahoo:
    """The client, which threads share. Get the one of this process for an address from `client`."""

    def __init__(self, base_url: str = LIVE, transport: str = "") -> None:
        self._http = http_client(base_url, transport)

    def daily(self, symbol: str, first: date, last: date, context: ScanContext) -> PriceHistory:
        """Return the daily bars of `symbol` from `first` to `last`, both included.

        Args:
            symbol: as Yahoo writes it; share classes may have a point: `BRK.B`.
            first: a New York date.
            last: a New York date.
            context: the context of the scan.

        Raises:
            UnknownSymbol: there are no data.
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as in `resilient_scan.http`.
        """
        days = {"period1": midnight(first), "period2": midnight(last + timedelta(days=1))}
        path = f"/v8/finance/chart/{quote(yahoo_symbol(symbol), safe='')}"
        query = {**days, "interval": DAILY, "events": "div,split"}
        answer = self._http.get(path, query, context=context, accept=(400, 404, 422, 429, *REFUSED))
        check_welcome(answer, context)
        return read_chart(answer, symbol)


@lru_cache(maxsize=16)
def client(base_url: str, transport: str = "") -> Yahoo:
    """Return the client for `base_url`; all scanners of a process share its connections."""
    return Yahoo(base_url, transport)


def http_client(base_url: str, transport: str) -> Client:
    """Return the HTTP client for an address of Yahoo's; a transport that plays a browser says itself who it is."""
    agent = {} if transport else {"User-Agent": "Mozilla/5.0 (compatible; resilient_scan)"}
    return Client(base_url, headers=agent, timeout=10.0, transport=transport or None)


def check_welcome(answer: Response, context: ScanContext) -> None:
    """Raise what a refusal means.

    Raises:
        RetryAfter: Yahoo wants fewer requests, or so it says.
        PermanentError: it refuses this client.
    """
    advice = "if that does not end, it refuses this client: give the scanner a browser's transport (settings.transport)"
    if answer.status == 429:
        said = f"{answer.url}: HTTP 429; Yahoo wants to be left alone; {advice}"
        raise RetryAfter(pause(answer, context), said)
    if answer.status in REFUSED:
        words = "" if is_page(answer) else f" ({answer.text.strip()[:80]})"
        raise PermanentError(f"{answer.url}: HTTP {answer.status}{words}; Yahoo refuses this request; {advice}")


def pause(answer: Response, context: ScanContext) -> float:
    """Return the seconds that a response asks to wait, or else a minute."""
    wait = answer.retry_after(context.now)
    return _DEFAULT_PAUSE if wait is None else wait


def yahoo_symbol(ticker: str) -> str:
    """Return Yahoo's name for a ticker: `BRK-B` for `BRK.B`. Points before exchanges (`TOT.TO`) stay."""
    return _SHARE_CLASS.sub(r"\1-\2", ticker) if _SHARE_CLASS.fullmatch(ticker) else ticker


def midnight(day: date) -> int:
    """Return the epoch seconds at which `day` begins in New York."""
    return int(datetime.combine(day, time(), NEW_YORK).timestamp())


def date_of(timestamp: float, zone: ZoneInfo) -> date:
    """Return the date in `zone` at a time in epoch seconds."""
    return (_EPOCH + timedelta(seconds=timestamp)).astimezone(zone).date()


def new_york_date(timestamp: float) -> date:
    """Return New York's date at a time in epoch seconds."""
    return date_of(timestamp, NEW_YORK)


def read_chart(response: Response, symbol: str) -> PriceHistory:
    """Return the bars in a response, or raise its error; see `Yahoo.daily`."""
    chart = _chart(response, symbol)
    if chart.error is not None:
        _raise_error(chart.error, symbol)
    if not chart.result:
        raise SchemaDrift(f"Yahoo's chart of {symbol}: chart.result is empty, and there is no chart.error")
    result = chart.result[0]
    meta = result.meta
    if meta.data_granularity != DAILY:
        said = meta.data_granularity[:40]
        raise SchemaDrift(f"Yahoo's chart of {symbol}: meta.dataGranularity is {said!r}, not {DAILY!r}")
    zone = zone_of(meta.exchange_timezone_name)
    if zone is None:
        said = meta.exchange_timezone_name[:40]
        raise SchemaDrift(f"Yahoo's chart of {symbol}: meta.exchangeTimezoneName is {said!r}, which names no time zone")
    whole, holes = _bars(result, zone, symbol)
    _check_unit(whole, meta, zone, symbol)
    events = result.events or _Events()
    splits = {date_of(each.date, zone): each.numerator / each.denominator for each in events.splits.values()}
    bars = unsplit(whole, splits)
    unit = 100 if meta.currency in _HUNDREDTHS else 1
    if unit != 1:
        bars = [_divided(bar, unit) for bar in bars]
    period = None if meta.current_trading_period is None else meta.current_trading_period.regular
    return PriceHistory(
        symbol,
        meta.instrument_type,
        tuple(bars),
        holes,
        {day: amount / unit for day, amount in _dividends(result, zone, splits).items()},
        zone,
        _listed(meta, zone),
        None if period is None else datetime.fromtimestamp(period.end, zone),
    )


def _dividends(result: _Result, zone: ZoneInfo, splits: Collection[date]) -> dict[date, float]:
    """Return the dividends of the events, and those that only show in the adjusted closes.

    On the day before a dividend, the ratio of the adjusted close to the close is lower by the dividend's share of it;
    on that before a split, it may be.
    """
    closes, adjusted = result.indicators.quote[0].close, [each.adjclose for each in result.indicators.adjclose[:1]]
    paid: dict[date, float] = {}
    if adjusted and len(adjusted[0]) == len(closes):
        pairs = zip(adjusted[0], closes, strict=True)
        ratios = [after / close if after and close else math.nan for after, close in pairs]
        for place, (before, ratio) in enumerate(pairwise(ratios)):
            share, day = 1 - before / ratio, date_of(result.timestamp[place + 1], zone)
            if _NOISE < share < 1 and day not in splits:
                paid[day] = share * (closes[place] or 0.0)
    events = result.events or _Events()
    return paid | {date_of(each.date, zone): each.amount for each in events.dividends.values()}


def nearer(value: float, base: float, other: float) -> float:
    """Return which of two bases a price moved less from: the one whose ratio to `value` is closer to 1, else `base`."""
    return other if abs(value / other - 1) < abs(value / base - 1) else base


def unsplit(bars: list[Bar], splits: Mapping[date, float]) -> list[Bar]:
    """Return `bars` with the days before a split adjusted to the new scale, if Yahoo has not done so yet.

    Yahoo adjusts past prices for splits, but on the day of the split the adjustment may come after the first prices, or
    not at all. Without this function, a 4:1 split would then look like a fall of 75 %. What counts is whether the open
    is nearer to the close before with the split or without it.

    Args:
        bars: oldest first.
        splits: new shares per old share, by day.
    """
    for day, ratio in splits.items():
        before, after = [bar for bar in bars if bar.day < day], [bar for bar in bars if bar.day >= day]
        if not (before and after):
            continue
        base = before[-1].close
        if nearer(after[0].open, base, base / ratio) == base:
            continue
        bars = [replace(_divided(bar, ratio), volume=round(bar.volume * ratio)) for bar in before] + after
    return bars


def _divided(bar: Bar, ratio: float) -> Bar:
    return replace(bar, **{name: getattr(bar, name) / ratio for name in _PRICES})


def _chart(response: Response, symbol: str) -> _Chart:
    """Return the chart in a response, even if it is an error; an error of another form is not from Yahoo."""
    good = response.status == 200
    try:
        chart = shaped(response.json(), _Envelope, f"Yahoo's chart of {symbol}").chart
        if good or chart.error is not None:
            return chart
    except (SchemaDrift, TransientError):
        if good:
            raise
    kind = NotFound if response.status == 404 else PermanentError
    raise kind(f"{response.url}: HTTP {response.status} without Yahoo's error body; check base_url")


def _raise_error(error: _Error, symbol: str) -> NoReturn:
    said = f"Yahoo has no chart of {symbol}: {error.description or error.code}"
    unknown = error.code == "Not Found" or "Data doesn't exist" in error.description
    raise UnknownSymbol(said) if unknown else PermanentError(said)


def _listed(meta: _Meta, zone: ZoneInfo) -> date | None:
    """Return the day of the first trade; of an index it may be before 1970, or it may be nonsense."""
    try:
        return None if meta.first_trade_date is None else date_of(meta.first_trade_date, zone)
    except (OverflowError, ValueError):
        return None


def _check_unit(bars: list[Bar], meta: _Meta, zone: ZoneInfo, symbol: str) -> None:
    """Compare the prices with those that the answer names elsewhere, to notice another unit.

    Raises:
        SchemaDrift: they contradict each other.
    """
    if not bars:
        return
    known = [("chartPreviousClose", meta.chart_previous_close, bars[0].open)]
    if meta.regular_market_time is not None and date_of(meta.regular_market_time, zone) == bars[-1].day:
        known.append(("regularMarketPrice", meta.regular_market_price, bars[-1].close))
    for name, said, price in known:
        if said is not None and said > 0 and not 1 / _UNITS < price / said < _UNITS:
            raise SchemaDrift(
                f"Yahoo's chart of {symbol}: meta.{name} is {said:g}, and the price next to it {price:g}: another unit"
            )


def _bars(result: _Result, zone: ZoneInfo, symbol: str) -> tuple[list[Bar], tuple[date, ...]]:
    """Return the complete bars, oldest first, and the days without one.

    Of two bars on the last day (as in the current session), the later one counts. Of two on an earlier day that are not
    the same, none does.
    """
    if result.timestamp != sorted(result.timestamp):
        raise SchemaDrift(f"Yahoo's chart of {symbol}: timestamp is not in order")
    days = [date_of(stamp, zone) for stamp in result.timestamp]
    columns = [_column(result.indicators.quote[0], name, len(days), symbol) for name in (*_PRICES, "volume")]
    bars: dict[date, Bar] = {}
    twice: set[date] = set()
    for day, first, high, low, last, volume in zip(days, *columns, strict=True):
        if _whole(first, high, low, last, volume):
            bar = Bar(day, first, high, low, last, int(volume))
            if bars.setdefault(day, bar) != bar:
                bars[day] = bar
                twice |= {day} - {days[-1]}
    return [bars[day] for day in sorted(bars.keys() - twice)], tuple(sorted(set(days) - bars.keys() | twice))


def _column(quote: _Quote, name: str, length: int, symbol: str) -> list[float]:
    """Return one column, with NaN for null."""
    column: list[float | None] = getattr(quote, name)
    if len(column) != length:
        raise SchemaDrift(
            f"Yahoo's chart of {symbol}: indicators.quote[0].{name} has {len(column)} values for {length} timestamps"
        )
    return [math.nan if value is None else value for value in column]


def _whole(first: float, high: float, low: float, last: float, volume: float) -> bool:
    """Say whether a bar has all its numbers and does not contradict itself."""
    if not all(0 < price <= _MAX_PRICE for price in (first, high, low, last)) or not 0 <= volume <= _MAX_VOLUME:
        return False
    most, least = high * (1 + _SLACK), low * (1 - _SLACK)
    return least <= first <= most and least <= last <= most and low <= high
