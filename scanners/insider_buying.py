"""Find stocks whose own insiders buy them in the market, according to the SEC's newest filings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import NotFound, SchemaDrift, TransientError

from ._asof import recent_day
from ._charts import only
from ._form4 import FORMS, TOOL, Forms, Purchase, Report, Waiting, in_order
from ._settings import read_settings
from .providers import sec
from .providers.sec_forms import Owner, Ownership, Trade


class InsiderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `insider_buying`.

    Attributes:
        base_url: the address of EDGAR.
        user_agent: a name and an e-mail address, which EDGAR demands.
        lookback_days: how old a filing and a purchase may be, in days before the feed's date.
        min_value: least that all insiders of a company together must have paid, in dollars.
        high_value: from this weighted sum on, the priority is `high`; below it, `medium`.
        officer_weight: how many times an officer's payments count in the weighted sum.
        cluster: with this many different insiders or more, the priority is `critical`.
        max_pages: how many pages of the feed one scan reads at most, 100 entries each; the feed has about 51.
    """

    base_url: str = sec.LIVE
    user_agent: str = ""
    lookback_days: Annotated[int, Meta(ge=0)] = 14
    min_value: Annotated[float, Meta(gt=0)] = 100_000.0
    high_value: Annotated[float, Meta(gt=0)] = 500_000.0
    officer_weight: Annotated[float, Meta(ge=1)] = 2.0
    cluster: Annotated[int, Meta(ge=2)] = 3
    max_pages: Annotated[int, Meta(ge=1, le=100)] = 60


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
    cache=Cache(ttl=600, inputs=("trade_date", "tickers")),
    retry=Retry(attempts=3, on=(TransientError,)),
    limit=sec.LIMIT,
    timeout=Timeout(total=60),
)
def insider_buying(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Purchases by officers, directors and large owners, straight from their Form 4.

    The rule: Forms 4 and 4/A (no other form whose name begins with 4), each once however many parties it is listed
    under, filed at most `lookback_days` before the feed's date; of their lines of table I those with code `P`, a price
    above 0, and a day at most `lookback_days` before that date (an older purchase is not news, however late it is
    filed); a company whose insiders paid `min_value` or more together. `cluster` different insiders make the
    candidate critical; otherwise the sum decides, in which officers count `officer_weight` times. If the state has
    `tickers`, only these count, and only their forms are read.

    How the special cases count:

    * *Planned*: a form that says that its trades follow a plan under Rule 10b5-1 does not count. Such a trade was
      decided long ago, and tells nothing about today. Forms before April 2023 do not say.
    * *Amendments*: a 4/A replaces what the same people reported about the same days before.
    * *Joint filers*: people who file together, in any of the forms, are one insider, and a purchase that is reported
      twice counts once. Of them, the one with the highest role stands for all.
    * *Indirect ownership*: what a trust, a fund or a relative bought counts as the insider's own. If a fund and its
      director report it in separate forms (same day, shares, price and holding afterwards), it counts once.
    * *Derivatives*: table II does not count. An option or a warrant is not a share that was paid for in the market.

    A line that calls itself a purchase but marks its shares as disposed of contradicts itself. If a company has only
    such lines, the priority is `low` and the candidate says so.

    The feed is read from its newest entry to the last one that an earlier scan has seen, and what was read is
    remembered. Each candidate is yielded as soon as the forms of its company are read. What there is no time for is
    left to the next scan, and makes the answer suspicious. The feed reaches back for some days only; before that, the
    scanner knows what it has read itself. So it refuses a `trade_date` that is not of the last days; for one that is,
    later forms do not count.
    """
    settings = read_settings(InsiderSettings, context)
    day, told = recent_day(state, context, "EDGAR's feed of Forms 4"), only(state)
    client = sec.client(settings.base_url, context)
    forms = Forms(client, settings.lookback_days, settings.max_pages, context, partial(report_of, context))
    wanted = _companies(state, settings, context)
    last = forms.feed.updated.date() if day is None else day
    window = last - timedelta(days=settings.lookback_days), last
    done: set[str] = set()
    for _ in forms.read(wanted):
        for symbol, bought in _complete(forms, window, forms.busy(wanted)):
            if symbol not in done and told(symbol) and (found := find_buying(bought, settings)) is not None:
                done.add(symbol)
                yield found
    everything = _complete(forms, window, set())
    for symbol, bought in everything:
        if symbol not in done and told(symbol) and (found := find_buying(bought, settings)) is not None:
            yield found
    days, count = [day.isoformat() for day in window], sum(len(bought) for _, bought in everything)
    context.log(TOOL, days=days, **forms.counts, purchases=count)
    sec.doubt(context, forms.doubts)


def _companies(state: Mapping[str, Any], settings: InsiderSettings, context: ScanContext) -> Callable[[int], bool]:
    """Return a test of whether a company's forms are read: all, or if the state has `tickers`, only theirs.

    A company that is not in the list of companies may have any of the tickers.
    """
    if state.get("tickers") is None:
        return lambda _: True
    told = only(state)
    try:
        symbols = sec.universe(settings.base_url, context)
    except (NotFound, SchemaDrift, TransientError) as error:
        context.log(TOOL, companies=f"all are read, because their list cannot be: {error}")
        return lambda _: True
    return lambda cik: cik not in symbols or any(map(told, symbols[cik]))


def report_of(context: ScanContext, each: Waiting, form: Ownership) -> Report | None:
    """Return what a form says, as far as it may count; what it loses by `LEFT_OUT` is described in the tool log."""
    reason = next((reason for applies, reason in LEFT_OUT if applies(form, each.filed)), None)
    if reason is not None:
        context.log(TOOL, accession=each.accession, left_out=reason.format(form=form.form))
    if form.form not in FORMS or not form.symbol:
        return None
    leader, people = min(form.owners, key=_rank), frozenset(owner.cik for owner in form.owners)
    bought = () if form.planned else tuple(
        Purchase(form.symbol, form.issuer, leader, people, each.accession, trade)
        for trade in _with_code_p(form)
        if trade.price and trade.day <= each.filed
    )  # fmt: skip
    amended = tuple(sorted({trade.day for trade in form.trades})) if form.form.endswith("/A") else ()
    if not bought and not amended:
        return None
    return Report(each.accession, each.accepted, each.filed, form.cik, form.symbol, people, amended, bought)


ROLES: Final = ("officer", "director", "large owner", "other")
"""Roles by rank: of the people who file together, the one with the highest rank represents them all."""


def _rank(owner: Owner) -> int:
    """Return the index of an owner's role in `ROLES`."""
    return (owner.officer, owner.director, owner.large, True).index(True)


def _with_code_p(form: Ownership) -> list[Trade]:
    return [trade for trade in form.trades if trade.code == "P"]


LEFT_OUT: Final[tuple[tuple[Callable[[Ownership, date], bool], str], ...]] = (
    (lambda form, _: form.form not in FORMS, "is a Form {form}"),
    (lambda form, _: form.planned and bool(_with_code_p(form)), "has purchases under a plan (Rule 10b5-1)"),
    (lambda form, filed: any(each.day > filed for each in _with_code_p(form)), "has purchases after its own day"),
    (lambda form, _: any(not each.price for each in _with_code_p(form)), "has purchases without a price or a symbol"),
    (lambda form, _: bool(_with_code_p(form)) and not form.symbol, "has purchases without a price or a symbol"),
)
"""Why a form, or some of its purchases, do not count; the first reason that applies is logged."""


def _complete(forms: Forms, window: tuple[date, date], busy: set[int]) -> list[tuple[str, list[Purchase]]]:
    """Return the purchases that count by symbol, where no form of the company is left; 0 in `busy` is any company."""
    first, last = window
    reports = in_order(each for each in forms.reports if first <= each.filed <= last)
    unfinished = {each.symbol for each in reports if 0 in busy or each.issuer in busy}
    found: dict[str, list[Purchase]] = {}
    for each in counted(reports):
        if each.trade.day >= first and each.symbol not in unfinished:
            found.setdefault(each.symbol, []).append(each)
    return list(found.items())


def counted(reports: Sequence[Report]) -> list[Purchase]:
    """Return the purchases of reports, newest first, without those that were amended, and each once."""
    amendments = [(place, each) for place, each in enumerate(reports) if each.amended]
    return _once(
        purchase
        for place, each in enumerate(reports)
        for purchase in each.purchases
        if not any(
            later < place
            and newer.issuer == each.issuer
            and newer.people & each.people
            and purchase.trade.day in newer.amended
            for later, newer in amendments
        )
    )


def _once(found: Iterable[Purchase]) -> list[Purchase]:
    """Leave out the lines that an insider, or the fund through which he holds the shares, reported in another form."""
    first: dict[tuple[str, int, Trade], str] = {}
    holdings: dict[tuple[str, Trade, float], int] = {}  # by what is held afterwards: a place in `kept`
    kept: list[Purchase] = []
    for each in found:
        said = {first.setdefault((each.symbol, cik, each.trade), each.accession) for cik in each.people}
        if said != {each.accession}:
            continue
        held, after = each.trade, each.trade.after
        twin = None if after is None else holdings.get((each.symbol, held, after))
        if (
            twin is not None
            and kept[twin].accession != each.accession
            and not (kept[twin].trade.direct and held.direct)
        ):
            kept[twin] = _united(kept[twin], each)
            continue
        if after is not None:
            holdings.setdefault((each.symbol, held, after), len(kept))
        kept.append(each)
    return kept


def _united(one: Purchase, other: Purchase) -> Purchase:
    owner = min(one.owner, other.owner, key=_rank)
    return replace(one, owner=owner, people=one.people | other.people)


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
