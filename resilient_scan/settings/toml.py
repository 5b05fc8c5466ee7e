"""From TOML text to data, and to the line of every key in it; the only file that knows TOML.

`tomllib` returns the data and refuses what is not TOML. It keeps no positions, so a small tokenizer reads the same text
once more. It can be lenient, because the text is known to be valid by then.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import tomllib
from typing import Any, Final

import msgspec

Path = tuple[str | int, ...]
"""Keys and indices from the top of a document to a value."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_SCALAR: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:"{0,2})'''  # up to two quotes may stand before the closing three
    r"""|\'\'\'.*?\'\'\'(?:'{0,2})"""
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^"',\]}\#\n][^,\]}\#\n]*""",
    re.DOTALL,
)
_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Malformed(Exception):
    """The text is not TOML: the line, counted from 1, and what is wrong there."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Document(msgspec.Struct, frozen=True):
    """What a TOML text says, and where.

    Attributes:
        data: as `tomllib` returns it.
        lines: the line, counted from 1, of every key, table and item of an array.
    """

    data: dict[str, Any]
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of `path`, or of the innermost table around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str) -> Document:
    """Return what a TOML text says, and where.

    Raises:
        Malformed: the text is not TOML.
    """
    try:
        return Document(tomllib.loads(text), _Locator(text).locate())
    except RecursionError:
        raise Malformed(1, "tables or arrays are nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: a number of 5,000 digits raises a plain one
        raise _malformed(text, str(error)) from None


def value_of(text: str) -> Any:
    """Return the value that a text means in TOML.

    Raises:
        ValueError: it is not a TOML value.
    """
    try:
        data = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if len(data) > 1:
        raise ValueError("more than one value")
    return data["value"]


def path_text(path: Path) -> str:
    """Write a path as a dotted key of TOML, and an index as `[0]`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{_quoted(key)}" for key in path]
    return "".join(parts).removeprefix(".")


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else msgspec.json.encode(key).decode()


def _malformed(text: str, message: str) -> Malformed:
    if twice := _Locator(text).twice():
        path, line, first = twice
        return Malformed(line, f"{path_text(path)} appears twice, first in line {first}")
    found = _AT_LINE.search(message)
    if found is None:
        return Malformed(1, f"not TOML: {message}")
    line = int(found[1]) if found[1] else text.rstrip().count("\n") + 1
    return Malformed(line, f"not TOML: {message[: found.start()]}")


class _Lost(Exception):
    """The tokenizer met something that is not TOML."""


class _Locator:
    """Read through a TOML text and note the line of every key."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Path, int] = {}
        self._last: dict[Path, int] = {}  # by array of tables, the index of its last table
        self._given: dict[Path, int] = {}  # lines of keys with a value, and of tables with a header
        self._twice: tuple[Path, int, int] | None = None

    def locate(self) -> dict[Path, int]:
        """Return the lines of a valid text."""
        table: Path = ()
        while not self._at_end():
            if self._take("[["):
                table = self._header("]]", array=True)
            elif self._take("["):
                table = self._header("]", array=False)
            else:
                self._pair(table)
        return self._lines

    def twice(self) -> tuple[Path, int, int] | None:
        """Return the first key that is given twice, with its line and the line where it was given first."""
        with contextlib.suppress(_Lost, ValueError, RecursionError):
            self.locate()
        return self._twice

    def _header(self, end: str, *, array: bool) -> Path:
        line, keys = self._line(), self._keys()
        self._expect(end)
        path: Path = ()
        for key in keys[:-1]:
            path = self._inside(self._note((*path, key), line))
        path = self._note((*path, keys[-1]), line)
        if not array:
            self._give(path, line)
            return self._inside(path)
        self._last[path] = self._last.get(path, -1) + 1
        return self._note(self._inside(path), line)

    def _inside(self, path: Path) -> Path:
        """Return `path`, or the last table in it if it is an array of tables."""
        return (*path, self._last[path]) if path in self._last else path

    def _pair(self, table: Path) -> None:
        line, keys = self._line(), self._keys()
        self._expect("=")
        path = table
        for key in keys:
            path = self._note((*path, key), line)
        self._give(path, line)
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        if self._take("{"):
            self._items("}", lambda _index: self._pair(path))
        elif self._take("["):
            self._items("]", lambda index: self._value(self._note((*path, index), self._line())))
        else:
            self._match(_SCALAR)

    def _items(self, end: str, item: Any) -> None:
        index = 0
        self._skip()
        while not self._take(end):
            item(index)
            index += 1
            self._skip()
            self._take(",")
            self._skip()

    def _keys(self) -> list[str]:
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip()
        token = self._match(_KEY)
        self._skip()
        return str(value_of(token)) if token[0] in "\"'" else token

    def _note(self, path: Path, line: int) -> Path:
        self._lines.setdefault(path, line)
        return path

    def _give(self, path: Path, line: int) -> None:
        if path in self._given and self._twice is None:
            self._twice = path, line, self._given[path]
        self._given.setdefault(path, line)

    def _line(self) -> int:
        self._skip()
        return bisect.bisect_left(self._ends, self._at) + 1

    def _at_end(self) -> bool:
        self._skip()
        return self._at >= len(self._text)

    def _skip(self) -> None:
        self._match(_BLANK)

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise _Lost

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Lost
        self._at = found.end()
        return found[0]
