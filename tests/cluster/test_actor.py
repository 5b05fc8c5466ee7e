"""A worker's actor, and a child there as the driver has it, without any cluster between them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient_scan import Policy, ScanRunner, Status
from resilient_scan.core import assembly
from resilient_scan.engines.cluster import actor as actors
from resilient_scan.engines.cluster.actor import WorkerActor, WorkerInfo
from resilient_scan.engines.cluster.remote import LARGE, RemoteChild
from resilient_scan.engines.process.wire import ConnectionClosed
from resilient_scan.errors import Rejected
from tests.cluster import fleet

POLICY = Policy(cache=None, retry=None, breaker=None)


class Loop:
    """A worker's event loop, on a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class RemoteWorker:
    """One actor in this process, in the place of a cluster's workers; also the line to it."""

    away, where, lost, shared = True, "here", False, frozenset[str]()

    def __init__(self, slots: int = 2, max_result: int = 1_000_000, grace: float = 1.0) -> None:
        self.grace = grace
        self.loop = Loop()
        self.actor = WorkerActor(slots, max_result)
        self.info: WorkerInfo = self.loop.call(self.actor.warm())
        self.known: set[int] = set()
        self.states: set[str] = set()
        self.keeping = threading.Lock()
        self.calls: list[str] = []
        self.number = 0

    def call(self, method: str, *arguments: Any, until: Callable[[], float] = lambda: 0.0) -> Any:
        self.calls.append(method)
        try:
            return self.loop.call(getattr(self.actor, method)(self.info.identity, *arguments))
        except OSError as error:
            self.lost = True
            raise ConnectionClosed from error

    def tell(self, method: str, *arguments: Any) -> None:
        self.calls.append(method)
        coroutine = getattr(self.actor, method)(self.info.identity, *arguments)
        asyncio.run_coroutine_threadsafe(coroutine, self.loop.loop)

    def register(self, number: int, _name: str, payload: bytes) -> None:
        assert self.call("define", number, payload) is None
        self.known.add(number)

    def start(self) -> None:
        pass

    def take(self, _over: Any, _patience: float) -> RemoteChild:
        self.number += 1
        return RemoteChild(self, self.number)

    def give_back(self, place: RemoteChild) -> None:
        pass

    def close(self) -> None:
        self.loop.call(self.actor.close(self.info.identity))
        self.loop.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[RemoteWorker]:
    made = RemoteWorker()
    yield made
    made.close()


@pytest.fixture
def run(worker: RemoteWorker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run scanners at the actor; return the report."""
    monkeypatch.setattr(assembly, "_children", lambda _config: worker)
    monkeypatch.setattr(worker, "close", lambda: None)

    def run(*scanners: Any, state: dict[str, Any] | None = None, **options: Any) -> Any:
        with ScanRunner(scanners, engine="dask", cluster="local", policy=POLICY, listeners=(), **options) as runner:
            return runner.run(state or {})

    return run


def test_an_attempt_is_one_call_and_everything_comes_back(worker: RemoteWorker, run: Callable[..., Any]) -> None:
    worker.calls.clear()
    report = run(fleet.plain, state={"number": 7})
    assert worker.calls == ["define", "begin"]
    assert report.results["plain"].status is Status.COMPLETED
    assert [log["number"] for log in report.tool_logs] == [7]


def test_what_hangs_is_killed_there_and_what_it_found_is_kept(run: Callable[..., Any]) -> None:
    result = run(fleet.stuck).results["stuck"]
    assert result.status is Status.TIMEOUT
    assert result.error.message == "timeout after 0.6s"
    assert [candidate.ticker for candidate in result.candidates] == ["AAPL"]
    assert result.partial
    assert [log["tool"] for log in result.tool_logs] == ["before"]


def test_errors_are_what_they_were(run: Callable[..., Any]) -> None:
    results = run(fleet.fails, fleet.leaves).results
    assert (results["fails"].error.type, results["fails"].error.message) == ("LookupError", "nothing there")
    assert "fleet.py" in results["fails"].error.where
    assert results["leaves"].error.message == "its process ended with exit code 7"


def test_questions_are_answered_by_the_driver(run: Callable[..., Any]) -> None:
    (candidate,) = run(fleet.asks).candidates
    assert candidate.extras["loaded"] == candidate.extras["pid"]  # it was the first to need the value
    assert candidate.extras["seen"] == 3


def test_coroutines_run_there(run: Callable[..., Any]) -> None:
    assert len(run(fleet.coroutine).candidates) == 1


def test_results_that_are_too_large_are_refused_in_a_sentence(run: Callable[..., Any]) -> None:
    results = run(fleet.large, state={"size": 2_000_000}).results
    assert results["large"].error.message == (
        "its results are larger than max_result=1 MB: return less, or leave what is large where it is and return its "
        "place"
    )
    assert run(fleet.large, state={"size": 1000}).complete


def test_a_large_state_goes_there_once(worker: RemoteWorker, run: Callable[..., Any]) -> None:
    worker.calls.clear()
    report = run(fleet.counts, fleet.plain, state={"text": "x" * LARGE})
    assert report.complete
    assert worker.calls.count("keep") == 1
    worker.actor._states.clear()
    assert run(fleet.counts, state={"text": "x" * LARGE}).complete  # it is sent again
    assert worker.calls.count("keep") == 2


def test_a_seat_keeps_a_few_states_only(worker: RemoteWorker) -> None:
    for number in range(actors.MAX_STATES + 2):
        worker.call("keep", f"state {number}", b"")
    assert len(worker.actor._states) == actors.MAX_STATES


def test_a_kill_that_overtakes_the_attempt_ends_it(worker: RemoteWorker, run: Callable[..., Any]) -> None:
    worker.call("kill", worker.number + 1)
    result = run(fleet.plain).results["plain"]
    assert "its process ended with SIGKILL" in result.error.message


def test_of_kills_that_overtake_a_seat_keeps_the_last(worker: RemoteWorker) -> None:
    for number in range(-actors.MAX_KILLED - 1, 0):
        worker.loop.call(worker.actor.kill(worker.info.identity, number))
    assert len(worker.actor._killed) == actors.MAX_KILLED


def test_a_conversation_that_is_not_there_has_ended(worker: RemoteWorker) -> None:
    assert worker.call("listen", 10_000).ending == "an end that nobody has seen"
    worker.call("tell", 10_000, b"")


def test_another_seat_refuses_what_was_meant_for_this_one(worker: RemoteWorker) -> None:
    with pytest.raises(OSError, match="the worker was started again"):
        worker.loop.call(worker.actor.renew("another"))
    worker.loop.call(worker.actor.close("another"))  # and does not end for it
    worker.call("renew")


def test_a_seat_that_hears_nothing_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "WATCH_INTERVAL", 0.01)
    worker = RemoteWorker(slots=1)
    monkeypatch.setattr(actors, "LEASE", 0.0)
    until = time.monotonic() + 10
    while worker.actor._children.pids() and time.monotonic() < until:
        time.sleep(0.01)
    assert not worker.actor._children.pids()
    with pytest.raises(ConnectionClosed):
        worker.call("renew")
    assert str(RemoteChild(worker, 1).failure()) == "the worker here is gone"
    with pytest.raises(Rejected):
        worker.actor._children.take(lambda: False)
    worker.loop.close()
