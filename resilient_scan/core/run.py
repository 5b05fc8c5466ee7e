"""A run: its scans begin in order and end as their outcomes come.

Everything in `Run` happens on the run's thread, which is the caller's. Other threads only put messages into the run's
outbox: the end of a scan, the run's deadline, a cancel. So a run needs no lock, and its events come in one order.

A signal handler may raise on that thread at any point: a Ctrl-C, or an alarm of the caller's. All the same, what starts
ends, and each event is sent once. So `wind_up` may be called again after it was cut short, and whatever must not fall
apart is written in one statement, after all calls: Python runs no signal handler between two assignments.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from itertools import islice
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from msgspec.structs import replace

from resilient_scan._dispatch import Channel, Delivery
from resilient_scan.clock import Clock
from resilient_scan.core.assembly import Fleet
from resilient_scan.core.copies import AnswerCopy
from resilient_scan.core.execution import Execution, mark_work
from resilient_scan.core.flights import NEXT, packed
from resilient_scan.core.outcome import Outcome, WaitingRun
from resilient_scan.core.scan import NOT_ASKED, Scan, begin, cut_off, result_of, stored_answers, without_work
from resilient_scan.core.stack import Stack
from resilient_scan.events import LOCAL, DeadlineActedOn, ListenerLate, RunEnded, RunStarted, ScanEnded
from resilient_scan.layers.attempt import Step
from resilient_scan.layers.cache import Entry
from resilient_scan.results import RunReport, ScanResult, Status, results_in_order
from resilient_scan.snapshot import TOOL_LOGS, Snapshot
from resilient_scan.stores.health import WaitBudget

# Seconds that a run's thread waits for a message at a time. On Python 3.11 a Ctrl-C that arrives just before an untimed
# wait for a lock does not interrupt it; with a limit, the next round sees it.
POLL_INTERVAL = 0.25
BATCH = 16  # executions that are handed to the pool at a time, at most: 100 µs after the first of them was made
READ_AFTER = 128  # scans of a stream that begin before its reader is given what has ended meanwhile
SLOW_READER = 0.005  # seconds
MOMENT = 0.001  # seconds for which the first of these is waited for
LOOK_AHEAD = 128  # scans whose answers are read from the store at once
FLUSH_TIMEOUT = 0.25  # seconds after the deadline for which a run waits for its listeners
_DEADLINE, _CLOSE = "deadline", "close"  # messages to a run, besides the ends of its scans


class Run:
    """One execution of the fleet against one state.

    Args:
        state: what the scanners get copies of.
        seconds: after which the run ends.
        clock: where time comes from.
        demo: whether bundled data answer.

    Raises:
        TypeError: the state is not a mapping, or cannot be copied.
    """

    remembered: bool = True  # whether the history has it

    def __init__(self, state: Mapping[str, Any], seconds: float, clock: Clock, *, demo: bool = False) -> None:
        self.started_at: float
        self.started_at, self._began = clock.time(), clock.monotonic()  # copying a large state takes its time, too
        self.snapshot: Snapshot = Snapshot(state)
        self.deadline: float = math.inf
        self.epoch: float = 0.0
        self.since: float = 0.0
        self.outbox: SimpleQueue[Scan | str] = SimpleQueue()
        self._caller_logs = state.get(TOOL_LOGS)
        self._clock, self._monotonic = clock, clock.monotonic
        self._seconds = seconds
        self._demo = demo
        self.run_id: str = uuid.uuid4().hex
        self.has_started: bool = False
        self.has_ended: bool = False
        self._announced = False
        self.open: set[Scan] = set()
        self.ready: list[Execution] = []  # to be handed to the pool
        self.ready_on_lane: list[Execution] = []
        self._queued = 0  # how many of them hold a place in the window
        self._undecided: dict[str, Scan] = {}  # by name, those that have failed by what may be this machine's fault
        self._decisions = -1  # about such failures, when it last looked
        self.results: dict[str, ScanResult] = {}
        self._over = False
        self._dispatches = False  # whether it keeps the listeners' own threads
        self._unread: list[ScanResult] | None = None  # results that nobody has read yet; None: nobody will
        self._report: RunReport | None = None
        self._sending: tuple[Channel, Delivery] | None = None  # the event that is being sent, or was sent last
        self.variables: Context = copy_context()
        self._last: tuple[Stack, bytes] | None = None  # what ended last

    def start(self, fleet: Fleet, names: tuple[str, ...], *, concurrent: bool) -> None:
        """Start the clock; `names` are the scanners that take part."""
        self.fleet = fleet
        self._names = names
        self._concurrent = concurrent
        self._dispatches = fleet.bus.open(wanted=self._seconds < math.inf)
        self._scans = fleet.bus.channel(ScanEnded)  # after that
        self.epoch = self.started_at - self._began
        self.since = self._began
        self.deadline = self._began + self._seconds
        self.has_started = True  # last: from here on, the run can be ended, wherever a Ctrl-C interrupts it

    def wait_budget(self) -> WaitBudget:
        """Return the budget that bounds this thread's waits for a store, above all after the deadline."""
        left = self._began + self._seconds - self._clock.monotonic()
        return WaitBudget(monotonic() + left)  # other processes hold the lock: real time, not the run's clock

    # from any thread

    def cancel(self) -> None:
        """Ask the run's thread to end the run now."""
        self.outbox.put(_CLOSE)

    def deadline_came(self) -> None:
        """Put the deadline into the outbox; on the watchdog's thread."""
        self.outbox.put(_DEADLINE)

    # on the run's thread

    def stream(self, stacks: Sequence[Stack], window: int, *, read: bool) -> Iterator[ScanResult]:
        """Go through the run; yield the results as they come, if `read`.

        At most `window` scans are open at a time. A large fleet's scans begin as others end, so that their objects are
        few and short-lived: the garbage collector then has next to nothing to look at.
        """
        self.fleet.faults.runs.add(self)
        self.fleet.refresh()
        self._announce()
        self._take_variables()
        self._unread = [] if read else None
        with self._timer():
            yield from self._begin_all(stacks, window)
            while self.open:
                self._receive()
                if self._unread:
                    yield from self._read()

    def _begin_all(self, stacks: Sequence[Stack], window: int) -> Iterator[ScanResult]:
        """Begin all scans, a group at a time: it is handed over together.

        A reader does not wait for the begin of 10,000 scans: once there is plenty for the workers to do, it is given
        what has ended. One who takes long over that is given no more until all scans have begun: they do not wait.
        """
        size, left = min(BATCH, window), iter(self._with_stored_answers(stacks))
        receives, begun = self._unread is None, 0
        while group := tuple(islice(left, size)):
            self._begin_group(group)
            begun += len(group)
            if self._queued + size > window:
                self._make_room(window)
            elif begun == READ_AFTER and not receives:
                receives = True
                self._receive(MOMENT)  # or no worker would get the interpreter's lock before its turn
            elif receives and self.outbox.qsize():
                self._receive()
            if self._unread:
                before = self._monotonic()
                yield from self._read()
                receives = receives and self._monotonic() - before < SLOW_READER

    def _begin_group(self, group: Sequence[Stack]) -> None:
        """Start some scans, or end them at once; hand over what they need together."""
        monotonic, deadline, concurrent, heard = self._monotonic, self.deadline, self._concurrent, self._scans.listeners
        ready, ready_on_lane = self.ready, self.ready_on_lane
        for stack in group:  # every scan comes through here
            turn = monotonic()
            if turn >= deadline or self._over:
                self._skip(stack)
                continue
            if not concurrent:
                self.since = turn
            started = begin(stack, self, turn)
            if isinstance(started, Scan):
                self._queued += started.queued
                continue
            if ready or ready_on_lane:  # a listener may take its time
                self._hand_over()
            result, cache = started
            self._finish(self, stack, result, cache)
            if heard and self.outbox.qsize():  # a listener may have closed the runner
                self._receive()
        self.hand_over()

    def _make_room(self, window: int) -> None:
        """Wait until half of the window is free, and not one place: the next scans begin together.

        So a store is asked for all of them at once. The other half keeps the workers busy meanwhile.
        """
        while self._queued > window // 2:
            self._receive()

    def _with_stored_answers(self, stacks: Sequence[Stack]) -> Iterable[Stack]:
        """Return the stacks; the caches of the next ones get what the store has for them, all with one read."""
        return stacks if self.fleet.leases is None else self._load_answers(stacks)

    def _load_answers(self, stacks: Sequence[Stack]) -> Iterator[Stack]:
        for first in range(0, len(stacks), LOOK_AHEAD):
            group = stacks[first : first + LOOK_AHEAD]
            if not self._over:
                self.fleet.load_answers(stored_answers(group, self))
            yield from group

    def _read(self) -> Iterator[ScanResult]:
        """Yield what nobody has read yet to a reader who may take long, and may change the context variables."""
        self.hand_over()
        unread, self._unread = self._unread or (), []
        yield from unread
        self._take_variables()

    def _take_variables(self) -> None:
        """Take the context variables that executions run in: those of this thread, with a mark, once for all."""
        self.variables = copy_context()
        self.variables.run(mark_work, self.fleet.pool)

    def _announce(self) -> None:
        if self._announced:
            return
        fleet = self.fleet
        event = RunStarted(self.run_id, len(self._names), self._concurrent, fleet.workers, self.started_at, self._demo)
        channel = fleet.bus.channel(RunStarted)
        self._sending, self._announced = (channel, channel.begin(event)), True
        self._send()

    def _send(self) -> None:
        """Send the last event, or what is left of that."""
        if self._sending is not None:
            channel, delivery = self._sending
            channel.finish(delivery)

    @contextmanager
    def _timer(self) -> Iterator[None]:
        """Put a message into the outbox at the deadline, if there is one."""
        if self.deadline == math.inf:
            yield
            return
        forget = self.fleet.pool.at(self.deadline, self.deadline_came)
        try:
            yield
        finally:
            forget()

    def hand_over(self) -> None:
        """Hand to the pool and the lane what is ready, before a later scan takes its turn there."""
        if self.ready or self.ready_on_lane:
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand over what is ready: before this thread waits, or does anything that may take its time.

        Each execution by itself would take the pool's lock and look at its workers once more. Where an interrupt comes
        first, `wind_up` does this: others may have joined the executions by then, and wait for them.
        """
        fleet = self.fleet
        for queue, ready in ((fleet.pool, self.ready), (fleet.lane, self.ready_on_lane)):
            if queue is None or not ready:
                continue
            try:
                queue.execute_all(ready)  # it takes them out as it queues them
            except (RuntimeError, OSError) as error:  # shut down, or the machine has no thread or descriptor to give
                while ready:
                    ready[0].refuse(
                        str(error), LOCAL
                    )  # twice, if an interrupt comes now: the second time changes nothing
                    del ready[0]

    def _receive(self, seconds: float = POLL_INTERVAL) -> bool:
        """Take what has come, or else wait for one message and take that; `False`: none came.

        What comes meanwhile has to wait: the reader of a stream is first given what there is.
        """
        outbox, open_scans = self.outbox, self.open
        left = outbox.qsize()
        try:
            message: Any = outbox.get_nowait() if left else self._wait_for_message(seconds)
        except Empty:
            self._decide()  # what an attempt failed by may wait, too, although its scan goes on
            return False
        while True:
            if type(message) is not Scan:
                self._obey(message)
            elif type(answer := message.answer) is not ScanResult or message.events or message.news:
                self._take(message)
            elif message in open_scans:  # most of them; `_take` and `_end`, without the calls
                open_scans.remove(message)
                self._queued -= message.queued
                context, message.execution = message.execution.context, None  # `_finish_own`, without the call
                self._finish(
                    message.run,
                    message.stack,
                    answer,
                    message.cache,
                    context.invalid,
                    context.steps,
                    message.probe != "",
                )
            left -= 1
            if left <= 0:
                break
            message = outbox.get_nowait()
        if self._undecided:
            self._decide()
        return True

    def _obey(self, message: str) -> None:
        """End the run: its deadline has come, or somebody has cancelled it."""
        if message == _DEADLINE and self.fleet.bus.wants(DeadlineActedOn):
            lateness = max(0.0, self._clock.monotonic() - self.deadline)
            self.fleet.bus.send(DeadlineActedOn("", lateness, self.run_id))
        self._cut_off(by_user=message == _CLOSE)

    def _wait_for_message(self, seconds: float) -> Scan | str:
        leases = self.fleet.leases
        self.hand_over()
        if leases is not None:
            leases.ask()
        return self.outbox.get(True, seconds)

    def _take(self, scan: Scan) -> None:
        """Take over what another thread has brought for a scan, if it has: events, and its answer."""
        if scan.news:
            self._send_news(scan)
        if scan.events:
            events, scan.events = scan.events, ()
            scan.stack.send_stored(events, self.run_id)
        if scan not in self.open:
            return
        if scan.answer is not None:
            self._end(scan, scan.answer)
        elif scan.held_up:
            self._queued, scan.queued = self._queued - scan.queued, False

    def witnesses(self) -> Iterator[str]:
        """Yield who may still succeed, or fail by what others have failed by; from any thread.

        The last come first: most likely they have not begun.
        """
        waiting, results = self._undecided, self.results
        if len(results) + len(waiting) < len(self._names):
            open_names = (name for name in reversed(self._names) if name not in results and name not in waiting)
            yield from (self.fleet.stacks[name].party for name in open_names)

    def _mark_of(self, scan: Scan) -> str:
        """Return what tells a scan from the run's others."""
        return scan.stack.name

    def _decide(self) -> None:
        """End the scans about whose failure it is decided by now whether it is this machine's fault."""
        faults = self.fleet.faults
        faults.look()
        if self._decisions == faults.decisions:
            return
        self._decisions = faults.decisions
        for scan in tuple(self._undecided.values()):
            if isinstance(scan.answer, Outcome):
                self._end(scan, scan.answer)

    def _send_news(self, scan: Scan) -> None:
        while scan.news:
            scan.stack.send_stored(scan.news.popleft(), self.run_id)

    def _end(self, scan: Scan, answer: ScanResult | Outcome | Entry | AnswerCopy) -> None:
        if scan.news:  # its run has ended, and nobody takes messages any more
            self._send_news(scan)
        self.open.discard(scan)
        self._queued -= scan.queued
        result = answer if isinstance(answer, ScanResult) else self._result(scan, answer)
        if result is None:  # it is open again: a worker copies the answer for it, or it asks for another one
            self._queued += scan.queued
        elif scan.leads:
            self._finish_own(scan, result)
        else:
            scan.execution = None
            self._finish(scan.run, scan.stack, result, scan.cache)

    def _finish_own(self, scan: Scan, result: ScanResult) -> None:
        """End a scan with the result of its own execution.

        Scan and execution refer to each other. Taken apart, they are freed at once and need no garbage collection.
        """
        context, scan.execution = scan.execution.context, None
        self._finish(scan.run, scan.stack, result, scan.cache, context.invalid, context.steps, scan.probe != "")

    def _result(self, scan: Scan, answer: Outcome | Entry | AnswerCopy) -> ScanResult | None:
        """Return a scan's result, if it has one; else it is open again.

        A failure that may be this machine's fault waits until that is decided. Its scan keeps no place in the window
        meanwhile: who comes after it may be the one to testify.
        """
        fault = answer.fault if isinstance(answer, Outcome) else None
        if fault is None or not isinstance(answer, Outcome):
            return result_of(scan, answer, over=self._over)
        if self._over:
            self.fleet.faults.look(fault)
        elif not fault.done:
            mark = self._mark_of(scan)
            if mark not in self._undecided:
                self._undecided[mark] = scan
                self._decisions = -1  # it may have been decided meanwhile
            self.open.add(scan)
            scan.queued = False
            return None
        self._undecided.pop(self._mark_of(scan), None)
        error = answer.error
        known = None if error is None else error.blamed(fault.blame(error.blame))
        return result_of(scan, replace(answer, error=known, fault=None), over=self._over)

    def _cut_off(self, *, by_user: bool) -> None:
        """End the open scans: the run's deadline has come, or the run was cancelled."""
        self._over = True
        for scan in tuple(self.open):
            if self._mark_of(scan) in self._undecided and scan.answer is not None:
                self._end(scan, scan.answer)
                continue
            result = cut_off(scan, by_user=by_user)
            if result is not None:
                self._end(scan, result)

    def _skip(self, stack: Stack) -> None:
        """End a scan whose turn does not come; a scanner that is out of service is still reported as `disabled`."""
        out = stack.name in stack.gated and stack.gate.is_out(stack.name)
        status = Status.DISABLED if out else Status.SKIPPED
        self._finish(self, stack, without_work(stack, self, self._clock.monotonic(), status), NOT_ASKED)

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
        """Take a result: this run's, or that of a map's input (then `run` is the input)."""
        flight = packed(run.run_id, result, steps, cache, probe)
        scans, sending = self._scans, None
        if scans.listeners:
            sending = scans, scans.begin(ScanEnded(run.run_id, result, cache, invalid, probe))
        self.results[stack.name], self._last, self._sending = result, (stack, flight), sending  # see the top
        if self._unread is not None:
            self._unread.append(result)
        flights = stack.flights  # `Recorder.add`, without the call; no thread gets its turn before `setattr` has ended
        place = flights.place
        flights.place = NEXT[place]
        setattr(flights, place, flight)
        if sending is not None:
            scans.finish(sending[1])

    # its end

    def wind_up(self) -> None:
        """Give every scan a result, whichever way the run ended, and then end the run."""
        self._catch_up()
        self._announce()
        self.hand_over()
        if self.open:
            self._end_open()
        if len(self.results) < len(self._names):  # cancelled before their turn
            self._over = True
            for name in self._names:
                if name not in self.results:
                    self._skip(self.fleet.stacks[name])
        self._end_run()
        self._flush_listeners()
        self.has_ended = True

    def _catch_up(self) -> None:
        """Do what an interrupt has kept from being done about the scan that ended last, or about the last event."""
        if self._last is not None:
            stack, last = self._last
            if not any(flight is last for flight in stack.flights.newest_first()):
                stack.flights.add(last)
        self._send()

    def _end_open(self) -> None:
        self._cut_off(by_user=True)
        for scan in tuple(self.open):
            self._take(scan)
        looks = 8  # in vain: who has ended an execution hands its outcome over in a moment
        while self.open and looks:
            looks -= not self._receive()
        for scan in tuple(self.open):
            self._end(scan, without_work(scan.stack, self, scan.turn, Status.SKIPPED))

    def _end_run(self) -> None:
        """Make the report, add the run's tool logs to the caller's list, if there is one, and send the last event."""
        fleet = self.fleet
        if self._report is None:
            fleet.faults.runs.discard(self)
            fleet.faults.look()
            fleet.flush_votes(self.run_id)
            duration = self._clock.monotonic() - self._began
            results = results_in_order(self._names, self.results)
            report = RunReport(self.run_id, results, self.started_at, duration, self._demo)
            extend = self._caller_logs.extend if isinstance(self._caller_logs, list) else None
            adding = (
                map(extend, [report.tool_logs]) if extend is not None else iter(())
            )  # one step in C, as in `Channel`
            channel, sending = fleet.bus.channel(RunEnded), None
            if channel.listeners:
                event = RunEnded(self.run_id, duration, report.counts, report.complete, self._clock.time())
                sending = channel, channel.begin(event)
            self._report, self._adding, self._sending = report, adding, sending
        for _ in self._adding:
            pass
        self._send()

    def _flush_listeners(self) -> None:
        """Wait until the listeners have had all events, but not past the deadline, apart from a moment."""
        bus = self.fleet.bus
        left = 0.0 if self._over else max(0.0, self.deadline - self._clock.monotonic())
        self._over = True  # where an interrupt ends this wait, the next one is short
        for listener, events in bus.flush(monotonic() + left + FLUSH_TIMEOUT):
            bus.send(ListenerLate(listener, events, self.run_id, self._clock.time()))
        dispatches, self._dispatches = self._dispatches, False
        if dispatches:
            bus.close()

    def report(self) -> RunReport:
        """Return the report of a run that has ended."""
        if self._report is None:  # cut off before it began
            return RunReport(self.run_id, {}, self.started_at, 0.0, self._demo)
        return self._report
