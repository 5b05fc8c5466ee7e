"""Synchronous code and coroutines that take turns on one event loop, by greenlets (extra `async`).

A greenlet has a stack of its own and can be left in the middle of a call. So the layers around a scanner, which are
plain functions, run on an event loop's thread as they are. Where one of them waits, its greenlet is left and the loop
goes on; when the wait has ended, the greenlet is entered again.

    the loop's task: enters the greenlet <- - - a future to wait for - - - `suspend`, or an await in the coroutine
                     waits for that future - - its result, or an error - -> goes on in the greenlet

Every task on the loop runs in a greenlet of its own, those that a scanner starts included: a scanner may call
`context.sleep` anywhere in its coroutines. When the task has ended, the next one gets the greenlet: to make one takes
10 µs, because the interpreter asks the system for 16 kB for its frames, and returns them with it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import cache
from sys import getrefcount
from typing import Any

import msgspec

try:
    from greenlet import GreenletExit, getcurrent, greenlet
except ImportError:  # the extra is not installed
    AVAILABLE = False

    class greenlet:  # type: ignore[no-redef] # noqa: N801
        """Lets this file be imported all the same."""
else:
    AVAILABLE = True


class PooledGreenlet(greenlet):
    """Does one piece of work after the other.

    Attributes:
        work: what it is to call; `None` once that has returned, or raised.
        result, failure: how it did.
        yielded: what the task is to wait for, once the greenlet was left.
    """

    __slots__ = ("failure", "result", "work", "yielded")
    work: GreenletCoroutine | None
    failure: BaseException | None
    result: Any
    yielded: Any

    def __init__(self) -> None:
        self.work = self.failure = self.result = self.yielded = None

    @staticmethod
    def run() -> None:
        """Work until it is given up. Static: a bound method would be one more object for the garbage collector."""
        while True:
            this: Any = getcurrent()
            try:
                this.result = this.work()
            except GreenletExit:  # nobody will enter it again
                this.work = None
                return
            except BaseException as error:
                this.failure = error
            this.work = this.yielded = None
            thread = this.parent  # where it was made: every step returns there
            del this  # what a greenlet's own frames refer to is never freed
            thread.switch()


class GreenletPool:
    """The greenlets of one thread that have nothing to do; for that thread only.

    Args:
        most: to be kept, each with a stack of some 8 kB.
    """

    def __init__(self, most: int) -> None:
        self.most: int = most
        self.idle: list[PooledGreenlet] = []
        self._usual = _usual_references()

    def take(self, work: GreenletCoroutine, variables: Context) -> PooledGreenlet:
        """Return one that does `work` once it is entered, in a context; call it in the thread's own greenlet."""
        one = self.idle.pop() if self.idle else PooledGreenlet()
        one.work, one.gr_context = work, variables
        return one

    def give_back(self, one: PooledGreenlet) -> None:
        """Take one back whose work has ended, or end it.

        What has made greenlets of its own may have left one behind. That one has ours as its parent, and so a reference
        to it. Were ours used again, then the other one, entered by a callback, would end into somebody else's work.
        """
        one.gr_context = None
        if one.dead:
            return
        if getrefcount(one) <= self._usual and len(self.idle) < self.most:
            self.idle.append(one)
        elif one.parent is getcurrent():
            one.throw()  # a greenlet whose parent it is ends into the thread's own from now on


class GreenletCoroutine(msgspec.Struct, eq=False, gc=False):
    """A coroutine that runs plain code in a greenlet.

    A subclass says what runs: `__call__` may call `suspend` and `drive`. Thousands are under way at a time, and the
    garbage collector looks at none of them: who ends one cuts what leads back to it.

    Attributes:
        loop: has the `greenlets`, and learns when a step begins and ends (`begin_step`, `end_step`).
        slot: whose the steps are; `None`: its own.
        variables: the context that it will run in; `None`: a copy of the task's.
    """

    loop: Any
    slot: Any = None
    variables: Context | None = None
    _greenlet: PooledGreenlet | None = None
    _begun: bool = False

    def __call__(self) -> Any:
        """Do the work."""
        raise NotImplementedError

    def unstarted(self) -> None:
        """Note that it will never be called: it was closed or cancelled before its first step."""

    def send(self, _value: Any) -> Any:
        """Make a step."""
        slot, loop, entered = self.slot, self.loop, self._greenlet
        if slot is None:
            slot = self
        if entered is None:
            entered = self._begin()
        loop.begin_step(slot)
        try:
            entered.switch()
        finally:
            loop.end_step(slot)
        if entered.work is not None:
            return entered.yielded
        del entered  # else the traceback of an error would keep it
        return self._ended()

    def throw(self, error: Any = None, _value: Any = None, _traceback: Any = None, /) -> Any:
        """Make a step that begins with an error."""
        slot, loop, entered = self.slot, self.loop, self._greenlet
        if slot is None:
            slot = self
        if entered is None:
            self.close()
            raise error
        loop.begin_step(slot)
        try:
            entered.throw(error)
        finally:
            loop.end_step(slot)
        if entered.work is not None:
            return entered.yielded
        del entered  # else the traceback of an error would keep it
        return self._ended()

    def _begin(self) -> PooledGreenlet:
        """Prepare the first step."""
        if self._begun:
            raise RuntimeError("it has ended, and cannot be awaited again")
        pool: GreenletPool = self.loop.greenlets
        self._greenlet = entered = pool.take(self, copy_context() if self.variables is None else self.variables)
        self._begun, self.variables = True, None
        return entered

    def _ended(self) -> Any:
        """Raise its error, or its result as coroutines do; its greenlet is free for another one."""
        entered: Any = self._greenlet
        result, error = entered.result, entered.failure
        entered.result = entered.failure = self._greenlet = None
        self.loop.greenlets.give_back(entered)
        del entered
        if error is None:
            raise StopIteration(result)
        traceback = error.__traceback__
        try:
            raise error.with_traceback(None if traceback is None else traceback.tb_next)  # without the greenlet's frame
        finally:
            del error, traceback  # they refer to this frame: a circle

    def close(self) -> None:
        """Note that nobody will make another step."""
        if not self._begun:
            self._begun = True
            self.variables = None
            self.unstarted()

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
        return self._greenlet is not None and self._greenlet is not getcurrent()

    @property
    def cr_frame(self) -> Any:
        """Where it waits, innermost call first."""
        return None if self._greenlet is None else self._greenlet.gr_frame


Coroutine.register(GreenletCoroutine)


class _Nothing(GreenletCoroutine, eq=False):
    def __call__(self) -> None:
        pass


class _Counting(GreenletPool):
    """Counts the references to the greenlet that is given back; it is its own loop."""

    def __init__(self) -> None:
        self.idle = []
        self.found = 0
        self.greenlets = self

    def give_back(self, one: PooledGreenlet) -> None:
        one.gr_context = None
        self.found = getrefcount(one)

    def begin_step(self, _slot: Any) -> None:
        pass

    def end_step(self, _slot: Any) -> None:
        pass


@cache
def _usual_references() -> int:
    """Return how many references to a greenlet there are as it is given back, if nobody else has one."""
    counting = _Counting()
    with suppress(StopIteration):
        _Nothing(counting, variables=Context()).send(None)
    return counting.found


def can_suspend() -> bool:
    """Return whether the caller runs in a `GreenletCoroutine`."""
    return isinstance(getcurrent(), PooledGreenlet)


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
    finally:
        del here  # else the traceback of an error would keep it: see `GreenletPool.give_back`


def pause() -> None:
    """Leave the current greenlet for one turn of the loop."""
    here: Any = getcurrent()
    here.yielded = None
    loop = here.parent
    del here
    loop.switch()


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
    finally:
        del here
