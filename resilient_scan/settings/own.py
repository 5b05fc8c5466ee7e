"""A scanner's own table of settings, held against the class that it says it must fit."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from resilient_scan.scanning import ScannerSpec
from resilient_scan.settings.layering import tables_of
from resilient_scan.settings.tables import ScannerTable, Tables
from resilient_scan.settings.toml import Path, path_text
from resilient_scan.settings.values import way_out
from resilient_scan.shapes import ready

_WORDS: Final = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "array": "a list",
    "object": "a table",
}


def misfits(
    specs: Iterable[ScannerSpec], sources: Sequence[Tables], tables: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a sentence, with its place, for everything in scanners' settings that does not fit their classes.

    Args:
        specs: the scanners.
        sources: what was read, the file's tables first.
        tables: by scanner's name what it finds in `context.settings`.
    """
    for spec in specs:
        own = tables_of(spec.name, sources)
        if spec.settings is not None and tables[spec.name]:
            yield from _misfits(spec.name, spec.settings, own, tables[spec.name])


def _misfits(
    name: str, kind: type[msgspec.Struct], own: Sequence[ScannerTable], table: Mapping[str, Any]
) -> Iterator[str]:
    hints, fields = typing.get_type_hints(kind, include_extras=True), msgspec.structs.fields(kind)
    known = {field.encode_name: hints[field.name] for field in fields}
    home = ("scanners", name, "settings")
    faults = {key: fault for key, value in table.items() if (fault := _fault((*home, key), value, known))}
    yield from (f"{_place(own, key)}: {fault}" for key, fault in faults.items())
    if not faults and table.keys() >= {field.encode_name for field in fields if field.required}:
        try:
            msgspec.convert(dict(table), ready(kind))
        except msgspec.ValidationError as error:  # values that do not fit each other
            yield f"{_place(own)}: {path_text(home)}: {_reason(error)[0]}"


def _fault(path: Path, value: Any, known: Mapping[str, Any]) -> str:
    key = str(path[-1])
    if key not in known:
        way = way_out(key, known, f"the settings are {', '.join(known)}")
        return f"unknown key {path_text(path)}; {way}"
    try:
        msgspec.convert(value, known[key])
    except msgspec.ValidationError as error:
        reason, inner = _reason(error)
        return f"{path_text(path)}{inner} {reason.replace('Expected', 'must be', 1)}"
    return ""


def _reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong, and where in the value; the value itself, which may be secret, is not in it."""
    reason, _, inner = str(error).partition(" - at `$")
    for kind, words in _WORDS.items():
        reason = reason.replace(f"`{kind}`", words)
    return reason, inner.removesuffix("`")


def _place(own: Sequence[ScannerTable], key: str = "") -> str:
    """Return where the last one stands who gave a key, or any of them."""
    given = [(each.lower(), place) for table in own for each, place in table.places.items()]
    return [place for each, place in given if not key or each == key.lower()][-1]
