"""What runs on a worker: its children, and the messages to and from them. A Dask actor; knows nothing of Dask.

A conversation is one attempt in one child. The driver's call takes messages to the child, and comes back as soon as the
child has said something that the driver has to answer, or has ended. Most attempts are one call. Candidates and log
entries that come meanwhile go along; where a scanner takes its time they go once a second, so that little is lost with
the worker.

The worker counts an attempt's time from the moment at which a child gets it, and kills the child when it is up.
"""

from __future__ import annotations

import asyncio
import platform
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import msgspec

from resilient_scan import __version__
from resilient_scan._trace import NOWHERE
from resilient_scan.context import NEVER
from resilient_scan.engines.process import wire
from resilient_scan.engines.process.children import Child, Children
from resilient_scan.engines.process.transfer import pack_error
from resilient_scan.engines.process.wire import Attempt, Called, ConnectionClosed, Define, Ended, Question, Ready
from resilient_scan.errors import ScanError, WorkerLost

FLUSH_INTERVAL: Final = 1.0  # seconds after which the driver hears what a scanner has found so far
WATCH_INTERVAL: Final = 1.0  # seconds between two looks at whether the driver is there
LEASE: Final = 10.0  # seconds without a word from the driver until its children are killed
READY_TIMEOUT: Final = 60.0  # seconds in which a child has to import a scanner's module
MAX_KILLED: Final = 1000  # attempts that were killed before they began
MAX_STATES: Final = 4  # large states that are kept for the scans of a run
TIME_UP: Final = "the timeout"  # how a child ended that was killed when its attempt's time was up
NO_STATE: Final = "a lost state"  # it has to be sent again


class WorkerInfo(msgspec.Struct, frozen=True):
    """What the driver learns of a worker.

    Attributes:
        identity: of this actor; a call for another one of the same name is refused.
        python, version: what runs there.
        slots: attempts that it takes at a time.
    """

    identity: str
    python: str
    version: str
    slots: int


class Reply(msgspec.Struct, frozen=True):
    """What a child has said.

    Attributes:
        messages: encoded, in order.
        ending: how the child ended; `None`: it has not, as far as is known.
    """

    messages: list[bytes]
    ending: str | None = None


class Conversation:
    """One conversation: an attempt that a child makes."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.size = 0  # bytes that the child has said
        self.time_up = False
        self.alarm: asyncio.TimerHandle | None = None
        self._over = False
        self._lock = threading.Lock()

    def kill(self, *, time_up: bool = False) -> None:
        """Kill the child, unless the attempt has ended: then it may work for another."""
        with self._lock:
            if not self._over:
                self.time_up = self.time_up or time_up
                self.child.kill()

    def end(self) -> None:
        """Leave the child alone from now on."""
        with self._lock:
            self._over = True


class WorkerActor:
    """The children of one worker, for one driver.

    Args:
        slots: attempts at a time.
        max_result: bytes that a child may say in one attempt.
    """

    def __init__(self, slots: int, max_result: int) -> None:
        self._identity = uuid.uuid4().hex
        self._slots = slots
        self._max_result = max_result
        self._children = Children(slots)
        self._threads = ThreadPoolExecutor(2 * slots + 2, "resilient-scan-actor")  # for each slot one waits, one tells
        self._conversations: dict[int, Conversation] = {}
        self._killed: OrderedDict[int, None] = OrderedDict()  # attempts whose kill may have overtaken their beginning
        self._payloads: dict[int, bytes] = {}
        self._states: OrderedDict[str, bytes] = OrderedDict()
        self._heard = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="resilient-scan-lease", daemon=True).start()

    # called by the driver

    async def warm(self) -> WorkerInfo:
        """Have all children ready, and say who this is."""
        await self._off_loop(self._warm)
        self._heard = time.monotonic()
        return WorkerInfo(self._identity, platform.python_version(), __version__, self._slots)

    async def renew(self, identity: str) -> None:
        """Hear that the driver is there."""
        self._check(identity)

    async def define(self, identity: str, scanner: int, payload: bytes) -> bytes | None:
        """Make a scanner known; return the error of a child that cannot have it."""
        self._check(identity)
        self._payloads[scanner] = payload
        error: bytes | None = await self._off_loop(self._define, scanner)
        return error

    async def keep(self, identity: str, name: str, state: bytes) -> None:
        """Keep a large state under a name, by which attempts may refer to it."""
        self._check(identity)
        self._states[name] = state
        while len(self._states) > MAX_STATES:
            self._states.popitem(last=False)

    async def begin(self, identity: str, number: int, attempt: bytes, state: str) -> Reply:
        """Give an attempt to a child, and return what it says first."""
        self._check(identity)
        message = wire.for_child(attempt)
        assert isinstance(message, Attempt)  # noqa: S101 - the driver has no other
        if state:
            if state not in self._states:
                return Reply([], NO_STATE)
            self._states.move_to_end(state)
            message = msgspec.structs.replace(message, state=self._states[state])
        conversation: Conversation | Reply = await self._off_loop(self._begin, number, message)
        if isinstance(conversation, Reply):
            return conversation
        conversation.alarm = asyncio.get_running_loop().call_later(max(0.0, message.ends), self._time_up, conversation)
        return await self._heard_from(number, conversation)

    async def listen(self, identity: str, number: int) -> Reply:
        """Return what the child says next."""
        self._check(identity)
        conversation = self._conversations.get(number)
        return (
            Reply([], "an end that nobody has seen")
            if conversation is None
            else await self._heard_from(number, conversation)
        )

    async def tell(self, identity: str, number: int, message: bytes) -> None:
        """Pass a message on to a child."""
        self._check(identity)
        conversation = self._conversations.get(number)
        if conversation is not None:
            await self._off_loop(self._tell, conversation, message)

    async def kill(self, identity: str, number: int) -> None:
        """Kill the child of an attempt, now or when it begins."""
        self._check(identity)
        conversation = self._conversations.get(number)
        if conversation is not None:
            conversation.kill()
        else:
            self._killed[number] = None
            while len(self._killed) > MAX_KILLED:
                self._killed.popitem(last=False)

    async def close(self, identity: str) -> None:
        """Leave nothing behind."""
        if identity == self._identity:
            self._close()

    # on the worker's loop

    def _check(self, identity: str) -> None:
        if identity != self._identity or self._closed.is_set():
            raise OSError("the worker was started again")
        self._heard = time.monotonic()

    async def _off_loop(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _heard_from(self, number: int, conversation: Conversation) -> Reply:
        said: Reply = await self._off_loop(self._listen, conversation)
        if said.ending is not None:
            self._conversations.pop(number, None)
            if conversation.alarm is not None:
                conversation.alarm.cancel()
        return said

    @staticmethod
    def _time_up(conversation: Conversation) -> None:
        conversation.kill(time_up=True)

    # on the actor's own threads

    def _warm(self) -> None:
        self._children.start()
        taken: list[Child] = []
        try:
            taken.extend(self._take() for _ in range(self._slots))
        finally:
            for child in taken:
                self._children.give_back(child)

    def _take(self) -> Child:
        until = time.monotonic() + READY_TIMEOUT
        return self._children.take(lambda: self._closed.is_set() or time.monotonic() > until)

    def _define(self, scanner: int) -> bytes | None:
        child = self._take()
        try:
            return self._introduce(child, scanner)
        finally:
            self._children.give_back(child)

    def _introduce(self, child: Child, scanner: int) -> bytes | None:
        """Make a scanner known to a child that has not had it before; return why it cannot be."""
        if scanner in child.known:
            return None
        try:
            child.wire.send(Define(scanner, self._payloads[scanner]))
            ready = child.wire.from_child() if child.wire.has_message(READY_TIMEOUT) else None
        except ConnectionClosed:
            ready = None
        if not isinstance(ready, Ready):
            child.kill()
            return pack_error(WorkerLost("a child process has not imported the scanner"), NOWHERE)
        if ready.error is None:
            child.known.add(scanner)
        return ready.error

    def _begin(self, number: int, attempt: Attempt) -> Conversation | Reply:
        child = self._take()
        error = self._introduce(child, attempt.scanner)
        if error is not None:
            self._children.give_back(child)
            return Reply([wire.encoded(_failed(error))], "")
        conversation = self._conversations[number] = Conversation(child)
        if number in self._killed:
            conversation.kill()
        self._tell(conversation, wire.encoded(attempt))
        return conversation

    def _tell(self, conversation: Conversation, message: bytes) -> None:
        with suppress(ConnectionClosed):  # the thread that listens notices it
            conversation.child.wire.send_encoded(message)

    def _listen(self, conversation: Conversation) -> Reply:
        """Wait for what the driver has to know at once; what comes before that goes along."""
        said: list[bytes] = []
        until = NEVER
        line = conversation.child.wire
        while True:
            if not line.has_message(min(FLUSH_INTERVAL, max(0.0, until - time.monotonic()))):
                if said and time.monotonic() >= until:
                    return Reply(said)
                continue
            try:
                data, message = line.encoded_from_child()
            except ConnectionClosed:
                return self._hung_up(conversation, said)
            conversation.size += len(data)
            if conversation.size > self._max_result:
                conversation.kill()
                return self._ended(conversation, said, self._too_large())
            said.append(data)
            until = min(until, time.monotonic() + FLUSH_INTERVAL)
            if isinstance(message, Ended):
                return self._ended(conversation, said, message)
            if isinstance(message, Question | Called):
                return Reply(said)

    def _too_large(self) -> Ended:
        most = self._max_result / 1e6
        error = ScanError(
            f"its results are larger than max_result={most:g} MB: return less, or leave what is large where it is and "
            "return its place"
        )
        return _failed(pack_error(error, NOWHERE))

    def _ended(self, conversation: Conversation, said: list[bytes], ended: Ended) -> Reply:
        if ended.spoiled:
            conversation.kill()
        conversation.end()
        self._children.give_back(conversation.child)
        encoded = wire.encoded(ended)
        if not said or said[-1] != encoded:
            said.append(encoded)
        return Reply(said, "")

    def _hung_up(self, conversation: Conversation, said: list[bytes]) -> Reply:
        ending = TIME_UP if conversation.time_up else conversation.child.ending() or "a closed pipe"
        conversation.end()
        self._children.give_back(conversation.child)
        return Reply(said, ending)

    # on the thread that waits for a word of the driver

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_INTERVAL):
            if time.monotonic() - self._heard > LEASE:
                self._close()

    def _close(self) -> None:
        self._closed.set()
        self._children.close()
        self._threads.shutdown(wait=False)


def _failed(error: bytes) -> Ended:
    return Ended(None, error, None, 0, "", False, False)
