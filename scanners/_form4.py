"""Read Forms 4 step by step: what is new in EDGAR's feed, and what earlier scans had no time for.

A day brings about 1,000 Forms 4, each a document of its own, and EDGAR allows ten requests a second. So a first scan
cannot read them all, and later ones need not. What is known is remembered (`ScanContext.remember`):

    read      numbers of the forms that were read; the feed is read until it comes to them
    waiting   forms of the feed that no scan has had time for yet, newest first
    reports   what the forms that were read say, as far as it may count: purchases, and amendments

Companies are read one by one, newest filing first, all forms of a company together. Then its candidate can be yielded,
and is not lost if the time runs out. None is yielded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import msgspec

from resilient_scan import LimitExceeded, ScanContext
from resilient_scan.http import NotFound, SchemaDrift

from ._asof import THIS_WEEK
from .providers.reading import TOLERATED
from .providers.sec import Doubt, Newest, Sec
from .providers.sec_forms import Filing, Owner, Ownership, Trade

TOOL: Final = "sec_form4"
FORMS: Final = ("4", "4/A")
BATCH: Final = 16  # documents that are read before what they say is yielded and remembered
CONCURRENCY: Final = 4
RESERVE: Final = 0.1  # of the time: when no more is left, no further documents are begun
MAX_RESERVE: Final = 5.0  # seconds; a batch of documents takes 2 at EDGAR's rate
SLACK: Final = 1.5  # times what the last batch took has to be left for the next one
FOR_PAGES: Final = 0.5  # of the time, for the pages of the feed
MAX_TRIES: Final = 3  # a document may appear later than its entry in the feed; then it is given up
MAX_READ: Final = 6000  # numbers that are remembered: more than the feed has
UNREAD: Final = "could not be read"
Document = Ownership | NotFound | SchemaDrift | LimitExceeded


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


class Waiting(msgspec.Struct, frozen=True):
    """A form whose document is not read yet; `issuer` is a company number, 0 if the feed did not say."""

    accession: str
    accepted: datetime
    filed: date
    folder: str
    issuer: int
    tries: int = 0


class Report(msgspec.Struct, frozen=True):
    """What one form says, as far as it may count.

    Attributes:
        issuer: the company's number.
        people: the numbers of the persons that filed it together.
        amended: for an amendment, the days about which it says something else than the form that it amends.
        purchases: the lines of table I with code P and a price.
    """

    accession: str
    accepted: datetime
    filed: date
    issuer: int
    symbol: str
    people: frozenset[int]
    amended: tuple[date, ...]
    purchases: tuple[Purchase, ...]


class Known(msgspec.Struct):
    """What is remembered from scan to scan; `gap`: the feed had entries between those that were read and older ones."""

    read: list[int] = []
    waiting: list[Waiting] = []
    reports: list[Report] = []
    gap: bool = False


class Forms:
    """The Forms 4 that one scan knows.

    Args:
        client: EDGAR.
        days: how old a form may be, before the feed's own date.
        pages: of the feed that are read at most.
        context: the scan's.
        report: makes the report of a form; `None` if nothing of it may count.

    Attributes:
        feed: what was read of the feed.
        reports: of all forms that are known so far, the newest first.
        doubts: why the answer may not be whole.
        counts: how many forms there were, and what became of them, for the tool log.
    """

    def __init__(
        self,
        client: Sec,
        days: int,
        pages: int,
        context: ScanContext,
        report: Callable[[Waiting, Ownership], Report | None],
    ) -> None:
        self._client = client
        self._context = context
        self._report = report
        self._key = f"forms of {client.base_url}"
        self._ttl = (days + THIS_WEEK.days + 1) * 86400.0
        self._reserve = min(MAX_RESERVE, RESERVE * context.remaining())
        known = context.recall(self._key, Known) or Known()
        self._read = dict.fromkeys(known.read)
        self.before = len(known.read)
        waiting = {each.accession: each for each in known.waiting}
        numbers = {number_of(accession) for accession in waiting} | self._read.keys()
        self.feed: Newest = client.newest(
            FORMS,
            days + THIS_WEEK.days,  # a scan may be about a day of this week
            pages,
            context,
            known=lambda filing: not known.gap and number_of(filing.accession) in numbers,
            until=context.remaining() * FOR_PAGES,
        )
        self._gap = bool(self.feed.cut)
        first = self.feed.updated.date() - timedelta(days=days) - THIS_WEEK
        fresh = {filing.accession: _waiting(filing) for filing in self.feed.filings}
        self._waiting = {
            accession: each
            for accession, each in {**fresh, **waiting}.items()
            if each.filed >= first and number_of(accession) not in self._read
        }
        self.reports: list[Report] = [each for each in known.reports if each.filed >= first]
        self.doubts: list[Doubt] = self.feed.doubts
        self.counts: dict[str, int] = {}

    def busy(self, wanted: Callable[[int], bool]) -> set[int]:
        """Return the companies of which forms are still to be read; 0 stands for any."""
        return {each.issuer for each in self._waiting.values() if wanted(each.issuer)}

    def read(self, wanted: Callable[[int], bool]) -> Iterator[None]:
        """Read the forms that wait, and pause after each few of them, when `reports` and `busy` have changed.

        Args:
            wanted: whether a company's forms are to be read.

        Raises:
            SchemaDrift: too many of them (`TOLERATED`) have another shape.
            NotFound: there is none of them.
        """
        todo = [each for each in self._waiting.values() if wanted(each.issuer)]
        failed: list[NotFound | SchemaDrift] = []
        tried, allowed, needed = 0, TOLERATED * (self.before + len(todo)), self._reserve
        yield  # for the companies of which there is nothing new
        for batch in _batches(todo):
            if (left := self._context.remaining()) <= needed:
                break
            documents = self._context.map(self._document, batch, concurrency=CONCURRENCY)
            needed = max(self._reserve, SLACK * (left - self._context.remaining()))
            read = [pair for pair in zip(batch, documents, strict=True) if not isinstance(pair[1], LimitExceeded)]
            tried += len(read)
            failed += [error for error in (self._settle(*pair) for pair in read) if error is not None]
            broken = [error for error in failed if isinstance(error, SchemaDrift)]
            if len(broken) > allowed:
                raise broken[0]
            self._remember()
            yield
            if len(read) < len(batch):
                break
        self._remember()
        self._conclude(todo, tried, failed)

    def _conclude(self, todo: Sequence[Waiting], tried: int, failed: Sequence[NotFound | SchemaDrift]) -> None:
        if tried and len(failed) == tried and not self.before:
            raise failed[0]
        if len(failed) > TOLERATED * tried:
            broken = sum(isinstance(error, SchemaDrift) for error in failed)
            kind = "malformed" if 2 * broken > len(failed) else "missing"
            reason = f"{len(failed)} of {tried} Forms 4 {UNREAD}, most are {kind}; see the tool log"
            self.doubts.append(("incomplete", reason))
        if tried < len(todo):
            reason = (
                f"{len(todo) - tried} of {self.before + len(todo)} Forms 4 are not read yet: there was no time; the "
                "next scan goes on with them"
            )
            self.doubts.append(("incomplete", reason))
        self.counts = {
            "pages": self.feed.pages,
            "known_before": self.before,
            "filings": len(todo),
            "unreadable": len(failed),
            "unread": len(todo) - tried,
        }

    def _document(self, each: Waiting) -> Document:
        """Return a form's document, or the error if it cannot be had, so that the other forms still count."""
        try:
            return self._client.ownership(each.folder, each.accession, self._context)
        except (NotFound, SchemaDrift, LimitExceeded) as error:
            self._context.log(TOOL, accession=each.accession, left_out=str(error))
            return error

    def _settle(self, each: Waiting, document: Document) -> NotFound | SchemaDrift | None:
        """Take over what was read, or return the error; then the form waits for another scan."""
        if isinstance(document, NotFound | SchemaDrift):
            self._put_off(each, document)
            return document
        self._done(each)
        if isinstance(document, Ownership) and (report := self._report(each, document)) is not None:
            self.reports.append(report)
        return None

    def _done(self, each: Waiting) -> None:
        self._waiting.pop(each.accession, None)
        self._read[number_of(each.accession)] = None

    def _put_off(self, each: Waiting, error: NotFound | SchemaDrift) -> None:
        """Try a document again in the next scan, but not for ever."""
        if each.tries + 1 < MAX_TRIES:
            self._waiting[each.accession] = msgspec.structs.replace(each, tries=each.tries + 1)
        else:
            self._context.log(TOOL, accession=each.accession, left_out=f"given up after {MAX_TRIES} scans: {error}")
            self._done(each)

    def _remember(self) -> None:
        known = Known(list(self._read)[-MAX_READ:], list(self._waiting.values()), self.reports, self._gap)
        self._context.remember(self._key, known, ttl=self._ttl)


def number_of(accession: str) -> int:
    """Return an accession number as a number, which takes less room."""
    return int(accession.replace("-", ""))


def in_order(reports: Iterable[Report]) -> list[Report]:
    """Return reports newest first, in whatever order they were read."""
    return sorted(reports, key=lambda report: (-report.accepted.timestamp(), report.accession))


def _waiting(filing: Filing) -> Waiting:
    return Waiting(filing.accession, filing.accepted, filing.filed, filing.folder, filing.issuer)


def _batches(todo: Iterable[Waiting]) -> Iterator[list[Waiting]]:
    """Yield the forms of whole companies together, a batch or a little more at a time.

    Forms whose company is not known come first: each may be any company's.
    """
    unknown: list[Waiting] = []
    companies: dict[int, list[Waiting]] = {}
    for each in todo:
        (companies.setdefault(each.issuer, []) if each.issuer else unknown).append(each)
    batch: list[Waiting] = []
    for group in (*([each] for each in unknown), *companies.values()):
        batch += group
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
