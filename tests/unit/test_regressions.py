"""Regressions: one test for each bug of the small modules that was found and mended."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import math
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Cache,
    Candidate,
    CircuitOpen,
    ConfigError,
    Limit,
    LogEvents,
    PrometheusMetrics,
    Retry,
    RetryAfter,
    RunReport,
    ScanResult,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.context import fan_out
from resilient_scan.events import Bus, ExecutionEnded, ScanEnded, ScannerStateChanged
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.retry import retrying
from resilient_scan.options import parse_rate
from resilient_scan.quarantine import Gate
from resilient_scan.results import ErrorInfo, plain
from resilient_scan.snapshot import Snapshot
from resilient_scan.testing import FakeClock, Recorder, healthy


def result(name: str, status: Status, error: ErrorInfo | None = None) -> ScanResult:
    return ScanResult(name, "news", status, [], error, 1, 0.5, 0.0, None, False, 0, [], 0.0)


# answers that are not true


def test_candidates_of_the_cache_are_isolated_even_if_they_had_no_extras() -> None:
    """`plain` candidates are shared, and their empty `extras` is a dict like any other."""

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        return [Candidate("AAPL", "one", "rose")]

    with ScanRunner([one], listeners=()) as runner:
        runner.run({}).candidates[0].extras["spoilt"] = True  # the leader's own
        cached = runner.run({}).candidates[0]
        assert cached.extras == {}
        cached.extras["spoilt"] = True  # a cached one
        assert runner.run({}).candidates[0].extras == {}


@dataclasses.dataclass
class Universe:
    name: str

    def __post_init__(self) -> None:
        self.symbols: list[str] = []


def test_an_object_with_more_than_its_fields_has_no_stable_form() -> None:
    """attributes that are no fields are not in the key: the cache answers for another."""
    first, second = Universe("sp500"), Universe("sp500")
    second.symbols.append("AAPL")
    keys = [Snapshot({"universe": one}).keys[None] for one in (first, second)]
    assert keys[0] is None or keys[0] != keys[1]


@pytest.mark.parametrize(("answered", "asked", "fraction"), [(7, 25, 0.28), (14, 25, 0.56), (7, 100, 0.07)])
def test_exactly_enough_is_enough(answered: int, asked: int, fraction: float) -> None:
    """0.28 * 25 is 7.000000000000001; "7 of 25 answered, 28% are required"."""
    statuses = [Status.COMPLETED] * answered + [Status.ERROR] * (asked - answered)
    report = RunReport("id", {f"s{n}": result(f"s{n}", status) for n, status in enumerate(statuses)}, 0.0, 1.0)
    assert report.require(fraction) is report


def test_one_listener_for_two_runners_counts_each_in_its_pipeline() -> None:
    """children are found by the scanner's name alone, the runner built last has them."""
    registry = CollectorRegistry()
    listener = PrometheusMetrics(registry)
    with (
        ScanRunner([healthy("news", pipeline="edge")], listeners=(listener,)) as first,
        ScanRunner([healthy("news", pipeline="events")], listeners=(listener,)),
    ):
        first.run({})
    labels = {"scanner": "news", "status": "completed"}
    counted = {
        pipeline: registry.get_sample_value("resilient_scan_scans_total", {**labels, "pipeline": pipeline})
        for pipeline in ("edge", "events")
    }
    assert counted == {"edge": 1, "events": 0}


# runs that do not end


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit()])
def test_a_listener_that_exits_on_a_worker_costs_a_scan_nothing(error: BaseException) -> None:
    """the event is sent before the scans get their result; a BaseException of a listener
    (`sys.exit()`, `pytest.fail()`) costs a healthy scan its answer: it ends `stale` or `error`, without candidates."""

    def leave(event: Any) -> None:
        if isinstance(event, ExecutionEnded):
            raise error

    runner = ScanRunner([healthy("one")], listeners=(leave,))
    reports: list[Any] = []
    running = threading.Thread(target=lambda: reports.append(runner.run({})), daemon=True)
    running.start()
    running.join(2)
    assert not running.is_alive()
    assert reports[0].results["one"].status is Status.COMPLETED
    runner.close()


def test_no_thread_of_a_fan_out_outlives_it_where_the_machine_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """the second `start` fails, the first helper goes on, and nobody waits for it."""
    start, started = threading.Thread.start, []

    def few(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    go, busy = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if threading.current_thread() in started:
            busy.set()
            go.wait(5)
        return item

    monkeypatch.setattr(threading.Thread, "start", few)
    try:
        outcome: Any = None
        try:
            outcome = fan_out(lambda item: [work(item), go.set()][0], range(9), 3, lambda: False)
        except RuntimeError:
            busy.wait(1)
        assert not started[0].is_alive()
        assert outcome == list(range(9))  # with the threads that there are
    finally:
        go.set()


# reports that do not come out


class Number(float):
    """As numpy.float64 is."""


class Whole(int):
    """As an IntEnum or numpy's own are not, but others'."""


class Odd(enum.Enum):
    NOT_A_NUMBER = math.nan
    ENDLESS = math.inf


@pytest.mark.parametrize("value", [Number(1.5), [Number(1.5)], {"price": Number(1.5)}, Whole(3)])
def test_a_number_of_a_subclass_stays_a_number(value: Any) -> None:
    """numpy.float64 is a float, and comes out as the text "1.5"."""
    assert json.loads(json.dumps(plain(value))) == value


@pytest.mark.parametrize("value", list(Odd))
def test_no_number_of_an_enum_is_no_json_either(value: Odd) -> None:
    """what `to_builtins` makes of an enum is not looked at again."""
    json.dumps(plain(value), allow_nan=False)


class Mute:
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Model:
    def model_dump(self, *, mode: str) -> Any:
        raise ValueError("no data")


def circle() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    "make", [Mute, lambda: [Mute()], lambda: {Mute(): 1}, Model, circle, lambda: 10**5000], ids=list("abcdef")
)
def test_a_report_comes_out_whatever_a_scanner_found(make: Callable[[], Any]) -> None:
    """`str` and `model_dump` are foreign code, and a list may hold itself."""
    found = result("one", Status.COMPLETED)
    found.candidates.append(make())
    json.dumps(found.to_dict(), allow_nan=False)


# sentences


HUGE = 10**400


@pytest.mark.parametrize(
    "build",
    [
        lambda: RetryAfter(HUGE),
        lambda: Timeout(total=HUGE),
        lambda: Cache(ttl=HUGE),
        lambda: ScanRunner([], timeout_seconds=HUGE),  # type: ignore[arg-type]
        lambda: ScanRunner([], listeners=()).run({}, deadline=HUGE),
        lambda: Gate(("one",), FakeClock(), Bus([])).disable("one", "x", HUGE),
        lambda: RunReport("id", {}, 0.0, 1.0).require(HUGE),
    ],
)
def test_a_huge_number_is_a_wrong_value_like_any_other(build: Callable[[], object]) -> None:
    """math.isfinite raises OverflowError."""
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize("text", ["5/00min", "5/00s", "60/ss", "60/ds", "60/hs", "9" * 5000 + "/s"])
def test_these_are_no_rates(text: str) -> None:
    """a window of no time at all; units with one s too many; more digits than `int` takes."""
    with pytest.raises(ConfigError):
        parse_rate(text)


@pytest.mark.parametrize("rate", [5, 60.0, ["60/min"], True])
def test_a_wrong_rate_is_told_what_a_rate_is(rate: Any) -> None:
    """ "limit.rate must be a tuple of names" is no help to who wrote 60."""
    with pytest.raises(ConfigError, match='such as "60/min"'):
        Limit("sec", rate=rate)


def test_no_rates_at_all_are_not_a_rate() -> None:
    """an empty tuple is neither bare (so two scanners quarrel about it) nor a number."""
    try:
        assert Limit("sec", rate=()).is_bare
    except ConfigError:
        return


@pytest.mark.parametrize(
    "options",
    [{"listeners": LogEvents()}, {"listeners": (5,)}, {"settings": ["one"]}, {"policies": ["one"]}, {"settings": 5}],
)
def test_a_wrong_argument_is_a_configuration_error(options: dict[str, Any]) -> None:
    """a listener that cannot be called is taken; no iterable or mapping is a TypeError or AttributeError."""
    with pytest.raises(ConfigError):
        ScanRunner([healthy("one")], **options)


@pytest.mark.parametrize("config", [None, 5, [("scanner_execution", {})]])
def test_a_configuration_is_a_mapping(config: Any) -> None:
    with pytest.raises(ConfigError):
        ScanRunner.from_config([healthy("one")], config)


def test_a_message_of_several_lines_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """ "one line per thing that happened"; a source's text can forge the lines of other scanners."""
    failed = result("one", Status.ERROR, ErrorInfo("OSError", "HTTP 500\n✓ two: 10 candidates"))
    with caplog.at_level(logging.INFO, "resilient_scan"):
        LogEvents()(ScanEnded("run", failed, "", ""))
    assert "\n" not in caplog.records[0].getMessage()


def test_coming_back_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """answers at INFO, trouble at WARNING."""
    with caplog.at_level(logging.INFO, "resilient_scan"):
        LogEvents()(ScannerStateChanged("one", "disabled", "enabled", "hand", "fixed", None, 0.0))
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize("then", ["enable", "disable"])
def test_an_order_that_is_over_is_told_as_over_before_the_next(then: str) -> None:
    """an expired order that no run has looked at is taken for one that holds. `enable`: "nothing happens
    if it is in service", but it tells of a change by hand; `disable`: the way back into service is never told."""
    clock, recorder = FakeClock(), Recorder()
    gate = Gate(("one",), clock, Bus([recorder]))
    gate.disable("one", "first", 60)
    clock.advance(100)
    if then == "enable":
        gate.enable("one", "too late")
    else:
        gate.disable("one", "second", 60)
    told = [(event.old, event.new, event.source) for event in recorder.events_seen]
    assert told[1] == ("disabled", "enabled", "expiry")
    assert told[2:] == ([] if then == "enable" else [("enabled", "disabled", "hand")])


def test_a_refusal_without_an_attempt_is_no_step() -> None:
    """the flight recorder shows an attempt number 0 that never was."""

    def refuse(_context: AttemptContext) -> list[Any]:
        raise CircuitOpen("open")

    context = AttemptContext("one")
    with pytest.raises(CircuitOpen):
        retrying(Retry(), refuse, random=Random(0), may_retry=lambda: True)(context)
    assert context.steps == ()


def test_a_fake_clock_that_moves_itself_does_not_move_for_who_is_woken_already() -> None:
    """the real one returns at once."""
    clock = FakeClock(auto=True)
    wake = clock.event()
    wake.set()
    clock.sleep(3600, wake)
    assert clock.monotonic() == 0
