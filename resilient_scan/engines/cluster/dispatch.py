"""Which attempts go to which worker, and which of them go together.

A call of a worker costs the driver about a millisecond of its processor, whatever is in it. So attempts that are short
and wait for a place go together, as a *batch*: about a second of work for one place, which makes one after the other.
Each keeps its own time limit, its own messages and its own end; the batch is only how they travel.

    put ---> queue ---> a batch for the place that is free ---> a worker ---> replies, a few for each batch
               ^                                                   |
               +------ the rest, where one of them takes long -----+

How many go together is learned from how long they take: one at first, then twice as many with each batch that has
ended well, up to `BATCH_TIME` of work. An attempt that fails makes them travel alone again, so that a source that is
down is not called by a whole batch. No more are taken than a place's share of what waits: the last inputs of a map are
spread over all places.

All of this happens on the event loop of Dask's client; the queue is filled by other threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from resilient_scan._log import log as _log
from resilient_scan._text import counted
from resilient_scan.context import NEVER
from resilient_scan.engines.cluster.actor import Reply, Turn
from resilient_scan.engines.cluster.remote import RemoteChild, WorkerLink
from resilient_scan.engines.process import wire
from resilient_scan.engines.process.wire import Attempt
from resilient_scan.errors import Rejected

BATCH_TIME: Final = 1.0  # seconds of work that go to a place at a time, where single attempts take less
MAX_BATCH: Final = 256  # attempts
MAX_BYTES: Final = 1_000_000  # of their states, together
LARGE: Final = 100_000  # bytes of a state from which on each worker gets it once, and not with each attempt
NEWS: Final = 0.25  # share of the last attempt in how long one is expected to take
SILENCE: Final = 15.0  # seconds without a word from a worker, after which those that wait there are lost
_batches: Final = itertools.count(1)
_CLOSED: Final = "the runner is closed; it asks no worker"


class Pace(msgspec.Struct):
    """How fast a scanner's attempts are made.

    Attributes:
        seconds: that one takes; the last ones count most.
        size: how many may go together, whatever they take.
    """

    seconds: float
    size: int = 1

    @property
    def batch(self) -> int:
        """How many attempts are about `BATCH_TIME` of work."""
        return max(1, min(self.size, int(BATCH_TIME / max(self.seconds, 1e-6))))


class Dispatcher:
    """The attempts that wait for a place, and the places.

    Args:
        loop: the client's; it runs on another thread.
        grace: seconds that an answer may be late, for transit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        self.grace = grace
        self._loop = loop
        self._lock = threading.Lock()  # for what follows
        self._queue: deque[RemoteChild] = deque()
        self._links: dict[str, WorkerLink] = {}
        self._called: set[Callable[[], None]] = set()  # what the loop has been asked to do
        self._kills: dict[int, tuple[WorkerLink, list[int]]] = {}
        self._closed = False
        # Written by the loop only.
        self._paces: dict[int, Pace] = {}
        self._tasks: dict[asyncio.Task[None], WorkerLink] = {}
        self._named: tuple[bytes, str] = b"", ""  # the last large state, with its name

    # from any thread

    def put(self, child: RemoteChild) -> None:
        """Have an attempt wait for a place.

        Raises:
            Rejected: there will be none.
        """
        with self._lock:
            if not self._closed:
                self._queue.append(child)
                self._soon(self._dispatch)
                return
        raise Rejected(_CLOSED)

    def withdraw(self, child: RemoteChild) -> bool:
        """Take an attempt out of the queue; `False`: it is not there."""
        with self._lock:
            try:
                self._queue.remove(child)
            except ValueError:
                return False
        return True

    def kill(self, child: RemoteChild) -> None:
        """Take an attempt out of the queue, or have its worker end it."""
        with self._lock:
            if child in self._queue:
                self._queue.remove(child)
            elif child.link is not None and not child.is_over:
                # Together: at a run's deadline there may be thousands.
                self._kills.setdefault(id(child.link), (child.link, []))[1].append(child.number)
                self._soon(self._send_kills)

    def why_full(self) -> str:
        """Say why there is no place."""
        with self._lock:
            slots, workers = sum(link.slots for link in self._links.values()), len(self._links)
        if self.closed:
            return _CLOSED
        if not slots:
            return "the cluster has no worker"
        return f"the cluster is full: {counted(slots, 'place')} at {counted(workers, 'worker')}, all taken"

    @property
    def closed(self) -> bool:
        """Whether nothing is given a place any more."""
        return self._closed or not self._loop.is_running()

    def batch_of(self, scanner: int) -> int:
        """Return how many attempts of a scanner go together now."""
        pace = self._paces.get(scanner)
        return 1 if pace is None else pace.batch

    def add(self, link: WorkerLink) -> None:
        """Have a worker's places taken."""
        with self._lock:
            self._links[link.where] = link
            self._soon(self._dispatch)

    def remove(self, where: str) -> None:
        """Let go of a worker that is gone, and of what is under way there."""
        with self._lock:
            link = self._links.pop(where, None)
            if link is not None:
                link.lost = True
                self._soon(self._end_lost)

    @property
    def links(self) -> tuple[WorkerLink, ...]:
        """The workers that there are."""
        with self._lock:
            return tuple(self._links.values())

    def close(self) -> None:
        """Refuse what waits."""
        with self._lock:
            self._closed = True
            queued, self._queue = tuple(self._queue), deque()
        for child in queued:
            child.lose()

    def _soon(self, call: Callable[[], None]) -> None:
        """Have the loop call `call`, once for all that ask before it does; under the lock."""
        if call not in self._called:
            self._called.add(call)
            try:
                self._loop.call_soon_threadsafe(call)
            except RuntimeError:  # the client is closed
                self._closed = True

    # on the loop

    def _dispatch(self) -> None:
        """Fill the places that are free."""
        begun = []
        with self._lock:
            self._called.discard(self._dispatch)
            while self._queue and not self._closed:
                link = max(self._links.values(), key=_free, default=None)
                if link is None or _free(link) < 1:
                    break
                link.used += 1
                begun.append((link, self._next_batch()))
        now = time.monotonic()
        for link, batch in begun:
            for place, child in enumerate(batch):
                child.begin(link, at=now) if place == 0 else child.begin(link)
            task = self._loop.create_task(self._conduct(link, batch))
            self._tasks[task] = link
            task.add_done_callback(self._tasks.pop)

    def _next_batch(self) -> list[RemoteChild]:
        """Take the attempts that go together to the next place out of the queue; under the lock."""
        free = 1 + sum(map(_free, self._links.values()))
        most = min(MAX_BATCH, -(-len(self._queue) // free))
        batch: list[RemoteChild] = []
        seconds, size = 0.0, 0
        while self._queue and len(batch) < most:
            child = self._queue[0]
            pace = self._pace(child)
            if pace is None:  # it goes by itself
                return batch or [self._queue.popleft()]
            seconds += pace.seconds
            size += len(_attempt(child).state)
            if batch and (len(batch) >= pace.batch or seconds > BATCH_TIME or size > MAX_BYTES):
                break
            batch.append(self._queue.popleft())
        return batch

    def _pace(self, child: RemoteChild) -> Pace | None:
        """Return how fast attempts like this one are made; `None`: it goes alone."""
        attempt = _attempt(child)
        return None if child.alone or len(attempt.state) > LARGE else self._paces.get(attempt.scanner)

    async def _conduct(self, link: WorkerLink, batch: list[RemoteChild]) -> None:
        """Have a worker make attempts, and hand over what it says of them."""
        left = {child.number: child for child in batch}
        number = next(_batches)
        try:
            reply = await self._begin(link, number, batch)
            while self._hear(left, reply):
                reply = await self._answer(link, left, "listen", number)
            self._resize(batch, 2)
        except (Exception, asyncio.CancelledError) as error:  # whatever Dask raises for a worker that is gone
            if not link.lost and not self._closed:
                _log.warning("the worker %s is given up: %s", link.where, str(error) or type(error).__name__)
            link.lost = True
            for child in left.values():
                child.lose()
        finally:
            with self._lock:
                link.used -= 1
                self._soon(self._dispatch)

    async def _answer(self, link: WorkerLink, left: dict[int, RemoteChild], method: str, *arguments: Any) -> Reply:
        """Call a worker; one that keeps silent does not keep those for ever that wait there."""
        asked = link.ask(method, *arguments)
        waiting = any(child.began == NEVER for child in left.values())
        reply: Reply = await (asyncio.wait_for(asked, SILENCE) if waiting else asked)
        return reply

    async def _begin(self, link: WorkerLink, number: int, batch: list[RemoteChild]) -> Reply:
        name, state = "", b""
        turns = []
        for child in batch:
            attempt = _attempt(child)
            if len(attempt.state) > LARGE:  # then it is the only one
                name, state = self._name(attempt.state), attempt.state
                attempt = msgspec.structs.replace(attempt, state=b"")
            turns.append(Turn(child.number, wire.encoded(attempt), name))
        if name:
            await self._keep(link, name, state)
        waiting = {child.number: child for child in batch}
        reply = await self._answer(link, waiting, "begin", number, turns)
        if reply.lacks_state:  # it keeps a few only
            link.states.discard(name)
            await self._keep(link, name, state)
            reply = await self._answer(link, waiting, "begin", number, turns)
        return reply

    async def _keep(self, link: WorkerLink, name: str, state: bytes) -> None:
        """Send a worker a large state, unless it has that: the other scans of the run need the same."""
        async with link.keeping:
            if name not in link.states:
                await link.ask("keep", name, state)
                link.states.add(name)

    def _name(self, state: bytes) -> str:
        last, name = self._named
        if last is not state:
            name = hashlib.sha256(state).hexdigest()
            self._named = state, name
        return name

    def _hear(self, left: dict[int, RemoteChild], reply: Reply) -> bool:
        """Hand over what a worker has said; return whether more is to come."""
        now = time.monotonic()
        for said in reply.said:
            child = left[said.number]
            child.hear(said.messages, now - said.seconds, said.ending)
            if said.ending is not None:
                del left[said.number]
                self._note(_attempt(child).scanner, said.seconds, failed=said.failed)
        if reply.returned:
            returned = [left.pop(number) for number in reply.returned]
            with self._lock:
                waiting = [child for child in returned if not child.is_killed]
                self._queue.extendleft(reversed(waiting))
                self._soon(self._dispatch)
            self._resize(waiting, 0)
        return bool(left)

    def _note(self, scanner: int, seconds: float, *, failed: bool) -> None:
        pace = self._paces.get(scanner)
        if pace is None:
            pace = self._paces[scanner] = Pace(seconds)
        pace.seconds += NEWS * (seconds - pace.seconds)
        if failed:
            pace.size = 1

    def _resize(self, batch: list[RemoteChild], factor: int) -> None:
        """Have so many times as many of each scanner's attempts go together as now, but one at least."""
        for scanner in {_attempt(child).scanner for child in batch}:
            pace = self._paces.get(scanner)
            if pace is not None:
                pace.size = max(1, min(MAX_BATCH, factor * pace.size))

    def _send_kills(self) -> None:
        with self._lock:
            self._called.discard(self._send_kills)
            kills, self._kills = self._kills, {}
        for link, numbers in kills.values():
            link.tell("kill", numbers)

    def _end_lost(self) -> None:
        """End what is under way at workers that are gone: who asked one may never be answered."""
        self._called.discard(self._end_lost)
        for task, link in tuple(self._tasks.items()):
            if link.lost:
                task.cancel()


def _free(link: WorkerLink) -> int:
    return 0 if link.lost else link.slots - link.used


def _attempt(child: RemoteChild) -> Attempt:
    assert child.attempt is not None  # noqa: S101 - it was given when it was queued
    return child.attempt
