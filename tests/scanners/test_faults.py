"""Forty silent faults, planted into recorded answers, are noticed; ten thousand sound answers are not doubted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from resilient_scan import ScanContext
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import Response
from resilient_scan_scanners._chart import chart_of, fault_of, jump_of
from resilient_scan_scanners.providers.yahoo import read_chart
from tests.scanners import faults
from tests.scanners.faults import CASES, CHARTS, FAULTS, Case, Fault, chart, columns, cut, quotes, recorded
from tests.scanners.providers import KEY, context_at

MISSED = 2  # of the forty may be
SOUND = 10_000
FALSE_ALARMS = 1  # of the sound answers may be


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FINNHUB_API_KEY", "ALPHAVANTAGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.scanner.name)
def test_the_sound_answer_is_believed_and_finds_something(case: Case) -> None:
    verdict = case.run()
    assert not verdict.found, verdict
    assert verdict.tickers


def test_of_forty_planted_faults_at_least_38_are_found() -> None:
    assert len(FAULTS) == 40
    kinds = Counter(fault.kind for fault in FAULTS)
    assert set(kinds) == {
        "renamed", "null", "stale", "truncated", "unit x 100", "duplicated", "wrong day", "frozen",
    }  # fmt: skip
    missed = [(fault.kind, fault.what) for fault in FAULTS if not fault.case.run(fault.harm).found]
    assert len(missed) <= MISSED, missed


def test_the_docs_have_the_table() -> None:
    assert faults.table() in (Path(__file__).parents[2] / "docs" / "builtin-scanners.md").read_text()


def of(*cases: Case) -> list[Fault]:
    return [fault for fault in FAULTS if fault.case in cases]


@pytest.mark.parametrize(
    "fault",
    of(faults.MOVES, faults.GAPS, faults.HIGHS, faults.DIPS, faults.VOLUMES, faults.SCREENER, faults.OPTIONS),
    ids=lambda fault: f"{fault.kind}: {fault.what}".replace(" ", "_"),
)
def test_each_fault_in_an_answer_of_yahoo_is_found(fault: Fault) -> None:
    """Never less than all: the two that may be missed are others'."""
    assert fault.case.run(fault.harm).found


# ------------------------------------------------------------------------------------------------------ sound answers


def sound_chart(random: Random) -> tuple[Any, str]:
    """Return a chart as it might have been: real days, each with a move and a volume of its own, and its last day."""
    payload = recorded(f"yahoo/v8_chart_1d/{random.choice(list(CHARTS.values()))}.json")
    stamps = chart(payload)["timestamp"]
    end = random.randrange(45, len(stamps))
    cut(payload, end - 42, end)
    chart(payload)["meta"].pop("regularMarketTime")  # it is of another day
    quote, force, level = columns(payload), random.uniform(0.3, 3.0), random.uniform(0.2, 5.0)
    quote["volume"] = [round(each * random.uniform(0.3, 3.0)) for each in quote["volume"]]
    before = first = quote["open"][0]
    price = first * level
    chart(payload)["meta"]["chartPreviousClose"] = price * random.uniform(0.8, 1.2)
    for place in range(len(quote["open"])):
        moves = {name: 1 + (quote[name][place] / before - 1) * force for name in ("open", "high", "low", "close")}
        before = quote["close"][place]
        for name, move in moves.items():
            quote[name][place] = price * max(move, 0.05)
        price = quote["close"][place]
    chart(payload)["indicators"].pop("adjclose")
    chart(payload).pop("events", None)  # they fall on other days, with other amounts
    return payload, datetime.fromtimestamp(chart(payload)["timestamp"][-1], UTC).date().isoformat()


def doubt_of_chart(random: Random) -> str:
    """Return what is wrong with a sound chart, for a rule that reads a random number of bars."""
    payload, day = sound_chart(random)
    history = read_chart(Response("url", 200, {}, json.dumps(payload).encode()), "TEST")
    now = datetime.fromisoformat(f"{day}T22:00:00+00:00")
    made = chart_of("TEST", now.date(), history, now, closed=random.random() < 0.5)
    bars = random.choice((2, 31, 41))
    fault = fault_of(made, history, bars, now)
    return jump_of(made, bars) if fault is None else fault.reason


Sound = Callable[[Random], Any]


def some(rows: list[Any], random: Random) -> list[Any]:
    """Keep at least half of some rows, in their order."""
    kept = random.randint(len(rows) // 2 + 1, len(rows))
    return [rows[place] for place in sorted(random.sample(range(len(rows)), kept))]


def sound_screener(random: Random) -> Any:
    answer = faults.SCREENER.sound()
    rows = answer["finance"]["result"][0]["quotes"] = some(quotes(answer), random)
    answer["finance"]["result"][0]["count"] = len(rows)
    for row in rows:
        factor = random.uniform(0.5, 2.0)
        for name in ("regularMarketPrice", "regularMarketPreviousClose"):
            row[name] *= factor
        row["regularMarketVolume"] = round(row["regularMarketVolume"] * random.uniform(0.2, 5.0))
        row["regularMarketTime"] -= random.randint(0, 3600)
    return answer


def sound_options(random: Random) -> Any:
    answer = faults.OPTIONS.sound()
    for row in faults.contracts(answer):
        row["openInterest"] = random.choice((0, *[random.randint(1, 5000)] * 9))
        row["volume"] = random.randint(0, 20_000)
        row["lastPrice"] *= random.uniform(0.5, 1.5)
    return answer


def sound_movers(random: Random) -> Any:
    answer = faults.MOVERS.sound()
    for name in ("top_gainers", "top_losers", "most_actively_traded"):
        answer[name] = some(answer[name], random)
    return answer


def sound_news(random: Random) -> Any:
    answer = faults.NEWS.sound()
    answer["feed"] = some(answer["feed"], random)
    answer["items"] = str(len(answer["feed"]))
    for row in faults.mentions(answer):
        row["ticker_sentiment_score"] = f"{random.uniform(-1, 1):.6f}"
    return answer


def sound_analysts(random: Random) -> Any:
    answer = faults.ANALYSTS.sound()
    for row in answer:
        for name in ("strongBuy", "buy", "hold", "sell", "strongSell"):
            row[name] = max(0, row[name] + random.randint(-5, 5))
    return answer


OTHERS: tuple[tuple[Case, Sound, str, dict[str, Any], dict[str, Any]], ...] = (
    (faults.SCREENER, sound_screener, "2025-02-21T11:28:33+00:00", {}, {"screeners": ["day_gainers"]}),
    (faults.OPTIONS, sound_options, "2025-02-24T09:24:42+00:00", {"tickers": ["AAPL"]}, {}),
    (faults.MOVERS, sound_movers, "2026-05-17T20:00:00+00:00", {}, {"alpha_vantage_key": KEY}),
    (faults.NEWS, sound_news, "2026-05-17T20:00:00+00:00", {}, {"api_key": KEY}),
    (faults.ANALYSTS, sound_analysts, "2026-05-17T20:00:00+00:00", {"tickers": ["AAPL"]}, {"api_key": KEY}),
)


def doubts_of_others(random: Random, number: int) -> Iterator[str]:
    """Yield what the other scanners say about sound answers, an empty text each time that they believe one."""
    said: list[Any] = []
    of_movers = {"function": "TOP_GAINERS_LOSERS"}

    def respond(_path: str, query: dict[str, str]) -> Answer:
        return faults.of_alpha_vantage("/query", of_movers | query, said[-1])

    with LoopbackServer(respond) as server:
        for place in range(number):
            case, sound, now, state, settings = OTHERS[place % len(OTHERS)]
            said[:] = [sound(random)]
            urls = {"base_url": server.url}
            if case is faults.MOVERS:
                urls["alpha_vantage_url"] = server.url
            context: ScanContext = context_at(now, case.scanner.name, **settings, **urls)
            list(case.scanner(state, context))
            yield context.doubted or ""


@pytest.mark.parametrize("number", [500, pytest.param(SOUND, marks=pytest.mark.long)])
def test_sound_answers_are_believed(number: int) -> None:
    random = Random(22)
    doubts = [doubt_of_chart(random) for _ in range(number * 9 // 10)]
    doubts += doubts_of_others(random, number // 10)
    alarms = [doubt for doubt in doubts if doubt]
    assert len(doubts) == number
    assert len(alarms) <= (FALSE_ALARMS if number == SOUND else 0), alarms[:5]
