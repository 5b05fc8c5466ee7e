"""One execution per key in all processes that share a store, and the thread that keeps a store's I/O out of the way.

    acquire: the lease is free -----> go: work, end, `release`: write what was found, then give the lease back
      |                               ^
      +- another process holds it --> wait: an answer has come -> `answered`; the lease is free or has expired -> go

A waiter blocks no worker and has no thread of its own: one thread, the lease keeper's, polls for all of them. It also
writes what was put off, so that neither a worker nor the watchdog ever waits for a disk. A lease expires by itself, so
a process that was killed holds nobody up; where the store fails, everyone may go on as if nobody else worked.
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
from resilient_scan.stores.health import IDLE_TIMEOUT, Health, limit_waits

_log = logging.getLogger("resilient_scan")
POLL_INTERVAL = 0.05  # seconds between two looks at what another process does


class Waiter(Protocol):
    """An execution that has to wait until another process has finished."""

    ended: bool

    def answered(self) -> bool:
        """Look whether the other process has stored an answer, and end with it; `False` if it has not."""

    def go(self) -> None:
        """Begin: nobody else works on it any more."""


class LeaseKeeper:
    """One runner's leases in a store that other processes share, and the thread that looks after them.

    Args:
        store: where the leases are, and what is put off is written.
        clock: measures the waits.
        health: hears of failures, and of everything being written.
    """

    def __init__(self, store: Store, clock: Clock, health: Health) -> None:
        self._store = store
        self._clock = clock
        self._health = health
        self._on_error = health.failed
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()  # for everything below; never held while the store or a waiter is called
        self._wake: Wake = clock.event()
        self._held: dict[str, float] = {}  # since when, on the clock
        self._waiting: dict[str, tuple[Waiter, float]] = {}
        self._released: list[str] = []
        self._jobs: list[Callable[[], None]] = []
        self._last: Callable[[], None] | None = None
        self._flushed: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    # leases

    def acquire(self, key: str, seconds: float, waiter: Waiter) -> bool:
        """Say whether an execution may begin; if not, its `answered` or `go` is called later.

        Args:
            key: what the execution works on.
            seconds: how long the work may take at most.
            waiter: the execution.
        """
        if self._take(key, seconds):
            return True
        with self._lock:
            if self._closed or not self._wake_thread():
                return True
            self._waiting[key] = (waiter, seconds)
        return False

    def renew(self, key: str, seconds: float) -> None:
        """Restart the time of a lease that has spent more than half of it in a queue."""
        since = self._held.get(key)
        if since is not None and self._clock.monotonic() - since > seconds / 2:
            self._take(key, seconds)

    def release(self, key: str) -> None:
        """Give a lease back once what was found is written, or stop waiting for it."""
        with self._lock:
            self._waiting.pop(key, None)
            if self._held.pop(key, None) is not None:
                self._released.append(key)
                self._wake_thread()

    # what is put off

    def flush(self, timeout: float, job: Callable[[], None] | None = None) -> bool:
        """Have everything written that was put off; say whether that happened in time.

        Args:
            timeout: seconds to wait at most; it is written later too, if that is not enough.
            job: is called first, on the keeper's thread: it puts what a run is remembered by into the store.
        """
        done = threading.Event()
        with self._lock:
            if self._closed or not self._wake_thread():
                return False
            self._jobs += [] if job is None else [job]
            self._flushed.append(done)
        return done.wait(timeout)

    def close(self, timeout: float, last: Callable[[], None] | None = None) -> None:
        """Write what is left, give all leases back, call `last` and stop; wait at most `timeout` seconds for that."""
        done = threading.Event()
        with self._lock:
            if self._closed:
                return
            self._waiting.clear()
            self._released += self._held
            self._held.clear()
            self._closed = True
            self._last = last
            if not self._wake_thread():
                return
            self._flushed.append(done)
        done.wait(max(0.0, timeout))

    # on any thread

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

    def _wake_thread(self) -> bool:
        """Wake the keeper's thread, or start one; the caller holds the lock and adds its request before it lets go.

        So the thread cannot exit in between: A sees a thread and wakes it; the thread, idle for five seconds, wants to
        exit. It decides that under this lock (`_stay`) and finds either the request or itself woken. Without the lock,
        it could look before A adds its request and exit after A saw it, and A's lease would never be given back.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="resilient-scan-store", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be started: leases expire by themselves
                return False
            self._thread = thread
        self._wake.set()
        return True

    # on the keeper's thread

    def _work(self) -> None:
        limit_waits()
        while True:
            # Cleared before the requests are read: one that is added in between is read now, or wakes the next wait.
            # The other way round, a request added after the reading would lose its wake-up and lie for five seconds.
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
                self._poll(key, waiter, seconds)
            if not self._stay(bool(waiting)):
                return

    def _stay(self, waiting: bool) -> bool:
        """Wait for requests; `False` if there are none, and this thread must exit: nobody will wake it any more."""
        if not self._closed:
            self._clock.wait(self._clock.monotonic() + (POLL_INTERVAL if waiting else IDLE_TIMEOUT), self._wake)
        with self._lock:
            if self._wake.is_set() or self._waiting or self._released or self._flushed:
                return True
            self._thread = None
            return False

    def _write(self, jobs: list[Callable[[], None]], released: list[str]) -> None:
        """Write everything, then give leases back, in this order.

        Process B polls while A holds the lease. Given back before A's answer is written, B could take the lease in
        between, find no answer and ask the source a second time.
        """
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
        except Exception:  # a bug of ours; were this thread to die of it, waiters would wait for ever
            _log.exception("a run could not be brought to the store")

    def _give_back(self, released: list[str]) -> None:
        for key in released:
            # While the answer was being written, the next execution in this process may have acquired the same key. The
            # store takes both for one owner: the lease is the new execution's, and giving it back would let another
            # process begin the same work. (One that acquires it between this look and the release loses the lease all
            # the same, as no lock is held while the store is called. Then two processes ask the source, as without it.)
            with self._lock:
                if key in self._held:
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

    def _poll(self, key: str, waiter: Waiter, seconds: float) -> None:
        try:
            if waiter.ended or waiter.answered():
                self._forget(key, waiter)
            elif self._take(key, seconds):
                self._forget(key, waiter)
                self._begin(key, waiter)
        except Exception:  # a bug of ours; the other waiters still have to be looked after
            _log.exception("%s: waiting for another process failed", key)
            self._forget(key, waiter)
            waiter.go()

    def _begin(self, key: str, waiter: Waiter) -> None:
        """Let an execution begin with the lease that was just taken, unless it has ended or its answer has come.

        The other process may write its answer and give the lease back after we looked for the answer and before we took
        the lease; so look once more.
        """
        if waiter.ended or waiter.answered():
            self.release(key)
        else:
            waiter.go()

    def _forget(self, key: str, waiter: Waiter) -> None:
        """Stop waiting, unless another execution waits for the key by now: this one ended, and a new run asked."""
        with self._lock:
            if self._waiting.get(key, (None,))[0] is waiter:
                del self._waiting[key]
