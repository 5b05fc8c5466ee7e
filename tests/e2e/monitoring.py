"""Start the real Prometheus, and ask it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.support.needed import binary
from tests.support.waiting import eventually

WAIT_TIMEOUT = 60.0
LISTENING = re.compile(r'msg="?Listening on"? .*?address=(?:\S*?):(\d+)\b')


class Api:
    """The HTTP API of Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: Any) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=WAIT_TIMEOUT) as response:
            return json.load(response)["data"]

    def instant(self, query: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=query)["result"])

    def range(self, query: str, seconds: float, step: float) -> list[dict[str, Any]]:
        return self.range_to(query, time.time(), seconds, step)

    def instant_at(self, query: str, at: float) -> list[dict[str, Any]]:
        return list(self.get("query", query=query, time=at)["result"])

    def range_to(self, query: str, at: float, seconds: float, step: float) -> list[dict[str, Any]]:
        return list(self.get("query_range", query=query, start=at - seconds, end=at, step=step)["result"])

    def wait_for(self, query: str) -> None:
        """Wait until a query has an answer."""
        eventually(lambda: self.instant(query), f"{query} has an answer")


@contextmanager
def server(program: str, folder: Path, *arguments: str) -> Iterator[str]:
    """Start a server that logs where it listens, and yield its URL once it is ready."""
    log = folder / f"{program}.log"
    with log.open("w") as out:
        process = subprocess.Popen([binary(program), *arguments], cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{_port(log, process)}"
            _ready(f"{url}/-/ready")
            yield url
        finally:
            process.kill()
            process.wait()


@contextmanager
def prometheus(folder: Path, config: dict[str, Any], retention: str = "1h") -> Iterator[Api]:
    """Start Prometheus, which drops what is older than `retention`."""
    (folder / "prometheus.yml").write_text(json.dumps(config))
    arguments = [
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
        "--web.enable-lifecycle",
        "--web.external-url=http://prometheus.test/",
        "--web.route-prefix=/",
        "--web.cors.origin=.*",
        f"--storage.tsdb.retention.time={retention}",
        "--rules.alert.resend-delay=1s",
        "--enable-feature=exemplar-storage",
    ]
    with server("prometheus", folder, *arguments) as url:
        yield Api(url)


@contextmanager
def alertmanager(folder: Path, config: str, port: int = 0) -> Iterator[str]:
    """Start Alertmanager and yield its URL; port 0 takes a free one."""
    (folder / "alertmanager.yml").write_text(config)
    arguments = [
        "--config.file=alertmanager.yml",
        "--storage.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.external-url=http://alertmanager.test/",
        "--web.route-prefix=/",
        "--cluster.listen-address=",
    ]
    with server("prometheus-alertmanager", folder, *arguments) as url:
        yield url


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + WAIT_TIMEOUT
    while time.monotonic() < until and process.poll() is None:
        if port := LISTENING.search(log.read_text()):
            return int(port[1])
        time.sleep(0.05)
    raise AssertionError(f"{log.name}: {log.read_text()}")


def _ready(url: str) -> None:
    until = time.monotonic() + WAIT_TIMEOUT
    while time.monotonic() < until:
        try:
            with urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} is not ready after {WAIT_TIMEOUT:g} s")
