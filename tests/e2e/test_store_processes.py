"""Several processes on one store: nothing acknowledged is lost, nothing is half there, nothing is corrupt."""

from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from resilient_scan.clock import SystemClock
from resilient_scan.stores import Store, open_store
from tests.e2e.store_crew import Job, Worker, counting, number, once, writing
from tests.support.needed import binary
from tests.support.processes import needs_fork
from tests.support.servers import RedisServer

pytestmark = needs_fork
NAMES = ("a", "b", "c", "d")


def together(url: str, jobs: list[Job]) -> list[list[str]]:
    """Let processes do their jobs at the same time, and return what they said."""
    crew = [Worker(url, job) for job in jobs]
    try:
        return [worker.wait() for worker in crew]
    finally:
        for worker in crew:
            worker.kill()


def test_no_update_of_eight_processes_with_eight_threads_is_lost(url: str) -> None:
    told = together(url, [counting(8, 5)] * 8)
    assert sorted(int(line) for lines in told for line in lines) == list(range(1, 321))
    with closing(open_store(url, SystemClock())) as store:
        assert number(store.read("count")["count"]) == 320


@pytest.mark.parametrize("content", [b"", b"no database " * 1000], ids=["none", "damaged"])
def test_eight_processes_that_begin_at_once_on_one_file(content: bytes, quick_path: Path) -> None:
    """Each makes or mends the file if it must; whatever one of them has written stays."""
    path = quick_path / "scan.db"
    for _ in range(8):
        if content:
            path.write_bytes(content)
        told = together(f"sqlite:///{path}", [once(f"{name}") for name in range(8)])
        assert told == [["done"]] * 8
        with closing(open_store(f"sqlite:///{path}", SystemClock())) as store:
            assert len(store.read("own/")) == 8
        aside = [each for each in quick_path.iterdir() if ".corrupt-" in each.name and "-journal" not in each.name]
        assert len(aside) == (1 if content else 0)
        for each in quick_path.iterdir():
            each.unlink()


def killed_at_random(directory: Path, rounds: int, seed: int) -> None:
    """Kill one of four writers at a random moment, again and again; after each kill, look at everything."""
    url = f"sqlite:///{directory}/scan.db"
    chance = random.Random(seed)
    acknowledged = dict.fromkeys(NAMES, 0)
    crew = {name: Worker(url, writing(name)) for name in NAMES}
    pause = threading.Event()
    try:
        with closing(open_store(url, SystemClock())) as store:
            for _ in range(rounds):
                pause.wait(chance.uniform(0.0, 0.05))
                victim = chance.choice(NAMES)
                crew[victim].kill()
                _note(crew, acknowledged)
                _look(store, directory, acknowledged)
                crew[victim] = Worker(url, writing(victim))
            _wait_for_all(crew, pause)
            _note(crew, acknowledged)
            _look(store, directory, acknowledged)
    finally:
        for worker in crew.values():
            worker.kill()
    assert [each.name for each in directory.iterdir() if ".corrupt-" in each.name] == []
    assert min(acknowledged.values()) > 0


def _note(crew: dict[str, Worker], acknowledged: dict[str, int]) -> None:
    for name, worker in crew.items():
        if worker.lines:
            assert worker.lines[-1].isdigit(), "\n".join(worker.lines)
            acknowledged[name] = int(worker.lines[-1])


def _wait_for_all(crew: dict[str, Worker], pause: threading.Event) -> None:
    for _ in range(1000):
        if all(worker.lines for worker in crew.values()):
            return
        pause.wait(0.01)


def _look(store: Store, directory: Path, acknowledged: dict[str, int]) -> None:
    """Whatever was acknowledged before is there, and everything that is there is whole."""
    found = {key: number(data) for key, data in store.read("").items()}
    assert {name: count for name, count in acknowledged.items() if found.get(f"own/{name}", 0) < count} == {}
    for name in NAMES:
        number(store.get(f"answer/{name}"))
    for log in ("runs", "audit"):
        for record in store.tail(log, 100):
            number(record)
    for file in ("scan.db", "scan.db-leases"):
        if (directory / file).exists():
            with closing(sqlite3.connect(directory / file, timeout=10)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_ten_kills_under_four_writers(quick_path: Path) -> None:
    killed_at_random(quick_path, 10, seed=1)


@pytest.mark.long
def test_three_hundred_kills_under_four_writers(quick_path: Path) -> None:
    killed_at_random(quick_path, 300, seed=2)


@pytest.mark.servers
def test_redis_killed_under_writers_loses_nothing_that_was_on_its_disk(quick_path: Path) -> None:
    """With `appendfsync always` an acknowledged update is on disk; the store is as durable as its server."""
    server = RedisServer(binary("redis-server"), quick_path, "--appendonly", "yes", "--appendfsync", "always")
    acknowledged = dict.fromkeys(NAMES, 0)
    crew = {name: Worker(server.url, writing(name)) for name in NAMES}
    try:
        _wait_for_all(crew, threading.Event())
        server.kill()
        told = [worker.wait() for worker in crew.values()]
        assert all("is away" in "\n".join(lines) for lines in told)
        server.start()
        with closing(open_store(server.url, SystemClock())) as store:
            found = {key: number(data) for key, data in store.read("own/").items()}
        for name, lines in zip(NAMES, told, strict=True):
            acknowledged[name] = max(int(line) for line in lines if line.isdigit())
        assert {name: count for name, count in acknowledged.items() if found[f"own/{name}"] < count} == {}
    finally:
        server.kill()
        for worker in crew.values():
            worker.kill()
