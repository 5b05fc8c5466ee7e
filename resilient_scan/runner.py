"""Scanners and a state in, a report out."""

from __future__ import annotations

import math
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.context import Step
from resilient_scan.engines.threads import Abandoned, ThreadPool
from resilient_scan.errors import ConfigError, is_number
from resilient_scan.events import Bus, Listener, RunEnded, RunStarted, ScanEnded, ScannersRegistered
from resilient_scan.execution import NOT_ASKED, Outcome, Run, Scan, begin, cut_short, result_of, without_work
from resilient_scan.layers.cache import SharedValues
from resilient_scan.layers.limit import Provider, merged
from resilient_scan.logs import LogEvents
from resilient_scan.options import Policy
from resilient_scan.outcome import ScanResult, Status
from resilient_scan.quarantine import DAY, Gate
from resilient_scan.report import RunReport, results_in_order
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.stack import Stack
from resilient_scan.state import TOOL_LOGS, Snapshot

_CLOSED = "the runner is closed; build another one to run again"
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
        policies: by scanner's name, its whole policy; wins over the scanner's own layers and over `policy`.
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
        policies: Mapping[str, Policy] | None = None,
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
        policies = _policies(policies or {}, names)
        self._bus = Bus((LogEvents(),) if listeners is None else tuple(listeners))
        self._gate = Gate(names, self._clock, self._bus)
        self._pool = ThreadPool(
            self._max_workers, max_abandoned=_whole("max_abandoned", max_abandoned, 0), clock=self._clock
        )
        shared, chance = SharedValues(self._clock), random or Random()  # noqa: S311 - jitter, not secrets
        policies = {spec.name: policies.get(spec.name) or policy.replace(spec.layers) for spec in specs}
        self._providers = {
            name: Provider(limit, self._clock, self._pool.at)
            for name, limit in merged([(name, p.limit) for name, p in policies.items() if p.limit]).items()
        }
        self._stacks = {
            spec.name: Stack(
                spec,
                policies[spec.name],
                settings=settings.get(spec.name, MappingProxyType({})),
                in_service=partial(self._gate.in_service, spec.name),
                pool=self._pool,
                shared=shared,
                bus=self._bus,
                clock=self._clock,
                random=chance,
                provider=self._provider_of(policies[spec.name]),
            )
            for spec in specs
        }
        self._names = names
        self._tells_scans = self._bus.wants(ScanEnded)
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

    def _provider_of(self, policy: Policy) -> Provider | None:
        return None if policy.limit is None else self._providers[policy.limit.provider]

    # one run

    def _prepare(self, state: Mapping[str, Any] | None, deadline: float | None) -> _Run:
        if self._closed:
            raise RuntimeError(_CLOSED)
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
            for stack in self._in_order():
                done = self._begin(run, stack)
                if done is not None:
                    yield done
                while not self._concurrent and run.open:
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
                raise RuntimeError(_CLOSED)
            self._runs.add(run)
        self._bus.send(RunStarted(run.run_id, len(self._stacks), self._concurrent, self._max_workers, run.started_at))

    def _in_order(self) -> Sequence[Stack]:
        """Return the stacks in the order in which they start: with few workers this decides a run's length."""
        stacks = list(self._stacks.values())
        if self._concurrent and self._order == "longest_first":
            stacks.sort(key=attrgetter("expected"), reverse=True)
        return stacks

    def _begin(self, run: _Run, stack: Stack) -> ScanResult | None:
        """Start one scan; return its result if it has one at once."""
        if run.over or (run.deadline < math.inf and self._clock.monotonic() >= run.deadline):
            return self._skip(run, stack)
        started = begin(stack, run)
        if isinstance(started, Scan):
            run.open.add(started)
            return None
        return self._finish(run, stack, *started)

    def _take(self, run: _Run) -> Sequence[ScanResult]:
        """Take one message and return the results that it brings."""
        scan, answer, events = run.outbox.get()
        if events:
            self._bus.send_all(events)
        if scan is None:
            return self._cut(run, by_user=answer == _CLOSE)
        return (self._end(run, scan, answer),)

    def _end(self, run: _Run, scan: Scan, answer: ScanResult | Outcome) -> ScanResult:
        run.open.discard(scan)
        result = result_of(scan, answer) if isinstance(answer, Outcome) else answer
        context = scan.execution.context if scan.leads and scan.execution is not None else None
        if context is None:
            return self._finish(run, scan.stack, result, scan.cache)
        return self._finish(run, scan.stack, result, scan.cache, context.invalid, context.steps)

    def _cut(self, run: _Run, *, by_user: bool) -> Sequence[ScanResult]:
        """End the scans that are open: the run's deadline has come, or somebody cancelled the run."""
        run.over = True
        return [result for scan in tuple(run.open) if (result := self._cut_one(run, scan, by_user)) is not None]

    def _cut_one(self, run: _Run, scan: Scan, by_user: bool) -> ScanResult | None:
        execution = scan.execution
        begun = None if execution is None else execution.leave(scan, to_the_end=not by_user)
        if execution is None or begun is None:
            return None  # its end is in the outbox, or about to be
        if begun and scan.leads and not by_user:
            return self._end(run, scan, cut_short(scan, scan.execution or execution))
        return self._end(run, scan, without_work(scan.stack, run, scan.turn, Status.SKIPPED))

    def _skip(self, run: _Run, stack: Stack) -> ScanResult:
        skipped = without_work(stack, run, self._clock.monotonic(), Status.SKIPPED)
        return self._finish(run, stack, skipped, NOT_ASKED)

    def _finish(
        self,
        run: _Run,
        stack: Stack,
        result: ScanResult,
        cache: str,
        invalid: str = "",
        steps: tuple[Step, ...] = (),
    ) -> ScanResult:
        run.results[stack.name] = result
        stack.record(run.run_id, result, cache, steps)
        if self._tells_scans:
            self._bus.send(ScanEnded(run.run_id, result, cache, invalid))
        return result

    def _leave(self, run: _Run) -> None:
        """Wind a run up, whichever way it ended."""
        if run.open:
            self._cut(run, by_user=True)
            while run.open:
                self._take(run)
        if len(run.results) < len(self._names):  # cancelled before their turn
            for stack in self._stacks.values():
                if stack.name not in run.results:
                    self._skip(run, stack)
        with self._lock:
            self._runs.discard(run)
        report = run.end(self._names)
        if self._bus.wants(RunEnded):
            self._bus.send(RunEnded(run.run_id, report.duration, report.counts, report.complete, self._clock.time()))


class _Run(Run):
    """One execution of the fleet against one state."""

    def __init__(self, state: Mapping[str, Any], deadline: float | None, clock: Clock) -> None:
        super().__init__(Snapshot(state), math.inf, 0.0)
        self._caller_logs = state.get(TOOL_LOGS)
        self._clock = clock
        self._seconds = math.inf if deadline is None else float(deadline)
        self.run_id = uuid.uuid4().hex
        self.open: set[Scan] = set()
        self.results: dict[str, ScanResult] = {}
        self.over = False
        self.started_at = 0.0
        self._began = 0.0
        self._report: RunReport | None = None

    def start(self) -> None:
        """Start the clock."""
        self.started_at, self._began = self._clock.time(), self._clock.monotonic()
        self.epoch = self.started_at - self._began
        self.deadline = self._began + self._seconds

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


def _policies(policies: Mapping[str, Policy], names: tuple[str, ...]) -> Mapping[str, Policy]:
    for name, policy in policies.items():
        if name not in names:
            raise ConfigError(f"policies: there is no scanner {name!r} here; there are {', '.join(names) or 'none'}")
        if not isinstance(policy, Policy):
            raise ConfigError(f"policies: {name} must be a Policy, got {policy!r}")
    return policies


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
