"""The ways to start a cluster that docs/cluster.md shows: its commands run as they stand there, but for the port."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resilient_scan import Policy, ScanRunner
from tests.cluster import fleet
from tests.cluster.test_cluster import until_slots
from tests.docs.pages import DOCS, blocks
from tests.docs.running import commands
from tests.e2e.command import environment
from tests.support.clusters import children_of, free_port, gone, kill

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOP = Path(__file__).parents[2]


def started(line: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command as a shell would."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=folder,
            env=environment(PATH=path, HOME=str(folder), PYTHONPATH=str(TOP), PYTHONWARNINGS="ignore"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_by_hand(tmp_path: Path) -> None:
    (block,) = [each for each in blocks(DOCS / "cluster.md") if "dask worker" in each.text]
    port = free_port()
    lines = [line.replace("8786", str(port)) for line, _ in commands(block.text)]
    assert [line.split()[:2] for line in lines] == [["dask", "scheduler"], ["dask", "worker"]]
    processes = [started(line, tmp_path) for line in lines]  # the worker waits for the scheduler
    try:
        address, policy = f"tcp://127.0.0.1:{port}", Policy(cache=None)
        scanners = [fleet.plain, fleet.stuck, fleet.leaves]
        with ScanRunner(scanners, engine="dask", cluster=address, policy=policy, listeners=()) as runner:
            until_slots(runner, 8)
            results = runner.run({}).results
        assert {name: result.status.value for name, result in results.items()} == {
            "plain": "completed",
            "stuck": "timeout",
            "leaves": "error",
        }, (tmp_path / "log").read_text()
        below = children_of(*(process.pid for process in processes))
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)  # Ctrl-C
            process.wait(30)
        assert gone(below, 15)
    finally:
        for process in processes:
            kill(process)
