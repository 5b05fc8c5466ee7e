"""The driver's side of a cluster, with a scheduler and a worker in this process."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from resilient_scan import ConfigError, PluginError, Policy, Quarantine, ScanRunner, Timeout
from resilient_scan.engines.cluster import workers as module
from resilient_scan.engines.cluster.workers import ClusterWorkers, RemoteWorker
from resilient_scan.events import ExecutionEnded
from resilient_scan.options import Cluster, Tls
from resilient_scan.testing import Recorder
from tests.cluster import fleet
from tests.support.waiting import eventually

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
POLICY = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=10))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    options = {"processes": False, "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def runner_of(client: Any, *scanners: Any, **options: Any) -> ScanRunner:
    return ScanRunner(scanners, engine="dask", cluster=client, **{"policy": POLICY, "listeners": (), **options})


def test_a_runner_uses_a_client_that_its_owner_closes(client: Any) -> None:
    for number in range(2):
        with runner_of(client, fleet.plain, fleet.asks) as runner:
            report = runner.run({"number": number})
        assert report.complete
    assert client.status == "running"


def test_what_the_workers_cannot_have_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "python_version_tuple", lambda: ("2", "7", "18"))
    with pytest.raises(
        PluginError, match=r"the cluster cannot be used: worker .* runs Python 3\.\d+\.\d+, and this is"
    ):
        runner_of(client, fleet.plain)
    monkeypatch.undo()
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(PluginError, match=r"worker .* has resilient_scan .*, and this is 0\.0\.1"):
        runner_of(client, fleet.plain)


def test_a_worker_that_cannot_be_opened_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise LookupError("no such module")

    monkeypatch.setattr(RemoteWorker, "open", fails)
    with pytest.raises(PluginError, match=r"worker .*: LookupError: no such module"):
        runner_of(client, fleet.plain)


def test_one_that_could_not_be_opened_is_tried_again(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = ClusterWorkers(client)
    with monkeypatch.context() as patched:
        patched.setattr(module, "RETRY_INTERVAL", 0.1)
        patched.setattr(RemoteWorker, "open", lambda *_: 1 / 0)
        for thread in workers._look():
            thread.join()
        assert workers._look() == []
    time.sleep(0.1)
    for thread in workers._look():
        thread.join()
    assert workers.slots() == 2
    workers.close()


def test_workers_are_let_go(client: Any) -> None:
    workers = ClusterWorkers(client)
    workers.start()
    assert workers.slots() == 2
    assert workers.pids() == ()
    assert workers.share("of no such scanner") == 1
    workers.close()
    workers.close()


def test_a_large_state_goes_over_the_wire_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    ask = RemoteWorker.ask

    async def counted(self: RemoteWorker, method: str, *arguments: Any) -> Any:
        sent.append(len(pickle.dumps(arguments)))
        return await ask(self, method, *arguments)

    monkeypatch.setattr(RemoteWorker, "ask", counted)
    with runner_of(client, fleet.counts, fleet.plain, *fleet.SLEEPERS[:8]) as runner:
        for _ in range(2):
            assert runner.run({"text": "x" * 5_000_000, "seconds": 0}).complete
    assert len(sent) > 20
    assert 5_000_000 < sum(sent) < 5_050_000


def test_a_worker_that_was_started_again_is_opened_again(client: Any) -> None:
    recorder = Recorder()
    options = {"quarantine": Quarantine(after_failures=1), "listeners": (recorder,)}
    with runner_of(client, fleet.plain, **options) as runner:
        workers: Any = runner._runs.fleet.children
        (worker,) = workers._workers.values()
        worker._identity = "another"
        error = runner.run({}).results["plain"].error
        assert error is not None
        assert (error.type, error.blame) == ("resilient_scan.WorkerLost", "local")
        assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["local"], "it counts against nobody"
        assert worker.lost
        worker.tell("renew")  # nobody hears it
        eventually(lambda: list(workers._workers.values()) not in ([], [worker]))
        assert runner.run({}).complete


def test_a_scheduler_that_does_not_answer_is_said_once(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(module, "RENEW_INTERVAL", 0.01)
    workers = ClusterWorkers(client)
    workers.start()

    def fails() -> None:
        raise OSError("gone")

    looks = workers._look
    monkeypatch.setattr(workers, "_look", fails)
    time.sleep(0.1)
    monkeypatch.setattr(workers, "_look", looks)
    time.sleep(0.1)
    assert caplog.messages.count("the scheduler of the cluster does not answer: gone") == 1
    assert workers.slots() == 2
    workers.close()


@pytest.mark.parametrize(
    ("cluster", "sentence"),
    [
        ("tcp://10.0.0.1:8786", "anyone who reaches this port can run code on all workers; use TLS"),
        ("10.0.0.1:8786", "anyone who reaches this port can run code on all workers; use TLS"),
        ("tcp://scheduler:8786", "anyone who reaches this port can run code on all workers; use TLS"),
        ("tls://scheduler:8786", "needs the files of tls: ca, cert and key"),
        ("tcp://[::1", "is not the address of a scheduler"),
        ("tcp://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1"),
        ("", 'cluster.address must be the address of a scheduler, or "local"'),
        (7, 'cluster must be the address of a scheduler, "local", a Cluster or a distributed.Client, got 7'),
        (None, 'engine="dask" needs a cluster'),
        (Cluster(), 'engine="dask" needs a cluster'),
    ],
)
def test_a_cluster_that_cannot_be_used(cluster: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.2)
    with pytest.raises(ConfigError) as caught:
        ScanRunner([fleet.plain], engine="dask", cluster=cluster, listeners=())
    assert sentence in str(caught.value)


def test_options() -> None:
    assert Cluster("tls://a:1", tls=Tls("ca", "cert", "key")).max_result == 10_000_000
    for wrong, sentence in {"max_result": "cluster.max_result must be", "grace": "cluster.grace must be"}.items():
        with pytest.raises(ConfigError, match=sentence):
            Cluster("local", **{wrong: -1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='cluster needs engine="dask"'):
        ScanRunner([fleet.plain], cluster="local", listeners=())


def test_without_the_extra_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'resilient-scan\[dask\]'"):
        ScanRunner([fleet.plain], engine="dask", cluster="local", listeners=())


def test_insecure_addresses_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.2)
    with pytest.raises(ConfigError, match=r"no scheduler answers at tcp://127\.0\.0\.2:1"):
        ClusterWorkers(Cluster("tcp://127.0.0.2:1", insecure=True))
