"""What was found, by what it is about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from resilient_scan import Candidate, RunReport
from tests.unit.test_report import report, result


def found(ticker: str, source: str, context: str = "why", priority: str = "unknown") -> Candidate:
    return Candidate(ticker, source, context, priority)


def of(*candidates: Candidate) -> RunReport:
    """Return a report with one scanner per source."""
    sources = dict.fromkeys(candidate.source for candidate in candidates)
    return report(*(result(name, candidates=[one for one in candidates if one.source == name]) for name in sources))


def test_sources_and_contexts_are_united_each_once_in_the_order_of_the_scanners() -> None:
    whole = of(found("A", "z", "rose"), found("A", "z", "fell"), found("A", "b", "rose"), found("A", "b", "news"))
    (one,) = whole.merged()
    assert (one.ticker, one.key) == ("A", "A")
    assert one.sources == ("z", "b")
    assert one.contexts == ("rose", "fell", "news")
    assert one.candidates == tuple(whole.candidates)


@pytest.mark.parametrize(
    ("priorities", "expected"),
    [
        (["low"], "low"),
        (["medium", "low"], "high"),
        (["critical", "low"], "critical"),
        (["unknown", "unknown"], "high"),
        (["low", "low", "low"], "critical"),
        (["low"] * 5, "critical"),
        (["urgent"], "urgent"),
        (["HIGH"], "HIGH"),
    ],
)
def test_the_best_priority_counts_and_confluence_raises_it(priorities: list[str], expected: str) -> None:
    candidates = [found("A", f"s{number}", priority=priority) for number, priority in enumerate(priorities)]
    assert of(*candidates).merged()[0].priority == expected


def test_one_source_that_says_it_twice_is_no_confluence() -> None:
    (one,) = of(found("A", "s", priority="low"), found("A", "s", priority="medium")).merged()
    assert (one.priority, one.sources) == ("medium", ("s",))


def test_the_order_is_priority_then_sources_then_ticker() -> None:
    candidates = [
        found("Z", "a", priority="critical"),
        found("B", "a", priority="low"),
        found("A", "a", priority="odd"),
        found("C", "a", priority="low"),
        *(found("Y", source) for source in "abc"),
        *(found("X", source) for source in "ab"),
        found("W", "a", priority="High"),
        found("V", "a", priority="medium"),
    ]
    chance = Random(11)
    for _ in range(500):
        chance.shuffle(candidates)
        assert [one.ticker for one in of(*candidates).merged()] == ["Y", "Z", "X", "W", "V", "B", "C", "A"]


@dataclass(frozen=True)
class Filing:
    number: int
    company: str


def test_candidates_of_other_types_are_distinguished_by_what_they_are_or_by_a_given_key() -> None:
    whole = report(
        result("one", candidates=[Filing(1, "X"), Filing(2, "X"), {"ticker": "A", "context": "c"}]),
        result("two", candidates=[Filing(1, "X"), {"no": "ticker"}, Candidate("A", "q", "c")]),
    )
    by_whole = {one.ticker: one.sources for one in whole.merged()}
    assert by_whole == {
        "A": ("one", "q"),
        "{'number': 1, 'company': 'X'}": ("one", "two"),
        "{'number': 2, 'company': 'X'}": ("one",),
        "{'no': 'ticker'}": ("two",),
    }
    by_company = whole.merged(key=lambda candidate: getattr(candidate, "company", None))
    assert [(one.key, one.sources) for one in by_company] == [(None, ("one", "two", "q")), ("X", ("one", "two"))]


def test_as_data() -> None:
    (one,) = of(found("A", "s", "c", "low"), found("A", "t", "c", "low")).merged()
    assert json.loads(json.dumps(one.to_dict())) == {
        "ticker": "A",
        "priority": "high",
        "sources": ["s", "t"],
        "contexts": ["c"],
        "candidates": [
            {"ticker": "A", "source": source, "context": "c", "priority": "low", "strategy": "", "extras": {}}
            for source in ("s", "t")
        ],
    }


def test_nothing_found_is_an_empty_list() -> None:
    empty: list[Any] = report(result("a")).merged()
    assert empty == []
