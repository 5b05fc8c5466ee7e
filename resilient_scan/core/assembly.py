"""A runner's arguments, checked: what a fleet is to be."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec

from resilient_scan._text import without_secrets
from resilient_scan.clock import Clock
from resilient_scan.context import NEVER, Traffic
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.stack import Stack
from resilient_scan.errors import ConfigError, StoreError, is_number, no_scanner
from resilient_scan.events import Bus, Listener, Load, ScannersRegistered
from resilient_scan.layers.breaker import PREFIX as BREAKERS
from resilient_scan.layers.breaker import Home as BreakerHome
from resilient_scan.layers.limit import Providers
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.options import Policy, Quarantine
from resilient_scan.quarantine import Gate, ScannerState
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.snapshot import lasting, stable_key
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.answers import Shelf
from resilient_scan.stores.leases import Clerk, Health
from resilient_scan.stores.wrappers import Foreign


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


# Everything that lives as long as a runner: the live parts, made of what was planned.

PATIENCE = 1.0  # seconds for which closing waits until everything is in the store
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Fleet:
    """The live parts: one pool, one gate, one stack per scanner, one provider per name."""

    left = False  # to the parent, in a forked child

    def __init__(self, plan: Plan) -> None:
        self.names = plan.names
        self._store = plan.store
        self.bus = Bus(plan.listeners)
        health = Health(self.bus.send, plan.clock)
        self.store_failed = health.failed
        self.clerk = None if plan.store is None else Clerk(plan.store, plan.clock, health)
        self._last = plan.store.close if plan.store is not None and plan.owns_store else None
        self.gate = Gate(
            plan.names,
            plan.clock,
            self.bus,
            options=plan.quarantine,
            store=plan.store,
            random=plan.random,
            on_error=self.store_failed,
        )
        self.bus.join(self.gate)
        self.workers = plan.max_workers
        self.pool = ThreadPool(plan.max_workers, max_abandoned=plan.max_abandoned, clock=plan.clock)
        limits = [(name, policy.limit) for name, policy in plan.policies.items() if policy.limit is not None]
        self.providers = Providers(limits, plan.clock, self.pool.at)
        shared = SharedValues(plan.clock)
        self.stacks = {spec.name: self._stack(spec, plan, shared) for spec in plan.specs}
        self.bus.send(self._registered())

    def _registered(self) -> ScannersRegistered:
        scanners = tuple(stack.registered() for stack in self.stacks.values())
        return ScannersRegistered(scanners, partial(_load, weakref.ref(self)))

    def listen(self, listener: Listener) -> None:
        """Let one more listen to what happens from now on."""
        Bus((listener,)).send(self._registered())
        self.bus.join(listener)
        for stack in self.stacks.values():
            stack.attune()

    def _stack(self, spec: ScannerSpec, plan: Plan, shared: SharedValues) -> Stack:
        policy = plan.policies[spec.name]
        shelf = self._shelf_of(spec, plan)
        return Stack(
            spec,
            policy,
            settings=plan.settings.get(spec.name, NO_SETTINGS),
            orders=self.gate.orders,
            turn=partial(self.gate.turn, spec.name, float(policy.timeout.total)),
            is_out=partial(self.gate.is_out, spec.name),
            service_state=partial(self.gate.state_of, spec.name),
            pool=self.pool,
            shared=shared,
            bus=self.bus,
            clock=plan.clock,
            random=plan.random,
            provider=None if policy.limit is None else self.providers[policy.limit.provider],
            breaker_home=self._home_of(spec.name),
            shelf=shelf,
            clerk=None if shelf is None else self.clerk,
            providers=self.providers,
            traffic=plan.traffic,
        )

    def _home_of(self, name: str) -> BreakerHome | None:
        """Return where a breaker's state is kept, and shared."""
        return None if self._store is None else BreakerHome(self._store, BREAKERS + name, self.store_failed)

    def _shelf_of(self, spec: ScannerSpec, plan: Plan) -> Shelf | None:
        """Return where answers are kept, by the scanner's settings too, as far as these are no secrets."""
        settings = stable_key(without_secrets(lasting(plan.settings.get(spec.name, NO_SETTINGS))))
        if self._store is None or settings is None:
            return None
        return Shelf(self._store, spec.name, spec.candidate, settings, self.store_failed, plan.clock)

    def expect(self, durations: Mapping[str, float]) -> None:
        """Learn how long scans take, where that is not known yet."""
        for name, seconds in durations.items():
            stack = self.stacks.get(name)
            if stack is not None and stack.expected == NEVER:
                stack.expected = seconds

    def look(self) -> None:
        """See what other processes know of quarantine and breakers, at the start of a run: one read for each."""
        self.gate.look()
        if self._store is None:
            return
        guards = [(name, stack.guard) for name, stack in self.stacks.items() if stack.guard is not None]
        try:
            now, records = self._store.now(), self._store.read(BREAKERS)
        except StoreError as error:
            self.store_failed("read", error)
            for _, guard in guards:
                guard.alone()
            return
        changes = [guard.sync(records.get(BREAKERS + name), now) for name, guard in guards]
        self.bus.send_all([change for change in changes if change is not None])

    def settle(self, run_id: str) -> None:
        """Bring the breakers' votes that still wait to the store, at the end of a run."""
        if self._store is not None:
            for stack in self.stacks.values():
                stack.settle(run_id)

    def stack(self, name: str) -> Stack:
        """Return one scanner's stack.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        if name not in self.stacks:
            raise ConfigError(no_scanner(name, self.names))
        return self.stacks[name]

    def standings(self) -> tuple[ScannerState, ...]:
        """Return how each scanner stands, with its pipeline, and how its last scan in this process ended."""
        return tuple(_with_last(state, self.stacks[state.name]) for state in self.gate.standings())

    def leave(self) -> None:
        """Leave it to the parent, in a forked child: nobody looks at it, a lock of its may be held for ever."""
        self.left = True
        for stack in self.stacks.values():
            stack.retired = True

    def close(self) -> None:
        """Let the threads and event loops go; hung ones are not waited for."""
        self.pool.stop()
        for stack in self.stacks.values():
            stack.retired = True
            stack.loops.close()
        if self.clerk is not None:
            self.clerk.close(PATIENCE, self._last)


def _load(fleet: weakref.ref[Fleet]) -> Load | None:
    """Return how busy a fleet's pool is; a listener must not keep one alive that is gone."""
    live = fleet()
    return None if live is None or live.left else Load(queued=live.pool.queued, **live.pool.counts())


def _with_last(state: ScannerState, stack: Stack) -> ScannerState:
    last = stack.flights[-1].result if stack.flights else None
    return msgspec.structs.replace(
        state,
        pipeline=stack.pipeline,
        last_status=None if last is None else last.status.value,
        last_at=None if last is None else last.started_at,
    )
