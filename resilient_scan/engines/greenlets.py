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

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Protocol

try:
    from greenlet import getcurrent, greenlet
except ImportError:  # the extra is not installed
    AVAILABLE = False
else:
    AVAILABLE = True

    class _Greenlet(greenlet):
        """One that was made here, and can be left by `suspend`."""

        __slots__ = ()


class Steps(Protocol):
    """Learns of every step on a loop."""

    def begin_step(self, slot: Any, /) -> None:
        """Note that a step of a slot begins."""

    def end_step(self, slot: Any, /) -> None:
        """Note that it has ended."""


class GreenletCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that runs a plain function in a greenlet.

    The greenlet is made by the first step, in which the loop's own greenlet is the current one: it becomes the parent,
    to which every step returns.

    Args:
        work: may call `suspend` and `drive`.
        steps, slot: what learns of every step, and whose they are.
        variables: the context that it runs in; a copy of the task's unless given.
        unstarted: called if it is closed or cancelled before its first step.
    """

    __slots__ = ("_greenlet", "_slot", "_steps", "_unstarted", "_variables", "_work")

    def __init__(
        self,
        work: Callable[[], Any],
        steps: Steps,
        slot: Any,
        variables: Context | None = None,
        unstarted: Callable[[], None] | None = None,
    ) -> None:
        self._work = work
        self._variables = variables
        self._steps = steps
        self._slot = slot
        self._unstarted = unstarted
        self._greenlet: Any = None

    def send(self, _value: Any) -> Any:
        """Make a step."""
        one = self._greenlet
        if one is None:
            one = self._greenlet = _Greenlet(self._work)
            one.gr_context = self._variables or copy_context()  # else it begins with none
        self._steps.begin_step(self._slot)
        try:
            result = one.switch()
        finally:
            self._steps.end_step(self._slot)
        if one.dead:
            raise StopIteration(result)
        return result

    def throw(self, error: Any, *_old_form: Any) -> Any:
        """Make a step that begins with an error."""
        one = self._greenlet
        if one is None:
            self.close()
            raise error
        self._steps.begin_step(self._slot)
        try:
            result = one.throw(error)
        finally:
            self._steps.end_step(self._slot)
        if one.dead:
            raise StopIteration(result)
        return result

    def close(self) -> None:
        """Note that nobody will make another step."""
        if self._greenlet is None:
            self._greenlet = _Greenlet(int)
            if self._unstarted is not None:
                self._unstarted()

    def __await__(self) -> Any:
        """Return itself: the loop makes the steps."""
        return self

    # What `inspect.getcoroutinestate` looks at: anyio asks it before it cancels a task, and httpx stands on anyio.

    @property
    def cr_running(self) -> bool:
        """Whether a step is under way."""
        return self._greenlet is not None and self._greenlet is getcurrent()

    @property
    def cr_suspended(self) -> bool:
        """Whether it waits for its next step, and not for its first."""
        return bool(self._greenlet) and self._greenlet is not getcurrent()

    @property
    def cr_frame(self) -> Any:
        """Where it waits, innermost call first."""
        return None if self._greenlet is None else self._greenlet.gr_frame


def can_suspend() -> bool:
    """Return whether the caller runs in a greenlet of `GreenletCoroutine`."""
    return type(getcurrent()) is _Greenlet


def suspend(future: Any) -> Any:
    """Leave the current greenlet until an asyncio future is done; return or raise its result."""
    waiting, loop = future.__await__(), _loop()
    try:
        while True:
            loop.switch(next(waiting))
    except StopIteration as stop:
        return stop.value


def pause() -> None:
    """Leave the current greenlet for one turn of the loop."""
    _loop().switch(None)


def drive(coroutine: Any) -> Any:
    """Run a coroutine to its end in the current greenlet; return or raise its result."""
    loop = _loop()
    try:
        yielded = coroutine.send(None)
        while True:
            try:
                loop.switch(yielded)
            except BaseException as error:  # a cancel, mostly
                yielded = coroutine.throw(error)
            else:
                yielded = coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def _loop() -> Any:
    """Return the greenlet of the loop, which enters the current one."""
    return getcurrent().parent
