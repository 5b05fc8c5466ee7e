"""Signals to the real command: SIGTERM ends a run as Ctrl-C does, and no signal shows a traceback."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import SCRIPT, WAIT_TIMEOUT, environment, read_all, run, started, wait_for
from tests.e2e.served import Switches, configured
from tests.e2e.test_command import HANGING
from tests.support.fixtures import Distribute
from tests.support.waiting import eventually

SLOW_IMPORT = """
import sys, threading
print("import began", file=sys.stderr, flush=True)
threading.Event().wait()
"""
LEAVING = """
import sys, threading, time
def stay():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print("the interpreter exits", file=sys.stderr, flush=True)
    threading.Event().wait()
class Leaving:
    name = "leaving"
    pipeline = "own"
    def scan(self, state):
        threading.Thread(target=stay, daemon=False).start()
        return []
"""
SLOW_START = """
import sys, threading
if sys.argv[0].endswith("resilient-scan"):
    class Finder:
        def find_spec(self, name, *_):
            if name == "{module}":
                sys.stderr.write("start-up began\\n")
                threading.Event().wait()
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def hanging(distribute: Distribute) -> str:
    return str(distribute("acme_hanging", {"hanging": "acme_hanging:Hanging"}, {"acme_hanging.py": HANGING}))


@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGTERM, 2, 143), (signal.SIGINT, 1, 130)]
)
def test_a_signal_gives_the_report_so_far_and_the_metrics(
    number: int, times: int, code: int, hanging: str, tmp_path: Path
) -> None:
    target = tmp_path / "scan.prom"
    arguments = ("run", "--demo", "--json", "--only", "hanging,gap_up", "--textfile", str(target))
    with started(*arguments, PYTHONPATH=hanging) as process:
        wait_for(process, "hanging began")
        wait_for(process, "✓ gap_up") if number == signal.SIGTERM and times == 1 else None
        for _ in range(times):
            process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == code
    assert json.loads(out)["results"]["hanging"]["status"] == "skipped"
    assert "Traceback" not in err
    assert 'resilient_scan_scans_total{pipeline="faulty",scanner="hanging",status="skipped"} 1.0' in target.read_text()


def test_timeout_of_cron_gets_the_report(hanging: str) -> None:
    timeout = shutil.which("timeout")
    assert timeout is not None
    done = subprocess.run(  # it sends SIGTERM to the command, and then to its group, the command included
        [timeout, "--preserve-status", "8", SCRIPT, "run", "--json", "--only", "hanging"],
        capture_output=True,
        text=True,
        timeout=WAIT_TIMEOUT,
        env=environment(PYTHONPATH=hanging, RESILIENT_SCAN__SCANNERS__hanging__TIMEOUT__TOTAL="1h"),
    )
    assert done.returncode == 143
    assert json.loads(done.stdout)["counts"] == {"skipped": 1}


def test_sigterm_gives_a_terminal_its_cursor_back(hanging: str) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [SCRIPT, "run", "--only", "hanging"],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=environment(TERM="xterm-256color", PYTHONPATH=hanging),
    ) as process:
        os.close(follower)
        text = b""
        while b"of 1 scans ended" not in text:
            text += os.read(leader, 65536)
        process.send_signal(signal.SIGTERM)
        text += read_all(leader)
    os.close(leader)
    assert process.returncode == 143
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")


def test_a_sigterm_that_was_ignored_stays_ignored(hanging: str) -> None:
    with subprocess.Popen(
        ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", SCRIPT, "run", "--json", "--only", "hanging"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=hanging, RESILIENT_SCAN__SCANNERS__hanging__TIMEOUT__TOTAL="1500ms"),
    ) as process:
        wait_for(process, "hanging began")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 1
    assert json.loads(out)["counts"] == {"timeout": 1}


@pytest.mark.parametrize("module", ["click", "resilient_scan.cli.main", "rich.live"])
def test_ctrl_c_while_it_starts_is_no_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_START.format(module=module))
    with started("run", PYTHONPATH=str(tmp_path)) as process:
        wait_for(process, "start-up began")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("arguments", [["run"], ["list", "--json"], ["check"]])
def test_a_signal_while_packages_are_imported_is_no_traceback(
    arguments: list[str], number: int, code: int, distribute: Distribute
) -> None:
    site = distribute("acme_slow", {"slow": "acme_slow:Slow"}, {"acme_slow.py": SLOW_IMPORT})
    with started(*arguments, PYTHONPATH=str(site)) as process:
        wait_for(process, "import began")
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == code
    assert "Traceback" not in err
    assert out == ""


def test_ctrl_c_while_the_interpreter_waits_for_foreign_threads_is_no_traceback(distribute: Distribute) -> None:
    site = distribute("acme_left", {"leaving": "acme_left:Leaving"}, {"acme_left.py": LEAVING})
    with started("run", "--only", "leaving", PYTHONPATH=str(site)) as process:
        wait_for(process, "the interpreter exits")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.servers
def test_a_service_starts_and_serves_though_its_log_has_no_room(tmp_path: Path) -> None:
    switches = Switches(tmp_path, "alpha")
    arguments = [SCRIPT, "serve", "--config", configured(tmp_path), "--pipeline", "switched", "--every", "200ms"]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(
            [*arguments, "--jitter", "0"], stdout=subprocess.PIPE, stderr=full, env=environment(**switches.environ)
        ) as process,
    ):
        eventually(lambda: switches.asked("alpha") or process.poll() is not None, "it runs")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_TIMEOUT) == 0


def test_the_command_in_a_process_of_others_leaves_their_signals_alone() -> None:
    code = (
        "import signal; before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]; "
        "from resilient_scan.cli.main import main; main(['list', '--json']); "
        "assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_TIMEOUT)
    assert done.returncode == 0, done.stderr


def test_the_exit_codes_are_in_the_help() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "130 Ctrl-C, 141 nobody reads stdout, 143 SIGTERM" in text
