"""Where an exception was raised, as text: the line of the scanner's own code, and a traceback without secrets.

An exception keeps its frames alive, with all that their variables hold. So nothing here keeps one: what is kept is
text. It is made once per failure, and bounded whatever the exception is: of a recursion the first and the last frames,
of a chain and of a group the first few exceptions, and never more than `MAX_TRACEBACK` bytes.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from resilient_scan._text import clean, hide, without_known
from resilient_scan.errors import leaves

MAX_TRACEBACK: Final = 8_000  # bytes
_MAX_WALK: Final = 5_000  # frames; an exception object that is raised again and again collects them without end
_FIRST, _LAST = 5, 25  # frames of one exception
_MAX_EXCEPTIONS: Final = 8  # in one text
_MAX_MEMBERS: Final = 3  # of a group
_MAX_MESSAGE: Final = 1_000  # characters of one exception's text
_GUESTS: Final = {"resilient_scan.testing", "resilient_scan.cli.faults"}  # modules of ours that define scanners
_MACHINERY: Final = {"resilient_scan", "tenacity", "pybreaker", "concurrent", "asyncio", "threading", "contextvars"}
# By BaseException itself: a subclass may use these names for something else.
_cause, _context, _is_hidden, _traceback = (
    vars(BaseException)[name].__get__ for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__")
)


class Home(msgspec.Struct, frozen=True):
    """Where a scanner's own code is.

    Attributes:
        module: its module's name.
        package: the top of its package; empty if the module is in none, or in ours.
        directory: of a module without a package: what lies next to it is its own, too.
    """

    module: str = ""
    package: str = ""
    directory: str = ""

    @classmethod
    def of(cls, module: object) -> Home:
        """Return the home of what a module of this name defines."""
        if not isinstance(module, str):
            return NOWHERE
        top, dot, _ = module.partition(".")
        if top == "resilient_scan":
            return cls(module)
        if dot:
            return cls(module, top)
        file = getattr(sys.modules.get(module), "__file__", None)
        directory = file.rpartition(os.sep)[0] if isinstance(file, str) else ""
        return cls(module, "", "" if directory.endswith("-packages") else directory)  # site-packages: not its own

    def has(self, module: str, file: str) -> bool:
        """Say whether a frame of this module and file belongs to it."""
        if self.package:
            return module.partition(".")[0] == self.package
        return module == self.module or (self.directory != "" and file.rpartition(os.sep)[0] == self.directory)


NOWHERE: Final = Home()


def where_of(error: BaseException, home: Home, kind: str) -> str:
    """Return where an exception was raised: `KeyError at feeds.py:42 in parse`; "" if that was in none but our code.

    That is the innermost frame in the scanner's own package: its author has to look there, and not into the library
    that it calls. If there is none, it is the innermost frame that is not of the machinery around the scanner.
    """
    frames = _frames(error)
    own = (frame for frame in reversed(frames) if home.has(_module(frame), _file(frame)))
    foreign = (frame for frame in reversed(frames) if not _is_machinery(frame))
    frame = next(own, None) or next(foreign, None)
    if frame is None:
        return ""
    return clean(f"{kind} at {_file(frame).rpartition(os.sep)[2]}:{frame.tb_lineno} in {frame.tb_frame.f_code.co_name}")


def traceback_of(error: BaseException) -> str:
    """Return an exception's traceback as Python writes it, without our frames around the scanner and without secrets.

    It is "" if the exception was not raised. If it is too long, its beginning is left out.
    """
    if _traceback(error) is None:
        return ""
    text = without_known("\n".join(_with_causes(error, [_MAX_EXCEPTIONS])))
    data = text.encode(errors="backslashreplace")
    if len(data) <= MAX_TRACEBACK:
        return data.decode()
    return "...\n" + data[4 - MAX_TRACEBACK :].decode(errors="ignore")


def _with_causes(error: BaseException, left: list[int]) -> Iterator[str]:
    """Yield the parts of a text: the first cause first, and what is in a group after it.

    Args:
        error: the last of a chain.
        left: how many exceptions there is room for; it is counted down.
    """
    chain = [(error, "")]
    left[0] -= 1
    while left[0] > 0 and (found := _cause_of(chain[-1][0])) and all(found[0] is not one for one, _ in chain):
        chain.append(found)
        left[0] -= 1
    for one, link in reversed(chain):
        yield from _one(one)
        if isinstance(one, BaseExceptionGroup):
            yield from _members(one, left)
        if link:
            yield link


def _cause_of(error: BaseException) -> tuple[BaseException, str] | None:
    """Return what an exception was raised from, or while, with Python's sentence about that."""
    if (cause := _cause(error)) is not None:
        return cause, "\nThe above exception was the direct cause of the following exception:\n"
    if (context := _context(error)) is not None and not _is_hidden(error):
        return context, "\nDuring handling of the above exception, another exception occurred:\n"
    return None


def _members(group: BaseException, left: list[int]) -> Iterator[str]:
    found = leaves(group)
    for number, leaf in enumerate(found[:_MAX_MEMBERS] if found != (group,) else (), 1):
        if left[0] > 0:
            yield f"\n{number} of {len(found)} in this group:\n"
            yield from _with_causes(leaf, left)


def _one(error: BaseException) -> Iterator[str]:
    frames = _frames(error)
    if frames:
        yield "Traceback (most recent call last):"
    shown = list(itertools.dropwhile(_is_machinery, frames)) or frames
    cut = len(shown) - _FIRST - _LAST
    for frame in shown[:_FIRST] if cut > 0 else shown:
        yield _line(_file(frame), frame.tb_lineno, frame.tb_frame.f_code.co_name)
    if cut > 0:
        yield f"  ... ({cut} frames)"
        for frame in shown[-_LAST:]:
            yield _line(_file(frame), frame.tb_lineno, frame.tb_frame.f_code.co_name)
    try:
        message = hide(str(error))
    except BaseException:  # the exception's class is foreign code
        message = ""
    yield name_of(error) + (f": {shortened_lines(message)}" if message else "")


def name_of(error: BaseException) -> str:
    """Return an exception's qualified name, such as `httpx.ConnectTimeout` or `ValueError`."""
    kind = type(error)
    try:
        prefix = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        return prefix + kind.__qualname__
    except BaseException:  # its metaclass is foreign code
        return "an exception without a name"


def shortened_lines(text: str) -> str:
    """Return at most `_MAX_MESSAGE` characters of a text, which may have several lines."""
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


@functools.lru_cache(4096)
def _line(file: str, number: int, function: str) -> str:
    """Return a frame as Python writes it. The same few lines fail again and again, and a file is slow to read."""
    known = file in linecache.cache or Path(file).is_file()  # a notebook's cells are in no file; `/dev/zero` is not one
    code = linecache.getline(file, number).strip() if known else ""
    return hide(f'  File "{file}", line {number}, in {function}' + (f"\n    {code}" if code else ""))


def _frames(error: BaseException) -> list[TracebackType]:
    """Return an exception's frames, outermost first; the list must not outlive the caller."""
    found: list[TracebackType] = []
    one = _traceback(error)
    while one is not None and len(found) < _MAX_WALK:
        found.append(one)
        one = one.tb_next
    return found


def _module(frame: TracebackType) -> str:
    name = dict.get(frame.tb_frame.f_globals, "__name__")  # not a method of a foreign dict
    return name if isinstance(name, str) else ""


def _file(frame: TracebackType) -> str:
    return frame.tb_frame.f_code.co_filename


def _is_machinery(frame: TracebackType) -> bool:
    """Say whether a frame only leads to a scanner, or is what a scanner calls of ours."""
    return _is_of_machinery(_module(frame))


@functools.lru_cache(4096)
def _is_of_machinery(module: str) -> bool:
    return module.partition(".")[0] in _MACHINERY and module not in _GUESTS
