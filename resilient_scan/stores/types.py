"""Which classes candidates of a type are made of, and a fingerprint that changes when they do."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import Any, get_args, get_type_hints

import msgspec


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
