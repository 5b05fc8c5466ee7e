"""The metrics of one registry, as objects of prometheus_client that count what is pending before they are collected.

The only file that knows prometheus_client.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CONTENT_TYPE_LATEST as TEXT_TYPE
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.values import MutexValue, ValueClass

from resilient_scan import __version__
from resilient_scan.events import Load, Registered
from resilient_scan.observe.metrics.catalogue import (
    BREAKER_STATES,
    PREFIX,
    SCANNER_STATES,
    WORKER_STATES,
    Family,
    families,
)
from resilient_scan.observe.metrics.counts import Child, Tally
from resilient_scan.observe.metrics.workers import AllProcesses

__all__ = ["MULTIPROCESS", "PENDING", "REGISTRY", "CollectorRegistry", "Families", "exposition", "families_of"]

MULTIPROCESS = ValueClass is not MutexValue
"""Whether prometheus_client keeps its values in files, for several processes: PROMETHEUS_MULTIPROC_DIR was set when it
was imported."""
PENDING = 1 if MULTIPROCESS else 128
"""How many ends of scans, and other events, of one scanner may wait to be counted; with values in files none waits."""
WORST_BREAKER = ("open", "half_open", "closed")
WORST_STATE = ("disabled", "quarantined", "probing", "enabled")


class _Folding(MetricWrapperBase):
    """A metric that is brought up to date before anybody sees it."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def collect(self) -> Iterable[Metric]:
        self.before()
        return super().collect()


class _Counter(_Folding, Counter):
    """Counts."""


class _Gauge(_Folding, Gauge):
    """Stands at a value."""


class _Histogram(_Folding, Histogram):
    """Counts by size."""


def _made(family: Family) -> Any:
    match family.type:
        case "counter":
            return _Counter(family.name, family.help, family.labels, registry=None)
        case "gauge":
            return _Gauge(family.name, family.help, family.labels, registry=None, multiprocess_mode=family.mode)
        case "histogram":
            return _Histogram(family.name, family.help, family.labels, registry=None, buckets=family.buckets)
        case _:
            info = Info(family.name.removesuffix("_info"), family.help, registry=None)
            info.info({"version": __version__})
            return info


class Families:
    """All metrics of one registry, and what is to be counted into them.

    Events are not counted where they happen: to touch a dozen cold objects for every scan costs more than many scans
    do. They wait in their scanner's `Tally`, up to 128, and are counted when somebody collects a metric, or when they
    are too many. So whoever looks sees exact numbers, however he looks.
    """

    def __init__(self) -> None:
        self._families = {family.name.removeprefix(PREFIX): family for family in families()}
        self._metrics = {name: _made(family) for name, family in self._families.items()}
        self._lock = threading.RLock()  # one counts at a time; again, where the collector runs a finalizer meanwhile
        self._gauges: list[tuple[Child, Callable[[], float]]] = []
        self._loads: list[Callable[[], Load | None]] = []
        self.tallies: dict[str, Tally] = {}
        for metric in self._metrics.values():
            if isinstance(metric, _Folding):
                metric.before = self.fold
        for name, family in self._families.items():
            if family.labels[:1] != ("scanner",) and family.type != "info":
                self.children(name)
        self._read("inflight_executions", (), lambda: float(self._load().busy))
        self._read("queued_scans", (), lambda: float(self._load().queued))
        for state in WORKER_STATES:
            self._read("workers", (state,), partial(self._workers, state))

    def register(self, registry: CollectorRegistry) -> None:
        """Add all metrics to `registry`.

        Raises:
            ValueError: it has a metric of one of these names already; then none of them is added.
        """
        added: list[MetricWrapperBase] = []
        try:
            for metric in self._metrics.values():
                registry.register(metric)
                added.append(metric)
        except ValueError:
            for metric in added:
                registry.unregister(metric)
            raise

    def restore(self, registry: CollectorRegistry) -> None:
        """Add again what somebody has removed from `registry`."""
        for metric in self._metrics.values():
            try:
                registry.register(metric)
            except ValueError:  # it is still there
                continue

    # children

    def child(self, name: str, *labels: str) -> Child:
        """Return one time series, which is made where it is not there yet."""
        metric = self._metrics[name]
        return metric.labels(*labels) if labels else metric

    def children(self, name: str, *owner: str) -> dict[tuple[str, ...], Child]:
        """Return all time series that a metric has for `owner` (a scanner, with its pipeline), by the other labels."""
        return {rest: self.child(name, *owner, *rest) for rest in self._families[name].closed}

    def watch(self, scanner: Registered) -> Tally:
        """Make all time series of a scanner, and read its states from now on; return its tally."""
        with self._lock:
            tally = self.tallies.get(scanner.name)
            if tally is None:
                tally = self.tallies[scanner.name] = Tally(self, scanner.name)
                self._watch_states(scanner.name, tally)
            tally.add_pipeline(scanner.pipeline)
            # one whose runner is closed says nothing any more, unless a thread of it still hangs
            tally.live[:] = [each for each in tally.live if each.state() is not None or each.abandoned_threads()]
            tally.live.append(scanner)
            if scanner.breaker_state is not None and not tally.has_breaker:
                tally.has_breaker = True
                for state in BREAKER_STATES:
                    self._read("breaker_state", (scanner.name, state), partial(_breaker_is, tally.live, state))
            return tally

    def _watch_states(self, name: str, tally: Tally) -> None:
        for state in SCANNER_STATES:
            self._read("scanner_state", (name, state), partial(_scanner_is, tally.live, state))
        self._read("abandoned_threads", (name,), partial(_hanging, tally.live))

    def watch_load(self, load: Callable[[], Load | None]) -> None:
        """Read how busy a runner's threads are from now on."""
        with self._lock:
            self._loads[:] = [each for each in self._loads if each() is not None]
            self._loads.append(load)

    def _load(self) -> Load:
        loads = [load for read in tuple(self._loads) if (load := read()) is not None]
        return Load(**{field: sum(getattr(load, field) for load in loads) for field in Load.__struct_fields__})

    def _workers(self, state: str) -> float:
        return float(getattr(self._load(), state))

    def _read(self, name: str, labels: tuple[str, ...], read: Callable[[], float]) -> None:
        """Have a gauge read at each scrape; values in files cannot be, they are written by `write`."""
        child = self.child(name, *labels)
        if MULTIPROCESS:
            self._gauges.append((child, read))
        else:
            child.set_function(read)

    def write(self) -> None:
        """Write the gauges that are read, where values are kept in files; nothing else needs it."""
        with self._lock:
            for child, read in self._gauges:
                child.set(read())

    # counting

    def fold(self) -> None:
        """Count everything that is pending; what was told before this call is counted when it returns."""
        with self._lock:
            for tally in tuple(self.tallies.values()):
                if tally.ends or tally.events:
                    tally.fold()

    def fold_one(self, tally: Tally) -> None:
        """Count what is pending of one scanner, unless somebody is counting: he who does not wait loses nothing.

        The one who counts may be this very thread, in a finalizer that the garbage collector runs.
        """
        if self._lock.acquire(blocking=MULTIPROCESS):
            try:
                tally.fold()
            finally:
                self._lock.release()

    def after_fork(self) -> None:
        """Go on in a child.

        Somebody may have held the lock. Breakers, threads and what is out of service are the parent's: a runner makes
        new ones here, and registers them. What is pending is counted on both sides, as what was counted before is;
        not where the sides are summed.
        """
        self._lock = threading.RLock()
        self._loads.clear()
        for tally in self.tallies.values():
            tally.live.clear()
            if MULTIPROCESS:
                tally.forget()


def _breaker_is(live: list[Registered], state: str) -> float:
    seen = {each.breaker_state() for each in tuple(live) if each.breaker_state is not None}
    return float(next((worst for worst in WORST_BREAKER if worst in seen), "") == state)


def _scanner_is(live: list[Registered], state: str) -> float:
    seen = {each.state() for each in tuple(live)}
    return float(next((worst for worst in WORST_STATE if worst in seen), "") == state)


def _hanging(live: list[Registered]) -> float:
    return float(sum(each.abandoned_threads() for each in tuple(live)))


_by_registry: WeakKeyDictionary[CollectorRegistry, Families] = WeakKeyDictionary()
_lock = threading.Lock()


def families_of(registry: CollectorRegistry) -> Families:
    """Return the metrics of a registry, which are made once: prometheus_client refuses to register a name twice."""
    with _lock:
        found = _by_registry.get(registry)
        if found is None:
            found = Families()
            found.register(registry)
            _by_registry[registry] = found
        else:
            found.restore(registry)
        return found


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a lock that somebody held in the parent would be held for ever
    _lock = threading.Lock()
    for found in tuple(_by_registry.values()):
        found.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# what is handed out


class WithoutCreated(CollectorRegistry):
    """What another registry has, without the instants at which its time series were made.

    prometheus_client can switch these `_created` samples off for a whole process only, which would change what its
    other endpoints show; and a series more for every series is a high price for an instant that nobody asks for.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for family in self._registry.collect():
            if family.type in {"counter", "histogram", "summary"}:
                bare = Metric(family.name, family.documentation, family.type, family.unit)
                bare.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
                yield bare
            else:
                yield family


def whole(registry: CollectorRegistry) -> CollectorRegistry:
    """Return what is to be shown of a registry: under PROMETHEUS_MULTIPROC_DIR the sums over all processes."""
    if MULTIPROCESS:
        registry = CollectorRegistry()
        AllProcesses(registry)  # type: ignore[no-untyped-call]
    return WithoutCreated(registry)


def exposition(registry: CollectorRegistry = REGISTRY, accept: str = "") -> tuple[str, bytes]:
    """Return what a scrape gets: the content type and the text.

    Args:
        registry: whose metrics; under PROMETHEUS_MULTIPROC_DIR those of all processes instead.
        accept: the request's `Accept`; OpenMetrics, which has exemplars, is for those who ask for it.
    """
    encode, content_type = choose_encoder(accept)
    return content_type if accept else TEXT_TYPE, encode(whole(registry))
