"""The public face, written down: names, arguments and import paths that users rely on change here or not at all."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

import resilient_scan

ARGUMENTS = {
    "Breaker": "failures open_for open_cap trials on failure_rate slow_after slow_rate window minimum",
    "Cache": "ttl stale_if_error inputs maxsize jitter ttl_empty ttl_error",
    "Candidate": "ticker source context priority strategy extras",
    "ControlService": "runner token host port registry read_token allowed_hosts",
    "Expect": "fields at_least max_age time ranges",
    "Limit": "provider rate concurrency",
    "LogEvents": "logger format clock",
    "Policy": "cache retry breaker limit timeout",
    "PrometheusMetrics": "registry",
    "Quarantine": "cooloff cooloff_cap successes max_share critical lease heartbeat after_failures",
    "Retry": "attempts base cap on retry_after_cap budget budget_min",
    "RetryAfter": "seconds message",
    "ScanContext": "scanner clock deadline settings",
    "ScanResult": "scanner pipeline status candidates error attempts duration queue_wait age partial dropped tool_logs "
    "started_at suspicious",
    "ScanRunner": "scanners policy max_workers concurrent timeout_seconds store listeners engine quarantine "
    "max_abandoned max_async order settings policies deadline traffic isolation memory clock random",
    "Timeout": "total attempt max_abandoned",
    "load_settings": "path environ",
    "scanner": "pipeline name candidate empty_ok needs sources settings version expect isolation memory cache retry "
    "breaker limit timeout",
}
METHODS = {
    "RunReport": "by_pipeline candidates complete counts duration merged require results run_id started_at to_dict "
    "tool_logs",
    "ScanContext": "before_request cancelled check doubt guarded log map now recall remaining remember settings shared "
    "sleep",
    "ScanRunner": "abandoned amap arun audit breaker close disable enable explain flights forget from_config history "
    "map names not_configured probe providers reset run scanners stream",
    "Settings": "check effective runner",
}
PATHS = {
    "resilient_scan.events": "AttemptEnded BreakerChanged LateCompletion LoopBlocked RunEnded RunStarted ScanEnded "
    "ScannerStateChanged ScannersRegistered ThreadAbandoned",
    "resilient_scan.http": "Client NotFound Recorder Replay Response SchemaDrift TransientError credential",
    "resilient_scan.logs": "JsonLines LogEvents",
    "resilient_scan.metrics": "PrometheusMetrics exposition push worker_ended write_textfile",
    "resilient_scan.settings": "Settings examine_settings load_settings",
    "resilient_scan.testing": "FakeClock Recorder broken flapping hanging healthy polite",
    "resilient_scan.tracing": "TraceRuns",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_keep_their_names_and_their_order(name: str) -> None:
    parameters = inspect.signature(getattr(resilient_scan, name)).parameters
    wanted = ARGUMENTS[name].split()
    assert [argument for argument in parameters if argument in wanted] == wanted


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_their_names(name: str) -> None:
    kind: Any = getattr(resilient_scan, name)
    attributes = {*dir(kind), *getattr(kind, "__struct_fields__", ())}
    assert set(METHODS[name].split()) <= attributes


@pytest.mark.parametrize("path", PATHS)
def test_import_paths_in_the_docs_keep_working(path: str) -> None:
    module = importlib.import_module(path)
    assert [name for name in PATHS[path].split() if not hasattr(module, name)] == []


def test_run_and_explain_keep_their_arguments() -> None:
    runner = resilient_scan.ScanRunner
    assert list(inspect.signature(runner.run).parameters) == ["self", "state", "deadline", "only"]
    assert list(inspect.signature(runner.stream).parameters)[:3] == ["self", "state", "deadline"]
    assert list(inspect.signature(runner.arun).parameters)[:3] == ["self", "state", "deadline"]
    for many in (runner.map, runner.amap):
        assert list(inspect.signature(many).parameters) == ["self", "scanner", "inputs", "ordered"]
    assert list(inspect.signature(runner.explain).parameters) == ["self", "name", "trace"]
    assert list(inspect.signature(runner.disable).parameters)[:4] == ["self", "name", "reason", "duration"]
    assert list(inspect.signature(runner.enable).parameters)[:4] == ["self", "name", "reason", "duration"]
    assert list(inspect.signature(runner.reset).parameters) == ["self", "name", "provider", "reason", "who"]
    for order in (runner.forget, runner.probe):
        assert list(inspect.signature(order).parameters)[:3] == ["self", "name", "reason"]
