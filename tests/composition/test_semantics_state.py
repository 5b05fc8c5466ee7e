"""What a run hands to scanners, and what it does with the caller's state."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from resilient_scan import Cache, ConfigError, Retry, ScanContext, ScanRunner, Status, Timeout, scanner
from tests.support.fixtures import Bare, Fleet


@dataclass
class Portfolio:
    positions: list[str] = field(default_factory=list)


def spoiling(name: str, seen: list[Any]) -> Any:
    """Make a scanner that notes what it gets and then changes all of it."""

    @scanner(name=name, pipeline="test")
    def scan(state: dict[str, Any]) -> list[Any]:
        seen.append((sorted(state), list(state["tickers"]), dict(state["nested"]["deep"]), state["own"].positions[:]))
        state["tickers"].append("SPOILT")
        state["nested"]["deep"]["x"] = "spoilt"
        state["own"].positions.append("SPOILT")
        state["new"] = 1
        return []

    return scan


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("odd", [None, lambda: None], ids=["plain data", "a lambda"])
def test_each_scan_has_a_copy_of_its_own(concurrent: bool, odd: Any, fleet: Fleet) -> None:
    seen: list[Any] = []
    state: dict[str, Any] = {
        "tickers": ["AAPL"],
        "nested": {"deep": {"x": 1}},
        "own": Portfolio(["IBM"]),
        "odd": odd,
    }
    runner = fleet(*(spoiling(f"s{n}", seen) for n in range(4)), concurrent=concurrent)
    runner.run(state)
    runner.run(state)
    assert seen == [(["nested", "odd", "own", "tickers"], ["AAPL"], {"x": 1}, ["IBM"])] * 8
    assert state == {"tickers": ["AAPL"], "nested": {"deep": {"x": 1}}, "own": Portfolio(["IBM"]), "odd": odd}


def test_each_attempt_has_a_copy_of_its_own(fleet: Fleet, bare: Bare) -> None:
    seen: list[list[str]] = []

    @scanner(pipeline="test")
    def source(state: dict[str, Any]) -> list[Any]:
        seen.append(state["tickers"][:])
        state["tickers"].append("SPOILT")
        raise OSError("down")

    fleet(source, policy=bare(retry=Retry(attempts=3, base=0, cap=0))).run({"tickers": ["AAPL"]})
    assert seen == [["AAPL"]] * 3


def test_a_state_that_cannot_be_copied_is_the_callers_error(fleet: Fleet) -> None:
    runner = fleet(spoiling("s", []))
    with pytest.raises(TypeError, match="state cannot be copied"):
        runner.run({"lock": threading.Lock()})
    with pytest.raises(TypeError, match="state must be a dict, got list"):
        runner.run([("a", 1)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state cannot be copied"):
        next(iter(runner.stream({"generator": (n for n in range(3))})))


def test_no_state_is_an_empty_one(fleet: Fleet) -> None:
    seen: list[Any] = []

    @scanner(pipeline="test")
    def source(state: dict[str, Any]) -> list[Any]:
        seen.append(state)
        return []

    runner = fleet(source)
    runner.run()
    runner.run({})
    assert seen == [{}, {}]
    assert seen[0] is not seen[1]


@pytest.mark.parametrize("deadline", [-1, float("nan"), "5s", True])
def test_a_deadline_that_is_none_is_refused(deadline: Any, fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="deadline must be"):
        fleet(spoiling("s", [])).run({}, deadline=deadline)


def logging_one(name: str) -> Any:
    @scanner(name=name, pipeline="test")
    def scan(state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.log("by_context", n=1)
        state.setdefault("tool_logs", []).append({"tool": "by_state", "scanner": name})
        context.log("again", n=2)
        return []

    return scan


@pytest.mark.parametrize("old", [None, [], [{"tool": "old"}]], ids=["no list", "an empty one", "with entries"])
@pytest.mark.parametrize("concurrent", [True, False])
def test_tool_logs_are_new_entries_in_order(old: list[Any] | None, concurrent: bool, fleet: Fleet) -> None:
    state: dict[str, Any] = {} if old is None else {"tool_logs": [*old]}
    caller = state.get("tool_logs")
    report = fleet(*(logging_one(f"s{n}") for n in range(3)), concurrent=concurrent).run(state)
    per_scan = [
        sorted((entry["tool"], entry["scanner"]) for entry in result.tool_logs) for result in report.results.values()
    ]
    assert per_scan == [[("again", f"s{n}"), ("by_context", f"s{n}"), ("by_state", f"s{n}")] for n in range(3)]
    assert report.tool_logs == [entry for result in report.results.values() for entry in result.tool_logs]
    if old is None:
        assert state == {}
    else:
        assert state["tool_logs"] is caller
        assert caller == [*old, *report.tool_logs]


def test_a_log_entry_says_who_and_when(fleet: Fleet) -> None:
    from resilient_scan.testing import FakeClock

    clock = FakeClock(start=1000.0)

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        clock.advance(5)
        context.log("http", url="https://example.com", status=200)
        return []

    report = fleet(source, clock=clock).run({})
    assert report.tool_logs == [
        {"tool": "http", "scanner": "source", "at": 1005.0, "url": "https://example.com", "status": 200}
    ]


def test_logs_of_a_scan_that_timed_out_or_failed_are_kept(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test")
    def hung(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.log("before")
        release.wait()
        context.log("after")
        return []

    @scanner(pipeline="test", retry=Retry(attempts=2, base=0, cap=0))
    def failing(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.log("attempt", number=context.attempt)
        raise OSError("down")

    state: dict[str, Any] = {"tool_logs": []}
    report = fleet(hung, failing, policy=bare(timeout=Timeout(total=0.1))).run(state)
    assert [entry["tool"] for entry in report.results["hung"].tool_logs] == ["before"]
    assert [entry["number"] for entry in report.results["failing"].tool_logs] == [1, 2]
    assert state["tool_logs"] == report.tool_logs


def test_what_is_logged_late_reaches_nobody(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    done = threading.Event()

    @scanner(pipeline="test")
    def hung(state: dict[str, Any], context: ScanContext) -> list[Any]:
        release.wait()
        context.log("late")
        state["tool_logs"].append({"tool": "late"})
        done.set()
        return []

    state: dict[str, Any] = {"tool_logs": []}
    report = fleet(hung, policy=bare(timeout=Timeout(total=0.05))).run(state)
    release.set()
    assert done.wait(5)
    assert report.tool_logs == state["tool_logs"] == []


def test_tool_logs_do_not_count_for_the_cache(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(logging_one("s"), policy=bare(cache=Cache()))
    state: dict[str, Any] = {"tool_logs": [], "day": 1}
    seen = [runner.run(state).results["s"] for _ in range(2)]
    assert [result.status for result in seen] == [Status.COMPLETED, Status.CACHED]
    assert len(state["tool_logs"]) == 3  # who is answered from the cache logs nothing


def test_settings_are_the_runners_own(bare: Bare) -> None:
    @scanner(pipeline="p")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.settings["words"].append("new")
        return []

    settings = {"one": {"words": ["old"]}}
    with ScanRunner([one], policy=bare(), listeners=(), settings=settings) as runner:
        runner.run({})
    assert settings == {"one": {"words": ["old"]}}
