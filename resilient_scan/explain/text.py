"""An explanation as text for a terminal: 100 columns, no colours, the answer first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_scan.explain.model import Explanation, Hung, Layer, Past

WIDTH = 100
SHOWN = 8  # past scans without a trace
FRAMES = 4  # of a hung thread's stack, the innermost ones
_MARKS = {"yes": "YES", "waits": "YES, BUT IT WAITS", "cached": "NOT NEEDED", "no": "NO"}
_CACHE = {
    "hit": "had the answer (hit)",
    "stale": "had an old answer, which stood in for the failure (stale)",
    "miss": "had no fresh answer (miss)",
    "shared": "had no answer, but another scan was fetching it: this one waited for that (shared)",
    "bypass": "not used (bypass)",
    "": "not asked",
}


def render(told: Explanation) -> str:
    """Write an explanation."""
    lines = [*_head(told), "", *_layers(told.layers)]
    if told.hung:
        lines += ["", *_hung(told.hung)]
    if told.findings:
        lines += ["", "WHAT DOES NOT WORK TOGETHER", *_bullets(told.findings)]
    lines += ["", *(_trace(told) if told.trace else _past(told))]
    return "\n".join(line.rstrip() for line in lines)


def _head(told: Explanation) -> Iterator[str]:
    name = f"{told.scanner} (pipeline {clean(told.pipeline)})"
    yield f"{name:<{WIDTH - 24}} {moment(told.at)}"
    yield ""
    yield from _labelled("runs now?", f"{_MARKS[told.verdict.answer]}. {told.verdict.says}", 11)
    for reason in told.verdict.reasons:
        yield ""
        yield from _labelled("  why", f"{reason.layer}: {reason.why}", 11)
        yield from _labelled("  way out", reason.way_out, 11)


def _layers(layers: Iterable[Layer]) -> Iterator[str]:
    yield "THE WAY OF A SCAN, outermost layer first, and where each number comes from"
    for place, layer in enumerate(layers, 1):
        yield from _labelled(f"  {place} {layer.name}", layer.does, 18)
        for sentence in layer.now:
            yield from _labelled("", f"now: {sentence}", 18)
        for origin, numbers in _by_origin(layer).items():
            yield from _labelled("", f"{origin}: {', '.join(numbers)}", 20)


def _by_origin(layer: Layer) -> dict[str, list[str]]:
    origins: dict[str, list[str]] = {}
    for number in layer.numbers:
        origins.setdefault(number.origin, []).append(f"{number.option.rpartition('.')[2]} = {number.value}")
    return origins


def _hung(hung: Iterable[Hung]) -> Iterator[str]:
    yield "THREADS THAT DID NOT STOP, and where they are now; Python cannot stop them"
    for thread in hung:
        yield f"  {thread.thread}, at work for {span(thread.age)}"
        frames = thread.stack.rstrip().split("\n  File ")[-FRAMES:]
        for frame in frames:
            place, *code = frame.removeprefix("  File ").splitlines()
            yield from (f"    {line.strip()}"[:WIDTH] for line in (place, *(f"> {line.strip()}" for line in code[:1])))


def _bullets(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from _labelled("  -", sentence, 4)


def _past(told: Explanation) -> Iterator[str]:
    if not told.past:
        yield "LAST SCANS: none yet"
        return
    yield f"LAST SCANS, newest first ({min(SHOWN, len(told.past))} of {len(told.past)} remembered)"
    yield f"  {'when (UTC)':<26}{'status':<11}{'found':>6}{'took':>10}{'attempts':>10}  error"
    for scan in told.past[:SHOWN]:
        when = f"{moment(scan.started_at, told.at)}, {span(max(0.0, told.at - scan.started_at))} ago"
        row = f"  {when:<26}{scan.status:<11}{scan.found:>6}{span(scan.duration):>10}{len(scan.attempts):>10}  "
        yield shortened(row + scan.error, WIDTH)


def _trace(told: Explanation) -> Iterator[str]:
    if not told.past:
        yield "FLIGHT RECORDER: no scan yet"
        return
    yield f"FLIGHT RECORDER, the last {len(told.past)} scans, newest first; times in UTC"
    for scan in told.past:
        ago = span(max(0.0, told.at - scan.started_at))
        yield f"  {moment(scan.started_at, told.at)}, {ago} ago, run {scan.run_id[:8]}"
        for label, text in _steps(scan):
            yield from _labelled(f"    {label}", text, 16)


def _steps(scan: Past) -> Iterator[tuple[str, str]]:
    """Yield what happened to a scan, layer by layer."""
    yield "cache", _CACHE[scan.cache] + ("" if scan.age is None else f", {span(scan.age)} old")
    if scan.attempts:
        yield "worker", f"began it after {span(scan.queue_wait)} in the queue"
    for attempt in scan.attempts:
        pause = "" if attempt.pause is None else f"; waited {span(attempt.pause)}"
        yield f"attempt {attempt.number}", f"{span(attempt.duration)}: {clean(attempt.outcome)}{pause}"
    found = f"{scan.found} candidates" + (", partial" if scan.partial else "")
    dropped = f", {scan.dropped} invalid dropped" if scan.dropped else ""
    error = f": {clean(scan.error)}" if scan.error and not scan.attempts else ""
    yield "end", f"{scan.status} after {span(scan.duration)}, {found}{dropped}{error}"


# Small parts


def _labelled(label: str, text: str, indent: int) -> list[str]:
    """Wrap text beside a label that stands once, at the left."""
    lines = textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False) or [""]
    return [f"{label if place == 0 else '':<{indent}}{line}" for place, line in enumerate(lines)]


def clean(text: str) -> str:
    """Return foreign text on one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def shortened(text: str, most: int) -> str:
    """Return foreign text on one line of at most `most` characters."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def moment(instant: float, now: float | None = None) -> str:
    """Write an instant, without the date where that is today's."""
    at = datetime.fromtimestamp(instant, UTC)
    if now is None:
        return f"{at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{at:%H:%M:%S}" if at.date() == datetime.fromtimestamp(now, UTC).date() else f"{at:%m-%d %H:%M}"


def span(seconds: float) -> str:
    """Write a duration in at most two units."""
    if seconds < 0.0005:
        return "0s"
    if seconds < 60:
        return f"{seconds:.3g}s"
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            rest = int(seconds % size // part)
            return f"{int(seconds // size)}{unit}" + (f" {rest}{smaller}" if rest else "")
    return f"{seconds:.3g}s"
