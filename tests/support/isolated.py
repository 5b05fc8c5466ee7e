"""Scanners for tests of `isolation="process"`; a child imports them from here."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace

from resilient_scan import (
    Candidate,
    Limit,
    PermanentError,
    Retry,
    RetryAfter,
    ScanCancelled,
    ScanContext,
    Timeout,
    scanner,
)
from resilient_scan.http import Client

SAME: list[Any] = []
"""Scanners whose scans come to the same in a thread and in a process."""
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="UNSET")


class OddError(Exception):
    """Cannot be pickled and read again: its constructor takes something else than `args`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class OddWait(RetryAfter):
    def __init__(self) -> None:
        super().__init__(0.0, "wait a moment")


def same(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a scanner and keep it for the comparison."""

    def make(function: Callable[..., Any]) -> Any:
        made = scanner(pipeline="test", **options)(function)
        SAME.append(made)
        return made

    return make


# answers


@same()
def a_list(_state: dict[str, Any]) -> list[Any]:
    return [Candidate(ticker="A", source="itself", context="c"), {"ticker": "B", "extra": [1, {"x": None}]}]


@same()
def a_tuple(state: dict[str, Any], context: ScanContext) -> tuple[Any, ...]:
    return ({"ticker": state["ticker"], "attempt": context.attempt, "run": bool(context.run_id)},)


@same()
def nothing(_state: dict[str, Any]) -> list[Any]:
    return []


@same()
def a_generator(state: dict[str, Any]) -> Iterator[Any]:
    yield {"ticker": state["ticker"]}
    yield {"ticker": "B"}


@same()
async def a_coroutine(_state: dict[str, Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [{"ticker": await asyncio.to_thread(lambda: "THREAD")}]


@same()
async def an_async_generator(_state: dict[str, Any]) -> AsyncIterator[Any]:
    for ticker in "AB":
        await asyncio.sleep(0)
        yield {"ticker": ticker}


@same()
def bad_candidates(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": "GOOD"}, {"ticker": "has blanks"}, 3, None, {"no": "ticker"}]


@same()
def bad_candidates_one_by_one(_state: dict[str, Any]) -> Iterator[Any]:
    yield from [{"ticker": "GOOD"}, {"ticker": "has blanks"}, 3, {"no": "ticker"}]


@same()
def a_text(_state: dict[str, Any]) -> Any:
    return "text"


@same()
def a_mapping(_state: dict[str, Any]) -> Any:
    return {"ticker": "A"}


@same()
def no_iterable(_state: dict[str, Any]) -> Any:
    return 3


class Plain:
    """A class, of which each child makes an object of its own; the lock cannot transfer."""

    name = "plain_class"
    pipeline = "test"

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def scan(self, state: dict[str, Any]) -> list[Any]:
        with self.lock:
            return [{"ticker": state["ticker"]}]


SAME.append(Plain)


class Picky(Plain):
    """An object, which is pickled."""

    def __init__(self, name: str, ticker: str) -> None:
        self.name = name
        self.ticker = ticker

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return [{"ticker": self.ticker}]


SAME.append(Picky("an_object", "OWN"))


# errors


@same()
def an_error(_state: dict[str, Any]) -> list[Any]:
    raise KeyError("missing")


@same(retry=Retry(attempts=3, base=0.0, on=(OddError,)))
def an_odd_error(_state: dict[str, Any]) -> list[Any]:
    raise OddError(3, "odd")


@same(retry=Retry(attempts=3, base=0.0, on=(LookupError,)))
def an_error_of_a_base(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    if context.attempt < 3:
        raise KeyError("again")
    return [{"ticker": "THIRD"}]


@same(retry=Retry(attempts=2, base=0.0, on=(ValueError,)))
def asked_to_wait(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    if context.attempt < 2:
        raise OddWait
    return [{"ticker": "WAITED"}]


@same(retry=Retry(attempts=3, base=0.0))
def for_good(_state: dict[str, Any]) -> list[Any]:
    raise PermanentError("no key")


@same(retry=Retry(attempts=3, base=0.0))
def wants_to_exit(_state: dict[str, Any]) -> list[Any]:
    sys.exit(3)


@same(retry=Retry(attempts=2, base=0.0, on=(OddError,)))
def a_group(_state: dict[str, Any]) -> list[Any]:
    raise ExceptionGroup("several", [OddError(1, "first"), ValueError("second")])


@same()
def chained(_state: dict[str, Any]) -> list[Any]:
    try:
        raise OSError(5, "I/O")
    except OSError as error:
        raise RuntimeError("wrapped") from error


@same()
def made_up_cancel(_state: dict[str, Any]) -> list[Any]:
    raise ScanCancelled


@same()
def failed_later(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
    context.log("before", n=1)
    yield {"ticker": "KEPT"}
    yield {"ticker": "KEPT TOO"}
    raise ValueError("then")


# what the context offers


@same()
def logs(state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.log("by_context", n=1)
    state["tool_logs"].append({"tool": "by_state", "n": 2})
    state["tool_logs"] += [{"tool": "added", "n": 3}]
    state["tool_logs"][-1]["n"] = 4
    return [{"ticker": f"LOGS{len(state['tool_logs'])}"}]


@same(retry=Retry(attempts=2, base=0.0))
def logs_of_attempts(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.log("attempt", n=context.attempt)
    if context.attempt < 2:
        raise ValueError("again")
    return []


@same()
def doubts(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.doubt("old", kind="stale")
    context.doubt("few")
    return [{"ticker": "A"}]


@same()
def maps(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    return [{"ticker": ticker} for ticker in context.map(lambda n: f"T{n}", range(9), concurrency=3)]


@same()
def shares(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    found = context.map(lambda n: context.shared(("a", n % 2), lambda: {"n": n % 2}), range(6), concurrency=6)
    return [{"ticker": f"S{one['n']}"} for one in found]


@same()
def shares_in_turn(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    def outer() -> str:
        return context.shared("inner", lambda: "INNER") + context.guarded("own", lambda: "-GUARDED")

    return [{"ticker": context.shared("outer", outer)}]


@same()
def shares_an_error(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    def load() -> None:
        raise OddError(4, "load")

    try:
        context.shared("broken", load)
    except OddError as error:
        return [{"ticker": f"CODE{error.code}"}]
    return []


@same()
def remembers(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    seen = context.recall("seen", int) or 0
    context.remember("seen", seen + 1, ttl=60)
    return [{"ticker": f"SEEN{seen}"}]


@same()
def settings(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    return [{"ticker": context.settings["ticker"]}]


@same()
def time_left(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.sleep(0.001)
    context.check()
    age = abs(time.time() - context.now.timestamp())
    return [{"ticker": f"{0 < context.remaining() <= 20}-{context.cancelled}-{age < 5}"}]


@same()
def two_sources(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    def first() -> Any:
        raise OddError(2, "down")

    try:
        return [context.guarded("first", first)]
    except OddError as error:
        left = context.guarded("second", context.remaining, seconds=0.5, limit=Limit(provider="second", concurrency=1))
        unsendable = context.guarded("third", threading.Lock)
        return [{"ticker": f"CODE{error.code}-{left <= 0.5}-{type(unsendable).__name__}"}]


@same(limit=Limit(provider="p", concurrency=2))
def limited(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.before_request()
    return [{"ticker": context.reach("host:1", lambda: "REACHED")}]


@same()
def context_variable(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": VARIABLE.get()}]


@scanner(pipeline="test")
def traced(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": f"{trace.get_current_span().get_span_context().trace_id:032x}"}]


# HTTP


def fetching(name: str) -> Any:
    def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        with contextlib.closing(Client(context.settings["url"], timeout=5)) as client:
            body = client.get("quote", {"apikey": "s3cr3t-of-ours"}, context=context).body.decode()
        return [{"ticker": "A", "body": body, "now": context.now.isoformat()}]

    return scanner(pipeline="test", name=name)(scan)


fetches, fetches_too = fetching("fetches"), fetching("fetches_too")


@scanner(pipeline="test")
def leaves_the_machine(_state: dict[str, Any]) -> list[Any]:
    with socket.create_connection(("192.0.2.1", 80), timeout=5):
        return []


# what only a process contains; they end after a minute by themselves, should nothing end them


def isolated(**options: Any) -> Any:
    return scanner(pipeline="test", isolation="process", **options)


@isolated()
def quick(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": "A", "pid": os.getpid()}]


@isolated(timeout=Timeout(total=0.3))
def stuck(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
    context.log("before", n=1)
    yield {"ticker": "BEFORE", "pid": os.getpid()}
    re.match("(a+)+$", "a" * 40 + "b")


@isolated(timeout=Timeout(total=0.3))
def deaf(state: dict[str, Any]) -> Iterator[Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as helper:
        yield {"ticker": "BEFORE", "pid": os.getpid(), "helper": helper.pid}
        time.sleep(60)


@isolated()
def crashes(_state: dict[str, Any]) -> list[Any]:
    ctypes.string_at(0)
    return []


@isolated()
def exits(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
    context.log("before", n=1)
    yield {"ticker": "BEFORE"}
    os._exit(7)


@isolated(memory="64MB")
def greedy(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": "A", "size": len(bytearray(2**29))}]


@isolated(timeout=Timeout(total=0.2))
def dawdles(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.sleep(60)
    return []


@isolated()
def unsendable(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": "A"}, {"ticker": "B", "lock": threading.Lock()}]


@isolated()
def counts_imports(_state: dict[str, Any]) -> list[Any]:
    return [{"ticker": "A", "main": Path(getattr(sys.modules["__main__"], "__file__", None) or "none").name}]


@isolated(retry=Retry(attempts=3, base=0.0), timeout=Timeout(total=20, attempt=0.2, max_abandoned=3))
def stuck_at_first(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
    context.log("attempt", n=context.attempt)
    yield {"ticker": f"ATTEMPT{context.attempt}"}
    if context.attempt == 1:
        re.match("(a+)+$", "a" * 40 + "b")


@isolated()
def leaves_a_thread(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    def ask() -> None:
        while not context.cancelled:
            time.sleep(0.001)
        with contextlib.suppress(ScanCancelled):
            context.shared("stray", lambda: 1)
        context.log("stray")

    threading.Thread(target=ask, daemon=True).start()
    return [{"ticker": "A", "pid": os.getpid()}]


@isolated()
async def leaves_a_call(_state: dict[str, Any]) -> list[Any]:
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    return [{"ticker": "A", "pid": os.getpid()}]


@isolated()
def endless(state: dict[str, Any]) -> Iterator[Any]:
    yield {"ticker": "A", "pid": os.getpid()}
    if "once" not in state:
        time.sleep(60)


@same()
def refused(_state: dict[str, Any]) -> list[Any]:
    """Fail by the way to its provider."""
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@same()
def garbled(_state: dict[str, Any]) -> list[Any]:
    """Fail by an answer of its source."""
    return [json.loads("<html>")]


# what a process may lack


@isolated(limit=Limit("one"), memory="50MB")
def out_of_memory(_state: dict[str, Any]) -> list[Any]:
    """Take more than it may have."""
    return [bytearray(200_000_000)]


@isolated(limit=Limit("another"))
def out_of_descriptors(_state: dict[str, Any]) -> list[Any]:
    """Fail as one that has opened too many files."""
    raise OSError(errno.EMFILE, "Too many open files")


@isolated()
def without_network(_state: dict[str, Any]) -> list[Any]:
    """Fail as on a machine without a network."""
    raise OSError(errno.ENETUNREACH, "Network is unreachable")
