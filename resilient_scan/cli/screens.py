"""Show runs, reports and messages to people; `tables` draws them. Knows rich, for the table of a run under way.

What is shown came from outside sources, so it is drawn without markup and without control characters: a headline must
not be able to drive a terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resilient_scan._text import brief, clean, counted, hide
from resilient_scan.cli.choice import Request, need_keys
from resilient_scan.cli.faults import PIPELINE, Watch
from resilient_scan.cli.fleet import ReadyFleet
from resilient_scan.cli.process import OUTPUT
from resilient_scan.cli.tables import console_of, draw, elapsed, live_table, write
from resilient_scan.cli.verify import Verified, summary
from resilient_scan.events import (
    AttemptEnded,
    Event,
    Listener,
    RunEnded,
    RunStarted,
    ScanEnded,
    ScannersRegistered,
    StoreFailed,
    StoreRecovered,
)
from resilient_scan.observe.logs import JsonLines, LogEvents
from resilient_scan.results import Merged, RunReport, ScanResult, Status, plain
from resilient_scan.stores.columns import DaySummary
from resilient_scan.stores.history import RunRecord

MAX_CANDIDATES: Final = 40
MAX_ROWS: Final = 20  # of a live table
MAX_MISSING: Final = 3  # scanners that did not answer, by name
PER_SECOND: Final = 4
REHEARSAL_PAUSE: Final = (
    1.1  # seconds between two runs with faulty scanners: the answers of the first are stale by then
)
JSON_LINES: Final = JsonLines()
_log: Final = logging.getLogger("resilient_scan")
TEXT_LINES: Final = logging.Formatter("%(message)s")
ANSWERED: Final = {status.value for status in Status if status.answered}

# Messages.


class Messages:
    """How messages on stderr are written: as plain text, or each as a JSON object."""

    json = False

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return (JSON_LINES if self.json else TEXT_LINES).format(record)


MESSAGES: Final = Messages()


def say(lines: Iterable[str], level: int = logging.INFO) -> None:
    """Write messages, one a line, to stderr."""
    for line in lines:
        record = logging.LogRecord("resilient_scan", level, "", 0, line, None, None)
        # On a full disk, and after a scanner has closed or removed stderr, the line is lost and nothing else.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{MESSAGES.format(record)}\n")


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(value, OUTPUT.stream, indent=2, ensure_ascii=False, allow_nan=False)
    OUTPUT.stream.write("\n")
    OUTPUT.stream.flush()


class _ToStderr(logging.StreamHandler[TextIO]):
    """Write to whatever stderr is at the moment: a live table replaces it, and puts lines above its rows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    def format(self, record: logging.LogRecord) -> str:
        return MESSAGES.format(record)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # as in the standard library's own handler of last resort
        return sys.stderr


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Send the library's log lines to stderr; a character that the terminal lacks does not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logger, handler = logging.getLogger("resilient_scan"), _ToStderr()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def introduce(fleet: ReadyFleet, request: Request, *, verbose: int = 0) -> None:
    """Say what someone might not expect of this fleet.

    Scanners without keys are counted in one line, unless they were asked for by name: people who do not use nine of
    the stock scanners should not have to read nine lines before every run.
    """
    say(f"problem: {problem}" for problem in fleet.problems)
    lacking = fleet.not_configured
    named = lacking if verbose or request.replay else [name for name in lacking if name in request.only]
    say(f"not configured: {name}: {lacking[name]}" for name in named)
    if others := len(lacking) - len(named):
        say([f"{others} more {need_keys(others, request)}"])
    say(f"switched off by the settings: {name}" for name in fleet.switched_off)
    if fleet.metrics_url:
        say([f"metrics: {fleet.metrics_url}"])


# A report, and the runs of the past.


def print_report(report: RunReport | None, fleet: ReadyFleet, *, as_json: bool, merged: bool = False) -> None:
    """Write what a run found, `merged` by ticker if wanted; write nothing if there is no report."""
    if report is None:
        return
    if as_json:
        together = {"merged": [one.to_dict() for one in report.merged()]} if merged else {}
        print_json({**report.to_dict(), **together})
        return
    show_results(report.results.values(), OUTPUT.stream)
    if report.candidates:
        OUTPUT.stream.write("\n")
        if merged:
            show_merged(report.merged(), OUTPUT.stream)
        else:
            show_candidates(report.candidates, OUTPUT.stream)
    OUTPUT.stream.write("\n")
    write(clean(fleet.summary(report)), OUTPUT.stream)
    OUTPUT.stream.flush()


def show_results(results: Iterable[ScanResult], stream: TextIO) -> None:
    """Write one line per scan: how it ended, how much it found, how long it took, and what went wrong."""
    columns = ("scanner", "pipeline", "status", "candidates", "duration", "note")
    rows = [
        (r.scanner, r.pipeline, r.status.value, str(len(r.candidates)), elapsed(r.duration), note(r)) for r in results
    ]
    draw(columns, rows, stream, right=("candidates", "duration"), spare=("pipeline", "duration"))


def show_candidates(candidates: Sequence[Any], stream: TextIO) -> None:
    """Write one line per candidate, at most 40 of them."""
    rows = [_candidate_row(plain(candidate)) for candidate in candidates[:MAX_CANDIDATES]]
    draw(("ticker", "found by", "priority", "context"), rows, stream)
    if len(candidates) > MAX_CANDIDATES:
        stream.write(f"... and {len(candidates) - MAX_CANDIDATES} more; --json has them all\n")


def show_merged(found: Sequence[Merged], stream: TextIO) -> None:
    """Write one line per thing that was found, at most 40 of them."""
    rows = [(one.ticker, ", ".join(one.sources), one.priority, "; ".join(one.contexts)) for one in found]
    draw(("ticker", "found by", "priority", "context"), rows[:MAX_CANDIDATES], stream)
    if len(found) > MAX_CANDIDATES:
        stream.write(f"... and {len(found) - MAX_CANDIDATES} more; --json has them all\n")


def note(result: ScanResult) -> str:
    """Return what a reader should know besides the status, or an empty text."""
    parts = []
    if result.error is not None:
        parts.append(f"{result.error.kind}: {result.error.message}")
    if result.partial:
        parts.append("partial")
    if result.suspicious:
        parts.append(f"suspicious: {result.suspicious}")
    if result.dropped:
        parts.append(f"{result.dropped} invalid dropped")
    if result.age:
        parts.append(f"{elapsed(result.age)} old")
    if result.attempts > 1:
        parts.append(f"{result.attempts} attempts")
    return ", ".join(parts)


def _candidate_row(candidate: Any) -> tuple[str, str, str, str]:
    """Return the columns of a `Candidate`; a candidate of another type is shown whole, as its context."""
    if not isinstance(candidate, Mapping) or "ticker" not in candidate:
        return "", "", "", str(candidate)
    ticker, source, priority, context = (
        str(candidate.get(key, "")) for key in ("ticker", "source", "priority", "context")
    )
    return ticker, source, priority, context


def print_history(runs: Iterable[RunRecord]) -> None:
    """Write one line per run of the past."""
    columns = ("started", "took", "answered", "statuses", "note")
    draw(columns, map(history_row, runs), OUTPUT.stream, right=("took", "answered"))


def print_attempts(days: Iterable[DaySummary]) -> None:
    """Write one line per day of a scanner's attempts."""
    columns = ("day", "attempts", "p50", "p90", "p99", "longest", "errors", "timeouts", "note")
    draw(columns, map(attempts_row, days), OUTPUT.stream, right=columns[1:-1])


def attempts_row(day: DaySummary) -> tuple[str, ...]:
    """Return a day's cells: how many attempts, how long they took, how they ended, and what else is to be known."""
    spans = (day.p50, day.p90, day.p99, day.longest)
    notes = [
        *([f"{day.retries:,} retried"] if day.retries else []),
        *([f"{day.cancelled:,} cancelled"] if day.cancelled else []),
    ]
    if day.returned_after is not None:
        notes.append(
            f"{counted(day.returned, 'thread')} came back late, half of them after {elapsed(day.returned_after)}"
        )
    return (
        day.day,
        f"{day.attempts:,}",
        *("-" if span is None else elapsed(span) for span in spans),
        f"{day.errors:,}",
        f"{day.timeouts:,}",
        ", ".join(notes),
    )


def history_row(run: RunRecord) -> tuple[str, ...]:
    """Return a run's cells: when it began, how long it took, how many answered, how all ended, who did not answer."""
    in_service = [scan for scan in run.scans.values() if scan.status != Status.DISABLED]
    answered = sum(scan.status in ANSWERED for scan in in_service)
    return (
        datetime.fromtimestamp(run.started_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
        elapsed(run.duration),
        f"{answered} of {len(in_service)}",
        ", ".join(f"{count} {status}" for status, count in sorted(run.counts.items())),
        _missing(run),
    )


def _missing(run: RunRecord) -> str:
    names = [
        f"{name} ({scan.error or scan.status})"
        for name, scan in run.scans.items()
        if scan.status not in ANSWERED and scan.status != Status.DISABLED
    ]
    more = len(names) - MAX_MISSING
    return ", ".join(names[:MAX_MISSING]) + (f" and {more} more" if more > 0 else "")


# A run while it goes on.


def is_live(stream: TextIO) -> bool:
    """Say whether a table that changes can be drawn on `stream`."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


@contextlib.contextmanager
def listening(verbose: int = 0) -> Iterator[list[Listener]]:
    """Show a run on stderr while it goes on: a live table on a terminal, log lines elsewhere.

    Args:
        verbose: 1: log lines everywhere, more of them; 2: a line for every event.
    """
    if verbose > 1:  # put back by `messages_on_stderr`
        _log.setLevel(logging.DEBUG)
    if MESSAGES.json:
        yield [LogEvents(format="json")]
        return
    if verbose or not is_live(sys.stderr):
        yield [LogEvents(), *([Details(verbose)] if verbose else [])]
        return
    log = LogEvents()
    log.events = (StoreFailed, StoreRecovered)  # no row of the table shows these
    with LiveTable(sys.stderr) as table:
        yield [table, log]


class Details:
    """A listener that logs what `LogEvents` leaves out.

    Args:
        verbose: 1: attempts that failed, and the ends of runs; 2: every event, with its fields.
    """

    def __init__(self, verbose: int) -> None:
        logged = LogEvents.events
        few = (AttemptEnded, RunEnded)
        self.events: tuple[type[Event], ...] = (
            few if verbose < 2 else tuple(kind for kind in Event.__subclasses__() if kind not in logged)
        )

    def __call__(self, event: Event) -> None:
        """Log one event."""
        match event:
            case AttemptEnded() if event.outcome != "success":
                _log.info("%s", brief(hide(_failed(event, f"{event.scanner}: "))))
            case RunEnded():
                ended = ", ".join(f"{count} {status.value}" for status, count in sorted(event.counts.items()))
                _log.info("The run took %s: %s", elapsed(event.duration), ended)
            case _:
                fields = (f"{name}={getattr(event, name)}" for name in event.__struct_fields__ if name != "at")
                _log.debug("%s: %s", type(event).__name__, brief(hide(", ".join(fields))))


def _failed(event: AttemptEnded, whose: str = "") -> str:
    why = "" if event.error is None else f": {event.error.kind}: {event.error.message}"
    return f"{whose}attempt {event.attempt} ended: {event.outcome}{why}"


class LiveTable:
    """A listener that draws a run while it goes on, and wipes the picture away when the run has ended.

    It is a context manager that leaves no picture behind, however the run ends. Its own thread draws it four times a
    second from what the events have said so far, so it does not slow down a fast fleet.

    Args:
        stream: a terminal.
    """

    events: tuple[type[Event], ...] = (ScannersRegistered, RunStarted, AttemptEnded, ScanEnded, RunEnded)

    def __init__(self, stream: TextIO) -> None:
        self._lock = threading.Lock()  # worker threads write the rows while the table's thread draws them
        self._names: tuple[str, ...] = ()
        self._ended: dict[str, ScanResult] = {}
        self._notes: dict[str, str] = {}
        self._began = 0.0
        self._live = Live(
            get_renderable=self._drawn,
            console=console_of(stream),
            refresh_per_second=PER_SECOND,
            transient=True,
            redirect_stdout=OUTPUT.is_kept,  # it leads to stderr then, and what is printed goes above the rows
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        with self._lock:
            match event:
                case ScannersRegistered():
                    self._names = tuple(scanner.name for scanner in event.scanners)
                case AttemptEnded() if event.outcome != "success":
                    self._notes[event.scanner] = _failed(event)
                case ScanEnded():
                    self._ended[event.result.scanner] = event.result
        # Outside the lock, because starting and stopping draw the table: `_drawn` would wait for the lock that its own
        # caller holds. And the drawing thread holds rich's lock while it waits for ours, so we must not wait for rich's
        # while we hold ours.
        if isinstance(event, RunStarted):
            self._ended, self._notes, self._began = {}, {}, time.monotonic()
            self._live.start(refresh=True)
        elif isinstance(event, RunEnded):
            self._live.stop()

    def _drawn(self) -> Group:
        with self._lock:
            ended, notes = dict(self._ended), dict(self._notes)
        bar = Table.grid(padding=(0, 1))
        took = elapsed(time.monotonic() - self._began)
        count = Text(f"{len(ended)} of {len(self._names)} scans ended, {took}")
        bar.add_row(ProgressBar(max(1, len(self._names)), len(ended), width=30), count)
        rows = [live_row(name, ended.get(name), notes.get(name, "")) for name in shown(self._names, ended)]
        table = live_table(("scanner", "status", "candidates", "duration", "note"), rows, ("candidates", "duration"))
        hidden = len(self._names) - len(rows)
        return Group(bar, table, *([Text(f"... and {hidden} more")] if hidden else []))


def shown(names: Sequence[str], ended: Mapping[str, ScanResult]) -> list[str]:
    """Return the scanners that get a row, in the given order; of too many, those that have not ended come first."""
    first = sorted(names, key=lambda name: name in ended)[:MAX_ROWS]
    return [name for name in names if name in set(first)] if len(names) > MAX_ROWS else list(names)


def live_row(name: str, result: ScanResult | None, note_so_far: str) -> list[str]:
    """Return a scanner's cells, whether its scan has ended or not."""
    if result is None:
        return [name, "...", "", "", clean(note_so_far)]
    return [
        name,
        result.status.value,
        str(len(result.candidates)),
        elapsed(result.duration),
        clean(note(result)),
    ]


# Two runs, compared.


def rehearse(fleet: ReadyFleet, watch: Watch) -> RunReport:
    """Run twice, say how each scan ended and which layer saw to it, and return the second report.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what ran until then is printed.
    """
    first = _rehearsed("FIRST RUN", fleet, watch)
    time.sleep(REHEARSAL_PAUSE)
    second = _rehearsed("SECOND RUN, by the same runner a second later", fleet, watch)
    for line in _moral(first, second, fleet).splitlines():
        write(line, OUTPUT.stream)
    OUTPUT.stream.flush()
    return second


def _rehearsed(title: str, fleet: ReadyFleet, watch: Watch) -> RunReport:
    try:
        report = fleet.run()
        watch.abandoned.update(thread.name for thread in fleet.runner.abandoned())
    except KeyboardInterrupt as stop:
        if isinstance(cut := getattr(stop, "report", None), RunReport):
            _print_rehearsed(title, cut, watch)
        raise
    _print_rehearsed(title, report, watch)
    return report


def _print_rehearsed(title: str, report: RunReport, watch: Watch) -> None:
    OUTPUT.stream.write(f"{title}: {counted(len(report.results), 'scanner')}, {elapsed(report.duration)}\n\n")
    columns = ("scanner", "status", "found", "took", "what happened")
    rows = [
        (r.scanner, r.status.value, str(len(r.candidates)), elapsed(r.duration), watch.describe(r))
        for r in report.results.values()
    ]
    draw(columns, rows, OUTPUT.stream, right=("found", "took"))
    OUTPUT.stream.write("\n")
    OUTPUT.stream.flush()


def _moral(first: RunReport, second: RunReport, fleet: ReadyFleet) -> str:
    """Return what both runs show."""
    sound = [name for name, result in first.results.items() if result.pipeline != PIPELINE]
    well = sum(first.results[name].status.answered and second.results[name].status.answered for name in sound)
    # A thread that was abandoned only in the second run may be about to end.
    hung = ", ".join(thread.name for thread in fleet.runner.abandoned() if thread.age > second.duration + 0.1)
    took = " and ".join(elapsed(report.duration) for report in (first, second))
    lines = [
        f"{well} of the {counted(len(sound), 'sound scanner')} answered both times." if sound else "",
        f"The runs took {took}{f', and {hung} hangs to this moment' if hung else ''}.",
        f"\nTo look into one of them: resilient-scan explain {hung or next(iter(first.results))} --faults",
    ]
    return " ".join(filter(None, lines)).replace(" \n", "\n")


def print_verified(verified: Verified, latency: float | None) -> None:
    """Write both runs side by side, every difference, and how much time was gained."""
    columns = ("scanner", "candidates", "sequential", "concurrent", "verdict")
    rows = [
        (
            pair.sequential.scanner,
            str(len(pair.sequential.candidates)),
            elapsed(pair.sequential.duration),
            elapsed(pair.concurrent.duration),
            pair.verdict,
        )
        for pair in verified.pairs
    ]
    draw(columns, rows, OUTPUT.stream, right=columns[1:4])
    lines = ["", *map(clean, verified.differences), f"{summary(verified)}; {verified.gain}."]
    if verified.data and latency:
        held = elapsed(latency)
        lines.append(f"Each scanner asked a server of its own, whose answers were held back {held}, as by a network.")
    for line in lines:
        write(line, OUTPUT.stream)
