"""Every exception that this package raises, and those that a scanner raises to steer its own execution."""

from __future__ import annotations

import math


class ScanError(Exception):
    """Base of all errors of this package."""


class PermanentError(ScanError):
    """Raise it from a scanner when trying again cannot help (a bad key, a premium endpoint).

    It is never retried and casts no vote in the breaker.
    """


class ConfigError(PermanentError, ValueError):
    """An option, a setting or an argument is wrong; the message names it, its value and the fix.

    A scanner may raise it too, for a missing key or a wrong setting. It is not retried, and the breaker does not
    count it: nothing is wrong with the source.
    """


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
    """`ScanContext.check` and `ScanContext.sleep` raise it once nobody waits for the answer any more.

    It is a `BaseException`, so that a scanner's own `except Exception` does not swallow it.
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
