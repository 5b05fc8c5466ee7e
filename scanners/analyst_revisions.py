"""Find stocks about which analysts have changed their minds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import TransientError, credential

from ._charts import Usable, each_ticker, tickers, trade_date
from ._listings import LARGEST
from ._settings import read_settings
from .providers import finnhub
from .providers.finnhub import Trend
from .providers.reading import TOLERATED

TOOL: Final = "finnhub_recommendation"
MIN_USABLE: Final = 0.8
NEWEST: Final = timedelta(days=62)
"""A trend covers the month that begins on its date, so that the newest trend is at most two months old."""


class RevisionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `analyst_revisions`.

    Attributes:
        api_key: Finnhub's key; or set FINNHUB_API_KEY.
        base_url: the address of Finnhub.
        universe: the tickers to look at if the state has none; by default some of the largest companies.
        min_change: smallest change of the score, up or down; the score ranges from -2 to 2.
        high_change: from this change on, the priority is `high`; below it, `medium`.
        min_analysts: the least number of analysts in both months.
    """

    api_key: str = ""
    base_url: str = finnhub.LIVE
    universe: tuple[str, ...] = LARGEST
    min_change: Annotated[float, Meta(gt=0, le=4)] = 0.05
    high_change: Annotated[float, Meta(gt=0, le=4)] = 0.15
    min_analysts: Annotated[int, Meta(ge=1)] = 5


@scanner(
    pipeline="events",
    settings=RevisionSettings,
    cache=Cache(ttl=21_600, stale_if_error=86_400, inputs=("trade_date", "tickers")),
    retry=Retry(attempts=3, on=(TransientError,)),
    timeout=Timeout(total=45),
    limit=finnhub.LIMIT,
    needs={"api_key": finnhub.KEY},
    sources=(finnhub.HOST,),
)
def analyst_revisions(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Stocks whose analysts became more confident, or less, within a month.

    The rule: the score of the newest month differs from that of the month before by `min_change` or more, with at least
    `min_analysts` analysts in both. The score is the mean of all recommendations, from 2 (strong buy) over 1, 0 and -1
    to -2 (strong sell). Finnhub keeps the last months: if it lacks those of the trade date for more than one in five of
    the tickers that it knows, the answer is suspicious. (The change counts, not the level: Jegadeesh, Kim, Krische and
    Lee, *Analyzing the Analysts: When Do Recommendations Add Value?*, Journal of Finance 59, 2004.)
    """
    settings = read_settings(RevisionSettings, context)
    key = credential(context, "api_key", finnhub.KEY)
    client = finnhub.client(settings.base_url)
    wanted = tickers(state, settings.universe, context.scanner)
    usable, known_to = Usable("recommendations", wanted, MIN_USABLE, TOOL, context), 0
    for ticker, trends in each_ticker(wanted, lambda one: client.recommendations(one, key, context), TOOL, context):
        known_to += bool(trends)
        day = trade_date(state, context)
        known = [trend for trend in trends if trend.period <= day]
        if reason := _unusable(known, day):
            usable.leave_out(ticker, reason, "stale" if known else "")  # nobody may follow it
            continue
        usable.count += 1
        if (candidate := find_revision(ticker, known[0], known[1], settings)) is not None:
            yield candidate
    context.log(TOOL, tickers=len(wanted), trends=usable.count)
    usable.judge(fatal=False)
    if wanted and not known_to:
        context.doubt(f"Finnhub has no recommendations at all of {', '.join(wanted[:5])}")
    elif usable.count < (1 - TOLERATED) * known_to:
        context.doubt(
            f"the recommendations of {known_to - usable.count} of {known_to} tickers cannot be compared for "
            f"{trade_date(state, context)}; Finnhub keeps the last months only, see the tool log",
            kind="missing",
        )


def _unusable(trends: Sequence[Trend], day: date) -> str:
    """Return why the change cannot be computed, or an empty text."""
    if len(trends) < 2:
        return f"has {len(trends)} months of recommendations, the rule needs 2"
    if day - trends[0].period > NEWEST:
        return f"has no recommendations since {trends[0].period}"
    if trends[0].period - trends[1].period > timedelta(days=31):
        return f"has no recommendations of the month before {trends[0].period}"
    return ""


def score(trend: Trend) -> float:
    """Return the mean recommendation, from -2 to 2; 0 if there are no analysts."""
    points = 2 * trend.strong_buy + trend.buy - trend.sell - 2 * trend.strong_sell
    return points / trend.analysts if trend.analysts else 0.0


def find_revision(ticker: str, newer: Trend, older: Trend, settings: RevisionSettings) -> Candidate | None:
    """Apply the rule of `analyst_revisions` to the last two months."""
    change = round(score(newer) - score(older), 9)
    if abs(change) < settings.min_change or min(newer.analysts, older.analysts) < settings.min_analysts:
        return None
    return Candidate(
        ticker=ticker,
        source="analyst_revisions",
        context=f"analysts became {'more' if change > 0 else 'less'} confident: a mean of {score(newer):+.2f} in "
        f"{newer.period:%B %Y} (from -2 to 2, {newer.analysts} of them), after {score(older):+.2f} the month before",
        priority="high" if abs(change) >= settings.high_change else "medium",
        strategy="revisions",
        extras={"score": round(score(newer), 4), "change": round(change, 4), "analysts": newer.analysts},
    )
