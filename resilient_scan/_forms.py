"""Forms in which results fit into other tools: flat rows for data frames, and HTML for notebooks.

In HTML nothing foreign is markup. Every status is a word on its colour: it can be read in black and white, on a light
and on a dark page, and by a screen reader.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from resilient_scan._text import brief, counted, moment, span

if TYPE_CHECKING:
    from resilient_scan.observe.explain import Explanation, Past
    from resilient_scan.results import RunReport, ScanResult

MAX_ROWS: Final = 50  # of the candidates
_GOOD, _FAIR, _BAD, _GREY = "#137333", "#9a6700", "#c5221f", "#6e7781"
COLOURS: Final = {
    "completed": _GOOD,
    "cached": _GOOD,
    "stale": _FAIR,
    "timeout": _BAD,
    "error": _BAD,
    "rejected": _BAD,
    "disabled": _GREY,
    "skipped": _GREY,
    "runs": _GOOD,  # and the verdicts of an explanation
    "waits": _FAIR,
    "not needed": _GOOD,
    "does not run": _BAD,
}
_FIELDS: Final = ("ticker", "priority", "source", "context")


# Rows

_OF_SCAN: Final = ("run_id", "scanner", "pipeline", "status", "age", "partial", "suspicious")


def records(report: RunReport) -> list[dict[str, Any]]:
    """Return a row for each candidate, all with the same columns; see `RunReport.to_records`."""
    rows = [row for result in report.results.values() for row in _rows(report.run_id, result)]
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _rows(run_id: str, result: ScanResult) -> Iterator[dict[str, Any]]:
    data = result.to_dict()
    head = {"run_id": run_id, **{name: data[name] for name in _OF_SCAN[1:]}}
    for candidate in data["candidates"]:
        fields = candidate if isinstance(candidate, dict) else {"candidate": candidate}
        extras = fields.get("extras")
        own = {name: value for name, value in fields.items() if name != "extras" or not isinstance(extras, dict)}
        # A name that is taken gets its home in front, so that no column holds two things.
        row = head | {f"candidate.{name}" if name in head else name: _flat(value) for name, value in own.items()}
        more = extras.items() if isinstance(extras, dict) else ()
        yield row | {f"extras.{name}" if name in row else name: _flat(value) for name, value in more}


def _flat(value: Any) -> Any:
    """Return a value as a cell: a nested one as JSON text."""
    return json.dumps(value, allow_nan=False) if isinstance(value, dict | list) else value


# HTML


def text(value: object, most: int = 200) -> str:
    """Return foreign text as one line of HTML without markup."""
    shown = brief(str(value))
    return escape(shown if len(shown) <= most else f"{shown[: most - 1]}…")


def status(word: str) -> str:
    """Return a status by its word and its colour."""
    style = f"color:#fff;background:{COLOURS.get(word, _GREY)};padding:0 .4em;border-radius:.3em"
    return f'<span style="{style}">{text(word)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    cells = "".join(f'<th scope="col" style="text-align:left">{escape(name)}</th>' for name in head)
    lines = ("".join(f'<td style="text-align:left">{cell}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def html_of_report(shown: RunReport) -> str:
    """Return a report: a sentence, a row for each scanner, and the first candidates, folded."""
    counts = Counter(result.status.value for result in shown.results.values())
    words = ", ".join(f"{count} {status(word)}" for word, count in counts.items()) or "no scanner"
    found = shown.candidates
    head = f"<p>Run {text(shown.run_id[:8])}, {moment(shown.started_at)}, {text(span(shown.duration))}: {words}; "
    head += f"{counted(len(found), 'candidate')}.</p>"
    columns = ("scanner", "pipeline", "status", "candidates", "duration", "attempts", "what went wrong")
    scans = table(columns, (_scan(result) for result in shown.results.values()))
    return f"<div>{head}{scans}{_candidates(found)}</div>"


def _scan(result: ScanResult) -> tuple[str, ...]:
    error = result.error
    wrong = text(result.suspicious or "") if error is None else _wrong(f"{error.kind}: {error.message}", error.place)
    numbers = (str(len(result.candidates)), text(span(result.duration)), str(result.attempts))
    return text(result.scanner), text(result.pipeline), status(result.status.value), *numbers, wrong


def _wrong(error: str, place: str) -> str:
    return text(error) + (f" ({text(place)})" if place else "")


def _candidates(found: Sequence[object]) -> str:
    if not found:
        return ""
    rows = [[text(_field(candidate, name)) for name in _FIELDS] for candidate in found[:MAX_ROWS]]
    more = f"<p>... and {len(found) - MAX_ROWS} more: <code>report.to_records()</code></p>"
    tail = more if len(found) > MAX_ROWS else ""
    return f"<details><summary>Candidates</summary>{table(_FIELDS, rows)}{tail}</details>"


def _field(candidate: object, name: str) -> object:
    value = candidate.get(name) if isinstance(candidate, dict) else getattr(candidate, name, None)
    if value is None:
        return "" if name != "ticker" else candidate
    return value


def html_of_explanation(shown: Explanation) -> str:
    """Return an explanation: whether the scanner runs now, its layers, and its last scans."""
    verdict = {"yes": "runs", "waits": "waits", "cached": "not needed"}.get(shown.verdict.answer, "does not run")
    head = f"<p><b>{text(shown.scanner)}</b> ({text(shown.pipeline)}): {status(verdict)} {text(shown.verdict.says)}</p>"
    reasons = [(text(each.layer), text(each.why, 500), text(each.way_out, 500)) for each in shown.verdict.reasons]
    parts = [head, table(("layer", "why", "way out"), reasons)] if reasons else [head]
    layers = [
        (text(layer.name), text(layer.does, 500), "<br>".join(text(sentence) for sentence in layer.now))
        for layer in shown.layers
    ]
    parts.append(table(("layer", "what it does to a scan", "now"), layers))
    if shown.past:
        columns = ("when", "status", "candidates", "duration", "attempts", "what went wrong")
        parts.append(table(columns, (_past(scan, shown.at) for scan in shown.past[:MAX_ROWS])))
    return f"<div>{''.join(parts)}</div>"


def _past(scan: Past, now: float) -> tuple[str, ...]:
    numbers = (str(scan.found), text(span(scan.duration)), str(len(scan.attempts)))
    return moment(scan.started_at, now), status(scan.status), *numbers, _wrong(scan.error, scan.where)
