"""The layers of one scanner, put together from all who have a say, each number with where it came from.

Built-in, then `[defaults]`, then the decorator, then `[providers.x]`, then `[scanners.x]`. In each of them the
environment goes over the file. An option object replaces its whole layer, a table only the fields that it names.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Self

import msgspec

from resilient_scan._msgspec import ready
from resilient_scan.errors import ConfigError
from resilient_scan.options import LAYERS, Policy
from resilient_scan.scanning import ScannerSpec
from resilient_scan.settings.read import (
    LIMIT,
    Source,
    Variable,
    fields_of,
    guess,
    in_place,
    looks_secret,
    named_in,
    provider_keys,
    scanner_keys,
    way_out,
)
from resilient_scan.settings.tables import Patch, ScannerTable, Setting, Tables
from resilient_scan.settings.toml import Path, path_text

BUILT_IN: Final = "built-in"


class Effective(msgspec.Struct, frozen=True):
    """What holds for one scanner.

    Attributes:
        policy: its layers.
        origins: by `layer.field` where the number came from: `built-in`, `defaults scan.toml:7`, `decorator`,
            `scan.toml:12`, a variable's name...; by `layer` alone for a layer that is left out.
    """

    policy: Policy
    origins: Mapping[str, str]


class Layering:
    """Layers under construction; later calls win."""

    def __init__(self, layers: Mapping[str, Patch] | None = None) -> None:
        self._layers: dict[str, Patch] = dict(layers or {})

    @classmethod
    def of(cls, policy: Policy, place: str) -> Self:
        """Return the layers of a policy."""
        layering = cls()
        for layer in LAYERS:
            layering.replace(layer, getattr(policy, layer), place)
        return layering

    def copy(self) -> Layering:
        """Return the same layers, to go on from."""
        return Layering(self._layers)

    def replace(self, layer: str, option: msgspec.Struct | None, place: str) -> None:
        """Put an option object, or `None`, in a layer's place."""
        self._layers[layer] = Setting(None, place) if option is None else _settings_of(option, place)

    def patch(self, layer: str, patch: Patch) -> None:
        """Change the fields that a table names; a layer that was left out begins with the option's own defaults."""
        if isinstance(patch, Setting):
            self._layers[layer] = patch
            return
        below = self._layers.get(layer)
        below = below if isinstance(below, dict) else _defaults_of(LAYERS[layer])
        self._layers[layer] = {**below, **patch}

    def provide(self, provider: Setting) -> None:
        """Let the scanner share the limit of a provider; numbers of another one do not hold for it."""
        if self.provider != provider.value:
            self._layers[LIMIT] = {**_defaults_of(LAYERS[LIMIT]), "provider": provider}

    @property
    def provider(self) -> str | None:
        """Whose limit the scanner shares, if anybody's."""
        return self.limit["provider"].value if "provider" in self.limit else None

    @property
    def limit(self) -> dict[str, Setting]:
        """The fields of the limit, none where it is left out."""
        limit = self._layers.get(LIMIT)
        return limit if isinstance(limit, dict) else {}

    @property
    def numbers(self) -> dict[str, Setting]:
        """The fields of the limit that say how much."""
        return {field: each for field, each in self.limit.items() if field != "provider" and each.value is not None}

    @property
    def gives_numbers(self) -> bool:
        """Say whether more is said about them than in the provider's own table."""
        return any(number.path[:1] != ("providers",) for number in self.numbers.values())

    def build(self, problems: list[str]) -> Effective:
        """Return what was put together; layers that do not fit together go to `problems` and are left out."""
        options = {layer: option_of(LAYERS[layer], patch, problems) for layer, patch in self._layers.items()}
        origins: dict[str, str] = {}
        for layer, patch in self._layers.items():
            if isinstance(patch, Setting):
                origins[layer] = patch.origin
            else:
                origins.update({f"{layer}.{field}": setting.origin for field, setting in patch.items()})
        if options["timeout"] is None:
            del options["timeout"]
        return Effective(Policy(**options), MappingProxyType(origins))


def defaults(sources: Iterable[Tables]) -> Layering:
    """Return what holds where nobody speaks of a scanner; `timeout_seconds` replaces `timeout.total`."""
    layering = Layering.of(Policy(), BUILT_IN)
    for tables in sources:
        for layer, patch in tables.defaults.items():
            layering.patch(layer, patch)
        if total := tables.execution.get("timeout_seconds"):
            layering.patch("timeout", {"total": total})
    return layering


def layers_of(specs: Iterable[ScannerSpec], base: Layering, sources: Sequence[Tables]) -> dict[str, Layering]:
    """Return what holds for each scanner, on top of what holds for all."""
    layerings = {spec.name: _of_one(spec, base, sources) for spec in specs}
    numbers = {
        each.provider: each.numbers
        for each in reversed(layerings.values())
        if each.gives_numbers and each.provider is not None
    }
    for layering in layerings.values():
        # Numbers are the provider's: a scanner that only names it takes those that another one gives.
        if not layering.gives_numbers and layering.provider in numbers:
            layering.patch(LIMIT, numbers[layering.provider])
    return layerings


def _of_one(spec: ScannerSpec, base: Layering, sources: Sequence[Tables]) -> Layering:
    layering, own = base.copy(), tables_of(spec.name, sources)
    for layer, option in spec.layers.items():
        layering.replace(layer, option, "decorator")
    for provider in _providers(own):
        layering.provide(provider)
    if layering.provider is not None:
        for tables in sources:
            if table := tables.providers.get(layering.provider.lower()):
                layering.patch(LIMIT, table.numbers)
    for scanner_table in own:
        for layer, patch in scanner_table.layers.items():
            layering.patch(layer, patch)
    return layering


def tables_of(name: str, sources: Iterable[Tables]) -> list[ScannerTable]:
    """Return what the sources say about one scanner."""
    return [tables.scanners[name] for tables in sources if name in tables.scanners]


def _providers(own: Iterable[ScannerTable]) -> Iterator[Setting]:
    """Yield what a scanner's tables say about its provider: `provider = "sec"` or `limit = { provider = "sec" }`."""
    for table in own:
        if provider := table.own.get("provider"):
            yield provider
        limit = table.layers.get(LIMIT)
        if isinstance(limit, dict) and "provider" in limit:
            yield limit["provider"]


def _settings_of(option: msgspec.Struct, place: str) -> dict[str, Setting]:
    return {field: Setting(getattr(option, field), place) for field in option.__struct_fields__}


def _defaults_of(kind: type[msgspec.Struct]) -> dict[str, Setting]:
    return {name: Setting(field.default, BUILT_IN) for name, field in fields_of(kind).items() if not field.required}


def option_of(kind: type[msgspec.Struct], patch: Patch, problems: list[str]) -> Any:
    """Return the option that was put together, or `None`, with a sentence to `problems`, where that is none."""
    if isinstance(patch, Setting):
        return None
    missing = [name for name, field in fields_of(kind).items() if field.required and name not in patch]
    given = {field: setting for field, setting in patch.items() if setting.path}
    if missing:
        problems.append(_blame(f"{kind.__name__.lower()}.{missing[0]} is missing", kind, given))
        return None
    try:
        return kind(**{field: setting.value for field, setting in patch.items()})
    except ConfigError as error:
        problems.append(_blame(str(error), kind, given))
        return None


def _blame(sentence: str, kind: type[msgspec.Struct], given: Mapping[str, Setting]) -> str:
    """Let an option's sentence speak of the place of a field that it names, or of any that was given."""
    named = [field for field in given if field in named_in(kind, sentence)] or list(given)
    if not named:
        return sentence
    setting = given[named[0]]
    return f"{setting.place}: {in_place(sentence, kind, setting.path[:-1])}"


# A scanner's own table of settings, held against the class that it says it must fit.

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


# Settings from environment variables: `RESILIENT_SCAN__SCANNERS__reddit_dd__TIMEOUT__TOTAL=5s`.

PREFIX: Final = "RESILIENT_SCAN__"


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return what the variables with our prefix say, as a file would.

    Sections, keys and scanners' names match in any case. Parts are separated by two underscores.
    """
    names = sorted(name for name in environ if name.upper().startswith(PREFIX))
    places = _Places(names)
    source = Source({}, places.where, [])
    data: dict[str, Any] = {}
    for path, name in places.by_path.items():
        if other := _put(data, path, Variable(environ[name])):
            source.fail(path, f"{places.where(other)[1]} sets the whole of it; use one of the two")
    for name, other_name in places.twice:
        source.problems.append((names.index(name), f"{name}: {other_name} sets the same; use one of the two"))
    source.data = data
    return source


class _Places:
    """Which variable stands for which path."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.by_path: dict[Path, str] = {}
        self.twice: list[tuple[str, str]] = []
        for name in names:
            if (first := self.by_path.setdefault(_path(name), name)) != name:
                self.twice.append((name, first))

    def where(self, path: Path) -> tuple[int, str]:
        """Return number and name of the variable for a path: its own, of something in it, or of what it is in."""
        name = self.by_path.get(path) or self._inside(path) or self.where(path[:-1])[1]
        return self.names.index(name), name

    def _inside(self, path: Path) -> str | None:
        return next((name for each, name in self.by_path.items() if each[: len(path)] == path), None)


def _path(name: str) -> Path:
    section, *parts = (part.lower() for part in name[len(PREFIX) :].split("__"))
    keys = {"scanners": scanner_keys, "providers": provider_keys}.get(section)
    if keys is None or len(parts) < 2:
        return (section, *parts)
    # Two underscores may be part of a scanner's name; it ends where a key of its table begins.
    end = next((index for index, part in enumerate(parts) if index and part in keys()), 1)
    return (section, "__".join(parts[:end]), *parts[end:])


def _put(data: dict[str, Any], path: Path, value: Variable) -> Path | None:
    """Put a value in its place; return the path of the value that is in the way, if one is."""
    for depth, key in enumerate(path[:-1], 1):
        inner = data.setdefault(str(key), {})
        if isinstance(inner, Variable):
            return path[:depth]
        data = inner
    data[str(path[-1])] = value
    return None


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one's keys over it, tables in them likewise; a variable's key matches in any case."""
    merged = dict(below)
    for key, value in above.items():
        own = next((each for each in below if each.lower() == key), key) if _from_variables(value) else key
        merged[own] = _value(merged.get(own), own, value)
    return merged


def _from_variables(value: Any) -> bool:
    return isinstance(value, Variable) or (isinstance(value, dict) and any(map(_from_variables, value.values())))


def _value(below: Any, key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return over(below if isinstance(below, Mapping) else {}, value)
    if isinstance(value, Variable):
        # A key that looks like a number must not become one.
        return str(value) if isinstance(below, str) or looks_secret(key) else guess(value)
    return value


# Where state lives, as a URL: what the settings say, else a file in the user's state directory.

_FILE = "sqlite:///"


def home(path: str | os.PathLike[str] | None, sources: Sequence[Tables], environ: Mapping[str, str]) -> str:
    """Return the store's URL.

    Args:
        path: the settings file; `None`: there is none, and nothing is kept unless a variable says so.
        sources: the tables as they were read, the file's first.
        environ: variables, for the state directory: `XDG_STATE_HOME`, else `~/.local/state`.
    """
    for position, tables in reversed(list(enumerate(sources))):
        if "url" in tables.store:
            url = str(tables.store["url"].value)
            return _beside(pathlib.Path(path), url) if path is not None and position == 0 else url
    return "memory:" if path is None else _default(pathlib.Path(path), environ)


def _beside(settings: pathlib.Path, url: str) -> str:
    """Read a relative path from the settings file's directory: a job of cron starts somewhere else."""
    if not url.startswith(_FILE) or url.startswith(f"{_FILE}/"):
        return url
    return f"{_FILE}{settings.absolute().parent / url.removeprefix(_FILE)}"


def _default(settings: pathlib.Path, environ: Mapping[str, str]) -> str:
    """Return a file for all of a user's settings files, with a part by itself for each of them."""
    told = environ.get("XDG_STATE_HOME", "")
    try:
        directory = pathlib.Path(told) if pathlib.Path(told).is_absolute() else pathlib.Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        return "memory:"
    space = hashlib.sha256(os.fsencode(settings.resolve())).hexdigest()[:12]
    return f"{_FILE}{directory / 'resilient-scan.db'}?space={space}"
