"""A map: one scanner over many inputs, each a scan of its own with the input as its state.

             next(inputs)            begin               the end of a scan
    inputs ----------------> Input ---------> open ------------------------> ready ---------> the reader
             while there is              at most                in the inputs' order,
             room                        `window`               or as they end

A map is a run whose scans are of one scanner. All of what a `Run` says of threads, interrupts and the end holds here:
the reader's thread is the run's thread, and everything happens on it.

Back-pressure is that this thread does nothing while the reader has it. An input is read only when nothing is ready and
there is room: fewer than `window` scans are open, and fewer than `most` inputs wait for their turn to be yielded. The
second limit is for results in order, where the first input may hang while those after it end. Ready results come
before the next input, because reading one may take long: it may be a line of somebody's socket.

An engine that batches needs no other seam: it asks for a `window` that fills its batches, and finds that many
executions in its queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from queue import SimpleQueue
from typing import Any, cast

from resilient_scan.clock import Clock
from resilient_scan.core.flights import packed
from resilient_scan.core.outcome import WaitingRun
from resilient_scan.core.run import Run
from resilient_scan.core.scan import Scan, begin
from resilient_scan.core.stack import Stack
from resilient_scan.events import ScanEnded
from resilient_scan.layers.attempt import Step
from resilient_scan.results import ScanResult
from resilient_scan.snapshot import Snapshot

LEAST_ROOM, ROOM = 128, 4  # inputs that wait for their turn, at most: a number, or a multiple of the window
REFRESH_INTERVAL = 10.0  # seconds after which the orders of other processes are looked for again
_CLOSED = "the runner was closed: the map ends after input {}, and the others were not read"


class Input:
    """One input, as the run that its scan is part of.

    It has a run id of its own, the map's with the input's number: many scans of the one scanner are under way, and who
    follows them (traces, the flight recorder) tells scans apart by run and scanner.
    """

    __slots__ = ("_run", "deadline", "epoch", "open", "outbox", "result", "run_id", "since", "snapshot", "value")

    def __init__(self, value: Any, run: Run, number: int, since: float) -> None:
        self.value: Any = value
        self.snapshot: Snapshot = Snapshot(value)
        self.run_id: str = f"{run.run_id}-{number}"
        self.deadline: float = math.inf
        self.since: float = since
        self.epoch: float = run.epoch
        self.open: set[Any] = run.open
        self.outbox: SimpleQueue[Any] = run.outbox
        self.result: ScanResult | None = None
        self._run = run

    @property
    def ready(self) -> list[Any]:
        """The map's."""
        return self._run.ready

    @property
    def ready_on_lane(self) -> list[Any]:
        """The map's."""
        return self._run.ready_on_lane

    def hand_over(self) -> None:
        """Do nothing: the map hands over what is ready before it yields or reads."""

    @property
    def variables(self) -> Context:
        """The map's: the reader may change them between two results."""
        return self._run.variables


class MapRun(Run):
    """One scanner over many inputs.

    Args:
        inputs: the states, one for each scan.
        clock: where time comes from.
        ordered: whether results come in the inputs' order; otherwise as they end.
        demo: whether bundled data answer.
    """

    remembered = False  # the history has runs of the fleet only

    def __init__(self, inputs: Iterable[Mapping[str, Any]], clock: Clock, *, ordered: bool, demo: bool = False) -> None:
        super().__init__({}, math.inf, clock, demo=demo)
        self._inputs: Iterator[Mapping[str, Any]] | None = iter(inputs)  # None: all that will be read have been
        self._ordered = ordered
        self._count = 0  # inputs read
        self._error: BaseException | None = None  # why no more are read
        self._unreported: deque[Input] = deque()  # in the order in which their results are to come
        self._refresh_at = math.inf

    def stream(
        self,
        stacks: Sequence[Stack],
        window: int,
        *,
        read: bool,  # noqa: ARG002 - the base class's: a map is always read
    ) -> Iterator[Any]:
        """Yield each input with its result; at most `window` scans are open at a time."""
        (stack,) = stacks
        self._refresh()
        self._take_variables()
        while True:
            while self.outbox.qsize():
                self._receive()
            self.hand_over()  # what has to ask again, too: neither the reader nor the inputs keep it waiting
            if (done := self._next_ready()) is not None:
                yield done.value, done.result
                self._take_variables()
            elif self._inputs is not None and self._has_room(stack, window):
                self._begin_next(stack)
            elif self.open:
                self._receive()
            else:
                break
        if self._error is not None:
            raise self._error

    def wind_up(self) -> None:
        """End the open scans, whichever way the map ended."""
        self._inputs = None
        self._send()
        self.hand_over()
        if self.open:
            self._end_open()
        self.fleet.flush_votes(self.run_id)
        self._flush_listeners()
        self._unreported.clear()
        self.has_ended = True

    # what differs from a run of the fleet

    def _cut_off(self, *, by_user: bool) -> None:
        """End the open scans, and read no further: the runner was closed, or the reader has left."""
        if self._inputs is not None:
            self._stop(RuntimeError(_CLOSED.format(self._count)))
        super()._cut_off(by_user=by_user)

    def _finish(
        self,
        run: WaitingRun,
        stack: Stack,
        result: ScanResult,
        cache: str,
        invalid: str = "",
        steps: tuple[Step, ...] = (),
        probe: bool = False,
    ) -> None:
        one, flight = cast("Input", run), packed(run.run_id, result, steps, cache, probe)
        scans, sending = self._scans, None
        if scans.listeners:
            sending = scans, scans.begin(ScanEnded(one.run_id, result, cache, invalid, probe))
        one.result, self._sending = result, sending
        if not self._ordered:
            self._unreported.append(one)
        stack.flights.add(flight)
        if sending is not None:
            scans.finish(sending[1])

    # inputs

    @property
    def has_ready(self) -> bool:
        """Whether there is a result that can be read without a wait."""
        return bool(self._unreported) and self._unreported[0].result is not None

    def _next_ready(self) -> Input | None:
        return self._unreported.popleft() if self.has_ready else None

    def _has_room(self, stack: Stack, window: int) -> bool:
        """Say whether another input may be read; how many a cluster takes changes meanwhile."""
        lane = stack.lane
        most = window if lane is None or not self._concurrent else lane.most(stack.name)
        return len(self.open) < most and len(self._unreported) < max(LEAST_ROOM, ROOM * most)

    def _begin_next(self, stack: Stack) -> None:
        """Read one input and begin its scan, or note that there are no more."""
        one = self._read_next(stack)
        if one is None:
            return
        if one.since >= self._refresh_at:
            self._refresh()
        if self._ordered:
            self._unreported.append(one)
        started = begin(stack, one, one.since)
        self.hand_over()  # at once: to read the next input may take long
        if not isinstance(started, Scan):
            self._finish(one, stack, *started)

    def _read_next(self, stack: Stack) -> Input | None:
        if self._inputs is None:
            return None
        try:
            value = next(self._inputs)
        except StopIteration:
            self._inputs = None
            return None
        except Exception as error:  # raised to the reader, after what was begun
            error.add_note(f"raised by the inputs of a map of {stack.name}, after {self._count} of them")
            self._stop(error)
            return None
        self._count += 1
        try:
            return Input(value, self, self._count, self._clock.monotonic())
        except TypeError as error:
            self._stop(TypeError(f"input {self._count} of a map of {stack.name}: {error}"))
            return None

    def _mark_of(self, scan: Scan) -> str:
        return scan.run.run_id

    def _stop(self, error: BaseException) -> None:
        self._inputs, self._error = None, error

    def _refresh(self) -> None:
        """See what other processes know; a map may take hours, and its scanner be taken out meanwhile."""
        self._refresh_at = self._clock.monotonic() + REFRESH_INTERVAL
        self.fleet.refresh()
