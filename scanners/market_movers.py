"""Find stocks with a big move on the day."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Candidate, ConfigError, ScanContext, ScanError
from resilient_scan.http import NotFound, TransientError

from ._chart import Chart
from ._charts import ChartSettings, Usable, as_of, chart_scanner, scan_charts, trade_date
from ._listings import is_common_share, is_fund, with_point
from ._sessions import is_current, last_session
from ._settings import key_if_any, read_settings
from .providers import alpha_vantage, yahoo, yahoo_market
from .providers.yahoo_market import Quote

ALPHA_VANTAGE: Final = alpha_vantage.PROVIDER
SCREENER: Final = "yahoo_screener"
LIMITS: Final = {ALPHA_VANTAGE: alpha_vantage.LIMIT}
CHARTS: Final = "daily_charts"
SOURCE_TIMEOUT: Final = 6.0  # seconds for each of the first two sources, so that time is left for the charts
LISTING: Final = "alpha_vantage_listing"
LISTING_TIMEOUT: Final = 8.0  # seconds; it is a megabyte
LISTING_TTL: Final = 86_400.0
LISTING_PAUSE: Final = 14_400.0  # seconds until it is asked for again after a failure, which may be a used up quota
MOVERS_TTL: Final = 7200.0  # seconds; uses 12 of the 25 free requests a day
TOOL: Final = "market_movers"


class MoversSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `market_movers`.

    Attributes:
        min_change: smallest move, up or down, in percent.
        critical_change: from this move on, the priority is `critical`; below it, `high`.
        min_price: lowest close, or last price.
        alpha_vantage_key: without a key (here or in ALPHAVANTAGE_API_KEY), Alpha Vantage is not called.
        alpha_vantage_url: the address of Alpha Vantage.
        screeners: Yahoo's predefined screeners.
        screener_count: maximum number of rows from each.
        leave_out: symbols that are never candidates.
    """

    min_change: Annotated[float, Meta(gt=0)] = 5.0
    critical_change: Annotated[float, Meta(gt=0)] = 10.0
    min_price: Annotated[float, Meta(ge=0)] = 5.0
    alpha_vantage_key: str = ""
    alpha_vantage_url: str = alpha_vantage.LIVE
    screeners: tuple[str, ...] = ("day_gainers", "day_losers")
    screener_count: Annotated[int, Meta(ge=1, le=250)] = 25
    leave_out: tuple[str, ...] = ()


@chart_scanner(pipeline="momentum", settings=MoversSettings, needs={}, sources=(alpha_vantage.HOST, yahoo.HOST))
def market_movers(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Top gainers and losers of the day.

    The rule: the close, or last price, is `min_change` percent or more away from the previous close, and not below
    `min_price`. Three sources are tried in turn, each behind its own breaker; a candidate's `via` names its source:

    1. Alpha Vantage's movers of the whole market, if there is a key: without warrants, rights and units, and without
       funds. Which these are is known from its listing, which is fetched once a day: those that it calls so, and those
       whose name or exchange says it. If the listing cannot be had, or a mover is not in it, the answer is suspicious.
    2. Yahoo's screeners, without funds, warrants, rights and units.
    3. The daily charts of the state's `tickers`, or of `universe`. Only these know the past: unless `trade_date` is
       today or the day of the last session, the other sources are not called.
    """
    settings = read_settings(MoversSettings, context)
    found = _of_now(as_of(settings, state), context, settings)
    if found is not None:
        yield from found
        return
    charts = scan_charts(state, context, MoversSettings, find_move, bars=lambda _: 2)
    while (candidate := context.guarded(CHARTS, lambda: next(charts, None))) is not None:
        candidate.extras["via"] = CHARTS
        yield candidate


def _of_now(state: Mapping[str, Any], context: ScanContext, settings: MoversSettings) -> list[Candidate] | None:
    """Return the movers of the whole market now from the first source that answers, or `None`.

    Raises:
        ScanError: no source answers, and there are no tickers whose charts could be read; the last source's error.
    """
    # A trade date after New York's today counts as now: in Tokyo it is tomorrow already. Until the bell, the movers are
    # those of the session before today's.
    newest = last_session(trade_date({}, context))
    if trade_date(state, context) < last_session(newest - timedelta(days=1)):
        return None
    failure: ScanError | None = None
    for source, ask in _live(state, context, settings):
        try:
            found = context.guarded(source, ask, seconds=SOURCE_TIMEOUT, limit=LIMITS.get(source))
        except ConfigError:
            raise
        except ScanError as error:
            context.log(TOOL, source=source, left_out=str(error))
            failure = error
        else:
            if source == ALPHA_VANTAGE:
                key = key_if_any(context, "alpha_vantage_key", alpha_vantage.KEY)
                found = _without_funds(found, key, context, settings.alpha_vantage_url)
            context.log(TOOL, source=source, candidates=len(found))
            return found
    if failure is not None and not (settings.universe or state.get("tickers")):
        raise failure
    return None


def _live(
    state: Mapping[str, Any], context: ScanContext, settings: MoversSettings
) -> Iterator[tuple[str, Callable[[], list[Candidate]]]]:
    """Yield the sources for the whole market now, in the order in which they are tried."""
    key = key_if_any(context, "alpha_vantage_key", alpha_vantage.KEY)
    if key:
        yield ALPHA_VANTAGE, lambda: _of_alpha_vantage(key, state, context, settings)
    else:
        context.log(TOOL, source=ALPHA_VANTAGE, left_out=f"no key; set alpha_vantage_key or {alpha_vantage.KEY}")
    yield SCREENER, lambda: _of_screener(state, context, settings)


def _of_alpha_vantage(
    key: str, state: Mapping[str, Any], context: ScanContext, settings: MoversSettings
) -> list[Candidate]:
    url = settings.alpha_vantage_url
    movers = context.shared(
        (ALPHA_VANTAGE, "movers", url), lambda: alpha_vantage.client(url).movers(key, context), ttl=MOVERS_TTL
    )
    _check_day(movers.day, state, context)
    rows = {row.ticker: row for row in (*movers.gainers, *movers.losers, *movers.active)}
    if not rows:
        raise TransientError("Alpha Vantage's movers are empty")
    moves = [
        _move(with_point(row.ticker), row.price, row.percent, movers.day, row.volume, ALPHA_VANTAGE, settings)
        for row in rows.values()
        if is_common_share(row.ticker)
    ]
    return [move for move in moves if move is not None]


class Listing(msgspec.Struct, frozen=True):
    """The symbols of all shares and of all funds, with a blank between them."""

    shares: str
    funds: str


def _without_funds(found: list[Candidate], key: str, context: ScanContext, url: str) -> list[Candidate]:
    """Leave out the funds among Alpha Vantage's movers, which come without names.

    What is not listed may be a fund, and is left out too. Without a listing nothing is left out. In both cases the
    answer is doubted.
    """
    if not found:
        return found
    listing = _listing(key, context, url)
    if listing is None:
        context.doubt(
            "there may be funds among the movers: Alpha Vantage's listing cannot be had; see the tool log",
            kind="missing",
        )
        return found
    shares, funds = frozenset(listing.shares.split()), frozenset(listing.funds.split())
    unknown = [each.ticker for each in found if each.ticker not in shares | funds]
    context.log(TOOL, source=LISTING, funds=[each.ticker for each in found if each.ticker in funds], unknown=unknown)
    if unknown:
        context.doubt(
            f"{', '.join(unknown)}: not in Alpha Vantage's listing, and left out: may be a share or a fund",
            kind="missing",
        )
    return [each for each in found if each.ticker in shares]


def _listing(key: str, context: ScanContext, url: str) -> Listing | None:
    """Return the listing of the day; it costs one of 25 requests a day, and six if it always fails."""
    known = context.recall(f"{LISTING} of {url}", Listing)
    if known is not None or context.recall(f"{LISTING} of {url} failed", str) is not None:
        return known
    client = alpha_vantage.client(url)
    try:
        rows = context.guarded(
            ALPHA_VANTAGE, lambda: client.listing(key, context), seconds=LISTING_TIMEOUT, limit=alpha_vantage.LIMIT
        )
    except ConfigError:
        raise
    except ScanError as error:
        context.log(TOOL, source=LISTING, left_out=str(error))
        context.remember(f"{LISTING} of {url} failed", "failed", ttl=LISTING_PAUSE)
        return None
    of_funds = {with_point(row.symbol): is_fund(row.kind, row.name, row.exchange) for row in rows}
    shares, funds = (" ".join(symbol for symbol, fund in of_funds.items() if fund is kind) for kind in (False, True))
    listing = Listing(shares, funds)
    context.remember(f"{LISTING} of {url}", listing, ttl=LISTING_TTL)
    return listing


def _of_screener(state: Mapping[str, Any], context: ScanContext, settings: MoversSettings) -> list[Candidate]:
    client = yahoo_market.client(settings.base_url, settings.transport)
    quotes: dict[str, Quote] = {}
    for name in settings.screeners:
        try:
            found = client.screener(name, settings.screener_count, context)
        except NotFound as error:  # the other screeners may exist
            context.log(TOOL, source=SCREENER, screener=name, left_out=str(error))
            continue
        # Yahoo reports warrants as shares.
        quotes |= {each.symbol: each for each in found if each.quote_type == "EQUITY" and is_common_share(each.symbol)}
    if not quotes:
        raise TransientError("Yahoo's screeners have no shares")
    days = {symbol: yahoo.new_york_date(quote.regular_market_time) for symbol, quote in quotes.items()}
    newest = max(days.values())
    _check_day(newest, state, context)
    usable = Usable("quotes", tuple(quotes), settings.min_usable, TOOL, context)
    for symbol, day in days.items():
        if day == newest:
            usable.count += 1
        else:
            usable.leave_out(symbol, f"was last traded on {day}", "stale")
    usable.judge()
    moves = [
        _move(
            with_point(symbol),
            quote.regular_market_price,
            quote.regular_market_change_percent,
            days[symbol],
            quote.regular_market_volume,
            SCREENER,
            settings,
        )
        for symbol, quote in quotes.items()
        if days[symbol] == newest
    ]
    return [move for move in moves if move is not None]


def _check_day(day: date, state: Mapping[str, Any], context: ScanContext) -> None:
    wanted = trade_date(state, context)
    if not is_current(day, wanted, context.now):
        raise TransientError(f"its movers are of {day}, which is not the last session on {wanted}")


def _move(
    ticker: str, price: float, change: float, day: date, volume: int, via: str, settings: MoversSettings
) -> Candidate | None:
    """Apply the rule of `market_movers` to what a source reports about one share."""
    if abs(change) < settings.min_change or price < settings.min_price or ticker in settings.leave_out:
        return None
    numbers = {"close": round(price, 4), "change_percent": round(change, 4), "volume": volume}
    return Candidate(
        ticker=ticker,
        source="market_movers",
        context=f"{'rose' if change > 0 else 'fell'} {abs(change):.1f} % to {price:.2f} on {day}",
        priority=_priority(change, settings),
        strategy="momentum",
        extras={"date": day.isoformat(), **numbers, "via": via},
    )


def _priority(change: float, settings: MoversSettings) -> str:
    return "critical" if abs(change) >= settings.critical_change else "high"


def find_move(chart: Chart, settings: MoversSettings) -> Candidate | None:
    """Apply the rule of `market_movers` to one chart."""
    change = chart.change
    if abs(change) < settings.min_change or chart.last.close < settings.min_price or chart.ticker in settings.leave_out:
        return None
    before = chart.previous
    return chart.candidate(
        "market_movers",
        f"{'rose' if change > 0 else 'fell'} {abs(change):.1f} % to {chart.last.close:.2f} {chart.when}, "
        f"from {before.close:.2f} on {before.day}{chart.dividend}",
        priority=_priority(change, settings),
        strategy="momentum",
        previous_close=before.close,
    )
