"""Record what sources answer in a folder, and answer from such a folder without any network.

A folder holds `manifest.json`, a list with a row for each answer, in the order in which they came, and the bodies:

    file          the body, as a path inside the folder
    method, url   of the request; a value that is REDACTED (or begins with MOCK_, or is "..") stands for any value
    request_body  the form that was sent, or null
    status        HTTP status
    headers       of the answer, without those of the connection and without secrets
    recorded_at   when, in UTC (`2026-04-13T20:49:46Z`); null: not known
    scanner       which scanner made the request; may be missing
    bytes, sha256 of the body, checked when a replay is opened; may be missing

`state.json`, if it is there, is the state that the run got, and `scanners.json` a list of the scanners that ran.
Further keys and files are allowed.

A `Recorder` is shared by all threads of a run, and so is a `Replay`: each has one lock, for its folder and for its
place in the recordings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from resilient_scan._files import make_folder, write_file
from resilient_scan._once import ready
from resilient_scan._text import REDACTED, Hide, granted_secrets, hider, is_secret, redact, without_secrets
from resilient_scan._text import hide as hide_named
from resilient_scan.clock import Clock, Wake
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError
from resilient_scan.http import offline
from resilient_scan.http.errors import Answer, NotRecorded, http_date

_log = logging.getLogger("resilient_scan")

MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
SCANNERS: Final = "scanners.json"
_EMPTY: Final = b"[]\n"  # a manifest without rows
_END: Final = b"\n]\n"  # of a manifest with rows
_TRANSFER_HEADERS: Final = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}
_SUFFIXES: Final = {"json": "json", "csv": "csv", "html": "html", "xml": "xml", "atom": "xml"}
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})?)?")
_CLOSE: Final = "T20:00:00Z"  # of a day without a time: New York's exchanges close, and the date is the same there

C = TypeVar("C", bound=ScanContext)
T = TypeVar("T")
Target = tuple[str, str, str]
"""Method, host and path of a request."""


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

    If one cannot be written (the disk is full, say), the scanner that asked gets its answer all the same. The log says
    so once, `failure` holds the reason, and nothing more is kept: the folder replays what came before.

    What is taken out: user, password and telling parameters of an address; cookies and telling headers; every secret
    that the client knows, wherever it turns up; tokens that an answer hands out, in that answer and in all later ones.
    Headers of requests are not kept at all.

    Args:
        folder: created if it does not exist; must be empty. Everybody can read what is kept, under any umask.

    Raises:
        ConfigError: the folder is not empty, or cannot be created.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = Path(folder).absolute()  # a scanner may change the working directory
        try:
            make_folder(self.folder)
            if any(self.folder.iterdir()):
                raise ConfigError(f"cannot record into {self.folder}: it is not empty; name a new folder")
            begin_manifest(self.folder)
        except OSError as error:
            raise ConfigError(f"cannot record into {self.folder}: {error.strerror}") from None
        self.failure: str | None = None
        self._lock = threading.Lock()
        self._answers = 0
        self._scanners: tuple[str, ...] = ()  # of the run
        self._recorded: set[str] = set()  # those of which there is an answer
        self._secrets: set[str] = set()

    def clock(self, _scanner: str, clock: Clock) -> Clock:
        """Return the clock as it is."""
        return clock

    def guarded(self, call: Callable[[C], T], /) -> Callable[[C], T]:
        """Return the call as it is."""
        return call

    def carried(self, call: Callable[[], T], /) -> Callable[[], T]:
        """Return the call as it is."""
        return call

    def note_run(self, state: Mapping[str, Any], scanners: Iterable[str]) -> None:
        """Keep a run's state and the names of its scanners, for its replay."""
        self._scanners = tuple(scanners)
        try:
            write_file(self.folder / STATE, msgspec.json.encode(without_secrets(state)))
            write_file(self.folder / SCANNERS, msgspec.json.encode(self._scanners))
        except OSError as error:
            self.failure = error.strerror or str(error)
            self._warn()

    def unrecorded(self) -> tuple[str, ...]:
        """Return the scanners of the run of which no answer was recorded, in order."""
        with self._lock:
            return tuple(name for name in self._scanners if name not in self._recorded)

    def keep(self, request: Request, answer: Answer, body: bytes, hide: Hide, context: ScanContext) -> None:
        """Keep one answer.

        Args:
            request: without secrets.
            answer: status and headers.
            body: the whole body.
            hide: takes out the secrets that the client knows.
            context: the scan's.
        """
        # One lock for the secrets and the manifest. Scanner A logs in and its answer hands out a token, while B gets
        # an answer that repeats it. If A noted the token without the lock, B could build its hider just before, and
        # write the token to disk just after. And two rows appended at once would overwrite each other.
        with self._lock:
            if self.failure is not None:
                return
            row, clean = self._row(request, answer, body.decode(errors="surrogateescape"), hide, context)
            try:
                self._write(row, clean)
                self._recorded.add(context.scanner)
                return
            except OSError as error:
                self.failure = error.strerror or str(error)  # under the lock: nobody writes after the first who failed
        self._warn()

    def _row(self, request: Request, answer: Answer, text: str, hide: Hide, context: ScanContext) -> tuple[Row, bytes]:
        """Return an answer's row and body, without secrets."""
        self._secrets |= granted_secrets(text, urlsplit(request.url).path)
        hide_more = hider(self._secrets)
        clean = hide_more(hide(text)).encode(errors="surrogateescape")
        self._answers += 1
        kept = ((name, value) for name, value in answer.headers.items() if name not in _TRANSFER_HEADERS)
        url = hide_more(request.url)
        row = Row(
            file=self._name(url, answer, self._answers),
            url=url,
            method=request.method,
            status=answer.status,
            headers={name: hide_more(hide(hide_named(value))) for name, value in kept if not is_secret(name)},
            request_body=None if request.body is None else hide_more(request.body),
            recorded_at=context.now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            scanner=context.scanner,
            bytes=len(clean),
            sha256=hashlib.sha256(clean).hexdigest(),
        )
        return row, clean

    def _write(self, row: Row, body: bytes) -> None:
        path = self.folder / row.file
        try:
            make_folder(path.parent)
            write_file(path, body)
            add_row(self.folder, row)
        except OSError:
            with contextlib.suppress(OSError):  # half a body that no row names
                path.unlink(missing_ok=True)
            raise

    def _warn(self) -> None:
        """Say that nothing more is kept. No lock is held: a logging handler is foreign code."""
        _log.warning(
            "the recording in %s ends here: %s; its replay will miss what comes after. The run goes on",
            self.folder,
            self.failure,
        )

    @staticmethod
    def _name(url: str, answer: Answer, number: int) -> str:
        parts = urlsplit(url)
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
        ConfigError: there is no manifest, it has another shape, or a body is missing or not what was recorded.
    """

    def __init__(self, folder: str | Path, sources: Mapping[str, Iterable[str]] | None = None) -> None:
        self.folder: Path = Path(folder).absolute()
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
            raise ConfigError(f"{path} is not a JSON {what}: {error}") from None

    def clock(self, scanner: str, clock: Clock) -> Clock:
        """Return a scanner's clock: waits and deadlines are real, the time of day stands still."""
        return _FrozenClock(self, scanner, clock)

    def guarded(self, call: Callable[[C], T], /) -> Callable[[C], T]:
        """Return what makes an attempt of a scanner without the network."""
        return offline.guarded(self.folder, call)

    def carried(self, call: Callable[[], T], /) -> Callable[[], T]:
        """Return a blocking call that a scanner makes, without the network too."""
        return offline.carried(call)

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

    def attend(self, until: float, wake: Wake, /) -> None:
        getattr(self._clock, "attend", self._clock.sleep)(until, wake)


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
        ConfigError: there is no manifest, it has another shape, or a body is missing or not what was recorded.
    """
    path = folder / MANIFEST
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=ready(list[Row]))
    except OSError as error:
        raise ConfigError(f"no recordings in {folder}: {MANIFEST}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a manifest of recordings: {error}") from None
    inside = folder.resolve()
    for row in rows:
        if not _is_valid(row):
            raise ConfigError(f"{path} names {row.url!r}, and that is not an address")
        body = (folder / row.file).resolve()
        if not body.is_relative_to(inside) or not body.is_file():
            raise ConfigError(f"{path} names {row.file!r}, and there is no such file in the folder")
        _check(body, row, path)
    return rows


def _is_valid(row: Row) -> bool:
    try:
        return bool(row.target)
    except ValueError:  # such as http://[
        return False


def _check(body: Path, row: Row, manifest: Path) -> None:
    """Raise `ConfigError` if a body is not what its row says: it was edited, damaged or cut off."""
    try:
        size = body.stat().st_size
        if row.bytes is not None and row.bytes != size:
            raise ConfigError(f"{body} has {size} bytes, and {manifest} says {row.bytes}; record it again")
        if row.sha256 is not None:
            with body.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != row.sha256.lower():
                raise ConfigError(f"{body} is not what was recorded: {manifest} has another sha256; record it again")
    except OSError as error:
        raise ConfigError(f"{body} cannot be read: {error.strerror}") from None


def begin_manifest(folder: Path) -> None:
    """Write a manifest without rows."""
    write_file(folder / MANIFEST, _EMPTY)


def add_row(folder: Path, row: Row) -> None:
    """Append a row to a folder's manifest, in a form that people can read too.

    It is valid JSON before and after, even if there is no room for the row.
    """
    text = json.dumps(msgspec.to_builtins(row), indent=1, ensure_ascii=False).encode()
    with (folder / MANIFEST).open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        first = size == len(_EMPTY)
        end = _EMPTY[1:] if first else _END
        try:
            _write_at(file, size - len(end), (b"\n" if first else b",\n") + text + _END)
        except OSError:
            # The end goes back to where it was, and only then is the file cut: it overwrites bytes that are there and
            # needs no room. The other way round, the cut could give away the block that the end needs.
            _write_at(file, size - len(end), end)
            file.truncate(size)
            raise


def _write_at(file: FileIO, place: int, data: bytes) -> None:
    file.seek(place)
    while data:  # without a buffer a write may take only a part, and the next one says why
        data = data[file.write(data) :]


def target_of(method: str, url: str) -> Target:
    """Return what two requests must have in common, letter by letter."""
    parts = urlsplit(url)
    return method.upper(), parts.netloc.lower(), unquote(parts.path)


def _same(recorded: str, requested: str) -> bool:
    """Say whether two queries agree, in any order, and whatever stands in the place of a secret."""
    mine, yours = _by_name(recorded), _by_name(requested)
    # A secret that is missing altogether counts as one, too: a key may have moved from the query into a header.
    names = {name for name in {*mine, *yours} if not is_secret(name)}
    return all(_stand_for(mine.get(name, []), yours.get(name, [])) for name in names)


def _by_name(query: str) -> dict[str, list[str]]:
    """Return the values of each parameter, in order: `id=1&id=2` is neither `id=2` nor `id=2&id=1`."""
    values: dict[str, list[str]] = defaultdict(list)
    for name, value in parse_qsl(query, keep_blank_values=True):
        values[name].append(value)
    return values


def _stand_for(recorded: list[str], requested: list[str]) -> bool:
    return len(recorded) == len(requested) and all(map(_stands_for, recorded, requested))


def _stands_for(recorded: str, requested: str) -> bool:
    return recorded == requested or recorded in {REDACTED, ".."} or recorded.startswith("MOCK_")


def _date(text: str) -> datetime | None:
    """Return the first date in a text, with its time if there is one, or `None`."""
    found = _DATE.search(text)
    try:
        return datetime.fromisoformat(found[1] + (found[2] or _CLOSE)) if found else None
    except ValueError:
        return None
