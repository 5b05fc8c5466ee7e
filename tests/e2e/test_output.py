"""stdout is for data: whatever scanners, their children and their imports do to it, the data arrive whole."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import SCRIPT, WAIT_TIMEOUT, environment, on_a_terminal, run, started
from tests.support.fixtures import Distribute

NOISY = """
import os, subprocess, sys
{at_import}
class Noisy:
    '''Make noise.'''
    name = "noisy"
    pipeline = "own"
    def scan(self, state):
        {in_scan}
        return [dict(ticker="ABC", source="noisy", context="found")]
"""
ONE = ("--only", "noisy")


def noisy(distribute: Distribute, in_scan: str = "pass", at_import: str = "pass") -> str:
    text = NOISY.format(in_scan=in_scan, at_import=at_import)
    return str(distribute("acme_noisy", {"noisy": "acme_noisy:Noisy"}, {"acme_noisy.py": text}))


@pytest.mark.parametrize(
    "deed",
    [
        "print('NOISE', flush=True)",
        "print('NOISE', file=sys.__stdout__, flush=True)",
        "sys.stdout.write('NOISE\\n')",
        "sys.stdout.buffer.write(b'NOISE\\n')",
        "os.write(1, b'NOISE\\n')",
        "subprocess.run(['echo', 'NOISE'], check=True)",
        "os.system('echo NOISE')",
    ],
)
def test_what_a_scanner_prints_goes_to_stderr(deed: str, distribute: Distribute) -> None:
    done = run("run", "--json", *ONE, PYTHONPATH=noisy(distribute, deed))
    assert json.loads(done.stdout)["counts"] == {"completed": 1}
    assert "NOISE\n" in done.stderr


@pytest.mark.parametrize(
    "deed",
    [
        "sys.stdout.close()",
        "sys.stdout.detach()",
        "sys.stdout = None",
        "sys.stdout = open(os.devnull, 'w')",
        "os.close(1)",
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
        "os.ftruncate(os.open('/proc/self/fd/1', os.O_WRONLY), 0) if os.path.isfile('/proc/self/fd/1') else None",
    ],
)
@pytest.mark.parametrize("options", [["--json"], []])
def test_what_a_scanner_does_to_stdout_costs_nobody_the_report(
    deed: str, options: list[str], distribute: Distribute, tmp_path: Path
) -> None:
    site = noisy(distribute, deed)
    with (tmp_path / "out").open("w+") as out:
        done = subprocess.run(
            [SCRIPT, "run", *options, *ONE],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WAIT_TIMEOUT,
            env=environment(PYTHONPATH=site),
        )
        out.seek(0)
        text = out.read()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "noisy" in text
    if options:
        assert json.loads(text)["counts"] == {"completed": 1}


def test_one_scanner_that_closes_stdout_costs_no_other_its_print(distribute: Distribute) -> None:
    noisy(distribute, "sys.stdout.close()")
    other = NOISY.format(at_import="pass", in_scan="print('NOISE')").replace('"noisy"', '"other"')
    site = distribute("acme_other", {"other": "acme_other:Noisy"}, {"acme_other.py": other})
    done = run("run", "--json", "--sequential", "--only", "noisy,other", PYTHONPATH=str(site))
    assert json.loads(done.stdout)["counts"] == {"completed": 2}
    assert "NOISE\n" in done.stderr


def test_a_child_that_goes_on_does_not_keep_the_reader_waiting(distribute: Distribute) -> None:
    deed = "self.child = subprocess.Popen(['sleep', '60'])"
    done = subprocess.run(
        [SCRIPT, "run", "--json", *ONE],
        stdout=subprocess.PIPE,  # is read to its end; the child holds stderr open, which is why that is no pipe here
        stderr=subprocess.DEVNULL,
        timeout=30,
        env=environment(PYTHONPATH=noisy(distribute, deed)),
    )
    assert json.loads(done.stdout)["counts"] == {"completed": 1}


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["list", "--json"], "json"),
        (["list"], "noisy"),
        (["explain", "noisy", "--no-run"], "noisy (pipeline own)"),
        (["verify", *ONE], "1 of 1 scanner found the same both times"),
        (["check"], "no findings in"),
    ],
)
def test_what_an_import_prints_goes_to_stderr(arguments: list[str], data: str, distribute: Distribute) -> None:
    site = noisy(distribute, at_import="print('NOISE'); os.write(1, b'RAW\\n'); os.system('echo CHILD')")
    done = run(*arguments, PYTHONPATH=site)
    assert not {"NOISE", "RAW", "CHILD"} & set(done.stdout.split())
    assert {"NOISE", "RAW", "CHILD"} <= set(done.stderr.split())
    assert data in done.stdout or "noisy" in {row["name"] for row in json.loads(done.stdout)}


def test_help_and_version_go_to_stdout() -> None:
    for arguments in (["--help"], ["run", "--help"], ["--version"], ["-h"]):
        done = run(*arguments)
        assert "resilient-scan" in done.stdout
        assert done.stderr == ""


def test_a_table_fits_the_terminal_of_stdout(distribute: Distribute) -> None:
    text = on_a_terminal("run", *ONE, columns=72, PYTHONPATH=noisy(distribute, "print('NOISE')"))
    assert "NOISE" not in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).split("\r\n")[:4])) <= 72


def test_a_live_table_shows_what_is_printed_above_it(distribute: Distribute) -> None:
    text = on_a_terminal("run", *ONE, stream="stderr", PYTHONPATH=noisy(distribute, "print('NOISE')"))
    assert "NOISE" in text
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text.rpartition("NOISE")[2]


def test_a_reader_that_has_gone_ends_it_as_it_ends_other_tools(distribute: Distribute) -> None:
    with started("run", "--json", *ONE, PYTHONPATH=noisy(distribute)) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=WAIT_TIMEOUT)
    assert process.returncode == 141  # as a shell says of a process that SIGPIPE has ended
    assert "Traceback" not in err
    assert "error" not in err


@pytest.mark.parametrize("arguments", [["run", "--json", *ONE], ["list"], ["check"], ["--help"], ["--version"]])
def test_a_full_disk_under_stdout_is_one_sentence(arguments: list[str], distribute: Distribute) -> None:
    site = noisy(distribute, "print('NOISE')")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [SCRIPT, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WAIT_TIMEOUT,
            env=environment(PYTHONPATH=site),
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_missing_or_full_cost_nothing_but_what_goes_there(
    closed: str, distribute: Distribute, tmp_path: Path
) -> None:
    site = noisy(distribute, "print('NOISE'); print('NOISE', file=sys.stderr); os.system('echo NOISE')")
    command = f"{shlex.join([str(SCRIPT), 'run', '--json', *ONE])} {closed}"
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=WAIT_TIMEOUT,
        cwd=tmp_path,
        env=environment(PYTHONPATH=site, PYTHONDONTWRITEBYTECODE="1"),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(done.stdout)["counts"] == {"completed": 1}
    assert set(tmp_path.rglob("*")) == before


def test_a_closed_stream_leaves_no_number_for_the_next_file(distribute: Distribute) -> None:
    deed = "assert all(os.path.samestat(os.fstat(n), os.stat(os.devnull)) and os.get_inheritable(n) for n in range(3))"
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join([str(SCRIPT), 'run', *ONE])} <&- >&- 2>&-"],
        timeout=WAIT_TIMEOUT,
        env=environment(PYTHONPATH=noisy(distribute, deed)),
    )
    assert done.returncode == 0


def test_os_exit_costs_a_scanner_its_own_answer_only(distribute: Distribute) -> None:
    noisy(distribute)
    quitter = NOISY.format(at_import="pass", in_scan="os._exit(0)").replace('"noisy"', '"quitter"')
    site = distribute("acme_quitter", {"quitter": "acme_quitter:Noisy"}, {"acme_quitter.py": quitter})
    done = run("run", "--json", "--only", "noisy,quitter", code=1, PYTHONPATH=str(site))
    results = json.loads(done.stdout)["results"]
    assert results["noisy"]["status"] == "completed"
    assert results["quitter"]["status"] == "error"
    assert "os._exit(0)" in results["quitter"]["error"]["message"]


@pytest.mark.parametrize("deed", ["os._exit(0)", "os.execv('/bin/true', ['true'])", "sys.exit(0)"])
def test_an_import_that_ends_the_process_is_a_problem_and_the_rest_runs(deed: str, distribute: Distribute) -> None:
    site = noisy(distribute, at_import=deed)
    done = run("run", "--json", "--only", "gap_up,noisy", code=2, PYTHONPATH=site)
    assert "its import failed: SystemExit: " in done.stderr
    done = run("run", "--demo", "--json", code=1, PYTHONPATH=site)
    assert json.loads(done.stdout)["counts"] == {"completed": 5}
    assert "problem: scanner noisy of acme-noisy (acme_noisy:Noisy): its import failed: SystemExit: " in done.stderr


def test_a_child_of_a_scanner_may_end_as_it_likes(distribute: Distribute) -> None:
    deed = "import multiprocessing as m; p = m.get_context('fork').Process(target=os._exit, args=(3,)); p.start(); "
    deed += "p.join(); assert p.exitcode == 3, p.exitcode"
    done = run("run", "--json", *ONE, PYTHONPATH=noisy(distribute, deed))
    assert json.loads(done.stdout)["counts"] == {"completed": 1}


def test_a_child_of_a_scanner_can_be_terminated(distribute: Distribute) -> None:
    process = "m.get_context('fork').Process(target=time.sleep, args=(60,))"
    deed = f"import multiprocessing as m, time; ps = [{process} for _ in range(20)]; "
    deed = f"{deed}[(p.start(), p.terminate(), p.join(), p.exitcode == -15 or 1 / 0) for p in ps]"
    done = run("run", "--json", *ONE, PYTHONPATH=noisy(distribute, deed))
    assert json.loads(done.stdout)["counts"] == {"completed": 1}
    assert "Traceback" not in done.stderr


def test_os_exit_in_a_coroutine_costs_no_other_either(distribute: Distribute) -> None:
    noisy(distribute)
    text = NOISY.format(at_import="pass", in_scan="os._exit(0)").replace("    def scan", "    async def scan")
    site = distribute(
        "acme_quitter", {"quitter": "acme_quitter:Noisy"}, {"acme_quitter.py": text.replace('"noisy"', '"quitter"')}
    )
    done = run("run", "--json", "--only", "noisy,quitter", code=1, PYTHONPATH=str(site))
    assert json.loads(done.stdout)["counts"] == {"completed": 1, "error": 1}


def test_a_scanner_that_closes_every_descriptor_gets_no_report_into_a_file_of_its_own(
    distribute: Distribute, tmp_path: Path
) -> None:
    target = tmp_path / "data"
    opened = f"self.kept = [os.open({str(target)!r}, os.O_RDWR | os.O_CREAT) for _ in range(20)]"
    for deed, why in ((opened, "a scanner has closed it"), ("pass", "Bad file descriptor")):
        site = noisy(distribute, f"os.closerange(3, 256); {deed}")
        done = run("run", "--json", *ONE, code=1, PYTHONPATH=site)
        assert done.stderr.splitlines()[-1] == f"error: the output cannot be written: {why}"
        assert done.stdout == ""
        for path in Path(site).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert target.read_bytes() == b""


def test_in_a_process_of_others_nothing_is_taken_over() -> None:
    code = (
        "import os, sys; from resilient_scan.cli.main import main; real = os._exit; "
        "print('code', main(['list', '--json'])); print('after'); "
        "os.write(1, b'raw\\n'); assert os._exit is real"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_TIMEOUT, env=dict(os.environ)
    )
    assert "code 0\nafter\n" in done.stdout
    assert "raw\n" in done.stdout
