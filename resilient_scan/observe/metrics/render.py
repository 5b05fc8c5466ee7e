"""Write a scrape's text as prometheus_client would, to the byte, but quickly, in pieces, and without `_created`.

prometheus_client's encoders build a dict of labels for each sample and sort and escape it, which takes most of a scrape
of 50,000 samples. Here the lines of many scanners are one list of pieces, into which all values of a label are put in
one step, and so are all numbers. Headers, metrics of others and formats that are new to us are still written by
prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, repeat
from operator import itemgetter

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from resilient_scan.observe.metrics.blocks import Block, Collected, Shape, one_scrape, written
from resilient_scan.observe.metrics.pauses import Pauses

CREATED = "_created"  # the instant at which a series was made, in a series of its own: nobody reads it
Encoder = Callable[[CollectorRegistry], bytes]
END = b"# EOF\n"  # of OpenMetrics
LINES = 256  # in a piece, about 30 kB: joining and sending a whole scrape at once would hold the interpreter's lock
PIECE = 65_536  # bytes of a metric of others
_PROBE = "resilient_scan_probe"


class _One(CollectorRegistry):
    """A registry of one metric that was collected before."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def rendered(registry: CollectorRegistry, encode: Encoder) -> Iterator[bytes]:
    """Yield the text of all metrics of a registry, in pieces.

    Args:
        registry: whose metrics.
        encode: one of prometheus_client's encoders, which says in which format.
    """
    ends = encode(CollectorRegistry())
    pauses, quick, exemplars = Pauses(), _writes_like_us(encode), ends == END
    writer = _Writer(pauses)
    for metric in _collected(registry, pauses):
        if quick and isinstance(metric, Collected):
            yield _header(metric, encode)
            yield from writer.pieces(metric.blocks(exemplars))
        else:
            text = encode(_One(_without_created(metric))).removesuffix(ends)
            yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        pauses()
    if ends:
        yield ends


def _collected(registry: CollectorRegistry, pauses: Callable[[], None]) -> list[Metric]:
    found = []
    with one_scrape():
        for metric in registry.collect():
            found.append(metric)
            pauses()
    return found


def _header(metric: Metric, encode: Encoder) -> bytes:
    return encode(_One(Metric(metric.name, metric.documentation, metric.type))).removesuffix(END)


def _without_created(metric: Metric) -> Metric:
    """Return a metric without the instants at which its series were made.

    prometheus_client can switch these samples off for a whole process only, which would change what its other endpoints
    show. A second series for every series is a high price for an instant that nobody reads.
    """
    if isinstance(metric, Collected) or metric.type not in {"counter", "histogram", "summary"}:
        return metric
    bare = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    bare.samples = [sample for sample in metric.samples if sample.name != metric.name + CREATED]
    return bare


class _Writer:
    """Writes blocks.

    Args:
        pauses: called between two pieces.
    """

    def __init__(self, pauses: Callable[[], None]) -> None:
        self._pauses = pauses
        self._values, self._numbers = _Values(), _Numbers()

    def pieces(self, blocks: Iterable[Block]) -> Iterator[bytes]:
        """Yield the text of blocks in pieces."""
        for shape, alike in groupby(blocks, itemgetter(0)):
            while some := list(islice(alike, max(1, LINES // len(shape.lines)))):
                yield self._text(shape, some).encode()
                self._pauses()

    def _text(self, shape: Shape, blocks: Sequence[Block]) -> str:
        """Return the text of blocks of one shape: all values of a label are put in at once, and so are all numbers."""
        pieces, places, rest = shape.cut
        lines = len(shape.lines)
        _, owns, numbers, exemplars = zip(*blocks, strict=True)
        text = pieces * len(blocks)
        text[0] = text[0][1:]  # without the line break
        for place, values in zip(places, zip(*owns, strict=True), strict=True):
            written = map(self._values.__getitem__, values)
            text[place] = written if lines == 1 else chain.from_iterable(map(repeat, written, repeat(lines)))
        text[rest] = map(self._numbers.__getitem__, chain.from_iterable(numbers))
        for line, exemplar in enumerate(chain.from_iterable(exemplars)):
            if exemplar is not None:
                text[rest.start + line * rest.step] += _exemplar(exemplar)
        text.append("\n")
        return "".join(text)


class _Values(dict[str, str]):
    """The values of labels as they are written, each made once in a scrape."""

    def __missing__(self, value: str) -> str:
        text = self[value] = written(value)
        return text


class _Numbers(dict[float, str]):
    """Numbers as they are written; counts, most of which are small, are each made once in a scrape."""

    def __missing__(self, number: float) -> str:
        text = _number(number)
        if number.is_integer():
            self[number] = text
        return text


def _number(number: float) -> str:
    # What is smaller than a million is written like this by prometheus_client, too; NaN compares as false.
    return repr(number) if -1e6 < number < 1e6 else str(floatToGoString(number))  # type: ignore[no-untyped-call]


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(f"{label}={written(value)}" for label, value in sorted(exemplar.labels.items()))
    at = "" if exemplar.timestamp is None else f" {exemplar.timestamp}"
    return f" # {{{labels}}} {_number(exemplar.value)}{at}"


def _probe(exemplars: bool) -> Iterable[Block]:
    shape = Shape(_PROBE, ("scanner", "pipeline"), (("_bucket", {"le": "+Inf"}), ("_sum", {})))
    exemplar = Exemplar({"run_id": 'a"b'}, 0.25, 1.5)
    return [(shape, ('a"\\\nb', "%s"), (3.0, 1e7), (exemplar, None) if exemplars else ())]


def _writes_like_us(encode: Encoder) -> bool:
    """Whether we can stand in for this encoder.

    A client may ask for other escaping, and prometheus_client may learn new formats. Where they differ, a line shows.
    """
    metric = Collected(_PROBE, "-", "histogram", _probe)
    exemplars = encode(CollectorRegistry()) == END
    ours = b"".join(_Writer(lambda: None).pieces(_probe(exemplars)))
    return encode(_One(metric)).removesuffix(END) == _header(metric, encode) + ours
