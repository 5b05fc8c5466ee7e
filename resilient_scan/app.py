"""Wire settings, scanners, bundled data, listeners, metrics port and runner for the command line; nothing else does."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from resilient_scan.choice import Request, choice_of, installed
from resilient_scan.errors import ConfigError
from resilient_scan.events import Listener
from resilient_scan.http import Recorder, Replay
from resilient_scan.logs import LogEvents
from resilient_scan.metrics import PrometheusMetrics, exposition, push, write_textfile
from resilient_scan.needs import Demo, stand_ins, state_for, state_of
from resilient_scan.outcome import Status
from resilient_scan.plugins import Found, Plugins
from resilient_scan.redaction import hide, redact
from resilient_scan.report import RunReport
from resilient_scan.runner import ScanRunner
from resilient_scan.service.loopback import Answer, LoopbackServer, Respond
from resilient_scan.settings import Settings, load_installed
from resilient_scan.state import Passing
from resilient_scan.words import counted

_log = logging.getLogger("resilient_scan")


class ReadyFleet(msgspec.Struct, frozen=True):
    """Scanners that are ready to run.

    Attributes:
        runner: runs them.
        state: what they are given.
        deadline: seconds for a run, or `None`: the runner's own.
        demo: the bundled data that answer them, or `None`.
        problems: sentences about scanners that were wanted and could not be loaded.
        not_configured: scanners that lack what they need, by name, each with what to set; they are not in the report.
        switched_off: names of scanners that the settings leave out; they are not in the report either.
        metrics_url: where the metrics are served, or an empty text.
    """

    runner: ScanRunner
    state: dict[str, Any]
    deadline: float | None
    demo: Demo | None
    problems: list[str]
    not_configured: dict[str, str]
    switched_off: list[str]
    metrics_url: str

    def run(self) -> RunReport:
        """Run all of them once; raises what `ScanRunner.run` raises."""
        return self.runner.run(self.state, deadline=self.deadline)

    def summary(self, report: RunReport) -> str:
        """Return the sentence that says what was found, and in what."""
        in_service = [result.status for result in report.results.values() if result.status is not Status.DISABLED]
        answered = sum(status.answered for status in in_service)
        found = Counter(getattr(candidate, "ticker", type(candidate).__name__) for candidate in report.candidates)
        names = ", ".join(f"{name} ({count} x)" if count > 1 else name for name, count in found.most_common(10))
        out = len(report.results) - len(in_service)
        text = f"{answered} of {counted(len(in_service), 'scanner')}{' in service' * bool(out)} answered"
        if day := self.state.get("trade_date"):
            text += f" as of {day}"
        text += f" and found {counted(len(report.candidates), 'candidate')}{f': {names}' if names else ''}."
        return text if self.demo is None else f"{text} The data are {self.demo.description}."


@contextmanager
def open_fleet(request: Request, *, listeners: Iterable[Listener] | None = None) -> Iterator[ReadyFleet]:
    """Make the wanted scanners ready to run, and everything that they and the listeners need.

    Where nothing else is configured, bundled data answer the built-in scanners, over HTTP on loopback.

    Args:
        request: what is wanted.
        listeners: who is told what happens; `None`: the log.

    Raises:
        ConfigError: settings are wrong, there is nothing to run, a name that nobody has, a date that the data do not
            have, a port that is taken, a folder that cannot be recorded into or replayed.
    """
    plugins = installed(request)
    settings = load_installed(request.config, known=plugins.names)
    replay = _replay(request, plugins)
    choice = choice_of(request, plugins, settings, replay)
    ready = choice.ready
    with ExitStack() as stack:
        traffic = replay or (Recorder(request.record) if request.record else None)
        told: list[Any] = [LogEvents()] if listeners is None else list(listeners)
        url = "" if request.metrics_port is None else _serve_metrics(request.metrics_port, stack)
        if url or request.push or request.textfile:
            told.append(PrometheusMetrics())
        served = stand_ins(ready) if replay else _serve(ready, choice.demo, settings, request.latency, stack)
        runner = stack.enter_context(
            settings.runner(
                [found.scanner for found in ready],
                known=plugins.names,
                listeners=told,
                settings=served,
                traffic=traffic,
                **_said(request),
            )
        )
        stack.callback(_deliver, request)  # before the runner is closed: then it says nothing of its states any more
        data = choice.demo if served else None
        state = state_for(request.as_of, data) if replay is None else state_of(replay, request.as_of)
        if isinstance(traffic, Recorder):
            traffic.note_run(state, [found.name for found in ready])
        yield ReadyFleet(
            runner=runner,
            state=state,
            deadline=request.deadline,
            demo=data,
            problems=[] if request.only else [str(problem.error) for problem in plugins.problems],
            not_configured=choice.not_configured,
            switched_off=choice.switched_off,
            metrics_url=url,
        )


def _said(request: Request) -> dict[str, Any]:
    """Return the runner's options that the command line names; the settings say the others."""
    alone = request.replay or request.record or request.faults or request.alone
    said: dict[str, Any] = {"store": None} if alone else {}
    if request.max_workers is not None:
        said["max_workers"] = request.max_workers
    if request.sequential is not None:
        said["concurrent"] = not request.sequential
    return said


def _replay(request: Request, plugins: Plugins) -> Replay | None:
    if request.replay is None:
        return None
    if request.record is not None:
        raise ConfigError("--record keeps what the network answers, and --replay asks none; leave one of them out")
    return Replay(request.replay, {found.name: found.sources for found in plugins.scanners})


def _serve(
    ready: Iterable[Found], demo: Demo | None, settings: Settings, latency: float | None, stack: ExitStack
) -> dict[str, dict[str, Any]]:
    """Start servers of the bundled data, where they are needed, and return the settings that point scanners to it.

    What the user's settings say wins: a scanner that they send to another source is none of ours.
    """
    served = [found.name for found in ready if found.built_in and demo is not None and found.name in demo.scanners]
    if demo is None or not served:
        return {}
    asking = {}
    together = None if latency else stack.enter_context(LoopbackServer(demo.respond))
    for name in served:
        server = together or stack.enter_context(LoopbackServer(_held_back(demo.respond, latency or 0)))
        table = {**demo.settings(server.url), **settings.settings_of(name)}
        if server.url in table.values():
            asking[name] = {key: Passing(value) if value == server.url else value for key, value in table.items()}
    return asking


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


def _deliver(request: Request) -> None:
    """Bring the metrics to where they outlive the run; what goes wrong there is no matter of the run."""
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


def _held_back(respond: Respond, latency: float) -> Respond:
    """Let each answer take as long as one over a network."""
    never = threading.Event()

    def late(path: str, query: dict[str, str]) -> Answer:
        never.wait(latency)
        return respond(path, query)

    return late
