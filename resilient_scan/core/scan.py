"""A scan begins: the gate or the cache ends it at once, else it waits for an execution, its own or another scan's.

    gate ----- out of service ------------------------------> disabled
      |  `---- a probe is due ----> an execution of its own; nobody else's answer is read or waited for
    cache ---- a fresh answer, a remembered failure --------> cached, error, timeout; or stale
      |  `---- another scan is asking for the same ---------> waits for that execution (a follower)
    lease ---- another process is asking for the same ------> its execution waits for the answer, or for the lease
      |
    execution

All of this runs on the run's thread. What ends a scan later, on any thread, goes through the outbox of its run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from resilient_scan.core.copies import AnswerCopy
from resilient_scan.core.execution import Execution
from resilient_scan.core.outcome import REJECTED, Outcome, WaitingRun, run_over
from resilient_scan.core.stack import Stack
from resilient_scan.errors import ScanTimeout
from resilient_scan.events import CANCELLED, ERROR, SUCCESS, TIMEOUT, Event
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.copying import ON_WORKER
from resilient_scan.quarantine import Turn
from resilient_scan.results import ErrorInfo, ScanResult, Status

HIT, STALE, MISS, SHARED, BYPASS, NOT_ASKED = "hit", "stale", "miss", "shared", "bypass", ""
_CACHED = Status.CACHED
_STATUS = {
    ERROR: Status.ERROR,
    TIMEOUT: Status.TIMEOUT,
    REJECTED: Status.REJECTED,
    CANCELLED: Status.SKIPPED,
}


_UNCOPYABLE = ErrorInfo("TypeError", "the answer in the cache cannot be copied")


class Scan(msgspec.Struct, eq=False):
    """One scanner's part of a run, while it has no result.

    Attributes:
        stack, run: what it is part of.
        turn: when it began, monotonic.
        cache, key: what the cache had for it, and under which key it asked.
        execution: the `Execution` or `AnswerCopy` that it waits for; `None` once it has a result.
        leads: whether the execution was made for it.
        queued: whether it has a place in the run's window: it waits neither for a provider nor another process.
        probe: the mark of a probe, where it is one.
        answer: what another thread has put here before it put the scan into the outbox: an interrupt of the run's
            thread may cost the run a message that was just taken out, but not the answer.
        events: what the run's thread has to send to the listeners then, and `news` before.
        held_up: another process works on the same.
        asked_again: whether an answer could not be copied, so that it wants another one.
    """

    stack: Stack
    run: WaitingRun
    turn: float
    cache: str = BYPASS
    key: bytes | None = None
    execution: Any = None
    leads: bool = False
    queued: bool = False
    probe: str = ""
    answer: ScanResult | Outcome | Entry | AnswerCopy | None = None
    events: tuple[Event, ...] = ()
    news: deque[tuple[Event, ...]] | None = None
    held_up: bool = False
    asked_again: bool = False

    def end(self, answer: ScanResult | Outcome | Entry | AnswerCopy, events: tuple[Event, ...] = ()) -> None:
        """Hand the answer over to the run's thread, with what that thread has to send to the listeners."""
        self.answer, self.events = answer, events
        self.run.outbox.put(self)

    def tell(self, events: tuple[Event, ...]) -> None:
        """Have the run's thread send events before the scan's end; on the watchdog's thread only."""
        if self.news is None:
            self.news = deque()
        self.news.append(events)
        self.run.outbox.put(self)

    def wait_for(self, execution: Execution) -> None:
        """Note, before anybody else learns of it, the execution of its own that it waits for.

        An interrupt may end the run's thread's work at any point. If the execution led in the cache by then, or had
        been queued, and its run did not know the scan, nobody would end it: every later scan with this key would wait
        for an execution that nobody works on.
        """
        self.execution = execution
        self.run.open.add(self)

    def end_cached(self, entry: Entry) -> None:
        """Hand over an answer that another process brought; the run's thread copies it, or has it copied."""
        self.leads, self.cache = False, SHARED
        self.end(entry)

    def hold_up(self) -> None:
        """Let the run's thread know that another process works on the same: no place in the window is kept for it."""
        self.held_up = True
        self.run.outbox.put(self)

    def end_skipped(self) -> None:
        """Hand over that nothing was done, because the run has ended."""
        self.end(without_work(self.stack, self.run, self.turn, Status.SKIPPED))


# how it begins


def begin(  # noqa: C901 - every scan comes through here: its steps are in one function, the rare ones in others
    stack: Stack, run: WaitingRun, turn: float
) -> Scan | tuple[ScanResult, str]:
    """Start a scan at the monotonic instant `turn`, which is now.

    Returns:
        The scan, which will `end`; or its result, and what the cache had for it, where no work is needed.
    """
    if stack.gated and stack.name in stack.gated:  # the gate knows something about it
        begun = _at_gate(stack, run, turn)
        if begun is not None:
            return begun
    cache = stack.cache
    key = None if cache is None else run.snapshot.keys[cache.inputs]
    if cache is None or key is None:
        if cache is not None:
            cache.warn_once(stack.name)
        scan = Scan(stack, run, turn)
        scan.wait_for(execution := Execution.of(stack, scan, None))
        _lead(scan, execution)
        return scan
    latest, entry = cache.latest, None
    if latest is not None and latest.key == key and turn < latest.fresh_until:  # `cache.peek`, without the call
        entry = latest
    else:  # what the store had is among the other answers: see `stored_answers`
        entry = None if cache.answers is None else cache.fresh(key)
        if entry is None:
            scan = Scan(stack, run, turn, MISS, key)
            context = AttemptContext.at(stack.own, run.snapshot, run.run_id)  # `Execution.of`, without the call
            mine = scan.execution = Execution(stack, context, key, scan, run.variables.copy())
            run.open.add(scan)  # before anybody else learns of it, see `wait_for`
            leader = cache.lead(key, mine)
            if leader is mine and stack.in_batches and stack.lane is None:  # `_lead`, without the call
                ready = run.ready
                scan.leads = scan.queued = True
                ready.append(mine)
                return scan
            entry = _lead_or_follow(scan, cache, key, mine, leader)
            if entry is None:
                return scan
    if entry.error is None and entry.copying is not ON_WORKER:
        copies = cache.copies(key, entry) if entry.candidates else []
        if copies is not None:
            return from_cache(stack, run, turn, entry, copies), HIT
    scan = Scan(stack, run, turn, HIT, key, queued=True)
    result = _answer(scan, entry, over=False)
    return scan if result is None else (result, scan.cache)


def _at_gate(stack: Stack, run: WaitingRun, turn: float) -> Scan | tuple[ScanResult, str] | None:
    """Begin a scan of which the gate knows something; `None`: it may go on as any other."""
    decision, mark = stack.gate.turn(stack.name, stack.total)
    if decision is Turn.PROBE:
        return _probe(Scan(stack, run, turn), mark)
    return None if decision is Turn.RUN else (without_work(stack, run, turn, Status.DISABLED), NOT_ASKED)


def stored_answers(stacks: Sequence[Stack], run: WaitingRun) -> dict[str, tuple[ResultCache[Any], bytes]]:
    """Return what the next scans of a run might find in the store: by the store's key, the cache and its key."""
    wanted: dict[str, tuple[ResultCache[Any], bytes]] = {}
    now = stacks[0].clock.monotonic()
    for stack in stacks:
        cache = stack.cache
        if cache is None or cache.answers is None or (stack.gated and stack.name in stack.gated):
            continue
        key = run.snapshot.keys[cache.inputs]
        if key is not None and cache.peek(key, now) is None and cache.fresh(key) is None:
            wanted[cache.answers.stored_as(key)] = cache, key
    return wanted


def _answer(scan: Scan, entry: Entry, *, over: bool) -> ScanResult | None:
    """End a scan with what the cache has; `None`: it waits for a worker that copies it, or for another answer.

    A failure that is still remembered ends it too, unless an older answer stands in for that.
    """
    stack, cache = scan.stack, scan.stack.cache
    if entry.error is not None:
        status = Status.TIMEOUT if entry.error.kind == ScanTimeout.__name__ else Status.ERROR
        return _or_stale(scan, without_work(stack, scan.run, scan.turn, status, entry.error), over=over)
    if entry.copying is ON_WORKER:
        return _copy(scan, AnswerCopy(scan, entry)) if not over else _skipped(scan)
    copies = None if cache is None else cache.copies(scan.key, entry)
    if copies is None:
        return _ask_again(scan, None, over=over)
    return from_cache(stack, scan.run, scan.turn, entry, copies)


def _ask_again(scan: Scan, error: ErrorInfo | None, *, over: bool) -> ScanResult | None:
    """Ask the source, because the answer in the cache could not be copied; once, as the next one may be like that."""
    stack, cache, key = scan.stack, scan.stack.cache, scan.key
    if over:
        return _skipped(scan)
    if cache is None or key is None or scan.asked_again:
        return without_work(stack, scan.run, scan.turn, Status.ERROR, error or _UNCOPYABLE)
    scan.asked_again, scan.answer, scan.cache = True, None, MISS
    scan.wait_for(mine := Execution.of(stack, scan, key))
    mine.passes_over_stored = True
    entry = _lead_or_follow(scan, cache, key, mine, cache.lead(key, mine))
    return None if entry is None else _answer(scan, entry, over=over)


def _probe(scan: Scan, mark: str) -> Scan:
    """Test a scanner that is out of service: its answer fills the cache, and nobody else's is read or waited for."""
    stack = scan.stack
    key = None if stack.cache is None else scan.run.snapshot.keys[stack.cache.inputs]
    execution = Execution.of(stack, scan, key)
    scan.probe = execution.probe = mark
    scan.wait_for(execution)
    if stack.breaker is not None:
        stack.breaker.allow_trial()
    if stack.provider is not None and stack.provider.breaker is not None:
        stack.provider.breaker.allow_trial()
    _lead(scan, execution)
    return scan


def _lead_or_follow(
    scan: Scan, cache: ResultCache[Any], key: bytes, mine: Execution, leader: Entry | Execution
) -> Entry | None:
    """Start an execution, or join the one under way; an answer that came just now is returned.

    Between the look at the cache and the join, the leader may end, and then land. One that has ended takes no more
    waiters: if it still leads in the cache, our own execution takes its place there; if it has landed meanwhile, the
    cache is asked again, and most likely has the answer.

    Args:
        scan: it waits for `mine`.
        cache: where it asks.
        key: what it asks for.
        mine: its own execution.
        leader: what the cache gave for that.
    """
    while leader is not mine:
        if isinstance(leader, Entry):
            scan.run.open.discard(scan)
            return leader
        scan.cache, scan.queued = SHARED, False  # before it joins: see `cut_off`
        if leader.join(scan):
            return None
        scan.cache = MISS
        if cache.hand_on(key, leader, mine):
            break
        leader = cache.lead(key, mine)
    _lead(scan, mine)
    return None


def _lead(scan: Scan, execution: Execution) -> None:
    """Let a scan's own execution go, once no other process works on the same key.

    Where nothing in the begin of a scan can wait, the run's thread hands over several executions in one step.
    """
    stack, run = scan.stack, scan.run
    if not stack.in_batches:
        run.hand_over()  # what is first in order starts first
    leases, key = stack.leases, scan.key
    if stack.provider is None and (leases is None or key is None):
        execution.on_lane = stack.lane is not None
        ready = run.ready_on_lane if execution.on_lane else run.ready
        scan.leads, scan.queued = True, stack.in_window  # no signal handler runs between these two: see `cut_off`
        ready.append(execution)
        if not stack.in_batches:
            run.hand_over()
        return
    scan.leads, scan.queued = True, stack.in_window
    if leases is not None and key is not None and leases.request(stack.address(key), execution):
        return  # the lease keeper lets it go
    if stack.provider is None:
        execution.queue()
    else:
        execution.go()


# how it ends


def result_of(scan: Scan, answer: Outcome | Entry | AnswerCopy, *, over: bool) -> ScanResult | None:
    """Make a scan's result from what it waited for; `None`: it goes on waiting, for something else.

    Args:
        scan: one without a result.
        answer: what has come: its execution's outcome, an answer of another process, or copies of an answer.
        over: whether its run has ended, so that it cannot wait any more.
    """
    if isinstance(answer, AnswerCopy):
        return _after_copy(scan, answer, over=over)
    if isinstance(answer, Entry):
        return _answer(scan, answer, over=over)
    if answer.kind == SUCCESS:
        return _share(scan, answer, over=over)
    status = _STATUS[answer.kind]
    if scan.leads:
        result = _with_own_work(scan, status, answer)
    else:
        result = without_work(scan.stack, scan.run, scan.turn, status, answer.error)
    return result if answer.kind == CANCELLED else _or_stale(scan, result, over=over)


def cut_off(scan: Scan, *, by_user: bool) -> ScanResult | None:
    """Make the result of a scan whose run has ended; `None`: what it waits for has just ended, and is in the outbox."""
    execution = scan.execution
    may_lead = scan.cache == MISS and isinstance(execution, Execution) and execution.is_of(scan) and not scan.leads
    begun = execution.leave(scan, keep_working=not by_user)
    if begun is None:
        return None
    if isinstance(execution, AnswerCopy):
        return _after_copy(scan, execution, over=True)
    if may_lead and not execution.ended:
        # An interrupt came when it led in the cache already, and before it was queued. Scans of other runs have joined
        # it since, and would wait for ever.
        execution.go()
    if not begun or not scan.leads or by_user:
        return _skipped(scan)
    error = ErrorInfo.of(run_over(scan, scan.stack.clock.monotonic()))
    return result_of(scan, execution.outcome(TIMEOUT, execution.context.found, None, error, scan), over=True)


def without_work(
    stack: Stack, run: WaitingRun, turn: float, status: Status, error: ErrorInfo | None = None
) -> ScanResult:
    """Make the result of a scan for which nothing was done."""
    return _without_own_work(stack, run, turn, status, [], error)


def from_cache(stack: Stack, run: WaitingRun, turn: float, entry: Entry, candidates: list[Any]) -> ScanResult:
    """Make the result of a scan that a fresh answer ends."""
    now, at = stack.clock.monotonic(), turn + run.epoch
    took, age = now - turn, now - entry.stored_at
    return ScanResult(  # most scans end here
        stack.name, stack.pipeline, _CACHED, candidates, None, 0, took, 0.0, age, False, 0, [], at
    )


def _skipped(scan: Scan) -> ScanResult:
    return without_work(scan.stack, scan.run, scan.turn, Status.SKIPPED)


def _or_stale(scan: Scan, fallback: ScanResult, *, over: bool) -> ScanResult | None:
    """Let an older answer stand in for a failure, if the cache has one; `None`: a worker copies it first."""
    cache, key = scan.stack.cache, scan.key
    entry = cache.stale(key) if cache is not None and key is not None else None
    if cache is None or entry is None or (over and entry.copying is ON_WORKER):
        return fallback
    if entry.copying is ON_WORKER:
        return _copy(scan, AnswerCopy(scan, entry, fallback=fallback))
    copies = cache.copies(key, entry)
    return fallback if copies is None else _stale(scan, entry, fallback, copies)


def _stale(scan: Scan, entry: Entry, fallback: ScanResult, copies: list[Any]) -> ScanResult:
    scan.cache = STALE
    now = scan.stack.clock.monotonic()
    age = now - entry.stored_at
    took = fallback.duration if scan.leads else now - scan.turn
    return msgspec.structs.replace(
        fallback, status=Status.STALE, candidates=copies, age=age, partial=False, duration=took
    )


def _share(scan: Scan, outcome: Outcome, *, over: bool) -> ScanResult | None:
    """Give a scan another scan's candidates, as objects of its own where they can be copied."""
    cache, entry = scan.stack.cache, outcome.entry
    if cache is None or entry is None:
        copies = None
    elif entry.copying is ON_WORKER:
        return _copy(scan, AnswerCopy(scan, entry, shared=outcome)) if not over else _skipped(scan)
    else:
        copies = cache.copies(scan.key, entry)
    return _as_shared(scan, outcome, list(outcome.candidates) if copies is None else copies)


def _as_shared(scan: Scan, outcome: Outcome, candidates: list[Any]) -> ScanResult:
    return _without_own_work(
        scan.stack, scan.run, scan.turn, Status.CACHED, candidates, age=0.0, suspicious=outcome.suspicious
    )


# answers that a worker copies


def _copy(scan: Scan, copy: AnswerCopy) -> ScanResult | None:
    """Have an answer copied; the scan waits for that, so it has no result yet."""
    scan.answer, scan.execution = None, copy
    scan.run.open.add(scan)
    copy.queue()
    return None


def _after_copy(scan: Scan, copy: AnswerCopy, *, over: bool) -> ScanResult | None:
    """Make the result of a scan whose answer was to be copied on a worker."""
    stack, cache, entry, outcome = scan.stack, scan.stack.cache, copy.entry, copy.shared
    if copy.kind == SUCCESS:
        copies = copy.candidates or []
        if copy.fallback is not None:
            return _stale(scan, entry, copy.fallback, copies)
        if outcome is not None:
            return _as_shared(scan, outcome, copies)
        return from_cache(stack, scan.run, scan.turn, entry, copies)
    if cache is not None and copy.error is not None and (copy.hangs or copy.kind == ERROR):
        cache.drop(scan.key, entry, copy.error.message)
    if copy.fallback is not None:
        return copy.fallback
    if copy.kind == ERROR and outcome is not None:
        return _as_shared(scan, outcome, list(outcome.candidates))
    if copy.kind == ERROR:
        return _ask_again(scan, copy.error, over=over)
    return without_work(stack, scan.run, scan.turn, _STATUS[copy.kind], copy.error)


# results


def _without_own_work(
    stack: Stack,
    run: WaitingRun,
    turn: float,
    status: Status,
    candidates: list[Any],
    error: ErrorInfo | None = None,
    age: float | None = None,
    suspicious: str | None = None,
) -> ScanResult:
    took = stack.clock.monotonic() - turn
    at = turn + run.epoch
    return ScanResult(
        stack.name, stack.pipeline, status, candidates, error, 0, took, 0.0, age, False, 0, [], at, suspicious
    )


def _with_own_work(scan: Scan, status: Status, outcome: Outcome) -> ScanResult:
    return ScanResult(
        scan.stack.name,
        scan.stack.pipeline,
        status,
        outcome.candidates,
        outcome.error,
        outcome.attempts,
        outcome.duration,
        outcome.queue_wait,
        None,
        bool(outcome.candidates),
        outcome.dropped,
        outcome.tool_logs,
        outcome.started_at,
    )
