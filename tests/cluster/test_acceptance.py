"""The thread engine's tests of results, timeouts, retries, breakers, limits, caches, partials, logs and reports.

They run unchanged, in a pytest of their own, where `tests.support.on_cluster` has their scanners run at the workers of
a real cluster. `not_on_cluster.toml` names those that cannot pass, and the files that are about something else, with
the reasons. Both lists are complete: one that passes must not be on the first, and no file may be missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.on_cluster import LIST

TESTS = Path(__file__).parents[1]
CORE = [  # what CI has time for
    "test_cache_options.py",
    "test_retry_budget.py",
    "test_semantics_breaker.py",
    "test_semantics_cache.py",
    "test_semantics_run.py",
    "test_semantics_scanner.py",
    "test_semantics_state.py",
    "test_semantics_suspicious.py",
]
PARTS = 3
LIMIT = 570  # seconds


def session(files: list[str], *, listed: str) -> str:
    """Run tests on a cluster, and return the last line of what pytest says."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", "tests.support.on_cluster"),
            *("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning", "--tb=short"),
            *("-m", "not slow and not long and not servers", "-o", "faulthandler_timeout=0"),
            *(str(TESTS / "composition" / file) for file in files),
        ],
        cwd=TESTS.parent,
        env={**os.environ, "RESILIENT_SCAN_CLUSTER_LIST": listed, "PYTEST_ADDOPTS": ""},  # ours are not for this one
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    return next(line for line in reversed(done.stdout.splitlines()) if " passed" in line)


def passed(summary: str) -> int:
    found = re.search(r"(\d+) passed", summary)
    return int(found[1]) if found else 0


def test_every_file_and_every_name_on_the_lists_is_there() -> None:
    files = {path.name: path.read_text() for path in (TESTS / "composition").glob("test_*.py")}
    assert {*LIST["files"], *LIST["about"]} == {*files}
    assert not {*LIST["files"]} & {*LIST["about"]}
    assert {*CORE} <= {*LIST["files"]}
    for name, reason in LIST["tests"].items():
        file, _, test = name.partition("::")
        assert file in LIST["files"], name
        assert re.search(rf"^(async )?def {re.escape(test.partition('[')[0])}\(", files[file], re.MULTILINE), name
        assert reason in LIST["reasons"], name


@pytest.mark.servers
@pytest.mark.slow
def test_what_runs_in_threads_runs_there() -> None:
    assert passed(session(CORE, listed="skip")) > 150


@pytest.mark.servers
@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_all_that_runs_in_threads_runs_there_but_for_what_is_listed(part: int) -> None:
    assert passed(session(sorted(LIST["files"])[part::PARTS], listed="run")) > 150
