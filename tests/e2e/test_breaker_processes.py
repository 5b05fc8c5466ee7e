"""One breaker for many processes: never more trials than allowed in all of them together."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import RedisServer

ROOT = Path(__file__).parents[2]
OPEN_FOR = 0.4  # seconds; a trial's place is kept for as long
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


Seen = list[dict[str, list[Any]]]  # by each process
Trial = tuple[float, float, float, bool]  # asked, began, ended, failed


def crew(url: str, directory: Path, trials: int, seconds: float, open_for: float = OPEN_FOR) -> Seen:
    """Let eight processes of eight threads each go at one breaker, and return what each of them saw."""
    numbers = [8, 8, trials, seconds, open_for]
    command = [sys.executable, "-m", "tests.e2e.breaker_crew", url, str(directory), *map(str, numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + seconds)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def generations(seen: Seen) -> dict[int, list[Trial]]:
    """Return the trials by the generation of their permit."""
    found: dict[int, list[Trial]] = {}
    for generation, *trial in itertools.chain.from_iterable(one["trials"] for one in seen):
        found.setdefault(generation, []).append(tuple(trial))
    return found


def in_time(seen: Seen, open_for: float) -> list[list[tuple[float, float, bool]]]:
    """Return the generations of which every trial ended well within the time for which its place is kept.

    A process that the machine did not let run for so long has lost its place to another by right.
    """
    return [
        [(begin, end, failed) for _, begin, end, failed in every]
        for every in generations(seen).values()
        if all(end - asked < open_for / 2 for asked, _, end, _ in every)
    ]


def check_slowly(url: str, directory: Path, trials: int) -> None:
    """Check a crew; where the machine is too busy for a single generation in time, all goes slower, on a new store.

    Otherwise the test would tell a busy machine from a quiet one, and not a right breaker from a wrong one.
    """
    for scale in (1, 3, 9):
        seen = crew(url.format(scale), directory, trials, 2.0 * scale, OPEN_FOR * scale)
        several = sum(bool(one["trials"]) for one in seen) >= 2
        if several and in_time(seen, OPEN_FOR * scale):
            break
    assert check(seen, trials, OPEN_FOR * scale) >= 2
    assert several, "more than one process had a trial"


def check(seen: Seen, trials: int, open_for: float = OPEN_FOR) -> int:
    """Hold what was seen against the promise; return how often the breaker was half-open."""
    assert [error for one in seen for error in one["errors"]] == []
    by_generation = generations(seen)
    assert in_time(seen, open_for)
    for every in in_time(seen, open_for):
        first_end = min(end for _, end, _ in every)
        assert sum(begin < first_end for begin, _, _ in every) <= trials, "before an outcome"
        assert most_at_a_time(every) <= trials
        assert sum(failed for *_, failed in every) <= trials, "the first failure ends it; others were under way"
    changes = [tuple(change) for one in seen for change in one["changes"]]
    assert abs(changes.count(("open", "half_open")) - len(by_generation)) <= 1, "each is told once, by one process"
    assert set(changes) <= {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
    return len(by_generation)


def most_at_a_time(trials: list[tuple[float, float, bool]]) -> int:
    steps = sorted([(begin, 1) for begin, _, _ in trials] + [(end, -1) for _, end, _ in trials])
    return max(itertools.accumulate(step for _, step in steps))


@pytest.mark.parametrize("trials", [1, 2])
def test_eight_processes_of_eight_threads_on_one_file(trials: int, tmp_path: Path) -> None:
    check_slowly(f"sqlite:///{tmp_path}/state-{{}}.db", tmp_path, trials)


@pytest.mark.servers
@pytest.mark.parametrize("trials", [1, 2])
def test_eight_processes_of_eight_threads_on_redis(trials: int, tmp_path: Path, own_redis: RedisServer) -> None:
    check_slowly(f"redis://127.0.0.1:{own_redis.port}/{{}}", tmp_path, trials)


@pytest.mark.long
@pytest.mark.servers
@pytest.mark.parametrize("trials", [1, 2, 5])
def test_eight_processes_of_eight_threads_on_redis_for_long(
    trials: int, tmp_path: Path, own_redis: RedisServer
) -> None:
    assert check(crew(own_redis.url, tmp_path, trials, 40.0), trials) >= 50


@pytest.mark.long
@pytest.mark.parametrize("trials", [1, 2, 5])
def test_eight_processes_of_eight_threads_on_one_file_for_long(trials: int, tmp_path: Path) -> None:
    assert check(crew(f"sqlite:///{tmp_path}/state.db", tmp_path, trials, 40.0), trials) >= 50
