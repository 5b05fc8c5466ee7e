"""Freeing a thread: which connection it waits for, and when that is left alone."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from types import FrameType
from typing import Any

import pytest

from resilient_scan.engines import sockets
from resilient_scan.engines.sockets import LOOK_INTERVAL, MAX_LOOK_INTERVAL, MAX_TIME, REPORT_TIME, Release
from tests.support.clients import FOREVER, address, http_client
from tests.support.http import hang, raw_server
from tests.support.waiting import eventually


class Hung:
    """What is known about the thread: it hangs until it is said not to."""

    def __init__(self) -> None:
        self.hangs = True
        self.helpers: list[threading.Thread] = []
        self.cut = 0

    def cut_off(self) -> None:
        self.cut += 1


def frames() -> dict[int, FrameType]:
    return sys._current_frames()


@pytest.fixture
def server() -> Iterator[str]:
    with raw_server(hang) as url:
        yield url


@pytest.fixture
def waiting(server: str) -> Iterator[Callable[[Callable[[str], Any]], threading.Thread]]:
    """Return a function that starts a thread in a client, and returns it once it waits for the server."""
    started: list[threading.Thread] = []

    def start(client: Callable[[str], Any]) -> threading.Thread:
        def run() -> None:
            with suppress(OSError):
                client(server)

        thread = threading.Thread(target=run, daemon=True)
        started.append(thread)
        thread.start()
        eventually(lambda: (frame := frames().get(thread.ident or 0)) and in_client(frame, client))
        if sockets._CALLS is not None:
            eventually(lambda: sockets.waited_for(thread.native_id or 0, lambda: None) is not None)
        return thread

    yield start
    for thread in started:
        thread.join(10)


def in_client(frame: FrameType | None, client: Callable[[str], Any]) -> bool:
    while frame is not None:
        if frame.f_code is client.__code__:
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def connection(server: str) -> Iterator[socket.socket]:
    with socket.create_connection(address(server)) as made:
        yield made


@pytest.mark.parametrize("seconds", [None, FOREVER])
def test_it_takes_two_looks(waiting: Any, connection: socket.socket, seconds: float | None) -> None:
    connection.settimeout(seconds)
    thread = waiting(lambda _url: connection.recv(1))
    hung = Hung()
    release = Release(thread, hung, 0.0, frames)
    assert release.step(0.004) == pytest.approx(0.004 + LOOK_INTERVAL)
    assert (release.under_way, release.shutdowns, hung.cut) == (True, 0, 0)
    assert thread.is_alive()
    release.step(0.007)
    assert (release.shutdowns, hung.cut) == (1, 1)
    thread.join(10)
    assert not thread.is_alive()
    assert release.freed(0.007 + REPORT_TIME)
    assert not release.freed(0.008 + REPORT_TIME)  # it did something else for a while
    release.stop()


def test_one_that_is_back_and_at_its_next_work_is_left_alone(waiting: Any, connection: socket.socket) -> None:
    """A worker that was not replaced waits on the same connection again, for the next scanner."""
    thread, hung = waiting(lambda _url: connection.recv(1)), Hung()
    release = Release(thread, hung, 0.0, frames)
    release.step(0.004)
    hung.hangs = False
    assert release.step(0.007) is None
    assert (release.shutdowns, hung.cut, release.done) == (0, 0, True)
    connection.shutdown(socket.SHUT_RDWR)


def test_a_descriptor_that_became_another_connection_is_left_alone(
    waiting: Any, connection: socket.socket, server: str
) -> None:
    thread, hung = waiting(lambda _url: connection.recv(1)), Hung()
    release = Release(thread, hung, 0.0, frames)
    release.step(0.004)
    with connection.dup() as first, socket.create_connection(address(server)) as other:
        os.dup2(other.fileno(), connection.fileno())  # what closing one and opening another comes to
        release.step(0.007)
        assert (release.shutdowns, hung.cut) == (0, 0)
        release.stop()
        first.shutdown(socket.SHUT_RDWR)  # what the thread waits for in the kernel
        thread.join(10)


def test_who_waits_for_nothing_is_looked_at_ever_more_rarely(release: threading.Event) -> None:
    thread = threading.Thread(target=release.wait, daemon=True)
    thread.start()
    attempt, now, looks = Release(thread, Hung(), 0.0, frames), 0.004, 0
    while (again := attempt.step(now)) is not None:
        assert again - now <= MAX_LOOK_INTERVAL + 1e-9
        now, looks = again, looks + 1
    assert now >= MAX_TIME
    assert looks < 30
    assert not attempt.under_way


def test_a_thread_that_has_ended_is_none() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    release = Release(thread, Hung(), 0.0, frames)
    assert release.step(0.004) is not None
    assert not release.under_way


def test_the_next_thread_with_the_number_of_one_that_has_ended_is_left_alone(waiting: Any) -> None:
    """A helper of a `map` that is over: its number is that of somebody else's helper by now."""
    other, hung = waiting(http_client), Hung()
    helper = threading.Thread(target=int)
    helper.start()
    helper.join()
    helper._ident = other.ident
    hung.helpers = [helper]
    release = Release(threading.main_thread(), hung, 0.0, frames)
    for now in (0.004, 0.007, 0.010):
        release.step(now)
    assert (release.shutdowns, hung.cut, other.is_alive()) == (0, 0, True)
    end(other, release)


def end(thread: threading.Thread, release: Release) -> None:
    """Free a thread after all, by shutting down what it waits for."""
    release.stop()
    descriptor = sockets.waited_for(thread.native_id or 0, lambda: frames()[thread.ident or 0])
    assert descriptor is not None
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_connection_that_turns_out_to_be_one_of_http2_is_left_alone(waiting: Any, connection: socket.socket) -> None:
    """At the first look it was in its TLS handshake, which ends with the choice of a protocol."""
    module: dict[str, Any] = {"__name__": "client", "connection": connection}
    exec("def read(_url): connection.recv(1)", module)
    thread, hung = waiting(module["read"]), Hung()
    release = Release(thread, hung, 0.0, frames)
    release.step(0.004)
    assert release.under_way
    module["__name__"] = "client.http2"
    release.step(0.007)
    assert (release.shutdowns, hung.cut) == (0, 0)
    end(thread, release)


def test_a_kernel_without_numbers_for_connections_will_do(
    waiting: Any, connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_COOKIE", 9999)  # gVisor, and Linux before 4.12
    thread, hung = waiting(lambda _url: connection.recv(1)), Hung()
    release = Release(thread, hung, 0.0, frames)
    release.step(0.004)
    release.step(0.007)
    thread.join(10)
    assert (release.shutdowns, hung.cut, thread.is_alive()) == (1, 1, False)
    release.stop()


def test_a_process_that_may_open_no_more_leaves_its_threads_to_hang(
    waiting: Any, connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    thread, hung = waiting(lambda _url: connection.recv(1)), Hung()
    release = Release(thread, hung, 0.0, frames)
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", full)
        release.step(0.004)
    assert not release.under_way
    end(thread, release)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_the_upper_half_of_a_register_is_no_part_of_a_descriptor(waiting: Any, connection: socket.socket) -> None:
    read = ctypes.CDLL(None).syscall

    def client(_url: str) -> None:
        descriptor = ctypes.c_long(connection.fileno() | 1 << 40)
        read(ctypes.c_long(0), descriptor, ctypes.create_string_buffer(1), ctypes.c_long(1))

    thread, hung = waiting(client), Hung()
    release = Release(thread, hung, 0.0, frames)
    release.step(0.004)
    release.step(0.007)
    thread.join(10)
    assert (release.shutdowns, hung.cut, thread.is_alive()) == (1, 1, False)
    release.stop()


POLLS = """
import socket, sys, threading
from resilient_scan.engines.sockets import waited_for

listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname(), timeout=60)
thread = threading.Thread(target=connection.recv, args=(1,), daemon=True)
thread.start()
while waited_for(thread.native_id, lambda: None) != connection.fileno():
    pass
print("polls", flush=True)
sys.stdin.readline()
while (call := open(f"/proc/self/task/{thread.native_id}/syscall").read().split()[0]) == "running":
    pass  # it has not had its turn since the stop
print(call)
print(waited_for(thread.native_id, lambda: None) == connection.fileno())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_a_wait_that_a_stop_of_the_process_has_interrupted_is_seen() -> None:
    """The kernel goes on with a poll as `restart_syscall`: after Ctrl-Z and `fg`, or a debugger's look."""
    child = subprocess.Popen([sys.executable, "-c", POLLS], stdin=PIPE, stdout=PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "polls\n"
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        child.send_signal(signal.SIGCONT)
        assert child.communicate("go on\n", 10) == ("219\nTrue\n", None)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", [socket.AF_UNIX, "pipe", "udp"])
def test_what_is_no_connection_over_a_network_is_left_alone(waiting: Any, kind: Any) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
        thread = waiting(lambda _url: os.read(reader, 1))
        end: Callable[[], Any] = lambda: os.write(writer, b"x")  # noqa: E731 - one of three
    elif kind == "udp":
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", 0))
        thread = waiting(lambda _url: listener.recv(1))
        end = lambda: listener.sendto(b"x", listener.getsockname())  # noqa: E731
    else:
        left, right = socket.socketpair()
        thread = waiting(lambda _url: left.recv(1))
        end = lambda: right.send(b"x")  # noqa: E731
    release, before = Release(thread, Hung(), 0.0, frames), descriptors()
    release.step(0.004)
    assert not release.under_way
    assert descriptors() == before
    assert thread.is_alive()
    end()
    thread.join(10)
    if kind == "pipe":
        os.close(reader)
        os.close(writer)
    elif kind == "udp":
        listener.close()
    else:
        left.close()
        right.close()


class TestWithoutTheKernelsWord:
    """Elsewhere than on Linux, only a socket's own method says that its thread waits for it."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sockets, "_CALLS", None)

    def test_a_client_of_the_library_is_freed(self, waiting: Any) -> None:
        thread, hung = waiting(http_client), Hung()
        eventually(lambda: frames()[thread.ident].f_globals["__name__"] == "socket")
        release = Release(thread, hung, 0.0, frames)
        now: float | None = 0.004
        while thread.is_alive() and now is not None:
            now = release.step(now)
            thread.join(0.05)
        release.stop()
        assert not thread.is_alive()
        assert (release.shutdowns, hung.cut) == (1, 1)

    def test_a_variable_of_ones_own_is_not_what_one_waits_for(
        self, release: threading.Event, connection: socket.socket
    ) -> None:
        begun = threading.Event()

        def run() -> None:
            sock = connection  # noqa: F841
            begun.set()
            release.wait()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        begun.wait(10)
        attempt = Release(thread, Hung(), 0.0, frames)
        attempt.step(0.004)
        assert not attempt.under_way
