"""The machine's own clock."""

from __future__ import annotations

import math
import threading
import time

import pytest

from resilient_scan.clock import SystemClock


def test_it_gives_the_machines_time() -> None:
    clock = SystemClock()
    before, wall_before = time.monotonic(), time.time()
    monotonic, wall = clock.monotonic(), clock.time()
    assert before <= monotonic <= time.monotonic()
    assert wall_before <= wall <= time.time()


def test_its_events_are_those_of_threading() -> None:
    wake = SystemClock().event()
    assert not wake.is_set()
    wake.set()
    assert wake.is_set()
    assert wake.wait(60)
    wake.clear()
    assert not wake.wait(0)


@pytest.mark.parametrize("method", ["wait", "sleep"])
def test_a_wait_ends_at_its_instant(method: str) -> None:
    clock = SystemClock()
    until = clock.monotonic() + 0.01
    wake = clock.event()
    getattr(clock, method)(until, wake)
    assert clock.monotonic() >= until
    assert not wake.is_set()


@pytest.mark.parametrize("until", [60.0, math.inf])
@pytest.mark.parametrize("method", ["wait", "sleep"])
def test_a_wait_ends_when_it_is_woken(method: str, until: float) -> None:
    clock = SystemClock()
    wake = clock.event()
    waiter = threading.Thread(target=getattr(clock, method), args=(clock.monotonic() + until, wake), daemon=True)
    waiter.start()
    assert waiter.is_alive()
    wake.set()
    waiter.join(5)
    assert not waiter.is_alive()


def test_an_instant_in_the_past_is_not_waited_for() -> None:
    clock = SystemClock()
    clock.wait(clock.monotonic() - 60, clock.event())
