"""Where a scanner failed: the line that its author has to look at, and a bounded traceback without secrets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import json
import logging
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resilient_scan import Cache, Policy, Retry, RunReport, ScanRunner, Timeout, scanner
from resilient_scan._text import know
from resilient_scan._trace import MAX_TRACEBACK, NOWHERE, Home, traceback_of, where_of
from resilient_scan.logs import JsonLines, LogEvents
from resilient_scan.results import ErrorInfo
from tests.support.clocks import FakeClock

ONCE = Policy(cache=None, retry=None)
PLUGIN = """
from resilient_scan import scanner

def parse(row):
    return row["price"]

@scanner(pipeline="test")
def keyerr(state):
    return [parse({})]
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Any]:
    """A scanner's module outside of any package, as in a notebook's folder."""
    file = tmp_path / "feeds.py"
    file.write_text(PLUGIN)
    spec = importlib.util.spec_from_file_location("feeds", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["feeds"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["feeds"]


def error_of(thing: Any, policy: Policy = ONCE, **options: Any) -> ErrorInfo:
    with ScanRunner([thing], policy=policy, **{"listeners": (), **options}) as runner:
        (result,) = runner.run({}).results.values()
    assert result.error is not None
    return result.error


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


# where


def test_a_line_names_the_type_and_the_line_of_the_scanner_s_own_code(
    plugin: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        error = error_of(plugin.keyerr, listeners=None)
    assert caplog.messages == ["⚠️ keyerr: 'price' (KeyError at feeds.py:5 in parse)"]
    assert error.where == "KeyError at feeds.py:5 in parse"
    assert error.traceback.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{plugin.__file__}", line 9, in keyerr',
        "    return [parse({})]",
        f'  File "{plugin.__file__}", line 5, in parse',
        '    return row["price"]',
        "KeyError: 'price'",
    ]


def test_a_failure_inside_a_library_is_placed_where_the_scanner_calls_it() -> None:
    @scanner(pipeline="test")
    def reader(state: Any) -> Any:
        return json.loads("{")

    error = error_of(reader)
    assert error.where.startswith("JSONDecodeError at test_trace.py:")
    assert error.where.endswith(" in reader")
    assert "json/decoder.py" in error.traceback


def test_code_of_nobody_s_is_placed_at_its_innermost_line_that_is_not_ours() -> None:
    space: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile("def run(state):\n    return state['x']", "elsewhere.py", "exec"), space)
    error = where_of(raised_by(lambda: space["run"]({})), NOWHERE, "KeyError")
    assert error == "KeyError at elsewhere.py:2 in run"


def raised_by(call: Any) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("module", "other", "file", "own"),
    [
        ("shop.feeds.daily", "shop.parse", "/x/shop/parse.py", True),
        ("shop.feeds.daily", "shopping.parse", "/x/shopping/parse.py", False),
        ("test_trace_alone", "test_trace_alone", "/y/z.py", True),
        ("test_trace_alone", "helper", "/y/helper.py", False),  # its directory is not known
        ("resilient_scan.testing", "resilient_scan.testing", "/x/testing.py", True),
        ("resilient_scan.testing", "resilient_scan.layers.call", "/x/call.py", False),
        (None, "a", "/a.py", False),
    ],
)
def test_a_package_is_a_scanner_s_own(module: Any, other: str, file: str, own: bool) -> None:
    assert Home.of(module).has(other, file) is own


def test_what_lies_next_to_a_module_without_a_package_is_its_own_but_for_installed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for directory, own in (("/home/me", True), ("/lib/site-packages", False)):
        module = ModuleType("alone")
        module.__file__ = f"{directory}/alone.py"
        monkeypatch.setitem(sys.modules, "alone", module)
        assert Home.of("alone").has("helper", f"{directory}/helper.py") is own


def test_errors_of_ours_have_no_place() -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.01))
    def slow(state: Any, context: Any) -> Any:
        context.sleep(30)

    error = error_of(slow)
    assert (error.where, error.traceback) == ("", "")
    assert (ErrorInfo.of(ValueError("x")).where, ErrorInfo.of(ValueError("x")).traceback) == ("", "")


def test_of_a_group_the_first_member_is_placed() -> None:
    @scanner(pipeline="test")
    async def several(state: Any) -> Any:
        async def fetch(number: int) -> None:
            raise OSError(f"no route to {number}")

        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(fetch(number))

    error = error_of(several)
    assert error.message == "no route to 0 (and 4 more)"
    assert error.where.startswith("OSError at test_trace.py:")
    assert error.where.endswith(" in fetch")
    assert "3 of 5 in this group:" in error.traceback
    assert "no route to 2" in error.traceback
    assert "no route to 3" not in error.traceback


# the traceback


def test_a_cause_comes_before_its_effect() -> None:
    def convert() -> None:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("bad row") from error

    text = traceback_of(raised_by(convert))
    cause, effect = text.split("\nThe above exception was the direct cause of the following exception:\n")
    assert cause.rstrip().endswith("ValueError: invalid literal for int() with base 10: 'x'")
    assert effect.endswith("RuntimeError: bad row")


def test_what_was_handled_meanwhile_is_shown_unless_it_is_hidden() -> None:
    def convert(hidden: bool) -> None:
        try:
            int("x")
        except ValueError:
            if hidden:
                raise RuntimeError("bad row") from None
            raise RuntimeError("bad row")  # noqa: B904

    shown, hidden = (traceback_of(raised_by(functools.partial(convert, each))) for each in (False, True))
    assert "During handling of the above exception" in shown
    assert hidden.count("Traceback") == 1


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    text = traceback_of(raised(first))
    assert text.count("ValueError: first") == 1
    assert text.count("ValueError: second") == 1


def test_a_traceback_is_bounded_whatever_is_raised() -> None:
    def endless(depth: int = 0) -> None:
        endless(depth + 1)

    deep = traceback_of(raised_by(endless))
    assert deep.count("endless(depth + 1)") == 29  # and the call of the first
    assert " frames)" in deep

    error: BaseException = OSError("é" * 100_000)
    for number in range(100):
        after = RuntimeError(f"{number} " + "é" * 900)
        after.__cause__ = raised(error)
        error = after
    for each in (error, ExceptionGroup("x", [raised(error)] * 100)):  # type: ignore[list-item]
        text = traceback_of(raised(each))
        assert len(text.encode()) <= MAX_TRACEBACK
        assert text.count("RuntimeError") <= 8


def test_the_end_of_a_long_traceback_is_kept() -> None:
    error: BaseException = ValueError("x" * 1_000)
    for number in range(20):
        after = ValueError(f"{number} " + "x" * 2_000)
        after.__cause__ = error
        error = after
    text = traceback_of(raised(error))
    assert text.startswith("...\n")
    assert "\nValueError: 19 xxx" in text


def test_a_hostile_exception_costs_only_its_text() -> None:
    class Mute(ValueError):
        __cause__ = property(lambda _self: 1 / 0)  # type: ignore[assignment]

        def __str__(self) -> str:
            raise SystemExit

    info = ErrorInfo.of(raised(Mute("x")))
    assert info.message == "Mute"
    assert info.traceback.endswith("Mute")


def test_a_traceback_has_no_secret() -> None:
    def login(key: str) -> None:
        raise PermissionError("refused token=a1b2c3d4e5")

    know(["correcthorse"])
    text = traceback_of(raised_by(lambda: login("correcthorse")))
    assert 'login("REDACTED")' in text
    assert text.endswith("PermissionError: refused token=REDACTED")


def test_no_frame_is_kept_alive() -> None:
    class Big:
        pass

    seen: list[weakref.ref[Big]] = []

    @scanner(pipeline="test", retry=Retry(attempts=2, base=0))
    def holding(state: Any) -> Any:
        big = Big()
        seen.append(weakref.ref(big))
        raise ValueError(f"bad {type(big).__name__}")

    gc.collect()
    gc.disable()
    try:
        with ScanRunner([holding], policy=Policy(cache=Cache(ttl_error=60)), listeners=()) as runner:
            report = runner.run({})
            assert report.results["holding"].error is not None
            assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


# where it is shown


def run_twice(clock: FakeClock, policy: Policy) -> tuple[RunReport, RunReport, ScanRunner]:
    @scanner(pipeline="test")
    def bad(state: Any) -> Any:
        raise ValueError("no")

    runner = ScanRunner([bad], policy=policy, clock=clock, listeners=())
    with contextlib.closing(runner):
        return runner.run({}), runner.run({}), runner


def test_where_and_traceback_are_in_the_data_and_in_the_json_log(caplog: pytest.LogCaptureFixture) -> None:
    @scanner(pipeline="test")
    def bad(state: Any) -> Any:
        raise ValueError("no")

    caplog.set_level(logging.INFO, "resilient_scan")
    with ScanRunner([bad], policy=ONCE, listeners=(LogEvents(format="json"),)) as runner:
        data = runner.run({}).to_dict()["results"]["bad"]["error"]
    assert list(data) == ["type", "message", "where", "traceback", "blame"]
    assert data["where"].endswith(" in bad")
    logged = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line["error"] for line in logged if line["event"] == "scan_ended"] == [data]


def test_a_remembered_failure_keeps_its_place_without_the_traceback() -> None:
    """The cache remembers up to a thousand failures a scanner."""
    first, second, _ = run_twice(FakeClock(), Policy(retry=None, cache=Cache(ttl_error=60)))
    one, two = first.results["bad"].error, second.results["bad"].error
    assert one is not None
    assert two is not None
    assert two.where == one.where != ""
    assert one.traceback
    assert two.traceback == ""


def test_attempts_keep_their_place_without_the_traceback() -> None:
    _, _, runner = run_twice(FakeClock(auto=True), Policy(cache=None, breaker=None, retry=Retry(attempts=3)))
    for flight in runner.flights("bad"):
        assert [bool(step.error.where) for step in flight.steps] == [True] * 3
        assert [step.error.traceback for step in flight.steps] == [""] * 3
        assert flight.result.error is not None
        assert flight.result.error.traceback


def test_a_store_keeps_the_traceback_of_the_newest_failure_only(tmp_path: Path) -> None:
    outcomes: list[Any] = [ValueError("first"), ValueError("second"), []]

    @scanner(pipeline="test")
    def sometimes(state: Any) -> Any:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return outcome

    store = f"sqlite:///{tmp_path}/x.db"
    for _ in range(3):
        with ScanRunner([sometimes], policy=ONCE, store=store, listeners=()) as runner:
            runner.run({})
    with ScanRunner([sometimes], policy=ONCE, store=store, listeners=()) as runner:
        past = runner.explain("sometimes").past
        text = str(runner.explain("sometimes", trace=True))
    assert [scan.error for scan in past] == ["", "ValueError: second", "ValueError: first"]
    assert [bool(scan.where) for scan in past] == [False, True, True]
    assert [bool(scan.traceback) for scan in past] == [False, True, False]
    assert text.count("| Traceback (most recent call last):") == 1
