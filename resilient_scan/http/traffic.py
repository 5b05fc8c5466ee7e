"""Record what sources answer, and answer from such a folder without any network; `manifest` says what is in it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from resilient_scan.clock import Clock, Wake
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError
from resilient_scan.http.answers import Answer, NotFound
from resilient_scan.http.manifest import Asked, Place, Row, add_row, begin_manifest, place_of, read_manifest
from resilient_scan.http.secrets import Hide, hider, is_secret, told_secrets
from resilient_scan.redaction import without_secrets
from resilient_scan.shapes import ready

STATE: Final = "state.json"
SCANNERS: Final = "scanners.json"
_CONNECTION: Final = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}
_KINDS: Final = {"json": "json", "csv": "csv", "html": "html", "xml": "xml", "atom": "xml"}


class NotRecorded(NotFound):
    """A replay was asked for what its folder does not have."""


class Replay:
    """Answer from a folder; whatever asks through it never gets to the network.

    Each scanner has a clock of its own, which stands still: at the newest of the recordings that it was given so far,
    and before the first at the newest of its own (by its name, else by `sources`, else of the whole folder).

    A request that was recorded several times gets one recording after the other, and then the last one again and again.

    Args:
        folder: with a `manifest.json`; see the top of `manifest.py`.
        sources: hosts that scanners ask, by scanner's name.

    Raises:
        ConfigError: there is no manifest, it has another shape, or a body is missing.
    """

    def __init__(self, folder: str | Path, sources: Mapping[str, Iterable[str]] | None = None) -> None:
        self.folder = Path(folder)
        self._rows = read_manifest(self.folder)
        self._sources = {name: frozenset(hosts) for name, hosts in (sources or {}).items()}
        self._places: dict[Place, list[Row]] = defaultdict(list)
        for row in self._rows:
            self._places[row.place].append(row)
        self._lock = threading.Lock()
        self._given: dict[tuple[str, ...], int] = defaultdict(int)
        self._at: dict[str, float] = {}

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts of which there are recordings."""
        return frozenset(row.place[1] for row in self._rows)

    def state(self) -> dict[str, Any]:
        """Return what the recorded run was given; empty where the folder does not say.

        Raises:
            ConfigError: what it says is no JSON object.
        """
        return self._beside(STATE, dict[str, Any], "object") or {}

    def has(self, scanner: str) -> bool:
        """Say whether there is anything for a scanner: it ran when this was recorded, or its sources are there.

        Where the folder does not say who ran, one whose sources are not known may find something.

        Raises:
            ConfigError: what the folder says is no JSON list of names.
        """
        ran = self._beside(SCANNERS, list[str], "list of names")
        hosts = self._sources.get(scanner)
        return scanner in ran if ran is not None else not hosts or bool(hosts & self.hosts)

    def _beside(self, name: str, kind: Any, what: str) -> Any:
        """Return what a file beside the manifest says, or `None` if there is none."""
        path = self.folder / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=ready(kind)) if path.is_file() else None
        except (msgspec.DecodeError, OSError) as error:
            raise ConfigError(f"{path} is no JSON {what}: {error}") from None

    def clock(self, scanner: str, clock: Clock) -> Clock:
        """Return a scanner's clock: waits and deadlines are real, the time of day stands still."""
        return _Frozen(self, scanner, clock)

    def now(self, scanner: str) -> float | None:
        """Return a scanner's time of day in epoch seconds, or `None` if no recording tells one."""
        with self._lock:
            if scanner in self._at:
                return self._at[scanner]
        hosts = self._sources.get(scanner, frozenset())
        own = [row for row in self._rows if row.scanner == scanner]
        rows = own or [row for row in self._rows if row.place[1] in hosts] or self._rows
        return max((row.when for row in rows if row.when is not None), default=None)

    def answer(self, asked: Asked, scanner: str) -> Answer:
        """Return the recorded answer to a request without its secrets.

        Raises:
            NotRecorded: there is none.
        """
        rows = [row for row in self._places.get(place_of(asked.method, asked.url), ()) if row.answers(asked)]
        rows = [row for row in rows if row.scanner == scanner] or rows
        if not rows:
            raise NotRecorded(
                f"{asked.method} {asked.url}: not recorded in {self.folder}, and a replay asks no network; "
                "record it again, or leave this scanner out"
            )
        series = (scanner, *(row.file for row in rows))  # the same with another secret, or without any
        with self._lock:
            row = rows[min(self._given[series], len(rows) - 1)]
            self._given[series] += 1
            if row.when is not None:
                self._at[scanner] = max(row.when, self._at.get(scanner, row.when))
        headers = {name.lower(): value for name, value in row.headers.items() if name.lower() not in _CONNECTION}
        return Answer(row.status, headers, iter([(self.folder / row.file).read_bytes()]))


class Recorder:
    """Keep every answer in a new folder, without secrets; after each of them the folder is whole.

    Taken out are: user, password and telling parameters of an address; cookies and telling headers; every secret that
    the client knows, wherever it turns up; tokens that an answer hands out, there and in all later answers. Headers of
    requests are not kept at all.

    Args:
        folder: made if it is not there; must be empty.

    Raises:
        ConfigError: it holds something already, or cannot be made.
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
        """Keep what a run is given and who runs, for its replay."""
        (self.folder / STATE).write_bytes(msgspec.json.encode(without_secrets(state)))
        (self.folder / SCANNERS).write_bytes(msgspec.json.encode(list(scanners)))

    def keep(self, asked: Asked, answer: Answer, body: bytes, hide: Hide, context: ScanContext) -> None:
        """Keep one answer.

        Args:
            asked: the request, without secrets.
            answer: status and headers.
            body: all of it.
            hide: takes out what the client knows as a secret.
            context: the scan's.
        """
        text = body.decode(errors="surrogateescape")
        with self._lock:
            self._secrets |= told_secrets(text, urlsplit(asked.url).path)
            too = hider(self._secrets)
            clean = too(hide(text)).encode(errors="surrogateescape")
            self._answers += 1
            kept = ((name, value) for name, value in answer.headers.items() if name not in _CONNECTION)
            row = Row(
                file=self._name(asked, answer, self._answers),
                url=too(asked.url),
                method=asked.method,
                status=answer.status,
                headers={name: too(hide(value)) for name, value in kept if not is_secret(name)},
                request_body=None if asked.body is None else too(asked.body),
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
    def _name(asked: Asked, answer: Answer, number: int) -> str:
        parts = urlsplit(asked.url)
        said = answer.headers.get("content-type", "")
        ending = next((ending for kind, ending in _KINDS.items() if kind in said), "txt")
        words = re.sub(r"[^A-Za-z0-9]+", "-", unquote(parts.path)).strip("-")[-60:].strip("-")
        return f"{re.sub(r'[^A-Za-z0-9.-]', '_', parts.netloc)}/{number:04d}-{words or 'root'}.{ending}"


class _Frozen:
    """A clock whose time of day stands still, and everything else goes on."""

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
