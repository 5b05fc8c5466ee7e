"""The child's side: call the scanners that the driver asks for, and ask the driver for what only that one has.

The child's first thread takes messages and calls the scanner. Once a thread of the scanner asks the driver something, a
second thread takes the messages, for the rest of the child's life: the first one is at work in the scanner, and several
threads (`context.map`) may wait for different answers.

`ScanContext` does not know that it is in a child. What it would find next to it in the driver (shared values, sources,
notes, its provider) are stand-ins here that ask.
"""

from __future__ import annotations

import contextvars
import inspect
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final, Self

import msgspec

from resilient_scan._text import know, secrets_of_environment, secrets_of_table
from resilient_scan._trace import Home
from resilient_scan.clock import SystemClock
from resilient_scan.context import ScannerContext
from resilient_scan.engines import forks
from resilient_scan.engines.loop import Loops
from resilient_scan.engines.process import bootstrap
from resilient_scan.engines.process.transfer import (
    ScannerPayload,
    Unsendable,
    pack,
    pack_error,
    settle,
    unpack,
    unpack_error,
)
from resilient_scan.engines.process.variables import restore
from resilient_scan.engines.process.wire import (
    Answer,
    Attempt,
    Call,
    Called,
    ConnectionClosed,
    Define,
    Doubted,
    Ended,
    Item,
    Logged,
    Question,
    Ready,
    ToChild,
    ToDriver,
    Wire,
)
from resilient_scan.errors import ConfigError, InvalidCandidate, ScanCancelled, ScanError, leaves
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid
from resilient_scan.options import Limit
from resilient_scan.scanning import ScannerSpec
from resilient_scan.snapshot import EMPTY, TOOL_LOGS

MAX_CALLS = 8  # blocking calls of coroutines at a time, as in the driver
_FINITE: Final = (list, tuple, set, frozenset)
_AS_IT_IS: Final = Maker(object, "")  # the driver makes the candidates


def serve(connection: Connection) -> None:
    """Serve until the driver closes its end of the pipe."""
    driver = _Driver(Wire(connection))
    known: dict[int, _Known] = {}
    with suppress(ConnectionClosed):
        while True:
            match driver.next():
                case Define() as message:
                    driver.send(_defined(message, known))
                case Attempt() as message:
                    _Call(known[message.scanner], message, driver).run()


class _Known(msgspec.Struct, frozen=True):
    """A scanner that this child knows.

    Attributes:
        spec: its normal form here.
        settings: what it finds in `context.settings`.
        home: where its own code is.
        traffic: what stands between it and the network: the kind, and its folder.
    """

    spec: ScannerSpec
    settings: Mapping[str, Any]
    home: Home
    traffic: tuple[str, str]


def _defined(message: Define, known: dict[int, _Known]) -> Ready:
    payload: ScannerPayload = unpack(message.payload)
    try:
        spec = settle(payload)
        settings: dict[str, Any] = unpack(payload.settings)
    except BaseException as error:  # its module is foreign code
        return Ready(pack_error(error, Home.of(payload.home)))
    know(secrets_of_environment(os.environ))  # what fails here is described here
    know(secrets_of_table(settings))
    known[message.scanner] = _Known(spec, settings, Home.of(payload.home), payload.traffic)
    return Ready(None)


class _Driver:
    """The driver, as this child's threads talk to it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._reads = False  # whether the second thread takes the messages
        self._tasks: SimpleQueue[ToChild] = SimpleQueue()
        self._waiting: dict[int, SimpleQueue[Call | Answer]] = {}

    def next(self) -> ToChild:
        """Wait for what to do next; on the first thread.

        Raises:
            ConnectionClosed: the driver is gone.
        """
        if not self._reads:
            return self._wire.from_driver()
        return self._tasks.get()

    def send(self, message: ToDriver) -> None:
        """Send what is not part of an attempt, or ends it."""
        self._wire.send(message)

    def tell(self, message: ToDriver, context: _Context) -> None:
        """Send a message of an attempt, unless that has ended: the next one's answer would get it."""
        with self._lock:
            if not context.over:
                self._wire.send(message)

    def close(self, context: _Context) -> None:
        """Take no more messages of an attempt."""
        with self._lock:
            context.over = True
        context.cancel()

    def ask(self, context: _Context, name: str, *arguments: Any, call: Callable[[], Any] | None = None) -> Any:
        """Return the driver's answer, or raise it.

        Args:
            context: of the attempt.
            name: what is asked for.
            arguments: of that; they are pickled.
            call: what the driver may want to be called, on this thread: that one's value or error may be the answer.

        Raises:
            TypeError: an argument cannot be sent.
            ScanCancelled: the attempt has ended.
        """
        number, answers = next(self._numbers), SimpleQueue[Call | Answer]()
        try:
            data = pack(arguments)
        except Unsendable as error:
            raise TypeError(f"{name}: {error}") from None
        with self._lock:
            if context.over:  # and the first thread may be about to take the next message
                raise ScanCancelled(f"{context.scanner}: the scan has ended")
            self._start_reading()
            self._waiting[number] = answers
            self._wire.send(Question(number, name, data, context.answered))
        called = _Outcome()
        try:
            while isinstance(message := answers.get(), Call):
                context.adjust(message)
                called = _outcome(call)
                self._wire.send(called.report(number, context, wanted=name == "shared"))
        finally:
            del self._waiting[number]
        context.adjust(message)
        return called.answer(message)

    def _start_reading(self) -> None:
        """Have the second thread take the messages from now on; while the first is not about to."""
        if not self._reads:
            threading.Thread(target=self._read, name="resilient-scan-answers", daemon=True).start()
            self._reads = True

    def _read(self) -> None:
        try:
            while True:
                message = self._wire.from_driver()
                if isinstance(message, Call | Answer):
                    waiting = self._waiting.get(message.question)
                    if waiting is not None:
                        waiting.put(message)
                else:
                    self._tasks.put(message)
        except ConnectionClosed:
            os._exit(0)  # the driver is gone, and the first thread may hang in a scanner


class _Outcome:
    """What a question's call came to, kept here: most of it is of no use to the driver."""

    value: Any = None
    error: BaseException | None = None

    def report(self, question: int, context: _Context, *, wanted: bool) -> Called:
        """Return what the driver hears of it."""
        data = None
        if self.error is None and wanted:
            try:
                data = pack(self.value)
            except Unsendable as error:
                self.error = TypeError(f"shared: the value cannot be sent to other scanners: {error}")
        failed = None if self.error is None else pack_error(self.error, context.home)
        return Called(question, data, failed, context.answered)

    def answer(self, message: Answer) -> Any:
        """Return or raise the answer, where it is the call's own the very object."""
        if message.error is None:
            return self.value if message.value is None else unpack(message.value)
        if message.error:
            raise unpack_error(message.error)[0]
        own, self.error = self.error, None  # else it and this object keep each other alive
        if own is None:
            raise ScanCancelled("the scan has ended")
        for leaf, excused in zip(leaves(own), message.excused, strict=False):
            if excused and isinstance(leaf, ScanError):
                leaf.excused = True
        raise own


def _outcome(call: Callable[[], Any] | None) -> _Outcome:
    outcome = _Outcome()
    try:
        outcome.value = None if call is None else call()
    except BaseException as error:
        outcome.error = error
    return outcome


# the context


class _Context(AttemptContext):
    """The context of an attempt, in the child; what it finds, logs and doubts is sent at once."""

    over: bool = False
    home: Home
    _driver: _Driver
    _asked: _Asked

    @classmethod
    def of(cls, known: _Known, message: Attempt, driver: _Driver) -> _Context:
        """Make the context of an attempt."""
        asked = _Asked(driver)
        clock = _Clock(message.clock, message.frozen)
        self = cls.__new__(cls)
        traffic = None
        if known.traffic[0]:
            from resilient_scan.engines.process.traffic import stand_in  # noqa: PLC0415 - few fleets need it

            traffic = stand_in(*known.traffic, asked.question, clock.set)
        own = ScannerContext(known.spec.name, known.settings, clock, asked, traffic, asked, known.home, _Notes(asked))
        self._set(own, EMPTY)
        asked.context, self._driver = self, driver
        self._asked = asked
        self.home = known.home
        self.run_id, self.attempt = message.run_id, message.number
        now = clock.monotonic()
        self.deadline, self.ends = now + message.deadline, now + message.ends
        self.provider = asked if message.asks_provider else None
        self.found = _Sending(lambda item: self.tell(Item(_candidate(item))))
        self._logs = _Sending(lambda entry: self.tell(Logged(_entry(entry))))
        return self

    def begin(self, state: dict[str, Any]) -> dict[str, Any]:
        """Take the state, and have what is added to its log sent."""
        self._state = state
        logs = state.get(TOOL_LOGS)
        if isinstance(logs, list):
            self._known_logs = tuple(logs)
            state[TOOL_LOGS] = _Sending(lambda entry: self.tell(Logged(_entry(entry))), logs)
        return state

    def tell(self, message: ToDriver) -> None:
        """Send a message of this attempt."""
        self._driver.tell(message, self)

    def doubt(self, reason: str, *, kind: str = "other") -> None:
        """Mark this answer as suspicious."""
        super().doubt(reason, kind=kind)
        self.tell(Doubted(self.doubted or ""))

    def adjust(self, message: Call | Answer) -> None:
        """Take over how much time is left, and whether requests need leave, as the driver has it now."""
        self.ends = self._clock.monotonic() + message.ends
        self.provider = self._asked if message.asks_provider else None


class _Clock(SystemClock):
    """The machine's clocks, with the runner's time of day."""

    def __init__(self, ahead: float, frozen: float | None) -> None:
        self._ahead = ahead
        self._frozen = frozen
        self.time = self._time

    def _time(self) -> float:
        return SystemClock.time() + self._ahead if self._frozen is None else self._frozen

    def set(self, now: float | None) -> None:
        """Have the time of day stand still; `None` leaves it as it is."""
        self._frozen = self._frozen if now is None else now


class _Asked:
    """What `ScanContext` finds next to it: shared values, sources and a provider. All of them are the driver's."""

    context: _Context

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def get(self, key: Any, load: Callable[[], Any], ttl: float, _context: Any, /) -> Any:
        """Return a shared value."""
        return self._driver.ask(self.context, "shared", key, ttl, call=load)

    def ask(
        self, source: str, call: Callable[[], Any], seconds: float, _context: Any, limit: Limit | None = None, /
    ) -> Any:
        """Return what `call` returns, behind the breaker of a source."""
        return self._driver.ask(self.context, "guarded", source, seconds, limit, call=call)

    def reach(self, place: str, call: Callable[[], Any], _context: Any, /) -> Any:
        """Return what `call` returns, behind the breaker of a host."""
        return self._driver.ask(self.context, "reach", place, call=call)

    def prepaid_request(self, _context: Any, /) -> bool:
        """Wait for the turn of a request."""
        self._driver.ask(self.context, "before_request")
        return True

    def question(self, name: str, *arguments: Any) -> Any:
        """Return the driver's answer."""
        return self._driver.ask(self.context, name, *arguments)


class _Notes:
    """What the scanner remembers from one scan to the next."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked

    def get(self, key: str, /) -> bytes | None:
        """Return what was put under `key`, or `None`."""
        found: bytes | None = self._asked.question("recall", key)
        return found

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for `seconds`."""
        self._asked.question("remember", key, value, seconds)


class _Sending(list[Any]):
    """A list that sends what is added to it."""

    def __init__(self, send: Callable[[Any], None], items: list[Any] | tuple[()] = ()) -> None:
        super().__init__(items)
        self._send = send

    def append(self, item: Any, /) -> None:
        """Add an item."""
        self._send(item)
        super().append(item)

    def extend(self, items: Any, /) -> None:
        """Add items."""
        for item in items:
            self.append(item)

    def __iadd__(self, items: Any, /) -> Self:  # type: ignore[misc]
        self.extend(items)
        return self

    def insert(self, index: Any, item: Any, /) -> None:
        """Insert an item."""
        self._send(item)
        super().insert(index, item)

    def __reduce_ex__(self, _protocol: Any, /) -> tuple[Any, ...]:
        return list, (list(self),)


def _candidate(item: Any) -> bytes:
    try:
        return pack(item)
    except Unsendable as error:
        raise InvalidCandidate(f"a candidate cannot be sent from its process: {error}") from None


def _entry(entry: Any) -> bytes:
    return pack(_sendable(entry))


def _sendable(entry: Any) -> Any:
    """Return a log entry with a text in the place of what cannot be sent."""
    try:
        pack(entry)
    except Unsendable:
        if type(entry) is dict:
            return {key: _sendable(value) for key, value in entry.items()}
        try:
            return f"{entry!r:.200}"
        except Exception:  # foreign code
            return f"a {type(entry).__qualname__}"
    return entry


# an attempt


class _Call:
    """One call of a scanner."""

    def __init__(self, known: _Known, message: Attempt, driver: _Driver) -> None:
        self._known = known
        self._message = message
        self._driver = driver
        self._context = _Context.of(known, message, driver)
        self._threads = _Threads()
        self._list: bytes | None = None

    def run(self) -> None:
        """Call the scanner and send how that ended."""
        context, error = self._context, None
        try:
            if self._message.memory is not None:
                bootstrap.limit_memory(self._message.memory)
            try:
                contextvars.copy_context().run(self._scan)
            finally:
                if self._message.memory is not None:
                    bootstrap.limit_memory(None)
        except BaseException as failure:
            error = pack_error(failure, self._known.home)
        logs = context.tool_logs()
        self._driver.close(context)
        ended = Ended(
            self._list,
            error,
            pack([_sendable(entry) for entry in logs]) if logs else None,
            context.dropped,
            context.invalid,
            context.answered,
            self._threads.close(),
        )
        self._driver.send(ended)

    def _scan(self) -> None:
        before = forks.depth
        restore(self._message.variables)
        call, own = self._call, self._context.own
        try:
            (call if own.traffic is None else own.traffic.guarded(call))(self._context)
        finally:
            if forks.depth != before:
                forks.end_child(own.scanner)

    def _call(self, context: _Context) -> None:
        try:
            state = unpack(self._message.state)
        except Exception as error:  # of a module that is not here, for example
            raise ConfigError(f"the state cannot be read in a child process: {error}") from error
        answer = self._known.spec.call(context.begin(state), context)
        if inspect.isawaitable(answer) or isinstance(answer, AsyncIterator):
            answer = Loops().finish(answer, _AS_IT_IS, context, self._threads)
        if type(answer) in _FINITE:
            self._keep(list(answer))
        else:
            keep_valid(answer, _AS_IT_IS, context)

    def _keep(self, items: list[Any]) -> None:
        """Send a whole list at once with the end; if an item cannot be sent, one by one."""
        if items:
            try:
                self._list = pack(items)
            except Unsendable:
                keep_valid(items, _AS_IT_IS, self._context)


class _Threads:
    """The blocking calls of the coroutines of one attempt, each on a thread."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._futures: list[Future[Any]] = []

    def admit(self, context: AttemptContext, /) -> None:
        """Let every attempt pass: threads that hang end with their child."""

    def submit(self, call: Callable[[], Any], context: AttemptContext, /) -> Future[Any]:
        """Call `call` on a thread, in a copy of the caller's context variables."""
        if context.traffic is not None:
            call = context.traffic.carried(call)
        self._pool = self._pool or ThreadPoolExecutor(MAX_CALLS, "resilient-scan-call")
        self._futures = [future for future in self._futures if not future.done()]
        future = self._pool.submit(contextvars.copy_context().run, call)
        self._futures.append(future)
        return future

    def close(self) -> bool:
        """Let the threads end; return whether one still has something to do."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return any(not future.done() for future in self._futures)
