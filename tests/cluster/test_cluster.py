"""Real schedulers and workers on loopback: scans run there, and what is lost there is counted once here."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    ConfigError,
    PluginError,
    Policy,
    Retry,
    ScanRunner,
    Status,
    Timeout,
)
from resilient_scan.events import BreakerChanged, ExecutionEnded
from resilient_scan.options import Cluster, Tls
from resilient_scan.testing import Recorder
from tests.cluster import fleet
from tests.support.clusters import DaskCluster, alive, children_of, gone, kill
from tests.support.needed import binary

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
    # distributed closes its sockets when the garbage collector gets there
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
POLICY = Policy(cache=None, retry=Retry(attempts=3, base=0.01), breaker=None, timeout=Timeout(total=20))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers with two threads each, which no test harms."""
    with DaskCluster(tmp_path_factory.mktemp("steady")) as cluster:
        cluster.add(2)
        yield cluster


@pytest.fixture
def own(tmp_path: Path) -> Iterator[DaskCluster]:
    """A scheduler of the test's own."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with DaskCluster(folder) as cluster:
        yield cluster


def runner_at(at: DaskCluster, scanners: Any, slots: int, **options: Any) -> ScanRunner:
    """Return a runner whose cluster has that many places."""
    given = {"policy": POLICY, "listeners": (), "max_workers": 16, "cluster": at.address, **options}
    runner = ScanRunner(scanners, engine="dask", **given)
    until_slots(runner, slots)
    return runner


def until_slots(runner: ScanRunner, slots: int) -> None:
    """Wait until the cluster has that many places."""
    workers = runner._runs.fleet.children
    until = time.monotonic() + 60
    while workers.slots() != slots:
        assert time.monotonic() < until, f"{workers.slots()} places and not {slots}"
        time.sleep(0.02)


def statuses(report: Any) -> Counter[str]:
    return Counter(result.status.value for result in report.results.values())


def test_a_fleet_runs_there(steady: DaskCluster) -> None:
    scanners = [fleet.plain, fleet.stuck, fleet.leaves, fleet.fails, fleet.asks, fleet.coroutine]
    with runner_at(steady, scanners, 4) as runner:
        results = runner.run({"number": 7}).results
    assert {name: result.status.value for name, result in results.items()} == {
        **dict.fromkeys(("plain", "asks", "coroutine"), "completed"),
        **dict.fromkeys(("leaves", "fails"), "error"),
        "stuck": "timeout",
    }
    assert results["stuck"].partial
    assert [log["tool"] for log in results["stuck"].tool_logs] == ["before"]
    assert 0.6 <= results["stuck"].duration < 1.6


def test_a_worker_that_is_killed_costs_no_scan(own: DaskCluster, tmp_path: Path) -> None:
    own.add(2, 4)
    recorder = Recorder()
    policy = Policy(cache=None, retry=POLICY.retry, breaker=Breaker(failures=1), timeout=Timeout(total=20))
    with runner_at(own, fleet.SLEEPERS, 8, policy=policy, listeners=(recorder,)) as runner:
        children = children_of(own.workers[0].pid)
        assert len(children) >= 4
        threading.Timer(0.5, kill, [own.workers[0]]).start()
        report = runner.run({"folder": str(tmp_path)})
        assert statuses(report) == {"completed": 60}
        assert gone(children, 2)
    assert Counter(event.scanner for event in recorder.of(ExecutionEnded)) == {
        scanner.name: 1 for scanner in fleet.SLEEPERS
    }
    assert max(result.attempts for result in report.results.values()) == 2
    assert not recorder.of(BreakerChanged), "a lost worker says nothing about a source"


def test_of_a_map_only_what_has_not_come_back_is_lost_with_a_worker(own: DaskCluster, tmp_path: Path) -> None:
    own.add(2, 2)
    recorder = Recorder()
    inputs = ({"number": number, "folder": str(tmp_path)} for number in range(1500))
    before: set[int] = set()
    after: list[Any] = []
    with runner_at(own, [fleet.short], 4, listeners=(recorder,), max_workers=4) as runner:
        for value, result in runner.map("short", inputs, ordered=False):
            if len(before) < 700:
                before.add(value["number"])
                if len(before) == 700:
                    kill(own.workers[0])
            else:
                after.append((value["number"], result))
    begun = Counter(map(int, (tmp_path / "begun.txt").read_text().split()))
    assert sorted([*before, *(number for number, _ in after)]) == list(range(1500))
    assert {result.status for _, result in after} == {Status.COMPLETED}
    assert {begun[number] for number in before} == {1}, "what has come back is not repeated"
    assert 1 <= sum(result.attempts == 2 for _, result in after) <= 400, "two batches of a second, at most"
    assert len(recorder.of(ExecutionEnded)) == 1500


def test_without_retries_a_lost_worker_is_an_error_that_names_it(own: DaskCluster) -> None:
    own.add(1, 2)
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1), timeout=Timeout(total=20))
    with runner_at(own, fleet.SLEEPERS[:2], 2, policy=policy) as runner:
        threading.Timer(0.3, kill, [own.workers[0]]).start()
        results = runner.run({"seconds": 10}).results.values()
        assert {result.status for result in results} == {Status.ERROR}
        for result in results:
            assert result.error is not None
            assert (result.error.type, result.error.blame) == ("resilient_scan.WorkerLost", "local")
            assert re.fullmatch(r"the worker tcp://127.0.0.1:\d+ is gone", result.error.message)
        assert runner.breaker("sleeper_0") == "closed"


def test_without_a_worker_scans_are_rejected(own: DaskCluster) -> None:
    with runner_at(own, fleet.SLEEPERS, 0, policy=Policy(cache=None, timeout=Timeout(total=0.3))) as runner:
        report = runner.run({})
        assert statuses(report) == {"rejected": 60}
        assert report.results["sleeper_0"].error.message == "the cluster has no worker"  # type: ignore[union-attr]


def test_a_full_cluster_rejects_in_a_sentence(own: DaskCluster) -> None:
    own.add(1, 1)
    policy = Policy(cache=None, retry=None, timeout=Timeout(total=0.6))
    with runner_at(own, fleet.SLEEPERS[:6], 1, policy=policy) as runner:
        report = runner.run({"seconds": 0.5})
    found = statuses(report)
    assert found["completed"] >= 1
    assert found["rejected"] >= 3
    assert sum(found.values()) == 6
    said = {result.error.message for result in report.results.values() if result.status is Status.REJECTED}  # type: ignore[union-attr]
    assert said == {"the cluster is full: 1 place at 1 worker, all taken"}


def test_another_client_that_fills_the_cluster_is_in_nobodys_way(steady: DaskCluster) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.Client(steady.address, set_as_default=False) as client:
        futures = client.map(time.sleep, [2] * 12, pure=False)
        with runner_at(steady, fleet.SLEEPERS[:8], 4) as runner:
            report = runner.run({})
        assert statuses(report) == {"completed": 8}
        client.cancel(futures, force=True)


def test_a_scheduler_that_is_killed_ends_no_run_late(own: DaskCluster) -> None:
    own.add(1, 2)
    policy = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=2))
    with runner_at(own, fleet.SLEEPERS[:4], 2, policy=policy) as runner:
        threading.Timer(0.3, kill, [own.scheduler]).start()
        began = time.monotonic()
        report = runner.run({"seconds": 0.8}, deadline=6)
        assert time.monotonic() - began < 8
        assert sum(statuses(report).values()) == 4


DRIVER = """
import sys
from resilient_scan import ScanRunner
from tests.cluster import fleet
runner = ScanRunner(fleet.SLEEPERS[:4], engine="dask", cluster=sys.argv[1], listeners=())
while runner._runs.fleet.children.slots() < 2: pass
print("ready", flush=True)
runner.run({"seconds": 60})
"""


@pytest.mark.long
def test_a_driver_that_is_killed_leaves_nothing_behind(own: DaskCluster) -> None:
    own.add(1, 2)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, own.address], stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ready\n"
        children = children_of(own.workers[0].pid)
        assert len(alive(children)) >= 2
    finally:
        kill(driver)
        assert driver.stdout is not None
        driver.stdout.close()
    assert gone(children, 15)
    assert own.workers[0].poll() is None


def test_a_worker_with_other_code_is_named(own: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'from resilient_scan import scanner\n@scanner(pipeline="p")\ndef mine(state):\n    return []\n'
    for name, more in {"here": "", "there": "# another version\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "deployed_scanners.py").write_text(text + more)
    monkeypatch.syspath_prepend(tmp_path / "here")
    import deployed_scanners  # type: ignore[import-not-found]

    own.add(1, 1, [tmp_path / "there"])
    own.until(1)
    with pytest.raises(PluginError, match=r"cannot have mine: deployed_scanners is another version there"):
        ScanRunner([deployed_scanners.mine], engine="dask", cluster=own.address, listeners=())
    kill(own.workers[0])
    own.add(1, 1, [tmp_path / "here"])
    with runner_at(own, [deployed_scanners.mine], 1) as runner:
        assert runner.run({}).complete


def _certificates(folder: Path) -> tuple[list[str], Tls]:
    """Make an authority and a certificate that it has signed; return options for Dask's programs, and for a driver."""
    openssl = binary("openssl")

    def call(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    new = ("-nodes", "-newkey", "rsa:2048")
    call("req", "-x509", "-subj", "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", *new)
    call("req", "-subj", "/CN=127.0.0.1", "-keyout", "key.pem", "-out", "request.pem", *new)
    call(
        *[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "cert.pem",
            "-days",
            "2",
        ]
    )
    paths = {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
    options = ["--tls-ca-file", paths["ca"], "--tls-cert", paths["cert"], "--tls-key", paths["key"]]
    return options, Tls(**paths)


def test_tls(tmp_path: Path) -> None:
    options, ours = _certificates(tmp_path / "ours")
    _, foreign = _certificates(tmp_path / "foreign")
    folder = tmp_path / "cluster"
    folder.mkdir()
    with DaskCluster(folder, *options) as cluster:
        assert cluster.address.startswith("tls://")
        cluster.add(1, 2)
        with runner_at(cluster, [fleet.plain], 2, cluster=Cluster(cluster.address, tls=ours)) as runner:
            assert runner.run({}).complete
        with pytest.raises(ConfigError, match="no scheduler answers at tls://"):
            ScanRunner([fleet.plain], engine="dask", cluster=Cluster(cluster.address, tls=foreign), listeners=())
        with pytest.raises(ConfigError, match=r"tls://.* needs the files of tls"):
            ScanRunner([fleet.plain], engine="dask", cluster=cluster.address, listeners=())


def test_a_cluster_of_its_own_to_try_it_out() -> None:
    before = children_of(os.getpid())
    with ScanRunner([fleet.plain], engine="dask", cluster="local", listeners=()) as runner:
        workers = {pid for pid in children_of(os.getpid()) - before if _is_worker(pid)}
        assert workers
        assert runner.run({}).complete
    assert gone(workers, 30)


def _is_worker(pid: int) -> bool:
    """Return whether it is one of Dask's processes; multiprocessing's own helpers live as long as this one."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"resource_tracker" not in command
    return False
