"""Wire scanners, bundled data, listeners, metrics port and runner for the command line: the one place that does."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Any, Protocol

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.logs import LogEvents
from resilient_scan.metrics import PrometheusMetrics
from resilient_scan.plugins import Found, Plugins, Problem, discover, load_demo
from resilient_scan.report import RunReport
from resilient_scan.runner import ScanRunner
from resilient_scan.service.loopback import LoopbackServer, Respond
from resilient_scan.service.scrape import metrics_served


class Demo(Protocol):
    """Bundled data that stand in for live sources.

    Attributes:
        scanners: names of the scanners that it can serve.
        first, last: the days that it has.
        description: what it is, as the end of a sentence that begins "The data are".
        state: what a run on it is given.
        respond: answers as the live source would.
    """

    scanners: Sequence[str]
    first: date
    last: date
    description: str
    state: dict[str, Any]
    respond: Respond

    def settings(self, base_url: str, /) -> dict[str, Any]:
        """Return the settings that make a scanner ask the server at `base_url`."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to run.

    Attributes:
        only: names of scanners; empty: all.
        pipeline: names of pipelines; empty: all.
        as_of: trade date; `None`: the bundled data's own.
        deadline: seconds for the whole run; `None`: none.
        max_workers: scanners at a time, >= 1.
        sequential: one scanner at a time, in order.
        metrics_port: serve metrics on 127.0.0.1 at this port, 0 for any; `None`: do not.
    """

    only: tuple[str, ...] = ()
    pipeline: tuple[str, ...] = ()
    as_of: date | None = None
    deadline: float | None = None
    max_workers: int = 8
    sequential: bool = False
    metrics_port: int | None = None


class Fleet(msgspec.Struct, frozen=True):
    """Scanners that are ready to run.

    Attributes:
        runner: runs them.
        state: what they are given.
        deadline: seconds for a run, or `None`.
        demo: the bundled data that answer them, or `None`.
        problems: sentences about scanners that were wanted and could not be loaded.
        not_configured: names of scanners that lack what they need; they are not in the report.
        metrics_url: where the metrics are served, or an empty text.
    """

    runner: ScanRunner
    state: dict[str, Any]
    deadline: float | None
    demo: Demo | None
    problems: list[str]
    not_configured: list[str]
    metrics_url: str

    def run(self) -> RunReport:
        """Run all of them once; raises what `ScanRunner.run` raises."""
        return self.runner.run(self.state, deadline=self.deadline)

    def summary(self, report: RunReport) -> str:
        """Return the sentence that says what was found, and in what."""
        answered = sum(result.status.answered for result in report.results.values())
        found = Counter(getattr(candidate, "ticker", type(candidate).__name__) for candidate in report.candidates)
        names = ", ".join(f"{name} ({count} x)" if count > 1 else name for name, count in found.most_common(10))
        text = f"{answered} of {len(report.results)} scanners answered"
        if day := self.state.get("trade_date"):
            text += f" as of {day}"
        text += f" and found {_count(len(report.candidates), 'candidate')}{f': {names}' if names else ''}."
        return text if self.demo is None else f"{text} The data are {self.demo.description}."


@contextmanager
def open_fleet(request: Request) -> Iterator[Fleet]:
    """Make the wanted scanners ready to run, and everything that they and the listeners need.

    With nothing configured, bundled data answer the built-in scanners, over HTTP on loopback.

    Raises:
        ConfigError: nothing to run, a name that nobody has, a date that the data do not have, or a port that is taken.
    """
    plugins, demo = discover(), load_demo()
    chosen = _choose(plugins, request)
    ready = [found for found in chosen if is_configured(found, demo)]
    if not ready:
        raise ConfigError(_nothing(plugins.problems, chosen))
    with ExitStack() as stack:
        listeners: list[Any] = [LogEvents()]
        url = ""
        if request.metrics_port is not None:
            url = stack.enter_context(metrics_served(request.metrics_port))
            listeners.append(PrometheusMetrics())
        runner = ScanRunner(
            [found.scanner for found in ready],
            max_workers=request.max_workers,
            concurrent=not request.sequential,
            listeners=listeners,
            settings=_settings(ready, demo, stack),
        )
        yield Fleet(
            runner=stack.enter_context(runner),
            state=_state(request.as_of, demo),
            deadline=request.deadline,
            demo=demo,
            problems=[] if request.only else [str(problem.error) for problem in plugins.problems],
            not_configured=[found.name for found in chosen if found not in ready],
            metrics_url=url,
        )


def survey() -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for every scanner that is installed, and a sentence for every one that cannot be used."""
    plugins, demo = discover(), load_demo()
    rows = [
        {
            "name": found.name,
            "pipeline": found.pipeline,
            "summary": found.summary,
            "built_in": found.built_in,
            "configured": is_configured(found, demo),
        }
        for found in plugins.scanners
    ]
    return rows, [str(problem.error) for problem in plugins.problems]


def is_configured(found: Found, demo: Demo | None) -> bool:
    """Say whether `run` has what a scanner needs: a guest's needs are its own business."""
    return not found.built_in or (demo is not None and found.name in demo.scanners)


def _choose(plugins: Plugins, request: Request) -> list[Found]:
    """Return the scanners that are wanted; a name that nobody has is refused, with the nearest one."""
    refused = {problem.name: problem.error for problem in plugins.problems}
    names = [found.name for found in plugins.scanners]
    for name in request.only:
        if name not in names:
            raise ConfigError(str(refused[name]) if name in refused else _unknown("scanner", name, names))
    pipelines = [found.pipeline for found in plugins.scanners]
    for pipeline in request.pipeline:
        if pipeline not in pipelines:
            raise ConfigError(_unknown("pipeline", pipeline, pipelines))
    return [
        found
        for found in plugins.scanners
        if (not request.only or found.name in request.only)
        and (not request.pipeline or found.pipeline in request.pipeline)
    ]


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"unknown {what} {name!r}; {way_out}"


def _nothing(problems: Sequence[Problem], chosen: Sequence[Found]) -> str:
    """Say why there is nothing to run."""
    if problems:
        return f"nothing to run: {problems[0].error}"
    if chosen:
        return f"nothing to run: not configured: {', '.join(found.name for found in chosen)}"
    return "nothing to run: no scanner is installed, or none belongs to both --only and --pipeline"


def _state(as_of: date | None, demo: Demo | None) -> dict[str, Any]:
    state = {} if demo is None else dict(demo.state)
    if as_of is None:
        return state
    if demo is not None and not demo.first <= as_of <= demo.last:
        raise ConfigError(f"--as-of {as_of}: the bundled data reach from {demo.first} to {demo.last}")
    return {**state, "trade_date": as_of.isoformat()}


def _settings(ready: Iterable[Found], demo: Demo | None, stack: ExitStack) -> dict[str, dict[str, Any]]:
    """Start the server of the bundled data, where it is needed, and point the scanners to it."""
    served = [found.name for found in ready if found.built_in]
    if demo is None or not served:
        return {}
    server = stack.enter_context(LoopbackServer(demo.respond))
    return {name: demo.settings(server.url) for name in served}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
