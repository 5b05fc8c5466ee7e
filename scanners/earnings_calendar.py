"""Find companies that report their earnings within days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, ConfigError, Retry, ScanContext, ScanError, Timeout, scanner
from resilient_scan.http import TransientError, credential

from ._asof import recent_day
from ._charts import only, trade_date
from ._listings import is_common_share, with_point
from ._settings import key_if_any, read_settings
from .providers import alpha_vantage, finnhub

FINNHUB_TIMEOUT: Final = 10.0  # seconds; Finnhub only adds to what Alpha Vantage has
TOOL: Final = "earnings_calendar"
QUIET: Final = timedelta(days=30)
"""In any month of the year, hundreds of companies report."""
_WHEN: Final = {
    "pre-market": "before the market opens",
    "bmo": "before the market opens",
    "post-market": "after its close",
    "amc": "after its close",
}


class CalendarSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `earnings_calendar`.

    Attributes:
        api_key: Alpha Vantage's key; or set ALPHAVANTAGE_API_KEY.
        base_url: the address of Alpha Vantage.
        finnhub_key: without a key (here or in FINNHUB_API_KEY), Finnhub is not called.
        finnhub_url: the address of Finnhub.
        horizon: how far Alpha Vantage's calendar reaches: `3month`, `6month` or `12month`.
        days_ahead: how many days after the trade date count.
        soon_days: up to this many days after it, the priority is `high`; later, `medium`.
        only_estimated: whether companies without an estimate of their earnings, which are small, are left out.
    """

    api_key: str = ""
    base_url: str = alpha_vantage.LIVE
    finnhub_key: str = ""
    finnhub_url: str = finnhub.LIVE
    horizon: Annotated[str, Meta(pattern="^(3|6|12)month$")] = "3month"
    days_ahead: Annotated[int, Meta(ge=0, le=90)] = 7
    soon_days: Annotated[int, Meta(ge=0, le=90)] = 1
    only_estimated: bool = True


class Event(msgspec.Struct, frozen=True):
    """An expected earnings report, and which sources announce it; `estimate` is per share."""

    ticker: str
    day: date
    estimate: float | None
    currency: str
    when: str
    name: str
    via: tuple[str, ...]


@scanner(
    pipeline="events",
    settings=CalendarSettings,
    cache=Cache(ttl=43_200, stale_if_error=86_400, inputs=("trade_date", "tickers")),
    retry=Retry(attempts=3, on=(TransientError,)),
    timeout=Timeout(total=45),
    limit=alpha_vantage.LIMIT,
    needs={"api_key": alpha_vantage.KEY},
    sources=(alpha_vantage.HOST, finnhub.HOST),
)
def earnings_calendar(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Companies that report their earnings in the days to come.

    The rule: the report is due from the trade date to `days_ahead` days after it; there is an estimate for it (unless
    `only_estimated` is off); the symbol is a common share's, as those of foreign shares traded over the counter (five
    letters that end in F or Y) are not. If the state has `tickers`, only these count. Alpha Vantage's calendar is
    the source. With a key, Finnhub's calendar adds to it, and a candidate's `via` names the sources. Of two days for
    one company, the earlier one counts. The soonest report comes first. The calendar begins today: for a `trade_date`
    of this week the answer is suspicious, because what was due since then is missing, and for another one the scanner
    refuses.
    """
    settings = read_settings(CalendarSettings, context)
    past = recent_day(state, context, "Alpha Vantage's calendar", looks_ahead=True)
    key = credential(context, "api_key", alpha_vantage.KEY)
    reports = alpha_vantage.client(settings.base_url).earnings(key, context, settings.horizon)
    day = trade_date(state, context)
    events = [
        Event(
            with_point(row.symbol), row.day, row.estimate, row.currency, row.time, row.name, (alpha_vantage.PROVIDER,)
        )
        for row in reports
    ]
    context.log(TOOL, source=alpha_vantage.PROVIDER, reports=len(events))
    if not events:
        context.doubt("nobody at all reports earnings, says Alpha Vantage's calendar")
    elif past is not None:
        context.doubt(
            f"Alpha Vantage's calendar begins today: reports that were due since {past} are missing", kind="missing"
        )
    elif not any(timedelta(0) <= event.day - day <= QUIET for event in events):
        context.doubt(
            f"nobody reports earnings in the {QUIET.days} days after {day}, says the calendar", kind="wrong_day"
        )
    events += _of_finnhub(day, context, settings)
    wanted = only(state)
    due = [event for event in events if _counts(event, day, settings) and wanted(event.ticker)]
    for event in sorted(united(due), key=lambda event: (event.day, event.ticker)):
        yield _candidate(event, day, settings)


def _of_finnhub(day: date, context: ScanContext, settings: CalendarSettings) -> list[Event]:
    """Return what Finnhub adds: nothing without a key, or if it fails, which is logged in the tool log."""
    key = key_if_any(context, "finnhub_key", finnhub.KEY)
    if not key:
        return []
    last = day + timedelta(days=settings.days_ahead)
    client = finnhub.client(settings.finnhub_url)
    try:
        rows = context.guarded(
            finnhub.PROVIDER,
            lambda: client.earnings(day, last, key, context),
            seconds=FINNHUB_TIMEOUT,
            limit=finnhub.LIMIT,
        )
    except ConfigError:
        raise
    except ScanError as error:
        context.log(TOOL, source=finnhub.PROVIDER, left_out=str(error))
        return []
    context.log(TOOL, source=finnhub.PROVIDER, reports=len(rows))
    via = (finnhub.PROVIDER,)
    return [Event(with_point(row.symbol), row.date, row.estimate, "USD", row.hour or "", "", via) for row in rows]


def _counts(event: Event, day: date, settings: CalendarSettings) -> bool:
    over_the_counter = len(event.ticker) == 5 and event.ticker[-1] in "FY"
    return (
        timedelta(0) <= event.day - day <= timedelta(days=settings.days_ahead)
        and is_common_share(event.ticker)
        and not over_the_counter
        and (event.estimate is not None or not settings.only_estimated)
    )


def united(events: list[Event]) -> list[Event]:
    """Return one event for each company: its earliest day, and all sources that name that day."""
    found: dict[str, Event] = {}
    for event in sorted(events, key=lambda event: event.day):  # stable: Alpha Vantage's stay before Finnhub's
        first = found.setdefault(event.ticker, event)
        if first is not event and event.day == first.day and event.via[0] not in first.via:
            found[event.ticker] = msgspec.structs.replace(
                first,
                via=first.via + event.via,
                when=first.when or event.when,
                estimate=event.estimate if first.estimate is None else first.estimate,
            )
    return list(found.values())


def _candidate(event: Event, day: date, settings: CalendarSettings) -> Candidate:
    away = (event.day - day).days
    when = _WHEN.get(event.when, "")
    expected = "" if event.estimate is None else f", {event.estimate:g} {event.currency} a share are expected"
    return Candidate(
        ticker=event.ticker,
        source="earnings_calendar",
        context=f"{event.name or event.ticker} reports earnings on {event.day}{f' {when}' if when else ''}{expected}",
        priority="high" if away <= settings.soon_days else "medium",
        strategy="earnings",
        extras={
            "date": event.day.isoformat(),
            "days_away": away,
            "estimate": event.estimate,
            "currency": event.currency,
            "time": event.when,
            "via": list(event.via),
        },
    )
