"""What all scanners of a runner share: live parts that `assembly` builds once, and that each `Stack` refers to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from resilient_scan._dispatch import Bus
from resilient_scan.core.pool import ThreadPool
from resilient_scan.engines.loop import Loops
from resilient_scan.errors import StoreError
from resilient_scan.events import Event
from resilient_scan.layers.local import LocalFaults
from resilient_scan.layers.providers import Providers
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.layers.timeout import Abandoned
from resilient_scan.quarantine import Gate
from resilient_scan.stores import Store
from resilient_scan.stores.leases import LeaseKeeper

if TYPE_CHECKING:
    from resilient_scan.core.lane import Lane
    from resilient_scan.engines.cluster.workers import ClusterWorkers
    from resilient_scan.engines.process.children import Children


class Shared(msgspec.Struct, frozen=True):
    """The live parts that all scanners of a runner share.

    Attributes:
        gate: decides who is in service.
        pool: where work runs.
        loops: where coroutines run, each on the thread of the worker that makes the attempt.
        call_pool: where the blocking calls of coroutines run.
        lane: where `async def` scanners run, all on one loop; `None`: on workers.
        children: the processes of scanners that are isolated; `None`: no scanner is.
        bus, send: where events go.
        providers: whose limits are kept.
        values: what several scanners need, loaded once.
        faults: judges what may be this machine's own fault.
        store: where state is shared with other processes; `None`: nowhere.
        leases: see to it that one of several processes works on a key; `None`: there is no store.
        store_failed: is called with the operation that failed, and why.
        awake: the breakers that a run looks after (`BreakerStore.awake`).
    """

    gate: Gate
    pool: ThreadPool
    loops: Loops
    call_pool: ThreadPool
    lane: Lane | None
    children: Children | ClusterWorkers | None
    bus: Bus
    send: Callable[[Event], None]
    providers: Providers
    values: SharedValues
    faults: LocalFaults
    store: Store | None
    leases: LeaseKeeper | None
    store_failed: Callable[[str, StoreError], None]
    awake: set[str]


def abandoned_in(lane: Lane | None, *pools: ThreadPool) -> list[Abandoned]:
    """List the threads and coroutines that did not stop in time and still run, oldest first."""
    found = [thread for pool in pools for thread in pool.abandoned()]
    if lane is not None:
        found += lane.abandoned()
    return sorted(found, key=lambda thread: -thread.age)
