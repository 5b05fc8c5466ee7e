"""Settings on the command line, and the commands that look at a fleet: check, explain, verify, run --faults."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.command import WAIT_TIMEOUT, on_a_terminal, run, started, wait_for
from tests.e2e.test_command import BUILT_IN
from tests.support.fixtures import Distribute
from tests.support.settings import write_settings

FLICKERING = """
import itertools
numbers = itertools.count()
class Flickering:
    \'\'\'Find something else each time.\'\'\'
    name = "flickering"
    pipeline = "faulty"
    def scan(self, state):
        return [{"ticker": f"T{next(numbers)}", "source": "flickering", "context": "found"}]
"""
FAILING = """
class Failing:
    name = "failing"
    pipeline = "faulty"
    retry = breaker = None
    def scan(self, state):
        raise ValueError("HTTP 500 error")
"""
DATED = """
class Dated:
    name = "dated"
    pipeline = "own"
    def scan(self, state, context):
        return [{"ticker": "D", "source": "dated", "context": f"{state} {dict(context.settings)}"}]
"""


def test_settings_decide_who_runs_how(tmp_path: Path) -> None:
    config = write_settings(
        tmp_path,
        """
[scanner_execution]
max_workers = 2
deadline = "50s"

[scanners.gap_up]
enabled = false

[scanners.market_movers.settings]
min_change = 99.0
""",
    )
    done = run("run", "--demo", "--json", "--config", config)
    report = json.loads(done.stdout)
    assert sorted(report["results"]) == [name for name in BUILT_IN if name != "gap_up"]
    assert report["results"]["market_movers"]["candidates"] == []
    assert "(max 2 workers)" in done.stderr
    assert "switched off by the settings: gap_up" in done.stderr
    assert "(max 3 workers)" in run("run", "--demo", "--config", config, "--max-workers", "3").stderr
    assert "sequentially" in run("run", "--demo", "--config", config, "--sequential").stderr
    off = run("run", "--config", config, "--only", "gap_up", code=2)
    assert f"scanner 'gap_up' is switched off by {config}:7" in off.stderr
    rows = {row["name"]: row["enabled"] for row in json.loads(run("list", "--json", "--config", config).stdout)}
    assert [name for name, enabled in rows.items() if not enabled] == ["gap_up"]


def test_a_deadline_of_the_settings_holds_and_the_command_line_wins(tmp_path: Path) -> None:
    config = write_settings(tmp_path, '[scanner_execution]\ndeadline = "200ms"\n')

    def why(*more: str) -> str:
        done = run("run", "--json", "--faults", "--only", "hanging", "--config", config, *more, code=1)
        return str(json.loads(done.stdout)["results"]["hanging"]["error"]["message"])

    assert "the run's deadline" in why()
    assert why("--deadline", "10s") == "timeout after 0.4s"


def test_variables_are_read_without_a_file_and_a_file_is_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "resilient-scan.toml").write_text("nonsense")
    done = run("run", "--json", cwd=tmp_path, RESILIENT_SCAN__SCANNERS__gap_up__ENABLED="false")
    assert "gap_up" not in json.loads(done.stdout)["results"]
    wrong = run("run", code=2, RESILIENT_SCAN__DEFAULTS__RETRY__ATEMPTS="3")
    assert "did you mean" in wrong.stderr


WRONG = """
[defaults]
retry = { atempts = 3 }
cache = { ttl = 0 }
"""


@pytest.mark.parametrize("command", [["run"], ["list"], ["verify"], ["explain", "gap_up"]])
def test_wrong_settings_are_told_at_once_one_a_line(command: list[str], tmp_path: Path) -> None:
    done = run(*command, "--config", write_settings(tmp_path, WRONG), code=2)
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert "scan.toml:3: unknown key defaults.retry.atempts; did you mean 'attempts'?" in first
    assert second.startswith("error: ")
    assert "scan.toml:4: " in second


def test_a_missing_file_is_an_error() -> None:
    done = run("run", "--config", "no_such.toml", code=2)
    (line,) = done.stderr.splitlines()
    assert "no_such.toml" in line


def test_scanners_of_somebody_else_get_today_and_their_settings(distribute: Distribute, tmp_path: Path) -> None:
    site = distribute("acme-dated", {"dated": "acme_dated:Dated"}, {"acme_dated.py": DATED})
    config = write_settings(tmp_path, "[scanners.dated]\nsettings = { lookback_days = 14 }\n")
    done = run("run", "--only", "dated", "--config", config, PYTHONPATH=str(site))
    assert "lookback_days" in done.stdout
    assert "2013" not in done.stdout
    assert "bundled" not in done.stdout


def test_check_has_nothing_to_say_about_what_ships() -> None:
    done = run("check")
    *others, last = done.stdout.splitlines()
    assert re.fullmatch(r"no findings in \d+ scanners and the environment", last)
    *others, isolation = others
    assert all(line.startswith("not configured: ") for line in others)
    assert isolation.startswith("isolation: in threads, and fit for processes: analyst_revisions, ")
    assert done.stderr == ""


BLOCKS = """
import time
from resilient_scan import scanner

@scanner(pipeline="p")
async def feed(state):
    time.sleep(1)
    return []

@scanner(pipeline="p")
def plain(state):
    time.sleep(1)
    return []
"""


def test_check_hints_at_calls_that_block_a_loop(distribute: Distribute) -> None:
    site = distribute("acme-feed", {"a": "acme_feed:feed", "b": "acme_feed:plain"}, {"acme_feed.py": BLOCKS})
    done = run("check", PYTHONPATH=str(site))
    (hint,) = [line for line in done.stdout.splitlines() if line.startswith("hint: ")]
    place = f"{site}/acme_feed.py:7"
    assert hint == f"hint: feed: time.sleep(...) blocks the event loop ({place}); use await asyncio.sleep(...)"


def test_check_tells_everything_that_is_wrong(distribute: Distribute, tmp_path: Path) -> None:
    site = distribute("acme-broken", {"broken": "acme_broken:x"}, {"acme_broken.py": "import no_such_thing"})
    done = run("check", "--config", write_settings(tmp_path, WRONG), code=2, PYTHONPATH=str(site))
    lines = done.stdout.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 3
    assert "no_such_thing" in done.stdout
    assert re.match(r"3 errors in \d+ scanners and ", lines[-1])
    strange = write_settings(tmp_path, "[scanners.gap_upp]\nenabled = true\n")
    done = run("check", "--config", strange, code=2, PYTHONPATH=str(site))
    assert "scan.toml:1: unknown scanner gap_upp; did you mean 'gap_up'?" in done.stdout
    assert "no_such_thing" in done.stdout


def test_check_warns_of_options_that_do_not_work_together(tmp_path: Path) -> None:
    text = "[scanners.gap_up]\ntimeout = { total = 10, attempt = 8 }\nretry = { attempts = 3 }\n"
    done = run("check", "--config", write_settings(tmp_path, text))
    assert done.stdout.startswith("warning: gap_up: ")
    assert done.stdout.splitlines()[-1].endswith("scan.toml")
    assert "error" not in done.stdout
    hourly = run("check", "--interval", "1h")
    assert "when the next run comes after 3600s" in hourly.stdout
    assert "warning" in hourly.stdout.splitlines()[-1]


def test_explain_runs_one_scanner_and_says_what_happened() -> None:
    done = run("explain", "gap_up")
    assert done.stdout.startswith("gap_up (pipeline momentum)")
    assert "completed" in done.stdout
    assert "Running 1 scanner " in done.stderr
    assert "LAST SCANS: none yet" in run("explain", "gap_up", "--no-run").stdout
    assert "FLIGHT RECORDER, 1 scan" in run("explain", "gap_up", "--trace").stdout
    assert "did you mean 'gap_up'?" in run("explain", "gap_upp", code=2).stderr


def test_explain_names_the_line_that_set_a_number(tmp_path: Path) -> None:
    config = write_settings(tmp_path, '[scanners.gap_up]\ntimeout = { total = "7s" }\n')
    done = run("explain", "gap_up", "--no-run", "--demo", "--config", config)
    assert "scan.toml:2" in "".join(done.stdout.split())  # where the path is long, a line may end anywhere in it
    assert "7s" in done.stdout


def test_explain_shows_where_a_thread_hangs() -> None:
    done = run("explain", "hanging", "--faults")
    assert "THREADS THAT DID NOT STOP" in done.stdout
    assert "release.wait()" in done.stdout


def test_verify_shows_that_both_ways_find_the_same() -> None:
    done = run("verify")
    for name in BUILT_IN:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
        assert line.split()[-1] == "same"
    assert "5 of 5 scanners found the same both times; sequentially " in done.stdout
    assert "times as fast" in done.stdout or "nothing gained" in done.stdout  # on a machine with other work
    assert "held back 50ms" in done.stdout


def test_verify_shows_every_difference(distribute: Distribute) -> None:
    site = distribute("acme-flickering", {"f": "acme_flickering:Flickering"}, {"acme_flickering.py": FLICKERING})
    done = run("verify", "--only", "flickering", code=1, PYTHONPATH=str(site))
    assert "DIFFERENT" in done.stdout
    assert "flickering: only sequentially: " in done.stdout
    assert "ticker='T1'" in done.stdout
    assert "flickering: only concurrently: " in done.stdout
    assert "0 of 1 scanner found the same" in done.stdout


def test_verify_cannot_compare_what_did_not_answer(distribute: Distribute) -> None:
    site = distribute("acme-failing", {"failing": "acme_failing:Failing"}, {"acme_failing.py": FAILING})
    done = run("verify", "--only", "failing", code=1, PYTHONPATH=str(site))
    assert "no answer" in done.stdout
    assert "failing: sequentially it ended error: ValueError: HTTP 500 error" in done.stdout


def statuses(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 3}


def test_faults_show_every_layer_at_work_and_cost_the_sound_ones_nothing() -> None:
    done = run("run", "--faults", code=1)
    first, mark, second = done.stdout.partition("SECOND RUN")
    assert mark
    sound = dict.fromkeys(BUILT_IN, "completed")
    faulty = {"slow": "timeout", "hanging": "timeout", "flapping": "completed", "broken": "error"}
    assert statuses(first).items() >= {**sound, **faulty}.items()
    later = {"slow": "timeout", "hanging": "rejected", "flapping": "stale", "broken": "rejected"}
    assert statuses(second).items() >= {**dict.fromkeys(BUILT_IN, "cached"), **later}.items()
    for words in ("retry: ", "stale cache: ", "open breaker: ", "abandoned", "cache: not called again"):
        assert words in done.stdout
    assert "5 of the 5 sound scanners answered both times." in done.stdout
    assert "hanging hangs to this moment" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "does not work" not in done.stderr


def test_faults_in_json_are_one_report() -> None:
    report = json.loads(run("run", "--faults", "--json", code=1).stdout)
    assert report["counts"] == {"completed": 6, "timeout": 2, "error": 1}
    assert len(report["results"]["slow"]["candidates"]) == 2


def test_faults_that_share_a_name_with_an_installed_scanner_are_refused(distribute: Distribute) -> None:
    code = FAILING.replace('"failing"', '"broken"')
    site = distribute("acme-failing", {"broken": "acme_failing:Failing"}, {"acme_failing.py": code})
    done = run("run", "--faults", code=2, PYTHONPATH=str(site))
    assert "an installed scanner is named 'broken' too" in done.stderr


def test_a_terminal_sees_the_run_go_on_and_nothing_of_it_stays() -> None:
    text = on_a_terminal("run", "--faults", "--json", stream="stderr", code=1)
    assert "of 9 scans ended" in text
    assert "hanging" in text
    assert "Running 9 scanners" not in text
    assert "\x1b[?25h" in text  # the cursor is back
    plain = on_a_terminal("run", stream="stderr", NO_COLOR="1")
    assert "\x1b[1m" not in plain
    assert "\x1b[3" not in plain
    assert "Running 5 scanners" in on_a_terminal("run", stream="stderr", TERM="dumb")


def test_ctrl_c_shows_how_far_the_run_with_faults_came() -> None:
    with started("run", "--faults") as process:
        wait_for(process, "broken: breaker open")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 130
    assert "FIRST RUN: 9 scanners" in out
    assert "To look into one of them" not in out
    assert "Traceback" not in err


def test_ctrl_c_in_the_middle_of_a_run_shows_what_there_is() -> None:
    with started("run", "--faults", "--only", "hanging,slow", "--sequential") as process:
        wait_for(process, "Running 2 scanners sequentially")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 130
    assert "skipped" in out
    assert "Traceback" not in err
