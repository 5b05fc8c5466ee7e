"""A run's state: copies that nobody else sees, keys that mean the same next time."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan.snapshot import EMPTY, Snapshot, new_tool_logs

RULES = settings(deadline=None, derandomize=True)


class Holding(msgspec.Struct):
    symbol: str
    shares: int = 0


class Odd:
    """Neither plain data nor a dataclass or struct."""


class Spiteful:
    """Fails wherever it can, with something that nobody expects."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError

    def __deepcopy__(self, memo: Any) -> Any:
        raise ZeroDivisionError("cannot be copied")


class View(Mapping[str, Any]):
    """A mapping that is not a dict."""

    def __getitem__(self, key: str) -> Any:
        return {"a": [1]}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


# copies


def test_copies_are_isolated_from_the_caller_and_from_each_other() -> None:
    state: dict[str, Any] = {"tickers": ["AAPL"], "nested": {"deep": [{"x": [1]}]}, "set": {1}}
    before = copy.deepcopy(state)
    snapshot = Snapshot(state)
    state["tickers"].append("LATER")
    state["new"] = True
    spoilt = snapshot.copy()
    spoilt["nested"]["deep"][0]["x"].append(2)
    spoilt["set"].add(2)
    spoilt.clear()
    assert snapshot.copy() == before


def test_what_is_one_object_in_the_state_is_one_in_a_copy() -> None:
    shared: list[int] = []
    own = Snapshot({"a": shared, "b": shared}).copy()
    assert own["a"] is own["b"] is not shared


FLAT: dict[str, Any] = {
    "trade_date": dt.date(2026, 1, 2),
    "tickers": ["AAPL", "MSFT"],
    "limits": {"price": 1.5, 3: None},
    "seen": {"AAPL"},
    "pair": ("a", 1),
    "fixed": frozenset({b"x"}),
}


def test_plain_values_are_shared_and_only_what_holds_them_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    tickers = [f"T{number}" for number in range(500)]
    monkeypatch.setattr("pickle.dumps", lambda *_: pytest.fail("a pickle of 500 tickers costs six bare calls"))
    snapshot = Snapshot({**FLAT, "tickers": tickers})
    tickers.append("LATER")
    first, second = snapshot.copy(), snapshot.copy()
    assert first == second == {**FLAT, "tickers": tickers[:-1]}
    assert all(mine is other for mine, other in zip(first["tickers"], tickers, strict=False))
    for name in ("tickers", "limits", "seen"):
        assert first[name] is not second[name] is not FLAT[name]
        first[name].clear()
    assert snapshot.copy() == second


def innermost(value: Any) -> Any:
    while isinstance(value, list | tuple | dict) and value:
        value = [*(value.values() if isinstance(value, dict) else value)][-1]
    return value


@pytest.mark.parametrize("value", [[[]], [{}], {"x": []}, ([],), [(1, [])], {1: ([],)}, [Holding("A")], [Odd()]])
def test_what_is_nested_deeper_is_copied_to_the_bottom(value: Any) -> None:
    snapshot = Snapshot({"tickers": ["AAPL"], "more": value})
    assert innermost(snapshot.copy()) is not innermost(snapshot.copy()) is not innermost(value)


def test_what_cannot_be_pickled_is_copied_all_the_same() -> None:
    state = {"pick": lambda x: x + 1, "tickers": ["AAPL"]}
    snapshot = Snapshot(state)
    state["tickers"].append("LATER")
    first, second = snapshot.copy(), snapshot.copy()
    first["tickers"].append("SPOILT")
    assert second["tickers"] == ["AAPL"]
    assert second["pick"](1) == 2


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), Spiteful(), [{"deep": Spiteful()}]])
def test_what_cannot_be_copied_is_the_callers_to_know(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^state cannot be copied: .*; leave that value out, or pass its name "):
        Snapshot({"bad": value})


@pytest.mark.parametrize("state", [None, [], "text", 5, [("a", 1)], {1}])
def test_a_state_is_a_mapping(state: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Snapshot(state)
    assert str(caught.value) == f"state must be a dict, got {type(state).__name__}"


@pytest.mark.parametrize("state", [View(), MappingProxyType({"a": [1]})])
def test_any_mapping_will_do_and_a_scanner_gets_a_dict(state: Mapping[str, Any]) -> None:
    own = Snapshot(state).copy()
    assert type(own) is dict
    assert own == {"a": [1]}


def test_the_empty_one_stays_empty() -> None:
    EMPTY.copy()["spoilt"] = True
    assert EMPTY.copy() == {}


# keys


def key(state: dict[str, Any], inputs: tuple[str, ...] | None = None) -> bytes | None:
    return Snapshot(state).keys[inputs]


def test_a_key_does_not_depend_on_the_order_of_keys_or_sets() -> None:
    one = {"a": 1, "b": {"x": 1, "y": {3, 1, 2}}}
    other = {"b": {"y": {2, 3, 1}, "x": 1}, "a": 1}
    assert key(one) == key(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", 1),
        ("a", b"a"),
        ([1, 2], [2, 1]),
        ({"x": 1}, {"x": 2}),
        ({"x": 1}, {"y": 1}),
        ({1: "x"}, {"1": "x"}),
        ([], {}),
        ([[1], [2]], [[1, 2]]),
        (dt.date(2026, 1, 2), dt.date(2026, 1, 3)),
        (Holding("A", 1), Holding("A", 2)),
        (0.0, -0.0),
        (dt.date(2026, 1, 2), "2026-01-02"),
        ({1, 2}, [1, 2]),
        ((1, 2), [1, 2]),
        (Holding("A", 1), {"symbol": "A", "shares": 1}),
    ],
)
def test_a_key_differs_where_values_differ(one: Any, other: Any) -> None:
    assert key({"value": one}) != key({"value": other})


def test_a_key_is_that_of_the_state_when_it_was_taken() -> None:
    """Else the answer for the old state would be kept under the key of the new one."""
    state = {"tickers": ["AAPL"]}
    snapshot = Snapshot(state)
    state["tickers"].append("LATER")
    assert snapshot.keys[None] == key({"tickers": ["AAPL"]}) is not None
    assert snapshot.keys[("tickers",)] == key({"tickers": ["AAPL"]}, ("tickers",)) is not None


def test_a_key_leaves_the_tool_logs_out() -> None:
    assert key({"a": 1, "tool_logs": [{"tool": "x"}]}) == key({"a": 1, "tool_logs": Odd()}) == key({"a": 1})


def test_a_key_of_inputs_sees_nothing_else() -> None:
    inputs = ("trade_date", "tickers")
    one = key({"trade_date": "2026-11-24", "tickers": ["A"], "noise": Odd()}, inputs)
    assert one == key({"tickers": ["A"], "trade_date": "2026-11-24"}, inputs) is not None
    assert one != key({"tickers": ["B"], "trade_date": "2026-11-24"}, inputs)
    assert one != key({"trade_date": "2026-11-24"}, inputs)  # an input that is not there
    assert key({"a": 1}, ()) == key({"a": 2}, ()) is not None


def test_one_snapshot_has_a_key_for_each_choice_of_inputs() -> None:
    snapshot = Snapshot({"a": 1, "b": 2})
    keys = [snapshot.keys[inputs] for inputs in (None, ("a",), ("b",), ())]
    assert len(set(keys)) == 4
    assert [snapshot.keys[inputs] for inputs in (None, ("a",), ("b",), ())] == keys


@pytest.mark.parametrize("value", [Odd(), object(), [Odd()], {"x": Odd()}, 1j])
def test_what_has_no_stable_form_has_no_key(value: Any) -> None:
    assert key({"value": value}) is None
    assert key({"value": value, "a": 1}, ("a",)) is not None


@dataclasses.dataclass
class Universe:
    name: str

    def __post_init__(self) -> None:
        self.symbols: list[str] = []


def test_an_object_with_more_than_its_fields_has_no_stable_form() -> None:
    """attributes that are no fields are not in the key: the cache answers for another."""
    first, second = Universe("sp500"), Universe("sp500")
    second.symbols.append("AAPL")
    keys = [Snapshot({"universe": one}).keys[None] for one in (first, second)]
    assert keys[0] is None or keys[0] != keys[1]


# logs


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ({}, {}, []),
        ({}, {"tool_logs": [{"tool": "x"}]}, [{"tool": "x"}]),
        ({"tool_logs": []}, {"tool_logs": [{"tool": "x"}]}, [{"tool": "x"}]),
        ({"tool_logs": [{"tool": "old"}]}, {"tool_logs": [{"tool": "old"}]}, []),
        ({"tool_logs": [{"tool": "old"}]}, {"tool_logs": [{"tool": "old"}, {"tool": "x"}]}, [{"tool": "x"}]),
        ({"tool_logs": [{"tool": "old"}]}, {"tool_logs": []}, []),
        ({"tool_logs": [{"tool": "old"}]}, {}, []),
        ({"tool_logs": [{"tool": "old"}]}, {"tool_logs": None}, []),
        ({"tool_logs": [{"tool": "old"}]}, {"tool_logs": "text"}, []),
        ({"tool_logs": None}, {"tool_logs": [{"tool": "x"}]}, [{"tool": "x"}]),
        ({"tool_logs": "text"}, {"tool_logs": "text and more"}, []),
    ],
)
def test_new_log_entries_are_those_beyond_the_known_ones(
    before: dict[str, Any], after: dict[str, Any], new: list[Any]
) -> None:
    snapshot = Snapshot(before)
    state = snapshot.copy()
    known = snapshot.known_logs(state)
    logs = after.get("tool_logs")
    kept = known if isinstance(logs, list) and logs[: len(known)] == list(known) else ()
    state = {**after, "tool_logs": [*kept, *logs[len(kept) :]]} if isinstance(logs, list) else after
    assert new_tool_logs(state, known) == new


# whatever a state is made of

_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary()
)
_states = st.dictionaries(
    st.text(),
    st.recursive(
        _scalars | st.dates() | st.decimals(allow_nan=False) | st.builds(Holding, st.text(), st.integers()),
        lambda inner: (
            st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.text())
        ),
        max_leaves=15,
    ),
    max_size=5,
)


def mutables(value: Any) -> Iterator[int]:
    """Yield the identity of every object inside that can be changed."""
    if isinstance(value, dict | list | set | Holding):
        yield id(value)
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    for item in inside:
        yield from mutables(item)


@RULES
@given(_states)
def test_a_copy_is_equal_and_shares_nothing_that_can_change(state: dict[str, Any]) -> None:
    snapshot = Snapshot(state)
    first, second = snapshot.copy(), snapshot.copy()
    assert first == second == state
    own = [set(mutables(one)) for one in (state, first, second)]
    assert not own[0] & own[1]
    assert not own[1] & own[2]


@RULES
@given(_states)
def test_a_key_is_that_of_any_equal_state(state: dict[str, Any]) -> None:
    assert Snapshot(copy.deepcopy(state)).keys[None] == Snapshot(dict(reversed(state.items()))).keys[None]


_plain = st.recursive(
    _scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal, types of the numbers included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)  # tells 0.0 from -0.0


@RULES
@given(_plain, _plain)
def test_two_plain_values_have_one_key_only_if_they_are_the_same(one: Any, other: Any) -> None:
    ours, theirs = Snapshot({"value": one}).keys[None], Snapshot({"value": other}).keys[None]
    assert ours is not None
    assert (ours == theirs) == same(one, other)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({1: "a", "b": 2}, {"b": 2, 1: "a"}, {1: "a", "b": 3}),
        ({1: 1}, {1: 1}, {"1": 1}),
        (2**200, 2**200, 2**200 + 1),
        (-(2**80), -(2**80), 2**80),
    ],
)
def test_keys_that_are_no_text_and_huge_numbers_have_stable_forms(one: Any, same: Any, other: Any) -> None:
    assert key({"value": one}) == key({"value": same}) is not None
    assert key({"value": one}) != key({"value": other})


def test_rearranged_tool_logs_are_distinguished_from_old_ones() -> None:
    old = [{"old": 1}, {"old": 2}]
    assert new_tool_logs({"tool_logs": [*old, {"new": 1}]}, old) == [{"new": 1}]
    assert new_tool_logs({"tool_logs": [{"new": 1}]}, old) == [{"new": 1}]
    assert new_tool_logs({"tool_logs": [{"new": 1}, *old]}, old) == [{"new": 1}]
    assert new_tool_logs({"tool_logs": [*old[::-1], {"new": 1}]}, old) == [{"new": 1}]
    assert new_tool_logs({"tool_logs": old}, old) == []
    assert new_tool_logs({"tool_logs": ["a", "a"]}, ["a"]) == ["a"], "equal texts are one object"


class Trap(list[Any]):
    """A list, or an entry, whose every method raises."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]
    __iter__ = __len__ = __getitem__ = __bool__ = __eq__  # type: ignore[assignment]


def test_new_log_entries_are_found_without_a_call_of_theirs() -> None:
    old = [{"old": 1}]
    found = new_tool_logs({"tool_logs": Trap([Trap(), *old])}, old)
    assert [type(entry) for entry in found] == [Trap]


def test_copies_of_a_state_of_plain_values_are_independent_too() -> None:
    given: dict[str, Any] = {"trade_date": "2026-11-24", "run": 1}
    snapshot = Snapshot(given)
    given["run"] = 2
    first = snapshot.copy()
    first["run"] = 3
    assert snapshot.copy() == {"trade_date": "2026-11-24", "run": 1}
