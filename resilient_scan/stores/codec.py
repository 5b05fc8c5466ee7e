"""Candidates as bytes and back, exactly: MessagePack that is read with the candidates' own type, never pickle.

Stored bytes become plain values, and objects of the classes that the candidates' type and its annotations name. So
anyone with write access to the store can plant false answers, but cannot run code: all that runs is what those classes
do when they are made (`__post_init__`, validators).

What would not come back the same, in value and in type at every depth, is refused when it is encoded: an `int` in a
field for floats, a tuple among the extras (it would come back as a list), a time in a zone other than UTC.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import chain, count
from operator import attrgetter, methodcaller
from types import CodeType
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from msgspec.msgpack import Decoder, Encoder, Ext

from resilient_scan._once import ready
from resilient_scan._text import counted
from resilient_scan.results import ErrorInfo
from resilient_scan.scanning import Candidate
from resilient_scan.stores.batching import MAX_VALUE_BYTES

VERSION = 2
DIGEST_SIZE = 16  # bytes, in front of the candidates
_encode = Encoder().encode


class Undecodable(ValueError):
    """Stored bytes are not what an encoder has written."""


class _Format(msgspec.Struct, frozen=True):
    """How candidates of one type are written and read, and a digest that changes when their classes do."""

    digest: bytes
    write: Callable[[list[Any]], bytes]
    read: Callable[[memoryview], list[Any]]


def encode_candidates(kind: type, candidates: Iterable[Any]) -> bytes:
    """Return candidates of type `kind` as bytes.

    Raises:
        TypeError: they would not come back the same; the message says why, or which part.
    """
    candidates = list(candidates)
    try:
        layout = _format_of(kind)
        data = layout.write(candidates)
        plain = kind is Candidate and _all_plain(candidates)
        path = None if plain else _difference(candidates, layout.read(memoryview(data)))
        if path is not None and kind is Candidate:
            data = _encode([msgspec.structs.replace(each, extras=_marked(each.extras)) for each in candidates])
            path = _difference(candidates, layout.read(memoryview(data)))
    except Exception as error:  # msgspec's, or a foreign class's, which may put values into further lines
        why, _, _ = ErrorInfo.of(error).message.partition("\n")
        raise TypeError(f"they cannot be stored: {why}") from error
    if path is not None:
        raise TypeError(f"they cannot be stored: candidates{path} would not come back as it is")
    if len(data) + DIGEST_SIZE > MAX_VALUE_BYTES:
        found = counted(len(candidates), "candidate")
        raise TypeError(f"an answer of {len(data):,} bytes ({found}) is more than the store takes at once")
    return layout.digest + data


def decode_candidates(kind: type, data: bytes) -> list[Any] | None:
    """Return the candidates that were encoded; `None` if another version did it, or `kind` has changed since.

    Raises:
        Undecodable: the bytes are damaged.
    """
    try:
        layout = _format_of(kind)
        return layout.read(memoryview(data)[DIGEST_SIZE:]) if data.startswith(layout.digest) else None
    except Exception as error:  # what no encoder has written fails in as many ways as there are types
        raise Undecodable(f"stored candidates are damaged: {type(error).__name__}") from error


@lru_cache(256)
def _format_of(kind: Any) -> _Format:
    if not hasattr(kind, "model_validate"):
        return _Format(_digest(kind), _encode, Decoder(ready(list[kind]), ext_hook=_unmarked).decode)
    # pydantic, where the user brings it: what was not set stays unset
    dump = methodcaller("model_dump", by_alias=True, exclude_unset=True, round_trip=True, warnings=False)
    read = Decoder(list[dict[str, Any]], ext_hook=_unmarked).decode
    return _Format(
        _digest(kind),
        lambda models: _encode([dump(model) for model in models]),
        lambda data: [kind.model_validate(fields) for fields in read(data)],
    )


def _digest(kind: type) -> bytes:
    """Return bytes that stand for a class and all classes that its annotations name, the same in every process.

    They guard against a class that changed: without them, a field that was renamed would be read as its default, and an
    enumeration's member as the one that has its value now.
    """
    described: list[str] = []
    seen: dict[int, Any] = {}  # by identity: some hints cannot be hashed, and some name themselves
    waiting: list[Any] = [kind]
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen[id(hint)] = hint
        named = (getattr(hint, name, None) for name in ("__supertype__", "__bound__", "__value__"))
        waiting += filter(None, (get_origin(hint), *get_args(hint), *getattr(hint, "__constraints__", ()), *named))
        if isinstance(hint, type):
            fields: Any = getattr(hint, "model_fields", None)
            is_model = isinstance(fields, dict)  # pydantic's
            hints = {name: each.annotation for name, each in fields.items()} if is_model else get_type_hints(hint)
            waiting += hints.values()
            described.append(_text([hint, hints, *_written(hint, fields if is_model else {}), *_functions(hint)]))
    return hashlib.sha256(_text((VERSION, kind, sorted(described))).encode()).digest()[:DIGEST_SIZE]


_OF_FIELD = ("alias", "validation_alias", "serialization_alias", "exclude", "metadata", "default", "default_factory")


def _written(kind: type, fields: dict[str, Any]) -> Iterable[Any]:
    """Return what else decides how objects of a class are written, and what stands in for what is left out."""
    if issubclass(kind, msgspec.Struct):
        config = kind.__struct_config__
        yield config.tag_field, config.tag, config.array_like
        for field in msgspec.structs.fields(kind):
            yield field.encode_name, field.default, field.default_factory
    for name, each in fields.items():
        yield name, [getattr(each, attribute, None) for attribute in _OF_FIELD]
    yield getattr(kind, "model_config", None)
    yield [(name, member.value) for name, member in getattr(kind, "__members__", {}).items()]
    yield getattr(kind, "_fields", None)  # of a named tuple, whose fields need no annotations
    yield [each.name for each in getattr(kind, "__attrs_attrs__", ())]


def _functions(kind: type) -> Iterable[Any]:
    """Return what may run when an object is made or written: `__post_init__`, validators, serializers.

    Python's own do not count, and ours change with `VERSION`: a fleet in the middle of an update keeps finding answers.
    """
    for each in () if kind is Candidate else kind.__mro__:
        if each.__module__.partition(".")[0] not in sys.stdlib_module_names:
            yield from ((name, value) for name, value in vars(each).items() if _code(value) is not None)


def _code(value: Any) -> CodeType | None:
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _text(value: Any) -> str:
    """Return a text that is the same in every process, unlike a `repr`: no address, and no order of a set's items."""
    code = value if isinstance(value, CodeType) else _code(value)
    if code is not None:
        return f"{code.co_code!r} {code.co_names} {_text(code.co_consts)}"
    if is_dataclass(value) and not isinstance(value, type):  # a validator that is part of an annotation
        return f"{type(value)} {_text(_attributes(value))}"
    if isinstance(value, dict):
        return _text(list(value.items()))
    if isinstance(value, set | frozenset):
        return str(sorted(map(_text, value)))
    if isinstance(value, list | tuple):
        return str([_text(each) for each in value])
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


# Among extras, where anything may be, a date or a Decimal would come back as text. Both are usual there: mark them.
_MARKS: dict[type, int] = {date: 1, Decimal: 2}
_READERS: dict[int, Callable[[str], Any]] = {1: date.fromisoformat, 2: Decimal}


def _marked(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _marked(item) for key, item in value.items()}
    if kind is list:
        return [_marked(item) for item in value]
    return Ext(_MARKS[kind], str(value).encode()) if kind in _MARKS else value


def _unmarked(mark: int, data: memoryview) -> Any:
    return _READERS[mark](str(data, "ascii"))


# What MessagePack has of its own, and in which `Any` is read back as it was written.
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_TEXTS = tuple(map(attrgetter, ("ticker", "source", "context", "priority", "strategy")))
MAX_LEVELS = 50  # of what is nested; a deeper value is read back to see whether it can be


def _all_plain(candidates: list[Any]) -> bool:
    """Say whether candidates that could be written come back the same for sure.

    Nearly all do, and to read an answer of 1 MB back and compare it takes ten times as long as to write it. Here the
    types of the parts decide, a whole collection of them in one step.
    """
    if not {*map(type, candidates)} <= {Candidate}:
        return False
    if any(not {*map(type, map(text, candidates))} <= {str} for text in _TEXTS):
        return False
    level: list[Any] = [candidate.extras for candidate in candidates]
    for _ in range(MAX_LEVELS):
        if not {*map(type, level)} <= {dict, list}:
            return False
        level = [part for value in level for part in _nested(value)]
        if not level:
            return True
    return False


def _nested(value: Any) -> Iterable[Any]:
    """Return the parts of a list or a dictionary that are more than scalars; `None` for keys that are not text."""
    parts: Iterable[Any] = value
    if type(value) is dict:
        if not {*map(type, value)} <= {str}:
            return (None,)
        parts = value.values()
    return () if {*map(type, parts)} <= _SCALARS else [part for part in parts if type(part) not in _SCALARS]


# `==` overlooks types, the sign of 0.0, the zeros of Decimal("1.10") and zones, and denies that not-a-number is itself.
_PLAIN = frozenset({type(None), bool, int, str, bytes, date, timedelta, msgspec.UnsetType})
_EXACT: dict[type, Callable[[Any], object]] = {
    float: struct.Struct("d").pack,
    Decimal: Decimal.as_tuple,
    datetime: lambda value: (value.replace(tzinfo=None), value.fold, id(value.tzinfo)),
    time: lambda value: (value.replace(tzinfo=None), value.fold, id(value.tzinfo)),
    UUID: lambda value: (value.int, value.is_safe),
}


def _difference(one: Any, two: Any) -> str | None:
    """Return the path to the first part that is not the same in type and value; `None` if all is."""
    kind = type(one)
    if kind is not type(two):
        return ""
    if kind in _PLAIN or isinstance(one, Enum):
        return None if one == two else ""
    if kind in _EXACT:
        return None if _EXACT[kind](one) == _EXACT[kind](two) else ""
    if not isinstance(one, list | tuple | dict | set | frozenset):
        attributes = _attributes(one)  # without any, it cannot be looked into
        return _difference(attributes, _attributes(two)) if attributes else ""
    if len(one) != len(two) or (hasattr(one, "__dict__") and _difference(vars(one), vars(two)) is not None):
        return ""
    for step, part, other in _pairs(one, two):
        path = _difference(part, other)
        if path is not None:
            return f"[{step!r:.50}]{path}"
    return None


def _pairs(one: Any, two: Any) -> Iterable[tuple[Any, Any, Any]]:
    """Return the parts of two collections side by side, each after the step that leads to it."""
    if isinstance(one, dict):
        return chain(zip(one, one, two, strict=True), ((key, one[key], two[key]) for key in one))
    if isinstance(one, set | frozenset):
        found = {item: item for item in two}
        return ((item, item, found.get(item)) for item in one)
    return zip(count(), one, two)


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object consists of: fields and slots, and what is in its dictionary."""
    if isinstance(value, msgspec.Struct):
        return {**{name: getattr(value, name) for name in value.__struct_fields__}, **getattr(value, "__dict__", {})}
    state = object.__getstate__(value)
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}
