"""Scanners that workers import by name, as a deployed module would be."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from resilient_scan import ScanContext, Timeout, scanner
from resilient_scan.http import Client

State = dict[str, Any]
ONE = {"ticker": "AAPL", "context": "one"}


@scanner(pipeline="cluster")
def plain(state: State, context: ScanContext) -> list[Any]:
    """Return one, and log."""
    context.log("seen", number=state.get("number"), attempt=context.attempt)
    return [{**ONE, "pid": os.getpid()}]


@scanner(pipeline="cluster", retry=None, timeout=Timeout(total=0.6))
def stuck(_state: State, context: ScanContext) -> Iterator[Any]:
    """Find one, log, and keep the interpreter's lock."""
    context.log("before")
    yield ONE
    re.match("(a+)+$", "a" * 60 + "b")


@scanner(pipeline="cluster", retry=None, timeout=Timeout(total=0.6))
def nearly_late(_state: State) -> list[Any]:
    """Take nearly all the time that there is."""
    time.sleep(0.45)
    return [ONE]


@scanner(pipeline="cluster", retry=None, timeout=Timeout(total=0.3))
def sleeps(_state: State) -> list[Any]:
    """Sleep longer than anybody waits."""
    time.sleep(60)
    return []


@scanner(pipeline="cluster", retry=None)
def leaves(_state: State) -> list[Any]:
    """End the process."""
    os._exit(7)


@scanner(pipeline="cluster", retry=None)
def fails(_state: State) -> list[Any]:
    """Raise."""
    raise LookupError("nothing there")


@scanner(pipeline="cluster", retry=None)
def large(state: State) -> list[Any]:
    """Return as much as the state says."""
    return [{**ONE, "text": "x" * state["size"]}]


@scanner(pipeline="cluster", retry=None)
def asks(_state: State, context: ScanContext) -> list[Any]:
    """Ask the driver."""
    value = context.shared("key", os.getpid)
    context.before_request()
    context.remember("seen", 3, ttl=60)
    return [{**ONE, "loaded": value, "pid": os.getpid(), "seen": context.recall("seen", int)}]


@scanner(pipeline="cluster", retry=None)
async def coroutine(_state: State) -> list[Any]:
    """Await."""
    await asyncio.sleep(0.01)
    return [ONE]


@scanner(pipeline="cluster", retry=None)
def counts(state: State) -> list[Any]:
    """Return how large a part of the state is."""
    return [{**ONE, "size": len(state["text"])}]


@scanner(pipeline="cluster")
def odd(state: State, context: ScanContext) -> list[Any]:
    """Log, take the time that the state says, and raise for one number."""
    context.log("seen", number=state["number"])
    time.sleep(state.get("seconds", 0.0))
    if state["number"] == 399:
        raise LookupError("nothing there")
    return [{**ONE, "number": state["number"], "pid": os.getpid()}]


@scanner(pipeline="cluster")
def short(state: State) -> list[Any]:
    """Note that it began, where the state says so, and take 10 ms."""
    if "folder" in state:
        with Path(state["folder"], "begun.txt").open("a") as file:
            file.write(f"{state['number']}\n")
    time.sleep(0.01)
    return [{**ONE, "number": state["number"]}]


@scanner(pipeline="cluster")
def time_left(_state: State, context: ScanContext) -> list[Any]:
    """Log how much time is left, and fail twice."""
    context.log("time", seconds=context.remaining())
    if context.attempt < 3:
        raise LookupError("again")
    return []


@scanner(pipeline="cluster")
def asks_for_time(_state: State, context: ScanContext) -> list[Any]:
    """Log how much time is left before and after the driver was asked, and inside a source."""
    context.log("before", seconds=context.remaining())
    context.shared("anything", lambda: 1)
    context.log("after", seconds=context.remaining())
    context.guarded("source", lambda: context.log("inside", seconds=context.remaining()), seconds=0.5)
    context.log("outside", seconds=context.remaining())
    return []


def _fetching(number: int) -> Any:
    @scanner(name=f"fetches_{number}", pipeline="cluster")
    def fetch(state: State, context: ScanContext) -> list[Any]:
        """Make three requests."""
        with closing(Client(state["url"])) as client:
            for page in range(3):
                client.get(f"/{number}/{page}", context=context)
        return [ONE]

    return fetch


FETCHING = [_fetching(number) for number in range(10)]
globals().update({each.name: each for each in FETCHING})


def _sleeper(number: int) -> Any:
    @scanner(name=f"sleeper_{number}", pipeline="cluster")
    def sleep(state: State, context: ScanContext) -> list[Any]:
        """Note in a file that it began, and sleep."""
        if "folder" in state:
            with Path(state["folder"], f"{number}.txt").open("a") as file:
                file.write(f"{context.attempt}\n")
        time.sleep(state.get("seconds", 0.2))
        return [{**ONE, "number": number}]

    return sleep


SLEEPERS = [_sleeper(number) for number in range(60)]
globals().update({each.name: each for each in SLEEPERS})
