"""A runner's arguments, checked: one frozen value that everything below the runner reads its options from.

To add an option, give `ScanRunner` an argument, give `Config` a field and a check, and read `config.<field>` where it
is used. Nothing in between passes it on.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec

from resilient_scan._text import know, no_scanner, secrets_of_environment, secrets_of_table
from resilient_scan.clock import Clock
from resilient_scan.context import Traffic
from resilient_scan.errors import ConfigError, is_number
from resilient_scan.events import Listener
from resilient_scan.layers.local import parse_address
from resilient_scan.options import Policy, Quarantine
from resilient_scan.scanning import ScannerSpec, check_isolation, size_of, spec_of
from resilient_scan.stores import Store

ENGINES = ("threads", "dask")
ORDERS = ("longest_first", "given")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet is to be; the arguments of `ScanRunner`, which describes them.

    Attributes:
        specs: the scanners, in the given order.
        policies: by scanner's name, its effective policy.
        settings: by scanner's name, what it finds in `context.settings`; read-only copies.
        store: as given: a URL, a store object that its owner closes, or `None`.
        history: seconds for which the store keeps attempts; 0: it keeps none.

    Raises:
        ConfigError: an option is wrong.
    """

    specs: tuple[ScannerSpec, ...]
    policies: Mapping[str, Policy]
    settings: Mapping[str, Mapping[str, Any]]
    listeners: tuple[Listener, ...]
    max_workers: int
    max_abandoned: int
    max_async: int
    concurrent: bool
    order: str
    engine: str
    cluster: Any  # a `Cluster`, a `distributed.Client` or `None`
    deadline: float | None
    quarantine: Quarantine
    local_probe: str | None
    store: str | Store | None
    history: float
    traffic: Traffic | None
    clock: Clock
    random: Random

    def __post_init__(self) -> None:
        one_of("concurrent", self.concurrent, (True, False))
        one_of("order", self.order, ORDERS)
        one_of("engine", self.engine, ENGINES)
        if self.engine == "dask" and (self.cluster is None or getattr(self.cluster, "address", "") is None):
            raise ConfigError('engine="dask" needs a cluster: its address, such as "tcp://127.0.0.1:8786", or "local"')
        if self.engine != "dask" and self.cluster is not None:
            raise ConfigError('cluster needs engine="dask"')
        whole("max_workers", self.max_workers, 1)
        whole("max_abandoned", self.max_abandoned, 0)
        whole("max_async", self.max_async, 1)
        length_of(self.deadline)
        if not is_number(self.history, 0):
            raise ConfigError(f"history must be a number of seconds >= 0, got {self.history!r}")
        if self.local_probe is not None:
            parse_address("local_probe", self.local_probe)
        check_quarantine(self.quarantine, self.names)
        know(secrets_of_environment(os.environ))
        know(secrets_of_table({**self.settings, "store": self.store}))

    @property
    def names(self) -> tuple[str, ...]:
        """The scanners' names, in the given order."""
        return tuple(spec.name for spec in self.specs)

    def only(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some scanners, in the given order of all.

        Raises:
            ConfigError: there is no such scanner (the message names the nearest), or `wanted` is a text, not a list.
        """
        if isinstance(wanted, str):
            raise ConfigError(f"only must be a list of names, got the text {wanted!r}; write only=[{wanted!r}]")
        chosen, names = set(wanted), self.names
        for name in chosen.difference(names):
            raise ConfigError(no_scanner(name, names))
        return tuple(name for name in names if name in chosen)


def distinct(scanners: Iterable[Any]) -> tuple[ScannerSpec, ...]:
    """Bring scanners into their normal form.

    Raises:
        ConfigError: two have the same name, or `scanners` is not iterable.
        PluginError: one of them is not a scanner.
    """
    if not isinstance(scanners, Iterable):
        raise ConfigError(f"scanners must be a list of scanners, got {scanners!r:.200}")
    specs: dict[str, ScannerSpec] = {}
    for thing in scanners:
        spec = thing if isinstance(thing, ScannerSpec) else spec_of(thing)  # settings have changed something about it
        if spec.name in specs:
            first = specs[spec.name].origin
            raise ConfigError(f"two scanners are named {spec.name!r}: {first!r} and {spec.origin!r}; rename one")
        specs[spec.name] = spec
    return tuple(specs.values())


def isolated(
    specs: Sequence[ScannerSpec], isolation: str | Mapping[str, str], memory: Mapping[str, str | int]
) -> tuple[ScannerSpec, ...]:
    """Return the scanners, each with what it runs in, `"thread"` or `"process"`, and how much memory it may use.

    Args:
        specs: the scanners.
        isolation: for those that do not say, or by scanner's name instead of what they say.
        memory: likewise by scanner's name.

    Raises:
        ConfigError: a value is wrong, or memory is limited where no process has it.
    """
    names = [spec.name for spec in specs]
    given: Mapping[str, str] = {} if isinstance(isolation, str) else isolation
    by_name(given, "isolation", str, names)
    by_name(memory, "memory", str | int, names)
    found = []
    for spec in specs:
        said = given.get(spec.name, spec.isolation)
        kind = said or (isolation if isinstance(isolation, str) else "thread")
        check_isolation("isolation" if spec.name not in given else f"isolation of {spec.name}", kind)
        size = size_of(f"memory of {spec.name}", memory.get(spec.name, spec.memory))
        if size is not None and said is None and kind == "thread":
            raise ConfigError(f'scanner {spec.name}: memory can be limited in a process only; add isolation="process"')
        found.append(msgspec.structs.replace(spec, isolation=kind, memory=size))
    return tuple(found)


def base_policy(policy: Policy | None, timeout_seconds: float | None) -> Policy:
    """Return the policy for scanners that do not say otherwise.

    Raises:
        ConfigError: an argument is wrong.
    """
    policy = Policy() if policy is None else policy
    if not isinstance(policy, Policy):
        raise ConfigError(f"policy must be a Policy, got {policy!r}")
    if timeout_seconds is None:
        return policy
    try:
        timeout = msgspec.structs.replace(policy.timeout, total=timeout_seconds)
    except ConfigError as error:
        raise ConfigError(str(error).replace("timeout.total", "timeout_seconds")) from None
    return policy.replace({"timeout": timeout})


def settings_by_scanner(
    tables: Mapping[str, Mapping[str, Any]], specs: Sequence[ScannerSpec]
) -> dict[str, Mapping[str, Any]]:
    """Return read-only copies of the scanners' own settings.

    Raises:
        ConfigError: a table is for a scanner that is not there, or is not a mapping.
    """
    by_name(tables, "settings", Mapping, [spec.name for spec in specs])
    return {name: MappingProxyType(copy.deepcopy(dict(table))) for name, table in tables.items()}


def effective(specs: Sequence[ScannerSpec], base: Policy, given: Mapping[str, Policy]) -> dict[str, Policy]:
    """Return each scanner's policy: the given one, else the base with the scanner's own layers.

    Raises:
        ConfigError: a given one is for no scanner, or no `Policy`.
    """
    by_name(given, "policies", Policy, [spec.name for spec in specs])
    return {spec.name: given.get(spec.name) or base.replace(spec.layers) for spec in specs}


def by_name(tables: Mapping[str, Any], what: str, kind: Any, names: Sequence[str]) -> None:
    """Raise `ConfigError` unless `tables` holds a `kind` for scanners that exist."""
    if not isinstance(tables, Mapping):
        raise ConfigError(f"{what} must be a mapping from scanners' names, got {tables!r}")
    for name, table in tables.items():
        if name not in names:
            raise ConfigError(f"{what}: {no_scanner(name, names)}")
        if not isinstance(table, kind):
            raise ConfigError(f"{what}: {name} must be a {kind.__name__}, got {table!r}")


def execution_table(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runner's arguments from a configuration with a table `scanner_execution`.

    Raises:
        ConfigError: a key inside the table is unknown.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"the configuration must be a mapping, got {config!r}")
    home = config if "scanner_execution" in config else config.get("discovery", {})
    table = home.get("scanner_execution", {}) if isinstance(home, Mapping) else {}
    if not isinstance(table, Mapping):
        raise ConfigError(f"scanner_execution must be a table, got {table!r}")
    known = ("concurrent", "max_workers", "timeout_seconds")
    for key in table:
        if key not in known:
            raise ConfigError(f"scanner_execution: unknown key {key!r}; the keys are {', '.join(known)}")
    return dict(table)


def chosen(
    specs: Sequence[ScannerSpec], config: Mapping[str, Any]
) -> tuple[list[ScannerSpec], dict[str, Mapping[str, Any]]]:
    """Return the scanners that `discovery.scanners` leaves in, and what it says about their settings.

    Raises:
        ConfigError: a table is for no scanner, or has another key than these two, or a wrong value.
    """
    home = config.get("discovery", {})
    tables = home.get("scanners", {}) if isinstance(home, Mapping) else {}
    if not isinstance(tables, Mapping):  # a list of names, say: it says nothing about any of them
        return list(specs), {}
    by_name(tables, "discovery.scanners", Mapping, [spec.name for spec in specs])
    for name, table in tables.items():
        place = f"discovery.scanners.{name}"
        for key in table:
            if key not in {"enabled", "settings"}:
                raise ConfigError(
                    f"{place}: unknown key {key!r}; the keys are enabled and settings: what is the scanner's own goes "
                    "into settings, and layers go into a settings file (load_settings)"
                )
        one_of(f"{place}.enabled", table.get("enabled", True), (True, False))
        if not isinstance(table.get("settings", {}), Mapping):
            raise ConfigError(f"{place}.settings must be a table, got {table['settings']!r}")
    left = [spec for spec in specs if tables.get(spec.name, {}).get("enabled", True)]
    return left, {spec.name: tables[spec.name]["settings"] for spec in left if "settings" in tables.get(spec.name, {})}


def callables(listeners: Any) -> tuple[Listener, ...]:
    """Return listeners as a tuple, each once: of two that are equal the second would count everything again.

    Raises:
        ConfigError: they are not an iterable of callables.
    """
    found = tuple(listeners) if isinstance(listeners, Iterable) else (None,)
    for listener in found:
        if inspect.isclass(listener):
            raise ConfigError(f"listeners: {listener.__qualname__} is a class; write {listener.__qualname__}()")
    if not all(callable(listener) for listener in found):
        raise ConfigError(f"listeners must be callables of one argument, in a tuple, got {listeners!r}")
    once: dict[Any, Listener] = {}
    for listener in found:
        try:
            once.setdefault(listener, listener)
        except TypeError:  # without a hash it equals others by chance only, as two lists that are empty do
            once.setdefault(id(listener), listener)
    return tuple(once.values())


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of those allowed; else raise `ConfigError`."""
    if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
        raise ConfigError(f"{name} must be {' or '.join(repr(item) for item in allowed)}, got {value!r}")
    return value


def whole(name: str, value: Any, least: int) -> int:
    """Return `value` if it is a whole number >= `least`; else raise `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigError(f"{name} must be >= {least}, got {value!r}")
    return value


def length_of(deadline: float | None) -> float:
    """Return a run's deadline in seconds, infinite where there is none; raise `ConfigError` unless it is >= 0."""
    if deadline is None:
        return math.inf
    if not is_number(deadline, 0):
        raise ConfigError(f"deadline must be a number of seconds >= 0, got {deadline!r}")
    return float(deadline)


def check_quarantine(quarantine: Quarantine, names: Sequence[str]) -> None:
    """Raise `ConfigError` unless it is a `Quarantine` whose critical scanners exist."""
    if not isinstance(quarantine, Quarantine):
        raise ConfigError(f"quarantine must be a Quarantine, got {quarantine!r}")
    for name in quarantine.critical:
        if name not in names:
            raise ConfigError(f"quarantine.critical: {no_scanner(name, names)}")
