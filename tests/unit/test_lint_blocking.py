"""Calls in `async def` scanners that are known to block."""

from __future__ import annotations

import asyncio
import functools
import socket
import subprocess
import time
import urllib.request
from time import sleep as nap
from typing import Any

import httpx
import pytest

from resilient_scan import http
from resilient_scan.lint.blocking import blocking_calls

SESSION = http.Client
client = httpx.Client


async def sleeps(_state: Any) -> None:
    time.sleep(1)  # noqa: ASYNC251


async def naps(_state: Any) -> None:
    nap(1)  # noqa: ASYNC251


async def fetches(_state: Any) -> Any:
    yield urllib.request.urlopen("http://localhost")  # noqa: ASYNC210


async def opens(_state: Any) -> None:
    with httpx.Client() as mine:
        mine.get("/")  # noqa: ASYNC212


async def ours(_state: Any, context: Any) -> None:
    SESSION(context)


async def runs(_state: Any) -> None:
    if _state:
        subprocess.run(["true"], check=True)  # noqa: ASYNC221


async def imports(_state: Any) -> None:
    import requests

    requests.get("http://localhost")  # noqa: ASYNC210


async def asks(_state: Any) -> None:
    socket.getaddrinfo("localhost", 80)


def helper() -> None:
    return deeper()


def deeper() -> None:
    time.sleep(1)


async def helped(_state: Any) -> None:
    helper()
    helper()


class Scanner:
    async def scan(self, _state: Any) -> None:
        self.fetch()

    def fetch(self) -> None:
        time.sleep(1)


class Called:
    async def __call__(self, _state: Any) -> None:
        time.sleep(1)  # noqa: ASYNC251


@pytest.mark.parametrize(
    ("scan", "call", "instead"),
    [
        (sleeps, "time.sleep", "await asyncio.sleep(...)"),
        (functools.partial(sleeps), "time.sleep", "await asyncio.sleep(...)"),
        (naps, "nap", "await asyncio.sleep(...)"),
        (fetches, "urllib.request.urlopen", "httpx.AsyncClient"),
        (opens, "httpx.Client", "httpx.AsyncClient"),
        (ours, "SESSION", "await asyncio.to_thread(...)"),
        (runs, "subprocess.run", "await asyncio.create_subprocess_exec(...)"),
        (imports, "requests.get", "httpx.AsyncClient"),
        (asks, "socket.getaddrinfo", "await loop.getaddrinfo(...)"),
        (helped, "time.sleep", "await asyncio.sleep(...)"),
        (Scanner().scan, "time.sleep", "await asyncio.sleep(...)"),
        (Called(), "time.sleep", "await asyncio.sleep(...)"),
    ],
)
def test_what_blocks_is_named_with_its_place_and_what_to_use(scan: Any, call: str, instead: str) -> None:
    (found,) = blocking_calls(scan)
    assert (found.call, found.instead, found.file) == (call, instead, __file__)
    with open(__file__) as source:  # noqa: PTH123
        assert call in source.read().splitlines()[found.line - 1]
    assert str(found) == f"{call}(...) blocks the event loop ({__file__}:{found.line}); use {instead}"


async def elsewhere(_state: Any, context: Any) -> None:
    await asyncio.to_thread(time.sleep, 1)
    await asyncio.to_thread(lambda: time.sleep(1))
    context.shared("key", lambda: subprocess.run(["true"], check=True))

    def call() -> None:
        time.sleep(1)

    await asyncio.to_thread(call)


async def awaits(_state: Any) -> None:
    await asyncio.sleep(1)
    async with httpx.AsyncClient() as mine:
        await mine.get("/")


async def shadows(_state: Any, time: Any) -> None:
    time.sleep(1)


class Property:
    @property
    def sleep(self) -> Any:
        raise AssertionError("a property was called")


surprise = Property()


async def surprised(_state: Any) -> None:
    surprise.sleep(1)
    print(unknown.sleep(1))  # type: ignore[name-defined] # noqa: F821, T201


async def recurses(_state: Any) -> None:
    await recurses(_state)


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


hostile = Hostile()


async def meets(_state: Any) -> None:
    hostile.get(1)


def without_source() -> Any:
    names: dict[str, Any] = {"time": time}
    exec("async def scan(state):\n    time.sleep(1)\n", names)
    return names["scan"]


HARMLESS = [elsewhere, awaits, shadows, surprised, recurses, meets, without_source(), len, None, functools.partial(len)]


@pytest.mark.parametrize("scan", HARMLESS)
def test_what_does_not_block_or_cannot_be_read_is_passed_over(scan: Any) -> None:
    assert blocking_calls(scan) == []
