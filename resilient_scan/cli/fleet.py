"""Make the wanted scanners ready to run: settings, data, listeners, metrics and runner wired together.

From the top: the fleet that a `Request` comes to (`open_fleet`), what the commands list of scanners and runs (`survey`,
`past_runs`), and the state and the bundled data or recordings that scanners get. `choice` says which scanners run.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from resilient_scan._files import refuse_unless_plain
from resilient_scan._text import counted, hide, redact
from resilient_scan.cli.choice import Choice, Demo, Request, bundled, choice_of, lacks
from resilient_scan.cli.demo_server import Answer, LoopbackServer, Respond
from resilient_scan.cli.faults import faulty_scanners
from resilient_scan.clock import SystemClock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.events import Listener
from resilient_scan.http import REDACTED, Recorder, Replay
from resilient_scan.observe.logs import LogEvents
from resilient_scan.observe.metrics import PrometheusMetrics, exposition, push, write_textfile
from resilient_scan.results import RunReport, Status
from resilient_scan.runner import ScanRunner
from resilient_scan.settings import Settings, load_installed, load_settings
from resilient_scan.settings.plugins import Found, Plugins, found_of, load_demo
from resilient_scan.snapshot import Ephemeral
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.attempts import AttemptReader
from resilient_scan.stores.columns import DaySummary, Measured, summarized
from resilient_scan.stores.groups import BlockStore
from resilient_scan.stores.history import RunHistory, RunRecord
from resilient_scan.stores.sqlite import Looking

_log = logging.getLogger("resilient_scan")
MEASURED_DAYS = 30  # that the linter looks at


class ReadyFleet(msgspec.Struct, frozen=True):
    """Scanners that are ready to run.

    Attributes:
        runner: runs them.
        state: the state they get.
        deadline: seconds for a run; `None`: the runner's own.
        demo: the bundled data that answer some of them, or `None`.
        day: the trade date of those that the bundled data answer, or of all if there are none; may be empty.
        reason: why bundled data answer, as the end of a sentence.
        problems: sentences about scanners that were wanted and could not be loaded.
        not_configured: scanners that lack what they need, by name, each with what to set; they are not in the report.
        switched_off: names of scanners that the settings leave out; they are not in the report either.
        metrics_url: where the metrics are served, or an empty text.
        settings: what file and environment say.
        recorder: keeps what the sources answer, or `None`.
    """

    runner: ScanRunner
    state: dict[str, Any]
    deadline: float | None
    demo: Demo | None
    problems: list[str]
    not_configured: dict[str, str]
    switched_off: list[str]
    metrics_url: str
    settings: Settings
    recorder: Recorder | None = None
    day: str = ""
    reason: str = ""

    def run(self) -> RunReport:
        """Run all of them once. Errors are those of `ScanRunner.run`."""
        return self.runner.run(self.state, deadline=self.deadline)

    def loses_nothing(self) -> bool:
        """Say whether all that was wanted could be loaded, and every answer that was to be recorded was."""
        return not self.problems and (self.recorder is None or self.recorder.failure is None)

    def summary(self, report: RunReport) -> str:
        """Return the sentence that says what was found, and in what."""
        in_service = [result.status for result in report.results.values() if result.status is not Status.DISABLED]
        answered = sum(status.answered for status in in_service)
        found = Counter(getattr(candidate, "ticker", type(candidate).__name__) for candidate in report.candidates)
        names = ", ".join(f"{name} ({count} x)" if count > 1 else name for name, count in found.most_common(10))
        out = len(report.results) - len(in_service)
        text = f"{answered} of {counted(len(in_service), 'scanner')}{' in service' * bool(out)} answered"
        if self.day:
            text += f" as of {self.day}"
        if self.demo is not None:  # right after the date, or people take prices of 2013 for today's
            text += f" (a demo on bundled data of that time, {self.reason})"
        return f"{text} and found {counted(len(report.candidates), 'candidate')}{f': {names}' if names else ''}."


@contextmanager
def open_fleet(request: Request, *, listeners: Iterable[Listener] | None = None) -> Iterator[ReadyFleet]:
    """Make the wanted scanners ready to run, with everything that they and the listeners need.

    If nothing is configured, bundled data answer the built-in scanners, over HTTP on loopback.

    Args:
        request: what is wanted.
        listeners: called with what happens; `None`: the log.

    Raises:
        ConfigError: the settings are wrong, nothing is left to run, a name is unknown, the data do not reach to a date,
            a port is taken, or a folder cannot be recorded into or replayed.
    """
    _check_textfile(request)
    settings, plugins = installed(request)
    replay = _replay(request, plugins)
    choice = choice_of(request, plugins, settings, replay)
    ready = choice.ready
    day = "" if choice.demo is None else day_of(choice.demo, request.as_of)
    with ExitStack() as stack:
        traffic = replay or (Recorder(request.record) if request.record else None)
        heard: list[Any] = [LogEvents()] if listeners is None else list(listeners)
        url = "" if request.metrics_port is None else _serve_metrics(request.metrics_port, stack)
        if url or request.push or request.textfile:
            heard.append(PrometheusMetrics())
        served = stand_ins(ready) if replay else _serve_demo(choice, day, settings, request.latency, stack)
        runner = stack.enter_context(
            settings.runner(
                [found.scanner for found in ready],
                known=plugins.names,
                listeners=heard,
                settings=served,
                traffic=traffic,
                **_runner_options(request),
            )
        )
        runner.set_not_configured(choice.not_configured)
        # Delivered before the runner is closed: a closed runner reports no states of its scanners and breakers.
        stack.callback(_deliver, request)
        data = choice.demo if served else None
        if data is not None:
            runner.set_demo()
        state = state_for(request.as_of) if replay is None else state_of(replay, request.as_of)
        if isinstance(traffic, Recorder):
            traffic.note_run(state, [found.name for found in ready])
            stack.callback(_name_unrecorded, traffic)
        yield ReadyFleet(
            runner=runner,
            state=state,
            deadline=request.deadline,
            demo=data,
            problems=[] if request.only else [str(problem.error) for problem in plugins.problems],
            not_configured=choice.not_configured,
            switched_off=choice.switched_off,
            metrics_url=url,
            settings=settings,
            recorder=traffic if isinstance(traffic, Recorder) else None,
            day=state.get("trade_date", "") if data is None else day,
            reason="as --demo asks" if request.demo else "as nothing is configured",
        )


def _runner_options(request: Request) -> dict[str, Any]:
    """Return the runner's options that the command line sets; the settings set the others."""
    alone = request.replay or request.record or request.faults or request.alone
    options: dict[str, Any] = {"store": None} if alone else {}
    if request.max_workers is not None:
        options["max_workers"] = request.max_workers
    if request.sequential is not None:
        options["concurrent"] = not request.sequential
    return options


def _replay(request: Request, plugins: Plugins) -> Replay | None:
    if request.replay is None:
        return None
    if request.record is not None:
        raise ConfigError("--record keeps what the network answers, and --replay asks none; leave one of them out")
    return Replay(request.replay, {found.name: found.sources for found in plugins.scanners})


def _name_unrecorded(recorder: Recorder) -> None:
    """Name the scanners that a replay can give nothing; after the run, and not if the recording broke off."""
    names = recorder.unrecorded()
    if names and recorder.failure is None:
        _log.warning(
            "nothing was recorded for %s: no request of their own was answered through resilient_scan.http, and a "
            "replay refuses every other connection",
            ", ".join(names),
        )


def _check_textfile(request: Request) -> None:
    try:
        if request.textfile:
            refuse_unless_plain(request.textfile)
    except OSError as error:
        raise ConfigError(f"--textfile {request.textfile}: {error.strerror}") from None


def _deliver(request: Request) -> None:
    """Bring the metrics to where they outlive the run; what fails there does not affect the run."""
    if request.push:
        try:
            push(request.push)
        except (OSError, ValueError) as error:
            where, why = redact(request.push), hide(str(error))
            _log.warning("the metrics could not be pushed to %s: %s; the run is not affected", where, why)
    if request.textfile:
        try:
            write_textfile(request.textfile)
        except OSError as error:
            why = error.strerror or type(error).__name__
            _log.warning("the metrics could not be written to %s: %s; the run is not affected", request.textfile, why)


def _serve_metrics(port: int, stack: ExitStack) -> str:
    """Serve this process's metrics on loopback, and return the address."""

    def respond(path: str, _query: dict[str, str], accept: str) -> Answer:
        if path not in {"/metrics", "/"}:
            return 404, {"Content-Type": "text/plain; charset=utf-8"}, b"metrics are at /metrics\n"
        content_type, text = exposition(accept=accept)
        return 200, {"Content-Type": content_type}, text

    try:
        server = LoopbackServer(negotiated=respond, port=port)
    except OSError as error:
        raise ConfigError(f"port {port} of 127.0.0.1 cannot be had: {error.strerror}; 0 takes a free one") from None
    return f"{stack.enter_context(server).url}/metrics"


def installed(request: Request) -> tuple[Settings, Plugins]:
    """Return the settings, and the wanted ones of the installed scanners, with the faulty ones if they are wanted.

    Raises:
        ConfigError: the settings are wrong, or an installed scanner has the name of a faulty one.
    """
    faulty = [found_of(thing) for thing in faulty_scanners()] if request.faults else []
    names = {found.name for found in faulty}
    only = set(request.only) - names if request.only else None
    settings, plugins = load_installed(request.config, only=only, known=names)
    for name in names.intersection(plugins.names):
        raise ConfigError(f"--faults: an installed scanner is named {name!r} too; leave --faults out")
    return settings, msgspec.structs.replace(plugins, scanners=(*plugins.scanners, *faulty))


def survey(config: Path | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for every installed scanner, and a sentence for every one that cannot be used.

    Raises:
        ConfigError: the settings are wrong.
    """
    settings, plugins = load_installed(config)
    demo = bundled(load_demo(), plugins, plugins.scanners, settings)
    rows = [
        {
            "name": found.name,
            "pipeline": found.pipeline,
            "summary": found.summary,
            "built_in": found.built_in,
            "configured": not lacks(found, demo, settings),
            "to_set": lacks(found, demo, settings),
            "enabled": settings.enabled(found.name),
        }
        for found in plugins.scanners
    ]
    return rows, [str(problem.error) for problem in plugins.problems]


def past_runs(config: Path | None, limit: int) -> Sequence[RunRecord]:
    """Return the last runs that the configured store remembers, newest first, at most `limit`.

    Raises:
        ConfigError: the settings are wrong, no store is configured, or it fails.
    """
    settings = load_settings(config)
    if settings.store == "memory:":
        raise ConfigError("no run is remembered, for no store is configured; name a settings file with --config")
    with _store_of(settings, "history") as store:
        return RunHistory(store, lambda _operation, _error: None).runs(limit)


def past_attempts(config: Path | None, name: str) -> Sequence[DaySummary]:
    """Return what the attempts of a scanner were like, day by day, newest first.

    Raises:
        ConfigError: the settings are wrong, no attempts are kept, no attempt of that name is, or the store fails.
    """
    settings = load_settings(config)
    if settings.store == "memory:" or not settings.history:
        raise ConfigError("no attempt is remembered, for no store is configured, or [store] history is 0")
    with _blocks_of(settings, "history") as store:
        days = AttemptReader(store).read([name])[name]
    return [summarized(day, days[day]) for day in sorted(days, reverse=True)]


@contextmanager
def _store_of(settings: Settings, what: str) -> Iterator[Store]:
    store = open_store(settings.store, SystemClock())
    try:
        yield store
    except StoreError as error:
        raise ConfigError(f"{what}: {error}") from None
    finally:
        store.close()


def measured_durations(settings: Settings, names: Collection[str]) -> dict[str, Measured]:
    """Return how long attempts took in the last 30 days, as far as a store remembers that; nothing if it fails.

    A file is only looked at. To open it would repair it, and make files that belong to the user who checks.
    """
    url = settings.store
    if url == "memory:" or not settings.history:
        return {}
    try:
        if url.startswith("sqlite:"):
            return AttemptReader(Looking(url, SystemClock())).measured(names, MEASURED_DAYS)
        with _blocks_of(settings, "check") as store:
            return AttemptReader(store).measured(names, MEASURED_DAYS)
    except (ConfigError, StoreError):  # a run reports it
        return {}


@contextmanager
def _blocks_of(settings: Settings, what: str) -> Iterator[BlockStore]:
    with _store_of(settings, what) as store:
        assert isinstance(store, BlockStore)  # noqa: S101 - every store that settings can name has blocks, but one
        yield store


def stand_ins(ready: Iterable[Found]) -> dict[str, dict[str, Any]]:
    """Return a placeholder for every key: recordings hold no keys, and no source is called."""
    return {
        found.name: dict.fromkeys((key for key, variable in found.needs.items() if variable), REDACTED)
        for found in ready
        if found.needs
    }


def state_for(as_of: date | None) -> dict[str, Any]:
    """Return a run's state. Bundled data do not change it: scanners that they cannot serve get it, too."""
    return {"trade_date": (as_of or datetime.now(UTC).date()).isoformat()}


def day_of(demo: Demo, as_of: date | None) -> str:
    """Return the trade date of the scanners that bundled data answer.

    Raises:
        ConfigError: the data do not reach to the wanted date.
    """
    if as_of is None:
        return demo.trade_date
    if not demo.first <= as_of <= demo.last:
        raise ConfigError(f"--as-of {as_of}: the bundled data reach from {demo.first} to {demo.last}")
    return as_of.isoformat()


def state_of(replay: Replay, as_of: date | None) -> dict[str, Any]:
    """Return the recorded run's state; without a trade date each scanner takes it from its own clock."""
    return replay.state() | ({} if as_of is None else {"trade_date": as_of.isoformat()})


def _serve_demo(
    choice: Choice, day: str, settings: Settings, latency: float | None, stack: ExitStack
) -> dict[str, dict[str, Any]]:
    """Start servers of the bundled data where they are needed, and return the settings that point scanners to them.

    The user's settings take precedence: a scanner that they send to another source is left alone.
    """
    demo = choice.demo
    if demo is None:
        return {}
    served = [found.name for found in choice.ready if found.built_in and found.name in demo.scanners]
    if not served:
        return {}
    pointed = {}
    together = None if latency else stack.enter_context(LoopbackServer(demo.respond))
    for name in served:
        server = together or stack.enter_context(LoopbackServer(_held_back(demo.respond, latency or 0)))
        table = {**demo.settings(server.url, day), **settings.settings_of(name)}
        if server.url in table.values():
            pointed[name] = {key: Ephemeral(value) if value == server.url else value for key, value in table.items()}
    return pointed


def _held_back(respond: Respond, latency: float) -> Respond:
    """Let each answer take as long as one over a network."""

    def late(path: str, query: dict[str, str]) -> Answer:
        time.sleep(latency)
        return respond(path, query)

    return late
