"""What a scan costs, in figures that do not depend on the machine: none of them may grow unnoticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks import counts

# In a process of its own: Python learns the names of a class's attributes from its first objects.
_CONTEXTS = """
import gc
from resilient_scan.context import ScannerContext
from resilient_scan.clock import SystemClock
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.snapshot import EMPTY

contexts = [AttemptContext.at(ScannerContext("s", {}, SystemClock(), None), EMPTY, "r") for _ in range(100)]
for context in contexts:
    context.limit(1.0)
    context.begin_attempt()
    context.permit = None
    context.drop_state()
print(sum(type(thing) is dict and "_snapshot" in thing for thing in gc.get_objects()))
"""


def test_a_scan_that_misses_the_cache_takes_so_many_steps() -> None:
    found = counts.bytecodes(hit=False)
    assert found.total() <= 1290, found.most_common(20)


def test_a_scan_that_hits_the_cache_takes_so_many_steps() -> None:
    found = counts.bytecodes(hit=True)
    assert found.total() <= 300, found.most_common(20)


def test_with_a_store_a_hit_takes_half_as_many_more(quick_path: Path) -> None:
    found = counts.bytecodes(hit=True, store=f"sqlite:///{quick_path}/scan.db")
    assert found.total() <= 400, found.most_common(20)


def test_a_scan_that_is_counted_and_scraped_takes_so_many_steps() -> None:
    """Three events, and a tenth of what it takes to count them and to write 40 lines."""
    found = counts.bytecodes(hit=False, metrics=True, rounds=1)
    assert found.total() <= 1800, found.most_common(20)


def test_a_scanner_has_few_objects_that_the_garbage_collector_looks_at() -> None:
    assert counts.setup_objects(coroutines=False) <= 24
    assert counts.setup_objects(coroutines=True) <= 21


def test_no_context_has_a_dict_of_its_own_however_many_begin_before_the_first_goes_on() -> None:
    run = [sys.executable, "-c", _CONTEXTS]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "0"


def test_a_coroutine_leaves_nothing_that_only_the_garbage_collector_could_free() -> None:
    assert counts.left_objects() <= 2


def test_a_coroutine_that_waits_has_few_objects_that_the_garbage_collector_looks_at() -> None:
    assert counts.flight_objects() <= 18
