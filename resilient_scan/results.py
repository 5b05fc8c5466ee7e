"""What a run brings back: a report, with one result for each scanner and one status for each result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, StrEnum
from typing import Any, Final

import msgspec

from resilient_scan._once import IMPORTING
from resilient_scan._text import hide, writable
from resilient_scan._trace import NOWHERE, Home, name_of, traceback_of, where_of
from resilient_scan.errors import ConfigError, ScanError, is_number, leaves

MAX_MESSAGE: Final = 10_000  # characters of an exception's text: a source may put its whole answer into it
MAX_BITS: Final = 10_000  # bits of an integer
MAX_DEPTH: Final = 100  # levels of nesting

LOCAL, PROVIDER, SOURCE, SCANNER = "local", "provider", "source", "scanner"  # whose fault a failure is
BLAMES: Final = (LOCAL, PROVIDER, SOURCE, SCANNER)


class Status(StrEnum):
    """The one status in which a scan ends. The set is closed.

    `completed`: the scanner answered. `cached`: answered from the cache, or by another scan's execution.
    `stale`: the execution failed, and an older answer replaces it. `timeout`, `error`: the execution failed.
    `rejected`: refused without an attempt (open breaker, limit, abandoned threads).
    `disabled`: out of service. `skipped`: the run ended before the scanner's turn.
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


class Data(msgspec.Struct, frozen=True):
    """What can be handed to tools that want plain data: json, Celery, FastAPI.

    None of them is imported here. Celery's serializer asks an object for `__json__`; FastAPI makes a response of any
    object by `dict(object)`, or asks its class for a schema if an endpoint is annotated with it (`-> RunReport`).
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data."""
        return {name: plain(getattr(self, name)) for name in self.__struct_fields__}

    def __json__(self) -> dict[str, Any]:
        return self.to_dict()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> dict[str, Any]:
        as_data = {"type": "function-plain", "function": cls.to_dict, "return_schema": {"type": "any"}}
        return {"type": "is-instance", "cls": cls, "serialization": as_data}

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: object) -> dict[str, Any]:
        return {"title": cls.__name__, "type": "object"}


class ErrorInfo(Data, frozen=True, gc=False, eq=False):
    """What went wrong, as text: the exception itself would keep its frames alive.

    Attributes:
        type: the exception's qualified name, such as `httpx.ConnectTimeout` or `ValueError`.
        message: at most `MAX_MESSAGE` characters of its text, without secrets, because it is logged, stored and shown
            to everybody; the bare class name if it has no text.
        where: where it was raised, such as `KeyError at feeds.py:42 in parse`: the innermost line of the scanner's own
            package, else the innermost that is not ours; empty if the error is one of ours, such as a timeout.
        traceback: as Python writes it, without secrets, at most 8 kB; empty if `where` is, or if the error was kept
            for later (in the cache, by `ttl_error`).
        blame: whose fault it is: `local` (this machine), `provider` (the way to it), `source` (its answer) or `scanner`
            (its code, and what nobody else can be blamed for). Of an attempt's name that does not resolve, what was
            known when it ended: others may have failed likewise since.

    An exception group is described by its first leaf, with the number of the others: `no route (and 2 more)`. Two
    errors are equal if they have the same type and message, wherever they were raised.
    """

    type: str
    message: str
    where: str = ""
    traceback: str = ""
    blame: str = SCANNER

    @classmethod
    def of(cls, error: BaseException, home: Home = NOWHERE, blame: str = "") -> ErrorInfo:
        """Describe an exception, of a group its first leaf; one whose `str` fails is described by its class.

        Args:
            error: the exception; nothing of it is kept.
            home: where the scanner's own code is.
            blame: whose fault it is; if it is not given, what an error of ours says itself, else the scanner's.
        """
        found = leaves(error)
        first = found[0]
        name = name_of(first)
        kind = name.rpartition(".")[2]
        try:
            message = hide(short(str(first)))
        except BaseException:  # the scanner's exception class is foreign code
            message = ""
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        where = where_of(first, home, kind) or (where_of(error, home, kind) if more else "")
        traceback = "" if not where and isinstance(first, ScanError) else traceback_of(error)
        blame = blame or (first.blame if isinstance(first, ScanError) else SCANNER)
        return cls(writable(name), writable(message or kind) + more, writable(where), traceback, blame)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorInfo) and (self.type, self.message) == (other.type, other.message)

    def __hash__(self) -> int:
        return hash((self.type, self.message))

    @property
    def place(self) -> str:
        """Return `at feeds.py:42 in parse`, to stand next to the error's class."""
        return self.where.removeprefix(f"{self.kind} ")

    def without_traceback(self) -> ErrorInfo:
        """Return what is kept where there may be many: in the cache, and of each attempt."""
        return msgspec.structs.replace(self, traceback="") if self.traceback else self

    def blamed(self, blame: str) -> ErrorInfo:
        """Return this error as the fault of another party."""
        return self if blame == self.blame else msgspec.structs.replace(self, blame=blame)

    @property
    def kind(self) -> str:
        """Return the bare class name, such as `ConnectTimeout`."""
        return self.type.rpartition(".")[2]


def short(text: str) -> str:
    """Return foreign text, cut off if it is so long that it would fill a log."""
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}... ({len(text)} characters)"


class ScanResult(Data, frozen=True, gc=False):
    """One scanner's part of a run, after its end.

    Attributes:
        scanner, pipeline: names of the scanner and of its pipeline.
        status: how the scan ended.
        candidates: what was found, in the scanner's order; the caller's own objects.
        error: why there is no fresh answer, or `None`. A stale answer has one too.
        attempts: calls of the scanner's function made for this scan; 0 if none was made.
        duration: seconds from the start of the execution (or of the scan, if it needed none) to its end.
        queue_wait: seconds between the scan's turn and a worker's start on it.
        age: seconds since a cached or stale answer was fetched; 0 if it was shared as it arrived.
        partial: whether `candidates` are only those that were yielded before a timeout or an error.
        dropped: invalid candidates that were left out.
        tool_logs: what the scanner logged, in order.
        started_at: epoch seconds.
        suspicious: why this answer is probably wrong (empty or small as never before, or mostly malformed), or `None`.
            A suspicious answer is returned as it came, but not kept in the cache.
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
            "error": None if self.error is None else self.error.to_dict(),
            "tool_logs": [plain(entry) for entry in self.tool_logs],
        }


class RunReport(Data, frozen=True):
    """The result of one run.

    Attributes:
        run_id: unique.
        results: by scanner, in the order in which the scanners were given.
        started_at: epoch seconds.
        duration: seconds.
        demo: whether bundled data answered, not the sources.
    """

    run_id: str
    results: dict[str, ScanResult]
    started_at: float
    duration: float
    demo: bool = False

    @property
    def candidates(self) -> list[Any]:
        """All candidates, in the order of the scanners."""
        return [candidate for result in self.results.values() for candidate in result.candidates]

    @property
    def tool_logs(self) -> list[dict[str, Any]]:
        """What the scanners logged in this run, in the order of the scanners."""
        return [entry for result in self.results.values() for entry in result.tool_logs]

    @property
    def counts(self) -> Counter[Status]:
        """How many scans ended in each status; a status that did not occur counts 0, and is not listed."""
        return Counter(result.status for result in self.results.values())

    @property
    def by_pipeline(self) -> dict[str, list[ScanResult]]:
        """The results by pipeline, in the order of the scanners."""
        pipelines: dict[str, list[ScanResult]] = {}
        for result in self.results.values():
            pipelines.setdefault(result.pipeline, []).append(result)
        return pipelines

    @property
    def complete(self) -> bool:
        """Whether every scanner in service answered: completed, cached or stale."""
        statuses = {result.status for result in self.results.values()} - {Status.DISABLED}
        return all(status.answered for status in statuses)

    def require(self, fraction: float) -> RunReport:
        """Return this report if at least this share of the scanners in service answered.

        Args:
            fraction: from 0 to 1.

        Raises:
            ScanError: fewer answered; the message names those that did not.
            ConfigError: `fraction` is not from 0 to 1.
        """
        if not is_number(fraction, 0, 1):
            raise ConfigError(f"require: fraction must be from 0 to 1, got {fraction!r}")
        called = [result for result in self.results.values() if result.status is not Status.DISABLED]
        silent = [result for result in called if not result.status.answered]
        if len(called) - len(silent) < fraction * len(called) - 1e-9:  # 0.28 * 25 is a little more than 7
            names = ", ".join(f"{result.scanner} ({result.status.value})" for result in silent)
            raise ScanError(
                f"{len(called) - len(silent)} of {len(called)} scanners answered, {fraction:.0%} are required; "
                f"these did not: {names}"
            )
        return self

    def merged(self, key: Callable[[Any], Any] | None = None) -> list[Merged]:
        """Return the candidates merged by what they are about, the most important first.

        The best priority comes first (`critical`, `high`, `medium`, `low`, then all other words), then the most
        sources, then the key: the same candidates come in the same order, whichever scanner ended first.

        Args:
            key: returns what a candidate is about, hashable; `None`: its `ticker` (a field, or an item of a mapping),
                or the whole candidate if it has none, so that only equal ones are merged.
        """
        groups: dict[Any, list[tuple[str, Any]]] = {}
        for result in self.results.values():
            for candidate in result.candidates:
                about = _ticker(candidate) if key is None else key(candidate)
                groups.setdefault(about, []).append((result.scanner, candidate))
        found = [_merge(about, group) for about, group in groups.items()]
        return sorted(found, key=lambda one: (_rank(one.priority), -len(one.sources), one.ticker))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data."""
        results = {name: result.to_dict() for name, result in self.results.items()}
        return {
            "run_id": self.run_id,
            "started_at": self.started_at,
            "duration": self.duration,
            "complete": self.complete,
            "demo": self.demo,
            "counts": {status.value: count for status, count in self.counts.items()},
            "results": results,
            "candidates": [candidate for result in results.values() for candidate in result["candidates"]],
            "tool_logs": [entry for result in results.values() for entry in result["tool_logs"]],
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict` as strict JSON text: no NaN, and ASCII only, so that no encoding can break it.

        Args:
            indent: blanks for each level; `None`: all on one line.
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_records(self) -> list[dict[str, Any]]:
        """Return a flat row for each candidate, for `pandas.DataFrame(...)` and the like.

        A row has `run_id`, `scanner`, `pipeline`, `status`, `age`, `partial` and `suspicious` of the scan, then the
        candidate's own fields and its extras. Nested values are JSON text. All rows have the same columns: what one
        does not have is `None`. A name that is taken is written `candidate.name` or `extras.name`.
        """
        with IMPORTING:
            from resilient_scan._forms import records  # noqa: PLC0415 - no run needs it

        return records(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        with IMPORTING:
            from resilient_scan._forms import html_of_report  # noqa: PLC0415 - no run needs it

        return html_of_report(self)


def results_in_order(names: tuple[str, ...], results: Mapping[str, ScanResult]) -> dict[str, ScanResult]:
    """Return the results in the order of the names."""
    if len(results) == len(names):  # a run that has ended: one step in C
        return dict(zip(names, map(results.__getitem__, names), strict=True))
    return {name: results[name] for name in names if name in results}


# Candidates that are about the same thing

_RANKS: Final = {"critical": 0, "high": 1, "medium": 2, "low": 3}  # any other word comes after these


class Merged(Data, frozen=True):
    """What several scanners say about one thing.

    Attributes:
        key: what it is about: the ticker, unless `merged` was given another key.
        priority: the best of the candidates' priorities; at least `high` from 2 sources on, `critical` from 3.
        sources: where it was found, each source once, in the order of the scanners.
        contexts: what they say, each sentence once, in the same order.
        candidates: the candidates themselves.
    """

    key: Any
    priority: str
    sources: tuple[str, ...]
    contexts: tuple[str, ...]
    candidates: tuple[Any, ...]

    @property
    def ticker(self) -> str:
        """The key as text."""
        return str(self.key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data; `ticker` is the key."""
        fields = {name: plain(getattr(self, name)) for name in self.__struct_fields__ if name != "key"}
        return {"ticker": self.ticker, **fields}


def _field(candidate: Any, name: str) -> str:
    """Return a field of a candidate of any type, or "" if it has no such field, or one that is not a text."""
    value = candidate.get(name) if isinstance(candidate, Mapping) else getattr(candidate, name, None)
    return value if isinstance(value, str) else ""


def _ticker(candidate: Any) -> str:
    return _field(candidate, "ticker") or str(plain(candidate))


def _rank(priority: str) -> int:
    return _RANKS.get(priority.lower(), len(_RANKS))


def _merge(about: Any, group: list[tuple[str, Any]]) -> Merged:
    """Merge what was found about one thing: pairs of a scanner's name and its candidate."""
    candidates = tuple(candidate for _, candidate in group)
    sources = tuple(dict.fromkeys(_field(candidate, "source") or scanner for scanner, candidate in group))
    contexts = tuple(dict.fromkeys(filter(None, (_field(candidate, "context") for candidate in candidates))))
    confluence = ("unknown", "unknown", "high", "critical")[min(len(sources), 3)]
    priorities = [*(_field(candidate, "priority") or "unknown" for candidate in candidates), confluence]
    return Merged(about, min(priorities, key=_rank), sources, contexts, candidates)


# JSON-ready data


def plain(value: object, depth: int = 0) -> Any:
    """Turn any candidate or log entry into JSON-ready data; a value without a JSON form becomes its text.

    Not-a-number and infinities become `None`, and values that are nested too deeply become `...`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() < MAX_BITS else hex(value)  # Python refuses to write that many digits
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth > MAX_DEPTH:
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
