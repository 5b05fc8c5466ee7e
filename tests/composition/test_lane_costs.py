"""What the lane's benchmark finds on any machine, however busy: counts and memory, and that nobody pays for another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def measured(*what: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.lane", *what, "--rounds", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=TOP).stdout


@pytest.mark.slow
def test_two_thousand_coroutines_cost_a_few_threads_and_descriptors() -> None:
    text = measured("2000")
    found = re.search(r"([\d.]+) kB each, (\d+) threads, (\d+) descriptors", text)
    assert found is not None, text
    kilobytes, threads, descriptors = map(float, found.groups())
    assert kilobytes <= 15
    assert threads <= 12
    assert descriptors <= 30
    ratio = re.search(r"^ours.*?([\d.]+) x bare", text, re.MULTILINE)
    assert ratio is not None, text
    assert float(ratio[1]) < 4, "one after the other, it would be 2,000"


@pytest.mark.slow
def test_one_that_blocks_changes_nothing_for_a_hundred_others() -> None:
    text = measured("blame")
    assert "0 statuses changed, 0 breakers opened" in text, text
    assert "only the culprit was named in 4 of them" in text, text
