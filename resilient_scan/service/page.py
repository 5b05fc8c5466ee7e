"""The page for people: the whole fleet at a glance. Server-rendered; knows jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

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
_, _FLEET, _ONE = map(_engine.get_template, ("frame.html", "page.html", "scanner.html"))  # all are read here and now
_TROUBLE = {"timeout", "error", "rejected"}


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def page(rows: Sequence[Mapping[str, Any]], *, now: float, blind: float | None, can_change: bool) -> str:
    """Return the page as HTML.

    Args:
        rows: one for each scanner, as `GET /scanners` has them.
        now: epoch seconds.
        blind: since when there is no heartbeat, epoch seconds; `None`: there is one, or none is expected.
        can_change: whether there is a token by which something could be changed.
    """
    shown = [_row(row, now) for row in rows]
    mood, headline = _headline(shown)
    return _FLEET.render(
        rows=sorted(shown, key=lambda row: {"bad": 0, "warn": 1, "good": 2}[row["mood"]]),
        headline=headline,
        mood=mood,
        now=_instant(now),
        blind=_instant(blind),
        can_change=can_change,
        style=Markup(_STYLE),  # noqa: S704 - our own file
        script=Markup(_SCRIPT),  # noqa: S704
    )


def scanner_page(name: str, explanation: str, alerts: Sequence[Mapping[str, Any]], *, now: float) -> str:
    """Return one scanner's page as HTML.

    Args:
        name: the scanner's.
        explanation: all there is to know about it, as text.
        alerts: the evidence, as `GET /scanners/{name}` has it.
        now: epoch seconds.
    """
    told = [{**alert, "said": _instant(alert["said_at"])} for alert in alerts]
    return _ONE.render(
        name=name,
        headline=name,
        explanation=explanation,
        alerts=told,
        now=_instant(now),
        style=Markup(_STYLE),  # noqa: S704 - our own file
    )


def _row(row: Mapping[str, Any], now: float) -> dict[str, Any]:
    state, status = row["state"], row["last_status"]
    mood = "good" if state == "enabled" else "warn"
    if state == "quarantined" or (state == "enabled" and status in _TROUBLE):
        mood = "bad"
    probe = row["next_probe"]
    return {
        "name": row["name"],
        "pipeline": row["pipeline"],
        "state": state,
        "mood": mood,
        "last_status": status,
        "last_at": _instant(row["last_at"]),
        "took": "–" if row["last_duration"] is None else _span(row["last_duration"]),
        "next_probe": "–" if probe is None else "with the next run" if probe <= now else f"in {_span(probe - now)}",
        "why": row["reason"] or row["last_error"],
        "who": row["who"] if row["reason"] else "",
        "since": _instant(row["since"]) if row["reason"] else "",
        "until": _instant(row["until"]),
        "action": "disable" if state == "enabled" else "enable",
    }


def _headline(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Say in one line how the fleet is."""
    states = Counter(row["state"] for row in rows)
    failing = sum(row["state"] == "enabled" and row["mood"] == "bad" for row in rows)
    parts = [f"{count} {state}" for state, count in sorted(states.items()) if state != "enabled"]
    if failing:
        parts.insert(0, f"{failing} failing")
    if not parts:
        return "good", f"All {len(rows)} scanners are in service"
    bad = failing or states["quarantined"]
    return ("bad" if bad else "warn"), f"{', '.join(parts)}; {states['enabled'] - failing} of {len(rows)} well"


def _span(seconds: float) -> str:
    """Write a duration as people say it."""
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
