"""Two sources of settings, a file and the environment: each is read into tables, and every error has its place.

    `from_file`, `from_environment`  ->  Source  ->  `read_tables`  ->  Tables

A source is plain data and a function that says where a path in it comes from: `scan.toml:7`, or a variable's name. So
the same reader serves both. What is wrong is noted with its place and left out, and reading goes on: all problems are
reported at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path as File
from typing import Any, Final

import msgspec

from resilient_scan._text import did_you_mean, is_utf8, may_be_secret
from resilient_scan.options import LAYERS, Cluster, Option, Quarantine
from resilient_scan.results import MAX_DEPTH
from resilient_scan.settings.tables import (
    Execution,
    Local,
    Notify,
    Own,
    Service,
    Store,
    Variable,
    Wrong,
    as_table,
    fields_of,
    own_fault,
)
from resilient_scan.settings.toml import Document, Malformed, Path, parse, path_text

LIMIT: Final = "limit"
OPTIONS: Final[Mapping[str, type[Option]]] = {
    "scanner_execution": Execution,
    "store": Store,
    "local": Local,
    "service": Service,
    "notify": Notify,
    "quarantine": Quarantine,
    "cluster": Cluster,
}
"""The tables that are one option object each."""
_SECTIONS: Final = (
    "scanner_execution",
    "defaults",
    "providers",
    "scanners",
    "store",
    "local",
    "service",
    "notify",
    "quarantine",
    "cluster",
)
_PREFIX: Final = "RESILIENT_SCAN__"


class Setting(msgspec.Struct, frozen=True):
    """A value, and where it came from.

    Attributes:
        value: in the option's form.
        place: `scan.toml:7`, a variable's name, `built-in`, `decorator`...
        path: the keys that lead to it in its source; empty if it has no source.
        named: the fields that its table names, if the value is an option object.
    """

    value: Any
    place: str
    path: Path = ()
    named: tuple[str, ...] = ()

    def over(self, below: Setting | None) -> Setting:
        """Return what holds where another source says something else: of an option object, each field by itself.

        Raises:
            ConfigError: the fields of the two do not fit together.
        """
        if below is None or not self.named or type(below.value) is not type(self.value):
            return self
        fields = {name: getattr(self.value, name) for name in self.named}
        return msgspec.structs.replace(self, value=msgspec.structs.replace(below.value, **fields))

    @property
    def is_of_file(self) -> bool:
        """Say whether it stands in a file, at a line."""
        return ":" in self.place

    @property
    def origin(self) -> str:
        """Where it came from, for people: the place, and the table if it is for more than one scanner."""
        shared = self.path and self.path[0] != "scanners" and self.is_of_file
        return f"{self.path[0]} {self.place}" if shared else self.place


Patch = dict[str, Setting] | Setting
"""What a table says about a layer: the fields that it names, or (a single setting) that the layer is left out."""


class ProviderTable(msgspec.Struct):
    """A table `[providers.x]`.

    Attributes:
        name: as it was written first.
        begins: where it begins, in each source.
        numbers: its keys.
    """

    name: str
    begins: tuple[str, ...]
    numbers: dict[str, Setting] = {}


class ScannerTable(msgspec.Struct):
    """A table `[scanners.x]`.

    Attributes:
        begins: where it begins, in each source.
        own: its keys besides the layers and the settings.
        layers: what it says about the layers; `provider` belongs to the limit.
        settings: what the scanner finds in `context.settings`.
        places: where each of these settings stands, by its key in lower case.
    """

    begins: tuple[str, ...] = ()
    own: dict[str, Setting] = {}
    layers: dict[str, Patch] = {}
    settings: dict[str, Any] = {}
    places: dict[str, str] = {}


class Tables(msgspec.Struct):
    """What is said, as far as it is right.

    Attributes:
        options: the tables that are one option object each, by name.
        defaults: `[defaults]`, by layer, with `timeout_seconds` as `timeout.total`.
        providers: `[providers.x]`, by the provider's name in lower case.
        scanners: `[scanners.x]`, by name.
    """

    options: dict[str, dict[str, Setting]] = {}
    defaults: dict[str, Patch] = {}
    providers: dict[str, ProviderTable] = {}
    scanners: dict[str, ScannerTable] = {}


class Source(msgspec.Struct):
    """Data that somebody wrote, and where.

    Attributes:
        data: tables by name.
        where: returns for a path its number in the source, to sort by, and the words for its place.
        problems: sentences about what is wrong, each with such a number.
    """

    data: dict[str, Any]
    where: Callable[[Path], tuple[int, str]]
    problems: list[tuple[int, str]]

    def fail(self, path: Path, sentence: str) -> None:
        """Note that something is wrong at `path`."""
        number, place = self.where(path)
        self.problems.append((number, f"{place}: {sentence}"))

    def setting(self, path: Path, value: Any) -> Setting:
        """Return a value with its place."""
        return Setting(value, self.where(path)[1], path)


# The two sources


def from_file(name: str) -> Source:
    """Return what a TOML file says; if it cannot be read, that is the one problem of an empty source."""
    problems: list[tuple[int, str]] = []
    document = Document({}, {})
    try:
        document = parse(File(name).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        problems.append((0, f"{name}: there is no such file"))
    except OSError as error:
        problems.append((0, f"{name}: cannot be read: {error.strerror}"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append((line, f"{name}:{line}: not UTF-8, which TOML has to be"))
    except Malformed as error:
        problems.append((error.line, f"{name}:{error.line}: {error.reason}"))

    def where(path: Path) -> tuple[int, str]:
        line = document.line(path)
        return line, f"{name}:{line}"

    return Source(document.data, where, problems)


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return what the variables with our prefix say: `RESILIENT_SCAN__SCANNERS__reddit_dd__TIMEOUT__TOTAL=5s`.

    Sections, keys and scanners' names match in any case. Parts are separated by two underscores.
    """
    variables: dict[Path, str] = {}

    def where(path: Path) -> tuple[int, str]:
        """Return the variable for a path: its own, else of something in it, else of what it is in."""
        while not (names := [name for each, name in variables.items() if each[: len(path)] == path]):
            path = path[:-1]
        return list(variables.values()).index(names[0]), names[0]

    source = Source({}, where, [])
    ours = [name for name in environ if name.upper().startswith(_PREFIX)]
    for name in [name for name in ours if not is_utf8(name)]:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        source.problems.append((0, f"{shown}: the variable's name is not UTF-8"))
        ours.remove(name)
    for path, name in sorted((_path(name), name) for name in ours):
        if (first := variables.setdefault(path, name)) != name:
            source.problems.append((where(path)[0], f"{name}: {first} sets the same; use one of the two"))
        elif not is_utf8(environ[name]):
            source.fail(path, "its value is not UTF-8")
        elif whole := _put(source.data, path, Variable(environ[name])):
            source.fail(path, f"{variables[whole]} sets the whole of it; use one of the two")
    return source


def _path(name: str) -> Path:
    section, *parts = (part.lower() for part in name[len(_PREFIX) :].split("__"))
    keys = {"scanners": scanner_keys, "providers": provider_keys}.get(section)
    if keys is None or len(parts) < 2:
        return (section, *parts)
    # Two underscores may be part of a scanner's name; it ends where a key of its table begins.
    end = next((index for index, part in enumerate(parts) if index and part in keys()), 1)
    return (section, "__".join(parts[:end]), *parts[end:])


def _put(data: dict[str, Any], path: Path, value: Variable) -> Path | None:
    """Put a value in its place; return the path of the value that is in the way, if there is one."""
    for depth, key in enumerate(path[:-1], 1):
        inner = data.setdefault(str(key), {})
        if isinstance(inner, Variable):
            return path[:depth]
        data = inner
    data[str(path[-1])] = value
    return None


# From a source to tables


def read_tables(source: Source) -> Tables:
    """Read all tables of a source; what is wrong goes to its `problems`."""
    tables = Tables()
    for section, value in _known(source, (), source.data, _SECTIONS):
        path = (section,)
        if _is_deep(value):
            source.fail(path, f"{section} is nested more than {MAX_DEPTH} levels deep; make it flatter")
            continue
        table = _table(source, path, value)
        if section in OPTIONS:
            tables.options[section] = _fields(source, path, table, OPTIONS[section])
        elif section == "defaults":
            tables.defaults = _layers(source, path, table)
        elif section == "providers":
            tables.providers = _providers(source, path, table)
        else:
            tables.scanners = {name: _scanner(source, (*path, name), inner) for name, inner in table.items()}
    timeout = tables.defaults.get("timeout", {})
    if (total := tables.options.get("scanner_execution", {}).get("timeout_seconds")) and isinstance(timeout, dict):
        tables.defaults["timeout"] = {**timeout, "total": total}
    return tables


def scanner_keys() -> tuple[str, ...]:
    """Return the keys that a table `[scanners.x]` can have."""
    return (*fields_of(Own), *LAYERS)


def provider_keys() -> tuple[str, ...]:
    """Return the keys that a table `[providers.x]` can have."""
    return tuple(field for field in fields_of(LAYERS[LIMIT]) if field != "provider")


def _is_deep(value: Any) -> bool:
    """Say whether tables and lists are nested so deep that recursive functions would fail."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [part for parts in inner for part in parts]
    return bool(level)


def _providers(source: Source, path: Path, tables: Mapping[str, Any]) -> dict[str, ProviderTable]:
    found: dict[str, ProviderTable] = {}
    for name, inner in tables.items():
        here = (*path, name)
        numbers = _fields(source, here, _table(source, here, inner), LAYERS[LIMIT], provider_keys())
        first = found.setdefault(name.lower(), table := ProviderTable(name, (source.where(here)[1],), numbers))
        if first is not table:
            both = f"{path_text(here)} appears twice, as {first.name!r} in {first.begins[0]} too"
            source.fail(here, f"{both}; names match in any case")
    return found


def _scanner(source: Source, path: Path, value: Any) -> ScannerTable:
    table = dict(_known(source, path, _table(source, path, value), scanner_keys()))
    layers = _layers(source, path, {key: table.pop(key) for key in LAYERS if key in table})
    own = _fields(source, path, table, Own)
    limit = layers.get(LIMIT, {})
    if (provider := own.pop("provider", None)) and isinstance(limit, dict):
        layers[LIMIT] = {"provider": provider, **limit}
    settings = own.pop("settings").value if "settings" in own else {}
    places = {key.lower(): source.where((*path, "settings", key))[1] for key in settings}
    return ScannerTable((source.where(path)[1],), own, layers, settings, places)


def _layers(source: Source, path: Path, table: Mapping[str, Any]) -> dict[str, Patch]:
    patches = {layer: _layer(source, (*path, layer), inner) for layer, inner in _known(source, path, table, LAYERS)}
    return {layer: patch for layer, patch in patches.items() if patch}


def _layer(source: Source, path: Path, value: Any) -> Patch | None:
    """Return what a layer's table says, or `None` if it says nothing, or something wrong."""
    layer, value, before = str(path[-1]), as_table(value), len(source.problems)
    if isinstance(value, dict):
        patch = _fields(source, path, value, LAYERS[layer])
        return patch if len(source.problems) == before else None
    if value is False and layer != "timeout":
        return source.setting(path, None)
    example = _example(LAYERS[layer])
    if value is False:
        source.fail(path, f"{path_text(path)} cannot be left out; give it a table such as {example}")
    else:
        leave = "" if layer == "timeout" else ", or false to leave the layer out"
        source.fail(path, f"{path_text(path)} must be a table such as {example}{leave}, got {_shown(value, path)}")
    return None


def _example(kind: type[msgspec.Struct]) -> str:
    name, field = next(iter(fields_of(kind).items()))
    return f"{{ {name} = {'...' if field.required else f'{field.default:g}'} }}"


def _fields(
    source: Source, path: Path, table: Mapping[str, Any], kind: type[msgspec.Struct], keys: Collection[str] = ()
) -> dict[str, Setting]:
    """Return the fields of `kind` that a table names and that are right in themselves."""
    fields, settings = fields_of(kind), {}
    for key, value in _known(source, path, table, keys or fields):
        here = (*path, key)
        try:
            converted = fields[key].convert(value)
        except Wrong as wrong:
            got = f", got {_shown(value, here)}" if str(wrong).startswith("must be ") else ""
            source.fail(here, f"{path_text(here)}{'' if got else ':'} {wrong}{got}")
            continue
        if fault := own_fault(kind, key, converted):
            source.fail(here, in_place(fault, kind, path))
        else:
            named = tuple(as_table(value)) if isinstance(converted, Option) else ()
            settings[key] = msgspec.structs.replace(source.setting(here, converted), named=named)
    return settings


def in_place(sentence: str, kind: type[msgspec.Struct], table: Path) -> str:
    """Let an option's sentence name its place in the settings: `defaults.retry.cap must...`, not `retry.cap`."""
    return f"{path_text(table)}.{sentence.replace(f'{kind.__name__.lower()}.', '')}"


def _table(source: Source, path: Path, value: Any) -> dict[str, Any]:
    value = as_table(value)
    if isinstance(value, dict):
        return value
    source.fail(path, f"{path_text(path)} must be a table, got {_shown(value, path)}")
    return {}


def _known(source: Source, path: Path, table: Mapping[str, Any], keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a table that it can have, with their values; report the others."""
    for key, value in table.items():
        if key in keys:
            yield key, value
        else:
            here = (*path, key)
            source.fail(here, f"unknown key {path_text(here)}; {_meant(key, path, keys)}")


def _meant(key: str, path: Path, keys: Collection[str]) -> str:
    homes = [path_text((*path, layer, key)) for layer in keys if layer in LAYERS and key in fields_of(LAYERS[layer])]
    if homes:
        return f"did you mean {' or '.join(homes)}?"
    return did_you_mean(key, keys, f"the keys are {', '.join(keys)}")


def _shown(value: Any, path: Path) -> str:
    """Write a value as TOML does, for a message: `'***'` if it may hold a secret, only its kind if it is long."""
    if path[-1] == "settings" or may_be_secret(str(path[-1])):
        return "'***'"
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value if len(value) <= 40 else f"{value[:40]}...", ensure_ascii=False)
        case dict():
            return "a table"
        case list():
            return "a list"
        case date() | datetime() | time():
            return value.isoformat()
        case int() if value.bit_length() > 63:
            return "a number of more than 64 bits"
    return str(value)
