"""A scrape's text: what prometheus_client would write, without `_created`, in small pieces."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter as Count
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import prometheus_client as prometheus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from resilient_scan import PrometheusMetrics
from resilient_scan.events import (
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    Event,
    ExecutionEnded,
    LateCompletion,
    Registered,
    RunEnded,
    ScanEnded,
    ScannersRegistered,
    ScheduledRunBegins,
    ScheduleStarted,
)
from resilient_scan.observe.metrics import (
    collectors,
    exposition,
    families,
    pauses,
    pieces,
    push,
    render,
    series,
    write_textfile,
)
from resilient_scan.observe.metrics.blocks import Collected, Shape
from resilient_scan.observe.metrics.render import LINES, PIECE, rendered
from resilient_scan.results import ErrorInfo
from tests.support.results import result

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
ACCEPTS = (
    "",
    "text/plain;version=0.0.4",
    "text/plain; version=1.0.0; escaping=allow-utf-8",
    "text/plain; version=1.0.0; escaping=values",
    OPENMETRICS,
    f"{OPENMETRICS}; escaping=allow-utf-8",
    f"{OPENMETRICS}; escaping=dots",
    "application/openmetrics-text; version=2.0.0",
)
NAMES = st.text(max_size=5) | st.sampled_from(['a"b', "back\\slash", "new\nline", "100%s", "{le}", "é"])
SECONDS = st.sampled_from([0.0, 0.05, 0.3, 1e-5, 7.25, 300.0, 1e6, 123456789.125, 1e17])
NUMBERS = st.floats() | st.sampled_from([-0.0, 1e6, 999999.5, 1e22, -1e6, -123456789.0, math.nan, math.inf, -math.inf])


class Bare(CollectorRegistry):
    """What prometheus_client would show of a registry if it had made no `_created` samples."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self.registry = registry

    def collect(self) -> Any:
        for metric in self.registry.collect():
            bare = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            created = f"{metric.name}_created" if metric.type in {"counter", "histogram", "summary"} else None
            bare.samples = [sample for sample in metric.samples if sample.name != created]
            yield bare


def events(name: str, pipeline: str, seconds: float, run_id: str = 'r"u\\n') -> list[Event]:
    """Return what makes a series in about every metric."""
    error = ErrorInfo("OSError", "down")
    return [
        ScannersRegistered((Registered(name, pipeline, lambda: "open", lambda: 2, lambda: "probing", 30.0),)),
        ScanEnded("run", result(scanner=name, pipeline=pipeline, queue_wait=seconds, dropped=1), "miss", ""),
        ExecutionEnded(name, pipeline, "error", seconds, 1, error, "run", seconds, 30.0),
        ExecutionEnded(name, pipeline, "success", seconds, 1, None, run_id, seconds, 30.0),
        AttemptEnded(name, 2, "error", 0.1, error),
        BreakerChanged(name, "closed", "open", 1.0),
        LateCompletion(name, seconds, "success"),
        RunEnded("run", seconds, {}, True, seconds),
        AlertsServed(0.0),
        ScheduleStarted((name,), 60.0, 0.0),
        ScheduledRunBegins(seconds, 0.0),
    ]


def foreign(registry: CollectorRegistry, name: str, number: float) -> None:
    """Add metrics of the host, of every kind."""
    counter = prometheus.Counter("host_calls", 'Of "the" host\\s\ncalls.', ("who",), registry=registry)
    counter.labels(name).inc(3, {"trace_id": "abc"})
    prometheus.Gauge("host_temperature", "Of it.", ("who",), registry=registry).labels(name).set(number)
    prometheus.Histogram("host_took_seconds", "Of it.", unit="seconds", registry=registry).observe(0.1, {"id": "x"})
    prometheus.Summary("host_size", "Of it.", registry=registry).observe(2)
    prometheus.Info("host_build", "Of it.", registry=registry).info({"version": name})
    prometheus.Enum("host_state", "Of it.", states=["on", "off"], registry=registry).state("off")
    prometheus.Gauge("host_created", "Only named like this.", registry=registry).set(1)


@given(st.lists(st.tuples(NAMES, NAMES, SECONDS), max_size=4), NAMES, NUMBERS, st.sampled_from(ACCEPTS))
def test_every_byte_is_as_prometheus_client_writes_it(
    scanners: list[tuple[str, str, float]], name: str, number: float, accept: str
) -> None:
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)
    foreign(registry, name, number)
    for scanner in scanners:
        for event in events(*scanner):
            listener(event)
    encode, content_type = choose_encoder(accept)
    said, text = exposition(registry, accept)
    assert text.decode() == encode(Bare(registry)).decode()
    assert b"calls_created" not in text
    assert not accept or said == content_type


@pytest.mark.parametrize("accept", ["", PROMETHEUS_2, PROMETHEUS_3])
def test_prometheus_gets_its_scrape_the_quick_way(accept: str) -> None:
    encode, _ = choose_encoder(accept)
    registries: list[CollectorRegistry] = []

    def watched(registry: CollectorRegistry) -> bytes:
        registries.append(registry)
        return encode(registry)

    list(rendered(lived_in(1), watched))
    written = [sample for registry in registries for metric in registry.collect() for sample in metric.samples]
    assert not [sample for sample in written if "scanner_" in str(sample.labels)]


def test_labels_of_single_samples_are_written_as_prometheus_client_writes_them() -> None:
    class Odd(CollectorRegistry):
        def collect(self) -> Any:
            shape = Shape("odd", ("name", "x"), [("", {"z": "50%s", "a": 'x"y\n0'}), ("_other", {})])
            own = ("100%", '"\n1"')  # what looks like a place for another value is none
            yield Collected("odd", "-", "gauge", lambda _exemplars: [(shape, own, (1.0, 2.0), ())])

    assert b"".join(rendered(Odd(), prometheus.generate_latest)) == prometheus.generate_latest(Odd())


@pytest.mark.parametrize(
    "numbers", [(0.0, math.nan, math.nan), (5e5, 2e6, -3e6, 3e6), (2.5, 0.1, 1e6, 1e22, 2.5), (math.inf,)]
)
def test_numbers_of_one_block_are_each_written_as_prometheus_client_writes_them(numbers: tuple[float, ...]) -> None:
    """Some of their texts are kept, to be used again."""

    class Odd(CollectorRegistry):
        def collect(self) -> Any:
            shape = Shape("odd", (), [("", {"n": str(number)}) for number in range(len(numbers))])
            yield Collected("odd", "-", "gauge", lambda _exemplars: [(shape, (), numbers, ())])

    assert b"".join(rendered(Odd(), prometheus.generate_latest)) == prometheus.generate_latest(Odd())


def test_a_zero_is_written_as_one_whatever_its_sign() -> None:
    registry = CollectorRegistry()
    metric = series.made(next(family for family in families() if family.name.endswith("_candidates")))
    registry.register(metric)
    for name, number in (("one", 0.0), ("two", -0.0), ("three", 0.0)):
        metric.labels(name).set(number)
    assert exposition(registry)[1] == prometheus.generate_latest(registry)


@given(NUMBERS)
def test_every_number_is_written_as_prometheus_client_writes_it(number: float) -> None:
    registry = CollectorRegistry()
    metric = series.made(next(family for family in families() if family.name.endswith("_candidates")))
    registry.register(metric)
    metric.labels("one").set(number)
    assert exposition(registry)[1] == prometheus.generate_latest(registry)


@pytest.mark.parametrize("family", [family for family in families() if family.type != "info"], ids=lambda f: f.name)
def test_samples_are_those_of_prometheus_client_s_own_objects(family: Any) -> None:
    """The numbers come from its counters, gauges and histograms: only zeros that nothing has counted are our own."""
    metric = series.made(family)
    owner = tuple(label for label in family.labels if label in {"scanner", "pipeline"})
    if family.always and family.type == "counter":
        metric.begin(owner)
    (before,) = metric.collect()
    zeros = list(before.samples)
    for rest in family.closed:
        values = (*owner, *rest, "x", "y")[: len(family.labels)]
        child = metric.labels(*values) if values else metric
        (child.observe if family.type == "histogram" else child.inc if family.type == "counter" else child.set)(3)
    (ours,), (theirs,) = metric.collect(), MetricWrapperBase.collect(metric)
    assert ours.samples == [sample for sample in theirs.samples if not sample.name.endswith("_created")]
    if family.always and family.type == "counter":
        assert [(sample.name, sample.labels) for sample in zeros] == [(s.name, s.labels) for s in ours.samples]
        assert {sample.value for sample in zeros} == {0.0}


def test_a_label_that_nobody_foresaw_is_shown_next_to_the_zeros() -> None:
    metric = series.made(next(family for family in families() if family.name.endswith("_attempts_total")))
    metric.labels("one", "error").inc(2)
    metric.begin(("one",))
    metric.labels("one", "unheard of").inc(3)
    metric.labels("another", "error").inc(4)
    (ours,) = metric.collect()
    found = [(*sample.labels.values(), sample.value) for sample in ours.samples]
    zeros = [("one", "success", 0.0), ("one", "error", 2.0), ("one", "timeout", 0.0)]
    assert found == [*zeros, ("one", "unheard of", 3.0), ("another", "error", 4.0)]


def lived_in(scanners: int) -> CollectorRegistry:
    """Return a registry in which scanners have had some trouble."""
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)
    for number in range(scanners):
        for event in events(f"scanner_{number}", "test", 0.1 * number, "run"):  # their parser fails on a quoted quote
            listener(event)
    foreign(registry, "x", 1.0)
    return registry


@pytest.mark.parametrize(("accept", "read"), [("", read_text), (OPENMETRICS, read_openmetrics)])
def test_parsers_read_back_what_was_counted(accept: str, read: Callable[[str], Any]) -> None:
    registry = lived_in(3)
    text = exposition(registry, accept)[1].decode()
    found = {(s.name, *sorted(s.labels.items())): s.value for family in read(text) for s in family.samples}
    counted = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created") or sample.name == "host_created"
    }
    assert found == counted


def test_no_piece_is_so_large_that_joining_or_sending_it_holds_up_others() -> None:
    registry = lived_in(60)
    big = prometheus.Gauge("host_big", "Of the host.", ("who",), registry=registry)
    for number in range(4000):
        big.labels(f"somebody {number}").set(number)
    _, parts = pieces(registry)
    assert max(map(len, parts)) <= PIECE
    assert max(part.count(b"\n") for part in parts if b"host_" not in part) <= LINES
    assert b"".join(parts) == exposition(registry)[1]


def test_a_scrape_steps_aside_between_any_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each hand-over between the threads of a run takes 5 ms for as long as a scrape computes."""
    paused = [0]

    class Counted:
        def __call__(self) -> None:
            paused[0] += 1

    registry = lived_in(50)
    monkeypatch.setattr(render, "Pauses", Counted)
    parts = [(paused[0], piece) for piece in rendered(registry, prometheus.generate_latest)]
    assert sum(piece.startswith(b"resilient_scan_execution_duration") for _, piece in parts) >= 3
    for (before, one), (after, _) in itertools.pairwise(parts):
        assert after > before or one.startswith(b"# HELP")


def test_a_scrape_counts_once_what_was_pending_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each metric, it would look at each scanner again, and show a later moment than in the metric before."""
    registry = lived_in(1)
    listener = PrometheusMetrics(registry)
    flushes: list[object] = []
    flush_all = collectors.Metrics._flush
    monkeypatch.setattr(collectors.Metrics, "_flush", lambda *given: flushes.append(given) or flush_all(*given))
    for scrapes in (1, 2):
        exposition(registry)
        assert len(flushes) == scrapes
    listener(AttemptEnded("scanner_0", 1, "timeout", 0.1, None))
    assert b'attempts_total{outcome="timeout",scanner="scanner_0"} 1.0' in prometheus.generate_latest(registry)


def test_so_does_what_counts_before_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    called = Count[str]()
    monkeypatch.setattr(collectors, "Pauses", lambda: lambda: called.update(["pauses"]))
    list(lived_in(50).collect())  # counts, and writes nothing
    assert called["pauses"] == 50


def test_waits_are_observed_together_but_not_too_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)
    sizes: list[int] = []
    observe_all = series._Histogram.observe_all
    monkeypatch.setattr(collectors, "MAX_WAITS", 4)
    monkeypatch.setattr(
        series._Histogram, "observe_all", lambda *given: sizes.append(len(given[1])) or observe_all(*given)
    )
    for number in range(5):
        listener(ScannersRegistered((Registered(f"s{number}", "test", None, lambda: 0),)))
        for _ in range(2):
            listener(ScanEnded("run", result(scanner=f"s{number}", pipeline="test", queue_wait=0.2), "miss", ""))
    assert b"resilient_scan_queue_wait_seconds_count 10.0" in exposition(registry)[1]
    assert sizes == [4, 4, 2]


def test_a_pause_comes_when_a_turn_is_over_until_patience_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.sleep", slept.append)
    pause = pauses.Pauses()
    for seconds, times in ((0.0, 0), (0.0009, 0), (0.0011, 1), (0.0015, 1), (0.0022, 2), (1.9, 3), (2.0, 3), (9.0, 3)):
        now[0] = 100.0 + seconds
        pause()
        assert len(slept) == times, seconds
    assert set(slept) == {pauses.PAUSE}
    assert pauses.PAUSE > 0  # with 0, this thread takes the lock back before another has woken up


def test_a_format_that_we_do_not_know_is_left_to_its_encoder() -> None:
    registry = lived_in(2)

    def shouting(registry: CollectorRegistry) -> bytes:
        return prometheus.generate_latest(registry).upper()

    assert b"".join(rendered(registry, shouting)) == shouting(Bare(registry))


def test_what_is_written_to_a_file_is_ours(tmp_path: Path) -> None:
    registry = lived_in(2)
    write_textfile(tmp_path / "scan.prom", registry)
    text = (tmp_path / "scan.prom").read_text()
    ours = [metric.name for metric in registry.collect() if metric.name.startswith("resilient_scan_")]
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")] == [
        f"{name}_info" if name.endswith("_build") else f"{name}_total" if f"{name}_total" in text else name
        for name in ours
    ]
    assert text in exposition(registry)[1].decode()


def test_what_is_pushed_is_the_same_and_says_how_long_it_is(tmp_path: Path) -> None:
    registry, received = lived_in(20), dict[str, Any]()

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.update(path=self.path, length=self.headers["Content-Length"], kind=self.headers["Content-Type"])
            received["body"] = self.rfile.read(int(received["length"]))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        push(f"http://127.0.0.1:{server.server_port}", registry)
        answering.join(5)
    write_textfile(tmp_path / "scan.prom", registry)
    assert received["path"] == "/metrics/job/resilient_scan"
    assert received["kind"].startswith("text/plain")
    assert received["body"] == (tmp_path / "scan.prom").read_bytes()


def test_the_host_s_switch_for_its_own_instants_is_left_alone() -> None:
    registry = lived_in(1)
    exposition(registry)
    assert b"host_calls_created" in prometheus.generate_latest(registry)


# what a scanner costs, in numbers that do not depend on the machine


def test_a_scanner_that_has_lived_has_at_most_60_lines() -> None:
    text = exposition(lived_in(40))[1].decode()
    lines = Count(line.partition('scanner="')[2].partition('"')[0] for line in text.splitlines())
    assert lines["scanner_7"] == lines["scanner_30"] <= 60


def test_a_scanner_that_was_never_used_costs_no_objects() -> None:
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)

    def objects() -> int:
        return sum(len(getattr(metric, "_metrics", ())) for metric in listener._metrics._metrics.values())

    before = objects()
    fleet = [Registered(f"scanner_{number}", "test", lambda: "closed", lambda: 0, total=1.0) for number in range(20)]
    listener(ScannersRegistered(tuple(fleet)))
    text = exposition(registry)[1].decode()
    assert text.count('scanner="scanner_7"') == 26
    assert objects() == before
    listener(ScanEnded("run", result(scanner="scanner_7", pipeline="test"), "miss", ""))
    listener(ExecutionEnded("scanner_7", "test", "success", 0.1, 1, None, "run", 1.0, 1.0))
    exposition(registry)
    assert objects() - before == 6  # scans, executions, duration, cache, candidates, last success
