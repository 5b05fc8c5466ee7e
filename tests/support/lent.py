"""Lend what a test keeps in memory to a scanner that runs in another process: `calls.append(1)` counts in the test.

Tests of the thread engine look at what their scanners have done in lists, events and clocks that both can see. A
scanner that runs on a worker gets a stand-in for each, which has everything done by the process that has the thing.
Functions and values that cannot change go there as they are. So a test need not know where its scanners run.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import os
import tempfile
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection as sockets
from pathlib import Path
from typing import Any

import msgspec

from resilient_scan.http import Client

PLAIN = (str, int, float, bool, bytes, type(None), dt.datetime, dt.date, enum.Enum, BaseException, Client)
CODE = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)
SPECIAL = (
    "call len iter next getitem setitem delitem contains enter exit bool iadd ior add radd sub rsub mul "
    "lt le gt ge eq ne str format"
)
_HERE = threading.local()


class Lender:
    """The process that has the things; it serves each thread that borrows on a thread of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="resilient-scan-lent-")
        self.key = os.urandom(16)
        self.address = str(Path(self._folder.name, "socket"))
        self._things: dict[int, Any] = {}
        self._listener = sockets.Listener(self.address, "AF_UNIX", authkey=self.key, backlog=64)
        self._closed = False
        threading.Thread(target=self._listen, name="lender", daemon=True).start()

    def stand_in(self, thing: Any) -> StandIn:
        """Return a stand-in for a thing, which lasts until `forget`."""
        self._things[id(thing)] = thing
        return StandIn((self.address, self.key), id(thing))

    def thing(self, number: int) -> Any:
        """Return the thing itself."""
        return self._things[number]

    def forget(self) -> None:
        """Lend nothing any more: the things would outlive their test."""
        self._things.clear()

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True
        with suppress(OSError):
            self._listener.close()
        self._folder.cleanup()

    def lent(self, value: Any) -> Any:
        """Return what goes to another process in the place of a value."""
        match value:
            case StandIn() | msgspec.Struct():
                return value
            case types.MethodType():
                return functools.partial(self.lent(value.__func__), self.lent(value.__self__))
            case types.FunctionType():
                return self.function(value)
            case functools.partial():
                return functools.partial(self.lent(value.func), *map(self.lent, value.args), **value.keywords)
            case tuple() if type(value) is tuple:
                return tuple(map(self.lent, value))
            case _ if isinstance(value, (*PLAIN, *CODE)):
                return value
        return self.stand_in(value)

    def function(self, function: types.FunctionType) -> Any:
        """Return a function that finds stand-ins where the given one finds what a test has."""
        if not function.__module__.startswith(("tests.", "resilient_scan.testing")):
            return function
        if not function.__closure__ and not function.__defaults__ and not function.__kwdefaults__:
            return function  # it goes by its name
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        functools.update_wrapper(copy, function, updated=())
        copy.__defaults__ = self.lent(function.__defaults__)
        copy.__kwdefaults__ = {key: self.lent(value) for key, value in (function.__kwdefaults__ or {}).items()}
        del copy.__wrapped__
        for cell, given in zip(cells, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # it is empty so far
                inside = given.cell_contents
                cell.cell_contents = copy if inside is function else self.lent(inside)
        return copy

    def _listen(self) -> None:
        while not self._closed:
            with suppress(OSError, EOFError):
                connection = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="lender", daemon=True).start()

    def _serve(self, connection: sockets.Connection) -> None:
        with suppress(OSError, EOFError), connection:
            while True:
                number, name, arguments, named = connection.recv()
                try:
                    answer = True, self._back(self._done(number, name, arguments, named))
                except BaseException as error:
                    answer = False, error
                connection.send(answer)

    def _done(self, number: int, name: str, arguments: Any, named: Any) -> Any:
        thing = self._things[number]
        if name == "getattr":
            return getattr(thing, *arguments)
        if name == "setattr":
            return setattr(thing, *arguments)
        if name in {"__iter__", "__bool__", "__str__", "__next__", "__len__"}:
            kind = {"__iter__": iter, "__bool__": bool, "__str__": str, "__next__": next, "__len__": len}[name]
            return kind(thing)
        return getattr(thing, name)(*arguments, **named)

    def _back(self, value: Any) -> Any:
        if value is NotImplemented or isinstance(value, (*PLAIN, msgspec.Struct)):
            return value
        if type(value) is tuple:
            return tuple(map(self._back, value))
        if isinstance(value, CODE[:2]):
            return value
        if isinstance(value, types.MethodType) and value.__func__.__module__.startswith("tests."):
            return self.lent(value)  # it runs where it is called: it may be a coroutine
        return self.stand_in(value)


class StandIn:
    """Stands for a thing of another process."""

    def __init__(self, place: tuple[str, bytes], number: int) -> None:
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_number", number)

    def __reduce__(self) -> Any:
        return _arrived, (self._place, self._number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __hash__(self) -> int:
        return int(self._number)


def _forward(name: str) -> Callable[..., Any]:
    def forward(self: StandIn, *arguments: Any, **named: Any) -> Any:
        answer = _ask(self, name, *arguments, **named)
        return self if name in {"__iadd__", "__ior__"} else answer

    return forward


for _name in SPECIAL.split():
    setattr(StandIn, f"__{_name}__", _forward(f"__{_name}__"))


def _ask(stand_in: StandIn, name: str, *arguments: Any, **named: Any) -> Any:
    address, key = stand_in._place
    connections: dict[str, sockets.Connection] = _HERE.__dict__
    if address not in connections:
        connections[address] = sockets.Client(address, "AF_UNIX", authkey=key)
    connection = connections[address]
    connection.send((stand_in._number, name, arguments, named))
    fine, answer = connection.recv()
    if not fine:
        raise answer
    return answer


LENDERS: dict[str, Lender] = {}


def _arrived(place: tuple[str, bytes], number: int) -> Any:
    """Return the thing itself where it came home."""
    lender = LENDERS.get(place[0])
    return StandIn(place, number) if lender is None else lender.thing(number)
