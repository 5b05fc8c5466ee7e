"""The first screen: bundled data only where they are wanted, messages that are short, tables that fit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import SCRIPT, WAIT_TIMEOUT, environment, on_a_terminal, run, started, wait_for
from tests.e2e.test_command import BUILT_IN, HANGING
from tests.support.fixtures import Distribute
from tests.support.settings import write_settings
from tests.support.waiting import eventually

OWN = """
import os, subprocess, sys
class Own:
    name = "own"
    pipeline = "own"
    retry = breaker = None
    def scan(self, state):
        print("PRINTED")
        os.write(2, b"WRITTEN")
        subprocess.run(["sh", "-c", "echo CHILD; echo CHILD >&2"])
        if "{fails}":
            raise ValueError("HTTP 500")
        return [dict(ticker="OWN", source="own", context=repr(sorted(state.items()))), dict(ticker="")]
"""
NOISE = ("PRINTED", "WRITTEN", "CHILD\nCHILD", "invalid dropped", "Running 1 scanner ")


@pytest.fixture
def site(distribute: Distribute) -> str:
    return str(distribute("acme-own", {"own": "acme_own:Own"}, {"acme_own.py": OWN.format(fails="")}))


def report_of(*arguments: str, **extra: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run("run", "--json", *arguments, **extra).stdout)
    return report


def state_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the state that the own scanner got."""
    (found,) = report["results"]["own"]["candidates"]
    return dict(eval(found["context"]))


# bundled data


@pytest.mark.parametrize("configured", [True, False])
def test_next_to_a_scanner_of_ones_own_nothing_is_of_2013(configured: bool, site: str, tmp_path: Path) -> None:
    config = write_settings(tmp_path, "[scanners.own]\ntimeout = { total = 10 }\n")
    report = report_of(*(["--config", str(config)] if configured else []), PYTHONPATH=site)
    assert list(report["results"]) == ["own"]
    assert report["demo"] is False
    (key,) = state_of(report)
    assert key == "trade_date"
    assert date.fromisoformat(state_of(report)["trade_date"]).year > 2013


def test_with_a_settings_file_bundled_data_have_to_be_asked_for(tmp_path: Path) -> None:
    config = str(write_settings(tmp_path, "[scanner_execution]\nmax_workers = 2\n"))
    refused = run("run", "--config", config, code=2)
    way_out = f"14 scanners need keys or settings: resilient-scan list --config {config}; --demo runs on bundled data"
    assert refused.stderr == f"error: nothing to run: {way_out}\n"
    rows = json.loads(run("list", "--json", "--config", config).stdout)
    assert [row["name"] for row in rows if row["configured"]] == []
    report = report_of("--config", config, "--demo")
    assert (sorted(report["results"]), report["demo"]) == (BUILT_IN, True)


def test_bundled_data_never_change_the_state_of_other_scanners(site: str) -> None:
    report = report_of("--demo", PYTHONPATH=site)
    assert sorted(report["results"]) == sorted([*BUILT_IN, "own"])
    assert report["demo"] is True
    assert list(state_of(report)) == ["trade_date"]
    assert date.fromisoformat(state_of(report)["trade_date"]).year > 2013
    (apple,) = report["results"]["market_movers"]["candidates"]
    assert apple["extras"]["date"] == "2013-01-24"
    dated = report_of("--demo", "--as-of", "2013-01-23", PYTHONPATH=site)
    assert state_of(dated) == {"trade_date": "2013-01-23"}
    (google,) = dated["results"]["market_movers"]["candidates"]
    assert google["extras"]["date"] == "2013-01-23"


@pytest.mark.parametrize("option", ["--record", "--replay"])
def test_bundled_data_are_neither_recorded_nor_a_recording(option: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    folder = tmp_path / "new" if option == "--record" else tmp_path
    done = run("run", "--demo", option, str(folder), code=2)
    assert "leave one of them out" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_service_answers_from_bundled_data_only_if_it_is_told_to() -> None:
    refused = run("serve", "--listen", "127.0.0.1:0", code=2)
    assert refused.stderr.endswith("resilient-scan list; --demo runs on bundled data\n")
    options = ("--listen", "127.0.0.1:0", "--log-format", "json", "--every", "200ms")  # a run may begin before this
    with started("serve", "--demo", "--only", "gap_up", *options) as process:
        url = re.findall(r"serving at (\S+)/ ", wait_for(process, "serving at"))[0]
        page = urllib.request.urlopen(f"{url}/", timeout=WAIT_TIMEOUT).read().decode()
        fleet = json.load(urllib.request.urlopen(f"{url}/scanners", timeout=WAIT_TIMEOUT))
        run_started = json.loads(wait_for(process, '"run_started"'))
    assert "This is a demo: bundled data from the past answer, not the sources." in page
    assert fleet["demo"] is True
    assert run_started["demo"] is True


# messages


def test_nine_scanners_without_keys_are_one_line() -> None:
    done = run("run")
    assert done.stderr.splitlines()[0] == "9 more scanners need keys or settings: resilient-scan list"
    assert "not configured" not in done.stderr
    assert "✓ market_movers: 1 candidate\n" in done.stderr
    assert "✓ gap_up: 0 candidates\n" in done.stderr
    assert done.stdout.splitlines()[-1] == (
        "5 of 5 scanners answered as of 2013-01-24 (a demo on bundled data of that time, as nothing is configured) "
        "and found 2 candidates: AAPL, MSFT."
    )


def test_verbose_says_more_and_more(distribute: Distribute) -> None:
    site = str(distribute("acme-own", {"own": "acme_own:Own"}, {"acme_own.py": OWN.format(fails="yes")}))
    plain, more, most = (
        run("run", *options, code=1, PYTHONPATH=site).stderr.splitlines() for options in ([], ["-v"], ["-vv"])
    )
    lacking = [line for line in more if line.startswith("not configured: ")]
    assert len(lacking) == 14
    assert [line for line in plain if line.startswith("not configured: ")] == []
    failed = "own: attempt 1 ended: error: ValueError: HTTP 500"
    assert failed not in plain
    assert failed in more
    assert [line for line in more if re.fullmatch(r"The run took \S+: 1 error", line)] != []
    assert [line for line in more if line.startswith("AttemptStarted: ")] == []
    assert [line for line in most if line.startswith("AttemptStarted: scanner=own, attempt=1")] != []
    assert failed in most


def test_verbose_replaces_the_live_table_by_lines() -> None:
    text = on_a_terminal("run", "-v", stream="stderr", NO_COLOR="1")
    assert "✓ market_movers: 1 candidate" in text
    assert "scans ended" not in text
    assert "error: -q says nothing and -v says more" in run("run", "-q", "-v", code=2).stderr


@pytest.mark.parametrize("form", [[], ["--json"], ["--log-format", "json"]])
def test_quiet_writes_nothing_to_stderr_if_all_is_well(form: list[str], site: str) -> None:
    done = run("run", "--quiet", *form, PYTHONPATH=site)
    assert done.stderr == ""
    assert "OWN" in done.stdout
    said = run("run", PYTHONPATH=site).stderr
    for noise in NOISE:
        assert noise in said


def test_quiet_writes_everything_if_not_all_is_well(distribute: Distribute) -> None:
    site = str(distribute("acme-own", {"own": "acme_own:Own"}, {"acme_own.py": OWN.format(fails="yes")}))
    done = run("run", "-q", code=1, PYTHONPATH=site)
    assert "own" in done.stdout
    for noise in ("PRINTED", "WRITTEN", "CHILD\nCHILD", "own: HTTP 500", "Running 1 scanner "):
        assert noise in done.stderr
    unknown = run("run", "-q", "--only", "owm", code=2, PYTHONPATH=site)
    assert unknown.stderr == "error: unknown scanner 'owm'; did you mean 'own'?\n"


def test_quiet_keeps_nothing_to_itself_when_a_signal_ends_it(distribute: Distribute, tmp_path: Path) -> None:
    text = HANGING.replace("threading.Event().wait()", "open('began', 'w').close(); threading.Event().wait()")
    site = distribute("acme-hanging", {"hanging": "acme_hanging:Hanging"}, {"acme_hanging.py": text})
    process = subprocess.Popen(
        [SCRIPT, "run", "-q", "--textfile", "scan.prom"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(site)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            eventually((tmp_path / "began").exists)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=WAIT_TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "hanging began" in err
    assert "hanging" in out


# tables


@pytest.mark.parametrize("columns", [120, 80, 60, 50])
def test_a_terminal_gets_no_broken_words(columns: int) -> None:
    text = on_a_terminal("run", columns=columns, NO_COLOR="1", COLUMNS="").replace("\r\n", "\n")
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    written = text.split()
    for word in [*BUILT_IN, "2013-01-23", "completed", "101,739,300", "configured)", "candidates:"]:
        assert word in written, text
    assert ("mean_reversion" in written) is (columns >= 80)
    assert on_a_terminal("run", columns=200, NO_COLOR="1", COLUMNS=str(columns)).count("\n") == text.count("\n")


def test_a_long_note_goes_below_its_row_where_there_is_no_room_next_to_it(distribute: Distribute) -> None:
    site = str(distribute("acme-own", {"own": "acme_own:Own"}, {"acme_own.py": OWN.format(fails="yes")}))
    wide, narrow = (
        on_a_terminal("run", "--demo", columns=columns, NO_COLOR="1", COLUMNS="", code=1, PYTHONPATH=site).replace(
            "\r\n", "\n"
        )
        for columns in (120, 80)
    )
    assert re.search(r"^own +own +error +0 +\S+  ValueError: HTTP 500\b", wide, re.MULTILINE)
    assert re.search(r"^own +own +error +0 +\S+\n    ValueError: HTTP 500\b", narrow, re.MULTILINE)
