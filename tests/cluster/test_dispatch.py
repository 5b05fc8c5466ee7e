"""Which attempts go together, and what becomes of them, at workers whose answers the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from resilient_scan.engines.cluster import dispatch
from resilient_scan.engines.cluster.actor import Reply, Said
from resilient_scan.engines.cluster.dispatch import BATCH_TIME, LARGE, MAX_BATCH, MAX_BYTES, Dispatcher
from resilient_scan.engines.cluster.remote import RemoteChild
from resilient_scan.engines.process.wire import Attempt, ConnectionClosed
from resilient_scan.errors import Rejected, WorkerLost
from tests.support.clusters import Loop
from tests.support.waiting import eventually

FAST, SLOW = 1, 2  # scanners


class Link:
    """A worker whose answers the test gives."""

    def __init__(self, where: str = "w1", slots: int = 1) -> None:
        self.where, self.slots, self.used, self.lost = where, slots, 0, False
        self.states: set[str] = set()
        self.keeping = asyncio.Lock()
        self.kept: list[bytes] = []
        self.asked: list[tuple[list[int], asyncio.Future[Any]]] = []  # the numbers of a batch; empty: for more of one
        self.told: list[tuple[str, Any]] = []

    async def ask(self, method: str, *arguments: Any) -> Any:
        if method == "keep":
            self.kept.append(arguments[1])
            return None
        numbers = [turn.number for turn in arguments[1]] if method == "begin" else []
        answer = asyncio.get_running_loop().create_future()
        self.asked.append((numbers, answer))
        return await answer

    def tell(self, method: str, *arguments: Any) -> None:
        self.told.append((method, *arguments))

    @property
    def batches(self) -> list[list[int]]:
        return [numbers for numbers, _ in self.asked if numbers]


class Quiet:
    """A dispatcher that an attempt is not put into a second time."""

    def __init__(self, queue: Dispatcher) -> None:
        self._queue = queue

    def put(self, child: RemoteChild) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class World:
    """A dispatcher on a loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.queue = Dispatcher(self.loop.loop, 0.05)

    def put(self, count: int, scanner: int = FAST, state: bytes = b"", *, alone: bool = False) -> list[RemoteChild]:
        """Have attempts wait; all of them before the first goes."""
        made = [RemoteChild(self.queue) for _ in range(count)]
        for child in made:
            child.attempt = Attempt(scanner, state, "run", 1, 9.0, 9.0, 0.0, None, False, None, b"")
            child.alone = alone

        async def put() -> None:
            for child in made:
                self.queue.put(child)

        self.loop.call(put())
        return made

    def answer(self, link: Link, reply: Any, asked: int = -1) -> None:
        eventually(lambda: bool(link.asked))
        answer = link.asked[asked][1]
        give = answer.set_exception if isinstance(reply, BaseException) else answer.set_result
        self.loop.loop.call_soon_threadsafe(give, reply)

    def ended(self, link: Link, seconds: float = 1 / 64, *, failed: bool = False) -> int:
        """End the batch that a worker was given last; return how many it had."""
        numbers, answer = link.asked[-1]
        self.answer(link, Reply([Said(number, [], seconds, "", failed) for number in numbers]))
        eventually(answer.done)
        return len(numbers)

    def teach(self, link: Link, scanner: int = FAST, batch: int = MAX_BATCH) -> None:
        """Have a scanner's attempts go together."""
        self.queue._paces[scanner] = dispatch.Pace(0.001, batch)
        self.queue.add(link)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.queue.close()
    made.loop.close()


def test_one_goes_first_and_then_twice_as_many_up_to_a_second_of_work(world: World) -> None:
    link = Link()
    world.queue.add(link)
    world.put(400)
    sizes = []
    for number in range(8):
        eventually(lambda number=number: len(link.batches) == number + 1)
        sizes.append(world.ended(link))
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64]
    assert world.queue.batch_of(FAST) == 64 * BATCH_TIME


def test_those_that_take_long_go_alone(world: World) -> None:
    link = Link()
    world.queue.add(link)
    world.put(5, SLOW)
    for number in range(5):
        eventually(lambda number=number: len(link.batches) == number + 1)
        assert world.ended(link, 0.6 * BATCH_TIME) == 1


def test_what_waits_is_shared_out_among_the_places(world: World) -> None:
    link = Link(slots=4)
    world.teach(link)
    world.put(10)
    eventually(lambda: sum(map(len, link.batches)) == 10)
    assert sorted(map(len, link.batches)) == [2, 2, 3, 3]


def test_the_worker_with_the_most_free_places_is_next(world: World) -> None:
    one, other = Link("w1", 1), Link("w2", 3)
    world.queue.add(other)
    world.queue.add(one)
    world.put(3, SLOW)
    eventually(lambda: len(one.batches) + len(other.batches) == 3)
    assert len(other.batches) >= 2


def test_what_must_not_wait_for_others_goes_by_itself(world: World) -> None:
    link = Link()
    world.teach(link)
    world.put(3)
    world.put(1, alone=True)
    world.put(1, state=b"x" * (LARGE + 1))
    world.put(2, state=b"x" * (LARGE - 1))
    for size in (3, 1, 1, 2):
        eventually(lambda: bool(link.asked) and not link.asked[-1][1].done())
        assert world.ended(link) == size


def test_a_batch_is_not_larger_than_a_message_may_be(world: World) -> None:
    link = Link()
    world.teach(link)
    world.put(40, state=b"x" * LARGE)
    eventually(lambda: bool(link.batches))
    assert len(link.batches[0]) == MAX_BYTES // LARGE


def test_after_a_failure_they_go_alone_again(world: World) -> None:
    link = Link()
    world.teach(link, batch=4)
    world.put(9)
    eventually(lambda: len(link.batches) == 1)
    assert world.ended(link, failed=True) == 4
    eventually(lambda: len(link.batches) == 2)
    assert world.ended(link) == 2  # the batch after it
    assert world.queue.batch_of(FAST) == 4


def test_what_is_given_back_comes_first_unless_nobody_waits_for_it(world: World) -> None:
    link = Link()
    world.teach(link, batch=4)
    first = world.put(4)
    later = world.put(2, SLOW)
    eventually(lambda: len(link.batches) == 1)
    first[2].kill()
    returned = [child.number for child in first[1:]]
    world.answer(link, Reply([Said(first[0].number, [], 2.0, "")], returned))
    eventually(lambda: len(link.batches) == 2)
    assert link.batches[1] == [first[1].number]
    world.ended(link)
    eventually(lambda: len(link.batches) == 3)
    assert link.batches[2][0] == first[3].number
    world.ended(link)
    eventually(lambda: len(link.batches) == 4)
    assert link.batches[3] == [later[0].number]


def test_one_that_is_killed_before_it_began_costs_nobody_anything(world: World) -> None:
    link = Link()
    world.queue.add(link)
    (child,) = world.put(1, SLOW)
    eventually(lambda: len(link.batches) == 1)
    child.kill()
    world.answer(link, Reply([], [child.number]))
    eventually(lambda: link.used == 0)
    assert not link.lost


def test_what_has_ended_is_not_lost_with_its_worker(world: World) -> None:
    link, other = Link(), Link("w2", 0)
    world.teach(link)
    world.queue.add(other)
    done, *rest = world.put(3)
    eventually(lambda: len(link.batches) == 1)
    world.answer(link, Reply([Said(done.number, [], 0.1, ""), Said(rest[0].number, [], 0.1)]))
    eventually(lambda: len(link.asked) == 2)
    world.answer(link, OSError("gone"))
    eventually(lambda: all(child.is_over for child in rest))
    assert link.lost
    for child in rest:
        with pytest.raises(ConnectionClosed):
            child.from_child()
        assert str(child.failure()) == "the worker w1 is gone"
        assert isinstance(child.failure(), WorkerLost)
    assert not isinstance(done.failure(), WorkerLost)


def test_a_worker_that_never_answers_ends_nothing_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    world.teach(link)
    children = world.put(2)
    eventually(lambda: len(link.batches) == 1)
    world.queue.remove("w1")  # the scheduler has said so
    eventually(lambda: all(child.is_over for child in children))
    monkeypatch.setattr(dispatch, "SILENCE", 0.01)
    silent = Link("w2")
    world.teach(silent)
    first, second = world.put(2)
    eventually(lambda: second.is_over)
    assert first.began < second.began
    assert silent.lost


def test_a_large_state_goes_to_each_worker_once(world: World) -> None:
    one, other = Link("w1", 4), Link("w2", 4)
    world.queue.add(one)
    world.queue.add(other)
    world.put(8, state=bytes(5_000_000))
    eventually(lambda: (len(one.batches), len(other.batches)) == (4, 4))
    assert (len(one.kept), len(other.kept)) == (1, 1)
    world.answer(one, Reply([], lacks_state=True))  # it keeps a few only
    eventually(lambda: len(one.batches) == 5)
    assert len(one.kept) == 2


def test_kills_go_together(world: World) -> None:
    link = Link()
    world.teach(link)
    under_way = world.put(50)
    eventually(lambda: len(link.batches) == 1)
    waiting = world.put(50)

    async def kill() -> None:
        for child in [*under_way, *waiting]:
            child.kill()

    world.loop.call(kill())
    eventually(lambda: bool(link.told))
    assert link.told == [("kill", [child.number for child in under_way])]
    with pytest.raises(ConnectionClosed):
        waiting[0].from_child()


def test_who_finds_no_place_is_told_why(world: World) -> None:
    attempt = world.put(1)[0].attempt
    assert attempt is not None

    def refusal() -> str:
        with pytest.raises(Rejected) as caught:
            RemoteChild(world.queue).enter(attempt, 0.01, alone=False)
        return str(caught.value)

    assert refusal() == "the cluster has no worker"
    world.queue.add(Link())
    eventually(lambda: sum(link.used for link in world.queue.links) == 1)
    assert refusal() == "the cluster is full: 1 place at 1 worker, all taken"
    world.queue.close()
    assert refusal() == "the runner is closed; it asks no worker"


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_who_waits_is_woken(how: str, world: World) -> None:
    attempt = world.put(1)[0].attempt
    assert attempt is not None
    child = RemoteChild(world.queue)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(child.enter, attempt, 60, alone=False)
        eventually(lambda: child in world.queue._queue)
        end: Callable[[], None] = child.kill if how == "killed" else world.queue.close
        end()
        with pytest.raises(ConnectionClosed):
            waiting.result(10)


def test_nobody_waits_for_a_client_that_is_closed(world: World) -> None:
    link = Link()
    world.teach(link)
    one, other = world.put(2)
    eventually(lambda: len(link.batches) == 1)
    attempt = one.attempt
    assert attempt is not None
    with ThreadPoolExecutor(1) as pool:
        other._queue, put = Quiet(world.queue), other._queue  # type: ignore[assignment] # it has its place already
        waiting = pool.submit(other.enter, attempt, 0.05, alone=False)
        world.loop.close()
        with pytest.raises(ConnectionClosed):
            waiting.result(10)
        assert put.closed
    with pytest.raises(Rejected, match="the runner is closed; it asks no worker"):
        RemoteChild(world.queue).enter(attempt, 0.01, alone=False)
    world.loop = Loop()
