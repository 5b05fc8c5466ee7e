"""Breaker: stop asking a source that keeps failing; pybreaker is the state machine.

`circuit` is that machine with its window, its trials and its open time; `record` is what a store keeps of it; `shared`
keeps the two together; `breaker` puts it around calls.
"""

from resilient_scan.layers.breaker.breaker import CircuitBreaker, Permit
from resilient_scan.layers.breaker.machine import CLOSED, HALF_OPEN, OPEN
from resilient_scan.layers.breaker.sync import BREAKER_PREFIX, BreakerStore

__all__ = ["BREAKER_PREFIX", "CLOSED", "HALF_OPEN", "OPEN", "BreakerStore", "CircuitBreaker", "Permit"]
