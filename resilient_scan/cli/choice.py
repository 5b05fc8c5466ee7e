"""Choose the scanners that run: which are wanted, what each of them lacks, and whether bundled data answer."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from resilient_scan.cli.demo_server import Respond
from resilient_scan.cli.faults import NAMES as FAULTY
from resilient_scan.errors import ConfigError
from resilient_scan.http import Replay
from resilient_scan.settings import Settings
from resilient_scan.settings.plugins import Found, Plugins, Problem, load_demo, to_set

MAX_LACKING: Final = 3  # scanners that a message names, each with what to set


FROM_STATE: Final = {"universe": "tickers"}
"""Settings that a scanner can do without if the run's state holds the same under another name."""


_NO_SOURCE: Final = (
    "--record keeps what live sources answer, and no scanner is set up to ask one; the bundled data are recordings "
    "already: name a settings file with --config, or leave --record out"
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What someone wants to run.

    Attributes:
        config: the settings file; `None`: environment variables only.
        only: names of scanners; empty: all.
        pipeline: names of pipelines; empty: all.
        faults: whether the faulty scanners join in.
        as_of: trade date; `None`: today; where the bundled data answer, their own.
        deadline: seconds for the whole run; `None`: what the settings say.
        max_workers: scanners at a time, >= 1; `None`: what the settings say.
        sequential: one scanner at a time, in order; `None`: what the settings say.
        metrics_port: serve metrics on 127.0.0.1 at this port, 0 for any; `None`: do not.
        push: address of a Pushgateway that gets the metrics after the run, or `None`.
        textfile: file that gets the metrics after the run, or `None`.
        record: keep what the sources answer in this new folder, without secrets; no bundled data are used.
        replay: answer from this folder, without any network, bundled data or store.
        demo: whether the bundled data answer the scanners that they can serve, whatever is configured; `None`: only if
            nothing is (see `bundled`).
        alone: use no store. Nor do `record`, `replay` (what is replayed never happened) and `faults`.
        latency: seconds by which each answer of the bundled data is held back; `None`: not at all. If set, each
            scanner gets its own server, so that they share nothing, just as outside sources share nothing.
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
    demo: bool | None = None
    alone: bool = False


class Demo(Protocol):
    """Bundled data that stand in for live sources.

    Attributes:
        scanners: names of the scanners that they can serve.
        first, last: the days that they cover.
        description: what they are, as the end of a sentence that begins "The data are".
        trade_date: the day to look at, unless someone says otherwise.
        respond: answers as the live source would.
    """

    scanners: Sequence[str]
    first: date
    last: date
    description: str
    trade_date: str
    respond: Respond

    def settings(self, base_url: str, trade_date: str | None = None, /) -> dict[str, Any]:
        """Return the settings that make a scanner ask the server at `base_url`, about that day."""


class Choice(msgspec.Struct, frozen=True):
    """The wanted scanners, and what becomes of each.

    Attributes:
        ready: those that can run.
        not_configured: those that lack what they need, by name, each with what to set.
        switched_off: names of those that the settings leave out.
        demo: the bundled data if they answer; `None`: the sources do.
    """

    ready: list[Found]
    not_configured: dict[str, str]
    switched_off: list[str]
    demo: Demo | None


def choice_of(request: Request, plugins: Plugins, settings: Settings, replay: Replay | None) -> Choice:
    """Return the wanted scanners, and what becomes of each.

    Raises:
        ConfigError: a name is unknown, or nothing is left to run.
    """
    chosen = choose(plugins, request, settings)
    wanted = [found for found in chosen if settings.enabled(found.name)]
    demo = _demo(request, plugins, wanted, settings)
    lacking = {found.name: lacks(found, demo, settings, replay) for found in wanted}
    ready = [found for found in wanted if not lacking[found.name]]
    if not ready:
        if request.record and not request.only and _has_bundled(plugins, wanted, settings):
            raise ConfigError(_NO_SOURCE)
        way_out = _demo_would_help(request, wanted)
        raise ConfigError(_nothing(request, plugins.problems, chosen, lacking) + way_out)
    not_configured = {name: lack for name, lack in lacking.items() if lack}
    return Choice(ready, not_configured, [found.name for found in chosen if found not in wanted], demo)


def _demo(request: Request, plugins: Plugins, wanted: Sequence[Found], settings: Settings) -> Demo | None:
    """Return the bundled data if they answer, else `None`.

    Raises:
        ConfigError: they are asked for, and are not there or do not go together with something else that is asked for.
    """
    traffic = "--record keeps" if request.record else "--replay repeats" if request.replay else ""
    if request.demo and traffic:
        raise ConfigError(f"--demo answers from bundled data, and {traffic} what sources say; leave one of them out")
    if request.demo is False or traffic or not any(found.built_in for found in wanted):
        return None  # and without an import: `--only mine` imports nothing else
    demo: Demo | None = load_demo()
    if request.demo and demo is None:
        raise ConfigError("--demo: the bundled data need an extra: pip install 'resilient-scan[scanners]'")
    if demo is None or not _can_serve(demo, wanted):
        return None
    return demo if request.demo else bundled(demo, plugins, wanted, settings)


def _can_serve(demo: Demo, scanners: Iterable[Found]) -> bool:
    return any(found.built_in and found.name in demo.scanners for found in scanners)


def _demo_would_help(request: Request, wanted: Sequence[Found]) -> str:
    """Return what else could be done where nothing is left to run; an empty text: nothing."""
    if request.demo or request.record or request.replay or not any(found.built_in for found in wanted):
        return ""
    demo: Demo | None = load_demo()
    if demo is None:
        return ""
    return "; --demo runs on bundled data" if _can_serve(demo, wanted) else ""


def choose(plugins: Plugins, request: Request, settings: Settings) -> list[Found]:
    """Return the wanted scanners.

    Raises:
        ConfigError: a name is unknown (the message suggests the nearest one), or switched off by the settings.
    """
    refused = {problem.name: problem.error for problem in plugins.problems}
    names = [found.name for found in plugins.scanners]
    for name in request.only:
        if name not in names:
            raise ConfigError(str(refused[name]) if name in refused else _unknown_scanner(name, names))
        if not settings.enabled(name):
            raise ConfigError(f"scanner {name!r} is switched off by {_switch(settings, name)}")
    pipelines = [found.pipeline for found in plugins.scanners]
    for pipeline in request.pipeline:
        if pipeline not in pipelines and not plugins.unopened:  # whose pipelines nobody knows
            raise ConfigError(_unknown("pipeline", pipeline, pipelines))
    return [
        found
        for found in plugins.scanners
        if (not request.only or found.name in request.only)
        and (not request.pipeline or found.pipeline in request.pipeline)
    ]


def _switch(settings: Settings, name: str) -> str:
    """Return the place in the settings that says whether a scanner is enabled."""
    return settings.tables.scanners[name].own["enabled"].place


def _unknown_scanner(name: str, names: Sequence[str]) -> str:
    if name in FAULTY:
        return f"unknown scanner {name!r}; it is one of those that join in with --faults"
    return _unknown("scanner", name, names)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"unknown {what} {name!r}; {way_out}"


def need_keys(count: int, request: Request) -> str:
    """Say that scanners need something, and which command says what; the number of them comes before that."""
    need = "scanner needs" if count == 1 else "scanners need"
    config = "" if request.config is None else f" --config {shlex.quote(str(request.config))}"
    return f"{need} keys or settings: resilient-scan list{config}"


def _nothing(request: Request, problems: Sequence[Problem], chosen: Sequence[Found], lacking: Mapping[str, str]) -> str:
    """Say why nothing is left to run."""
    if problems:
        return f"nothing to run: {problems[0].error}"
    if len(lacking) > MAX_LACKING:
        return f"nothing to run: {len(lacking)} {need_keys(len(lacking), request)}"
    if lacking:
        return f"nothing to run: not configured: {'; '.join(f'{name}: {lack}' for name, lack in lacking.items())}"
    if chosen:
        return f"nothing to run: switched off by the settings: {', '.join(found.name for found in chosen)}"
    return "nothing to run: no scanner is installed, or none belongs to both --only and --pipeline"


def bundled(demo: Demo | None, plugins: Plugins, wanted: Iterable[Found], settings: Settings) -> Demo | None:
    """Return the bundled data if nothing is configured, else `None`: unasked, a run never mixes them with live answers.

    Who names a settings file, or has installed scanners of another package, has work for them: prices of 2013 next to
    today's answers would pass for today's. A built-in scanner counts as configured once it has what its source needs.
    One that the data can serve counts as configured once the settings say what it should look at, or where.
    """
    if demo is None or settings.path is not None or plugins.foreign:
        return None
    ours = [found for found in wanted if found.built_in and settings.enabled(found.name)]
    return None if any(_configured(found, demo, settings) for found in ours) else demo


def _has_bundled(plugins: Plugins, wanted: Sequence[Found], settings: Settings) -> bool:
    """Say whether bundled data would answer any of the scanners, in a run that is not recorded."""
    demo = bundled(load_demo(), plugins, wanted, settings)
    return demo is not None and _can_serve(demo, wanted)


def _configured(found: Found, demo: Demo, settings: Settings) -> bool:
    if found.name in demo.scanners:
        return not settings.settings_of(found.name).keys().isdisjoint(demo.settings(""))
    return not lacks(found, None, settings)


def lacks(found: Found, demo: Demo | None, settings: Settings, replay: Replay | None = None) -> str:
    """Say what to set before `run` can run a scanner; an empty text: nothing.

    Bundled data need none of what live sources need; recordings need no keys, and nothing that the recorded run's state
    holds.
    """
    name = found.name
    if demo is not None and name in demo.scanners:
        return ""
    if replay is None:
        return to_set(found, settings.settings_of(name))
    if not replay.has(name):
        return f"{replay.folder} has no recordings of it{''.join(f' or of {host}' for host in found.sources)}"
    state = replay.state()
    given = {need for need, variable in found.needs.items() if variable or state.get(FROM_STATE.get(need, ""))}
    return to_set(found, settings.settings_of(name), given) if found.needs else ""
