"""Fleets for the page: a night in which things go wrong, on a clock that is moved by hand; and one in which none do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from resilient_scan import Breaker, ControlService, Policy, Quarantine, ScanRunner, Timeout, scanner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.service.process import Process
from resilient_scan.testing import FakeClock
from tests.support.control import TOKEN, Served, alert, alertmanager

START = 1_795_486_440.0  # 2026-11-24 02:14 UTC
QUOTA = (
    "Client error '429 Too Many Requests' for url 'https://efts.sec.gov/LATEST/search-index?q=%22form+4%22"
    "&dateRange=custom&startdt=2026-11-10&enddt=2026-11-24&forms=4&from=0&size=100&category=insider-purchases'"
)
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
LONG = "x" * 5_000
TURNED = "\u202e\u05e9\u05dc\u05d5\u05dd\u202d\u200b\u200b\u200f " * 40 + "\ufdfd" * 60
Answers = Callable[[int], Exception | None]


class Sleepless(Served):
    """A service that has seen a night, its clock, and the scanners that it was asked to run."""

    clock: FakeClock
    asked: list[str]


class Night:
    """Scanners whose answers are decided by the number of the run, and the runs of a night, a minute apart."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.run = clock, 0

    def scanner(
        self, name: str, pipeline: str, took: float, answers: Answers = lambda _run: None, **layers: Any
    ) -> Any:
        """Make a scanner that takes so long, and raises what `answers` returns."""

        def scan(_state: dict[str, Any]) -> list[dict[str, str]]:
            self.clock.advance(took)
            failure = answers(self.run)
            if failure is not None:
                raise failure
            return [{"ticker": "ACME", "source": name, "context": "found"}]

        return scanner(name=name, pipeline=pipeline, **layers)(scan)

    def pass_by(self, runner: ScanRunner, runs: int) -> None:
        """Run the fleet once a minute."""
        for _ in range(runs):
            runner.run()
            self.run += 1
            self.clock.advance(60)


def five(night: Night, *, ill: bool) -> list[Any]:
    """The five scanners of the pictures."""
    quota, away = ConnectionError(QUOTA), TimeoutError("news.example did not answer within 10 s")
    banned = PermissionError("HTTP 403")
    late = Breaker(failures=5, open_for=600)
    return [
        night.scanner("market_movers", "momentum", 0.4),
        night.scanner("insider_buying", "edge", 1.2, lambda run: quota if ill and run >= 34 else None),
        night.scanner("options_flow", "edge", 0.8, lambda run: away if ill and run in {12, 31} else None),
        night.scanner("news_sentiment", "news", 10.0, lambda run: away if ill and run >= 44 else None, breaker=late),
        night.scanner("reddit_dd", "social", 0.3, lambda run: banned if ill and run == 19 else None),
    ]


def many(night: Night, *, ill: bool) -> list[Any]:
    """Three hundred scanners, of which every tenth is ill, with errors that are hard to show."""
    errors = (QUOTA, HOSTILE, LONG, TURNED, "no route to host", "HTTP 500\nand\na\nsecond\nline")

    def answers(place: int) -> Answers:
        failure = OSError(errors[place // 10 % len(errors)]) if ill and place % 10 == 0 else None
        return lambda _run: failure

    pipelines = ("momentum", "edge", "events", "news", "social")
    made = [night.scanner(f"scanner_{place:03}", pipelines[place % 5], 0.01, answers(place)) for place in range(298)]
    return [*made, night.scanner("n" * 64, "p" * 60, 0.01, answers(0)), night.scanner("x.y-z", "edge", 0.01)]


@contextmanager
def night(scanners: Callable[..., list[Any]], *, ill: bool, token: str | None = TOKEN) -> Iterator[Sleepless]:
    """Let a night pass and serve what it has left."""
    clock = FakeClock(START)
    passing, registry = Night(clock), CollectorRegistry()
    asked: list[str] = []
    process = Process(
        run=asked.append,
        alerting=lambda: "Alertmanager at http://127.0.0.1:9093 gives no list of its alerts: refused." if ill else "",
        dashboard_url="https://grafana.example/d/scanner?var-scanner={scanner}",
        runbook_url="https://wiki.example/runbook",
    )
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1000), timeout=Timeout(total=30))
    small = scanners is five
    with (
        ScanRunner(
            scanners(passing, ill=ill),
            policy=policy,
            listeners=(),
            clock=clock,
            concurrent=False,
            quarantine=Quarantine(cooloff=600),
        ) as runner,
        ControlService(runner, token, registry=registry, clock=clock, process=process) as service,
    ):
        served = Sleepless(service, runner, registry)
        served.clock, served.asked = clock, asked
        passing.pass_by(runner, 20 if small else 2)
        name = "reddit_dd" if small else "scanner_010"
        if ill:
            runner.disable(name, reason="quota is used up until Monday", who="anna", duration=72 * 3600)
        passing.pass_by(runner, 26 if small else 2)
        if ill:
            for out in ("insider_buying",) if small else ("scanner_000", "scanner_020", "scanner_030"):
                assert served.post("/alerts", alertmanager(alert(out))).json["accepted"] == 1
        passing.pass_by(runner, 4 if small else 2)
        yield served
