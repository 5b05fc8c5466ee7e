"""The machine's own clock."""

from __future__ import annotations

import threading
import time

from resilient_scan.clock import SystemClock


def test_it_tells_the_machines_time() -> None:
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


def test_a_sleep_ends_after_its_time() -> None:
    clock = SystemClock()
    began = clock.monotonic()
    assert clock.sleep(0.01, clock.event()) is False
    assert clock.monotonic() - began >= 0.01


def test_a_sleep_ends_when_it_is_woken() -> None:
    clock = SystemClock()
    wake = clock.event()
    answers: list[bool] = []
    sleeper = threading.Thread(target=lambda: answers.append(clock.sleep(60, wake)), daemon=True)
    sleeper.start()
    wake.set()
    sleeper.join(5)
    assert answers == [True]
