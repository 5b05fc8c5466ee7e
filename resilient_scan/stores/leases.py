"""One execution per key in all processes that share a store, and the thread that keeps a store's I/O out of the way.

    request -> wanted -> about to start: asked for in a group, one transaction
                           |
                           +- it is free, or a dead process has it --> granted: `go`, work, `release`: what was found
                           |                                             ^      is written, then the lease given back
                           `- another process has it -> waiting -- free -'
                                                           `------ an answer has come -> `answered`

A waiter blocks no worker and has no thread of its own: one thread, the lease keeper's, does all that has to do with
leases. It also writes what was put off, so that neither a worker nor the watchdog ever waits for a disk.

A process asks only for what is about to start. Had it the leases of a whole queue, a second process that wants the same
would wait for it with all its workers idle. A lease lasts ten seconds and is renewed while its process lives. The lease
of a process that was killed is taken over at once where its death can be seen (see `owner`); elsewhere it expires.
Where the store fails, everyone may go on as if nobody else worked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store
from resilient_scan.stores.health import IDLE_TIMEOUT, Health, limit_waits
from resilient_scan.stores.owner import is_dead, new_owner

POLL_INTERVAL = 0.05  # seconds between two looks at what another process does
LEASE_SECONDS = 10.0  # that a lease lasts, and that work is lost for when a machine dies
RENEW_INTERVAL = 3.0  # seconds between two renewals: a store that is away for some seconds costs no lease
MAX_GRANTED = 128  # leases of executions that wait for a worker and take next to no time
QUICK = 0.01  # seconds; executions that take less are granted many at a time


@runtime_checkable
class GroupLeases(Protocol):
    """A store that takes and gives back many leases in one transaction, and says who holds the others."""

    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        """Take or renew leases for `seconds`, those of `dead` owners included, and give one's own back.

        Returns:
            The leases of `take` that others hold, each with its owner.
        """


class Waiter(Protocol):
    """An execution that has to wait until another process has finished.

    Attributes:
        ended: whether nobody waits for it any more.
    """

    ended: bool

    @property
    def expected(self) -> float:
        """Seconds that it is expected to take; infinite where that is unknown."""

    def answered(self) -> bool:
        """Look whether another process has stored an answer, and end with it; `False` if none has."""

    def go(self) -> None:
        """Begin: nobody else works on it any more."""

    def held_up(self) -> None:
        """Note that another process works on it."""


class LeaseKeeper:
    """One runner's leases in a store that other processes share, and the thread that looks after them.

    Args:
        store: where the leases are, and what is put off is written.
        clock: measures the waits.
        health: hears of failures, and of everything being written.
        workers: executions that can run at a time.
    """

    def __init__(self, store: Store, clock: Clock, health: Health, workers: int) -> None:
        self._store = store
        self._clock = clock
        self._health = health
        self._on_error = health.failed
        self._workers = workers
        self._owner = new_owner()
        self._lock = threading.Lock()  # for everything below; never held while the store or a waiter is called
        self._wake: Wake = clock.event()
        self._wanted: dict[str, Waiter] = {}  # not asked for yet, in order
        self._waiting: dict[str, Waiter] = {}  # another process works on them
        self._granted: set[str] = set()  # held by executions that no worker has begun
        self._held: set[str] = set()
        self._released: list[str] = []
        self._jobs: list[Callable[[], None]] = []
        self._last: Callable[[], None] | None = None
        self._flushed: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._renew_at = 0.0  # on the keeper's thread only

    # leases

    def request(self, key: str, waiter: Waiter) -> bool:
        """Have an execution begin as soon as no other process works on the same.

        Args:
            key: what the execution works on.
            waiter: the execution; its methods are called on the keeper's thread.

        Returns:
            `False` where nothing will be called: then the execution may begin at once.
        """
        with self._lock:
            if self._closed or not self._wake_thread():
                return False
            self._wanted[key] = waiter
        return True

    def started(self, key: str) -> None:
        """Note that a worker has begun an execution; more may be granted."""
        with self._lock:
            self._granted.discard(key)
            # At half, so that workers find the next ones granted, and these come in groups.
            if self._wanted and len(self._granted) <= self._workers // 2:
                self._wake_thread()

    def release(self, key: str) -> None:
        """Give a lease back once what was found is written, or stop waiting for it."""
        with self._lock:
            self._wanted.pop(key, None)
            self._waiting.pop(key, None)
            self._granted.discard(key)
            if key in self._held:
                self._held.discard(key)
                self._released.append(key)
                self._wake_thread()

    # what is put off

    def flush(self, timeout: float, job: Callable[[], None] | None = None) -> bool:
        """Have everything written that was put off; return whether that happened in time.

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
            self._wanted.clear()
            self._waiting.clear()
            self._granted.clear()
            self._released += self._held
            self._held.clear()
            self._closed = True
            self._last = last
            if not self._wake_thread():
                return
            self._flushed.append(done)
        done.wait(max(0.0, timeout))

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
                last = self._last
            if released or flushed:
                self._write(jobs)
            self._trade(released)
            if last is not None:
                self._finish(last)
            for done in flushed:
                done.set()
            if not self._stay():
                return

    def _stay(self) -> bool:
        """Wait for requests; `False` if there are none, and this thread must exit: nobody will wake it any more."""
        if not self._closed:
            self._clock.wait(self._next_look(), self._wake)
        with self._lock:
            busy = self._wanted or self._waiting or self._held
            if self._wake.is_set() or self._released or self._flushed or (busy and not self._closed):
                return True
            self._thread = None
            return False

    def _next_look(self) -> float:
        now = self._clock.monotonic()
        if self._waiting:
            return now + POLL_INTERVAL
        return min(self._renew_at, now + IDLE_TIMEOUT) if self._held else now + IDLE_TIMEOUT

    def _write(self, jobs: list[Callable[[], None]]) -> None:
        """Write everything, before leases are given back.

        Process B polls while A holds the lease. Given back before A's answer is written, B could take the lease in
        between, find no answer and ask the source a second time.
        """
        for job in jobs:
            _guarded(job, "a run could not be brought to the store")
        try:
            self._store.flush()
        except StoreError as error:
            self._on_error("flush", error)
        if jobs:
            self._health.run_ended()

    def _finish(self, last: Callable[[], None]) -> None:
        """Give back what was granted while the runner was being closed, and call `last`, which closes the store."""
        self._last = None
        with self._lock:
            released, self._released = [*self._released, *self._held], []
            self._held.clear()
        self._exchange((), released)
        try:
            last()
        except StoreError as error:
            self._on_error("close", error)

    def _trade(self, released: list[str]) -> None:
        """Give back what was released, renew what is due, and take what is wanted, all in one transaction."""
        for key, waiter in self._waiting_in_vain():
            self._end_wait(key, waiter)
        now = self._clock.monotonic()
        with self._lock:
            wanted = {**self._waiting, **self._next_group()}
            renewed = self._held - wanted.keys() if now >= self._renew_at else set()
            if renewed or not self._held:
                self._renew_at = now + RENEW_INTERVAL
            # A run may want again what the one before has just released: then it is kept.
            given_back = [key for key in released if key not in self._held and key not in wanted]
        refused = self._exchange([*wanted, *renewed], given_back)
        for key, waiter in wanted.items():
            if key in refused:
                self._hold_up(key, waiter)
            else:
                self._grant(key, waiter)

    def _waiting_in_vain(self) -> list[tuple[str, Waiter]]:
        """Return those that need not wait any more: their answer has come, or nobody waits for them."""
        with self._lock:
            waiting = list(self._waiting.items())
        return [(key, waiter) for key, waiter in waiting if waiter.ended or _answered(key, waiter)]

    def _next_group(self) -> dict[str, Waiter]:
        """Take out the executions that are about to start. Under the lock."""
        group: dict[str, Waiter] = {}
        for key, waiter in self._wanted.items():
            most = MAX_GRANTED if waiter.expected < QUICK else 2 * self._workers
            if len(self._granted) + len(group) >= most:
                break
            group[key] = waiter
        for key in group:
            del self._wanted[key]
        return group

    def _exchange(self, take: Sequence[str], give_back: Sequence[str]) -> dict[str, str]:
        """Take leases and give others back; return those that living processes hold, with their owners."""
        if not take and not give_back:
            return {}
        try:
            refused = exchange(self._store, take, self._owner, LEASE_SECONDS, give_back)
            dead = {owner for owner in set(refused.values()) if is_dead(owner)}
            if dead:
                freed = [key for key, owner in refused.items() if owner in dead]
                taken_since = exchange(self._store, freed, self._owner, LEASE_SECONDS, (), dead)
                refused = {key: owner for key, owner in refused.items() if owner not in dead} | taken_since
        except StoreError as error:
            self._on_error("lease", error)
            return {}
        except Exception:  # a bug of ours; everyone who waits would wait forever
            _log.exception("leases could not be taken")
            return {}
        return refused

    def _grant(self, key: str, waiter: Waiter) -> None:
        """Let an execution begin with its lease, unless it has ended or its answer has come meanwhile.

        The other process may write its answer and give the lease back after we looked for the answer and before we took
        the lease; so look once more.
        """
        with self._lock:
            if self._waiting.get(key) is waiter:
                del self._waiting[key]
            self._held.add(key)
            # It may have ended while the store was asked, and its `release` found nothing to give back. Then a new run
            # may want the same already, so this takes back the lease and leaves that one's request alone.
            if waiter.ended or self._closed:
                self._held.discard(key)
                self._released.append(key)
                self._wake.set()
                return
            self._granted.add(key)
        if not _answered(key, waiter):
            _guarded(waiter.go, f"{key}: an execution could not begin")

    def _hold_up(self, key: str, waiter: Waiter) -> None:
        """Let an execution wait until another process has ended its work."""
        with self._lock:
            if self._closed or self._waiting.get(key) is waiter:
                return
            self._waiting[key] = waiter
        _guarded(waiter.held_up, f"{key}: an execution could not be held up")

    def _end_wait(self, key: str, waiter: Waiter) -> None:
        """Stop waiting, unless another execution waits for the key by now: this one ended, and a new run asked."""
        with self._lock:
            if self._waiting.get(key) is waiter:
                del self._waiting[key]


def exchange(
    store: Store, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], dead: Collection[str] = ()
) -> dict[str, str]:
    """Call a store's `exchange`, or take and give back one by one where it has none; see `GroupLeases`."""
    if isinstance(store, GroupLeases):
        return store.exchange(take, owner, seconds, give_back, dead)
    refused = {key: "" for key in take if not store.lease(key, owner, seconds)}
    for key in give_back:
        store.release(key, owner)
    return refused


def _answered(key: str, waiter: Waiter) -> bool:
    try:
        return waiter.answered()
    except Exception:  # a bug of ours; it begins when the lease is free, and the other waiters are looked after
        _log.exception("%s: waiting for another process failed", key)
        return False


def _guarded(call: Callable[[], None], what: str) -> None:
    """Call, and log what it raises: were this thread to die of it, waiters would wait for ever."""
    try:
        call()
    except Exception:
        _log.exception("%s", what)
