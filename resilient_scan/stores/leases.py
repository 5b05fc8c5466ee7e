"""One execution per key in all processes that share a store, and the thread that keeps a store's I/O out of the way.

    request, `ask` -> wanted -> about to start: asked for in a group, one transaction
                                  |
                                  +- it is free, or a dead process has it --> granted: `go`, work, `release`
                                  |                                             ^
                                  `- another process has it -> waiting -- free -'
                                                                  `------ an answer has come -> `answered`

    released -> what was found is written, in a group, one transaction -> returned: given back with the next exchange

A waiter blocks no worker and has no thread of its own: one thread, the lease keeper's, does all that has to do with
leases. It also writes what was put off, so that neither a worker nor the watchdog ever waits for a disk.

Each transaction of a file waits for the disk, and each of a server for the network, so the keeper makes few of them. A
run asks for its scans in groups; what they find is held for a moment (`LINGER`), or until there is as much as a window
of a run brings, and is written at once. Nothing waits for that but other processes, which look only every 50 ms.

A process asks only for what is about to start. Had it the leases of a whole queue, a second process that wants the same
would wait for it with all its workers idle. A lease lasts ten seconds and is renewed while its process lives. The lease
of a process that was killed is taken over at once where its death can be seen (see `owner`); elsewhere it expires.
Where the store fails, everyone may go on as if nobody else worked.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store
from resilient_scan.stores.groups import exchange, exchange_and_fetch, fetch_many, held_back
from resilient_scan.stores.health import IDLE_TIMEOUT, Health, limit_waits
from resilient_scan.stores.owner import is_dead, new_owner

POLL_INTERVAL = 0.05  # seconds between two looks at what another process does
LEASE_SECONDS = 10.0  # that a lease lasts, and that work is lost for when a machine dies
RENEW_INTERVAL = 3.0  # seconds between two renewals: a store that is away for some seconds costs no lease
MAX_GRANTED = 128  # leases of executions that wait for a worker and take next to no time
QUICK = 0.01  # seconds; executions that take less are granted many at a time
LINGER = 0.02  # seconds for which what was found waits for more, so that one transaction writes it all
MAX_RELEASED = 128  # executions that have ended: what they found is written without waiting for more
MAX_HELD_BACK = 4 * 1024 * 1024  # bytes; likewise


class Waiter(Protocol):
    """An execution that has to wait until another process has finished.

    Attributes:
        ended: whether nobody waits for it any more.
        answer_key: under which the store has its answer, where another process has found one; empty: it takes none.
    """

    ended: bool

    @property
    def answer_key(self) -> str:
        """See above."""

    @property
    def expected(self) -> float:
        """Seconds that it is expected to take; infinite where that is unknown."""

    def answered(self, data: bytes, now: float, /) -> bool:
        """End with what the store has under its `answer_key` at the store's time `now`; `False`: it is of no use."""

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
        self._requested: dict[str, Waiter] = {}  # their run is about to `ask` for them, in order
        self._wanted: dict[str, Waiter] = {}  # not asked for in the store yet, in order
        self._waiting: dict[str, Waiter] = {}  # another process works on them
        self._granted: set[str] = set()  # held by executions that no worker has begun
        self._granted_at, self._granted_then = -math.inf, 0  # when the last group was, and how many there were then
        self._begins_quickly = False  # whether workers have begun most of them in next to no time
        self._held: set[str] = set()
        self._released: list[str] = []  # what they found is not written yet
        self._returned: list[str] = []  # it is; on the keeper's thread only
        self._write_at = self._return_at = math.inf
        self._jobs: list[Callable[[], None]] = []
        self._put: list[threading.Event] = []
        self._jobs_done = 0  # since the last write; on the keeper's thread only
        self._last: Callable[[], None] | None = None
        self._finished = False  # `last` was called, and has closed the store
        self._flushed: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._renew_at = 0.0  # on the keeper's thread only

    # leases

    def request(self, key: str, waiter: Waiter) -> bool:
        """Have an execution begin as soon as no other process works on the same, after the next `ask`.

        Args:
            key: what the execution works on.
            waiter: the execution; its methods are called on the keeper's thread.

        Returns:
            `False` where nothing will be called: then the execution may begin at once.
        """
        with self._lock:
            if self._closed or not (self._thread or self._wake_thread()):
                return False
            self._requested[key] = waiter
            if len(self._requested) >= MAX_GRANTED:
                self._ask()
        return True

    def ask(self) -> None:
        """Have the store asked for what was requested: a run calls it before it waits for anything.

        The first run that comes here does it for all. A run that is interrupted between the two leaves its requests to
        others: scans of another run may wait for the same executions, and that run calls this too.
        """
        if self._requested:
            with self._lock:
                self._ask()

    def _ask(self) -> None:
        self._wanted |= self._requested
        self._requested.clear()
        self._wake_thread()

    def started(self, key: str) -> None:
        """Note that a worker has begun an execution; more may be granted."""
        with self._lock:
            self._granted.discard(key)
            if len(self._granted) == self._workers // 2:
                ended = self._granted_then - len(self._granted) - self._workers  # for sure; the others may still run
                took = self._clock.monotonic() - self._granted_at
                self._begins_quickly = took * self._workers < QUICK * ended
            if self._wanted and self._has_room():
                self._wake_thread()

    def release(self, key: str) -> None:
        """Give a lease back once what was found is written, or stop waiting for it."""
        with self._lock:
            self._requested.pop(key, None)
            self._wanted.pop(key, None)
            self._waiting.pop(key, None)
            self._granted.discard(key)
            if self._wanted and self._has_room():
                self._wake_thread()
            if key in self._held:
                self._held.discard(key)
                self._release(key)

    def _release(self, key: str) -> None:
        """Have a lease given back once what was found is written. Under the lock."""
        self._released.append(key)
        if self._write_at == math.inf:
            self._write_at = self._clock.monotonic() + LINGER
            self._wake_thread()  # it may sleep for longer
        elif self._has_much():
            self._wake_thread()

    def _has_much(self) -> bool:
        return len(self._released) >= MAX_RELEASED or held_back(self._store) >= MAX_HELD_BACK

    # what is put off

    def flush(self, timeout: float, job: Callable[[], None] | None = None, *, written: bool = True) -> bool:
        """Have everything written that was put off; return whether that happened in time.

        Args:
            timeout: seconds to wait at most; it is written later too, if that is not enough.
            job: is called first, on the keeper's thread: it puts what a run is remembered by into the store.
            written: `False` to wait for the job only: this process finds what was put, and it is written in a moment.
        """
        done = threading.Event()
        with self._lock:
            if self._closed or not self._wake_thread():
                return False
            self._jobs += [] if job is None else [job]
            (self._flushed if written else self._put).append(done)
        return done.wait(timeout)

    def close(self, timeout: float, last: Callable[[], None] | None = None) -> None:
        """Write what is left, give all leases back, call `last` and stop; wait at most `timeout` seconds for that."""
        done = threading.Event()
        with self._lock:
            if self._closed:
                return
            self._requested.clear()
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
                flushed, self._flushed = self._flushed, []
                put, self._put = self._put, []
                jobs, self._jobs = self._jobs, []
                last = self._last
            self._do(jobs)
            for done in put:
                done.set()
            self._write_if_due(at_once=bool(flushed) or last is not None)
            self._trade(at_once=bool(flushed) or last is not None)
            if last is not None:
                self._finish(last)
            for done in flushed:
                done.set()
            if not self._stay():
                return

    def _do(self, jobs: list[Callable[[], None]]) -> None:
        for job in jobs:
            _guarded(job, "a run could not be brought to the store")
        self._jobs_done += len(jobs)
        if jobs:
            with self._lock:
                self._write_at = min(self._write_at, self._clock.monotonic() + LINGER)

    def _write_if_due(self, *, at_once: bool) -> None:
        """Write everything before leases are given back, unless it may wait for more.

        Process B polls while A holds the lease. Given back before A's answer is written, B could take the lease in
        between, find no answer and ask the source a second time.
        """
        if self._finished:  # the wake-up of the close itself may still be there
            return
        with self._lock:
            if not (at_once or self._closed or self._has_much() or self._clock.monotonic() >= self._write_at):
                return
            released, self._released = self._released, []
            self._write_at = math.inf
        try:
            self._store.flush()
        except StoreError as error:
            self._on_error("flush", error)
        done, self._jobs_done = self._jobs_done, 0
        if done:
            self._health.run_ended()
        self._returned += released
        if self._returned:
            self._return_at = min(self._return_at, self._clock.monotonic() + LINGER)

    def _stay(self) -> bool:
        """Wait for requests; `False` if there are none, and this thread must exit: nobody will wake it any more."""
        if not self._closed:
            self._clock.wait(self._next_look(), self._wake)
        with self._lock:
            busy = self._requested or self._wanted or self._waiting or self._held or self._returned
            if self._wake.is_set() or self._write_at < math.inf or (busy and not self._closed):
                return True
            self._thread = None
            return False

    def _next_look(self) -> float:
        now = self._clock.monotonic()
        longest = now + (POLL_INTERVAL if self._waiting else IDLE_TIMEOUT)
        return min(longest, self._renew_at if self._held else math.inf, self._write_at, self._return_at)

    def _finish(self, last: Callable[[], None]) -> None:
        """Give back what was granted while the runner was being closed, and call `last`, which closes the store."""
        self._last = None
        with self._lock:
            released, self._released = [*self._released, *self._held, *self._returned], []
            self._held.clear()
        self._returned = []
        self._exchange((), released)
        self._finished = True
        try:
            last()
        except StoreError as error:
            self._on_error("close", error)

    def _trade(self, *, at_once: bool) -> None:
        """Take what is wanted, renew what is due, and give back what was released, all in one transaction."""
        for key, waiter in self._waiting_in_vain():
            self._end_wait(key, waiter)
        now = self._clock.monotonic()
        with self._lock:
            wanted = {**self._waiting, **self._next_group()}
            renewed = self._held - wanted.keys() if now >= self._renew_at else set()
            if renewed or not self._held:
                self._renew_at = now + RENEW_INTERVAL
            given_back: list[str] = []
            if wanted or renewed or at_once or now >= self._return_at:
                # A run may want again what the one before has just released: then it is kept.
                given_back = [key for key in self._returned if key not in self._held and key not in wanted]
                self._returned, self._return_at = [], math.inf
        names = _names(wanted)
        refused, found = self._exchange([*wanted, *renewed], given_back, list(names.values()))
        self._grant({key: waiter for key, waiter in wanted.items() if key not in refused}, found)
        for key, waiter in wanted.items():
            if key in refused:
                self._hold_up(key, waiter)

    def _waiting_in_vain(self) -> list[tuple[str, Waiter]]:
        """Return those that need not wait any more: their answer has come, or nobody waits for them."""
        with self._lock:
            waiting = self._waiting.copy()
        answered = self._answered({key: waiter for key, waiter in waiting.items() if not waiter.ended})
        return [(key, waiter) for key, waiter in waiting.items() if waiter.ended or key in answered]

    def _next_group(self) -> dict[str, Waiter]:
        """Take out the executions that are about to start. Under the lock."""
        if self._clock.monotonic() - self._granted_at > POLL_INTERVAL:
            self._begins_quickly = False  # that was another run, or the workers are busy with something else
        if not self._wanted or not self._has_room():
            return {}
        group: dict[str, Waiter] = {}
        for key, waiter in self._wanted.items():
            if len(self._granted) + len(group) >= self._most(waiter):
                break
            group[key] = waiter
        for key in group:
            del self._wanted[key]
        return group

    def _has_room(self) -> bool:
        """Say whether the next group is due: so late that it is a large one, so early that no worker waits for it.

        What is quick is due when half of a group is left, else when workers are about to run out of work. Under the
        lock.
        """
        few = self._workers // 2
        if self._most(next(iter(self._wanted.values()))) == MAX_GRANTED:
            few = max(few, MAX_GRANTED // 2)
        return len(self._granted) <= few

    def _most(self, waiter: Waiter) -> int:
        """Return how many may be granted before workers begin them. Under the lock.

        Nobody knows how long an execution takes whose scanner has never been run. But where workers have just been
        through with others of them in no time, another process that wants one of the next waits no longer for it.
        """
        quick = waiter.expected < QUICK or (waiter.expected == math.inf and self._begins_quickly)
        return MAX_GRANTED if quick else 2 * self._workers

    def _exchange(
        self, take: Sequence[str], give_back: Sequence[str], names: Sequence[str] = ()
    ) -> tuple[dict[str, str], dict[str, bytes] | None]:
        """Take leases, give others back and then read values.

        Returns:
            The leases that living processes hold, with their owners; and the values, or `None` if they are still to be
            read.
        """
        if not take and not give_back:
            return {}, None
        try:
            refused, found = exchange_and_fetch(self._store, take, self._owner, LEASE_SECONDS, give_back, names)
            dead = {owner for owner in set(refused.values()) if is_dead(owner)}
            if dead:
                freed = [key for key, owner in refused.items() if owner in dead]
                taken_since = exchange(self._store, freed, self._owner, LEASE_SECONDS, (), dead)
                refused = {key: owner for key, owner in refused.items() if owner not in dead} | taken_since
        except StoreError as error:
            self._on_error("lease", error)
            return {}, None
        except Exception:  # a bug of ours; everyone who waits would wait forever
            _log.exception("leases could not be taken")
            return {}, None
        return refused, found

    def _grant(self, free: Mapping[str, Waiter], found: Mapping[str, bytes] | None) -> None:
        """Let executions begin with their leases, unless they have ended or their answers have come meanwhile.

        The other process may write its answer and give the lease back after we looked for the answer and before we took
        the lease; so look once more, for all of them at once: `found` is what the store had after we took them.
        """
        begun: dict[str, Waiter] = {}
        with self._lock:
            for key, waiter in free.items():
                if self._waiting.get(key) is waiter:
                    del self._waiting[key]
                self._held.add(key)
                # It may have ended while the store was asked, and its `release` found nothing to give back. Then a new
                # run may want the same already, so this takes back the lease and leaves that one's request alone.
                if waiter.ended or self._closed:
                    self._held.discard(key)
                    self._release(key)
                else:
                    self._granted.add(key)
                    begun[key] = waiter
            if begun:
                self._granted_at, self._granted_then = self._clock.monotonic(), len(self._granted)
        answered = self._answered(begun, found)
        for key, waiter in begun.items():
            if key not in answered:
                _guarded(waiter.go, f"{key}: an execution could not begin")

    def _answered(self, waiters: Mapping[str, Waiter], found: Mapping[str, bytes] | None = None) -> set[str]:
        """Look, with one read, whether other processes have stored answers; end those that can be and return them."""
        names = _names(waiters)
        if not names:
            return set()
        try:
            if found is None:
                found = fetch_many(self._store, list(names.values()))
            now = self._store.now() if found else 0.0
        except StoreError as error:
            self._on_error("get", error)
            return set()
        except Exception:  # a bug of ours; they begin when their leases are free
            _log.exception("answers of other processes could not be read")
            return set()
        there = {key: found[name] for key, name in names.items() if name in found}
        return {key for key, data in there.items() if _answered(key, waiters[key], data, now)}

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


def _names(waiters: Mapping[str, Waiter]) -> dict[str, str]:
    """Return under which keys the store may have answers for executions."""
    return {key: name for key, waiter in waiters.items() if (name := waiter.answer_key)}


def _answered(key: str, waiter: Waiter, data: bytes, now: float) -> bool:
    try:
        return waiter.answered(data, now)
    except Exception:  # a bug of ours; it begins when the lease is free, and the other waiters are looked after
        _log.exception("%s: waiting for another process failed", key)
        return False


def _guarded(call: Callable[[], None], what: str) -> None:
    """Call, and log what it raises: were this thread to die of it, waiters would wait for ever."""
    try:
        call()
    except Exception:
        _log.exception("%s", what)
