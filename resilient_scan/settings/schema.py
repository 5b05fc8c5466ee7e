"""A JSON Schema of the settings file, for editors: it completes keys, explains them, and marks what is wrong.

It is made from the option classes, as the reader of settings is: an option that is added to a class is in it at once.
It says less than the reader knows (no ranges, no names of scanners); `resilient-scan check` says the rest.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from resilient_scan.options import LAYERS, Exceptions, Option, Predicate, durations
from resilient_scan.settings.read import OPTIONS, provider_keys
from resilient_scan.settings.tables import Field, Own, fields_of

DRAFT: Final = "http://json-schema.org/draft-07/schema#"  # what editors of TOML know
DURATION: Final = {
    "anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*(\d+(\.\d+)?|\.\d+)(ms|s|m|h|d)\s*$"}]
}
_KINDS: Final[Mapping[Any, dict[str, Any]]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    dict: {"type": "object"},
    tuple: {"type": "array", "items": {"type": "string"}},
}
_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def schema() -> dict[str, Any]:
    """Return the schema of a whole settings file."""
    layers = {layer: _layer(layer, kind) for layer, kind in LAYERS.items()}
    scanner = _object({**_fields(Own), **layers}, "What holds for one scanner; it wins over `defaults`.")
    provider = _object(_fields(LAYERS["limit"], provider_keys()), "The quota that all scanners of a provider share.")
    return {
        "$schema": DRAFT,
        "title": "resilient-scan.toml",
        **_object(
            {
                **{name: _object(_fields(kind), _summary(kind)) for name, kind in OPTIONS.items()},
                "defaults": _object(layers, "What holds for every scanner that does not say otherwise."),
                "providers": {"type": "object", "additionalProperties": provider},
                "scanners": {"type": "object", "additionalProperties": scanner},
            },
            "Settings of resilient-scan; `resilient-scan check` finds what a schema cannot say.",
        ),
    }


def _object(properties: Mapping[str, Any], description: str) -> dict[str, Any]:
    table = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {"description": description, **table}


def _layer(name: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the table of a layer, or `false`, which leaves it out."""
    table = _object(_fields(kind), _summary(kind))
    if name == "timeout":
        return table
    return {
        "description": f"{table.pop('description')} `false` leaves the layer out.",
        "anyOf": [table, {"const": False}],
    }


def _fields(kind: type[msgspec.Struct], keys: Iterable[str] | None = None) -> dict[str, Any]:
    fields, said = fields_of(kind), _said(kind)
    return {
        name: {"description": said[name], **_value(kind, name, fields[name]), **_default(fields[name])}
        for name in (fields if keys is None else keys)
    }


def _value(kind: type[msgspec.Struct], name: str, field: Field) -> dict[str, Any]:
    if name in durations(kind):
        return dict(DURATION)
    inner = field.union[0]
    if isinstance(inner, type) and issubclass(inner, Option):
        return _layer(name, inner)
    named = {Exceptions: tuple, Predicate: str}  # written as the names by which they are imported
    kinds = [_KINDS[named.get(each) or typing.get_origin(each) or each] for each in field.union]
    return dict(kinds[0]) if len(kinds) == 1 else {"anyOf": kinds}


def _default(field: Field) -> dict[str, Any]:
    """Return a default that TOML can write: it has no null, and no exception classes."""
    return {"default": field.default} if isinstance(field.default, bool | int | float | str) else {}


def _summary(kind: type[msgspec.Struct]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _said(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return what a class's docstring says about each of its attributes."""
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    return {
        name: " ".join(text.split()) for names, text in _ATTRIBUTE.findall(attributes) for name in names.split(", ")
    }
