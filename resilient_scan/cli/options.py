"""What several commands have in common: their kind, the options that they take, and how values are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from resilient_scan._text import parse_duration
from resilient_scan.cli.process import UNREAD, stopped_by, take_over

Command = TypeVar("Command", bound=Callable[..., Any])


class OwnProcess(click.Command):
    """A command that takes its process over before it does anything, if the process is its own."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; only now, because --help and usage errors come before and write as usual."""
        if ctx.obj:
            take_over(quiet=ctx.params.get("quiet", False))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click has exit codes of its own for these
            raise click.exceptions.Exit(UNREAD) from None
        except KeyboardInterrupt as stop:
            raise click.exceptions.Exit(stopped_by(stop)) from None


def names(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Return the names given by an option that may be repeated, and may hold several names separated by commas."""
    given = tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))
    if values and not given:
        raise click.BadParameter(f"{values[0]!r} names nothing; leave the option out to run all")
    return given


def duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds that `250ms`, `5s`, `10m`, `1h` or a plain number of seconds means."""
    if value is None:
        return None
    text = value.strip()
    try:
        found = parse_duration(f"{text}s" if text[-1:].isdigit() else text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise click.BadParameter(f"{value!r} is not a duration above zero; write it as 250ms, 5s, 10m or 1h")
    return found


def day(_ctx: click.Context, _param: click.Parameter, value: str | None) -> date | None:
    """Return the date that `2013-01-24` means."""
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a date; write it as 2013-01-24") from None


def filled(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return a text that is not blank: `--push "$GATEWAY"` without that variable must not pass for no `--push`."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; name one, or leave the option out")
    return value


class WholeNumber(click.IntRange):
    """A whole number within bounds; click calls its own kind "integer range" where it refuses a text."""

    name = "whole number"


class FilledPath(click.Path):
    """A path that is not empty: `--config "$CONFIG"` without that variable must not mean the working directory.

    Args:
        absolute: whether it is made absolute, from where the command was started: a scanner may change the directory.
    """

    def __init__(self, *, absolute: bool = False, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)
        self.absolute = absolute

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path that a text means."""
        if not str(value).strip():
            self.fail("it is empty; name a path, or leave the option out", param, ctx)
        path = super().convert(value, param, ctx)
        return Path(os.fsdecode(path)).absolute() if self.absolute else path


config_option = click.option(
    "--config",
    metavar="PATH",
    type=FilledPath(),
    help="Read settings from this TOML file; there is no default one.",
)


as_of_option = click.option("--as-of", metavar="DATE", callback=day, help="Trade date, such as 2013-01-24.")


deadline_option = click.option(
    "--deadline", metavar="DURATION", callback=duration, help="End the run after 250ms, 5s, 10m, 1h..."
)


workers_option = click.option(
    "--max-workers", metavar="N", type=WholeNumber(min=1), help="Scanners at a time; 8, unless the settings say."
)


only_option = click.option(
    "--only", metavar="NAME", multiple=True, callback=names, help="Run this scanner (repeat it, or A,B)."
)


pipeline_option = click.option(
    "--pipeline", metavar="NAME", multiple=True, callback=names, help="Run the scanners of this pipeline."
)


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What stderr gets: lines for people, or one JSON object per line.",
)


demo_option = click.option(
    "--demo",
    is_flag=True,
    callback=lambda _context, _option, given: given or None,
    help="Let bundled data of 2013 answer the scanners that they can serve, whatever is configured.",
)


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="Write nothing to stderr if the exit code is 0, and everything if it is not."
)


verbose_option = click.option(
    "-v", "--verbose", count=True, help="Say more on stderr: failed attempts, what to set. -vv: every event."
)


RUN_OPTIONS: Final = (
    config_option,
    demo_option,
    only_option,
    pipeline_option,
    as_of_option,
    deadline_option,
    workers_option,
)


def run_options(command: Command) -> Command:
    """Add the options that say which scanners run, with which settings and for how long."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command
