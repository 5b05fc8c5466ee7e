"""The faulty scanners, and the sentences about what became of them."""

from __future__ import annotations

import threading

import pytest

from resilient_scan import ScanResult, ScanRunner, Status, Timeout
from resilient_scan.cli import faults
from resilient_scan.cli.faults import Watch, faulty_scanners
from resilient_scan.events import BreakerChanged
from resilient_scan.results import ErrorInfo
from tests.support.results import result as plain


def result(status: Status, *, error: str = "", **changes: object) -> ScanResult:
    info = ErrorInfo("ValueError", error) if error else None
    return plain(status=status, pipeline="faults", error=info, **changes)


def test_each_of_them_fails_in_its_own_way(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "TOTAL", Timeout(total=1))  # time for the first candidate, however busy the machine is
    monkeypatch.setattr(faults, "PAUSE", 0.25)
    monkeypatch.setattr(faults, "FRESH", 60)
    watch = Watch()
    with ScanRunner(faulty_scanners(release), listeners=(watch,)) as runner:
        first, second = runner.run({}).results, runner.run({}).results
        watch.abandoned.update(thread.name for thread in runner.abandoned())
    statuses = {name: result.status.value for name, result in first.items()}
    assert statuses == {"slow": "timeout", "hanging": "timeout", "flapping": "completed", "broken": "error"}
    assert first["slow"].partial
    assert 1 <= len(first["slow"].candidates) < 5
    assert (first["flapping"].attempts, first["broken"].attempts) == (2, 3)
    assert second["flapping"].status is Status.CACHED
    assert second["hanging"].status is second["broken"].status is Status.REJECTED
    assert "hanging" in watch.abandoned
    assert watch.opened == {"broken"}
    assert watch.describe(second["broken"]).startswith("open breaker: ")


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (result(Status.COMPLETED), "answered"),
        (result(Status.COMPLETED, attempts=3), "retry: 2 attempts failed, the next one answered"),
        (result(Status.CACHED, attempts=0), "cache: not called again"),
        (result(Status.STALE, attempts=2, error="x"), "stale cache: 2 attempts failed, the last good answer stands in"),
        (result(Status.TIMEOUT, error="timeout after 0.4s"), "timeout after 0.4s"),
        (
            result(Status.TIMEOUT, error="timeout after 0.4s", partial=True),
            "timeout after 0.4s: what it had yielded by then is kept",
        ),
        (result(Status.ERROR, error="HTTP 503"), "1 attempt failed (HTTP 503)"),
        (result(Status.REJECTED, attempts=0, error="a quota"), "rejected: a quota"),
        (result(Status.REJECTED, attempts=0), "rejected: no reason given"),
        (result(Status.SKIPPED, attempts=0), "skipped"),
    ],
)
def test_an_end_is_described_in_one_line(ended: ScanResult, words: str) -> None:
    assert Watch().describe(ended) == words


def test_what_happened_besides_the_scan_is_described_too() -> None:
    watch = Watch()
    watch(BreakerChanged("one", "closed", "open", 60.0))
    watch(BreakerChanged("other", "open", "half_open", None))
    watch.abandoned.add("one")
    assert watch.opened == watch.abandoned == {"one"}
    assert watch.describe(result(Status.ERROR, error="x")) == "1 attempt failed (x), which opens its breaker"
    assert watch.describe(result(Status.TIMEOUT, error="late")) == "late: its thread does not stop, so it is abandoned"
    hangs = "its thread of the last run still hangs, so it gets no second one"
    assert watch.describe(result(Status.REJECTED, attempts=0, error="x")) == hangs
