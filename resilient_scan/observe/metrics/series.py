"""Counters, gauges and histograms of prometheus_client, with three changes in what they say when collected.

They are brought up to date first. Series that have to exist from the beginning are there with 0 without an object for
each of them, which is most of what a scanner would cost. And samples are built only if somebody asks for them: `render`
writes a scrape straight from the blocks, in a small part of the time.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, Info, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from resilient_scan import __version__
from resilient_scan.observe.metrics.blocks import Block, Collected, Labels, Line, Shape, bring_up_to_date
from resilient_scan.observe.metrics.catalogue import Family

Child = Any
"""A time series of prometheus_client: the child of a counter, a gauge or a histogram."""
Reading = Callable[[], Iterable[tuple[Labels, Sequence[float]]]]
"""Returns what a metric says that keeps no numbers: the values of the labels and the numbers of each block."""


class _Series(MetricWrapperBase):
    """What all our metrics have in common.

    Attributes:
        before: called before the metric is collected.
    """

    _value: Any  # of prometheus_client's own; histograms have none
    before: Callable[[], object] = staticmethod(lambda: None)
    _places: dict[Labels, int] = {}  # noqa: RUF012 - a metric gets its own; its series, which have none, share this one
    _owners: dict[Labels, None] = {}  # noqa: RUF012 - likewise
    _used: dict[Labels, dict[int, Child]] = {}  # noqa: RUF012 - likewise; the series of owners that were ever counted
    _zeros: tuple[float, ...] = ()
    _reading: Reading | None = None

    def arrange(self, closed: tuple[Labels, ...]) -> None:
        """Prepare for owners whose series exist, counted or not: `closed` has the values of their last labels."""
        rest = len(closed[0]) if closed else 0
        own = len(self._labelnames) - rest
        self._owners, self._used, self._places = {}, {}, {labels: place for place, labels in enumerate(closed)}
        self._zeros = (0.0,) * len(closed)
        self._split = own
        self._together = self._shape(own, closed)
        self._alone = self._shape(len(self._labelnames), ((),))

    def _shape(self, own: int, closed: Iterable[Labels]) -> Shape:
        names = tuple(self._labelnames)
        lines = [
            (suffix, dict(zip(names[own:], rest, strict=True)) | fixed)
            for rest in closed
            for suffix, fixed in self._lines()
        ]
        return Shape(self._name, names[:own], lines)

    def begin(self, owner: Labels) -> None:
        """Have all series of an owner (values of the first labels) exist from now on.

        The owner is entered first: a series that another thread makes meanwhile is found by one of the two.
        """
        self._owners[owner] = None
        for rest, place in self._places.items():
            child = self._metrics.get(owner + rest)
            if child is not None:
                self._used.setdefault(owner, {})[place] = child

    def labels(self, *values: object, **named: object) -> Child:
        """Return one series, as prometheus_client does, and note whose it is."""
        child = super().labels(*values, **named)
        labels: Labels = child._labelvalues  # noqa: SLF001 - of our own subclasses, here and below
        owner, place = labels[: self._split], self._places.get(labels[self._split :])
        if place is not None and owner in self._owners:
            self._used.setdefault(owner, {})[place] = child
        return child

    def read(self, reading: Reading, lasts: tuple[Labels, ...] = ((),)) -> None:
        """Keep no numbers, but read them when the metric is collected: one for each of `lasts` (the last labels)."""
        self._reading = reading
        self._together = self._shape(len(self._labelnames) - len(lasts[0]), lasts)

    def collect(self) -> Iterable[Metric]:
        bring_up_to_date(self.before)
        return [Collected(self._name, self._documentation, str(self._type), self._blocks)]

    def _blocks(self, exemplars: bool) -> Iterator[Block]:
        if self._reading is not None:
            shape = self._together
            return ((shape, own, numbers, ()) for own, numbers in self._reading())
        if not self._labelnames:
            return iter(((self._alone, (), self._numbers(), self._exemplars() if exemplars else ()),))
        return self._labelled(exemplars)

    def _labelled(self, exemplars: bool) -> Iterator[Block]:
        shape, zeros, placed = self._together, self._zeros, 0
        used = self._used
        for owner in tuple(self._owners):
            children = used.get(owner)
            if children is None:
                yield shape, owner, zeros, ()
                continue
            numbers = list(zeros)
            for place, child in children.copy().items():
                numbers[place] = child._value.get()  # noqa: SLF001 - only counters have owners
            placed += len(children)
            yield shape, owner, numbers, ()
        if placed < len(self._metrics):
            yield from self._others(exemplars)

    def _others(self, exemplars: bool) -> Iterator[Block]:
        """Return the series that need not exist from the beginning.

        The copy is one long step in which no other thread runs, so it is made only where there are such series.
        """
        with self._lock:
            children: dict[Any, Child] = {**self._metrics}
        shape, owners, places, split = self._alone, self._owners, self._places, self._split
        for labels, child in children.items():
            if not owners or labels[:split] not in owners or labels[split:] not in places:
                yield shape, labels, child._numbers(), child._exemplars() if exemplars else ()  # noqa: SLF001

    def _lines(self) -> Iterable[Line]:
        """Return the lines of one series."""
        return (("", {}),)

    def _numbers(self) -> Sequence[float]:
        return (self._value.get() + 0.0,)  # not -0.0, which would be taken for the 0 that most numbers are

    def _exemplars(self) -> Sequence[Exemplar | None]:
        return ()


class _Counter(_Series, Counter):
    def _lines(self) -> Iterable[Line]:
        return (("_total", {}),)


class _Gauge(_Series, Gauge):
    pass


class _Histogram(_Series, Histogram):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._filled: list[int] = []  # the buckets that are not 0: most are, and each is an object far away in memory

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe one amount."""
        super().observe(amount, exemplar)
        self._fill(bisect_left(self._upper_bounds, amount))

    def observe_all(self, amounts: Sequence[float], exemplar: Callable[[int], dict[str, str]] | None = None) -> None:
        """Observe several amounts like `observe`, but in one step for each bucket, not for each amount.

        Args:
            amounts: to observe.
            exemplar: returns the labels of the exemplar that goes with an amount, given its number; it is called with
                the last one in each bucket.
        """
        places = list(map(bisect_left, repeat(self._upper_bounds), amounts))
        self._sum.inc(sum(amounts))
        for place, number in dict(zip(places, range(len(places)), strict=True)).items():
            bucket = self._buckets[place]
            bucket.inc(places.count(place))
            self._fill(place)
            if exemplar is not None and (labels := exemplar(number)):
                bucket.set_exemplar(Exemplar(labels, amounts[number], time.time()))

    def _fill(self, place: int) -> None:
        if place not in self._filled:  # if two threads find that, it is there twice, which is the same
            self._filled.append(place)

    def _lines(self) -> Iterable[Line]:
        buckets = [("_bucket", {"le": str(floatToGoString(bound))}) for bound in self._upper_bounds]  # type: ignore[no-untyped-call]
        return (*buckets, ("_count", {}), ("_sum", {}))

    def _numbers(self) -> Sequence[float]:
        numbers = [0.0] * len(self._buckets)
        for place in self._filled.copy():
            numbers[place] = self._buckets[place].get()
        *below, count = accumulate(numbers)
        return (*below, count, count, self._sum.get())

    def _exemplars(self) -> Sequence[Exemplar | None]:
        return (*[bucket.get_exemplar() for bucket in self._buckets], None, None)


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
            return metric
    metric.arrange(family.closed)
    return metric
