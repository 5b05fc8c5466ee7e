"""How a scan ends, as data: nothing that a scanner finds or raises can spoil a report."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ScanTimeout, Status
from resilient_scan.results import MAX_MESSAGE, ErrorInfo, plain
from tests.support.results import result


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Outer:
    class Inner(Exception):
        """Has a qualified name."""


@dataclasses.dataclass
class Price:
    symbol: str
    value: float
    day: dt.date | None = None


class Holding(msgspec.Struct):
    symbol: str
    parts: Any = None


class Model:
    """Looks like pydantic's."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return {"mode": mode, "value": math.nan}


class Colour(enum.Enum):
    RED = "red"


def test_the_set_of_statuses_is_closed() -> None:
    assert [status.value for status in Status] == [
        "completed",
        "cached",
        "stale",
        "timeout",
        "error",
        "rejected",
        "disabled",
        "skipped",
    ]


@pytest.mark.parametrize("status", list(Status))
def test_three_of_them_are_answers(status: Status) -> None:
    assert status.answered is (status.value in {"completed", "cached", "stale"})


@pytest.mark.parametrize(
    ("error", "kind", "message", "short"),
    [
        (ValueError("bad"), "ValueError", "bad", "ValueError"),
        (ValueError(), "ValueError", "ValueError", "ValueError"),
        (ValueError(""), "ValueError", "ValueError", "ValueError"),
        (KeyError("symbol"), "KeyError", "'symbol'", "KeyError"),
        (SystemExit(3), "SystemExit", "3", "SystemExit"),
        (ScanTimeout("late"), "resilient_scan.ScanTimeout", "late", "ScanTimeout"),
        (Mute("x"), f"{__name__}.Mute", "Mute", "Mute"),
        (Outer.Inner(), f"{__name__}.Outer.Inner", "Inner", "Inner"),
        (OSError("GET https://u:pw@h/?token=t failed"), "OSError", "GET https://h/?token=REDACTED failed", "OSError"),
        (json.JSONDecodeError("x", "", 0), "json.decoder.JSONDecodeError", "x: line 1 column 1 (char 0)", None),
    ],
)
def test_an_exception_becomes_text(error: BaseException, kind: str, message: str, short: str | None) -> None:
    info = ErrorInfo.of(error)
    assert (info.type, info.message) == (kind, message)
    assert info.kind == (short or "JSONDecodeError")


def chained() -> None:
    try:
        raise OSError("cause")
    except OSError as error:
        raise ValueError("effect") from error


def test_a_chained_exception_is_the_last_one() -> None:
    with pytest.raises(ValueError, match="effect") as caught:
        chained()
    assert ErrorInfo.of(caught.value) == ErrorInfo("ValueError", "effect")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ExceptionGroup("x", [OSError("down")]), ErrorInfo("OSError", "down")),
        (ExceptionGroup("x", [ValueError("bad"), OSError("down")]), ErrorInfo("ValueError", "bad (and 1 more)")),
        (
            ExceptionGroup("x", [ExceptionGroup("y", [ScanTimeout("late"), OSError("down")]), OSError("down")]),
            ErrorInfo("resilient_scan.ScanTimeout", "late (and 2 more)"),
        ),
        (BaseExceptionGroup("x", [SystemExit(), ValueError()]), ErrorInfo("SystemExit", "SystemExit (and 1 more)")),
        (ExceptionGroup("x", [Mute("x"), OSError()]), ErrorInfo(f"{__name__}.Mute", "Mute (and 1 more)")),
        (ExceptionGroup("x", [OSError("?token=t"), OSError()]), ErrorInfo("OSError", "?token=REDACTED (and 1 more)")),
    ],
)
def test_a_group_is_named_by_its_first_leaf(error: BaseException, expected: ErrorInfo) -> None:
    assert ErrorInfo.of(error) == expected


def test_of_a_text_without_end_the_beginning_is_kept() -> None:
    assert ErrorInfo.of(ValueError("x" * MAX_MESSAGE)).message == "x" * MAX_MESSAGE
    long = ErrorInfo.of(ValueError("x" * MAX_MESSAGE + "y" * 990_000)).message
    assert long == "x" * MAX_MESSAGE + "... (1000000 characters)"


def test_an_exception_of_the_main_program_has_no_prefix() -> None:
    kind = type("Boom", (Exception,), {"__module__": "__main__"})
    assert ErrorInfo.of(kind("x")) == ErrorInfo("Boom", "x")


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**70, 2**70),
        (1.5, 1.5),
        ("text", "text"),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        ([1, (2, 3)], [1, [2, 3]]),
        ({"a": {"b": [math.nan]}}, {"a": {"b": [None]}}),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "(1, 2)": "c"}),
        (frozenset({1}), [1]),
        ({"x"}, ["x"]),
        (b"raw", base64.b64encode(b"raw").decode()),
        (dt.date(2026, 11, 24), "2026-11-24"),
        (dt.datetime(2026, 11, 24, 6, 30, tzinfo=dt.UTC), "2026-11-24T06:30:00Z"),
        (decimal.Decimal("1.10"), "1.10"),
        (decimal.Decimal("NaN"), "NaN"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Status.STALE, "stale"),
        (1j, "1j"),
        (Price("AAPL", 1.5), {"symbol": "AAPL", "value": 1.5, "day": None}),
        (Price("AAPL", math.inf, dt.date(2026, 1, 2)), {"symbol": "AAPL", "value": None, "day": "2026-01-02"}),
        (Holding("A", {"x": [math.nan], 5: {1}}), {"symbol": "A", "parts": {"x": [None], "5": [1]}}),
        (Holding("A", Holding("B", 1j)), {"symbol": "A", "parts": {"symbol": "B", "parts": "1j"}}),
        (Model(), {"mode": "json", "value": None}),
        ([Model()], [{"mode": "json", "value": None}]),
        (
            Candidate("AAPL", "one", "rose", extras={"p": math.nan, "day": dt.date(2026, 1, 2)}),
            {
                "ticker": "AAPL",
                "source": "one",
                "context": "rose",
                "priority": "unknown",
                "strategy": "",
                "extras": {"p": None, "day": "2026-01-02"},
            },
        ),
    ],
)
def test_everything_has_a_plain_form(value: object, form: object) -> None:
    assert plain(value) == form
    json.dumps(plain(value), allow_nan=False)


def test_a_foreign_object_becomes_its_text() -> None:
    class Thing:
        def __str__(self) -> str:
            return "a thing"

    assert plain(Thing()) == "a thing"
    assert plain([Thing()]) == ["a thing"]
    assert plain(Holding("A", Thing())) == {"symbol": "A", "parts": "a thing"}


def test_keys_that_are_no_text_become_their_text() -> None:
    assert plain(Holding("A", {(1, 2): 3}))["parts"] == {"(1, 2)": 3}


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.sampled_from([*Status, Colour.RED, Mute("x").__class__, object()])
)
_keys = st.text() | st.integers() | st.none() | st.tuples(st.integers(), st.text())
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(_keys, inner)
        | st.builds(Holding, st.text(), inner)
        | st.builds(Price, st.text(), st.floats(), st.none() | st.dates())
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True)
@given(_values)
def test_a_plain_form_always_fits_into_strict_json(value: object) -> None:
    form = plain(value)
    assert json.loads(json.dumps(form, allow_nan=False)) == form


@settings(deadline=None, derandomize=True)
@given(st.lists(_values, max_size=4), st.lists(st.dictionaries(st.text(), _values, max_size=3), max_size=3))
def test_a_result_always_fits_into_strict_json(candidates: list[Any], logs: list[dict[str, Any]]) -> None:
    form = result(candidates=candidates, tool_logs=logs).to_dict()
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    assert len(form["candidates"]) == len(candidates)


def test_a_result_as_data_names_every_field() -> None:
    failed = result(status=Status.STALE, error=ErrorInfo("OSError", "down"), age=2.5, candidates=[{"ticker": "A"}])
    assert failed.to_dict() == {
        "scanner": "one",
        "pipeline": "news",
        "status": "stale",
        "candidates": [{"ticker": "A"}],
        "error": {"type": "OSError", "message": "down", "where": "", "traceback": "", "blame": "scanner"},
        "attempts": 1,
        "duration": 0.5,
        "queue_wait": 0.0,
        "age": 2.5,
        "partial": False,
        "dropped": 0,
        "tool_logs": [],
        "started_at": 0.0,
        "suspicious": None,
    }
    assert type(failed.to_dict()["status"]) is str


def test_a_result_does_not_change_what_it_describes() -> None:
    found = [{"ticker": "A", "day": dt.date(2026, 1, 2)}]
    one = result(candidates=found)
    one.to_dict()["candidates"][0]["ticker"] = "B"
    assert one.candidates is found
    assert found == [{"ticker": "A", "day": dt.date(2026, 1, 2)}]
