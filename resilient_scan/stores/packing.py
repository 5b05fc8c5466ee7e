"""Values as what MessagePack takes: scalars as they are, everything else as an array that begins with a mark."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, auto
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UnsetType

from resilient_scan.outcome import DEEP
from resilient_scan.stores.types import Form, Types, name_of

SCALARS = frozenset({type(None), bool, float, bytes})
_encode = msgspec.msgpack.Encoder().encode


class Mark(IntEnum):
    """What an array stands for. The numbers are in files: new ones go to the end."""

    LIST = 0
    TUPLE = auto()
    SET = auto()
    FROZENSET = auto()
    DICT = auto()
    INT = auto()
    TEXT = auto()
    BYTEARRAY = auto()
    COMPLEX = auto()
    DECIMAL = auto()
    UUID = auto()
    DATE = auto()
    TIME = auto()
    DATETIME = auto()
    TIMEDELTA = auto()
    OFFSET = auto()
    ZONE = auto()
    UNSET = auto()
    ENUM = auto()
    FLAG = auto()
    OBJECT = auto()
    STRUCT = auto()
    MODEL = auto()
    NAMEDTUPLE = auto()


class Unstorable(Exception):
    """A value that cannot be kept; the way to it is added on the way out."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []


class Packer:
    """Makes lists and scalars of values."""

    def __init__(self, types: Types) -> None:
        self._types = types

    def pack(self, value: Any, depth: int) -> Any:
        """Return a value as MessagePack takes it."""
        kind = type(value)
        if kind in SCALARS:
            return value
        if kind is str:
            return value if value.isascii() else _text(value)
        if kind is int:
            return value if -(2**63) <= value < 2**64 else [Mark.INT, f"{value:x}"]
        if depth > DEEP:
            raise Unstorable(f"is nested more than {DEEP} levels deep")
        if kind in _COLLECTIONS:
            return [_COLLECTIONS[kind], *self._items(value, depth + 1)]
        if kind is dict:
            return self._dict(value, depth + 1)
        simple = _SIMPLE.get(kind)
        if simple is not None:
            return simple(value)
        return self._object(value, kind, depth + 1)

    def _items(self, items: Iterable[Any], depth: int) -> list[Any]:
        packed = []
        for number, item in enumerate(items):
            with _Step(f"[{number}]"):
                packed.append(self.pack(item, depth))
        if isinstance(items, set | frozenset):
            packed.sort(key=_encode)
        return packed

    def _dict(self, values: dict[Any, Any], depth: int) -> list[Any]:
        packed: list[Any] = [Mark.DICT]
        for key, value in values.items():
            with _Step(f"[{key!r:.50}]"):
                packed += (self.pack(key, depth), self.pack(value, depth))
        return packed

    def _object(self, value: Any, kind: type, depth: int) -> list[Any]:
        if isinstance(value, Enum):
            return _enum(value, kind)
        name = name_of(kind)
        form = self._types.forms.get(name) if self._types.classes.get(name) is kind else None
        match form:
            case Form.STRUCT:
                return [Mark.STRUCT, name, *self._fields(_struct(value), depth)]
            case Form.NAMEDTUPLE:
                return [Mark.NAMEDTUPLE, name, *self._items(value, depth)]
            case Form.MODEL:
                return [Mark.MODEL, name, *self._dict(value.__getstate__(), depth)[1:]]
            case Form.OBJECT:
                state = _state(value, kind)
                return [Mark.OBJECT, name, list(state), *self._fields(state, depth)]
        raise Unstorable(f"is of type {name}, which cannot be kept exactly")

    def _fields(self, state: dict[str, Any], depth: int) -> list[Any]:
        packed = []
        for name, value in state.items():
            with _Step(f".{name}"):
                packed.append(self.pack(value, depth))
        return packed


class _Step:
    """Adds a step to the way to a value that cannot be kept."""

    __slots__ = ("_step",)

    def __init__(self, step: str) -> None:
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, Unstorable):
            error.path.append(self._step)


def _text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return [Mark.TEXT, value.encode("utf-8", "surrogatepass")]
    return value


def _enum(value: Any, kind: type[Enum]) -> list[Any]:
    where = [kind.__module__, kind.__qualname__]
    if find_enum(*where) is not kind:
        raise Unstorable(f"is of type {name_of(kind)}, which is not found under its name")
    if isinstance(value, Flag):
        return [Mark.FLAG, *where, f"{value.value:x}"]
    return [Mark.ENUM, *where, value.name]


def find_enum(module: str, name: str) -> type[Enum] | None:
    """Return an enumeration of a module that is loaded; nothing is imported or called."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Enum) else None


def _struct(value: Any) -> dict[str, Any]:
    if getattr(value, "__dict__", None):
        raise Unstorable("has attributes that are no fields")
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _state(value: Any, kind: type) -> dict[str, Any]:
    """Return all attributes of an object: those in slots, then those in its dictionary."""
    slots = (name for base in kind.__mro__ for name in _slots(base))
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**state, **getattr(value, "__dict__", {})}


def _slots(base: type) -> Iterable[str]:
    slots = base.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    private = [name for name in names if name.startswith("__") and not name.endswith("__")]
    if private:
        raise Unstorable(f"has a slot {private[0]} that cannot be seen")
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def _zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return [Mark.OFFSET, offset.days, offset.seconds, offset.microseconds, *name]
    if type(zone) is ZoneInfo and zone.key:
        return [Mark.ZONE, zone.key]
    raise Unstorable(f"has a zone of type {name_of(type(zone))}, which cannot be kept exactly")


_COLLECTIONS: dict[type, Mark] = {
    list: Mark.LIST,
    tuple: Mark.TUPLE,
    set: Mark.SET,
    frozenset: Mark.FROZENSET,
}
_SIMPLE: dict[type, Callable[[Any], list[Any]]] = {
    bytearray: lambda value: [Mark.BYTEARRAY, bytes(value)],
    complex: lambda value: [Mark.COMPLEX, value.real, value.imag],
    Decimal: lambda value: [Mark.DECIMAL, str(value)],
    UUID: lambda value: [Mark.UUID, value.bytes, value.is_safe.value],
    date: lambda value: [Mark.DATE, value.isoformat()],
    time: lambda value: [Mark.TIME, value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)],
    datetime: lambda value: [
        Mark.DATETIME,
        value.replace(tzinfo=None).isoformat(),
        value.fold,
        _zone(value.tzinfo),
    ],
    timedelta: lambda value: [Mark.TIMEDELTA, value.days, value.seconds, value.microseconds],
    timezone: _zone,
    ZoneInfo: _zone,
    UnsetType: lambda _value: [Mark.UNSET],
}
