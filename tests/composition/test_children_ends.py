"""Child processes end with their driver, in whatever way it ends, and they never run its main module."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.children import exists
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

ROOT = Path(__file__).parents[2]

# A driver with two children. One holds the interpreter's lock; the other has a deaf subprocess in another session.
DRIVER = """
import os, sys, time, signal
from tests.support.children import *
made = Children(2, SERVE, fork={fork})
hung, other = take(made), take(made)
hung.connection.send("import signal, re; signal.signal(15, signal.SIG_IGN); re.match('(a+)+$', 'a' * 40 + 'b')")
source = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
answer = ask(other, "import subprocess, sys; answer = subprocess.Popen([sys.executable, '-c', " + repr(source)
    + "], start_new_session=" + repr({fork}) + ", stdout=subprocess.PIPE).stdout.readline()")
print(*descendants(os.getpid()), flush=True)
{end}
"""


def _start(end: str, *, fork: bool = True) -> tuple[subprocess.Popen[str], list[int]]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(end=end, fork=fork)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == (4 if fork else 3), driver.communicate()[1]
    return driver, pids


def _none_of(pids: list[int], seconds: float) -> None:
    eventually(lambda: not any(map(exists, pids)), f"{[pid for pid in pids if exists(pid)]} end", seconds)


@pytest.mark.long
@pytest.mark.parametrize("fork", [True, False], ids=["forked", "spawned"])
def test_a_driver_that_is_killed_leaves_none_ten_times_of_ten(fork: bool) -> None:
    """A spawned child's own subprocesses stay: no process is there to end them."""
    for _ in range(10):
        driver, pids = _start("time.sleep(600)", fork=fork)
        driver.kill()
        _none_of(pids if fork else pids[:2], 2)
        if not fork:
            os.kill(pids[2], signal.SIGKILL)
        driver.communicate(timeout=60)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('in main')", 1),
        ("os._exit(4)", 4),
        ("signal.raise_signal(signal.SIGTERM)", -signal.SIGTERM),
        ("made.close()", 0),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(3)'])", 0),
    ],
)
def test_a_driver_that_ends_by_itself_leaves_none(end: str, code: int) -> None:
    """A program that it becomes has none either; a hung child does not delay the end."""
    begun = f"begun = time.monotonic(); import atexit\n{end}"
    driver, pids = _start(begun)
    start = time.monotonic()
    if end in {"pass", "made.close()"}:  # the interpreter ends them; the system would a little later
        driver.wait()  # a timeout would look every now and then
        assert not any(map(exists, pids))
    _none_of(pids, 2)
    driver.communicate(timeout=60)
    assert driver.returncode == code
    if "exec" not in end:
        assert time.monotonic() - start < 10


def test_ctrl_c_leaves_none() -> None:
    driver, pids = _start("time.sleep(600)")
    os.killpg(driver.pid, signal.SIGINT)
    _none_of(pids, 2)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1, errors


def test_the_end_of_the_terminal_leaves_none() -> None:
    driver, pids = _start("time.sleep(600)")
    os.killpg(driver.pid, signal.SIGHUP)
    _none_of(pids, 2)
    driver.communicate(timeout=60)


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"], ids=["python", "a library"])
def test_a_forked_copy_of_the_driver_that_lives_on_does_not_keep_them(fork: str) -> None:
    """A copy that a C library has made keeps the driver's ends of all pipes open."""
    driver, pids = _start(
        f"import ctypes\npid = {fork}\nif pid == 0: time.sleep(60); os._exit(0)\nprint(pid, flush=True)\nos._exit(0)"
    )
    assert driver.stdout is not None
    copy = int(driver.stdout.readline())
    try:
        _none_of(pids, 2)
        assert exists(copy)
    finally:
        os.kill(copy, signal.SIGKILL)
        driver.communicate(timeout=60)


def test_a_forked_copy_that_ends_leaves_them_to_the_parent() -> None:
    end = "pid = os.fork()\nif pid == 0: sys.exit(0)\nos.waitpid(pid, 0)\nassert ask(other, 'answer = 5') == 5"
    driver, pids = _start(end)
    errors = driver.communicate(timeout=60)[1]
    assert driver.returncode == 0, errors
    _none_of(pids, 2)


# what the driver may be

USE = (
    "from tests.support.children import *\nmade = Children(1, SERVE)\nprint(ask(take(made), 'print(4); answer = 5'))\n"
)


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text("print('main', __name__)\n" + USE)
    assert _run(str(script)) == "main __main__\n5\n"


def test_a_module_that_is_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("print('main', __name__)\n" + USE)
    monkeypatch.setattr(
        sys.modules[__name__], "_environment", lambda: {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    )
    assert _run("-m", "some_package") == "main __main__\n5\n"


def test_a_command_line_and_an_interactive_session_can_use_them() -> None:
    assert _run("-c", USE) == "5\n"
    assert _run("-i", "-q", text=USE).endswith("5\n")
    assert _run("-", text=USE) == "5\n"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_daemonic_process_of_multiprocessing_can_have_them(method: str, tmp_path: Path) -> None:
    """multiprocessing would refuse: "daemonic processes are not allowed to have children"."""
    script = tmp_path / "hosting.py"
    script.write_text(
        f"""
import multiprocessing, os, time
from tests.support.children import Children, SERVE, ask, take, descendants

def work(pipe):
    made = Children(1, SERVE)
    pipe.send((ask(take(made), "answer = 5"), descendants(os.getpid())))
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    ours, theirs = context.Pipe()
    host = context.Process(target=work, args=(theirs,), daemon=True)
    host.start()
    answer, pids = ours.recv()
    print(answer, *pids)
"""
    )
    answer, *pids = _run(str(script)).split()
    assert answer == "5"
    assert len(pids) == 2
    _none_of([int(pid) for pid in pids], 2)


def test_the_fork_server_of_the_host_is_not_used(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(
        """
import multiprocessing, os, sys
from multiprocessing import forkserver

def parent(pipe): pipe.send(os.getppid())

if __name__ == "__main__":
    from tests.support.children import *
    made = Children(1, SERVE)
    server = ask(take(made), "import os; answer = os.getppid()")
    assert forkserver._forkserver._forkserver_pid is None
    assert multiprocessing.get_start_method(allow_none=True) is None
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=parent, args=(theirs,))
    process.start()
    print(ours.recv() != server)
    process.join()
"""
    )
    assert _run(str(script)) == "True\n"


def test_modules_that_a_forked_child_needs_are_imported_before_it_is_made() -> None:
    """A first child takes 120 ms once the server is up: it must not import the package again."""
    program = (
        "from tests.support.children import *\nmade = Children(6, SERVE)\nmade.give_back(take(made))\n"
        "child = take(made)\nimport time\ntimes = [time.monotonic()]\n"
        "for _ in range(5): take(made); times.append(time.monotonic())\n"
        "print(min(after - before for before, after in zip(times, times[1:])))"
    )
    assert float(re.sub(r"\s", "", _run("-c", program))) < 0.12
