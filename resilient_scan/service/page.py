"""The pages for people: the whole fleet at a glance, and everything about one scanner, as HTML. Knows jinja2.

They are complete without JavaScript: finding and sorting are links of a form, and what is long is folded by the browser
itself. The script adds that the page follows by itself, and that orders can be given.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from markupsafe import Markup, escape

from resilient_scan._text import clean, counted, shortened, span
from resilient_scan.layers.limit import ProviderState
from resilient_scan.observe.explain import Explanation
from resilient_scan.quarantine import AuditEntry
from resilient_scan.results import LOCAL, PROVIDER, SOURCE
from resilient_scan.service.control import Fleet, OneScanner, Row, Scanner
from resilient_scan.service.process import Process
from resilient_scan.service.watch import FAILED, Trouble
from resilient_scan.stores.history import TURNED_AWAY

_here = files("resilient_scan.service")


def _text(name: str) -> str:
    return (_here / name).read_text("utf-8")


_STYLE, _SCRIPT = _text("page.css"), _text("page.js")
_engine = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(_text),
)
_engine.filters["code"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped
_FLEET, _ONE = map(_engine.get_template, ("page.html", "scanner.html"))  # reads the frame too
SHORT, SHORTER = 160, 100  # characters of an error in a list of few rows, where the rest is folded; and of many
FULL, LAST_FRAMES = 2_000, 1_500  # characters that are folded in the list: of an error, and of a traceback
FEW = 40  # rows, of which each carries what is folded; more would make a page that is heavy and looked at by nobody
MAX_SCANS, MAX_TRACED, MAX_ENTRIES = 20, 3, 50  # shown of one scanner: scans, those step by step, its audit trail
_FAULTS = {
    LOCAL: "this machine's own fault: it counts against nobody",
    PROVIDER: "the provider's fault: the way to it is broken",
    SOURCE: "the source's fault: its answer",
}
_RANK = {"bad": 0, "warn": 1, "good": 2}
SHOWS = (("all", "all"), ("trouble", "in trouble"))
SORTS = (("trouble", "trouble first"), ("name", "by name"), ("pipeline", "by pipeline"), ("slowest", "slowest first"))
_PROVIDER = {  # word and mood
    "closed": ("up", "good"),
    "open": ("down", "bad"),
    "half_open": ("on trial", "warn"),
    "held": ("held", "warn"),
}
_DOES = {
    "enable": ("enable", "brings it back; alerts cannot take it out again while the time runs"),
    "disable": ("disable", "takes it out of service while the time runs, whatever alerts say"),
    "probe": ("probe", "ends the cool-off: its next scan decides whether it may come back"),
    "run": ("run now", "runs it alone, as soon as no other run is under way"),
    "reset": ("reset", "closes its breaker and forgets the failures"),
    "forget": ("forget", "drops its cached answers"),
}


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
}


class Choice(msgspec.Struct, frozen=True):
    """What somebody wants to see of the fleet: rows with all words of `q`, all or those in trouble, in which order."""

    q: str = ""
    show: str = "all"
    sort: str = "trouble"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Choice:
        """Return the choice in an address; what is not understood counts as not said."""
        show, sort = query.get("show", ""), query.get("sort", "")
        return cls(
            clean(query.get("q", "")[:100]),
            show if show in dict(SHOWS) else "all",
            sort if sort in dict(SORTS) else "trouble",
        )

    def of_rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows to show, in order."""
        words = self.q.lower().split()
        kept = [row for row in rows if all(word in row["sought"] for word in words)]
        if self.show == "trouble":
            kept = [row for row in kept if row["mood"] != "good"]
        if self.sort == "trouble":
            return sorted(kept, key=lambda row: _RANK[row["mood"]])
        return sorted(kept, key=lambda row: -row["seconds"] if self.sort == "slowest" else row[self.sort])


class Instant(msgspec.Struct, frozen=True):
    """An instant for people: in UTC, for the browser, and as a distance from now; empty texts stand for none."""

    utc: str = ""
    iso: str = ""
    ago: str = ""
    lasting: str = ""


class Page(msgspec.Struct, frozen=True):
    """Renders the pages.

    Attributes:
        now: epoch seconds.
        process: what there is to know about the process around the endpoint.
        user: whom the browser has named; may be empty.
        can_change: whether a token is configured that allows changes.
    """

    now: float
    process: Process = Process()
    user: str = ""
    can_change: bool = True

    def fleet(self, fleet: Fleet, choice: Choice) -> str:
        """Return the page of all scanners as HTML."""
        few = len(fleet.rows) <= FEW
        rows = [self._row(row, folded=few) for row in fleet.rows]
        shown = choice.of_rows(rows)
        mood, headline = _headline(rows)
        every = counted(len(rows), "scanner")
        dashboard = self.process.dashboard_url
        dashboard = dashboard.partition("?")[0] if "{scanner}" in dashboard else dashboard
        return _FLEET.render(
            self._frame("", headline, mood, fleet.troubles),
            title=headline,
            demo=fleet.demo,
            rows=shown,
            choice=choice,
            shows=SHOWS,
            sorts=SORTS,
            count=every if len(shown) == len(rows) else f"{len(shown)} of {every}",
            providers=self._providers(fleet.providers),
            unseen=max(0, sum(each.state is not None for each in fleet.providers) - FEW),
            links=self._links(dashboard, ("audit", "Audit trail"), ("metrics", "Metrics"), ("openapi.json", "API")),
        )

    def one(self, found: OneScanner) -> str:
        """Return the page of one scanner as HTML."""
        scanner, explanation = found.row.scanner, found.explanation
        row = self._row(found.row, folded=True)
        dashboard = self.process.dashboard_url.replace("{scanner}", scanner.name)
        outcome, probe = scanner.outcome, scanner.next_probe
        real = [scan for scan in explanation.past if scan.status not in TURNED_AWAY]
        passed = f"{scanner.passed} of {scanner.needed} have succeeded"
        due = "with the next run" if probe is not None and probe <= self.now else f"in {span((probe or 0) - self.now)}"
        return _ONE.render(
            self._frame("../", _sentence(row, found.row), row["mood"], found.troubles),
            title=scanner.name,
            demo=found.demo,
            row={**row, "traceback": _visible(found.row.traceback)},
            error="" if outcome is None else _visible(outcome.error),
            attempts="" if outcome is None else counted(outcome.attempts, "attempt"),
            until=self._instant(scanner.until),
            probe="" if probe is None else f"{due}; {passed}",
            breaker=(scanner.breaker or "it has none").replace("_", "-"),
            hung=scanner.abandoned_threads,
            budget="" if scanner.slo_budget is None else _budget(scanner.slo_budget),
            providers=self._providers(found.providers),
            verdict=explanation.verdict,
            orders=[(key, *_DOES[key], self._not_now(key, scanner, explanation)) for key in _DOES],
            alerts=[self._alert(alert) for alert in scanner.evidence],
            past=_unrepeated(self._past(scan) for scan in explanation.past[:MAX_SCANS]),
            more=len(explanation.past) if len(explanation.past) > MAX_SCANS else 0,
            audit=None if found.audit is None else [self._entry(entry) for entry in found.audit[:MAX_ENTRIES]],
            explanation=_visible(str(msgspec.structs.replace(explanation, past=tuple(real[:MAX_TRACED])))),
            links=self._links(dashboard, ("../", "All scanners"), (f"../scanners/{scanner.name}", "As JSON")),
        )

    def _frame(self, root: str, headline: str, mood: str, troubles: Sequence[Trouble]) -> dict[str, Any]:
        return {
            "root": root,
            "headline": headline,
            "mood": mood,
            "now": self._instant(self.now),
            "around": [
                {"about": each.about, "says": clean(each.says), "since": self._instant(each.since)} for each in troubles
            ],
            "can_change": self.can_change,
            "user": self.user,
            "style": Markup(_STYLE),  # noqa: S704 - our own file
            "script": Markup(_SCRIPT),  # noqa: S704
        }

    def _links(self, dashboard: str, *links: tuple[str, str]) -> list[tuple[str, str]]:
        own = ((dashboard, "Dashboard"), (self.process.runbook_url, "Runbook"))
        return [*(link for link in own if link[0]), *links]

    def _row(self, row: Row, *, folded: bool) -> dict[str, Any]:
        """Return a scanner's cells; `folded`: with what is long and unfolds at a click."""
        scanner, outcome = row.scanner, row.scanner.outcome
        word, mood = _state(row)
        out = scanner.state != "enabled"
        error = "" if outcome is None else clean(outcome.error)
        if scanner.last_status == "rejected" and scanner.state == "enabled":
            error = error or clean(scanner.last_error)
        reason = clean(scanner.reason) if out else ""
        long = folded and len(error) > SHORT
        return {
            "name": scanner.name,
            "pipeline": clean(scanner.pipeline),
            "word": word,
            "mood": mood,
            "since": self._instant(scanner.since if out else row.failing_since),
            "then": ", ".join(_besides(row)),
            "status": "" if outcome is None else outcome.status,
            "took": "" if outcome is None else span(outcome.duration),
            "seconds": 0.0 if outcome is None else outcome.duration,
            "at": self._instant(None if outcome is None else outcome.at),
            "spark": _spark(row.scans),
            "reason": reason,
            "who": self._who(scanner) if reason else "",
            "error": shortened(error, SHORT if folded else SHORTER),
            "full": shortened_text(_visible(outcome.error), FULL) if long and outcome is not None else "",
            "where": clean(outcome.where) if folded and outcome is not None else "",
            "blame": _FAULTS.get(outcome.blame, "") if outcome is not None else "",
            "traceback": _last(row.traceback) if folded else "",
            "actions": _actions(scanner),
            "sought": f"{scanner.name} {scanner.pipeline} {scanner.state} {word} {reason} {error}".lower(),
        }

    def _providers(self, providers: Iterable[ProviderState]) -> list[dict[str, Any]]:
        """Return the cells of the providers that have a breaker, those in trouble first, and not more than a few."""
        found = [self._provider(each, *_PROVIDER[each.state]) for each in providers if each.state is not None]
        return sorted(found, key=lambda row: _RANK[row["mood"]])[:FEW]

    def _provider(self, provider: ProviderState, word: str, mood: str) -> dict[str, Any]:
        trial, until = provider.state == "half_open" and provider.until is None, provider.until or 0.0
        next_trial = f"next trial {self._instant(until).ago}" if until > self.now else "next trial with the next scan"
        tried = f"tried last by {clean(provider.by)}, " if provider.by else ""
        down = f"{clean(provider.by)} is trying it now" if trial else f"{tried}{next_trial}"
        says = {"up": "", "held": "asked to be left alone"}
        return {
            "key": quote(provider.provider, safe=""),
            "name": clean(provider.provider),
            "word": word,
            "mood": mood,
            "since": self._instant(provider.since),
            "says": says.get(word, down),
            "until": self._instant(provider.until if word == "held" else None),
            "scanners": provider.scanners,
        }

    def _who(self, scanner: Scanner) -> str:
        """Say who took it out of service and when it may come back."""
        parts = [f"by {clean(scanner.who) or scanner.source}"] if scanner.who or scanner.source else []
        probe = scanner.next_probe
        if probe is not None:
            parts.append("probed with the next run" if probe <= self.now else f"probed in {_age(probe - self.now)}")
        elif scanner.until is not None:
            parts.append(f"for another {_age(scanner.until - self.now)}")
        return ", ".join(parts)

    def _not_now(self, action: str, scanner: Scanner, explanation: Explanation) -> str:
        """Say why an order would be refused, or change nothing; an empty text: it would be carried out."""
        waits = scanner.next_probe is not None and scanner.next_probe > self.now
        reasons = {
            "probe": (scanner.state not in {"quarantined", "probing"}, "it is not quarantined"),
            "run": (self.process.run is None, "this service starts no runs, the program around it does"),
            "reset": (scanner.breaker is None, "it has no breaker"),
            "forget": (not explanation.cached, "it has no cache"),
        }
        applies, why = reasons.get(action, (False, ""))
        if not applies and action == "run" and (scanner.state == "disabled" or waits):
            return f"it is {scanner.state}"
        return why if applies else ""

    def _alert(self, alert: Any) -> dict[str, Any]:
        url, name = self.process.runbook_url, clean(alert.name or alert.fingerprint)
        heading = f"#{name.lower()}" if re.fullmatch(r"\w+", name, re.ASCII) else ""
        return {
            "name": name,
            "runbook": f"{url}{heading}" if url else "",
            "summary": clean(alert.summary),
            "status": alert.status,
            "said": self._instant(alert.said_at),
            "source": clean(alert.source),
            "blocks": alert.blocks,
        }

    def _past(self, scan: Any) -> dict[str, Any]:
        mood = "bad" if scan.status in FAILED else "warn" if scan.status in {"rejected", "stale"} else ""
        return {
            "run": scan.run_id,
            "mood": mood,
            "at": self._instant(scan.started_at),
            "status": scan.status,
            "probe": scan.probe,
            "took": span(scan.duration),
            "attempts": len(scan.attempts),
            "found": scan.found,
            "error": shortened(clean(scan.error), SHORT),
            "where": clean(scan.where),
            "blame": _FAULTS.get(scan.blame, ""),
        }

    def _entry(self, entry: AuditEntry) -> dict[str, Any]:
        return {
            "at": self._instant(entry.at),
            "what": entry.action or f"{entry.old} → {entry.new}",
            "by": clean(entry.who) or entry.source,
            "reason": clean(entry.reason),
            "until": self._instant(entry.until),
        }

    def _instant(self, at: float | None) -> Instant:
        if at is None:
            return Instant()
        try:
            found = datetime.fromtimestamp(at, UTC)
        except (OverflowError, ValueError, OSError):
            return Instant(ago="long ago")
        away = self.now - at
        ago = f"{_age(away)} ago" if away >= 0 else f"in {_age(-away)}"
        return Instant(f"{found:%Y-%m-%d %H:%M:%S}", f"{found:%Y-%m-%dT%H:%M:%SZ}", ago, f"for {_age(away)}")


def _state(row: Row) -> tuple[str, str]:
    """Return how a scanner is, in a word, and how bad that is; one in service that fails is not `enabled`."""
    scanner = row.scanner
    if scanner.state != "enabled":
        return scanner.state, "bad" if scanner.state == "quarantined" else "warn"
    if scanner.last_status in FAILED or row.failures:
        return "failing", "bad"
    if scanner.last_status == "rejected":
        return "rejected", "bad"
    if scanner.last_status == "stale":
        return "stale", "warn"
    return ("flapping", "warn") if scanner.flapping else ("enabled", "good")


def _besides(row: Row) -> Iterator[str]:
    scanner = row.scanner
    if row.failures > 1 and scanner.state == "enabled":
        yield f"{row.failures} scans in a row"
    if scanner.breaker in {"open", "half_open"}:
        yield f"breaker {scanner.breaker.replace('_', '-')}"
    if scanner.flapping and _state(row)[0] != "flapping":
        yield "flapping"
    if scanner.slo_budget is not None and scanner.slo_budget <= 0:
        yield "error budget used up"
    if scanner.abandoned_threads:
        yield counted(scanner.abandoned_threads, "hung thread")


def _budget(left: float) -> str:
    """Say how much of an error budget is left, or how much more was used than there was."""
    return f"{left:.0%} is left" if left > 0 else f"used up, {1 - left:.0%} of it"


def _actions(scanner: Scanner) -> list[str]:
    """Return the orders that help in the state that a scanner is in, the likeliest first."""
    if scanner.state == "enabled":
        return ["reset", "disable"] if scanner.breaker == "open" else ["disable"]
    return ["probe", "enable"] if scanner.state == "quarantined" else ["enable"]


def _sentence(row: Mapping[str, Any], full: Row) -> str:
    """Return the headline of one scanner's page; without times, because it is read out when it changes."""
    if row["word"] == "enabled":
        return "in service"
    error = full.scanner.outcome.error.partition(":")[0] if full.scanner.outcome is not None else ""
    why = row["reason"] or clean(error)
    return shortened(f"{row['word']}: {why}" if why else row["word"], 200)


def _headline(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the mood, and one line that says how the fleet is."""
    if not rows:
        return "warn", "There are no scanners"
    words = Counter(row["word"] for row in rows)
    well = words.pop("enabled", 0)
    if not words:
        return "good", f"All {len(rows)} scanners are in service" if len(rows) != 1 else "The scanner is in service"
    parts = [f"{count} {word}" for word, count in sorted(words.items(), key=lambda item: (item[0] != "failing", item))]
    bad = any(row["mood"] == "bad" for row in rows)
    return ("bad" if bad else "warn"), f"{', '.join(parts)}; {well} of {len(rows)} well"


_TICKS = {  # class and height's middle, in a picture that is 14 high; a failure is high as well as red
    **dict.fromkeys(("completed", "cached"), ("o", 12)),
    "stale": ("w", 10),
    "rejected": ("w", 10),
    **dict.fromkeys(("error", "timeout"), ("b", 7)),
}
_OUT = ("n", 13)


def _spark(scans: Sequence[str]) -> Markup:
    """Draw the last scans, newest on the right: one line for each stretch of scans that ended alike, cut into ticks."""
    lines: dict[str, list[str]] = {}
    x = 100 - 2 * len(scans)
    for (kind, y), stretch in groupby(scans, key=lambda status: _TICKS.get(status, _OUT)):
        wide = 2 * len(list(stretch))
        lines.setdefault(kind, []).append(f"M{x} {y}h{wide}")
        x += wide
    drawn = "".join(f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in lines.items())
    return Markup(f'<svg viewBox="0 0 100 14" role="img" aria-label="{_in_words(scans)}">{drawn}</svg>')  # noqa: S704 - numbers


def _in_words(scans: Sequence[str]) -> str:
    if not scans:
        return "No scan yet"
    kinds = Counter(_TICKS.get(status, _OUT)[0] if status != "rejected" else "r" for status in scans)
    named = (("o", "answered"), ("b", "failed"), ("w", "stale"), ("r", "rejected"), ("n", "out of service or skipped"))
    parts = ", ".join(f"{kinds[kind]} {text}" for kind, text in named if kinds[kind])
    return f"Last {counted(len(scans), 'scan')}: {parts}"


def _unrepeated(scans: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scans, of which one that failed like the one above it only says so."""
    shown, above = [], None
    for scan in scans:
        error = scan["error"], scan["where"]
        same = bool(scan["error"]) and error == above
        shown.append({**scan, "error": "the same", "where": "", "blame": ""} if same else scan)
        above = error
    return shown


def _age(seconds: float) -> str:
    """Write a duration in one unit: what is read at a glance needs no more."""
    return span(max(0, int(seconds))).partition(" ")[0]


def _visible(text: str) -> str:
    """Return foreign text with its lines, in which what has no picture (and may turn the text around) has one."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def shortened_text(text: str, most: int) -> str:
    """Return the beginning of a text of several lines."""
    return text if len(text) <= most else f"{text[:most]}…"


def _last(traceback: str) -> str:
    """Return the end of a traceback, where the error is."""
    shown = _visible(traceback)
    return shown if len(shown) <= LAST_FRAMES else f"…{shown[-LAST_FRAMES:]}"
