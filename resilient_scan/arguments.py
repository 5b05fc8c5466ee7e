"""Arguments that several commands take. Knows click."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from resilient_scan.settings import seconds

Command = TypeVar("Command", bound=Callable[..., Any])


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


config_option = click.option(
    "--config",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Read settings from this TOML file; none is looked for by itself.",
)
as_of_option = click.option("--as-of", metavar="DATE", callback=day, help="Trade date, such as 2013-01-24.")
deadline_option = click.option(
    "--deadline", metavar="DURATION", callback=duration, help="End the run after 250ms, 5s, 10m, 1h..."
)
workers_option = click.option(
    "--max-workers", metavar="N", type=click.IntRange(min=1), help="Scanners at a time; 8, unless the settings say."
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

RUN_OPTIONS: Final = (config_option, only_option, pipeline_option, as_of_option, deadline_option, workers_option)


def run_options(command: Command) -> Command:
    """Add what says which scanners run, by which settings and for how long."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command
