"""Every exception that this package raises, those that a scanner steers its execution with, and what a group counts as.

`asyncio.TaskGroup` and anyio wrap whatever their tasks raise in an exception group. A group is judged by its leaves,
that is, the exceptions in it and in the groups in it. The first line that fits decides:

    a leaf is `SystemExit` or `KeyboardInterrupt`   the scanner wanted to end the process: no other leaf counts
    a leaf is a `RetryAfter`                        the group is one too, with the longest wait
    a leaf is a `PermanentError`                    no retry; a vote if another leaf has one
    otherwise                                       a retry if a leaf would be retried, a vote if a leaf has one

A group of nothing but `ScanCancelled` and `asyncio.CancelledError` is a cancellation.

The functions at the end of this file are the only ones that look into a group. The layers call them for every failure:
a plain exception is its own only leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from resilient_scan._log import log as _log


class ScanError(Exception):
    """Base of all errors of this package.

    Attributes:
        provider: the host and port to which the way broke down, where that is known; empty for everything else.
        excused: whether that provider's breaker has counted it, so that the scanner's own breaker does not.
        blame: whose fault it is unless the way to a provider broke down: `scanner`, or `source` (its answer), say.
    """

    provider: str = ""
    excused: bool = False
    blame: str = "scanner"


class PermanentError(ScanError):
    """Raise it from a scanner when trying again cannot help (a bad key, a premium endpoint).

    It is never retried and casts no vote in the breaker. An exception group that contains one is not retried, unless
    it contains a `RetryAfter` too, and votes only for its other exceptions.
    """

    blame = "source"


class ConfigError(PermanentError, ValueError):
    """An option, a setting or an argument is wrong; the message names it, its value and the fix.

    A scanner may raise it too, for a missing key or a wrong setting. It is not retried, and the breaker does not
    count it: nothing is wrong with the source.
    """

    blame = "scanner"


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Say whether a value is a finite number (not a `bool`) from `least` to `most`.

    It lives here, below every other module, because `RetryAfter` checks its argument too.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and least <= value <= most
    except OverflowError:  # an integer beyond every float
        return False


class PluginError(ScanError):
    """A scanner cannot be used: its import failed, its name is taken, or it lacks what a scanner needs."""


class StoreError(ScanError):
    """The store cannot be reached, is full, is locked or refuses us; the message contains no secret."""


class Rejected(ScanError):
    """The scan was refused without an attempt: too many abandoned threads, or one of the subclasses."""


class CircuitOpen(Rejected):
    """The breaker is open, or half-open with all trials taken."""


class LimitExceeded(Rejected):
    """A limit had no permit left before the deadline."""

    blame = "provider"


class WorkerLost(ScanError):
    """What an attempt ran on is gone. That says nothing about its source, so it casts no vote."""

    blame = "local"
    excused: bool = True


class ProcessEnded(ScanError):
    """The child process in which a scanner ran has ended by itself: it crashed, or called `os._exit`."""


class ScanTimeout(ScanError, TimeoutError):
    """The scan did not end before its deadline.

    Args:
        message: what took too long.
        by_clock: whether a deadline of ours has passed, as opposed to a scanner that raised it itself.
    """

    def __init__(self, message: str = "", *, by_clock: bool = False) -> None:
        super().__init__(message)
        self.by_clock = by_clock


class InvalidCandidate(ScanError, ValueError):
    """A candidate lacks a field, or a field has the wrong type or value."""


class RetryAfter(ScanError):
    """Raise it from a scanner when the source asks to be left alone for `seconds`.

    It is retried whether or not `Retry.on` names it, after exactly that wait (capped by
    `Retry.retry_after_cap`), and it counts as a failure in the breaker. An exception group with such
    errors in it counts as the one with the longest wait.

    Args:
        seconds: how long to wait, finite and >= 0.
        message: what the source said, without secrets.
    """

    blame = "source"

    def __init__(self, seconds: float, message: str = "") -> None:
        if not is_number(seconds, 0):
            raise ConfigError(f"RetryAfter: seconds must be a finite number >= 0, got {seconds!r}")
        super().__init__(seconds, message)
        self.seconds: float = float(seconds)
        self.message = message

    def __str__(self) -> str:
        """Return the message, or a sentence that names the wait."""
        return self.message or f"the source asks to wait {self.seconds:g}s"


class ScanCancelled(BaseException):
    """`ScanContext.check` and `ScanContext.sleep` raise it once nobody waits for the answer any more.

    It is a `BaseException`, so that a scanner's own `except Exception` does not swallow it.
    """


class ProcessKilled(ScanCancelled):
    """The child process of an attempt was killed, because nobody waits for the answer any more."""


_UNLISTED: Final = (PermanentError, Rejected, ScanCancelled)  # no retry and no vote, whatever `on` lists
_members: Final = BaseExceptionGroup.exceptions.__get__  # the group's own, whatever a subclass uses the name for


def leaves(error: BaseException) -> tuple[BaseException, ...]:
    """Return the exceptions in a group and in the groups in it, in order; a plain exception is its own only leaf.

    So is a group that is a `ScanError` too: its author has chosen how it is judged.
    """
    if not isinstance(error, BaseExceptionGroup):
        return (error,)
    found: list[BaseException] = []
    rest: list[BaseException] = [error]
    while rest:  # a loop, because groups may be nested deeper than Python recurses
        one = rest.pop()
        if isinstance(one, BaseExceptionGroup) and not isinstance(one, ScanError):
            rest.extend(reversed(_members(one)))
        else:
            found.append(one)
    return tuple(found)


def decisive_leaves(error: BaseException) -> tuple[BaseException, ...]:
    """Return the leaves that count: every `SystemExit` and `KeyboardInterrupt`, or all leaves if there are none."""
    if not isinstance(error, BaseExceptionGroup):
        return (error,)
    found = leaves(error)
    return tuple(leaf for leaf in found if isinstance(leaf, SystemExit | KeyboardInterrupt)) or found


def is_cancellation(error: BaseException) -> bool:
    """Say whether an error consists only of `ScanCancelled` and `asyncio.CancelledError`."""
    if isinstance(error, ScanCancelled):
        return True
    if isinstance(error, Exception):  # not even an `ExceptionGroup` can contain one of the two
        return False
    kinds = _cancellations()
    return all(isinstance(leaf, kinds) for leaf in leaves(error))


@cache
def _cancellations() -> tuple[type[BaseException], ...]:
    """Return the classes of cancellations; looked up once, because a scanner may reload asyncio meanwhile."""
    from asyncio import CancelledError  # noqa: PLC0415 - slow to import, and `import resilient_scan` needs this file

    return ScanCancelled, CancelledError


# The next three run for every failed attempt, most of them plain exceptions: a loop costs these less than a generator.


def is_permanent(error: BaseException) -> bool:
    """Say whether an error contains a `PermanentError`: another attempt would meet it again."""
    for leaf in leaves(error):  # noqa: SIM110
        if isinstance(leaf, PermanentError):
            return True
    return False


def requested_wait(error: BaseException) -> float | None:
    """Return the longest wait in seconds that a `RetryAfter` in an error asks for, `None` if it contains none."""
    longest = None
    for leaf in decisive_leaves(error):
        if isinstance(leaf, RetryAfter) and not isinstance(leaf, _UNLISTED):
            longest = max(longest or 0.0, leaf.seconds)
    return longest


def is_listed(error: BaseException, kinds: tuple[type[BaseException], ...] | Callable[[BaseException], bool]) -> bool:
    """Say whether `kinds`, from `Retry.on` or `Breaker.on`, list a leaf that counts, or say yes to one.

    Listing a group's class, `ExceptionGroup` for example, lists all its leaves; a predicate sees each leaf.
    """
    if not isinstance(kinds, tuple):
        return any(not isinstance(leaf, _UNLISTED) and _says_yes(kinds, leaf) for leaf in decisive_leaves(error))
    by_group = isinstance(error, kinds)
    for leaf in decisive_leaves(error):
        if (by_group or isinstance(leaf, kinds)) and not isinstance(leaf, _UNLISTED):
            return True
    return False


_stumbled: set[str] = set()  # predicates that have raised


def _says_yes(predicate: Callable[[BaseException], bool], leaf: BaseException) -> bool:
    """Return a predicate's answer; where it raises, yes, as the default `on` would say.

    The usual case is `lambda error: error.response.status_code == 503`, which meets a connection that was refused: that
    error has no response. If that meant no, a source that is down would never open its breaker.
    """
    try:
        return bool(predicate(leaf))
    except BaseException as error:  # foreign code; the failure that it was asked about must not be lost
        name = name_of(predicate)
        if name not in _stumbled:
            _stumbled.add(name)
            kinds = type(leaf).__qualname__, type(error).__qualname__
            _log.warning("the predicate %s, asked about %s, raised %s: that counts as yes", name, *kinds)
        return True


def name_of(function: Any) -> str:
    """Return the name by which a callable can be found in the code: the same in each process, unlike its `repr`."""
    function = getattr(function, "func", function)  # of a `functools.partial`
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


for _public in (
    ScanError,
    ConfigError,
    PluginError,
    Rejected,
    CircuitOpen,
    LimitExceeded,
    ScanTimeout,
    InvalidCandidate,
    RetryAfter,
    PermanentError,
    ScanCancelled,
    WorkerLost,
):
    _public.__module__ = "resilient_scan"  # users read and catch `resilient_scan.ScanTimeout`
