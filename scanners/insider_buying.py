"""Stocks whose own insiders buy them in the market, by the SEC's newest filings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import NotFound, SchemaDrift, TransientError

from ._settings import read_settings
from .providers import sec
from .providers.sec_forms import Filing, Owner, Ownership, Trade

TOLERATED = 0.2
"""Share of the documents that may be unreadable before the scan is: 1 of 5 is told in the tool log, 2 are an error.

So many may be missing before the answer is suspicious; where none is there, that is an error.
"""


class InsiderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `insider_buying`.

    Attributes:
        base_url: where EDGAR is.
        user_agent: who asks, a name and an e-mail address, as EDGAR demands it.
        lookback_days: how old a filing may be, in days before the feed's date.
        min_value: what all insiders of a company together must have paid, in dollars.
        high_value: from this weighted sum on the priority is `high`, below it `medium`.
        officer_weight: by which what an officer paid counts in the weighted sum.
        cluster: from so many different insiders on the priority is `critical`.
        max_pages: pages of the feed, 100 entries each, that are read.
    """

    base_url: str = sec.LIVE
    user_agent: str = ""
    lookback_days: Annotated[int, Meta(ge=0)] = 14
    min_value: Annotated[float, Meta(gt=0)] = 100_000.0
    high_value: Annotated[float, Meta(gt=0)] = 500_000.0
    officer_weight: Annotated[float, Meta(ge=1)] = 2.0
    cluster: Annotated[int, Meta(ge=2)] = 3
    max_pages: Annotated[int, Meta(ge=1, le=50)] = 5


@dataclass(frozen=True, slots=True)
class Purchase:
    """A purchase of one insider: what a Form 4 says of it."""

    symbol: str
    issuer: str
    owner: Owner
    people: frozenset[int]  # the numbers of all who filed it together
    accession: str
    trade: Trade

    @property
    def value(self) -> float:
        """Return dollars."""
        return self.trade.shares * (self.trade.price or 0.0)


@scanner(
    pipeline="edge",
    settings=InsiderSettings,
    needs=sec.NEEDS,
    sources=(sec.HOST,),
    cache=Cache(ttl=600, inputs=()),
    retry=Retry(attempts=3, on=(TransientError,)),
    limit=sec.LIMIT,
    timeout=Timeout(total=60),
)
def insider_buying(_state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Purchases by officers, directors and large owners, straight from their Form 4.

    The rule: the newest Forms 4 (no amendments, no other form whose name begins with 4), each once however many parties
    it is listed under, filed at most `lookback_days` before the feed's date; their lines of table I with code `P` and a
    price above 0; a company whose insiders paid `min_value` or more together. Those who file together, in any of the
    forms, are one insider, and what an insider reports twice counts once. `cluster` different insiders make it
    critical; else the sum decides, in which officers count `officer_weight` times.

    A line that calls itself a purchase and marks its shares as disposed of contradicts itself; where a company has only
    such lines, the priority is `low` and the candidate says so.
    """
    settings = read_settings(InsiderSettings, context)
    client = sec.client(settings.base_url, context)
    filings = client.newest("4", settings.lookback_days, settings.max_pages, context)
    forms = context.map(lambda filing: (filing, _document(client, filing, context)), filings, concurrency=4)
    bought = purchases([(filing, form) for filing, form in forms if isinstance(form, Ownership)], context)
    context.log("sec_form4", filings=len(filings), unreadable=_failed(forms, context), purchases=len(bought))
    for symbol in dict.fromkeys(each.symbol for each in bought):
        found = find_buying([each for each in bought if each.symbol == symbol], settings)
        if found is not None:
            yield found


def _failed(forms: list[tuple[Filing, Ownership | NotFound | SchemaDrift]], context: ScanContext) -> int:
    """Return how many documents could not be read; raise if those are too many, doubt if too many are missing."""
    failed = [form for _, form in forms if not isinstance(form, Ownership)]
    broken = [error for error in failed if isinstance(error, SchemaDrift)]
    if len(broken) > TOLERATED * len(forms):
        raise broken[0]
    if forms and len(failed) == len(forms):
        raise failed[0]
    if len(failed) > TOLERATED * len(forms):
        context.doubt(f"{len(failed)} of {len(forms)} Forms 4 could not be read, most are missing; see the tool log")
    return len(failed)


def purchases(forms: list[tuple[Filing, Ownership]], context: ScanContext) -> list[Purchase]:
    """Return all lines with code P and a price, of companies that have a symbol."""
    found = []
    for filing, form in forms:
        lines = [trade for trade in form.trades if trade.code == "P"]
        priced = [trade for trade in lines if trade.price]
        if form.form != "4" or len(priced) < len(lines) or (priced and not form.symbol):
            reason = f"is a Form {form.form}" if form.form != "4" else "has purchases without a price or a symbol"
            context.log("sec_form4", accession=filing.accession, left_out=reason)
        if form.form == "4" and form.symbol:
            leader, people = _leader(form.owners), frozenset(owner.cik for owner in form.owners)
            found += [Purchase(form.symbol, form.issuer, leader, people, filing.accession, trade) for trade in priced]
    return _once(found)


def _once(found: list[Purchase]) -> list[Purchase]:
    """Leave out what somebody reported a second time: the same line in another form."""
    first: dict[tuple[str, int, Trade], str] = {}
    kept = []
    for each in found:
        said = {first.setdefault((each.symbol, cik, each.trade), each.accession) for cik in each.people}
        if said == {each.accession}:
            kept.append(each)
    return kept


def insiders(bought: list[Purchase]) -> list[Owner]:
    """Return one owner for all who filed together in any of the forms, in the forms' order."""
    groups: list[tuple[frozenset[int], Owner]] = []
    for each in bought:
        same = [group for group in groups if group[0] & each.people]
        people = each.people.union(*(ids for ids, _ in same))
        place = groups.index(same[0]) if same else len(groups)
        groups = [group for group in groups if group not in same]
        groups.insert(place, (people, _leader((*(owner for _, owner in same), each.owner))))
    return [owner for _, owner in groups]


def find_buying(bought: list[Purchase], settings: InsiderSettings) -> Candidate | None:
    """Apply the rule of `insider_buying` to the purchases of one company's shares."""
    plain = [each for each in bought if each.trade.acquired]
    counted = plain or bought
    value = sum(each.value for each in counted)
    if value < settings.min_value:
        return None
    owners = insiders(counted)
    officers = [owner for owner in owners if owner.officer]
    weighted = sum(each.value * (settings.officer_weight if each.owner.officer else 1.0) for each in counted)
    shares = sum(each.trade.shares for each in counted)
    doubt = "" if plain else "; but the form marks the shares as disposed of"
    return Candidate(
        ticker=counted[0].symbol,
        source="insider_buying",
        context=f"{_who(owners)} of {counted[0].issuer} bought {shares:,.0f} shares "
        f"for {value:,.0f} USD in the market, {_days([each.trade.day for each in counted])}{doubt}",
        priority=_priority(len(owners), weighted, settings) if plain else "low",
        strategy="insider_buying",
        extras={
            "value": round(value, 2),
            "weighted_value": round(weighted, 2),
            "shares": round(shares, 4),
            "price": round(value / shares, 4),
            "insiders": len(owners),
            "officers": len(officers),
            "names": [owner.name for owner in owners],
            "filings": list(dict.fromkeys(each.accession for each in counted)),
            "last_day": max(each.trade.day for each in counted).isoformat(),
        },
    )


def _document(client: sec.Sec, filing: Filing, context: ScanContext) -> Ownership | NotFound | SchemaDrift:
    """Return a filing's document; one that is not there yet, or not as it should be, costs the others nothing."""
    try:
        key = ("sec_form4", client.base_url, filing.accession)  # a filing never changes
        return context.shared(key, lambda: client.ownership(filing, context), ttl=86400)
    except (NotFound, SchemaDrift) as error:
        context.log("sec_form4", accession=filing.accession, left_out=str(error))
        return error


def _leader(owners: tuple[Owner, ...]) -> Owner:
    """Return who stands for all that filed together: an officer if there is one, else a director, else the first."""
    return next((each for each in owners if each.officer), next((each for each in owners if each.director), owners[0]))


def _priority(insiders: int, weighted: float, settings: InsiderSettings) -> str:
    if insiders >= settings.cluster:
        return "critical"
    return "high" if weighted >= settings.high_value else "medium"


def _who(owners: list[Owner]) -> str:
    if len(owners) > 1:
        return f"{len(owners)} insiders"
    (owner,) = owners
    role = owner.title or ("officer" if owner.officer else "director" if owner.director else "large owner")
    return f"{owner.name} ({role})"


def _days(days: list[date]) -> str:
    first, last = min(days), max(days)
    return f"on {first}" if first == last else f"from {first} to {last}"
