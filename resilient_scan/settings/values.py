"""One value from a file or a variable to what an option takes; derived from the option classes' own annotations."""

from __future__ import annotations

import difflib
import functools
import json
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from typing import Any, Final

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.options import Exceptions
from resilient_scan.settings.toml import Path, value_of

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)", re.ASCII)
_SECRET: Final = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|private|^settings$", re.IGNORECASE)
_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple[str, ...]: "a list of texts",
    dict[str, Any]: "a table",
}
_SWITCH: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Variable(str):
    """A value as an environment variable holds it: text, whatever it is meant to be."""

    __slots__ = ()


class Wrong(Exception):
    """A value is not of the kind that its place wants; the message says what it must be, or what is wrong."""


class Field(msgspec.Struct, frozen=True):
    """A key of a table.

    Attributes:
        name: the option's field.
        must: what a value must be, to go after "must be".
        default: the option's own; `msgspec.NODEFAULT` where there is none.
        read: brings a value from a file into the option's form, or raises `Wrong`, `TypeError` or `ValueError`.
        hint: the annotations that it allows, without `None`.
    """

    name: str
    must: str
    default: Any
    read: Callable[[Any], Any]
    hint: tuple[Any, ...]

    @property
    def required(self) -> bool:
        """Say whether the option cannot be built without it."""
        return self.default is msgspec.NODEFAULT

    def convert(self, value: Any) -> Any:
        """Return the value in the option's form.

        Raises:
            Wrong: it is of another kind.
        """
        if isinstance(value, Variable):
            value = _from_variable(value, self.hint)
        try:
            return self.read(value)
        except (TypeError, ValueError, OverflowError):
            raise Wrong(f"must be {self.must}") from None


def seconds(value: Any) -> float:
    """Return the seconds that `300`, `"250ms"`, `"5s"`, `"1.5h"`... stand for.

    Raises:
        ValueError, TypeError: it is no duration.
    """
    if not isinstance(value, str):
        return number(value)
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(value)
    return float(match[1]) * UNITS[match[2]]


def number(value: Any) -> float:
    """Return a number as a float; a `bool` is none."""
    if type(value) not in {int, float}:
        raise TypeError(value)
    return float(_sized(value))


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, Field]:
    """Return the keys that a table of an option class may have."""
    hints = typing.get_type_hints(kind)
    return {field.name: _field(kind, field, hints[field.name]) for field in msgspec.structs.fields(kind)}


def own_fault(kind: type[msgspec.Struct], field: str, value: Any) -> str:
    """Return the option's sentence about a value that is wrong whatever the other fields are, else an empty text."""
    required = {each.name: "-" for each in msgspec.structs.fields(kind) if each.required}
    try:
        kind(**{**required, field: value})
    except ConfigError as error:
        return "" if named_in(kind, str(error)) - {field} else str(error)
    return ""


def named_in(kind: type[msgspec.Struct], sentence: str) -> set[str]:
    """Return the fields of an option class that a sentence names."""
    return set(re.findall(r"\w+", sentence)) & set(kind.__struct_fields__)


def _field(kind: type[msgspec.Struct], info: msgspec.structs.FieldInfo, hint: Any) -> Field:
    members = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    union = tuple(each for each in members if each is not type(None))
    default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    make = functools.partial(Field, info.name, default=default, hint=union)
    if Exceptions in union:
        return make(must='a list of exceptions such as ["ValueError", "httpx.TransportError"]', read=exceptions)
    if float in union and not own_fault(kind, info.name, 2.0):  # what cannot be two is a share of one, no duration
        return make(must='a duration such as 300 or "5m"', read=seconds)
    words = " or ".join(_WORDS.get(each, str(each)) for each in union)
    return make(must=words, read=number if float in union else functools.partial(_strictly, union))


def _sized(value: Any) -> Any:
    """Return a value that is no whole number beyond the 64 bits that TOML speaks of."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise OverflowError(value)
    return value


def _strictly(union: tuple[Any, ...], value: Any) -> Any:
    """Return a value that is of one of these types already, a list as a tuple."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if type(value) not in {typing.get_origin(each) or each for each in union}:
        raise TypeError(value)
    return _sized(value)


def exceptions(value: Any) -> Exceptions:
    """Import the exception classes of a list of names: of Python's own, or dotted.

    Raises:
        Wrong: one cannot be found, or is no exception.
        TypeError: it is no list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(value)
    return tuple(_exception(name) for name in value)


def _exception(name: str) -> type[BaseException]:
    try:
        found = pkgutil.resolve_name(name if "." in name else f"builtins.{name}")
    except AttributeError as error:
        raise Wrong(_not_there(name, error)) from None
    except ValueError:
        raise Wrong(f"{name!r} is no name of an exception") from None
    except (Exception, SystemExit) as error:  # foreign code runs when a module is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Wrong(f"{name!r} cannot be imported: {reason}") from None
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise Wrong(f"{name!r} is no exception class")
    return found


def _not_there(name: str, error: AttributeError) -> str:
    missing, holder = str(error.name), error.obj
    if "." not in name:
        hint = "one of another module needs the module too, as in httpx.TransportError"
        return f"Python has no exception {name!r}; {way_out(missing, _exceptions_in(holder), hint)}"
    home = name[: name.rindex(f".{missing}")]
    return f"{home} has no {missing!r}; {way_out(missing, _exceptions_in(holder), 'look the name up')}"


def _exceptions_in(holder: Any) -> list[str]:
    return [
        name for name, value in vars(holder).items() if isinstance(value, type) and issubclass(value, BaseException)
    ]


def way_out(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" where a known name is near, else `otherwise`, or the list of the known ones."""
    known = list(known)
    lowered = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lowered, 1)
    if near:
        return f"did you mean {lowered[near[0]]!r}?"
    return otherwise or f"there are {', '.join(known) or 'none'}"


def looks_secret(name: str) -> bool:
    """Say whether the value under a key may be a secret."""
    return _SECRET.search(name) is not None


def show(value: Any, path: Path) -> str:
    """Write a value as TOML does, for a message: `'***'` for what may be a secret, the kind of what is long."""
    if path and looks_secret(str(path[-1])):
        return "'***'"
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value if len(value) <= 40 else f"{value[:40]}...", ensure_ascii=False)
        case dict():
            return "a table"
        case list():
            return "a list"
        case date() | datetime() | time():
            return value.isoformat()
        case int() if value.bit_length() > 63:
            return "a number of more than 64 bits"
    return str(value)


def guess(text: str) -> Any:
    """Return what a variable's text stands for where nothing says what it must be: TOML's value, else the text."""
    try:
        value = value_of(text)
    except ValueError:
        return str(text)
    return str(text) if isinstance(value, date | time) else value


def as_table(value: Any) -> Any:
    """Return what a variable says where a table is wanted, or `False`; other values as they are."""
    if not isinstance(value, Variable):
        return value
    return False if _SWITCH.get(value.strip().lower()) is False else guess(value)


def _from_variable(text: str, union: tuple[Any, ...]) -> Any:
    """Bring a variable's text into the form that a file would have given it."""
    if union == (bool,):
        return _SWITCH.get(text.strip().lower(), str(text))
    value = guess(text)
    if isinstance(value, list | dict):
        return value
    if any(typing.get_origin(each) is tuple for each in union) and (str not in union or "," in text):
        return [part.strip() for part in text.split(",")]
    return str(text) if str in union else value
