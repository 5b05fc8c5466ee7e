"""Find companies that had to report an important event to the SEC within four days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import TransientError

from ._asof import THIS_WEEK, recent_day
from ._settings import read_settings
from .providers import sec
from .providers.sec import Doubt
from .providers.sec_forms import Filing, Party

RESERVE: Final = 0.1  # of the time: when no more is left, no further page is read; the list of companies comes after it
GRAVE: Final = ("1.03", "2.04", "2.06", "3.01", "4.02")
"""Bankruptcy, a debt called early, an impairment, a delisting notice, accounts that cannot be relied on."""
WEIGHTY: Final = ("1.01", "1.02", "1.05", "2.01", "2.02", "2.05", "4.01", "5.01", "5.02")
"""A material agreement made or ended, a cyber attack, a company bought or sold, results, lay-offs, another auditor,
another owner, other directors or officers."""


class FilingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `filings_8k`.

    Attributes:
        base_url: the address of EDGAR.
        user_agent: a name and an e-mail address, which EDGAR demands.
        lookback_days: how old a filing may be, in days before the feed's date.
        critical_items: items that make the priority `critical`.
        high_items: items that make it `high`; all others are `medium`.
        max_pages: how many pages of the feed are read at most, 100 entries each.
    """

    base_url: str = sec.LIVE
    user_agent: str = ""
    lookback_days: Annotated[int, Meta(ge=0)] = 1
    critical_items: tuple[str, ...] = GRAVE
    high_items: tuple[str, ...] = WEIGHTY
    max_pages: Annotated[int, Meta(ge=1, le=100)] = 30


@scanner(
    pipeline="events",
    settings=FilingSettings,
    needs=sec.NEEDS,
    sources=(sec.HOST,),
    cache=Cache(ttl=600, inputs=("trade_date",)),
    retry=Retry(attempts=3, on=(TransientError,)),
    limit=sec.LIMIT,
    timeout=Timeout(total=60),
)
def filings_8k(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Current reports (Form 8-K) of listed companies.

    The rule: the newest Forms 8-K (no amendments, no other form whose name begins so), each once, filed at most
    `lookback_days` before the feed's date, by a company that trades under a symbol. Each company is one candidate, with
    the items of all its reports; the gravest item decides the priority.

    A report without any item is one that the feed says too little about: a bankruptcy looks like any other news then.
    So its priority is `unknown`, and the answer is suspicious; so it is if the feed was not read to its end. EDGAR's
    feed knows the last days only: another `trade_date` is refused, and of a day of this week what was filed until then
    counts.
    """
    settings = read_settings(FilingSettings, context)
    day = recent_day(state, context, "EDGAR's feed of Forms 8-K")
    reports, doubts = _reports(settings, day, context)
    sec.doubt(context, doubts)
    symbols = sec.universe(settings.base_url, context) if reports else {}
    unlisted = [cik for cik in reports if cik not in symbols]
    context.log("sec_8k", companies=len(reports), without_symbol=len(unlisted))
    for cik, filings in reports.items():
        if cik in symbols:
            yield _candidate(symbols[cik][0], cik, filings, settings)


def _reports(
    settings: FilingSettings, day: date | None, context: ScanContext
) -> tuple[dict[int, list[Filing]], list[Doubt]]:
    """Return the reports until a day by company, newest first, each once; and why they may not be whole."""
    client = sec.client(settings.base_url, context)
    back = timedelta(days=settings.lookback_days)
    reach = back if day is None else back + THIS_WEEK
    feed = client.newest(("8-K",), reach.days, settings.max_pages, context, until=RESERVE * context.remaining())
    last = feed.updated.date() if day is None else day
    filings = [
        filing for filing in feed.filings if last - back <= filing.filed and (day is None or filing.filed <= day)
    ]
    by_company: dict[int, list[Filing]] = {}
    for filing in filings:
        for party in filing.parties:
            by_company.setdefault(party.cik, []).append(filing)
    bare = sum(not filing.items for filing in filings)
    return by_company, [
        *feed.doubts,
        *([("missing", f"{bare} of {len(filings)} Forms 8-K come without their items")] if bare else []),
    ]


def _candidate(symbol: str, cik: int, filings: list[Filing], settings: FilingSettings) -> Candidate:
    items = {number: title for filing in filings for number, title in filing.items.items()}
    party = next(party for party in filings[0].parties if party.cik == cik)
    return Candidate(
        ticker=symbol,
        source="filings_8k",
        context=_sentence(party, filings, items),
        priority=_priority(items, settings),
        strategy="event",
        extras={
            "items": sorted(items),
            "filings": [filing.accession for filing in filings],
            "filed": filings[0].filed.isoformat(),
        },
    )


def _sentence(party: Party, filings: list[Filing], items: Mapping[str, str]) -> str:
    said = "; ".join(f"{number} {items[number]}".strip() for number in sorted(items))
    count = f" ({len(filings)} reports)" if len(filings) > 1 else ""
    return f"{party.name} filed an 8-K on {filings[0].filed}{count}{f': {said}' if said else ''}"


def _priority(items: Mapping[str, str], settings: FilingSettings) -> str:
    if not items:
        return "unknown"
    if any(number in settings.critical_items for number in items):
        return "critical"
    return "high" if any(number in settings.high_items for number in items) else "medium"
