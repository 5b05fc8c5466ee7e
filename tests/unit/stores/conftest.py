"""One store of each kind, and the means to let time pass in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from resilient_scan.stores import Store, open_store
from resilient_scan.testing import FakeClock


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

    def close(self) -> None:
        """Close all that were opened."""
        for store in self.opened:
            store.close()


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """Return a directory in memory, where there is one: most tests need no disk to wait for."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(params=["memory", "sqlite"])
def home(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Home]:
    """Return each kind of place in turn."""
    urls = {"memory": "memory:", "sqlite": f"sqlite:///{quick_path}/state/scan.db"}
    place = Home(urls[request.param])
    yield place
    place.close()


@pytest.fixture
def store(home: Home) -> Store:
    """Return each kind of store in turn."""
    return home.open()
