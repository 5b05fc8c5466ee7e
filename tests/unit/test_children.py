"""Child processes: started, handed out, killed, replaced; what they are, and what they leave."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.engines.process import bootstrap, forkserver, keeper, starters
from resilient_scan.engines.process.children import Children
from resilient_scan.errors import Rejected, WorkerLost
from tests.support.children import SERVE, ask, children, resources, take
from tests.support.processes import in_child, needs_fork
from tests.support.waiting import eventually

GONE = (EOFError, ConnectionError)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_a_child_is_born_with_the_folder_path_and_environment_of_that_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with children(1) as made:
        made.give_back(take(made))
        monkeypatch.setenv("BORN_LATER", "yes")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        made.give_back(_killed(made))
        child = take(made)
        source = "import os, sys, time; answer = os.getcwd(), sys.path[0], dict(os.environ), sys.argv, time.tzname[0]"
        assert ask(child, source) == (str(tmp_path), str(tmp_path), dict(os.environ), sys.argv, "JST")
        made.give_back(child)


def _killed(made: Children) -> Any:
    child = take(made)
    child.kill()
    assert child.ending() == "SIGKILL"
    return child


def test_kill_hits_no_other_process_once_the_number_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with children(1) as made:
        child = _killed(made)
        hits: list[int] = []
        monkeypatch.setattr(keeper, "kill_group", hits.append)
        child.kill()
        assert hits == []
        monkeypatch.undo()
        made.give_back(child)


def test_a_process_that_a_child_forked_and_left_does_not_keep_the_pipe_open() -> None:
    with children(1) as made:
        child = take(made)
        child.connection.send(
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nos._exit(5)",
        )
        with pytest.raises(GONE):
            child.connection.recv()
        assert child.ending() == "exit code 5"
        made.give_back(child)


# handing out


def test_children_are_used_again_and_not_more_than_most_are_made() -> None:
    with children(2) as made:
        first, second = take(made), take(made)
        asked: list[int] = []

        def over() -> bool:
            asked.append(len(made.pids()))
            return len(asked) > 3

        with pytest.raises(WorkerLost, match=r"^the scan ended while it waited for a child process$"):
            made.take(over)
        assert set(asked) == {2}
        made.give_back(first)
        assert take(made) is first
        for child in (first, second):
            made.give_back(child)


def test_a_waiter_gets_a_child_as_soon_as_one_is_given_back() -> None:
    with children(1) as made:
        child = take(made)
        threading.Timer(0.05, made.give_back, [child]).start()
        assert take(made) is child
        made.give_back(child)


def test_one_child_is_made_in_advance_and_more_when_they_are_needed() -> None:
    with children(3) as made:
        made.start()
        eventually(lambda: len(made.pids()) == 1, "one is made")
        taken = [take(made)]
        assert len(made.pids()) == 1
        taken += [take(made), take(made)]
        assert len(made.pids()) == 3
        for child in taken:
            made.give_back(child)
        again = [take(made) for _ in range(3)]
        assert {child.pid for child in again} == {child.pid for child in taken}


def test_a_child_is_replaced_after_so_many_uses() -> None:
    with children(1, recycle_after=3) as made:
        pids = []
        for _ in range(7):
            child = take(made)
            pids.append(child.pid)
            made.give_back(child)
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


def test_a_killed_child_is_replaced_at_once_though_its_worker_still_has_it() -> None:
    with children(1) as made:
        child = take(made)
        child.kill()
        eventually(lambda: made.pids() not in {(), (child.pid,)}, "there is another one")
        made.give_back(child)
        assert take(made).pid != child.pid


def test_an_idle_child_that_somebody_kills_is_replaced_and_not_handed_out() -> None:
    with children(1) as made:
        child = take(made)
        made.give_back(child)
        for _ in range(5):
            before = made.pids()
            os.kill(before[0], signal.SIGKILL)
            eventually(lambda: made.pids() and made.pids() != before, "there is another one")  # noqa: B023
        assert take(made).pid != child.pid


def test_a_child_that_sends_what_nobody_asked_for_is_not_handed_out_again() -> None:
    with children(1) as made:
        child = take(made)
        child.connection.send("answer = 1")
        assert child.connection.poll(10)
        made.give_back(child)
        assert take(made).pid != child.pid


@pytest.mark.slow
def test_200_kills_leave_nothing() -> None:
    with children(2) as made:
        made.give_back(take(made))
        eventually(lambda: len(made.pids()) == 1, "it is there")
        before = resources()
        for _ in range(200):
            child = take(made)
            child.kill()
            made.give_back(child)
        after = take(made)
        eventually(lambda: len(resources()) <= len(before), "no descriptor and no thread is left")
        eventually(lambda: len(made.pids()) == 1, "there is one")
        made.give_back(after)


# when none can be made


def test_a_child_whose_module_cannot_be_imported_says_why() -> None:
    reason = r"^no child process can be started: AttributeError: .*missing"
    with children(1, "tests.support.children:missing") as made, pytest.raises(WorkerLost, match=reason):
        take(made)


def test_children_that_end_before_they_are_ready_are_reported_and_not_made_for_ever() -> None:
    program = "import os; os._exit(4)"
    with children(1, "tests.support.children:serve", fork=False) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(starters, "_CHILD", program)
        reason = r"^no child process can be started: each ends before it is ready, the last one with exit code 4$"
        with pytest.raises(WorkerLost, match=reason):
            take(made)


def test_a_fork_server_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starters, "_SERVER", "")
    with children(1) as made:
        with pytest.raises(
            WorkerLost, match=r"^no child process can be started: the process that starts them has ended$"
        ):
            take(made)
        monkeypatch.undo()
        monkeypatch.setattr(keeper, "RETRY_INTERVAL", 0.0)
        eventually(lambda: _can_take(made), "it is tried again")


def test_a_system_that_refuses_another_process_is_reported_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = """
import errno, os
kept = os.fork
def fork():
    os.fork = kept
    raise OSError(errno.EAGAIN, "no")
os.fork = fork
"""
    monkeypatch.setattr(starters, "_SERVER", refuse + starters._SERVER)
    monkeypatch.setattr(keeper, "RETRY_INTERVAL", 0.2)
    with children(1) as made:
        with pytest.raises(WorkerLost, match=f"^no child process can be started: {os.strerror(errno.EAGAIN)}$"):
            take(made)
        eventually(lambda: _can_take(made), "it is tried again")


def _can_take(made: Children) -> bool:
    try:
        child = take(made)
    except WorkerLost:
        return False
    made.give_back(child)
    return True


def test_a_fork_server_that_somebody_kills_is_replaced_with_its_children(caplog: pytest.LogCaptureFixture) -> None:
    with children(2) as made:
        child = take(made)
        os.kill(made._keeper._starter._process.pid, signal.SIGKILL)
        with pytest.raises(GONE):
            child.connection.recv()
        assert child.ending() == "killed, because the process that starts them has ended"
        made.give_back(child)
        after = take(made)
        assert ask(after, "answer = 1") == 1
        made.give_back(after)
        assert caplog.messages == ["the process that starts them has ended; new child processes are started"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(sys, "frozen", True, raising=False), "this program is frozen"),
        (lambda patch: patch.setattr(starters, "get_executable", lambda: None), "sys.executable is not set"),
        (lambda patch: patch.setattr(starters, "get_executable", lambda: b"/nowhere/python"), "No such file"),
        (lambda patch: patch.setattr(starters.os, "name", "nt"), "this system does not have the processes of POSIX"),
    ],
    ids=["frozen", "no interpreter", "not there", "windows"],
)
def test_a_program_that_cannot_have_children_says_why(
    monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    with children(1) as made:
        change(monkeypatch)
        try:
            with pytest.raises(WorkerLost, match=reason):
                take(made)
        finally:
            monkeypatch.undo()


@pytest.mark.parametrize("where", ["server", "descriptors", "threads"])
def test_a_machine_without_room_for_another_is_reported_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files") if where != "threads" else RuntimeError("no thread")

    monkeypatch.setattr(keeper, "RETRY_INTERVAL", 0.01)
    with children(1) as made:
        with monkeypatch.context() as patch:
            patch.setattr(
                *{
                    "server": (starters.subprocess, "Popen"),
                    "descriptors": (starters, "Pipe"),
                    "threads": (keeper.threading.Thread, "start"),
                }[where],
                refuse,
            )
            made.start()
            with pytest.raises(
                WorkerLost, match=r"^no child process can be started: .*(Too many open files|no thread)"
            ):
                take(made)
        eventually(lambda: _can_take(made), "it works again")


def test_where_no_more_can_be_made_those_that_run_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with children(2) as made:
        child = take(made)
        monkeypatch.setattr(starters, "Pipe", refuse)
        threading.Timer(0.1, made.give_back, [child]).start()
        assert take(made) is child
        monkeypatch.undo()


def test_a_failure_of_the_keeper_is_logged_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(keeper, "RETRY_INTERVAL", 0.01)
    with children(1) as made:
        child = take(made)
        with monkeypatch.context() as patch:
            patch.setattr(keeper.Keeper, "_timeout", fail)
            made.give_back(child)
            os.kill(child.pid, signal.SIGKILL)
            eventually(lambda: caplog.records, "it is logged")
        eventually(lambda: _can_take(made), "it goes on")
    assert "the thread that keeps child processes failed; it goes on with new ones" in caplog.messages


# closing


def test_close_ends_all_and_says_so_to_workers() -> None:
    with children(2) as made:
        child, idle = take(made), take(made)
        made.give_back(idle)

        def read() -> None:
            with pytest.raises(GONE):
                child.connection.recv()

        reader = threading.Thread(target=read)
        reader.start()
        made.close()
        made.close()
        reader.join(10)
        assert not reader.is_alive()
        assert child.ending() in {"killed, because the runner was closed", "SIGKILL"}
        with pytest.raises(Rejected, match=r"^the runner is closed; it starts no child process$"):
            take(made)
        made.give_back(child)
        eventually(lambda: made.pids() == (), "none is left")


def test_one_that_waits_for_a_child_hears_of_the_close() -> None:
    with children(1) as made:
        child = take(made)
        threading.Timer(0.05, made.close).start()
        with pytest.raises(Rejected):
            take(made)
        made.give_back(child)


def test_close_before_the_first_child_and_without_one() -> None:
    with children(1) as made:
        made.start()
        made.close()
    with children(1) as made:
        made.close()
        made.start()
        assert made.pids() == ()
        with pytest.raises(Rejected):
            take(made)


def test_close_from_a_signal_handler_amid_a_take_and_a_kill() -> None:
    """The handler runs on the thread that may hold a lock."""
    with children(1) as made:
        child = take(made)

        def handle(*_: object) -> None:
            child.kill()
            made.close()

        before = signal.signal(signal.SIGALRM, handle)
        try:
            with child._lock, made._lock:
                signal.raise_signal(signal.SIGALRM)
            with pytest.raises(Rejected):
                take(made)
        finally:
            signal.signal(signal.SIGALRM, before)
        made.give_back(child)


def test_a_fork_server_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starters, "END_TIMEOUT", 0.1)
    with children(1) as made:
        made.give_back(take(made))
        os.kill(made._keeper._starter._process.pid, signal.SIGSTOP)


# forks of the host

forking = pytest.mark.parametrize("fork", [True, False], ids=["forked", "spawned"])


@needs_fork[0]
@needs_fork[1]
@forking
def test_children_remain_the_parents_when_the_host_forks(fork: bool) -> None:
    with children(2, fork=fork) as made:
        child, other = take(made), take(made)
        made.give_back(other)

        def check() -> None:
            assert made.pids() == ()
            child.kill()  # not this process's
            mine = take(made)
            assert mine.pid not in {child.pid, other.pid}
            assert ask(mine, "answer = 1") == 1
            made.close()
            made.join(10)

        in_child(check)
        assert ask(child, "answer = 2") == 2
        assert set(made.pids()) == {child.pid, other.pid}
        made.give_back(child)


# the limit on memory


def test_memory_beyond_the_limit_is_a_memory_error_and_below_it_is_not() -> None:
    with children(1) as made:
        child = take(made)
        limit = "from resilient_scan.engines.process import bootstrap; bootstrap.limit_memory({})"
        ask(child, limit.format(64 << 20))
        assert ask(child, "answer = len(bytearray(48 << 20))") == 48 << 20
        source = "try:\n    bytearray(80 << 20)\nexcept MemoryError as error:\n    answer = 'MemoryError'"
        assert ask(child, source) == "MemoryError"
        ask(child, limit.format(None))
        assert ask(child, "answer = len(bytearray(200 << 20))") == 200 << 20
        made.give_back(child)


def test_the_limit_is_on_top_of_what_is_mapped_and_never_above_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    monkeypatch.setattr(bootstrap, "mapped", lambda: 1000)
    for hard, size in [(resource.RLIM_INFINITY, 24), (1010, 24), (1010, None), (resource.RLIM_INFINITY, None)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (0, hard))
        bootstrap.limit_memory(size)
    infinite = resource.RLIM_INFINITY
    assert limits == [(1024, infinite), (1010, 1010), (1010, 1010), (infinite, infinite)]


def test_what_is_mapped_is_what_the_system_says() -> None:
    text = Path("/proc/self/status").read_text()
    kilobytes = int(next(line for line in text.splitlines() if line.startswith("VmSize")).split()[1])
    assert bootstrap.mapped() == pytest.approx(kilobytes * 1024, rel=0.2)


# the programs themselves


@pytest.mark.parametrize("closed", [2, 0])
def test_children_of_a_driver_without_a_standard_stream_work(closed: int) -> None:
    program = (
        f"import os; os.close({closed})\nfrom tests.support.children import *\n"
        "made = Children(1, SERVE)\nchild = take(made)\n"
        "os.write(1, str(ask(child, 'print(5); answer = 1')).encode())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "1"


def test_the_flags_of_the_interpreter_are_those_of_the_driver() -> None:
    program = (
        "from tests.support.children import *\nmade = Children(1, SERVE)\n"
        "print(ask(take(made), 'import sys; answer = sys.flags.dev_mode, sys.flags.optimize, sys._xoptions'))"
    )
    command = [sys.executable, "-X", "dev", "-O", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout == "(True, 1, {'dev': True})\n", result.stderr
    assert result.stderr == ""


def test_a_preloaded_module_that_fails_or_prints_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud_module.py").write_text("print('hello')\nraise ValueError('broken')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with children(1, preload=["loud_module", "no_such_module_at_all"]) as made:
        assert ask(take(made), "answer = 1") == 1
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_the_fork_server_is_told_once_what_to_import() -> None:
    assert forkserver.preloaded(SERVE, ["json", "tests.support.children", "json"]) == "tests.support.children,json"


def test_prctl_is_there_or_is_not() -> None:
    assert bootstrap.prctl(bootstrap._PR_SET_PDEATHSIG, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert not bootstrap.prctl(bootstrap._PR_SET_PDEATHSIG, 0)


def test_where_the_system_does_not_tell_a_child_looks_for_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [5, 5, 1]
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(bootstrap, "PARENT_INTERVAL", 0.0)
    monkeypatch.setattr(bootstrap.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(bootstrap.os, "killpg", lambda group, signum: ended.append((group, signum)))
    bootstrap._end_after(5)
    assert (parents, ended) == ([], [(0, signal.SIGKILL)])


def test_the_names_of_endings() -> None:
    assert [keeper.in_words(status) for status in (0, 7, -11, -9)] == [
        "exit code 0",
        "exit code 7",
        "SIGSEGV",
        "SIGKILL",
    ]


def test_a_socket_of_the_keeper_that_is_full_is_no_trouble() -> None:
    one = keeper.Keeper(1, SERVE, (), None)
    for _ in range(100_000):
        one.ring()
    assert isinstance(one._bell, socket.socket)
    one.leave()
    one.ring()
