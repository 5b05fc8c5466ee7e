"""Regressions at the edges: foreign code that misbehaves, runs that end early, runners that share a registry."""

from __future__ import annotations

import sys
import threading
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    PluginError,
    Policy,
    PrometheusMetrics,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import LateCompletion, ThreadAbandoned
from resilient_scan.layers.timeout import HungThreads
from resilient_scan.settings import plugins
from resilient_scan.testing import Recorder, broken, healthy

BARE = Policy(cache=None, retry=None, breaker=None)


class Nameless:
    pipeline = "p"

    @property
    def name(self) -> str:
        raise ValueError("no name yet")

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return []


class Quitter:
    name, pipeline = "quitter", "p"

    def __init__(self) -> None:
        sys.exit("no key")

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return []


@pytest.mark.parametrize("thing", [Nameless, Quitter])
def test_a_plugin_that_misbehaves_after_its_import_is_reported(thing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("misbehaving")
    module.thing, module.well = thing, healthy("well")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misbehaving", module)
    points = [EntryPoint(name, f"misbehaving:{name}", plugins.GROUP) for name in ("thing", "well")]
    found = plugins.discover(points)
    assert [one.name for one in found.scanners] == ["well"]
    assert len(found.problems) == 1
    with pytest.raises(PluginError):
        ScanRunner([thing])


def test_a_disabled_scanner_is_disabled_whenever_the_run_ends() -> None:
    with ScanRunner([healthy("one"), healthy("two")], policy=BARE, listeners=(), concurrent=False) as runner:
        runner.disable("two")
        report = runner.run({}, deadline=0)
    assert [result.status for result in report.results.values()] == [Status.SKIPPED, Status.DISABLED]


def state_of(registry: CollectorRegistry, state: str) -> float | None:
    return registry.get_sample_value("resilient_scan_breaker_state", {"scanner": "one", "state": state})


def test_of_two_runners_on_one_registry_the_worse_breaker_is_shown_until_its_runner_is_closed() -> None:
    registry = CollectorRegistry()
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1))
    bad = ScanRunner([broken("one")], policy=policy, listeners=(PrometheusMetrics(registry),))
    bad.run({})
    with ScanRunner([healthy("one")], policy=policy, listeners=(PrometheusMetrics(registry),)):
        assert (state_of(registry, "open"), state_of(registry, "closed")) == (1, 0)
        bad.close()
        assert (state_of(registry, "open"), state_of(registry, "closed")) == (0, 1)
    assert (state_of(registry, "open"), state_of(registry, "closed")) == (0, 0)


def test_a_thread_that_returns_while_it_is_abandoned_is_reported_twice_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, abandon = threading.Event(), HungThreads.abandon

    def slow_abandon(self: HungThreads) -> None:
        ended.wait(5)
        abandon(self)

    monkeypatch.setattr(HungThreads, "abandon", slow_abandon)

    @scanner(pipeline="p", timeout=Timeout(total=5, attempt=0.05))
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        while not context.remaining() <= 0:
            threading.Event().wait(0.001)
        ended.set()
        return []

    recorder = Recorder()
    with ScanRunner([one], policy=BARE, listeners=[recorder]) as runner:
        for _ in range(5):
            ended.clear()
            runner.run({})
    assert len(recorder.of(LateCompletion)) <= len(recorder.of(ThreadAbandoned))


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("detached")


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit


def test_a_candidate_without_a_repr_is_dropped_like_any_other() -> None:
    odd = scanner(pipeline="p", name="odd")(lambda _state: [{"ticker": "A"}, Unspeakable(), {"ticker": "B"}])
    with ScanRunner([odd], policy=BARE, listeners=()) as runner:
        result = runner.run({}).results["odd"]
    assert (result.status, len(result.candidates), result.dropped) == (Status.COMPLETED, 2, 1)


def test_an_exception_without_a_text_is_counted() -> None:
    registry = CollectorRegistry()
    with ScanRunner([broken("one", Mute())], policy=BARE, listeners=(PrometheusMetrics(registry),)) as runner:
        result = runner.run({}).results["one"]
    labels = {"scanner": "one", "pipeline": "test", "outcome": "error"}
    assert result.error is not None
    assert result.error.message == "Mute"
    assert registry.get_sample_value("resilient_scan_executions_total", labels) == 1


def test_settings_are_the_runners_own() -> None:
    @scanner(pipeline="p")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.settings["words"].append("new")
        return []

    settings = {"one": {"words": ["old"]}}
    with ScanRunner([one], policy=BARE, listeners=(), settings=settings) as runner:
        runner.run({})
    assert settings == {"one": {"words": ["old"]}}


def test_a_candidate_type_that_is_no_class_is_refused() -> None:
    odd = scanner(pipeline="p", name="odd", candidate=dict.fromkeys)(lambda _state: [])  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="candidate must be a class"):
        ScanRunner([odd])


def test_a_policy_takes_its_layers_in_their_order() -> None:
    layers = (Cache(), Retry(), Breaker(), Limit("sec"), Timeout(total=5))
    policy = Policy(*layers)
    assert (policy.cache, policy.retry, policy.breaker, policy.limit, policy.timeout) == layers


def test_counts_know_every_status() -> None:
    with ScanRunner([healthy("one")], policy=BARE, listeners=()) as runner:
        counts = runner.run({}).counts
    assert (counts["completed"], counts["timeout"]) == (1, 0)  # type: ignore[index]
