"""Synchronous code and coroutines that take turns on one event loop, by greenlets (extra `async`).

A greenlet has a stack of its own and can be left in the middle of a call. So the layers around a scanner, which are
plain functions, run on an event loop's thread as they are. Where one of them waits, its greenlet is left and the loop
goes on; when the wait has ended, the greenlet is entered again.

    the loop's task: enters the greenlet <- - - a future to wait for - - - `suspend`, or an await in the coroutine
                     waits for that future - - its result, or an error - -> goes on in the greenlet

Every task on the loop runs in a greenlet of its own, those that a scanner starts included: a scanner may call
`context.sleep` anywhere in its coroutines.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextvars import Context, copy_context
from typing import Any, Protocol

try:
    from greenlet import getcurrent, greenlet
except ImportError:  # the extra is not installed
    AVAILABLE = False

    class greenlet:  # type: ignore[no-redef] # noqa: N801
        """Lets this file be imported all the same."""
else:
    AVAILABLE = True


class Steps(Protocol):
    """Learns of every step on a loop."""

    def begin_step(self, slot: Any, /) -> None:
        """Note that a step of a slot begins."""

    def end_step(self, slot: Any, /) -> None:
        """Note that it has ended."""


class GreenletCoroutine(greenlet, Coroutine[Any, Any, Any]):
    """A coroutine that runs plain code in a greenlet, and is that greenlet.

    It is one object, where a coroutine that has a greenlet that has a function would be three: thousands are under way
    at a time, and the garbage collector looks at each of them. A subclass says what runs: `__call__` may call `suspend`
    and `drive`. Beware: a greenlet is true only while it is under way, so compare one with `None`. And one that is left
    for good, because its loop is, is never freed: its own frames refer to it.

    Args:
        loop: learns of every step.
        slot: whose the steps are; its own unless given.
        variables: the context that it runs in; a copy of the task's unless given.

    Attributes:
        yielded: what its task is to wait for, once it was left.
    """

    __slots__ = ("_begun", "_slot", "_variables", "loop", "yielded")
    loop: Any
    yielded: Any

    def __init__(self, loop: Steps, slot: Any = None, variables: Context | None = None) -> None:
        self.loop = loop
        self._slot = slot
        self._variables = variables
        self._begun = False

    def __call__(self) -> Any:
        """Do the work."""
        raise NotImplementedError

    @property  # type: ignore[misc] # it is never set
    def run(self) -> Any:
        """The greenlet calls the object itself: a bound method would be one more object."""
        return self

    def unstarted(self) -> None:
        """Note that it will never be called: it was closed or cancelled before its first step."""

    def send(self, _value: Any) -> Any:
        """Make a step."""
        slot, loop = self._slot, self.loop
        if slot is None:
            slot = self
        if not self._begun:
            self._begin()
        loop.begin_step(slot)
        try:
            result = self.switch()
        except BaseException:
            self.gr_context = self.yielded = None  # see `_ended`
            raise
        finally:
            loop.end_step(slot)
        if self.dead:
            return self._ended(result)
        return self.yielded

    def throw(self, error: Any = None, _value: Any = None, _traceback: Any = None, /) -> Any:
        """Make a step that begins with an error."""
        slot, loop = self._slot, self.loop
        if slot is None:
            slot = self
        if not self._begun:
            self.close()
            raise error
        loop.begin_step(slot)
        try:
            result = super().throw(error)
        except BaseException:
            self.gr_context = self.yielded = None
            raise
        finally:
            loop.end_step(slot)
        if self.dead:
            return self._ended(result)
        return self.yielded

    def _begin(self) -> None:
        """Prepare the first step: the loop's own greenlet is the current one, to which every step returns."""
        self._begun = True
        self.parent = getcurrent()
        self.gr_context = copy_context() if self._variables is None else self._variables  # else it begins with none
        self._variables = None

    def _ended(self, result: Any) -> Any:
        self.gr_context = self.yielded = None  # the context may refer to it, by way of its slot
        raise StopIteration(result)

    def close(self) -> None:
        """Note that nobody will make another step."""
        if not self._begun:
            self._begun = True
            self._variables = None
            self.unstarted()

    def __await__(self) -> Any:
        """Return itself: the loop makes the steps."""
        return self

    # What `inspect.getcoroutinestate` looks at: anyio asks it before it cancels a task, and httpx stands on anyio.

    @property
    def cr_running(self) -> bool:
        """Whether a step is under way."""
        return self is getcurrent()

    @property
    def cr_suspended(self) -> bool:
        """Whether it waits for its next step, and not for its first."""
        return bool(self) and self is not getcurrent()

    @property
    def cr_frame(self) -> Any:
        """Where it waits, innermost call first."""
        return self.gr_frame


def can_suspend() -> bool:
    """Return whether the caller runs in a `GreenletCoroutine`."""
    return isinstance(getcurrent(), GreenletCoroutine)


def suspend(future: Any) -> Any:
    """Leave the current greenlet until an asyncio future is done; return or raise its result."""
    waiting: Any = future.__await__()
    here: Any = getcurrent()
    try:
        while True:
            here.yielded = next(waiting)
            here.parent.switch()
    except StopIteration as stop:
        return stop.value


def pause() -> None:
    """Leave the current greenlet for one turn of the loop."""
    here: Any = getcurrent()
    here.yielded = None
    here.parent.switch()


def drive(coroutine: Any) -> Any:
    """Run a coroutine to its end in the current greenlet; return or raise its result."""
    here: Any = getcurrent()
    loop = here.parent  # and what is waited for is put where it is: an argument would be an object of its own
    try:
        here.yielded = coroutine.send(None)
        while True:
            try:
                loop.switch()
            except BaseException as error:  # a cancel, mostly
                here.yielded = coroutine.throw(error)
            else:
                here.yielded = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
