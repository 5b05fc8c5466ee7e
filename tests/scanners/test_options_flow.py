"""`options_flow`: contracts that are traded far more than they are held."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resilient_scan import ScanRunner, Status
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import NotFound, SchemaDrift, TransientError
from resilient_scan.testing import FakeClock
from resilient_scan_scanners.options_flow import options_flow
from tests.scanners.providers import CHAIN, NOW, Asked, as_json, ask, chained, contract
from tests.scanners.recorded import RecordedServer, body

Answers = dict[str, Any]


def find(answers: Answers, **settings: Any) -> Asked:
    def respond(path: str, query: dict[str, str]) -> Answer:
        said = answers.get(path.rpartition("/")[2], {"optionChain": {"result": [], "error": None}})
        return said if isinstance(said, tuple) else as_json(said)

    with LoopbackServer(respond) as server:
        return ask(options_flow, NOW, {"tickers": list(answers)}, base_url=server.url, **settings)


def test_the_rule_by_hand() -> None:
    (found,) = find({"TEST": CHAIN}).candidates
    # 95 call: 1000 / 500 = 2, 1000 * 6 * 100 = 600,000 $. 90 put: 5000 / 1000 = 5, 500,000 $. The 100 call is traded
    # 1.998 times its interest, the 105 call costs 24,800 $, the 110 call has no interest, the 115 call is of last week
    assert found.extras == {
        "contract": "TEST260522C00095000",
        "volume": 1000,
        "open_interest": 500,
        "ratio": 2.0,
        "contracts": ["TEST260522C00095000", "TEST260522P00090000"],
        "call_premium": 600000.0,
        "put_premium": 500000.0,
    }
    assert (found.ticker, found.source, found.priority) == ("TEST", "options_flow", "high")
    assert found.context == (
        "2 unusual contracts with 1,100,000 $ of premium (600,000 in calls); the largest: the 95 call of 2026-05-22, "
        "volume 1,000 on an open interest of 500"
    )


def test_the_numbers_are_settings() -> None:
    assert find({"TEST": CHAIN}, min_ratio=5.1).tickers == []
    assert find({"TEST": CHAIN}, min_ratio=5).candidates[0].extras["contracts"] == ["TEST260522P00090000"]
    assert find({"TEST": CHAIN}, min_premium=600_001).tickers == []
    assert len(find({"TEST": CHAIN}, min_premium=24_800).candidates[0].extras["contracts"]) == 3
    assert find({"TEST": CHAIN}, high_premium=1_100_001).candidates[0].priority == "medium"


def test_mini_contracts_are_left_out() -> None:
    assert find({"TEST": chained([contract("C", 95, 1000, 500, 6.0, contractSize="MINI")], [])}).tickers == []


def test_contracts_that_a_split_left_over_are_left_out() -> None:
    odd = contract("C", 95, 1000, 500, 6.0, contractSymbol="TEST1260522C00095000")
    assert find({"TEST": chained([odd], [])}).tickers == []


@pytest.mark.parametrize(("day", "tickers"), [("2026-05-15", ["TEST"]), ("2026-05-16", [])])
def test_what_has_expired_is_left_out(day: str, tickers: list[str]) -> None:
    expired = contract("C", 95, 1000, 500, 6.0, contractSymbol="TEST260515C00095000", expiration=1778803200)
    with LoopbackServer(lambda _path, _query: as_json(chained([expired], []))) as server:
        found = ask(options_flow, NOW, {"tickers": ["TEST"], "trade_date": day}, base_url=server.url)
    assert found.tickers == tickers


def test_tickers_may_be_written_in_either_way() -> None:
    found = find({"BRK-B": chained([contract("C", 95, 1000, 500, 6.0)], [])})
    assert found.tickers == ["BRK.B"]


def test_volume_and_interest_may_be_missing() -> None:
    quiet = contract("C", 95, 0, 500, 6.0)
    del quiet["volume"]
    unheld = contract("C", 100, 1000, 0, 6.0)
    del unheld["openInterest"]
    assert find({"TEST": chained([quiet, unheld], [])}).tickers == []


def test_without_any_open_interest_the_answer_is_doubted() -> None:
    blind = chained([contract("C", 95, 1000, 0, 6.0)], [contract("P", 95, 1000, 0, 6.0)])
    found = find({"A": blind, "NONE": chained([], [])})
    assert "A 0 of its 2 contracts have an open interest" in str(found.doubted)
    assert found.log[0]["left_out"] == "0 of its 2 contracts have an open interest"
    assert str(find({"A": blind, "TEST": CHAIN}).doubted).startswith("missing: only 1 of 2 option chains can be used")
    assert find({"A": blind, **{f"TEST{number}": CHAIN for number in range(4)}}).doubted is None


def test_one_without_options_is_believed_and_all_without_are_not() -> None:
    none = chained([], [])
    assert find({"NONE": none}).doubted is None
    assert find({"NONE": none, "TEST": CHAIN}).doubted is None
    assert find({"NONE": none, "NEITHER": none}).doubted == "empty: there are no options at all of NONE, NEITHER"


def test_contracts_count_if_they_were_traded_in_the_last_session() -> None:
    thursday = {"lastTradeDate": 1778870000 - 86_400}
    both = chained([contract("C", 95, 1000, 500, 6.0), contract("C", 100, 1000, 500, 6.0, **thursday)], [])
    assert find({"TEST": both}).candidates[0].extras["contracts"] == ["TEST260522C00095000"]
    old = chained([contract("C", 100, 1000, 500, 6.0, **thursday)], [])
    found = find({"TEST": old})
    assert found.tickers == []
    assert (
        "stale: none of 1 option chains can be used: 1 stale; TEST has options that were last traded on 2026-05-14"
        in (str(found.doubted))
    )


def test_a_chain_of_which_little_is_known_is_doubted_unless_something_is_found() -> None:
    unknown = [contract("C", strike, 1000, 0, 6.0) for strike in (80, 85)]
    found = find({"A": chained([*unknown, contract("C", 95, 100, 500, 6.0)], [])})
    assert (found.tickers, found.log[0]["left_out"]) == ([], "1 of its 3 contracts have an open interest")
    assert found.doubted == (
        "missing: none of 1 option chains can be used: 1 missing; A 1 of its 3 contracts have an open interest; "
        "see the tool log"
    )
    found = find({"A": chained([*unknown, contract("C", 95, 1000, 500, 6.0)], [])})
    assert (found.tickers, found.doubted) == (["A"], None)
    found = find({"A": chained([*unknown, *[contract("C", strike, 100, 500, 6.0) for strike in (95, 100)]], [])})
    assert (found.tickers, found.doubted) == ([], None)


def test_a_doubted_answer_is_suspicious_and_not_kept() -> None:
    blind = chained([contract("C", 95, 1000, 0, 6.0)], [])
    with LoopbackServer(lambda _p, _q: as_json(blind)) as server:
        settings = {"options_flow": {"base_url": server.url, "universe": ["TEST"]}}
        with ScanRunner([options_flow], settings=settings, clock=FakeClock(1779048000.0), listeners=()) as runner:
            first, second = (runner.run({}).results["options_flow"] for _ in range(2))
    assert "TEST 0 of its 1 contracts have an open interest" in str(first.suspicious)
    assert second.status is Status.COMPLETED


def test_one_symbol_that_fails_costs_the_others_nothing() -> None:
    found = find({"TEST": CHAIN, "GONE": {"optionChain": {"result": [], "error": None}}})
    assert found.tickers == ["TEST"]
    assert found.log[0]["ticker"] == "GONE"
    with pytest.raises(NotFound):
        find({"GONE": {"optionChain": {"result": [], "error": None}}})
    with pytest.raises(TransientError):
        find({"TEST": CHAIN, "A": (500, {}, b"")})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strike", 96.0, "strike is 96, which its symbol does not say"),
        ("expiration", 1779494400, "expiration is 1779494400, which its symbol does not say"),
        ("lastPrice", 201.0, "lastPrice is 201, beyond strike and underlying"),
        ("contractSymbol", "TEST", "contractSymbol"),
        ("volume", 10**8, "volume"),
        ("openInterest", "500", "openInterest"),
    ],
)
def test_a_contract_that_contradicts_itself_is_no_contract(field: str, value: Any, words: str) -> None:
    one = chained([{**contract("C", 95, 1000, 500, 6.0), field: value}], [])
    with pytest.raises(SchemaDrift, match=words):
        find({"TEST": one})
    many = chained([contract("C", strike, 0, 500, 1.0) for strike in (80, 85, 90, 100)], [])
    many["optionChain"]["result"][0]["options"][0]["calls"].append(
        one["optionChain"]["result"][0]["options"][0]["calls"][0]
    )
    found = find({"TEST": many})
    assert found.tickers == []
    assert words in found.log[0]["left_out"]


# -------------------------------------------------------------------------------------------------------- real answers

MORNING = "2025-02-24T09:24:42+00:00"  # before the market opened: Yahoo had no open interest of any contract


def test_the_real_chain_of_a_morning_tells_that_it_cannot_tell() -> None:
    with RecordedServer() as server:
        found = ask(options_flow, MORNING, {"tickers": ["AAPL", "^VXAPL"]}, base_url=server.url)
    assert found.tickers == []
    assert found.log[0]["left_out"] == "0 of its 98 contracts have an open interest"
    assert str(found.doubted).startswith("missing: none of 1 option chains can be used")


def test_the_real_chain_with_interests_of_our_own() -> None:
    payload = json.loads(body("yahoo/v7_options/AAPL.json"))
    options = payload["optionChain"]["result"][0]["options"][0]
    expected = []
    for row in (*options["calls"], *options["puts"]):
        row["openInterest"] = 1000
        of_friday = row["lastTradeDate"] >= 1740114000  # 2025-02-21 00:00 in New York
        recent = row["lastTradeDate"] >= 1739941200  # 2025-02-19 00:00: five days before
        if row.get("volume", 0) >= 2000 and row.get("volume", 0) * row["lastPrice"] * 100 >= 25_000:
            assert of_friday
            assert recent
            expected.append(row["contractSymbol"])
    with LoopbackServer(lambda _p, _q: as_json(payload)) as server:
        (found,) = ask(options_flow, MORNING, {"tickers": ["AAPL"]}, base_url=server.url).candidates
    assert sorted(found.extras["contracts"]) == sorted(expected)
    assert len(expected) == 20  # counted in the recording: 9 calls and 11 puts
    assert found.extras["contract"] == "AAPL250228P00245000"  # 32,187 * 2.63 $ * 100 = 8,465,181 $
    assert found.extras["volume"] == 32187
