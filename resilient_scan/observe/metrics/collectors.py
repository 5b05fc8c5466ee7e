"""The metrics of one registry, as objects of prometheus_client that count what is pending before they are collected."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.values import MutexValue, ValueClass

from resilient_scan.events import Load, Registered
from resilient_scan.observe.metrics.catalogue import (
    BREAKER_STATES,
    PREFIX,
    PROVIDER_STATES,
    SCANNER_STATES,
    WORKER_STATES,
    families,
)
from resilient_scan.observe.metrics.counts import Child, PendingCounts
from resilient_scan.observe.metrics.pauses import Pauses
from resilient_scan.observe.metrics.series import ONE, ZERO, OnDemand, Point, made

__all__ = ["MAX_PENDING", "MULTIPROCESS", "REGISTRY", "CollectorRegistry", "Metrics", "metrics_of"]

MULTIPROCESS = ValueClass is not MutexValue
"""Whether prometheus_client keeps its values in files, for several processes: PROMETHEUS_MULTIPROC_DIR was set when it
was imported."""
MAX_PENDING = 1 if MULTIPROCESS else 128
"""How many ends of scans, and how many other events, of one scanner may wait to be counted. With values in files none
may: another process answers the scrape, and does not see what waits here."""
WORST_BREAKER = ("open", "half_open", "closed")
WORST_PROVIDER = ("open", "half_open", "held", "closed")
WORST_STATE = ("disabled", "quarantined", "probing", "enabled")


class Metrics:
    """All metrics of one registry, and what is still to be counted into them.

    Events are not counted where they happen: touching a dozen cold objects for every scan costs more than many scans
    do. They wait in their scanner's `PendingCounts`, at most 128 of them, and are counted when a metric is collected or
    when they become too many. So every reader sees exact numbers, whichever way it reads.
    """

    def __init__(self) -> None:
        self._families = {family.name.removeprefix(PREFIX): family for family in families()}
        self._metrics: dict[str, Any] = {
            name: OnDemand(family) if family.optional else made(family) for name, family in self._families.items()
        }
        # One thread flushes at a time. Reentrant, because a flush allocates: the garbage collector may run a finalizer
        # in the middle of it that ends a runner and sends events, on this very thread. A plain lock would deadlock.
        self._lock = threading.RLock()
        self._flushing = False
        self._waiting: list[PendingCounts] = []
        self._gauges: list[tuple[Child, Callable[[], float]]] = []
        self._loads: list[Callable[[], Load | None]] = []
        self._providers: list[Callable[[], dict[str, str] | None]] = []
        self._provider_states: dict[str, set[str]] = {}  # of all that were ever seen
        self._infos: dict[tuple[str, str], str] = {}  # the provider that is exported for a scanner and its pipeline
        self.pending: dict[str, PendingCounts] = {}
        for name, family in self._families.items():
            if not family.optional and family.type != "info":
                self._metrics[name].before = self.flush
                if family.labels[:1] != ("scanner",):
                    self.children(name)
        for name, reading in (
            ("breaker_state", self._breakers),
            ("scanner_state", self._states),
            ("abandoned_threads", self._abandoned),
            ("flapping", self._flapping),
            ("slo_budget_ratio", self._budgets),
            ("provider_state", self._provider_points),
            ("scanner_info", self._info_points),
        ):
            if not MULTIPROCESS:
                self._metrics[name].reading = reading
        self._read("inflight_executions", (), lambda: float(self._load().busy))
        self._read("queued_scans", (), lambda: float(self._load().queued))
        for state in WORKER_STATES:
            self._read("workers", (state,), partial(self._workers, state))

    def register(self, registry: CollectorRegistry) -> None:
        """Add all metrics to `registry`.

        Raises:
            ValueError: it has a metric of one of these names already; then none is added.
        """
        added: list[Collector] = []
        try:
            for metric in self._metrics.values():
                registry.register(metric)
                added.append(metric)
        except ValueError:
            for metric in added:
                registry.unregister(metric)
            raise

    def restore(self, registry: CollectorRegistry) -> None:
        """Add again whatever was removed from `registry`."""
        for metric in self._metrics.values():
            try:
                registry.register(metric)
            except ValueError:  # it is still there
                continue

    # children

    def child(self, name: str, *labels: str) -> Child:
        """Return one time series, making it if necessary."""
        metric = self._metrics[name]
        if isinstance(metric, OnDemand):
            with self._lock:
                metric = metric.needed()
        return metric.labels(*labels) if labels else metric

    def children(self, name: str, *owner: str) -> dict[tuple[str, ...], Child]:
        """Return all time series that a metric has for `owner` (a scanner, with its pipeline), by the other labels."""
        return {rest: self.child(name, *owner, *rest) for rest in self._families[name].closed}

    def begin(self, name: str, *owner: str) -> None:
        """Have all series of an owner exist from now on; values in files must be there for that, others need not."""
        if MULTIPROCESS:
            self.children(name, *owner)
        else:
            self._metrics[name].owners[owner] = None

    def watch(self, scanner: Registered) -> PendingCounts:
        """Begin the time series of a scanner, read its states from now on, and return its pending counts."""
        with self._lock:
            pending = self.pending.get(scanner.name)
            if pending is None:
                pending = PendingCounts(self, scanner.name)
                self._read_in_files("scanner_state", scanner.name, SCANNER_STATES, partial(_state, pending.live))
                if MULTIPROCESS:
                    self._read("abandoned_threads", (scanner.name,), partial(_hanging, pending.live))
                    self._read("flapping", (scanner.name,), partial(_flaps, pending.live))
                self.pending[scanner.name] = pending
            pending.add_pipeline(scanner.pipeline)
            pending.add_total(scanner.total)
            # A scanner whose runner is closed has no state any more, and is dropped unless a thread of it still hangs.
            pending.live[:] = [each for each in pending.live if each.state() is not None or each.abandoned_threads()]
            pending.live.append(scanner)
            if scanner.breaker_state is not None and not pending.has_breaker:
                pending.has_breaker = True
                self._read_in_files("breaker_state", scanner.name, BREAKER_STATES, partial(_breaker, pending.live))
            return pending

    def watch_load(self, load: Callable[[], Load | None]) -> None:
        """Read from now on how busy a runner's threads are."""
        with self._lock:
            self._loads[:] = [each for each in self._loads if each() is not None]
            self._loads.append(load)

    def watch_providers(self, providers: Callable[[], dict[str, str] | None]) -> None:
        """Read from now on how a runner's providers stand."""
        with self._lock:
            self._providers[:] = [each for each in self._providers if each() is not None]
            self._providers.append(providers)
            for _ in (*self._provider_points(), *self._info_points()):
                pass

    def _provider_points(self) -> Iterator[Point]:
        """Return how each provider stands; hosts become providers as scanners call them."""
        with self._lock:
            for read in self._providers:
                for name, state in (read() or {}).items():
                    self._provider_states.setdefault(name, set()).add(state)
            worst = {}
            for name, seen in self._provider_states.items():
                worst[name] = next((state for state in WORST_PROVIDER if state in seen), "")
                seen.clear()
        for name, state in worst.items():
            yield from _one_of(name, PROVIDER_STATES, state)

    def _info_points(self) -> Iterator[Point]:
        """Return each scanner's provider; a scanner whose options name none has one once it has called a host."""
        for pending in tuple(self.pending.values()):
            for each in tuple(pending.live):
                if each.state() is not None:
                    self._infos[each.name, each.pipeline] = each.provider()
        for (name, pipeline), provider in tuple(self._infos.items()):
            yield (name, pipeline, provider), ONE

    def _write_points(self) -> None:
        """Write what stands in the points, where values are kept in files; a series cannot be removed there."""
        for (name,), (sample, *_) in self._budgets():
            self.child("slo_budget_ratio", name).set(sample.value)
        known = {(*key, provider) for key, provider in self._infos.items()}
        for name, points in (("provider_state", self._provider_points), ("scanner_info", self._info_points)):
            for labels, (sample, *_) in points():
                self.child(name, *labels).set(sample.value)
                known.discard(labels)
        for labels in known:
            self.child("scanner_info", *labels).set(0)

    def _load(self) -> Load:
        loads = [load for read in tuple(self._loads) if (load := read()) is not None]
        return Load(**{field: sum(getattr(load, field) for load in loads) for field in Load.__struct_fields__})

    def _workers(self, state: str) -> float:
        return float(getattr(self._load(), state))

    def _breakers(self) -> Iterator[Point]:
        for name, pending in tuple(self.pending.items()):
            if pending.has_breaker:
                yield from _one_of(name, BREAKER_STATES, _breaker(pending.live))

    def _states(self) -> Iterator[Point]:
        for name, pending in tuple(self.pending.items()):
            yield from _one_of(name, SCANNER_STATES, _state(pending.live))

    def _abandoned(self) -> Iterator[Point]:
        pauses = Pauses()  # of its own, because most scanners have no series after which the scrape could pause
        for name, pending in tuple(self.pending.items()):
            hanging = _hanging(pending.live)
            if hanging or pending.has_hung:
                pending.has_hung = True  # from now on it shows that none hangs any more
                yield (name,), (Sample("", {}, hanging),)
            pauses()

    def _flapping(self) -> Iterator[Point]:
        for name, pending in tuple(self.pending.items()):
            yield (name,), ONE if _flaps(pending.live) else ZERO

    def _budgets(self) -> Iterator[Point]:
        for name, pending in tuple(self.pending.items()):
            left = _budget(pending.live)
            if left is not None:
                yield (name,), (Sample("", {}, left),)

    def _read_in_files(self, name: str, scanner: str, states: tuple[str, ...], read: Callable[[], str]) -> None:
        """Have a state written where values are kept in files."""
        if MULTIPROCESS:
            for state in states:
                self._read(name, (scanner, state), lambda state=state: float(read() == state))  # type: ignore[misc]

    def _read(self, name: str, labels: tuple[str, ...], read: Callable[[], float]) -> None:
        """Have a gauge read at each scrape; values in files cannot be, so `write` writes them."""
        child = self.child(name, *labels)
        if MULTIPROCESS:
            self._gauges.append((child, read))
        else:
            child.set_function(read)

    def write(self) -> None:
        """Write the gauges that are read at a scrape; needed only where values are kept in files."""
        with self._lock:
            for child, read in self._gauges:
                child.set(read())
            self._write_points()

    # counting

    def flush(self) -> None:
        """Count everything that was pending when this was called."""
        with self._lock:
            self._flush(self.pending.values(), Pauses())

    def flush_one(self, pending: PendingCounts) -> None:
        """Count what is pending for one scanner, or return at once if a flush is under way.

        Skipping is safe: the flush under way or the next one includes ours. Waiting would not be: a scan's thread would
        stand still while somebody scrapes two hundred scanners.
        """
        if self._lock.acquire(blocking=MULTIPROCESS):
            try:
                self._flush((pending,))
            finally:
                self._lock.release()

    def _flush(self, those: Iterable[PendingCounts], pauses: Callable[[], None] = lambda: None) -> None:
        """Flush all of those that have something pending; the lock is held.

        A finalizer that runs amid a flush, on this thread, may end up here again. It must not drain the list that is
        just being drained (CPython 3.11 copies as many items as there were before it ran), so it leaves its scanners to
        the flush below it on the stack.
        """
        self._waiting.extend(pending for pending in tuple(those) if pending.ends or pending.events)
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._waiting:
                self._waiting.pop().flush()
                pauses()
        finally:
            self._waiting.clear()
            self._flushing = False

    def after_fork(self) -> None:
        """Carry on in a forked child.

        Another thread of the parent may have held the lock at the fork; that thread does not exist here, so the lock
        would never be released. Breakers, threads and states are the parent's: the child's runner makes new ones and
        registers them; nor does it keep the parent's schedule, or receive its alerts. What is pending is counted on
        both sides, like everything counted before the fork, except under PROMETHEUS_MULTIPROC_DIR, where the sides are
        added up.
        """
        self._lock = threading.RLock()
        self._flushing = False
        self._waiting.clear()
        self._loads.clear()
        for metric in self._metrics.values():
            if isinstance(metric, OnDemand):
                metric.forget()
        self._providers.clear()
        for pending in self.pending.values():
            pending.live.clear()
            if MULTIPROCESS:
                pending.discard()


def _one_of(scanner: str, states: tuple[str, ...], current: str) -> Iterator[Point]:
    return (((scanner, state), ONE if state == current else ZERO) for state in states)


def _breaker(live: list[Registered]) -> str:
    seen = {each.breaker_state() for each in tuple(live) if each.breaker_state is not None}
    return next((worst for worst in WORST_BREAKER if worst in seen), "")


def _state(live: list[Registered]) -> str:
    seen = {each.state() for each in tuple(live)}
    return next((worst for worst in WORST_STATE if worst in seen), "")


def _hanging(live: list[Registered]) -> float:
    return float(sum(each.abandoned_threads() for each in tuple(live)))


def _flaps(live: list[Registered]) -> float:
    return float(any(each.flapping() for each in tuple(live)))


def _budget(live: list[Registered]) -> float | None:
    """Return what is left of a scanner's error budget where least is; `None`: it has none."""
    left = [each.slo_budget() for each in tuple(live) if each.slo_budget is not None]
    return min((one for one in left if one is not None), default=None)


_by_registry: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()
_lock = threading.Lock()


def metrics_of(registry: CollectorRegistry) -> Metrics:
    """Return the metrics of a registry, which are made once: prometheus_client refuses to register a name twice."""
    with _lock:
        found = _by_registry.get(registry)
        if found is None:
            found = Metrics()
            found.register(registry)
            _by_registry[registry] = found
        else:
            found.restore(registry)
        return found


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it, and would never release it here
    _lock = threading.Lock()
    for found in tuple(_by_registry.values()):
        found.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
