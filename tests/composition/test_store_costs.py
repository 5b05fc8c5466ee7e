"""What a run asks of its store, counted at the connection: transactions of a file, round trips to a server.

The clock stands still, so nothing is written because a moment has passed: what is counted does not depend on how fast
the machine is, and is the most that there is on a fast one.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Cache, ScanRunner, Status, scanner
from resilient_scan.stores import database
from resilient_scan.testing import FakeClock
from tests.support.fixtures import Bare, Fleet
from tests.support.needed import binary
from tests.support.servers import RedisServer

WINDOW = 128
WINDOWS = 4


def no_ops(number: int) -> list[Any]:
    def nothing(_state: dict[str, Any]) -> list[Any]:
        return []

    return [scanner(name=f"s{one}", pipeline="test", empty_ok=True)(nothing) for one in range(number)]


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the transactions of all files: those that write, and those that only read."""
    counts: Counter[str] = Counter()
    connect = database._connect

    def count(statement: str) -> None:
        if statement.startswith("BEGIN"):
            counts["writes" if "IMMEDIATE" in statement else "reads"] += 1

    def traced(path: Path, timeout: float) -> sqlite3.Connection:
        raw = connect(path, timeout)
        raw.set_trace_callback(count)
        return raw

    monkeypatch.setattr(database, "_connect", traced)
    return counts


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is sent to a server before an answer is waited for."""
    redis = pytest.importorskip("redis")
    counts: Counter[str] = Counter()
    send = redis.connection.Connection.send_packed_command

    def counted(connection: Any, command: Any, *rest: Any, **options: Any) -> Any:
        counts["sent"] += 1
        return send(connection, command, *rest, **options)

    monkeypatch.setattr(redis.connection.Connection, "send_packed_command", counted)
    return counts


def run(runner: ScanRunner, counts: Counter[str], number: int, expected: Status) -> Counter[str]:
    """Run once; return what that has cost."""
    counts.clear()
    report = runner.run({"n": number})
    assert {result.status for result in report.results.values()} == {expected}
    return counts.copy()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(binary("redis-server"), tmp_path)
    yield server
    server.kill()


@pytest.fixture
def policy(bare: Bare) -> Any:
    return bare(cache=Cache(ttl=300, inputs=("n",)))


def test_a_window_of_misses_takes_four_commits(
    fleet: Fleet, policy: Any, quick_path: Path, transactions: Counter[str]
) -> None:
    options: dict[str, Any] = {"policy": policy, "store": f"sqlite:///{quick_path}/scan.db", "clock": FakeClock()}
    runner = fleet(*no_ops(WINDOWS * WINDOW), **options)
    unknown = run(runner, transactions, 0, Status.COMPLETED)
    known = run(runner, transactions, 1, Status.COMPLETED)
    assert known["writes"] <= 13 <= 4 * WINDOWS, "7 groups of leases, 4 of answers, and both at the end"
    assert known["reads"] <= 4 * WINDOWS, known
    assert unknown["writes"] <= 4 * WINDOWS + 4, "the first two files are made, and the first few go first"
    hits = run(runner, transactions, 1, Status.CACHED)
    assert hits["writes"] == 0, "a record that there was a run waits for a moment, or for the next write"
    assert hits["reads"] <= 4, hits
    runner.close()
    again = fleet(*no_ops(WINDOWS * WINDOW), **options)
    stored = run(again, transactions, 1, Status.CACHED)
    assert stored["reads"] <= WINDOWS + 6, stored
    assert stored["writes"] == 0, stored


@pytest.mark.servers
def test_a_window_of_misses_takes_six_round_trips(
    fleet: Fleet, policy: Any, server: RedisServer, round_trips: Counter[str]
) -> None:
    options: dict[str, Any] = {"policy": policy, "store": server.url, "clock": FakeClock()}
    runner = fleet(*no_ops(WINDOWS * WINDOW), **options)
    run(runner, round_trips, 0, Status.COMPLETED)
    known = run(runner, round_trips, 1, Status.COMPLETED)
    assert known["sent"] <= 6 * WINDOWS, known
    hits = run(runner, round_trips, 1, Status.CACHED)
    assert hits["sent"] <= 5, hits
    runner.close()
    again = fleet(*no_ops(WINDOWS * WINDOW), **options)
    stored = run(again, round_trips, 1, Status.CACHED)
    assert stored["sent"] <= WINDOWS + 15, stored
