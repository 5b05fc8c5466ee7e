"""Everything that lives as long as a runner: the live parts, made of what was planned."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from resilient_scan.claims import Clerk, Health
from resilient_scan.context import NEVER
from resilient_scan.engines.threads import ThreadPool
from resilient_scan.errors import ConfigError, StoreError, no_scanner
from resilient_scan.events import Bus, Listener, Load, ScannersRegistered
from resilient_scan.layers.breaker import PREFIX as BREAKERS
from resilient_scan.layers.breaker import Home as BreakerHome
from resilient_scan.layers.limit import Providers
from resilient_scan.layers.shared import SharedValues
from resilient_scan.layers.shelf import Shelf
from resilient_scan.plan import Plan
from resilient_scan.quarantine import Gate, ScannerState
from resilient_scan.redaction import without_secrets
from resilient_scan.scanning import ScannerSpec
from resilient_scan.stack import Stack
from resilient_scan.state import lasting, stable_key

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
