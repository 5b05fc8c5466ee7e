"""A runner's arguments, checked: what a fleet is to be."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.context import Traffic
from resilient_scan.errors import ConfigError, is_number, no_scanner
from resilient_scan.events import Listener
from resilient_scan.options import Policy, Quarantine
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.foreign import Foreign


class Plan(msgspec.Struct, frozen=True):
    """What a fleet is to be, checked.

    Attributes:
        specs: the scanners, in the given order.
        names: theirs, in the same order.
        policies: by scanner's name, its effective policy.
        settings: by scanner's name, what it finds in `context.settings`.
        origins: by scanner's name and `layer.field`, where a number came from, as far as somebody said so.
        listeners: who is told what happens.
        max_workers, max_abandoned: of the thread pool.
        clock, random: where time and chance come from.
        quarantine: when scanners go out of service by themselves.
        store: where state is shared with other processes, and kept; `None`: state is in the live parts.
        owns_store: whether the store is closed with the live parts.
        traffic: stands between the scanners and the network, if anything does.
    """

    specs: tuple[ScannerSpec, ...]
    names: tuple[str, ...]
    policies: dict[str, Policy]
    settings: dict[str, Mapping[str, Any]]
    origins: dict[str, Mapping[str, str]]
    listeners: tuple[Listener, ...]
    max_workers: int
    max_abandoned: int
    clock: Clock
    random: Random
    quarantine: Quarantine = Quarantine()
    store: Store | None = None
    owns_store: bool = False
    traffic: Traffic | None = None

    def only(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some scanners, in the given order of all.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        chosen = set(wanted)
        for name in chosen.difference(self.names):
            raise ConfigError(no_scanner(name, self.names))
        return tuple(name for name in self.names if name in chosen)


def planned(
    scanners: Iterable[Any],
    *,
    policy: Policy | None,
    timeout_seconds: float | None,
    policies: Mapping[str, Policy],
    settings: Mapping[str, Mapping[str, Any]],
    origins: Mapping[str, Mapping[str, str]],
    listeners: Iterable[Listener],
    max_workers: int,
    max_abandoned: int,
    quarantine: Quarantine,
    store: str | Store | None,
    traffic: Traffic | None,
    clock: Clock,
    random: Random,
) -> Plan:
    """Check a runner's arguments, which are described there, and open its store.

    Raises:
        ConfigError: an argument is wrong, or two scanners have one name.
        PluginError: a scanner is none.
    """
    specs = distinct(scanners)
    names = tuple(spec.name for spec in specs)
    by_name(settings, "settings", Mapping, names)
    return Plan(
        specs=specs,
        names=names,
        policies=effective(specs, base_policy(policy, timeout_seconds), policies),
        settings={name: MappingProxyType(copy.deepcopy(dict(table))) for name, table in settings.items()},
        origins=dict(origins),
        listeners=callables(listeners),
        max_workers=whole("max_workers", max_workers, 1),
        max_abandoned=whole("max_abandoned", max_abandoned, 0),
        clock=clock,
        random=random,
        quarantine=quarantine_of(quarantine, names),
        store=opened(store, clock),
        owns_store=isinstance(store, str),
        traffic=traffic,
    )


def distinct(scanners: Iterable[Any]) -> tuple[ScannerSpec, ...]:
    """Bring scanners into their normal form.

    Raises:
        ConfigError: two have one name, or it is no list.
        PluginError: one is no scanner.
    """
    if not isinstance(scanners, Iterable):
        raise ConfigError(f"scanners must be a list of scanners, got {scanners!r:.200}")
    specs: dict[str, ScannerSpec] = {}
    for thing in scanners:
        spec = spec_of(thing)
        if spec.name in specs:
            first = specs[spec.name].origin
            raise ConfigError(f"two scanners are named {spec.name!r}: {first!r} and {spec.origin!r}; rename one")
        specs[spec.name] = spec
    return tuple(specs.values())


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


def effective(specs: Sequence[ScannerSpec], base: Policy, given: Mapping[str, Policy]) -> dict[str, Policy]:
    """Return each scanner's policy: the given one, else the base with the scanner's own layers.

    Raises:
        ConfigError: a given one is for no scanner, or no `Policy`.
    """
    by_name(given, "policies", Policy, [spec.name for spec in specs])
    return {spec.name: given.get(spec.name) or base.replace(spec.layers) for spec in specs}


def by_name(tables: Mapping[str, Any], what: str, kind: type, names: Sequence[str]) -> None:
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


def callables(listeners: Any) -> tuple[Listener, ...]:
    """Return listeners as a tuple, each once: of two that are equal the second would count everything again.

    Raises:
        ConfigError: they are no iterable of callables.
    """
    found = tuple(listeners) if isinstance(listeners, Iterable) else (None,)
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
    """Return a run's deadline in seconds, infinite where there is none; raise `ConfigError` if it is no number >= 0."""
    if deadline is None:
        return math.inf
    if not is_number(deadline, 0):
        raise ConfigError(f"deadline must be a number of seconds >= 0, got {deadline!r}")
    return float(deadline)


def quarantine_of(quarantine: Quarantine, names: Sequence[str]) -> Quarantine:
    """Return when scanners go out of service.

    Raises:
        ConfigError: it is no `Quarantine`, or there is no such critical scanner.
    """
    if not isinstance(quarantine, Quarantine):
        raise ConfigError(f"quarantine must be a Quarantine, got {quarantine!r}")
    for name in quarantine.critical:
        if name not in names:
            raise ConfigError(f"quarantine.critical: {no_scanner(name, names)}")
    return quarantine


def opened(store: str | Store | None, clock: Clock) -> Store | None:
    """Return the store that a URL names, or one around the given object; `None`: state stays in memory.

    Raises:
        ConfigError: it is neither, or cannot be opened.
    """
    if store is None or (isinstance(store, str) and store == "memory:"):
        return None
    found = open_store(store, clock)
    return found if isinstance(store, str) else Foreign(found)
