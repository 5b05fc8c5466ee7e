"""Find calls in `async def` scanners that are known to block, by reading their source; nothing is run or imported.

A coroutine that blocks keeps everything on its event loop waiting. The runner names it when that happens; this says so
before. It is a hint: what it cannot read, or cannot trace to a known name, it passes over.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import msgspec

_HTTP: Final = "httpx.AsyncClient"
_ELSEWHERE: Final = "await asyncio.to_thread(...)"
_PROCESS: Final = "await asyncio.create_subprocess_exec(...)"
BLOCKING: Final = {  # by the beginning of a full name: what to use instead
    "time.sleep": "await asyncio.sleep(...)",
    "requests": _HTTP,
    "urllib.request": _HTTP,
    "urllib3": _HTTP,
    "http.client": _HTTP,
    **{f"httpx.{name}": _HTTP for name in ("Client", "delete", "get", "head", "options", "patch", "post", "put")},
    "httpx.request": _HTTP,
    "httpx.stream": _HTTP,
    "resilient_scan.http": _ELSEWHERE,
    "subprocess": _PROCESS,
    "os.system": _PROCESS,
    "os.popen": _PROCESS,
    "socket.create_connection": "await asyncio.open_connection(...)",
    "socket.getaddrinfo": "await loop.getaddrinfo(...)",
    "socket.gethostbyname": "await loop.getaddrinfo(...)",
    "sqlite3.connect": _ELSEWHERE,
    "psycopg2": _ELSEWHERE,
    "pymysql": _ELSEWHERE,
    "boto3": _ELSEWHERE,
    "yfinance": _ELSEWHERE,
    "builtins.input": _ELSEWHERE,
}
MAX_DEPTH: Final = 4  # functions that call each other, from the scanner on


class BlockingCall(msgspec.Struct, frozen=True):
    """A call that blocks the event loop.

    Attributes:
        call: as it is written.
        file, line: where.
        instead: what to use.
    """

    call: str
    file: str
    line: int
    instead: str

    def __str__(self) -> str:
        """Return one sentence."""
        return f"{self.call}(...) blocks the event loop ({self.file}:{self.line}); use {self.instead}"


def blocking_calls(scan: Any) -> list[BlockingCall]:
    """Return what an `async def` scanner's `scan` calls that is known to block, also in functions of its own module.

    Args:
        scan: a function, a method, a `functools.partial` of one, or an object with `__call__`.
    """
    try:
        while isinstance(scan, functools.partial):
            scan = scan.func
        if not isinstance(scan, FunctionType | MethodType):
            scan = getattr(scan, "__call__", None)  # noqa: B004 - the method itself is looked at
        return list(dict.fromkeys(_in(inspect.unwrap(scan), set(), MAX_DEPTH)))
    except Exception:  # foreign objects may raise wherever they are looked at, and this is only a hint
        return []


def _in(function: Any, seen: set[FunctionType], depth: int) -> Iterator[BlockingCall]:
    owner = function.__self__ if isinstance(function, MethodType) else None
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType) or plain in seen or not depth:
        return
    seen.add(plain)
    try:
        lines, first = inspect.getsourcelines(plain)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, ValueError):  # no source, or one that cannot be read alone: a lambda
        return
    names = _Names(plain, owner, tree)
    for call in _calls(tree.body[0]):
        written = _dotted(call.func)
        if written is None:
            continue
        full, target = names.resolve(written)
        instead = _instead(full)
        if instead is not None:
            yield BlockingCall(written, plain.__code__.co_filename, first + call.lineno - 1, instead)
        elif getattr(target, "__module__", None) == plain.__module__:
            yield from _in(target, seen, depth - 1)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that a function makes itself; what a `lambda` or a nested `def` calls may run on a thread."""
    todo = [tree]
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.Call):
            yield node
        nested = isinstance(node, ast.Lambda | ast.FunctionDef | ast.ClassDef) and node is not tree
        if not nested:
            todo[:0] = ast.iter_child_nodes(node)


def _dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` as it is written; `None`: it is something else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


class _Names:
    """What the names in a function stand for, as far as one can tell without running anything."""

    def __init__(self, function: FunctionType, owner: Any, tree: ast.AST) -> None:
        code = function.__code__
        self._owner = owner
        self._own = code.co_varnames[0] if owner is not None and code.co_argcount else None
        self._local = set(code.co_varnames) | set(code.co_cellvars)
        self._imported = dict(_imports(tree))
        closed = zip(code.co_freevars, function.__closure__ or (), strict=False)
        self._known: dict[str, Any] = {**function.__globals__, **dict(_contents(closed))}

    def resolve(self, written: str) -> tuple[str, Any]:
        """Return the full name of what is written, and the object, where there is one."""
        root, *rest = written.split(".")
        if root in self._imported:
            return ".".join([self._imported[root], *rest]), None
        if root == self._own:
            found = self._owner
        elif root in self._local:
            return "", None
        elif root in self._known:
            found = self._known[root]
        else:
            return f"builtins.{written}", None
        return _follow(found, rest)


def _follow(found: Any, rest: list[str]) -> tuple[str, Any]:
    """Follow attributes, without calling a property or a module's `__getattr__`."""
    while rest and isinstance(found, ModuleType) and rest[0] in vars(found):
        name = f"{found.__name__}.{rest[0]}"
        found, rest = vars(found)[rest[0]], rest[1:]
        if _instead(name) is not None:  # by the name under which people know it
            return ".".join([name, *rest]), found
    if rest:
        kind = found if inspect.isclass(found) else type(found)
        member = inspect.getattr_static(kind, rest[0], None)
        method = MethodType(member, found) if len(rest) == 1 and isinstance(member, FunctionType) else None
        return ".".join([_full_name(kind), *rest]), method
    return _full_name(found), found


def _full_name(found: Any) -> str:
    if isinstance(found, ModuleType):
        return found.__name__
    named = found if isinstance(getattr(found, "__qualname__", None), str) else type(found)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names that a function imports itself, with their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _contents(closed: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in closed:
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue


def _instead(full: str) -> str | None:
    """Return what to use instead of something that blocks."""
    parts = full.split(".")
    return next((BLOCKING[key] for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in BLOCKING), None)
