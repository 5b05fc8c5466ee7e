"""`insider_buying`: the rule on forms made by hand, and on real ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ConfigError, PermanentError, RetryAfter, ScanContext, ScanError
from resilient_scan.http import NotFound, SchemaDrift, TransientError
from resilient_scan_scanners.insider_buying import insider_buying
from resilient_scan_scanners.providers.sec import Sec, read_tickers
from resilient_scan_scanners.providers.sec_forms import read_feed, read_ownership, symbol
from tests.scanners.charts import scan
from tests.scanners.filings import COMPANIES, edgar, entry, feed, form4, line, number, owner, submission
from tests.scanners.providers import context_at
from tests.scanners.recorded import Answer, RecordedServer, body

FORMS = "sec/form4"
MVIS = f"{FORMS}/MVIS_2026-06-08_P_0001493152-26-028198.xml"
AREC = f"{FORMS}/AREC_2024-07-19_P_tz-suffix-date.xml"
FEED_2025 = ("sec/current_feed/getcurrent_type4_start0.atom", "sec/current_feed/getcurrent_type4_start100.atom")
FEED_2026 = "sec/current_feed/getcurrent_2026-06-11.atom"


def found(documents: Sequence[bytes], **numbers: Any) -> list[Candidate]:
    """Run the scanner on one filing for each document."""
    with edgar([feed(entry(count) for count in range(len(documents)))], dict(enumerate(documents))) as server:
        return scan(insider_buying, {}, base_url=server.url, **numbers)[0]


# ------------------------------------------------------------------------------------------------------------ the rule


def test_a_purchase_is_told_with_all_its_numbers() -> None:
    lines = [line(shares=1500, price=40, day="2026-03-02"), line(shares="500.5", price="100.00", day="2026-03-03")]
    (buying,) = found([form4(lines, owner(7, "Roe Ann", officer="1", title="CFO"))])
    assert (buying.ticker, buying.source, buying.priority) == ("ACME", "insider_buying", "medium")
    assert buying.context == (
        "Roe Ann (CFO) of Acme Corp bought 2,000 shares for 110,050 USD in the market, from 2026-03-02 to 2026-03-03"
    )
    assert buying.extras == {
        "value": 110_050.0,  # 1500 x 40 + 500.5 x 100
        "weighted_value": 220_100.0,
        "shares": 2000.5,
        "price": 55.0112,
        "insiders": 1,
        "officers": 1,
        "names": ["Roe Ann"],
        "filings": [number(0)],
        "last_day": "2026-03-03",
    }


@pytest.mark.parametrize(("price", "count"), [("99.99", 0), ("100", 1)])
def test_the_sum_must_reach_the_smallest_value(price: str, count: int) -> None:
    assert len(found([form4([line(shares=1000, price=price)])])) == count
    assert len(found([form4([line(shares=1000, price=price)])], min_value=99_000)) == 1


@pytest.mark.parametrize(
    "document",
    [
        form4([line("S", 9000, 50, came="D"), line("A", 9000, 50), line("M", 9000, 50), line("X", 9000, 50)]),
        form4([line("P", 9000, "0.00"), line("P", 9000, None)]),  # vested shares; a price that only a footnote tells
        form4([], derivatives=[line("P", 9000, 50, kind="derivative")]),
        form4([line("P", 9000, 50)], symbol="NONE"),
        form4([line("P", 9000, 50)], form="5"),
        form4([]),
    ],
    ids=["other codes", "no price", "derivatives", "not listed", "another form", "no lines"],
)
def test_what_is_no_purchase_in_the_market_gives_nothing(document: bytes) -> None:
    assert found([document]) == []


def test_an_officers_money_counts_double_in_the_priority() -> None:
    director, officer = (
        form4([line(shares=6000, price=50)]),
        form4([line(shares=6000, price=50)], owner(officer="true")),
    )
    assert [found([document])[0].priority for document in (director, officer)] == ["medium", "high"]
    assert found([officer], officer_weight=1)[0].priority == "medium"
    assert found([form4([line(shares=10_000, price=50)])])[0].priority == "high"


def test_three_insiders_are_a_cluster_and_joint_filers_are_one() -> None:
    three = [form4([line(shares=1000 + n, price=40)], owner(n, f"Person {n}")) for n in (1, 2, 3)]
    (buying,) = found(three)
    assert (buying.priority, buying.extras["insiders"], buying.extras["value"]) == ("critical", 3, 120_240.0)
    assert buying.context.startswith("3 insiders of Acme Corp bought 3,006 shares")
    assert found(three[:2]) == []  # 80,120 USD
    joint = form4(
        [line(shares=3000, price=40)], owner(1, "Fund") + owner(2, "Partner") + owner(3, "Chief", officer="1")
    )
    (buying,) = found([joint])
    assert (buying.priority, buying.extras["insiders"], buying.extras["names"]) == ("medium", 1, ["Chief"])
    assert found(three, cluster=4)[0].priority == "medium"


def test_a_line_that_is_reported_twice_counts_once() -> None:
    document = form4([line(shares=1000, price=60), line(shares=1000, price=60)])  # two lines of one form are two
    (buying,) = found([document, document])
    assert (buying.extras["value"], buying.extras["filings"]) == (120_000.0, [number(0)])


def test_a_purchase_that_says_it_is_a_disposal_is_doubted() -> None:
    (buying,) = found([form4([line(shares=9000, price=50, came="D")])])
    assert buying.priority == "low"
    assert buying.context.endswith("; but the form marks the shares as disposed of")
    (buying,) = found([form4([line(shares=9000, price=50, came="D"), line(shares=3000, price=50)])])
    assert (buying.priority, buying.extras["value"]) == ("medium", 150_000.0)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"shares": 2000, "price": 60, "after": 1999}, "transactionShares is 2000 and sharesOwnedFollowing.* 1999"),
        ({"shares": 10**6, "price": 10**5}, r"is 1e\+11 dollars"),
        ({"shares": 10**11, "price": 1}, r"transactionShares is not a number from 0 to 1e\+10: '100000000000'"),
        ({"price": 10**8}, "transactionPricePerShare is not a number"),
        ({"price": -1}, "transactionPricePerShare is not a number"),
        ({"price": ""}, "has neither a value nor a footnote"),
        ({"came": "X"}, "neither A nor D"),
        ({"day": "2026-02-30"}, "transactionDate is not a date: '2026-02-30'"),
        ({"day": "03/03/2026"}, "transactionDate is not a date"),
    ],
)
def test_numbers_that_cannot_be_are_an_error_that_names_the_field(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaDrift, match=words):
        found([form4([line(**numbers)])])


def test_each_company_is_a_candidate_of_its_own_in_the_feeds_order() -> None:
    documents = [
        form4([line(shares=9000, price=50)], symbol=name, issuer=name) for name in ("BRK/B", "nyse: acme", "X")
    ]
    assert [each.ticker for each in found(documents)] == ["BRK.B", "ACME", "X"]


# ------------------------------------------------------------------------------------------------------------ the feed


def test_a_filing_is_one_however_many_parties_it_is_listed_under() -> None:
    entries = [
        entry(1, name="Doe (Jr.) - Jane", cik=9, role="Reporting"),
        entry(1),
        entry(2, form="424B2"),
        entry(3, form="4/A"),
    ]
    documents = {1: form4([line(shares=9000, price=50)]), 3: form4([], form="4/A")}
    with edgar([feed(entries)], documents) as server:
        (buying,), log = scan(insider_buying, {}, base_url=server.url, user_agent="Jane Doe jane@example.com")
    assert buying.extras["value"] == 450_000.0
    assert len(server.asked) == 3
    assert server.asked[0].query == {
        "action": "getcurrent", "count": "100", "start": "0", "type": "4", "owner": "include", "output": "atom",
    }  # fmt: skip
    assert f"/Archives/edgar/data/9/{number(1).replace('-', '')}/{number(1)}.txt" in server.paths()
    assert {each.headers["user-agent"] for each in server.asked} == {"Jane Doe jane@example.com"}
    assert (log[-1]["filings"], log[-1]["purchases"]) == (2, 1)


def test_pages_are_read_until_the_feed_ends_gets_old_or_there_are_enough() -> None:
    full = [feed(entry(100 * page + count) for count in range(100)) for page in range(3)]
    documents = {count: form4([]) for count in range(300)}
    for pages, options, starts in (
        (full, {}, ["0", "100", "200", "300"]),
        (full, {"max_pages": 2}, ["0", "100"]),
        ([full[0], feed([entry(100)])], {}, ["0", "100"]),
        ([feed([*(entry(n) for n in range(99)), entry(99, filed="2026-02-01")]), full[1]], {}, ["0"]),
    ):
        with edgar(pages, documents) as server:
            assert scan(insider_buying, {}, seconds=60, base_url=server.url, **options)[0] == []
        asked = [each.query["start"] for each in server.asked if "start" in each.query]
        assert asked == starts


@pytest.mark.parametrize(("filed", "count"), [("2026-02-18", 1), ("2026-02-17", 0)])
def test_a_filing_must_be_young_enough_by_the_feeds_own_date(filed: str, count: int) -> None:
    with edgar([feed([entry(1, filed=filed)])], {1: form4([line(shares=9000, price=50, day=filed)])}) as server:
        assert len(scan(insider_buying, {}, base_url=server.url)[0]) == count
        assert len(scan(insider_buying, {}, base_url=server.url, lookback_days=30)[0]) == 1


def test_a_document_that_cannot_be_read_costs_the_others_nothing() -> None:
    good = form4([line(shares=9000, price=50)])
    documents = {0: good.replace(b"<transactionCode>P<", b"<transactionCode>?<"), **dict.fromkeys(range(1, 4), good)}
    field = r"nonDerivativeTransaction\[0\]\.transactionCoding\.transactionCode"
    bad = documents | {1: documents[0]}
    with edgar([feed(map(entry, range(5)))], bad) as server, pytest.raises(SchemaDrift, match=field):
        scan(insider_buying, {}, base_url=server.url)  # 2 unreadable and 1 missing of 5
    documents |= {4: good}
    with edgar([feed(entry(count) for count in range(5))], documents) as server:
        (buying,), log = scan(insider_buying, {}, base_url=server.url)
    assert buying.extras["value"] == 450_000.0
    assert log[-1]["unreadable"] == 1
    assert any("transactionCode is not a letter: '?'" in each.get("left_out", "") for each in log)


def test_a_form_is_read_in_an_old_charset_and_one_that_is_broken_costs_the_others_nothing() -> None:
    name = "Société".encode("cp1252")
    old = form4([line(shares=3000, price=40)]).replace(b"Acme Corp", name)
    assert found([old])[0].context.startswith("Doe Jane (director) of Société bought")
    assert found([submission(old) + submission(form4([line("S")]))])[0].extras["value"] == 120_000.0
    broken = old.replace(b"<issuer>", b"<issuer>&nbsp;")
    assert found([broken, *[old] * 4])[0].extras["filings"] == [number(1)]
    with pytest.raises(SchemaDrift, match="is not complete XML"):
        read_ownership(broken, "a form")


@pytest.mark.parametrize(("price", "value"), [(".5", 0.5), ("5.", 5.0), ("5.12345678901234", 5.12345678901234)])
def test_numbers_are_written_as_xml_allows(price: str, value: float) -> None:
    assert read_ownership(form4([line(price=price)]), "a form").trades[0].price == value


def test_an_entry_of_the_feed_that_cannot_be_read_costs_the_others_nothing() -> None:
    strange = entry(4).replace("4 - Acme Corp", "Acme Corp")
    good = form4([line(shares=9000, price=50)])
    with edgar([feed([*map(entry, range(4)), strange])], dict.fromkeys(range(5), good)) as server:
        (buying,), log = scan(insider_buying, {}, base_url=server.url)
    assert buying.extras["filings"] == [number(0)]
    assert "EDGAR's feed: entry[4].title is not 'FORM - NAME (NUMBER) (ROLE)'" in log[0]["left_out"]
    few = feed([*map(entry, range(3)), strange])
    with edgar([few]) as server, pytest.raises(SchemaDrift, match=r"entry\[3\]\.title"):
        scan(insider_buying, {}, base_url=server.url)


def test_a_gift_beside_a_purchase_needs_no_price() -> None:
    price = "<transactionPricePerShare><value>50</value></transactionPricePerShare>"
    gift = line("G", came="D").replace(price, "")
    assert found([form4([gift, line(shares=9000, price=50)])])[0].extras["value"] == 450_000.0
    with pytest.raises(SchemaDrift, match=r"transactionAmounts\.transactionPricePerShare is missing"):
        read_ownership(form4([line().replace(price, "")]), "a form")


def test_a_form_may_declare_a_namespace() -> None:
    good = form4([line(shares=9000, price=50)])
    named = good.replace(b"<ownershipDocument>", b'<ownershipDocument xmlns="http://www.sec.gov/edgar/ownership">')
    assert found([named])[0].extras["value"] == 450_000.0


def test_a_feed_may_end_with_a_404_but_not_begin_with_it() -> None:
    full = (200, {}, feed(entry(count) for count in range(100)))
    document = (200, {}, form4([line(shares=9000, price=50)]))
    pages = {"0": full, "100": (404, {}, b"gone")}
    answers = {"/cgi-bin/*": lambda asked: pages[asked.query["start"]], "/Archives/*": document}
    with RecordedServer(answers, manifest=False) as server:
        assert scan(insider_buying, {}, seconds=60, base_url=server.url)[0]
        pages["0"] = pages["100"]
        with pytest.raises(NotFound):
            scan(insider_buying, {}, base_url=server.url)


def test_a_503_that_asks_to_wait_is_not_the_feeds_end() -> None:
    full = feed(entry(count) for count in range(100))
    busy = (503, {"retry-after": "4"}, b"<!DOCTYPE html><html>busy</html>")
    pages = {"0": (200, {}, full), "100": busy}
    with (
        RecordedServer({"/cgi-bin/*": lambda asked: pages[asked.query["start"]]}, manifest=False) as server,
        pytest.raises(RetryAfter) as caught,
    ):
        scan(insider_buying, {}, base_url=server.url)
    assert caught.value.seconds == 4


def test_many_missing_documents_are_suspicious_and_none_is_an_error() -> None:
    good = form4([line(shares=9000, price=50)])
    with edgar([feed(map(entry, range(5)))], {3: good}) as server:
        context = context_at("2026-03-04T23:30:00+00:00", "insider_buying", base_url=server.url)
        (buying,) = list(insider_buying({}, context))
    assert buying.extras["filings"] == [number(3)]
    assert context.doubted == "incomplete: 4 of 5 Forms 4 could not be read, most are missing; see the tool log"
    with edgar([feed(map(entry, range(5)))], {}) as server, pytest.raises(NotFound, match="no such file"):
        scan(insider_buying, {}, base_url=server.url)


def test_who_files_together_is_one_insider_in_all_forms_and_their_purchase_is_one() -> None:
    fund, partner = owner(1, "Fund", director="0"), owner(2, "Partner")
    bought = line(shares=3000, price=40)
    (buying,) = found([form4([bought], fund + partner), form4([bought], partner), form4([bought], fund)])
    assert (buying.extras["value"], buying.extras["insiders"]) == (120_000.0, 1)
    others = [line(shares=1000 + n, price=40) for n in range(3)]
    (buying,) = found([form4([others[0]], fund), form4([others[1]], partner), form4([others[2]], fund + partner)])
    assert (buying.extras["insiders"], buying.extras["names"], buying.priority) == (1, ["Partner"], "medium")


def test_settings_are_checked() -> None:
    for wrong in ({"cluster": 1}, {"min_value": 0}, {"lookback": 3}):
        with pytest.raises(ConfigError, match=r"insider_buying: settings"):
            scan(insider_buying, {}, **wrong)


def test_edgar_itself_wants_to_know_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEC_USER_AGENT", raising=False)
    with pytest.raises(ConfigError, match=r"set scanners\.insider_buying\.settings\.user_agent or .*SEC_USER_AGENT"):
        scan(insider_buying, {})


# ------------------------------------------------------------------------------------------------ the error language


def page(text: str, status: int, **headers: str) -> Answer:
    return status, {"content-type": "text/html", **headers}, f"<!DOCTYPE html><html>{text}</html>".encode()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (page("Your Request Originates from an Undeclared Automated Tool", 403), PermanentError, "set user_agent"),
        (page("Request Rate Threshold Exceeded", 403), RetryAfter, "10 requests"),
        (page("", 429), RetryAfter, "10 requests"),
        (page("", 403), PermanentError, "refuses to answer"),
        ((403, {}, b"<Error><Code>AccessDenied</Code></Error>"), NotFound, "no such file"),
        ((404, {}, b"<Error><Code>NoSuchKey</Code></Error>"), NotFound, "no such file"),
        (page("", 503), TransientError, "HTTP 503"),
        (page("", 200), TransientError, "a page for people"),
        ((200, {}, b"<feed>"), TransientError, "not complete XML"),
        ((200, {}, b""), TransientError, "not complete XML"),
        ((200, {}, b'<?xml version="1.0" encoding="no-such"?><feed/>'), TransientError, "not complete XML"),
        ((200, {}, b"<!DOCTYPE lolz [<!ENTITY a 'b'>]><feed/>"), SchemaDrift, "entities"),
        ((200, {}, b"<rss/>"), SchemaDrift, "begins with 'rss'"),
        ((200, {}, feed([]).replace(b"updated", b"renewed")), SchemaDrift, "updated is missing"),
        ((200, {}, feed([], updated="yesterday")), SchemaDrift, "updated is not an instant: 'yesterday'"),
    ],
)
def test_what_edgar_says_becomes_the_right_error(said: Answer, kind: type[ScanError], words: str) -> None:
    with RecordedServer({"/*": said}, manifest=False) as server, pytest.raises(ScanError, match=words) as caught:
        scan(insider_buying, {}, base_url=server.url)
    assert type(caught.value) is kind


@pytest.mark.parametrize(("headers", "seconds"), [({}, 600.0), ({"retry-after": "7"}, 7.0)])
def test_too_many_requests_mean_ten_minutes_unless_it_says_otherwise(headers: dict[str, str], seconds: float) -> None:
    with RecordedServer({"/*": page("", 429, **headers)}) as server, pytest.raises(RetryAfter) as caught:
        scan(insider_buying, {}, base_url=server.url)
    assert caught.value.seconds == seconds


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("transcribed_errors/sec_403_undeclared_automated_tool.html", PermanentError),
        ("sec/errors/503_getcurrent_beyond_end.html", TransientError),
        ("sec/errors/403_accessdenied_future_index.xml", NotFound),
        ("sec/errors/404_submissions_nosuchkey.xml", NotFound),
        (f"{FORMS}/form4.Evans.html", TransientError),
    ],
)
def test_every_recorded_error(error: str, kind: type[ScanError]) -> None:
    body(error)
    with RecordedServer({"/*": error}) as server, pytest.raises(ScanError) as caught:
        scan(insider_buying, {}, base_url=server.url)
    assert type(caught.value) is kind


# ---------------------------------------------------------------------------------------------------- real recordings


def test_the_feed_of_june_2026_has_twelve_forms_and_a_vest_is_no_purchase() -> None:
    body(FEED_2026)

    def document(asked: Any) -> Any:
        return MVIS if "0001493152-26-028198" in asked.path else (200, {}, submission(form4([])))

    with RecordedServer({"/cgi-bin/browse-edgar": FEED_2026, "/Archives/*": document}) as server:
        candidates, log = scan(insider_buying, {}, base_url=server.url)
    assert candidates == []  # its two lines of code P have the price 0.00
    assert len(server.asked) == 1 + 12
    vest = {"accession": "0001493152-26-028198", "left_out": "has purchases without a price or a symbol"}
    assert any(vest.items() <= each.items() for each in log)
    assert (log[-1]["filings"], log[-1]["purchases"]) == (12, 0)


def test_two_pages_of_december_2025_have_81_forms_among_prefixes() -> None:
    context = context_at("2025-12-12T23:03:57+00:00")
    first, second = (read_feed(body(file), context) for file in FEED_2025)
    assert (first.entries, len(first.filings), second.entries, len(second.filings)) == (100, 46, 100, 59)
    with RecordedServer({"/Archives/*": (200, {}, submission(form4([])))}) as server:
        candidates, log = scan(insider_buying, {}, seconds=60, base_url=server.url, max_pages=2)
    assert candidates == []
    by_hand = set()
    for file in FEED_2025:
        for each in re.findall(r"<entry>(.*?)</entry>", body(file).decode("latin-1"), re.DOTALL):
            if re.search(r'term="4(/A)?"', each):
                by_hand.add(re.search(r"accession-number=([\d-]+)", each)[1])  # type: ignore[index]
    assert log[-1]["filings"] == len(by_hand)
    assert len(by_hand) == 81  # 80 Forms 4 and an amendment


@pytest.mark.parametrize(
    ("file", "form", "name", "codes", "priced"),
    [
        ("PMN_2025-07-25_P+X.xml", "4", "PMN", "XXX", 0),
        ("ARWR_2025-12-19_S_10b5-1.xml", "4", "ARWR", "SSS", 3),
        ("SNOW_2022-12-13_M+S.xml", "4", "SNOW", "MSSSSS", 6),
        ("SCWO_2025-04-30_A.xml", "4", "SCWO", "A", 0),
        ("form5_SNOW_2022-01-31_G.xml", "5", "SNOW", "G", 0),
        ("form3_SNOW.xml", "3", "SNOW", "", 0),
        ("AAPL_2020-10-13.xml", "4", "AAPL", "S", 1),
        ("MVIS_2026-06-08_P_0001493152-26-028198.xml", "4", "MVIS", "PPF", 1),
        ("AREC_2024-07-19_P_tz-suffix-date.xml", "4", "AREC", "P", 1),
    ],
)
def test_every_recorded_form_is_read(file: str, form: str, name: str, codes: str, priced: int) -> None:
    said = read_ownership(body(f"{FORMS}/{file}"), file)
    assert (said.form, said.symbol, "".join(trade.code for trade in said.trades)) == (form, name, codes)
    assert sum(bool(trade.price) for trade in said.trades) == priced


@pytest.mark.parametrize(
    "file", ["PMN_2025-07-25_P+X", "ARWR_2025-12-19_S_10b5-1", "SNOW_2022-12-13_M+S", "AAPL_2020-10-13"]
)
def test_real_forms_without_a_purchase_in_the_market_give_nothing(file: str) -> None:
    assert found([body(f"{FORMS}/{file}.xml")]) == []


def test_the_real_purchase_is_found_and_its_contradiction_told() -> None:
    page = feed([entry(0, filed="2024-07-23")], "2024-07-23T18:30:00-04:00")
    with edgar([page], {0: body(AREC)}) as server:
        (buying,), _ = scan(insider_buying, {}, base_url=server.url)
    assert (buying.ticker, buying.priority) == ("AREC", "low")  # code P, and "D" in the flag
    assert buying.extras["value"] == 536_000.0  # 800,000 x 0.67
    assert buying.extras["last_day"] == "2024-07-19"  # written 2024-07-19-05:00
    assert buying.context.startswith("GOLDEN PROPERTIES LTD. (large owner) of American Resources Corp bought 800,000 ")


def test_the_real_list_of_companies() -> None:
    with RecordedServer() as server:
        body("sec/company_tickers/company_tickers.json")
        context = ScanContext()
        context.limit(context._own.clock.monotonic() + 20)
        companies = Sec(server.url, "test").tickers(context)
    assert (companies[320193], companies[1067983]) == (("AAPL",), ("BRK.B", "BRK.A"))
    assert len(companies) > 7000


def test_another_document_than_a_form_is_named() -> None:
    with pytest.raises(SchemaDrift, match=r"Form 4 x has no ownershipDocument"):
        read_ownership(b"<?xml version='1.0'?><informationTable/>", "Form 4 x")


# --------------------------------------------------------------------------------------------------------------- drift


def leaves(document: str) -> list[tuple[int, int]]:
    """Return where the texts of a document are."""
    return [(match.start(1), match.end(1)) for match in re.finditer(r">([^<>\s][^<>]*)<", document)]


OWN_FORM = form4([line(shares=2000, price=60, after=2500)], owner(officer="1", title="CEO")).decode()
OWN_FEED = feed([entry(0)]).decode("latin-1")
junk = st.sampled_from(
    ["", "null", "x", "-5", "NaN", "Infinity", "1e400", "9" * 40, "9" * 400, "<b/>", "&amp;", "2026-99-99"]
)
TAGS = sorted(set(re.findall(r"<([A-Za-z]+)[ >]", OWN_FORM)) | set(re.findall(r"<([a-z]+)[ >]", OWN_FEED)))


def candidate_or_error(form: str, page: str) -> None:
    """Hold a mutated answer to: the true candidate, one that differs in a name, none, or an error that says why."""
    pages = [page.encode("latin-1")]
    with edgar(pages, {0: form.encode()}) as server:
        try:
            candidates, _ = scan(insider_buying, {}, base_url=server.url)
        except (SchemaDrift, TransientError, NotFound) as error:
            assert str(error)  # noqa: PT017 - candidates, or this
            return
    for buying in candidates:
        assert buying.extras["value"] == 120_000.0
        assert buying.extras["shares"] == 2000.0
        assert re.fullmatch(r"[A-Z0-9.]{1,8}", buying.ticker)


@settings(deadline=None)
@given(place=st.sampled_from(leaves(OWN_FORM)), text=junk)
def test_whatever_one_text_of_a_form_becomes_there_is_no_false_candidate(place: tuple[int, int], text: str) -> None:
    candidate_or_error(OWN_FORM[: place[0]] + text + OWN_FORM[place[1] :], OWN_FEED)


@settings(deadline=None)
@given(place=st.sampled_from(leaves(OWN_FEED)), text=junk)
def test_whatever_one_text_of_the_feed_becomes_there_is_no_false_candidate(place: tuple[int, int], text: str) -> None:
    candidate_or_error(OWN_FORM, OWN_FEED[: place[0]] + text + OWN_FEED[place[1] :])


@pytest.mark.parametrize("tag", TAGS)
def test_without_any_one_element_there_is_no_false_candidate(tag: str) -> None:
    gone = rf"<{tag}(?: [^>]*)?/>|<{tag}(?: [^>]*)?>.*?</{tag}>"
    candidate_or_error(re.sub(gone, "", OWN_FORM, flags=re.DOTALL), re.sub(gone, "", OWN_FEED, flags=re.DOTALL))


@pytest.mark.parametrize("name", [FORMS + "/PMN_2025-07-25_P+X.xml", AREC, MVIS])
def test_without_any_one_element_a_real_form_is_read_or_the_element_is_named(name: str) -> None:
    text = body(name).decode()
    for tag in sorted(set(re.findall(r"<([A-Za-z]+)[ >]", text))):
        if tag == "ownershipDocument":
            continue
        gone = re.sub(rf"<{tag}(?: [^>]*)?/>|<{tag}(?: [^>]*)?>.*?</{tag}>", "", text, flags=re.DOTALL)
        try:
            read_ownership(gone.encode(), "Form")
        except SchemaDrift as error:
            named = str(error)
        else:
            continue
        assert tag.removesuffix("Id") in named or tag == "value"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "not an object with companies"),
        ({}, "not an object with companies"),
        ([], "not an object with companies"),
        ({"7": "x"}, r"\[7\] is not an object"),
        ({"7": {"cik_str": "1", "ticker": "A"}}, r"\[7\]\.cik_str"),
        ({"7": {"cik_str": 10**30, "ticker": "A"}}, r"\[7\]\.cik_str"),
        ({"7": {"cik_str": True, "ticker": "A"}}, r"\[7\]\.cik_str"),
        ({"7": {"cik_str": 1}}, r"\[7\]\.ticker"),
        ({"7": {"cik_str": 1, "ticker": None}}, r"\[7\]\.ticker"),
    ],
)
def test_a_list_of_companies_in_another_shape_names_the_field(data: Any, words: str) -> None:
    with pytest.raises(SchemaDrift, match=words):
        read_tickers(data)
    assert read_tickers(COMPANIES) == {111: ("ACME",), 222: ("BOLT.B", "BOLT.A")}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AAPL", "AAPL"), (" brk/b ", "BRK.B"), ("BRK-B", "BRK.B"), ("(NYSE: LEN)", "LEN"), ("LEN, LEN.B", "LEN"),
        ("GOOG; GOOGL", "GOOG"), ("[ABC]", "ABC"), ("$ABC", "ABC"), ("NONE", ""), ("N/A", ""), ("n/a", ""), ("", ""),
        ("Not Applicable", ""), ("A" * 20, ""), ("é", ""), ("MOG.A/MOG.B", "MOG.A"), ("GOOG/GOOGL", "GOOG"),
        ("NASDAQ - XYZ", "XYZ"), ("NYSE ABC", "ABC"), ("0001", ""), ("[NONE]", ""), ("N/A (private)", ""), ("N.A.", ""),
        ("Not publicly traded", ""), ("No symbol", ""), ("TBD (IPO)", ""), ("NASDAQ: NONE", ""), ("ABC: NYSE", "ABC"),
    ],
)  # fmt: skip
def test_symbols_are_written_one_way(text: str, name: str) -> None:
    assert symbol(text) == name
