"""What passes between an execution and the scans that wait for it."""

from __future__ import annotations

from contextvars import Context
from queue import SimpleQueue
from typing import Any, Protocol

import msgspec

from resilient_scan._text import in_seconds
from resilient_scan.errors import Rejected, ScanTimeout, decisive_leaves, is_cancellation
from resilient_scan.events import CANCELLED, ERROR, TIMEOUT, Event
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry
from resilient_scan.layers.local import Fault
from resilient_scan.results import ErrorInfo, ScanResult
from resilient_scan.snapshot import Snapshot

REJECTED = "rejected"  # how an execution ends without an attempt; its event says cancelled


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How an execution ended, for all that wait for it.

    `entry` is what the cache keeps of it. `fault` is what this machine may be to blame for: until that is decided, the
    scans go on waiting.
    """

    kind: str
    candidates: list[Any]
    entry: Entry | None
    error: ErrorInfo | None
    attempts: int
    duration: float
    queue_wait: float
    dropped: int
    tool_logs: list[dict[str, Any]]
    started_at: float
    suspicious: str | None = None
    fault: Fault | None = None


class WaitingRun(Protocol):
    """What an execution knows of the run that a waiter belongs to.

    Attributes:
        run_id: the run's.
        snapshot: its state.
        deadline: the monotonic instant at which it ends.
        since: the monotonic instant from which its queue waits are counted.
        epoch: what added to a monotonic instant gives epoch seconds.
        open: the scans that have begun and have no result yet; for its thread only.
        outbox: where its thread looks for what has ended.
    """

    run_id: str
    snapshot: Snapshot
    deadline: float
    since: float
    epoch: float
    open: set[Any]
    outbox: SimpleQueue[Any]

    @property
    def ready(self) -> list[Any]:
        """Executions that its thread is about to hand to the pool, all at a time; for its thread only."""

    @property
    def ready_on_lane(self) -> list[Any]:
        """Those for the lane."""

    def hand_over(self) -> None:
        """Hand them over, before a later scan takes its turn in the pool; on its thread."""

    @property
    def variables(self) -> Context:
        """The context variables of its thread, for copies that its executions run in."""


class Waiter(Protocol):
    """A scan that waits for an execution; its methods may be called on any thread."""

    run: WaitingRun
    turn: float
    leads: bool
    execution: Any
    answer: Any

    def end(self, answer: ScanResult | Outcome, events: tuple[Event, ...] = ()) -> None:
        """Hand the answer over to the run's thread, with what that thread has to send to the listeners."""

    def tell(self, events: tuple[Event, ...]) -> None:
        """Have the run's thread send events before the end of the scan, and bring votes to the store; by one thread."""

    def end_cached(self, entry: Entry) -> None:
        """Hand over an answer that another process brought."""

    def hold_up(self) -> None:
        """Let the run's thread know that another process works on the same."""

    def end_skipped(self) -> None:
        """Hand over that nothing was done, because the run has ended."""


def run_over(waiter: Waiter, now: float) -> ScanTimeout:
    """Return the error of a scan that its run's deadline cuts off."""
    return ScanTimeout(f"the run's deadline came after {in_seconds(now - waiter.turn)}s", by_clock=True)


def kind_of(failure: BaseException, context: AttemptContext) -> str:
    """Return in one word how an execution or attempt ended that raised this."""
    if is_cancellation(failure):
        return TIMEOUT if context.timed_out else CANCELLED if context.has_ended else ERROR
    first = decisive_leaves(failure)[0]  # `ErrorInfo` names the first too: status and error have to fit
    if isinstance(first, ScanTimeout) and first.by_clock:
        return TIMEOUT
    return REJECTED if isinstance(failure, Rejected) and not context.has_called else ERROR
