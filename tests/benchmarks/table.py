"""The tables in `docs/costs.md`, from what was measured last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def results() -> dict[str, Any]:
    """Return what was measured last, by the version of Python."""
    read: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return read


def tables(parts: Mapping[str, Any]) -> str:
    """Return what was measured as Markdown; where each row has columns of its own, they are under each other."""
    text = ""
    for part in parts.values():
        rows: dict[str, dict[str, str]] = part["rows"]
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        text += f"\n{part['title']}\n"
        if len(columns) <= max(map(len, rows.values())):
            lines = [[title, *(row.get(name, "") for name in columns)] for title, row in rows.items()]
            text += _lines([["", *columns], *lines])
        else:
            for title, row in rows.items():
                text += _lines([[title, ""], *([name, shown] for name, shown in row.items())])
    return text


def _lines(rows: list[list[str]]) -> str:
    shown = [f"| {' | '.join(row)} |\n" for row in rows]
    return f"\n{shown[0]}|{' --- |' * len(rows[0])}\n{''.join(shown[1:])}"


def pages() -> str:
    """Return all that was measured, each version of Python under a heading of its own."""
    text = ""
    for python, read in results().items():
        before, after = read["load"]
        text += f"\n### Python {python}\n\nMeasured on {read['date']}, {read['rounds']} rounds; the machine's load was "
        text += f"{before} before and {after} after.\n{tables(read['parts'])}"
    return text
