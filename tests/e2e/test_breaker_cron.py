"""A run from cron: each in a process of its own, with one attempt that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from resilient_scan import Breaker, Policy, ScanRunner
from resilient_scan.stores import open_store
from resilient_scan.testing import FakeClock, broken

clock = FakeClock(float(sys.argv[2]))
store = open_store(sys.argv[1], clock)
policy = Policy(cache=None, retry=None, breaker=Breaker(failures=5, open_for=60))
with ScanRunner([broken("feed")], policy=policy, store=store, clock=clock, listeners=()) as runner:
    result = runner.run({}).results["feed"]
store.close()
print(result.status, result.attempts, result.error.message, sep="|")
"""
FAILED = "error|1|HTTP 500 error"
NOON = 1_359_050_400.0  # epoch seconds


def test_separate_processes_open_it_and_try_once(tmp_path: Path) -> None:
    def run(at: float) -> str:
        command = [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path}/state.db", str(NOON + at)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    assert [run(at) for at in range(5)] == [FAILED] * 5
    assert run(63.5) == "rejected|0|the breaker of feed is open, next trial in 0.5s"
    assert run(64) == FAILED, "the trial"
    assert run(64 + 89).startswith("rejected|0|the breaker of feed is open, next trial in "), "for longer than before"
