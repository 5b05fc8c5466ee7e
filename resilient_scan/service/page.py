"""The page for people: the whole fleet at a glance, rendered here as HTML. Knows jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from resilient_scan._text import counted
from resilient_scan.quarantine import Evidence
from resilient_scan.service.control import Scanner, Scanners

_here = files("resilient_scan.service")


def _text(name: str) -> str:
    return (_here / name).read_text("utf-8")


_STYLE, _SCRIPT = _text("page.css"), _text("page.js")
_engine = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(_text),
)
_FRAME, _FLEET, _ONE = map(_engine.get_template, ("frame.html", "page.html", "scanner.html"))  # reads all three
_TROUBLE = {"timeout", "error", "rejected"}


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def page(fleet: Scanners, *, now: float, can_change: bool) -> str:
    """Return the page as HTML.

    Args:
        fleet: all scanners as they stand.
        now: epoch seconds.
        can_change: whether a token is configured that allows changes.
    """
    rows = [_row(scanner, now) for scanner in fleet.scanners]
    mood, headline = _headline(rows)
    return _FLEET.render(
        rows=sorted(rows, key=lambda row: {"bad": 0, "warn": 1, "good": 2}[row["mood"]]),
        headline=headline,
        mood=mood,
        now=_instant(now),
        blind=_instant(fleet.blind_since),
        demo=fleet.demo,
        count=counted(len(rows), "scanner"),
        can_change=can_change,
        style=Markup(_STYLE),  # noqa: S704 - our own file
        script=Markup(_SCRIPT),  # noqa: S704
    )


def scanner_page(name: str, explanation: str, alerts: Sequence[Evidence], *, now: float) -> str:
    """Return one scanner's page as HTML.

    Args:
        name: the scanner's.
        explanation: everything there is to know about it, as text.
        alerts: the alerts about it.
        now: epoch seconds.
    """
    return _ONE.render(
        name=name,
        headline=name,
        explanation=explanation,
        alerts=[{**msgspec.structs.asdict(alert), "said": _instant(alert.said_at)} for alert in alerts],
        now=_instant(now),
        style=Markup(_STYLE),  # noqa: S704 - our own file
    )


def _row(scanner: Scanner, now: float) -> dict[str, Any]:
    """Return a scanner's cells, ready to be shown."""
    state, status, probe = scanner.state, scanner.last_status, scanner.next_probe
    mood = "good" if state == "enabled" else "warn"
    if state == "quarantined" or (state == "enabled" and status in _TROUBLE):
        mood = "bad"
    return {
        "name": scanner.name,
        "pipeline": scanner.pipeline,
        "state": state,
        "mood": mood,
        "last_status": status,
        "last_at": _instant(scanner.last_at),
        "took": "–" if scanner.last_duration is None else _span(scanner.last_duration),
        "next_probe": "–" if probe is None else "with the next run" if probe <= now else f"in {_span(probe - now)}",
        "why": scanner.reason or scanner.last_error,
        "who": scanner.who if scanner.reason else "",
        "since": _instant(scanner.since) if scanner.reason else "",
        "until": _instant(scanner.until),
        "action": "disable" if state == "enabled" else "enable",
    }


def _headline(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the mood, and one line that says how the fleet is."""
    states = Counter(row["state"] for row in rows)
    failing = sum(row["state"] == "enabled" and row["mood"] == "bad" for row in rows)
    parts = [f"{count} {state}" for state, count in sorted(states.items()) if state != "enabled"]
    if failing:
        parts.insert(0, f"{failing} failing")
    if not parts:
        return "good", f"All {len(rows)} scanners are in service" if len(rows) != 1 else "The scanner is in service"
    bad = failing or states["quarantined"]
    return ("bad" if bad else "warn"), f"{', '.join(parts)}; {states['enabled'] - failing} of {len(rows)} well"


def _span(seconds: float) -> str:
    """Write a duration the way people say it."""
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _instant(at: float | None) -> str:
    if at is None:
        return ""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "long ago"
