"""Breaker: stop asking a source that keeps failing; pybreaker is the state machine.

`circuit` is that machine with its window, its trials and its open time; `record` is what a store keeps of it; `shared`
keeps the two together; `guard` puts it around calls.
"""

from resilient_scan.layers.breaker.breaker import Guard, Permit
from resilient_scan.layers.breaker.machine import CLOSED, HALF_OPEN, OPEN
from resilient_scan.layers.breaker.sync import PREFIX, Home

__all__ = ["CLOSED", "HALF_OPEN", "OPEN", "PREFIX", "Guard", "Home", "Permit"]
