"""Candidates as bytes and back, exactly: typed MessagePack, never pickle.

Objects are made again from their fields, and only of the classes that the candidates' type and its annotations name. So
whoever can write to the store can give false answers, but cannot run anything.

What cannot be kept exactly is refused by name when it is encoded: what was encoded is decoded and encoded again, and
must be the same.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, auto
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_type_hints
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, UnsetType

from resilient_scan.results import MAX_DEPTH
from resilient_scan.stores.batching import MOST_BYTES_OF_ONE

# Which classes candidates of a type are made of, and a fingerprint that changes when they do.


class Form(Enum):
    """How objects of a class are taken apart and made again."""

    STRUCT = auto()
    MODEL = auto()  # pydantic's, where the user brings it
    NAMEDTUPLE = auto()
    OBJECT = auto()  # a dataclass, or any class of Python's own making


class Types(msgspec.Struct, frozen=True):
    """The classes by name, their forms, and the fingerprint of all their fields."""

    classes: dict[str, type]
    forms: dict[str, Form]
    fingerprint: bytes


def name_of(kind: type) -> str:
    """Return a class's full name."""
    return f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(256)
def types_of(kind: type) -> Types:
    """Return the classes that candidates of type `kind` may be made of: its own, and those its annotations name."""
    classes: dict[str, type] = {}
    forms: dict[str, Form] = {}
    described: list[tuple[str, list[str]]] = []
    waiting = [kind]
    while waiting:
        each = waiting.pop()
        name, form = name_of(each), _form(each, is_candidate=each is kind)
        if form is None or name in classes:
            continue
        classes[name], forms[name] = each, form
        hints = _hints(each)
        described.append((name, [f"{field}: {_described(hint)}" for field, hint in hints.items()]))
        waiting += [part for hint in hints.values() for part in _parts(hint)]
    return Types(classes, forms, hashlib.sha256(repr(sorted(described)).encode()).digest()[:16])


def _form(kind: type, *, is_candidate: bool) -> Form | None:
    if issubclass(kind, msgspec.Struct):
        return Form.STRUCT
    if hasattr(kind, "model_validate") and hasattr(kind, "__setstate__"):
        return Form.MODEL
    if issubclass(kind, tuple):
        return Form.NAMEDTUPLE if hasattr(kind, "_fields") else None
    is_plain = kind.__new__ is object.__new__ and kind is not object and not issubclass(kind, Enum)
    return Form.OBJECT if is_plain and (is_candidate or hasattr(kind, "__dataclass_fields__")) else None


def _hints(kind: type) -> dict[str, Any]:
    fields = getattr(kind, "model_fields", None)
    if isinstance(fields, dict):
        return {name: getattr(field, "annotation", None) for name, field in fields.items()}
    try:
        return get_type_hints(kind)
    except Exception:  # a name that is not there at run time; foreign annotations
        return {name: hint for base in reversed(kind.__mro__) for name, hint in inspect.get_annotations(base).items()}


def _parts(hint: Any) -> Iterator[type]:
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _described(hint: Any) -> str:
    """Return an annotation as text that is the same in every process."""
    members = list(hint.__members__) if isinstance(hint, type) and issubclass(hint, Enum) else ""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{hint!r}{members}")


# Values as what MessagePack takes: scalars as they are, everything else as an array that begins with a mark.

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
        if depth > MAX_DEPTH:
            raise Unstorable(f"is nested more than {MAX_DEPTH} levels deep")
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


# Values made again of what was packed; of which classes is decided by the candidates' type, never by the bytes.


class Undecodable(ValueError):
    """Stored bytes are not what an encoder has written."""


class Unpacker:
    """Makes values of lists and scalars.

    Objects get their fields without a call of `__init__`, but for msgspec's structs, which have no other way.
    """

    def __init__(self, types: Types) -> None:
        self._types = types

    def unpack(self, packed: Any, depth: int) -> Any:
        """Return the value that was packed."""
        kind = type(packed)
        if kind in SCALARS or kind is str or kind is int:
            return packed
        if kind is not list or not packed or depth > MAX_DEPTH + 2:
            raise Undecodable("stored candidates are damaged: there is what no encoder writes")
        mark, *rest = packed
        simple = _MAKERS.get(mark)
        if simple is not None:
            return simple(*rest)
        if mark in _OBJECTS:
            return self._object(mark, rest, depth + 1)
        build = _BUILDERS.get(mark)
        if build is None:
            raise Undecodable(f"stored candidates are damaged: there is no mark {mark!r:.100}")
        return build([self.unpack(part, depth + 1) for part in rest])

    def _object(self, mark: int, rest: list[Any], depth: int) -> Any:
        name, *rest = rest
        kind: Any = self._types.classes.get(name)
        if kind is None or self._types.forms[name] is not _OBJECTS[mark]:
            raise Undecodable(f"stored candidates are damaged: {name!r:.100} is no type of theirs")
        names = rest.pop(0) if mark == Mark.OBJECT else []
        values = [self.unpack(part, depth) for part in rest]
        match mark:
            case Mark.STRUCT:
                return kind(**dict(zip(kind.__struct_fields__, values, strict=True)))
            case Mark.NAMEDTUPLE:
                return _namedtuple(kind, values)
            case Mark.MODEL:
                return _model(kind, _pairs(values))
        return _restored(kind, dict(zip(names, values, strict=True)))


def _pairs(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _datetime(parts: list[Any]) -> datetime:
    text, fold, zone = parts
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _time(parts: list[Any]) -> time:
    text, fold, zone = parts
    return time.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _restored(kind: type, state: dict[Any, Any]) -> Any:
    made: Any = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(made, name, value)
    return made


def _model(kind: Any, state: dict[Any, Any]) -> Any:
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made


def _namedtuple(kind: type, values: list[Any]) -> Any:
    if len(values) != len(kind._fields):  # type: ignore[attr-defined]
        raise Undecodable(f"stored candidates are damaged: {name_of(kind)} has other fields")
    return tuple.__new__(kind, values)


def _member(module: str, name: str, member: str) -> Any:
    kind = find_enum(module, name)
    if kind is None:
        raise Undecodable(f"there is no enumeration {module}.{name} for stored candidates")
    return kind.__members__[member]


def _flag(module: str, name: str, value: str) -> Any:
    kind = find_enum(module, name)
    if kind is None or not issubclass(kind, Flag):
        raise Undecodable(f"there is no enumeration {module}.{name} for stored candidates")
    return kind(int(value, 16))


_OBJECTS: dict[int, Form] = {
    Mark.STRUCT: Form.STRUCT,
    Mark.NAMEDTUPLE: Form.NAMEDTUPLE,
    Mark.MODEL: Form.MODEL,
    Mark.OBJECT: Form.OBJECT,
}
_BUILDERS: dict[int, Callable[[list[Any]], Any]] = {
    Mark.LIST: lambda parts: parts,
    Mark.TUPLE: tuple,
    Mark.SET: set,
    Mark.FROZENSET: frozenset,
    Mark.DICT: _pairs,
    Mark.DATETIME: _datetime,
    Mark.TIME: _time,
}
_MAKERS: dict[int, Callable[..., Any]] = {
    Mark.INT: lambda text: int(text, 16),
    Mark.TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    Mark.BYTEARRAY: bytearray,
    Mark.COMPLEX: complex,
    Mark.DECIMAL: Decimal,
    Mark.UUID: lambda data, is_safe: UUID(bytes=data, is_safe=SafeUUID(is_safe)),
    Mark.DATE: date.fromisoformat,
    Mark.TIMEDELTA: timedelta,
    Mark.OFFSET: lambda days, seconds, microseconds, *name: timezone(timedelta(days, seconds, microseconds), *name),
    Mark.ZONE: ZoneInfo,
    Mark.UNSET: lambda: UNSET,
    Mark.ENUM: _member,
    Mark.FLAG: _flag,
}


__all__ = [
    "Undecodable",
    "decode_candidates",
    "encode_candidates",
]

VERSION = 1
S = TypeVar("S", bound=msgspec.Struct)
_decode = msgspec.msgpack.Decoder().decode


def encode_candidates(kind: type, candidates: Iterable[Any]) -> bytes:
    """Return candidates of type `kind` as bytes.

    Raises:
        TypeError: something in them cannot be kept exactly; the message names it.
    """
    types = types_of(kind)
    packed = [_packed(types, kind, candidate, number) for number, candidate in enumerate(candidates)]
    data = _encode([VERSION, name_of(kind), types.fingerprint, packed])
    if len(data) > MOST_BYTES_OF_ONE:
        raise TypeError(f"{len(packed)} candidates of {len(data):,} bytes are more than the store takes at once")
    _check_same(types, packed)
    return data


def decode_candidates(kind: type, data: bytes) -> list[Any] | None:
    """Return the candidates that were encoded.

    `None`: they were encoded by another version, or `kind` was another type then, or had other fields.

    Raises:
        Undecodable: the bytes were not written by an encoder.
    """
    content = _plain(data)
    if len(content) != 4 or not isinstance(content[3], list):
        raise Undecodable("stored candidates are damaged: their head is not ours")
    types = types_of(kind)
    if content[:3] != [VERSION, name_of(kind), types.fingerprint]:
        return None
    try:
        candidates = [Unpacker(types).unpack(candidate, 0) for candidate in content[3]]
    except Undecodable:
        raise
    except Exception as error:  # values that no encoder writes fail in as many ways as there are types
        raise Undecodable(f"stored candidates are damaged: {type(error).__name__}: {error}") from error
    if not all(isinstance(candidate, kind) for candidate in candidates):
        raise Undecodable(f"stored candidates are damaged: not all are of type {name_of(kind)}")
    return candidates


def _plain(data: bytes) -> list[Any]:
    if len(data) > MOST_BYTES_OF_ONE:
        raise Undecodable(f"{len(data):,} stored bytes are more than an encoder writes")
    try:
        content = _decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise Undecodable(f"stored bytes are damaged: {error}") from error
    if not isinstance(content, list) or not content:
        raise Undecodable("stored bytes are damaged: their head is not ours")
    return content


def _packed(types: Types, kind: type, candidate: Any, number: int) -> Any:
    if not isinstance(candidate, kind):
        raise TypeError(f"candidate {number} cannot be stored: it is no {name_of(kind)}")
    try:
        return Packer(types).pack(candidate, 0)
    except Unstorable as error:
        raise TypeError(
            f"candidate {number} cannot be stored: {''.join(reversed(error.path)) or 'it'} {error.why}"
        ) from None


def _check_same(types: Types, packed: list[Any]) -> None:
    for number, each in enumerate(packed):
        before = _encode(each)
        try:
            again = _encode(Packer(types).pack(Unpacker(types).unpack(_decode(before), 0), 0))
        except Exception as error:  # foreign classes
            raise TypeError(f"candidate {number} cannot be stored: it cannot be made again ({error})") from error
        if before != again:
            raise TypeError(f"candidate {number} cannot be stored: it would not come back as it was")
