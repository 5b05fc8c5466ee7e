"""Real answers, recorded, served over HTTP on loopback with their real statuses and headers.

The recordings are in the directory that RESILIENT_SCAN_TESTDATA names, under `recorded`; `manifest.json` says of each
which request it answered. They are not part of the project: tests that need them skip where they are not.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

Answer = tuple[int, Mapping[str, str], bytes]
Source = str | Answer | Callable[["Asked"], "str | Answer"]
LEFT_OUT = {"connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"}
SECRET = {"apikey", "token", "crumb", "key"}


@dataclass(frozen=True)
class Asked:
    """A request that came: path and query decoded, header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


def folder() -> Path:
    """Return the directory of the recordings; without it skip, or fail where recordings are required."""
    path = Path(os.environ.get("RESILIENT_SCAN_TESTDATA") or ".") / "recorded"
    if (path / "manifest.json").is_file():
        return path
    reason = "no recordings: RESILIENT_SCAN_TESTDATA names no directory with recorded/manifest.json"
    if os.environ.get("RESILIENT_SCAN_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def manifest() -> list[dict[str, Any]]:
    """Return the rows of the manifest: file, method, url, status, headers, recorded_at, ..."""
    return _rows(folder())


def row(file: str) -> dict[str, Any]:
    """Return the row of one file, such as `sec/errors/404_submissions_nosuchkey.xml`."""
    return next(each for each in manifest() if each["file"] == file)


def body(file: str) -> bytes:
    """Return a recorded body."""
    return (folder() / file).read_bytes()


def answer(file: str) -> Answer:
    """Return a recorded answer: status, headers, body. A `Date` is kept only beside a `Retry-After`."""
    said = row(file)
    headers = {name.lower(): value for name, value in said["headers"].items()}
    kept = LEFT_OUT - {"date"} if "retry-after" in headers else LEFT_OUT
    return said["status"], {name: value for name, value in headers.items() if name not in kept}, body(file)


class RecordedServer:
    """Serve recordings; a context manager with `url` and `asked`.

    Args:
        answers: by path, what to answer whatever the query: the file of a recording, a whole answer, or a function of
            the request that returns either. A path that ends with `*` stands for all that begin so.
        manifest: whether other requests are looked up in the manifest, by method, path and query, whatever the host.
            Secrets in a query do not count. What is not there is 404, in plain text.
    """

    def __init__(self, answers: Mapping[str, Source] | None = None, *, manifest: bool = True) -> None:
        self.answers = dict(answers or {})
        self.asked: list[Asked] = []
        self.outcome: BaseException | None = None  # of the test, raised in a thread of the server
        self._manifest = manifest
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Return the base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def paths(self) -> list[str]:
        """Return the paths that were asked for, in order."""
        return [asked.path for asked in self.asked]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self.outcome is not None:  # it explains whatever the test made of the 500
            raise self.outcome from None

    def respond(self, asked: Asked) -> Answer:
        """Answer one request."""
        self.asked.append(asked)
        for path, source in self.answers.items():
            if asked.path == path or (path.endswith("*") and asked.path.startswith(path[:-1])):
                said = source(asked) if callable(source) else source
                return answer(said) if isinstance(said, str) else said
        found = self._look_up(asked) if self._manifest else None
        return answer(found) if found else (404, {"content-type": "text/plain"}, b"not recorded\n")

    def _look_up(self, asked: Asked) -> str | None:
        for each in manifest():
            parts = urlsplit(each["url"])
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            if (
                (each["method"], unquote(parts.path)) == (asked.method, asked.path)
                and {k: v for k, v in query.items() if k not in SECRET}
                == {k: v for k, v in asked.query.items() if k not in SECRET}
            ):  # fmt: skip
                return str(each["file"])
        return None


@cache
def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return rows


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, owner: RecordedServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away in the middle of its answer is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30.0
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        sent = self.rfile.read(int(headers.get("content-length", 0)))
        try:
            status, said, body = self.server.owner.respond(
                Asked(self.command, unquote(parts.path), query, headers, sent)
            )
        except BaseException as error:
            if isinstance(error, pytest.skip.Exception | pytest.fail.Exception):
                self.server.owner.outcome = error
            status, said, body = 500, {"content-type": "text/plain"}, f"{type(error).__name__}: {error}".encode()
        self.send_response(status)
        for name, value in {**said, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing on stderr."""
