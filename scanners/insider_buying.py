"""Find stocks whose own insiders buy them in the market, according to the SEC's newest filings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import NotFound, SchemaDrift, TransientError

from ._settings import read_settings
from .providers import sec
from .providers.reading import TOLERATED
from .providers.sec_forms import Filing, Owner, Ownership, Trade

TOOL: Final = "sec_form4"


class InsiderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `insider_buying`.

    Attributes:
        base_url: the address of EDGAR.
        user_agent: a name and an e-mail address, which EDGAR demands.
        lookback_days: how old a filing may be, in days before the feed's date.
        min_value: least that all insiders of a company together must have paid, in dollars.
        high_value: from this weighted sum on, the priority is `high`; below it, `medium`.
        officer_weight: how many times an officer's payments count in the weighted sum.
        cluster: with this many different insiders or more, the priority is `critical`.
        max_pages: how many pages of the feed are read, 100 entries each.
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
    """One purchase by one insider, as a Form 4 reports it."""

    symbol: str
    issuer: str
    owner: Owner
    people: frozenset[int]  # the company numbers (CIK) of all who filed it together
    accession: str
    trade: Trade

    @property
    def value(self) -> float:
        """Return what was paid, in dollars."""
        return self.trade.shares * (self.trade.price or 0.0)


@dataclass(frozen=True, slots=True)
class Buying:
    """What the insiders of one company bought, at least one purchase.

    Attributes:
        purchases: those that count.
        owners: the insiders, one for all who filed together.
        contradictory: every line calls itself a purchase and marks its shares as disposed of.
    """

    purchases: tuple[Purchase, ...]
    owners: tuple[Owner, ...]
    contradictory: bool

    @classmethod
    def of(cls, bought: Sequence[Purchase]) -> Buying:
        """Count only the lines that do not contradict themselves, or all if there are no others."""
        consistent = tuple(each for each in bought if each.trade.acquired)
        counted = consistent or tuple(bought)
        return cls(counted, tuple(insiders(counted)), contradictory=not consistent)

    @property
    def value(self) -> float:
        """Return what was paid, in dollars."""
        return sum(each.value for each in self.purchases)

    def weighted(self, officer_weight: float) -> float:
        """Return what was paid, in dollars, if what an officer paid counts `officer_weight` times."""
        return sum(each.value * (officer_weight if each.owner.officer else 1.0) for each in self.purchases)

    @property
    def shares(self) -> float:
        """Return how many shares were bought."""
        return sum(each.trade.shares for each in self.purchases)

    @property
    def days(self) -> list[date]:
        """Return the day of each purchase."""
        return [each.trade.day for each in self.purchases]

    @property
    def filings(self) -> list[str]:
        """Return the accession numbers of the forms, each once."""
        return list(dict.fromkeys(each.accession for each in self.purchases))


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
    price above 0; a company whose insiders paid `min_value` or more together. People who file together, in any of the
    forms, are one insider, and a purchase that is reported twice counts once. `cluster` different insiders make the
    candidate critical; otherwise the sum decides, in which officers count `officer_weight` times.

    A line that calls itself a purchase but marks its shares as disposed of contradicts itself. If a company has only
    such lines, the priority is `low` and the candidate says so.
    """
    settings = read_settings(InsiderSettings, context)
    client = sec.client(settings.base_url, context)
    filings = client.newest("4", settings.lookback_days, settings.max_pages, context)
    forms = context.map(lambda filing: (filing, _document(client, filing, context)), filings, concurrency=4)
    bought = purchases([(filing, form) for filing, form in forms if isinstance(form, Ownership)], context)
    context.log(TOOL, filings=len(filings), unreadable=_failed(forms, context), purchases=len(bought))
    for symbol in dict.fromkeys(each.symbol for each in bought):
        found = find_buying([each for each in bought if each.symbol == symbol], settings)
        if found is not None:
            yield found


def _document(client: sec.Sec, filing: Filing, context: ScanContext) -> Ownership | NotFound | SchemaDrift:
    """Return a filing's document, or the error if it is missing or malformed, so that the other filings still count."""
    try:
        key = (TOOL, client.base_url, filing.accession)  # a filing never changes
        return context.shared(key, lambda: client.ownership(filing, context), ttl=86400)
    except (NotFound, SchemaDrift) as error:
        context.log(TOOL, accession=filing.accession, left_out=str(error))
        return error


def _failed(forms: list[tuple[Filing, Ownership | NotFound | SchemaDrift]], context: ScanContext) -> int:
    """Return how many documents could not be read.

    If more than `TOLERATED` are malformed, or all are missing, the scan fails. If more than that are missing, the
    result is suspicious.
    """
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
    """Return the purchases that count; what a form loses by `LEFT_OUT` is described in the tool log."""
    found: list[Purchase] = []
    for filing, form in forms:
        reason = next((reason for applies, reason in LEFT_OUT if applies(form)), None)
        if reason is not None:
            context.log(TOOL, accession=filing.accession, left_out=reason.format(form=form.form))
        found += _bought(filing, form)
    return _once(found)


def _bought(filing: Filing, form: Ownership) -> list[Purchase]:
    """Return the lines of a Form 4 with code P and a price, if the company has a symbol."""
    if form.form != "4" or not form.symbol:
        return []
    leader, people = min(form.owners, key=_rank), frozenset(owner.cik for owner in form.owners)
    return [
        Purchase(form.symbol, form.issuer, leader, people, filing.accession, trade)
        for trade in _with_code_p(form)
        if trade.price
    ]


ROLES: Final = ("officer", "director", "large owner")
"""Roles by rank: of the people who file together, the one with the highest rank represents them all."""


def _rank(owner: Owner) -> int:
    """Return the index of an owner's role in `ROLES`."""
    return (owner.officer, owner.director, True).index(True)


def _with_code_p(form: Ownership) -> list[Trade]:
    return [trade for trade in form.trades if trade.code == "P"]


LEFT_OUT: Final[tuple[tuple[Callable[[Ownership], bool], str], ...]] = (
    (lambda form: form.form != "4", "is a Form {form}"),
    (lambda form: any(not trade.price for trade in _with_code_p(form)), "has purchases without a price or a symbol"),
    (lambda form: bool(_with_code_p(form)) and not form.symbol, "has purchases without a price or a symbol"),
)
"""Why a form, or some of its purchases, do not count; the first reason that applies is logged."""


def _once(found: list[Purchase]) -> list[Purchase]:
    """Leave out the lines that an insider already reported in another form."""
    first: dict[tuple[str, int, Trade], str] = {}
    kept = []
    for each in found:
        said = {first.setdefault((each.symbol, cik, each.trade), each.accession) for cik in each.people}
        if said == {each.accession}:
            kept.append(each)
    return kept


def insiders(bought: Sequence[Purchase]) -> list[Owner]:
    """Return one owner for each group of people who filed together in any of the forms, in the forms' order."""
    groups: list[tuple[frozenset[int], Owner]] = []
    for each in bought:
        same = [group for group in groups if group[0] & each.people]
        people = each.people.union(*(ids for ids, _ in same))
        place = groups.index(same[0]) if same else len(groups)
        groups = [group for group in groups if group not in same]
        groups.insert(place, (people, min((*(owner for _, owner in same), each.owner), key=_rank)))
    return [owner for _, owner in groups]


PRIORITIES: Final[tuple[tuple[str, Callable[[Buying, InsiderSettings], bool]], ...]] = (
    ("low", lambda buying, _: buying.contradictory),
    ("critical", lambda buying, settings: len(buying.owners) >= settings.cluster),
    ("high", lambda buying, settings: buying.weighted(settings.officer_weight) >= settings.high_value),
    ("medium", lambda _buying, _settings: True),
)
"""What decides the priority of a company's candidate: the first condition that holds."""


def find_buying(bought: list[Purchase], settings: InsiderSettings) -> Candidate | None:
    """Apply the rule of `insider_buying` to the purchases of one company's shares."""
    buying = Buying.of(bought)
    if buying.value < settings.min_value:
        return None
    return Candidate(
        ticker=bought[0].symbol,
        source="insider_buying",
        context=_sentence(buying),
        priority=next(priority for priority, holds in PRIORITIES if holds(buying, settings)),
        strategy="insider_buying",
        extras={
            "value": round(buying.value, 2),
            "weighted_value": round(buying.weighted(settings.officer_weight), 2),
            "shares": round(buying.shares, 4),
            "price": round(buying.value / buying.shares, 4),
            "insiders": len(buying.owners),
            "officers": sum(owner.officer for owner in buying.owners),
            "names": [owner.name for owner in buying.owners],
            "filings": buying.filings,
            "last_day": max(buying.days).isoformat(),
        },
    )


def _sentence(buying: Buying) -> str:
    doubt = "; but the form marks the shares as disposed of" if buying.contradictory else ""
    return (
        f"{_who(buying.owners)} of {buying.purchases[0].issuer} bought {buying.shares:,.0f} shares "
        f"for {buying.value:,.0f} USD in the market, {_period(buying.days)}{doubt}"
    )


def _who(owners: Sequence[Owner]) -> str:
    if len(owners) > 1:
        return f"{len(owners)} insiders"
    (owner,) = owners
    return f"{owner.name} ({owner.title or ROLES[_rank(owner)]})"


def _period(days: Sequence[date]) -> str:
    first, last = min(days), max(days)
    return f"on {first}" if first == last else f"from {first} to {last}"
