"""The thread pool at its end, and after an interrupt: no thread is left behind, and no place is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.task import NEVER
from resilient_scan.testing import FakeClock
from tests.support.fixtures import Eventually
from tests.support.tasks import QuietTask
from tests.support.waiting import WAIT_TIMEOUT


class Job(QuietTask):
    """A task that may take a second, and takes until the test is over."""

    def __init__(self, go: threading.Event, limit: float = 1.0) -> None:
        self.go = go
        self.limit = limit
        self.began = threading.Event()
        self.refused = threading.Event()

    def start(self, now: float, _place: Any, /) -> float:
        self.began.set()
        return now + self.limit

    def run(self) -> None:
        self.go.wait(WAIT_TIMEOUT)

    def refuse(self, _reason: str, /) -> None:
        self.refused.set()


@pytest.fixture
def build() -> Iterator[Callable[..., ThreadPool]]:
    """Return a function that builds pools, whose threads are to be gone when the test is over."""
    names: list[str] = []

    def make(max_workers: int, clock: FakeClock) -> ThreadPool:
        names.append(f"pool-{id(clock)}")
        return ThreadPool(max_workers, clock=clock, name=names[-1])

    yield make
    for thread in threading.enumerate():
        if thread.name.startswith(tuple(names)):
            thread.join(WAIT_TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} is left behind"


def hang(pool: ThreadPool, clock: FakeClock, job: Job, eventually: Eventually) -> None:
    """Have a job hang on a thread that was replaced."""
    pool.execute(job)
    assert job.began.wait(WAIT_TIMEOUT)
    clock.advance(job.limit)
    eventually(lambda: [thread.holds_place for thread in pool.abandoned()] == [False])


def test_a_hung_thread_that_returns_while_the_queue_is_refused_leaves_no_worker_behind(
    build: Callable[..., ThreadPool], release: threading.Event, eventually: Eventually
) -> None:
    """It finds a task that is not queued any more, but still counts, and starts a worker for it."""
    clock = FakeClock()
    pool = build(1, clock)
    hung, busy, waiting = Job(release), Job(threading.Event(), NEVER), Job(release)
    hang(pool, clock, hung, eventually)
    (returning,) = [thread for thread in threading.enumerate() if thread.name == pool.abandoned()[0].thread]
    pool.execute_all([busy, waiting])
    assert busy.began.wait(WAIT_TIMEOUT)
    queue = pool._queue

    class Watched:
        """The queue; meanwhile, the worker and the hung thread end."""

        put, get, qsize = queue.put, queue.get, queue.qsize

        def get_nowait(self) -> Any:
            task = queue.get_nowait()
            if task is waiting:
                busy.go.set()
                eventually(lambda: pool.counts()["busy"] + pool.counts()["idle"] == 0, "the worker ends")
                release.set()
                returning.join(WAIT_TIMEOUT)
            return task

    pool._queue = Watched()  # type: ignore[assignment]
    pool.stop()
    assert waiting.refused.wait(WAIT_TIMEOUT)


@pytest.mark.parametrize("starts", [True, False], ids=["the thread starts", "it does not"])
def test_an_interrupt_amid_the_start_of_a_worker_costs_no_place_and_leaves_no_worker_behind(
    starts: bool,
    build: Callable[..., ThreadPool],
    release: threading.Event,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tasks were not queued. If they counted all the same, the pool would start workers for them, to the end."""
    clock = FakeClock()
    pool = build(2, clock)
    hang(pool, clock, Job(release), eventually)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if starts:
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.execute_all([Job(release), Job(release)])
    assert pool.free == 2
    pool.stop()
    release.set()


def test_an_interrupt_after_tasks_were_queued_leaves_them_counted(
    build: Callable[..., ThreadPool], release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = build(2, FakeClock())
    job, queued = Job(release, NEVER), pool._queue

    class Interrupted:
        """The queue; the interrupt comes when the only task is in it."""

        get, get_nowait, qsize = queued.get, queued.get_nowait, queued.qsize

        def put(self, task: Any) -> None:
            queued.put(task)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_queue", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            pool.execute(job)
    assert job.began.wait(WAIT_TIMEOUT)
    assert pool.free == 1
    release.set()
    pool.shutdown()
    assert pool._unfinished == 0
