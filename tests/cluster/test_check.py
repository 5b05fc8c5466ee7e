"""`resilient-scan check` says why a cluster could not be used, each in a sentence with the way out, and never hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from resilient_scan.cli.check import Checked, check
from resilient_scan.engines.cluster import connect
from resilient_scan.settings import examine_settings
from tests.support.clusters import free_port
from tests.support.settings import write_settings

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and a worker in this process, at a port of loopback."""
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options) as made:
        yield made


def checked(folder: Path, table: str, engine: str = "dask") -> Checked:
    """Check settings with a table `[cluster]`, and at most two timeouts long."""
    began = time.monotonic()
    found = check(write_settings(folder, f'[scanner_execution]\nengine = "{engine}"\n\n[cluster]\n{table}\n'))
    assert time.monotonic() - began < 2 * connect.EXAMINE_TIMEOUT + 4
    return found


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", 'engine="dask" needs a cluster: write its address, or "local", into [cluster] address'),
        (
            'address = "tcp://10.0.0.1:8786"',
            (
                "cluster.address 'tcp://10.0.0.1:8786': anyone who reaches this port can run code on all workers; use "
                "TLS (tls://...), or allow it by insecure=true"
            ),
        ),
        (
            'address = "tls://scheduler:8786"',
            "cluster.address 'tls://scheduler:8786' needs the files of tls: ca, cert and key",
        ),
    ],
)
def test_an_address_that_could_not_be_used(table: str, sentence: str, tmp_path: Path) -> None:
    assert checked(tmp_path, table).errors == (sentence,)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    table = 'address = "tls://127.0.0.1:8786"\ntls = { ca = "ca.pem", cert = "no.pem", key = "/no/key.pem" }'
    assert checked(tmp_path, table).errors == (
        f"cluster.tls.cert: {tmp_path}/no.pem cannot be read: No such file or directory",
        "cluster.tls.key: /no/key.pem cannot be read: No such file or directory",
    )


def test_files_are_found_from_the_settings_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = '[cluster]\naddress = "tls://a:1"\ntls = { ca = "ca.pem", cert = "c.pem", key = "k.pem" }'
    path = write_settings(tmp_path, table)
    monkeypatch.chdir(path.parent)
    tls = examine_settings(Path(path.name), environ={})[0].cluster.tls
    assert tls is not None
    assert (tls.ca, tls.cert, tls.key) == tuple(str(path.parent / name) for name in ("ca.pem", "c.pem", "k.pem"))


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "EXAMINE_TIMEOUT", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    (error,) = checked(tmp_path, f'address = "{address}"').errors
    assert error.startswith(f"cluster: no scheduler answers at {address}: ")


def test_something_listens_and_never_answers(tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "EXAMINE_TIMEOUT", 0.5)
    address = f"tcp://127.0.0.1:{urlsplit(silent).port}"
    (error,) = checked(tmp_path, f'address = "{address}"').errors
    assert error.startswith(f"cluster: no scheduler answers at {address}: ")


def test_a_cluster_that_can_be_used(tmp_path: Path, cluster: Any) -> None:
    found = checked(tmp_path, f'address = "{cluster.scheduler_address}"')
    assert not [text for text in (*found.errors, *found.warnings) if "cluster" in text]
    assert not checked(tmp_path, 'address = "local"').errors


def test_a_cluster_without_workers_is_one_that_rejects(tmp_path: Path) -> None:
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with distributed.LocalCluster(n_workers=0, **options) as empty:
        found = checked(tmp_path, f'address = "{empty.scheduler_address}"')
    assert not found.errors
    where = empty.scheduler_address
    sentence = (
        f"cluster: no worker is at {where}, and scans are rejected until one joins; start one: dask worker {where}"
    )
    assert sentence in found.warnings


def test_other_versions_are_named(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker,) = cluster.workers.values()
    monkeypatch.setattr(connect.platform, "python_version_tuple", lambda: ("2", "7", "18"))
    monkeypatch.setattr(connect, "__version__", "0.0.1")
    first, second = checked(tmp_path, f'address = "{cluster.scheduler_address}"').errors
    assert first.startswith(f"cluster: worker {worker.address} runs Python 3.")
    assert first.endswith("; start it with Python 2.7")
    assert second.startswith(f"cluster: worker {worker.address} has resilient-scan ")
    assert second.endswith(", and this is 0.0.1; install it there: pip install 'resilient-scan[dask]==0.0.1'")
    monkeypatch.setattr(connect, "PACKAGE", "no_such_package")
    assert (
        f"worker {worker.address} lacks resilient-scan"
        in checked(tmp_path, f'address = "{cluster.scheduler_address}"').errors[1]
    )


def test_workers_that_do_not_say_what_they_run(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "EXAMINE_TIMEOUT", 1.0)
    monkeypatch.setattr(distributed.Client, "get_versions", lambda *_, **__: 1 / 0)
    assert checked(tmp_path, f'address = "{cluster.scheduler_address}"').errors == (
        f"cluster: the workers at {cluster.scheduler_address} do not say within 1s what runs there",
    )


def test_a_cluster_that_no_scan_would_go_to(tmp_path: Path) -> None:
    sentence = '[cluster] is not used: write engine = "dask" into [scanner_execution], or leave it out'
    assert sentence in checked(tmp_path, 'address = "tcp://127.0.0.1:8786"', engine="threads").warnings
