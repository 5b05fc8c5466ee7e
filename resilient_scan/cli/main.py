"""The command line: arguments in, text and exit code out. Knows click.

stdout carries data, stderr carries messages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from resilient_scan import __version__
from resilient_scan.cli.check import check as check_all
from resilient_scan.cli.choice import Request
from resilient_scan.cli.client import explained
from resilient_scan.cli.export import PRESETS, misfit
from resilient_scan.cli.export import export_grafana as write_files
from resilient_scan.cli.faults import Watch
from resilient_scan.cli.fleet import ReadyFleet, open_fleet, past_attempts, past_runs, survey
from resilient_scan.cli.options import (
    FilledPath,
    OwnProcess,
    WholeNumber,
    as_of_option,
    config_option,
    demo_option,
    duration,
    filled,
    log_format_option,
    quiet_option,
    run_options,
    verbose_option,
)
from resilient_scan.cli.orders import ORDERS
from resilient_scan.cli.ping import pinging
from resilient_scan.cli.process import (
    HELD,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    OUTPUT,
    UNREAD,
    USAGE,
    end_at_once,
    freeze_what_stays,
    stopped_by,
)
from resilient_scan.cli.screens import (
    MESSAGES,
    introduce,
    listening,
    messages_on_stderr,
    print_attempts,
    print_history,
    print_json,
    print_report,
    print_verified,
    rehearse,
    say,
)
from resilient_scan.cli.serve import ServeRequest, caught_signals, first, open_service, wind_up
from resilient_scan.cli.tables import draw, elapsed
from resilient_scan.cli.verify import verify as run_both
from resilient_scan.errors import ConfigError, PluginError
from resilient_scan.observe.logs import LogEvents
from resilient_scan.results import RunReport
from resilient_scan.service.schedule import ONCE, SKIP
from resilient_scan.settings import SettingsError
from resilient_scan.settings.schema import schema
from resilient_scan.stores.columns import DaySummary


class Commands(click.Group):
    """The group of all commands."""

    command_class = OwnProcess


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="resilient-scan")
def command() -> None:
    """Run many scanners so that one bad scanner never costs another its result.

    Results go to stdout; messages, and what scanners print, go to stderr. Exit codes: 0 every scanner in service
    answered, 1 some did not or could not be loaded, 2 usage or settings, 130 Ctrl-C, 141 nobody reads stdout, 143
    SIGTERM. Variables such as RESILIENT_SCAN__SCANNERS__gap_up__TIMEOUT__TOTAL=5s win over the settings file.
    """


for order in ORDERS:
    command.add_command(order)


@command.command(short_help="Run the scanners once and print what they found.")
@run_options
@click.option("--sequential", is_flag=True, help="One scanner at a time, in order; the candidates are the same.")
@click.option(
    "--faults",
    is_flag=True,
    help="Add a slow, a hanging, a flapping and a broken scanner, and run twice to see what happens to them "
    "(with --json once).",
)
@click.option(
    "--merged", is_flag=True, help="Merge candidates by ticker; those that several scanners found come first."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--record",
    metavar="DIR",
    type=FilledPath(absolute=True),
    help="Record what the sources answer in this new folder, without secrets; exit with 1 if the disk gets full.",
)
@click.option(
    "--replay",
    metavar="DIR",
    type=FilledPath(absolute=True),
    help="Replay such a folder, as of its dates, without any network.",
)
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=WholeNumber(0, 65535),
    help="Serve Prometheus metrics on 127.0.0.1:PORT during the run; 0 takes a free port, which stderr names.",
)
@click.option(
    "--hold", metavar="DURATION", callback=duration, help="Serve the metrics for this much longer (Ctrl-C ends it)."
)
@click.option("--push", metavar="URL", callback=filled, help="Send the metrics to this Pushgateway after the run.")
@click.option(
    "--textfile",
    metavar="PATH",
    type=FilledPath(absolute=True, dir_okay=False),
    help="Write the metrics to this file after the run; node_exporter reads those that end in .prom.",
)
@click.option(
    "--ping",
    metavar="URL",
    callback=filled,
    help="Notify this dead-man's switch after the run: a GET of URL if all answered, of URL/fail if not.",
)
@quiet_option
@verbose_option
@log_format_option
def run(
    as_json: bool,
    merged: bool,
    hold: float | None,
    sequential: bool,
    quiet: bool,
    verbose: int,
    log_format: str,
    ping: str | None,
    **options: Any,
) -> int:
    """Run the scanners once and print what they found.

    Without --config, as long as no scanner has its key and no other package offers scanners, this is a demo: the
    built-in scanners run on real market history that ships with this package, served over HTTP on loopback, as of
    2013-01-24. The report says so.
    """
    MESSAGES.json = log_format == "json"
    if hold is not None and options["metrics_port"] is None:
        raise click.UsageError("--hold keeps the metrics served, so it needs --metrics-port")
    if quiet and verbose:
        raise click.UsageError("-q says nothing and -v says more; leave one of them out")
    request, watch = Request(sequential=sequential or None, **options), Watch()
    with pinging(ping) as notice:  # the last to end: what the fleet still does when it is closed may fail, too
        with listening(verbose) as listeners, open_fleet(request, listeners=[*listeners, watch]) as fleet:
            if not (request.replay or request.faults):  # what is replayed or rehearsed did not happen
                notice.send_to(fleet.settings.notify.ping)
            introduce(fleet, request, verbose=verbose)
            twice = request.faults and not as_json
            report = rehearse(fleet, watch) if twice else _run_once(fleet, as_json=as_json, merged=merged)
            if hold is not None:
                _hold(hold, fleet)
        notice.succeeded = report.complete and fleet.loses_nothing()
    return OK if notice.succeeded else INCOMPLETE


def _run_once(fleet: ReadyFleet, *, as_json: bool, merged: bool) -> RunReport:
    try:
        report = fleet.run()
    except KeyboardInterrupt as stop:
        print_report(getattr(stop, "report", None), fleet, as_json=as_json, merged=merged)
        raise
    print_report(report, fleet, as_json=as_json, merged=merged)
    return report


def _hold(duration: float, fleet: ReadyFleet) -> None:
    """Keep the metrics served. Ctrl-C is how a person ends that, so it does not count as interrupting the run."""
    say([f"metrics stay at {fleet.metrics_url} for {elapsed(duration)}; Ctrl-C ends it"])
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait(duration)


@command.command(short_help="Run the scanners again and again, and answer over HTTP.")
@run_options
@click.option(
    "--every", metavar="DURATION", default="1m", show_default=True, callback=duration, help="Time between two runs."
)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="Share of that time by which a run may be late, at random.",
)
@click.option(
    "--catch-up",
    type=click.Choice([ONCE, SKIP]),
    default=ONCE,
    show_default=True,
    help="Make up for missed runs with one run at once, or skip them.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=filled,
    help="Where to answer; 127.0.0.1:9108, unless the settings say.",
)
@click.option(
    "--grace",
    metavar="DURATION",
    default="30s",
    show_default=True,
    callback=duration,
    help="Time that the current run gets when the service is stopped.",
)
@log_format_option
def serve(
    every: float, jitter: float, catch_up: str, listen: str | None, grace: float, log_format: str, **options: Any
) -> int:
    """Run the scanners again and again, and answer over HTTP: page, metrics, alerts, orders.

    Alerts that come in take a failing scanner out of service; a probe brings it back. SIGTERM and Ctrl-C end it: the
    current run gets its time, and a second signal cuts it off.
    """
    MESSAGES.json = log_format == "json"
    request = ServeRequest(run=Request(**options), every=every, jitter=jitter, catch_up=catch_up, listen=listen)
    with caught_signals() as signals, open_service(request, listeners=[LogEvents(format=log_format)]) as serving:
        introduce(serving.fleet, request.run)
        orders = "orders and alerts need the token" if serving.can_change else "no token is configured: it only shows"
        orders += "; reading needs one" if serving.protected else ""
        say([f"serving at {serving.url}/ ({orders}); a run every {elapsed(every)}"])
        say(filter(None, [misfit(every)]), logging.WARNING)
        if click.get_current_context().obj:  # the process is its own
            freeze_what_stays()
        first(signals)
        say([f"stopping: the run under way gets {elapsed(grace)}; a second signal cuts it off"])
        ended = wind_up(serving, signals, grace)
    say(["stopped" if ended else "stopped; the run under way was cut off"])
    return OK


@command.command(name="list", short_help="List the scanners, and whether `run` has what they need.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_scanners(config: Path | None, as_json: bool) -> int:
    """List the scanners that are installed, and whether `run` has what they need."""
    rows, problems = survey(config)
    say(f"problem: {problem}" for problem in problems)
    if as_json:
        print_json(rows)
        return OK
    columns = ("name", "pipeline", "configured", "enabled", "summary")
    words = [{key: {True: "yes", False: "no"}.get(value, value) for key, value in row.items()} for row in rows]
    draw(columns, [[row[column] for column in columns] for row in words], OUTPUT.stream)
    lacking = [f"not configured: {row['name']}: {row['to_set']}\n" for row in rows if row["to_set"]]
    OUTPUT.stream.writelines(["\n", *lacking] if lacking else [])
    return OK


@command.command(short_help="Run one scanner once and explain its layers and limits.")
@click.argument("name")
@config_option
@as_of_option
@demo_option
@click.option("--run/--no-run", "run_first", default=None, help="Run this one scanner here first, or only look at it.")
@click.option("--trace", is_flag=True, help="Show the scan layer by layer, with times.")
@click.option("--faults", is_flag=True, help="NAME may be slow, hanging, flapping or broken too.")
def explain(name: str, run_first: bool | None, trace: bool, **options: Any) -> int:
    """Run one scanner once and explain it: its layers, who set which number, and what happened.

    The first line says whether it would run now and, if not, what would make it run. If a service runs
    on this machine, it answers; otherwise the scanner is run once here. --run and --no-run override that.
    """
    known = None if run_first or options["faults"] else explained(options["config"], name)
    if known is not None:
        OUTPUT.stream.write(f"{msgspec.structs.replace(known, trace=trace)}\n")
        return OK
    request = Request(only=(name,), **options)
    with open_fleet(request) as fleet:
        introduce(fleet, request)
        if run_first is not False:
            fleet.run()
        OUTPUT.stream.write(f"{fleet.runner.explain(name, trace=trace)}\n")
    return OK


@command.command(short_help="Find what is wrong with the settings; run nothing.")
@config_option
@click.option(
    "--interval",
    metavar="DURATION",
    callback=duration,
    help="Time from one run to the next; lifetimes and rates are then checked against it.",
)
def check(config: Path | None, interval: float | None) -> int:
    """Check settings, plugins and options that do not work together; run nothing.

    Everything that is wrong is printed, one problem a line. Exit codes: 0 nothing or warnings only, 2 errors.
    """
    checked = check_all(config, interval)
    OUTPUT.stream.writelines(f"error: {text}\n" for text in checked.errors)
    OUTPUT.stream.writelines(f"warning: {text}\n" for text in checked.warnings)
    OUTPUT.stream.writelines(f"hint: {text}\n" for text in checked.hints)
    OUTPUT.stream.writelines(f"not configured: {text}\n" for text in checked.not_configured)
    OUTPUT.stream.writelines(f"isolation: {text}\n" for text in checked.isolation)
    OUTPUT.stream.write(f"{checked.summary}\n")
    return USAGE if checked.errors else OK


@command.command(short_help="Show that concurrent and sequential runs find the same.")
@run_options
@click.option(
    "--latency",
    metavar="DURATION",
    default="50ms",
    show_default=True,
    callback=duration,
    help="Delay each answer of the bundled data by this, as a network would.",
)
def verify(**options: Any) -> int:
    """Run the fleet concurrently and sequentially, and show that the candidates are the same.

    No cache is shared between the two runs. Exit codes: 0 all the same, 1 a difference, or a scanner did not answer.
    """
    verified = run_both(Request(**options))
    print_verified(verified, options["latency"])
    return OK if verified.same else INCOMPLETE


@command.command(short_help="Show the last runs that the store remembers, or a scanner's attempts by day.")
@click.argument("name", required=False)
@config_option
@click.option("--attempts", is_flag=True, help="Show how long the attempts of scanner NAME took, and how they ended.")
@click.option(
    "--limit", metavar="N", type=WholeNumber(1, 1000), default=20, show_default=True, help="Runs, or days, at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, with each scanner's status and seconds.")
def history(name: str | None, config: Path | None, attempts: bool, limit: int, as_json: bool) -> int:
    """Show the last runs that the store remembers, newest first, those of other processes too.

    Each with its start (UTC), its length, how many of the scanners in service answered, and which did not.

    With NAME and --attempts: the attempts of one scanner, day by day (UTC): how many there were, how long they took
    (of 99 in 100, p99), how they ended, and how many hung threads came back, after how long.
    """
    if attempts != (name is not None):
        raise click.UsageError("attempts are shown scanner by scanner: resilient-scan history NAME --attempts")
    if name is not None:
        return _history_of(name, past_attempts(config, name)[:limit], as_json=as_json)
    runs = past_runs(config, limit)
    if as_json:
        print_json([each.to_dict() for each in runs])
    elif runs:
        print_history(runs)
    else:
        say(["no run is remembered yet"])
    return OK


def _history_of(name: str, days: Sequence[DaySummary], *, as_json: bool) -> int:
    if as_json:
        print_json([msgspec.structs.asdict(day) for day in days])
    elif days:
        print_attempts(days)
    else:
        say([f"no attempt of {name} is remembered"])
    return OK


@command.command(name="schema", short_help="Print a JSON Schema of the settings file, for editors.")
def print_schema() -> int:
    """Print a JSON Schema of the settings file, with which editors complete and check it.

    Write it next to the file and begin the file with: #:schema ./resilient-scan.schema.json
    """
    print_json(schema())
    return OK


@command.command(name="export-grafana", short_help="Write dashboards, alert rules and a compose file.")
@click.argument("directory", metavar="DIR", type=FilledPath())
@click.option(
    "--preset",
    type=click.Choice([*PRESETS]),
    default=next(iter(PRESETS)),
    show_default=True,
    help="Rules for a service that runs every five minutes or more often, or for runs up to an hour apart.",
)
@click.option(
    "--public-url",
    metavar="URL",
    callback=filled,
    help="Where people reach Grafana: alerts then link to its dashboards.",
)
@click.option(
    "--control-url",
    metavar="URL",
    callback=filled,
    help="Where people reach the service: the dashboards then link to its page.",
)
@click.option(
    "--runbook-url",
    metavar="URL",
    callback=filled,
    help="Where people read the runbook: alerts and dashboards then link to it.",
)
@click.option("--force", is_flag=True, help="Overwrite existing files that differ.")
def export_grafana(directory: Path, preset: str, **options: Any) -> int:
    """Write Grafana's dashboards, alert rules, their configuration and a compose file into DIR.

    Start with DIR/compose.yaml. Existing files that differ are not overwritten.
    """
    for path in write_files(directory, preset, **options):
        OUTPUT.stream.write(f"{path}\n")
    return OK


def main(arguments: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: the command line; `None`: the process's.
        own_process: whether the process ends with the command, so that descriptors and signals are the command's.
    """
    MESSAGES.json, code = False, INCOMPLETE
    try:
        code = _outcome(arguments, own_process)
    except KeyboardInterrupt as stop:
        code = stopped_by(stop)
    except click.Abort:  # Ctrl-C where click was at work
        code = INTERRUPTED
    finally:
        if code != OK:  # after an error of our own, too
            HELD.show()
        if own_process:
            end_at_once()
    return code


def _outcome(arguments: Sequence[str] | None, own_process: bool) -> int:
    try:
        with messages_on_stderr():
            code = command.main(arguments, prog_name="resilient-scan", standalone_mode=False, obj=own_process)
            OUTPUT.stream.flush()
    except click.exceptions.NoArgsIsHelpError as missing:
        say([missing.format_message()])
        return USAGE
    except click.ClickException as error:
        say([f"error: {error.format_message()}"], logging.ERROR)
        return USAGE
    except (ConfigError, PluginError) as error:
        lines = error.problems if isinstance(error, SettingsError) else [error]
        say((f"error: {line}" for line in lines), logging.ERROR)
        return USAGE
    except OSError as error:
        return _unwritten(error)
    return code if isinstance(code, int) else OK


def _unwritten(error: OSError) -> int:
    """Say that the output could not be written, unless its reader has gone (`| head`)."""
    # The interpreter flushes the stream when it exits, which would fail once more and print a traceback.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), OUTPUT.stream.fileno())
    if isinstance(error, BrokenPipeError):
        return UNREAD
    what = error.filename or "the output cannot be written"
    say([f"error: {what}: {error.strerror or error}"], logging.ERROR)
    return INCOMPLETE
