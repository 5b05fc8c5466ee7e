"""Two runners one after the other on one file, as two processes have it: what the second finds and what not."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import math
import sqlite3
import threading
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from resilient_scan import Breaker, Cache, Quarantine, Retry, ScanContext, ScanRunner, Status, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import healthy
from tests.support.clocks import JumpingClock
from tests.support.draws import SameDraw
from tests.support.fixtures import Background, Bare, Fleet
from tests.support.waiting import WAIT_TIMEOUT

DAY = {"trade_date": "2026-11-24", "tickers": ["AAPL"]}
CACHE = Cache(ttl=300, jitter=0, stale_if_error=600)


class Process:
    """What a process brings along: a clock of its own, at a time that goes on from the last one's."""

    def __init__(self, fleet: Fleet, bare: Bare, path: Path) -> None:
        self._fleet, self._bare, self.path = fleet, bare, path
        self.wall = 1_700_000_000.0

    def __call__(self, *scanners: Any, cache: Cache | None = CACHE, **options: Any) -> ScanRunner:
        options.setdefault("clock", JumpingClock(self.wall, auto=True))
        policy = options.pop("policy", self._bare(cache=cache))
        return self._fleet(*scanners, policy=policy, store=f"sqlite:///{self.path}", **options)

    def files(self) -> bytes:
        return b"".join(file.read_bytes() + file.name.encode() for file in self.path.parent.iterdir())


@pytest.fixture
def process(fleet: Fleet, bare: Bare, quick_path: Path) -> Process:
    return Process(fleet, bare, quick_path / "state.db")


def counting(
    name: str = "one", answer: Any = ({"ticker": "AAPL", "source": "s", "context": "c"},), **layers: Any
) -> Any:
    asked: list[dict[str, Any]] = []

    @scanner(name=name, pipeline="test", **layers)
    def one(state: dict[str, Any], context: ScanContext) -> Any:
        asked.append(state)
        context.log("asked", number=len(asked))
        if isinstance(answer, BaseException):
            raise answer
        return [answer] if not isinstance(answer, list | tuple) else list(answer)

    one.asked = asked  # type: ignore[attr-defined]
    return one


def test_the_second_process_is_served_from_the_first_ones_answer(process: Process) -> None:
    one = counting(answer=({"ticker": "AAPL", "source": "s", "context": "c", "tags": ["x"]},))
    with process(one) as runner:
        first = runner.run(DAY).results["one"]
    process.wall += 42
    with process(one) as runner:
        second = runner.run(DAY).results["one"]
        second.candidates[0].extras["tags"].append("mine")
        third = runner.run(DAY).results["one"]
    assert (first.status, second.status, third.status) == (Status.COMPLETED, Status.CACHED, Status.CACHED)
    assert second.age == pytest.approx(42)
    assert (second.attempts, second.tool_logs, second.error, second.partial) == (0, [], None, False)
    assert third.candidates == first.candidates
    assert len(one.asked) == 1


def test_an_answer_gets_older_over_many_processes_and_is_over_in_time(process: Process) -> None:
    one = counting()
    ages = []
    for _ in range(5):
        with process(one) as runner:
            result = runner.run(DAY).results["one"]
            ages.append((result.status.value, result.age))
        process.wall += 100
    assert ages == [
        ("completed", None),
        ("cached", pytest.approx(100)),
        ("cached", pytest.approx(200)),
        ("completed", None),
        ("cached", pytest.approx(100)),
    ]


def test_an_older_answer_stands_in_after_a_restart(process: Process) -> None:
    with process(counting()) as runner:
        good = runner.run(DAY).candidates
    process.wall += 500
    broken = counting(answer=OSError("down"))
    with process(broken) as runner:
        result = runner.run(DAY).results["one"]
    assert (result.status, result.candidates, result.age) == (Status.STALE, good, pytest.approx(500))
    assert (result.attempts, str(result.error.message)) == (1, "down")
    process.wall += 401
    with process(broken) as runner:
        assert runner.run(DAY).results["one"].status is Status.ERROR


def test_an_empty_answer_has_its_own_time(process: Process) -> None:
    one = counting(answer=[], empty_ok=True)
    cache = Cache(ttl=300, jitter=0, ttl_empty=10)
    statuses = []
    for seconds in (9, 2, 0):
        with process(one, cache=cache) as runner:
            statuses.append(runner.run(DAY).results["one"].status)
        process.wall += seconds
    assert statuses == [Status.COMPLETED, Status.CACHED, Status.COMPLETED]


def test_jitter_has_shortened_what_is_stored(process: Process) -> None:
    cache = Cache(ttl=100, jitter=0.5)
    one = counting()
    with process(one, cache=cache, random=SameDraw()) as runner:
        runner.run(DAY)
    process.wall += 49
    with process(one, cache=cache) as runner:
        assert runner.run(DAY).results["one"].status is Status.CACHED
    process.wall += 2
    with process(one, cache=cache) as runner:
        assert runner.run(DAY).results["one"].status is Status.COMPLETED


def test_a_lifetime_that_is_shorter_now_holds_for_what_was_stored_before(process: Process) -> None:
    with process(counting(), cache=Cache(ttl=3600, jitter=0, stale_if_error=3600)) as runner:
        runner.run(DAY)
    process.wall += 100
    broken = counting(answer=OSError("down"))
    with process(broken, cache=Cache(ttl=60, jitter=0, stale_if_error=60)) as runner:
        result = runner.run(DAY).results["one"]
        assert (result.status, result.age) == (Status.STALE, pytest.approx(100))
    with process(broken, cache=Cache(ttl=60, jitter=0)) as runner:
        assert runner.run(DAY).results["one"].status is Status.ERROR


@pytest.mark.parametrize(
    ("state", "settings", "expected"),
    [
        (DAY, {"depth": 1}, Status.CACHED),
        ({**DAY, "trade_date": "2026-11-25"}, {"depth": 1}, Status.COMPLETED),
        (DAY, {"depth": 2}, Status.COMPLETED),
        ({**DAY, "other": 1}, {"depth": 1}, Status.CACHED),
    ],
)
def test_settings_and_inputs_make_the_key(process: Process, state: Any, settings: Any, expected: Status) -> None:
    cache = Cache(ttl=300, jitter=0, inputs=("trade_date", "tickers"))
    one = counting()
    with process(one, cache=cache, settings={"one": {"depth": 1}}) as runner:
        runner.run(DAY)
    with process(one, cache=cache, settings={"one": settings}) as runner:
        assert runner.run(state).results["one"].status is expected


def test_another_scanner_of_the_same_shape_has_another_key(process: Process) -> None:
    with process(counting("one")) as runner:
        runner.run(DAY)
    with process(counting("two")) as runner:
        assert runner.run(DAY).results["two"].status is Status.COMPLETED


def test_no_secret_of_the_settings_is_in_any_file_and_a_new_one_changes_no_key(process: Process) -> None:
    one = counting()
    settings = {"api_key": "hunter2-hunter2", "token": "tok-tok-tok", "depth": 3}
    with process(one, settings={"one": settings}) as runner:
        runner.run(DAY)
        runner.disable("one", reason="password=pass-pass-pass", duration=60)
        runner.enable("one")
    for secret in (b"hunter2", b"tok-tok"):
        assert secret not in process.files()
    with process(one, settings={"one": {**settings, "api_key": "rotated"}}) as runner:
        assert runner.run(DAY).results["one"].status is Status.CACHED


class Struct(msgspec.Struct, frozen=True):
    when: dt.datetime
    price: Decimal


@dataclasses.dataclass(frozen=True)
class Data:
    day: dt.date
    value: float


class Model(pydantic.BaseModel):
    name: str
    price: Decimal


NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("kind", "candidate"),
    [
        (Struct, Struct(NOON, Decimal("1.10"))),
        (Data, Data(dt.date(2026, 11, 24), -0.0)),
        (Model, Model(name="x", price=Decimal("2.50"))),
    ],
)
def test_candidates_of_every_kind_come_back_as_they_were(process: Process, kind: type, candidate: Any) -> None:
    one = counting(answer=[candidate], candidate=kind)
    with process(one) as runner:
        assert runner.run(DAY).results["one"].candidates == [candidate]
    with process(one) as runner:
        result = runner.run(DAY).results["one"]
    assert (result.status, result.candidates) == (Status.CACHED, [candidate])
    assert type(result.candidates[0]) is kind
    assert repr(result.candidates[0]) == repr(candidate)


def test_extras_keep_dates_decimals_and_numbers_that_are_none(process: Process) -> None:
    extras = {"day": dt.date(2026, 1, 2), "at": NOON, "price": Decimal("1.10"), "nan": math.nan, "inf": -math.inf}
    one = counting(answer=[{"ticker": "A", "source": "s", "context": "c", **extras}])
    with process(one) as runner:
        runner.run(DAY)
    with process(one) as runner:
        (found,) = runner.run(DAY).results["one"].candidates
    assert math.isnan(found.extras.pop("nan"))
    extras.pop("nan")
    assert found.extras == extras
    assert {name: type(value) for name, value in found.extras.items()} == {n: type(v) for n, v in extras.items()}


class Odd:
    """What no store can keep."""


def test_what_cannot_be_stored_is_said_once_and_cached_in_memory(process: Process, caplog: Any) -> None:
    thing = Odd()
    one = counting(answer=[{"ticker": "A", "source": "s", "context": "c", "odd": thing}])
    other = counting("other")
    with caplog.at_level(logging.WARNING, "resilient_scan"), process(one, other) as runner:
        for number in range(3):
            runner.run({**DAY, "number": number})
        assert runner.run({**DAY, "number": 2}).results["one"].status is Status.CACHED
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("one: its answers are cached in memory only, ")
    assert "Odd" in line
    with process(one, other) as runner:
        report = runner.run({**DAY, "number": 2})
    assert [result.status for result in report.results.values()] == [Status.COMPLETED, Status.CACHED]


def test_a_class_that_has_changed_is_a_miss(process: Process) -> None:
    def kind(*fields: tuple[str, type]) -> Any:
        made = dataclasses.make_dataclass("Finding", fields, frozen=True)
        made.__module__ = __name__
        return made

    old, new = kind(("name", str)), kind(("name", str), ("score", float))
    with process(counting(answer=[old("x")], candidate=old)) as runner:
        runner.run(DAY)
    one = counting(answer=[new("x", 1.0)], candidate=new)
    with process(one) as runner:
        assert runner.run(DAY).results["one"].status is Status.COMPLETED
    with process(one) as runner:
        assert runner.run(DAY).results["one"].status is Status.CACHED


def test_an_answer_of_an_older_version_is_forgotten_and_all_else_is_kept(fleet: Fleet, bare: Bare) -> None:
    store = MemoryStore(SystemClock())
    one, two = counting(), counting("two")
    policy = bare(cache=CACHE, breaker=Breaker(failures=1, open_for=3600))
    with fleet(one, two, policy=policy, store=store) as runner:
        runner.run(DAY)
        runner.disable("two", duration=60)
    rows = {key: msgspec.msgpack.decode(value.data) for key, value in store._values.items() if key.startswith("cache/")}
    assert len(rows) == 2
    name = "resilient_scan.scanning.Candidate"
    for key, row in rows.items():
        content = [1, name, bytes(16), [[21, name, "A", "me", "an old answer", "", "", [4]]]]
        old = {**row, "schema": 1, "data": msgspec.msgpack.encode(content)}
        store.put(key, msgspec.msgpack.encode(old), 300)
    with fleet(one, two, policy=policy, store=store) as runner:
        report = runner.run(DAY)
        assert [result.status for result in report.results.values()] == [Status.COMPLETED, Status.DISABLED]
        assert len(runner.history()) == 2


def test_two_runners_share_a_store_object_that_neither_closes(fleet: Fleet, bare: Bare) -> None:
    store = MemoryStore(SystemClock())
    one = counting()
    policy = bare(cache=CACHE)
    with fleet(one, policy=policy, store=store) as runner:
        runner.run(DAY)
        runner.disable("one", duration=60)
    with fleet(one, policy=policy, store=store) as runner:
        assert runner.run(DAY).results["one"].status is Status.DISABLED
        runner.enable("one")
        assert runner.run(DAY).results["one"].status is Status.CACHED
        assert len(runner.history()) == 3
    assert store.get("nothing") is None, "it is still open"


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -60.0])
def test_a_jump_of_the_wall_clock_makes_no_answer_live_longer(process: Process, jump: float) -> None:
    """Forward: it seems older. Backward: it is from the future, and no longer fresh."""
    one = counting()
    clock = JumpingClock(process.wall, auto=True)
    with process(one, clock=clock) as runner:
        runner.run(DAY)
        clock.jumped += jump
        clock.advance(299)
        assert runner.run(DAY).results["one"].status is Status.CACHED, "in this process nothing has jumped"
        clock.advance(2)
        assert runner.run(DAY).results["one"].status is Status.COMPLETED
        assert len(one.asked) == 2
    process.wall += jump
    with process(one) as runner:
        runner.run(DAY)
    assert len(one.asked) <= 3


def test_a_breaker_stays_open_over_processes_no_longer_than_it_may(process: Process, bare: Bare) -> None:
    broken = counting(answer=OSError("down"), cache=None)
    policy = bare(breaker=Breaker(failures=3, open_for=60))
    statuses = []
    for _ in range(5):
        with process(broken, policy=policy) as runner:
            statuses.append(runner.run(DAY).results["one"].status)
    assert statuses == [Status.ERROR] * 3 + [Status.REJECTED] * 2
    process.wall -= 7200  # the wall clock is set back by two hours
    with process(broken, policy=policy) as runner:
        runner.run(DAY)
    process.wall += 61
    with process(broken, policy=policy) as runner:
        runner.run(DAY)
    assert len(broken.asked) == 4, "a trial, a minute after it was seen again"


def test_orders_and_quarantine_and_their_trail_survive(process: Process, bare: Bare) -> None:
    bad, good = counting("bad", answer=OSError("down")), counting("good")
    options = {"quarantine": Quarantine(after_failures=2, cooloff=60, max_share=1.0), "policy": bare()}
    for _ in range(2):
        with process(bad, good, **options) as runner:
            runner.run(DAY)
    with process(bad, good, **options) as runner:
        assert {state.name: state.state for state in runner.scanners()} == {"bad": "quarantined", "good": "enabled"}
        assert runner.run(DAY).results["bad"].status is Status.DISABLED
        runner.disable("good", reason="by order", duration=100, who="me")
    process.wall += 50
    with process(bad, good, **options) as runner:
        assert runner.run(DAY).results["good"].status is Status.DISABLED
        trail = [(entry.scanner, entry.new) for entry in runner.audit()]
        assert trail[:2] == [("good", "disabled"), ("bad", "quarantined")]
    process.wall += 51
    with process(bad, good, **options) as runner:
        assert runner.run(DAY).results["good"].status is Status.COMPLETED


def test_the_longest_starts_first_after_a_restart(process: Process, bare: Bare) -> None:
    order: list[str] = []
    first = JumpingClock(process.wall, auto=True)

    def taking(name: str, seconds: float, clock: JumpingClock) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            order.append(name)
            clock.advance(seconds)
            return []

        return scan

    seconds = {"short": 1.0, "long": 9.0, "middle": 3.0}
    for clock in (first, JumpingClock(process.wall + 60, auto=True)):
        scanners = [taking(name, took, clock) for name, took in seconds.items()]
        policy = bare(timeout=bare().timeout.__class__(total=1000))
        with process(*scanners, policy=policy, clock=clock, max_workers=1) as runner:
            runner.run(DAY)
    assert order == ["short", "long", "middle", "long", "middle", "short"]


def test_the_last_scans_and_the_history_are_there_after_a_restart(process: Process) -> None:
    with process(counting(), counting("bad", answer=OSError("down"), retry=Retry(attempts=2, base=0.001))) as runner:
        first = runner.run(DAY)
    process.wall += 60
    with process(counting(), counting("bad", answer=OSError("down"))) as runner:
        explained = runner.explain("bad")
        assert [past.run_id for past in explained.past] == [first.run_id]
        assert (explained.past[0].status, len(explained.past[0].attempts)) == ("error", 2)
        second = runner.run(DAY)
        assert [past.run_id for past in runner.explain("bad").past] == [second.run_id, first.run_id], "none twice"
    with process(counting()) as runner:
        runs = runner.history()
        assert [run.run_id for run in runs] == [second.run_id, first.run_id]
        assert runs[0].scans["one"].status == "cached"
        assert runs[1].scans["bad"].error == "OSError"
        assert runs[1].counts == {"completed": 1, "error": 1}
        assert runner.history(limit=1) == runs[:1]


def test_scans_that_the_cache_has_answered_are_remembered_at_the_end(process: Process) -> None:
    """Not with their run: nothing was done for them, and to write each would cost more than the scan."""
    with process(counting()) as runner:
        runs = [runner.run(DAY).run_id for _ in range(3)]
        assert [past.run_id for past in runner.past("one")] == runs[:1], "in the store"
        assert [past.run_id for past in runner.explain("one").past] == runs[::-1], "here they are known"
    with process(counting()) as runner:
        assert [past.run_id for past in runner.explain("one").past] == runs[::-1]


def test_two_processes_remember_each_others_scans(process: Process) -> None:
    """A service and jobs of cron on one store: neither writes over what the other has seen."""
    one = counting(cache=None)
    clock = JumpingClock(process.wall, auto=True)
    service, cron = process(one, clock=clock), process(one, clock=clock)
    runs = []
    for runner in (service, cron, service, cron):
        runs.append(runner.run(DAY).run_id)
        clock.advance(1)
    assert [past.run_id for past in service.explain("one").past] == runs[::-1]


def test_a_runner_that_is_closed_at_once_has_written_what_it_found(process: Process) -> None:
    one = counting()
    runner = process(one)
    for result in runner.stream(DAY):
        assert result.status is Status.COMPLETED
    runner.close()
    with process(one) as runner:
        assert runner.run(DAY).results["one"].status is Status.CACHED


def test_what_had_ended_when_a_runner_was_closed_amid_a_batch_is_stored(process: Process) -> None:
    """Its clock stands still: what was found waits for more, and the end of the runner comes first."""
    names = [f"s{number}" for number in range(60)]
    for enough in (1, 25, 59):
        state, statuses = {"enough": enough}, {}
        runner = process(*[counting(name) for name in names])
        for result in runner.stream(state):
            statuses[result.scanner] = result.status
            if len(statuses) == enough:
                runner.close()
        leases = sqlite3.connect(f"{process.path}-leases")
        with closing(leases):
            assert leases.execute("SELECT count(*) FROM leases").fetchall() == [(0,)]
        with process(*[counting(name) for name in names]) as runner:
            found = {name: result.status for name, result in runner.run(state).results.items()}
        ended = {name for name, status in statuses.items() if status is Status.COMPLETED}
        assert len(ended) >= enough
        assert {found[name] for name in ended} == {Status.CACHED}


def test_a_cut_runs_execution_still_fills_the_store(
    process: Process, release: threading.Event, background: Background
) -> None:
    entered = threading.Event()

    @scanner(name="slow", pipeline="test", cache=CACHE)
    def slow(_state: dict[str, Any]) -> list[Any]:
        entered.set()
        release.wait()
        return [{"ticker": "A", "source": "s", "context": "c"}]

    clock = JumpingClock(process.wall, auto=True)
    with process(slow, clock=clock) as runner:
        run = background(runner.run, DAY, deadline=1)
        assert entered.wait(WAIT_TIMEOUT)
        clock.advance(1)
        assert run.result(WAIT_TIMEOUT).results["slow"].status is Status.TIMEOUT
        release.set()
        assert runner.run(DAY).results["slow"].status is Status.CACHED
    with process(slow, healthy("other"), clock=clock) as runner:
        assert runner.run(DAY).results["slow"].status is Status.CACHED
