"""Scanners that a test holds by the hand."""

from __future__ import annotations

import threading
from typing import Any

from resilient_scan import Scanner, scanner


def held(name: str, begun: threading.Event, release: threading.Event, **layers: Any) -> Scanner:
    """Make a scanner that says when it is called, and then hangs, deaf to every cancel, until it is released."""

    def scan(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        return []

    return scanner(name=name, pipeline="test", **layers)(scan)
