"""Poisons that leave something running: threads, processes, locks; and those that keep the interpreter busy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

from resilient_scan import ScanContext
from tests.torture.register import FOREVER, found, hang, poison

GROUP = "threads"
LOCK = threading.Lock()


@poison("hangs", "timeout", group=GROUP)
def hangs(_state: dict[str, Any]) -> Any:
    hang()


@poison("hangs in its second attempt", "timeout", group=GROUP)
def hangs_when_tried_again(_state: dict[str, Any], context: ScanContext) -> Any:
    if context.attempt == 2:
        hang()
    raise ValueError("once more")


@poison("calculates for 3 seconds", "timeout", group=GROUP)
def busy_loop(_state: dict[str, Any]) -> Any:
    end = time.monotonic() + 3
    while time.monotonic() < end and not FOREVER.is_set():
        pass
    return found()


def multiply(depth: int) -> None:
    if depth:
        for _ in range(2):
            threading.Thread(target=multiply, args=(depth - 1,), name="poison", daemon=True).start()
    FOREVER.wait()


@poison("starts threads that start threads, as daemons", "completed", group=GROUP)
def threads_start_threads(_state: dict[str, Any]) -> Any:
    multiply_later = threading.Thread(target=multiply, args=(4,), name="poison", daemon=True)
    multiply_later.start()
    return found()


@poison("leaves threads that are no daemons for 3 seconds", "completed", group=GROUP)
def threads_that_stay(_state: dict[str, Any]) -> Any:
    for _ in range(4):
        threading.Thread(target=FOREVER.wait, args=(3,), name="poison", daemon=False).start()
    return found()


@poison("has a thread that raises", "completed", group=GROUP)
def thread_raises(_state: dict[str, Any]) -> Any:
    thread = threading.Thread(target=sys.exit, args=("a thread",), name="poison", daemon=True)
    thread.start()
    thread.join()
    threading.Thread(target=int, args=("x",), name="poison", daemon=True).start()
    return found()


@poison("joins a thread that does not end", "timeout", group=GROUP)
def joins_for_ever(_state: dict[str, Any]) -> Any:
    thread = threading.Thread(target=FOREVER.wait, name="poison", daemon=True)
    thread.start()
    thread.join()


@poison("grows its answer from another thread while it is read", "completed", "timeout", group=GROUP)
def growing_answer(_state: dict[str, Any]) -> Any:
    answer = found()

    def grow() -> None:
        end = time.monotonic() + 2
        while time.monotonic() < end and not FOREVER.is_set():
            answer.extend(answer[:1] * 100)
            time.sleep(0.0001)

    threading.Thread(target=grow, name="poison", daemon=True).start()
    return answer


@poison("holds a lock and hangs", "timeout", group=GROUP)
def holds_a_lock(_state: dict[str, Any]) -> Any:
    with LOCK:
        hang()


@poison("waits for that lock", "timeout", group=GROUP)
def waits_for_the_lock(_state: dict[str, Any]) -> Any:
    time.sleep(0.1)
    with LOCK:
        return hang()


@poison("leaves a process running", "completed", group=GROUP)
def leaves_a_process(_state: dict[str, Any]) -> Any:
    subprocess.Popen(["sleep", "30"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return found()


@poison("waits for a process that does not end", "timeout", group=GROUP)
def waits_for_a_process(_state: dict[str, Any]) -> Any:
    with subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not FOREVER.is_set():
            time.sleep(0.02)
        process.kill()


def fork() -> int:
    return os.fork()


@poison("forks, and the child calls `os._exit`", "completed", group=GROUP)
def fork_exits(_state: dict[str, Any]) -> Any:
    child = fork()
    if child == 0:
        os._exit(3)
    return found(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


@poison("forks, and the child returns like its parent", "completed", group=GROUP)
def fork_returns(_state: dict[str, Any]) -> Any:
    child = fork()
    if child:
        os.waitpid(child, 0)
    return found()


@poison("forks, and the child raises", "completed", group=GROUP)
def fork_raises(_state: dict[str, Any]) -> Any:
    child = fork()
    if child == 0:
        raise ValueError("in the child")
    os.waitpid(child, 0)
    return found()


@poison("forks, and the child calls `sys.exit`", "completed", group=GROUP)
def fork_sys_exits(_state: dict[str, Any]) -> Any:
    child = fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    return found()


@poison("forks from a thread, and the child returns there", "completed", group=GROUP)
def fork_in_a_thread(_state: dict[str, Any]) -> Any:
    children: list[int] = []
    thread = threading.Thread(target=lambda: children.append(fork()), name="poison", daemon=True)
    thread.start()
    thread.join()
    os.waitpid(children[0], 0)
    return found()


@poison("yields in a forked child as well", "completed", group=GROUP)
def fork_yields(_state: dict[str, Any]) -> Any:
    child = fork()
    yield found()[0]
    if child:
        os.waitpid(child, 0)


async def _fork_in_a_loop(_state: dict[str, Any]) -> Any:
    child = fork()
    if child:
        os.waitpid(child, 0)  # noqa: ASYNC222 - the child has nothing to do
    return found()


_fork_in_a_loop.__name__ = "fork_in_a_loop"
poison("forks in a coroutine, and the child goes on", "completed", group=GROUP)(_fork_in_a_loop)
