"""What the commands show: messages, a run while it goes on, its report, two runs with faulty scanners, a comparison."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

from resilient_scan.app import ReadyFleet
from resilient_scan.events import Listener, StoreFailed, StoreRecovered
from resilient_scan.faults import PIPELINE, Watch
from resilient_scan.logs import JsonLines, LogEvents
from resilient_scan.progress import LiveTable, draw, elapsed, is_live, show_candidates, show_merged, show_results
from resilient_scan.report import RunReport
from resilient_scan.verify import Verified, summary
from resilient_scan.words import clean, counted

BETWEEN: Final = 1.1  # seconds from one run with faulty scanners to the next: what was fresh is not any more


class Messages:
    """How what goes to stderr is written: as it is, or each line as a JSON object."""

    json = False

    def form(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return (JSON_LINES if self.json else TEXT_LINES).format(record)


JSON_LINES: Final = JsonLines()
TEXT_LINES: Final = logging.Formatter("%(message)s")
MESSAGES: Final = Messages()


def say(lines: Iterable[str], level: int = logging.INFO) -> None:
    """Write messages, one a line, to stderr."""
    for line in lines:
        record = logging.LogRecord("resilient_scan", level, "", 0, line, None, None)
        sys.stderr.write(f"{MESSAGES.form(record)}\n")


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


class _ToStderr(logging.StreamHandler[TextIO]):
    """Write to what stderr is at the moment: a live table puts itself there, and the lines above its rows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    def format(self, record: logging.LogRecord) -> str:
        return MESSAGES.form(record)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # as in the standard library's own handler of last resort
        return sys.stderr


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Send the library's log lines to stderr, and let no character that a terminal lacks end the command."""
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


@contextlib.contextmanager
def listening() -> Iterator[list[Listener]]:
    """Show a run on stderr as it goes on: a live table on a terminal, log lines elsewhere."""
    if MESSAGES.json:
        yield [LogEvents(format="json")]
        return
    if not is_live(sys.stderr):
        yield [LogEvents()]
        return
    news = LogEvents()
    news.events = (StoreFailed, StoreRecovered)  # what no row of the table is about
    with LiveTable(sys.stderr) as table:
        yield [table, news]


def introduce(fleet: ReadyFleet) -> None:
    """Say what is not as somebody may expect it."""
    say(f"problem: {problem}" for problem in fleet.problems)
    say(f"not configured: {name}: {what_to_set}" for name, what_to_set in fleet.not_configured.items())
    say(f"switched off by the settings: {name}" for name in fleet.switched_off)
    if fleet.metrics_url:
        say([f"metrics: {fleet.metrics_url}"])


def print_report(report: RunReport | None, fleet: ReadyFleet, *, as_json: bool, merged: bool = False) -> None:
    """Write what a run brought, `merged` by ticker if wanted; nothing where there is no report."""
    if report is None:
        return
    if as_json:
        together = {"merged": [one.to_dict() for one in report.merged()]} if merged else {}
        print_json({**report.to_dict(), **together})
        return
    show_results(report.results.values(), sys.stdout)
    if report.candidates:
        sys.stdout.write("\n")
        if merged:
            show_merged(report.merged(), sys.stdout)
        else:
            show_candidates(report.candidates, sys.stdout)
    sys.stdout.write(f"\n{fleet.summary(report)}\n")
    sys.stdout.flush()


def rehearse(fleet: ReadyFleet, watch: Watch) -> RunReport:
    """Run twice and say of each scan what became of it, and by which layer; return the second report.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was run so far is printed.
    """
    first = _told_run("FIRST RUN", fleet, watch)
    threading.Event().wait(BETWEEN)
    second = _told_run("SECOND RUN, by the same runner a second later", fleet, watch)
    sys.stdout.write(f"{_moral(first, second, fleet)}\n")
    sys.stdout.flush()
    return second


def print_verified(verified: Verified, latency: float | None) -> None:
    """Write both runs side by side, every difference, and what was gained."""
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
    draw(columns, rows, sys.stdout, right=columns[1:4])
    lines = ["", *map(clean, verified.differences), f"{summary(verified)}; {verified.gain}."]
    if verified.data and latency:
        held = elapsed(latency)
        lines.append(f"Each scanner asked a server of its own, whose answers were held back {held}, as by a network.")
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _told_run(title: str, fleet: ReadyFleet, watch: Watch) -> RunReport:
    try:
        report = fleet.run()
    except KeyboardInterrupt as stop:
        if isinstance(cut := getattr(stop, "report", None), RunReport):
            _told(title, cut, watch)
        raise
    _told(title, report, watch)
    return report


def _told(title: str, report: RunReport, watch: Watch) -> None:
    sys.stdout.write(f"{title}: {counted(len(report.results), 'scanner')}, {elapsed(report.duration)}\n\n")
    columns = ("scanner", "status", "found", "took", "what happened")
    rows = [
        (r.scanner, r.status.value, str(len(r.candidates)), elapsed(r.duration), watch.told(r))
        for r in report.results.values()
    ]
    draw(columns, rows, sys.stdout, right=("found", "took"))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _moral(first: RunReport, second: RunReport, fleet: ReadyFleet) -> str:
    """Return what is to be learned from both runs."""
    sound = [name for name, result in first.results.items() if result.pipeline != PIPELINE]
    well = sum(first.results[name].status.answered and second.results[name].status.answered for name in sound)
    # one that was left behind in the second run may be just ending
    hung = ", ".join(thread.name for thread in fleet.runner.abandoned() if thread.age > second.duration + 0.1)
    took = " and ".join(elapsed(report.duration) for report in (first, second))
    lines = [
        f"{well} of the {counted(len(sound), 'sound scanner')} answered both times." if sound else "",
        f"The runs took {took}{f', and {hung} hangs to this moment' if hung else ''}.",
        f"\nTo look into one of them: resilient-scan explain {hung or next(iter(first.results))} --faults",
    ]
    return " ".join(filter(None, lines)).replace(" \n", "\n")
