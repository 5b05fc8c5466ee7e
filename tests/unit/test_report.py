"""What a run brought, and what it counts."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ConfigError, RunReport, ScanError, ScanResult, Status
from resilient_scan.results import ErrorInfo, plain, results_in_order
from tests.support.results import result as any_result


def result(name: str, status: Status = Status.COMPLETED, **changes: Any) -> ScanResult:
    return any_result(scanner=name, status=status, **changes)


def report(*results: ScanResult) -> RunReport:
    return RunReport("id", {one.scanner: one for one in results}, 100.0, 2.5)


def of(*statuses: Status) -> RunReport:
    return report(*(result(f"s{number}", status) for number, status in enumerate(statuses)))


def test_candidates_and_logs_are_all_there_in_order() -> None:
    whole = report(
        result("b", candidates=[1, 2], tool_logs=[{"tool": "x"}]),
        result("a", Status.TIMEOUT, candidates=[3], partial=True, tool_logs=[{"tool": "y"}, {"tool": "z"}]),
        result("c", Status.ERROR),
    )
    assert whole.candidates == [1, 2, 3]
    assert [entry["tool"] for entry in whole.tool_logs] == ["x", "y", "z"]


def test_counts_name_what_occurred() -> None:
    assert of(Status.COMPLETED, Status.ERROR, Status.COMPLETED).counts == {Status.COMPLETED: 2, Status.ERROR: 1}
    assert of().counts == {}


def test_pipelines_keep_the_order_of_the_scanners() -> None:
    a, b, c = result("a", pipeline="edge"), result("b"), result("c", pipeline="edge")
    assert report(a, b, c).by_pipeline == {"edge": [a, c], "news": [b]}
    assert list(report(b, a).by_pipeline) == ["news", "edge"]


@pytest.mark.parametrize(
    ("statuses", "complete"),
    [
        ((), True),
        ((Status.COMPLETED, Status.CACHED, Status.STALE), True),
        ((Status.COMPLETED, Status.DISABLED), True),
        ((Status.DISABLED,), True),
        *(((Status.COMPLETED, bad), False) for bad in (Status.TIMEOUT, Status.ERROR, Status.REJECTED, Status.SKIPPED)),
    ],
)
def test_complete_means_that_everyone_in_service_answered(statuses: tuple[Status, ...], complete: bool) -> None:
    assert of(*statuses).complete is complete


GOOD, BAD, OUT = Status.COMPLETED, Status.ERROR, Status.DISABLED


@pytest.mark.parametrize(
    ("statuses", "fraction"),
    [
        ((GOOD, GOOD), 1),
        ((GOOD, BAD), 0.5),
        ((GOOD, BAD, OUT, OUT), 0.5),
        ((BAD, BAD), 0),
        ((OUT,), 1),
        ((), 1.0),
        ((GOOD, GOOD, BAD), 0.66),
    ],
)
def test_enough_answered(statuses: tuple[Status, ...], fraction: float) -> None:
    whole = of(*statuses)
    assert whole.require(fraction) is whole


@pytest.mark.parametrize(("answered", "asked", "fraction"), [(7, 25, 0.28), (14, 25, 0.56), (7, 100, 0.07)])
def test_exactly_enough_is_enough(answered: int, asked: int, fraction: float) -> None:
    """0.28 * 25 is 7.000000000000001; "7 of 25 answered, 28% are required"."""
    statuses = [Status.COMPLETED] * answered + [Status.ERROR] * (asked - answered)
    report = RunReport("id", {f"s{n}": result(f"s{n}", status) for n, status in enumerate(statuses)}, 0.0, 1.0)
    assert report.require(fraction) is report


@pytest.mark.parametrize(
    ("statuses", "fraction", "sentence"),
    [
        ((GOOD, BAD), 1, "1 of 2 scanners answered, 100% are required; these did not: s1 (error)"),
        (
            (GOOD, Status.TIMEOUT, OUT, Status.SKIPPED),
            0.5,
            "1 of 3 scanners answered, 50% are required; these did not: s1 (timeout), s3 (skipped)",
        ),
        ((BAD,), 0.01, "0 of 1 scanners answered, 1% are required; these did not: s0 (error)"),
    ],
)
def test_too_few_answered(statuses: tuple[Status, ...], fraction: float, sentence: str) -> None:
    with pytest.raises(ScanError) as caught:
        of(*statuses).require(fraction)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 50, math.nan, math.inf, None, True, "0.5"])
def test_a_fraction_is_from_0_to_1(fraction: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        of(GOOD).require(fraction)
    assert str(caught.value) == f"require: fraction must be from 0 to 1, got {fraction!r}"


def test_a_report_as_data_has_this_form() -> None:
    whole = report(
        result("a", candidates=[Candidate("AAPL", "a", "rose", extras={"p": math.nan})], tool_logs=[{"tool": "x"}]),
        result("b", Status.ERROR, error=ErrorInfo("OSError", "down")),
    )
    data = whole.to_dict()
    assert list(data) == [
        "run_id",
        "started_at",
        "duration",
        "complete",
        "demo",
        "counts",
        "results",
        "candidates",
        "tool_logs",
    ]
    assert (data["run_id"], data["started_at"], data["duration"], data["complete"]) == ("id", 100.0, 2.5, False)
    assert (data["demo"], msgspec.structs.replace(whole, demo=True).to_dict()["demo"]) == (False, True)
    assert data["counts"] == {"completed": 1, "error": 1}
    assert data["results"] == {"a": whole.results["a"].to_dict(), "b": whole.results["b"].to_dict()}
    assert data["candidates"] == data["results"]["a"]["candidates"]
    assert data["candidates"][0]["extras"] == {"p": None}
    assert data["tool_logs"] == [{"tool": "x"}]
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert {type(name) for name in data["counts"]} == {str}


class Number(float):
    """As numpy.float64 is."""


class Whole(int):
    """As an IntEnum or numpy's own are not, but others'."""


class Odd(enum.Enum):
    NOT_A_NUMBER = math.nan
    ENDLESS = math.inf


@pytest.mark.parametrize("value", [Number(1.5), [Number(1.5)], {"price": Number(1.5)}, Whole(3)])
def test_a_number_of_a_subclass_stays_a_number(value: Any) -> None:
    """numpy.float64 is a float, and comes out as the text "1.5"."""
    assert json.loads(json.dumps(plain(value))) == value


@pytest.mark.parametrize("value", list(Odd))
def test_no_number_of_an_enum_is_no_json_either(value: Odd) -> None:
    """what `to_builtins` makes of an enum is not looked at again."""
    json.dumps(plain(value), allow_nan=False)


class Mumbling:
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Model:
    def model_dump(self, *, mode: str) -> Any:
        raise ValueError("no data")


def circle() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    "make",
    [Mumbling, lambda: [Mumbling()], lambda: {Mumbling(): 1}, Model, circle, lambda: 10**5000],
    ids=list("abcdef"),
)
def test_a_report_comes_out_whatever_a_scanner_found(make: Callable[[], Any]) -> None:
    """`str` and `model_dump` are foreign code, and a list may hold itself."""
    found = result("one", Status.COMPLETED)
    found.candidates.append(make())
    json.dumps(found.to_dict(), allow_nan=False)


def test_results_are_put_into_the_order_of_the_names() -> None:
    a, b = result("a"), result("b")
    assert list(results_in_order(("c", "b", "a"), {"a": a, "b": b}).items()) == [("b", b), ("a", a)]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(list(Status)), max_size=12))
def test_the_counts_add_up_and_agree_with_complete(statuses: list[Status]) -> None:
    whole = of(*statuses)
    assert sum(whole.counts.values()) == len(statuses)
    answered = sum(count for status, count in whole.counts.items() if status.answered)
    in_service = len(statuses) - whole.counts.get(Status.DISABLED, 0)
    assert whole.complete == (answered == in_service)
    assert whole.to_dict()["counts"] == {status.value: statuses.count(status) for status in set(statuses)}
