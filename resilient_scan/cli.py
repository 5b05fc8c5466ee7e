"""The command line: arguments in, text and exit code out. The only file that knows click.

stdout carries data, stderr carries messages.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import click

from resilient_scan import __version__, progress
from resilient_scan.app import Fleet, Request, open_fleet, survey
from resilient_scan.errors import ConfigError
from resilient_scan.report import RunReport
from resilient_scan.settings import seconds

ANSWERED, SOME_DID_NOT, USAGE, INTERRUPTED = 0, 1, 2, 130


def names(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Return the names of an option that may be repeated and may hold several, with commas between."""
    found = tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))
    if values and not found:
        raise click.BadParameter(f"{values[0]!r} names nothing; leave the option out to run all")
    return found


def duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds that `250ms`, `5s`, `10m`, `1h` or a plain number of seconds stands for."""
    if value is None:
        return None
    text = value.strip()
    try:
        found = seconds(f"{text}s" if text[-1:].isdigit() else text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise click.BadParameter(f"{value!r} is not a duration above zero; write it as 250ms, 5s, 10m or 1h")
    return found


def day(_ctx: click.Context, _param: click.Parameter, value: str | None) -> date | None:
    """Return the date that `2013-01-24` stands for."""
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a date; write it as 2013-01-24") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="resilient-scan")
def command() -> None:
    """Run many scanners so that one bad scanner never costs another its result.

    Results go to stdout, messages to stderr. Exit codes: 0 every scanner in service answered, 1 some did not or could
    not be loaded, 2 usage, 130 Ctrl-C.
    """


@command.command()
@click.option("--only", metavar="NAME", multiple=True, callback=names, help="Run this scanner (repeat it, or A,B).")
@click.option("--pipeline", metavar="NAME", multiple=True, callback=names, help="Run the scanners of this pipeline.")
@click.option("--as-of", metavar="DATE", callback=day, help="Trade date, such as 2013-01-24.")
@click.option("--deadline", metavar="DURATION", callback=duration, help="End the run after 250ms, 5s, 10m, 1h...")
@click.option(
    "--max-workers", metavar="N", type=click.IntRange(min=1), default=8, show_default=True, help="Scanners at a time."
)
@click.option("--sequential", is_flag=True, help="One scanner at a time, in order; the candidates are the same.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Serve Prometheus metrics on 127.0.0.1:PORT during the run; 0 takes a free port, stderr says which.",
)
@click.option(
    "--hold", metavar="DURATION", callback=duration, help="Serve the metrics so much longer (Ctrl-C ends it)."
)
def run(as_json: bool, hold: float | None, **options: Any) -> int:
    """Run the scanners once and print what they found.

    With nothing configured the built-in scanners run against real market history that ships with this package, served
    over HTTP on loopback, as of 2013-01-24.
    """
    if hold is not None and options["metrics_port"] is None:
        raise click.UsageError("--hold keeps the metrics served, so it needs --metrics-port")
    with open_fleet(Request(**options)) as fleet:
        _introduce(fleet)
        try:
            report = fleet.run()
        except KeyboardInterrupt as stop:
            _print_report(getattr(stop, "report", None), fleet, as_json=as_json)
            return INTERRUPTED
        _print_report(report, fleet, as_json=as_json)
        if hold is not None:
            _hold(hold, fleet)
    return ANSWERED if report.complete and not fleet.problems else SOME_DID_NOT


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_scanners(as_json: bool) -> int:
    """List the scanners that are installed, and whether `run` has what they need."""
    rows, problems = survey()
    _say(f"problem: {problem}" for problem in problems)
    if as_json:
        _print_json(rows)
        return ANSWERED
    columns = ("name", "pipeline", "configured", "summary")
    words = [{**row, "configured": "yes" if row["configured"] else "no"} for row in rows]
    progress.draw(columns, [[row[column] for column in columns] for row in words], sys.stdout)
    return ANSWERED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (`None`: the process's) and return its exit code."""
    try:
        with _messages_on_stderr():
            code = command.main(arguments, prog_name="resilient-scan", standalone_mode=False)
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as missing:
        _say([missing.format_message()])
        return USAGE
    except click.ClickException as error:
        _say([f"error: {error.format_message()}"])
        return USAGE
    except ConfigError as error:
        _say([f"error: {error}"])
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as error:
        return _unwritten(error)
    return code if isinstance(code, int) else ANSWERED


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Send the library's log lines to stderr, and let no character that a terminal lacks end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logger, handler = logging.getLogger("resilient_scan"), logging.StreamHandler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _say(lines: Iterable[str]) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)


def _introduce(fleet: Fleet) -> None:
    _say(f"problem: {problem}" for problem in fleet.problems)
    _say(f"not configured: {name}" for name in fleet.not_configured)
    if fleet.metrics_url:
        _say([f"metrics: {fleet.metrics_url}"])


def _print_report(report: RunReport | None, fleet: Fleet, *, as_json: bool) -> None:
    if report is None:
        return
    if as_json:
        _print_json(report.to_dict())
        return
    progress.show_results(report.results.values(), sys.stdout)
    if report.candidates:
        sys.stdout.write("\n")
        progress.show_candidates(report.candidates, sys.stdout)
    sys.stdout.write(f"\n{fleet.summary(report)}\n")
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _hold(duration: float, fleet: Fleet) -> None:
    """Keep the metrics served; Ctrl-C is how a person ends that, so it is no interruption of the run."""
    _say([f"metrics stay at {fleet.metrics_url} for {progress.seconds(duration)}; Ctrl-C ends it"])
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait(duration)


def _unwritten(error: OSError) -> int:
    """Say that the output could not be written, unless its reader went away (`| head`)."""
    if not isinstance(error, BrokenPipeError):
        _say([f"error: {error}"])
    # What is still buffered would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return SOME_DID_NOT
