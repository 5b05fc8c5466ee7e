"""Values made again of what was packed; of which classes is decided by the candidates' type, never by the bytes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Flag
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from msgspec import UNSET

from resilient_scan.outcome import DEEP
from resilient_scan.stores.packing import SCALARS, Mark, find_enum
from resilient_scan.stores.types import Form, Types, name_of


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
        if kind is not list or not packed or depth > DEEP + 2:
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
