"""Poisons on an event loop: coroutines that swallow their cancel, block, break the loop or leave something on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.torture.raising import OwnBase
from tests.torture.register import FOREVER, found, hang, poison

GROUP = "asyncio"


async def swallow() -> None:
    """Wait on and on, whoever cancels."""
    while not FOREVER.is_set():
        try:
            await asyncio.sleep(0.05)
        except BaseException:
            continue


@poison("swallows its cancel", "timeout", group=GROUP)
async def swallows_cancel(_state: dict[str, Any]) -> Any:
    await swallow()


@poison("waits for what never comes", "timeout", group=GROUP, keeps=False)
async def never_comes(_state: dict[str, Any]) -> Any:
    await asyncio.get_running_loop().create_future()


@poison("blocks its event loop", "timeout", group=GROUP)
async def blocks_the_loop(_state: dict[str, Any]) -> Any:
    hang()


@poison("makes coroutines and never awaits them", "completed", group=GROUP)
async def never_awaits(_state: dict[str, Any]) -> Any:
    swallow()
    return found()


@poison("leaves tasks behind", "completed", group=GROUP)
async def leaves_tasks(_state: dict[str, Any]) -> Any:
    for _ in range(100):
        asyncio.ensure_future(asyncio.sleep(60))  # noqa: RUF006 - that is the poison
    return found()


@poison("leaves a task that swallows its cancel", "timeout", group=GROUP)
async def leaves_a_stubborn_task(_state: dict[str, Any]) -> Any:
    asyncio.ensure_future(swallow())  # noqa: RUF006
    return found()


@poison("leaves a call on the loop that blocks", "completed", "timeout", group=GROUP, keeps=True)
async def leaves_a_call(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().call_soon(hang)
    return found()


@poison("leaves a timer on the loop that blocks", "completed", group=GROUP)
async def leaves_a_timer(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().call_later(0.05, hang)
    return found()


async def stubborn_generator() -> AsyncIterator[Any]:
    try:
        yield found()[0]
    finally:
        await swallow()


@poison("leaves an async generator that does not close", "completed", "timeout", group=GROUP, keeps=True)
async def leaves_a_generator(_state: dict[str, Any]) -> Any:
    return [await anext(stubborn_generator())]


@poison("is an async generator that does not close", "timeout", group=GROUP)
async def generator_does_not_close(_state: dict[str, Any]) -> Any:
    try:
        yield found()[0]
        await asyncio.sleep(60)
    finally:
        await swallow()


@poison("yields from a coroutine without an end", "timeout", group=GROUP, keeps=False)
async def endless_async_generator(_state: dict[str, Any]) -> Any:
    while True:
        yield found()[0]


class FactoryRaises:
    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise OwnBase("factory")


@poison("sets a task factory that raises", "completed", group=GROUP)
async def factory_raises(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().set_task_factory(FactoryRaises())
    return found()


@poison("sets a task factory that hangs", "completed", group=GROUP)
async def factory_hangs(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().set_task_factory(hang)
    return found()


@poison("sets an exception handler that raises, and lets a task fail", "completed", group=GROUP)
async def handler_raises(_state: dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(FactoryRaises())
    loop.call_soon(int, "x")
    await asyncio.sleep(0)
    return found()


@poison("switches asyncio's debug mode on", "completed", group=GROUP)
async def debug_mode(_state: dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    return found()


@poison("closes its loop", "error", group=GROUP)
async def closes_the_loop(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().close()
    return found()


@poison("stops its loop", "error", group=GROUP)
async def stops_the_loop(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)
    return found()


@poison("calls `asyncio.run` in a coroutine", "error", group=GROUP)
async def runs_in_a_loop(_state: dict[str, Any]) -> Any:
    coroutine = swallow()
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


async def answer() -> Any:
    await asyncio.sleep(0.01)
    return found()


@poison("calls `asyncio.run` in a function", "completed", group=GROUP)
def runs_a_loop(_state: dict[str, Any]) -> Any:
    return asyncio.run(answer())


@poison("cancels itself", "error", group=GROUP)
async def cancels_itself(_state: dict[str, Any]) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@poison("cancels every task of its loop, raising `SystemExit`", "error", group=GROUP)
async def exits_in_a_task(_state: dict[str, Any]) -> Any:
    async def leave() -> None:
        raise SystemExit(3)

    await asyncio.gather(leave(), asyncio.sleep(60))


@poison("interrupts its loop", "error", group=GROUP)
async def interrupts_the_loop(_state: dict[str, Any]) -> Any:
    asyncio.get_running_loop().call_soon(_interrupt)
    await asyncio.sleep(60)


def _interrupt() -> None:
    raise KeyboardInterrupt


class AwaitIsNothing:
    def __await__(self) -> Any:
        return 5


class AwaitYields:
    def __await__(self) -> Any:
        yield "garbage"


class AwaitRaises:
    def __await__(self) -> Any:
        raise OwnBase("await")


class AwaitHangs:
    __await__ = hang


@poison("returns an awaitable without an iterator", "error", group=GROUP)
def await_is_nothing(_state: dict[str, Any]) -> Any:
    return AwaitIsNothing()


@poison("returns an awaitable that yields garbage", "error", group=GROUP)
def await_yields(_state: dict[str, Any]) -> Any:
    return AwaitYields()


@poison("returns an awaitable that raises", "error", group=GROUP)
def await_raises(_state: dict[str, Any]) -> Any:
    return AwaitRaises()


@poison("returns an awaitable that hangs", "timeout", group=GROUP)
def await_hangs(_state: dict[str, Any]) -> Any:
    return AwaitHangs()


@poison("hands a call that hangs to a thread", "timeout", group=GROUP)
async def hands_over_a_hang(_state: dict[str, Any]) -> Any:
    await asyncio.to_thread(hang)


@poison("hands 100 calls to threads and does not wait", "completed", group=GROUP)
async def hands_over_many(_state: dict[str, Any]) -> Any:
    for _ in range(100):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.001)
    return found()


class AnextHangs:
    def __aiter__(self) -> Any:
        return self

    __anext__ = hang


@poison("returns an async iterator that hangs", "timeout", group=GROUP)
def anext_hangs(_state: dict[str, Any]) -> Any:
    return AnextHangs()
