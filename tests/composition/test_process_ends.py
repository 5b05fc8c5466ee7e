"""A program whose scanners run in child processes: however it ends, stops or forks, nothing is left."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Policy, ScanRunner, Status, Timeout
from tests.e2e.command import SCRIPT, environment, wait_for
from tests.support import isolated
from tests.support.children import descendants, exists, resources
from tests.support.fixtures import Distribute
from tests.support.processes import in_child, needs_fork
from tests.support.results import only, statuses
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    *needs_fork,
]
ROOT = Path(__file__).parents[2]
PLAIN = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=20))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """See that a test leaves no descriptor, no thread and no process."""
    gc.collect()
    before, others = resources(), descendants(os.getpid())
    yield
    gc.collect()
    eventually(lambda: descendants(os.getpid()) == others, f"{descendants(os.getpid())} are {others}")
    eventually(lambda: resources() <= before, f"{sorted(resources() - before)} are left")


def made(*scanners: Any, workers: int = 2) -> ScanRunner:
    return ScanRunner(scanners, policy=PLAIN, listeners=(), max_workers=workers)


# the first run, and many timeouts


def test_a_first_run_with_cold_children_charges_their_start_to_nobody() -> None:
    scanners = [isolated.isolated(name=f"s{n}", timeout=Timeout(total=0.3))(isolated.quick.scan) for n in range(12)]
    with made(*scanners, workers=4) as runner:
        report = runner.run()
    assert statuses(report) == [Status.COMPLETED] * 12


@pytest.mark.long
def test_many_timeouts_leave_what_was_there_before() -> None:
    quick = [isolated.isolated(name=f"stuck{n}", timeout=Timeout(total=0.05))(_stuck) for n in range(4)]
    with made(*quick, isolated.quick, workers=2) as runner:
        runner.run()
        gc.collect()
        before, children = resources(), len(descendants(os.getpid()))
        for _ in range(3):
            assert statuses(runner.run()) == [Status.TIMEOUT] * 4 + [Status.COMPLETED]
        gc.collect()
        eventually(lambda: len(resources()) <= len(before), "no descriptor and no thread is left")
        eventually(lambda: len(descendants(os.getpid())) <= children, "no process is left")


def _stuck(_state: dict[str, Any]) -> list[Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    return []


# the program ends

PROGRAM = """
import os, signal, sys, threading, time
from resilient_scan import Policy, ScanRunner, Timeout
from tests.support import isolated
from tests.support.children import descendants
hung = [isolated.isolated(name=f"hung{n}", timeout=Timeout(total=60))(function) for n, function in enumerate(
    [isolated.stuck.scan, isolated.deaf.scan])]
runner = ScanRunner(hung, policy=Policy(cache=None, retry=None), listeners=(), max_workers=2)
run = threading.Thread(target=runner.run, daemon=True)
run.start()
while len(descendants(os.getpid())) < 4:  # the fork server, two children, and what one has started
    time.sleep(0.01)
time.sleep(0.1)
print(*descendants(os.getpid()), flush=True)
print("what the program prints")
os.write(2, b"ready\\n")
"""


def _start(end: str) -> tuple[subprocess.Popen[str], list[int]]:
    program = PROGRAM + end
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 4, process.communicate()
    assert process.stderr is not None
    # Or a Ctrl-C comes before it has printed. Read past the buffer, of which `communicate` knows nothing.
    assert os.read(process.stderr.fileno(), len(b"ready\n")) == b"ready\n"
    return process, pids


def _none_of(pids: list[int]) -> None:
    eventually(lambda: not any(map(exists, pids)), f"{pids} end", 2)


@pytest.mark.parametrize("end", ["kill", "ctrl-c", "exit", "raise", "os._exit", "close", "handler", "finalizer"])
def test_a_program_that_ends_amid_a_run_leaves_nothing(end: str) -> None:
    source = {
        "exit": "sys.exit(0)",
        "raise": "raise ValueError('in main')",
        "os._exit": "os._exit(0)",
        "close": "runner.close()",
        "handler": "signal.signal(signal.SIGALRM, lambda *_: runner.close()); signal.raise_signal(signal.SIGALRM)",
        "finalizer": "import gc; del run, runner; gc.collect()",
    }.get(end, "time.sleep(60)")
    process, pids = _start(source)
    begun = time.monotonic()
    if end == "kill":
        process.kill()
    elif end == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    _none_of(pids)
    assert process.stdout is not None
    out = process.stdout.read()  # not `communicate`, which does not see what the line before has brought along
    err = process.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 2
    assert process.returncode == {"kill": -signal.SIGKILL, "ctrl-c": -signal.SIGINT, "raise": 1}.get(end, 0), err
    if end not in {"kill", "os._exit"}:
        assert out == "what the program prints\n"
    assert err.count("Traceback") == (end in {"ctrl-c", "raise"}), err


LOUD = """
import os, re, sys
from resilient_scan import Timeout, scanner

@scanner(pipeline="own", isolation="process", timeout=Timeout(total=60), retry=None, cache=None)
def loud(state):
    print("printed")
    os.write(1, b"written\\n")
    return [{"ticker": "A"}]

@scanner(pipeline="own", isolation="process", timeout=Timeout(total=60), retry=None, cache=None)
def stuck(state, context):
    os.write(2, f"stuck began {os.getpid()}\\n".encode())
    re.match("(a+)+$", "a" * 40 + "b")
    return []
"""


@pytest.fixture
def loud(distribute: Distribute) -> str:
    scanners = {"loud": "acme_loud:loud", "stuck": "acme_loud:stuck"}
    return str(distribute("acme_loud", scanners, {"acme_loud.py": LOUD}))


def test_what_a_child_prints_is_not_in_the_json(loud: str) -> None:
    done = subprocess.run(
        [SCRIPT, "run", "--json", "--only", "loud"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(PYTHONPATH=loud),
    )
    assert json.loads(done.stdout)["counts"] == {"completed": 1}, done
    assert "printed" in done.stderr
    assert "written" in done.stderr


@pytest.mark.parametrize("group", [True, False], ids=["ctrl-c", "a signal to the command"])
def test_ctrl_c_of_the_command_leaves_none(loud: str, group: bool) -> None:
    with subprocess.Popen(
        [SCRIPT, "run", "--json", "--only", "loud,stuck"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=loud),
        start_new_session=True,
    ) as process:
        pid = int(wait_for(process, "stuck began").rpartition(" ")[2])
        pids = descendants(process.pid)
        assert pid in pids
        if group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert json.loads(out)["results"]["stuck"]["status"] == "skipped"
        assert "Traceback" not in err
        _none_of(pids)


# closing and letting go, in this process


def test_close_amid_a_run_from_a_signal_handler_on_the_thread_that_runs() -> None:
    runner = made(isolated.isolated(name="stuck", timeout=Timeout(total=60))(_stuck))
    handler = signal.signal(signal.SIGALRM, lambda *_: runner.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.7)
        begun = time.monotonic()
        assert statuses(runner.run()) == [Status.SKIPPED]
        assert time.monotonic() - begun < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_a_runner_that_is_garbage_ends_its_children() -> None:
    runner = made(isolated.quick)
    pid = only(runner).candidates[0].extras["pid"]
    del runner
    gc.collect()
    eventually(lambda: not exists(pid), "it ends")


# the program forks, or may have no children


def test_the_children_remain_the_parents_when_the_host_forks() -> None:
    with made(isolated.quick) as runner:
        pid = only(runner).candidates[0].extras["pid"]

        def check() -> None:
            own = only(runner).candidates[0].extras["pid"]
            assert own != pid
            assert own in descendants(os.getpid())
            runner.close()

        for _ in range(2):
            in_child(check)
        assert only(runner).candidates[0].extras["pid"] == pid


def test_a_fork_amid_a_run_disturbs_neither() -> None:
    with made(isolated.isolated(name="stuck", timeout=Timeout(total=1.5))(_stuck), isolated.quick) as runner:
        found: list[Any] = []
        run = threading.Thread(target=lambda: found.append(runner.run()))
        run.start()
        eventually(lambda: len(descendants(os.getpid())) >= 3, "both have a child")
        in_child(lambda: statuses(runner.run(only=["quick"])) == [Status.COMPLETED] or pytest.fail("it did not"))
        run.join(30)
    assert statuses(found[0]) == [Status.TIMEOUT, Status.COMPLETED]


def _host(pipe: Any) -> None:
    with made(isolated.quick) as runner:
        pipe.send([statuses(runner.run()), multiprocessing.current_process().daemon])


def test_a_daemonic_process_can_host_them() -> None:
    """A prefork worker of Celery is one; multiprocessing forbids them to have children of its own."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    host = context.Process(target=_host, args=(theirs,), daemon=True)
    host.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == [[Status.COMPLETED], True]
        host.join(60)
        assert host.exitcode == 0
    finally:
        host.kill()
        host.join()
        host.close()
        for end in (ours, theirs):
            end.close()
