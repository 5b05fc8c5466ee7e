"""Record what sources answer in a folder, and answer from such a folder without any network.

A folder holds `manifest.json`, a list with a row for each answer, in the order in which they came, and the bodies:

    file          the body, as a path inside the folder
    method, url   of the request; a value that is REDACTED (or begins with MOCK_, or is "..") stands for any value
    request_body  the form that was sent, or null
    status        HTTP status
    headers       of the answer, without those of the connection and without secrets
    recorded_at   when, in UTC (`2026-04-13T20:49:46Z`); null: not known
    scanner       which scanner made the request; may be missing
    bytes, sha256 of the body

`state.json`, if it is there, is the state that the run got, and `scanners.json` a list of the scanners that ran.
Further keys and files are allowed.

A `Recorder` is shared by all threads of a run, and so is a `Replay`: each has one lock, for its folder and for its
place in the recordings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from resilient_scan._once import ready
from resilient_scan._text import REDACTED, Hide, granted_secrets, hider, is_secret, redact, without_secrets
from resilient_scan.clock import Clock, Wake
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError
from resilient_scan.http.errors import Answer, NotFound, http_date

MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
SCANNERS: Final = "scanners.json"
_EMPTY: Final = b"[]\n"  # a manifest without rows
_END: Final = b"\n]\n"  # of a manifest with rows
_TRANSFER_HEADERS: Final = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}
_SUFFIXES: Final = {"json": "json", "csv": "csv", "html": "html", "xml": "xml", "atom": "xml"}
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})?)?")
_CLOSE: Final = "T20:00:00Z"  # of a day without a time: New York's exchanges close, and the date is the same there

Target = tuple[str, str, str]
"""Method, host and path of a request."""


class NotRecorded(NotFound):
    """A replay was asked for what its folder does not have."""


class Request(msgspec.Struct, frozen=True):
    """A request: its method, whole address and form, or `None`."""

    method: str
    url: str
    body: str | None

    def without_secrets(self, hide: Hide) -> Request:
        """Return the same request as it may be stored."""
        body = None if self.body is None else hide(redact(f"?{self.body}")[1:])
        return Request(self.method, hide(redact(self.url)), body)


class Recorder:
    """Keep every answer in a new folder, without secrets; the folder is complete after each of them.

    What is taken out: user, password and telling parameters of an address; cookies and telling headers; every secret
    that the client knows, wherever it turns up; tokens that an answer hands out, in that answer and in all later ones.
    Headers of requests are not kept at all.

    Args:
        folder: created if it does not exist; must be empty.

    Raises:
        ConfigError: the folder is not empty, or cannot be created.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            full = any(self.folder.iterdir())
        except OSError as error:
            raise ConfigError(f"cannot record into {self.folder}: {error.strerror}") from None
        if full:
            raise ConfigError(f"cannot record into {self.folder}: it is not empty; name a new folder")
        begin_manifest(self.folder)
        self._lock = threading.Lock()
        self._answers = 0
        self._secrets: set[str] = set()

    def clock(self, _scanner: str, clock: Clock) -> Clock:
        """Return the clock as it is."""
        return clock

    def note_run(self, state: Mapping[str, Any], scanners: Iterable[str]) -> None:
        """Keep a run's state and the names of its scanners, for its replay."""
        (self.folder / STATE).write_bytes(msgspec.json.encode(without_secrets(state)))
        (self.folder / SCANNERS).write_bytes(msgspec.json.encode(list(scanners)))

    def keep(self, request: Request, answer: Answer, body: bytes, hide: Hide, context: ScanContext) -> None:
        """Keep one answer.

        Args:
            request: without secrets.
            answer: status and headers.
            body: the whole body.
            hide: takes out the secrets that the client knows.
            context: the scan's.
        """
        text = body.decode(errors="surrogateescape")
        # One lock for the secrets and the manifest. Scanner A logs in and its answer hands out a token, while B gets
        # an answer that repeats it. If A noted the token without the lock, B could build its hider just before, and
        # write the token to disk just after. And two rows appended at once would overwrite each other.
        with self._lock:
            self._secrets |= granted_secrets(text, urlsplit(request.url).path)
            hide_more = hider(self._secrets)
            clean = hide_more(hide(text)).encode(errors="surrogateescape")
            self._answers += 1
            kept = ((name, value) for name, value in answer.headers.items() if name not in _TRANSFER_HEADERS)
            row = Row(
                file=self._name(request, answer, self._answers),
                url=hide_more(request.url),
                method=request.method,
                status=answer.status,
                headers={name: hide_more(hide(value)) for name, value in kept if not is_secret(name)},
                request_body=None if request.body is None else hide_more(request.body),
                recorded_at=context.now.isoformat(timespec="seconds").replace("+00:00", "Z"),
                scanner=context.scanner,
                bytes=len(clean),
                sha256=hashlib.sha256(clean).hexdigest(),
            )
            path = self.folder / row.file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(clean)
            add_row(self.folder, row)

    @staticmethod
    def _name(request: Request, answer: Answer, number: int) -> str:
        parts = urlsplit(request.url)
        content_type = answer.headers.get("content-type", "")
        suffix = next((suffix for kind, suffix in _SUFFIXES.items() if kind in content_type), "txt")
        words = re.sub(r"[^A-Za-z0-9]+", "-", unquote(parts.path)).strip("-")[-60:].strip("-")
        return f"{re.sub(r'[^A-Za-z0-9.-]', '_', parts.netloc)}/{number:04d}-{words or 'root'}.{suffix}"


class Replay:
    """Answer from a folder; no request that goes through it reaches the network.

    Each scanner has its own clock, which stands still at the newest recording that the scanner has got so far. Before
    the first it stands at the newest of the scanner's own (by its name, else by `sources`, else of the whole folder).

    A request that was recorded several times gets one recording after the other, and then the last one again and again.

    Args:
        folder: holds a `manifest.json`; the top of this file describes it.
        sources: hosts that scanners call, by the scanner's name.

    Raises:
        ConfigError: there is no manifest, it has another shape, or a body is missing.
    """

    def __init__(self, folder: str | Path, sources: Mapping[str, Iterable[str]] | None = None) -> None:
        self.folder = Path(folder)
        self._rows = read_manifest(self.folder)
        self._sources = {name: frozenset(hosts) for name, hosts in (sources or {}).items()}
        self._rows_by_target: dict[Target, list[Row]] = defaultdict(list)
        for row in self._rows:
            self._rows_by_target[row.target].append(row)
        self._lock = threading.Lock()
        self._given: dict[tuple[str, ...], int] = defaultdict(int)
        self._at: dict[str, float] = {}

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that there are recordings of."""
        return frozenset(row.target[1] for row in self._rows)

    def state(self) -> dict[str, Any]:
        """Return the recorded run's state; empty if the folder does not hold one.

        Raises:
            ConfigError: the file is not a JSON object.
        """
        return self._file(STATE, dict[str, Any], "object") or {}

    def has(self, scanner: str) -> bool:
        """Say whether there is anything for a scanner: it ran when this was recorded, or its sources are there.

        If the folder does not say which scanners ran, one whose sources are not known may find something.

        Raises:
            ConfigError: the file is not a JSON list of names.
        """
        ran = self._file(SCANNERS, list[str], "list of names")
        hosts = self._sources.get(scanner)
        return scanner in ran if ran is not None else not hosts or bool(hosts & self.hosts)

    def _file(self, name: str, kind: Any, what: str) -> Any:
        """Return the content of a file next to the manifest, or `None` if there is no such file."""
        path = self.folder / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=ready(kind)) if path.is_file() else None
        except (msgspec.DecodeError, OSError) as error:
            raise ConfigError(f"{path} is no JSON {what}: {error}") from None

    def clock(self, scanner: str, clock: Clock) -> Clock:
        """Return a scanner's clock: waits and deadlines are real, the time of day stands still."""
        return _FrozenClock(self, scanner, clock)

    def now(self, scanner: str) -> float | None:
        """Return a scanner's time of day in epoch seconds, or `None` if no recording has one."""
        with self._lock:
            if scanner in self._at:
                return self._at[scanner]
        hosts = self._sources.get(scanner, frozenset())
        own = [row for row in self._rows if row.scanner == scanner]
        rows = own or [row for row in self._rows if row.target[1] in hosts] or self._rows
        return max((row.when for row in rows if row.when is not None), default=None)

    def answer(self, request: Request, scanner: str) -> Answer:
        """Return the recorded answer to a request, which comes without its secrets.

        Raises:
            NotRecorded: there is none.
        """
        same_target = self._rows_by_target.get(target_of(request.method, request.url), ())
        rows = [row for row in same_target if row.answers(request)]
        rows = [row for row in rows if row.scanner == scanner] or rows
        if not rows:
            raise NotRecorded(
                f"{request.method} {request.url}: not recorded in {self.folder}, and a replay asks no network; "
                "record it again, or leave this scanner out"
            )
        series = (scanner, *(row.file for row in rows))  # the same with another secret, or without any
        with self._lock:
            row = rows[min(self._given[series], len(rows) - 1)]
            self._given[series] += 1
            if row.when is not None:
                self._at[scanner] = max(row.when, self._at.get(scanner, row.when))
        headers = {name.lower(): value for name, value in row.headers.items() if name.lower() not in _TRANSFER_HEADERS}
        return Answer(row.status, headers, iter([(self.folder / row.file).read_bytes()]))


class _FrozenClock:
    """A clock whose time of day stands still while everything else goes on."""

    def __init__(self, replay: Replay, scanner: str, clock: Clock) -> None:
        self._replay = replay
        self._scanner = scanner
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def time(self) -> float:
        now = self._replay.now(self._scanner)
        return self._clock.time() if now is None else now

    def event(self) -> Wake:
        return self._clock.event()

    def wait(self, until: float, wake: Wake, /) -> None:
        self._clock.wait(until, wake)

    def sleep(self, until: float, wake: Wake, /) -> None:
        self._clock.sleep(until, wake)


class Row(msgspec.Struct, frozen=True):
    """A row of the manifest; the top of this file describes it."""

    file: str
    url: str
    method: str = "GET"
    status: int = 200
    headers: dict[str, str] = {}
    request_body: str | None = None
    recorded_at: str | None = None
    scanner: str | None = None
    bytes: int | None = None
    sha256: str | None = None

    @property
    def target(self) -> Target:
        """What must be the same as in a request, letter by letter."""
        return target_of(self.method, self.url)

    @property
    def when(self) -> float | None:
        """When it was recorded, in epoch seconds, if the row or the answer says so."""
        header = {name.lower(): value for name, value in self.headers.items()}.get("date", "")
        date = _date(self.recorded_at or "") or http_date(header)
        return date.timestamp() if date else None

    def answers(self, request: Request) -> bool:
        """Say whether this is the answer to a request to the same target."""
        same_form = self.request_body is None or _same(self.request_body, request.body or "")
        return same_form and _same(urlsplit(self.url).query, urlsplit(request.url).query)


def read_manifest(folder: Path) -> Sequence[Row]:
    """Return the rows of a folder's manifest.

    Raises:
        ConfigError: there is no manifest, it has another shape, or a body is missing.
    """
    path = folder / MANIFEST
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=ready(list[Row]))
    except OSError as error:
        raise ConfigError(f"no recordings in {folder}: {MANIFEST}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no manifest of recordings: {error}") from None
    inside = folder.resolve()
    for row in rows:
        body = (folder / row.file).resolve()
        if not body.is_relative_to(inside) or not body.is_file():
            raise ConfigError(f"{path} names {row.file!r}, and there is no such file in the folder")
    return rows


def begin_manifest(folder: Path) -> None:
    """Write a manifest without rows."""
    (folder / MANIFEST).write_bytes(_EMPTY)


def add_row(folder: Path, row: Row) -> None:
    """Append a row to a folder's manifest, in a form that people can read too; it is valid JSON before and after."""
    text = json.dumps(msgspec.to_builtins(row), indent=1, ensure_ascii=False).encode()
    with (folder / MANIFEST).open("r+b") as file:
        first = file.seek(0, os.SEEK_END) == len(_EMPTY)
        file.seek(1 if first else -len(_END), os.SEEK_SET if first else os.SEEK_END)
        file.write((b"\n" if first else b",\n") + text + _END)


def target_of(method: str, url: str) -> Target:
    """Return what two requests must have in common, letter by letter."""
    parts = urlsplit(url)
    return method.upper(), parts.netloc.lower(), unquote(parts.path)


def _same(recorded: str, requested: str) -> bool:
    """Say whether two queries agree, in any order, and whatever stands in the place of a secret."""
    mine, yours = (dict(parse_qsl(query, keep_blank_values=True)) for query in (recorded, requested))
    # A secret that is missing altogether counts as one, too: a key may have moved from the query into a header.
    names = {name for name in {*mine, *yours} if not is_secret(name)}
    return all(_stands_for(mine.get(name), yours.get(name)) for name in names)


def _stands_for(recorded: str | None, requested: str | None) -> bool:
    placeholder = recorded is not None and (recorded in {REDACTED, ".."} or recorded.startswith("MOCK_"))
    return recorded == requested or (placeholder and requested is not None)


def _date(text: str) -> datetime | None:
    """Return the first date in a text, with its time if there is one, or `None`."""
    found = _DATE.search(text)
    try:
        return datetime.fromisoformat(found[1] + (found[2] or _CLOSE)) if found else None
    except ValueError:
        return None
