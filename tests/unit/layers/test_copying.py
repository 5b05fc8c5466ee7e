"""How answers are copied: what is shared, what is copied at once, and that no copy shares what can be changed."""

from __future__ import annotations

import copy
import datetime as dt
from collections import OrderedDict
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import Candidate
from resilient_scan.layers.copying import AT_ONCE, FLAT, MAX_AT_ONCE, ON_WORKER, SHARED, copied, copies_of, copying_of


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Frozen:
    value: Any = 1


@dataclass(frozen=True, slots=True)
class Slotted:
    value: Any = 1


class FrozenStruct(msgspec.Struct, frozen=True):
    value: Any = 1


class FrozenStructWithMore(msgspec.Struct, frozen=True, dict=True):
    value: Any = 1


class Struct(msgspec.Struct):
    value: Any = 1


@dataclass
class Open:
    value: Any = 1


class OpenBelowFrozen(Struct, frozen=True):
    pass


@dataclass(frozen=True)
class FrozenList(list[Any]):
    value: Any = 1


@dataclass(frozen=True)
class Hidden:
    value: int = 1
    notes: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "more", ["x"])


class BelowFrozen(Frozen):
    """Not a dataclass itself: it may have attributes that are set later."""


class Text(str):
    __slots__ = ()


def one(**extras: Any) -> Candidate:
    return Candidate("A", "one", "", extras=extras)


FLAT_EXTRAS = [
    {},
    {"a": 1, "b": "x", "c": None, "d": 1.5, "e": True, "f": b"x", "g": 1j},
    {"day": dt.date(2026, 1, 2), "at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "price": Decimal("1.10")},
    {"id": UUID(int=1), "time": dt.time(1), "for": dt.timedelta(1)},
]
NESTED = [
    {3: 4, None: None},
    {"colour": Colour.RED},
    {"tuple": (1,)},
    {"list": []},
    {"rows": [{"d": [1, [2]]}, (1, [2], {"x": ()})], "set": {1, "x"}, "more": frozenset({2}), 3: {4: 5}},
]
FOREIGN = [
    {"x": Open()},
    {"x": [Open()]},
    {"x": {"y": (Open(),)}},
    {"x": Text("x")},
    {"x": OrderedDict()},
    {"x": bytearray()},
    {"x": {Frozen()}},
    {"x": frozenset({Frozen()})},
    {"x": {Frozen(): 1}},
    {Frozen(): 1},
    {Text("x"): 1},
    {"x": Frozen()},
]


PLAIN = [*FLAT_EXTRAS, *NESTED]


@pytest.mark.parametrize("extras", FLAT_EXTRAS)
def test_of_candidates_with_plain_extras_only_the_dict_of_the_extras_is_copied(extras: dict[Any, Any]) -> None:
    candidates = (one(), Candidate("A", "one", "", "high", "s", extras))
    assert copying_of(candidates) == FLAT
    made = copies_of(candidates, FLAT)
    assert made == list(candidates)
    assert made[1].extras is not extras
    assert all(mine is other for mine, other in zip(made[1].extras.values(), extras.values(), strict=True))
    made[1].extras["more"] = 1
    assert "more" not in copies_of(candidates, FLAT)[1].extras


@pytest.mark.parametrize("extras", NESTED)
def test_a_few_candidates_of_plain_values_are_copied_at_once(extras: dict[Any, Any]) -> None:
    assert copying_of([one(), Candidate("A", "one", "", extras=extras)]) == AT_ONCE


@pytest.mark.parametrize("extras", FOREIGN)
def test_what_may_run_foreign_code_is_copied_on_a_worker(extras: dict[Any, Any]) -> None:
    assert copying_of([one(), Candidate("A", "one", "", extras=extras)]) == ON_WORKER


@pytest.mark.parametrize(
    ("candidates", "copying"),
    [
        ([], FLAT),
        ([one()] * MAX_AT_ONCE, FLAT),
        ([one(**{str(n): n for n in range(MAX_AT_ONCE - 1)})], FLAT),
        ([one(**{str(n): n for n in range(MAX_AT_ONCE)})], ON_WORKER),
        ([one()] * (MAX_AT_ONCE + 1), ON_WORKER),
        ([one(x=list(range(MAX_AT_ONCE - 2)))], AT_ONCE),
        ([one(x=list(range(MAX_AT_ONCE - 1)))], ON_WORKER),
        ([one(x=set(range(MAX_AT_ONCE)))], ON_WORKER),
        ([one(x=dict.fromkeys(range(MAX_AT_ONCE)))], ON_WORKER),
        ([one(x=[[] for _ in range(MAX_AT_ONCE)])], ON_WORKER),
    ],
)
def test_few_means_few_values_in_all(candidates: list[Any], copying: str) -> None:
    assert copying_of(candidates) == copying


def test_a_cycle_is_copied_on_a_worker() -> None:
    rows: list[Any] = [1]
    rows.append(rows)
    candidate = one(rows=rows)
    assert copying_of([candidate]) == ON_WORKER
    made = copied(candidate).extras["rows"]
    assert made is not rows
    assert made[1] is made


def test_what_refers_to_one_list_again_and_again_does_not_grow() -> None:
    rows: Any = []
    for _ in range(100):
        rows = [rows, rows]
    made = copied(one(rows=rows, same=rows)).extras
    assert made["rows"] is made["same"]
    assert made["rows"][0] is made["rows"][1]
    pairs: Any = [1]
    for _ in range(100):
        pairs = (pairs, pairs)
    made = copied(one(rows=pairs)).extras
    assert made["rows"][0] is made["rows"][1]


@pytest.mark.parametrize(
    "value",
    [
        Frozen(),
        Frozen((1, "x", frozenset({2}))),
        Frozen(Colour.RED),
        Frozen(FrozenStruct(Slotted())),
        Slotted("x"),
        FrozenStruct("x"),
        FrozenStructWithMore("x"),
        (1, "x"),
        "x",
    ],
)
def test_what_cannot_be_changed_is_shared(value: Any) -> None:
    assert copying_of([value]) == SHARED


@pytest.mark.parametrize(
    "value",
    [
        one(),
        Frozen([]),
        Frozen((1, [])),
        Frozen(one()),
        Slotted([]),
        FrozenStruct({}),
        Struct(),
        Open(),
        OpenBelowFrozen(),
        FrozenList(),
        BelowFrozen(),
        {"ticker": "A"},
        Frozen(bytearray()),
    ],
)
def test_what_can_be_changed_is_not_shared(value: Any) -> None:
    assert copying_of([Frozen(), value]) == ON_WORKER


def test_foreign_code_is_not_run_to_find_out() -> None:
    class Nosy:
        @property
        def __class__(self) -> Any:  # what `isinstance` asks
            raise AssertionError("foreign code")

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("foreign code")

    assert copying_of([one(x=Nosy())]) == copying_of([Frozen(Nosy())]) == ON_WORKER


def test_what_is_set_on_a_frozen_object_later_counts() -> None:
    more = FrozenStructWithMore("x")
    vars(more)["notes"] = []
    hidden = Hidden.__new__(Hidden)
    object.__setattr__(hidden, "more", ["x"])
    assert copying_of([more]) == copying_of([hidden]) == ON_WORKER


@pytest.mark.parametrize("extras", PLAIN)
def test_a_copy_is_equal_and_of_the_same_types(extras: dict[Any, Any]) -> None:
    original = Candidate("A", "one", "context", "high", "swing", extras)
    made = copied(original)
    assert made is not original
    assert type(made) is Candidate
    assert made == original == copy.deepcopy(original)
    assert repr(made) == repr(original)


def test_foreign_parts_are_copied_as_they_want() -> None:
    original = one(x=[Open([1])], y=OrderedDict(a=[1]), z={Frozen(): [2]}, s={Frozen()})
    made = copied(original)
    assert made == original
    assert made.extras["x"][0].value is not original.extras["x"][0].value
    assert made.extras["y"]["a"] is not original.extras["y"]["a"]
    assert made.extras["z"][Frozen()] is not original.extras["z"][Frozen()]
    assert type(made.extras["y"]) is OrderedDict


def test_extras_may_be_a_dict_of_another_kind() -> None:
    assert copying_of([Candidate("A", "one", "", extras=OrderedDict())]) == ON_WORKER
    original = Candidate("A", "one", "", extras=OrderedDict(a=[1]))
    made = copied(original)
    assert type(made.extras) is OrderedDict
    assert made.extras["a"] is not original.extras["a"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.dates() | st.just(Open),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), values))
def test_no_copy_shares_what_can_be_changed(extras: dict[str, Any]) -> None:
    original = Candidate("A", "one", "", extras=extras)
    made = copied(original)
    assert made == original
    assert changeable(made.extras).isdisjoint(changeable(extras))


def changeable(value: Any) -> set[int]:
    """Return the identities of all lists and dicts in a value."""
    if isinstance(value, dict):
        return {id(value)}.union(*map(changeable, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(changeable, value))
    return set().union(*map(changeable, value)) if isinstance(value, tuple) else set()
