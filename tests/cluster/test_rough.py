"""What goes wrong at workers: scanners that hang or die, workers that come, go and differ; and what they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Limit, Policy, ScanRunner, Status, Timeout
from resilient_scan.cli.demo_server import LoopbackServer
from tests.cluster import fleet
from tests.cluster.test_cluster import POLICY, runner_at, statuses, until_slots
from tests.support import isolated
from tests.support.clusters import DaskCluster, children_of, gone, kill

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
WAYS = {  # how a scan ends, in which words, and what is kept
    isolated.stuck: (Status.TIMEOUT, "timeout after 0.3s", ["BEFORE"]),  # keeps the interpreter's lock
    isolated.deaf: (Status.TIMEOUT, "timeout after 0.3s", ["BEFORE"]),  # ignores SIGTERM, and has a process of its own
    fleet.sleeps: (Status.TIMEOUT, "timeout after 0.3s", []),
    isolated.crashes: (Status.ERROR, "its process ended with SIGSEGV", []),
    isolated.exits: (Status.ERROR, "its process ended with exit code 7", ["BEFORE"]),
    isolated.greedy: (Status.ERROR, "", []),  # takes more memory than it may have
}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers with two threads each."""
    with DaskCluster(tmp_path_factory.mktemp("rough")) as cluster:
        cluster.add(2)
        yield cluster


def test_whatever_a_scanner_does_to_its_process_is_its_own_result(steady: DaskCluster) -> None:
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1), timeout=Timeout(total=20))
    scanners = [*WAYS, *fleet.SLEEPERS[:8]]
    with runner_at(steady, scanners, 4, policy=policy) as runner:
        before = children_of(*(worker.pid for worker in steady.workers))
        results = runner.run({"seconds": 0.05}).results
        for scanner, (status, message, found) in WAYS.items():
            result = results[scanner.name]
            assert (result.status, [one.ticker for one in result.candidates]) == (status, found), result
            assert result.error is not None
            assert message in result.error.message
            assert runner.breaker(scanner.name) == "open", "it is the scanner's own fault"
        assert results["greedy"].error is not None
        assert results["greedy"].error.type == "MemoryError"
        assert {results[scanner.name].status for scanner in fleet.SLEEPERS[:8]} == {Status.COMPLETED}
        helper = results["deaf"].candidates[0].extras["helper"]
        assert gone({helper}, 5), "what a scanner has started ends with it"
        assert runner.run({"seconds": 0.05}, only=[fleet.SLEEPERS[0].name]).complete
        assert children_of(*(worker.pid for worker in steady.workers)) - before, "new children have taken their places"


def test_a_providers_rate_is_one_for_all_workers(steady: DaskCluster) -> None:
    arrived: list[float] = []
    inside, most, lock = [0], [0], threading.Lock()

    def answer(_path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        with lock:
            arrived.append(time.monotonic())
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return 200, {}, b"[]"

    policy = POLICY.replace({"limit": Limit("acme", rate="10/s", concurrency=3)})
    with (
        LoopbackServer(answer) as server,
        runner_at(steady, fleet.FETCHING, 4, policy=policy) as runner,
    ):
        assert runner.run({"url": server.url}).complete
    assert len(arrived) == 30
    assert most[0] <= 3
    # A full burst may pass at once. After that, one passes every tenth of a second: over n seconds 10 + 10 n at most.
    for first in range(30):
        for last in range(first + 1, 30):
            assert last - first + 1 <= 10 + 10 * (arrived[last] - arrived[first]) + 1
    assert arrived[-1] - arrived[0] > 1.5


def test_workers_come_and_go_during_a_run(tmp_path: Path) -> None:
    with DaskCluster(tmp_path) as cluster, runner_at(cluster, fleet.SLEEPERS, 0) as runner:
        ended: list[Any] = []
        thread = threading.Thread(target=lambda: ended.append(runner.run({"seconds": 0.2, "folder": str(tmp_path)})))
        thread.start()
        cluster.add(4, 2)  # the scans wait for them
        until_slots(runner, 8)
        for worker in cluster.workers[1:]:
            kill(worker)
        until_slots(runner, 2)
        assert not ended, "the run goes on with one"
        thread.join(60)
    assert statuses(ended[0]) == {"completed": 60}
    assert max(result.attempts for result in ended[0].results.values()) <= 3


def test_a_worker_that_does_not_fit_is_named_and_the_others_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in {
        "python": "import platform\nplatform.python_version = lambda: '2.7.18'\n",
        "release": "import resilient_scan\nresilient_scan.__version__ = '0.0.1'\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(text)
    with DaskCluster(tmp_path) as cluster:
        cluster.add(1, 2)
        cluster.add(1, 2, [tmp_path / "python"])
        cluster.add(1, 2, [tmp_path / "release"])
        cluster.until(3)
        with ScanRunner(
            fleet.SLEEPERS[:6], engine="dask", cluster=cluster.address, policy=POLICY, listeners=()
        ) as runner:
            until_slots(runner, 2)
            assert statuses(runner.run({"seconds": 0.05})) == {"completed": 6}
    said = [text for text in caplog.messages if text.startswith("worker tcp://")]
    assert [text for text in said if "runs Python 2.7.18, and this is 3." in text]
    assert [text for text in said if "has resilient_scan 0.0.1, and this is" in text]
    assert len(said) == 2
