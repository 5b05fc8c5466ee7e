"""What the tests through the public API share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from resilient_scan import Policy, RunReport, ScanResult, ScanRunner, Status, Timeout

PATIENCE = 5.0
Fleet = Callable[..., ScanRunner]
Bare = Callable[..., Policy]
Background = Callable[..., "Future[Any]"]
Eventually = Callable[[Callable[[], bool]], None]


def statuses(report: RunReport) -> list[Status]:
    """Return how the scans ended, in the order of the scanners."""
    return [result.status for result in report.results.values()]


def only(runner: ScanRunner, state: dict[str, Any] | None = None, **options: Any) -> ScanResult:
    """Run a fleet of one."""
    (result,) = runner.run(state, **options).results.values()
    return result


@pytest.fixture
def bare() -> Bare:
    """Return a function that makes a policy with no layer but those that are named."""

    def make(**layers: Any) -> Policy:
        return Policy(**{"cache": None, "retry": None, "breaker": None, "timeout": Timeout(total=PATIENCE), **layers})

    return make


@pytest.fixture
def fleet(release: threading.Event, bare: Bare) -> Iterator[Fleet]:
    """Return a function that builds runners; they are closed, and their threads gone, when the test is over.

    Unless given, the policy has no layers and nobody listens.
    """
    runners: list[ScanRunner] = []
    before = set(threading.enumerate())

    def build(*scanners: Any, **options: Any) -> ScanRunner:
        runner = ScanRunner(scanners, **{"policy": bare(), "listeners": (), **options})
        runners.append(runner)
        return runner

    yield build
    release.set()
    for runner in runners:
        runner.close()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("resilient-scan"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread.name} outlives its test"


@pytest.fixture
def background(release: threading.Event) -> Iterator[Background]:
    """Return a function that calls another one on a thread of its own and returns the future of its result."""
    threads: list[threading.Thread] = []

    def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=call, daemon=True)
        threads.append(thread)
        thread.start()
        return future

    yield start
    release.set()
    for thread in threads:
        thread.join(PATIENCE)


@pytest.fixture
def eventually() -> Eventually:
    """Return a function that waits (30 s at least, then it fails) until a condition holds."""
    pause = threading.Event()

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(30_000):
            if condition():
                return
            pause.wait(0.001)
        pytest.fail("the condition did not come about within 30 s")

    return wait
