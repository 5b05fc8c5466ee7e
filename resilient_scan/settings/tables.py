"""The tables that settings are made of, and one source of them, file or environment, read into them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from resilient_scan.errors import ConfigError, is_number
from resilient_scan.options import LAYERS, Quarantine
from resilient_scan.settings.toml import Path, path_text
from resilient_scan.settings.values import (
    Wrong,
    as_table,
    fields_of,
    own_fault,
    show,
    way_out,
)
from resilient_scan.stores import check_form

LIMIT: Final = "limit"


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """The table `[scanner_execution]`: how runs are executed; `None` means that nothing is said.

    Attributes:
        concurrent: `False`: one scanner at a time, in the given order.
        max_workers: scanners at work at a time, >= 1.
        timeout_seconds: `timeout.total` of every scanner that does not say otherwise, in seconds, > 0.
        deadline: seconds for a whole run, > 0.
        engine: where work runs: `"threads"`.
    """

    concurrent: bool | None = None
    max_workers: int | None = None
    timeout_seconds: float | None = None
    deadline: float | None = None
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.max_workers is not None and self.max_workers < 1:
            raise ConfigError(f"execution.max_workers must be >= 1, got {self.max_workers}")
        for field in ("timeout_seconds", "deadline"):
            _above_zero("execution", field, getattr(self, field))
        _only("execution", "engine", self.engine, "threads", later=("processes", "dask"))


class Store(msgspec.Struct, frozen=True):
    """The table `[store]`: where state lives.

    Attributes:
        url: `"sqlite:///path.db"`, from the file's own directory where the path is relative; `"redis://host:port/db"`;
            `"memory:"`: in the runner itself. None: a file in the user's state directory.
    """

    url: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            check_form(self.url)


class Service(msgspec.Struct, frozen=True):
    """The table `[service]`: how `resilient-scan serve` can be reached, and what it asks.

    Attributes:
        listen: address and port, such as `"127.0.0.1:9108"`; port 0 takes a free one.
        token_file: a file whose text is the token that changes something; none: nothing can be changed over HTTP.
        alertmanager: Alertmanager's URL, to be asked for its active alerts; none: it is not asked.
        receiver: name of the receiver there whose alerts are ours; none: those of all receivers. Where several services
            share an Alertmanager, each needs one of its own.
        reconcile: how often it is asked, in seconds, > 0.
    """

    listen: str = "127.0.0.1:9108"
    token_file: str | None = None
    alertmanager: str | None = None
    receiver: str | None = None
    reconcile: float = 60.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", self.listen, re.ASCII) or self.port > 65535:
            raise ConfigError(
                f'service.listen must be an address and a port such as "127.0.0.1:9108", got {self.listen!r}'
            )
        if self.alertmanager is not None and not re.match(r"https?://[^/?#@]+(/|$)", self.alertmanager):
            raise ConfigError('service.alertmanager must be a URL such as "http://127.0.0.1:9093", without a password')
        _above_zero("service", "reconcile", self.reconcile)

    @property
    def host(self) -> str:
        """Return the address to listen at."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the port to listen at."""
        return int(self.listen.rpartition(":")[2])


class Own(msgspec.Struct, frozen=True):
    """What a table `[scanners.x]` may say beside the layers.

    Attributes:
        enabled: `False`: the scanner is not part of any run.
        provider: whose limit it shares.
        isolation: what a scan runs in: `"thread"`.
        settings: what the scanner finds in `context.settings`.
    """

    enabled: bool = True
    provider: str | None = None
    isolation: str = "thread"
    settings: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.provider is not None and not self.provider.strip():
            raise ConfigError("own.provider must not be empty")
        _only("own", "isolation", self.isolation, "thread", later=("process",))


def _above_zero(table: str, field: str, value: float | None) -> None:
    if value is not None and not is_number(value, most=1e9):
        raise ConfigError(f"{table}.{field} must be a finite number <= 1e9, got {value!r}")
    if value is not None and value <= 0:
        raise ConfigError(f"{table}.{field} must be > 0, got {value!r}")


def _only(table: str, field: str, value: str | None, known: str, later: tuple[str, ...]) -> None:
    if value in later:
        raise ConfigError(f'{table}.{field}: "{value}" is not supported by this version; use "{known}"')
    if value not in {None, known}:
        raise ConfigError(f'{table}.{field} must be "{known}", got "{value}"')


class Setting(msgspec.Struct, frozen=True):
    """A value, and where it came from.

    Attributes:
        value: in the option's form.
        place: `scan.toml:7`, a variable's name, `built-in`, `decorator`...
        path: keys that lead to it in its source; empty where it has none.
    """

    value: Any
    place: str
    path: Path = ()

    @property
    def origin(self) -> str:
        """Return where it came from, for people: the place, and the table if it speaks for more than one scanner."""
        shared = self.path and self.path[0] != "scanners" and ":" in self.place
        return f"{self.path[0]} {self.place}" if shared else self.place


Patch = dict[str, Setting] | Setting
"""What a table says about a layer: the fields that it names, or (a single setting) that it is left out."""


class ProviderTable(msgspec.Struct):
    """A table `[providers.x]`."""

    place: str
    name: str
    numbers: dict[str, Setting]


class ScannerTable(msgspec.Struct):
    """A table `[scanners.x]`."""

    place: str
    own: dict[str, Setting]
    layers: dict[str, Patch]


class Tables(msgspec.Struct):
    """What one source says, as far as it is right; providers by their name in lower case."""

    execution: dict[str, Setting] = {}
    store: dict[str, Setting] = {}
    service: dict[str, Setting] = {}
    quarantine: dict[str, Setting] = {}
    defaults: dict[str, Patch] = {}
    providers: dict[str, ProviderTable] = {}
    scanners: dict[str, ScannerTable] = {}


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
        setattr(tables, _SECTIONS[section][0], _SECTIONS[section][1](source, (section,), value))
    return tables


def scanner_keys() -> tuple[str, ...]:
    """Return the keys that a table `[scanners.x]` may have."""
    return (*fields_of(Own), *LAYERS)


def provider_keys() -> tuple[str, ...]:
    """Return the keys that a table `[providers.x]` may have."""
    return tuple(field for field in fields_of(LAYERS[LIMIT]) if field != "provider")


def _execution(source: Source, path: Path, value: Any) -> dict[str, Setting]:
    return _fields(source, path, _table(source, path, value), Execution)


def _store(source: Source, path: Path, value: Any) -> dict[str, Setting]:
    return _fields(source, path, _table(source, path, value), Store)


def _service(source: Source, path: Path, value: Any) -> dict[str, Setting]:
    return _fields(source, path, _table(source, path, value), Service)


def _quarantine(source: Source, path: Path, value: Any) -> dict[str, Setting]:
    return _fields(source, path, _table(source, path, value), Quarantine)


def _layers(source: Source, path: Path, value: Any) -> dict[str, Patch]:
    table = _table(source, path, value)
    return {
        layer: patch
        for layer, inner in _known(source, path, table, LAYERS)
        for patch in _layer(source, (*path, layer), inner)
    }


def _providers(source: Source, path: Path, value: Any) -> dict[str, ProviderTable]:
    return {
        name.lower(): _provider(source, (*path, name), inner) for name, inner in _table(source, path, value).items()
    }


def _provider(source: Source, path: Path, value: Any) -> ProviderTable:
    numbers = _fields(source, path, _table(source, path, value), LAYERS[LIMIT], provider_keys())
    return ProviderTable(source.where(path)[1], str(path[-1]), numbers)


def _scanners(source: Source, path: Path, value: Any) -> dict[str, ScannerTable]:
    return {name: _scanner(source, (*path, name), inner) for name, inner in _table(source, path, value).items()}


def _scanner(source: Source, path: Path, value: Any) -> ScannerTable:
    table = dict(_known(source, path, _table(source, path, value), scanner_keys()))
    layers = {key: table.pop(key) for key in LAYERS if key in table}
    return ScannerTable(source.where(path)[1], _fields(source, path, table, Own), _layers(source, path, layers))


_SECTIONS: Final[dict[str, tuple[str, Callable[[Source, Path, Any], Any]]]] = {
    "scanner_execution": ("execution", _execution),
    "defaults": ("defaults", _layers),
    "providers": ("providers", _providers),
    "scanners": ("scanners", _scanners),
    "store": ("store", _store),
    "service": ("service", _service),
    "quarantine": ("quarantine", _quarantine),
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
