"""Arguments of the command line, without a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from resilient_scan import PluginError, __main__, settings
from resilient_scan.cli import choice
from resilient_scan.cli import main as cli
from resilient_scan.cli import options as arguments
from resilient_scan.settings.plugins import Plugins, Problem

CONTEXT = click.Context(cli.command)
PARAMETER = click.Option(["--x"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5), ("10m", 600), ("1h", 3600), ("2.5", 2.5), ("60", 60), (" 1.5h ", 5400), (".5s", 0.5)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert arguments.duration(CONTEXT, PARAMETER, text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0ms", "-1s", "5 s", "1e3", "nan", "inf", "1w", "s", "١s", "1h30m", "9" * 400]
)
def test_what_is_no_duration_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration above zero; write it as 250ms, 5s, 10m or 1h"):
        arguments.duration(CONTEXT, PARAMETER, text)


def test_names_may_be_repeated_and_separated_by_commas() -> None:
    assert arguments.names(CONTEXT, PARAMETER, ("a, b", "b", ",c,")) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--only", ","], 2, "names nothing"),
        (["--help"], 0, ""),
        ([], 2, "Usage: resilient-scan"),
        (["run", "--only", "gap_up", "--pipeline", "edge"], 2, "none belongs to both --only and --pipeline"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == code
    assert message in capsys.readouterr().err


def test_without_bundled_data_the_built_in_scanners_are_not_configured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "load_demo", lambda: None)
    assert cli.main(["run"]) == 2
    said = capsys.readouterr().err
    assert said == "error: nothing to run: 14 scanners need keys or settings: resilient-scan list\n"
    assert cli.main(["run", "--only", "gap_up"]) == 2
    said = capsys.readouterr().err
    assert said == "error: nothing to run: not configured: gap_up: set scanners.gap_up.settings.universe\n"
    assert cli.main(["run", "--demo"]) == 2
    assert "--demo: the bundled data need an extra: pip install 'resilient-scan[scanners]'" in capsys.readouterr().err
    monkeypatch.setattr(settings, "discover", lambda **_: Plugins((), ()))
    assert cli.main(["run"]) == 2
    assert "nothing to run: no scanner is installed" in capsys.readouterr().err
    lost = Problem("gap_up", PluginError("it is broken"))
    monkeypatch.setattr(settings, "discover", lambda **_: Plugins((), (lost,)))
    assert cli.main(["run"]) == 2
    assert "nothing to run: it is broken" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "known"), [("click", True), ("rich", True), ("something_else", False)])
def test_only_a_missing_extra_is_explained(
    missing: str, known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "resilient_scan.cli.main":
                raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.delitem(sys.modules, "resilient_scan.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    if not known:
        with pytest.raises(ModuleNotFoundError):
            __main__.main()
        return
    assert __main__.main() == 2
    assert f"needs {missing}, which is in an extra: pip install 'resilient-scan[cli]'" in capsys.readouterr().err


START = """
import sys
from resilient_scan.__main__ import main
sys.argv = ["resilient-scan", "--version"]
print(main())
print(*sys.modules)
"""


def test_the_version_is_said_without_loading_the_command() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    said, code, modules = done.stdout.splitlines()
    assert said == CliRunner().invoke(cli.command, ["--version"], prog_name="resilient-scan").output.rstrip()
    assert code == "0"
    loaded = [name for name in modules.split() if name.partition(".")[0] in {"resilient_scan", "click", "rich"}]
    assert len(loaded) <= 10, loaded


def test_a_version_that_cannot_be_written_is_an_error_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resilient_scan", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


def test_the_faulty_scanners_stay_in_threads_whatever_the_settings_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "scan.toml"
    config.write_text('[scanner_execution]\nisolation = "process"\n')
    assert cli.main(["run", "--faults", "--demo", "--json", "--only", "broken", "--config", str(config)]) == 1
    assert json.loads(capsys.readouterr().out)["results"]["broken"]["status"] == "error"


def test_a_scanner_that_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PluginError("scanner x cannot be sent to a child process")

    monkeypatch.setattr(cli, "open_fleet", refuses)
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == "error: scanner x cannot be sent to a child process\n"


@pytest.mark.parametrize(("text", "wrong"), [("x", "'x' is not a valid whole number"), ("0", "0 is not in the range")])
def test_a_number_that_is_none_is_called_a_number(text: str, wrong: str) -> None:
    with pytest.raises(click.BadParameter, match=wrong):
        arguments.WholeNumber(min=1).convert(text, None, None)
