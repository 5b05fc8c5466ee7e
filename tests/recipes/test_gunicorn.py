"""The recipe for gunicorn: two workers, one set of metrics, also after a worker was replaced."""

from __future__ import annotations

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.recipes.following import Recipe, free_port, get, needs
from tests.support.waiting import eventually


@pytest.mark.parametrize("preload", ["", " --preload"], ids=["imported by each worker", "preloaded"])
def test_metrics_are_the_sum_over_all_workers_and_outlive_them(preload: str, tmp_path: Path) -> None:
    needs("gunicorn")
    port = free_port()
    page = Recipe("gunicorn", tmp_path, GUNICORN_CMD_ARGS=f"--bind 127.0.0.1:{port}{preload}")
    url = f"http://127.0.0.1:{port}"
    days = iter(range(1, 100_000))

    def scan(_: int = 0) -> int:
        report = json.loads(get(f"{url}/?trade_date=day-{next(days)}")[1])
        assert report["counts"] == {"completed": 1}
        return int(report["worker"])

    def completed() -> float:
        text = get(f"{url}/metrics")[1]
        (line,) = re.findall(r'^resilient_scan_scans_total\{.*status="completed"\} (.+)$', text, re.MULTILINE)
        return float(line)

    page.run()
    with page.start() as parent:
        eventually(lambda: page.log().count("Booting worker") == 2, "two workers")
        for _ in range(2):
            page.run(("127.0.0.1:8000", f"127.0.0.1:{port}"))
        assert page.left == []
        workers: set[int] = set()
        made = 1
        with ThreadPoolExecutor(8) as clients:
            while len(workers) < 2:
                workers |= set(clients.map(scan, range(16)))
                made += 16
        assert parent not in workers
        assert completed() == made

        gone = min(workers)
        os.kill(gone, signal.SIGTERM)
        eventually(lambda: page.log().count("Booting worker") == 3, "a successor")
        assert completed() == made
        eventually(lambda: not list((tmp_path / "metrics").glob(f"*_{gone}.db")), "its files are gone")
        assert completed() == made
        scan()
        assert completed() == made + 1
