"""The real command in a process of its own: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.command import SCRIPT, WAIT_TIMEOUT, on_a_terminal, run, started, wait_for
from tests.support.fixtures import Distribute

BUILT_IN = ["gap_up", "high_52w_breakout", "market_movers", "rsi_oversold", "volume_accumulation"]

HANGING = '''
import sys, threading
class Hanging:
    """Hang until the process ends."""
    name = "hanging"
    pipeline = "faulty"
    def scan(self, state):
        print("hanging began", file=sys.stderr, flush=True)
        threading.Event().wait()
'''
FAILING = """
class Failing:
    name = "failing"
    pipeline = "faulty"
    retry = breaker = None
    def scan(self, state):
        raise ValueError("HTTP 500 \\x1b[31m error")
"""


def test_with_nothing_configured_it_finds_the_day_apple_fell(tmp_path: Path) -> None:
    done = run("run", cwd=tmp_path)
    assert "\x1b" not in done.stdout + done.stderr
    for name in BUILT_IN:
        assert any(line.split()[:3:2] == [name, "completed"] for line in done.stdout.splitlines()), done.stdout
    assert any("AAPL" in line and "market_movers" in line and "12.4" in line for line in done.stdout.splitlines())
    last = done.stdout.splitlines()[-1]
    assert "2013-01-24" in last
    assert "bundled" in last
    assert "Running 5 scanners concurrently (max 8 workers) on bundled data (demo)..." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_report(tmp_path: Path) -> None:
    done = run("run", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    keys = {"run_id", "started_at", "duration", "complete", "demo", "counts", "results", "candidates", "tool_logs"}
    assert set(report) == keys
    assert report["demo"] is True
    assert sorted(report["results"]) == BUILT_IN
    assert report["complete"] is True
    assert report["counts"]["completed"] == 5
    assert "AAPL" in {candidate["ticker"] for candidate in report["candidates"]}


def test_sequential_finds_the_same() -> None:
    concurrent, sequential = (json.loads(run("run", "--json", *more).stdout) for more in ([], ["--sequential"]))
    assert concurrent["candidates"] == sequential["candidates"]
    assert list(concurrent["results"]) == list(sequential["results"])


def test_only_and_pipeline_choose() -> None:
    report = json.loads(run("run", "--json", "--only", "gap_up,rsi_oversold", "--only", "market_movers").stdout)
    assert sorted(report["results"]) == ["gap_up", "market_movers", "rsi_oversold"]
    listed = json.loads(run("list", "--json").stdout)
    report = json.loads(run("run", "--json", "--pipeline", "momentum").stdout)
    of_it = [row["name"] for row in listed if row["pipeline"] == "momentum" and row["configured"]]
    assert sorted(report["results"]) == sorted(of_it) != []


def test_another_date_gives_another_answer() -> None:
    report = json.loads(run("run", "--json", "--as-of", "2012-11-14").stdout)
    assert report["complete"] is True
    assert report["candidates"] != json.loads(run("run", "--json").stdout)["candidates"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--as-of", "2099-01-01"], "2013-03-01"),
        (
            ["run", "--as-of", "24.1.2013"],
            "Invalid value for '--as-of': '24.1.2013' is not a date; write it as 2013-01-24",
        ),
        (["run", "--deadline", "soon"], "Invalid value for '--deadline': 'soon' is not a duration above zero"),
        (["run", "--deadline", "0s"], "'0s' is not a duration above zero; write it as 250ms, 5s, 10m or 1h"),
        (["run", "--max-workers", "0"], "Invalid value for '--max-workers'"),
        (["run", "--metrics-port", "70000"], "Invalid value for '--metrics-port'"),
        (["run", "--hold", "5s"], "needs --metrics-port"),
        (["run", "--only", "market_moversss"], "did you mean 'market_movers'?"),
        (["run", "--pipeline", "no_such"], "unknown pipeline 'no_such'"),
        (["run", "--onyl", "x"], "--only"),
        (["walk"], "walk"),
    ],
)
def test_a_usage_error_is_one_sentence_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments, code=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_scanner_that_fails_gives_exit_code_1_and_the_others_their_results(distribute: Distribute) -> None:
    site = distribute("acme-failing", {"failing": "acme_failing:Failing"}, {"acme_failing.py": FAILING})
    done = run("run", "--demo", code=1, PYTHONPATH=str(site))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failing")]
    assert line.split()[2] == "error"
    assert "ValueError: HTTP 500" in line
    assert done.stdout.count(" completed ") == 5
    assert "\x1b" not in done.stdout


def test_a_broken_plugin_is_reported_and_the_rest_run(distribute: Distribute) -> None:
    site = distribute("acme-broken", {"broken": "acme_broken:x"}, {"acme_broken.py": "import no_such_thing"})
    done = run("run", "--json", "--demo", code=1, PYTHONPATH=str(site))
    assert "problem: scanner broken of acme-broken (acme_broken:x): its import failed" in done.stderr
    assert json.loads(done.stdout)["counts"]["completed"] == 5
    assert "no_such_thing" in run("list", PYTHONPATH=str(site)).stderr
    assert run("run", "--demo", "--only", "gap_up", PYTHONPATH=str(site)).returncode == 0
    refused = run("run", "--only", "broken", code=2, PYTHONPATH=str(site))
    assert "no_such_thing" in refused.stderr


def test_the_deadline_ends_the_run_and_a_hanging_scanner_costs_nobody_else(distribute: Distribute) -> None:
    site = distribute("acme-hanging", {"hanging": "acme_hanging:Hanging"}, {"acme_hanging.py": HANGING})
    report = json.loads(run("run", "--demo", "--json", "--deadline", "4s", code=1, PYTHONPATH=str(site)).stdout)
    assert report["results"]["hanging"]["status"] == "timeout"
    assert report["counts"]["completed"] == 5
    assert report["duration"] < 20


def test_ctrl_c_gives_the_report_so_far_and_exit_code_130(distribute: Distribute) -> None:
    site = distribute("acme-hanging", {"hanging": "acme_hanging:Hanging"}, {"acme_hanging.py": HANGING})
    with started("run", "--json", "--only", "hanging", PYTHONPATH=str(site)) as process:
        wait_for(process, "hanging began")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 130
    assert json.loads(out)["results"]["hanging"]["status"] == "skipped"
    assert "Traceback" not in err


def test_the_metrics_are_scraped_while_they_are_held() -> None:
    with started("run", "--metrics-port", "0", "--hold", "1h") as process:
        url = wait_for(process, "metrics stay at").split()[3]
        assert url.startswith("http://127.0.0.1:")
        text = urllib.request.urlopen(url, timeout=WAIT_TIMEOUT).read().decode()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 0
    assert 'resilient_scan_scans_total{pipeline="' in text
    values = [
        line.rsplit(" ", 1)[1]
        for line in text.splitlines()
        if line.startswith("resilient_scan_scans_total{") and 'status="completed"' in line
    ]
    assert values == ["1.0"] * 5
    assert "_created" not in text


def test_a_taken_metrics_port_is_a_usage_error() -> None:
    with started("run", "--metrics-port", "0", "--hold", "1h") as process:
        port = wait_for(process, "metrics stay at").split()[3].rpartition(":")[2].partition("/")[0]
        done = run("run", "--metrics-port", port, code=2)
    assert f"port {port}" in done.stderr
    assert done.stdout == ""


def test_a_terminal_gets_colours_unless_it_does_not_want_them() -> None:
    assert "\x1b[32m" in on_a_terminal("run")
    plain = on_a_terminal("run", NO_COLOR="1")
    assert "\x1b" not in plain
    assert "completed" in plain


def test_an_output_that_nobody_reads_or_that_has_no_room_is_no_traceback() -> None:
    with started("run", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([SCRIPT, "run"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=WAIT_TIMEOUT)
    assert done.returncode == 1
    assert "error: the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_tells_what_is_there() -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert sorted(row["name"] for row in rows if row["configured"]) == BUILT_IN
    assert all(row["summary"] and row["pipeline"] and row["configured"] is (row["to_set"] == "") for row in rows)
    lines = run("list").stdout.splitlines()
    for row in rows:
        assert any(line.startswith(row["name"]) for line in lines)
        told = f"not configured: {row['name']}: {row['to_set']}"
        assert (told in lines) is not row["configured"]


def test_without_the_extra_the_command_names_it() -> None:
    code = "import sys; sys.modules['click'] = None; from resilient_scan.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_TIMEOUT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'resilient-scan[cli]'" in line


def test_a_shell_completes_the_command() -> None:
    words = {"_RESILIENT_SCAN_COMPLETE": "bash_complete", "COMP_WORDS": "resilient-scan ex", "COMP_CWORD": "1"}
    shown = subprocess.check_output([SCRIPT], env={**os.environ, **words}, text=True, timeout=WAIT_TIMEOUT)
    assert shown.split() == ["plain,explain", "plain,export-grafana"]


def test_importing_the_library_pulls_in_the_core_dependencies_only() -> None:
    def modules(statement: str) -> set[str]:
        code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
        names = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=WAIT_TIMEOUT).split()
        return {name for name in names if not name.startswith("_sysconfigdata")}  # the interpreter's own, by platform

    core = {"cachetools", "msgspec", "prometheus_client", "tenacity"}  # pybreaker comes with the first breaker
    pulled_in = modules("from resilient_scan import ScanRunner, PrometheusMetrics") - sys.stdlib_module_names
    assert core < pulled_in
    # what they pull in themselves is their affair
    assert pulled_in - modules(f"import {', '.join(core)}") == {"resilient_scan"}
