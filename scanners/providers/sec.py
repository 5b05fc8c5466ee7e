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

from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from resilient_scan import Limit, PermanentError, RetryAfter, ScanContext
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

_RATE_LIMIT_PAUSE: Final = 600.0  # seconds for which EDGAR blocks callers that exceed its rate limit


class Sec:
    """The client, which threads share. Get the one of this process from `client`."""

    def __init__(self, base_url: str, user_agent: str) -> None:
        headers = {"User-Agent": user_agent, "Accept-Encoding": "gzip, deflate"}
        self.base_url = base_url
        self._http = Client(base_url, headers=headers, timeout=15.0)

    def current(self, form: str, context: ScanContext, *, start: int = 0) -> Feed | None:
        """Return a page of the feed of filings whose form begins with `form`, or `None` past its end.

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
            return None
        return None if answer is None else read_feed(answer.body, context)

    def newest(self, form: str, days: int, pages: int, context: ScanContext) -> list[Filing]:
        """Return the filings of exactly this form, newest first, each once.

        Args:
            form: such as `4` or `8-K`.
            days: how old a filing may be, before the feed's own date.
            pages: of the feed that are read at most.
            context: the scan's.

        Raises:
            SchemaDrift, RetryAfter, TransientError, PermanentError: as in `current`.
        """
        found: dict[str, Filing] = {}
        for page in range(pages):
            feed = self.current(form, context, start=page * PAGE)
            if feed is None:
                break
            if not page and not feed.entries:
                context.doubt(f"EDGAR's feed of Forms {form} is empty")
            first = feed.updated.date() - timedelta(days=days)
            for filing in feed.filings:
                if filing.form == form and filing.filed >= first:
                    known = found.get(filing.accession)  # its parties may be on different pages
                    found[filing.accession] = filing if known is None else together(known, filing)
            if feed.entries < PAGE or any(filing.filed < first for filing in feed.filings):
                break
        return list(found.values())

    def ownership(self, filing: Filing, context: ScanContext) -> Ownership:
        """Return the document of a Form 3, 4 or 5.

        Raises:
            NotFound: there is no such filing (yet).
            SchemaDrift: it has another shape.
        """
        path = f"{filing.folder}/{filing.accession}.txt"
        answer = self._get(path, context)
        return read_ownership(answer.body if answer else b"", f"Form {filing.form} {filing.accession}")

    def tickers(self, context: ScanContext) -> dict[int, tuple[str, ...]]:
        """Return all symbols by company number, the main one first.

        Raises:
            SchemaDrift: the list has another shape.
        """
        answer = self._get("/files/company_tickers.json", context)
        return read_tickers(answer.json() if answer else None)

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
    """Return `Sec.tickers`, loaded once a day for all scanners; the arguments are those of `client`."""
    key = ("sec_tickers", base_url.rstrip("/"))
    return context.shared(key, lambda: client(base_url, context, setting=setting).tickers(context), ttl=86400)


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


def _company(row: Any, what: str) -> tuple[int, str]:
    if not isinstance(row, dict):
        raise SchemaDrift(f"{what} is not an object")
    cik, text = row.get("cik_str"), row.get("ticker")
    if isinstance(cik, bool) or not isinstance(cik, int) or not 0 < cik < 10**10:
        raise SchemaDrift(f"{what}.cik_str is not a company number: {str(cik)[:40]!r}")
    if not isinstance(text, str) or not text.strip():
        raise SchemaDrift(f"{what}.ticker is not a text: {str(text)[:40]!r}")
    return cik, text
