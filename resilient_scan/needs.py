"""What a scanner must have before it can run, and what stands in for it: bundled data, or recordings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Protocol

from resilient_scan.errors import ConfigError
from resilient_scan.http import REDACTED, Replay
from resilient_scan.plugins import Found
from resilient_scan.service.loopback import Respond
from resilient_scan.settings import Settings

BROUGHT: Final = {"universe": "tickers"}
"""Settings that a scanner can do without where the run's state brings the same under another name."""


class Demo(Protocol):
    """Bundled data that stand in for live sources.

    Attributes:
        scanners: names of the scanners that it can serve.
        first, last: the days that it has.
        description: what it is, as the end of a sentence that begins "The data are".
        state: what a run on it is given.
        respond: answers as the live source would.
    """

    scanners: Sequence[str]
    first: date
    last: date
    description: str
    state: dict[str, Any]
    respond: Respond

    def settings(self, base_url: str, /) -> dict[str, Any]:
        """Return the settings that make a scanner ask the server at `base_url`."""


def bundled(demo: Demo | None, scanners: Iterable[Found], settings: Settings) -> Demo | None:
    """Return the bundled data if nothing is configured, else `None`: a run is of these, or of what the sources say now.

    A built-in scanner is configured as soon as it has what its source needs; one that the data can serve, as soon as it
    is told what to look at, or where.
    """
    if demo is None:
        return None
    ours = [found for found in scanners if found.built_in and settings.enabled(found.name)]
    return None if any(_configured(found, demo, settings) for found in ours) else demo


def _configured(found: Found, demo: Demo, settings: Settings) -> bool:
    if found.name in demo.scanners:
        return not settings.settings_of(found.name).keys().isdisjoint(demo.settings(""))
    return not lacks(found, None, settings)


def lacks(found: Found, demo: Demo | None, settings: Settings, replay: Replay | None = None) -> str:
    """Say what to set before `run` can run a scanner; an empty text: nothing.

    It needs what it says it needs; a built-in one that says nothing wants one of its settings, whichever, so that no
    source is asked before somebody wishes it. Bundled data serve without any of it, recordings without the keys, and
    without what the recorded run's state brings.
    """
    name, table = found.name, settings.settings_of(found.name)
    if demo is not None and name in demo.scanners:
        return ""
    if replay is not None and not replay.has(name):
        return f"{replay.folder} has no recordings of it{''.join(f' or of {host}' for host in found.sources)}"
    brought = replay.state() if replay else {}
    needs = {
        setting: variable
        for setting, variable in found.needs.items()
        if not (replay and variable) and not brought.get(BROUGHT.get(setting, ""))
    }
    missing = [
        f"scanners.{name}.settings.{setting}" + (f" or the environment variable {variable}" if variable else "")
        for setting, variable in needs.items()
        if not (table.get(setting) or (variable and os.environ.get(variable, "").strip()))
    ]
    if missing:
        return f"set {', and '.join(missing)}"
    wished = not found.built_in or found.needs or table or replay
    if wished:
        return ""
    hosts = " and ".join(found.sources) or "its source"
    return f"set scanners.{name}.settings.universe, or any other of its settings, to have it ask {hosts}"


def stand_ins(ready: Iterable[Found]) -> dict[str, dict[str, Any]]:
    """Return something in the place of every key: recordings hold none, and no source is asked."""
    return {
        found.name: dict.fromkeys((key for key, variable in found.needs.items() if variable), REDACTED)
        for found in ready
        if found.needs
    }


def state_for(as_of: date | None, demo: Demo | None) -> dict[str, Any]:
    """Return what a run is given.

    Raises:
        ConfigError: bundled data answer, and they do not have that date.
    """
    if demo is None:
        return {"trade_date": (as_of or datetime.now(UTC).date()).isoformat()}
    if as_of is None:
        return dict(demo.state)
    if not demo.first <= as_of <= demo.last:
        raise ConfigError(f"--as-of {as_of}: the bundled data reach from {demo.first} to {demo.last}")
    return {**demo.state, "trade_date": as_of.isoformat()}


def state_of(replay: Replay, as_of: date | None) -> dict[str, Any]:
    """Return what the recorded run was given; without a trade date each scanner takes it from its own clock."""
    return replay.state() | ({} if as_of is None else {"trade_date": as_of.isoformat()})
