"""A worker's actor, and a child there as the driver has it, without any cluster between them."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from resilient_scan import Policy, ScanRunner, Status, Timeout
from resilient_scan.core import assembly
from resilient_scan.engines import greenlets
from resilient_scan.engines.cluster import actor as actors
from resilient_scan.engines.cluster.actor import WorkerActor, WorkerInfo
from resilient_scan.engines.cluster.dispatch import LARGE, Dispatcher
from resilient_scan.engines.cluster.remote import RemoteChild
from resilient_scan.errors import Rejected
from tests.cluster import fleet
from tests.support.clusters import Loop

POLICY = Policy(cache=None, retry=None, breaker=None)


class Here:
    """One actor in this process, in the place of a cluster's workers; also the link to it."""

    away, where, shared = True, "here", frozenset[str]()

    def __init__(self, slots: int = 2, max_result: int = 1_000_000, grace: float = 1.0) -> None:
        self.grace = grace
        self.slots, self.used, self.lost = slots, 0, False
        self.loop = Loop()
        self.actor = WorkerActor(slots, max_result)
        self.info: WorkerInfo = self.loop.call(self.actor.warm())
        self.states: set[str] = set()
        self.keeping = asyncio.Lock()
        self.calls: list[str] = []
        self.batches: list[int] = []
        self.names: dict[str, int] = {}
        self.queue = Dispatcher(self.loop.loop, grace)
        self.queue.add(self)

    async def ask(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        if method == "begin":
            self.batches.append(len(arguments[1]))
        return await getattr(self.actor, method)(self.info.identity, *arguments)

    def tell(self, method: str, *arguments: Any) -> None:
        self.calls.append(method)
        coroutine = getattr(self.actor, method)(self.info.identity, *arguments)
        asyncio.run_coroutine_threadsafe(coroutine, self.loop.loop)

    def call(self, method: str, *arguments: Any) -> Any:
        return self.loop.call(getattr(self.actor, method)(self.info.identity, *arguments))

    def register(self, number: int, name: str, payload: bytes) -> None:
        assert self.call("define", number, payload) is None
        self.names[name] = number

    def start(self) -> None:
        pass

    def take(self, _over: Any, _patience: float) -> RemoteChild:
        return RemoteChild(self.queue)

    def give_back(self, _child: RemoteChild) -> None:
        pass

    def share(self, name: str) -> float:
        return 1 / self.queue.batch_of(self.names[name])

    def close(self) -> None:
        self.loop.call(self.actor.close(self.info.identity))
        self.loop.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Here]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(actors, "LEASE", 600.0)  # a busy machine may let it wait for the next test
        made = Here()
        yield made
        made.close()


@pytest.fixture
def runner(worker: Here, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScanRunner]:
    """Make runners whose attempts are made by the actor."""
    monkeypatch.setattr(assembly, "_children", lambda _config: worker)
    monkeypatch.setattr(worker, "close", lambda: None)

    def runner(*scanners: Any, **options: Any) -> ScanRunner:
        given = {"policy": POLICY, "listeners": (), **options}
        return ScanRunner(scanners, engine="dask", cluster="local", **given)

    return runner


@pytest.fixture
def run(runner: Callable[..., ScanRunner]) -> Callable[..., Any]:
    """Run scanners at the actor; return the report."""

    def run(*scanners: Any, state: dict[str, Any] | None = None, **options: Any) -> Any:
        with runner(*scanners, **options) as made:
            return made.run(state or {})

    return run


def test_an_attempt_is_one_call_and_everything_comes_back(worker: Here, run: Callable[..., Any]) -> None:
    worker.calls.clear()
    report = run(fleet.plain, state={"number": 7})
    assert worker.calls == ["begin"]
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


def test_explain_says_where_it_runs(runner: Callable[..., ScanRunner]) -> None:
    with runner(fleet.coroutine) as made:
        said = " ".join(str(made.explain("coroutine")).split())
    assert "its attempts are made at the workers of a cluster: 0 scans under way, 0 queued" in said


def test_coroutines_run_there(run: Callable[..., Any]) -> None:
    assert len(run(fleet.coroutine).candidates) == 1


def test_results_that_are_too_large_are_refused_in_a_sentence(run: Callable[..., Any]) -> None:
    results = run(fleet.large, state={"size": 2_000_000}).results
    assert results["large"].error.message == (
        "its results are larger than max_result=1 MB: return less, or leave what is large where it is and return its "
        "place"
    )
    assert run(fleet.large, state={"size": 1000}).complete


def test_a_large_state_goes_there_once(worker: Here, run: Callable[..., Any]) -> None:
    worker.calls.clear()
    report = run(fleet.counts, fleet.plain, state={"text": "x" * LARGE})
    assert report.complete
    assert worker.calls.count("keep") == 1
    worker.actor._states.clear()
    assert run(fleet.counts, state={"text": "x" * LARGE}).complete  # it is sent again
    assert worker.calls.count("keep") == 2


def test_a_seat_keeps_a_few_states_only(worker: Here) -> None:
    for number in range(actors.MAX_STATES + 2):
        worker.call("keep", f"state {number}", b"")
    assert len(worker.actor._states) == actors.MAX_STATES


def test_a_kill_that_overtakes_the_attempt_ends_it(worker: Here, run: Callable[..., Any]) -> None:
    worker.call("kill", [RemoteChild(worker.queue).number + 1])
    result = run(fleet.plain).results["plain"]
    assert "its process ended with SIGKILL" in result.error.message


def test_of_kills_that_overtake_a_seat_keeps_the_last(worker: Here) -> None:
    worker.call("kill", list(range(-actors.MAX_KILLED - 1, 0)))
    assert len(worker.actor._killed) == actors.MAX_KILLED


def test_what_is_not_there_any_more_is_said(worker: Here) -> None:
    with pytest.raises(OSError, match="the worker does not know the batch"):
        worker.call("listen", 10_000)
    worker.call("tell", 10_000, b"")


# inputs that go together


def test_the_inputs_of_a_map_go_together_and_each_has_its_own_end(
    worker: Here, runner: Callable[..., ScanRunner]
) -> None:
    worker.batches.clear()
    with runner(fleet.odd, max_workers=2) as made:
        found = list(made.map("odd", ({"number": number} for number in range(400))))
    assert [value["number"] for value, _ in found] == list(range(400))
    assert max(worker.batches) > 16
    assert len(worker.batches) < 100
    assert statistics.median(result.duration for _, result in found) < 0.2  # the wait for the others is none of it
    for value, result in found:
        assert result.attempts == 1
        assert [log["number"] for log in result.tool_logs] == [value["number"]]
        if value["number"] == 399:
            assert result.error.message == "nothing there"
        else:
            assert [candidate.extras["number"] for candidate in result.candidates] == [value["number"]]


def test_an_input_that_hangs_costs_itself_only(worker: Here, runner: Callable[..., ScanRunner]) -> None:
    def inputs() -> Iterator[dict[str, Any]]:
        for number in range(300):
            yield {"number": number, "seconds": 60 if number == 200 else 0.0}

    policy = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=1.5))
    with runner(fleet.odd, max_workers=2, policy=policy) as made:
        results = [result for _, result in made.map("odd", inputs())]
    assert [number for number, result in enumerate(results) if result.status is not Status.COMPLETED] == [200]
    assert results[200].status is Status.TIMEOUT
    assert 1.5 <= results[200].duration < 5
    assert [log["number"] for log in results[200].tool_logs] == [200]
    pids = {result.candidates[0].extras["pid"] for result in results if result.candidates}
    assert len(pids) >= 3, "another child went on"


def test_what_waits_behind_a_slow_input_goes_elsewhere(
    worker: Here, runner: Callable[..., ScanRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "MAX_WAIT", 0.05)
    with runner(fleet.odd, max_workers=2) as made:
        list(made.map("odd", ({"number": number} for number in range(100))))
        worker.batches.clear()
        pairs = made.map("odd", ({"number": n, "seconds": 1.0 * (n == 0)} for n in range(60)), ordered=False)
        found = [(value["number"], result) for value, result in pairs]
    assert found[-1][0] == 0, "the others did not wait for it"
    assert Counter(result.status for _, result in found) == {Status.COMPLETED: 60}
    assert {result.attempts for _, result in found} == {1}


def test_a_run_that_ends_takes_back_what_waits(
    worker: Here, runner: Callable[..., ScanRunner], eventually: Callable[..., Any]
) -> None:
    with runner(fleet.odd, max_workers=2) as made:
        list(made.map("odd", ({"number": number} for number in range(100))))
        pairs = made.map("odd", ({"number": n, "seconds": 0.2} for n in range(60)), ordered=False)
        next(pairs)
        pairs.close()  # type: ignore[attr-defined]
        eventually(lambda: worker.used == 0)
    assert not worker.actor._batches


def test_an_attempt_for_which_there_is_no_child_fails(
    worker: Here, runner: Callable[..., ScanRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner(fleet.plain) as made:
        monkeypatch.setattr(worker.actor, "_take", lambda: 1 / 0)
        error = made.run({}).results["plain"].error
    assert error is not None
    assert error.type == "ZeroDivisionError"


def test_no_more_scans_are_under_way_than_there_are_workers(
    worker: Here, runner: Callable[..., ScanRunner], eventually: Callable[..., Any]
) -> None:
    """More would wait for a place longer than they have patience."""
    with runner(*fleet.SLEEPERS[:6], max_workers=2) as made, ThreadPoolExecutor(1) as pool:
        lane: Any = made._runs.fleet.lane
        running = pool.submit(made.run, {"seconds": 0.1})
        eventually(lambda: worker.used == 2)
        assert lane.counts()[1] == 2
        assert running.result(10).complete
        assert lane.most("sleeper_0") > 2, "they are known to be short"


def test_without_the_extra_scans_take_threads(
    worker: Here, runner: Callable[..., ScanRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greenlets, "AVAILABLE", False)
    with runner(fleet.odd, max_workers=2) as made:
        assert made._runs.fleet.lane is None
        found = [result.status for _, result in made.map("odd", ({"number": number} for number in range(20)))]
    assert found == 20 * [Status.COMPLETED]


# the actor


def test_another_seat_refuses_what_was_meant_for_this_one(worker: Here) -> None:
    with pytest.raises(OSError, match="the worker was started again"):
        worker.loop.call(worker.actor.renew("another"))
    worker.loop.call(worker.actor.close("another"))  # and does not end for it
    worker.call("renew")


def test_a_child_that_stops_in_the_middle_of_a_message_is_killed(
    worker: Here, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    class Stuck:
        until = 0.0
        killed: bool | None = None

        def kill(self, *, time_up: bool) -> None:
            self.killed = time_up

    monkeypatch.setattr(actors, "WATCH_INTERVAL", 0.01)
    stuck = Stuck()
    monkeypatch.setitem(worker.actor._conversations, -1, stuck)
    eventually(lambda: stuck.killed)


def test_a_seat_that_hears_nothing_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of this file: what it changes ends the others' worker, too."""
    monkeypatch.setattr(actors, "WATCH_INTERVAL", 0.01)
    worker = Here(slots=1)
    monkeypatch.setattr(actors, "LEASE", 0.0)
    until = time.monotonic() + 10
    while worker.actor._children.pids() and time.monotonic() < until:
        time.sleep(0.01)
    assert not worker.actor._children.pids()
    with pytest.raises(OSError, match="the worker was started again"):
        worker.call("renew")
    with pytest.raises(Rejected):
        worker.actor._children.take(lambda: False)
    worker.loop.close()
