"""The circuit breaker: stop calling a source that keeps failing, and test now and then whether it is back.

`record` has its states and what a store keeps of it; `machine` changes the state, with pybreaker; `sync` keeps the
machine and the record in a store together; `breaker` puts all of this around calls. `provider` is the same for the
party that several scanners call, with more to say about who failed; only a runner that has providers imports it.
"""

from resilient_scan.layers.breaker.breaker import CircuitBreaker, Permit
from resilient_scan.layers.breaker.record import CLOSED, HALF_OPEN, OPEN
from resilient_scan.layers.breaker.sync import BREAKER_PREFIX, PROVIDER_PREFIX, BreakerStore

__all__ = [
    "BREAKER_PREFIX",
    "CLOSED",
    "HALF_OPEN",
    "OPEN",
    "PROVIDER_PREFIX",
    "BreakerStore",
    "CircuitBreaker",
    "Permit",
]
