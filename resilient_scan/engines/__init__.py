"""Where an attempt runs, behind one seam: `attempt(spec) -> Call`, or `thread.Once`, whose `call` makes it right here.

A `Call` takes the context of an execution, makes one attempt and returns the candidates, or raises. Everything else
(gate, cache, retry, breaker, limits, events, metrics) stays above the seam and does not know where the call went.
"""

from __future__ import annotations

from typing import Protocol

from resilient_scan.layers.attempt import Call
from resilient_scan.scanning import ScannerSpec


class Engine(Protocol):
    """The place elsewhere where one scanner's attempts run; safe to use from any thread."""

    def attempt(self, spec: ScannerSpec, /) -> Call:
        """Return the call that makes one attempt of this scanner."""
