"""A fleet that goes through all states, served to Prometheus: `python tests/e2e/live_fleet.py CALM LIFETIME`.

For CALM seconds everybody is well; from then on most are in some trouble of their own. It prints where its metrics are,
and ends when its stdin ends, or after LIFETIME seconds.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from resilient_scan import Breaker, Cache, PrometheusMetrics, Retry, ScanContext, ScanRunner, Timeout, scanner
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.observe.metrics import exposition
from resilient_scan.quarantine.machine import Alert
from resilient_scan.scanning import FunctionScanner

EVERY = 0.5  # seconds from run to run
HEALTHY = ("market_movers", "earnings_calendar", "volume_accumulation", "gap_up")
TROUBLED = (
    "insider_buying",
    "reddit_dd",
    "options_flow",
    "news_sentiment",
    "analyst_revisions",
    "rsi_oversold",
    "late",
)
BY_HAND = "filings_8k"
NAMES = (*HEALTHY, *TROUBLED, BY_HAND, "social_buzz")
FRESH = Cache(ttl=2.0, jitter=0)
Work = Callable[[dict[str, Any], ScanContext], Any]


class Life:
    """When the trouble begins, and chance that is the same each time.

    It begins some seconds after the first scrape: what Prometheus has not seen grow has not grown for it.
    """

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._until = math.inf
        self.random = Random(7)
        self.over = threading.Event()

    def scraped(self) -> None:
        self._until = min(self._until, time.monotonic() + self._calm)

    @property
    def troubled(self) -> bool:
        return time.monotonic() > self._until

    def pause(self, seconds: float) -> None:
        self.over.wait(seconds)


def found(name: str, count: int) -> list[dict[str, str]]:
    return [{"ticker": f"T{number}", "source": name, "context": "found"} for number in range(count)]


def fleet(life: Life) -> list[FunctionScanner]:
    """Make the scanners: the healthy ones, one for each kind of trouble, one that is disabled by hand."""
    kinds: dict[str, tuple[Work, dict[str, Any]]] = {
        "insider_buying": (failing(life), {"cache": None, "breaker": Breaker(failures=5, open_for=8)}),
        "reddit_dd": (hanging(life), {"cache": None}),
        "options_flow": (slow(life), {"cache": None, "timeout": Timeout(total=4)}),
        "news_sentiment": (flapping(life), {"cache": None, "breaker": None}),
        "analyst_revisions": (stale(life), {"cache": Cache(ttl=1, jitter=0, stale_if_error=3600), "breaker": None}),
        "rsi_oversold": (odd(life), {"cache": None}),
        "late": (late(life), {"cache": None, "breaker": None, "timeout": Timeout(total=0.3, max_abandoned=3)}),
        "social_buzz": (polite(life), {"cache": None, "breaker": None, "timeout": Timeout(total=0.3)}),
    }
    well = [made(name, well_of(name, life), cache=FRESH) for name in (*HEALTHY, BY_HAND)]
    return [*well, *(made(name, work, **layers) for name, (work, layers) in kinds.items())]


def made(name: str, work: Work, **layers: Any) -> FunctionScanner:
    chosen = {"retry": Retry(attempts=2, base=0.05, cap=0.1), "timeout": Timeout(total=1.0), **layers}
    return scanner(name=name, pipeline="live", empty_ok=True if name != "rsi_oversold" else None, **chosen)(work)


def well_of(name: str, life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(life.random.uniform(0.05, 0.2))
        return found(name, 5 + len(name) % 5)

    return work


def failing(life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(0.1)
        if life.troubled:
            raise ConnectionError("HTTP 503 Service Unavailable")
        return found("insider_buying", 4)

    return work


def hanging(life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(3600 if life.troubled else 0.1)
        return found("reddit_dd", 3)

    return work


def slow(life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(life.random.uniform(1.2, 2.8) if life.troubled else 0.2)
        return found("options_flow", 6)

    return work


def flapping(life: Life) -> Work:
    attempts = itertools.count()

    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(0.05)
        if life.troubled and next(attempts) % 5 in {0, 2, 3}:
            raise TimeoutError("the read operation timed out")
        return found("news_sentiment", 8)

    return work


def stale(life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(0.05)
        if life.troubled:
            raise ValueError("no field 'revisions' in the answer")
        return found("analyst_revisions", 7)

    return work


def odd(life: Life) -> Work:
    def work(_state: dict[str, Any], context: ScanContext) -> Iterator[Any]:
        life.pause(0.05)
        if life.troubled:
            context.doubt("the page has no table")
            yield {"ticker": ""}
        else:
            yield from found("rsi_oversold", 9)

    return work


def late(life: Life) -> Work:
    def work(_state: dict[str, Any], _context: ScanContext) -> list[dict[str, str]]:
        life.pause(life.random.uniform(0.8, 2.0) if life.troubled else 0.05)
        return found("late", 2)

    return work


def polite(life: Life) -> Work:
    def work(_state: dict[str, Any], context: ScanContext) -> list[dict[str, str]]:
        if life.troubled and life.random.random() < 0.3:
            context.sleep(5)
        return found("social_buzz", 3)

    return work


def alert(name: str, action: str, number: int) -> Alert:
    return Alert(action, name, "firing", f"f{number}", time.time(), "ScannerOutOfService", "its breaker is open")


def operate(runner: ScanRunner, life: Life) -> None:
    """Send heartbeats, and once a breaker is open: an alert, one for a scanner that nobody has, and an order."""
    acted = False
    for number in itertools.count():
        runner.alerts([alert("", "heartbeat", number)])
        if runner.breaker("insider_buying") != "closed" and not acted:
            acted = True
            life.pause(4)
            runner.alerts([alert("insider_buying", "disable", -1), alert("nobody", "disable", -2)])
            runner.disable(BY_HAND, reason="its key has expired")
        if life.over.wait(2):
            return


def run(runner: ScanRunner, life: Life) -> None:
    while not life.over.is_set():
        runner.run({"trade_date": "2026-11-24"}, deadline=10)
        life.pause(EVERY)


def main(calm: float, lifetime: float) -> None:
    life = Life(calm)

    def answer(path: str, _query: dict[str, str]) -> Answer:
        life.scraped()
        content_type, text = exposition()
        return (200 if path == "/metrics" else 404), {"Content-Type": content_type}, text

    ended = threading.Thread(target=lambda: (sys.stdin.read(), life.over.set()), daemon=True)
    ended.start()
    with (
        ScanRunner(fleet(life), max_workers=6, listeners=[PrometheusMetrics()]) as runner,
        LoopbackServer(answer) as at,
    ):
        sys.stdout.write(f"{at.url}\n")
        sys.stdout.flush()
        threads = [threading.Thread(target=work, args=(runner, life)) for work in (operate, run)]
        for thread in threads:
            thread.start()
        life.over.wait(lifetime)
        life.over.set()
        for thread in threads:
            thread.join(15)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
