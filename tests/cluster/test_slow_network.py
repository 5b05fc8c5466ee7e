"""A slow network between driver, scheduler and workers: it costs time, but no result, no partial, no second count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Policy, Retry, RunReport, ScanRunner, Status, Timeout
from resilient_scan.events import AttemptEnded, ExecutionEnded, ScanEnded
from resilient_scan.options import Cluster
from resilient_scan.testing import Recorder
from tests.cluster import fleet
from tests.cluster.test_cluster import until_slots
from tests.support.clusters import DaskCluster
from tests.support.slow import SlowLink

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUICK = [fleet.plain, fleet.asks, fleet.coroutine, *fleet.SLEEPERS[:9]]
SCANNERS = [*QUICK, fleet.stuck, fleet.fails, fleet.leaves, fleet.nearly_late]


class Network:
    """A cluster of two workers with four threads each; all that is said to it goes by slow links."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.cluster = stack.enter_context(DaskCluster(folder))
        self._links = [stack.enter_context(SlowLink()) for _ in range(3)]
        self._links[0].target = int(self.cluster.address.rpartition(":")[2])
        self.cluster.address = f"tcp://127.0.0.1:{self._links[0].port}"
        for link in self._links[1:]:
            self.cluster.add(1, 4, link=link)

    def slow_down(self, delay: float, jitter: float = 0.0) -> None:
        """Have everything be late from now on, each way."""
        for link in self._links:
            link.delay, link.jitter = delay, jitter

    def runner(self, recorder: Recorder, grace: float) -> ScanRunner:
        """Return a runner that has all places."""
        retry = Retry(attempts=2, base=0.01)
        policy = Policy(cache=None, retry=retry, breaker=None, timeout=Timeout(total=20))
        cluster = Cluster(self.cluster.address, grace=grace)
        options: dict[str, Any] = {"policy": policy, "listeners": (recorder,), "max_workers": 8, "cluster": cluster}
        runner = ScanRunner(SCANNERS, engine="dask", **options)
        until_slots(runner, 8)
        return runner


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(tmp_path_factory.mktemp("network"), stack)


def counted_once(recorder: Recorder, report: RunReport) -> None:
    """Check that each scan has ended once, and each of its attempts."""
    once = Counter(scanner.name for scanner in SCANNERS)
    assert Counter(event.scanner for event in recorder.of(ExecutionEnded)) == once
    assert Counter(event.result.scanner for event in recorder.of(ScanEnded)) == once
    attempts = Counter(event.scanner for event in recorder.of(AttemptEnded))
    assert attempts == {name: result.attempts for name, result in report.results.items()}


@pytest.mark.parametrize(("delay", "jitter"), [(0.15, 0.0), (0.4, 0.05)])
def test_scans_come_to_the_same_as_ever(delay: float, jitter: float, network: Network) -> None:
    network.slow_down(delay if jitter == 0 else 0, 0)  # the slower one is slow from the first scan on
    recorder = Recorder()
    with network.runner(recorder, grace=3) as runner:
        network.slow_down(delay, jitter)
        report = runner.run({"seconds": 0.2})
        counted_once(recorder, report)
        results = report.results
        assert {results[scanner.name].status for scanner in (*QUICK, fleet.nearly_late)} == {Status.COMPLETED}
        stuck = results["stuck"]
        assert (stuck.status, stuck.attempts, stuck.partial) == (Status.TIMEOUT, 1, True)
        assert stuck.error is not None
        assert stuck.error.message == "timeout after 0.6s"
        assert [entry["tool"] for entry in stuck.tool_logs] == ["before"]
        assert 0.6 + 2 * delay < stuck.duration < 0.6 + 3
        assert {results[name].status for name in ("fails", "leaves")} == {Status.ERROR}
        network.slow_down(0)


def test_one_that_is_slower_than_the_grace_period_gives_one_clear_status(network: Network) -> None:
    network.slow_down(0)
    recorder = Recorder()
    with network.runner(recorder, grace=0.1) as runner:
        network.slow_down(0.3)
        report = runner.run({"seconds": 0.2})
        network.slow_down(0)
        again = runner.run({"seconds": 0.1})
    assert {report.results[scanner.name].status for scanner in QUICK} == {Status.COMPLETED}
    for name in ("stuck", "nearly_late"):
        result = report.results[name]
        assert (result.status, result.attempts, result.partial) == (Status.TIMEOUT, 1, False)
        assert result.error is not None
        assert result.error.message == "timeout after 0.6s"
    assert again.results["plain"].status is Status.COMPLETED
    assert Counter(event.scanner for event in recorder.of(ExecutionEnded)) == dict.fromkeys(report.results, 2)
