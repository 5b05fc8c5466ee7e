"""Arguments, variables and entry points that are wrong in themselves: a sentence that names them, never a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import SCRIPT, WAIT_TIMEOUT, environment, run
from tests.e2e.test_command import BUILT_IN
from tests.support.fixtures import Distribute


def test_an_import_error_is_one_line_without_secrets(distribute: Distribute) -> None:
    text = (
        "raise RuntimeError('first\\nsecond \\x1b[31m https://u:hunter2@feeds.example/x?api_key=hunter2 "
        "Authorization: Bearer hunter2hunter2')"
    )
    site = distribute("leaky", {"leaky": "acme_leaky:x"}, {"acme_leaky.py": text})
    for arguments, code in (
        (["list"], 0),
        (["check"], 2),
        (["run", "--only", "leaky"], 2),
        (["run", "--demo", "--json"], 1),
    ):
        done = run(*arguments, code=code, PYTHONPATH=str(site))
        said = done.stdout + done.stderr
        (line,) = [line for line in said.splitlines() if "first second" in line]
        assert "its import failed: RuntimeError: first second" in line
        assert "feeds.example" in line
        assert "hunter2" not in said
        assert "\x1b" not in said


def test_an_exception_that_settings_name_and_that_cannot_be_imported_is_redacted(distribute: Distribute) -> None:
    text = "raise RuntimeError('a\\nb https://u:hunter2@feeds.example/')"
    site = distribute("leaky", {}, {"acme_leaky.py": text})
    done = run("list", code=2, PYTHONPATH=str(site), RESILIENT_SCAN__DEFAULTS__RETRY__ON="acme_leaky.Error")
    (line,) = done.stderr.splitlines()
    assert "RuntimeError: a b https://feeds.example/" in line


def test_what_is_wrong_with_a_plugin_itself_is_redacted_too(distribute: Distribute) -> None:
    text = "class X:\n    def __init__(self):\n        raise ValueError('a\\nb token=hunter2')\n"
    site = distribute("leaky", {"leaky": "acme_leaky:X"}, {"acme_leaky.py": text})
    said = run("list", PYTHONPATH=str(site)).stderr
    (line,) = said.splitlines()
    assert line.endswith("cannot be made without arguments: a b token=REDACTED")


@pytest.mark.parametrize(
    "name",
    [
        "RESILIENT_SCAN__STORE__URL",
        "RESILIENT_SCAN__SCANNERS__gap_up__SETTINGS__TOKEN",
        "RESILIENT_SCAN__DEFAULTS__CACHE",
    ],
)
def test_bytes_that_are_no_utf8_name_their_variable(name: str) -> None:
    done = subprocess.run(
        [SCRIPT, "list"],
        capture_output=True,
        timeout=WAIT_TIMEOUT,
        env={**{os.fsencode(key): os.fsencode(value) for key, value in environment().items()}, name.encode(): b"a\xff"},
    )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line == f"error: {name}: its value is not UTF-8"


def test_a_name_that_is_no_utf8_is_shown_and_refused() -> None:
    done = subprocess.run(
        [SCRIPT, "list"],
        capture_output=True,
        timeout=WAIT_TIMEOUT,
        env={
            **{os.fsencode(k): os.fsencode(v) for k, v in environment().items()},
            b"RESILIENT_SCAN__STORE__\xff": b"a",
        },
    )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: RESILIENT_SCAN__STORE__")
    assert "not UTF-8" in line


def test_a_key_that_is_no_utf8_names_its_variable() -> None:
    done = subprocess.run(
        [SCRIPT, "run", "--only", "analyst_revisions"],
        capture_output=True,
        timeout=WAIT_TIMEOUT,
        env={
            **{os.fsencode(key): os.fsencode(value) for key, value in environment().items()},
            b"FINNHUB_API_KEY": b"a\xff",
            b"RESILIENT_SCAN__SCANNERS__analyst_revisions__SETTINGS__UNIVERSE": b'["AAPL"]',
        },
    )
    assert done.returncode == 2
    assert b"analyst_revisions: the environment variable FINNHUB_API_KEY is not UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bad = not a valid: thing!!", "scanner bad of acme (not a valid: thing!!): its entry point must read"),
        ("bad =", "scanner bad of acme (): its entry point must read name = 'module:attribute'"),
        ("bad", "scanners of acme: its entry_points.txt has a line that is not name = module:attribute"),
    ],
)
def test_a_malformed_entry_point_is_a_sentence_and_costs_no_other(line: str, said: str, distribute: Distribute) -> None:
    site = distribute("acme", {}, {})
    (site / "acme-1.0.dist-info" / "entry_points.txt").write_text(f"[resilient_scan.scanners]\n{line}\n")
    done = run("run", "--demo", "--json", code=1, PYTHONPATH=str(site))
    assert sorted(json.loads(done.stdout)["results"]) == BUILT_IN
    assert f"problem: {said}" in done.stderr
    for arguments, code in ((["list"], 0), (["check"], 2), (["explain", "gap_up", "--no-run", "--demo"], 0)):
        done = run(*arguments, code=code, PYTHONPATH=str(site))
        assert "Traceback" not in done.stderr
        assert said in done.stdout + done.stderr or arguments[0] == "explain"


def test_a_scanner_cannot_have_the_name_of_an_option(distribute: Distribute) -> None:
    text = "class X:\n    name, pipeline = '--json', 'p'\n    def scan(self, state): return []\n"
    site = distribute("acme", {"odd": "acme_odd:X"}, {"acme_odd.py": text})
    assert (
        "name must not begin with '-', which begins options, got '--json'" in run("list", PYTHONPATH=str(site)).stderr
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--config", ""],
        ["list", "--config", ""],
        ["serve", "--config", ""],
        ["run", "--push", ""],
        ["run", "--push", " "],
        ["run", "--textfile", ""],
        ["run", "--record", ""],
        ["run", "--replay", ""],
        ["serve", "--listen", ""],
        ["export-grafana", ""],
        ["export-grafana", "somewhere", "--runbook-url", ""],
        ["export-grafana", "somewhere", "--public-url", " "],
        ["export-grafana", "somewhere", "--control-url", ""],
    ],
)
def test_an_empty_argument_is_refused(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, code=2, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (line,) = done.stderr.splitlines()
    option = next((each for each in arguments if each.startswith("--")), "DIR")
    assert line.startswith(f"error: Invalid value for '{option}': it is empty")


def test_the_variable_in_the_help_changes_what_it_says() -> None:
    text = " ".join(run("--help").stdout.split())
    found = re.search(r"(RESILIENT_SCAN__SCANNERS__(\w+?)__TIMEOUT__TOTAL)=(\d+)s", text)
    assert found is not None
    variable, name, seconds = found.groups()
    before = run("explain", name, "--no-run").stdout
    after = run("explain", name, "--no-run", **{variable: f"{seconds}s"}).stdout
    assert variable not in before
    assert variable in "".join(after.split())
