"""The scanner's side: what may be a scanner, what it may return, what its context tells."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Candidate,
    LogEvents,
    PluginError,
    PrometheusMetrics,
    Retry,
    ScanCancelled,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, broken
from tests.support.fixtures import Bare, Fleet
from tests.support.results import only


class Plain:
    """A class as users have them."""

    name = "plain"
    pipeline = "test"

    def scan(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"ticker": state["ticker"], "source": "itself"}]

    def scan_with_validation(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        raise AssertionError("is not called")


class WithContext(Plain):
    name = "with_context"

    def scan(self, state: dict[str, Any], context: ScanContext) -> list[dict[str, Any]]:  # type: ignore[override]
        return [{"ticker": state["ticker"], "attempt": context.attempt}]


class OwnOption(Plain):
    name = "own_option"

    def scan(self, state: dict[str, Any], limit: int = 1) -> list[dict[str, Any]]:  # type: ignore[override]
        return [{"ticker": state["ticker"]}] * limit


@pytest.mark.parametrize("thing", [Plain, Plain(), WithContext, WithContext(), OwnOption])
def test_a_plain_class_or_object_works_unchanged(thing: Any, fleet: Fleet) -> None:
    result = only(fleet(thing), {"ticker": "BRK.B"})
    assert (result.status, [found.ticker for found in result.candidates]) == (Status.COMPLETED, ["BRK.B"])


@pytest.mark.parametrize("missing", ["name", "pipeline", "scan"], ids=["no name", "no pipeline", "no scan"])
def test_what_lacks_something_is_no_scanner(missing: str, fleet: Fleet) -> None:
    body = {"name": "one", "pipeline": "test", "scan": lambda self, state: []}
    del body[missing]
    with pytest.raises(PluginError, match=missing):
        fleet(type("Thing", (), body))


def test_a_decorated_function_stays_callable(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    def doubled(state: dict[str, Any]) -> list[Any]:
        """Double it."""
        return [state["n"] * 2]

    assert doubled({"n": 2}) == [4]
    assert (doubled.name, doubled.pipeline, doubled.__doc__) == ("doubled", "test", "Double it.")


async def _coroutine(_state: dict[str, Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [{"ticker": "AAPL"}]


async def _async_generator(_state: dict[str, Any]) -> AsyncIterator[Any]:
    yield {"ticker": "AAPL"}


def _generator(_state: dict[str, Any]) -> Iterator[Any]:
    yield {"ticker": "AAPL"}


@pytest.mark.parametrize(
    "function",
    [
        _coroutine,
        _async_generator,
        _generator,
        lambda _state: ({"ticker": "AAPL"},),
        lambda _state: map(dict, [{"ticker": "AAPL"}]),
        lambda _state: [Candidate("AAPL", "one", "")],
    ],
)
def test_any_iterable_is_an_answer(function: Any, fleet: Fleet) -> None:
    result = only(fleet(scanner(name="one", pipeline="test")(function)))
    assert (result.status, result.candidates) == (Status.COMPLETED, [Candidate("AAPL", "one", "")])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(None, "NoneType"), (5, "int"), ("AAPL", "str"), (b"AAPL", "bytes"), ({"ticker": "AAPL"}, "dict")],
)
def test_what_is_not_iterable_is_an_error_of_the_scanner(answer: Any, kind: str, fleet: Fleet) -> None:
    result = only(fleet(scanner(name="one", pipeline="test")(lambda _state: answer)))
    assert result.status is Status.ERROR
    assert result.error is not None
    assert (result.error.type, kind in result.error.message) == ("TypeError", True)


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("no"), MemoryError(), RecursionError("deep")],
)
def test_any_exception_is_an_error_of_the_scanner(error: BaseException, fleet: Fleet) -> None:
    report = fleet(broken("bad", error), scanner(name="well", pipeline="test")(lambda _state: [])).run({})
    assert [result.status for result in report.results.values()] == [Status.ERROR, Status.COMPLETED]
    failure = report.results["bad"].error
    assert failure is not None
    assert failure.type == type(error).__name__


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit


def test_an_exception_without_a_text_is_counted(bare: Bare) -> None:
    registry = CollectorRegistry()
    with ScanRunner([broken("one", Mute())], policy=bare(), listeners=(PrometheusMetrics(registry),)) as runner:
        result = runner.run({}).results["one"]
    labels = {"scanner": "one", "pipeline": "test", "outcome": "error"}
    assert result.error is not None
    assert result.error.message == "Mute"
    assert registry.get_sample_value("resilient_scan_executions_total", labels) == 1


def test_a_cancel_that_the_scanner_makes_up_is_an_error(fleet: Fleet) -> None:
    assert only(fleet(broken("bad", ScanCancelled("not so")))).status is Status.ERROR


def test_bad_candidates_are_dropped_counted_and_logged(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": "AAPL"}, {"symbol": "X"}, {"ticker": "A B"}, {"ticker": ""}, 5, None, {"ticker": "BRK.B"}]

    with caplog.at_level(logging.INFO, "resilient_scan"):
        result = only(fleet(source, listeners=(LogEvents(),)))
    assert (result.status, result.dropped) == (Status.COMPLETED, 5)
    assert [found.ticker for found in result.candidates] == ["AAPL", "BRK.B"]
    assert "⚠️ source: 5 invalid dropped, the first: candidate.ticker is missing" in caplog.messages


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("detached")


def test_a_candidate_without_a_repr_is_dropped_like_any_other(bare: Bare) -> None:
    odd = scanner(pipeline="p", name="odd")(lambda _state: [{"ticker": "A"}, Unspeakable(), {"ticker": "B"}])
    with ScanRunner([odd], policy=bare(), listeners=()) as runner:
        result = runner.run({}).results["odd"]
    assert (result.status, len(result.candidates), result.dropped) == (Status.COMPLETED, 2, 1)


def test_unknown_keys_go_to_extras(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": "AAPL", "priority": "high", "price": 1.5, "extras": {"volume": 7}}]

    (found,) = only(fleet(source)).candidates
    assert found == Candidate("AAPL", "source", "", "high", extras={"price": 1.5, "volume": 7})


@dataclass
class Move:
    ticker: str
    percent: float


class Quote(msgspec.Struct):
    ticker: str
    price: float


@pytest.mark.parametrize(("kind", "number"), [(Move, "percent"), (Quote, "price")])
def test_own_candidate_types(kind: type, number: str, fleet: Fleet) -> None:
    @scanner(pipeline="test", candidate=kind)
    def source(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": "A", number: 1.5}, kind("B", 2.5), {"ticker": "C", number: "much"}, {"ticker": "D"}]

    result = only(fleet(source))
    assert result.candidates == [kind("A", 1.5), kind("B", 2.5)]
    assert result.dropped == 2


def test_a_pydantic_model_where_the_user_brings_it(fleet: Fleet) -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", ticker=(str, ...), price=(float, ...))

    @scanner(pipeline="test", candidate=model)
    def source(_state: dict[str, Any]) -> list[Any]:
        return [{"ticker": "A", "price": 1.5}, {"ticker": "B"}]

    result = only(fleet(source))
    assert (result.candidates, result.dropped) == ([model(ticker="A", price=1.5)], 1)


def test_a_candidate_type_that_is_no_class_is_refused() -> None:
    odd = scanner(pipeline="p", name="odd", candidate=dict.fromkeys)(lambda _state: [])  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="candidate must be a class"):
        ScanRunner([odd])


@pytest.mark.parametrize("end", ["a timeout", "an error"])
def test_what_was_yielded_before_the_end_is_kept(end: str, fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> Iterator[Any]:
        yield {"ticker": "AAPL"}
        yield {"ticker": ""}
        yield {"ticker": "MSFT"}
        if end == "an error":
            raise OSError("down")
        release.wait()

    result = only(fleet(source, policy=bare(timeout=Timeout(total=0.1))))
    assert result.status is (Status.ERROR if end == "an error" else Status.TIMEOUT)
    assert [found.ticker for found in result.candidates] == ["AAPL", "MSFT"]
    assert (result.partial, result.dropped) == (True, 1)


@pytest.mark.parametrize("end", ["a timeout", "an error"])
def test_what_an_async_generator_yielded_before_the_end_is_kept(end: str, fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    async def source(_state: dict[str, Any]) -> AsyncIterator[Any]:
        yield {"ticker": "AAPL"}
        yield {"ticker": "MSFT"}
        if end == "an error":
            raise OSError("down")
        await asyncio.sleep(60)

    result = only(fleet(source, policy=bare(timeout=Timeout(total=0.1))))
    assert result.status is (Status.ERROR if end == "an error" else Status.TIMEOUT)
    assert (result.partial, [found.ticker for found in result.candidates]) == (True, ["AAPL", "MSFT"])


def test_partial_candidates_are_of_the_last_attempt(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
        yield {"ticker": f"T{context.attempt}"}
        raise OSError("down")

    result = only(fleet(source, policy=bare(retry=Retry(attempts=3, base=0, cap=0))))
    assert [found.ticker for found in result.candidates] == ["T3"]


def test_an_endless_generator_ends_with_its_time(fleet: Fleet, bare: Bare) -> None:
    stopped = threading.Event()

    @scanner(pipeline="test")
    def endless(_state: dict[str, Any]) -> Iterator[Any]:
        try:
            while True:
                yield {"ticker": "AAPL"}
        finally:
            stopped.set()

    result = only(fleet(endless, policy=bare(timeout=Timeout(total=0.05))))
    assert (result.status, result.partial) == (Status.TIMEOUT, True)
    assert stopped.wait(5)


def test_what_the_context_tells(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(start=1_359_050_400.0)
    seen: dict[str, Any] = {}

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        seen["start"] = (context.remaining(), context.cancelled, context.attempt, context.scanner)
        seen["now"] = context.now
        seen["settings"] = dict(context.settings)
        context.check()
        clock.advance(7)
        seen["later"] = (context.remaining(), context.now)
        clock.advance(3)
        seen["end"] = (context.remaining(), context.cancelled)
        context.check()
        return []

    runner = fleet(
        source, policy=bare(timeout=Timeout(total=10)), clock=clock, settings={"source": {"lookback_days": 14}}
    )
    assert only(runner).status is Status.TIMEOUT
    began = datetime(2013, 1, 24, 18, 0, tzinfo=UTC)
    assert seen == {
        "start": (10.0, False, 1, "source"),
        "now": began,
        "settings": {"lookback_days": 14},
        "later": (3.0, began.replace(second=7)),
        "end": (0.0, True),
    }


def test_a_sleep_lasts_and_wakes_at_the_deadline(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    instants: list[float] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(4)
        instants.append(clock.monotonic())
        with pytest.raises(ScanCancelled):
            context.sleep(60)
        instants.append(clock.monotonic())
        raise ScanCancelled

    assert only(fleet(source, policy=bare(timeout=Timeout(total=10)), clock=clock)).status is Status.TIMEOUT
    assert instants == [4, 10]


def test_a_shared_value_is_loaded_once_for_all(fleet: Fleet) -> None:
    """Several scanners that download the same price history at once are a defect of the plain loop."""
    loads: list[int] = []
    together = threading.Barrier(6, timeout=5)

    def load() -> list[int]:
        loads.append(1)
        threading.Event().wait(0.02)
        return [1, 2, 3]

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            together.wait()
            return [{"ticker": "A", "history": context.shared(("history", 5), load, ttl=60)}]

        return scan

    report = fleet(*(make(n) for n in range(6))).run({})
    assert [found.extras for found in report.candidates] == [{"history": [1, 2, 3]}] * 6
    assert len(loads) == 1
