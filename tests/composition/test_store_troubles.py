"""A store that fails at any moment: the run ends on time with exact results, and the log has one line about it."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    LogEvents,
    Policy,
    PrometheusMetrics,
    Quarantine,
    Retry,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.events import StoreFailed, StoreRecovered
from resilient_scan.stores import database
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import Recorder, broken, hanging, healthy
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.servers import RedisServer
from tests.support.stores import FailingStore

pytestmark = pytest.mark.slow

LATE = 2.0  # seconds by which a run may be late for its store's sake: twice 250 ms, and what a busy machine adds
ALL = 30


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "state.db"


@pytest.fixture
def policy(bare: Bare) -> Policy:
    return bare(cache=Cache(ttl=300), breaker=Breaker(failures=2, open_for=60))


class Lines:
    """What the log has of the store, warnings and others."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def warnings(self) -> list[str]:
        return [line for level, line in self._all() if level == logging.WARNING]

    def recoveries(self) -> int:
        return sum(line == "the store works again" for _, line in self._all())

    def _all(self) -> list[tuple[int, str]]:
        records = [(record.levelno, record.getMessage()) for record in self._caplog.records]
        return [(level, line) for level, line in records if "store" in line]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, "resilient_scan")
    return Lines(caplog)


def scanners() -> list[Any]:
    """Many that answer, two that fail."""
    good = [
        healthy(f"good{number}", [{"ticker": f"T{number}", "source": "s", "context": "c"}], empty_ok=True)
        for number in range(ALL)
    ]
    return [*good, broken("bad"), broken("worse")]


def exact(report: Any, *, cached: bool = False) -> None:
    """Hold a report to what it has to be, whatever becomes of the store."""
    answered = {Status.COMPLETED, Status.CACHED} if cached else {Status.COMPLETED}
    for number in range(ALL):
        result = report.results[f"good{number}"]
        assert result.status in answered, result
        assert [candidate.ticker for candidate in result.candidates] == [f"T{number}"]
    assert report.results["bad"].status in {Status.ERROR, Status.REJECTED}


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return run(), time.monotonic() - began


def test_a_file_that_is_locked_for_long(
    fleet: Fleet, policy: Policy, path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.6)  # of a person's order
    registry = CollectorRegistry()
    listeners = (LogEvents(), PrometheusMetrics(registry))
    runner = fleet(*scanners(), policy=policy, store=f"sqlite:///{path}", listeners=listeners)
    exact(runner.run({"n": 0}))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        report, took = timed(lambda: runner.run({"n": 1}, deadline=5))
        exact(report)
        assert took < 4, "it waits once, and briefly"
        exact(runner.run({"n": 2}))
        with pytest.raises(StoreError, match="good0 is disabled in this process only"):
            runner.disable("good0", duration=60)
        assert runner.run({"n": 3}).results["good0"].status is Status.DISABLED
        (line,) = lines.warnings()
        assert line == f"the store {path} is locked by another process; runs go on without it"
        assert lines.recoveries() == 0
        other.execute("ROLLBACK")
    runner.enable("good0")  # though nobody has seen it back yet
    eventually(lambda: bool(runner.run({"n": 4}).results) and lines.recoveries() == 1)
    exact(runner.run({"n": 4}), cached=True)
    assert (len(lines.warnings()), lines.recoveries()) == (1, 1)
    counted = {
        sample.labels["operation"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "resilient_scan_store_errors_total"
    }
    assert sum(counted.values()) > 10
    with fleet(*scanners(), policy=policy, store=f"sqlite:///{path}") as second:
        report = second.run({"n": 1})
    assert report.results["good0"].status is Status.CACHED, "what could not be written then was written later"


def test_a_runs_deadline_holds_while_the_file_is_locked(
    fleet: Fleet, bare: Bare, path: Path, release: threading.Event, lines: Lines
) -> None:
    policy = bare(cache=Cache(ttl=300), breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=5))
    slow = [hanging(f"slow{number}", release) for number in range(4)]
    runner = fleet(*slow, *scanners(), policy=policy, store=f"sqlite:///{path}", listeners=(LogEvents(),))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for deadline in (0.05, 0.3, 1.0):
            _, took = timed(lambda: runner.run({"n": deadline}, deadline=deadline))  # noqa: B023
            assert took < deadline + LATE
    assert len(lines.warnings()) == 1


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_scans_timeout_is_not_the_stores(
    fleet: Fleet, bare: Bare, path: Path, moment: str, release: threading.Event
) -> None:
    """A locked file costs no scan that is well its result, and does not hold up the one that hangs."""
    policy = bare(cache=Cache(ttl=300), breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=2))
    locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    @scanner(name="first", pipeline="test")
    def first(_state: Any) -> list[Any]:
        if moment == "during" and not locker.in_transaction:
            locker.execute("BEGIN EXCLUSIVE")
        return []

    hangs = hanging("hangs", release, timeout=Timeout(total=0.3))
    runner = fleet(first, hangs, *scanners(), policy=policy, store=f"sqlite:///{path}", max_workers=4)
    with closing(locker):
        if moment == "before":
            locker.execute("BEGIN EXCLUSIVE")
        report, took = timed(runner.run)
    exact(report)
    assert report.results["first"].status is Status.COMPLETED
    assert report.results["hangs"].status is Status.TIMEOUT
    assert report.results["hangs"].duration < 1.8, "its own timeout, not that of the others"
    assert took < 4


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("/proc/none/state.db", "the store /proc/none/state.db cannot be made: No such file or directory"),
        ("{path}", "the store {path} cannot be used: it is a directory"),
    ],
)
def test_a_place_where_nothing_can_be_written(
    fleet: Fleet, policy: Policy, path: Path, lines: Lines, where: str, why: str
) -> None:
    path.mkdir()
    url = f"sqlite:///{where.format(path=path)}"
    runner = fleet(*scanners(), policy=policy, store=url, listeners=(LogEvents(),))
    for number in range(4):
        exact(runner.run({"n": number}))
    assert runner.run({"n": 0}).results["good0"].status is Status.CACHED, "memory does"
    assert lines.warnings() == [f"{why.format(path=path)}; runs go on without it"]
    assert lines.recoveries() == 0


READ_ONLY = """
import logging, os, sys
from pathlib import Path
from resilient_scan import Policy, ScanRunner
from tests.composition.test_store_troubles import exact, scanners
path = Path(sys.argv[1])
with ScanRunner(scanners(), policy=Policy(retry=None), store=f"sqlite:///{path}", listeners=()) as runner:
    runner.run({"n": 0})
path.parent.chmod(0o555)
for file in path.parent.iterdir():
    file.chmod(0o444)
if os.getuid() == 0:
    os.setuid(65534)
logging.basicConfig(level=logging.INFO, format="%(message)s")
with ScanRunner(scanners(), policy=Policy(retry=None), store=f"sqlite:///{path}") as runner:
    for n in range(3):
        exact(runner.run({"n": n}), cached=True)
path.parent.chmod(0o755) if os.getuid() != 65534 else None
"""

FULL = """
import logging, resource, sys
from resilient_scan import Policy, ScanRunner
from tests.composition.test_store_troubles import exact, scanners
logging.basicConfig(level=logging.INFO, format="%(message)s")
with ScanRunner(scanners(), policy=Policy(retry=None), store=f"sqlite:///{sys.argv[1]}") as runner:
    exact(runner.run({"n": 0}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for n in range(1, 4):
        exact(runner.run({"n": n}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    exact(runner.run({"n": 4}))
with ScanRunner(scanners(), policy=Policy(retry=None), store=f"sqlite:///{sys.argv[1]}") as runner:
    for n in range(5):
        assert runner.run({"n": n}).results["good7"].status == "cached", n
"""


def logged_by(code: str, path: Path) -> list[str]:
    """Run code in a process of its own and return what its log has of the store."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "store" in line]


def test_a_directory_that_may_not_be_written_any_more(path: Path) -> None:
    path.parent.chmod(0o755)
    lines = logged_by(READ_ONLY, path)
    path.parent.chmod(0o755)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"the store {path}")
    assert lines[0].endswith("; runs go on without it")


def test_a_disk_that_is_full_for_a_while(path: Path) -> None:
    lines = logged_by(FULL, path)
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"the store {path}")
    assert lines[0].endswith("; runs go on without it")
    assert lines[1] == "the store works again"


def in_the_middle(act: Callable[[], object]) -> Any:
    """Make a scanner that does something to the store, while the others wait for their turn."""

    @scanner(name="aaa", pipeline="test", cache=None)
    def vandal(_state: Any) -> list[Any]:
        act()
        return []

    return vandal


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:] = os.urandom(len(data) - 100)
    with path.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("act", [spoil, Path.unlink], ids=["corrupted", "deleted"])
def test_a_file_that_is_harmed_in_mid_run(
    fleet: Fleet, policy: Policy, path: Path, lines: Lines, act: Callable[[Path], object]
) -> None:
    with fleet(*scanners(), policy=policy, store=f"sqlite:///{path}") as runner:
        runner.run({"n": 0})
    vandal = in_the_middle(lambda: act(path))
    options = {"policy": policy, "order": "given", "max_workers": 1, "listeners": (LogEvents(),)}
    with fleet(vandal, *scanners(), store=f"sqlite:///{path}", **options) as runner:
        exact(runner.run({"n": 1}), cached=True)
    logged = lines.warnings()
    assert len(logged) == (1 if act is spoil else 0), logged
    assert all("is damaged" in line and "moved aside" in line for line in logged)
    with fleet(*scanners(), policy=policy, store=f"sqlite:///{path}") as runner:
        exact(runner.run({"n": 1}), cached=True)
        assert len(runner.history()) == 2, "the run of the harm, and this one"


def test_a_foreign_store_may_raise_what_it_likes(fleet: Fleet, policy: Policy, lines: Lines) -> None:
    store, recorder = FailingStore(SystemClock()), Recorder()
    runner = fleet(*scanners(), policy=policy, store=store, listeners=(LogEvents(), recorder))
    exact(runner.run({"n": 0}))
    store.error = ConnectionError("password=hunter2")
    for number in range(1, 3):
        exact(runner.run({"n": number}))
    store.error = None
    exact(runner.run({"n": 3}))
    exact(runner.run({"n": 3}), cached=True)
    assert lines.warnings() == ["the store memory: failed with ConnectionError; runs go on without it"]
    assert lines.recoveries() == 1
    assert len(recorder.of(StoreFailed)) > 10
    assert [event.first for event in recorder.of(StoreFailed)].count(True) == 1
    assert len(recorder.of(StoreRecovered)) == 1


class Watched(MemoryStore):
    """A store that notes which threads ask it."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.threads: set[str] = set()

    def _check_open(self) -> None:
        self.threads.add(threading.current_thread().name)


def test_the_watchdog_asks_no_store(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """Timeouts, hung attempts with successors and without, a run's deadline: all of them end by the watchdog."""
    policy = bare(
        cache=Cache(ttl=300, stale_if_error=60, ttl_error=1),
        breaker=Breaker(failures=1, open_for=0.05, slow_after=0.01, slow_rate=0.5, minimum=1),
        retry=Retry(attempts=3, base=0.001),
        timeout=Timeout(total=0.2, attempt=0.05, max_abandoned=3),
    )
    store = Watched()
    options = {"quarantine": Quarantine(after_failures=1, cooloff=0.01, max_share=1.0), "max_workers": 16}
    hangs = [hanging(f"hangs{number}", release) for number in range(4)]
    runner = fleet(*hangs, healthy("good"), policy=policy, store=store, **options)
    for deadline in (None, 0.1, 0.15, None):
        runner.run({"n": str(deadline)}, deadline=deadline)
    names = {name for name in store.threads if "watch" in name.lower()}
    assert store.threads
    assert not names
    assert any("watch" in thread.name.lower() for thread in threading.enumerate()), "it goes by that name"


# Redis


@pytest.mark.servers
def test_a_redis_that_is_killed_in_mid_run_and_comes_back(
    fleet: Fleet, policy: Policy, own_redis: RedisServer, lines: Lines, eventually: Eventually
) -> None:
    vandal = in_the_middle(own_redis.kill)
    options = {"policy": policy, "order": "given", "max_workers": 2, "listeners": (LogEvents(),)}
    runner = fleet(vandal, *scanners(), store=own_redis.url, **options)
    report, took = timed(lambda: runner.run({"n": 0}))
    exact(report)
    exact(runner.run({"n": 1}))
    assert took < 3
    assert len(lines.warnings()) == 1
    assert f"the store {own_redis.url} is away" in lines.warnings()[0]
    own_redis.start()
    sound = [name for name in runner.names if name != "aaa"]
    eventually(lambda: bool(runner.run({"n": 2}, only=sound).results) and lines.recoveries() == 1)
    assert len(lines.warnings()) == 1
    with fleet(*scanners(), policy=policy, store=own_redis.url) as other:
        for number in range(3):
            result = other.run({"n": number}).results["good3"]
            assert result.status is Status.CACHED, "what was found while it was away has caught up"


def test_a_redis_that_accepts_and_never_answers(fleet: Fleet, policy: Policy, silent: str, lines: Lines) -> None:
    runner = fleet(*scanners(), policy=policy, store=silent, listeners=(LogEvents(),))
    report, took = timed(lambda: runner.run({"n": 0}))
    exact(report)
    assert took < 4  # 250 ms for each of them would be more than 7
    for deadline in (0.05, 0.2):
        _, took = timed(lambda: runner.run({"n": deadline}, deadline=deadline))  # noqa: B023
        assert took < deadline + LATE
    (line,) = lines.warnings()
    assert "no answer within 250 ms" in line
    assert "hunter2" not in line
    assert lines.recoveries() == 0
