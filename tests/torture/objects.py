"""Poisons made of objects: candidates, extras, log entries and answers whose methods hang or raise, or have no end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from resilient_scan import Cache, Candidate, ScanContext
from tests.torture.raising import OwnBase
from tests.torture.register import FOREVER, found, hang, poison

GROUP = "objects"
ONE = found()[0]


def fail(*_args: Any, **_kwargs: Any) -> Any:
    raise OwnBase("a method")


class Raises:
    """Every method that a library might call raises."""

    __eq__ = __hash__ = __repr__ = __str__ = __reduce__ = __reduce_ex__ = fail  # type: ignore[assignment]
    __deepcopy__ = __copy__ = __bool__ = __len__ = __iter__ = __getstate__ = __format__ = fail  # type: ignore[assignment]


class Hangs:
    __eq__ = __hash__ = __repr__ = __str__ = __reduce__ = __reduce_ex__ = hang  # type: ignore[assignment]
    __deepcopy__ = __copy__ = __bool__ = __len__ = __iter__ = __getstate__ = __format__ = hang  # type: ignore[assignment]


class DelHangs:
    def __del__(self) -> None:
        if not FOREVER.is_set():
            hang()


class DelRaises:
    def __del__(self) -> None:
        raise OwnBase("del")


class Own(msgspec.Struct):
    ticker: str
    what: Any = None


class CopyHangs(Own):
    def __deepcopy__(self, _memo: Any) -> Any:
        hang()


class CopyRaises(Own):
    def __deepcopy__(self, _memo: Any) -> Any:
        raise OwnBase("deepcopy")


class CopyExits(Own):
    def __deepcopy__(self, _memo: Any) -> Any:
        raise SystemExit(3)


@poison("finds things that cannot be compared, hashed, shown or copied", "completed", "error", group=GROUP)
def extras_raise(_state: dict[str, Any]) -> Any:
    return found(what=Raises())


@poison("finds things whose every method hangs", "timeout", group=GROUP)
def extras_hang(_state: dict[str, Any]) -> Any:
    return found(what=Hangs())


@poison("finds a candidate whose `__deepcopy__` hangs", "timeout", group=GROUP)
def deepcopy_hangs(_state: dict[str, Any]) -> Any:
    return found(what=CopyHangs("A"))


@poison("finds a candidate whose `__deepcopy__` raises", "completed", "error", group=GROUP)
def deepcopy_raises(_state: dict[str, Any]) -> Any:
    return found(what=CopyRaises("A"))


@poison("finds a candidate whose `__deepcopy__` exits", "completed", "error", group=GROUP)
def deepcopy_exits(_state: dict[str, Any]) -> Any:
    return found(what=CopyExits("A"))


@poison("finds a lock", "completed", group=GROUP)
def finds_a_lock(_state: dict[str, Any]) -> Any:
    return found(lock=threading.Lock())


@poison("finds a list that is nested 100,000 deep", "completed", "error", group=GROUP)
def finds_depth(_state: dict[str, Any]) -> Any:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return found(deep=deep)


@poison("finds a list that contains itself", "completed", group=GROUP)
def finds_a_cycle(_state: dict[str, Any]) -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    return found(cycle=cycle)


@poison("has locals whose `__del__` hangs", "timeout", group=GROUP)
def del_hangs(_state: dict[str, Any]) -> Any:
    trap = DelHangs()
    return found(str(id(trap)))


@poison("raises with a local whose `__del__` hangs", "error", "timeout", group=GROUP, keeps=True)
def del_hangs_in_a_failure(_state: dict[str, Any]) -> Any:
    trap = DelHangs()
    raise ValueError(id(trap))


@poison("puts something whose `__del__` hangs into its state", "timeout", "completed", group=GROUP, keeps=True)
def del_hangs_in_the_state(state: dict[str, Any]) -> Any:
    state["trap"] = DelHangs()
    return found()


@poison("puts something whose `__del__` hangs into its state and fails", "timeout", "error", group=GROUP, keeps=True)
def del_hangs_in_a_failed_state(state: dict[str, Any]) -> Any:
    state["trap"] = DelHangs()
    raise ValueError("and fails")


@poison(
    "finds what hangs when it is dropped from the cache",
    "completed",
    "timeout",
    group=GROUP,
    keeps=True,
    cache=Cache(ttl=0.001),
)
def del_hangs_in_the_cache(_state: dict[str, Any]) -> Any:
    return found(trap=DelHangs())


@poison("has locals whose `__del__` raises", "completed", group=GROUP)
def del_raises(state: dict[str, Any]) -> Any:
    state["trap"], trap = DelRaises(), DelRaises()
    return found(str(id(trap)))


@poison("logs what hangs when compared, then hangs", "timeout", group=GROUP)
def log_hangs(state: dict[str, Any]) -> Any:
    state["tool_logs"].insert(0, Hangs())
    hang()


@poison("logs what hangs when compared", "completed", "timeout", group=GROUP, keeps=True)
def log_hangs_later(state: dict[str, Any]) -> Any:
    state["tool_logs"][0] = Hangs()
    return found()


@poison("logs what raises when compared", "completed", "error", group=GROUP)
def log_raises(state: dict[str, Any]) -> Any:
    state["tool_logs"][0] = Raises()
    return found()


class LogIsATrap(list[Any]):
    __len__ = __getitem__ = __iter__ = __eq__ = hang  # type: ignore[assignment]


@poison("replaces its log by a list that hangs, then hangs", "timeout", group=GROUP)
def log_is_a_trap(state: dict[str, Any]) -> Any:
    state["tool_logs"] = LogIsATrap([{"tool": "x"}])
    hang()


@poison("empties its state and fills it with traps", "completed", "timeout", "error", group=GROUP)
def breaks_the_state(state: dict[str, Any]) -> Any:
    state.clear()
    state["tool_logs"] = 5
    state["trap"] = Raises()
    return found()


@poison("overwrites what its context keeps", "completed", "error", "timeout", group=GROUP)
def breaks_the_context(_state: dict[str, Any], context: ScanContext) -> Any:
    mine: Any = context
    mine.found, mine.steps, mine.tool_logs, mine.deadline = 5, "x", 7, None
    return found()


@poison("overwrites what its context keeps, and hangs", "error", "timeout", group=GROUP, keeps=True)
def breaks_the_context_and_hangs(_state: dict[str, Any], context: ScanContext) -> Any:
    mine: Any = context
    mine.found, mine.steps, mine.tool_logs, mine.cancel = 5, "x", 7, 9
    hang()


@poison("doubts its answer with a text that hangs", "timeout", group=GROUP)
def doubt_hangs(_state: dict[str, Any], context: ScanContext) -> Any:
    context.doubt(Hangs())  # type: ignore[arg-type]
    return found()


@poison("doubts its answer with a text that raises", "error", group=GROUP)
def doubt_raises(_state: dict[str, Any], context: ScanContext) -> Any:
    context.doubt(Raises())  # type: ignore[arg-type]
    return found()


class ItemsHang(Mapping[str, Any]):
    __getitem__ = __iter__ = __len__ = hang  # type: ignore[assignment]


@poison("finds a mapping that hangs", "timeout", group=GROUP)
def mapping_hangs(_state: dict[str, Any]) -> Any:
    return [ItemsHang()]


class ReprHangs:
    __repr__ = hang


@poison("finds no candidate, and what it is hangs when shown", "timeout", group=GROUP)
def item_repr_hangs(_state: dict[str, Any]) -> Any:
    return [ReprHangs()]


class ClassHangs:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return hang() or int


@poison("returns what does not say what it is", "timeout", group=GROUP)
def answer_class_hangs(_state: dict[str, Any]) -> Any:
    return ClassHangs()


class IterRaises:
    def __iter__(self) -> Iterator[Any]:
        raise OwnBase("iter")


@poison("returns what cannot be iterated", "error", group=GROUP)
def answer_iter_raises(_state: dict[str, Any]) -> Any:
    return IterRaises()


class NextHangs:
    def __iter__(self) -> Any:
        return self

    __next__ = hang


@poison("returns an iterator that hangs", "timeout", group=GROUP)
def answer_next_hangs(_state: dict[str, Any]) -> Any:
    return NextHangs()


@poison("yields without an end", "timeout", group=GROUP, keeps=False)
def endless_generator(_state: dict[str, Any]) -> Any:
    while True:
        yield ONE


class Feed:
    def __iter__(self) -> Iterator[Any]:
        while not FOREVER.is_set():
            yield ONE


@poison("returns a feed without an end, which is no iterator", "timeout", group=GROUP, keeps=False)
def endless_feed(_state: dict[str, Any]) -> Any:
    return Feed()


@poison("returns numbers without an end", "timeout", group=GROUP, keeps=False)
def endless_numbers(_state: dict[str, Any]) -> Any:
    return itertools.count()


@poison("yields a candidate and closes badly", "error", group=GROUP)
def generator_closes_badly(_state: dict[str, Any]) -> Any:
    try:
        yield ONE
        raise ValueError("after the first")
    finally:
        raise OwnBase("close")


@poison("returns itself, generators within generators", "completed", "error", group=GROUP)
def nested_generators(_state: dict[str, Any]) -> Any:
    return [(item for item in ()) for _ in range(100)]


@poison("finds 200,000 candidates", "completed", group=GROUP)
def huge_list(_state: dict[str, Any]) -> Any:
    return [Candidate(ticker=f"T{number}", source="poison", context="") for number in range(200_000)]


@poison("finds a candidate that is wrong in 20 million characters", "completed", group=GROUP)
def huge_mistake(_state: dict[str, Any]) -> Any:
    return [{"ticker": "a b" * 7_000_000}]


@poison("returns text", "error", group=GROUP)
def returns_text(_state: dict[str, Any]) -> Any:
    return "AAPL"


@poison("shares a value under a key that hangs", "timeout", group=GROUP)
def shared_key_hangs(_state: dict[str, Any], context: ScanContext) -> Any:
    return context.shared(Hangs(), list)


@poison("shares a value that does not load", "timeout", group=GROUP)
def shared_loader_hangs(_state: dict[str, Any], context: ScanContext) -> Any:
    return context.shared("poisoned", hang)


@poison("waits for the value that does not load", "timeout", group=GROUP)
def shared_value_never_comes(_state: dict[str, Any], context: ScanContext) -> Any:
    return context.shared("poisoned", hang)


@poison("maps with a function that hangs", "timeout", group=GROUP)
def map_hangs(_state: dict[str, Any], context: ScanContext) -> Any:
    return context.map(hang, range(8), concurrency=4)


@poison("maps with a function that exits", "error", group=GROUP)
def map_exits(_state: dict[str, Any], context: ScanContext) -> Any:
    return context.map(fail, range(8), concurrency=4)
