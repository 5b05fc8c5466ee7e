"""One source of settings, file or environment, read into tables; what is wrong in it is said with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from resilient_scan.options import LAYERS, Quarantine
from resilient_scan.outcome import DEEP
from resilient_scan.settings.tables import (
    Execution,
    Own,
    Patch,
    ProviderTable,
    ScannerTable,
    Service,
    Setting,
    Store,
    Tables,
)
from resilient_scan.settings.toml import Path, path_text
from resilient_scan.settings.values import Wrong, as_table, fields_of, own_fault, show, way_out

LIMIT: Final = "limit"


class Source(msgspec.Struct):
    """Data that somebody wrote, and where.

    Attributes:
        data: tables by name.
        where: for a path, its number in the source, to sort by, and the words for its place.
        problems: sentences about what is wrong, each with such a number.
    """

    data: Mapping[str, Any]
    where: Callable[[Path], tuple[int, str]]
    problems: list[tuple[int, str]]

    def fail(self, path: Path, sentence: str) -> None:
        """Note that something is wrong at `path`."""
        number, place = self.where(path)
        self.problems.append((number, f"{place}: {sentence}"))

    def setting(self, path: Path, value: Any) -> Setting:
        """Return a value with its place."""
        return Setting(value, self.where(path)[1], path)


def read(source: Source) -> Tables:
    """Read all tables of a source; what is wrong goes to its `problems`."""
    tables = Tables()
    for section, value in _known(source, (), source.data, tuple(_SECTIONS)):
        if _is_deep(value):
            source.fail((section,), f"{section} is nested more than {DEEP} levels deep; make it flatter")
            continue
        setattr(tables, _SECTIONS[section][0], _SECTIONS[section][1](source, (section,), value))
    return tables


def scanner_keys() -> tuple[str, ...]:
    """Return the keys that a table `[scanners.x]` may have."""
    return (*fields_of(Own), *LAYERS)


def provider_keys() -> tuple[str, ...]:
    """Return the keys that a table `[providers.x]` may have."""
    return tuple(field for field in fields_of(LAYERS[LIMIT]) if field != "provider")


def _is_deep(value: Any) -> bool:
    """Say whether tables and lists lie in each other more than 100 levels deep."""
    level = [value]
    for _ in range(DEEP):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [part for parts in inner for part in parts]
    return bool(level)


def _options(kind: type[msgspec.Struct], source: Source, path: Path, value: Any) -> dict[str, Setting]:
    return _fields(source, path, _table(source, path, value), kind)


def _layers(source: Source, path: Path, value: Any) -> dict[str, Patch]:
    table = _table(source, path, value)
    return {
        layer: patch
        for layer, inner in _known(source, path, table, LAYERS)
        for patch in _layer(source, (*path, layer), inner)
    }


def _providers(source: Source, path: Path, value: Any) -> dict[str, ProviderTable]:
    found: dict[str, ProviderTable] = {}
    for name, inner in _table(source, path, value).items():
        there = found.setdefault(name.lower(), _provider(source, here := (*path, name), inner))
        if there.name != name:
            said = f"{path_text(here)} is there twice, as {there.name!r} in {there.place} too; names match in any case"
            source.fail(here, said)
    return found


def _provider(source: Source, path: Path, value: Any) -> ProviderTable:
    numbers = _fields(source, path, _table(source, path, value), LAYERS[LIMIT], provider_keys())
    return ProviderTable(source.where(path)[1], str(path[-1]), numbers)


def _scanners(source: Source, path: Path, value: Any) -> dict[str, ScannerTable]:
    return {name: _scanner(source, (*path, name), inner) for name, inner in _table(source, path, value).items()}


def _scanner(source: Source, path: Path, value: Any) -> ScannerTable:
    table = dict(_known(source, path, _table(source, path, value), scanner_keys()))
    layers = {key: table.pop(key) for key in LAYERS if key in table}
    fields = _fields(source, path, table, Own)
    settings = fields["settings"].value if "settings" in fields else {}
    places = {key: source.where((*path, "settings", key))[1] for key in settings}
    return ScannerTable(source.where(path)[1], fields, _layers(source, path, layers), places)


_SECTIONS: Final[dict[str, tuple[str, Callable[[Source, Path, Any], Any]]]] = {
    "scanner_execution": ("execution", partial(_options, Execution)),
    "defaults": ("defaults", _layers),
    "providers": ("providers", _providers),
    "scanners": ("scanners", _scanners),
    "store": ("store", partial(_options, Store)),
    "service": ("service", partial(_options, Service)),
    "quarantine": ("quarantine", partial(_options, Quarantine)),
}


def _layer(source: Source, path: Path, value: Any) -> Iterator[Patch]:
    """Yield what a layer's table says, or nothing if it says nothing, or something wrong."""
    kind = LAYERS[str(path[-1])]
    value = as_table(value)
    before = len(source.problems)
    if value is False and path[-1] != "timeout":
        yield source.setting(path, None)
    elif isinstance(value, dict):
        if (patch := _fields(source, path, value, kind)) and len(source.problems) == before:
            yield patch
    elif value is False:
        source.fail(path, f"{path_text(path)} cannot be left out; give it a table such as {_example(kind)}")
    else:
        leave = "" if path[-1] == "timeout" else ", or false to leave the layer out"
        source.fail(path, f"{path_text(path)} must be a table such as {_example(kind)}{leave}, got {show(value, path)}")


def _example(kind: type[msgspec.Struct]) -> str:
    field = next(iter(fields_of(kind).values()))
    return f"{{ {field.name} = {'...' if field.required else f'{field.default:g}'} }}"


def _fields(
    source: Source, path: Path, table: Mapping[str, Any], kind: type[msgspec.Struct], keys: tuple[str, ...] = ()
) -> dict[str, Setting]:
    """Return the fields of `kind` that a table names and that are right in themselves."""
    fields, settings = fields_of(kind), {}
    for key, value in _known(source, path, table, keys or tuple(fields)):
        here = (*path, key)
        try:
            converted = fields[key].convert(value)
        except Wrong as wrong:
            said = str(wrong)
            got = f", got {show(value, here)}" if said.startswith("must be ") else ""
            source.fail(here, f"{path_text(here)}{'' if got else ':'} {said}{got}")
            continue
        if fault := own_fault(kind, key, converted):
            source.fail(here, in_place(fault, kind, path))
        else:
            settings[key] = source.setting(here, converted)
    return settings


def in_place(sentence: str, kind: type[msgspec.Struct], table: Path) -> str:
    """Let an option's sentence speak of its place in the settings: `retry.cap must...` of `defaults.retry.cap`."""
    return f"{path_text(table)}.{sentence.replace(f'{kind.__name__.lower()}.', '')}"


def _table(source: Source, path: Path, value: Any) -> dict[str, Any]:
    value = as_table(value)
    if isinstance(value, dict):
        return value
    source.fail(path, f"{path_text(path)} must be a table, got {show(value, path)}")
    return {}


def _known(source: Source, path: Path, table: Mapping[str, Any], keys: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a table that may be there, with their values; report the others."""
    for key, value in table.items():
        if key in keys:
            yield key, value
        else:
            here = (*path, key)
            source.fail(here, f"unknown key {path_text(here)}; {_way_out(key, path, tuple(keys))}")


def _way_out(key: str, path: Path, keys: tuple[str, ...]) -> str:
    homes = [path_text((*path, layer, key)) for layer in keys if layer in LAYERS and key in fields_of(LAYERS[layer])]
    if homes:
        return f"did you mean {' or '.join(homes)}?"
    return way_out(key, keys, f"the keys are {', '.join(keys)}")
