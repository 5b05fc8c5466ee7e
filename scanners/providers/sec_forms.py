"""Read EDGAR's responses: the feed of current filings and the documents of Form 4.

A `SchemaDrift` names the field that is missing or has another form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from html import unescape
from typing import Final
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError, fromstring

from resilient_scan import ScanContext
from resilient_scan.http import SchemaDrift, TransientError

from .reading import each

_ATOM: Final = "{http://www.w3.org/2005/Atom}"
_TITLE = re.compile(r".*? - (?P<name>.+) \((?P<cik>\d{10})\) \((?P<role>[^()]+)\)", re.DOTALL)
_ACCESSION = re.compile(r"accession-number=(\d{10}-\d{2}-\d{6})")
_FILED = re.compile(r"Filed:\s*(?:</b>)?\s*(\d{4}-\d{2}-\d{2})")
_ITEM = re.compile(r"Item (\d{1,2}\.\d{2})\b:?\s*([^<\n]*)")
_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})(Z|[+-]\d{2}:\d{2})?")
_SYMBOL = re.compile(r"[A-Z][A-Z0-9]{0,5}(\.[A-Z0-9]{1,3})?")
_NO_SYMBOL: Final = frozenset({"NONE", "N/A", "N.A", "NA", "NULL", "TBD", "NO", "NOT"})  # as in "not listed"
_EXCHANGES: Final = frozenset({"", "-", "NYSE", "NASDAQ", "AMEX", "OTC", "OTCQB", "OTCQX", "OTCBB", "TSX"})
_MAX_SHARES: Final = 1e10
_MAX_OWNED: Final = 1e13
_MAX_PRICE: Final = 1e7  # dollars per share
_MAX_PAID: Final = 1e10  # dollars per purchase; the largest so far were a few billions


@dataclass(frozen=True, slots=True)
class Party:
    """A party that a filing is listed under; `role` is EDGAR's word, such as Issuer, Reporting, Filer or Subject."""

    cik: int
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Filing:
    """One filing, with all parties that it is listed under.

    Attributes:
        accession: its number, such as `0001493152-26-028198`.
        form: exactly, such as `4` or `8-K/A`.
        filed: the day of the filing.
        accepted: when EDGAR accepted it.
        folder: path of the folder of its documents, at the first party that it is listed under.
        parties: at least one.
        items: titles of the items of an 8-K by number, as far as the feed contains them.
        dated: whether the feed says on which day it was filed; else it is the day on which it was accepted.
    """

    accession: str
    form: str
    filed: date
    accepted: datetime
    folder: str
    parties: tuple[Party, ...]
    items: Mapping[str, str]
    dated: bool

    @property
    def issuer(self) -> int:
        """Return the company number of the issuer, as far as the feed contains it; else 0."""
        return next((party.cik for party in self.parties if party.role == "Issuer"), 0)


@dataclass(frozen=True, slots=True)
class Feed:
    """A page of the feed: when it was made, how many entries it has, and its filings, newest first."""

    updated: datetime
    entries: int
    filings: tuple[Filing, ...]


@dataclass(frozen=True, slots=True)
class Owner:
    """A reporting person; `title` is an officer's, or what another person is to the company."""

    cik: int
    name: str
    officer: bool
    director: bool
    large: bool
    title: str


@dataclass(frozen=True, slots=True)
class Trade:
    """A line of table I of Form 4.

    Attributes:
        code: EDGAR's letter: P is a purchase in the market or in private, S a sale, A an award, ...
        shares: > 0.
        price: dollars per share, >= 0; `None` if there is a footnote instead.
        acquired: whether the shares were acquired, by the form's own flag.
        day: the day of the transaction.
        direct: whether the person holds them, and not a trust, a fund or a relative.
        after: shares that are held in this way afterwards, or `None`.
    """

    code: str
    shares: float
    price: float | None
    acquired: bool
    day: date
    direct: bool = field(default=True, compare=False)
    after: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Ownership:
    """A Form 3, 4 or 5. `symbol` is empty if the issuer has none; `trades` are those of table I.

    `planned` says that a trade was part of a plan under Rule 10b5-1; forms before April 2023 do not say.
    """

    form: str
    cik: int
    issuer: str
    symbol: str
    planned: bool
    owners: tuple[Owner, ...]
    trades: tuple[Trade, ...]


# ---------------------------------------------------------------------------------------------------------------- feed


def read_feed(body: bytes, context: ScanContext) -> Feed:
    """Return a page of the feed; entries that do not fit are logged in the tool log.

    Raises:
        SchemaDrift: a field is missing or has another form in many entries; the message names the field.
        TransientError: it is an HTML page for people.
    """
    root = _xml(body, "EDGAR's feed")
    if root.tag != f"{_ATOM}feed":
        raise SchemaDrift(f"EDGAR's feed begins with {root.tag!r} and not with 'feed'")
    entries = root.findall(f"{_ATOM}entry")
    filings: dict[str, Filing] = {}
    for filing in each(entries, _entry, "EDGAR's feed: entry", "sec_feed", context):
        known = filings.get(filing.accession)
        filings[filing.accession] = filing if known is None else together(known, filing)
    updated = _instant(_atom(root, "updated", "EDGAR's feed"), "EDGAR's feed: updated")
    return Feed(updated, len(entries), tuple(filings.values()))


def together(one: Filing, other: Filing) -> Filing:
    """Return a filing with the parties and items of two of its entries."""
    parties = dict.fromkeys([*one.parties, *other.parties])
    return replace(one, parties=tuple(parties), items={**one.items, **other.items})


def _entry(entry: Element, what: str) -> Filing:
    title = _TITLE.fullmatch(_atom(entry, "title", what))
    if title is None:
        raise SchemaDrift(f"{what}.title is not 'FORM - NAME (NUMBER) (ROLE)': {_atom(entry, 'title', what)[:80]!r}")
    accession = _ACCESSION.search(_atom(entry, "id", what))
    if accession is None:
        raise SchemaDrift(f"{what}.id has no accession number: {_atom(entry, 'id', what)[:80]!r}")
    category, link = entry.find(f"{_ATOM}category"), entry.find(f"{_ATOM}link")
    form = "" if category is None else category.get("term", "").strip()
    if not form:
        raise SchemaDrift(f"{what}.category.term is missing")
    path = urlsplit("" if link is None else link.get("href", "")).path
    if not path.startswith("/Archives/edgar/data/"):
        raise SchemaDrift(f"{what}.link.href is not an address of a filing: {path[:80]!r}")
    summary = unescape(entry.findtext(f"{_ATOM}summary") or "")
    accepted = _instant(_atom(entry, "updated", what), f"{what}.updated")
    filed = _FILED.search(summary)
    return Filing(
        accession=accession[1],
        form=form,
        # a form that arrives in the evening is filed on the next day
        filed=_day(filed[1], "EDGAR's feed: Filed") if filed else accepted.date(),
        accepted=accepted,
        folder=path.rpartition("/")[0],
        parties=(Party(int(title["cik"]), title["name"].strip(), title["role"].strip()),),
        items={number: words.strip() for number, words in _ITEM.findall(summary)},
        dated=filed is not None,
    )


def _atom(node: Element, name: str, what: str) -> str:
    text = (node.findtext(f"{_ATOM}{name}") or "").strip()
    if not text:
        raise SchemaDrift(f"{what}.{name} is missing")
    return text


def _instant(text: str, what: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise SchemaDrift(f"{what} is not an instant: {text[:40]!r}")
    return instant


# -------------------------------------------------------------------------------------------------------------- Form 4


def read_ownership(body: bytes, what: str) -> Ownership:
    """Read a Form 3, 4 or 5 from its XML document, or from the whole submission around it.

    Raises:
        SchemaDrift: a field is missing or has another form; the message names the field.
        TransientError: it is an HTML page for people.
    """
    start = body.find(b"<ownershipDocument")
    end = body.find(b"</ownershipDocument>", start)
    if start < 0 or end < 0:
        _xml(body, what)  # raises a more precise error if it is a page or broken
        raise SchemaDrift(f"{what} has no ownershipDocument")
    root = _document(body[start : end + len(b"</ownershipDocument>")], what)
    owners = tuple(_owner(node, f"{what}: reportingOwner[{n}]") for n, node in enumerate(root.iter("reportingOwner")))
    if not owners:
        raise SchemaDrift(f"{what}: reportingOwner is missing")
    form = _need(root, "documentType", what)
    _check_tables(root, form, what)
    lines = root.iterfind("nonDerivativeTable/nonDerivativeTransaction")
    return Ownership(
        form=form,
        cik=_cik(root, "issuer/issuerCik", what),
        issuer=_need(root, "issuer/issuerName", what),
        symbol=symbol(_text(root, "issuer/issuerTradingSymbol", what)),
        planned=_flag(root, "aff10b5One", what),
        owners=owners,
        trades=tuple(_trade(node, f"{what}: nonDerivativeTransaction[{number}]") for number, node in enumerate(lines)),
    )


_TABLES: Final = {
    "nonDerivativeTable": {"nonDerivativeTransaction", "nonDerivativeHolding"},
    "derivativeTable": {"derivativeTransaction", "derivativeHolding"},
}


def _check_tables(root: Element, form: str, what: str) -> None:
    """Refuse a form whose tables, or their lines, have other names: it would look like one without any purchase."""
    tables = [node for node in root if node.tag.endswith("Table")]
    if form in {"4", "4/A"} and not tables:
        raise SchemaDrift(f"{what} has neither a nonDerivativeTable nor a derivativeTable")
    for table in tables:
        known = _TABLES.get(table.tag)
        odd = (
            table.tag
            if known is None
            else next((f"{table.tag}.{line.tag}" for line in table if line.tag not in known), "")
        )
        if odd:
            raise SchemaDrift(f"{what}.{odd} is not an element that Forms 4 used to have")


def _document(body: bytes, what: str) -> Element:
    """Return the root of a document that arrived complete, so that its errors are permanent."""
    try:
        body.decode()
    except UnicodeDecodeError:  # the declaration of the charset comes before the document
        body = body.decode("cp1252", errors="replace").encode()
    try:
        root = _xml(body, what)
    except TransientError as error:
        raise SchemaDrift(str(error)) from None
    for node in root.iter():  # some software declares a namespace
        node.tag = node.tag.rpartition("}")[2]
    return root


def symbol(text: str) -> str:
    """Return a symbol as it is usually written, `BRK.B` for `brk/b` or `NYSE: BRK-B`; empty if there is none."""
    head, _, tail = text.strip().upper().rpartition(":")
    place = head if tail.strip() in _EXCHANGES else tail
    words = (word.strip("()[].\"'$") for word in re.split(r"[,;\s]+", place))
    first = next((word for word in words if word not in _EXCHANGES), "")
    if first in _NO_SYMBOL:
        return ""
    for form in (first, first.partition("/")[0]):  # BRK/B is one share, MOG.A/MOG.B are two
        if _SYMBOL.fullmatch(found := re.sub(r"[/-]", ".", form)):
            return found
    return ""


_ROLES: Final = ("isOfficer", "isDirector", "isTenPercentOwner", "isOther")
_RELATIONSHIP: Final = {*_ROLES, "officerTitle", "otherText"}


def _owner(node: Element, what: str) -> Owner:
    """Read a reporting person.

    A role that does not apply may be missing, but at least one applies. Without that check, and that of the names, an
    officer whose flag has another name would lose the weight of an officer, and nobody would know.
    """
    role = "reportingOwnerRelationship"
    odd = next((child.tag for child in node.iterfind(f"{role}/*") if child.tag not in _RELATIONSHIP), "")
    if odd:
        raise SchemaDrift(f"{what}.{role}.{odd} is not an element that Forms 4 used to have")
    officer, director, large, other = (_flag(node, f"{role}/{name}", what) for name in _ROLES)
    if not (officer or director or large or other):
        raise SchemaDrift(f"{what}.{role}: none of {', '.join(_ROLES)} is true")
    titles = [node.findtext(f"{role}/officerTitle") or "", node.findtext(f"{role}/otherText") or "" if other else ""]
    return Owner(
        cik=_cik(node, "reportingOwnerId/rptOwnerCik", what),
        name=_need(node, "reportingOwnerId/rptOwnerName", what),
        officer=officer,
        director=director,
        large=large,
        title=next(filter(None, map(str.strip, titles)), ""),
    )


def _cik(node: Element, path: str, what: str) -> int:
    number = _need(node, path, what)
    if not re.fullmatch(r"[0-9]{1,10}", number):
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} is not a number: {number[:40]!r}")
    return int(number)


def _trade(node: Element, what: str) -> Trade:
    amounts = "transactionAmounts"
    code = _need(node, "transactionCoding/transactionCode", what)
    if not re.fullmatch(r"[A-Z]", code):
        raise SchemaDrift(f"{what}.transactionCoding.transactionCode is not a letter: {code[:40]!r}")
    came = _need(node, f"{amounts}/transactionAcquiredDisposedCode/value", what)
    if came not in {"A", "D"}:
        raise SchemaDrift(f"{what}.{amounts}.transactionAcquiredDisposedCode is neither A nor D: {came[:40]!r}")
    day = _need(node, "transactionDate/value", what)
    shares = _number(_need(node, f"{amounts}/transactionShares/value", what), f"{what}.transactionShares", _MAX_SHARES)
    path = f"{amounts}/transactionPricePerShare"
    price = None if code != "P" and node.find(path) is None else _price(node, path, what)  # a gift has none
    after = _plausible(node, shares, price or 0.0, what, came_in=came == "A") if code == "P" else None
    nature = (node.findtext("ownershipNature/directOrIndirectOwnership/value") or "D").strip()
    return Trade(code, shares, price, came == "A", _day(day, f"{what}.transactionDate"), nature != "I", after)


def _plausible(node: Element, shares: float, price: float, what: str, *, came_in: bool) -> float | None:
    """Check the numbers of a purchase against each other: a typing error must not become a candidate.

    Returns:
        The shares that are held afterwards, if the form says so.
    """
    if shares * price > _MAX_PAID:
        raise SchemaDrift(f"{what}: transactionShares x transactionPricePerShare is {shares * price:.3g} dollars")
    text = (node.findtext("postTransactionAmounts/sharesOwnedFollowingTransaction/value") or "").strip()
    after = _number(text, f"{what}.sharesOwnedFollowingTransaction", _MAX_OWNED) if text else None
    if came_in and after is not None and after < shares:
        raise SchemaDrift(f"{what}: transactionShares is {shares:g} and sharesOwnedFollowingTransaction {text}")
    return after


def _price(node: Element, path: str, what: str) -> float | None:
    price = node.find(path)
    if price is None:
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} is missing")
    value = (price.findtext("value") or "").strip()
    if not value:
        if price.find("footnoteId") is not None:
            return None
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} has neither a value nor a footnote")
    return _number(value, f"{what}.transactionPricePerShare", _MAX_PRICE)


def _day(text: str, what: str) -> date:
    """Return the day of a date; some dates end with a time zone."""
    found = _DAY.fullmatch(text)
    try:
        day = date.fromisoformat(found[1]) if found else None
    except ValueError:
        day = None
    if day is None:
        raise SchemaDrift(f"{what} is not a date: {text[:40]!r}")
    return day


def _number(text: str, what: str, most: float) -> float:
    if not re.fullmatch(r"([0-9]{1,15}(\.[0-9]{0,20})?|\.[0-9]{1,20})", text) or float(text) > most:
        raise SchemaDrift(f"{what} is not a number from 0 to {most:g}: {text[:40]!r}")
    return float(text)


def _flag(node: Element, path: str, what: str) -> bool:
    text = (node.findtext(path) or "").strip().lower()
    if text not in {"", "0", "1", "true", "false"}:
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} is neither true nor false: {text[:40]!r}")
    return text in {"1", "true"}


def _text(node: Element, path: str, what: str) -> str:
    found = node.find(path)
    if found is None:
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} is missing")
    return (found.text or "").strip()


def _need(node: Element, path: str, what: str) -> str:
    if not (text := _text(node, path, what)):
        raise SchemaDrift(f"{what}.{path.replace('/', '.')} is empty")
    return text


def _xml(body: bytes, what: str) -> Element:
    """Return a document's root; entity definitions, which could make it grow without end, are refused."""
    head = body[:500].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise TransientError(f"{what}: a page for people came instead; EDGAR may be in trouble, or base_url is wrong")
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise SchemaDrift(f"{what} defines entities of its own, which EDGAR's documents do not")
    try:
        return fromstring(body.strip())  # noqa: S314 - what could be dangerous is refused above
    except (ParseError, LookupError, ValueError) as error:  # incomplete, or in an unknown encoding
        raise TransientError(f"{what} is not complete XML: {error}") from None
