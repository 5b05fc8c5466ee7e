"""The recipe for cron: the lines of its crontab, run as cron runs them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.docs.running import parse
from tests.recipes.following import SCRIPTS, WAIT_TIMEOUT, Recipe

FIELDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday


class Crontab:
    """A crontab as cron reads it (crontab(5)), and what it would mail; bundled data stand in for sources."""

    def __init__(self, text: str, home: Path) -> None:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        settings = [line for line in lines if re.match(r"\w+=", line)]
        self._home = home
        self._environment = {"HOME": str(home), "LOGNAME": "scan", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        self._environment |= dict(line.split("=", 1) for line in settings)
        self.jobs = [line.split(maxsplit=5) for line in lines if line not in settings]

    def run(self, job: list[str]) -> str:
        """Run a job as cron does, and return what it would mail."""
        assert not re.search(r"(?<!\\)%", job[5]), "cron makes a new line of it"
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        done = subprocess.run(
            ["env", "-i", *environment, "sh", "-c", job[5].replace(" run ", " run --demo ")],
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_TIMEOUT,
        )
        return done.stdout


@pytest.fixture
def crontab(tmp_path: Path) -> Crontab:
    page = Recipe("cron", tmp_path)
    assert page.left == []
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(SCRIPTS)
    return Crontab((tmp_path / "crontab.txt").read_text(), tmp_path)


def test_every_line_has_five_times_in_their_ranges(crontab: Crontab) -> None:
    assert len(crontab.jobs) == 2
    for job in crontab.jobs:
        parse(job[5])
        for text, (low, high) in zip(job[:5], FIELDS, strict=True):
            assert re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?", text), text
            assert all(low <= int(number) <= high for number in re.findall(r"\d+", text.partition("/")[0]))


def test_a_run_in_which_all_answered_is_silent_and_the_next_continues(crontab: Crontab, tmp_path: Path) -> None:
    scan, look_back = crontab.jobs
    for expected in ("completed", "cached"):
        assert crontab.run(scan) == ""
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["complete"]
        assert set(report["counts"]) == {expected}
    assert not (tmp_path / "report.new").exists()
    mail = crontab.run(look_back)
    assert mail.count("5 of 5") == 2


def test_a_run_in_which_some_did_not_answer_is_mailed_and_its_report_kept(crontab: Crontab, tmp_path: Path) -> None:
    with (tmp_path / "scan.toml").open("a") as settings:
        settings.write('\n[scanners.gap_up]\ntimeout = { total = "1ms" }\n')
    mail = crontab.run(crontab.jobs[0])
    assert "gap_up: timeout" in mail
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"]["completed"] == 4


def test_wrong_settings_are_mailed_and_the_old_report_stays(crontab: Crontab, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("the old one")
    with (tmp_path / "scan.toml").open("a") as settings:
        settings.write("\n[defaults]\nretry = { atempts = 3 }\n")
    assert "did you mean 'attempts'?" in crontab.run(crontab.jobs[0])
    assert (tmp_path / "report.json").read_text() == "the old one"
