"""Coroutines that run plain code in greenlets, and the greenlets that do one after the other."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

import pytest
from greenlet import GreenletExit, getcurrent, greenlet

from resilient_scan.engines.greenlets import GreenletCoroutine, GreenletPool, can_suspend, drive, pause

colour: ContextVar[str] = ContextVar("colour", default="none")


class Loop:
    """Knows whose step is under way."""

    def __init__(self, most: int = 10) -> None:
        self.greenlets = GreenletPool(most)
        self.steps: list[tuple[str, Any]] = []

    def begin_step(self, slot: Any) -> None:
        self.steps.append(("begin", slot))

    def end_step(self, slot: Any) -> None:
        self.steps.append(("end", slot))


class Work(GreenletCoroutine, eq=False, gc=True, weakref=True):
    call: Callable[[], Any] = id
    never: bool = False

    def __call__(self) -> Any:
        return self.call()

    def unstarted(self) -> None:
        self.never = True


def end(work: Work) -> Any:
    """Make the last step, and return the result."""
    with pytest.raises(StopIteration) as stopped:
        work.send(None)
    return stopped.value.value


def once() -> Any:
    pause()
    return id(getcurrent())


def test_one_greenlet_does_one_piece_of_work_after_the_other() -> None:
    loop = Loop()
    used = []
    for _ in range(3):
        work = Work(loop, variables=Context(), call=once)
        assert work.send(None) is None
        used.append(end(work))
        assert loop.steps == [("begin", work), ("end", work)] * 2
        loop.steps.clear()
    assert used == [id(loop.greenlets.idle[0])] * 3
    assert len(loop.greenlets.idle) == 1
    assert not can_suspend()


def test_those_under_way_at_a_time_have_one_each_and_no_more_are_kept_than_wanted() -> None:
    loop = Loop(most=1)
    one, other = Work(loop, variables=Context(), call=once), Work(loop, variables=Context(), call=once)
    one.send(None)
    other.send(None)
    assert end(one) != end(other)
    assert len(loop.greenlets.idle) == 1


def test_what_a_work_raises_is_raised_where_its_step_is_made() -> None:
    def fail() -> None:
        raise ValueError("no data")

    loop = Loop()
    with pytest.raises(ValueError, match="no data") as raised:
        Work(loop, variables=Context(), call=fail).send(None)
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[-2:] == ["__call__", "fail"]
    assert "run" not in names, "the greenlet's own frame lives on, and would keep what it does next"
    assert end(Work(loop, variables=Context(), call=lambda: 7)) == 7


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GreenletExit])
def test_whatever_ends_a_work_the_next_one_is_done(ending: type[BaseException]) -> None:
    def leave() -> None:
        raise ending

    loop = Loop()
    with pytest.raises(StopIteration if ending is GreenletExit else ending):
        Work(loop, variables=Context(), call=leave).send(None)
    assert len(loop.greenlets.idle) == (0 if ending is GreenletExit else 1)
    assert end(Work(loop, variables=Context(), call=lambda: 7)) == 7


def test_an_error_reaches_the_place_where_a_work_waits() -> None:
    def patient() -> str:
        try:
            pause()
        except TimeoutError as error:
            return str(error)
        return "on time"

    loop = Loop()
    work = Work(loop, variables=Context(), call=patient)
    work.send(None)
    with pytest.raises(StopIteration) as stopped:
        work.throw(TimeoutError("late"))
    assert stopped.value.value == "late"

    work = Work(loop, variables=Context(), call=once)
    work.send(None)
    with pytest.raises(TimeoutError, match="late"):
        work.throw(TimeoutError("late"))
    assert len(loop.greenlets.idle) == 1


def test_one_that_goes_on_after_an_error_is_left_again() -> None:
    async def stubborn() -> int:
        class Pause:
            def __await__(self) -> Any:
                try:
                    yield "first"
                except TimeoutError:
                    yield "second"

        await Pause()
        return 7

    work = Work(Loop(), variables=Context(), call=lambda: drive(stubborn()))
    assert work.send(None) == "first"
    assert work.throw(TimeoutError()) == "second"
    assert end(work) == 7


def test_each_has_context_variables_of_its_own() -> None:
    def paint() -> str:
        before = colour.get()
        colour.set("red")
        pause()
        return f"{before}, {colour.get()}"

    loop = Loop()
    for _ in range(2):
        work = Work(loop, variables=Context(), call=paint)
        work.send(None)
        assert colour.get() == "none"
        assert end(work) == "none, red"


@pytest.mark.parametrize("how", ["close", "throw"])
def test_what_never_began_learns_of_it_and_takes_no_greenlet(how: str) -> None:
    loop = Loop()
    work = Work(loop, variables=Context(), call=once)
    if how == "close":
        work.close()
        work.close()
    else:
        with pytest.raises(TimeoutError):
            work.throw(TimeoutError())
    assert work.never
    assert (loop.steps, loop.greenlets.idle) == ([], [])


def test_what_has_ended_is_not_done_again() -> None:
    done: list[int] = []
    work = Work(Loop(), variables=Context(), call=lambda: done.append(1))
    end(work)
    with pytest.raises(RuntimeError, match="cannot be awaited again"):
        work.send(None)
    with pytest.raises(TimeoutError):
        work.throw(TimeoutError())
    assert done == [1]


def test_it_says_where_it_is() -> None:
    seen: list[bool] = []
    loop = Loop()

    def look() -> None:
        seen.append(work.cr_running)
        pause()

    work = Work(loop, variables=Context(), call=look)
    assert (work.cr_running, work.cr_suspended, work.cr_frame) == (False, False, None)
    work.send(None)
    assert seen == [True]
    assert (work.cr_running, work.cr_suspended) == (False, True)
    assert work.cr_frame is not None
    end(work)
    assert (work.cr_running, work.cr_suspended, work.cr_frame) == (False, False, None)


def test_nothing_of_a_work_is_kept_and_a_greenlet_is_freed_once_nobody_wants_it() -> None:
    class Thing:
        pass

    def fail() -> None:
        pause()
        kept = Thing()
        things.append(weakref.ref(kept))
        raise ValueError(kept)

    things: list[weakref.ref[Any]] = []
    loop = Loop()
    gc.disable()  # what is freed by a collection only would not be missed
    try:
        work = Work(loop, variables=Context(), call=fail)
        work.send(None)
        things.append(weakref.ref(work))
        with pytest.raises(ValueError, match="Thing"):
            work.send(None)
        del work
        loop.steps.clear()
        assert [thing() for thing in things] == [None, None]
        idle = weakref.ref(loop.greenlets.idle[0])
        loop.greenlets.idle.clear()
        assert idle() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("started", [True, False])
def test_a_greenlet_that_a_work_leaves_behind_ends_into_nobody_elses(started: bool) -> None:
    """Its parent is the work's greenlet. Used again, that one was given what the other raised."""
    left: list[Any] = []

    def fail() -> None:
        if started:
            getcurrent().parent.switch()
        raise ValueError("of nobody's business")

    def leave() -> None:
        left.append(greenlet(fail))
        if started:
            left[0].switch()

    loop = Loop()
    end(Work(loop, variables=Context(), call=leave))
    assert loop.greenlets.idle == []
    with pytest.raises(ValueError, match="nobody's business"):  # here, where it was entered, and not where it was made
        left[0].switch()
    assert end(Work(loop, variables=Context(), call=lambda: 7)) == 7
    assert len(loop.greenlets.idle) == 1
