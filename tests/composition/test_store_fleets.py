"""Two fleets in one store, and two releases of one fleet: nobody is given answers of other code, nor waits for it."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, ScanRunner, Status, scanner
from tests.support.fixtures import Background, Bare, Fleet

OLD = """
from resilient_scan import scanner

@scanner(pipeline="news"{})
def headlines(state):
    return [{{"ticker": "{}", "source": "headlines", "context": "c"}}]

class Filings:
    name, pipeline = "filings", "events"

    def scan(self, state):
        return [{{"ticker": "{}", "source": "filings", "context": "c"}}]
"""
Deploy = Callable[..., Any]


@pytest.fixture
def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Return a function that puts a release of the module `our_feeds` in place and imports it like a new process."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def put(ticker: str, version: str = "") -> Any:
        (tmp_path / "our_feeds.py").write_text(OLD.format(version, ticker, ticker))
        sys.modules.pop("our_feeds", None)
        importlib.invalidate_caches()
        return importlib.import_module("our_feeds")

    yield put
    sys.modules.pop("our_feeds", None)


@pytest.fixture
def run(fleet: Fleet, bare: Bare, quick_path: Path) -> Callable[..., Any]:
    """Return a function that runs scanners once, as a process with that store."""

    def once(*scanners: Any, space: str = "") -> Any:
        store = f"sqlite:///{quick_path}/state.db{space}"
        with fleet(*scanners, policy=bare(cache=Cache(ttl=300)), store=store) as runner:
            return runner.run({"trade_date": "2026-11-24"})

    return once


def found(report: Any) -> list[tuple[str, str]]:
    return [(result.status.value, result.candidates[0].ticker) for result in report.results.values()]


def one_of(pipeline: str, ticker: str) -> Any:
    @scanner(name="one", pipeline=pipeline)
    def scan(_state: Any) -> list[Any]:
        return [{"ticker": ticker, "source": "s", "context": "c"}]

    return scan


def test_another_function_of_the_same_name_asks_for_itself(run: Any) -> None:
    @scanner(pipeline="first")
    def one(_state: Any) -> list[Any]:
        return [{"ticker": "MINE", "source": "s", "context": "c"}]

    assert found(run(one)) == [("completed", "MINE")]
    assert found(run(one)) == [("cached", "MINE")]
    assert found(run(one_of("first", "YOURS"))) == [("completed", "YOURS")]


def test_another_pipeline_asks_for_itself(run: Any) -> None:
    assert found(run(one_of("first", "MINE"))) == [("completed", "MINE")]
    assert found(run(one_of("second", "YOURS"))) == [("completed", "YOURS")]
    assert found(run(one_of("first", "MINE"))) == [("cached", "MINE")]


def test_fixed_code_is_not_given_the_old_codes_answers(run: Any, deploy: Deploy) -> None:
    wrong = deploy("WRONG")
    assert found(run(wrong.headlines, wrong.Filings)) == [("completed", "WRONG")] * 2
    again = deploy("WRONG")
    assert found(run(again.headlines, again.Filings())) == [("cached", "WRONG")] * 2
    right = deploy("RIGHT")
    assert found(run(right.headlines, right.Filings)) == [("completed", "RIGHT")] * 2
    assert found(run(wrong.headlines)) == [("cached", "WRONG")], "a process that still runs the old code keeps its own"


def test_a_version_of_its_own_stands_for_the_code(run: Any, deploy: Deploy) -> None:
    assert found(run(deploy("OLD", ", version='1'").headlines)) == [("completed", "OLD")]
    assert found(run(deploy("NEW", ", version='1'").headlines)) == [("cached", "OLD")]
    assert found(run(deploy("NEW", ", version='2'").headlines)) == [("completed", "NEW")]


def test_other_code_does_not_wait_for_a_lease(
    fleet: Fleet, bare: Bare, quick_path: Path, background: Background
) -> None:
    entered, leave = threading.Event(), threading.Event()

    @scanner(pipeline="first")
    def one(_state: Any) -> list[Any]:
        entered.set()
        assert leave.wait(10)
        return []

    options: dict[str, Any] = {"policy": bare(cache=Cache(ttl=300)), "store": f"sqlite:///{quick_path}/state.db"}
    slow, other = fleet(one, **options), fleet(one_of("first", "YOURS"), **options)
    running = background(slow.run)
    try:
        assert entered.wait(5)
        assert found(other.run(deadline=3)) == [("completed", "YOURS")]
    finally:
        leave.set()
    assert running.result(10).complete


@pytest.mark.parametrize("spaces", [("", ""), ("?space=a", "?space=b")])
def test_orders_and_breakers_are_shared_by_name_within_a_space(
    fleet: Fleet, bare: Bare, quick_path: Path, spaces: tuple[str, str]
) -> None:
    @scanner(name="one", pipeline="first")
    def fails(_state: Any) -> list[Any]:
        raise OSError("down")

    def opened(space: str, *scanners: Any) -> ScanRunner:
        policy = bare(breaker=Breaker(failures=1, open_for=60))
        return fleet(*scanners, policy=policy, store=f"sqlite:///{quick_path}/state.db{space}")

    with opened(spaces[0], fails, second()) as runner:
        runner.run()
        runner.disable("two", reason="by hand")
    with opened(spaces[1], one_of("second", "YOURS"), second()) as runner:
        results = runner.run().results
    shared = spaces[0] == spaces[1]
    assert results["one"].status is (Status.REJECTED if shared else Status.COMPLETED)
    assert (results["two"].status is Status.DISABLED) is shared


def second() -> Any:
    @scanner(name="two", pipeline="first")
    def two(_state: Any) -> list[Any]:
        return []

    return two
