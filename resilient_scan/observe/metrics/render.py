"""Write a scrape's text as prometheus_client would, to the byte, but quickly, in pieces, and without `_created`.

prometheus_client's encoders build a dict of labels for each sample and sort and escape it, which takes most of a scrape
of 50,000 samples. All series of a metric have the same labels, so here a line is a template into which the values of
the labels are put. Headers, metrics of others and formats that are new to us are still written by prometheus_client.

"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from resilient_scan.observe.metrics.pauses import Pauses
from resilient_scan.observe.metrics.series import CREATED, Collected, Labels, Point

Encoder = Callable[[CollectorRegistry], bytes]
END = b"# EOF\n"  # of OpenMetrics
LINES = 256  # in a piece, about 30 kB: joining and sending a whole scrape at once would hold the interpreter's lock
PIECE = 65_536  # bytes of a metric of others


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
    for metric in registry.collect():
        if quick and isinstance(metric, Collected):
            yield _header(metric, encode)
            yield from _pieces(_lines(metric, exemplars=exemplars, pauses=pauses))
        else:
            text = encode(_One(_without_created(metric))).removesuffix(ends)
            yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        pauses()
    if ends:
        yield ends


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


def _pieces(lines: Iterator[str]) -> Iterator[bytes]:
    piece: list[str] = []
    for line in lines:
        piece.append(line)
        if len(piece) == LINES:
            yield "".join(piece).encode()
            piece.clear()
    yield "".join(piece).encode()


class _Escaped(dict[str, str]):
    """The values of labels as they are written, each escaped once in a scrape."""

    def __missing__(self, value: str) -> str:
        escaped = self[value] = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return escaped


def _lines(metric: Collected, *, exemplars: bool, pauses: Callable[[], None]) -> Iterator[str]:
    escaped, templates = _Escaped(), _Templates(metric.name, metric.labels)
    order = templates.order
    for labels, samples in metric.points():
        own = tuple([escaped[labels[position]] for position in order])
        for sample in samples:
            line = templates[sample.name, *sample.labels.items()] % own + _number(sample.value)
            yield f"{line}{_exemplar(sample.exemplar)}\n" if exemplars and sample.exemplar else f"{line}\n"
        pauses()


class _Templates(dict[tuple[Any, ...], str]):
    """What a metric's lines look like, up to the value, with `%s` for the values of the labels that all series have."""

    def __init__(self, name: str, labels: Labels) -> None:
        super().__init__()
        self._name, self._labels = name, labels
        self.order = sorted(range(len(labels)), key=labels.__getitem__)

    def __missing__(self, kind: tuple[Any, ...]) -> str:
        suffix, *extra = kind
        texts = dict.fromkeys(self._labels, "%s")
        for label, value in extra:
            texts[label] = _Escaped()[value].replace("%", "%%")
        labels = ",".join(f'{label}="{text}"' for label, text in sorted(texts.items()))
        template = self[kind] = f"{self._name}{suffix}{{{labels}}} " if labels else f"{self._name}{suffix} "
        return template


def _number(value: float) -> str:
    # What is smaller than a million is written like this by prometheus_client, too; NaN compares as false.
    return repr(float(value)) if -1e6 < value < 1e6 else str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _exemplar(exemplar: Exemplar) -> str:
    escaped = _Escaped()
    labels = ",".join(f'{label}="{escaped[value]}"' for label, value in sorted(exemplar.labels.items()))
    at = "" if exemplar.timestamp is None else f" {exemplar.timestamp}"
    return f" # {{{labels}}} {_number(exemplar.value)}{at}"


def _probe() -> Iterable[Point]:
    exemplar = Exemplar({"run_id": 'a"b'}, 0.25, 1.5)
    return [(('a"\\\nb', "%s"), [Sample("_bucket", {"le": "+Inf"}, 3.0, None, exemplar), Sample("_sum", {}, 1e7)])]


def _writes_like_us(encode: Encoder) -> bool:
    """Whether we can stand in for this encoder.

    A client may ask for other escaping, and prometheus_client may learn new formats. Where they differ, a line shows.
    """
    metric = Collected("resilient_scan_probe", "-", "histogram", ("scanner", "pipeline"), _probe)
    exemplars = encode(CollectorRegistry()) == END
    ours = "".join(_lines(metric, exemplars=exemplars, pauses=lambda: None)).encode()
    return encode(_One(metric)).removesuffix(END) == _header(metric, encode) + ours
