"""Events as log lines, as text or as JSON; the library installs no handlers."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from resilient_scan._text import brief, counted, hide, in_seconds
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.errors import ConfigError
from resilient_scan.events import (
    AttemptStarted,
    BreakerChanged,
    DeadlineActedOn,
    Event,
    LateCompletion,
    LocalFault,
    LoopBlocked,
    ProviderChanged,
    RunStarted,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    StoreFailed,
    StoreRecovered,
    SuspiciousResult,
    ThreadAbandoned,
)
from resilient_scan.results import LOCAL, SCANNER, ErrorInfo, ScanResult, Status, plain

logging.getLogger("resilient_scan").addHandler(logging.NullHandler())

FIELDS = ("scanner", "pipeline", "status", "run_id", "duration", "blame")
OUT_OF_SERVICE = (Status.REJECTED, Status.DISABLED)
_TROUBLE = frozenset(
    {
        "SuspiciousResult",
        "ThreadAbandoned",
        "DeadlineActedOn",
        "LoopBlocked",
        "ListenerLate",
        "LocalFault",
        "StoreFailed",
        "RetryBudgetExhausted",
    }
)


TROUBLE = frozenset(
    ["SuspiciousResult", "ThreadAbandoned", "DeadlineActedOn", "LoopBlocked", "StoreFailed", "RetryBudgetExhausted"]
)
WAY_OUT = 'in a process of its own it could be stopped (isolation="process")'
NOTABLE_LATENESS = 1.0  # seconds after a deadline from which on a log line says so


class LogEvents:
    """A listener that writes one line per event: answers at INFO, trouble at WARNING.

    Each record has the attributes `scanner`, `pipeline`, `status`, `run_id`, `duration` and `blame` (whose fault the
    error in it is), for other formatters and handlers; what the event does not say is `None`.

    A scanner that is rejected or disabled in run after run gets one line when that begins, and one that counts the
    skipped lines when it ends. A store that fails gets one line when that begins and one when it works again. A fault
    of this machine gets one warning when it begins; the scans that fail by it are at INFO. Secrets that can be
    recognized by their names (`token=...`, a password in a URL) are removed.

    Args:
        logger: where lines go; by default, the logger `resilient_scan`.
        format: `"text"` for people, or `"json"`, which makes each message a JSON object with `ts`, `level`, `event` and
            the event's fields (`run_id`, `scanner`, `attempt`...). In JSON, attempts, executions and ends of runs have
            lines too; attempts and executions that succeed are at DEBUG.
        clock: source of `ts`.

    Raises:
        ConfigError: there is no such format.
    """

    prompt = True
    events: tuple[type[Event], ...] = (
        RunStarted,
        ScanEnded,
        SuspiciousResult,
        BreakerChanged,
        ProviderChanged,
        ScannerStateChanged,
        ThreadAbandoned,
        LateCompletion,
        DeadlineActedOn,
        LoopBlocked,
        LocalFault,
        StoreFailed,
        StoreRecovered,
    )

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        format: str = "text",  # noqa: A002 - what users of logging know it by
        clock: Clock | None = None,
    ) -> None:
        if format not in {"text", "json"}:
            raise ConfigError(f"format must be 'text' or 'json', got {format!r}")
        self._logger = logger or logging.getLogger("resilient_scan")
        self._clock = clock or SystemClock()
        self._json = format == "json"
        if self._json:
            not_logged = (ScannersRegistered, AttemptStarted)
            self.events = tuple(kind for kind in Event.__subclasses__() if kind not in not_logged)
        # One count per scanner that is out of service. Several runs may end a scan of it at the same moment: `next` of
        # a count is atomic, so exactly one of them gets 0 and writes the line.
        self._out: dict[tuple[str, Status], Iterator[int]] = {}

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, ScanEnded) and not self._is_news(event.result):
            return
        if isinstance(event, StoreFailed | LocalFault) and not event.first:
            return
        if isinstance(event, DeadlineActedOn) and event.lateness < NOTABLE_LATENESS:
            return
        if self._json:
            self._line(_level(event), _name(event), _fields(event))
        else:
            self._text(event)

    def _is_news(self, result: ScanResult) -> bool:
        """Return whether a scan's end is logged: not if it is one more without an attempt, for the same reason."""
        if result.status in OUT_OF_SERVICE:
            number = next(self._out.setdefault((result.scanner, result.status), itertools.count()))
            return number == 0
        if self._out:
            for status in OUT_OF_SERVICE:
                count = self._out.pop((result.scanner, status), None)
                skipped = 0 if count is None else next(count) - 1
                if skipped:
                    self._log_skipped(result.scanner, status, skipped)
        return True

    def _log_skipped(self, scanner: str, status: Status, scans: int) -> None:
        if self._json:
            self._line(logging.INFO, "scans_untold", {"scanner": scanner, "status": status.value, "scans": scans})
        else:
            known = dict.fromkeys(FIELDS) | {"scanner": scanner, "status": status}
            self._logger.info("%s: %s %d more times in between", scanner, status.value, scans, extra=known)

    def _line(self, level: int, name: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            head = {"ts": _instant(self._clock.time()), "level": logging.getLevelName(level).lower(), "event": name}
            known = {field: fields.get(field) for field in FIELDS}
            self._logger.log(level, "%s", json.dumps({**head, **fields}), extra={**known, "is_json": True})

    def _log(self, event: Event, level: int, text: str, *parts: object) -> None:
        """Write a line with the event's fields next to it."""
        if self._logger.isEnabledFor(level):
            subject = getattr(event, "result", event)
            known = {field: getattr(subject, field, None) for field in FIELDS}
            known["run_id"] = getattr(event, "run_id", None)
            known["blame"] = getattr(getattr(subject, "error", None), "blame", None)
            self._logger.log(level, text, *parts, extra=known)

    def _text(self, event: Event) -> None:
        match event:
            case ScanEnded():
                self._scan(event)
            case RunStarted():
                self._run(event)
            case SuspiciousResult():
                self._log(event, logging.WARNING, "⚠️ %s: suspicious answer: %s", event.scanner, brief(event.reason))
            case BreakerChanged():
                tail = "" if event.open_for is None else f" for {in_seconds(event.open_for)}s"
                self._log(event, _level(event), "%s: breaker %s%s", event.scanner, event.new.replace("_", "-"), tail)
            case ScannerStateChanged():
                self._log(event, _level(event), "%s: %s (%s)", event.scanner, event.new, brief(hide(event.reason)))
            case _:
                self._rare(event)

    def _provider(self, event: ProviderChanged) -> None:
        tail = "" if event.open_for is None else f" for {in_seconds(event.open_for)}s, tried last by {event.by}"
        name, new = event.provider, event.new.replace("_", "-")
        self._log(event, _level(event), "provider %s: breaker %s%s", name, new, tail)

    def _abandoned(self, event: ThreadAbandoned) -> None:
        text, parts = "%s: thread %s did not stop in time, abandoned", [event.scanner, event.thread]
        if event.hint:
            text, parts = text + f": it %s; {WAY_OUT}", [*parts, event.hint]
        self._log(event, logging.WARNING, text, *parts)

    def _rare(self, event: Event) -> None:
        match event:
            case ProviderChanged():
                self._provider(event)
            case LocalFault():
                self._log(event, logging.WARNING, "%s", _of_machine(event))
            case StoreFailed() | StoreRecovered():
                self._store(event)
            case _:
                self._threads(event)

    def _store(self, event: StoreFailed | StoreRecovered) -> None:
        if isinstance(event, StoreFailed):
            self._log(event, logging.WARNING, "%s; runs go on without it", brief(hide(event.message)))
        else:
            self._log(event, logging.INFO, "the store works again")

    def _threads(self, event: Event) -> None:
        match event:
            case ThreadAbandoned():
                self._abandoned(event)
            case LateCompletion() if event.abandoned:
                took = in_seconds(event.duration)
                self._log(
                    event,
                    logging.INFO,
                    "%s: the abandoned call ended after %ss (%s)",
                    event.scanner,
                    took,
                    event.outcome,
                )
            case DeadlineActedOn():
                what = event.scanner or "the run"
                late = in_seconds(event.lateness)
                self._log(
                    event,
                    logging.WARNING,
                    "%s: its deadline was acted on %ss late: other code held the interpreter's lock",
                    what,
                    late,
                )
            case LoopBlocked():
                took = in_seconds(event.seconds)
                self._logger.warning(
                    "%s: blocks the event loop (%ss so far, at %s); it takes a worker from now on",
                    event.scanner,
                    took,
                    event.where,
                )

    def _run(self, event: RunStarted) -> None:
        how = f"concurrently (max {event.max_workers} workers)" if event.concurrent else "sequentially"
        demo = " on bundled data (demo)" if event.demo else ""
        self._log(event, logging.INFO, "Running %s %s%s...", counted(event.scanners, "scanner"), how, demo)

    def _scan(self, event: ScanEnded) -> None:
        result = event.result
        level, line = _line(result)
        self._log(event, level, "%s", line)
        if result.dropped:
            self._log(
                event,
                logging.WARNING,
                "⚠️ %s: %d invalid dropped, the first: %s",
                result.scanner,
                result.dropped,
                brief(hide(event.invalid)),
            )


class JsonLines(logging.Formatter):
    """Format any record as one line of JSON; records of `LogEvents(format="json")` are left as they are."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if getattr(record, "is_json", False):
            return record.getMessage()
        fields: dict[str, Any] = {
            "ts": _instant(record.created),
            "level": record.levelname.lower(),
            "event": "message",
            "message": hide(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = hide(self.formatException(record.exc_info))
        return json.dumps(fields)


def _instant(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name(event: Event) -> str:
    """Return `scan_ended` for a `ScanEnded`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def _fields(event: Event) -> dict[str, Any]:
    """Return an event's fields as JSON values; candidates and tool logs are only counted."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    result = fields.pop("result", None)
    if isinstance(result, ScanResult):
        own = {name: getattr(result, name) for name in result.__struct_fields__}
        counts = {"candidates": len(result.candidates), "tool_logs": len(result.tool_logs)}
        fields.update({**own, **counts})
    error = fields.get("error")
    if isinstance(error, ErrorInfo):
        fields["blame"] = error.blame
    if "attempts" in fields:  # of a scan or an execution: the last one
        fields["attempt"] = fields["attempts"]
    return {name: _value(value) for name, value in fields.items()}


def _value(value: Any) -> Any:
    if isinstance(value, ErrorInfo):
        return {**value.to_dict(), "message": hide(value.message)}
    return hide(value) if type(value) is str else plain(value)


def _level(event: Event) -> int:
    """Return an event's level: WARNING for trouble, DEBUG for what is expected all the time, INFO otherwise."""
    name = type(event).__name__
    if isinstance(event, ScanEnded):
        return _line(event.result)[0]
    outcome, new = getattr(event, "outcome", ""), getattr(event, "new", "")
    if name in {"HeartbeatSeen", "ScheduledRunBegins"} or (
        name in {"AttemptEnded", "ExecutionEnded"} and outcome == "success"
    ):
        return logging.DEBUG
    if name in _TROUBLE:
        return logging.WARNING
    bad = (name in {"BreakerChanged", "ProviderChanged"} and new == "open") or (
        name == "ScannerStateChanged" and new != "enabled"
    )
    return logging.WARNING if bad else logging.INFO


_LACKS = {
    "descriptors": "has no file descriptors left",
    "threads": "can start no thread",
    "network": "has no network",
    "disk": "has no room on a disk",
    "names": "resolves no names",
    "memory": "has no memory left",
}


def _of_machine(event: LocalFault) -> str:
    """Return the one line about a fault of this machine."""
    error = f"{event.error.kind}: {brief(hide(event.error.message))}"
    return f"this machine {_LACKS[event.kind]} ({event.scanner}: {error}); scans that fail by that count against nobody"


def _place(error: ErrorInfo) -> str:
    """Return where a failure comes from, in brackets: its line, and whose fault it is unless the scanner's own."""
    said = ", ".join(filter(None, (error.where, "" if error.blame == SCANNER else f"blame={error.blame}")))
    return said and f" ({said})"


def _line(result: ScanResult) -> tuple[int, str]:
    """Return level and text for the end of a scan."""
    name, found = result.scanner, counted(len(result.candidates), "candidate")
    why = brief(hide(result.error.message)) if result.error is not None else ""
    partial = f" ({found} before that)" if result.partial else ""
    place = "" if result.error is None else _place(result.error)
    trouble = logging.INFO if result.error is not None and result.error.blame == LOCAL else logging.WARNING
    match result.status:
        case Status.COMPLETED:
            return logging.INFO, f"✓ {name}: {found}"
        case Status.CACHED:
            return logging.INFO, f"✓ {name}: {found} (cached, {result.age or 0:.0f}s old)"
        case Status.STALE:
            return trouble, f"⚠️ {name}: {found} (stale, {result.age or 0:.0f}s old): {why}{place}"
        case Status.TIMEOUT:
            return logging.WARNING, f"⏱️ {name}: {why}{partial}{place}"
        case Status.ERROR:
            return trouble, f"⚠️ {name}: {why}{partial}{place}"
        case Status.REJECTED:
            return logging.WARNING, f"⚠️ {name}: rejected: {why}{place}"
        case _:
            return logging.INFO, f"{name}: {result.status.value}"
