"""The public face compared with reality."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import pytest

import resilient_scan

SUBMODULES = [module.name for module in pkgutil.iter_modules(resilient_scan.__path__)]
ALL_MODULES = [
    module.name
    for module in pkgutil.walk_packages(resilient_scan.__path__, "resilient_scan.")
    if not module.name.endswith("__main__")
]
EXCEPTIONS = [
    "CircuitOpen",
    "ConfigError",
    "InvalidCandidate",
    "LimitExceeded",
    "PermanentError",
    "PluginError",
    "Rejected",
    "RetryAfter",
    "ScanCancelled",
    "ScanError",
    "ScanTimeout",
    "WorkerLost",
]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield what a module defines itself and does not hide."""
    for name, thing in vars(module).items():
        own = getattr(thing, "__module__", None) in (module.__name__, "resilient_scan")
        if not name.startswith("_") and own and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield name, thing


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines itself."""
    for name, member in vars(kind).items():
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__  # noqa: PLW2901
        named = inspect.isfunction(member) and member.__name__ != "<lambda>"
        if not name.startswith("_") and (named or isinstance(member, property)):
            yield name, member


def is_sentence(text: str | None) -> bool:
    first = (text or "").split("\n")[0]
    return bool(re.fullmatch(r"\S.*\.", first)) and (first[0].isupper() or first[0] == "`")


def test_every_name_of_the_face_is_there() -> None:
    missing = [name for name in resilient_scan.__all__ if not hasattr(resilient_scan, name)]
    assert missing == []


def test_the_face_is_sorted_and_names_nothing_twice() -> None:
    assert list(resilient_scan.__all__) == sorted(set(resilient_scan.__all__))


def test_nothing_else_is_public() -> None:
    extra = {
        name
        for name, thing in vars(resilient_scan).items()
        if not name.startswith("_") and name not in resilient_scan.__all__ and not inspect.ismodule(thing)
    }
    assert extra == {"TYPE_CHECKING"}


def test_the_star_brings_the_face_and_nothing_else() -> None:
    names: dict[str, Any] = {}
    exec("from resilient_scan import *", names)
    names.pop("__builtins__")
    assert sorted(names) == list(resilient_scan.__all__)


def test_what_the_package_holds_beside_the_face_are_its_submodules() -> None:
    modules = {name for name, thing in vars(resilient_scan).items() if inspect.ismodule(thing)}
    assert modules <= set(SUBMODULES)


def test_no_public_function_has_the_name_of_a_submodule() -> None:
    assert set(resilient_scan.__all__) & set(SUBMODULES) == set()


def test_the_version_is_semantic() -> None:
    # the expression that semver.org recommends
    semver = (
        r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
        r"(-((0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
        r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?"
    )
    assert re.fullmatch(semver, resilient_scan.__version__)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_say_where_users_find_them(name: str) -> None:
    kind = getattr(resilient_scan, name)
    assert kind.__module__ == "resilient_scan"
    assert name in resilient_scan.__all__


def test_the_list_of_exceptions_is_complete() -> None:
    raised = [
        name
        for name in resilient_scan.__all__
        if inspect.isclass(kind := getattr(resilient_scan, name)) and issubclass(kind, BaseException)
    ]
    assert raised == EXCEPTIONS


@pytest.mark.parametrize("name", ALL_MODULES)
def test_every_public_thing_says_in_a_sentence_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    things = {name: module, **{f"{name}.{own}": thing for own, thing in public(module)}}
    for own, thing in public(module):
        if inspect.isclass(thing):
            things |= {f"{name}.{own}.{method}": member for method, member in members(thing)}
    mute = [where for where, thing in things.items() if not is_sentence(thing.__doc__)]
    assert mute == []


def test_the_face_has_a_docstring_for_each_name() -> None:
    mute = [
        name
        for name in resilient_scan.__all__
        if (inspect.isclass(thing := getattr(resilient_scan, name)) or inspect.isfunction(thing))
        and not is_sentence(thing.__doc__)
    ]
    assert mute == []


def in_a_new_process(code: str) -> list[str]:
    """Return the modules that a program has loaded when it has run this code."""
    code += "; import sys; print(*sys.modules, sep='\\n')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def ours(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if name.partition(".")[0] == "resilient_scan"]


LIBRARIES = {"pybreaker", "cachetools", "tenacity", "prometheus_client", "redis", "opentelemetry", "httpx", "starlette"}


def test_importing_the_package_loads_next_to_nothing() -> None:
    modules = in_a_new_process("import resilient_scan")
    assert len(ours(modules)) <= 15
    assert LIBRARIES.isdisjoint(modules)


def test_a_runner_loads_only_what_it_needs() -> None:
    modules = in_a_new_process("from resilient_scan import ScanRunner, scanner, Candidate")
    assert len(ours(modules)) <= 85
    assert (LIBRARIES - {"cachetools", "tenacity"}).isdisjoint(modules)


@pytest.mark.parametrize(
    "code",
    [
        "from resilient_scan import scanner; import resilient_scan.scanning",
        "import resilient_scan.scanning; from resilient_scan import scanner",
        "import resilient_scan, resilient_scan.scanning; scanner = resilient_scan.scanner",
    ],
)
def test_the_decorator_is_a_function_in_whatever_order_things_are_imported(code: str) -> None:
    code += "; import resilient_scan; assert callable(scanner) and callable(resilient_scan.scanner)"
    assert ours(in_a_new_process(code))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "errors.ConfigError",
        "events.AttemptEnded",
        "logs.JsonLines",
        "metrics.worker_ended",
        "options.Retry",
        "results.Status",
        "service.ControlService",
        "settings.examine_settings",
    ],
)
@pytest.mark.parametrize("before", ["", "; resilient_scan.PrometheusMetrics, resilient_scan.ScanRunner"])
def test_importing_the_package_is_enough_for_the_public_names_of_its_modules(name: str, before: str) -> None:
    assert in_a_new_process(f"import resilient_scan{before}; assert resilient_scan.{name}")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("use", "module"),
    [
        ("resilient_scan.ScanRunner", "resilient_scan.runner"),
        ("resilient_scan.ScanRunner([one], listeners=())", "pybreaker"),
    ],
)
def test_a_child_that_is_forked_in_the_middle_of_a_first_use_can_use_the_package(use: str, module: str) -> None:
    code = f"""
import os, signal, sys, threading, time, resilient_scan
one = resilient_scan.scanner(pipeline="p", name="one")(lambda state: [])
thread = threading.Thread(target=lambda: {use})
thread.start()
while thread.is_alive() and {module!r} not in sys.modules:
    time.sleep(0.001)
child = os.fork()
if child == 0:
    signal.alarm(10)
    report = resilient_scan.ScanRunner([one], listeners=()).run()
    os._exit(0 if report.complete else 1)
assert os.waitpid(child, 0)[1] == 0
thread.join()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'resilient_scan' has no attribute 'nothing'"):
        _ = resilient_scan.nothing


def test_a_name_is_there_for_whoever_lists_them() -> None:
    assert set(resilient_scan.__all__) <= set(dir(resilient_scan))


@pytest.mark.slow
def test_a_type_checker_finds_a_misspelt_name() -> None:
    api = pytest.importorskip("mypy.api")
    said, _, _ = api.run(["--config-file=", "--no-incremental", "-c", "from resilient_scan import ScanRuner"])
    assert 'Module "resilient_scan" has no attribute "ScanRuner"' in said
