"""A thread that only a process could have been instead of is told apart from one that has a better way out."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resilient_scan import LogEvents, Timeout, scanner
from resilient_scan.core.hangs import Hang, LateEnd
from resilient_scan.core.pool import ThreadPool
from resilient_scan.engines import stuck
from resilient_scan.events import LateCompletion, ThreadAbandoned
from resilient_scan.testing import Recorder, hanging
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.tasks import QuietTask
from tests.support.waiting import WAIT_TIMEOUT

SHORT = Timeout(total=0.05)
WAY_OUT = 'in a process of its own it could be stopped (isolation="process")'
pytestmark = pytest.mark.skipif(stuck._WAITS is None, reason="only Linux tells what a thread does")


@contextmanager
def computing_in_c() -> Iterator[Callable[[], Any]]:
    yield lambda: hashlib.pbkdf2_hmac("sha256", b"key", b"salt", 1_500_000)


@contextmanager
def waiting_for_a_child() -> Iterator[Callable[[], Any]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child.wait
        child.kill()


@contextmanager
def sleeping() -> Iterator[Callable[[], Any]]:
    yield lambda: time.sleep(0.5)


@contextmanager
def waiting_for_a_lock() -> Iterator[Callable[[], Any]]:
    release = threading.Event()
    yield release.wait
    release.set()


@contextmanager
def computing_in_python() -> Iterator[Callable[[], Any]]:
    end: list[bool] = []

    def compute() -> None:
        while not end:
            pass

    yield compute
    end.append(True)


@contextmanager
def making_many_short_calls() -> Iterator[Callable[[], Any]]:
    """It holds the lock, but for microseconds at a time."""
    end: list[bool] = []

    def call() -> None:
        numbers = range(1000)
        while not end:
            sum(numbers)

    yield call
    end.append(True)


@pytest.mark.parametrize(
    ("doing", "hint"),
    [
        (computing_in_c, "sat in a C call"),
        (waiting_for_a_child, "sat in a C call"),
        (sleeping, ""),
        (waiting_for_a_lock, ""),
        (computing_in_python, ""),
        (making_many_short_calls, ""),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_only_a_process_could_have_ended_has_a_hint(
    doing: Any, hint: str, fleet: Fleet, bare: Bare, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    with doing() as call:

        @scanner(pipeline="test")
        def stuck_one(_state: dict[str, Any]) -> list[Any]:
            call()
            return []

        runner = fleet(stuck_one, policy=bare(timeout=SHORT), listeners=(recorder, LogEvents()))
        with caplog.at_level(logging.WARNING, "resilient_scan"):
            runner.run({})
            eventually(lambda: recorder.of(ThreadAbandoned))
            warned = (
                f"did not stop in time, abandoned: it {hint}; {WAY_OUT}" if hint else "did not stop in time, abandoned"
            )
            eventually(lambda: any(line.endswith(warned) for line in caplog.messages), warned)
        (abandoned,) = recorder.of(ThreadAbandoned)
        assert abandoned.hint == hint
        assert [thread.hint for thread in runner.abandoned()] == [hint]
        explained = runner.explain("stuck_one")
        assert [thread.hint for thread in explained.hung] == [hint]
        assert (f"    it {hint}; {WAY_OUT}\n" in str(explained)) is bool(hint)


def test_a_thread_that_has_held_the_lock_did_not_stop_in_time_although_it_is_back_at_once(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog, which the lock has kept from looking, finds it already on its way back."""
    recorder, looked, holder = Recorder(), threading.Event(), stuck.LockWatch.holder

    def look(watch: stuck.LockWatch, threads: Any, lateness: float) -> int | None:
        found = holder(watch, threads, lateness)
        looked.set()
        return found

    monkeypatch.setattr(stuck.LockWatch, "holder", look)

    @scanner(pipeline="test")
    def explodes(_state: dict[str, Any]) -> list[Any]:
        re.match("(a+)+$", "a" * 25 + "b")  # long enough that the watchdog's waits for a processor are a part only
        looked.wait(WAIT_TIMEOUT)  # else it may be the first to go on, and answers, or its thread ends
        return []

    waits = hanging("waits", release)
    runner = fleet(explodes, waits, policy=bare(timeout=SHORT), listeners=(recorder,))
    runner.run({})
    eventually(lambda: recorder.of(LateCompletion) and len(recorder.of(ThreadAbandoned)) == 2)
    hints = {event.scanner: event.hint for event in recorder.of(ThreadAbandoned)}
    assert re.fullmatch(r"held the interpreter's lock for [\d.]+s", hints.pop("explodes"))
    assert hints == {"waits": ""}  # it was as late, and had nothing to do with it
    (late,) = recorder.of(LateCompletion)
    assert (late.scanner, late.method, late.abandoned) == ("explodes", "abandoned", True)
    (returned,) = runner.explain("explodes").returned
    assert returned.hint.startswith("held the interpreter's lock for ")
    assert f"    it {returned.hint}; {WAY_OUT}\n" in str(runner.explain("explodes"))


class Job(QuietTask):
    """Notes what is reported of it."""

    def __init__(self) -> None:
        self.reported: list[Any] = []

    def abandon(self, _thread: str, _age: float, hint: str, /) -> None:
        self.reported.append(hint)

    def late(self, end: LateEnd, /) -> None:
        self.reported.append((end.age, end.abandoned, end.hint))


@pytest.mark.parametrize("ends", ["before the decision", "after it"])
def test_a_thread_that_has_held_the_lock_is_reported_as_abandoned_and_then_as_back(ends: str) -> None:
    job = Job()
    hang = Hang(job, "thread", 0.0)
    hang.held = 2.5
    if ends == "before the decision":
        assert hang.end(3.0) is None
        report = hang.decide(3.1)
        assert report is not None
        report()
    else:
        report, late = hang.decide(3.0), hang.end(3.1)
        assert report is not None
        assert late is not None
        report()
        late()
    said = "held the interpreter's lock for 2.5s"
    assert job.reported == [said, (3.0 if ends == "before the decision" else 3.1, True, said)]
    assert hang.decide(4.0) is None


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(1) as made:
        yield made


def test_it_is_looked_once_who_has_held_the_lock_however_many_are_late(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look for each of 500 that were late took longer than they were late, and made the next ones later still."""
    looks: list[tuple[set[int], float]] = []

    def holder(_watch: stuck.LockWatch, threads: Any, lateness: float) -> int:
        looks.append((set(threads), lateness))
        return 7

    monkeypatch.setattr(stuck.LockWatch, "holder", holder)
    hung = [Hang(Job(), "thread", 0.0, number, 0.3 + number / 100) for number in range(1, 11)]
    pool.hangs.look_for_the_lock(hung, 1.0, lambda: [7])
    assert looks == [(set(range(1, 11)), pytest.approx(0.4))]
    assert [hang.native_id for hang in hung if hang.held] == [7]
    pool.hangs.look_for_the_lock([Hang(Job(), "thread", 0.0, 1, 0.01)], 1.0, list)
    assert len(looks) == 1  # nobody was late


def test_it_is_looked_once_what_they_do_however_many_hang(pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look keeps the interpreter's lock for half a millisecond, or six: one for each would stop everything."""
    looks: list[list[int]] = []

    def in_c_calls(threads: list[int]) -> frozenset[int]:
        looks.append(sorted(threads))
        return frozenset({2})

    monkeypatch.setattr("resilient_scan.core.hangs.in_c_calls", in_c_calls)
    jobs = [Job() for _ in range(4)]
    hung = [Hang(job, "thread", 0.0, number) for number, job in enumerate(jobs, 1)]
    assert hung[3].end(0.5) is None  # it is back
    for hang in hung:
        pool.hangs._reports.append((hang, lambda hang=hang: hang._abandon(1.0, None)))
    pool.hangs.report()
    assert looks == [[1, 2, 3]]
    assert [job.reported for job in jobs] == [[""], ["sat in a C call"], [""], [""]]
    pool.hangs.report()
    assert len(looks) == 1
