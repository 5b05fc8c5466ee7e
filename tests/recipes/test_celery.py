"""The recipe for Celery, with a real Redis and a prefork worker: JSON back, a runner per process, a shared store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.recipes.following import Recipe, needs
from tests.support.servers import RedisServer

# Sends tasks, each for a day of its own, until both processes had some; prints the reports.
CLIENT = """
import json

from tasks import scan

reports = []
while len({entry["process"] for report in reports for entry in report["tool_logs"]}) < 2:
    tasks = [scan.delay({"trade_date": f"day {len(reports)}.{number}"}) for number in range(10)]
    reports += [task.get(timeout=60) for task in tasks]
print(json.dumps(reports))
"""
# Another worker: its processes say whether their runner was closed.
OTHER_WORKER = """
import os
from pathlib import Path

import tasks
from celery.signals import worker_process_shutdown
from tasks import app


@worker_process_shutdown.connect
def note(**_):
    Path(f"shut-{os.getpid()}").write_text(str(tasks.runner.closed))
"""
MADE_BEFORE_THE_FORK = """
import tasks
from celery.signals import worker_process_init
from resilient_scan import ScanRunner
from tasks import app

worker_process_init.disconnect(tasks.open_runner)
tasks.runner = ScanRunner([tasks.headlines])
assert tasks.runner.run({"trade_date": "2026-10-01"}).complete  # the parent has threads now
"""


@pytest.fixture
def page(tmp_path: Path, own_redis: RedisServer) -> Recipe:
    needs("celery")
    return Recipe("celery", tmp_path, CELERY_BROKER_URL=own_redis.url, CELERY_RESULT_BACKEND=own_redis.url)


def reports_of_both(page: Recipe) -> list[dict[str, object]]:
    (page.folder / "client.py").write_text(CLIENT)
    done = page.call([sys.executable, "client.py"])
    reports: list[dict[str, object]] = json.loads(done)
    return reports


def processes(reports: list[dict[str, object]]) -> set[int]:
    return {entry["process"] for report in reports for entry in report["tool_logs"]}  # type: ignore[attr-defined,index]


def test_a_task_returns_the_report_as_json(page: Recipe) -> None:
    with page.start():
        page.wait_for(" ready.")
        page.run()
    assert page.left == []


def test_each_process_scans_with_threads_of_its_own_and_closes_its_runner(page: Recipe) -> None:
    (page.folder / "other.py").write_text(OTHER_WORKER)
    with page.start(("--app tasks", "--app other")) as parent:
        page.wait_for(" ready.")
        reports = reports_of_both(page)
    assert all(report["counts"] == {"completed": 1} for report in reports)
    found = processes(reports)
    assert len(found) == 2
    assert parent not in found
    assert {path.name: path.read_text() for path in page.folder.glob("shut-*")} == {
        f"shut-{process}": "True" for process in found
    }


def test_a_runner_that_was_made_before_the_fork_works_in_each_process(page: Recipe) -> None:
    (page.folder / "other.py").write_text(MADE_BEFORE_THE_FORK)
    with page.start(("--app tasks", "--app other")) as parent:
        page.wait_for(" ready.")
        reports = reports_of_both(page)
    assert all(report["counts"] == {"completed": 1} for report in reports)
    assert len(processes(reports) - {parent}) == 2
