"""What a scanner declares about its answers, and which answers break it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest

from resilient_scan import Candidate, ConfigError, Expect, ScanContext, ScanRunner, scanner
from resilient_scan.events import SuspiciousResult
from resilient_scan.testing import FakeClock, Recorder

NOW = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
DAY = 86_400.0


def one(ticker: str = "AAPL", **extras: Any) -> Candidate:
    return Candidate(ticker, "source", "c", extras=extras)


def judged(expect: Any, *answer: Any, state: Any = None, kind: type = Candidate) -> tuple[str | None, str | None]:
    """Return the kind of doubt that a runner reports about an answer, and its words."""

    @scanner(pipeline="p", expect=expect, candidate=kind, empty_ok=True)
    def source(_state: dict[str, Any]) -> Any:
        return list(answer)

    recorder, clock = Recorder(), FakeClock(NOW.timestamp())
    with ScanRunner([source], listeners=(recorder,), clock=clock) as runner:
        result = runner.run(state or {}).results["source"]
    events = recorder.of(SuspiciousResult)
    assert [event.reason for event in events] == ([] if result.suspicious is None else [result.suspicious])
    assert len(result.candidates) == len(answer)  # nothing is taken away
    return (events[0].kind if events else None), result.suspicious


@pytest.mark.parametrize(
    ("expect", "answer", "kind", "words"),
    [
        (Expect(at_least=1), [], "empty", "empty: 0 candidates, 1 or more are expected"),
        (Expect(at_least=2), [one()], "incomplete", "incomplete: 1 candidates, 2 or more are expected"),
        (Expect(at_least=1), [one()], None, None),
        (Expect(fields=("close",)), [one(close=1), one("B")], "missing", "missing: 1 of 2 candidates have no close"),
        (Expect(fields=("close",)), [one(close=None)], "missing", "missing: 1 of 1 candidates have no close"),
        (Expect(fields=("strategy",)), [one()], "missing", "missing: 1 of 1 candidates have no strategy"),
        (Expect(fields=("ticker", "close")), [one(close=0)], None, None),
        (Expect(ranges={"close": (1, 9)}), [one(close=1), one("B", close=9), one("C")], None, None),
        (
            Expect(ranges={"close": (1, 9)}),
            [one(close=2), one("B", close=900)],
            "out_of_range",
            "out of range: close is 900, which must be from 1 to 9",
        ),
        (Expect(ranges={"close": (1, 9)}), [one(close=float("nan"))], "out_of_range", None),
        (Expect(ranges={"close": (1, 9)}), [one(close="2")], "out_of_range", None),
        (Expect(), [one(close=1), one(close=1)], "duplicate", "duplicate: 1 of 2 candidates are there twice"),
        (Expect(), [one(close=1), one(close=2)], None, None),
        (Expect(max_age=DAY), [one(date="2026-11-22")], "stale", None),
        (Expect(max_age=2 * DAY), [one(date="2026-11-22"), one("B", date="2026-11-24")], None, None),
        (Expect(max_age=DAY), [one(date="2026-11-26")], "wrong_day", None),
        (Expect(max_age=DAY), [one(date="2026-11-24"), one("B")], "missing", None),
        (Expect(max_age=DAY), [one(date="yesterday")], "missing", None),
        (Expect(max_age=60, time="at"), [one(at=NOW.timestamp() - 59)], None, None),
        (Expect(max_age=60, time="at"), [one(at=NOW.timestamp() - 61)], "stale", None),
        (Expect(max_age=60, time="at"), [one(at="2026-11-24T14:59:30Z")], None, None),
        (Expect(max_age=60, time="at"), [one(at="2026-11-24T14:58:30+00:00")], "stale", None),
        (Expect(max_age=60, time="at"), [one(at=1e300)], "missing", None),
        (Expect(max_age=DAY), [], None, None),
        (None, [one(), one()], None, None),
    ],
)
def test_an_answer_that_breaks_a_declaration_is_suspicious(
    expect: Any, answer: list[Candidate], kind: str | None, words: str | None
) -> None:
    found, said = judged(expect, *answer)
    assert found == kind
    if words:
        assert said == words


def test_the_message_about_an_old_answer_names_both_times() -> None:
    assert judged(Expect(max_age=DAY), one(date=date(2026, 11, 20)))[1] == (
        "stale: the oldest date is 2026-11-21 00:00 UTC, more than 86400 s before 2026-11-24 15:00 UTC"
    )
    assert judged(Expect(max_age=DAY), one(date=date(2026, 11, 28)))[1] == (
        "wrong day: the latest date is 2026-11-29 00:00 UTC, after 2026-11-24 15:00 UTC"
    )


@pytest.mark.parametrize("day", ["2026-10-01", date(2026, 10, 1), datetime(2026, 10, 1, 23, 0, tzinfo=UTC)])
def test_of_a_past_day_ages_are_measured_from_it(day: Any) -> None:
    assert judged(Expect(max_age=DAY), one(date="2026-10-01"), state={"trade_date": day})[0] is None
    assert judged(Expect(max_age=DAY), one(date="2026-09-28"), state={"trade_date": day})[0] == "stale"
    assert judged(Expect(max_age=DAY), one(date="2026-10-05"), state={"trade_date": day})[0] == "wrong_day"


def test_all_that_is_broken_is_named_and_the_first_kind_counts() -> None:
    kind, words = judged(Expect(at_least=3, fields=("close",)), one(), one("B", close=1))
    assert kind == "incomplete"
    assert words == ("incomplete: 2 candidates, 3 or more are expected; missing: 1 of 2 candidates have no close")


@dataclass
class Outage:
    """A candidate of a user's own."""

    region: str
    minutes: float


def test_it_works_for_candidates_of_ones_own() -> None:
    expect = Expect(fields=("region",), ranges={"minutes": (0, 1440)})
    assert judged(expect, Outage("eu", 12), kind=Outage) == (None, None)
    assert judged(expect, Outage("", 12), kind=Outage)[0] == "missing"
    assert judged(expect, Outage("eu", 99_999), kind=Outage)[0] == "out_of_range"


def test_it_works_for_a_class() -> None:
    class Source:
        name, pipeline = "source", "p"
        expect = Expect(at_least=1)

        def scan(self, _state: dict[str, Any]) -> list[Candidate]:
            return []

    with ScanRunner([Source()], listeners=()) as runner:
        assert runner.run().results["source"].suspicious == "empty: 0 candidates, 1 or more are expected"


def test_it_works_for_a_coroutine() -> None:
    @scanner(pipeline="p", expect=Expect(at_least=1))
    async def source(_state: dict[str, Any]) -> list[Candidate]:
        return []

    with ScanRunner([source], listeners=()) as runner:
        assert runner.run().results["source"].suspicious is not None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fields": "close"}, "expect.fields must be a tuple of names"),
        ({"at_least": -1}, "expect.at_least must be >= 0"),
        ({"at_least": True}, "expect.at_least must be a whole number"),
        ({"max_age": 0}, "expect.max_age must be > 0"),
        ({"time": ""}, "expect.time must be a name"),
        ({"ranges": {"close": 3}}, r"expect.ranges must be a dict of \(least, greatest\) by name"),
        ({"ranges": {"close": (3, 2)}}, "expect.ranges must be a dict"),
        ({"ranges": [("close", (2, 3))]}, "expect.ranges must be a dict"),
        ({"field": ("close",)}, "Expect has no option 'field'; did you mean 'fields'"),
    ],
)
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Expect(**wrong)


def test_what_is_no_declaration_is_refused() -> None:
    with pytest.raises(ConfigError, match="@scanner: expect must be an Expect or None, got 'close'"):
        scanner(pipeline="p", expect="close")  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------- what a scanner says


def test_a_scanner_says_which_kind_of_doubt_it_has() -> None:
    context = ScanContext()
    context.doubt("quotes of Friday", kind="stale")
    context.doubt("hardly any volume")
    context.doubt("quotes of Friday", kind="other")
    assert context.doubted == "stale: quotes of Friday; hardly any volume"
    for number in range(1000):
        context.doubt(f"doubt {number}")
    assert len(str(context.doubted)) < 1100


def test_a_kind_of_doubt_that_does_not_exist_is_refused() -> None:
    context = ScanContext()
    with pytest.raises(ConfigError, match=r"doubt: kind must be one of empty, missing, stale, .*, got 'old'"):
        context.doubt("quotes of Friday", kind="old")
    assert context.doubted is None
