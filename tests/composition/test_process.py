"""Scanners in child processes: they mean what they mean in a thread, and what they do there stays there."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilient_scan import (
    Breaker,
    ConfigError,
    PluginError,
    Policy,
    Retry,
    RunReport,
    ScanContext,
    ScanResult,
    ScanRunner,
    Status,
    Timeout,
    load_settings,
    scanner,
)
from resilient_scan.clock import SystemClock
from resilient_scan.engines.process import engine
from resilient_scan.errors import WorkerLost
from resilient_scan.events import Event, LateCompletion, ScanEnded
from resilient_scan.http import Recorder, Replay
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.scanning import size_of, spec_of
from resilient_scan.testing import FakeClock
from resilient_scan.tracing import TraceRuns
from tests.support import isolated
from tests.support.http import answering
from tests.support.results import only
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="children are made by a fork server here"),
]
LAYERS: dict[str, Any] = {"cache": None, "retry": None, "breaker": None, "timeout": Timeout(total=20)}


@pytest.fixture(scope="module", autouse=True)
def all_ends() -> Iterator[None]:
    """Wait until no child is kept any more: the tests of another file may count processes and descriptors."""
    yield
    eventually(lambda: not any(thread.name == "resilient-scan-children" for thread in threading.enumerate()))
    gc.collect()


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def runner(events: list[Event]) -> Iterator[ScanRunner]:
    """Return a runner of all scanners that no thread could run."""
    mine = [each for each in vars(isolated).values() if getattr(each, "isolation", None) == "process"]
    scanners = [*mine, isolated.context_variable]
    with ScanRunner(
        scanners, policy=Policy(**LAYERS), listeners=[events.append], isolation="process", max_workers=2
    ) as made:
        made.run(only=["quick"])  # what is measured below is not the start of a child
        yield made


def of(runner: ScanRunner, name: str, state: dict[str, Any] | None = None) -> ScanResult:
    return runner.run(state, only=[name]).results[name]


# the same as in a thread


@pytest.fixture(scope="module")
def reports() -> dict[str, list[RunReport]]:
    """Return the reports of two runs of the same scanners, in threads and in processes."""
    isolated.VARIABLE.set("SET")
    found = {}
    for isolation in ("thread", "process"):
        settings = {"settings": {"ticker": "SETTING"}}
        policy = Policy(**{**LAYERS, "breaker": Breaker()})
        options: dict[str, Any] = {"policy": policy, "settings": settings, "listeners": (), "max_workers": 4}
        with ScanRunner(isolated.SAME, isolation=isolation, **options) as runner:
            found[isolation] = [runner.run({"ticker": "BRK.B", "tool_logs": [{"tool": "old"}]}) for _ in range(2)]
    return found


def facts(result: ScanResult) -> dict[str, Any]:
    error = result.error
    return {
        "status": result.status,
        "candidates": result.candidates,
        "error": None if error is None else (error.type, error.message, error.where, error.blame),
        "traceback": None if error is None else error.traceback.splitlines()[-1:],
        "attempts": result.attempts,
        "partial": result.partial,
        "dropped": result.dropped,
        "logs": [{key: value for key, value in entry.items() if key != "at"} for entry in result.tool_logs],
        "suspicious": result.suspicious,
    }


@pytest.mark.parametrize("name", [getattr(each, "name", "") for each in isolated.SAME])
def test_a_scan_comes_to_the_same_in_a_thread_and_in_a_process(name: str, reports: dict[str, list[RunReport]]) -> None:
    for thread, process in zip(*reports.values(), strict=True):
        assert facts(process.results[name]) == facts(thread.results[name])


def test_the_comparison_compares_something(reports: dict[str, list[RunReport]]) -> None:
    statuses = {result.status for result in reports["process"][0].results.values()}
    assert statuses == {Status.COMPLETED, Status.ERROR}
    seen = [report.results["remembers"].candidates[0].ticker for report in reports["process"]]
    assert seen == ["SEEN0", "SEEN1"]
    assert reports["process"][0].results["context_variable"].candidates[0].ticker == "SET"


def test_a_cold_start_is_not_slow() -> None:
    breaker = Breaker(slow_after=0.2, slow_rate=0.5, minimum=1, window=4)
    with ScanRunner([isolated.quick], policy=Policy(**{**LAYERS, "breaker": breaker}), listeners=()) as runner:
        assert runner.run().complete  # although its first process takes longer than that
        assert runner.breaker("quick") == "closed"
    slow = isolated.isolated(name="slow")(_half_a_second)
    with ScanRunner([slow], policy=Policy(**{**LAYERS, "breaker": breaker}), listeners=()) as runner:
        runner.run()
        assert runner.breaker("slow") == "open"


def _half_a_second(_state: dict[str, Any]) -> list[Any]:
    time.sleep(0.5)
    return []


def test_a_process_that_has_used_up_its_own_is_to_blame_itself() -> None:
    """Two of them at a time would be this machine's fault in threads: they share its memory and descriptors."""
    options: dict[str, Any] = {"policy": Policy(**{**LAYERS, "breaker": Breaker(failures=2)}), "listeners": ()}
    scanners = [isolated.out_of_memory, isolated.out_of_descriptors]
    with ScanRunner(scanners, isolation="process", **options) as runner:
        for _ in range(2):
            results = runner.run().results
            assert {each.error.kind: each.error.blame for each in results.values() if each.error} == {
                "MemoryError": "scanner",
                "OSError": "scanner",
            }
        assert [runner.breaker(each.name) for each in scanners] == ["open", "open"]


def test_the_network_is_shared_by_all_processes() -> None:
    with ScanRunner([isolated.without_network], isolation="process", policy=Policy(**LAYERS), listeners=()) as runner:
        (result,) = runner.run().results.values()
    assert result.error is not None
    assert result.error.blame == "local"


def test_a_dead_host_is_the_providers_business_in_both() -> None:
    scanners = [isolated.fetches, isolated.fetches_too]
    options: dict[str, Any] = {
        "policy": Policy(**{**LAYERS, "breaker": Breaker(failures=2)}),
        "settings": {each.name: {"url": "http://127.0.0.1:1"} for each in scanners},
        "listeners": (),
        "concurrent": False,
        "max_workers": 1,
    }
    seen = {}
    for isolation in ("thread", "process"):
        with ScanRunner(scanners, isolation=isolation, **options) as runner:
            results = [result for _ in range(3) for result in runner.run().results.values()]
            found = [
                (each.status, each.attempts, each.error and (each.error.type, each.error.where)) for each in results
            ]
            breakers = [runner.breaker(each.name) for each in scanners]
            seen[isolation] = found, breakers, [(each.provider, each.state) for each in runner.providers()]
    assert seen["process"] == seen["thread"]
    assert seen["process"][2] == [("127.0.0.1:1", "open")]


def test_recordings_are_kept_and_replayed_in_the_driver(tmp_path: Path) -> None:
    options: dict[str, Any] = {"isolation": "process", "policy": Policy(**LAYERS), "listeners": (), "max_workers": 1}
    with answering(body=b'{"id": "s3cr3t-of-ours"}') as url:
        settings = {"fetches": {"url": url}}
        with ScanRunner([isolated.fetches], settings=settings, traffic=Recorder(tmp_path / "r"), **options) as runner:
            recorded = only(runner).candidates
    assert "s3cr3t" not in "".join(path.read_text() for path in (tmp_path / "r").rglob("*") if path.is_file())
    scanners = [isolated.fetches, isolated.leaves_the_machine]
    with ScanRunner(scanners, settings=settings, traffic=Replay(tmp_path / "r"), **options) as runner:
        replayed, offline = runner.run().results.values()
    assert recorded[0].extras["body"] == '{"id": "s3cr3t-of-ours"}'
    assert replayed.candidates[0].extras["body"] == '{"id": "REDACTED"}'
    at = json.loads((tmp_path / "r" / "manifest.json").read_text())[0]["recorded_at"]
    assert replayed.candidates[0].extras["now"] == at.replace("Z", "+00:00")
    assert offline.error is not None
    assert offline.error.kind == "NotRecorded"


def test_a_context_variable_that_cannot_be_sent_is_named_once(
    runner: ScanRunner, caplog: pytest.LogCaptureFixture
) -> None:
    token = isolated.VARIABLE.set(cast("str", threading.Lock()))
    try:
        found = [of(runner, "context_variable").candidates[0].ticker for _ in range(2)]
    finally:
        isolated.VARIABLE.reset(token)
    assert found == ["UNSET"] * 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("context_variable: the context variable VARIABLE does not reach its process: cannot pickle")


def test_a_trace_reaches_the_process() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    options: dict[str, Any] = {"policy": Policy(**LAYERS), "listeners": [TraceRuns(provider)], "max_workers": 1}
    with ScanRunner([isolated.traced], isolation="process", **options) as runner:
        (found,) = only(runner).candidates
    provider.shutdown()
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()} == {found.ticker}


# what stays in its process


def test_a_regular_expression_that_holds_the_lock_ends_at_its_limit(runner: ScanRunner, events: list[Event]) -> None:
    while of(runner, "quick").duration > 0.1:  # until a child is warm
        pass
    result = of(runner, "stuck")
    assert result.status is Status.TIMEOUT
    assert 0.3 <= result.duration < 5, "the expression alone takes hours"
    assert [found.ticker for found in result.candidates] == ["BEFORE"]
    assert [entry["tool"] for entry in result.tool_logs] == ["before"]
    eventually(lambda: late_of("stuck", events))
    assert late_of("stuck", events) == [("process", False)]
    assert runner.abandoned() == []


def late_of(name: str, events: list[Event]) -> list[tuple[str, bool]]:
    return [(e.method, e.abandoned) for e in events if isinstance(e, LateCompletion) and e.scanner == name]


def test_others_are_not_late(runner: ScanRunner) -> None:
    lateness: list[float] = []

    @scanner(pipeline="test")
    def ticks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        for _ in range(25):
            due = time.monotonic() + 0.01
            context.sleep(0.01)
            lateness.append(time.monotonic() - due)
        return []

    with ScanRunner([isolated.stuck, ticks], policy=Policy(**LAYERS), listeners=(), max_workers=2) as both:
        report = both.run()
    assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]
    assert statistics.median(lateness) < 0.25, "held up by the lock, they would be as late as the other's limit"


def test_a_child_that_ignores_sigterm_is_gone_and_so_are_its_own_processes(runner: ScanRunner) -> None:
    (found,) = of(runner, "deaf").candidates
    eventually(lambda: not any(Path(f"/proc/{found.extras[which]}").exists() for which in ("pid", "helper")))


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("crashes", "ProcessEnded", "its process ended with SIGSEGV"),
        ("exits", "ProcessEnded", "its process ended with exit code 7"),
        ("greedy", "MemoryError", "MemoryError"),
    ],
)
def test_an_end_of_its_process_is_the_scanners_error(name: str, kind: str, says: str, runner: ScanRunner) -> None:
    result = of(runner, name)
    assert result.status is Status.ERROR
    assert result.error is not None
    assert (result.error.kind, result.error.message) == (kind, says)
    if name == "exits":
        assert [found.ticker for found in result.candidates] == ["BEFORE"]
        assert [entry["tool"] for entry in result.tool_logs] == ["before"]


def test_it_is_blamed_on_the_scanner() -> None:
    policy = Policy(**{**LAYERS, "breaker": Breaker(failures=2)})
    with ScanRunner([isolated.exits], policy=policy, listeners=(), max_workers=1) as runner:
        statuses = [only(runner).status for _ in range(3)]
    assert statuses == [Status.ERROR, Status.ERROR, Status.REJECTED]


def test_one_that_looks_at_its_deadline_ends_by_itself_or_is_killed(runner: ScanRunner) -> None:
    while of(runner, "quick").duration > 0.1:  # until a child is warm
        pass
    result = of(runner, "dawdles")
    assert result.status is Status.TIMEOUT
    assert result.duration < 5


def test_a_candidate_that_cannot_be_sent_is_dropped(runner: ScanRunner, events: list[Event]) -> None:
    result = of(runner, "unsendable")
    assert ([found.ticker for found in result.candidates], result.dropped) == (["A"], 1)
    (reason,) = {e.invalid for e in events if isinstance(e, ScanEnded) and e.result.scanner == "unsendable"}
    assert reason == "a candidate cannot be sent from its process: cannot pickle '_thread.lock' object"


def test_the_childs_main_module_is_not_the_drivers(runner: ScanRunner) -> None:
    (found,) = of(runner, "counts_imports").candidates
    assert found.extras["main"] != Path(getattr(sys.modules["__main__"], "__file__", None) or "").name


def test_a_state_that_cannot_be_sent_is_an_error_that_names_the_value(runner: ScanRunner) -> None:
    class Holder:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __deepcopy__(self, _memo: Any) -> Holder:
            return self

    result = of(runner, "quick", {"client": Holder()})
    assert result.status is Status.ERROR
    assert result.error is not None
    assert result.error.message == (
        "the state's 'client' cannot be sent to a child process: cannot pickle '_thread.lock' object; leave it out, or "
        'use isolation="thread" for quick'
    )


def test_the_state_is_encoded_once_for_all_scans_of_a_run(runner: ScanRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Any] = []
    original = engine.pack
    monkeypatch.setattr(engine, "pack", lambda value: packed.append(value) or original(value))
    runner.run({"ticker": "A"}, only=["quick", "unsendable"])
    assert packed == [{"ticker": "A"}]


def test_a_cancel_that_comes_after_the_end_leaves_the_child_alone() -> None:
    killed: list[bool] = []
    child: Any = SimpleNamespace(kill=lambda: killed.append(True))
    children: Any = SimpleNamespace(take=lambda *_: child, give_back=lambda _child: None, grace=0.0)
    for ends_first in (False, True):
        context = AttemptContext()
        with engine._BorrowedChild(children, context, SystemClock()) as borrowed:
            borrowed.wait_for(lambda _child, _context: math.inf)
            context.poke()
            assert killed == []
            if not ends_first:
                context.cancel()
                assert killed.pop()
        context.cancel()
        borrowed.set()
        assert killed == []


def test_the_time_runs_again_where_no_child_can_be_had() -> None:
    def refuse(*_: Any) -> Any:
        raise WorkerLost("no process can be started")

    alarms: list[float] = []
    children: Any = SimpleNamespace(take=refuse, grace=0.0)
    context = AttemptContext()
    context.alarm = alarms.append
    context.limit(time.monotonic() + 5)
    with pytest.raises(WorkerLost), engine._BorrowedChild(children, context, SystemClock()) as borrowed:
        borrowed.wait_for(lambda _child, _context: math.inf)
    assert alarms == [math.inf, context.deadline]
    assert CircuitBreaker("x", Breaker(), SystemClock(), Random(1)).verdict(WorkerLost("x"), context) is None


def test_the_attributes_of_an_object_count_like_arguments_of_the_decorator() -> None:
    class Own(isolated.Plain):
        isolation = "process"
        memory = "1GB"

    class Other(isolated.Plain):
        isolation = "serializable"  # of a database, say
        memory = "good"

    assert [(spec.isolation, spec.memory) for spec in map(spec_of, (Own, Other()))] == [
        ("process", 10**9),
        (None, None),
    ]
    with pytest.raises(ConfigError, match="scanner plain_class: memory must be"):
        spec_of(type("Wrong", (Own,), {"memory": "lots"}))


@pytest.mark.parametrize("options", [{"isolation": "fork"}, {"memory": "lots"}, {"memory": 0}, {"memory": True}])
def test_the_decorator_refuses_what_is_wrong(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"^@scanner: {name} must be "):
        scanner(pipeline="test", **options)


def test_children_end_with_their_runner() -> None:
    with ScanRunner([isolated.quick], policy=Policy(**LAYERS), listeners=()) as runner:
        pid = only(runner).candidates[0].extras["pid"]
        assert only(runner).candidates[0].extras["pid"] == pid
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_a_warm_scan_takes_little_longer_than_in_a_thread(runner: ScanRunner) -> None:
    def took() -> float:
        before = time.perf_counter()
        of(runner, "quick")
        return time.perf_counter() - before

    assert any(took() < 0.0012 for _ in range(1000))  # seconds; the least, because others are at work here too


def test_an_attempt_that_hangs_is_killed_and_the_next_is_made(runner: ScanRunner) -> None:
    result = of(runner, "stuck_at_first")
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)
    assert [found.ticker for found in result.candidates] == ["ATTEMPT2"]
    assert [entry["n"] for entry in result.tool_logs] == [1, 2]


def test_the_end_of_the_run_ends_the_process(runner: ScanRunner) -> None:
    (result,) = runner.run(only=["endless"], deadline=1.0).results.values()
    assert result.status is Status.TIMEOUT
    (found,) = result.candidates
    eventually(lambda: not Path(f"/proc/{found.extras['pid']}").exists())


def test_what_a_thread_says_after_its_scan_reaches_nobody() -> None:
    scanners = [isolated.leaves_a_thread, isolated.quick]
    with ScanRunner(scanners, policy=Policy(**LAYERS), listeners=(), max_workers=1) as runner:
        first = runner.run(only=["leaves_a_thread"])
        others = [runner.run(only=["quick"]) for _ in range(30)]
    assert {report.candidates[0].extras["pid"] for report in others} == {first.candidates[0].extras["pid"]}
    assert [report.tool_logs for report in (first, *others)] == [[]] * 31


def test_a_child_whose_threads_still_run_serves_no_other_scan(runner: ScanRunner) -> None:
    (found,) = of(runner, "leaves_a_call").candidates
    eventually(lambda: not Path(f"/proc/{found.extras['pid']}").exists())


def test_the_import_of_a_module_is_not_charged_to_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import time\nfrom resilient_scan import Timeout, scanner\ntime.sleep(0.5)\n"
        "@scanner(pipeline='test', isolation='process', timeout=Timeout(total=0.4))\n"
        "def slow(state):\n    return [{'ticker': 'A'}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    slow = importlib.import_module("slow_to_import").slow
    with ScanRunner([slow], policy=Policy(**LAYERS), listeners=(), max_workers=1) as runner:
        result = only(runner)
        expected = runner._fleet.stack("slow").expected
    assert (result.status, [found.ticker for found in result.candidates]) == (Status.COMPLETED, ["A"])
    assert expected < 0.4


def test_a_module_that_cannot_be_imported_in_a_child_is_the_scanners_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_once.py").write_text(
        "from pathlib import Path\nfrom resilient_scan import scanner\n"
        "if Path(__file__).with_suffix('.seen').exists():\n    raise RuntimeError('not again')\n"
        "@scanner(pipeline='test', isolation='process')\n"
        "def once(state):\n    return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    once = importlib.import_module("only_once").once
    (tmp_path / "only_once.seen").touch()
    with ScanRunner([once], policy=Policy(**LAYERS), listeners=(), max_workers=1) as runner:
        result = only(runner)
    assert result.error is not None
    assert (result.status, result.error.kind, result.error.message) == (Status.ERROR, "RuntimeError", "not again")


SCRIPT = """
import sys
from resilient_scan import Policy, ScanRunner, scanner
print("the main module runs")

class Found(dict):
    pass

@scanner(pipeline="test", isolation="process")
def of_main(state):
    print("printed in a child")
    return [Found(ticker="MAIN", was=type(state["own"]).__name__)]

class Own:
    pass

with ScanRunner([of_main], listeners=()) as runner:
    (result,) = runner.run({"own": Own()}).results.values()
    print(result.status, result.error, [(c.ticker, c.extras) for c in result.candidates])
"""


@pytest.mark.parametrize("way", ["a script", "a text"])
def test_a_main_module_is_not_run_again_and_its_scanners_work(way: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [tmp_path / "script.py"] if way == "a script" else ["-c", SCRIPT]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "the main module runs",
        "completed None [('MAIN', {'was': 'Own'})]",
    ]
    assert done.stderr == "printed in a child\n"


# how scanners travel


def test_one_that_is_not_importable_travels_by_value() -> None:
    suffix = "!"

    class LocalError(Exception):
        pass

    @scanner(pipeline="test", isolation="process", retry=Retry(attempts=2, base=0.0, on=(LocalError,)))
    def local(state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            raise LocalError("once")
        return [{"ticker": state["ticker"] + suffix}]

    policy = {**LAYERS}
    del policy["retry"]
    with ScanRunner([local], policy=Policy(**policy), listeners=(), max_workers=1) as runner:
        result = only(runner, {"ticker": "A"})
    assert [found.ticker for found in result.candidates] == ["A!"]
    assert result.attempts == 2


def test_one_that_cannot_travel_is_refused_with_the_reason() -> None:
    lock = threading.Lock()

    @scanner(pipeline="test", isolation="process")
    def closure(_state: dict[str, Any]) -> list[Any]:
        with lock:
            return []

    with pytest.raises(PluginError, match=r"^scanner closure: .* cannot pickle '_thread.lock' object; define it at"):
        ScanRunner([closure])


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)

    @scanner(pipeline="test", isolation="process")
    def closure(_state: dict[str, Any]) -> list[Any]:
        return []

    with pytest.raises(PluginError, match=r"needs the extra: pip install 'resilient-scan\[process\]'"):
        ScanRunner([closure])


@pytest.mark.parametrize("build", [load_settings(environ={}).runner, partial(ScanRunner.from_config, config={})])
def test_a_class_stays_one_on_its_way_through_settings(build: Any) -> None:
    options: dict[str, Any] = {"isolation": "process", "policy": Policy(**LAYERS), "listeners": (), "max_workers": 1}
    with build([isolated.Plain], **options) as runner:
        assert [found.ticker for found in only(runner, {"ticker": "A"}).candidates] == ["A"]


def test_settings_that_cannot_travel_are_refused() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise TypeError("not me")

        def __deepcopy__(self, _memo: Any) -> Odd:
            return self

    with pytest.raises(PluginError, match=r"^scanner quick: .* sends its settings to a child process, and not me$"):
        ScanRunner([isolated.quick], settings={"quick": {"odd": Odd()}})


def test_a_clock_of_a_test_is_refused_by_name() -> None:
    with pytest.raises(PluginError, match="a FakeClock stays in the driver"):
        ScanRunner([isolated.quick], clock=FakeClock())


def test_other_traffic_is_refused_by_name() -> None:
    class Own:
        def clock(self, _scanner: str, clock: Any) -> Any:
            return clock

    with pytest.raises(PluginError, match="a Own stays in the driver"):
        ScanRunner([isolated.quick], traffic=Own())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"isolation": "fork"}, 'isolation must be "thread" or "process", got \'fork\''),
        ({"isolation": {"nobody": "process"}}, "isolation: there is no scanner 'nobody'"),
        ({"isolation": {"plain": "fork"}}, 'isolation of plain must be "thread" or "process", got \'fork\''),
        ({"memory": {"plain": "64MB"}}, "scanner plain: memory can be limited in a process only"),
        ({"isolation": "process", "memory": {"plain": "64"}}, "memory of plain must be a number of bytes, or a text"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    plain = scanner(name="plain", pipeline="test")(lambda _state: [])
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        ScanRunner([plain], **options)


def test_what_the_runner_says_by_name_takes_precedence(runner: ScanRunner) -> None:
    with ScanRunner([isolated.quick], isolation={"quick": "thread"}, policy=Policy(**LAYERS), listeners=()) as inside:
        assert only(inside).candidates[0].extras["pid"] == os.getpid()


@pytest.mark.parametrize(("text", "size"), [("512MB", 512 * 10**6), ("2 GiB", 2**31), ("100b", 100), (4096, 4096)])
def test_a_size_is_a_number_or_a_text(text: Any, size: int) -> None:
    assert size_of("memory", text) == size
