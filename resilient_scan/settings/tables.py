"""The tables that settings are made of, each checked in itself, and what one source of them says."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from resilient_scan.errors import ConfigError, is_number
from resilient_scan.settings.toml import Path
from resilient_scan.stores import check_form


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
    """A table `[scanners.x]`; `places`: where each of the scanner's own settings is."""

    place: str
    own: dict[str, Setting]
    layers: dict[str, Patch]
    places: dict[str, str] = {}


class Tables(msgspec.Struct):
    """What one source says, as far as it is right; providers by their name in lower case."""

    execution: dict[str, Setting] = {}
    store: dict[str, Setting] = {}
    service: dict[str, Setting] = {}
    quarantine: dict[str, Setting] = {}
    defaults: dict[str, Patch] = {}
    providers: dict[str, ProviderTable] = {}
    scanners: dict[str, ScannerTable] = {}
