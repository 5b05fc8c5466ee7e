"""What is said between the driver and a child about one attempt, from its beginning to its end.

The child yields, logs and doubts, and asks for what only the driver has: shared values, other sources, what was
remembered, turns at a provider. Each question is answered on a thread of its own, so that a scanner's threads do not
wait for each other; what a question is about may be a call that the child makes, in the middle of the answer.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

from resilient_scan._once import IMPORTING
from resilient_scan._suspend import off_loop
from resilient_scan.clock import Clock
from resilient_scan.engines.process.interfaces import WireLike
from resilient_scan.engines.process.transfer import (
    Unsendable,
    pack,
    pack_error,
    unpack,
    unpack_error,
)
from resilient_scan.engines.process.wire import (
    Answer,
    Attempt,
    Call,
    Called,
    ConnectionClosed,
    Doubted,
    Ended,
    Item,
    Logged,
    Question,
)
from resilient_scan.errors import (
    ProcessKilled,
    ScanError,
    leaves,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid

ANSWER_TIMEOUT: Final = 0.02  # seconds for which the end of an attempt waits for answers that nobody needs any more


class Conversation:
    """What is said between the driver and a child about one attempt.

    Args:
        wire: to the child.
        time_up: returns when the scanner's time is up, monotonic.
        context: of the attempt.
        make: makes a candidate of what the scanner yields.
        clock: the runner's.
    """

    def __init__(
        self, wire: WireLike, time_up: Callable[[], float], context: AttemptContext, make: Maker, clock: Clock
    ) -> None:
        self._wire = wire
        self._time_up = time_up
        self._context = context
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._over = False
        self._calls: dict[int, SimpleQueue[Called | None]] = {}  # by question, what its call comes to
        self._threads: list[threading.Thread] = []  # that answer questions
        self._kept_logs = 0

    def hold(self, attempt: Attempt | None) -> Ended:
        """Begin the attempt, unless it has begun, and do what the child says until it ends.

        Raises:
            ConnectionClosed: the child has ended.
            BaseException: what making candidates raised.
        """
        self._kept_logs = len(self._context.tool_logs())
        try:
            if attempt is not None:
                self._wire.send(attempt)
            while not isinstance(message := self._wire.from_child(), Ended):
                self._hear(message)
            return message
        finally:
            self._close()

    def _hear(self, message: Any) -> None:
        context = self._context
        match message:
            case Item():
                self._keep(message.data)
            case Logged():
                context.logged([unpack(message.data)])
            case Doubted():
                context.doubted = message.reason
            case Question():
                context.answered = context.answered or message.answered
                self._answer_on_thread(message)
            case Called():
                context.answered = context.answered or message.answered
                waiting = self._calls.get(message.question)
                if waiting is not None:
                    waiting.put(message)

    def _keep(self, data: bytes) -> None:
        context = self._context
        try:
            item = unpack(data)
        except Exception as error:  # of a module that is not here, for example
            context.invalid = context.invalid or f"a candidate cannot be read from its process: {error}"
            context.dropped += 1
        else:
            keep_valid((item,), self._make, context)

    def end(self, ended: Ended, shared: Collection[str]) -> None:
        """Take over what the attempt came to; raise what the scanner raised.

        Args:
            ended: what it came to.
            shared: of what a machine may lack, what the child shares with the driver.
        """
        context = self._context
        context.answered = context.answered or ended.answered
        if ended.logs is not None:
            context.logged(unpack(ended.logs), kept=self._kept_logs)
        if ended.found is not None:
            keep_valid(unpack(ended.found), self._make, context)
        context.dropped += ended.dropped
        context.invalid = context.invalid or ended.invalid
        if ended.error is not None:
            error, info = unpack_error(ended.error)
            context.described(error, info, shared)
            try:
                raise error
            finally:
                del error  # or it, its traceback and this frame would keep each other alive until a gc

    # questions

    def _answer_on_thread(self, question: Question) -> None:
        """Answer on a thread of its own: the answer may take as long as the scan, and others wait for theirs."""
        variables = contextvars.copy_context()
        thread = threading.Thread(
            target=variables.run, args=(self._answer, question), name="resilient-scan-answer", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            self._reply(question, None, pack_error(error, self._context.own.home))
        else:
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]

    def _answer(self, question: Question) -> None:
        call = _CallInChild(self, question.number)
        value: bytes | None = None
        error: bytes | None = None
        excused: tuple[bool, ...] = ()
        try:
            found = self._asked(question, call)
            value = None if call.returned(found) else _sendable(found)
        except BaseException as failure:
            if failure is call.error:
                error = b""
                excused = tuple(isinstance(leaf, ScanError) and leaf.excused for leaf in leaves(failure))
            else:
                error = pack_error(failure, self._context.own.home)
            call.error = None
        self._reply(question, value, error, excused)

    def _asked(self, question: Question, call: _CallInChild) -> Any:
        context, arguments = self._context, unpack(question.arguments)
        match question.name:
            case "shared":
                key, ttl = arguments
                return context.shared(key, call.value, ttl=ttl)
            case "guarded":
                source, seconds, limit = arguments
                return context.guarded(source, call.token, seconds=seconds, limit=limit)
            case "reach":
                return context.reach(arguments[0], call.token)
            case "traffic":
                return traffic_parts().answered(context.traffic, arguments, context)
            case "before_request":
                return context.before_request()
        notes = context.own.notes
        if notes is None:
            return None
        return notes.get(*arguments) if question.name == "recall" else notes.put(*arguments)

    def _reply(
        self, question: Question, value: bytes | None, error: bytes | None, excused: tuple[bool, ...] = ()
    ) -> None:
        context = self._context
        answer = Answer(question.number, value, error, excused, self._left(), context.provider is not None)
        with suppress(ConnectionClosed):  # the child has ended: nobody waits
            self._wire.send(answer)

    def _left(self) -> float:
        return self._time_up() - self._clock.monotonic()

    def call(self, number: int) -> Called:
        """Have the child call what a question is about, and wait for what that comes to.

        Raises:
            ProcessKilled: the attempt has ended.
        """
        called: SimpleQueue[Called | None] = SimpleQueue()
        with self._lock:
            if not self._over:
                self._calls[number] = called
        with suppress(ConnectionClosed):
            if number in self._calls:
                self._wire.send(Call(number, self._left(), self._context.provider is not None))
                message = called.get()
                del self._calls[number]
                if message is not None:
                    return message
        raise killed(self._context)

    def _close(self) -> None:
        """Have nobody wait for the child any more."""
        with self._lock:
            self._over = True
            waiting = tuple(self._calls.values())
        for one in waiting:
            one.put(None)
        if any(thread.is_alive() for thread in self._threads):
            off_loop(self._join)

    def _join(self) -> None:
        """Wait for answers under way: they may have a vote to cast, of which the run's listeners are to hear."""
        until = time.monotonic() + ANSWER_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


class _CallInChild:
    """What a question is about: a call that the child makes, as the driver's layers know it."""

    def __init__(self, conversation: Conversation, number: int) -> None:
        self._conversation = conversation
        self._number = number
        self._result: Any = self
        self.error: BaseException | None = None

    def value(self) -> Any:
        """Have the child make the call, and return what it returned."""
        self._result = unpack(self._called().value or b"")
        return self._result

    def token(self) -> Any:
        """Have the child make the call; what it returned stays there, because only the child needs it."""
        self._called()
        self._result = object()
        return self._result

    def returned(self, found: Any) -> bool:
        """Say whether this is what the call returned."""
        return found is self._result

    def _called(self) -> Called:
        called = self._conversation.call(self._number)
        if called.error is not None:
            self.error = unpack_error(called.error)[0]
            raise self.error
        return called


def _sendable(value: Any) -> bytes:
    try:
        return pack(value)
    except Unsendable as error:  # it was loaded by a scanner in a thread
        raise TypeError(f"shared: the value cannot be sent to a child process: {error}") from None


def killed(context: AttemptContext) -> ProcessKilled:
    """Return the failure of an attempt whose child was killed because nobody waits for it any more."""
    return ProcessKilled(f"{context.scanner}: the scan has ended")


def traffic_parts() -> Any:
    """Return the module that records or replays a child's requests, imported when it is first needed."""
    with IMPORTING:
        from resilient_scan.engines.process import traffic  # noqa: PLC0415 - few fleets need it

    return traffic
