"""What a thread does that does not stop, as far as it can be told, and where it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilient_scan.engines import stuck
from resilient_scan.engines.stuck import HELD_AFTER, LockWatch, in_c_calls
from tests.support.waiting import eventually

LATE = 2 * HELD_AFTER
here = pytest.mark.skipif(stuck._WAITS is None, reason="only Linux tells what a thread does")


@pytest.fixture
def reading() -> Iterator[threading.Thread]:
    """Return a thread that waits for a pipe."""
    reader, writer = os.pipe()
    thread = threading.Thread(target=os.read, args=(reader, 1))
    thread.start()
    eventually(lambda: stuck._WAITS is None or in_c_calls([thread.native_id or 0]))
    yield thread
    os.write(writer, b"x")
    thread.join()
    os.close(reader)
    os.close(writer)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Return for how long threads have run, by their numbers: those of a fake."""
    times: dict[int, float] = {}
    monkeypatch.setattr(stuck, "_time_on_processor", lambda thread: times.get(thread, 0.0))
    monkeypatch.setattr(stuck, "_waited_for_processor", lambda: times.get(-1, 0.0))
    return times


@here
def test_only_those_in_a_c_call_are_named(reading: threading.Thread) -> None:
    own = threading.get_native_id()
    assert in_c_calls([reading.native_id or 0, own]) >= {reading.native_id}
    assert in_c_calls([]) == frozenset()
    assert in_c_calls([2**22 + 1]) == frozenset()  # it has ended


@here
def test_no_descriptor_is_left(reading: threading.Thread) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    in_c_calls([reading.native_id or 0, 2**22 + 1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@here
def test_the_only_one_that_has_computed_has_held_the_lock(computed: dict[int, float]) -> None:
    computed |= {2**22 + 1: LATE, 2**22 + 2: LATE / 5}
    assert LockWatch().holder([2**22 + 1, 2**22 + 2], LATE) == 2**22 + 1
    assert LockWatch().holder([2**22 + 2], LATE) is None
    assert LockWatch().holder([2**22 + 1, 2**22 + 2], HELD_AFTER * 0.9) is None


@here
def test_of_two_that_have_computed_none_is_named(computed: dict[int, float]) -> None:
    computed |= {2**22 + 1: LATE, 2**22 + 2: LATE}
    assert LockWatch().holder([2**22 + 1, 2**22 + 2], LATE) is None


@here
def test_one_that_waits_in_the_kernel_has_not_held_the_lock(
    reading: threading.Thread, computed: dict[int, float]
) -> None:
    waits = reading.native_id or 0
    computed |= {2**22 + 1: LATE, waits: LATE}
    assert LockWatch().holder([2**22 + 1, waits], LATE) == 2**22 + 1
    assert LockWatch().holder([waits], LATE) is None


@here
def test_a_watchdog_that_waited_for_a_processor_blames_nobody(computed: dict[int, float]) -> None:
    watch = LockWatch()
    computed |= {2**22 + 1: LATE, 2**22 + 2: LATE, -1: LATE}
    for thread in (2**22 + 1, 2**22 + 2):
        assert watch.holder([thread], LATE) is None
    watch.note()
    assert watch.holder([2**22 + 1], LATE) == 2**22 + 1  # it waited before


def test_elsewhere_nothing_is_known_and_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck._functions.cache_clear()
    monkeypatch.setattr(stuck, "_WAITS", None)
    own = threading.get_native_id()
    assert in_c_calls([own]) == frozenset()
    assert LockWatch().holder([own], LATE) is None
    stuck._functions.cache_clear()


@here
def test_a_python_without_ctypes_knows_nothing_either(
    monkeypatch: pytest.MonkeyPatch, reading: threading.Thread
) -> None:
    stuck._functions.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "ctypes", None)
    assert in_c_calls([reading.native_id or 0]) == frozenset()
    stuck._functions.cache_clear()
