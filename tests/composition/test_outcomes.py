"""What is made of the outcomes of last executions: flapping and the error budget, wherever they are shown."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    Policy,
    PrometheusMetrics,
    Retry,
    ScanContext,
    ScanRunner,
    Timeout,
    load_settings,
    scanner,
)
from resilient_scan.layers.outcomes import failures
from resilient_scan.stores.history import Remembered
from resilient_scan.testing import hanging
from tests.support.fixtures import Bare, Fleet

BARE = Policy(cache=None, retry=None, breaker=None)


class Source:
    """A scanner that fails where the letters of a text are `x`, one for each call, and again from the start."""

    pipeline = "test"

    def __init__(self, letters: str, name: str = "one", slo: Any = None) -> None:
        self.name = name
        self.slo = slo
        self._letters = letters
        self.calls = 0

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        self.calls += 1
        if self._letters[(self.calls - 1) % len(self._letters)] == "x":
            raise ValueError("every other time")
        return []


def now(runner: ScanRunner, name: str = "one") -> str:
    (layer,) = [layer for layer in runner.explain(name).layers if layer.name == "scanner"]
    return " ".join(layer.now)


def test_one_that_fails_every_other_time_is_found_although_its_breaker_never_opens(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=2))
    runner = fleet(Source(".x"), policy=policy, listeners=(PrometheusMetrics(registry),))
    flags = []
    for _ in range(21):
        runner.run({})
        (state,) = runner.scanners()
        flags.append(state.flapping)
        assert registry.get_sample_value("resilient_scan_flapping", {"scanner": "one"}) == state.flapping
    assert flags.index(True) == 9  # in the tenth run
    assert runner.breaker("one") == "closed"
    assert now(runner).startswith("a scan is expected to take")
    assert "it is flapping: success and failure changed in 100% of its last 21 executions" in now(runner)


def test_a_closed_runner_is_not_flapping(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    runner = fleet(Source(".x", slo=0.5), policy=BARE, listeners=(PrometheusMetrics(registry),))
    for _ in range(21):
        runner.run({})
    runner.close()
    assert registry.get_sample_value("resilient_scan_flapping", {"scanner": "one"}) == 0
    assert registry.get_sample_value("resilient_scan_slo_budget_ratio", {"scanner": "one"}) is None


def test_the_history_survives_a_restart(tmp_path: Path) -> None:
    source = Source(".x", slo=0.99)
    store = f"sqlite:///{tmp_path / 'store.db'}"
    for _ in range(5):  # cron: a process for each few runs
        with ScanRunner([source], policy=BARE, store=store, listeners=()) as runner:
            for _ in range(3):
                runner.run({})
            (state,) = runner.scanners()
    assert source.calls == 15
    assert (state.flapping, state.slo_budget) == (True, 0.3)


def test_success_after_success_takes_the_stored_history_away_in_time(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    with ScanRunner([Source(".x")], policy=BARE, store=store, listeners=()) as runner:
        for _ in range(12):
            runner.run({})
    with ScanRunner([Source(".")], policy=BARE, store=store, listeners=()) as runner:
        runner.run({})
        assert runner.scanners()[0].flapping
        for _ in range(20):
            runner.run({})
        assert not runner.scanners()[0].flapping


def test_what_counts_is_executions_with_a_verdict(fleet: Fleet, bare: Bare) -> None:
    release = threading.Event()

    @scanner(name="cut", pipeline="test", cache=None)
    def cut(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(60)
        return []

    @scanner(name="cached", pipeline="test", cache=Cache(ttl=60))
    def cached(_state: dict[str, Any]) -> list[Any]:
        return []

    @scanner(name="retried", pipeline="test", retry=Retry(attempts=2, base=0, cap=0), breaker=None)
    def retried(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            raise ValueError("x")
        return []

    def quick(name: str, attempts: int, **layers: Any) -> Any:
        timeout = Timeout(total=0.1, attempt=0.05, max_abandoned=9)
        return hanging(name, release, timeout=timeout, retry=Retry(attempts=attempts, base=0, cap=0), **layers)

    queued = quick(
        "queued", 2, limit=Limit("acme", concurrency=1), breaker=None
    )  # its first attempt keeps the only permit
    everyone = [cut, cached, retried, quick("late", 1), quick("later", 9), queued, Source("x", "broken")]
    runner = fleet(*everyone, policy=bare(breaker=Breaker(failures=1)))
    for _ in range(2):
        runner.run({}, deadline=0.3)
    release.set()
    counted = {name: failures(stack.outcomes) for name, stack in runner._fleet.stacks.items()}
    # The run's end is nobody's fault, a retry that helps is a success, and a rejected scan executes nothing.
    assert counted == {"cut": 0, "cached": 0, "retried": 0, "late": 1, "later": 1, "queued": 1, "broken": 1}


def test_what_happened_here_is_not_replaced_by_what_is_remembered(fleet: Fleet) -> None:
    runner = fleet(Source("x"), policy=BARE)
    for _ in range(2):
        runner.run({})
    runner._fleet.recall(Remembered({}, {}, {"one": b"\x01"}))
    assert failures(runner._fleet.stacks["one"].outcomes) == 2


# the error budget


def test_of_two_runners_the_smaller_budget_is_exported(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    for letters in ("x", "."):
        fleet(Source(letters, slo=0.99), policy=BARE, listeners=(PrometheusMetrics(registry),)).run({})
    assert registry.get_sample_value("resilient_scan_slo_budget_ratio", {"scanner": "one"}) == 0.9


def test_the_budget_is_shown(fleet: Fleet) -> None:
    registry = CollectorRegistry()
    promised, other = Source("xx........", slo=0.99), Source("x", "other")
    runner = fleet(promised, other, policy=BARE, listeners=(PrometheusMetrics(registry),))
    for _ in range(11):
        runner.run({})
    assert "70% of its error budget is left: 3 of its last 1,000 executions failed, and 10 may" in now(runner)
    assert "budget" not in now(runner, "other")
    assert [state.slo_budget for state in runner.scanners()] == [0.7, None]
    assert registry.get_sample_value("resilient_scan_slo_budget_ratio", {"scanner": "one"}) == 0.7
    assert registry.get_sample_value("resilient_scan_slo_budget_ratio", {"scanner": "other"}) is None
    for _ in range(40):
        runner.run({})
    assert "its error budget is used up: 11 of its last 1,000 executions failed, and 10 may" in now(runner)
    assert runner.scanners()[0].slo_budget == -0.1


SETTINGS = """
[scanners.one]
slo = 0.95
"""


def test_settings_win_over_the_decorator(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text(SETTINGS)
    one = scanner(name="one", pipeline="test", slo=0.5)(lambda _state: [])
    two = scanner(name="two", pipeline="test", slo=0.5)(lambda _state: [])
    with load_settings(str(path), environ={}).runner([one, two], listeners=(), store="memory:") as runner:
        shown = [
            (number.value, number.origin)
            for name in ("one", "two")
            for layer in runner.explain(name).layers
            for number in layer.numbers
            if number.option == "scanner.slo"
        ]
    assert shown == [("0.95", f"{path}:3"), ("0.5", "decorator")]


def test_an_objective_of_a_class_counts_and_a_wrong_one_is_another_attribute() -> None:
    with ScanRunner([Source(".", slo=0.9), Source(".", "two", slo="gold")], listeners=()) as runner:
        values = [state.slo_budget for state in runner.scanners()]
        (number,) = runner.explain("one").layers[-1].numbers
    assert values == [1.0, None]
    assert (number.option, number.value, number.origin) == ("scanner.slo", "0.9", "the scanner's class")


@pytest.mark.parametrize("wrong", [1, 0, 0.9999, True, "high"])
def test_a_wrong_objective_is_refused(wrong: Any, tmp_path: Path) -> None:
    must = "must be a share of the last 1000 executions, > 0 and <= 0.999"
    with pytest.raises(ConfigError) as caught:
        scanner(name="one", pipeline="test", slo=wrong)
    assert str(caught.value) == f"@scanner: slo {must}, got {wrong!r}"
    path = tmp_path / "scan.toml"
    path.write_text(SETTINGS.replace("0.95", "1.0"))
    with pytest.raises(ConfigError) as caught:
        load_settings(str(path), environ={})
    assert str(caught.value) == f"{path}:3: scanners.one.slo {must}, got 1.0"
