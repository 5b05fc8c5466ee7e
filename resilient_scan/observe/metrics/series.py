"""Counters, gauges and histograms of prometheus_client, with three changes in what they say when collected.

They are brought up to date first. Series that have to exist from the beginning are there with 0 without an object for
each of them, which is most of what a scanner would cost. And samples are built only if somebody asks for them: `render`
writes a scrape straight from the points, in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, Info, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from resilient_scan import __version__
from resilient_scan.observe.metrics.catalogue import Family

Labels = tuple[str, ...]
Point = tuple[Labels, Iterable[Sample]]
"""The values of a series' own labels, and its samples: of a histogram, one for each bucket and more. A sample's name is
what comes after the metric's, and its labels are those that it has in addition, such as `le`."""

CREATED = "_created"  # the instant at which a series was made, in a series of its own: nobody reads it
ONE, ZERO = (Sample("", {}, 1.0),), (Sample("", {}, 0.0),)
_NOT_COUNTED = (Sample("_total", {}, 0.0),)


class Collected(Metric):
    """What one metric says now, as prometheus_client's encoders and parsers know it.

    Args:
        name: without `_total`.
        documentation, kind: as in prometheus_client.
        labels: the names of the labels that all its series have.
        points: returns all its series.
    """

    def __init__(
        self, name: str, documentation: str, kind: str, labels: Labels, points: Callable[[], Iterable[Point]]
    ) -> None:
        super().__init__(name, documentation, kind)
        del self.samples  # an attribute of the base class; what is below is found instead
        self.labels = labels
        self.points = points

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """All samples with their full names and labels."""
        return [
            sample._replace(
                name=self.name + sample.name, labels={**dict(zip(self.labels, own, strict=True)), **sample.labels}
            )
            for own, samples in self.points()
            for sample in samples
        ]


class _Series(MetricWrapperBase):
    """What all our metrics have in common.

    Attributes:
        before: called before the metric is collected.
        owners: whose series exist, counted or not: values of the first labels.
        closed: the values of the other labels, for each owner.
        reading: returns the points of a metric that keeps no values but reads them when it is collected.
    """

    before: Callable[[], object] = staticmethod(lambda: None)
    owners: dict[Labels, None] = {}  # noqa: RUF012 - a metric gets its own; its series, which have none, share this one
    closed: tuple[Labels, ...] = ()
    reading: Callable[[], Iterable[Point]] | None = None

    def collect(self) -> Iterable[Metric]:
        self.before()
        points = self.reading or self._points
        return [Collected(self._name, self._documentation, str(self._type), tuple(self._labelnames), points)]

    def _points(self) -> Iterator[Point]:
        if not self._labelnames:
            yield (), _without_created(self)
            return
        found = 0
        for owner in tuple(self.owners):
            for rest in self.closed:
                child = self._metrics.get(owner + rest)
                found += child is not None
                yield owner + rest, _NOT_COUNTED if child is None else _without_created(child)
        if found < len(self._metrics):
            yield from self._others()

    def _others(self) -> Iterator[Point]:
        """Return the series that need not exist from the beginning.

        The copy is one long step in which no other thread runs, so it is made only where there are such series.
        """
        with self._lock:
            children = self._metrics.copy()
        split = len(self._labelnames) - len(self.closed[0])
        for labels, child in children.items():
            if labels[:split] not in self.owners or labels[split:] not in self.closed:
                yield tuple(labels), _without_created(child)


def _without_created(series: MetricWrapperBase) -> list[Sample]:
    return [sample for sample in series._child_samples() if sample.name != CREATED]  # noqa: SLF001 - of our subclasses


class _Counter(_Series, Counter):
    pass


class _Gauge(_Series, Gauge):
    pass


class _Histogram(_Series, Histogram):
    pass


class OnDemand(Collector):
    """Holds the name of a metric in a registry from the beginning; the metric itself is made when it is first used.

    A gauge without labels has a value as soon as it exists, and a heartbeat of 0 in a process that receives no alerts
    would say that none has ever come.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._metric: Any = None

    def describe(self) -> Iterable[Metric]:
        """Return the metric's name and type, so that nobody else can take the name."""
        return [Metric(self._family.name, self._family.help, self._family.type)]

    def collect(self) -> Iterable[Metric]:
        """Return what the metric says, or nothing before its first use."""
        found: Iterable[Metric] = () if self._metric is None else self._metric.collect()
        return found

    def needed(self) -> Any:
        """Return the metric, making it if necessary."""
        if self._metric is None:
            self._metric = made(self._family)
        return self._metric

    def forget(self) -> None:
        """Be as if the metric had never been used."""
        self._metric = None


def made(family: Family) -> Any:
    """Return a metric, which is in no registry yet."""
    match family.type:
        case "counter":
            metric: Any = _Counter(family.name, family.help, family.labels, registry=None)
        case "gauge":
            metric = _Gauge(family.name, family.help, family.labels, registry=None, multiprocess_mode=family.mode)
        case "histogram":
            metric = _Histogram(family.name, family.help, family.labels, registry=None, buckets=family.buckets)
        case _:
            metric = Info(family.name.removesuffix("_info"), family.help, registry=None)
            metric.info({"version": __version__})
    metric.owners, metric.closed = {}, family.closed
    return metric
