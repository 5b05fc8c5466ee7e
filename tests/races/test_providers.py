"""A provider's breaker under many threads: one trial at a time, and no permit lost."""

from __future__ import annotations

import itertools
import threading
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    CircuitOpen,
    Limit,
    Policy,
    Retry,
    RetryAfter,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import ProviderChanged
from resilient_scan.layers.breaker.provider import ProviderBreaker
from resilient_scan.testing import FakeClock, Recorder
from tests.support.fixtures import Crew

NAMES = tuple(f"s{number}" for number in range(8))


def test_of_all_scanners_that_come_at_once_one_makes_the_trial(crew: Crew) -> None:
    clock, recorder = FakeClock(), Recorder()
    options = Breaker(failures=2, open_for=1, open_cap=1)
    breaker = ProviderBreaker("acme", options, clock, Random(1), recorder, None, NAMES)
    contexts = {name: ScanContext(name, clock=clock) for name in NAMES}

    def down() -> None:
        raise ConnectionError("refused")

    def open_it() -> None:
        for name in NAMES[:2]:
            with pytest.raises(ConnectionError):
                breaker.ask(name, down, contexts[name])

    def ask(number: int) -> Any:
        try:
            return NAMES[number], breaker._admit(NAMES[number], contexts[NAMES[number]])
        except CircuitOpen:
            return None

    open_it()
    for turn in range(400):
        clock.advance(2)
        admitted = [one for one in crew(ask, times=5) if one is not None]
        assert len(admitted) == 1
        (name, permit), well = admitted[0], turn % 3 == 0
        if well:
            breaker._settle(permit, False, name, contexts[name])
            open_it()
        else:
            assert breaker._count(permit, name, contexts[name])
        assert breaker.state == "open"
    changes = [(event.old, event.new) for event in recorder.events_seen if isinstance(event, ProviderChanged)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(changes))


class Weather:
    """Scanners of a provider that comes and goes, until it is calm."""

    def __init__(self) -> None:
        self.random, self.calm = Random(7), threading.Event()

    def ask(self, context: ScanContext) -> list[Any]:
        draw = 1.0 if self.calm.is_set() else self.random.random()
        if draw < 0.3:
            raise ConnectionError("refused")
        if draw < 0.4:
            raise RetryAfter(0.01)
        if draw < 0.5:
            context.sleep(1)
        return []

    def scanner(self, name: str) -> Any:
        @scanner(name=name, pipeline="test", limit=Limit("acme", concurrency=3))
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            return self.ask(context)

        return scan


@pytest.mark.parametrize("store", [None, "sqlite"])
def test_a_provider_that_comes_and_goes_loses_no_permit(store: str | None, tmp_path: Any) -> None:
    """Runs in several threads, failures, holds, timeouts, resets: in the end everybody is served, and nobody waits."""
    weather = Weather()
    policy = Policy(
        cache=None,
        retry=Retry(attempts=2, base=0.001, cap=0.001),
        breaker=Breaker(failures=2, open_for=0.01, open_cap=0.02),
        timeout=Timeout(total=0.2, attempt=0.05, max_abandoned=50),
    )
    url = None if store is None else f"sqlite:///{tmp_path}/state.db"
    scanners = map(weather.scanner, NAMES)
    with ScanRunner(scanners, policy=policy, store=url, listeners=(), max_abandoned=200) as runner:

        def runs() -> None:
            for number in range(8):
                runner.run(deadline=None if number % 3 else 0.1)

        threads = [threading.Thread(target=runs, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            runner.reset(provider="acme")
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        weather.calm.set()
        for name in NAMES:
            runner.reset(name)
        runner.reset(provider="acme")
        assert {result.status for result in runner.run().results.values()} == {Status.COMPLETED}
        (provider,) = runner.providers()
        assert (provider.state, provider.taken, provider.waiting) == ("closed", 0, 0)
