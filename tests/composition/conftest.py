"""What the tests through the public API share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from resilient_scan import Policy, ScanRunner, Timeout
from tests.support.fixtures import Background, Bare, Fleet
from tests.support.waiting import WAIT_TIMEOUT


@pytest.fixture
def bare() -> Bare:
    """Return a function that makes a policy with no layer but those that are named."""

    def make(**layers: Any) -> Policy:
        return Policy(
            **{"cache": None, "retry": None, "breaker": None, "timeout": Timeout(total=WAIT_TIMEOUT), **layers}
        )

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
            thread._started.wait(WAIT_TIMEOUT)  # one that is being started in this moment cannot be joined yet
            thread.join(WAIT_TIMEOUT)
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
        thread.join(WAIT_TIMEOUT)
