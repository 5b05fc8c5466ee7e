"""A folder of recordings: which requests were answered by what.

It holds `manifest.json`, a list with a row for each answer, in the order in which they came, and the bodies:

    file          the body, as a path inside the folder
    method, url   what was asked for; a value that is REDACTED (or begins with MOCK_, or is "..") stands for any
    request_body  the form that was sent along, or null
    status        HTTP status
    headers       of the answer, without those of the connection and of secrets
    recorded_at   when, in UTC (`2026-04-13T20:49:46Z`); null: not known
    scanner       who asked; may be missing
    bytes, sha256 of the body

`state.json`, if it is there, is what the run was given, and `scanners.json` a list of those that ran. Further keys and
files are allowed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.http.answers import http_date
from resilient_scan.http.secrets import REDACTED, Hide, is_secret, redact
from resilient_scan.shapes import ready

MANIFEST: Final = "manifest.json"
_EMPTY: Final = b"[]\n"
_END: Final = b"\n]\n"  # of one that has rows
_WHEN = re.compile(r"(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})?)?")
_CLOSE: Final = "T20:00:00Z"  # of a day without a time: New York's exchanges close, and the date is the same there

Place = tuple[str, str, str]
"""Method, host and path."""


class Asked(msgspec.Struct, frozen=True):
    """A request: its method, whole address and form, or `None`."""

    method: str
    url: str
    body: str | None


def told(asked: Asked, hide: Hide) -> Asked:
    """Return a request without its secrets."""
    body = None if asked.body is None else hide(redact(f"?{asked.body}")[1:])
    return Asked(asked.method, hide(redact(asked.url)), body)


class Row(msgspec.Struct, frozen=True):
    """A row of the manifest; see the top of this file."""

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
    def place(self) -> Place:
        """What must be the same, text by text."""
        return place_of(self.method, self.url)

    @property
    def when(self) -> float | None:
        """When it was recorded, in epoch seconds, as far as row or answer say so."""
        said = {name.lower(): value for name, value in self.headers.items()}.get("date", "")
        date = _date(self.recorded_at or "") or http_date(said)
        return date.timestamp() if date else None

    def answers(self, asked: Asked) -> bool:
        """Say whether this is the answer to a request of the same place."""
        same_form = self.request_body is None or _same(self.request_body, asked.body or "")
        return same_form and _same(urlsplit(self.url).query, urlsplit(asked.url).query)


def read_manifest(folder: Path) -> Sequence[Row]:
    """Return the rows of a folder's manifest.

    Raises:
        ConfigError: there is none, it has another shape, or a body is missing.
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
    """Add a row at the end of a folder's manifest, for people to read too; it is whole before and after."""
    text = json.dumps(msgspec.to_builtins(row), indent=1, ensure_ascii=False).encode()
    with (folder / MANIFEST).open("r+b") as file:
        first = file.seek(0, os.SEEK_END) == len(_EMPTY)
        file.seek(1 if first else -len(_END), os.SEEK_SET if first else os.SEEK_END)
        file.write((b"\n" if first else b",\n") + text + _END)


def place_of(method: str, url: str) -> Place:
    """Return what must be the same, text by text."""
    parts = urlsplit(url)
    return method.upper(), parts.netloc.lower(), unquote(parts.path)


def _same(recorded: str, asked: str) -> bool:
    """Say whether two queries agree: in any order, and whatever stands where a secret stood."""
    mine, yours = (dict(parse_qsl(query, keep_blank_values=True)) for query in (recorded, asked))
    # A secret that is missing altogether counts as one, too: a key may have moved from the query into a header.
    names = {name for name in {*mine, *yours} if not is_secret(name)}
    return all(_stands_for(mine.get(name), yours.get(name)) for name in names)


def _stands_for(recorded: str | None, asked: str | None) -> bool:
    placeholder = recorded is not None and (recorded in {REDACTED, ".."} or recorded.startswith("MOCK_"))
    return recorded == asked or (placeholder and asked is not None)


def _date(text: str) -> datetime | None:
    """Return the first date in a text, with its time if there is one, or `None`."""
    found = _WHEN.search(text)
    try:
        return datetime.fromisoformat(found[1] + (found[2] or _CLOSE)) if found else None
    except ValueError:
        return None
