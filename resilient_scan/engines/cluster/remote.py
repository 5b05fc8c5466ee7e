"""An attempt at a worker, as the driver has it: it stands for the child process there, and for the pipe to that.

    the attempt's own thread                              the client's event loop (`dispatch`)
    ------------------------                              ------------------------------------
    enter       is queued, waits until a child has it <-- begin   a worker has a place for it
    from_child  waits for what the child says         <-- hear    a reply of the worker has come
    send        answers a question of the child       --> goes to the worker at once
    kill        leaves the queue                      --> or the worker kills the child

Many attempts wait on one thread (`core.lane`), where `SharedEvent` suspends only the one that waits.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from resilient_scan._suspend import SharedEvent
from resilient_scan.context import NEVER
from resilient_scan.engines.cluster.actor import TIME_UP
from resilient_scan.engines.process import wire
from resilient_scan.engines.process.wire import Attempt, ConnectionClosed, ToChild, ToDriver
from resilient_scan.errors import ProcessEnded, Rejected, ScanCancelled, WorkerLost

_numbers: Final = itertools.count(1)  # of attempts, in the whole process


class WorkerLink(Protocol):
    """The link to a worker's actor.

    Attributes:
        where: the worker's address.
        slots: attempts that it makes at a time.
        used: how many of those places are taken.
        states: the names of large states that it has.
        keeping: held while it is sent one.
        lost: whether the worker is gone.
    """

    where: str
    slots: int
    used: int
    states: set[str]
    keeping: asyncio.Lock
    lost: bool

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor and return its result; raises `OSError` if the worker is gone."""

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the actor whose result nobody waits for; from any thread, at once."""


class Queue(Protocol):
    """Where attempts wait for a place at a worker."""

    grace: float

    @property
    def closed(self) -> bool:
        """Whether nothing is given a place any more."""

    def put(self, child: RemoteChild) -> None:
        """Have an attempt wait for a place; raises `Rejected` if there will be none."""

    def withdraw(self, child: RemoteChild) -> bool:
        """Take an attempt out; `False`: it does not wait for a place."""

    def kill(self, child: RemoteChild) -> None:
        """Have an attempt ended, wherever it is."""

    def why_full(self) -> str:
        """Say why there is no place."""


class RemoteChild:
    """One attempt at a worker.

    Args:
        queue: where it waits for a place.

    Attributes:
        number: of the attempt, in this process.
        attempt: what is to be done, from `enter` on.
        alone: whether it must not wait for others at its worker.
        link: to its worker, once it has one.
        began: when a child has got it, monotonic; infinite: none has, as far as is known.
    """

    def __init__(self, queue: Queue) -> None:
        self.number: int = next(_numbers)
        self.wire = self  # the pipe to the child is this, too
        self.known: set[int] = set()  # each worker knows all scanners before it counts
        self.attempt: Attempt | None = None
        self.alone: bool = False
        self.link: WorkerLink | None = None
        self.began: float = NEVER
        self._queue = queue
        self._heard: deque[bytes] = deque()
        self._bell = SharedEvent()
        self._killed = False
        self._until = NEVER  # how long an answer is waited for
        self._over = False  # whether nothing more is to come
        self._ending: str | None = None  # how the child ended; `None`: nobody knows

    # on the attempt's thread

    def enter(self, attempt: Attempt, patience: float, *, alone: bool) -> None:
        """Wait until a child at a worker has got the attempt.

        Args:
            attempt: what is to be done.
            patience: seconds for which it waits for a place; other attempts at the same place may come before it then.
            alone: whether none may: its time must not be spent.

        Raises:
            Rejected: there was no place.
            ConnectionClosed: it was killed, or its worker is gone.
        """
        self.attempt, self.alone = attempt, alone
        self._queue.put(self)
        while True:
            self._bell.clear()
            if self._killed or (self._over and not self._heard):
                raise ConnectionClosed
            if self.began != NEVER:
                return
            if not self._bell.wait(patience):
                if self._queue.withdraw(self):
                    raise Rejected(self._queue.why_full())
                if self._queue.closed:  # its client is: nobody will wake this
                    raise ConnectionClosed

    def has_message(self, _seconds: float) -> bool:
        """Say whether a message is here."""
        return bool(self._heard)

    def from_child(self) -> ToDriver:
        """Wait for the next message.

        Raises:
            ConnectionClosed: the child has ended, or its worker is gone.
        """
        while not self._heard:
            self._bell.clear()
            left = self._until - time.monotonic()
            if not self._heard and (self._over or left <= 0):
                raise ConnectionClosed
            if not self._heard:
                self._bell.wait(None if left == NEVER else left)
        return wire.for_driver(self._heard.popleft())

    def send(self, message: ToChild) -> None:
        """Send a message to the child, if there is one."""
        if self.link is not None:
            self.link.tell("tell", self.number, wire.encoded(message))

    def failure(self) -> BaseException:
        """Return what it means that the conversation has ended before the attempt.

        A scanner whose time was up counts as one that has noticed it: the layers above know which time that was, the
        attempt's or the scan's.
        """
        if self.link is None:
            return Rejected(self._queue.why_full())
        if self._ending is None:
            return WorkerLost(f"the worker {self.link.where} is gone")
        if self._ending == TIME_UP:
            return ScanCancelled("the worker has ended it: its time was up")
        return ProcessEnded(f"its process ended with {self._ending}")

    # from any thread

    def kill(self) -> None:
        """Have the attempt ended, and wait no longer than a kill takes to come back."""
        if not self._killed:
            self._until = time.monotonic() + self._queue.grace
            self._killed = True
            self._queue.kill(self)
            self._bell.set()

    # on the client's event loop

    def begin(self, link: WorkerLink, *, at: float = NEVER) -> None:
        """Note where it goes, and when a child gets it, if it is the first there."""
        self.link = link
        if at != NEVER:
            self.began = at
            self._bell.set()

    def hear(self, messages: Sequence[bytes], began: float, ending: str | None) -> None:
        """Take over what its worker has said: the child's messages, when it began, and how it has ended."""
        if self.began != NEVER and not messages and ending is None:
            return
        self.began = min(self.began, began)
        self._heard.extend(messages)
        if ending is not None:
            self._ending, self._over = ending, True
        self._bell.set()

    def lose(self) -> None:
        """Note that its worker is gone."""
        self._over = True
        self._bell.set()

    @property
    def is_killed(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._killed

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return self._over
