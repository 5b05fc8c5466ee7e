"""Fixtures that more than one folder needs."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from resilient_scan import _text
from tests.support import waiting
from tests.support.distributions import lay_out
from tests.support.examples import examples
from tests.support.fixtures import Distribute, Eventually
from tests.support.needed import MEMORY, binary
from tests.support.servers import RedisServer, silent_server

# How long an example takes says more about the machine than about the code.
settings.register_profile("here", deadline=None, max_examples=examples(100))
settings.load_profile("here")

# Their tests start processes, or threads by the hundred: they take seconds each, and are left out unless asked for.
TESTS = Path(__file__).parent
SLOW_FOLDERS = ("e2e", "peers", "pictures", "races", "torture", "recipes")

# Settings files without a store keep state in the user's state directory; the tests' is gone with the tests.
_state = tempfile.TemporaryDirectory(prefix="resilient-scan-state-")
os.environ["XDG_STATE_HOME"] = _state.name

# A job in a shell's background is born deaf to Ctrl-C, and so would be the processes that the tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before the choice by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow folders; leave out what asks real sources, whatever else is chosen, unless named: `-m live`."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
    if "live" not in config.option.markexpr:
        chosen = [item for item in items if "live" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape half characters (surrogates): a worker that cannot send what a test logged would end the whole run."""
    report = yield
    return _sendable(report)


def _sendable(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _sendable(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(_sendable, value))
        case _:
            return value


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through thousands of tests at each turn."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """Forget the secrets that the test before made known: `settings={"api_key": "price"}` hides every `price`."""
    yield
    _text._known.clear()


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Return a function that waits until a condition holds, and fails if it never does."""
    return waiting.eventually


@pytest.fixture
def distribute(tmp_path: Path) -> Distribute:
    """Lay out installed distributions in a directory and return it, ready for `sys.path` or `PYTHONPATH`.

    `distribute("acme", scanners={"one": "acme_one:one"}, files={"acme_one.py": "..."})`
    """
    site = tmp_path / "site"
    site.mkdir()

    def make(name: str, scanners: dict[str, str], files: dict[str, str]) -> Path:
        lay_out(site, name, scanners, files)
        return site

    return make


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Return the event that hung scanners hang on; it is set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """Return a directory in memory, where there is one: most tests need no disk to wait for."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the URL of a Redis that accepts connections and never answers."""
    with silent_server() as url:
        yield url


@pytest.fixture
def own_redis(quick_path: Path) -> Iterator[RedisServer]:
    """Return a real server that nobody else uses, so that the test may kill it."""
    server = RedisServer(binary("redis-server"), quick_path)
    yield server
    server.kill()
