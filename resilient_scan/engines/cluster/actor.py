"""What runs on a worker: its children, and the messages to and from them. A Dask actor; knows nothing of Dask.

A conversation is one attempt in one child. The driver sends attempts in batches, for one place: one after the other
is made, on a thread that passes messages on between the driver and a child. The driver's calls `begin` and `listen`
come back as soon as a child has said something that the driver has to answer, and at the end of the batch. What comes
meanwhile (candidates, log entries, the ends of attempts) goes along; where it takes longer, it goes a few times a
second, so that little is lost with the worker. Most batches of one attempt are one call.

The worker counts an attempt's time from the moment at which a child gets it, and kills the child when it is up. The
rest of the batch goes on in another child. Where one attempt takes long, the worker gives back what it has not begun.
"""

from __future__ import annotations

import asyncio
import platform
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
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
BATCH_INTERVAL: Final = 0.25  # seconds after which it hears which attempts of a batch have ended
MAX_WAIT: Final = 2.0  # seconds from the beginning of a batch, after which what has not begun is given back
WATCH_INTERVAL: Final = 1.0  # seconds between two looks at whether the driver is there
LEASE: Final = 10.0  # seconds without a word from the driver until its children are killed
READY_TIMEOUT: Final = 60.0  # seconds in which a child has to import a scanner's module
MAX_KILLED: Final = 1000  # attempts whose kill may have come before them
MAX_STATES: Final = 4  # large states that are kept for the scans of a run
TIME_UP: Final = "the timeout"  # how a child ended that was killed when its attempt's time was up
LATE: Final = 1.0  # seconds after an attempt's time, at which another thread kills its child: this one is stuck in it


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


class Turn(msgspec.Struct, frozen=True):
    """An attempt that is to be made.

    Attributes:
        number: of the attempt.
        attempt: encoded.
        state: the name of its state, where that is large.
    """

    number: int
    attempt: bytes
    state: str


class Said(msgspec.Struct, frozen=True):
    """What there is to tell of an attempt.

    Attributes:
        number: of the attempt.
        messages: its child's, encoded, in order.
        seconds: that it has taken so far.
        ending: how it ended: empty by itself, else how its child ended; `None`: it is under way.
        failed: whether it ended otherwise than by an answer.
    """

    number: int
    messages: list[bytes]
    seconds: float
    ending: str | None = None
    failed: bool = False


class Reply(msgspec.Struct, frozen=True):
    """What there is to tell of a batch.

    Attributes:
        said: of its attempts.
        returned: the numbers of attempts that will not be made here.
        lacks_state: whether nothing was begun, because the state is not here.
    """

    said: list[Said]
    returned: list[int] = []
    lacks_state: bool = False


class Conversation:
    """An attempt that a child makes.

    Args:
        number: of the attempt.
        child: makes it.
        seconds: that it may take.
    """

    def __init__(self, number: int, child: Child, seconds: float) -> None:
        self.number = number
        self.child = child
        self.began = time.monotonic()
        self.until = self.began + seconds
        self.size = 0  # bytes that the child has said
        self.time_up = False
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


class Batch:
    """Attempts for one place, and what there is to tell of them.

    Args:
        turns: the attempts.
        loop: of the driver's calls.
    """

    def __init__(self, turns: Sequence[Turn], loop: asyncio.AbstractEventLoop) -> None:
        self.late_at: float = time.monotonic() + MAX_WAIT
        self._pause = BATCH_INTERVAL if len(turns) > 1 else FLUSH_INTERVAL
        self._loop = loop
        self._some = asyncio.Event()  # there is something to tell
        self._urgent = asyncio.Event()  # at once
        self._lock = threading.Lock()  # for what follows
        self._turns = deque(turns)
        self._left = len(turns)  # without those of which the driver has heard the end
        self._said: list[Said] = []
        self._returned: list[int] = []
        self._under_way: Conversation | None = None
        self._messages: list[bytes] = []  # of the attempt under way

    # on the thread that makes the attempts

    def next(self) -> Turn | None:
        """Return the next attempt; `None`: that was the last."""
        with self._lock:
            return self._turns.popleft() if self._turns else None

    def begin(self, conversation: Conversation) -> None:
        """Note which attempt is under way."""
        with self._lock:
            self._under_way = conversation

    def say(self, message: bytes, *, urgent: bool) -> None:
        """Have the driver hear a message of the child."""
        with self._lock:
            first = not self._messages and not self._said
            self._messages.append(message)
        self._ring(first=first, urgent=urgent)

    def end(self, number: int, seconds: float, ending: str, message: bytes | None, *, failed: bool) -> None:
        """Note how an attempt has ended, with its last message."""
        with self._lock:
            first = not self._messages and not self._said
            messages, self._messages, self._under_way = self._messages, [], None
            if message is not None:
                messages.append(message)
            self._said.append(Said(number, messages, seconds, ending, failed))
            last = not self._turns
        self._ring(first=first, urgent=last)

    def give_back(self) -> None:
        """Give the attempts back that were not begun."""
        self.late_at = NEVER
        with self._lock:
            returned = [turn.number for turn in self._turns]
            self._turns.clear()
            self._returned += returned
        if returned:
            self._ring(first=True, urgent=True)

    def _ring(self, *, first: bool, urgent: bool) -> None:
        if urgent:
            self._loop.call_soon_threadsafe(self._wake)
        elif first:
            self._loop.call_soon_threadsafe(self._some.set)

    def _wake(self) -> None:
        self._some.set()
        self._urgent.set()

    # on the loop

    def drop(self, number: int) -> bool:
        """Give an attempt back that nobody waits for any more; `False`: it has begun, or is not here."""
        with self._lock:
            for turn in self._turns:
                if turn.number == number:
                    self._turns.remove(turn)
                    self._returned.append(number)
                    self._some.set()  # it may have been the last
                    return True
        return False

    @property
    def is_over(self) -> bool:
        """Whether the driver has heard all."""
        return not self._left

    async def reply(self) -> Reply:
        """Wait until there is something to tell, and return it."""
        await self._some.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._urgent.wait(), self._pause)
        with self._lock:
            self._some.clear()
            self._urgent.clear()
            said, self._said = self._said, []
            returned, self._returned = self._returned, []
            messages, self._messages = self._messages, []
            one = self._under_way
            if one is not None:
                said.append(Said(one.number, messages, time.monotonic() - one.began))
            self._left -= len(returned) + sum(each.ending is not None for each in said)
        return Reply(said, returned)


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
        self._batches: dict[int, Batch] = {}
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

    async def begin(self, identity: str, number: int, turns: list[Turn]) -> Reply:
        """Make attempts, one after the other, and return what there is to tell first."""
        self._check(identity)
        if any(turn.state and turn.state not in self._states for turn in turns):
            return Reply([], lacks_state=True)
        self._batches[number] = batch = Batch(turns, asyncio.get_running_loop())
        self._threads.submit(self._make, batch)
        return await self._reply(number, batch)

    async def listen(self, identity: str, number: int) -> Reply:
        """Return what there is to tell next."""
        self._check(identity)
        batch = self._batches.get(number)
        if batch is None:
            raise OSError("the worker does not know the batch")
        return await self._reply(number, batch)

    async def tell(self, identity: str, number: int, message: bytes) -> None:
        """Pass a message on to a child."""
        self._check(identity)
        conversation = self._conversations.get(number)
        if conversation is not None:
            await self._off_loop(self._tell, conversation, message)

    async def kill(self, identity: str, numbers: list[int]) -> None:
        """Have attempts ended: those under way with their children, and those that come yet when they do."""
        self._check(identity)
        for number in numbers:
            self._killed[number] = None  # before the look: an attempt that begins now looks after it is to be found
            conversation = self._conversations.get(number)
            if conversation is not None:
                conversation.kill()
            if conversation is not None or any(batch.drop(number) for batch in self._batches.values()):
                del self._killed[number]
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

    async def _reply(self, number: int, batch: Batch) -> Reply:
        reply = await batch.reply()
        if batch.is_over:
            self._batches.pop(number, None)
        return reply

    async def _off_loop(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

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

    def _make(self, batch: Batch) -> None:
        """Make the attempts of a batch."""
        while (turn := batch.next()) is not None:
            try:
                self._make_one(batch, turn)
            except Exception as error:  # no child can be had, for example
                failed = wire.encoded(_failed(pack_error(error, NOWHERE)))
                batch.end(turn.number, 0.0, "", failed, failed=True)

    def _make_one(self, batch: Batch, turn: Turn) -> None:
        attempt = wire.for_child(turn.attempt)
        assert isinstance(attempt, Attempt)  # noqa: S101 - the driver has no other
        encoded = turn.attempt
        if turn.state:
            attempt = msgspec.structs.replace(attempt, state=self._states[turn.state])
            encoded = wire.encoded(attempt)
        child = self._take()
        try:
            error = self._introduce(child, attempt.scanner)
            if error is not None:
                batch.end(turn.number, 0.0, "", wire.encoded(_failed(error)), failed=True)
                return
            conversation = self._conversations[turn.number] = Conversation(turn.number, child, attempt.ends)
            batch.begin(conversation)
            if turn.number in self._killed:
                conversation.kill()
            self._tell(conversation, encoded)
            self._listen(batch, conversation)
        finally:
            self._conversations.pop(turn.number, None)
            self._children.give_back(child)

    def _tell(self, conversation: Conversation, message: bytes) -> None:
        with suppress(ConnectionClosed):  # the thread that listens notices it
            conversation.child.wire.send_encoded(message)

    def _listen(self, batch: Batch, conversation: Conversation) -> None:
        """Pass on what the child says, until the attempt has ended; kill it when its time is up."""
        line = conversation.child.wire
        while True:
            if not line.has_message(self._keep_time(batch, conversation)):
                continue
            try:
                data, message = line.encoded_from_child()
            except ConnectionClosed:
                self._end(batch, conversation, self._how(conversation), None)
                return
            conversation.size += len(data)
            if conversation.size > self._max_result:
                conversation.kill()
                self._end(batch, conversation, "", self._too_large())
                return
            if isinstance(message, Ended):
                if message.spoiled:
                    conversation.kill()
                self._end(batch, conversation, "", message, data)
                return
            batch.say(data, urgent=isinstance(message, Question | Called))

    @staticmethod
    def _keep_time(batch: Batch, conversation: Conversation) -> float:
        """Do what is due, and return for how many seconds nothing else is."""
        now = time.monotonic()
        if now >= conversation.until:
            conversation.until = NEVER
            conversation.kill(time_up=True)
        if now >= batch.late_at:
            batch.give_back()
        return min(FLUSH_INTERVAL, max(0.0, min(conversation.until, batch.late_at) - now))

    @staticmethod
    def _how(conversation: Conversation) -> str:
        return TIME_UP if conversation.time_up else conversation.child.ending() or "a closed pipe"

    @staticmethod
    def _end(
        batch: Batch, conversation: Conversation, ending: str, ended: Ended | None, data: bytes | None = None
    ) -> None:
        conversation.end()
        took = time.monotonic() - conversation.began
        failed = ended is None or ended.error is not None
        message = wire.encoded(ended) if data is None and ended is not None else data
        batch.end(conversation.number, took, ending, message, failed=failed)

    def _too_large(self) -> Ended:
        most = self._max_result / 1e6
        error = ScanError(
            f"its results are larger than max_result={most:g} MB: return less, or leave what is large where it is and "
            "return its place"
        )
        return _failed(pack_error(error, NOWHERE))

    # on the thread that waits for a word of the driver

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_INTERVAL):
            now = time.monotonic()
            if now - self._heard > LEASE:
                self._close()
            for conversation in tuple(self._conversations.values()):
                if now > conversation.until + LATE:  # in the middle of a message
                    conversation.kill(time_up=True)

    def _close(self) -> None:
        self._closed.set()
        self._children.close()
        self._threads.shutdown(wait=False)


def _failed(error: bytes) -> Ended:
    return Ended(None, error, None, 0, "", False, False)
