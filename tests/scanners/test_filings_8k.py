"""`filings_8k`: the rule on feeds made by hand, and on the real one."""

from __future__ import annotations

from typing import Any

import pytest

from resilient_scan import Candidate, PermanentError
from resilient_scan.http import NotFound, SchemaDrift
from resilient_scan_scanners.filings_8k import filings_8k
from tests.scanners.charts import scan
from tests.scanners.filings import edgar, entry, feed, number
from tests.scanners.providers import ask
from tests.scanners.recorded import RecordedServer, body

NOW = "2026-03-04T23:30:00+00:00"  # the day of the feed
RESULTS = "Item 2.02: Results of Operations and Financial Condition\nItem 9.01: Financial Statements and Exhibits"


def report(count: int, **parts: Any) -> str:
    return entry(count, **{"form": "8-K", "role": "Filer", **parts})


def found(*entries: str, **numbers: Any) -> list[Candidate]:
    with edgar([feed(entries)]) as server:
        return scan(filings_8k, {}, base_url=server.url, **numbers)[0]


def test_a_report_is_told_with_its_items() -> None:
    (told,) = found(report(1, items=RESULTS))
    assert (told.ticker, told.source, told.priority) == ("ACME", "filings_8k", "high")
    assert told.context == (
        "Acme Corp filed an 8-K on 2026-03-04: 2.02 Results of Operations and Financial Condition; "
        "9.01 Financial Statements and Exhibits"
    )
    assert told.extras == {"items": ["2.02", "9.01"], "filings": [number(1)], "filed": "2026-03-04"}


@pytest.mark.parametrize(
    ("items", "priority"),
    [
        ("", "unknown"),
        ("Item 7.01: Regulation FD", "medium"),
        ("Item 5.02: Departure", "high"),
        ("Item 4.02: No", "critical"),
    ],
)
def test_the_gravest_item_decides_the_priority(items: str, priority: str) -> None:
    (told,) = found(report(1, items=f"Item 9.01: Exhibits\n{items}" if items else ""))
    assert told.priority == priority
    assert found(report(1, items=items), critical_items=["7.01", "5.02", "4.02"])[0].priority == (
        "critical" if items else "unknown"
    )


def test_other_forms_old_filings_and_companies_without_a_symbol_are_left_out() -> None:
    entries = [
        report(1, form="8-K/A"),
        report(2, form="8-K12B"),
        report(3, filed="2026-03-02"),
        report(4, cik=999, name="Nobody"),
    ]
    assert found(*entries) == []
    assert [each.ticker for each in found(*entries, lookback_days=2)] == ["ACME"]


def test_several_reports_of_a_company_are_one_candidate_and_the_main_symbol_names_it() -> None:
    (told,) = found(
        report(1, cik=222, name="Bolt Inc", items="Item 1.01: Deal"),
        report(2, cik=222, name="Bolt Inc", items="Item 3.01: Notice of Delisting"),
        report(2, cik=222, name="Bolt Inc"),
    )
    assert (told.ticker, told.priority) == ("BOLT.B", "critical")
    assert told.context.startswith("Bolt Inc filed an 8-K on 2026-03-04 (2 reports): 1.01 Deal; 3.01 Notice")
    assert told.extras["filings"] == [number(1), number(2)]


def test_without_reports_the_list_of_companies_is_not_asked_for() -> None:
    with edgar([feed([report(1, form="8-K/A")])]) as server:
        assert scan(filings_8k, {}, base_url=server.url)[0] == []
    assert server.paths() == ["/cgi-bin/browse-edgar"]
    assert server.asked[0].query["type"] == "8-K"


def test_a_list_of_companies_that_is_gone_or_changed_is_an_error() -> None:
    page = feed([report(1)])
    with edgar([page], companies={"0": {"cik": 1}}) as server, pytest.raises(SchemaDrift, match=r"\[0\]\.cik_str"):
        scan(filings_8k, {}, base_url=server.url)
    gone = edgar([page])
    gone.answers["/files/company_tickers.json"] = (404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
    with gone as server, pytest.raises(NotFound):
        scan(filings_8k, {}, base_url=server.url)


def test_the_real_feed_and_the_real_companies() -> None:
    """The mixed feed of June 2026 has no 8-K; a bank's Form 4, two entries, is made one."""
    real = body("sec/current_feed/getcurrent_2026-06-11.atom")
    with RecordedServer({"/cgi-bin/browse-edgar": "sec/current_feed/getcurrent_2026-06-11.atom"}) as server:
        assert scan(filings_8k, {}, base_url=server.url)[0] == []
    bank = real.decode("latin-1").index("WO ROBERT W JR (0001204679)")
    changed = real[:bank] + real[bank:].replace(b'term="4"', b'term="8-K"', 2)
    with RecordedServer({"/cgi-bin/browse-edgar": (200, {}, changed)}) as server:
        (told,), log = scan(filings_8k, {}, base_url=server.url)
    assert (told.ticker, told.priority, told.context) == (
        "BOH", "unknown", "BANK OF HAWAII CORP filed an 8-K on 2026-06-10",
    )  # fmt: skip
    assert log[-1] == {**log[-1], "companies": 2, "without_symbol": 1}


# ------------------------------------------------------------------------------------------- what it does not know


def test_a_report_without_its_items_has_no_priority_and_is_doubted() -> None:
    """A bankruptcy of which the feed only says that there is a report must not pass for ordinary news."""
    bare = report(1).partition("<summary")[0] + report(1).partition("</summary>")[2]
    with edgar([feed([bare, report(2, cik=222, items="Item 1.03: Bankruptcy")])]) as server:
        asked = ask(filings_8k, NOW, base_url=server.url)
    assert [(each.ticker, each.priority) for each in asked.candidates] == [("ACME", "unknown"), ("BOLT.B", "critical")]
    assert asked.doubted == (
        "incomplete: 1 of 2 filings of EDGAR's feed do not say when they were filed; "
        "1 of 2 Forms 8-K come without their items"
    )
    with edgar([feed([report(1, items=RESULTS)])]) as server:
        assert ask(filings_8k, NOW, base_url=server.url).doubted is None


def test_a_feed_that_is_not_read_to_its_end_is_doubted() -> None:
    pages = [feed(report(100 * page + count, items=RESULTS) for count in range(100 - page)) for page in range(2)]
    with edgar(pages) as server:
        assert ask(filings_8k, NOW, base_url=server.url).doubted is None
        cut = ask(filings_8k, NOW, base_url=server.url, max_pages=1)
    assert cut.tickers == ["ACME"]
    assert (
        cut.doubted == "incomplete: EDGAR's feed goes on after the 100 entries that were read: max_pages allows no more"
    )


@pytest.mark.parametrize(
    ("trade_date", "tickers"),
    [("2026-03-04", ["ACME"]), ("2026-03-03", ["BOLT.B"]), ("2026-03-01", ["BOLT.B"]), ("2026-02-28", [])],
)
def test_of_a_day_of_this_week_later_reports_do_not_count(trade_date: str, tickers: list[str]) -> None:
    entries = [
        report(1, items=RESULTS),
        report(2, cik=222, filed="2026-03-02" if trade_date == "2026-03-03" else "2026-03-01", items=RESULTS),
    ]
    with edgar([feed(entries)]) as server:
        assert ask(filings_8k, NOW, {"trade_date": trade_date}, base_url=server.url).tickers == tickers


def test_another_day_is_refused() -> None:
    with (
        edgar([]) as server,
        pytest.raises(PermanentError, match="feed of Forms 8-K knows only the last days, not 2022"),
    ):
        ask(filings_8k, NOW, {"trade_date": "2022-03-04"}, base_url=server.url)
