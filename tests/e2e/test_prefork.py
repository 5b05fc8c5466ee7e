"""PROMETHEUS_MULTIPROC_DIR and forked workers: correct sums, and no file that grows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.command import environment

WORKERS, RUNS = 3, 40


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (
            sample.name.removeprefix("resilient_scan_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return what a scrape shows while the workers count as alive, and after they were marked as dead."""
    folder: Path = tmp_path_factory.mktemp("values")
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.prefork", str(WORKERS), str(RUNS)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env=environment(PROMETHEUS_MULTIPROC_DIR=str(folder)),
    )
    assert done.returncode == 0, done.stderr
    alive, dead = done.stdout.split("# after the workers' end\n")
    return alive, dead


def test_sums_over_all_processes_are_exact(scrapes: tuple[str, str]) -> None:
    alive, dead = map(values, scrapes)
    runs = 1 + WORKERS * RUNS
    for found in (alive, dead):  # what was counted stays when a worker ends
        assert found["scans_total", "test", "well", "completed"] == runs
        assert found["executions_total", "success", "test", "well"] == runs
        assert found["attempts_total", "success", "well"] == runs
        assert found["execution_duration_seconds_count", "test", "well"] == runs
        assert found["runs_total", "partial"] == runs
        # a breaker that opened in a worker is that worker's: each made one failure more than the parent had seen
        ends = {status: found["scans_total", "test", "bad", status] for status in ("error", "rejected")}
        assert sum(ends.values()) == runs
        assert found["executions_total", "error", "test", "bad"] == ends["error"]
        assert found["errors_total", "scanner", "ScanError", "bad"] == ends["error"]


def test_states_are_those_of_the_workers_that_live(scrapes: tuple[str, str]) -> None:
    alive, dead = map(values, scrapes)
    assert alive["breaker_state", "bad", "open"] == 1
    assert dead["breaker_state", "bad", "open"] == 0  # the parent's has seen one failure only
    assert dead["breaker_state", "bad", "closed"] == 1
    assert alive["scanner_state", "well", "enabled"] == 1
    assert alive["candidates", "well"] == 1
    assert alive["last_success_timestamp_seconds", "well"] > 1.5e9
    assert alive["workers", "abandoned"] == 0


def test_workers_that_have_ended_leave_what_was_counted_in_common_files(scrapes: tuple[str, str]) -> None:
    files = [line.removeprefix("# file ") for line in scrapes[1].splitlines() if line.startswith("# file ")]
    kinds = [name.rpartition("_")[0] for name in files if name.endswith(".db")]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "counter": 2,  # the parent's, and what is left of all others
        "histogram": 2,
        "gauge_max": 2,
        "gauge_mostrecent": 2,
        "gauge_livemax": 1,
        "gauge_livesum": 1,
    }
    assert [name for name in files if not name.endswith(".db")] == ["resilient_scan.lock"]
