"""Spans: parents right across threads, status and error set, the caller's span above them."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import StatusCode

from resilient_scan import Breaker, Cache, ConfigError, Policy, PrometheusMetrics, Retry, ScanRunner, Timeout, scanner
from resilient_scan.events import traces
from resilient_scan.observe import tracing
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.observe.tracing import TraceRuns
from resilient_scan.testing import FakeClock, broken, flapping, hanging, healthy
from tests.support.waiting import WAIT_TIMEOUT

POLICY = Policy(cache=None, retry=Retry(attempts=2, base=0, cap=0), breaker=None)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def parent_of(span: ReadableSpan, spans: tuple[ReadableSpan, ...]) -> str:
    """Return the name of a span's parent, or an empty text."""
    return next((other.name for other in spans if span.parent and other.context.span_id == span.parent.span_id), "")


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {})[f"resilient_scan.{name}"]


def test_attempts_hang_below_scans_and_scans_below_the_run(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    fleet = [healthy("well"), flapping("again", [OSError("down"), [{"ticker": "A"}]]), broken("bad")]
    with ScanRunner(fleet, policy=POLICY, listeners=(TraceRuns(provider),)) as runner:
        report = runner.run({})
    spans = exporter.get_finished_spans()
    assert sorted((span.name, parent_of(span, spans)) for span in spans) == [
        ("attempt again", "scan again"),
        ("attempt again", "scan again"),
        ("attempt bad", "scan bad"),
        ("attempt bad", "scan bad"),
        ("attempt well", "scan well"),
        ("run", ""),
        ("scan again", "run"),
        ("scan bad", "run"),
        ("scan well", "run"),
    ]
    assert {attribute(span, "run_id") for span in spans} == {report.run_id}
    assert len({span.context.trace_id for span in spans}) == 1
    assert all(span.start_time <= span.end_time for span in spans)
    (run,) = [span for span in spans if span.name == "run"]
    assert (attribute(run, "scans.completed"), attribute(run, "scans.error"), attribute(run, "complete")) == (
        2,
        1,
        False,
    )
    assert run.status.status_code is StatusCode.UNSET


def test_status_and_error_are_set(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    bad = broken("bad", ValueError("GET https://h/?token=hunter2"))
    with ScanRunner([bad], policy=POLICY, listeners=(TraceRuns(provider),)) as runner:
        runner.run({})
    spans = exporter.get_finished_spans()
    for span in spans:
        assert span.status.status_code is StatusCode.ERROR
        assert "hunter2" not in str(span.to_json())
    first, second, scan, run = spans
    assert [attribute(span, "attempt") for span in (first, second)] == [1, 2]
    assert attribute(scan, "status") == "error"
    assert {attribute(span, "blame") for span in (first, second, scan)} == {"scanner"}
    assert scan.status.description == "GET https://h/?token=REDACTED"
    (event,) = scan.events
    told = dict(event.attributes or {})
    stack = str(told.pop("exception.stacktrace"))
    assert stack.startswith("Traceback (most recent call last):")
    assert stack.endswith("in scan\n    raise failure\nValueError: GET https://h/?token=REDACTED")
    assert told == {"exception.type": "ValueError", "exception.message": "GET https://h/?token=REDACTED"}
    assert run.status.description == "no scanner answered"


def test_the_caller_s_span_is_the_run_s_parent(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    tracer = provider.get_tracer("host")
    with ScanRunner([healthy("one")], policy=POLICY, listeners=(TraceRuns(provider),)) as runner:
        with tracer.start_as_current_span("host"):
            runner.run({})
            assert trace.get_current_span().get_span_context().is_valid  # and it still is the current one
        runner.run({})
    spans = exporter.get_finished_spans()
    assert [parent_of(span, spans) for span in spans if span.name == "run"] == ["host", ""]


def test_a_scanner_s_own_spans_hang_below_its_attempt(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    tracer, threads = provider.get_tracer("library"), set()

    def ask(_state: dict[str, Any]) -> list[Any]:
        threads.add(threading.get_ident())
        with tracer.start_as_current_span(f"request {len(exporter.get_finished_spans())}"):
            return []

    fleet = [scanner(name=f"s{number}", pipeline="p")(ask) for number in range(20)]
    with ScanRunner(fleet, policy=POLICY, listeners=(TraceRuns(provider),)) as runner:
        runner.run({})
    spans = exporter.get_finished_spans()
    attempts = {span.context.span_id: span.name for span in spans if span.name.startswith("attempt")}
    requests = [span for span in spans if span.name.startswith("request")]
    assert len(requests) == 20
    assert sorted(attempts[span.parent.span_id] for span in requests if span.parent) == sorted(attempts.values())
    assert threading.get_ident() not in threads


def test_what_is_answered_without_work_has_a_scan_and_no_attempt(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    policy = Policy(cache=Cache(ttl=300), retry=None, breaker=Breaker(failures=1))
    listener = TraceRuns(provider)
    with ScanRunner([healthy("kept"), broken("bad"), healthy("out")], policy=policy, listeners=(listener,)) as runner:
        runner.disable("out")
        runner.run({})
        exporter.clear()
        runner.run({})
    spans = exporter.get_finished_spans()
    assert {
        span.name: (attribute(span, "status"), span.status.status_code) for span in spans if span.name != "run"
    } == {
        "scan kept": ("cached", StatusCode.UNSET),
        "scan bad": ("rejected", StatusCode.ERROR),
        "scan out": ("disabled", StatusCode.UNSET),
    }
    assert (listener._runs, listener._scans, listener._attempts) == ({}, {}, {})


def test_a_hanging_attempt_ends_with_its_timeout(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    release = threading.Event()
    listener = TraceRuns(provider)
    slow = hanging("slow", release, timeout=Timeout(total=0.05))
    with ScanRunner([slow], policy=POLICY, listeners=(listener,)) as runner:
        runner.run({})
        spans = exporter.get_finished_spans()
        release.set()
    assert [(span.name, span.status.status_code) for span in spans] == [
        ("attempt slow", StatusCode.ERROR),
        ("scan slow", StatusCode.ERROR),
        ("run", StatusCode.ERROR),
    ]
    assert attribute(spans[0], "outcome") == "timeout"
    assert (listener._runs, listener._scans, listener._attempts) == ({}, {}, {})


def test_an_execution_that_outlives_its_run_keeps_its_place(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    clock, calls = FakeClock(), iter([OSError("down"), None])
    begun, release, over = threading.Event(), threading.Event(), threading.Event()

    @scanner(pipeline="p", cache=Cache(ttl=300))
    def slow(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        failure = next(calls)
        if failure is not None:
            raise failure
        return []

    class Watch:
        events = (tracing.ExecutionEnded,)

        def __call__(self, _event: object) -> None:
            over.set()

    listener = TraceRuns(provider)
    policy = Policy(retry=Retry(attempts=2, base=0, cap=0), breaker=None)
    with (
        ScanRunner([slow], policy=policy, listeners=(listener, Watch()), clock=clock) as runner,
        ThreadPoolExecutor() as pool,
    ):
        run = pool.submit(runner.run, {}, deadline=5)
        assert begun.wait(WAIT_TIMEOUT)
        clock.advance(5)
        run.result(WAIT_TIMEOUT)
        release.set()
        assert over.wait(WAIT_TIMEOUT)
    spans = exporter.get_finished_spans()
    assert sorted((span.name, parent_of(span, spans)) for span in spans) == [
        ("attempt slow", "scan slow"),
        ("attempt slow", "scan slow"),
        ("run", ""),
        ("scan slow", "run"),
    ]
    assert (listener._scans, listener._attempts) == ({}, {})


async def _in_a_loop(runner: ScanRunner, tracer: trace.Tracer) -> None:
    with tracer.start_as_current_span("host"):
        await runner.arun({})


def test_asyncio_code_is_a_caller_too(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    import asyncio

    with ScanRunner([healthy("one")], policy=POLICY, listeners=(TraceRuns(provider),)) as runner:
        asyncio.run(_in_a_loop(runner, provider.get_tracer("host")))
    spans = exporter.get_finished_spans()
    assert [parent_of(span, spans) for span in spans if span.name == "run"] == ["host"]


def test_without_the_extra_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'resilient-scan\[otel\]'"):
        TraceRuns()


def test_without_the_extra_it_can_be_imported() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import resilient_scan.tracing"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("sampled", [True, False])
def test_an_exemplar_of_the_durations_names_the_trace(exporter: InMemorySpanExporter, sampled: bool) -> None:
    """Where there is one to be found; of an execution that timed out, too, which ends on another thread."""
    provider = TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    registry, release = CollectorRegistry(), threading.Event()
    fleet = [healthy("well"), hanging("hung", release, timeout=Timeout(total=0.05))]
    listeners = (PrometheusMetrics(registry), TraceRuns(provider))
    with ScanRunner(fleet, policy=POLICY, listeners=listeners) as runner:
        report = runner.run({})
        exemplars = {
            sample.labels["scanner"]: sample.exemplar.labels
            for family in registry.collect()
            for sample in family.samples
            if sample.exemplar
        }
        release.set()
    expected = {"run_id": report.run_id}
    if sampled:
        (run,) = (span for span in exporter.get_finished_spans() if span.name == "run")
        assert run.context is not None
        expected["trace_id"] = format(run.context.trace_id, "032x")
    assert exemplars == {"well": expected, "hung": expected}
    assert traces == {}


def test_the_scans_of_a_map_are_told_apart(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    tracing_ = TraceRuns(provider)
    with ScanRunner([healthy("well")], policy=POLICY, listeners=(tracing_,)) as runner:
        list(runner.map("well", ({"n": number} for number in range(40))))
    spans = exporter.get_finished_spans()
    scans = {span.context.span_id: attribute(span, "run_id") for span in spans if span.name == "scan well"}
    attempts = [span for span in spans if span.name == "attempt well"]
    assert len(set(scans.values())) == len(attempts) == 40
    assert all(span.parent and scans[span.parent.span_id] == attribute(span, "run_id") for span in attempts)
    assert not tracing_._scans
