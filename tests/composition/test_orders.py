"""What an operator can undo, in memory and in a store: an open breaker, remembered errors, answers, a cool-off."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    CircuitOpen,
    ConfigError,
    Quarantine,
    ScanContext,
    ScanRunner,
    Status,
    scanner,
)
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged, ScannerStateChanged
from resilient_scan.stores.answers import EPOCH_PREFIX
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder, broken, flapping, healthy
from tests.support.fixtures import Bare, Fleet
from tests.support.stores import AWAY, FailingStore

DOWN = ConnectionError("down")
BREAKER = Breaker(failures=2, open_for=60)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, quick_path: Path) -> Any:
    return None if request.param == "memory" else f"sqlite:///{quick_path / 'state.db'}"


@pytest.fixture
def file(quick_path: Path) -> str:
    return f"sqlite:///{quick_path / 'state.db'}"


def status(runner: ScanRunner, name: str = "one") -> Status:
    return runner.run().results[name].status


def statuses(runner: ScanRunner, count: int) -> list[str]:
    return [status(runner).value for _ in range(count)]


def entries(runner: ScanRunner) -> list[tuple[str, str, str, str, str, str]]:
    """Return the audit trail, oldest first."""
    trail = reversed(runner.audit())
    return [(each.old, each.new, each.source, each.action, each.who, each.reason) for each in trail]


# enable


def test_after_disable_and_enable_the_next_scan_is_a_trial_at_once(fleet: Fleet, bare: Bare, store: Any) -> None:
    one = flapping("one", [DOWN, DOWN, [], []])
    runner = fleet(one, policy=bare(breaker=BREAKER), store=store, clock=FakeClock())
    assert statuses(runner, 3) == ["error", "error", "rejected"]
    runner.disable("one", reason="down")
    runner.enable("one", reason="up again")
    assert runner.breaker("one") == "open"
    assert statuses(runner, 2) == ["completed", "completed"]
    assert runner.breaker("one") == "closed"


def test_a_trial_ordered_by_hand_that_fails_opens_the_breaker_for_longer(fleet: Fleet, bare: Bare, store: Any) -> None:
    runner = fleet(broken("one", DOWN), policy=bare(breaker=BREAKER), store=store, clock=(clock := FakeClock()))
    statuses(runner, 2)
    runner.enable("one", reason="perhaps")
    assert statuses(runner, 2) == ["error", "rejected"]
    clock.advance(60)
    assert status(runner) is Status.REJECTED
    clock.advance(60)
    assert status(runner) is Status.ERROR


def test_another_process_learns_of_the_trial_when_its_next_run_begins(fleet: Fleet, bare: Bare, file: str) -> None:
    options = {"policy": bare(breaker=BREAKER), "store": file, "clock": FakeClock()}
    ill = fleet(flapping("one", [DOWN, DOWN, []]), **options)
    statuses(ill, 2)
    fleet(healthy("one"), **options).enable("one", reason="up again")  # it has never seen the breaker
    assert statuses(ill, 1) == ["completed"]


def test_enable_brings_the_trial_forward_while_the_store_is_away_too(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = FailingStore(clock)
    runner = fleet(flapping("one", [DOWN, DOWN, []]), policy=bare(breaker=BREAKER), store=store, clock=clock)
    statuses(runner, 2)
    store.error = AWAY
    with pytest.raises(StoreError):
        runner.enable("one", reason="up again")
    assert statuses(runner, 1) == ["completed"]


@pytest.mark.parametrize("order", ["enable", "reset"])
def test_the_sources_of_a_scanner_get_another_chance_too(fleet: Fleet, bare: Bare, order: str) -> None:
    asked: list[str] = []

    def ask() -> None:
        asked.append("feed")
        raise DOWN

    @scanner(name="one", pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        with suppress(ConnectionError, CircuitOpen):
            context.guarded("feed", ask, seconds=1)
        return []

    runner = fleet(one, policy=bare(breaker=BREAKER), clock=FakeClock())
    statuses(runner, 3)
    assert len(asked) == 2
    getattr(runner, order)("one", reason="up again")
    statuses(runner, 3)
    assert len(asked) == (3 if order == "enable" else 4)


# reset


def test_reset_closes_the_breaker_and_forgets_its_failures(fleet: Fleet, bare: Bare, store: Any) -> None:
    changes = Recorder()
    one = flapping("one", [DOWN, DOWN, DOWN, [], DOWN, DOWN])
    runner = fleet(one, policy=bare(breaker=BREAKER), store=store, listeners=[changes], clock=FakeClock())
    assert statuses(runner, 3) == ["error", "error", "rejected"]
    runner.reset("one", reason="new key", who="kim")
    assert runner.breaker("one") == "closed"
    assert statuses(runner, 3) == ["error", "completed", "error"], "it takes two failures in a row again"
    assert [(each.old, each.new) for each in changes.of(BreakerChanged)] == [("closed", "open"), ("open", "closed")]
    assert entries(runner) == [("enabled", "enabled", "hand", "reset", "kim", "new key")]


def test_a_reset_breaker_opens_for_the_first_open_time_again(fleet: Fleet, bare: Bare, store: Any) -> None:
    runner = fleet(broken("one", DOWN), policy=bare(breaker=BREAKER), store=store, clock=(clock := FakeClock()))
    statuses(runner, 2)
    for _ in range(3):  # trials that fail, so that the open time grows
        runner.enable("one")
        assert status(runner) is Status.ERROR
    runner.reset("one")
    statuses(runner, 2)
    clock.advance(59)
    assert status(runner) is Status.REJECTED
    clock.advance(1)
    assert status(runner) is Status.ERROR


def test_reset_reaches_other_processes_and_the_next_one(fleet: Fleet, bare: Bare, file: str) -> None:
    options = {"policy": bare(breaker=BREAKER), "store": file, "clock": FakeClock()}
    ill = fleet(flapping("one", [DOWN, DOWN, []]), **options)
    assert statuses(ill, 3) == ["error", "error", "rejected"]
    fleet(healthy("one"), **options).reset("one", reason="new key")
    assert statuses(ill, 1) == ["completed"]
    assert statuses(fleet(healthy("one"), **options), 1) == ["completed"]


def test_an_attempt_that_began_before_the_reset_has_no_vote(fleet: Fleet, bare: Bare, store: Any) -> None:
    @scanner(name="one", pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        if next(calls) == 1:
            runner.reset("one", reason="new key")
        raise DOWN

    calls = iter(range(9))
    runner = fleet(one, policy=bare(breaker=BREAKER), store=store, clock=FakeClock())
    assert statuses(runner, 5) == ["error", "error", "error", "error", "rejected"]


def test_reset_forgets_a_remembered_error(fleet: Fleet, bare: Bare, store: Any) -> None:
    policy = bare(cache=Cache(ttl=300, ttl_error=300))
    runner = fleet(flapping("one", [DOWN, []]), policy=policy, store=store, clock=FakeClock())
    assert statuses(runner, 2) == ["error", "error"]
    runner.reset("one", reason="new key")
    assert statuses(runner, 2) == ["completed", "cached"]
    runner.reset("one", reason="again")
    assert status(runner) is Status.CACHED, "answers are kept"


def test_a_reset_while_the_store_is_away_holds_here_and_reaches_it_later(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = FailingStore(clock)
    options = {"policy": bare(breaker=BREAKER), "store": store, "clock": clock}
    runner = fleet(flapping("one", [DOWN, DOWN, [], []]), **options)
    statuses(runner, 2)
    store.error = AWAY
    with pytest.raises(StoreError, match="the breaker of one is reset in this process only, until its store is back"):
        runner.reset("one", reason="new key")
    assert statuses(runner, 1) == ["completed"]
    store.error = None
    clock.advance(1)
    assert statuses(runner, 1) == ["completed"]
    assert statuses(fleet(healthy("one"), **options), 1) == ["completed"]


# forget


def found(runner: ScanRunner) -> tuple[str, list[str]]:
    result = runner.run().results["one"]
    return result.status.value, [candidate.ticker for candidate in result.candidates]


def candidate(ticker: str) -> dict[str, str]:
    return {"ticker": ticker, "source": "s", "context": "c"}


def test_forgotten_answers_are_asked_for_again(fleet: Fleet, bare: Bare, store: Any) -> None:
    one = flapping("one", [[candidate("OLD")], [candidate("NEW")]])
    runner = fleet(one, policy=bare(cache=Cache(ttl=300)), store=store, clock=FakeClock())
    assert [found(runner), found(runner)] == [("completed", ["OLD"]), ("cached", ["OLD"])]
    runner.forget("one", reason="bad data", who="kim")
    assert [found(runner), found(runner)] == [("completed", ["NEW"]), ("cached", ["NEW"])]
    assert entries(runner) == [("enabled", "enabled", "hand", "forget", "kim", "bad data")]


def test_a_forgotten_answer_does_not_stand_in_for_a_failure_either(fleet: Fleet, bare: Bare, store: Any) -> None:
    policy = bare(cache=Cache(ttl=300, stale_if_error=300, ttl_error=300))
    runner = fleet(flapping("one", [[], DOWN, []]), policy=policy, store=store, clock=FakeClock())
    status(runner)
    runner.forget("one")
    assert status(runner) is Status.ERROR
    runner.forget("one")
    assert status(runner) is Status.COMPLETED, "the remembered error is forgotten, too"


def test_other_processes_forget_what_is_in_their_memory(fleet: Fleet, bare: Bare, file: str) -> None:
    options = {"policy": bare(cache=Cache(ttl=300)), "store": file, "clock": FakeClock()}
    first = fleet(flapping("one", [[candidate("OLD")], [candidate("NEW")]]), **options)
    second = fleet(flapping("one", [[candidate("NEW")]]), **options)
    assert [found(first), found(second)] == [("completed", ["OLD"]), ("cached", ["OLD"])]
    second.forget("one", reason="bad data")
    assert [found(first), found(first), found(second)] == [
        ("completed", ["NEW"]),
        ("cached", ["NEW"]),
        ("cached", ["NEW"]),
    ]


def test_a_process_that_starts_later_does_not_find_them(fleet: Fleet, bare: Bare, file: str) -> None:
    options = {"policy": bare(cache=Cache(ttl=300)), "store": file, "clock": FakeClock()}
    with fleet(flapping("one", [[candidate("OLD")]]), **options) as first:
        first.run()
        first.forget("one", reason="bad data")
    assert found(fleet(flapping("one", [[candidate("NEW")]]), **options)) == ("completed", ["NEW"])


def test_only_this_scanners_answers_are_forgotten(fleet: Fleet, bare: Bare, store: Any) -> None:
    runner = fleet(healthy("one"), healthy("two"), policy=bare(cache=Cache(ttl=300)), store=store, clock=FakeClock())
    runner.run()
    runner.forget("one")
    assert (status(runner), status(runner, "two")) == (Status.COMPLETED, Status.CACHED)


class ForgetsMeanwhile(MemoryStore):
    """A store in which an operator's order arrives while an answer is being read from it."""

    order: Any = None

    def get(self, key: str, /) -> bytes | None:
        data, order, self.order = super().get(key), self.order, None
        if order is not None:
            order()
        return data


def test_an_answer_that_is_being_read_from_the_store_is_forgotten_too(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = ForgetsMeanwhile(clock)
    options = {"policy": bare(cache=Cache(ttl=300)), "store": store, "clock": clock}
    fleet(flapping("one", [[candidate("OLD")]]), **options).run()
    runner = fleet(flapping("one", [[candidate("NEW")]]), **options)
    store.order = lambda: runner.forget("one", reason="bad data")
    assert [found(runner), found(runner)] == [("completed", ["NEW"]), ("cached", ["NEW"])]


def test_a_run_that_was_just_reading_the_epochs_does_not_bring_forgotten_answers_back(fleet: Fleet, bare: Bare) -> None:
    class Interrupted(MemoryStore):
        """Lets an operator forget the answers right after a run has read the epochs."""

        orders: list[str] = []  # noqa: RUF012 - one store

        def read(self, prefix: str, /) -> dict[str, bytes]:
            documents = super().read(prefix)
            if prefix == EPOCH_PREFIX and self.orders:
                runner.forget(self.orders.pop())
            return documents

    clock = FakeClock()
    store = Interrupted(clock)
    one = flapping("one", [[candidate("A")], [candidate("B")], [candidate("C")]])
    runner = fleet(one, policy=bare(cache=Cache(ttl=300)), store=store, clock=clock)
    assert found(runner) == ("completed", ["A"])
    assert found(runner) == ("cached", ["A"])
    store.orders.append("one")
    assert found(runner) == ("completed", ["B"])
    assert found(runner) == ("cached", ["B"])


def test_a_store_that_is_away_forgets_nothing_and_says_so(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = FailingStore(clock)
    one = flapping("one", [[], [], []])
    runner = fleet(one, policy=bare(cache=Cache(ttl=300)), store=store, clock=clock)
    status(runner)
    store.error = AWAY
    with pytest.raises(
        StoreError, match="the answers of one are forgotten in memory only, try again: the store is away"
    ):
        runner.forget("one", reason="bad data")
    assert status(runner) is Status.COMPLETED


# probe


def quarantined(fleet: Fleet, answers: list[Any], store: Any, **options: Any) -> ScanRunner:
    quarantine = Quarantine(after_failures=1, successes=1, cooloff=600)
    runner = fleet(flapping("one", answers), store=store, quarantine=quarantine, clock=FakeClock(), **options)
    assert statuses(runner, 2) == ["error", "disabled"]
    return runner


def test_probe_does_not_wait_for_the_cool_off(fleet: Fleet, store: Any) -> None:
    changes = Recorder()
    runner = quarantined(fleet, [DOWN, []], store, listeners=[changes])
    runner.probe("one", reason="fixed", who="kim")
    assert runner.probes_due() == ("one",)
    assert statuses(runner, 1) == ["completed"]
    assert [each.new for each in changes.of(ScannerStateChanged)] == ["quarantined", "probing", "enabled"]
    assert ("quarantined", "quarantined", "hand", "probe", "kim", "fixed") in entries(runner)


def test_a_probe_that_fails_begins_a_longer_cool_off(fleet: Fleet, store: Any) -> None:
    runner = quarantined(fleet, [DOWN, DOWN], store)
    runner.probe("one", reason="perhaps")
    assert statuses(runner, 2) == ["error", "disabled"]
    assert runner.scanners()[0].level == 1


def test_the_process_that_runs_it_next_makes_the_probe(fleet: Fleet, file: str) -> None:
    runner = quarantined(fleet, [DOWN, []], file)
    fleet(healthy("one"), store=file, clock=FakeClock()).probe("one", reason="fixed")
    assert statuses(runner, 1) == ["completed"]


def test_who_is_not_quarantined_is_not_probed(fleet: Fleet, store: Any) -> None:
    runner = fleet(healthy("one"), store=store, clock=FakeClock())
    with pytest.raises(ConfigError, match=r"^probe one: it is enabled; only a quarantined scanner is probed$"):
        runner.probe("one")
    runner.disable("one", reason="quota")
    with pytest.raises(ConfigError, match=r"^probe one: it is disabled; only a quarantined scanner is probed$"):
        runner.probe("one")
    assert len(runner.audit()) == 1


# what is refused


@pytest.mark.parametrize("order", ["enable", "reset", "forget", "probe"])
def test_the_nearest_name_is_told_and_a_reason_is_wanted(fleet: Fleet, bare: Bare, order: str) -> None:
    runner = fleet(healthy("one"), policy=bare(cache=Cache(ttl=300), breaker=BREAKER))
    give = getattr(runner, order)
    with pytest.raises(ConfigError, match="there is no scanner 'onn'; did you mean 'one'"):
        give("onn", reason="x")
    for wrong in (" ", "", None, 7):
        with pytest.raises(ConfigError, match=f"^{order} one: reason must say why, got "):
            give("one", reason=wrong)
    assert runner.audit() == ()


def test_without_the_layer_there_is_nothing_to_undo(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(healthy("one"), policy=bare())
    with pytest.raises(ConfigError, match=r"^reset one: it has no breaker, and remembers no errors$"):
        runner.reset("one")
    with pytest.raises(ConfigError, match=r"^forget one: it has no cache$"):
        runner.forget("one")
    runner.enable("one", reason="nothing to do")
    assert runner.audit() == ()
