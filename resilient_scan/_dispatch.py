"""Brings events to listeners: at once, or on a thread of each listener's own while a run has a deadline.

Such a run must not wait for a listener that hangs, and no thread can be taken out of a call that hangs. So that call
has to be on another thread from the start. Events reach that thread through a queue whose `put` is one step in C: an
interrupt of the run's thread falls before it or after it (see `Channel`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import call, length_hint
from queue import SimpleQueue
from time import monotonic
from typing import Any

from resilient_scan._log import log as _log
from resilient_scan.events import Event, Listener

MAX_WAITING = 100_000  # events for one listener; one that hangs for good must not take all memory
POLL_INTERVAL = 0.25  # seconds of one wait: a Ctrl-C is seen between two


class Bus:
    """Brings events to listeners; a listener that raises is logged once and breaks nothing."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._dispatchers: list[Dispatcher] = []
        guarded = [(self._guarded(listener), getattr(listener, "events", None)) for listener in listeners]
        self._listeners: dict[type, tuple[_Guarded, ...]] = {
            kind: tuple(notify for notify, wanted in guarded if wanted is None or kind in wanted)
            for kind in Event.__subclasses__()
        }

    def subscribe(self, listener: Listener) -> None:
        """Add a listener, which is notified before all others."""
        notify, wanted = self._guarded(listener), getattr(listener, "events", None)
        for kind in self._listeners:
            if wanted is None or kind in wanted:
                self._listeners[kind] = (notify, *self._listeners[kind])  # an event under way keeps its listeners

    def wants(self, kind: type[Event]) -> bool:
        """Return whether any listener wants events of this class."""
        return bool(self._listeners[kind])

    def sender(self, kind: type[Event], scanner: str = "") -> Callable[[Event], object] | None:
        """Return what sends events of one class about one scanner without a look-up; None if no listener wants them."""
        calls = [notify.direct(kind, scanner) for notify in self._listeners[kind]]
        if len(calls) < 2:
            return calls[0] if calls else None

        def send(event: Event) -> None:
            for take in calls:
                take(event)

        return send

    def send(self, event: Event) -> None:
        """Send an event to all listeners that want it."""
        for notify in self._listeners[type(event)]:
            notify(event)

    def send_all(self, events: Sequence[Event]) -> None:
        """Send several events, in order."""
        for event in events:
            self.send(event)

    def channel(self, kind: type[Event]) -> Channel:
        """Return what sends events of one class to the listeners that want them now, each of them once."""
        return Channel(self._listeners[kind], kind)

    def _guarded(self, listener: Listener) -> _Guarded:
        if getattr(listener, "prompt", False):
            return _Guarded(listener)
        dispatched = _Dispatched(listener)
        self._dispatchers.append(dispatched.dispatcher)
        return dispatched

    def open(self, *, wanted: bool) -> bool:
        """Call listeners on threads of their own until `close` is called, if a run wants that or another one does.

        Returns:
            Whether `close` is to be called. A run that does not want it joins the others all the same: were the threads
            to end before it does, its channels would lead nowhere.
        """
        if not wanted and not any(each.target() for each in self._dispatchers):
            return False
        for each in self._dispatchers:
            each.open()
        return True

    def close(self) -> None:
        """Call listeners at once again, unless another run wants it otherwise."""
        for each in self._dispatchers:
            each.close()

    def flush(self, until: float) -> list[tuple[str, int]]:
        """Wait until all listeners have had what was sent, but not past an instant of real time (monotonic).

        Returns:
            The name of each listener that lacks events, and how many that no earlier call has returned.
        """
        return [(each.name, late) for each in self._dispatchers if (late := each.flush(until))]


Delivery = tuple[Iterator[Listener], Iterator[Any]]
"""An event on its way: the listeners that were not called yet, and the calls that are left."""


class Channel:
    """Sends events so that each listener gets them once, even if interrupts cut the sending short.

    A signal handler may raise at any point of the main thread's Python code. Take a loop that calls the listeners: if
    the interrupt falls between a call and the note that it was made, nobody can say afterwards whether the listener
    has the event. Here `map` takes a listener and calls it. That is one step in C, between whose halves no handler
    runs, so calling `finish` again goes on with the first listener that was not called. One that was interrupted
    itself counts as called.
    """

    __slots__ = ("_guarded", "listeners")

    def __init__(self, guarded: tuple[_Guarded, ...], kind: type[Event]) -> None:
        self._guarded = guarded
        self.listeners: tuple[Listener, ...] = tuple(each.target(kind) for each in guarded)

    def begin(self, event: Event) -> Delivery:
        """Return an event that is still to be sent: `finish` does that."""
        left = iter(self.listeners)
        return left, map(call, left, repeat(event))

    def finish(self, delivery: Delivery) -> None:
        """Call the listeners that were not called yet."""
        left, calls = delivery
        while True:
            try:
                for _ in calls:
                    pass
            except KeyboardInterrupt:
                raise
            except BaseException:  # see `_Guarded`
                called = len(self.listeners) - length_hint(left)
                if not called:  # an interrupt before the first
                    raise
                self._guarded[called - 1].failed()
            else:
                return


class Direct:
    """A listener that has shorter ways for some events than to be called with them."""

    def direct(self, kind: type[Event], scanner: str) -> Callable[[Any], object] | None:
        """Return what takes events of one class about one scanner, at any time and on any thread, or None.

        It must not raise. For the end of scans, one way has to do for all scanners: then `scanner` is empty.
        """
        raise NotImplementedError


class _Guarded:
    """A listener whose failures are logged, the first one at least, and break nothing."""

    __slots__ = ("_logged", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._logged = False

    def __call__(self, event: Event) -> None:
        try:
            self.listener(event)
        except KeyboardInterrupt:  # the user's Ctrl-C, not the listener's fault
            raise
        except BaseException:  # foreign code; even its `sys.exit()` must not cost a run its end
            self.failed()

    def direct(self, kind: type[Event], scanner: str) -> Callable[[Any], object]:
        """Return what is to be called with events of one class about one scanner, now and later.

        It may have a shorter way for them, which cannot raise.
        """
        return self._shortcut(kind, scanner) or self

    def target(self, kind: type[Event]) -> Listener:
        """Return what is to be called with an event now, without a guard."""
        return self._shortcut(kind, "") or self.listener

    def _shortcut(self, kind: type[Event], scanner: str) -> Callable[[Any], object] | None:
        listener: object = self.listener
        return listener.direct(kind, scanner) if isinstance(listener, Direct) else None

    def failed(self) -> None:
        """Log the exception that is being handled, unless one was logged before."""
        if not self._logged:
            self._logged = True
            _log.exception("listener %r failed; this is logged once, its later failures are not", self.listener)


class _Dispatched(_Guarded):
    """A listener that is called on a thread of its own while a run has a deadline."""

    __slots__ = ("dispatcher",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        name = getattr(listener, "__qualname__", type(listener).__qualname__)
        self.dispatcher = Dispatcher(name, super().__call__)

    def __call__(self, event: Event) -> None:
        if not self.dispatcher.take(event):
            super().__call__(event)

    def direct(self, kind: type[Event], scanner: str) -> Callable[[Any], object]:  # noqa: ARG002
        """Return itself: a shorter way would lead past its thread."""
        return self

    def target(self, kind: type[Event]) -> Listener:  # noqa: ARG002
        """Return what takes an event for the listener now, or the listener itself."""
        return self.dispatcher.target() or self.listener


class _Mark(threading.Event):
    """Stands in a queue of events; set when its turn comes."""


class Dispatcher:
    """The thread of one listener; there is one while a run wants it, and until the listener has had all events.

    Args:
        name: the listener's, for people.
        notify: calls the listener and does not raise, except for a Ctrl-C.
    """

    def __init__(self, name: str, notify: Callable[[Any], None]) -> None:
        self.name = name
        self._notify = notify
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self._runs = 0  # that want the thread
        self._thread: threading.Thread | None = None
        self._orders = 0  # in the queue, between the events: marks, and calls to look whether the thread is wanted
        self._busy = False
        self._done = 0  # events that the listener has had here
        self._counted = 0  # events that it has had, or was reported to lack
        self._logged: set[str] = set()

    def open(self) -> None:
        """Have the listener called on its own thread from now on, if the machine has a thread to give."""
        with self._lock:
            self._runs += 1
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="resilient-scan-listener", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return
                self._thread = thread

    def close(self) -> None:
        """Let the thread end, once no other run wants it and the listener has had all events."""
        with self._lock:
            self._runs -= 1
            self._order(None)

    def target(self) -> Callable[[Any], object] | None:
        """Return what takes events for the listener in one step; `None`: it is to be called at once."""
        if self._thread is None:
            return None
        return self._queue.put if self._queue.qsize() < MAX_WAITING else self._lose

    def take(self, event: Any) -> bool:
        """Take an event for the listener; `False`: it is to be called at once."""
        if self._thread is None:
            return False
        with self._lock:  # the thread does not end meanwhile
            target = self.target()
            if target is None:
                return False
            target(event)
            if not self._runs:  # the thread may have looked for the last time
                self._order(None)
        return True

    def _order(self, order: _Mark | None) -> None:
        self._orders += 1
        self._queue.put(order)

    def _lose(self, _event: Any) -> None:
        self._log_once("listener %s hangs with %d events waiting; further ones are lost", MAX_WAITING)

    def _work(self) -> None:
        while True:
            event = self._queue.get()
            if event is None or type(event) is _Mark:
                with self._lock:
                    self._orders -= 1
                    if event is None and not self._runs and self._queue.empty():
                        self._thread = None
                        return
                if event is not None:
                    event.set()
                continue
            self._busy = True
            try:
                self._notify(event)
            except BaseException:  # it raised KeyboardInterrupt; a Ctrl-C comes to the main thread only
                _log.exception("listener %s was interrupted", self.name)
            del event
            self._done += 1
            self._busy = False

    def flush(self, until: float) -> int:
        """Wait until the listener has had what was sent so far, but not past an instant of real time (monotonic).

        Returns:
            How many events it lacks then, without those that an earlier call has returned.
        """
        mark = _Mark()
        with self._lock:
            if self._thread is None or self._thread is threading.current_thread():  # or it runs a runner itself
                return 0
            self._order(mark)
        while not mark.is_set() and (left := until - monotonic()) > 0:
            mark.wait(min(left, POLL_INTERVAL))
        if mark.is_set():
            return 0
        with self._lock:
            done, waiting = self._done, self._queue.qsize() - self._orders + self._busy
            late, self._counted = done + waiting - max(done, self._counted), done + waiting
        if late > 0:
            self._log_once("listener %s is slow: a run ended before it had received %d of its events", late)
        return max(0, late)

    def _log_once(self, message: str, number: int) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(f"{message}; this is logged once", self.name, number)
