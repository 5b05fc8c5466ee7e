"""`insider_buying` reads EDGAR's feed step by step: what is read when, and what is said about the rest."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Candidate, PermanentError, ScanResult, ScanRunner, Status, Timeout, scanner
from resilient_scan.testing import FakeClock
from resilient_scan_scanners.insider_buying import insider_buying
from tests.scanners.filings import edgar, entry, feed, form4, line, number, owner
from tests.scanners.providers import ask
from tests.scanners.recorded import RecordedServer

NOW = "2026-03-04T23:30:00+00:00"  # the day of the feed
BIG = line(shares=3000, price=50)


def bought(who: int, shares: int = 3000, **parts: Any) -> bytes:
    return form4([line(shares=shares, price=50)], owner(who, f"Person {who}"), **parts)


def with_layers(**layers: Any) -> Any:
    """Return the scanner with other layers."""
    own = {**insider_buying.layers, "cache": None, **layers}
    return scanner(name="insider_buying", pipeline="edge", **own)(insider_buying.scan)


class Edgar:
    """A server whose feed grows, a runner that remembers, and what each scan asked for."""

    def __init__(self, server: RecordedServer, runner: ScanRunner) -> None:
        self.server, self._runner = server, runner
        self.asked: list[str] = []

    def scan(self, **state: Any) -> ScanResult:
        self.server.asked.clear()
        result = self._runner.run(state).results["insider_buying"]
        self.asked = [each.query.get("start") or number_in(each.path) for each in self.server.asked]
        return result


def number_in(path: str) -> str:
    return str(int(path.rpartition("-")[2].removesuffix(".txt"))) if path.startswith("/Archives") else path


def runner_of(url: str, store: str | None = None, clock: FakeClock | None = None, **numbers: Any) -> ScanRunner:
    return ScanRunner(
        [with_layers(limit=None)],
        settings={"insider_buying": {"base_url": url, **numbers}},
        store=store,
        clock=clock or FakeClock(datetime.fromisoformat(NOW).timestamp(), auto=True),
        listeners=(),
    )


def found(result: ScanResult) -> dict[str, tuple[str, float, list[str]]]:
    return {each.ticker: (each.priority, each.extras["value"], each.extras["filings"]) for each in result.candidates}


# ---------------------------------------------------------------------------------------------------- step by step


def test_the_feed_is_read_until_the_last_entry_seen_and_what_was_read_is_remembered(tmp_path: Path) -> None:
    """In a store, so that cron, whose every run is a process of its own, remembers it too."""
    entries = [entry(count) for count in range(250, 0, -1)]
    documents = {count: form4([]) for count in range(1, 300)} | {250: bought(1), 240: bought(2), 260: bought(3)}
    pages = [feed(entries[start : start + 100]) for start in range(0, 300, 100)]
    clock = FakeClock(datetime.fromisoformat(NOW).timestamp(), auto=True)
    with edgar(pages, documents) as server:

        def scan() -> tuple[ScanResult, list[str]]:
            with runner_of(server.url, f"sqlite:///{tmp_path}/s.db", clock) as runner:
                each = Edgar(server, runner)
                return each.scan(), each.asked

        first, asked = scan()
        assert found(first) == {"ACME": ("medium", 300_000.0, [number(240), number(250)])}
        assert (len(asked), first.suspicious) == (3 + 250, None)
        again, asked = scan()
        assert (again.candidates, asked) == (first.candidates, ["0"])
        pages[0] = feed([entry(260, at="17:30:00"), *entries[:99]])
        third, asked = scan()
        assert (asked, third.suspicious) == (["0", "260"], None)
        assert found(third) == {"ACME": ("critical", 450_000.0, [number(260), number(240), number(250)])}


def test_what_there_is_no_time_for_is_left_to_the_next_scan_and_nothing_is_lost() -> None:
    """Twelve pages, of which most are other forms; each request takes half a second of a scan that has a minute."""
    forms = {count: bought(count, symbol=f"S{count}") for count in range(5000, 5240)}
    lines = [entry(count, name=f"S{count}", cik=1000 + count) for count in forms]
    others = [entry(9000 + count, form="424B2") for count in range(80)]
    pages = [feed([*lines[20 * page : 20 * page + 20], *others[page == 11 :]]) for page in range(12)]
    clock = FakeClock(datetime.fromisoformat(NOW).timestamp())
    server = edgar(pages, forms)
    for path, source in list(server.answers.items()):
        server.answers[path] = lambda asked, source=source: (clock.advance(0.5), source(asked))[1]
    with server, runner_of(server.url, clock=clock) as runner:
        each = Edgar(server, runner)
        results, all_asked = [], []
        for _ in range(3):
            results.append(each.scan())
            all_asked += [number for number in each.asked if int(number) in forms]
    assert [result.status for result in results] == [Status.COMPLETED] * 3
    told = [len(result.candidates) for result in results]
    assert 70 < told[0] < told[1] < told[2] == 240
    assert "of 240 Forms 4 are not read yet: there was no time; the next scan goes on with them" in str(
        results[0].suspicious
    )
    assert results[2].suspicious is None
    assert len(all_asked) == len(set(all_asked))  # nothing is read twice
    assert {each.ticker for each in results[0].candidates} < {each.ticker for each in results[1].candidates}


def test_a_document_that_hangs_costs_its_company_only() -> None:
    release = threading.Event()
    entries = [entry(1), *(entry(count, cik=222, name="Bolt") for count in range(2, 18)), entry(18, cik=333)]
    documents = {1: bought(1)} | {count: form4([], symbol="BOLT") for count in range(2, 18)}
    server = edgar([feed(entries)], documents)
    respond = server.answers["/Archives/*"]

    def slow(asked: Any) -> Any:
        if number_in(asked.path) == "18":
            release.wait(20)
        assert callable(respond)
        return respond(asked)

    server.answers["/Archives/*"] = slow
    hasty = with_layers(timeout=Timeout(total=1.0))
    with server, ScanRunner([hasty], settings={"insider_buying": {"base_url": server.url}}, listeners=()) as runner:
        result = runner.run({}).results["insider_buying"]
        release.set()
    assert result.partial or "not read yet" in str(result.suspicious)
    assert found(result) == {"ACME": ("medium", 150_000.0, [number(1)])}


def test_a_feed_that_breaks_off_is_doubted_and_read_to_its_end_by_the_next_scan() -> None:
    entries = [entry(count) for count in range(250, 0, -1)]
    pages = [feed(entries[start : start + 100]) for start in range(0, 300, 100)]
    documents = {count: form4([]) for count in range(1, 251)} | {7: bought(7)}
    with edgar(pages[:1], documents) as server, runner_of(server.url) as runner:
        each = Edgar(server, runner)
        cut = each.scan()
        assert "goes on after the 100 entries that were read: the next page is HTTP 503" in str(cut.suspicious)
        assert list(cut.candidates) == []
    with edgar(pages, documents) as server, runner_of(server.url, max_pages=1) as runner:
        cut = Edgar(server, runner).scan()
        assert "goes on after the 100 entries that were read: max_pages allows no more" in str(cut.suspicious)
    server = edgar(pages, documents)
    page = server.answers["/cgi-bin/browse-edgar"]
    assert callable(page)
    trouble = [True]
    server.answers["/cgi-bin/browse-edgar"] = lambda asked: (
        (503, {}, b"") if trouble[0] and asked.query["start"] == "200" else page(asked)
    )
    with server, runner_of(server.url) as runner:
        each = Edgar(server, runner)
        assert "the next page is HTTP 503" in str(each.scan().suspicious)
        trouble[0] = False
        whole = each.scan()
        assert (whole.suspicious, list(found(whole))) == (None, ["ACME"])
        assert {"0", "100", "200", "7"} <= set(each.asked)  # beyond what it knew
        each.scan()
        assert each.asked == ["0"]


def test_a_feed_of_days_ago_is_doubted() -> None:
    with edgar([feed([entry(1)])], {1: bought(1)}) as server:
        assert ask(insider_buying, NOW, base_url=server.url).doubted is None
        assert ask(insider_buying, "2026-03-06T23:00:00+00:00", base_url=server.url).doubted is None
        old = ask(insider_buying, "2026-03-07T00:00:00+00:00", base_url=server.url)
    assert old.doubted == "stale: EDGAR's feed of Forms 4 is of 2026-03-04; nothing newer came"


def test_a_document_that_comes_later_is_read_later_and_given_up_at_last() -> None:
    documents = {count: form4([]) for count in range(1, 11)}
    with edgar([feed(map(entry, range(12)))], documents) as server, runner_of(server.url) as runner:
        each = Edgar(server, runner)
        assert list(each.scan().candidates) == []
        assert {"0", "11"} <= set(each.asked)
        again = each.scan()
        assert sorted(each.asked) == ["0", "0", "11"]  # the page, and two documents
        assert "2 of 2 Forms 4 could not be read, most are missing" in str(again.suspicious)
        each.scan()
        assert each.scan().suspicious is None
        assert each.asked == ["0"]


def test_how_the_feed_grows_makes_no_difference() -> None:
    chance = random.Random(7)
    documents, entries = {}, []
    for count in range(1, 61):
        company, who = chance.randrange(6), chance.randrange(5)
        lines = [line(shares=100 * chance.randrange(1, 9), price=50, day=f"2026-03-0{chance.randrange(1, 5)}")]
        form = "4/A" if chance.random() < 0.2 else "4"
        documents[count] = form4(lines, owner(who, f"Person {who}"), symbol=f"S{company}", form=form, cik=500 + company)
        at = f"12:{count:02d}:00"
        entries.insert(0, entry(count, form=form, cik=500 + company, name=f"Company {company}", at=at))

    def of(steps: Sequence[int]) -> list[Candidate]:
        pages = [b""]
        with edgar(pages, documents) as server, runner_of(server.url, min_value=20_000) as runner:
            each = Edgar(server, runner)
            for step in steps:
                pages[0] = feed(entries[-step:])
                result = each.scan()
        assert result.suspicious is None
        return sorted(result.candidates, key=lambda candidate: candidate.ticker)

    assert len(of([60])) > 3
    assert of([60]) == of([1, 9, 10, 31, 59, 60]) == of([30, 60])


# -------------------------------------------------------------------------------------------------- tickers and days


def test_with_tickers_only_their_forms_are_read_and_the_others_wait() -> None:
    entries = [entry(1), entry(2, cik=222, name="Bolt Inc"), entry(3, cik=999, name="Unknown")]
    documents = {1: bought(1), 2: bought(2, symbol="BOLT.B", cik=222), 3: bought(3, symbol="ACME", cik=999)}
    with edgar([feed(entries)], documents) as server, runner_of(server.url) as runner:
        each = Edgar(server, runner)
        one = each.scan(tickers=["bolt-b"])
        assert list(found(one)) == ["BOLT.B"]
        assert sorted(each.asked) == sorted(["0", "/files/company_tickers.json", "2", "3"])  # 3 may be anybody's
        assert one.suspicious is None
        assert sorted(found(each.scan())) == ["ACME", "BOLT.B"]
        assert each.asked == ["0", "1"]
        assert found(each.scan(tickers=["NONE"])) == {}


def test_without_the_list_of_companies_all_forms_are_read() -> None:
    server = edgar([feed([entry(1), entry(2, cik=222)])], {1: bought(1), 2: bought(2, symbol="BOLT.B", cik=222)})
    server.answers["/files/company_tickers.json"] = (404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
    with server:
        asked = ask(insider_buying, NOW, {"tickers": ["ACME"]}, base_url=server.url)
    assert asked.tickers == ["ACME"]
    assert any("all are read, because their list cannot be" in str(each.get("companies")) for each in asked.log)


@pytest.mark.parametrize(
    ("trade_date", "tickers"),
    [
        (None, ["ACME", "BOLT"]),
        ("2026-03-04", ["ACME", "BOLT"]),
        ("2026-03-05", ["ACME", "BOLT"]),  # tomorrow, as in Tokyo
        ("2026-03-03", ["BOLT"]),
        ("2026-02-27", []),
    ],
)
def test_of_a_day_of_this_week_later_filings_do_not_count(trade_date: str | None, tickers: list[str]) -> None:
    entries = [entry(1), entry(2, cik=222, filed="2026-03-03")]
    documents = {1: bought(1), 2: bought(2, symbol="BOLT", cik=222)}
    state = {} if trade_date is None else {"trade_date": trade_date}
    with edgar([feed(entries)], documents) as server:
        assert ask(insider_buying, NOW, state, base_url=server.url).tickers == tickers


@pytest.mark.parametrize("trade_date", ["2022-03-04", "2026-02-26", "2026-03-10"])
def test_another_day_is_refused_before_anything_is_asked(trade_date: str) -> None:
    with edgar([]) as server, pytest.raises(PermanentError, match=f"not {trade_date} .today is 2026-03-04 in New York"):
        ask(insider_buying, NOW, {"trade_date": trade_date}, base_url=server.url)
    assert server.asked == []


# ----------------------------------------------------------------------------------------------- the special cases


def told(*documents: bytes, forms: Sequence[str] = (), **entries: Any) -> list[Candidate]:
    """Run the scanner on one filing for each document, the newest first."""
    kinds = [*forms, *["4"] * len(documents)]
    lines = [entry(count, form=kinds[count], at=f"16:{59 - count}:00", **entries) for count in range(len(documents))]
    with edgar([feed(lines)], dict(enumerate(documents))) as server:
        return ask(insider_buying, NOW, base_url=server.url).candidates


@pytest.mark.parametrize(("day", "count"), [("2026-02-18", 1), ("2026-02-17", 0), ("2024-03-04", 0), ("2026-03-05", 0)])
def test_a_purchase_of_long_ago_is_no_news_however_late_it_is_filed(day: str, count: int) -> None:
    assert len(told(form4([line(shares=3000, price=50, day=day)]))) == count


def test_an_old_line_beside_a_new_one_does_not_count() -> None:
    lines = [line(shares=3000, price=50), line(shares=9000, price=50, day="2025-11-03")]
    assert told(form4(lines))[0].extras["value"] == 150_000.0


@pytest.mark.parametrize("flag", ["1", "true"])
def test_a_purchase_under_a_plan_does_not_count(flag: str) -> None:
    assert told(form4([BIG], planned=flag)) == []
    assert len(told(form4([BIG], planned=flag), form4([line(shares=2500, price=50)], owner(2)))) == 1


def test_an_amendment_replaces_what_the_same_people_said_about_its_days() -> None:
    first = form4([line(shares=30_000, price=50), line(shares=2000, price=50, day="2026-03-02")], owner(1))
    right = form4([line(shares=3000, price=50)], owner(1), form="4/A")
    (candidate,) = told(right, first, forms=["4/A"])
    assert candidate.extras["value"] == 250_000.0  # 3,000 x 50 of the amendment, 2,000 x 50 of the other day
    assert (
        told(form4([line("A", 30_000, 50), line("A", 2000, 50, day="2026-03-02")], form="4/A"), first, forms=["4/A"])
        == []
    )
    (candidate,) = told(form4([line("S", 1, 50)], owner(2), form="4/A"), first, forms=["4/A"])
    assert candidate.extras["value"] == 1_600_000.0  # somebody else's
    (candidate,) = told(first, right, forms=["4", "4/A"])
    assert candidate.extras["value"] == 1_750_000.0 - 150_000.0 + 150_000.0  # an older one amends nothing newer
    assert told(right, forms=["4/A"])[0].extras["value"] == 150_000.0  # what it amends was never seen


def test_what_a_fund_bought_counts_once_although_its_director_reports_it_too() -> None:
    fund = form4([line(shares=3000, price=50, after=9000)], owner(1, "Fund", director="0"))
    through = form4([line(shares=3000, price=50, after=9000, held="I")], owner(2, "Doe Jane"))
    for pair in ((fund, through), (through, fund)):
        (candidate,) = told(*pair)
        assert (candidate.extras["value"], candidate.extras["insiders"]) == (150_000.0, 1)
        assert candidate.extras["names"] == ["Doe Jane"]
    own = form4([line(shares=3000, price=50, after=9000)], owner(3))
    (candidate,) = told(fund, own)  # two that hold as much by chance, each directly
    assert (candidate.extras["value"], candidate.extras["insiders"]) == (300_000.0, 2)
    trust = form4([line(shares=3000, price=50, after=4000, held="I")], owner(2))
    (candidate,) = told(fund, trust)
    assert (candidate.extras["value"], candidate.extras["insiders"]) == (300_000.0, 2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("isOfficer", "isAnOfficer", r"reportingOwnerRelationship\.isAnOfficer is not an element"),
        ("<isOfficer>1", "<isOfficer>0", "none of isOfficer, isDirector, isTenPercentOwner, isOther is true"),
        ("nonDerivativeTable", "nonDerivTable", "nonDerivTable is not an element"),
        ("nonDerivativeTransaction", "transaction", r"nonDerivativeTable\.transaction is not an element"),
        ("issuerCik", "issuerNumber", r"issuer\.issuerCik is missing"),
    ],
)
def test_a_field_that_has_another_name_is_an_error_and_no_smaller_weight(old: str, new: str, words: str) -> None:
    document = form4([BIG], owner(1, officer="1", director="0", title="CFO"))
    assert told(document)[0].extras["weighted_value"] == 300_000.0
    with pytest.raises(Exception, match=words):
        told(document.decode().replace(old, new).encode())
    tables = document.decode().replace("nonDerivativeTable", "x").replace("derivativeTable", "y")
    with pytest.raises(Exception, match="neither a nonDerivativeTable nor a derivativeTable"):
        told(tables.encode())


def test_entries_without_a_summary_are_doubted() -> None:
    bare = entry(1).partition("<summary")[0] + entry(1).partition("</summary>")[2]
    with edgar([feed([bare, entry(2)])], {1: bought(1), 2: form4([])}) as server:
        asked = ask(insider_buying, NOW, base_url=server.url)
    assert asked.tickers == ["ACME"]
    assert asked.doubted == "incomplete: 1 of 2 filings of EDGAR's feed do not say when they were filed"
