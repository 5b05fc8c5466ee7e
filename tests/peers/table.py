"""The table in `docs/compare.md`, from what was measured last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.peers.costs import KINDS
from tests.peers.faults import FAULTS
from tests.peers.measure import REQUIREMENTS
from tests.peers.stacks import MODULES

RESULTS = Path(__file__).with_name("results.json")


def results() -> dict[str, Any]:
    """Return what was measured last."""
    read: dict[str, Any] = json.loads(RESULTS.read_text())
    return read


def versions() -> str:
    """Return the names and versions that are compared, as a sentence has them."""
    found = re.findall(r"^([\w-]+)(?:\[.*\])?==([\d.]+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    return ", ".join(f"{name} {version}" for name, version in found)


def table() -> str:
    """Return the table, with when and what was measured."""
    read = results()
    titles = {name: fault.title for name, fault in FAULTS.items()} | {name: kind.title for name, kind in KINDS.items()}
    lines = [["", *MODULES], ["---"] * (len(MODULES) + 1)]
    lines += [[title, *(read["told"][name][stack] for stack in MODULES)] for name, title in titles.items()]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{rows}\nMeasured on {read['date']} with Python {read['python']}: {versions()}.\n"
