"""Processes that hammer a store, forked from the test: each has connections of its own and says what it has done."""

from __future__ import annotations

import os
import random
import signal
import threading
import traceback
from collections.abc import Callable
from typing import TextIO

from resilient_scan.clock import SystemClock
from resilient_scan.stores import Store, open_store

Say = Callable[[object], None]
Job = Callable[[Store, Say], None]
WAIT_TIMEOUT = 60  # seconds after which a process ends itself


class Worker:
    """A process that does a job on a store opened by itself, and the lines that it says."""

    def __init__(self, url: str, job: Job) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(url, job, writer)
        os.close(writer)
        self.lines: list[str] = []
        self._follower = threading.Thread(target=self._follow, args=(os.fdopen(reader),), daemon=True)
        self._follower.start()
        self._ended = False

    def _follow(self, reader: TextIO) -> None:
        with reader:
            self.lines.extend(line.rstrip("\n") for line in reader if line.endswith("\n"))

    def kill(self) -> None:
        """End it at once, and read what it had said before."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> list[str]:
        """Wait for its end, and return what it said."""
        if not self._ended:
            os.waitpid(self.pid, 0)
            self._ended = True
            self._follower.join(WAIT_TIMEOUT)
        return self.lines


def _be_child(url: str, job: Job, writer: int) -> None:
    try:
        signal.alarm(WAIT_TIMEOUT)
        store = open_store(url, SystemClock())
        job(store, lambda thing: _say(writer, thing))
        store.close()
    except BaseException:
        _say(writer, traceback.format_exc())
    finally:
        os._exit(0)


def _say(writer: int, thing: object) -> None:
    os.write(writer, f"{thing}\n".encode())  # in one piece, or not at all


def add(old: bytes | None, _now: float) -> tuple[bytes, int]:
    """Count one up; the number is written in so many places that half of it would be seen."""
    value = number(old) + 1
    return written(value), value


def written(value: int) -> bytes:
    """Return a number as a long document."""
    return b"%d|" % value * 200


def number(data: bytes | None) -> int:
    """Return the number that a document holds; fail where it is not whole."""
    if data is None:
        return 0
    value = int(data.split(b"|")[0])
    assert data == written(value), f"a document is not whole: {data!r}"
    return value


def counting(threads: int, times: int) -> Job:
    """Return a job: count one document up, from many threads; say the numbers that were acknowledged."""

    def job(store: Store, say: Say) -> None:
        def work() -> None:
            for _ in range(times):
                say(store.update("count", add))

        crew = [threading.Thread(target=work) for _ in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    return job


def writing(name: str) -> Job:
    """Return a job without an end: write in every way, and say each number that was acknowledged."""

    def job(store: Store, say: Say) -> None:
        chance = random.Random(name)
        while True:
            mine = store.update(f"own/{name}", add)
            say(mine)
            store.update("all", add)
            store.put(f"answer/{name}", written(mine), 600)
            store.append("runs", written(mine), 50)
            store.append("audit", written(mine), 50)
            if chance.random() < 0.5:
                store.flush()
            store.lease("lease", name, 60)

    return job


def once(name: str) -> Job:
    """Return a job: write one document."""

    def job(store: Store, say: Say) -> None:
        store.update(f"own/{name}", add)
        say("done")

    return job
