"""The driver's side of a cluster, with a scheduler and a worker in this process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from resilient_scan import ConfigError, PluginError, Policy, ScanRunner, Timeout
from resilient_scan.engines.cluster import workers as module
from resilient_scan.engines.cluster.actor import WorkerActor
from resilient_scan.engines.cluster.remote import RemoteChild
from resilient_scan.engines.cluster.workers import ClusterWorkers, RemoteWorker
from resilient_scan.engines.process.wire import ConnectionClosed
from resilient_scan.errors import Rejected, WorkerLost
from resilient_scan.options import Cluster, Tls
from tests.cluster import fleet

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
    return ScanRunner(scanners, engine="dask", cluster=client, listeners=(), **{"policy": POLICY, **options})


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


def test_a_full_cluster(client: Any) -> None:
    workers = ClusterWorkers(client)
    with pytest.raises(Rejected, match="the cluster has no worker"):
        workers.take(lambda: False, 0)
    workers.start()
    places = [workers.take(lambda: False, 5) for _ in range(2)]
    with pytest.raises(Rejected, match="the cluster is full: 2 places at 1 worker, all taken"):
        workers.take(lambda: False, 0)
    with pytest.raises(WorkerLost):
        workers.take(lambda: True, 5)
    workers.give_back(places.pop())
    workers.give_back(workers.take(lambda: False, 5))
    assert workers.slots() == 2
    assert workers.pids() == ()
    workers.close()
    workers.close()
    with pytest.raises(Rejected, match="closed"):
        workers.take(lambda: False, 5)


def test_a_seat_that_was_started_again_takes_its_conversations_along(client: Any) -> None:
    workers = ClusterWorkers(client)
    workers.start()
    (worker,) = workers._workers.values()
    worker._identity = "another"
    place: RemoteChild = workers.take(lambda: False, 5)
    with pytest.raises(ConnectionClosed):
        worker.call("renew")
    assert worker.lost
    assert isinstance(place.failure(), WorkerLost)
    worker.tell("renew")  # nobody hears it
    until = time.monotonic() + 10
    while workers.slots() != 2 and time.monotonic() < until:  # a new one is opened in its place
        time.sleep(0.01)
    assert workers.slots() == 2
    workers.close()


async def _slow(_seat: WorkerActor, _identity: str) -> None:
    await asyncio.sleep(1)


def test_what_is_not_answered_in_time_has_ended(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = ClusterWorkers(client)
    workers.start()
    (worker,) = workers._workers.values()
    monkeypatch.setattr(module, "CALL_INTERVAL", 0.0001)
    monkeypatch.setattr(WorkerActor, "warm_again", _slow, raising=False)
    with pytest.raises(ConnectionClosed):
        worker.call("warm_again", until=lambda: 0.0)
    workers.close()


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
