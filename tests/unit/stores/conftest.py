"""One store of each kind, and the means to let time pass in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.stores import Store, open_store
from resilient_scan.testing import FakeClock
from tests.support.needed import binary
from tests.support.servers import RedisServer


class Home:
    """A place where stores are: `open` is another process' view of the same state, as far as there is any."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = FakeClock()
        self.opened: list[Store] = []

    def open(self) -> Store:
        """Open the place once more."""
        self.opened.append(open_store(self.url, self.clock))
        return self.opened[-1]

    def pass_time(self, seconds: float) -> None:
        """Let time pass, for the store too."""
        self.clock.advance(seconds)
        if self.url.startswith("redis:"):  # the server has a clock of its own
            threading.Event().wait(seconds)

    def close(self) -> None:
        """Close all that were opened."""
        for store in self.opened:
            store.close()


def keep(new: bytes | None) -> Any:
    """Return a change that puts `new` in place and tells what was there."""
    return lambda old, _now: (new, old)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Return a real server; it is emptied for no test, so each takes a database or keys of its own."""
    server = RedisServer(binary("redis-server"), tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Return the URL of an empty server."""
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


HOMES = ["memory", "memory space", "sqlite", "space"]
HOMES += [pytest.param(kind, marks=pytest.mark.servers) for kind in ("redis", "redis space")]


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Home]:
    """Return each kind of place in turn."""
    urls = {
        "memory": lambda: "memory:",
        "memory space": lambda: "memory:?space=one",
        "sqlite": lambda: f"sqlite:///{quick_path}/state/scan.db",
        "space": lambda: f"sqlite:///{quick_path}/state/scan.db?space=one",
    }
    space = "?space=one" if request.param == "redis space" else ""
    place = Home(urls.get(request.param, lambda: request.getfixturevalue("redis_url") + space)())
    yield place
    place.close()


@pytest.fixture
def store(home: Home) -> Store:
    """Return each kind of store in turn."""
    return home.open()
