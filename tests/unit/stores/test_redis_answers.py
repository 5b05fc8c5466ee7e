"""What answers where Redis should be, and is none: an error of the store's, whatever it says."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from resilient_scan import ScanRunner, Status
from resilient_scan.errors import StoreError
from resilient_scan.stores import health, open_store
from resilient_scan.testing import FakeClock, healthy

pytest.importorskip("redis")
ODD = [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n" * 5000 + b":1\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n"]


class Server(socketserver.ThreadingTCPServer):
    """Gives one answer to whatever it is sent."""

    daemon_threads = True
    answer = b""
    pause = 0.0
    ended = threading.Event()


class Handler(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Answer."""
        assert isinstance(self.server, Server)
        while self.request.recv(65536):
            if not self.server.pause:
                self.request.sendall(self.server.answer)
                continue
            with contextlib.suppress(OSError):  # who is dripped on has gone
                for byte in self.server.answer:
                    self.request.sendall(bytes([byte]))
                    self.server.ended.wait(self.server.pause)
            self.server.ended.set()
            return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.server_address[1]}/0"


def operations(store: Any) -> list[Any]:
    return [
        store.now,
        lambda: store.get("a"),
        lambda: store.read(""),
        lambda: store.tail("runs", 5),
        lambda: store.update("a", lambda _old, _now: (b"1", None)),
    ]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("answer", ODD)
def test_what_is_no_answer_of_redis_is_an_error_of_the_store(
    answer: bytes, protocol: int, server: Server, url: str
) -> None:
    server.answer = answer
    clock = FakeClock()
    store = open_store(f"{url}?protocol={protocol}", clock)
    for ask in operations(store):
        clock.advance(2)  # it is asked again
        try:
            ask()
        except StoreError as error:
            assert url in str(error)  # noqa: PT017 - some of it may be taken for an answer
    store.close()


def test_a_run_goes_on_with_one_warning(server: Server, url: str, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = b"+OK\r\n"
    with ScanRunner([healthy("one")], store=f"{url}?protocol=3") as runner:
        assert runner.run().results["one"].status is Status.COMPLETED
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"the store {url}?protocol=3 does not answer as a Redis server does; runs go on without it"]


def test_a_cluster_is_reported_as_one(server: Server, url: str) -> None:
    server.answer = b"-MOVED 3999 127.0.0.1:1\r\n"
    store = open_store(f"{url}?protocol=2", FakeClock())
    with pytest.raises(StoreError, match=r"is a part of a cluster, which is not supported: name one server$"):
        store.get("a")
    store.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_an_answer_that_comes_in_drops_is_cut_off(protocol: int, server: Server, url: str) -> None:
    """Each byte comes in time, and all of them would take hours."""
    server.answer, server.pause, server.ended = b"$100000\r\n" + b"x" * 100_000, 0.1, threading.Event()
    store = open_store(f"{url}?protocol={protocol}", FakeClock())
    with pytest.raises(StoreError, match=r"is away: no answer within 250 ms$"):
        store.get("a")
    assert server.ended.wait(60), "the connection is closed"
    store.close()


def test_an_idle_watchdog_exits_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "IDLE_TIMEOUT", 0.0)
    cut = threading.Event()
    watchdog = health.CallWatchdog(cut.set, 0.01)
    for _ in range(3):
        cut.clear()
        watchdog.begin()
        assert cut.wait(60)
        assert watchdog.end()
        watchdog.begin()
        assert watchdog.end() is False
        for thread in [each for each in threading.enumerate() if each.name == "resilient-scan-store-watch"]:
            thread.join(60)
    watchdog.stop()
