"""Scanners and a state in, a report out."""

from __future__ import annotations

import math
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.engines.threads import Abandoned, ThreadPool
from resilient_scan.errors import ConfigError, Rejected, is_number
from resilient_scan.events import Bus, Listener, RunEnded, RunStarted, ScanEnded, ScannersRegistered
from resilient_scan.layers.cache import SharedValues
from resilient_scan.logs import LogEvents
from resilient_scan.options import Policy
from resilient_scan.outcome import ErrorInfo, ScanResult, Status
from resilient_scan.quarantine import DAY, Gate
from resilient_scan.report import RunReport, results_in_order
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.stack import Outcome, Scan, Stack
from resilient_scan.state import TOOL_LOGS, Snapshot

_DEADLINE, _CLOSE = "deadline", "close"  # messages to a run, beside the ends of its scans


class ScanRunner:
    """Run a fleet of scanners; one bad scanner never costs another its result.

    Thread-safe: `run` may be called from several threads at once.

    Args:
        scanners: scanner objects or classes, each with a name of its own.
        policy: the layers around every scanner, where the scanner itself does not say otherwise.
        max_workers: scanners at work at a time, >= 1.
        concurrent: `False`: one scanner at a time, in the given order, by the same code.
        timeout_seconds: replaces `policy.timeout.total`, in seconds, > 0.
        store: where state lives; `None` and `"memory:"` keep it in this object.
        listeners: callables that take one event; `None` means `(LogEvents(),)`, `()` none.
        engine: where work runs: `"threads"`.
        max_abandoned: hung threads whose place is given to a new worker, >= 0.
        order: `"longest_first"` starts the scanner first that is expected to take longest (unknown ones before all),
            `"given"` keeps the given order. The results keep it in any case.
        settings: by scanner's name, what it finds in `context.settings`.
        clock, random: where time and chance come from; for tests and replays.

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
        store: object = None,
        listeners: Iterable[Listener] | None = None,
        engine: str = "threads",
        max_abandoned: int = 16,
        order: str = "longest_first",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._concurrent = _one_of("concurrent", concurrent, (True, False))
        self._order = _one_of("order", order, ("longest_first", "given"))
        _one_of("store", store, (None, "memory:"))
        _one_of("engine", engine, ("threads",))
        self._max_workers = _whole("max_workers", max_workers, 1)
        policy = _policy(policy, timeout_seconds)
        specs = _distinct([spec_of(thing) for thing in scanners])
        names = tuple(spec.name for spec in specs)
        settings = _settings(settings or {}, names)
        self._bus = Bus((LogEvents(),) if listeners is None else tuple(listeners))
        self._gate = Gate(names, self._clock, self._bus)
        self._pool = ThreadPool(
            self._max_workers, max_abandoned=_whole("max_abandoned", max_abandoned, 0), clock=self._clock
        )
        shared, chance = SharedValues(self._clock), random or Random()  # noqa: S311 - jitter, not secrets
        self._stacks = {
            spec.name: Stack(
                spec,
                policy.replace(spec.layers),
                settings=settings.get(spec.name, MappingProxyType({})),
                in_service=partial(self._gate.in_service, spec.name),
                pool=self._pool,
                shared=shared,
                bus=self._bus,
                clock=self._clock,
                random=chance,
            )
            for spec in specs
        }
        self._names = names
        self._lock = threading.Lock()
        self._runs: set[_Run] = set()
        self._closed = False
        self._leave_threads = weakref.finalize(self, self._pool.shutdown, False, cancel_futures=True)
        self._leave_threads.atexit = False
        self._bus.send(ScannersRegistered(tuple(stack.registered() for stack in self._stacks.values())))

    @classmethod
    def from_config(cls, scanners: Iterable[Any], config: Mapping[str, Any], **options: Any) -> Self:
        """Build a runner from `{"scanner_execution": {"concurrent", "max_workers", "timeout_seconds"}}`.

        The table may also stand under `"discovery"`. Other top-level keys are ignored; `options` win.

        Raises:
            ConfigError: a key inside the table is unknown, or a value is wrong.
        """
        return cls(scanners, **{**_execution_table(config), **options})

    def run(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> RunReport:
        """Ask every scanner once and report; a scanner's fault never raises.

        Args:
            state: what every scanner gets a copy of; `None`: an empty one. Only a `tool_logs` list in it is changed:
                the run's new entries are added to it.
            deadline: seconds from now after which the run is over, >= 0; `None`: when the last scan ends.

        Raises:
            TypeError: the state is no mapping, or cannot be copied.
            ConfigError: the deadline is wrong.
            RuntimeError: the runner is closed.
            KeyboardInterrupt: Ctrl-C; the report so far is its attribute `report`.
        """
        run = self._prepare(state, deadline)
        try:
            for _ in self._results(run):
                pass
        except KeyboardInterrupt as interrupt:
            interrupt.report = run.report()  # type: ignore[attr-defined]
            raise
        return run.report()

    def stream(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> Iterator[ScanResult]:
        """Yield each scan's result as it ends; leaving the loop early cancels the rest.

        Arguments and errors are those of `run`.
        """
        return self._results(self._prepare(state, deadline))

    def disable(self, name: str, *, reason: str = "by hand", duration: float = DAY) -> None:
        """Take a scanner out of service for `duration` seconds (24 hours unless given).

        Raises:
            ConfigError: there is no such scanner, or an argument is wrong.
        """
        self._gate.disable(name, reason, duration)

    def enable(self, name: str, *, reason: str = "by hand") -> None:
        """Bring a scanner back into service.

        Raises:
            ConfigError: there is no such scanner.
        """
        self._gate.enable(name, reason)

    def abandoned(self) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first, with their current stacks."""
        return self._pool.abandoned()

    @property
    def names(self) -> tuple[str, ...]:
        """The scanners' names, in the given order."""
        return self._names

    def close(self) -> None:
        """End all runs (their open scans are `skipped`) and let the threads go; hung ones are not waited for."""
        with self._lock:
            self._closed = True
            runs = tuple(self._runs)
        for run in runs:
            run.outbox.put((None, _CLOSE, ()))
        self._leave_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # one run

    def _prepare(self, state: Mapping[str, Any] | None, deadline: float | None) -> _Run:
        if self._closed:
            raise RuntimeError("the runner is closed; build another one to run again")
        if deadline is not None and not is_number(deadline, 0):
            raise ConfigError(f"deadline must be a number of seconds >= 0, got {deadline!r}")
        return _Run({} if state is None else state, deadline, self._clock)

    def _results(self, run: _Run) -> Iterator[ScanResult]:
        """Yield the results as they come; the caller's thread is the run's thread."""
        self._enter(run)
        forget = None
        try:
            if run.deadline < math.inf:
                forget = self._pool.at(run.deadline, lambda: run.outbox.put((None, _DEADLINE, ())))
            waiting = [run.scan(stack) for stack in self._in_order()]
            for scan in waiting:
                self._begin(run, scan)
                while not self._concurrent and scan in run.open:
                    yield from self._take(run)
            while run.open:
                yield from self._take(run)
        finally:
            if forget is not None:
                forget()
            self._leave(run)

    def _enter(self, run: _Run) -> None:
        run.start()
        with self._lock:
            if self._closed:
                raise RuntimeError("the runner is closed; build another one to run again")
            self._runs.add(run)
        self._bus.send(RunStarted(run.run_id, len(self._stacks), self._concurrent, self._max_workers, run.started_at))

    def _in_order(self) -> list[Stack]:
        """Return the stacks in the order in which they start: with few workers this decides a run's length."""
        stacks = list(self._stacks.values())
        if self._concurrent and self._order == "longest_first":
            stacks.sort(key=lambda stack: -math.inf if stack.expected is None else -stack.expected)
        return stacks

    def _begin(self, run: _Run, scan: Scan) -> None:
        run.open.add(scan)
        if run.over or self._clock.monotonic() >= run.deadline:
            scan.turn, scan.turn_at = self._clock.monotonic(), self._clock.time()
            scan.end(scan.stack.without_work(scan, Status.SKIPPED))
            return
        try:
            scan.stack.begin(scan)
        except RuntimeError as error:  # the pool was shut down by `close`, or the machine has no thread to give
            status = Status.SKIPPED if self._closed else Status.REJECTED
            scan.end(scan.stack.without_work(scan, status, ErrorInfo.of(Rejected(str(error)))))

    def _take(self, run: _Run) -> Iterator[ScanResult]:
        """Take one message and yield the results that it brings."""
        scan, answer, events = run.outbox.get()
        for event in events:
            self._bus.send(event)
        if scan is None:
            yield from self._cut(run, by_user=answer == _CLOSE)
        elif scan in run.open:
            yield self._finish(run, scan, answer)

    def _cut(self, run: _Run, *, by_user: bool) -> list[ScanResult]:
        """End the scans that are open: the run's deadline has come, or somebody cancelled the run."""
        run.over = True
        return [result for scan in tuple(run.open) if (result := self._cut_one(run, scan, by_user)) is not None]

    def _cut_one(self, run: _Run, scan: Scan, by_user: bool) -> ScanResult | None:
        execution = scan.execution
        if execution is None:
            return None  # its end is in the outbox
        begun = execution.leave(scan, to_the_end=not by_user)
        if begun is None:
            return None  # likewise
        if begun and scan.leads and not by_user:
            return self._finish(run, scan, scan.stack.cut_short(scan, execution))
        return self._finish(run, scan, scan.stack.without_work(scan, Status.SKIPPED))

    def _finish(self, run: _Run, scan: Scan, answer: ScanResult | Outcome) -> ScanResult:
        run.open.discard(scan)
        invalid = answer.invalid if isinstance(answer, Outcome) and scan.leads else ""
        result = scan.stack.result(scan, answer) if isinstance(answer, Outcome) else answer
        run.results[result.scanner] = result
        if self._bus.wants(ScanEnded):
            self._bus.send(ScanEnded(run.run_id, result, scan.cache, invalid))
        return result

    def _leave(self, run: _Run) -> None:
        """Wind a run up, whichever way it ended."""
        self._cut(run, by_user=True)
        while run.open:
            for _ in self._take(run):
                pass
        for name in self._names:
            if name not in run.results:  # cancelled before its turn
                scan = run.scan(self._stacks[name])
                scan.turn, scan.turn_at = self._clock.monotonic(), self._clock.time()
                self._finish(run, scan, scan.stack.without_work(scan, Status.SKIPPED))
        with self._lock:
            self._runs.discard(run)
        report = run.end(self._names)
        self._bus.send(RunEnded(run.run_id, report.duration, report.counts, report.complete, self._clock.time()))


class _Run:
    """One execution of the fleet against one state."""

    def __init__(self, state: Mapping[str, Any], deadline: float | None, clock: Clock) -> None:
        self.snapshot = Snapshot(state)
        self._caller_logs = state.get(TOOL_LOGS)
        self._clock = clock
        self._seconds = math.inf if deadline is None else float(deadline)
        self.deadline = math.inf
        self.run_id = uuid.uuid4().hex
        self.outbox: SimpleQueue[Any] = SimpleQueue()
        self.open: set[Scan] = set()
        self.results: dict[str, ScanResult] = {}
        self.over = False
        self.started_at = 0.0
        self._began = 0.0
        self._report: RunReport | None = None

    def start(self) -> None:
        """Start the clock."""
        self.started_at, self._began = self._clock.time(), self._clock.monotonic()
        self.deadline = self._began + self._seconds

    def scan(self, stack: Stack) -> Scan:
        """Make this run's scan of one scanner."""
        return Scan(stack, self.snapshot, self.deadline, self.outbox)

    def end(self, names: tuple[str, ...]) -> RunReport:
        """Make the report, and add the run's tool logs to the caller's list, if there is one."""
        duration = self._clock.monotonic() - self._began
        self._report = RunReport(self.run_id, results_in_order(names, self.results), self.started_at, duration)
        if isinstance(self._caller_logs, list):
            self._caller_logs.extend(self._report.tool_logs)
        return self._report

    def report(self) -> RunReport:
        """Return the report of a run that has ended."""
        if self._report is None:  # cut off before it began
            return RunReport(self.run_id, {}, self.started_at, 0.0)
        return self._report


# arguments


def _distinct(specs: Sequence[ScannerSpec]) -> Sequence[ScannerSpec]:
    seen: dict[str, Any] = {}
    for spec in specs:
        if spec.name in seen:
            raise ConfigError(
                f"two scanners are named {spec.name!r}: {seen[spec.name]!r} and {spec.origin!r}; rename one"
            )
        seen[spec.name] = spec.origin
    return specs


def _policy(policy: Policy | None, timeout_seconds: float | None) -> Policy:
    if policy is None:
        policy = Policy()
    if not isinstance(policy, Policy):
        raise ConfigError(f"policy must be a Policy, got {policy!r}")
    if timeout_seconds is None:
        return policy
    try:
        timeout = msgspec.structs.replace(policy.timeout, total=timeout_seconds)
    except ConfigError as error:
        raise ConfigError(str(error).replace("timeout.total", "timeout_seconds")) from None
    return policy.replace({"timeout": timeout})


def _settings(settings: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    for name, table in settings.items():
        if name not in names:
            raise ConfigError(f"settings: there is no scanner {name!r} here; there are {', '.join(names) or 'none'}")
        if not isinstance(table, Mapping):
            raise ConfigError(f"settings: {name} must be a table, got {table!r}")
    return {name: MappingProxyType(dict(table)) for name, table in settings.items()}


def _execution_table(config: Mapping[str, Any]) -> dict[str, Any]:
    home = config if "scanner_execution" in config else config.get("discovery", {})
    table = home.get("scanner_execution", {}) if isinstance(home, Mapping) else {}
    if not isinstance(table, Mapping):
        raise ConfigError(f"scanner_execution must be a table, got {table!r}")
    known = ("concurrent", "max_workers", "timeout_seconds")
    for key in table:
        if key not in known:
            raise ConfigError(f"scanner_execution: unknown key {key!r}; the keys are {', '.join(known)}")
    return dict(table)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
        raise ConfigError(f"{name} must be {' or '.join(repr(item) for item in allowed)}, got {value!r}")
    return value


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigError(f"{name} must be >= {least}, got {value!r}")
    return value
