"""A child process at a worker, as the driver has it: messages go to the actor there, and come back from it.

Most attempts are one call to a worker: the scanner is made known to each worker once, and the attempt is sent when the
driver begins to listen.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from resilient_scan.engines.cluster.actor import NO_STATE, TIME_UP, Reply
from resilient_scan.engines.process import wire
from resilient_scan.engines.process.wire import Attempt, ConnectionClosed, Define, Ready, ToChild, ToDriver
from resilient_scan.errors import ProcessEnded, ScanTimeout, WorkerLost

LARGE: Final = 100_000  # bytes of a state from which on each worker gets it once, and not with each attempt


class WorkerLink(Protocol):
    """The link to a worker's actor.

    Attributes:
        where: the worker's address.
        known: the numbers of scanners that it knows.
        states: the names of large states that it has.
        keeping: held while it is sent one: the other scans of the run need the same.
        lost: whether the worker is gone.
        grace: seconds that a worker may be late, for transit.
    """

    where: str
    known: set[int]
    states: set[str]
    keeping: threading.Lock
    lost: bool
    grace: float

    def call(self, method: str, *arguments: Any, until: Callable[[], float]) -> Any:
        """Call a method of the actor; raises `ConnectionClosed` if the worker is gone, or does not answer in time."""

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the actor whose result nobody waits for; from any thread, at once."""


class RemoteChild:
    """Stands for one child; for one attempt.

    Args:
        line: to its worker.
        number: of the attempt, in this process.
    """

    def __init__(self, line: WorkerLink, number: int) -> None:
        self.line = line
        self.known = line.known
        self.wire = RemoteWire(line, number)
        self._number = number
        self._killed = False

    def kill(self) -> None:
        """Have the child killed."""
        if not self._killed:
            self._killed = True
            self.wire.stop_waiting()
            self.line.tell("kill", self._number)

    def failure(self) -> BaseException:
        """Return what it means that the conversation has ended before the attempt."""
        ending = self.wire.ending
        if self.line.lost or ending is None:
            return WorkerLost(f"the worker {self.line.where} is gone")
        if ending == TIME_UP:
            return ScanTimeout(f"timeout after {self.wire.seconds:.3g}s", by_clock=True)
        return ProcessEnded(f"its process ended with {ending}")


class RemoteWire:
    """Messages to and from an actor; several threads may send, one receives."""

    def __init__(self, line: WorkerLink, number: int) -> None:
        self._line = line
        self._number = number
        self._attempt: Attempt | None = None
        self._heard: deque[ToDriver] = deque()
        self._until = float("inf")
        self.ending: str | None = None
        self.seconds = 0.0  # that the attempt has

    def stop_waiting(self) -> None:
        """Wait no longer than a kill takes to come back."""
        self._until = time.monotonic() + self._line.grace

    def send(self, message: ToChild) -> None:
        """Send a message.

        Raises:
            ConnectionClosed: the worker is gone.
        """
        match message:
            case Define():
                self._heard.append(Ready(self._call("define", message.scanner, message.payload)))
            case Attempt():
                self._attempt = message
            case _:
                self._line.tell("tell", self._number, wire.encoded(message))

    def has_message(self, _seconds: float) -> bool:
        """Say whether a message is here."""
        return bool(self._heard)

    def from_child(self) -> ToDriver:
        """Wait for the next message.

        Raises:
            ConnectionClosed: the child has ended, or its worker is gone.
        """
        while not self._heard:
            if self.ending is not None:
                raise ConnectionClosed
            said = self._begin() if self._attempt is not None else self._call("listen", self._number)
            self._heard.extend(map(wire.for_driver, said.messages))
            self.ending = said.ending
        return self._heard.popleft()

    def _begin(self) -> Reply:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None  # noqa: S101 - the caller has looked
        self.seconds = attempt.ends
        name, whole = "", b""
        if len(attempt.state) > LARGE:
            name = hashlib.sha256(attempt.state).hexdigest()
            whole, attempt = attempt.state, msgspec.structs.replace(attempt, state=b"")
            with self._line.keeping:
                if name not in self._line.states:
                    self._keep(name, whole)
        while True:
            said: Reply = self._call("begin", self._number, wire.encoded(attempt), name)
            if said.ending != NO_STATE:
                return said
            self._keep(name, whole)

    def _keep(self, name: str, state: bytes) -> None:
        self._call("keep", name, state)
        self._line.states.add(name)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._line.call(method, *arguments, until=lambda: self._until)
