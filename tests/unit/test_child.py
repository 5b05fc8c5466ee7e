"""A child process: what it is, how it ends, and what ends with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from resilient_scan.engines.process import bootstrap, forkserver, keeper
from resilient_scan.engines.process.children import Children
from resilient_scan.engines.process.forkserver import ForkServer
from tests.support.children import ask, children, exists, take
from tests.support.processes import in_child
from tests.support.waiting import eventually

GONE = (EOFError, ConnectionError)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def shared() -> Iterator[Children]:
    """Return children that many tests use."""
    with children(2, counted=False) as made:
        yield made


@pytest.fixture(scope="module", params=[True, False], ids=["forked", "spawned"])
def each(request: pytest.FixtureRequest) -> Iterator[Children]:
    """Return children of each kind, made by a program that ignores and blocks signals."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with children(2, counted=False, fork=request.param) as made:
        made.give_back(take(made))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGTERM, before)
        yield made


# what a child is


def test_a_child_is_a_process_of_its_own_that_answers(each: Children) -> None:
    child = take(each)
    assert ask(child, "import os; answer = os.getpid()") == child.pid != os.getpid()
    assert child.pid in each.pids()
    each.give_back(child)


def test_a_child_has_a_session_and_a_group_of_its_own_and_is_deaf_to_ctrl_c(each: Children) -> None:
    child = take(each)
    answer = ask(
        child,
        "import os, signal; answer = os.getsid(0), os.getpgid(0), signal.getsignal(signal.SIGINT),"
        "signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(0, ())",
    )
    assert answer == (child.pid, child.pid, signal.SIG_IGN, signal.SIG_DFL, signal.SIG_DFL, set())
    each.give_back(child)


def test_a_child_has_the_standard_descriptors_and_its_pipe_only(each: Children) -> None:
    child = take(each)
    # the fourth is that of the folder that is listed
    assert len(ask(child, "import os; answer = os.listdir('/proc/self/fd')")) == 5
    assert ask(child, "import os; answer = os.readlink('/proc/self/fd/0')") == os.devnull
    each.give_back(child)


def test_what_a_child_prints_goes_where_its_errors_go(each: Children) -> None:
    child = take(each)
    outputs = ask(child, "import os; answer = [os.readlink(f'/proc/self/fd/{n}') for n in (1, 2)]")
    assert outputs == [outputs[0]] * 2
    assert ask(child, "import sys; answer = sys.stdout.line_buffering")
    each.give_back(child)


def test_a_child_does_not_have_the_main_module_of_the_driver(each: Children) -> None:
    child = take(each)
    source = "import sys; main = sys.modules['__main__']; answer = getattr(main, '__file__', None), sorted(vars(main))"
    file, names = ask(child, source)
    assert file is None
    assert {name for name in names if not name.startswith("__")} == {"sys", "main"}
    each.give_back(child)


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import sys; sys.exit(3)", "exit code 1"),
        ("import os; os.kill(os.getpid(), 40)", "signal 40"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
    ],
)
def test_the_way_in_which_a_child_ended_is_known(shared: Children, source: str, ending: str) -> None:
    child = take(shared)
    child.connection.send(source)
    with pytest.raises(GONE):
        child.connection.recv()
    assert child.ending() == ending
    shared.give_back(child)
    after = take(shared)
    assert after.pid != child.pid
    shared.give_back(after)


def test_what_a_child_has_sent_before_it_was_killed_stays_readable(each: Children) -> None:
    child = take(each)
    child.connection.send("import time; answer = 1")
    child.connection.send("import time; time.sleep(60)")
    assert child.connection.poll(10)
    child.kill()
    assert child.ending() == "SIGKILL"
    assert child.connection.recv() == 1
    with pytest.raises(GONE):
        child.connection.recv()
    each.give_back(child)


def test_a_child_that_is_deaf_to_sigterm_and_holds_the_interpreter_is_killed_at_once(shared: Children) -> None:
    child = take(shared)
    source = "import signal, re; signal.signal(signal.SIGTERM, signal.SIG_IGN); re.match('(a+)+$', 'a' * 40 + 'b')"
    child.connection.send(source)
    child.kill()
    with pytest.raises(GONE):
        child.connection.recv()
    assert child.ending() == "SIGKILL"
    shared.give_back(child)


def test_ending_is_none_while_a_child_runs(monkeypatch: pytest.MonkeyPatch, shared: Children) -> None:
    monkeypatch.setattr(keeper, "EXIT_TIMEOUT", 0.01)
    child = take(shared)
    assert child.ending() is None
    assert not child.ended
    shared.give_back(child)


_SUBPROCESS = (
    "import subprocess, sys; answer = subprocess.Popen("
    "[sys.executable, '-c', {program!r}], start_new_session={session}, stdout=subprocess.PIPE).stdout.readline()"
)
_DEAF = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"


def test_what_a_child_leaves_to_the_server_while_that_looks_ends_with_it_too() -> None:
    """The server asks who its children are, and one ends before it is reaped: now its own children are the server's."""

    def check() -> None:
        bootstrap.adopt_orphans()
        driver, _ = socket.socketpair()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            deaf = subprocess.Popen([sys.executable, "-c", _DEAF], start_new_session=True, stdout=subprocess.PIPE)
            os.write(writer, deaf.stdout.readline())
            signal.pause()
        left = int(os.read(reader, 20))
        server = ForkServer(driver, os.getppid())
        server._running.add(child)
        look = server._orphans

        def orphans() -> set[int]:
            found = look()
            if child in found:
                os.kill(child, signal.SIGKILL)
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            return found

        forkserver.kill_group = lambda _pid: None  # it takes a moment
        server._orphans = orphans
        server._end_all()
        found = exists(left)
        if found:
            os.kill(left, signal.SIGKILL)
        assert not found

    in_child(check)


@pytest.mark.parametrize("ends", ["killed", "crashes"])
def test_its_own_subprocesses_end_with_a_child(shared: Children, ends: str) -> None:
    child = take(shared)
    pid = int(ask(child, _SUBPROCESS.format(program=_DEAF, session=False)))
    assert exists(pid)
    if ends == "killed":
        child.kill()
    else:
        child.connection.send("import os; os._exit(1)")
    eventually(lambda: not exists(pid), "its subprocess ends")
    shared.give_back(child)


def test_subprocesses_in_a_session_of_their_own_end_with_a_child_too() -> None:
    """So do those that these have started, and one whose parent has ended before."""
    with children(2, counted=False) as made:
        child, other = take(made), take(made)
        tree = (
            "import subprocess, sys, os, time; p = subprocess.Popen([sys.executable, '-c', 'import os, time; "
            "print(os.getpid(), os.getppid(), flush=True); time.sleep(600)'], start_new_session=True); time.sleep(600)"
        )
        pids = [int(pid) for pid in ask(child, _SUBPROCESS.format(program=tree, session=True)).split()]
        others = int(ask(other, _SUBPROCESS.format(program=_DEAF, session=True)))
        child.kill()
        eventually(lambda: not any(map(exists, pids)), "they end")
        assert exists(others)
        assert ask(other, "answer = 1") == 1
        for each in (child, other):
            made.give_back(each)
    eventually(lambda: not exists(others), "they end with the runner")
