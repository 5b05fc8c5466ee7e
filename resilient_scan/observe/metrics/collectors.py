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
from prometheus_client.values import MutexValue, ValueClass

from resilient_scan.events import Load, Registered
from resilient_scan.observe.metrics.blocks import Labels
from resilient_scan.observe.metrics.catalogue import (
    BREAKER_STATES,
    PREFIX,
    PROVIDER_STATES,
    SCANNER_STATES,
    WORKER_STATES,
    families,
)
from resilient_scan.observe.metrics.counts import PendingCounts
from resilient_scan.observe.metrics.pauses import Pauses
from resilient_scan.observe.metrics.series import Child, OnDemand, made

__all__ = ["MAX_PENDING", "MULTIPROCESS", "REGISTRY", "CollectorRegistry", "Metrics", "metrics_of"]

MULTIPROCESS = ValueClass is not MutexValue
"""Whether prometheus_client keeps its values in files, for several processes: PROMETHEUS_MULTIPROC_DIR was set when it
was imported."""
MAX_PENDING = 1 if MULTIPROCESS else 128
"""How many ends of scans, and how many other events, of one scanner may wait to be counted. With values in files none
may: another process answers the scrape, and does not see what waits here."""
MAX_WAITS = 1000  # to be observed in one step, in which no other thread runs
WORST_BREAKER = ("open", "half_open", "closed")
WORST_PROVIDER = ("open", "half_open", "held", "closed")
WORST_STATE = ("disabled", "quarantined", "probing", "enabled")

Row = tuple[Labels, tuple[float, ...]]
"""What is read for one scanner or provider: the values of the first labels, and a number for each of the last ones."""
ONE, ZERO = (1.0,), (0.0,)


def _each(values: tuple[str, ...]) -> tuple[Labels, ...]:
    return tuple((value,) for value in values)


def _one_of(states: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Return the numbers of all states by the one that is current; with "", none is."""
    return {current: tuple(float(state == current) for state in states) for current in (*states, "")}


_BREAKERS, _STATES, _PROVIDERS = _one_of(BREAKER_STATES), _one_of(SCANNER_STATES), _one_of(PROVIDER_STATES)


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
        self._in_files: dict[tuple[str, Labels], Child] = {}  # the gauges that `write` writes
        self._loads: list[Callable[[], Load | None]] = []
        self._providers: list[Callable[[], dict[str, str] | None]] = []
        self._seen: dict[str, set[str]] = {}  # states of all providers that were ever seen
        self._infos: dict[tuple[str, str], str] = {}  # the provider that is exported for a scanner and its pipeline
        self.queue_waits: list[float] = []  # of all scanners, while their events are counted
        self._reserved: dict[str, PendingCounts] = {}
        self.pending: dict[str, PendingCounts] = {}
        for name, family in self._families.items():
            if not family.optional and family.type != "info":
                self._metrics[name].before = self.flush
                if family.labels[:1] != ("scanner",):
                    self.children(name)
        self._readings: tuple[tuple[str, Callable[[], Iterable[Row]], tuple[Labels, ...]], ...] = (
            ("breaker_state", self._breakers, _each(BREAKER_STATES)),
            ("scanner_state", self._states, _each(SCANNER_STATES)),
            ("abandoned_threads", self._abandoned, ((),)),
            ("flapping", self._flapping, ((),)),
            ("slo_budget_ratio", self._budgets, ((),)),
            ("provider_state", self._provider_states, _each(PROVIDER_STATES)),
            ("scanner_info", self._provider_infos, ((),)),
            ("inflight_executions", partial(self._load, "busy"), ((),)),
            ("queued_scans", partial(self._load, "queued"), ((),)),
            ("workers", partial(self._load, *WORKER_STATES), _each(WORKER_STATES)),
        )
        if not MULTIPROCESS:
            for name, read, lasts in self._readings:
                self._metrics[name].read(read, lasts)

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
            self._metrics[name].begin(owner)

    def watch(self, scanner: Registered) -> PendingCounts:
        """Begin the time series of a scanner, read its states from now on, and return its pending counts."""
        with self._lock:
            pending = self.pending.get(scanner.name)
            if pending is None:
                pending = self.pending[scanner.name] = self.reserved(scanner.name)
                del self._reserved[scanner.name]
                self.begin("attempts_total", scanner.name)
            pending.add_pipeline(scanner.pipeline)
            pending.add_total(scanner.total)
            # A scanner whose runner is closed has no state any more, and is dropped unless a thread of it still hangs.
            pending.live[:] = [each for each in pending.live if each.state() is not None or each.abandoned_threads()]
            pending.live.append(scanner)
            pending.has_breaker |= scanner.breaker_state is not None
            return pending

    def reserved(self, scanner: str) -> PendingCounts:
        """Return the pending counts of a scanner, which `watch` may not have heard of yet: then nothing shows them."""
        with self._lock:
            found = self.pending.get(scanner) or self._reserved.get(scanner)
            if found is None:
                found = self._reserved[scanner] = PendingCounts(self, scanner)
            return found

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
            for _ in (*self._provider_states(), *self._provider_infos()):
                pass

    def _provider_states(self) -> Iterator[Row]:
        """Return how each provider stands; hosts become providers as scanners call them."""
        with self._lock:
            for read in self._providers:
                for name, state in (read() or {}).items():
                    self._seen.setdefault(name, set()).add(state)
            worst = {}
            for name, seen in self._seen.items():
                worst[name] = next((state for state in WORST_PROVIDER if state in seen), "")
                seen.clear()
        for name, state in worst.items():
            yield (name,), _PROVIDERS[state]

    def _provider_infos(self) -> Iterator[Row]:
        """Return each scanner's provider; a scanner whose options name none has one once it has called a host."""
        for pending in tuple(self.pending.values()):
            for each in tuple(pending.live):
                if each.state() is not None:
                    self._infos[each.name, each.pipeline] = each.provider()
        for (name, pipeline), provider in tuple(self._infos.items()):
            yield (name, pipeline, provider), ONE

    def _load(self, *fields: str) -> Iterator[Row]:
        loads = [load for read in tuple(self._loads) if (load := read()) is not None]
        yield (), tuple(float(sum(getattr(load, field) for load in loads)) for field in fields)

    def _breakers(self) -> Iterator[Row]:
        for name, pending in tuple(self.pending.items()):
            if pending.has_breaker:
                yield (name,), _BREAKERS[_breaker(pending.live)]

    def _states(self) -> Iterator[Row]:
        for name, pending in tuple(self.pending.items()):
            yield (name,), _STATES[_state(pending.live)]

    def _abandoned(self) -> Iterator[Row]:
        pauses = Pauses()  # of its own, because most scanners have no series after which the scrape could pause
        for name, pending in tuple(self.pending.items()):
            hanging = _hanging(pending.live)
            if hanging or pending.has_hung or MULTIPROCESS:
                pending.has_hung = True  # from now on it shows that none hangs any more
                yield (name,), (hanging,)
            pauses()

    def _flapping(self) -> Iterator[Row]:
        for name, pending in tuple(self.pending.items()):
            yield (name,), ONE if _flaps(pending.live) else ZERO

    def _budgets(self) -> Iterator[Row]:
        for name, pending in tuple(self.pending.items()):
            left = _budget(pending.live)
            if left is not None:
                yield (name,), (float(left),)

    def write(self) -> None:
        """Write the gauges that are read at a scrape; needed only where values are kept in files."""
        with self._lock:
            gone = {(*key, provider) for key, provider in self._infos.items()}
            for name, read, lasts in self._readings:
                for own, numbers in read():
                    for last, number in zip(lasts, numbers, strict=True):
                        self._in_file(name, own + last).set(number)
                    gone.discard(own)
            for labels in gone:  # a series cannot be removed there
                self._in_file("scanner_info", labels).set(0)

    def _in_file(self, name: str, labels: Labels) -> Child:
        child = self._in_files.get((name, labels))
        if child is None:
            child = self._in_files[name, labels] = self.child(name, *labels)
        return child

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
        self._waiting += [
            pending
            for pending in tuple(those)
            if pending.ends or pending.executions or pending.attempts or pending.events
        ]
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._waiting:
                self._waiting.pop().flush()
                if len(self.queue_waits) >= MAX_WAITS:
                    self._observe_waits()
                pauses()
        finally:
            self._observe_waits()
            self._waiting.clear()
            self._flushing = False

    def _observe_waits(self) -> None:
        waits, self.queue_waits = self.queue_waits, []
        if waits:
            self.child("queue_wait_seconds").observe_all(waits)

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
