"""Four scanners that misbehave the way outside APIs do, and a sentence about how each scan ended (`run --faults`)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any, Final

from resilient_scan._text import in_seconds
from resilient_scan.context import ScanContext
from resilient_scan.events import BreakerChanged, Event
from resilient_scan.options import Breaker, Cache, Retry, Timeout
from resilient_scan.results import ScanResult, Status
from resilient_scan.scanning import FunctionScanner, scanner

PIPELINE: Final = "faults"
NAMES: Final = ("slow", "hanging", "flapping", "broken")
TOTAL: Final = Timeout(total=0.4)
PAUSE: Final = 0.15  # seconds between two candidates of the slow one
FRESH: Final = 1.0  # seconds that an answer of the flapping one is fresh


def faulty_scanners(release: threading.Event | None = None) -> tuple[FunctionScanner[..., Any], ...]:
    """Make a slow, a hanging, a flapping and a broken scanner. The flapping one counts its attempts from here on.

    Args:
        release: ends the hanging one; without it, that hangs as long as the process lives.
    """
    return _slow(), _hanging(release or threading.Event()), _flapping(), _broken()


def _slow() -> FunctionScanner[..., Any]:
    @scanner(name="slow", pipeline=PIPELINE, isolation="thread", timeout=TOTAL, cache=None, retry=None)
    def slow(_state: dict[str, Any], context: ScanContext) -> Iterator[dict[str, str]]:
        """Find five things, one after another, in more time than there is."""
        for number in range(1, 6):
            context.sleep(PAUSE)
            yield _found("slow", f"SLOW{number}", f"found after {in_seconds(number * PAUSE)}s")

    return slow


def _hanging(release: threading.Event) -> FunctionScanner[..., Any]:
    @scanner(name="hanging", pipeline=PIPELINE, isolation="thread", timeout=TOTAL, cache=None, retry=None)
    def hanging(_state: dict[str, Any]) -> list[Any]:
        """Wait for an answer that never comes, deaf to every cancel."""
        release.wait()
        return []

    return hanging


def _flapping() -> FunctionScanner[..., Any]:
    attempts = itertools.count(1)
    kept = Cache(ttl=FRESH, jitter=0, stale_if_error=3600)

    @scanner(
        name="flapping",
        pipeline=PIPELINE,
        isolation="thread",
        timeout=TOTAL,
        cache=kept,
        retry=Retry(attempts=2, base=0.05),
    )
    def flapping(_state: dict[str, Any]) -> list[dict[str, str]]:
        """Fail, answer once, and fail from then on."""
        if next(attempts) != 2:
            raise ConnectionError("connection reset by peer")
        return [_found("flapping", "FLAP", "found by the attempt that got through")]

    return flapping


def _broken() -> FunctionScanner[..., Any]:
    layers: dict[str, Any] = {
        "timeout": TOTAL,
        "cache": None,
        "retry": Retry(attempts=3, base=0.05),
        "breaker": Breaker(failures=3, open_for=60),
    }

    @scanner(name="broken", pipeline=PIPELINE, isolation="thread", **layers)
    def broken(_state: dict[str, Any]) -> list[Any]:
        """Fail each time."""
        raise ConnectionError("HTTP 503 Service Unavailable")

    return broken


def _found(source: str, ticker: str, context: str) -> dict[str, str]:
    return {"ticker": ticker, "source": source, "context": context}


class Watch:
    """A listener that remembers whose breaker opened; and whose threads are in the ledger.

    Attributes:
        abandoned: scanners with a thread in the ledger. The event comes 50 ms after the timeout, when the screen may
            have been written; the ledger has the thread at once.
    """

    events: tuple[type[Event], ...] = (BreakerChanged,)

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.abandoned: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Remember one event."""
        match event:
            case BreakerChanged(name, _, "open", _):
                self.opened.add(name)

    def describe(self, result: ScanResult) -> str:
        """Say in one line how a scan ended, and which layer saw to it."""
        match result.status:
            case Status.COMPLETED if result.attempts > 1:
                return f"retry: {_times(result.attempts - 1)} failed, the next one answered"
            case Status.COMPLETED:
                return "answered"
            case Status.CACHED:
                return "cache: not called again"
            case Status.STALE:
                return f"stale cache: {_times(result.attempts)} failed, the last good answer stands in"
            case _:
                return self._not_answered(result)

    def _not_answered(self, result: ScanResult) -> str:
        match result.status:
            case Status.TIMEOUT if result.partial:
                return f"{_why(result)}: what it had yielded by then is kept"
            case Status.TIMEOUT if result.scanner in self.abandoned:
                return f"{_why(result)}: its thread does not stop, so it is abandoned"
            case Status.TIMEOUT:
                return _why(result)
            case Status.ERROR:
                return f"{_failed(result)}{', which opens its breaker' if result.scanner in self.opened else ''}"
            case Status.REJECTED:
                return self._rejected(result)
            case _:
                return result.status.value

    def _rejected(self, result: ScanResult) -> str:
        if result.error is not None and result.error.kind == "CircuitOpen":
            return "open breaker: not called, which spares the source and costs no time"
        if result.scanner in self.abandoned:
            return "its thread of the last run still hangs, so it gets no second one"
        return f"rejected: {_why(result)}"


def _failed(result: ScanResult) -> str:
    return f"{_times(result.attempts)} failed ({_why(result)})"


def _why(result: ScanResult) -> str:
    return "no reason given" if result.error is None else result.error.message


def _times(attempts: int) -> str:
    return f"{attempts} attempt" if attempts == 1 else f"{attempts} attempts"
