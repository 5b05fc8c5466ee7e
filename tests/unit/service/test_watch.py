"""What the endpoint hears of its runner."""

from __future__ import annotations

import msgspec
import pytest

from resilient_scan import ScanResult, Status
from resilient_scan.events import Load, ScanEnded, ScannersRegistered, StoreFailed, StoreRecovered
from resilient_scan.results import ErrorInfo
from resilient_scan.service.watch import Outcome, Watch

RESULT = ScanResult("a", "p", Status.ERROR, [], None, 2, 0.5, 0.0, None, False, 0, [], 1000.0)
ERROR = ErrorInfo("httpx.ConnectError", "refused", "ConnectError at feeds.py:42 in parse", "Traceback")


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("status", [Status.REJECTED, Status.DISABLED, Status.SKIPPED])
def test_a_scan_that_was_turned_away_replaces_no_outcome(watch: Watch, status: Status) -> None:
    assert watch.last("a") is None
    watch(ScanEnded("r", msgspec.structs.replace(RESULT, error=ERROR), "miss", ""))
    watch(ScanEnded("s", msgspec.structs.replace(RESULT, status=status), "", ""))
    heard = Outcome("error", 1000.0, 0.5, 2, "ConnectError: refused", "at feeds.py:42 in parse", "scanner")
    assert watch.last("a") == (heard, "Traceback")
    watch(ScanEnded("t", msgspec.structs.replace(RESULT, status=Status.STALE), "stale", ""))
    assert watch.last("a") == (Outcome("stale", 1000.0, 0.5, 2, "", ""), "")


def test_a_store_fails_since_its_first_failure(watch: Watch) -> None:
    for at, message in ((1.0, "away"), (2.0, "still away")):
        watch(StoreFailed("get", message, at))
    assert watch.store_failed == (1.0, "still away")
    watch(StoreRecovered(3.0))
    assert watch.store_failed is None


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (None, ""),
        (Load(queued=3, busy=1, abandoned=2), ""),
        (Load(queued=3, idle=1, abandoned=2), ""),
        (Load(abandoned=2), ""),
        (Load(queued=3, abandoned=2), "3 scans cannot begin: 2 hung threads hold every worker; restart the service"),
    ],
)
def test_a_pool_without_workers(watch: Watch, load: Load | None, says: str) -> None:
    assert watch.pool_trouble() == ""
    watch(ScannersRegistered((), lambda: load))
    assert watch.pool_trouble() == says
