"""`analyst_revisions`: analysts who changed their minds."""

from __future__ import annotations

from typing import Any

import pytest

from resilient_scan import ConfigError, PermanentError
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import SchemaDrift
from resilient_scan_scanners.analyst_revisions import analyst_revisions
from tests.scanners.providers import KEY, NOW, TRENDS, Asked, as_json, ask, trend
from tests.scanners.recorded import RecordedServer


def find(answers: dict[str, Any], state: dict[str, Any] | None = None, **settings: Any) -> Asked:
    def respond(_path: str, query: dict[str, str]) -> Answer:
        said = answers.get(query["symbol"], [])
        return said if isinstance(said, tuple) else as_json(said)

    with LoopbackServer(respond) as server:
        state = {"tickers": list(answers), **(state or {})}
        return ask(analyst_revisions, NOW, state, base_url=server.url, **{"api_key": KEY, **settings})


def test_the_rule_by_hand() -> None:
    (found,) = find({"X": TRENDS}).candidates
    # May has (2 * 4 + 4) / 10 = 1.2 points, April (2 * 2 + 4) / 10 = 0.8
    assert (found.ticker, found.priority) == ("X", "high")
    assert found.extras == {"score": 1.2, "change": 0.4, "analysts": 10}
    assert found.context == (
        "analysts became more confident: a mean of +1.20 in May 2026 (from -2 to 2, 10 of them), "
        "after +0.80 the month before"
    )


def test_less_confident_is_a_revision_too() -> None:
    worse = [trend("2026-05-01", 0, 5, 4, 1, 1), trend("2026-04-01", 0, 6, 4, 0, 1)]  # 2 / 11 after 4 / 11
    (found,) = find({"X": worse}).candidates
    assert (found.extras["change"], found.priority) == (-0.1818, "high")
    assert "less confident: a mean of +0.18" in found.context


def test_a_month_that_cannot_be_read_is_an_error_and_one_that_comes_twice_is_one() -> None:
    older = [trend(f"2026-0{month}-01", 9, 0, 0, 0, 0) for month in (3, 2, 1)]
    with pytest.raises(SchemaDrift, match=r"recommendation of X\[0\].*strongBuy"):
        find({"X": [{**TRENDS[0], "strongBuy": None}, TRENDS[1], *older]})  # April is not March's next
    assert find({"X": [TRENDS[0], *TRENDS]}).tickers == ["X"]


@pytest.mark.parametrize(
    ("trends", "reason"),
    [
        ([], "has 0 months of recommendations, the rule needs 2"),
        (TRENDS[:1], "has 1 months of recommendations, the rule needs 2"),
        ([trend("2026-06-01", 9, 0, 0, 0, 0), TRENDS[1]], "has 1 months"),  # June has not come yet
        (
            [trend("2026-03-01", 9, 0, 0, 0, 0), trend("2026-02-01", 1, 4, 4, 0, 0)],
            "has no recommendations since 2026-03-01",
        ),
        ([TRENDS[0], trend("2026-03-01", 1, 4, 4, 0, 0)], "has no recommendations of the month before 2026-05-01"),
    ],
)
def test_what_shows_no_change_is_left_out(trends: list[Any], reason: str) -> None:
    found = find({"X": trends})
    assert found.tickers == []
    assert found.log[0]["left_out"].startswith(reason)


def test_the_numbers_are_settings() -> None:
    assert find({"X": TRENDS}, min_change=0.41).tickers == []
    assert find({"X": TRENDS}, min_change=0.4).tickers == ["X"]
    assert find({"X": TRENDS}, min_analysts=11).tickers == []
    assert find({"X": TRENDS}, high_change=0.41).candidates[0].priority == "medium"
    assert find({"X": TRENDS[::-1]}).tickers == ["X"]  # whatever the order in which they come


def test_both_months_need_their_analysts() -> None:
    few, many = trend("2026-04-01", 1, 1, 1, 1, 0), trend("2026-05-01", 4, 4, 2, 0, 0)
    assert find({"X": [many, few]}).tickers == []
    assert find({"X": [many, few]}, min_analysts=4).tickers == ["X"]


def test_one_symbol_that_fails_costs_the_others_nothing() -> None:
    answers = dict.fromkeys("ABCD", TRENDS)
    found = find({**answers, "E": (500, {}, b"")})
    assert found.tickers == list("ABCD")
    assert found.log[0]["ticker"] == "E"


def test_a_wrong_key_ends_it_at_once() -> None:
    with pytest.raises(PermanentError, match="check the key"):
        find({"A": (401, {}, b'{"error":"Invalid API key"}'), "B": TRENDS})


def test_without_a_key_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINNHUB_API_KEY", raising=False)
    with pytest.raises(
        ConfigError, match=r"scanners.analyst_revisions.settings.api_key or the environment variable FINNH"
    ):
        ask(analyst_revisions, NOW)


def test_without_tickers_some_of_the_largest_are_looked_at() -> None:
    asked: list[str] = []

    def respond(_path: str, query: dict[str, str]) -> Answer:
        asked.append(query["symbol"])
        return as_json(TRENDS)

    with LoopbackServer(respond) as server:
        assert len(ask(analyst_revisions, NOW, base_url=server.url, api_key=KEY).tickers) == len(asked) == 10


def test_real_recommendations() -> None:
    # Apple's May: (2 * 15 + 24 - 2) / 54 = 0.9630; April: (2 * 14 + 23 - 2) / 54 = 0.9074; a change of 0.0556
    for state, expected in (({}, 0.0556), ({"trade_date": "2026-04-30"}, None)):
        with RecordedServer() as server:
            settings = {"base_url": f"{server.url}/api/v1", "api_key": KEY}
            found = ask(analyst_revisions, NOW, {"tickers": ["AAPL"], **state}, **settings)
        if expected is None:  # April (28 + 23 - 2) / 54 after March (28 + 22 - 2) / 54: 0.0185
            assert found.tickers == []
        else:
            (candidate,) = found.candidates
            assert (candidate.ticker, candidate.extras["change"]) == ("AAPL", expected)
            assert candidate.priority == "medium"


def test_a_real_unknown_symbol() -> None:
    with RecordedServer() as server:
        found = ask(analyst_revisions, NOW, {"tickers": ["INVALID_TICKER"]}, base_url=server.url, api_key=KEY)
    assert found.log[0]["left_out"] == "has 0 months of recommendations, the rule needs 2"
