"""What an explanation consists of, and its text for a person: 100 columns wide, without colours, the answer first."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from pathlib import PurePath

import msgspec

from resilient_scan._once import IMPORTING
from resilient_scan._text import ago, brief, clean, counted, moment, shortened, span
from resilient_scan.results import LOCAL, PROVIDER, SCANNER, SOURCE, Data
from resilient_scan.stores.history import Attempt, Past

WIDTH = 100
MAX_SCANS = 8  # past scans in a text without a trace
MAX_FRAMES = 5  # innermost ones of a hung thread's stack
PACKAGE = PurePath(__file__).parents[2]
SCANNERS = {"testing.py", "faults.py"}  # files of the package that define scanners
_GLUE = "\N{NO-BREAK SPACE}"  # keeps an option and its value on one line
_MARKS = {"yes": "YES", "waits": "YES, BUT IT WAITS", "cached": "NOT NEEDED", "no": "NO"}
_ENDS = {"success": "an answer", "error": "an error"}
_CACHE = {
    "hit": "had the answer (hit)",
    "stale": "had an old answer, which stood in for the failure (stale)",
    "miss": "had no fresh answer (miss)",
    "shared": "another scan was fetching the answer; this one waited for it (shared)",
    "bypass": "not used, because such a state has no stable key (bypass)",
    "": "not consulted",
}


class Number(msgspec.Struct, frozen=True):
    """One option of a layer.

    Attributes:
        option: its path, such as `cache.ttl`.
        value: with its unit, such as `300s`.
        origin: who set it: `built-in`, `policy`, `decorator`, `timeout_seconds`, a file's line, or a variable.
    """

    option: str
    value: str
    origin: str


class Layer(msgspec.Struct, frozen=True):
    """One layer of the stack.

    Attributes:
        name: such as `cache`.
        does: what it does to a scan, with the numbers, in a sentence.
        numbers: its options.
        now: its state, in sentences.
    """

    name: str
    does: str
    numbers: tuple[Number, ...] = ()
    now: tuple[str, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """Why a scan would not simply run, and what would change that."""

    layer: str
    why: str
    way_out: str


class Verdict(msgspec.Struct, frozen=True):
    """Whether a scan that began now would call the source.

    Attributes:
        answer: `yes`; `waits`, which means yes, but later; `cached`, which means the cache has the answer; or `no`.
        status: how such a scan would end, such as `rejected`, or `""` if that is not known.
        says: the same in a sentence.
        reasons: outermost layer first.
    """

    answer: str
    status: str
    says: str
    reasons: tuple[Reason, ...] = ()


class Hung(msgspec.Struct, frozen=True):
    """A thread of the scanner that did not stop in time.

    Attributes:
        thread: its name.
        age: seconds since it began.
        stack: where it is now.
        hint: what it does, if only a process could be stopped in that; else empty.
    """

    thread: str
    age: float
    stack: str
    hint: str = ""


class Returned(msgspec.Struct, frozen=True):
    """A thread of the scanner that came back after its time.

    Attributes:
        thread: its name.
        age: seconds that its work took in all.
        method: what freed it: `cooperative`, `cancel`, `sockets`, `process`, or `abandoned` (nothing did).
        outcome: how the work ended, `success` or `error`.
        run_id, attempt: which work it was.
        hint: what it did, if only a process could have been stopped in that; else empty.
    """

    thread: str
    age: float
    method: str
    outcome: str
    run_id: str
    attempt: int
    hint: str = ""


class Explanation(Data, frozen=True):
    """Everything there is to know about one scanner in a runner, at one instant.

    Attributes:
        scanner, pipeline: which one.
        at: epoch seconds.
        verdict: whether it would run now, and if not, why and what would make it run.
        layers: the effective stack, outermost first.
        expected: seconds that a scan takes, judging by earlier ones; None if there are none.
        past: its last scans, newest first, at most 50.
        hung: its threads that did not stop in time, oldest first.
        findings: options that do not work together, a sentence each.
        trace: whether the text shows the past scans layer by layer.
        returned: its threads that came back after their time, newest first, at most 10.
    """

    scanner: str
    pipeline: str
    at: float
    verdict: Verdict
    layers: tuple[Layer, ...]
    expected: float | None
    past: tuple[Past, ...]
    hung: tuple[Hung, ...]
    findings: tuple[str, ...]
    trace: bool = False
    returned: tuple[Returned, ...] = ()

    def __str__(self) -> str:
        """Return the explanation as text of at most 100 columns."""
        return "\n".join(line.rstrip() for line in _lines(self))

    @property
    def cached(self) -> bool:
        """Return whether the scanner has a cache."""
        return any(number.option.startswith("cache.") for layer in self.layers for number in layer.numbers)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        with IMPORTING:
            from resilient_scan._forms import html_of_explanation  # noqa: PLC0415 - no text needs it

        return html_of_explanation(self)


def _lines(explained: Explanation) -> list[str]:
    lines = [*_head(explained), "", *_layers(explained.layers)]
    if explained.hung:
        lines += ["", *_hung(explained.hung)]
    if explained.returned:
        lines += ["", *_returned(explained.returned)]
    if explained.findings:
        lines += ["", "WHAT DOES NOT WORK TOGETHER", *_bullets(explained.findings)]
    return [*lines, "", *(_trace(explained) if explained.trace else _past(explained))]


def _head(explained: Explanation) -> Iterator[str]:
    name = f"{explained.scanner} (pipeline {clean(explained.pipeline)})"
    yield f"{shortened(name, WIDTH - 25):<{WIDTH - 24}} {moment(explained.at)}"
    yield ""
    yield from _labelled("runs now?", f"{_MARKS[explained.verdict.answer]}. {explained.verdict.says}", 11)
    for reason in explained.verdict.reasons:
        yield from _labelled("  why", f"{reason.layer}: {reason.why}", 11)
        yield from _labelled("  way out", reason.way_out, 11)


def _layers(layers: Iterable[Layer]) -> Iterator[str]:
    yield "THE WAY OF A SCAN, outermost layer first; in brackets who set the numbers"
    for place, layer in enumerate(layers, 1):
        yield from _labelled(f"  {place} {layer.name}", layer.does, 21)
        for sentence in layer.now:
            yield from _labelled("", f"now: {clean(sentence)}", 21)
        for origin, numbers in _by_origin(layer).items():
            items = ", ".join(number.replace(" ", _GLUE) for number in numbers)
            yield from _labelled("", f"[{clean(origin).replace(' ', _GLUE)}] {items}", 21)


def _by_origin(layer: Layer) -> dict[str, list[str]]:
    origins: dict[str, list[str]] = {}
    for number in layer.numbers:
        field = number.option.partition(".")[2]
        origins.setdefault(number.origin, []).append(f"{field}={number.value}" if field else number.value)
    return origins


_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)\n(?:    (?P<code>.*))?')


def _hung(hung: Iterable[Hung]) -> Iterator[str]:
    yield "THREADS THAT DID NOT STOP and where they are now, the innermost call last"
    for thread in hung:
        yield f"  {thread.thread}, at work for {span(thread.age)}"
        yield from _way_out(thread.hint)
        frames = list(_FRAME.finditer(thread.stack))[-MAX_FRAMES:]
        for frame in dropwhile(_is_ours, frames):
            place = f"    {frame['file']}:{frame['line']} in {frame['function']}"
            yield shortened(place, WIDTH)
            yield shortened(f"      {(frame['code'] or '').strip()}", WIDTH)


_FREED_BY = {
    "cooperative": "it looked at its context, or ended within moments",
    "cancel": "its coroutine was cancelled",
    "sockets": "the connection that it waited for was shut down",
    "process": "its process was killed",
    "abandoned": "nothing; it ended by itself",
}


def _returned(returned: Iterable[Returned]) -> Iterator[str]:
    yield "THREADS THAT CAME BACK AFTER THEIR TIME, newest first, and what freed them"
    for thread in returned:
        work = f"run {thread.run_id[:8]}" + (f", attempt {thread.attempt}" if thread.attempt else "")
        yield shortened(f"  {thread.thread}, after {span(thread.age)} with {_ENDS[thread.outcome]}, {work}", WIDTH)
        yield f"    {thread.method}: {_FREED_BY[thread.method]}"
        yield from _way_out(thread.hint)


def _way_out(hint: str) -> Iterator[str]:
    if hint:
        yield f'    it {hint}; in a process of its own it could be stopped (isolation="process")'


def _is_ours(frame: re.Match[str]) -> bool:
    """Return whether a frame only leads to the scanner, and says nothing about where that hangs."""
    file = PurePath(frame["file"])
    return PACKAGE in file.parents and file.name not in SCANNERS


def _bullets(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from _labelled("  -", sentence, 4)


def _past(explained: Explanation) -> Iterator[str]:
    if not explained.past:
        yield "LAST SCANS: none yet"
        return
    shown, total = explained.past[:MAX_SCANS], len(explained.past)
    yield f"LAST SCANS, newest first ({len(shown)} of {total} remembered; a trace shows each layer by layer)"
    yield f"  {'when (UTC)':<24}{'status':<11}{'candidates':>10}{'took':>10}{'attempts':>10}  error"
    for scan in shown:
        when = f"{moment(scan.started_at, explained.at)}, {ago(explained.at - scan.started_at)}"
        row = f"  {when:<24}{scan.status:<11}{scan.found:>10}{span(scan.duration):>10}{len(scan.attempts):>10}  "
        marks = ("(probe) " if scan.probe else "") + (f"({scan.blame}) " if scan.blame not in {"", SCANNER} else "")
        yield shortened(row + marks + scan.error, WIDTH)


def _trace(explained: Explanation) -> Iterator[str]:
    if not explained.past:
        yield "FLIGHT RECORDER: no scan yet"
        return
    yield f"FLIGHT RECORDER, {counted(len(explained.past), 'scan')}, newest first; times in UTC"
    for scan in explained.past:
        yield f"  {moment(scan.started_at, explained.at)}, {ago(explained.at - scan.started_at)}, run {scan.run_id[:8]}"
        for label, text in _steps(scan, explained.cached):
            yield from _labelled(f"    {label}", text, 16)
        for line in scan.traceback.splitlines():
            yield shortened(f"      | {line}", WIDTH)


def _steps(scan: Past, cached: bool) -> Iterator[tuple[str, str]]:
    """Yield what happened to a scan, layer by layer."""
    if scan.probe:
        yield "probe", "the scanner was out of service, and this scan tested whether it may come back"
    else:
        how = _CACHE[scan.cache] if cached or scan.cache != "bypass" else "left out: every scan calls the source"
        yield "cache", how + (f", {span(scan.age)} old" if scan.age else "")
    if scan.attempts:
        yield "worker", f"started after {span(scan.queue_wait)} in the queue"
    for attempt in scan.attempts:
        yield (
            f"attempt {attempt.number}",
            f"{span(attempt.duration)}: {brief(attempt.outcome)}{_given_up(scan, attempt)}",
        )
        if attempt.pause is not None:
            yield "pause", span(attempt.pause)
    found = counted(scan.found, "candidate") + (", partial" if scan.partial else "")
    dropped = f", {scan.dropped} invalid dropped" if scan.dropped else ""
    error = f": {brief(scan.error)}" if scan.error and not scan.attempts else ""
    yield "end", f"{scan.status} after {span(scan.duration)}, {found}{dropped}{error}"
    if places := _places(scan):
        yield "failed", places
    if scan.blame in _FAULTS:
        yield "fault", _FAULTS[scan.blame]


_FAULTS = {
    LOCAL: "this machine's own: it counts against nobody",
    PROVIDER: "the provider's: the way to it is broken",
    SOURCE: "the source's: its answer",
}


def _places(scan: Past) -> str:
    """Say where its attempts failed: `at feeds.py:42 in parse`, with their numbers if they failed at several lines."""
    places: dict[str, list[str]] = {}
    for attempt in scan.attempts:
        if attempt.where:
            places.setdefault(attempt.where, []).append(str(attempt.number))
    if len(places) <= 1:
        return next(iter(places), scan.where)
    return "; ".join(f"attempt {', '.join(numbers)} {place}" for place, numbers in places.items())


def _given_up(scan: Past, attempt: Attempt) -> str:
    """Say that no attempt followed although more were allowed."""
    last = attempt.failed and attempt.pause is None and scan.status not in {"skipped", "timeout"}
    given_up = last and attempt.number < scan.allowed
    return f"; given up after {attempt.number} of {counted(scan.allowed, 'attempt')}" if given_up else ""


def _labelled(label: str, text: str, indent: int) -> list[str]:
    """Wrap text to the right of a label, which stands on the first line only."""
    lines = textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False) or [""]
    return [f"{label if place == 0 else '':<{indent}}{line.replace(_GLUE, ' ')}" for place, line in enumerate(lines)]
