"""The time of a scan at a worker is the scan's: the grace period for the way back is neither given to it nor taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from resilient_scan import PluginError, Policy, Retry, ScanRunner, Status, Timeout
from resilient_scan.events import AttemptEnded
from resilient_scan.options import Cluster
from resilient_scan.testing import FakeClock, Recorder
from tests.cluster import fleet

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


class Locked:
    """A scanner that cannot go anywhere."""

    name, pipeline = "locked", "cluster"

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a scheduler in this process, with a worker of two threads."""
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
        yield cluster.scheduler_address


def runner_at(address: str, scanner: Any, *, grace: float = 1.0, **options: Any) -> ScanRunner:
    given = {"retry": None, "timeout": Timeout(total=20), **options.pop("layers", {})}
    policy = Policy(**{"cache": None, "breaker": None, **given})
    cluster = Cluster(address, grace=grace)
    return ScanRunner([scanner], engine="dask", cluster=cluster, policy=policy, **{"listeners": (), **options})


def test_a_run_that_ends_soon_takes_no_time_from_its_scans(address: str) -> None:
    with runner_at(address, fleet.SLEEPERS[0], grace=5) as runner:
        assert runner.run({"seconds": 0.1}, deadline=4).complete
        (result,) = runner.run({"seconds": 60}, deadline=0.5).results.values()
    assert result.status is Status.TIMEOUT
    assert result.error is not None
    assert result.error.message.startswith("the run's deadline came after")
    assert 0.4 < result.duration < 2


def test_what_is_left_of_a_scan_after_an_attempt_is_what_is_left_of_the_run(address: str) -> None:
    layers = {"retry": Retry(attempts=3, base=0, cap=0)}
    with runner_at(address, fleet.time_left, grace=5, layers=layers) as runner:
        (result,) = runner.run({}, deadline=10).results.values()
    assert result.status is Status.COMPLETED
    assert result.attempts == 3
    assert all(8 < entry["seconds"] <= 10 for entry in result.tool_logs)


def test_what_is_left_is_the_same_after_the_driver_was_asked(address: str) -> None:
    layers = {"timeout": Timeout(total=10)}
    with runner_at(address, fleet.asks_for_time, grace=5, layers=layers) as runner:
        report = runner.run({})
    assert report.complete, report.to_dict()
    left = {entry["tool"]: entry["seconds"] for entry in report.tool_logs}
    assert 8 < left["outside"] <= left["after"] <= left["before"] <= 10
    assert left["inside"] <= 0.5


@pytest.mark.parametrize(
    ("timeout", "attempts", "message"),
    [
        (Timeout(total=20, attempt=0.2), 2, "attempt 2: timeout after 0.2s"),
        (Timeout(total=1.5, attempt=0.8), 2, "timeout after 1.5s"),
        (Timeout(total=0.15), 1, "timeout after 0.15s"),
    ],
)
def test_a_timeout_says_which_time_was_up(address: str, timeout: Timeout, attempts: int, message: str) -> None:
    """However late the answer comes: a driver that gives up would leave the second attempt out."""
    recorder = Recorder()
    layers = {"retry": Retry(attempts=2, base=0, cap=0), "timeout": timeout}
    with runner_at(address, fleet.SLEEPERS[0], grace=10, layers=layers, listeners=[recorder]) as runner:
        (result,) = runner.run({"seconds": 60}).results.values()
    assert result.error is not None
    assert (result.status, result.attempts, result.error.message) == (Status.TIMEOUT, attempts, message)
    assert [event.outcome for event in recorder.of(AttemptEnded)] == ["timeout"] * attempts


def test_what_cannot_go_there_is_named_with_the_way_out(address: str) -> None:
    with pytest.raises(
        PluginError, match='scanner locked: engine="dask" sends it to a child process, and cannot pickle'
    ):
        runner_at(address, Locked())
    with pytest.raises(PluginError, match=r"engine=.dask. has the machine's clocks, .* use engine=.threads. with it"):
        runner_at(address, fleet.plain, clock=FakeClock())
