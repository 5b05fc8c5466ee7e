"""What a scan costs, in figures that do not depend on the machine: none of them may grow unnoticed."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import counts


def test_a_scan_that_misses_the_cache_takes_so_many_steps() -> None:
    found = counts.bytecodes(hit=False)
    assert found.total() <= 1200, found.most_common(20)


def test_a_scan_that_hits_the_cache_takes_so_many_steps() -> None:
    found = counts.bytecodes(hit=True)
    assert found.total() <= 255, found.most_common(20)


def test_with_a_store_a_hit_takes_half_as_many_more(quick_path: Path) -> None:
    found = counts.bytecodes(hit=True, store=f"sqlite:///{quick_path}/scan.db")
    assert found.total() <= 375, found.most_common(20)


def test_a_scan_that_is_counted_and_scraped_takes_so_many_steps() -> None:
    """Three events, and a tenth of what it takes to count them and to write 40 lines."""
    found = counts.bytecodes(hit=False, metrics=True, rounds=1)
    assert found.total() <= 1750, found.most_common(20)


def test_a_scanner_has_few_objects_that_the_garbage_collector_looks_at() -> None:
    assert counts.setup_objects(coroutines=False) <= 22
    assert counts.setup_objects(coroutines=True) <= 19


def test_a_coroutine_leaves_nothing_that_only_the_garbage_collector_could_free() -> None:
    assert counts.left_objects() <= 0.5


def test_a_coroutine_that_waits_has_few_objects_that_the_garbage_collector_looks_at() -> None:
    assert counts.flight_objects() <= 18
