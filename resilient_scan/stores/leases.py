"""One execution per key in all processes that share a store, and the thread that keeps a store's I/O out of the way.

    claim: the lease is free ------> go: work, end, `release`: flush what was found, then give the lease back
      |                               ^
      +- another process has it ----> wait: an answer has come -> `answered`; the lease is free, or over -> go

Who waits holds no worker and no thread of its own: one thread, the clerk's, looks for all of them. It also writes what
was put off, so that neither a worker nor the watchdog ever waits for a disk. A lease ends with its time, so nobody
waits for the dead; a store that fails counts as one where nobody else works.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Protocol

from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store
from resilient_scan.stores.health import Health, limit_waits

_log = logging.getLogger("resilient_scan")
LOOK = 0.05  # seconds between two looks for what another process does
IDLE = 5.0  # seconds after which a clerk without work goes home


class Waiter(Protocol):
    """An execution that has to wait until another process is through."""

    over: bool

    def answered(self) -> bool:
        """Look whether the other has brought an answer, and end with it; `False`: there is none."""

    def go(self) -> None:
        """Begin: nobody else works on it any more."""


class LeaseKeeper:
    """One runner's dealings with a store that other processes share.

    Args:
        store: where the leases are, and what is put off is kept.
        clock: what waits are measured on.
        health: is told when the store fails, and when it works.
    """

    def __init__(self, store: Store, clock: Clock, health: Health) -> None:
        self._store = store
        self._clock = clock
        self._health = health
        self._on_error = health.failed
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._wake: Wake = clock.event()
        self._held: dict[str, float] = {}
        self._waiting: dict[str, tuple[Waiter, float]] = {}
        self._released: list[str] = []
        self._jobs: list[Callable[[], None]] = []
        self._last: Callable[[], None] | None = None
        self._flushed: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    # leases

    def acquire(self, key: str, seconds: float, waiter: Waiter) -> bool:
        """Say whether an execution may go on; else it will be told.

        Args:
            key: what is asked for.
            seconds: how long the work may take at most.
            waiter: the execution.
        """
        if self._take(key, seconds):
            return True
        with self._lock:
            if self._closed or not self._called():
                return True
            self._waiting[key] = (waiter, seconds)
        return False

    def renew(self, key: str, seconds: float) -> None:
        """Let the time of a lease begin anew where half of it went by in a queue."""
        since = self._held.get(key)
        if since is not None and self._clock.monotonic() - since > seconds / 2:
            self._take(key, seconds)

    def release(self, key: str) -> None:
        """Give a lease back, once what was found is written; or stop to wait for it."""
        with self._lock:
            self._waiting.pop(key, None)
            if self._held.pop(key, None) is not None:
                self._released.append(key)
                self._called()

    # what is put off

    def flush(self, patience: float, job: Callable[[], None] | None = None) -> bool:
        """Have everything written that was put off, and wait for that.

        Args:
            patience: seconds to wait at most.
            job: is called first, on the clerk's thread; it brings what a run is remembered by to the store.
        """
        done = threading.Event()
        with self._lock:
            if self._closed or not self._called():
                return False
            self._jobs += [] if job is None else [job]
            self._flushed.append(done)
        return done.wait(patience)

    def close(self, patience: float, last: Callable[[], None] | None = None) -> None:
        """Write what is left, give all leases back, do a `last` thing and stop; wait at most `patience` seconds."""
        done = threading.Event()
        with self._lock:
            if self._closed:
                return
            self._waiting.clear()
            self._released += self._held
            self._held.clear()
            self._closed = True
            self._last = last
            if self._called():
                self._flushed.append(done)
                patience = max(0.0, patience)
            else:
                patience = 0.0
        done.wait(patience)

    # the clerk's thread

    def _take(self, key: str, seconds: float) -> bool:
        try:
            taken = self._store.lease(key, self._owner, seconds)
        except StoreError as error:
            self._on_error("lease", error)
            return True
        if taken:
            with self._lock:
                self._held[key] = self._clock.monotonic()
        return taken

    def _called(self) -> bool:
        """Call the clerk, or hire one, under the lock: it sees what is put on the table before the lock is free."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="resilient-scan-store", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the machine has no thread to give: leases end with their time
                return False
            self._thread = thread
        self._wake.set()
        return True

    def _work(self) -> None:
        limit_waits()
        while True:
            self._wake.clear()
            with self._lock:
                released, self._released = self._released, []
                flushed, self._flushed = self._flushed, []
                jobs, self._jobs = self._jobs, []
                last, waiting = self._last, list(self._waiting.items())
            if released or flushed:
                self._write(jobs, released)
            if last is not None:
                self._finish(last)
            for done in flushed:
                done.set()
            for key, (waiter, seconds) in waiting:
                self._look(key, waiter, seconds)
            if not self._stay(bool(waiting)):
                return

    def _stay(self, waiting: bool) -> bool:
        """Wait for work; `False`: there is none, and the clerk has left."""
        if not self._closed:
            self._clock.wait(self._clock.monotonic() + (LOOK if waiting else IDLE), self._wake)
        with self._lock:
            if self._wake.is_set() or self._waiting or self._released or self._flushed:
                return True
            self._thread = None
            return False

    def _write(self, jobs: list[Callable[[], None]], released: list[str]) -> None:
        """Write first, then give back: who gets the lease next must find the answer."""
        for job in jobs:
            self._do(job)
        try:
            self._store.flush()
        except StoreError as error:
            self._on_error("flush", error)
        if jobs:
            self._health.run_ended()
        self._give_back(released)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # a bug of ours must not end the clerk, for whom the others wait
            _log.exception("a run could not be brought to the store")

    def _give_back(self, released: list[str]) -> None:
        for key in released:
            with self._lock:
                if key in self._held:  # claimed again meanwhile
                    continue
            try:
                self._store.release(key, self._owner)
            except StoreError as error:
                self._on_error("release", error)

    def _finish(self, last: Callable[[], None]) -> None:
        self._last = None
        try:
            last()
        except StoreError as error:
            self._on_error("close", error)

    def _look(self, key: str, waiter: Waiter, seconds: float) -> None:
        try:
            if waiter.over or waiter.answered():
                self._forget(key, waiter)
            elif self._take(key, seconds):
                self._forget(key, waiter)
                self._go(key, waiter)
        except Exception:  # a bug of ours must not leave the others waiting
            _log.exception("%s: waiting for another process failed", key)
            self._forget(key, waiter)
            waiter.go()

    def _go(self, key: str, waiter: Waiter) -> None:
        """Let it begin, unless it went away meanwhile, or the answer came with the lease."""
        if waiter.over or waiter.answered():
            self.release(key)
        else:
            waiter.go()

    def _forget(self, key: str, waiter: Waiter) -> None:
        with self._lock:
            if self._waiting.get(key, (None,))[0] is waiter:
                del self._waiting[key]
