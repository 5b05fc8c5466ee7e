"""The history of attempts in each store that keeps one: what is noted is found, once, whoever folds it when."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from resilient_scan.errors import StoreError
from resilient_scan.events import AttemptEnded, LateCompletion
from resilient_scan.stores import Store, attempts, groups, open_store
from resilient_scan.stores.attempts import JOURNAL, AttemptHistory, AttemptReader
from resilient_scan.stores.columns import DAY, Columns, Row, packed
from resilient_scan.stores.groups import has_blocks
from resilient_scan.stores.sqlite import Looking
from resilient_scan.testing import FakeClock
from tests.support.disks import no_file_beyond
from tests.support.waiting import WAIT_TIMEOUT
from tests.unit.stores.conftest import Home

NOON = 20_000 * DAY + DAY / 2


def one_attempt() -> Columns:
    columns = Columns()
    columns.add(0, 0.5, "success", 1)
    return columns


class Keeper:
    """In place of the lease keeper: what it is asked to do waits until `work`."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def flush(self, _timeout: float, job: Callable[[], None], *, written: bool) -> None:
        assert not written, "the thread that reports an attempt waits for nothing"
        self.jobs.append(job)

    def work(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


class Process:
    """A process that notes attempts in a store of its own."""

    def __init__(self, store: Any, clock: FakeClock, seconds: float = 90 * DAY) -> None:
        self.store = store
        self.keeper = Keeper()
        self.errors: list[str] = []
        self.history = AttemptHistory(
            store,
            clock,
            seconds,
            self.keeper,  # type: ignore[arg-type]
            Random(0),
            lambda operation, _error: self.errors.append(operation),
        )
        self.history._segments = 0

    def note(self, begin: float, took: float = 0.5, outcome: str = "success", number: int = 1, **named: str) -> None:
        named = {"scanner": "a", "run_id": "r", **named}
        self.history(AttemptEnded(named["scanner"], number, outcome, took, None, named["run_id"], begin + took))

    def write(self) -> None:
        self.history.drain()
        self.store.flush()

    def found(self, name: str = "a") -> list[Row]:
        days = AttemptReader(self.store).read([name])[name]
        return [row for day, columns in days.items() for row in columns.rows(day)]


@pytest.fixture(
    params=["sqlite", "space", *(pytest.param(k, marks=pytest.mark.servers) for k in ("redis", "redis space"))]
)
def home(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Home]:
    space = "?space=one" if "space" in request.param else ""
    url = request.getfixturevalue("redis_url") if "redis" in request.param else f"sqlite:///{quick_path}/scan.db"
    place = Home(url + space)
    yield place
    place.close()


@pytest.fixture
def now(home: Home) -> float:
    """Return the store's time: a server has a clock of its own."""
    if home.url.startswith("sqlite"):
        home.clock.advance(NOON - home.clock.time())
    return home.open().now()


@pytest.fixture
def process(home: Home, now: float) -> Process:
    return Process(home.open(), home.clock)


def other(process: Process, home: Home) -> Process:
    return Process(home.open(), home.clock)


def begins(rows: list[Row]) -> list[float]:
    return [row.begin for row in rows]


def test_an_attempt_is_found_before_and_after_it_is_written_and_folded(process: Process, now: float) -> None:
    begin = now - 100
    process.note(begin, 0.41234, "error", 2)
    expected = [Row(pytest.approx(begin, abs=0.001), 0.412, "error", 2)]
    process.history.drain()
    assert process.found() == expected
    process.store.flush()
    assert process.found() == expected
    process.note(begin - 10, 0.2)
    process.write()
    process.history.fold()
    assert process.store.oldest(JOURNAL, 10) == []
    assert begins(process.found()) == pytest.approx([begin - 10, begin], abs=0.001), "in the order of their begins"
    assert process.found("nobody") == []
    assert not process.errors


def test_two_processes_fold_what_both_have_written_and_nothing_twice(process: Process, home: Home, now: float) -> None:
    second = other(process, home)
    for number in range(4):
        for one in (process, second):
            one.note(now - 100 + number, scanner="a")
            one.note(now - 100 + number, scanner="b")
            one.write()
    segments = second.store.oldest(JOURNAL, 3)
    process.history.fold()
    assert not second.history._folded(segments), "another one was faster"
    process.note(now)
    process.note(now - 100, scanner="b")
    process.write()
    second.note(now)
    second.write()
    second.history.fold()
    assert (len(process.found()), len(second.found("b"))) == (10, 9)
    assert len(process.store.blocks([f"{JOURNAL}/a", f"{JOURNAL}/b"], 0, 10)[f"{JOURNAL}/a"]) == 1, "one block a day"


def test_a_fold_that_does_not_begin_at_the_beginning_changes_nothing(process: Process, now: float) -> None:
    for number in range(3):
        process.note(now - number)
        process.write()
    first, second, third = process.store.oldest(JOURNAL, 3)
    block = {f"{JOURNAL}/a": {1: b"x"}}
    for wrong in ([], [second, third], [first, third], [first, second, third, b"more"], [b"other", second]):
        assert not process.store.fold(JOURNAL, wrong, block, 0)
    assert process.store.oldest(JOURNAL, 9) == [first, second, third]
    assert process.store.blocks([f"{JOURNAL}/a"], 0, 9) == {f"{JOURNAL}/a": {}}
    assert process.store.fold(JOURNAL, [first, second], block, 0)
    assert process.store.oldest(JOURNAL, 9) == [third]


def test_a_reader_that_a_fold_comes_into_finds_each_attempt_once(process: Process, now: float) -> None:
    for number in range(3):
        process.note(now - number)
        process.write()
    reader = AttemptReader(process.store)
    blocks, folded = process.store.blocks, []

    class Between:
        """The store; the first time that blocks are read, another process has folded just before."""

        def __getattr__(self, name: str) -> Any:
            return getattr(process.store, name)

        def blocks(self, *arguments: Any) -> Any:
            if not folded:
                folded.append(process.history.fold())
            return blocks(*arguments)

    reader._store = Between()  # type: ignore[assignment]
    assert sum(map(len, reader.read(["a"])["a"].values())) == 3
    assert folded


def test_old_days_go_with_the_next_fold_those_of_scanners_that_are_gone_too(process: Process, now: float) -> None:
    today = int(now // DAY)
    old = {day: packed({("gone", day): one_attempt()}) for day in (today - 91, today - 90)}
    process.note(now)
    process.write()
    (segment,) = process.store.oldest(JOURNAL, 9)
    assert process.store.fold(JOURNAL, [segment], {f"{JOURNAL}/gone": old}, today - 100)
    before = packed({("a", today - 91): one_attempt()})
    process.note(now)
    process.write()
    segments = process.store.oldest(JOURNAL, 9)
    assert process.store.fold(JOURNAL, segments, {f"{JOURNAL}/a": {today - 91: before}}, today - 100)
    for begin in (now - 91 * DAY, now - 90 * DAY, now):
        process.note(begin)
        process.write()
    process.history.fold()
    assert begins(process.found()) == pytest.approx([now - 90 * DAY, now], abs=0.001)
    if "redis" not in process.store.url:  # there, a whole scanner expires
        assert list(process.store.blocks([f"{JOURNAL}/gone"], 0, 9)[f"{JOURNAL}/gone"]) == [today - 90]


@pytest.mark.servers
def test_a_scanner_that_is_gone_expires_on_a_server(redis_url: str) -> None:
    redis = pytest.importorskip("redis")
    with closing(open_store(redis_url, FakeClock())) as store, redis.Redis.from_url(redis_url) as client:
        process = Process(store, FakeClock(), seconds=3 * DAY)
        for _ in range(2):
            process.note(store.now())
            process.write()
        process.history.fold()
        (key,) = client.keys("*blocks*")
        assert 3 * DAY < client.ttl(key) <= 5 * DAY


def test_the_oldest_days_make_room(process: Process, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("groups", "sqlite", "redis"):
        monkeypatch.setattr(f"resilient_scan.stores.{module}.MAX_BLOCK_BYTES", 150)
    today = int(now // DAY)
    process.note(now)
    process.write()
    days = {today - age: bytes([age]) * 60 for age in range(5)}
    assert process.store.fold(JOURNAL, process.store.oldest(JOURNAL, 1), {f"{JOURNAL}/a": days}, 0)
    assert sorted(process.store.blocks([f"{JOURNAL}/a"], 0, 9)[f"{JOURNAL}/a"]) == [today - 1, today]
    process.note(now)
    process.write()
    large = {f"{JOURNAL}/a": {today: b"x" * 200}}
    assert process.store.fold(JOURNAL, process.store.oldest(JOURNAL, 1), large, 0)
    assert list(process.store.blocks([f"{JOURNAL}/a"], 0, 9)[f"{JOURNAL}/a"]) == [today], "the newest stays"


def test_a_damaged_block_costs_itself_and_one_line(
    process: Process, now: float, caplog: pytest.LogCaptureFixture
) -> None:
    today = int(now // DAY)
    process.note(now)
    process.write()
    good = packed({("a", today - 1): one_attempt()})
    days = {today - 2: good[:-1] + b"!", today - 1: good}
    assert process.store.fold(JOURNAL, process.store.oldest(JOURNAL, 1), {f"{JOURNAL}/a": days}, 0)
    reader = AttemptReader(process.store)
    for _ in range(2):
        assert list(reader.read(["a"])["a"]) == [today - 1]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "has lost the attempts of a on day" in line
    for begin in (now - 2 * DAY, now - DAY):  # and attempts of these days are added to what is left
        process.note(begin)
        process.write()
    process.history.fold()
    assert [len(columns) for columns in AttemptReader(process.store).read(["a"])["a"].values()] == [1, 2]


def test_a_damaged_segment_costs_itself(process: Process, now: float, caplog: pytest.LogCaptureFixture) -> None:
    process.note(now - 1)
    process.write()
    process.store.append(JOURNAL, b"no segment", 99)
    process.note(now)
    process.write()
    assert len(process.found()) == 2
    process.history.fold()
    assert len(process.found()) == 2
    assert process.store.oldest(JOURNAL, 9) == []
    assert "has lost some attempts: it does not fit its checksum" in caplog.text


# what is noted


def test_a_thread_that_comes_back_belongs_to_its_attempt(process: Process, now: float) -> None:
    process.note(now - 30, 10.0, "timeout")
    process.note(now - 60, 1.0, "error", 1, run_id="s")
    process.note(now - 50, 5.0, "timeout", 2, run_id="s")
    process.write()
    process.note(now - 5)
    clock: Any = process.history._clock
    clock.advance(now - clock.time())
    process.history(LateCompletion("a", 30.0, "success", "r", 1))
    process.history(LateCompletion("a", 60.0, "success", "s", 2))
    process.write()
    process.history.fold()
    late = {(row.outcome, row.number): row.returned for row in process.found() if row.returned is not None}
    assert late == {("timeout", 1): 30.0, ("timeout", 2): 50.0}, "its attempt took 50 s of the thread's 60"
    assert len(process.found()) == 4


def test_a_thread_may_be_back_before_its_timeout_is_reported(process: Process, now: float) -> None:
    clock: Any = process.history._clock
    clock.advance(now - clock.time())
    process.history(LateCompletion("a", 10.05, "success", "r", 1))
    process.write()
    assert process.found() == []
    process.note(now - 10.05, 10.0, "timeout")
    process.write()
    assert [row.returned for row in process.found()] == [10.1]
    process.history(LateCompletion("a", 20.0, "success", "unknown", 1))  # its timeout is never reported
    process.history.finish(0.0)
    process.store.flush()
    assert [sum(each.outcomes.count(4) for each in AttemptReader(process.store).read(["a"])["a"].values())] == [2]


def test_of_the_inputs_of_a_map_the_likeliest_has_come_back(process: Process, now: float) -> None:
    clock: Any = process.history._clock
    clock.advance(now - clock.time())
    for begin in (now - 40, now - 30, now - 20):
        process.note(begin, 10.0, "timeout")
    process.history(LateCompletion("a", 30.0, "success", "r", 1))
    process.write()
    assert [row.returned for row in process.found()] == [None, 30.0, None]


def test_hung_threads_that_never_come_back_are_forgotten(process: Process, now: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(attempts, "MAX_HUNG", 2)
    for run in "rstu":
        process.note(now, 1.0, "timeout", run_id=run)
    process.history.drain()
    assert [run for _, run, _ in process.history._hung] == ["t", "u"]
    for number in range(3):
        process.note(now + number, 1.0, "timeout", run_id="u")
    process.history.drain()
    assert [len(begins) for begins in process.history._hung.values()] == [1, 2], "the inputs of a map have one key"


def test_an_attempt_belongs_to_the_day_on_which_it_began_and_clocks_may_jump(process: Process, now: float) -> None:
    midnight = now // DAY * DAY
    for begin in (midnight - 0.25, midnight + 0.25, midnight - 3600, -5.0):
        process.note(begin, 1.0)
        process.write()
    day = int(midnight // DAY)
    found = AttemptReader(process.store).read(["a"], since=day - 1)["a"]
    assert {each: list(columns.begins) for each, columns in found.items()} == {
        day - 1: [86_400_000 - 3_600_000, 86_400_000 - 250],
        day: [250],
    }
    assert next(iter(AttemptReader(process.store).read(["a"])["a"])) == 0, "a clock before 1970 is at 1970"
    process.history.fold()
    assert list(AttemptReader(process.store).read(["a"])["a"]) == [day - 1, day]


def test_only_a_long_run_asks_for_its_attempts_to_be_written(process: Process, now: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(attempts, "MAX_WAITING", 3)
    for number in range(5):
        process.note(now + number / 10)
    assert len(process.keeper.jobs) == 1, "once"
    process.keeper.work()
    process.note(now)
    process.note(now + 59)
    assert not process.keeper.jobs
    process.note(now + 61)
    assert len(process.keeper.jobs) == 1
    process.keeper.work()
    process.note(now + 3600)
    assert not process.keeper.jobs, "the first after a pause has not waited"


def test_every_64_segments_are_folded(process: Process, now: float) -> None:
    for number in range(64):
        assert process.history._folder is None
        process.note(now - number)
        process.write()
    process.history.finish(WAIT_TIMEOUT)
    assert len(process.store.oldest(JOURNAL, 99)) <= 1, "the fold began before the last one was written"
    assert len(process.found()) == 64


def test_a_fold_that_a_close_comes_into_is_given_up_silently(process: Process, now: float) -> None:
    for number in range(2):
        process.note(now - number)
        process.write()
    segments = process.store.oldest(JOURNAL, 9)
    process.history.finish(0.0)
    process.history._store = Failing(process.store, "oldest")  # type: ignore[assignment]
    process.history.fold()
    assert process.errors == []
    assert process.store.oldest(JOURNAL, 9) == segments


def test_a_process_of_one_run_folds_by_chance(process: Process) -> None:
    first = [
        AttemptHistory(process.store, FakeClock(), DAY, Keeper(), Random(seed), print)._segments  # type: ignore[arg-type]
        for seed in range(300)
    ]
    assert {0, 63} <= set(first) <= set(range(64))


# how long an execution takes


def test_expected_durations_come_from_what_is_known_else_from_the_blocks(
    process: Process, home: Home, now: float
) -> None:
    assert process.history.recall({}, ["a", "b"]) == {}
    for number in range(3):
        process.note(now - 100 + number, 2.0)
        process.note(now - 100 + number, 4.0, scanner="b")
        process.write()
    assert process.history.expected(["a", "b", "c"]) == {"a": 2.0, "b": 4.0}
    process.history.fold()
    again = other(process, home)
    assert again.history.recall({"a": 9.0}, ["a", "b", "c"]) == {"a": 9.0, "b": 4.0}
    for number in range(40):
        again.note(now + number, 2.0)
    again.history.drain()
    assert again.history.expected(["a"]) == {"a": 2.0}, "it is of the last 32"
    again.note(now + 60, 34.0)
    again.history.drain()
    assert again.history.expected(["a"]) == {"a": pytest.approx(3.0)}


def test_a_fleet_that_nothing_is_known_of_is_not_read_scanner_by_scanner(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(attempts, "MAX_RECALLED", 1)
    monkeypatch.setattr(process.history, "read", lambda *_, **__: pytest.fail("it was read"))
    assert process.history.recall({}, ["a", "b"]) == {}


def test_the_linter_gets_the_last_days_only(process: Process, now: float) -> None:
    for begin, took in ((now - 40 * DAY, 9.0), (now - 2 * DAY, 2.0), (now, 1.0)):
        process.note(begin, took)
        process.write()
    process.history.fold()
    (found,) = AttemptReader(process.store).measured(["a", "b"], 30).items()
    assert (found[0], found[1].spans, found[1].days) == ("a", (1.0, 2.0), 30)


# stores that fail, or keep nothing


class Failing:
    """A store that fails at what is named."""

    def __init__(self, store: Store, *failing: str) -> None:
        self._store, self._failing = store, failing
        self.url, self.shared, self.has_blocks = store.url, True, True

    def __getattr__(self, name: str) -> Any:
        if name in self._failing:

            def fail(*_: Any) -> Any:
                raise StoreError("away")

            return fail
        return getattr(self._store, name)


def test_a_store_that_fails_is_reported_and_costs_what_it_did_not_take(
    process: Process, home: Home, now: float
) -> None:
    whole = process.store
    for operation in ("append", "oldest", "blocks", "fold", "tail"):
        process.note(now)
        process.write()
        process.history._store = Failing(whole, operation)  # type: ignore[assignment]
        process.note(now, scanner="b")
        process.write()
        process.history.fold()
        process.history.recall({}, ["unknown"])
        process.history._store = whole  # type: ignore[assignment]
    assert process.errors == ["append", "append", "read", "append", "read", "append", "read"]
    process.history.fold()
    assert (len(process.found()), len(process.found("b"))) == (5, 4)


def test_a_full_disk_loses_nothing_that_is_written(quick_path: Path) -> None:
    clock = FakeClock(start=NOON)
    path = quick_path / "scan.db"
    with closing(open_store(f"sqlite:///{path}", clock)) as store:
        process = Process(store, clock)
        process.note(NOON)
        process.write()
        with no_file_beyond(path.stat().st_size):
            for number in range(2_000):
                process.note(NOON + number / 10, number / 7, scanner=f"s{number}")
            process.history.drain()
            with pytest.raises(StoreError):
                store.flush()
            process.history.fold()
        assert len(process.found()) == 1
        store.flush()
        process.history.fold()
        assert (len(process.found()), len(process.found("s1999"))) == (1, 1)


def test_a_store_of_an_older_version_keeps_attempts_from_now_on(quick_path: Path) -> None:
    """There is no new table, so a process of that version goes on with the file too."""
    clock = FakeClock(start=NOON)
    url = f"sqlite:///{quick_path}/scan.db"
    with closing(open_store(url, clock)) as store:
        store.append("runs", b"a run", 9)
    before = schema_of(quick_path / "scan.db")
    with closing(open_store(url, clock)) as store:
        process = Process(store, clock)
        for _ in range(2):
            process.note(NOON)
            process.write()
        process.history.fold()
        assert len(process.found()) == 2
        assert store.tail("runs", 9) == [b"a run"]
    assert schema_of(quick_path / "scan.db") == before


def schema_of(path: Path) -> Any:
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute("PRAGMA user_version").fetchall(), raw.execute("SELECT * FROM sqlite_master").fetchall()


def test_a_damaged_row_of_a_block_is_no_reason_to_replace_the_file(quick_path: Path, caplog: Any) -> None:
    clock = FakeClock(start=NOON)
    path = quick_path / "scan.db"
    with closing(open_store(f"sqlite:///{path}", clock)) as store:
        process = Process(store, clock)
        for begin in (NOON, NOON - DAY):
            process.note(begin)
            process.write()
        process.history.fold()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE records SET data = x'00' WHERE key = CAST('attempts/a/020000' AS BLOB)")
    with closing(open_store(f"sqlite:///{path}", clock)) as store:
        assert begins(Process(store, clock).found()) == [NOON - DAY]
    assert "has lost the attempts of a on day 20000" in caplog.text
    assert not list(quick_path.glob("*corrupt*"))


def test_stores_in_memory_and_those_of_others_have_no_blocks() -> None:
    assert not has_blocks(open_store("memory:", FakeClock()))
    assert not has_blocks(open_store("memory:?space=a", FakeClock()))
    assert groups.MAX_BLOCK_BYTES == 4 * 1024 * 1024


@pytest.mark.parametrize("space", ["", "?space=one"])
def test_a_file_can_be_looked_at_without_touching_it(quick_path: Path, space: str) -> None:
    clock = FakeClock(start=NOON)
    url = f"sqlite:///{quick_path}/scan.db{space}"
    reader = AttemptReader(Looking(url, clock))
    with pytest.raises(StoreError, match="cannot be read"):
        reader.read(["a"])
    assert not list(quick_path.iterdir())
    with closing(open_store(url, clock)) as store:
        process = Process(store, clock)
        for number in range(3):
            process.note(NOON - number)
            process.write()
        process.history.fold()
        process.note(NOON + 1)
        process.write()
    files = {file: file.read_bytes() for file in quick_path.iterdir()}
    assert [len(columns) for columns in reader.read(["a"])["a"].values()] == [4]
    assert reader.measured(["a", "b"], 30)["a"].count == 4
    assert {file: file.read_bytes() for file in quick_path.iterdir()} == files
    (quick_path / "scan.db").write_bytes(b"no database" * 99)
    with pytest.raises(StoreError, match="cannot be read"):
        reader.read(["a"])
