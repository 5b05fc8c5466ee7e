"""What the driver needs of child processes: those of this machine (`children`) or of others (`cluster`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from resilient_scan.engines.process.wire import ToChild, ToDriver


class WireLike(Protocol):
    """What carries messages to a child, and back."""

    def send(self, message: ToChild, /) -> None:
        """Send a message; raises `ConnectionClosed` if the child is gone."""

    def has_message(self, seconds: float, /) -> bool:
        """Wait for a message, or for the child's end; return whether one came."""

    def from_child(self) -> ToDriver:
        """Wait for the next message; raises `ConnectionClosed` if the child is gone."""


class ChildLike(Protocol):
    """A child process.

    Attributes:
        known: the numbers of the scanners that it knows.
    """

    known: set[int]

    @property
    def wire(self) -> WireLike:
        """What carries messages."""

    def kill(self) -> None:
        """Kill it, at once; from any thread."""

    def failure(self) -> BaseException:
        """Return what it means for an attempt that the child has ended."""


class ChildrenLike(Protocol):
    """Where children are had.

    Attributes:
        away: whether they are on other machines.
        grace: seconds that their answers may be late, for transit.
        shared: of what a machine may lack (`layers.blame`), what they share with the driver.
    """

    away: bool
    grace: float
    shared: frozenset[str]

    def register(self, number: int, name: str, payload: bytes, /) -> None:
        """Have children know a scanner."""

    def take(self, over: Callable[[], bool], patience: float, /) -> ChildLike:
        """Return a child that waits for work, or raise why there is none."""

    def give_back(self, child: Any, /) -> None:
        """Give a child back."""
