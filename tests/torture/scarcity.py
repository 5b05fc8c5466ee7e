"""Poisons that take what a machine has too little of, in cages where it is scarce, and give it back or fail."""

from __future__ import annotations

import threading
from typing import Any

from resilient_scan import Candidate
from tests.torture.register import FOREVER, found, poison

GROUP = "scarcity"


@poison("starts threads until there are none, and keeps them", "error", group=GROUP)
def takes_all_threads(_state: dict[str, Any]) -> Any:
    while True:
        threading.Thread(target=FOREVER.wait, name="poison", daemon=True).start()


@poison("takes all memory and fails", "error", group=GROUP, retry=None)
def takes_all_memory(_state: dict[str, Any]) -> Any:
    taken: list[Any] = []
    while True:
        taken.append(bytearray(1 << 24))


@poison("finds more than the store's disk has room for", "completed", group=GROUP)
def fills_the_disk(_state: dict[str, Any]) -> Any:
    return [Candidate(ticker=f"T{number}", source="poison", context="x" * 1_000) for number in range(2_000)]


@poison("finds little on a full disk", "completed", group=GROUP)
def finds_little(_state: dict[str, Any]) -> Any:
    return found()
