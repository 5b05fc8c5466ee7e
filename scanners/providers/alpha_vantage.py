"""Call Alpha Vantage: movers of the day, what is listed, news with their sentiment, the calendar of earnings.

Everything is `GET /query?function=...&apikey=...`. A free key allows 25 requests a day and one a second. In JSON,
numbers are texts. Errors come with HTTP 200, as one JSON object with a sentence in it, even from endpoints for CSV:

    "Note", "Information"   a quota is used up, or the endpoint needs a paid plan; one wording echoes the key
    "Error Message"         the key, the function or a parameter is wrong

The wordings change every other year, so they are recognised by the few words that have stayed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import msgspec

from resilient_scan import Limit, PermanentError, RetryAfter, ScanContext
from resilient_scan.http import REDACTED, Client, NotFound, Response, SchemaDrift, TransientError

from .reading import each, has_end, number, shaped, without

LIVE: Final = "https://www.alphavantage.co"
HOST: Final = "www.alphavantage.co"
KEY: Final = "ALPHAVANTAGE_API_KEY"
PROVIDER: Final = "alpha_vantage"
LIMIT: Final = Limit(PROVIDER, rate=("25/day", "1/s"))
_NEW_YORK: Final = ZoneInfo("America/New_York")
_ECHO: Final = re.compile(r"(api ?key as )\S+", re.IGNORECASE)  # the key may be an older one than ours
_TIME: Final = re.compile(r"[0-9]{8}T[0-9]{4}([0-9]{2})?")  # the parser would take T1616 for 16:01:06
_NOTHING: Final = frozenset({"", "-", "None"})  # texts that mean that there is no number
_LISTING: Final = ("symbol", "name", "exchange", "assetType", "status")
_FEWEST: Final = 1000  # rows; there are about 13,000
_CALENDAR: Final = ("symbol", "name", "reportDate", "fiscalDateEnding", "estimate", "currency")


class Mover(msgspec.Struct, frozen=True):
    """A row of the movers. Price in dollars, changes in dollars and percent, volume in shares."""

    ticker: str
    price: float
    change: float
    percent: float
    volume: int


class Movers(msgspec.Struct, frozen=True):
    """The movers of one day: New York's date, and the rows of its gainers, losers and most active."""

    day: date
    gainers: tuple[Mover, ...]
    losers: tuple[Mover, ...]
    active: tuple[Mover, ...]


class Mention(msgspec.Struct, frozen=True):
    """What an article says about one ticker: relevance from 0 to 1, sentiment from -1 (bearish) to 1."""

    ticker: str
    relevance: float
    sentiment: float


class Article(msgspec.Struct, frozen=True):
    """An article and the tickers that it mentions."""

    title: str
    url: str
    published: datetime
    mentions: tuple[Mention, ...]


class News(msgspec.Struct, frozen=True):
    """The articles that could be read, and the tickers of those that could not."""

    articles: list[Article]
    unread: frozenset[str]


class Report(msgspec.Struct, frozen=True):
    """A row of the calendar; `estimate` is of the earnings per share, in `currency`, or `None`."""

    symbol: str
    name: str
    day: date
    estimate: float | None
    currency: str
    time: str


class Listed(msgspec.Struct, frozen=True):
    """A row of the listing; `kind` is `Stock` or `ETF`."""

    symbol: str
    name: str
    exchange: str
    kind: str
    status: str


class _Movers(msgspec.Struct):
    last_updated: str
    top_gainers: list[Any]
    top_losers: list[Any]
    most_actively_traded: list[Any]


class _Mover(msgspec.Struct):
    ticker: str
    price: str
    change_amount: str
    change_percentage: str
    volume: str


class _Feed(msgspec.Struct):
    feed: list[Any]
    items: str | int = ""


class _Mentioned(msgspec.Struct):
    ticker: Annotated[str, msgspec.Meta(pattern=r"^([A-Z]+:)?[A-Z0-9.^-]{1,15}$")]


class _Mention(_Mentioned):
    relevance_score: str
    ticker_sentiment_score: str


class _Article(msgspec.Struct):
    title: str
    url: str
    time_published: str
    ticker_sentiment: list[Any]


class AlphaVantage:
    """The client, which threads share. Get the one of this process for an address from `client`."""

    def __init__(self, base_url: str = LIVE) -> None:
        self._http = Client(base_url, timeout=15.0)

    def movers(self, key: str, context: ScanContext) -> Movers:
        """Return the 20 biggest gainers, the 20 biggest losers and the 20 most active of the last trading day.

        Raises:
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as in `refuse`.
        """
        data = shaped(self._json("TOP_GAINERS_LOSERS", key, context), _Movers, "Alpha Vantage's TOP_GAINERS_LOSERS")
        gainers, losers, active = (
            tuple(each(getattr(data, name), _mover, f"Alpha Vantage's {name}", PROVIDER, context))
            for name in ("top_gainers", "top_losers", "most_actively_traded")
        )
        return Movers(_day(data.last_updated), gainers, losers, active)

    def news(self, key: str, context: ScanContext, **filters: str) -> News:
        """Return the newest articles (50, unless `limit` says otherwise); `filters` are the endpoint's parameters.

        Raises:
            SchemaDrift: the answer has another shape, or the tickers of an article cannot be read.
            RetryAfter, TransientError, PermanentError: as in `refuse`.
        """
        what = "Alpha Vantage's NEWS_SENTIMENT"
        try:
            data = self._json("NEWS_SENTIMENT", key, context, **filters)
        except NotFound:
            return News([], frozenset())
        bad: list[tuple[Any, str]] = []

        def read(row: Any, where: str) -> Article:
            try:
                return _article(row, where)
            except SchemaDrift:
                bad.append((row, where))
                raise

        news = shaped(data, _Feed, what)
        articles = each(news.feed, read, f"{what}: feed", PROVIDER, context)
        if str(news.items).isdigit() and int(news.items) > len(news.feed):
            context.doubt(f"{what} has {len(news.feed)} of {news.items} articles", kind="incomplete")
        return News(articles, frozenset(ticker for row, where in bad for ticker in _tickers(row, where)))

    def earnings(self, key: str, context: ScanContext, horizon: str = "3month") -> list[Report]:
        """Return the companies that report their earnings within the horizon (`3month`, `6month` or `12month`).

        Raises:
            SchemaDrift: the answer has another shape.
            RetryAfter, TransientError, PermanentError: as in `refuse`.
        """
        rows = self._csv("EARNINGS_CALENDAR", _CALENDAR, key, context, horizon=horizon)
        return each(rows, _report, "Alpha Vantage's EARNINGS_CALENDAR: row", PROVIDER, context)

    def listing(self, key: str, context: ScanContext) -> list[Listed]:
        """Return all stocks and funds that are listed in the US now.

        Raises:
            SchemaDrift: the answer has another shape, or is much shorter than a listing.
            RetryAfter, TransientError, PermanentError: as in `refuse`.
        """
        what = "Alpha Vantage's LISTING_STATUS"
        rows = self._csv("LISTING_STATUS", _LISTING, key, context)
        found = each(rows, _listed, f"{what}: row", PROVIDER, context)
        if len(found) < _FEWEST:
            raise SchemaDrift(f"{what} has {len(found)} rows, and there are more than {_FEWEST} listings")
        return [listed for listed in found if listed.status == "Active"]

    def _csv(
        self, function: str, columns: Sequence[str], key: str, context: ScanContext, **parameters: str
    ) -> list[dict[str, str]]:
        """Return the rows of a CSV answer, by the names of its columns.

        CSV has no end of its own: half of it is a CSV too. So the last row has to be whole, and where the source did
        not say how long the answer is, it is doubted.
        """
        what = f"Alpha Vantage's {function}"
        answer = self._ask(function, key, context, **parameters)
        text = answer.text
        try:
            names, *lines = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
        except csv.Error as error:
            raise SchemaDrift(f"{what} is not CSV: {error}") from None
        if not names or "<" in names[0]:
            raise TransientError(f"{what}: not CSV but nothing, or a page for people; the source may be in trouble")
        names = [name.strip() for name in names]
        for name in columns:
            if name not in names:
                raise SchemaDrift(f"{what}: the column {name!r} is gone; there are {', '.join(names)[:200]}")
        lines = [line for line in lines if line]
        if lines and len(lines[-1]) < len(names):
            raise TransientError(f"{what} ends in the middle of row {len(lines)}: {','.join(lines[-1])[:80]!r}")
        if lines and not (text.endswith("\n") and has_end(answer, context)):
            context.doubt(f"{what} may be cut off: nothing says where it ends", kind="incomplete")
        return [dict(zip(names, line, strict=False)) for line in lines]

    def _json(self, function: str, key: str, context: ScanContext, **parameters: str) -> Any:
        return self._ask(function, key, context, **parameters).json()

    def _ask(self, function: str, key: str, context: ScanContext, **parameters: str) -> Response:
        query = {"function": function, **parameters, "apikey": key}
        answer = without(key, self._http.get("/query", query, context=context))
        refuse(answer, function, context.now)
        return answer


@lru_cache(maxsize=16)
def client(base_url: str) -> AlphaVantage:
    """Return the client for `base_url`; all scanners of a process share its connections."""
    return AlphaVantage(base_url)


def refuse(answer: Response, function: str, now: datetime) -> None:
    """Raise the error that a response with HTTP 200 contains instead of data, if any.

    Raises:
        RetryAfter: the quota of a second, of a minute, or (until New York's midnight) of a day is used up.
        PermanentError: the key is wrong, the endpoint needs a paid plan, or the call is wrong.
        NotFound: there is nothing for these parameters.
        TransientError: any other sentence.
    """
    if not answer.text.lstrip().startswith("{"):
        return
    data = answer.json()
    field = next((name for name in ("Note", "Information", "Error Message") if name in data), None)
    if field is None or not isinstance(data[field], str):
        return
    text = _ECHO.sub(rf"\g<1>{REDACTED}", " ".join(data[field].split()))
    said = f"Alpha Vantage's {function}: {text[:300]}"
    for pattern, error in _WORDINGS:
        if re.search(pattern, text, re.IGNORECASE):
            raise _error_of(error, said, now)
    raise _error_of("minute" if field == "Note" else "wrong" if field == "Error Message" else "", said, now)


# The order matters: the sentence about seconds also mentions the quota of a day and paid plans.
_WORDINGS: Final = (
    (r"no articles found", "nothing"),
    (r"(per |/ ?)second|burst", "second"),
    (r"(per |/ ?)minute|higher api call", "minute"),
    (r"premium (endpoint|function|feature)\b|subscribe .* to access", "paid"),
    (r"(per |/ ?)day|\bdaily\b", "day"),  # and not TIME_SERIES_DAILY
    (r"api ?key", "key"),
    (r"invalid|error", "wrong"),
)


def _error_of(error: str, said: str, now: datetime) -> Exception:
    match error:
        case "second":
            return RetryAfter(1, said)
        case "minute":
            return RetryAfter(60, said)
        case "day":
            return RetryAfter(_until_midnight(now), said)
        case "nothing":
            return NotFound(said)
        case "paid":
            return PermanentError(
                f"{said} - the key's plan does not have this; leave the scanner out, or change the plan"
            )
        case "key":
            return PermanentError(f"{said} - check the key")
        case "wrong":
            return PermanentError(f"{said} - check the scanner's settings")
    return TransientError(said)


def _until_midnight(now: datetime) -> float:
    """Return the seconds until New York's next midnight, when the quota of a day is renewed."""
    here = now.astimezone(_NEW_YORK)
    midnight = datetime.combine(here.date() + timedelta(days=1), time(), _NEW_YORK)
    return max(60.0, midnight.timestamp() - here.timestamp())


def _day(text: str) -> date:
    """Return the date in `2026-05-15 16:16:00 US/Eastern`."""
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise SchemaDrift(f"Alpha Vantage's TOP_GAINERS_LOSERS: last_updated is not a date: {text[:40]!r}") from None


def _mover(data: Any, where: str) -> Mover:
    """Read the texts of a row, and check price, change and percentage against each other."""
    row = shaped(data, _Mover, where)
    price = number(row.price, f"{where}: price", 0, 1e7)
    change = number(row.change_amount, f"{where}: change_amount", -1e7, 1e7)
    percent = number(row.change_percentage.removesuffix("%"), f"{where}: change_percentage", -100, 1e9)
    volume = number(row.volume, f"{where}: volume", 0, 1e11)
    before = price - change
    if before <= 0 or abs(change / before * 100 - percent) > max(1.0, 0.02 * abs(percent)) + 0.02 / before:
        raise SchemaDrift(f"{where}: price, change_amount and change_percentage contradict each other")
    return Mover(row.ticker, price, change, percent, int(volume))


def _article(data: Any, where: str) -> Article:
    row = shaped(data, _Article, where)
    try:
        if not _TIME.fullmatch(row.time_published):
            raise ValueError
        published = datetime.strptime(f"{row.time_published:0<15}+0000", "%Y%m%dT%H%M%S%z")
    except ValueError:
        raise SchemaDrift(f"{where}: time_published is not a time: {row.time_published[:40]!r}") from None
    rows = enumerate(row.ticker_sentiment)
    mentions = tuple(_mention(each, _mention_path(where, place)) for place, each in rows)
    return Article(row.title, row.url, published, mentions)


def _mention_path(where: str, place: int) -> str:
    return f"{where}.ticker_sentiment[{place}]"


def _tickers(data: Any, where: str) -> Iterator[str]:
    """Yield the tickers of an article that cannot be read as a whole."""
    rows = data.get("ticker_sentiment") if isinstance(data, dict) else None
    for place, row in enumerate(shaped(rows, list[Any], f"{where}.ticker_sentiment")):
        yield shaped(row, _Mentioned, _mention_path(where, place)).ticker


def _mention(data: Any, where: str) -> Mention:
    row = shaped(data, _Mention, where)
    relevance = number(row.relevance_score, f"{where}: relevance_score", 0, 1)
    return Mention(row.ticker, relevance, number(row.ticker_sentiment_score, f"{where}: ticker_sentiment_score", -1, 1))


def _listed(line: Mapping[str, str], where: str) -> Listed:
    symbol, kind = line["symbol"].strip(), line["assetType"].strip()
    if not symbol or kind not in {"Stock", "ETF"}:
        raise SchemaDrift(f"{where}: symbol {symbol!r} has the assetType {kind[:40]!r}, not Stock or ETF")
    return Listed(symbol, line["name"].strip(), line["exchange"].strip(), kind, line["status"].strip())


def _report(line: Mapping[str, str], where: str) -> Report:
    symbol, day, estimate = (line.get(name, "").strip() for name in ("symbol", "reportDate", "estimate"))
    if not symbol:
        raise SchemaDrift(f"{where}: symbol is empty")
    try:
        reported = date.fromisoformat(day)
    except ValueError:
        raise SchemaDrift(f"{where}: reportDate is not a date: {day[:40]!r}") from None
    value = None if estimate in _NOTHING else number(estimate, f"{where}: estimate", -1e6, 1e6)
    return Report(symbol, line.get("name", ""), reported, value, line.get("currency", ""), line.get("timeOfTheDay", ""))
