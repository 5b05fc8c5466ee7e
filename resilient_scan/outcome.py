"""How a scan ends, in one word, and what its error was."""

from __future__ import annotations

import dataclasses
import math
from enum import Enum, StrEnum
from typing import Any

import msgspec

from resilient_scan.redaction import hide

HUGE = 10_000  # bits of an integer
DEEP = 100  # levels of nesting


class Status(StrEnum):
    """The one status in which a scan ends. The set is closed.

    `completed`: the scanner answered. `cached`: answered from the cache, or by another scan's execution.
    `stale`: the execution failed, an older answer was there. `timeout`, `error`: the execution failed.
    `rejected`: refused without an attempt (breaker open, limit, abandoned threads).
    `disabled`: out of service. `skipped`: the run ended before its turn.
    """

    COMPLETED = "completed"
    CACHED = "cached"
    STALE = "stale"
    TIMEOUT = "timeout"
    ERROR = "error"
    REJECTED = "rejected"
    DISABLED = "disabled"
    SKIPPED = "skipped"

    @property
    def answered(self) -> bool:
        """Say whether the caller got an answer: completed, cached or stale."""
        return self in _ANSWERED


_ANSWERED = frozenset({Status.COMPLETED, Status.CACHED, Status.STALE})


MOST_MESSAGE = 10_000
"""How many characters of an exception's text are kept: a source may put its whole answer into it."""


class ErrorInfo(msgspec.Struct, frozen=True, gc=False):
    """What went wrong, as text: the exception itself would keep its frames alive.

    Attributes:
        type: the exception's qualified name, such as `httpx.ConnectTimeout` or `ValueError`.
        message: its text, without the secrets that can be told by their names, as it is logged, stored and shown to
            whoever may look, and at most `MOST_MESSAGE` characters of it; or the bare class name where it has none.
    """

    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Describe an exception; one whose `str` fails is described by its class."""
        kind = type(error)
        prefix = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        try:
            message = hide(_short(str(error)))
        except BaseException:  # the scanner's exception class is foreign code
            message = ""
        return cls(prefix + kind.__qualname__, message or kind.__name__)

    @property
    def kind(self) -> str:
        """Return the bare class name, such as `ConnectTimeout`."""
        return self.type.rpartition(".")[2]


def _short(text: str) -> str:
    return text if len(text) <= MOST_MESSAGE else f"{text[:MOST_MESSAGE]}... ({len(text)} characters)"


class ScanResult(msgspec.Struct, frozen=True, gc=False):
    """One scanner's part of a run, after its end.

    Attributes:
        scanner, pipeline: whose it is.
        status: how it ended.
        candidates: what was found, in the scanner's order; the caller's own objects.
        error: why there is no fresh answer, or `None`. Kept beside a stale answer too.
        attempts: calls of the scanner's function made for this scan; 0 where none was.
        duration: seconds from the start of the work (for a scan without work of its own: of the scan) to its end.
        queue_wait: seconds between the scan's turn and a worker's start on it.
        age: seconds since the answer was fetched, for cached and stale ones; 0 for one that was just shared.
        partial: whether `candidates` are only what was yielded before a timeout or an error.
        dropped: invalid candidates left out.
        tool_logs: what the scanner logged, in order.
        started_at: epoch seconds.
        suspicious: why this answer is hardly the truth (empty or small as never before, or mostly malformed), or
            `None`. It is handed over as it came, but not kept in the cache.
    """

    scanner: str
    pipeline: str
    status: Status
    candidates: list[Any]
    error: ErrorInfo | None
    attempts: int
    duration: float
    queue_wait: float
    age: float | None
    partial: bool
    dropped: int
    tool_logs: list[dict[str, Any]]
    started_at: float
    suspicious: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            **fields,
            "status": self.status.value,
            "candidates": [plain(candidate) for candidate in self.candidates],
            "error": None if self.error is None else {"type": self.error.type, "message": self.error.message},
            "tool_logs": [plain(entry) for entry in self.tool_logs],
        }


def plain(value: object, depth: int = 0) -> Any:
    """Turn any candidate or log entry into JSON-ready data; what has no such form becomes its text.

    Not-a-number and infinities have no JSON form and become `None`; what is nested too deeply becomes `...`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() < HUGE else hex(value)  # Python refuses to write that many digits
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth > DEEP:
        return "..."
    try:
        return _plain_object(value, depth + 1)
    except Exception:  # foreign code; a report must come out whatever a scanner found
        return f"<{type(value).__qualname__}>"


def _plain_object(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return {_text(key): plain(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth) for item in value]
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if hasattr(value, "model_dump"):  # pydantic, where the user brings it
        return plain(value.model_dump(mode="json"), depth)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name), depth) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth) for field in dataclasses.fields(value)}
    try:
        return msgspec.to_builtins(value)  # dates, Decimals, UUIDs, bytes...
    except Exception:  # not only TypeError: foreign objects
        return str(value)


def _text(key: object) -> str:
    try:
        return str(key)
    except Exception:  # foreign code
        return f"<{type(key).__qualname__}>"
