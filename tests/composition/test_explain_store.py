"""What an explanation says where a store keeps answers that this process has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, ScanRunner
from resilient_scan.testing import FakeClock, broken, healthy

CACHE = Cache(ttl=300, jitter=0)
Says = Callable[..., str]


@pytest.fixture
def says(tmp_path: Path) -> Says:
    """Return the text of a runner that has just been built, with its lines joined."""

    def of(scanner: Any, *, trace: bool = False, run: bool = False) -> str:
        url = f"sqlite:///{tmp_path}/scan.db"
        with ScanRunner([scanner], clock=FakeClock(auto=True), listeners=(), store=url) as runner:
            if run:
                runner.run({})
            return " ".join(str(runner.explain("feed", trace=trace)).split())

    return of


def test_it_does_not_promise_that_the_source_is_called(says: Says) -> None:
    feed = healthy("feed", cache=CACHE)
    says(feed, run=True)
    text = says(feed)
    assert (
        "YES. A scan would call the source at once. If the store has a fresh answer to its state, it gets that instead."
    ) in text
    assert "now: 0 answers kept in this process, besides those in the store" in text
    assert "If the store" not in says(healthy("feed", cache=None))


def test_it_does_not_promise_a_rejection(says: Says) -> None:
    text = says(broken("feed", cache=CACHE, retry=None, breaker=Breaker(failures=1)), run=True)
    assert (
        "A scan would end `rejected`, without calling the source. If the store has an answer to its state, it gets that"
    ) in text


def test_a_trace_tells_a_cache_that_is_left_out_from_a_state_without_a_key(says: Says) -> None:
    assert "cache left out: every scan calls the source" in says(healthy("feed", cache=None), trace=True, run=True)
    odd = healthy("feed", cache=Cache(ttl=300))
    with ScanRunner([odd], clock=FakeClock(auto=True), listeners=()) as runner:
        runner.run({"odd": object()})
        text = " ".join(str(runner.explain("feed", trace=True)).split())
    assert "cache not used, because such a state has no stable key (bypass)" in text
