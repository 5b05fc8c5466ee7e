"""What somebody wants to run, and which of the scanners that are installed that comes to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.faults import NAMES as FAULTY
from resilient_scan.faults import faulty_scanners
from resilient_scan.http import Replay
from resilient_scan.needs import Demo, bundled, lacks
from resilient_scan.plugins import Found, Plugins, Problem, discover, found_of, load_demo
from resilient_scan.settings import Settings, load_installed


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to run.

    Attributes:
        config: the settings file; `None`: environment variables only.
        only: names of scanners; empty: all.
        pipeline: names of pipelines; empty: all.
        faults: whether the faulty scanners join in.
        as_of: trade date; `None`: the bundled data's own where they are used, else today.
        deadline: seconds for the whole run; `None`: what the settings say.
        max_workers: scanners at a time, >= 1; `None`: what the settings say.
        sequential: one scanner at a time, in order; `None`: what the settings say.
        metrics_port: serve metrics on 127.0.0.1 at this port, 0 for any; `None`: do not.
        push: address of a Pushgateway that gets the metrics after the run; `None`: none does.
        textfile: file that gets the metrics after the run; `None`: none does.
        record: keep what the sources answer in this new folder, without secrets; no bundled data are used.
        replay: answer from this folder, without any network, bundled data or store.
        alone: no store is used; neither is one with `record`, `replay` (what is replayed never happened) or `faults`.
        latency: seconds by which each answer of the bundled data is held back; `None`: not at all. With it each
            scanner gets a server of its own, as outside sources are, so that they share nothing.
    """

    config: Path | None = None
    only: tuple[str, ...] = ()
    pipeline: tuple[str, ...] = ()
    faults: bool = False
    as_of: date | None = None
    deadline: float | None = None
    max_workers: int | None = None
    sequential: bool | None = None
    metrics_port: int | None = None
    push: str | None = None
    textfile: Path | None = None
    latency: float | None = None
    record: Path | None = None
    replay: Path | None = None
    alone: bool = False


class Choice(msgspec.Struct, frozen=True):
    """The scanners that are wanted.

    Attributes:
        ready: those that can run.
        not_configured: those that lack what they need, by name, each with what to set.
        switched_off: names of those that the settings leave out.
        demo: the bundled data, where they answer; `None`: the sources do.
    """

    ready: list[Found]
    not_configured: dict[str, str]
    switched_off: list[str]
    demo: Demo | None


def installed(request: Request) -> Plugins:
    """Return what is installed and, if they are wanted, the faulty scanners."""
    plugins = discover()
    if not request.faults:
        return plugins
    faulty = [found_of(thing) for thing in faulty_scanners()]
    for found in faulty:
        if found.name in plugins.names:
            raise ConfigError(f"--faults: an installed scanner is named {found.name!r} too; leave --faults out")
    return Plugins((*plugins.scanners, *faulty), plugins.problems)


def survey(config: Path | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for every scanner that is installed, and a sentence for every one that cannot be used.

    Raises:
        ConfigError: the settings are wrong.
    """
    settings, plugins = load_installed(config), discover()
    demo = bundled(load_demo(), plugins.scanners, settings)
    rows = [
        {
            "name": found.name,
            "pipeline": found.pipeline,
            "summary": found.summary,
            "built_in": found.built_in,
            "configured": not lacks(found, demo, settings),
            "to_set": lacks(found, demo, settings),
            "enabled": settings.enabled(found.name),
        }
        for found in plugins.scanners
    ]
    return rows, [str(problem.error) for problem in plugins.problems]


def choice_of(request: Request, plugins: Plugins, settings: Settings, replay: Replay | None) -> Choice:
    """Return the scanners that are wanted, and what becomes of each.

    Raises:
        ConfigError: nobody has a name that is asked for, or there is nothing to run.
    """
    chosen = choose(plugins, request, settings)
    wanted = [found for found in chosen if settings.enabled(found.name)]
    demo = None if request.record or request.replay else bundled(load_demo(), wanted, settings)
    lacking = {found.name: lacks(found, demo, settings, replay) for found in wanted}
    ready = [found for found in wanted if not lacking[found.name]]
    if not ready:
        raise ConfigError(_nothing(plugins.problems, chosen, lacking))
    not_configured = {name: lack for name, lack in lacking.items() if lack}
    return Choice(ready, not_configured, [found.name for found in chosen if found not in wanted], demo)


def choose(plugins: Plugins, request: Request, settings: Settings) -> list[Found]:
    """Return the scanners that are wanted; a name that nobody has is refused, with the nearest one."""
    refused = {problem.name: problem.error for problem in plugins.problems}
    names = [found.name for found in plugins.scanners]
    for name in request.only:
        if name not in names:
            raise ConfigError(str(refused[name]) if name in refused else _unknown_scanner(name, names))
        if not settings.enabled(name):
            raise ConfigError(f"scanner {name!r} is switched off by {_switch(settings, name)}")
    pipelines = [found.pipeline for found in plugins.scanners]
    for pipeline in request.pipeline:
        if pipeline not in pipelines:
            raise ConfigError(_unknown("pipeline", pipeline, pipelines))
    return [
        found
        for found in plugins.scanners
        if (not request.only or found.name in request.only)
        and (not request.pipeline or found.pipeline in request.pipeline)
    ]


def _switch(settings: Settings, name: str) -> str:
    """Return where it is said whether a scanner is enabled."""
    tables = [each.scanners[name] for each in settings.sources if name in each.scanners]
    return next(table.own["enabled"].place for table in reversed(tables) if "enabled" in table.own)


def _unknown_scanner(name: str, names: Sequence[str]) -> str:
    if name in FAULTY:
        return f"unknown scanner {name!r}; it is one of those that join in with --faults"
    return _unknown("scanner", name, names)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"unknown {what} {name!r}; {way_out}"


def _nothing(problems: Sequence[Problem], chosen: Sequence[Found], lacking: Mapping[str, str]) -> str:
    """Say why there is nothing to run."""
    if problems:
        return f"nothing to run: {problems[0].error}"
    if lacking:
        return f"nothing to run: not configured: {'; '.join(f'{name}: {lack}' for name, lack in lacking.items())}"
    if chosen:
        return f"nothing to run: switched off by the settings: {', '.join(found.name for found in chosen)}"
    return "nothing to run: no scanner is installed, or none belongs to both --only and --pipeline"
