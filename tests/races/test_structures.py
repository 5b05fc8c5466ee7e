"""Each shared structure under threads that switch all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, CircuitOpen, Limit, Rejected, Retry, Timeout
from resilient_scan._dispatch import Bus
from resilient_scan.core.pool import ThreadPool
from resilient_scan.events import ScannerStateChanged
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.layers.retry import RetryBudget
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.layers.timeout import HungThreads
from resilient_scan.quarantine import Alert, Gate, Turn
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder
from tests.support.caches import put
from tests.support.fixtures import Crew, Eventually


@pytest.mark.parametrize("trials", [1, 2])
def test_never_more_trials_than_allowed(trials: int, crew: Crew) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("one", Breaker(failures=1, open_for=1, open_cap=1, trials=trials), clock, Random(1))
    breaker.vote(breaker.admit()[0], True)

    def ask(_number: int) -> Any:
        try:
            return breaker.admit()
        except CircuitOpen:
            return None

    for turn in range(600):
        clock.advance(2)
        admitted = [one for one in crew(ask, times=5) if one is not None]
        assert len(admitted) == trials
        assert sum(change is not None for _, change in admitted) == 1, "one of them opened it half"
        well = turn % 2 == 0
        changes = crew(*(lambda permit=permit, failed=not well: breaker.vote(permit, failed) for permit, _ in admitted))
        assert [change.new for change in changes if change] == ["closed" if well else "open"]
        if well:
            breaker.vote(breaker.admit()[0], True)


def test_the_first_entries_of_a_log_are_kept_whoever_makes_them(crew: Crew) -> None:
    for _ in range(500):
        context = AttemptContext("one")
        crew(lambda number, context=context: context.log("tool", number=number), times=5)
        assert sorted(entry["number"] for entry in context.tool_logs()) == [0, 1, 2, 3, 4]


def test_each_change_of_the_breaker_is_told_once(crew: Crew) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("one", Breaker(failures=3, open_for=0.5, open_cap=0.5), clock, Random(1))
    changes: list[Any] = []

    def work(number: int) -> None:
        chance = Random(number)
        for _ in range(5000):
            clock.advance(0.01)
            try:
                permit, change = breaker.admit()
            except CircuitOpen:
                continue
            told = [change, breaker.vote(permit, chance.random() < 0.6), breaker.vote(permit, True)]
            changes.extend(one for one in told if one is not None)

    crew(work, times=4)
    assert len(changes) == breaker.memory.generation
    counts = {(one.old, one.new): 0 for one in changes}
    for one in changes:
        counts[one.old, one.new] += 1
    into_open = counts.get(("closed", "open"), 0) + counts.get(("half_open", "open"), 0)
    assert abs(into_open - counts.get(("open", "half_open"), 0)) <= 1
    assert set(counts) <= {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}


def test_one_leader_at_a_time(crew: Crew) -> None:
    clock = FakeClock()
    cache: ResultCache[Any] = ResultCache(Cache(ttl=1, jitter=0, maxsize=4), clock, Random(1))
    leading = {key: threading.Lock() for key in "ab"}
    led: list[int] = []

    def work(number: int) -> None:
        chance = Random(number)
        for _ in range(8000):
            key, mine = chance.choice("ab"), object()
            answer = cache.lead(key, mine)
            if answer is not mine:
                assert isinstance(answer, Entry) or type(answer) is object
                clock.advance(2 if chance.random() < 0.05 else 0)
                continue
            assert leading[key].acquire(blocking=False), "two lead"
            led.append(1)
            heir = object()
            cache.hand_on(key, mine, heir)
            cache.land(key, mine)  # of no effect: it leads no more
            leading[key].release()
            put(cache, key, [], heir) if chance.random() < 0.1 else cache.land(key, heir)

    crew(work, times=4)
    assert len(led) > 100
    assert not cache._flights


def test_a_shared_value_is_loaded_once(crew: Crew) -> None:
    clock = FakeClock(auto=True)
    values = SharedValues(clock, maxsize=8)
    for turn in range(800):
        calls: list[int] = []
        fails = turn % 3 == 0

        def load(calls: list[int] = calls, fails: bool = fails) -> object:
            calls.append(1)
            if fails and len(calls) == 1:
                raise ValueError("down")
            return calls

        def ask(_number: int, turn: int = turn, load: Callable[[], object] = load) -> Any:
            try:
                return values.get(turn, load, 60, AttemptContext("one"))
            except ValueError as error:
                return error

        answers = crew(ask, times=4)
        assert len(calls) <= 1 + fails
        assert all(answer is calls or isinstance(answer, ValueError) for answer in answers)
        assert fails or all(answer is calls for answer in answers)
    assert not values._loading


def test_places_of_a_provider(crew: Crew) -> None:
    """Ask, be granted, give back; or leave the queue, and give back what was granted all the same."""
    pool = ThreadPool(1)
    provider = Provider(Limit("acme", concurrency=2), FakeClock(auto=True), pool.at)
    inside, most, lock = [0], [0], threading.Lock()

    def granted(got: threading.Event) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        got.set()

    def work(number: int) -> None:
        chance = Random(number)
        for _ in range(3000):
            got = threading.Event()
            ticket = Ticket(lambda got=got: granted(got), lambda _error: None)  # type: ignore[misc]
            provider.request(ticket, 1e9)
            if chance.random() < 0.3 and provider.withdraw(ticket):
                continue
            assert got.wait(20)
            with lock:
                inside[0] -= 1
            provider.release()

    crew(work, times=4)
    assert provider.taken == provider.waiting == 0
    assert most[0] == 2
    pool.shutdown(wait=False)


def test_waiting_on_a_worker_for_a_place(crew: Crew) -> None:
    pool = ThreadPool(1)
    provider = Provider(Limit("acme", concurrency=1), FakeClock(), pool.at)
    lock = threading.Lock()

    def work(_number: int) -> None:
        for _ in range(1500):
            provider.acquire(AttemptContext("one", clock=FakeClock()), with_permit=True)
            assert lock.acquire(blocking=False), "two have the one place"
            lock.release()
            provider.release()

    crew(work, times=4)
    assert provider.taken == provider.waiting == 0
    pool.shutdown(wait=False)


def test_hung_threads_are_counted_right(crew: Crew) -> None:
    hung = HungThreads(Timeout(max_abandoned=2), FakeClock(auto=True))

    def work(_number: int) -> None:
        for _ in range(8000):
            hung.abandon()
            hung.returned()

    crew(work, times=4)
    assert hung.count == 0
    context = AttemptContext("one", deadline=0.0)
    hung.admit(context)
    hung.abandon()
    hung.abandon()
    with pytest.raises(Rejected):
        HungThreads.admit(hung, AttemptContext("one", clock=FakeClock(), deadline=0.0))


def test_the_budget_is_never_overdrawn(crew: Crew) -> None:
    for _ in range(200):
        budget = RetryBudget(Retry(budget=0.001, budget_min=37), FakeClock())
        spent = crew(lambda _number, budget=budget: sum(budget.spend() for _ in range(30)), times=4)
        assert sum(spent) == 37


def test_orders_at_the_gate(crew: Crew) -> None:
    recorder, clock = Recorder(), FakeClock()
    gate = Gate(("one",), clock, Bus([recorder]))

    def work(number: int) -> None:
        for turn in range(2000):
            if number == 0:
                gate.disable("one", "by hand", 0.5)
            elif number == 1:
                gate.enable("one", "by hand")
            else:
                gate.turn("one", 30.0)
                clock.advance(0.1 * (turn % 3))

    crew(work, times=4)
    clock.advance(1)
    assert gate.turn("one", 30.0)[0] is Turn.RUN
    told = recorder.of(ScannerStateChanged)
    went = sum((event.old, event.new) == ("enabled", "disabled") for event in told)
    came = sum((event.old, event.new) == ("disabled", "enabled") for event in told)
    assert went == came


def test_every_future_of_the_pool_ends(crew: Crew) -> None:
    for turn in range(60):
        pool = ThreadPool(3)
        futures: list[Future[int]] = []

        def submit(number: int, pool: ThreadPool = pool, futures: list[Future[int]] = futures) -> None:
            for item in range(60):
                with suppress(RuntimeError):  # shut down
                    futures.append(pool.submit(lambda item=item: item))

        def shut(turn: int = turn, pool: ThreadPool = pool, futures: list[Future[int]] = futures) -> None:
            while len(futures) < turn % 12 * 9:
                pass
            pool.shutdown(wait=False, cancel_futures=turn % 2 == 0)

        crew(lambda: submit(0), lambda: submit(1), shut)
        pool.shutdown(wait=True)
        for future in futures:
            with suppress(CancelledError):
                assert 0 <= future.result(20) < 60
        assert pool.counts()["abandoned"] == 0


def test_timers_ring_once_or_not_at_all(crew: Crew, eventually: Eventually) -> None:
    pool = ThreadPool(1)
    rung: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for turn in range(200):
            forget = pool.at(0.0, lambda turn=turn: rung.append((number, turn)))
            if turn % 2:
                forget()

    crew(work, times=4)
    eventually(lambda: sum(turn % 2 == 0 for _, turn in rung) == 400)
    assert len(set(rung)) == len(rung)
    pool.shutdown(wait=False)


def test_of_many_that_find_a_probe_due_one_makes_it(crew: Crew) -> None:
    """Two processes on one store, two threads each."""
    for turn in range(50):
        clock = FakeClock()
        store = MemoryStore(clock)
        gates = [Gate(("one", "two"), clock, Bus([]), store=store) for _ in range(2)]
        gates[0].alerts([Alert("disable", "one", "firing", "mark", 1.0)], "alertmanager")
        for gate in gates:
            gate.refresh()
        clock.advance(60)

        def ask(number: int, gates: list[Gate] = gates) -> list[Turn]:
            return [gates[number % 2].turn("one", 30.0)[0] for _ in range(3)]

        decided = [turn for turns in crew(ask, times=4) for turn in turns]
        assert decided.count(Turn.PROBE) == 1, f"in turn {turn}"
        assert decided.count(Turn.RUN) == 0


def test_a_scanner_that_is_out_is_out_whatever_happens_to_others(crew: Crew) -> None:
    """The gate's copy is replaced while runs look at it without a lock."""
    clock = FakeClock()
    gate = Gate(("one", "two", "three"), clock, Bus([]))
    gate.disable("one", "by hand", 1e6)

    def work(number: int) -> int:
        passed = 0
        for _ in range(500):
            if number == 0:
                gate.disable("two", "by hand", 5.0)
                gate.enable("two", "by hand")
            elif number == 1:
                gate.alerts([Alert("disable", "three", "firing", "mark", 1.0)], "alertmanager")
                gate.enable("three", "by hand", 1e-3)
            else:
                passed += gate.turn("one", 30.0)[0] is not Turn.DISABLED
                clock.advance(0.001)
        return passed

    assert sum(crew(work, times=4)) == 0
