"""pybreaker is imported by the first breaker that is built: it imports redis where that is installed, which is slow."""

from __future__ import annotations

import subprocess
import sys

import pybreaker
import pytest

from resilient_scan.layers.breaker import CLOSED, HALF_OPEN, OPEN

BUILD = """
import sys, threading
from importlib.util import find_spec
from random import Random
from resilient_scan import Breaker, Policy, ScanRunner
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.testing import FakeClock

def build():
    return CircuitBreaker("one", Breaker(failures=1), FakeClock(), Random(0))
"""


def run(code: str) -> list[str]:
    return subprocess.check_output([sys.executable, "-c", BUILD + code], text=True, timeout=60).split()


def test_importing_the_package_imports_neither_pybreaker_nor_redis() -> None:
    assert run("print('pybreaker' in sys.modules, 'redis' in sys.modules)") == ["False", "False"]


def test_a_runner_without_breakers_does_not_import_it() -> None:
    code = "ScanRunner([], policy=Policy(breaker=None)).close(); print('pybreaker' in sys.modules)"
    assert run(code) == ["False"]


@pytest.mark.slow
def test_the_first_breaker_imports_it_as_the_host_program_would() -> None:
    code = (
        "build(); pybreaker = sys.modules['pybreaker']; print(pybreaker.HAS_REDIS_SUPPORT == bool(find_spec('redis')))"
    )
    assert run(code) == ["True"]


@pytest.mark.slow
def test_the_first_breakers_may_be_built_by_many_threads_at_once() -> None:
    code = """
barrier, states = threading.Barrier(8), []

def work():
    barrier.wait()
    breaker = build()
    breaker.vote(breaker.admit()[0], True)
    states.append(breaker.state)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*states)
"""
    assert run(code) == ["open"] * 8


def test_the_states_are_called_as_in_pybreaker() -> None:
    assert (CLOSED, OPEN, HALF_OPEN) == (
        pybreaker.STATE_CLOSED,
        pybreaker.STATE_OPEN,
        pybreaker.STATE_HALF_OPEN,
    )
