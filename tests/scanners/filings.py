"""EDGAR's answers, made by hand: feeds, Forms 4, and a server that gives them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.scanners.recorded import RecordedServer

UPDATED = "2026-03-04T18:30:00-05:00"
COMPANIES = {
    "0": {"cik_str": 111, "ticker": "ACME", "title": "Acme Corp"},
    "1": {"cik_str": 222, "ticker": "BOLT-B", "title": "Bolt Inc"},
    "2": {"cik_str": 222, "ticker": "BOLT-A", "title": "Bolt Inc"},
}


def number(count: int) -> str:
    """Return the `count`-th accession number."""
    return f"0000000000-26-{count:06d}"


def entry(
    count: int,
    *,
    form: str = "4",
    name: str = "Acme Corp",
    cik: int = 111,
    role: str = "Issuer",
    filed: str = "2026-03-04",
    items: str = "",
    at: str = "17:00:00",
) -> str:
    """Return one entry of the feed, accepted on the day on which it was filed."""
    accession = number(count)
    path = f"/Archives/edgar/data/{cik}/{accession.replace('-', '')}/{accession}-index.htm"
    said = "".join(f"&lt;br&gt;{line}\n" for line in items.splitlines())
    return f"""<entry>
<title>{form} - {name} ({cik:010d}) ({role})</title>
<link rel="alternate" type="text/html" href="https://www.sec.gov{path}"/>
<summary type="html">&lt;b&gt;Filed:&lt;/b&gt; {filed} &lt;b&gt;AccNo:&lt;/b&gt; {accession} {said}</summary>
<updated>{filed}T{at}-05:00</updated>
<category scheme="https://www.sec.gov/" label="form type" term="{form}"/>
<id>urn:tag:sec.gov,2008:accession-number={accession}</id>
</entry>
"""


def feed(entries: Iterable[str], updated: str = UPDATED) -> bytes:
    """Return a page of the feed."""
    head = '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
    return f"{head}<title>Latest</title><updated>{updated}</updated>{''.join(entries)}</feed>".encode("latin-1")


def line(
    code: str = "P",
    shares: object = 1000,
    price: object = 50,
    *,
    came: str = "A",
    day: str = "2026-03-03",
    kind: str = "nonDerivative",
    after: object = "",
    held: str = "D",
) -> str:
    """Return one line of a form; a price of `None` is a footnote."""
    cost = '<footnoteId id="F1"/>' if price is None else f"<value>{price}</value>"
    return f"""<{kind}Transaction>
<securityTitle><value>Common Stock</value></securityTitle><transactionDate><value>{day}</value></transactionDate>
<transactionCoding><transactionFormType>4</transactionFormType><transactionCode>{code}</transactionCode></transactionCoding>
<transactionAmounts><transactionShares><value>{shares}</value></transactionShares>
<transactionPricePerShare>{cost}</transactionPricePerShare>
<transactionAcquiredDisposedCode><value>{came}</value></transactionAcquiredDisposedCode></transactionAmounts>
<postTransactionAmounts><sharesOwnedFollowingTransaction><value>{after}</value></sharesOwnedFollowingTransaction>
</postTransactionAmounts><ownershipNature><directOrIndirectOwnership><value>{held}</value></directOrIndirectOwnership>
</ownershipNature></{kind}Transaction>"""


def owner(cik: int = 1, name: str = "Doe Jane", *, officer: str = "0", director: str = "1", title: str = "") -> str:
    """Return one reporting person; who is neither an officer nor a director is a large owner."""
    large = int(officer == director == "0")
    return f"""<reportingOwner>
<reportingOwnerId><rptOwnerCik>{cik:010d}</rptOwnerCik><rptOwnerName>{name}</rptOwnerName></reportingOwnerId>
<reportingOwnerRelationship><isDirector>{director}</isDirector><isOfficer>{officer}</isOfficer>
<isTenPercentOwner>{large}</isTenPercentOwner><officerTitle>{title}</officerTitle></reportingOwnerRelationship></reportingOwner>"""


def form4(
    lines: Sequence[str],
    owners: str = "",
    *,
    symbol: str = "ACME",
    issuer: str = "Acme Corp",
    form: str = "4",
    derivatives: Sequence[str] = (),
    planned: str = "0",
    cik: int = 111,
) -> bytes:
    """Return the XML document of a form."""
    return f"""<?xml version="1.0"?>
<ownershipDocument><schemaVersion>X0508</schemaVersion><documentType>{form}</documentType>
<issuer><issuerCik>{cik:010d}</issuerCik><issuerName>{issuer}</issuerName>
<issuerTradingSymbol>{symbol}</issuerTradingSymbol></issuer>{owners or owner()}<aff10b5One>{planned}</aff10b5One>
<nonDerivativeTable>{"".join(lines)}</nonDerivativeTable>
<derivativeTable>{"".join(derivatives)}</derivativeTable></ownershipDocument>""".encode()


def submission(document: bytes) -> bytes:
    """Return the whole submission around a document, as `ACCESSION.txt` has it."""
    head = b"<SEC-DOCUMENT>x.txt : 20260304\n<SEC-HEADER>...</SEC-HEADER>\n<DOCUMENT>\n<TYPE>4\n<TEXT>\n<XML>\n"
    return head + document + b"\n</XML>\n</TEXT>\n</DOCUMENT>\n</SEC-DOCUMENT>\n"


def edgar(
    pages: Sequence[bytes], documents: Mapping[int, bytes] | None = None, companies: Mapping[str, Any] = COMPANIES
) -> RecordedServer:
    """Return a server of these pages of the feed, and of the documents by the count of their accession numbers."""
    past = (503, {"content-type": "text/html"}, b"<!DOCTYPE html><html>unavailable</html>")
    xml = {"content-type": "application/atom+xml"}
    texts = {number(count): submission(document) for count, document in (documents or {}).items()}

    def page(asked: Any) -> Any:
        index = int(asked.query.get("start", 0)) // 100
        return (200, xml, pages[index]) if index < len(pages) else past

    def document(asked: Any) -> Any:
        found = texts.get(asked.path.rpartition("/")[2].removesuffix(".txt"))
        missing = (403, {"content-type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        return missing if found is None else (200, {"content-type": "text/plain"}, found)

    return RecordedServer(
        {
            "/cgi-bin/browse-edgar": page,
            "/Archives/*": document,
            "/files/company_tickers.json": (200, {"content-type": "application/json"}, json.dumps(companies).encode()),
        },
        manifest=False,
    )
