"""How a cached answer is copied: not at all, at once, or on a worker.

A scan may change what it is given, so each one gets objects of its own. `copying_of` looks at an answer once, when it
enters the cache, and decides for all its copies:

    SHARED      nothing in it can be changed: all scans get the same objects
    FLAT        `Candidate`s whose extras are plain values by name: each gets extras of its own, the values are shared
    AT_ONCE     `Candidate`s of plain values in lists, dicts and sets, few enough to be copied in about a millisecond
    ON_WORKER   anything else: it may be large, or run foreign code (`__deepcopy__`, a candidate type of the user's own)

Only the first three may run on a run's thread, which serves all scans of its run. Most answers are flat. Copies of
those cost a sixth of what creating them did, and no value in them is looked at again.
"""

from __future__ import annotations

import copy
import datetime as dt
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec.structs import force_setattr

from resilient_scan.scanning import Candidate

SHARED, FLAT, AT_ONCE, ON_WORKER = "shared", "flat", "at once", "on a worker"
MAX_AT_ONCE = 4000  # candidates and values in them, at all depths

# Never changed and never copied, whatever else is in them (an instant's time zone may be an object of foreign code).
_FINAL: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, Decimal, uuid.UUID}
    | {dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone}
)
_BASES: Final = frozenset(msgspec.Struct.__mro__)  # of frozen classes, without attributes of their own
_CANDIDATE: Final = frozenset({Candidate})
_clone: Final = Candidate.__copy__  # type: ignore[attr-defined] # does not check the fields again


def copying_of(candidates: Sequence[Any]) -> str:
    """Return how copies of an answer are to be made; it takes longer than a millisecond only for foreign types."""
    if len(candidates) <= MAX_AT_ONCE and _CANDIDATE.issuperset(map(type, candidates)):
        if _is_flat(candidates):
            return FLAT
        if _is_small_and_plain(candidates):
            return AT_ONCE
    try:
        return SHARED if all(map(_is_final, candidates)) else ON_WORKER
    except Exception:  # looking at foreign objects may run foreign code
        return ON_WORKER


def copies_of(candidates: Iterable[Any], copying: str) -> list[Any]:
    """Return the candidates of an answer as objects that the caller may change; `copying` is what was decided."""
    if copying is FLAT:
        made = list(map(_clone, candidates))
        for clone in made:
            force_setattr(clone, "extras", clone.extras.copy())
        return made
    return list(candidates) if copying is SHARED else [copied(candidate) for candidate in candidates]


def copied(candidate: Any) -> Any:
    """Return a copy that shares nothing that can be changed with the original.

    Plain values among the extras of a `Candidate` are copied several times faster than `deepcopy` does it. What is
    found twice in them stays one object, as with `deepcopy`: cycles end, and what refers to one list a thousand times
    does not grow.
    """
    if type(candidate) is not Candidate:
        return copy.deepcopy(candidate)
    clone, extras = _clone(candidate), candidate.extras
    force_setattr(clone, "extras", _copied_dict(extras, {}) if type(extras) is dict else copy.deepcopy(extras))
    return clone


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of something that is not final; `memo` has what has been copied before, by its identity."""
    known = memo.get(id(value))
    if known is not None:
        return known
    copier = _COPIERS.get(type(value))
    if copier is not None:
        return copier(value, memo)
    return value if issubclass(type(value), Enum) else copy.deepcopy(value, memo)


def _copied_dict(value: dict[Any, Any], memo: dict[int, Any]) -> Any:
    if not _FINAL.issuperset(map(type, value)):
        return copy.deepcopy(value, memo)
    made = memo[id(value)] = value.copy()
    for key, item in value.items():
        if type(item) not in _FINAL:
            made[key] = _copied(item, memo)
    return made


def _copied_list(value: list[Any], memo: dict[int, Any]) -> Any:
    made = memo[id(value)] = value.copy()
    for number, item in enumerate(value):
        if type(item) not in _FINAL:
            made[number] = _copied(item, memo)
    return made


def _copied_tuple(value: tuple[Any, ...], memo: dict[int, Any]) -> Any:
    made = memo[id(value)] = tuple([item if type(item) in _FINAL else _copied(item, memo) for item in value])
    return made


def _copied_set(value: set[Any], memo: dict[int, Any]) -> Any:
    if not _FINAL.issuperset(map(type, value)):
        return copy.deepcopy(value, memo)
    made = memo[id(value)] = value.copy()
    return made


_COPIERS: Final[dict[type, Callable[[Any, dict[int, Any]], Any]]] = {
    dict: _copied_dict,
    list: _copied_list,
    tuple: _copied_tuple,
    set: _copied_set,
    frozenset: _copied_set,
}


def _is_flat(candidates: Sequence[Any]) -> bool:
    """Say whether the extras of some `Candidate`s are values that cannot be changed, by names, and few.

    This is a plain loop because that is the fastest: chained iterators in C take half as long again.
    """
    left = MAX_AT_ONCE - len(candidates)
    for candidate in candidates:
        extras = candidate.extras
        if type(extras) is not dict:
            return False
        left -= len(extras)
        if left < 0:
            return False
        for key, value in extras.items():
            if type(key) is not str or type(value) not in _FINAL:
                return False
    return True


def _is_small_and_plain(candidates: Sequence[Any]) -> bool:
    """Say whether some `Candidate`s are of plain values, and few. It stops as soon as they are not.

    What is referred to several times counts each time. That only errs towards a worker, and the look ends in a cycle.
    """
    left = MAX_AT_ONCE - len(candidates)
    waiting: list[Any] = [extras for each in candidates if (extras := each.extras) or type(extras) is not dict]
    while waiting:
        parts = _parts(waiting.pop())
        if parts is None:
            return False
        left -= len(parts)
        if left < 0:
            return False
        waiting += [item for item in parts if type(item) not in _FINAL]
    return True


def _parts(value: Any) -> Collection[Any] | None:
    """Return what a plain container holds; `None` if it isn't one, or foreign code could run when it is copied."""
    kind = type(value)
    if kind is dict:
        return value.values() if _FINAL.issuperset(map(type, value)) else None
    if kind is list or kind is tuple:
        return value  # type: ignore[no-any-return] # one of the two
    if kind is set or kind is frozenset:
        return value if _FINAL.issuperset(map(type, value)) else None
    return () if issubclass(kind, Enum) else None


def _is_final(value: Any) -> bool:
    """Say whether nothing in a value can be changed: plain values, and tuples and frozen classes of such."""
    kind = type(value)
    if kind in _FINAL or issubclass(kind, Enum):
        return True
    if kind in (tuple, frozenset):
        return all(map(_is_final, value))
    return all(map(_is_frozen, kind.__mro__)) and all(map(_is_final, _attributes(value)))


def _is_frozen(kind: type) -> bool:
    if kind in _BASES:
        return True
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_config__.frozen
    options = vars(kind).get("__dataclass_params__")  # its own: a class below a frozen one may be open
    return options is not None and bool(options.frozen)


def _attributes(value: Any) -> Iterable[Any]:
    """Return everything that belongs to an object: its fields, and whatever else was set on it."""
    state = object.__getstate__(value)
    own, slots = state if isinstance(state, tuple) else (state, None)
    fields = [getattr(value, name) for name in getattr(value, "__struct_fields__", ())]
    return [*fields, *(own or {}).values(), *(slots or {}).values()]
