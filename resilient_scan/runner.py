"""Scanners and a state in, a report out."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.context import Traffic
from resilient_scan.engines.tasks import Abandoned
from resilient_scan.errors import ConfigError, is_number, no_scanner
from resilient_scan.events import Event, Listener
from resilient_scan.explain import Explanation, explain, origins_in_code, past_of
from resilient_scan.fleet import (
    Fleet,
    Plan,
    base_policy,
    by_name,
    callables,
    distinct,
    effective,
    execution_table,
    one_of,
    whole,
)
from resilient_scan.lint import lint_fleet, sentences
from resilient_scan.logs import LogEvents
from resilient_scan.options import Policy, Quarantine
from resilient_scan.outcome import ScanResult
from resilient_scan.quarantine import DAY, Alert, Entry, ScannerState
from resilient_scan.recall import Recall, RunRecord
from resilient_scan.report import RunReport
from resilient_scan.running import LiveRun
from resilient_scan.stack import Flight, Stack
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.foreign import Foreign
from resilient_scan.stores.patience import Brief

_log = logging.getLogger("resilient_scan")
_CLOSED = "the runner is closed; build another one to run again"
PATIENCE = 0.25  # seconds for which a run waits until what it brought is in the store
WINDOW, ALL = 128, 10**9  # scans of a run under way at a time; a stream's reader may be slow, it is not waited for


class ScanRunner:
    """Run a fleet of scanners; one bad scanner never costs another its result.

    Thread-safe: `run` may be called from several threads at once.

    Args:
        scanners: scanner objects or classes, each with a name of its own.
        policy: the layers around every scanner, where the scanner itself does not say otherwise.
        max_workers: scanners at work at a time, >= 1.
        concurrent: `False`: one scanner at a time, in the given order, by the same code.
        timeout_seconds: replaces `policy.timeout.total`, in seconds, > 0.
        store: where state lives, so that it survives restarts and is shared: `"sqlite:///path.db"`,
            `"redis://host:port/db"`, or a store object, which is yours to close; `None`, `"memory:"`: in this object.
        listeners: callables that take one event; `None` means `(LogEvents(),)`, `()` none.
        engine: where work runs: `"threads"`.
        quarantine: when alerts, or failures counted here, take a scanner out of service; `None` means `Quarantine()`.
        max_abandoned: hung threads whose place is given to a new worker, >= 0.
        order: `"longest_first"` starts the scanner first that is expected to take longest (unknown ones before all),
            `"given"` keeps the given order. The results keep it in any case.
        settings: by scanner's name, what it finds in `context.settings`.
        policies: by scanner's name, its whole policy; wins over the scanner's own layers and over `policy`.
        origins: by scanner's name and `layer.field`, where a number came from, for `explain`.
        deadline: of runs that are given none; seconds, >= 0; `None`: no deadline.
        traffic: a `resilient_scan.http.Recorder` or `Replay`, which stands between the scanners and the network.
        clock, random: where time and chance come from; for tests.

    Raises:
        ConfigError: an argument is wrong, or two scanners have one name.
        PluginError: a scanner is none.
    """

    def __init__(
        self,
        scanners: Iterable[Any],
        *,
        policy: Policy | None = None,
        max_workers: int = 8,
        concurrent: bool = True,
        timeout_seconds: float | None = None,
        store: str | Store | None = None,
        listeners: Iterable[Listener] | None = None,
        engine: str = "threads",
        quarantine: Quarantine | None = None,
        max_abandoned: int = 16,
        order: str = "longest_first",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        policies: Mapping[str, Policy] | None = None,
        origins: Mapping[str, Mapping[str, str]] | None = None,
        deadline: float | None = None,
        traffic: Traffic | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._concurrent = one_of("concurrent", concurrent, (True, False))
        self._order = one_of("order", order, ("longest_first", "given"))
        one_of("engine", engine, ("threads",))
        specs = distinct(scanners)
        names = [spec.name for spec in specs]
        by_name({} if settings is None else settings, "settings", Mapping, names)
        self._plan = Plan(
            specs=specs,
            origins=dict(origins or {}),
            policies=effective(specs, base_policy(policy, timeout_seconds), {} if policies is None else policies),
            settings={name: MappingProxyType(copy.deepcopy(dict(table))) for name, table in (settings or {}).items()},
            listeners=(LogEvents(),) if listeners is None else callables(listeners),
            max_workers=whole("max_workers", max_workers, 1),
            max_abandoned=whole("max_abandoned", max_abandoned, 0),
            clock=self._clock,
            random=random or Random(),  # noqa: S311 - jitter, not secrets
            quarantine=_checked(quarantine, names),
            store=_opened(store, self._clock),
            owns_store=isinstance(store, str),
            traffic=traffic,
        )
        self._deadline = _seconds(deadline)
        self._given = (policy, frozenset(policies or ()), timeout_seconds is not None)
        # How often somebody will call `run` is not known here, so nothing is said about the time between runs.
        self._findings = lint_fleet(self._plan.policies, deadline=deadline)
        for sentence in sentences(self._findings):
            _log.warning("%s", sentence)
        self._window = max(WINDOW, 4 * self._plan.max_workers) if concurrent else 1
        self._closed = False
        self._forked = False
        self._lock = threading.Lock()
        self._open()
        _runners.add(self)

    def _open(self) -> None:
        """Make the live parts."""
        self._runs: set[LiveRun] = set()
        self._live_fleet = fleet = Fleet(self._plan)
        self._recall = None if self._plan.store is None else Recall(self._plan.store, fleet.store_failed)
        self._fresh = self._recall is not None  # nothing has been recalled yet
        self._let_go = weakref.finalize(self, fleet.close)
        self._let_go.atexit = False

    @property
    def _fleet(self) -> Fleet:
        """The live parts; after a fork new ones, because the parent's threads and locks do not work in the child."""
        if self._forked:
            with self._lock:
                if self._forked:
                    gate = self._live_fleet.gate
                    if self._plan.store is not None:
                        self._plan.store.after_fork()
                    self._open()
                    self._live_fleet.gate.inherit(gate)
                    self._forked = False
        return self._live_fleet

    def _after_fork(self) -> None:
        self._let_go.detach()
        self._lock = threading.Lock()
        self._forked = True
        self._live_fleet.leave()
        _left_to_the_parent.append(self._live_fleet)

    @classmethod
    def from_config(cls, scanners: Iterable[Any], config: Mapping[str, Any], **options: Any) -> Self:
        """Build a runner from `{"scanner_execution": {"concurrent", "max_workers", "timeout_seconds"}}`.

        The table may also stand under `"discovery"`. Other top-level keys are ignored; `options` win.

        Raises:
            ConfigError: a key inside the table is unknown, or a value is wrong.
        """
        return cls(scanners, **{**execution_table(config), **options})

    def run(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        only: Iterable[str] | None = None,
    ) -> RunReport:
        """Ask every scanner once and report; a scanner's fault never raises.

        Args:
            state: what every scanner gets a copy of; `None`: an empty one. Only a `tool_logs` list in it is changed:
                the run's new entries are added to it.
            deadline: seconds from now after which the run is over, >= 0; `None`: the runner's own, if it has one.
            only: names of the scanners that take part, in any order; `None`: all. The report has no others.

        Raises:
            TypeError: the state is no mapping, or cannot be copied.
            ConfigError: the deadline is wrong, or there is no such scanner.
            RuntimeError: the runner is closed.
            KeyboardInterrupt: Ctrl-C; the report so far is its attribute `report`.
        """
        run = self._prepare(state, deadline)
        names = self.names if only is None else self._only(only)
        try:
            for _ in self._results(run, self._window, names):
                pass
        except KeyboardInterrupt as interrupt:
            if not run.has_ended:  # a second one, or it fell into the winding up
                with run.brief():
                    self._leave(run)
            interrupt.report = run.report()  # type: ignore[attr-defined]
            raise
        return run.report()

    async def arun(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> RunReport:
        """Do the same as `run` from asyncio code: the loop is not blocked, cancelling it cancels the run.

        Arguments and errors are those of `run`.
        """
        run = self._prepare(state, deadline)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(None) if error is None else ended.set_exception(error)

        def work() -> None:
            failure: BaseException | None = None
            try:
                for _ in self._results(run, self._window, self.names):
                    pass
            except BaseException as error:  # it belongs to whoever awaits
                failure = error
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, failure)

        threading.Thread(
            target=contextvars.copy_context().run, args=(work,), name="resilient-scan-run", daemon=True
        ).start()
        try:
            await ended
        except asyncio.CancelledError:
            run.cancel()
            raise
        return run.report()

    def stream(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> Iterator[ScanResult]:
        """Yield each scan's result as it ends; leaving the loop early cancels the rest.

        Arguments and errors are those of `run`.
        """
        return self._results(self._prepare(state, deadline), ALL if self._concurrent else 1, self.names)

    def disable(self, name: str, *, reason: str = "by hand", duration: float = DAY, who: str = "") -> None:
        """Take a scanner out of service for `duration` seconds (24 hours unless given), whatever alerts say.

        Args:
            name: the scanner's.
            reason: why, for the audit trail.
            duration: seconds, > 0.
            who: gives the order.

        Raises:
            ConfigError: there is no such scanner, or an argument is wrong.
            StoreError: the order holds in this process only, until the store can be reached again.
        """
        self._fleet.gate.disable(name, reason, duration, who)

    def enable(self, name: str, *, reason: str = "by hand", duration: float = DAY, who: str = "") -> None:
        """Bring a scanner back into service; nothing happens if it is there.

        One that alerts, failures or probes took out stays in service against them for `duration` seconds. Arguments
        and errors are those of `disable`.
        """
        self._fleet.gate.enable(name, reason, duration, who)

    def alerts(self, alerts: Iterable[Alert], *, source: str = "alertmanager") -> dict[str, int]:
        """Act upon alerts, as a webhook brings them.

        Args:
            alerts: in the order of the message.
            source: who sent them: `alertmanager` or `grafana`.

        Returns:
            How many were `accepted`, `duplicate`, of an `unknown_scanner`, or `refused` (the scanner is critical, too
            many are out already, or an order by hand stands against it).

        Raises:
            StoreError: the store fails, and nothing was done; the sender is to try again.
        """
        return self._fleet.gate.alerts(alerts, source)

    def reconcile(self, fetch: Callable[[], Iterable[Alert]], *, source: str = "alertmanager") -> dict[str, int]:
        """Bring what is known of a sender's alerts in line with its own list of the active ones.

        Args:
            fetch: asks for that list; what it raises comes out, and nothing is changed then.
            source: whose list it is.

        Returns:
            The counts, as of `alerts`.

        Raises:
            StoreError: the store fails, and nothing was done.
        """
        return self._fleet.gate.reconcile(fetch, source)

    def scanners(self) -> tuple[ScannerState, ...]:
        """Return how each scanner stands: in service or not, why, since and until when, with evidence."""
        fleet = self._fleet
        return tuple(_with_last(state, fleet.stacks[state.name]) for state in fleet.gate.standings())

    def probes_due(self) -> tuple[str, ...]:
        """Return the scanners whose next scan would be a probe."""
        return self._fleet.gate.probes_due()

    def blind_since(self) -> float | None:
        """Return since when the heartbeats of the alerting have been missing, epoch seconds; `None`: they have not."""
        return self._fleet.gate.blind_since()

    def audit(self, limit: int = 100) -> tuple[Entry, ...]:
        """Return the newest changes of who is in service, newest first, at most `limit`.

        Raises:
            StoreError: the store fails.
        """
        return self._fleet.gate.audit(limit)

    def explain(self, name: str, *, trace: bool = False) -> Explanation:
        """Explain one scanner: whether it would run now, what would make it run, its stack and its last scans.

        Args:
            name: the scanner's.
            trace: whether the text shows the past scans layer by layer.

        Returns:
            An `Explanation`; `str()` of it is text for a person, `.to_dict()` is JSON-ready.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        fleet = self._fleet
        stack = fleet.stack(name)
        base, own, timed = self._given
        said = origins_in_code(stack.spec, stack.policy, base, whole=name in own, timeout_seconds=timed)
        return explain(
            stack,
            standing=fleet.gate.looked_at(name),
            origins={**said, **self._plan.origins.get(name, {})},
            findings=[finding.message for finding in self._findings if finding.concerns(name)],
            before=() if self._recall is None else self._recall.past(name),
            trace=trace,
        )

    def flights(self, name: str) -> tuple[Flight, ...]:
        """Return what the flight recorder has of one scanner: its last scans, oldest first, at most 50.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        return tuple(self._fleet.stack(name).flights.copy())

    def history(self, limit: int = 100) -> tuple[RunRecord, ...]:
        """Return the last runs that the store remembers, those of other processes too, newest first, at most `limit`.

        Raises:
            StoreError: the store fails.
        """
        return () if self._recall is None else self._recall.runs(limit)

    def breaker(self, name: str) -> str | None:
        """Return the state of a scanner's breaker: `closed`, `open` or `half_open`; `None`: it has none.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        guard = self._fleet.stack(name).guard
        return None if guard is None else guard.state

    def listen(self, listener: Listener) -> None:
        """Let one more listen; it is told of the scanners at once, and of what happens in runs that begin from now on.

        A listener that equals one of those there are is not added again.
        """
        (listener,) = callables((listener,))
        with self._lock:
            if listener in self._plan.listeners:
                return
            self._plan = msgspec.structs.replace(self._plan, listeners=(*self._plan.listeners, listener))
        self._fleet.listen(listener)

    def tell(self, event: Event) -> None:
        """Send an event to the listeners, on behalf of what is beside the runner, such as a control endpoint."""
        self._fleet.bus.send(event)

    @property
    def closed(self) -> bool:
        """Whether it was closed, and runs no more."""
        return self._closed

    def abandoned(self) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first, with their current stacks."""
        return self._fleet.pool.abandoned()

    @property
    def names(self) -> tuple[str, ...]:
        """The scanners' names, in the given order."""
        return self._plan.names

    def close(self) -> None:
        """End all runs (their open scans are `skipped`) and let the threads go; hung ones are not waited for."""
        self._closed = True
        if self._forked:
            return  # the threads are the parent's
        with self._lock:
            runs = tuple(self._runs)
        for run in runs:
            run.cancel()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # one run

    def _prepare(self, state: Mapping[str, Any] | None, deadline: float | None) -> LiveRun:
        if self._closed:
            raise RuntimeError(_CLOSED)
        seconds = self._deadline if deadline is None else _seconds(deadline)
        return LiveRun({} if state is None else state, seconds, self._clock)

    def _only(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some scanners, in the given order of all."""
        chosen = set(wanted)
        for name in chosen.difference(self.names):
            raise ConfigError(no_scanner(name, self.names))
        return tuple(name for name in self.names if name in chosen)

    def _results(self, run: LiveRun, window: int, names: tuple[str, ...]) -> Iterator[ScanResult]:
        """Yield the results as they come, never waiting for a store for long."""
        steps = self._steps(run, window, names)
        return steps if self._plan.store is None else _briefly(steps, run.brief())

    def _steps(self, run: LiveRun, window: int, names: tuple[str, ...]) -> Generator[ScanResult]:
        """Yield the results as they come; the caller's thread is the run's thread."""
        fleet = self._fleet
        run.start(fleet, names)
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._runs.add(run)
            fresh, self._fresh = self._fresh, False
        if fresh and self._recall is not None:
            fleet.expect(self._recall.expected())
        try:
            yield from run.stream(self._in_order(fleet, names), window, concurrent=self._concurrent)
        finally:
            self._leave(run)

    def _in_order(self, fleet: Fleet, names: Sequence[str]) -> Sequence[Stack]:
        """Return the stacks in the order in which they start: with few workers this decides a run's length."""
        stacks = [fleet.stacks[name] for name in names]
        if self._concurrent and self._order == "longest_first":
            stacks.sort(key=attrgetter("expected"), reverse=True)
        return stacks

    def _leave(self, run: LiveRun) -> None:
        """Wind a run up, whichever way it ended."""
        run.wind_up()
        with self._lock:
            self._runs.discard(run)
        run.end()
        if self._recall is not None and run.fleet.clerk is not None:
            left = run.deadline - self._clock.monotonic()
            run.fleet.clerk.flush(min(PATIENCE, max(0.0, left)), partial(self._keep, self._recall, run))

    def _keep(self, recall: Recall, run: LiveRun) -> None:
        """Have the store remember a run, on its clerk's thread."""
        report, stacks = run.report(), [run.fleet.stacks[name] for name in run.report().results]
        past = {stack.name: scan for stack in stacks if (scan := past_of(stack, report.run_id)) is not None}
        recall.keep(report, {stack.name: stack.expected for stack in stacks if stack.expected < math.inf}, past)


def _briefly(steps: Generator[ScanResult], brief: Brief) -> Iterator[ScanResult]:
    """Go on with a run briefly; what its reader does in between is not hurried."""
    try:
        while True:
            with brief:
                result = next(steps, None)
            if result is None:
                return
            yield result
    finally:
        with brief:
            steps.close()


def _checked(quarantine: Quarantine | None, names: Sequence[str]) -> Quarantine:
    if quarantine is None:
        return Quarantine()
    if not isinstance(quarantine, Quarantine):
        raise ConfigError(f"quarantine must be a Quarantine, got {quarantine!r}")
    for name in quarantine.critical:
        if name not in names:
            raise ConfigError(f"quarantine.critical: {no_scanner(name, names)}")
    return quarantine


def _with_last(state: ScannerState, stack: Stack) -> ScannerState:
    """Add to how a scanner stands what only this process knows: whose it is, and how its last scan ended."""
    last = stack.flights[-1].result if stack.flights else None
    return msgspec.structs.replace(
        state,
        pipeline=stack.pipeline,
        last_status=None if last is None else last.status.value,
        last_at=None if last is None else last.started_at,
    )


def _opened(store: str | Store | None, clock: Clock) -> Store | None:
    if store is None or (isinstance(store, str) and store == "memory:"):
        return None
    opened = open_store(store, clock)
    return opened if isinstance(store, str) else Foreign(opened)


def _seconds(deadline: float | None) -> float:
    if deadline is None:
        return math.inf
    if not is_number(deadline, 0):
        raise ConfigError(f"deadline must be a number of seconds >= 0, got {deadline!r}")
    return float(deadline)


_left_to_the_parent: list[Fleet] = []  # in a child: kept, because letting go would close what both share
_runners: weakref.WeakSet[ScanRunner] = weakref.WeakSet()


def _after_fork() -> None:
    for runner in tuple(_runners):
        runner._after_fork()  # noqa: SLF001 - its own module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
