"""Every exception that this package raises, and the ones that a scanner raises to steer it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence


class ScanError(Exception):
    """Base of all errors of this package."""


class PermanentError(ScanError):
    """Raise it from a scanner when trying again cannot help (a bad key, a premium endpoint).

    It is never retried and has no vote in the breaker.
    """


class ConfigError(PermanentError, ValueError):
    """An option, a setting or an argument is wrong; the message names it, its value and the way out.

    A scanner that raises it, for a key that is missing or a setting that is wrong, is not asked again for it, and its
    breaker stays as it is: what is wrong is not the source.
    """


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Say whether a value is a finite number (a `bool` is none) from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and least <= value <= most
    except OverflowError:  # an integer beyond every float
        return False


def no_scanner(name: object, names: Sequence[str]) -> str:
    """Say that there is no such scanner, and which one may be meant."""
    near = difflib.get_close_matches(str(name), names, n=1)
    way_out = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"there is no scanner {name!r}; {way_out}"


class PluginError(ScanError):
    """A scanner cannot be used: its import failed, its name is taken, or it lacks what a scanner needs."""


class StoreError(ScanError):
    """The store cannot be reached, is full, is locked or refuses us; the message holds no secret."""


class Rejected(ScanError):
    """The scan was refused without an attempt: abandoned threads, or one of the subclasses."""


class CircuitOpen(Rejected):
    """The breaker is open, or half-open with all trials taken."""


class LimitExceeded(Rejected):
    """A limit had no permit left before the deadline."""


class ScanTimeout(ScanError, TimeoutError):
    """The scan did not end before its deadline.

    Args:
        message: what took too long.
        by_clock: whether a deadline of ours has passed, as opposed to a scanner that raised it by itself.
    """

    def __init__(self, message: str = "", *, by_clock: bool = False) -> None:
        super().__init__(message)
        self.by_clock = by_clock


class InvalidCandidate(ScanError, ValueError):
    """A candidate lacks a field, or a field has a wrong type or value."""


class RetryAfter(ScanError):
    """Raise it from a scanner: the source asks to be left alone for `seconds`.

    It is retried whether or not `Retry.on` names it, after exactly that wait (capped by
    `Retry.retry_after_cap`), and it counts as a failure in the breaker.

    Args:
        seconds: how long to wait, finite and >= 0.
        message: what the source said, without secrets.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if not is_number(seconds, 0):
            raise ConfigError(f"RetryAfter: seconds must be a finite number >= 0, got {seconds!r}")
        super().__init__(seconds, message)
        self.seconds = float(seconds)
        self.message = message

    def __str__(self) -> str:
        """Return the message, or a sentence that names the wait."""
        return self.message or f"the source asks to wait {self.seconds:g}s"


class ScanCancelled(BaseException):
    """`ScanContext.check` and `ScanContext.sleep` raise it when nobody waits for the answer any more.

    A `BaseException`, so that a scanner's own `except Exception` does not swallow it.
    """


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
):
    _public.__module__ = "resilient_scan"  # users read and catch `resilient_scan.ScanTimeout`
