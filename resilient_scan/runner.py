"""What people call: scanners and a state in, a report out, and what an operator asks for in between."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping
from random import Random
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from resilient_scan._once import IMPORTING
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.context import Traffic
from resilient_scan.core.assembly import Fleet
from resilient_scan.core.config import (
    Config,
    base_policy,
    callables,
    chosen,
    distinct,
    effective,
    execution_table,
    isolated,
    settings_by_scanner,
)
from resilient_scan.core.flights import Flight
from resilient_scan.core.runs import Runs, in_thread, on_threads
from resilient_scan.errors import ConfigError
from resilient_scan.events import Event, Listener
from resilient_scan.layers.limit import ProviderState
from resilient_scan.layers.timeout import Abandoned
from resilient_scan.lint import lint_fleet, sentences
from resilient_scan.observe.logs import LogEvents
from resilient_scan.options import Cluster, Policy, Quarantine
from resilient_scan.quarantine import ORDER_DURATION, Alert, AuditEntry, ScannerState
from resilient_scan.results import RunReport, ScanResult
from resilient_scan.stores import ATTEMPTS_KEPT_FOR, Store
from resilient_scan.stores.history import Past, RunRecord

if TYPE_CHECKING:
    from resilient_scan.observe.explain import Explanation

_log = logging.getLogger("resilient_scan")
Input = TypeVar("Input", bound=Mapping[str, Any])


class ScanRunner:
    """Run a fleet of scanners; one bad scanner never costs another its result.

    Thread-safe: `run` may be called from several threads at once.

    Args:
        scanners: scanner objects or classes, each with a name of its own.
        policy: the layers around every scanner, where the scanner itself does not say otherwise.
        max_workers: how many scanners may work at a time, >= 1.
        concurrent: `False`: one scanner at a time, in the given order, by the same code.
        timeout_seconds: replaces `policy.timeout.total`, in seconds, > 0.
        store: where state lives, so that it survives restarts and is shared: `"sqlite:///path.db"`,
            `"redis://host:port/db"`, or a store object, which is yours to close; `None`, `"memory:"`: in this object.
            `?space=NAME` after a URL names a part that is separate from the rest; runners without it share orders and
            breakers by the scanner's name.
        history: seconds for which the store keeps every attempt, >= 0; 90 days, unless given; 0: it keeps none. In
            memory none is kept.
        listeners: callables that take one event; `None` means `(LogEvents(),)`, `()` none; equal ones count as one.
        engine: where attempts run: `"threads"`, in this process; `"dask"`: at the workers of a cluster.
        cluster: the address of a Dask scheduler, such as `"tls://scheduler:8786"`, a `Cluster` or a
            `distributed.Client`; `"local"`: workers on this machine, to try it out.
        quarantine: when alerts, or failures counted here, take a scanner out of service; `None` means `Quarantine()`.
        max_abandoned: hung threads whose place is given to a new worker, >= 0.
        max_async: scans of `async def` scanners at a time, >= 1; with the extra `async` they take no worker.
        order: `"longest_first"` starts the scanners first that are expected to take longest, and unknown ones before
            them; `"given"` keeps the given order. Results are in the given order either way.
        settings: what each scanner finds in `context.settings`, by the scanner's name.
        policies: whole policies by scanner's name; they override the scanner's own layers and `policy`.
        deadline: seconds for runs that are not given a deadline of their own, >= 0; `None`: no deadline.
        local_probe: `"host:port"` of something near that always answers, such as a resolver: if it cannot be reached
            either, a name that does not resolve is this machine's fault. `None`: scanners of two providers have to fail
            likewise.
        traffic: a `resilient_scan.http.Recorder` or `Replay`, which stands between the scanners and the network.
        isolation: what scanners run in that do not say so themselves, `"thread"` or `"process"`: a child process that
            is killed when their time is up; or a mapping by scanner's name, which overrides what they say.
        memory: bytes, or texts such as `"512MB"`, by scanner's name; see `@scanner(memory=)`, which this overrides.
        clock, random: where time and chance come from; for tests.

    Raises:
        ConfigError: an argument is wrong, or two scanners have one name.
        PluginError: one of the scanners is not a scanner, or cannot run in a child process.
    """

    def __init__(  # noqa: PLR0913 - the public face: an option is an argument
        self,
        scanners: Iterable[Any],
        *,
        policy: Policy | None = None,
        max_workers: int = 8,
        concurrent: bool = True,
        timeout_seconds: float | None = None,
        store: str | Store | None = None,
        history: float = ATTEMPTS_KEPT_FOR,
        listeners: Iterable[Listener] | None = None,
        engine: str = "threads",
        cluster: Any = None,
        quarantine: Quarantine | None = None,
        max_abandoned: int = 16,
        max_async: int = 1000,
        order: str = "longest_first",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        policies: Mapping[str, Policy] | None = None,
        deadline: float | None = None,
        local_probe: str | None = None,
        traffic: Traffic | None = None,
        isolation: str | Mapping[str, str] = "thread",
        memory: Mapping[str, str | int] | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        specs = isolated(distinct(scanners), isolation, {} if memory is None else memory)
        config = Config(
            specs=specs,
            policies=effective(specs, base_policy(policy, timeout_seconds), {} if policies is None else policies),
            settings=settings_by_scanner({} if settings is None else settings, specs),
            listeners=callables((LogEvents(),) if listeners is None else listeners),
            max_workers=max_workers,
            max_abandoned=max_abandoned,
            max_async=max_async,
            concurrent=concurrent,
            order=order,
            engine=engine,
            cluster=Cluster(cluster) if isinstance(cluster, str) else cluster,
            deadline=deadline,
            quarantine=Quarantine() if quarantine is None else quarantine,
            local_probe=local_probe,
            store=store,
            history=history,
            traffic=traffic,
            clock=clock or SystemClock(),
            random=random or Random(),  # noqa: S311 - jitter, not secrets
        )
        self._runs = Runs(config)
        self._names = config.names
        self._given = (policy, frozenset(policies or ()), timeout_seconds is not None)
        self._origins: Mapping[str, Mapping[str, str]] = {}
        self._not_configured: Mapping[str, str] = {}
        # How often `run` will be called is not known here, so the linter says nothing about the time between runs.
        self._findings = lint_fleet(config.policies, deadline=deadline)
        for sentence in sentences(self._findings):
            _log.warning("%s", sentence)
        if not specs:
            _log.warning("no scanner to run: every report will be empty; runner.not_configured may say why")

    def set_origins(self, origins: Mapping[str, Mapping[str, str]]) -> None:
        """Note, by scanner's name and `layer.field`, where a number came from, for `explain`; settings know it."""
        self._origins = origins

    def set_not_configured(self, lacking: Mapping[str, str]) -> None:
        """Note the scanners that were left out, by name, each with what to set; settings know them."""
        self._not_configured = dict(lacking)

    @property
    def demo(self) -> bool:
        """Whether bundled data answer, not the sources; every report says so."""
        return self._runs.demo

    def set_demo(self) -> None:
        """Note that bundled data answer, for reports, log and page; who makes the data answer knows it."""
        self._runs.demo = True

    @classmethod
    def from_config(cls, scanners: Iterable[Any], config: Mapping[str, Any], **options: Any) -> Self:
        """Build a runner from `{"scanner_execution": {"concurrent", "max_workers", "timeout_seconds"}}`.

        The table may also be under `"discovery"`, next to `"scanners": {name: {"enabled", "settings"}}`: a scanner
        with `"enabled": False` is left out. Other top-level keys are ignored; `options` take precedence.

        Raises:
            ConfigError: a key inside a table is unknown, a value is wrong, or a table is for no scanner.
        """
        given = execution_table(config)
        specs, settings = chosen(distinct(scanners), config)
        own = options.pop("settings", None) or {}
        merged = {name: {**settings.get(name, {}), **own.get(name, {})} for name in dict.fromkeys([*settings, *own])}
        return cls(specs, **{**given, **options}, settings=merged)

    def run(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        only: Iterable[str] | None = None,
    ) -> RunReport:
        """Run every scanner once and return a report; a scanner's fault is never raised.

        Args:
            state: passed to every scanner as a copy; `None`: an empty one. Only a `tool_logs` list in it is changed:
                the run's new entries are added to it.
            deadline: seconds from now after which the run ends, >= 0; `None`: the runner's own, if it has one.
            only: names of the scanners that take part, in any order; `None`: all. The report has no others.

        Raises:
            TypeError: the state is not a mapping, or cannot be copied.
            ConfigError: the deadline is wrong, or there is no such scanner.
            RuntimeError: the runner is closed, or one of its own scanners calls this.
            KeyboardInterrupt: Ctrl-C; the report so far is its attribute `report`.
        """
        run = self._runs.prepare(state, deadline)
        names = self.names if only is None else self._runs.config.only(only)
        try:
            self._runs.finish(run, names)
        except KeyboardInterrupt as interrupt:
            interrupt.report = run.report()  # type: ignore[attr-defined]
            raise
        return run.report()

    async def arun(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> RunReport:
        """Do the same as `run` from asyncio code: the loop is not blocked, cancelling it cancels the run.

        Arguments and errors are those of `run`.
        """
        run = self._runs.prepare(state, deadline)
        try:
            await in_thread(lambda: self._runs.finish(run, self.names))
        except BaseException:  # cancelled, or a signal handler raised
            run.cancel()
            raise
        return run.report()

    def stream(self, state: Mapping[str, Any] | None = None, *, deadline: float | None = None) -> Iterator[ScanResult]:
        """Yield each scan's result as it ends; leaving the loop early cancels the rest.

        Arguments and errors are those of `run`.
        """
        return self._runs.stream(self._runs.prepare(state, deadline), self.names)

    def map(self, scanner: str, inputs: Iterable[Input], *, ordered: bool = True) -> Iterator[tuple[Input, ScanResult]]:
        """Run one scanner for many inputs; yield each input with its result, and leaving the loop early ends it.

        Each input is a scan of its own, whose state it is. The scan has the scanner's whole timeout, its retries and
        limits, and its failures count at the breaker. There may be millions of inputs: they are read as scans end, and
        not while you are busy with a result. They are read on your thread, and nothing is yielded while that blocks.

        Args:
            scanner: the scanner's name.
            inputs: mappings, each the state of one scan. If reading one fails, that is raised after all results of
                those before it.
            ordered: whether results come in the inputs' order; `False`: as they end.

        Raises:
            TypeError: an input is not a mapping, or cannot be copied.
            ConfigError: there is no such scanner.
            RuntimeError: the runner is closed, or one of its own scanners calls this.
        """
        run = self._runs.prepare_map(scanner, inputs, ordered=ordered)
        return self._runs.map(run, scanner)

    def amap(
        self, scanner: str, inputs: Iterable[Input], *, ordered: bool = True
    ) -> AsyncIterator[tuple[Input, ScanResult]]:
        """Do the same as `map` from asyncio code: the loop is not blocked, leaving the loop or cancelling ends it.

        Inputs are read on another thread. Arguments and errors are those of `map`.
        """
        run = self._runs.prepare_map(scanner, inputs, ordered=ordered)
        return on_threads(run, self._runs.map(run, scanner))

    def disable(self, name: str, *, reason: str = "by hand", duration: float = ORDER_DURATION, who: str = "") -> None:
        """Take a scanner out of service for `duration` seconds (24 hours unless given), whatever alerts say.

        Args:
            name: the scanner's name.
            reason: why, for the audit trail.
            duration: seconds, > 0.
            who: the person who gives the order, for the audit trail.

        Raises:
            ConfigError: there is no such scanner, or an argument is wrong.
            StoreError: the order holds in this process only, until the store can be reached again; it does not hold at
                all where the store belongs to a newer version or to another program.
        """
        self._fleet.gate.disable(name, reason, duration, who)

    def enable(self, name: str, *, reason: str = "by hand", duration: float = ORDER_DURATION, who: str = "") -> None:
        """Bring a scanner back into service; nothing happens if it is in service.

        If alerts, failures or probes took it out, they cannot do so again for `duration` seconds. If its breaker is
        open, its next scan is a trial, whatever is left of the open time. Arguments and errors are those of `disable`.
        """
        self._fleet.enable(name, reason, duration, who)

    def reset(
        self, name: str | None = None, *, provider: str | None = None, reason: str = "by hand", who: str = ""
    ) -> None:
        """Close a scanner's or a provider's breaker and forget its failures, for all processes that share the store.

        The failures of a scanner's sources are forgotten too, and so is an error that this process remembers
        (`ttl_error`). A provider that asked to be left alone may be called again. An attempt under way began before the
        reset, so its outcome does not count. Other processes learn of the reset when their next run begins.

        Args:
            name: the scanner's name.
            provider: the provider's name instead; a host and its port, if no scanner's options name it.
            reason: why, for the audit trail.
            who: the person who gives the order, for the audit trail.

        Raises:
            ConfigError: there is no such scanner or provider, it has nothing to reset, or an argument is wrong.
            StoreError: the reset holds in this process only, until the store can be reached again.
        """
        if (name is None) == (provider is None):
            raise ConfigError("reset: name either a scanner or a provider")
        if provider is not None:
            self._fleet.reset_provider(provider, reason, who)
        elif name is not None:
            self._fleet.reset(name, reason, who)

    def forget(self, name: str, *, reason: str = "by hand", who: str = "") -> None:
        """Drop a scanner's answers, its errors and what it has remembered, for all processes that share the store.

        Other processes drop theirs when their next run begins. An execution under way still brings its answer.
        Arguments are those of `reset`.

        Raises:
            ConfigError: there is no such scanner, it has no cache, or an argument is wrong.
            StoreError: the answers are dropped from this process's memory only; try again.
        """
        self._fleet.forget(name, reason, who)

    def probe(self, name: str, *, reason: str = "by hand", who: str = "") -> None:
        """Make the next scan of a quarantined scanner a probe, as if its cool-off had passed.

        Nothing happens if it is being probed already. Arguments are those of `reset`.

        Raises:
            ConfigError: there is no such scanner, it is not quarantined, or an argument is wrong.
            StoreError: the order holds in this process only, until the store can be reached again.
        """
        self._fleet.probe(name, reason, who)

    def alerts(
        self, alerts: Iterable[Alert], *, source: str = "alertmanager", instances: Container[str] | None = None
    ) -> dict[str, int]:
        """Act on alerts that a webhook delivered.

        Args:
            alerts: in the order of the message.
            source: their sender, `alertmanager` or `grafana`.
            instances: the processes whose alerts are this runner's, as Prometheus names them; `None`: all are. An
                alert that names no process is everybody's.

        Returns:
            How many were `accepted`, `duplicate`, of an `unknown_scanner`, `refused` (the scanner is critical, or the
            ejection cap is reached), `overruled` (a manual order keeps the scanner in service), or `ignored` (not an
            action of ours, or about another process).

        Raises:
            StoreError: the store failed, and nothing was done; the sender should try again.
        """
        return self._fleet.gate.alerts(alerts, source, instances)

    def reconcile(
        self,
        fetch: Callable[[], Iterable[Alert]],
        *,
        source: str = "alertmanager",
        instances: Container[str] | None = None,
    ) -> dict[str, int]:
        """Bring the alerts that are known of a sender in line with the sender's own list of active ones.

        Args:
            fetch: called for that list; if it raises, the exception is passed on, and nothing is changed.
            source: the sender of the list.
            instances: as for `alerts`.

        Returns:
            The same counts as `alerts`.

        Raises:
            StoreError: the store failed, and nothing was done.
        """
        return self._fleet.gate.reconcile(fetch, source, instances)

    def scanners(self) -> tuple[ScannerState, ...]:
        """Return the state of each scanner: in service or not, why, since and until when, with evidence."""
        return self._fleet.states()

    def probes_due(self) -> tuple[str, ...]:
        """Return the scanners whose next scan would be a probe."""
        return self._fleet.gate.probes_due()

    def blind_since(self) -> float | None:
        """Return the epoch seconds since which heartbeats of the alerting have been missing; `None`: they have not."""
        return self._fleet.gate.unreachable_since()

    def audit(self, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return the newest changes of scanners' states, newest first, at most `limit`.

        Raises:
            StoreError: the store fails.
        """
        return self._fleet.gate.audit(limit)

    def explain(self, name: str, *, trace: bool = False) -> Explanation:
        """Explain one scanner: whether it would run now, what would make it run, its stack and its last scans.

        Args:
            name: the scanner's name.
            trace: whether the text shows the past scans layer by layer.

        Returns:
            An `Explanation`; `str()` of it is text for a person, `.to_dict()` is JSON-ready.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        with IMPORTING:
            from resilient_scan.observe.explain import explain, origins_in_code  # noqa: PLC0415 - no run needs it

        if name in self._not_configured:
            raise ConfigError(f"scanner {name!r} is not configured, and does not run: {self._not_configured[name]}")
        fleet = self._fleet
        stack = fleet.stack(name)
        base, own, timed = self._given
        said = origins_in_code(stack.spec, stack.policy, base, whole=name in own, timeout_seconds=timed)
        return explain(
            stack,
            state=fleet.gate.view(name),
            origins={**said, **self._origins.get(name, {})},
            findings=[finding.message for finding in self._findings if finding.concerns(name)],
            before=() if self._runs.history is None else self._runs.history.past(name),
            trace=trace,
        )

    def flights(self, name: str) -> tuple[Flight, ...]:
        """Return what the flight recorder has of one scanner: its last scans, oldest first, at most 50.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        return tuple(self._fleet.stack(name).recorded())[::-1]

    def history(self, limit: int = 100) -> tuple[RunRecord, ...]:
        """Return the last runs that the store remembers, those of other processes too, newest first, at most `limit`.

        Raises:
            StoreError: the store fails.
        """
        return () if self._runs.history is None else self._runs.history.runs(limit)

    def past(self, name: str) -> tuple[Past, ...]:
        """Return the last scans of one scanner that the store remembers, those of other processes too.

        They come newest first, at most 10; the newest that was not turned away is among them however long ago it was.
        """
        return () if self._runs.history is None else self._runs.history.past(name)

    def breaker(self, name: str) -> str | None:
        """Return the state of a scanner's breaker: `closed`, `open` or `half_open`; `None`: it has none.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        breaker = self._fleet.stack(name).breaker
        return None if breaker is None else breaker.state

    def providers(self) -> tuple[ProviderState, ...]:
        """Return the state of each provider: those that scanners name, and the hosts that the others have called."""
        return tuple(provider.view() for provider in tuple(self._fleet.providers.values()))

    def listen(self, listener: Listener) -> None:
        """Add a listener: it gets the scanners at once, and the events of runs that begin from now on.

        A listener that equals an earlier one is not added again.
        """
        (listener,) = callables((listener,))
        self._runs.listen(listener)

    def tell(self, event: Event) -> None:
        """Send an event to the listeners on behalf of a part outside the runner, such as a control endpoint."""
        self._fleet.bus.send(event)

    def note(self, name: str, action: str, *, reason: str, who: str) -> None:
        """Write an order that a part outside the runner carries out into the audit trail; such a part calls this."""
        self._fleet.gate.note(name, action, reason, who)

    @property
    def closed(self) -> bool:
        """Whether the runner was closed; then it runs nothing any more."""
        return self._runs.closed

    def abandoned(self, *, returned: bool = False) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first, with their current stacks.

        Args:
            returned: whether to list those instead that came back after their time, with what freed each of them; the
                last ten of each scanner are remembered.
        """
        return self._fleet.returned() if returned else self._fleet.abandoned()

    @property
    def names(self) -> tuple[str, ...]:
        """The scanners' names, in the given order."""
        return self._names

    @property
    def not_configured(self) -> Mapping[str, str]:
        """The installed scanners that lack a key or a setting, by name, each with what to set; they do not run.

        It is empty unless the runner was made by `load_settings(...).runner()` or by the command.
        """
        return MappingProxyType(dict(self._not_configured))

    def close(self) -> None:
        """End all runs (their open scans are `skipped`) and let the threads go; hung ones are not waited for.

        It returns once the store is closed, or after a second. A signal handler or a finalizer may call it, too: amid a
        run it waits for nothing, because the run goes on, and ends, only when the handler has returned.
        """
        self._runs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _fleet(self) -> Fleet:
        return self._runs.fleet
