"""Call SEC EDGAR: the feed of current filings, the documents of Form 4, and the symbols of companies.

`GET /cgi-bin/browse-edgar?action=getcurrent&type=4&output=atom` is an Atom feed of the newest filings. `type` is a
prefix (4 also finds 424B2 and 485BPOS), and a filing is listed once for each party. `FOLDER/ACCESSION.txt` is a filing
as it was submitted; for Form 4, it contains one XML document. At most ten requests a second are allowed, with a
User-Agent that identifies the caller. Errors are pages and XML, never JSON:

    403, HTML   the User-Agent does not identify the caller; or, by its text, too many requests: ten minutes' pause
    403, XML    there is no such file
    404         there is no such company or page
    503, HTML   past the end of the feed; on its first page: trouble
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from resilient_scan import Limit, LimitExceeded, PermanentError, RetryAfter, ScanContext
from resilient_scan.http import Client, NotFound, Response, SchemaDrift, credential

from .sec_forms import Feed, Filing, Ownership, read_feed, read_ownership, symbol, together

LIVE: Final = "https://www.sec.gov"
HOST: Final = "www.sec.gov"
USER_AGENT: Final = "SEC_USER_AGENT"
PROVIDER: Final = "sec"
LIMIT: Final = Limit(PROVIDER, rate="10/s")
NEEDS: Final[Mapping[str, str]] = {"user_agent": USER_AGENT}
PAGE: Final = 100
"""Entries of a page of the feed: the maximum that EDGAR allows."""

Doubt = tuple[str, str]  # a kind, as `ScanContext.doubt` takes it, and the reason
_STALE: Final = timedelta(days=2)
_NO_TIME: Final = "there was no time for more"
_BUSY: Final = "the next page is HTTP 503"
_LONG: Final = 3000  # entries
_RATE_LIMIT_PAUSE: Final = 600.0  # seconds for which EDGAR blocks callers that exceed its rate limit


@dataclass(frozen=True, slots=True)
class Newest:
    """What was read of the feed.

    Attributes:
        filings: newest first, each once.
        updated: when the feed was made, by itself.
        pages: how many were read.
        cut: why reading ended too early; empty: all that was wanted was read.
        doubt: what is wrong with the feed itself, if anything is.
    """

    filings: tuple[Filing, ...]
    updated: datetime
    pages: int
    cut: str
    doubt: Doubt | None

    @property
    def doubts(self) -> list[Doubt]:
        """Return why the answer may not be whole."""
        unread = f"EDGAR's feed goes on after the {self.pages * PAGE} entries that were read: {self.cut}"
        undated = sum(not filing.dated for filing in self.filings)
        unsaid = f"{undated} of {len(self.filings)} filings of EDGAR's feed do not say when they were filed"
        found = [] if self.doubt is None else [self.doubt]
        if self.cut:
            found.append(("incomplete", unread))
        if undated:
            found.append(("incomplete", unsaid))
        return found


class Sec:
    """The client, which threads share. Get the one of this process from `client`."""

    def __init__(self, base_url: str, user_agent: str) -> None:
        self.base_url = base_url
        self._http = Client(base_url, headers={"User-Agent": user_agent}, timeout=15.0)

    def current(self, form: str, context: ScanContext, *, start: int = 0) -> Feed | None:
        """Return a page of the feed of filings whose form begins with `form`; `None`: HTTP 503, as past its end.

        Raises:
            SchemaDrift: the feed has another shape.
            RetryAfter, TransientError, PermanentError: as described at the top of this file.
        """
        query = {
            "action": "getcurrent", "count": PAGE, "start": start, "type": form, "owner": "include", "output": "atom",
        }  # fmt: skip
        try:
            answer = self._get("/cgi-bin/browse-edgar", context, query, beyond=start > 0)
        except NotFound:  # a recording ends as well
            if not start:
                raise
            return Feed(context.now, 0, ())
        return None if answer is None else read_feed(answer.body, context)

    def newest(
        self,
        forms: tuple[str, ...],
        days: int,
        pages: int,
        context: ScanContext,
        *,
        known: Callable[[Filing], bool] = lambda _: False,
        until: float = 0.0,
    ) -> Newest:
        """Read the feed from its newest entry on, until what is known, too old, or too much.

        Args:
            forms: exactly these, such as `8-K`; the first one is what EDGAR is asked for.
            days: how old a filing may be, before the feed's own date.
            pages: of the feed that are read at most.
            context: the scan's.
            known: whether the caller has seen a filing; reading ends with the page whose last filing it has. (Not with
                the first one: EDGAR may list a filing behind one that is a little newer.)
            until: no further page is read once only this many seconds are left.

        Raises:
            SchemaDrift, RetryAfter, TransientError, PermanentError: as in `current`.
        """
        found: dict[str, Filing] = {}
        updated, wrong, read, cut = context.now, None, 0, "max_pages allows no more"
        while read < pages:
            feed = self._page(forms[0], read, context, until)
            if isinstance(feed, str):
                cut = feed
                break
            read += 1
            if read == 1:
                updated, wrong = feed.updated, _doubt_of(feed, forms[0], context)
            first = updated.date() - timedelta(days=days)
            wanted = [filing for filing in feed.filings if filing.form in forms and filing.filed >= first]
            for filing in wanted:
                before = found.get(filing.accession)  # its parties may be on different pages
                found[filing.accession] = filing if before is None else together(before, filing)
            ends = feed.entries < PAGE or any(filing.filed < first for filing in feed.filings)
            if ends or (wanted and known(wanted[-1])):
                cut = ""
                break
        return Newest(tuple(found.values()), updated, read, cut, wrong)

    def _page(self, form: str, number: int, context: ScanContext, until: float) -> Feed | str:
        """Return a page of the feed; past its end `""`, or else why there is none.

        After a full page, a 503 is the feed's end only where EDGAR cuts it off, at about 5,000 entries.
        """
        if number and context.remaining() <= until:
            return _NO_TIME
        try:
            feed = self.current(form, context, start=number * PAGE)
        except LimitExceeded:
            if not number:
                raise
            return _NO_TIME
        return ("" if number * PAGE >= _LONG else _BUSY) if feed is None else feed

    def ownership(self, folder: str, accession: str, context: ScanContext) -> Ownership:
        """Return the document of a Form 3, 4 or 5, by its folder and its accession number.

        Raises:
            NotFound: there is no such filing (yet).
            SchemaDrift: it has another shape.
        """
        answer = self._get(f"{folder}/{accession}.txt", context)
        return read_ownership(answer.body if answer else b"", f"Form 4 {accession}")

    def tickers(self, context: ScanContext) -> dict[int, tuple[str, ...]]:
        """Return all symbols by company number, the main one first.

        Raises:
            SchemaDrift: the list has another shape.
        """
        return read_tickers(self.companies(context))

    def companies(self, context: ScanContext) -> Any:
        """Return EDGAR's list of companies as it came, for `read_tickers` and `read_titles`."""
        answer = self._get("/files/company_tickers.json", context)
        return answer.json() if answer else None

    def _get(
        self, path: str, context: ScanContext, query: Mapping[str, Any] | None = None, *, beyond: bool = False
    ) -> Response | None:
        answer = self._http.get(path, query, context=context, accept=(403, 404, 429, *((503,) if beyond else ())))
        if beyond and answer.status == 503 and (wait := answer.retry_after(context.now)) is not None:
            raise RetryAfter(wait, f"{answer.url}: HTTP {answer.status}; EDGAR asks to wait {wait:g}s")
        if beyond and answer.status == 503:
            return None
        if answer.status != 200:
            _refuse(answer, context)
        return answer


@lru_cache(maxsize=16)
def _client(base_url: str, user_agent: str) -> Sec:
    return Sec(base_url, user_agent)


def client(base_url: str, context: ScanContext, *, setting: str = "user_agent") -> Sec:
    """Return the client for an address; all scanners of a process with the same User-Agent share its connections.

    Args:
        base_url: the address of EDGAR.
        context: the context of the scan.
        setting: which of the scanner's settings is the User-Agent.

    Raises:
        ConfigError: there is no User-Agent, and the address is EDGAR's own.
    """
    strict = (urlsplit(base_url).hostname or "").endswith("sec.gov")
    said = credential(context, setting, USER_AGENT) if strict else context.settings.get(setting)
    return _client(base_url.rstrip("/"), str(said or "resilient_scan"))


def universe(base_url: str, context: ScanContext, *, setting: str = "user_agent") -> dict[int, tuple[str, ...]]:
    """Return the symbols of all companies by their number; the arguments are those of `client`."""
    return _lists(base_url, context, setting)[0]


def titles(base_url: str, context: ScanContext, *, setting: str = "user_agent") -> dict[str, str]:
    """Return the names of all companies by their symbols; the arguments are those of `client`."""
    return _lists(base_url, context, setting)[1]


def _lists(base_url: str, context: ScanContext, setting: str) -> tuple[dict[int, tuple[str, ...]], dict[str, str]]:
    """Return what EDGAR's list of companies says, loaded once a day for all scanners."""

    def load() -> tuple[dict[int, tuple[str, ...]], dict[str, str]]:
        data = client(base_url, context, setting=setting).companies(context)
        return read_tickers(data), read_titles(data)

    return context.shared(("sec_tickers", base_url.rstrip("/")), load, ttl=86400)


def doubt(context: ScanContext, doubts: Sequence[Doubt]) -> None:
    """Mark an answer as suspicious for all these reasons, of the kind of the first, if there are any."""
    if doubts:
        context.doubt("; ".join(reason for _, reason in doubts), kind=doubts[0][0])


def _doubt_of(feed: Feed, form: str, context: ScanContext) -> Doubt | None:
    """Return what is wrong with a feed that came whole; EDGAR makes it afresh every few minutes, also on Sundays."""
    if not feed.entries:
        return "empty", f"EDGAR's feed of Forms {form} is empty"
    if context.now - feed.updated > _STALE:
        return "stale", f"EDGAR's feed of Forms {form} is of {feed.updated.date()}; nothing newer came"
    return None


def _refuse(answer: Response, context: ScanContext) -> NoReturn:
    """Raise the error that a response without data stands for."""
    said = f"{answer.url}: HTTP {answer.status}"
    page = answer.text
    if answer.status == 429 or "Request Rate Threshold Exceeded" in page:
        wait = answer.retry_after(context.now)
        raise RetryAfter(_RATE_LIMIT_PAUSE if wait is None else wait, f"{said}; more than 10 requests in a second")
    if "Undeclared Automated Tool" in page:
        raise PermanentError(
            f"{said}; EDGAR wants to know who asks: set user_agent or {USER_AGENT} to a name and an e-mail address"
        )
    if answer.status == 404 or "<Code>" in page:
        raise NotFound(f"{said}; EDGAR has no such file or company")
    raise PermanentError(f"{said}; EDGAR refuses to answer; check user_agent, and whether this network is blocked")


def read_tickers(data: Any) -> dict[int, tuple[str, ...]]:
    """Return the symbols by company number, from `{"0": {"cik_str", "ticker", "title"}, ...}`.

    Raises:
        SchemaDrift: it has another shape; the message names the field.
    """
    if not isinstance(data, dict) or not data:
        raise SchemaDrift("EDGAR's company_tickers is not an object with companies")
    found: dict[int, tuple[str, ...]] = {}
    for key, row in data.items():
        cik, text = _company(row, f"EDGAR's company_tickers[{key}]")
        if name := symbol(text):
            found[cik] = (*found.get(cik, ()), name)
    return found


def read_titles(data: dict[str, Any]) -> dict[str, str]:
    """Return the companies' names by symbol, from data that `read_tickers` has read; the first of two counts.

    Raises:
        SchemaDrift: a company has no name.
    """
    found: dict[str, str] = {}
    for key, row in data.items():
        title = row.get("title")
        if not isinstance(title, str) or not title.strip():
            raise SchemaDrift(f"EDGAR's company_tickers[{key}].title is not a text: {str(title)[:40]!r}")
        if name := symbol(row["ticker"]):
            found.setdefault(name, title)
    return found


def _company(row: Any, what: str) -> tuple[int, str]:
    if not isinstance(row, dict):
        raise SchemaDrift(f"{what} is not an object")
    cik, text = row.get("cik_str"), row.get("ticker")
    if isinstance(cik, bool) or not isinstance(cik, int) or not 0 < cik < 10**10:
        raise SchemaDrift(f"{what}.cik_str is not a company number: {str(cik)[:40]!r}")
    if not isinstance(text, str) or not text.strip():
        raise SchemaDrift(f"{what}.ticker is not a text: {str(text)[:40]!r}")
    return cik, text
