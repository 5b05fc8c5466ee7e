"""A run's state, taken once: copies of it for the scans, keys of it for the cache."""

from __future__ import annotations

import copy
import datetime as dt
import enum
import operator
import os
import pathlib
import pickle
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, cast

import msgspec
from msgspec.msgpack import Ext

TOOL_LOGS = "tool_logs"
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_FINAL = _PLAIN | {dt.date, dt.timedelta, Decimal, uuid.UUID}  # never changed, and without anything that can be
_SHALLOW = frozenset({list, dict, set})  # that a scanner may change
_FLAT = _SHALLOW | {tuple, frozenset}


class Snapshot:
    """The state as it was when the run began, safe from changes by the caller and by any scanner.

    Raises:
        TypeError: the state is not a mapping, or cannot be copied.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, got {type(state).__name__}")
        self.copy: Callable[[], dict[str, Any]] = _copier(dict(state))
        self.encoded: bytes = b""  # for child processes; made by the first scan that needs it
        logs = state.get(TOOL_LOGS)
        self.has_logs: bool = isinstance(logs, list) and bool(logs)
        self.keys: Keys = Keys(self.copy)

    def known_logs(self, state: dict[str, Any]) -> tuple[Any, ...]:
        """Return the caller's entries in the `tool_logs` of a new copy."""
        return tuple(state[TOOL_LOGS]) if self.has_logs else ()


def new_tool_logs(state: dict[str, Any], known: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the entries that a scanner added to the `tool_logs` of its copy, which had the `known` ones.

    Entries are told apart by identity, and no method of the list or of an entry is called: the watchdog calls this, and
    an `__eq__` that hangs would cost every scanner its timeout.
    """
    logs = state.get(TOOL_LOGS)
    if not issubclass(type(logs), list):
        return []
    entries: list[dict[str, Any]] = list.__getitem__(cast("list[Any]", logs), slice(None))
    if all(map(operator.is_, entries, known)) and len(entries) >= len(known):
        return entries[len(known) :]
    old = set(map(id, known))
    return [entry for entry in entries if id(entry) not in old]  # rearranged, or a new list


class Keys(dict[tuple[str, ...] | None, bytes | None]):
    """Bytes that stand for the values of some inputs, by the inputs' names; made when they are first needed.

    The name `None` stands for all inputs except `tool_logs`. The bytes are `None` if a value has no stable form (see
    `stable_key`).
    """

    def __init__(self, copy: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._copy = copy

    def __missing__(self, inputs: tuple[str, ...] | None) -> bytes | None:
        """Make the key, once."""
        state = self._copy()  # not the caller's own state, which may have changed since the run began
        names = (name for name in state if name != TOOL_LOGS) if inputs is None else inputs
        key = self[inputs] = stable_key({name: state[name] for name in names if name in state})
        return key


class Ephemeral(str):
    """A setting that differs from process to process, such as the URL of a server with a random port."""

    __slots__ = ()


def stable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with one word for every ephemeral value, so that all processes make the same cache key."""
    return {name: "ephemeral" if type(value) is Ephemeral else value for name, value in settings.items()}


def _copier(state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that makes copies of the state as it is now; the caller must not keep it.

    Values that cannot be changed are shared by all copies. So if there are only those, and lists, dicts and sets of
    those, a few shallow copies are enough: 500 tickers are one step. For anything nested deeper, decoding a pickle is
    several times faster than `deepcopy` and gives the same plain data; these bytes never leave the process. A state
    that cannot be pickled (it contains a lambda, say) is copied with `deepcopy`, which accepts more types.
    """
    flat = _flat_copier(state)
    if flat is not None:
        return flat
    try:
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)  # noqa: S301 - made one line above
        return lambda: pickle.loads(data)  # noqa: S301
    except Exception:  # foreign objects may raise anything
        return _deep_copier(state)


def _flat_copier(state: dict[str, Any]) -> Callable[[], dict[str, Any]] | None:
    """Return a function that makes shallow copies of the state and of what it holds; `None`: that is not enough.

    What is looked at is our own copy: another thread of the caller could still put a list into one of its lists after
    the look, and all scanners would share that. One list under two names is not copied here, or it would become two.
    """
    held = {key: value for key, value in state.items() if type(value) in _SHALLOW}
    if len({id(value) for value in held.values()}) < len(held):
        return None
    own = {key: value.copy() for key, value in held.items()}
    if not (_FINAL.issuperset(map(type, state)) and all(map(_is_flat, {**state, **own}.values()))):
        return None
    if not own:
        return state.copy
    state.update(own)
    copies = tuple(own.items())

    def copied() -> dict[str, Any]:
        made = state.copy()
        for key, value in copies:
            made[key] = value.copy()
        return made

    return copied


def _is_flat(value: Any) -> bool:
    """Say whether a value cannot be changed, or is a plain container of such values."""
    kind = type(value)
    if kind is dict and not _FINAL.issuperset(map(type, value.values())):
        return False
    return kind in _FINAL or (kind in _FLAT and _FINAL.issuperset(map(type, value)))


def _deep_copier(state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    try:
        master = copy.deepcopy(state)
    except Exception as error:
        raise TypeError(f"state cannot be copied: {error}; leave that value out, or pass its name instead") from error
    return lambda: copy.deepcopy(master)


# Keys
#
# Two values may share a key only if no scanner could tell them apart, types included; otherwise the second one gets the
# answer that was found for the first. msgspec alone writes a date as its text, a set as a list, and an instant in Tokyo
# as the same instant in New York. So it is given only values that no others are written like: plain ones, lists of
# these, and dicts that map text to these. Everything else becomes an `Ext` that contains its type, with a code that
# says how it was made. A plain value is never written as an `Ext`.

_HUGE, _BY_ANY_KEY, _OBJECT, _PICKLED = 2, 3, 4, 5  # code 1 belonged to keys that could collide; stores may hold some
_AS_THEY_ARE: Final = _PLAIN - {int}  # an integer may be too large for msgspec
_CONTAINERS: Final = (dict, list, tuple, set, frozenset, deque)
_OPAQUE: Final = (str, bytes, bytearray, int, float, complex, dt.date, dt.time, dt.timedelta, Decimal, BaseException)
_LONG: Final = 16  # items; in a list of this length or more, checking all types first is faster
_TEXT: Final = frozenset({str})
_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def stable_key(values: dict[str, Any]) -> bytes | None:
    """Return bytes that stand for the values in every process, or `None` if one of them has no stable form.

    The bytes differ if a value or its type differs, at any depth. The order of a set, and of a dict's keys, does not
    matter. These have a stable form: plain values; dates, times, time zones, decimals, fractions, UUIDs and paths; the
    containers of Python and of `collections`, and their subclasses; enums, dataclasses, structs and attrs classes. No
    other object has one, and neither has an object whose class cannot be imported by its name, a cycle, or a value
    that is nested too deeply.
    """
    try:
        return _encode(_tagged(values))
    except Exception:  # not only TypeError: foreign objects may raise anything, and a cycle ends in a RecursionError
        return None


def _tagged(value: Any) -> Any:
    """Return a value in a form that no other value is encoded like: as it is, or marked with its type."""
    kind = type(value)
    if kind in _PLAIN:
        return value if kind is not int or -(2**63) <= value < 2**64 else Ext(_HUGE, hex(value).encode())
    if kind is list:
        if len(value) >= _LONG and _AS_THEY_ARE.issuperset(map(type, value)):
            return value
        return _tagged_each(value)
    if kind is dict:
        if _TEXT.issuperset(map(type, value)):
            return {key: item if type(item) in _AS_THEY_ARE else _tagged(item) for key, item in value.items()}
        return Ext(_BY_ANY_KEY, _encode(_unordered(value.items())))
    if kind in _FORMS:
        return Ext(_OBJECT, _encode((f"{kind.__module__}:{kind.__qualname__}", _FORMS[kind](value))))
    if isinstance(value, dt.tzinfo) and kind.__module__ != "zoneinfo":
        return Ext(_PICKLED, _encode(_pickled(value)))
    name = _name(kind)
    return Ext(_OBJECT, _encode((name, _content(value, name))))


def _tagged_each(items: Iterable[Any]) -> list[Any]:
    """Tag each item. Most are plain, and calling a function for each of those would take twice as long."""
    return [
        item if (kind := type(item)) in _AS_THEY_ARE or (kind is int and -(2**63) <= item < 2**64) else _tagged(item)
        for item in items
    ]


def _name(thing: Any) -> str:
    """Return the name by which every process can import a class or function.

    The name alone does not identify a class: each call of a function makes another `function.<locals>.Class`, and a
    module may call `namedtuple("Row", ...)` twice. So the name must lead back to the class; pickle is as strict.

    Raises:
        TypeError: the name leads to something else, or to nothing.
    """
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        raise TypeError(f"{thing!r} cannot be imported by its name")
    return f"{thing.__module__}:{thing.__qualname__}"  # a colon: `a.b:C` is not `a:b.C`


def _content(value: Any, name: str) -> Any:
    """Return what distinguishes a value from all others of its class, whose name is given.

    Raises:
        TypeError: the value has no stable form.
    """
    if name in _LATE_FORMS:
        return _LATE_FORMS[name](value)
    if isinstance(value, enum.Enum):
        return _member(value)
    items = _items(value) if isinstance(value, _CONTAINERS) else None
    fields = _fields(value)
    if items is None and (fields is None or isinstance(value, _OPAQUE)):  # a dataclass may be a str too: which one?
        raise TypeError(f"{name} has no stable form")
    return items, _tagged(_attributes(value, fields or ()))


def _items(value: Any) -> list[Any]:
    """Return what a container holds, even if its class shows something else."""
    match value:
        case dict():
            return _entries(value)
        case list():
            return _tagged_each(list.__iter__(value))
        case tuple():
            return _tagged_each(tuple.__iter__(value))
        case deque():
            return [value.maxlen, *_tagged_each(deque.__iter__(value))]
    items = set.__iter__(value) if isinstance(value, set) else frozenset.__iter__(value)
    return sorted(_encode(_tagged(item)) for item in items)


def _entries(value: dict[Any, Any]) -> list[Any]:
    """Return what an instance of a subclass of dict holds, in order if two of them may differ in their order alone."""
    if isinstance(value, OrderedDict):  # its order is its own: `move_to_end` does not change the dict's
        return _pairs((key, dict.__getitem__(value, key)) for key in OrderedDict.__iter__(value))
    if isinstance(value, defaultdict):
        make = value.default_factory
        return [None if make is None else _name(make), *_unordered(dict.items(value))]
    compares_as_dict = type(value).__eq__ in (dict.__eq__, Counter.__eq__)
    return _unordered(dict.items(value)) if compares_as_dict else _pairs(dict.items(value))


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[bytes]:
    return [_encode((_tagged(key), _tagged(item))) for key, item in items]


def _unordered(items: Iterable[tuple[Any, Any]]) -> list[bytes]:
    return sorted(_pairs(items))


def _fields(value: Any) -> Iterable[str] | None:
    """Return the names of the fields of a dataclass, struct or attrs object; `None` for any other value."""
    kind: Any = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        return cast("Iterable[str]", kind.__dataclass_fields__)
    if hasattr(kind, "__struct_fields__"):
        return cast("Iterable[str]", kind.__struct_fields__)
    if hasattr(kind, "__attrs_attrs__"):  # attrs itself checks for this name, so attrs need not be installed
        return [field.name for field in kind.__attrs_attrs__]
    return None


def _attributes(value: Any, fields: Iterable[str]) -> dict[str, Any]:
    """Return all attributes of an object: its fields, its slots, and whatever else was set on it."""
    state = object.__getstate__(value)  # not the class's own method, which may leave something out
    own, slots = state if isinstance(state, tuple) else (state, None)
    found = {**(own or {}), **(slots or {})}
    for name in fields:
        if name not in found:  # the object has the default, which is an attribute of its class
            found[name] = getattr(value, name)
    return found


def _member(value: enum.Enum) -> list[Any]:
    """Return the name and the value of an enum's member, or only the name if the value has no stable form.

    The name alone is not always enough: if no member of an `IntFlag` is 8 or 16, then its 8 and its 16 have no name.
    """
    try:
        return [value._name_, _tagged(value._value_)]
    except TypeError:
        if type(value).__members__.get(value._name_) is not value:
            raise
        return [value._name_]


def _moment(value: dt.datetime | dt.time) -> list[Any]:
    """Return what the clock shows, which of the two it is if the clock was set back, and the zone.

    The instant is not enough: 16:00 in New York is 6:00 in Tokyo, on the next `trade_date`.
    """
    return [value.replace(tzinfo=None).isoformat(), value.fold, _tagged(value.tzinfo)]


def _zone(value: Any) -> str:
    if value.key is None:
        raise TypeError("a zone that was read from a file has no stable form")
    return str(value.key)


def _pickled(value: Any) -> list[Any]:
    """Return what pickle saves of a time zone of another library.

    Scans get copies that are made from this, so they cannot tell apart two zones that are saved alike. The zone's class
    would not do: each zone of pytz has a class of its own, which cannot be imported by its name.
    """
    make, arguments, *rest = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if any(rest[1:]):
        raise TypeError(f"{type(value).__name__} is not pickled as other zones are")
    given = [Ext(_PICKLED, _name(item).encode()) if isinstance(item, type) else _tagged(item) for item in arguments]
    return [_name(make), given, *_tagged_each(rest[:1])]


_PATHS: Final = (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
_FORMS: Final[dict[type, Callable[[Any], Any]]] = {
    dt.date: dt.date.isoformat,
    dt.datetime: _moment,
    dt.time: _moment,
    dt.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    dt.timezone: lambda value: [_tagged(value.utcoffset(None)), value.tzname(None)],
    Decimal: str,
    uuid.UUID: str,
    bytearray: bytes,
    **dict.fromkeys(_PATHS, os.fsencode),  # bytes: a file's name need not be text
}
_LATE_FORMS: Final[
    dict[str, Callable[[Any], Any]]
] = {  # by name: their modules are slow to import, and few states need them
    "fractions:Fraction": lambda value: [_tagged(value.numerator), _tagged(value.denominator)],
    "zoneinfo:ZoneInfo": _zone,
}


EMPTY = Snapshot({})
