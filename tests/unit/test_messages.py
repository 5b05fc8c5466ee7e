"""What newcomers write first, and the sentences that put them right."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    LogEvents,
    PluginError,
    Policy,
    Retry,
    ScanContext,
    ScanRunner,
    Timeout,
    scanner,
)
from resilient_scan.cli.check import check
from resilient_scan.scanning import FunctionScanner, spec_of
from resilient_scan.testing import healthy
from tests.support.settings import write_settings

Call = Any


def fetch(state: dict[str, Any]) -> list[Any]:
    return []


def nothing() -> list[Any]:
    return []


class Made:
    name, pipeline = "made", "test"

    def __init__(self, scan: Any) -> None:
        self.scan = scan


@pytest.mark.parametrize("thing", [fetch, len, lambda state: [], Made(fetch).scan])
def test_a_plain_function_is_to_be_decorated(thing: Any) -> None:
    with pytest.raises(PluginError, match=r'is a plain function; decorate it: @scanner, or @scanner\(pipeline="\.\.\.'):
        ScanRunner([thing])


@pytest.mark.parametrize(
    ("scan", "shown"),
    [
        (nothing, r"\(\): too many positional arguments"),
        (lambda state, limit, depth: [], r"\(state, limit, depth\): missing a required argument: 'depth'"),
        (lambda state, context, *, key: [], r"\(state, context, \*?key\): missing a required.* argument: 'key'"),
        (lambda *, state: [], r"\(state\): "),
    ],
)
def test_a_wrong_arity_is_reported_when_the_runner_is_made(scan: Any, shown: str) -> None:
    with pytest.raises(PluginError, match=rf"^scanner made: it must take \(state\) or \(state, context\), not {shown}"):
        ScanRunner([Made(scan)])


@pytest.mark.parametrize(
    "scan",
    [
        lambda state: [],
        lambda *anything: [],
        lambda state, context: [],
        lambda state, limit=3: [],
        lambda state, *, context: [],
        lambda state, context, depth=3, **rest: [],
    ],
)
def test_a_right_arity_is_called(scan: Any) -> None:
    with ScanRunner([Made(scan)], listeners=()) as runner:
        assert runner.run({}).complete


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Policy(retries=3), "Policy has no option 'retries'; did you mean 'retry'?"),
        (lambda: Limit(rate="3/s"), "Limit needs provider: write Limit(provider=...)"),
        (lambda: Retry(attempt=3), "Retry has no option 'attempt'; did you mean 'attempts'?"),
        (lambda: Breaker(threshold=3, failures=2), "Breaker has no option 'threshold'; there are failures, open_for, "),
        (lambda: Timeout(1, 2, 3, 4), "Timeout has 3 options: total, attempt, max_abandoned"),
    ],
)
def test_an_option_that_is_not_there_is_refused_by_name(make: Call, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(sentence)


def test_a_fault_of_another_s_code_keeps_its_class() -> None:
    class Odd(Cache, frozen=True):
        def __post_init__(self) -> None:
            raise TypeError("not about arguments")

    with pytest.raises(TypeError, match="not about arguments"):
        Odd()


@pytest.mark.parametrize("listeners", [[LogEvents], (print, LogEvents)])
def test_a_listener_is_an_object_and_not_its_class(listeners: Any) -> None:
    with pytest.raises(ConfigError, match=r"^listeners: LogEvents is a class; write LogEvents\(\)$"):
        ScanRunner([], listeners=listeners)


def test_one_name_is_not_a_list_of_names() -> None:
    with (
        ScanRunner([healthy("gap")], listeners=()) as runner,
        pytest.raises(ConfigError, match=r"got the text 'gap'; write only=\['gap'\]$"),
    ):
        runner.run({}, only="gap")


@pytest.mark.parametrize(("rows", "way_out"), [("to_dicts", "frame.to_dicts()"), ("x", 'frame.to_dict("records")')])
def test_a_data_frame_is_no_list_of_candidates(rows: str, way_out: str) -> None:
    kind = type("DataFrame", (list,), {rows: None})
    with ScanRunner([healthy("one"), Made(lambda state: kind(["ticker"]))], listeners=()) as runner:
        error = runner.run({}).results["made"].error
    assert error is not None
    assert error.message == f"scan returned a DataFrame; return its rows, {way_out}, each with a ticker"


def test_an_empty_fleet_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resilient_scan"), ScanRunner([]) as runner:
        assert runner.run({}).results == {}
    assert [record.getMessage() for record in caplog.records] == [
        "no scanner to run: every report will be empty; runner.not_configured may say why"
    ]


def test_a_store_that_cannot_be_written_is_an_error_of_check_and_a_warning_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    file = tmp_path / "file" / "x.db"
    config = write_settings(tmp_path, f'[store]\nurl = "sqlite:///{file}"\n')
    errors = check(config).errors
    assert [error for error in errors if str(file) in error and "cannot be written" in error]
    with (
        caplog.at_level(logging.WARNING, "resilient_scan"),
        ScanRunner([healthy("one")], store=f"sqlite:///{file}") as runner,
    ):
        assert runner.run({}).complete
        assert [record for record in caplog.records if str(file) in record.getMessage()]


def test_a_store_that_can_be_written_is_fine_and_check_leaves_no_file(tmp_path: Path) -> None:
    config = write_settings(tmp_path, f'[store]\nurl = "sqlite:///{tmp_path}/deep/down/x.db"\n')
    before = sorted(tmp_path.rglob("*"))
    assert [error for error in check(config).errors if "store" in error] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_token_that_can_be_guessed_is_a_warning_of_check(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    (tmp_path / "token").chmod(0o600)
    config = write_settings(tmp_path, '[service]\ntoken_file = "token"\n')
    (warning,) = [text for text in check(config).warnings if "token" in text]
    assert warning.startswith("service.token must have at least 8 characters")
    assert "hunter2" not in warning


# @scanner without parentheses, and what it keeps of the function


def test_a_scanner_needs_no_parentheses() -> None:
    @scanner
    def gap_up(state: dict[str, Any], context: ScanContext) -> list[dict[str, str]]:
        """Find gaps."""
        return [{"ticker": "A"}]

    assert isinstance(gap_up, FunctionScanner)
    assert (gap_up.name, gap_up.pipeline, gap_up.layers) == ("gap_up", "default", {})
    assert gap_up({}, ScanContext()) == [{"ticker": "A"}]
    assert list(inspect.signature(gap_up).parameters) == ["state", "context"]
    assert spec_of(gap_up).name == "gap_up"


def test_the_pipeline_is_default_unless_it_is_named() -> None:
    assert scanner(name="x")(fetch).pipeline == "default"
    assert scanner(pipeline="news")(fetch).pipeline == "news"
