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
from contextvars import copy_context
from typing import Any

try:
    from greenlet import getcurrent, greenlet
except ImportError:  # the extra is not installed
    AVAILABLE = False
else:
    AVAILABLE = True

    class _Greenlet(greenlet):
        """One that was made here, and can be left by `suspend`."""

        __slots__ = ()


class GreenletCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that runs a plain function in a greenlet.

    The greenlet is made by the first step, in which the loop's own greenlet is the current one: it becomes the parent,
    to which every step returns.

    Args:
        work: may call `suspend` and `drive`.
        enter, leave: called around every step.
        unstarted: called if it is closed or cancelled before its first step.
    """

    __slots__ = ("_enter", "_greenlet", "_leave", "_unstarted", "_work")

    def __init__(
        self,
        work: Callable[[], Any],
        enter: Callable[[], None],
        leave: Callable[[], None],
        unstarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self._enter = enter
        self._leave = leave
        self._unstarted = unstarted
        self._greenlet: Any = None

    def send(self, _value: Any) -> Any:
        """Make a step."""
        one = self._greenlet
        if one is None:
            one = self._greenlet = _Greenlet(self._work)
            one.gr_context = copy_context()  # the task's; without it, a greenlet begins with none
        self._enter()
        try:
            result = one.switch()
        finally:
            self._leave()
        if one.dead:
            raise StopIteration(result)
        return result

    def throw(self, error: Any, *_old_form: Any) -> Any:
        """Make a step that begins with an error."""
        one = self._greenlet
        if one is None:
            self.close()
            raise error
        self._enter()
        try:
            result = one.throw(error)
        finally:
            self._leave()
        if one.dead:
            raise StopIteration(result)
        return result

    def close(self) -> None:
        """Note that nobody will make another step."""
        if self._greenlet is None:
            self._greenlet = _Greenlet(int)
            self._unstarted()

    def __await__(self) -> Any:
        """Return itself: the loop makes the steps."""
        return self


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


def drive(coroutine: Any) -> Any:
    """Run a coroutine to its end in the current greenlet; return or raise its result."""
    leave = _loop().switch
    try:
        yielded = coroutine.send(None)
        while True:
            try:
                leave(yielded)
            except BaseException as error:  # a cancel, mostly
                yielded = coroutine.throw(error)
            else:
                yielded = coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def _loop() -> Any:
    """Return the greenlet of the loop, which enters the current one."""
    return getcurrent().parent
