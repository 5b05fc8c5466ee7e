"""Scanners that lack what they need: listed with what to set, neither an error nor silently absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resilient_scan import Candidate, ConfigError, ScanContext, load_settings, scanner
from resilient_scan.cli import main as cli
from resilient_scan.cli.choice import Request, lacks
from resilient_scan.cli.fleet import open_fleet
from resilient_scan.http import credential
from resilient_scan.settings import plugins
from resilient_scan.settings.plugins import Plugins, found_of
from tests.support.settings import write_settings

SET_BOTH = (
    "set scanners.keyed.settings.api_key or the environment variable KEYED_API_KEY, "
    "and scanners.keyed.settings.universe"
)


@scanner(pipeline="mine", needs={"api_key": "KEYED_API_KEY", "universe": ""}, sources=["keyed.example"])
def keyed(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
    """Says which key it got."""
    return [Candidate("T", "keyed", credential(context, "api_key", "KEYED_API_KEY"))]


@scanner(pipeline="mine")
def free(state: dict[str, Any]) -> list[Candidate]:
    """Needs nothing."""
    return [Candidate("F", "free", "found")]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYED_API_KEY", raising=False)
    found = Plugins((found_of(keyed), found_of(free)), ())
    for module in ("cli.check", "settings"):
        monkeypatch.setattr(f"resilient_scan.{module}.discover", lambda **_: found)


def test_it_is_listed_and_not_run() -> None:
    with open_fleet(Request(), listeners=()) as fleet:
        report = fleet.run()
    assert list(report.results) == ["free"]
    assert report.complete
    assert fleet.not_configured == {"keyed": SET_BOTH}
    assert fleet.problems == []


@pytest.mark.parametrize(
    ("text", "variable", "left"),
    [
        ('api_key = "k"', "", "set scanners.keyed.settings.universe"),
        ('universe = ["A"]', "", "set scanners.keyed.settings.api_key or the environment variable KEYED_API_KEY"),
        ('universe = ["A"]', "  ", "set scanners.keyed.settings.api_key or the environment variable KEYED_API_KEY"),
        ('universe = []\napi_key = "k"', "", "set scanners.keyed.settings.universe"),
        ('universe = ["A"]\napi_key = "k"', "", ""),
        ('universe = ["A"]', "k", ""),
    ],
)
def test_what_is_there_need_not_be_set(
    text: str, variable: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYED_API_KEY", variable)
    config = write_settings(tmp_path, f"[scanners.keyed.settings]\n{text}\n")
    with open_fleet(Request(config=config), listeners=()) as fleet:
        report = fleet.run()
    assert fleet.not_configured == ({"keyed": left} if left else {})
    if not left:
        assert [each.context for each in report.results["keyed"].candidates] == ["k"]


def test_every_command_says_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"not configured: keyed: {SET_BOTH}\n"
    assert cli.main(["run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("1 more scanner needs keys or settings: resilient-scan list\n")
    assert line not in said
    for wanted in (["-v"], ["--only", "keyed,free"]):
        assert cli.main(["run", *wanted]) == 0
        said = capsys.readouterr().err
        assert said.startswith(line)
        assert "more scanner" not in said
    assert cli.main(["run", "--only", "keyed"]) == 2
    assert f"nothing to run: not configured: keyed: {SET_BOTH}" in capsys.readouterr().err
    assert cli.main(["list"]) == 0
    assert line in capsys.readouterr().out
    assert cli.main(["check"]) == 0
    assert line in capsys.readouterr().out
    assert cli.main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["keyed"]["configured"], rows["keyed"]["to_set"]) == (False, SET_BOTH)
    assert (rows["free"]["configured"], rows["free"]["to_set"]) == (True, "")


def test_a_built_in_one_that_needs_no_key_names_a_setting_that_makes_it_ask(tmp_path: Path) -> None:
    ours = msgspec.structs.replace(found_of(free), built_in=True, sources=("funds.example",))
    said = "set scanners.free.settings.universe, or any other of its settings, to have it ask funds.example"
    assert lacks(ours, None, load_settings(None)) == said
    assert lacks(msgspec.structs.replace(ours, sources=()), None, load_settings(None)).endswith("ask its source")
    for wish in ('universe = ["XLE"]', "min_lead = 2.0"):
        wished = load_settings(write_settings(tmp_path, f"[scanners.free.settings]\n{wish}\n"))
        assert lacks(ours, None, wished) == ""


def test_what_is_switched_off_is_not_called_not_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_settings(tmp_path, "[scanners.keyed]\nenabled = false\n"))
    assert cli.main(["run", "--config", config]) == 0
    assert "not configured" not in capsys.readouterr().err
    assert cli.main(["check", "--config", config]) == 0
    assert "not configured" not in capsys.readouterr().out


def test_a_runner_from_settings_leaves_out_what_the_command_leaves_out(tmp_path: Path) -> None:
    config = write_settings(tmp_path, "[store]\nurl = 'memory:'\n")
    with load_settings(config).runner(listeners=()) as runner:
        assert runner.names == ("free",)
        assert runner.not_configured == {"keyed": SET_BOTH}
        assert list(runner.run({}).results) == ["free"]
        with pytest.raises(ConfigError, match="scanner 'keyed' is not configured, and does not run: set scanners"):
            runner.explain("keyed")
    with open_fleet(Request(config=config), listeners=()) as fleet:
        assert fleet.runner.names == ("free",)
        assert fleet.runner.not_configured == {"keyed": SET_BOTH}


def test_a_runner_of_scanners_that_are_named_has_all_of_them(tmp_path: Path) -> None:
    with load_settings(None).runner([keyed], listeners=()) as runner:
        assert runner.names == ("keyed",)
        assert runner.not_configured == {}
    config = write_settings(tmp_path, '[scanners.keyed.settings]\nuniverse = ["A"]\napi_key = "k"\n')
    with load_settings(config).runner(listeners=()) as runner:
        assert runner.names == ("keyed", "free")
        assert runner.not_configured == {}


def test_what_is_switched_off_is_not_listed_as_not_configured(tmp_path: Path) -> None:
    config = write_settings(tmp_path, "[scanners.keyed]\nenabled = false\n")
    with load_settings(config).runner(listeners=()) as runner:
        assert (runner.names, runner.not_configured) == (("free",), {})


def test_a_scanner_that_is_asked_without_its_key_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"keyed needs api_key: set scanners\.keyed\.settings\.api_key or the env"):
        keyed({}, ScanContext("keyed"))
    assert keyed({}, ScanContext("keyed", settings={"api_key": " k "}))[0].context == "k"


def test_attributes_of_these_names_that_mean_something_else_do_not_count() -> None:
    class Odd:
        name, pipeline, needs, sources = "odd", "mine", {"a": 1}, "text"

        def scan(self, state: dict[str, Any]) -> list[Candidate]:
            return []

    assert (plugins.found_of(Odd).needs, plugins.found_of(Odd).sources) == ({}, ())
    Odd.needs, Odd.sources = {"a": "B"}, ["One.Example"]  # type: ignore[dict-item, assignment]
    assert (plugins.found_of(Odd).needs, plugins.found_of(Odd).sources) == ({"a": "B"}, ("one.example",))


def record(folder: Path, host: str) -> Path:
    folder.mkdir()
    (folder / "body").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps([{"file": "body", "url": f"https://{host}/"}]))
    return folder


def test_a_replay_needs_no_keys_but_recordings(tmp_path: Path) -> None:
    config = write_settings(tmp_path, '[scanners.keyed.settings]\nuniverse = ["A"]\n')
    request = Request(config=config, replay=record(tmp_path / "tape", "keyed.example"))
    with open_fleet(request, listeners=()) as fleet:
        report = fleet.run()
    assert [each.context for each in report.results["keyed"].candidates] == ["REDACTED"]
    assert (fleet.state, fleet.demo) == ({}, None)
    request = Request(config=config, replay=record(tmp_path / "other", "other.example"))
    with open_fleet(request, listeners=()) as fleet:
        assert fleet.not_configured == {"keyed": f"{tmp_path / 'other'} has no recordings of it or of keyed.example"}


def test_a_run_is_recorded_or_replayed_and_not_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--record", str(tmp_path / "a"), "--replay", str(tmp_path / "b")]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert cli.main(["run", "--replay", str(tmp_path / "b")]) == 2
    assert "no recordings in" in capsys.readouterr().err
    assert cli.main(["run", "--record", str(tmp_path / "c"), "--as-of", "2026-05-15"]) == 0
    assert json.loads((tmp_path / "c" / "state.json").read_text()) == {"trade_date": "2026-05-15"}
    assert json.loads((tmp_path / "c" / "manifest.json").read_text()) == []
    assert "nothing was recorded for free: " in capsys.readouterr().err
    with open_fleet(Request(replay=tmp_path / "c", only=("free",)), listeners=()) as fleet:
        assert fleet.state == {"trade_date": "2026-05-15"}
