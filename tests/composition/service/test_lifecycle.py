"""A control service begins, ends, and leaves nothing behind, whatever its host process does meanwhile."""

from __future__ import annotations

import gc
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ConfigError, ControlService, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.service.bounds import Bounds
from resilient_scan.testing import healthy
from tests.support.control import TOKEN, Served
from tests.support.fixtures import Background, Eventually, Fleet, Serve


def ours() -> set[str]:
    """Name the threads of control services that there are."""
    return {
        each.name
        for each in threading.enumerate()
        if each.name.startswith(("resilient-scan-http", "resilient-scan-control"))
    }


def test_it_may_be_started_again_and_leaves_no_thread_and_no_socket(fleet: Fleet, eventually: Eventually) -> None:
    service = ControlService(fleet(healthy("alpha")), TOKEN, registry=CollectorRegistry())
    open_before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        assert service.start() is service
        url = service.url
        assert service.start().url == url  # a second call does nothing
        assert Served(service, None, None).get("/scanners").status == 200  # type: ignore[arg-type]
        service.stop()
        service.stop()
        with pytest.raises(RuntimeError, match=r"is not started; call start\(\) first"):
            _ = service.url
        eventually(lambda: not ours())
    gc.collect()
    assert set(Path("/proc/self/fd").iterdir()) <= open_before


def test_the_port_is_given_back_at_once(serve: Serve) -> None:
    served = serve()
    served.get("/healthz")
    served.service.stop()
    with pytest.raises(ConnectionRefusedError):
        served.get("/healthz")
    again = ControlService(served.runner, port=served.address[1], registry=CollectorRegistry())
    with again:
        assert again.url == f"http://127.0.0.1:{served.address[1]}"


def test_a_port_that_is_taken(serve: Serve, eventually: Eventually) -> None:
    served = serve()
    port = served.address[1]
    second = ControlService(served.runner, port=port, registry=CollectorRegistry())
    before = ours()
    with pytest.raises(
        ConfigError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use; port 0 takes a free"
    ):
        second.start()
    with pytest.raises(RuntimeError):
        _ = second.url
    second.stop()
    assert ours() == before
    served.service.stop()
    with second:
        assert Served(second, served.runner, served.registry).get("/healthz").status == 200


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "203.0.113.1", "x" * 300, "\ud800"])
def test_a_host_that_cannot_be_had(fleet: Fleet, host: str) -> None:
    service = ControlService(fleet(healthy("alpha")), host=host, registry=CollectorRegistry())
    with pytest.raises(ConfigError, match="the control endpoint cannot listen at "):
        service.start()
    assert not ours()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": -1}, "port must be a whole number from 0 to 65535, got -1"),
        ({"port": 65536}, "port must be"),
        ({"port": 1.5}, "port must be"),
        ({"port": "80"}, "port must be"),
        ({"port": True}, "port must be"),
        ({"port": float("nan")}, "port must be"),
        ({"host": ""}, "host must be an address to listen at, such as '127.0.0.1', got ''"),
        ({"host": None}, "host must be"),
        ({"token": ""}, "service.token must be one word of printable ASCII"),
        ({"token": "two words"}, "service.token must be"),
        ({"runner": None}, "ControlService needs a ScanRunner, got None"),
        ({"runner": ScanRunner}, "ControlService needs a ScanRunner, got <class"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(fleet: Fleet, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ControlService(**{"runner": fleet(healthy("alpha")), "registry": CollectorRegistry(), **options})
    assert str(caught.value).startswith(sentence)
    assert "two words" not in str(caught.value)


def test_beyond_this_machine_it_warns(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    runner = fleet(healthy("alpha"))
    for host in ("127.0.0.1", "localhost"):
        with ControlService(runner, TOKEN, host=host, registry=CollectorRegistry()):
            assert caplog.text == ""
    with ControlService(runner, TOKEN, host="0.0.0.0", registry=CollectorRegistry()):
        assert "listens at 0.0.0.0 without TLS" in caplog.text
        assert TOKEN not in caplog.text


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_has_brackets_in_its_url(fleet: Fleet) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    with ControlService(fleet(healthy("alpha")), host="::1", registry=CollectorRegistry()) as service:
        assert service.url.startswith("http://[::1]:")
        assert Served(service, None, None).get("/healthz").status == 200  # type: ignore[arg-type]


def test_two_services_on_one_runner_show_the_same(serve: Serve) -> None:
    first = serve()
    registry = CollectorRegistry()
    with ControlService(first.runner, "another-token", registry=registry) as service:
        second = Served(service, first.runner, registry)
        assert first.post("/scanners/gamma/disable", {"reason": "x"}).status == 200
        assert second.post("/scanners/beta/disable", {"reason": "x"}).status == 401
        assert second.get("/scanners/gamma").json["state"] == "disabled"
        assert second.get("/audit").json == first.get("/audit").json
        first.runner.run()
        sample = ("resilient_scan_scans_total", {"scanner": "alpha", "pipeline": "test", "status": "completed"})
        assert [each.registry.get_sample_value(*sample) for each in (first, second)] == [1, 1]
        first.service.stop()
        assert second.get("/healthz").status == 200


def test_two_services_with_one_registry_count_once(serve: Serve) -> None:
    served = serve()
    with ControlService(served.runner, registry=served.registry):
        served.runner.run()
    sample = ("resilient_scan_scans_total", {"scanner": "alpha", "pipeline": "test", "status": "completed"})
    assert served.registry.get_sample_value(*sample) == 1


def test_start_and_stop_from_many_threads(fleet: Fleet, background: Background, eventually: Eventually) -> None:
    service = ControlService(fleet(healthy("alpha")), registry=CollectorRegistry())
    started = [background(service.start) for _ in range(8)]
    assert {future.result(10) for future in started} == {service}
    assert len([each for each in threading.enumerate() if each.name == "resilient-scan-http"]) == 1
    for future in [background(service.stop) for _ in range(8)]:
        future.result(10)
    eventually(lambda: not ours())


def test_a_request_that_runs_is_answered_before_the_end(
    serve: Serve, release: threading.Event, background: Background
) -> None:
    inside = threading.Event()

    def slow() -> str:
        inside.set()
        release.wait(10)
        return ""

    served = serve(why_not=slow)
    answer = background(served.get, "/readyz")
    assert inside.wait(5)
    stopped = background(served.service.stop)
    release.set()
    assert answer.result(10).json == {"status": "ready"}
    stopped.result(10)


def test_a_request_that_hangs_does_not_hold_the_end_up(
    serve: Serve, release: threading.Event, background: Background
) -> None:
    inside = threading.Event()

    def hang() -> str:
        inside.set()
        release.wait(30)
        return ""

    served = serve(why_not=hang, bounds=Bounds(drain=0.1))
    answer = background(served.get, "/readyz")
    assert inside.wait(5)
    began = time.monotonic()
    served.service.stop()
    assert time.monotonic() - began < 3
    assert isinstance(answer.exception(10), (OSError, http.client.HTTPException)) or answer.result().status == 500


def test_idle_connections_do_not_hold_the_end_up(serve: Serve) -> None:
    served = serve()
    idle = [served.connect() for _ in range(5)]
    idle[0].sendall(b"GET / HTTP")
    began = time.monotonic()
    served.service.stop()
    assert time.monotonic() - began < 2.5
    for wire in idle:
        assert wire.recv(1) == b""
        wire.close()


def test_a_runner_that_is_closed_under_it_can_be_looked_at(serve: Serve) -> None:
    served = serve()
    served.runner.close()
    assert served.get("/readyz").error == (503, "not_ready", "the runner is closed")
    assert served.get("/scanners/gamma").json["state"] == "enabled"
    assert served.post("/scanners/gamma/disable", {"reason": "x"}).status in {200, 503}


def test_a_forked_child_has_it_stopped_and_holds_no_port(serve: Serve) -> None:
    served = serve()
    with served.connect() as open_before:
        assert served.get("/healthz").status == 200
        told, tell = os.pipe()
        go_on, may_go = os.pipe()
        child = os.fork()
        if child == 0:
            said = b"it did not get so far"
            try:
                try:
                    said = served.service.url.encode()
                except RuntimeError:
                    served.service.start()
                    said = served.service.url.encode()
                    assert Served(served.service, served.runner, served.registry).get("/healthz").status == 200
                    served.service.stop()
            finally:
                os.write(tell, said)
                os.close(tell)
                os.close(may_go)
                os.read(go_on, 1)
                os._exit(0)
        os.close(tell)
        os.close(go_on)
        url = os.read(told, 1000).decode()
        try:
            assert url.startswith("http://127.0.0.1:")
            assert url != served.service.url
            assert served.get("/healthz").status == 200
            served.service.stop()
            assert open_before.recv(1) == b""  # the child does not hold it open
            with pytest.raises(ConnectionRefusedError):
                served.get("/healthz")
        finally:
            os.close(may_go)
            os.close(told)
            os.waitpid(child, 0)


HOST = """
import sys, urllib.request
from resilient_scan import ControlService, ScanRunner
from resilient_scan.testing import healthy
service = ControlService(ScanRunner([healthy("alpha")]), "open-sesame-42").start()
for path in ("/", "/metrics", "/scanners", "/audit"):
    urllib.request.urlopen(service.url + path, timeout=10).read()
{last}
"""


@pytest.mark.slow
@pytest.mark.parametrize("last", ["", "1 / 0", "import gc; del service; gc.collect()"])
def test_a_process_that_forgets_to_stop_it_ends_all_the_same(last: str) -> None:
    done = subprocess.run(  # one that does not end is ended here, however slow the machine is
        [sys.executable, "-X", "dev", "-W", "error", "-c", HOST.format(last=last)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (1 if last == "1 / 0" else 0), done.stderr
    assert done.stdout == ""
    # On a busy machine asyncio's debug mode says which of its own steps were slow.
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert not said or (last == "1 / 0" and done.stderr.count("Traceback") == 1), done.stderr


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
module = ""
import resilient_scan
from resilient_scan.testing import healthy
modules = ("starlette", "jinja2", "h11", "uvicorn")
assert not sys.modules.keys() & set(modules)
for module in modules:
    try:
        resilient_scan.ControlService(resilient_scan.ScanRunner([healthy("alpha")]))
    except resilient_scan.ConfigError as error:
        print(error)
"""


def test_without_the_extra_it_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == [
        f"ControlService needs the extra 'service' ({module} is missing): pip install 'resilient-scan[service]'"
        for module in ("starlette", "jinja2", "h11", "uvicorn")
    ], done.stderr
