"""The messages between driver and child: plain data, and pickled bytes for whatever is foreign.

What is foreign is pickled apart from the message around it. So one candidate that cannot be read costs that candidate,
and not the conversation. Durations are in seconds from now: instants of one process mean nothing in the other.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from threading import Lock
from typing import Final

import msgspec


class Define(msgspec.Struct, frozen=True, tag="define", array_like=True):
    """Make a scanner known to the child.

    Attributes:
        scanner: the number under which attempts name it.
        payload: a pickled `transfer.ScannerPayload`.
    """

    scanner: int
    payload: bytes


class Attempt(msgspec.Struct, frozen=True, tag="attempt", array_like=True):
    """Call a scanner once.

    Attributes:
        scanner: its number.
        state: pickled.
        run_id: of the run.
        number: of the attempt.
        ends, deadline: seconds that the attempt has, and the execution.
        clock: seconds by which the runner's wall clock is ahead of the machine's.
        frozen: the time of day in epoch seconds, where it stands still; `None`: it does not.
        asks_provider: whether a request needs its provider's leave.
        memory: bytes that the child may use; `None`: any number.
        variables: pickled context variables.
    """

    scanner: int
    state: bytes
    run_id: str
    number: int
    ends: float
    deadline: float
    clock: float
    frozen: float | None
    asks_provider: bool
    memory: int | None
    variables: bytes


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """Call what a question is about, on the thread that asked.

    Attributes:
        question: its number.
        ends: seconds that the attempt has while it is called.
        asks_provider: as in `Attempt`, while it is called.
    """

    question: int
    ends: float
    asks_provider: bool


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    """Answer a question.

    Attributes:
        question: its number.
        value: pickled; `None`: what the question's call has returned.
        error: pickled; `None`: there is none. Empty: what the question's call has raised.
        excused: whether each leaf of that error is excused.
        ends: seconds that the attempt has from now on.
        asks_provider: as in `Attempt`, from now on.
    """

    question: int
    value: bytes | None
    error: bytes | None
    excused: tuple[bool, ...]
    ends: float
    asks_provider: bool


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """The scanner is known, or why it cannot be: a pickled error."""

    error: bytes | None


class Item(msgspec.Struct, frozen=True, tag="item", array_like=True):
    """The scanner has yielded something, pickled."""

    data: bytes


class Logged(msgspec.Struct, frozen=True, tag="logged", array_like=True):
    """The scanner has logged an entry, pickled."""

    data: bytes


class Doubted(msgspec.Struct, frozen=True, tag="doubted", array_like=True):
    """The scanner doubts its answer, for these reasons."""

    reason: str


class Question(msgspec.Struct, frozen=True, tag="question", array_like=True):
    """A thread of the scanner waits for the driver.

    Attributes:
        number: of the question; a child uses none twice.
        name: what it asks for.
        arguments: a pickled tuple.
        answered: whether a source has answered in this attempt.
    """

    number: int
    name: str
    arguments: bytes
    answered: bool


class Called(msgspec.Struct, frozen=True, tag="called", array_like=True):
    """What a question's call came to.

    Attributes:
        question: its number.
        value: pickled, where the driver wants it.
        error: pickled; `None`: it has returned.
        answered: whether a source has answered in this attempt.
    """

    question: int
    value: bytes | None
    error: bytes | None
    answered: bool


class Ended(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """The attempt has ended.

    Attributes:
        found: a pickled list, where the scanner has returned one.
        error: pickled; `None`: it has returned.
        logs: all entries of the attempt, pickled; `None`: there are none, or those that were sent are all.
        dropped, invalid: how many items could not be sent, and why the first could not.
        answered: whether a source has answered in this attempt.
        spoiled: whether threads of the attempt still run, so that the child is of no use for another scan.
    """

    found: bytes | None
    error: bytes | None
    logs: bytes | None
    dropped: int
    invalid: str
    answered: bool
    spoiled: bool


ToChild = Define | Attempt | Call | Answer
ToDriver = Ready | Item | Logged | Doubted | Question | Called | Ended

# Made here, while one thread imports this: two threads must not have msgspec learn a class at a time.
_encode: Final = msgspec.msgpack.Encoder().encode
_to_child: Final = msgspec.msgpack.Decoder(ToChild)
_to_driver: Final = msgspec.msgpack.Decoder(ToDriver)


def encoded(message: ToChild | ToDriver) -> bytes:
    """Return a message as bytes."""
    return _encode(message)


def for_child(data: bytes) -> ToChild:
    """Return a message of the driver."""
    message: ToChild = _to_child.decode(data)
    return message


def for_driver(data: bytes) -> ToDriver:
    """Return a message of a child."""
    message: ToDriver = _to_driver.decode(data)
    return message


class ConnectionClosed(Exception):
    """The process at the other end of the pipe is gone."""


class Wire:
    """One end of the pipe; several threads may send, one receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = Lock()

    def send(self, message: ToChild | ToDriver) -> None:
        """Send a message.

        Raises:
            ConnectionClosed: the other process is gone.
        """
        self.send_encoded(_encode(message))

    def send_encoded(self, data: bytes) -> None:
        """Send a message that is encoded already; likewise."""
        with self._sending:
            try:
                self._connection.send_bytes(data)
            except OSError as error:
                raise ConnectionClosed from error

    def from_driver(self) -> ToChild:
        """Wait for the driver's next message.

        Raises:
            ConnectionClosed: the driver is gone.
        """
        return for_child(self._received())

    def from_child(self) -> ToDriver:
        """Wait for the child's next message.

        Raises:
            ConnectionClosed: the child is gone.
        """
        return for_driver(self._received())

    def encoded_from_child(self) -> tuple[bytes, ToDriver]:
        """Wait for the child's next message, and return it as it came, too; likewise."""
        data = self._received()
        return data, for_driver(data)

    def has_message(self, seconds: float) -> bool:
        """Wait for a message, or for the end of the other process, for at most `seconds`; return whether one came."""
        try:
            return self._connection.poll(seconds)
        except (EOFError, OSError):
            return True

    def _received(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise ConnectionClosed from error
