"""What a fault asks of a stack, whoever made it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

Call = Callable[..., Any]
AsyncCall = Callable[..., Awaitable[Any]]
PAUSE = 0.01  # between two attempts, unless the source says more


class NotOffered(Exception):
    """This stack has no such feature; its text says what it has instead, if anything."""


class Down(OSError):
    """What a source raises that is down."""


class Answered(Down):
    """What a client raises for every status, whatever that means."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class TooMany(Down):
    """What a source raises that says how long to wait, in all the forms in which clients know that."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"HTTP 429, retry after {seconds:g} s")
        self.retry_after = seconds
        self.status_code = 429
        self.headers = {"Retry-After": f"{seconds:g}"}
        self.response = self


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a fault wants a call to be protected with; what is None is left out.

    Attributes:
        timeout: seconds that a call may take.
        total: seconds that all its attempts and the waits between them may take.
        attempts: how often it is tried.
        failures: after how many failures the breaker opens.
        open_for: seconds that it stays open.
        within: seconds that it looks back.
        counts: which errors are failures to it.
        doubts: which answers are.
        ttl: seconds that an answer is fresh.
        stale: seconds that an answer stands in after that, where the source fails.
        callers: how many call at the same time.
        hung: how many calls may hang at the same time without being in the others' way, where that has a limit.
        lasting: state survives the process, as far as that is offered.
        metrics: durations and results go to Prometheus, as far as that is offered.
        provider: whom the call goes to. Calls to one provider share a breaker, and a pause that it asks for, as far as
            that is offered.
    """

    timeout: float | None = None
    total: float | None = None
    attempts: int = 1
    failures: int | None = None
    open_for: float = 60
    within: int | None = None
    counts: Callable[[BaseException], bool] | None = None
    doubts: Callable[[Any], bool] | None = None
    ttl: float | None = None
    stale: float = 0
    callers: int = 8
    hung: int | None = None
    lasting: bool = False
    metrics: bool = False
    provider: str = ""


class Stack:
    """A way to protect a call. Those that know no fleets run one as their users do: on a ThreadPoolExecutor."""

    packages: tuple[str, ...] = ()

    def protect(self, function: Call, wanted: Wanted) -> Call:
        """Return `function`, protected as the stack's own documentation says."""

        @functools.wraps(function)  # some want a name and a signature
        def source(*arguments: Any) -> Any:
            return function(*arguments)

        return self._protect(source, wanted)

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        raise NotImplementedError

    def siblings(self, functions: dict[str, Call], wanted: Wanted) -> dict[str, Call]:
        """Return functions that call one provider, protected."""
        return {name: self.protect(function, wanted) for name, function in functions.items()}

    def within(self, call: Call, seconds: float) -> Any:
        """Call it with a time of this call's own."""
        return call()

    def fleet(self, calls: dict[str, Call], wanted: Wanted, workers: int = 8) -> Iterator[tuple[str, str]]:
        """Run several at the same time; yield the name of each and how it ended, as they end."""
        ready = {name: self.protect(call, wanted) for name, call in calls.items()}
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(call): name for name, call in ready.items()}
            for future in as_completed(futures):
                yield futures[future], ended(future.result)

    def repeated(self, calls: dict[str, Call], wanted: Wanted) -> Call:
        """Return a function that runs the fleet once and waits for all of it."""
        ready = [self.protect(call, wanted) for call in calls.values()]
        pool = ThreadPoolExecutor(8)
        return lambda: [future.result() for future in [pool.submit(call) for call in ready]]

    def awaited(self, calls: dict[str, AsyncCall], wanted: Wanted) -> Call:
        """Return a function that awaits the fleet once, all of it at the same time."""
        ready = [self.protect_async(call, wanted) for call in calls.values()]

        async def gather() -> list[Any]:
            return await asyncio.gather(*[call() for call in ready])

        return lambda: asyncio.run(gather())

    def protect_async(self, function: AsyncCall, wanted: Wanted) -> AsyncCall:
        """Return a coroutine function, protected as the stack's own documentation says."""

        @functools.wraps(function)
        async def source(*arguments: Any) -> Any:
            return await function(*arguments)

        return self._protect(source, wanted)


def ended(call: Call, *arguments: Any) -> str:
    """Return how a call ends: `answered`, `timeout`, `refused` or `failed`."""
    try:
        call(*arguments)
    except Exception as error:
        name = type(error).__name__
        for word, how in {"Timeout": "timeout", "Circuit": "refused", "Refused": "refused"}.items():
            if word in name:
                return how
        return "failed"
    return "answered"


def not_offered(wanted: Wanted, *features: str) -> None:
    """Raise `NotOffered` if one of these is wanted."""
    if any(getattr(wanted, feature) is not None for feature in features):
        raise NotOffered("")


def told(error: BaseException) -> float:
    """Return how long to wait after this error."""
    return error.retry_after if isinstance(error, TooMany) else PAUSE
