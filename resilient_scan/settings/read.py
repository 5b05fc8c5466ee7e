"""One value from a file or a variable to what an option takes; derived from the option classes' own annotations."""

from __future__ import annotations

import difflib
import functools
import json
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from functools import partial
from pathlib import Path as File
from typing import Any, Final

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.options import LAYERS, Exceptions, Quarantine
from resilient_scan.results import DEEP
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
from resilient_scan.settings.toml import Document, Malformed, Path, parse, path_text, value_of

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)", re.ASCII)
_SECRET: Final = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|private|^settings$", re.IGNORECASE)
_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple[str, ...]: "a list of texts",
    dict[str, Any]: "a table",
}
_SWITCH: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Variable(str):
    """A value as an environment variable holds it: text, whatever it is meant to be."""

    __slots__ = ()


class Wrong(Exception):
    """A value is not of the kind that its place wants; the message says what it must be, or what is wrong."""


class Field(msgspec.Struct, frozen=True):
    """A key of a table.

    Attributes:
        name: the option's field.
        must: what a value must be, to go after "must be".
        default: the option's own; `msgspec.NODEFAULT` where there is none.
        read: brings a value from a file into the option's form, or raises `Wrong`, `TypeError` or `ValueError`.
        hint: the annotations that it allows, without `None`.
    """

    name: str
    must: str
    default: Any
    read: Callable[[Any], Any]
    hint: tuple[Any, ...]

    @property
    def required(self) -> bool:
        """Say whether the option cannot be built without it."""
        return self.default is msgspec.NODEFAULT

    def convert(self, value: Any) -> Any:
        """Return the value in the option's form.

        Raises:
            Wrong: it is of another kind.
        """
        if isinstance(value, Variable):
            value = _from_variable(value, self.hint)
        try:
            return self.read(value)
        except (TypeError, ValueError, OverflowError):
            raise Wrong(f"must be {self.must}") from None


def seconds(value: Any) -> float:
    """Return the seconds that `300`, `"250ms"`, `"5s"`, `"1.5h"`... stand for.

    Raises:
        ValueError, TypeError: it is no duration.
    """
    if not isinstance(value, str):
        return number(value)
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(value)
    return float(match[1]) * UNITS[match[2]]


def number(value: Any) -> float:
    """Return a number as a float; a `bool` is none."""
    if type(value) not in {int, float}:
        raise TypeError(value)
    return float(_sized(value))


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, Field]:
    """Return the keys that a table of an option class may have."""
    hints = typing.get_type_hints(kind)
    return {field.name: _field(kind, field, hints[field.name]) for field in msgspec.structs.fields(kind)}


def own_fault(kind: type[msgspec.Struct], field: str, value: Any) -> str:
    """Return the option's sentence about a value that is wrong whatever the other fields are, else an empty text."""
    required = {each.name: "-" for each in msgspec.structs.fields(kind) if each.required}
    try:
        kind(**{**required, field: value})
    except ConfigError as error:
        return "" if named_in(kind, str(error)) - {field} else str(error)
    return ""


def named_in(kind: type[msgspec.Struct], sentence: str) -> set[str]:
    """Return the fields of an option class that a sentence names."""
    return set(re.findall(r"\w+", sentence)) & set(kind.__struct_fields__)


def _field(kind: type[msgspec.Struct], info: msgspec.structs.FieldInfo, hint: Any) -> Field:
    members = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    union = tuple(each for each in members if each is not type(None))
    default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    make = functools.partial(Field, info.name, default=default, hint=union)
    if Exceptions in union:
        return make(must='a list of exceptions such as ["ValueError", "httpx.TransportError"]', read=exceptions)
    if float in union and not own_fault(kind, info.name, 2.0):  # what cannot be two is a share of one, no duration
        return make(must='a duration such as 300 or "5m"', read=seconds)
    words = " or ".join(_WORDS.get(each, str(each)) for each in union)
    return make(must=words, read=number if float in union else functools.partial(_strictly, union))


def _sized(value: Any) -> Any:
    """Return a value that is no whole number beyond the 64 bits that TOML speaks of."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise OverflowError(value)
    return value


def _strictly(union: tuple[Any, ...], value: Any) -> Any:
    """Return a value that is of one of these types already, a list as a tuple."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if type(value) not in {typing.get_origin(each) or each for each in union}:
        raise TypeError(value)
    return _sized(value)


def exceptions(value: Any) -> Exceptions:
    """Import the exception classes of a list of names: of Python's own, or dotted.

    Raises:
        Wrong: one cannot be found, or is no exception.
        TypeError: it is no list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(value)
    return tuple(_exception(name) for name in value)


def _exception(name: str) -> type[BaseException]:
    try:
        found = pkgutil.resolve_name(name if "." in name else f"builtins.{name}")
    except AttributeError as error:
        raise Wrong(_not_there(name, error)) from None
    except ValueError:
        raise Wrong(f"{name!r} is no name of an exception") from None
    except (Exception, SystemExit) as error:  # foreign code runs when a module is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Wrong(f"{name!r} cannot be imported: {reason}") from None
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise Wrong(f"{name!r} is no exception class")
    return found


def _not_there(name: str, error: AttributeError) -> str:
    missing, holder = str(error.name), error.obj
    if "." not in name:
        hint = "one of another module needs the module too, as in httpx.TransportError"
        return f"Python has no exception {name!r}; {way_out(missing, _exceptions_in(holder), hint)}"
    home = name[: name.rindex(f".{missing}")]
    return f"{home} has no {missing!r}; {way_out(missing, _exceptions_in(holder), 'look the name up')}"


def _exceptions_in(holder: Any) -> list[str]:
    return [
        name for name, value in vars(holder).items() if isinstance(value, type) and issubclass(value, BaseException)
    ]


def way_out(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" where a known name is near, else `otherwise`, or the list of the known ones."""
    known = list(known)
    lowered = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lowered, 1)
    if near:
        return f"did you mean {lowered[near[0]]!r}?"
    return otherwise or f"there are {', '.join(known) or 'none'}"


def looks_secret(name: str) -> bool:
    """Say whether the value under a key may be a secret."""
    return _SECRET.search(name) is not None


def show(value: Any, path: Path) -> str:
    """Write a value as TOML does, for a message: `'***'` for what may be a secret, the kind of what is long."""
    if path and looks_secret(str(path[-1])):
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


def guess(text: str) -> Any:
    """Return what a variable's text stands for where nothing says what it must be: TOML's value, else the text."""
    try:
        value = value_of(text)
    except ValueError:
        return str(text)
    return str(text) if isinstance(value, date | time) else value


def as_table(value: Any) -> Any:
    """Return what a variable says where a table is wanted, or `False`; other values as they are."""
    if not isinstance(value, Variable):
        return value
    return False if _SWITCH.get(value.strip().lower()) is False else guess(value)


def _from_variable(text: str, union: tuple[Any, ...]) -> Any:
    """Bring a variable's text into the form that a file would have given it."""
    if union == (bool,):
        return _SWITCH.get(text.strip().lower(), str(text))
    value = guess(text)
    if isinstance(value, list | dict):
        return value
    if any(typing.get_origin(each) is tuple for each in union) and (str not in union or "," in text):
        return [part.strip() for part in text.split(",")]
    return str(text) if str in union else value


# One source of settings, file or environment, read into tables; what is wrong in it is said with its place.

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


# Settings from a file.


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
