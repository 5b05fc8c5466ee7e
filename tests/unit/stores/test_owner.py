"""Which process holds a lease, and whether it still lives: looked up in the kernel's own words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resilient_scan.stores import owner
from resilient_scan.stores.owner import is_dead, new_owner
from tests.support.waiting import eventually

HAS_PROC = Path("/proc/self/ns/pid").exists()
pytestmark = pytest.mark.skipif(not HAS_PROC, reason="this system has no /proc to look processes up in")
PROGRAM = "import sys; from resilient_scan.stores.owner import new_owner; print(new_owner(), flush=True); "
WITHOUT_MAIN_THREAD = """import ctypes, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)"""


def altered(name: str, **fields: Any) -> str:
    return msgspec.json.encode(msgspec.json.decode(name) | fields).decode()


def started(ending: str) -> subprocess.Popen[str]:
    code = [sys.executable, "-c", PROGRAM + "\n" + ending]
    return subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with started("sys.stdin.read()") as process:
        yield process
        process.kill()


def name_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_owner_has_a_name_of_its_own_and_its_process_lives() -> None:
    ours = new_owner()
    assert ours != new_owner()
    assert not is_dead(ours)


def test_a_killed_process_is_dead_even_before_its_parent_has_asked_how_it_ended(child: subprocess.Popen[str]) -> None:
    name = name_of(child)
    assert not is_dead(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert is_dead(name)
    child.wait()
    assert is_dead(name)


def test_a_process_that_is_stopped_is_alive(child: subprocess.Popen[str]) -> None:
    name = name_of(child)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert not is_dead(name)
    child.send_signal(signal.SIGCONT)


def test_a_program_that_goes_on_without_its_main_thread_is_alive() -> None:
    """The kernel lists it as a zombie, like a killed one."""
    with started(WITHOUT_MAIN_THREAD) as process:
        name = name_of(process)
        stat = Path(f"/proc/{process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "the main thread has ended")
        assert not is_dead(name)
        process.kill()


def test_a_later_process_with_the_same_pid_is_another_one() -> None:
    assert is_dead(altered(new_owner(), started="1"))


def test_a_pid_that_nobody_has_is_dead() -> None:
    assert is_dead(altered(new_owner(), pid=2**22 + 1))
    assert is_dead(altered(new_owner(), pid=2**70))


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_a_process_elsewhere_cannot_be_looked_up(field: str) -> None:
    name = altered(new_owner(), started="1")
    assert is_dead(name)
    assert not is_dead(altered(name, **{field: "another"}))


NAMELESS = ["", "me", "{}", '{"id": "x", "pid": "1"}', "[]", "\udcff"]


@pytest.mark.parametrize("name", NAMELESS)
def test_an_owner_that_does_not_say_which_process_it_is_counts_as_alive(name: str) -> None:
    assert not is_dead(name)
    assert not is_dead(altered(new_owner(), pid=0))


def test_without_proc_an_owner_says_nothing_of_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = altered(new_owner(), started="1")
    monkeypatch.setattr(owner, "_PROC", tmp_path)
    assert msgspec.json.decode(new_owner())["pid"] == 0
    assert not is_dead(known)
    (tmp_path / "self").symlink_to("1")  # that of another PID namespace
    assert msgspec.json.decode(new_owner())["pid"] == 0


def test_a_process_that_proc_hides_is_looked_for_in_another_way(
    monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[str]
) -> None:
    name = name_of(child)
    fields = owner._fields

    def hidden(pid: int) -> list[str]:
        if pid != os.getpid():
            raise FileNotFoundError
        return fields(pid)

    monkeypatch.setattr(owner, "_fields", hidden)
    assert not is_dead(name)
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
        assert not is_dead(name), "another user's"
    child.kill()
    child.wait()
    assert is_dead(name)


def test_what_the_kernel_says_in_another_form_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = altered(new_owner(), started="1")
    answers = iter([owner._fields(os.getpid()), ["R"]])
    monkeypatch.setattr(owner, "_fields", lambda _pid: next(answers))
    assert not is_dead(name)


def test_a_fork_is_another_process() -> None:
    ours = msgspec.json.decode(new_owner())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, new_owner().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = msgspec.json.decode(pipe.read())
    assert theirs["pid"] == pid != ours["pid"]
    assert theirs["boot"] == ours["boot"]
    os.waitpid(pid, 0)
