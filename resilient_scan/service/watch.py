"""What a control endpoint hears of its runner: how scans really ended, and whether store, pool and machine work.

The flight recorder has the last 50 scans only. A scanner that is out of service ends `disabled` in each run, so after
50 runs nothing in it says why the scanner was taken out; at one run a minute, that is before an operator has got up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from resilient_scan._text import counted
from resilient_scan.events import Event, Load, ScanEnded, ScannersRegistered, StoreFailed, StoreRecovered
from resilient_scan.results import LOCAL, ErrorInfo, ScanResult, Status
from resilient_scan.stores.history import Past

REAL = frozenset({Status.COMPLETED, Status.CACHED, Status.STALE, Status.TIMEOUT, Status.ERROR})
FAILED = frozenset({Status.TIMEOUT, Status.ERROR})
ALIKE = 3  # scanners that fail with errors of one class before the cause is sought in what they share
_SCARCE = re.compile(r"\[Errno (?:11|12|23|24|28)\]|can't start new thread|MemoryError")


class Outcome(msgspec.Struct, frozen=True):
    """How a scan ended that was neither turned away nor cut off.

    `at` is when it began, `where` where its error was, and `blame` whose fault that is.
    """

    status: str
    at: float
    duration: float
    attempts: Annotated[int, Meta(ge=0)]
    error: str
    where: str
    blame: str = ""


class Trouble(msgspec.Struct, frozen=True):
    """Something that is wrong with the `machine`, the `alerting`, the `store` or a `provider`, and since when."""

    about: str
    says: str
    since: float | None = None


class Watch:
    """A listener that remembers of each scanner how it really ended last, and whether the store works."""

    prompt = True  # it only writes down
    events: tuple[type[Event], ...] = (ScanEnded, ScannersRegistered, StoreFailed, StoreRecovered)

    def __init__(self) -> None:
        self._last: dict[str, tuple[Status, float, float, int, ErrorInfo | None]] = {}
        self._load: Callable[[], Load | None] = lambda: None
        self.store_failed: tuple[float, str] | None = None  # since when, and how it failed last

    def __call__(self, event: Any) -> None:
        """Note what happened."""
        if type(event) is ScanEnded:
            result = event.result
            if result.status in REAL:  # the candidates are not kept alive
                kept = result.status, result.started_at, result.duration, result.attempts, result.error
                self._last[result.scanner] = kept
        elif type(event) is StoreFailed:
            since = event.at if self.store_failed is None else self.store_failed[0]
            self.store_failed = since, event.message
        elif type(event) is StoreRecovered:
            self.store_failed = None
        else:
            self._load = event.load

    def last(self, name: str) -> tuple[Outcome, str] | None:
        """Return how a scanner's last real scan ended and its traceback; `None`: there was none since this listens."""
        heard = self._last.get(name)
        return None if heard is None else _outcome(*heard)

    def pool_trouble(self) -> str:
        """Say why no scan begins, where hung threads hold every worker; else an empty text."""
        load = self._load()
        if load is None or not load.queued or load.busy or load.idle:
            return ""
        return (
            f"{counted(load.queued, 'scan')} cannot begin: {counted(load.abandoned, 'hung thread')} "
            "hold every worker; restart the service"
        )


def of_result(result: ScanResult) -> tuple[Outcome, str]:
    """Return the outcome in a result, and its traceback."""
    return _outcome(result.status, result.started_at, result.duration, result.attempts, result.error)


def of_past(past: Past) -> tuple[Outcome, str]:
    """Return the outcome in a scan that a store remembers, and its traceback."""
    made = Outcome(past.status, past.started_at, past.duration, len(past.attempts), past.error, past.where, past.blame)
    return made, past.traceback


def _outcome(status: Status, at: float, duration: float, attempts: int, error: ErrorInfo | None) -> tuple[Outcome, str]:
    if error is None:
        return Outcome(status.value, at, duration, attempts, "", ""), ""
    text = f"{error.kind}: {error.message}"
    return Outcome(status.value, at, duration, attempts, text, error.place, error.blame), error.traceback


def streak(results: Sequence[tuple[str, float]]) -> tuple[int, float | None]:
    """Return how many scans failed in a row, and when the first of them began.

    Args:
        results: statuses and beginnings, newest first. Scans that were turned away or cut off say nothing.
    """
    count, since = 0, None
    for status, at in results:
        if status in FAILED:
            count, since = count + 1, at
        elif status in REAL:
            break
    return count, since


def machine_troubles(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield what scanners that fail alike say about the machine they share.

    Args:
        outcomes: the last real one of each scanner in service.
    """
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if outcome.status in FAILED]
    scarce = [outcome.error for outcome in failed if outcome.blame == LOCAL or _SCARCE.search(outcome.error)]
    if scarce:
        yield f"This machine has run out of something: {counted(len(scarce), 'scanner')} failed with {scarce[0][:120]}"
        return
    kinds = Counter(outcome.error.partition(":")[0] or "a timeout" for outcome in failed)
    kind, count = max(kinds.items(), key=lambda item: item[1], default=("", 0))
    if count >= ALIKE and 2 * count > len(outcomes):
        yield (
            f"{count} of {len(outcomes)} scanners fail alike ({kind}): "
            "look at this machine, its network and its proxy before their sources"
        )
