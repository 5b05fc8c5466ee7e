"""Poisons that raise: what ends programs, exceptions that are traps themselves, and failures without a bottom."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from resilient_scan import CircuitOpen, PermanentError, RetryAfter, ScanCancelled, ScanContext
from tests.torture.register import found, hang, poison

GROUP = "raises"


class OwnBase(BaseException):
    pass


@poison("calls `sys.exit(0)`", "error", group=GROUP)
def sys_exit(_state: dict[str, Any]) -> Any:
    sys.exit(0)


@poison("raises `KeyboardInterrupt`", "error", group=GROUP)
def keyboard_interrupt(_state: dict[str, Any]) -> Any:
    raise KeyboardInterrupt


@poison("raises `GeneratorExit`", "error", group=GROUP)
def generator_exit(_state: dict[str, Any]) -> Any:
    raise GeneratorExit


@poison("raises a `BaseException` of its own", "error", group=GROUP)
def own_base_exception(_state: dict[str, Any]) -> Any:
    raise OwnBase("own")


@poison("raises `StopIteration`", "error", group=GROUP)
def stop_iteration(_state: dict[str, Any]) -> Any:
    raise StopIteration


@poison("raises `MemoryError`", "error", group=GROUP)
def memory_error(_state: dict[str, Any]) -> Any:
    raise MemoryError


@poison("raises `ScanCancelled` although nobody cancelled it", "error", group=GROUP)
def raises_scan_cancelled(_state: dict[str, Any]) -> Any:
    raise ScanCancelled


@poison("raises asyncio's `CancelledError` without a loop", "error", group=GROUP)
def raises_cancelled_error(_state: dict[str, Any]) -> Any:
    raise asyncio.CancelledError


@poison("raises the breaker's own refusal", "error", group=GROUP)
def raises_circuit_open(_state: dict[str, Any]) -> Any:
    raise CircuitOpen("not really")


@poison("asks for a wait of 10**300 seconds", "error", group=GROUP)
def endless_retry_after(_state: dict[str, Any]) -> Any:
    raise RetryAfter(1e300)


@poison("recurses without an end", "error", group=GROUP)
def deep_recursion(state: dict[str, Any]) -> Any:
    return [deep_recursion(state)]


@poison("compares two lists that contain themselves", "error", group=GROUP)
def deep_comparison(_state: dict[str, Any]) -> Any:
    one: list[Any] = []
    other: list[Any] = [one]
    one.append(other)
    return found(str(one == other))


class StrRaises(Exception):
    def __str__(self) -> str:
        raise OwnBase("no text")

    __repr__ = __str__


@poison("raises an error whose `__str__` and `__repr__` raise", "error", group=GROUP)
def error_str_raises(_state: dict[str, Any]) -> Any:
    raise StrRaises


class StrHangs(Exception):
    def __str__(self) -> str:
        hang()
        return ""

    __repr__ = __str__


@poison("raises an error whose `__str__` hangs", "timeout", group=GROUP)
def error_str_hangs(_state: dict[str, Any]) -> Any:
    raise StrHangs


@poison("raises an error whose `__str__` hangs, and is not to be retried", "timeout", group=GROUP, retry=None)
def error_str_hangs_at_once(_state: dict[str, Any]) -> Any:
    raise StrHangs


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in {"__qualname__", "__module__", "__name__"}:
            raise Unnamed
        return super().__getattribute__(name)


class Unnamed(Exception, metaclass=Nameless):
    pass


@poison("raises an error whose class has no name", "error", group=GROUP)
def error_class_without_name(_state: dict[str, Any]) -> Any:
    raise Unnamed


class TextHangs(str):
    __slots__ = ()
    __len__ = __getitem__ = __contains__ = __format__ = hang  # type: ignore[assignment]


class TextIsATrap(Exception):
    def __str__(self) -> str:
        return TextHangs("a text")


@poison("raises an error whose text is a trap", "timeout", "error", group=GROUP, keeps=True)
def error_text_is_a_trap(_state: dict[str, Any]) -> Any:
    raise TextIsATrap


class ClassLies(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise OwnBase("what am I?")


@poison("raises an error that does not say what it is", "error", group=GROUP)
def error_class_lies(_state: dict[str, Any]) -> Any:
    raise ClassLies


class FlagsRaise(Exception):
    def __getattr__(self, name: str) -> Any:
        raise OwnBase(name)

    def __eq__(self, other: object) -> bool:
        raise OwnBase("eq")

    def __hash__(self) -> int:
        raise OwnBase("hash")

    def __bool__(self) -> bool:
        raise OwnBase("bool")

    def __reduce__(self) -> Any:
        raise OwnBase("reduce")


@poison("raises an error that cannot be compared, hashed, tested or pickled", "error", group=GROUP)
def error_methods_raise(_state: dict[str, Any]) -> Any:
    raise FlagsRaise("methods")


@poison("raises an error with 50 million characters of text", "error", group=GROUP)
def huge_message(_state: dict[str, Any]) -> Any:
    raise ValueError("token=abc " + "x" * 50_000_000)


@poison("raises an error that is its own cause and context", "error", group=GROUP)
def cyclic_causes(_state: dict[str, Any]) -> Any:
    one, other = ValueError("one"), PermanentError("other")
    one.__cause__, other.__cause__ = other, one
    one.__context__, other.__context__ = other, one
    raise one


@poison("raises a group that is nested 10,000 deep", "error", group=GROUP)
def deep_group(_state: dict[str, Any]) -> Any:
    error: Exception = ValueError("at the bottom")
    for _ in range(10_000):
        error = ExceptionGroup("deeper", [error])
    raise error


@poison("raises a group of 20,000 errors", "error", group=GROUP)
def wide_group(_state: dict[str, Any]) -> Any:
    raise ExceptionGroup("many", [ValueError(str(number)) for number in range(20_000)])


class ExitRaises:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise OwnBase("exit")


class ExitHangs(ExitRaises):
    def __exit__(self, *_: object) -> None:
        hang()


@poison("uses a `with` whose `__exit__` raises", "error", group=GROUP)
def exit_raises(_state: dict[str, Any]) -> Any:
    with ExitRaises():
        raise ValueError("inside")


@poison("uses a `with` whose `__exit__` hangs", "timeout", group=GROUP)
def exit_hangs(_state: dict[str, Any]) -> Any:
    with ExitHangs():
        return found()


@poison("raises another error in the middle of its cancel", "timeout", "error", group=GROUP)
def raises_while_cancelled(_state: dict[str, Any], context: ScanContext) -> Any:
    try:
        context.sleep(60)
    finally:
        raise OwnBase("in the middle of the end")


@poison("catches its cancel and goes on for a second", "timeout", group=GROUP)
def catches_its_cancel(_state: dict[str, Any], context: ScanContext) -> Any:
    try:
        context.sleep(60)
    except BaseException:
        time.sleep(1)
    return found()
