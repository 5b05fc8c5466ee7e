"""What the command tells of past runs: in a table for people, as JSON, and what it says where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resilient_scan import Cache, Policy, ScanRunner
from resilient_scan.cli.main import main
from resilient_scan.cli.screens import history_row
from resilient_scan.stores.history import RunRecord, ScanRecord
from resilient_scan.testing import FakeClock, broken, healthy


def record(**scans: tuple[str, str]) -> RunRecord:
    return RunRecord(
        "r", 0.0, 1.5, True, {name: ScanRecord(status, 0.1, 0, error) for name, (status, error) in scans.items()}
    )


def test_a_row_counts_what_is_in_service_and_names_who_did_not_answer() -> None:
    run = record(
        a=("completed", ""),
        b=("cached", ""),
        c=("stale", "OSError"),
        d=("error", "OSError"),
        e=("timeout", ""),
        f=("disabled", ""),
    )
    assert history_row(run) == (
        "1970-01-01 00:00:00Z",
        "1.50s",
        "3 of 5",
        "1 cached, 1 completed, 1 disabled, 1 error, 1 stale, 1 timeout",
        "d (OSError), e (timeout)",
    )


def test_a_row_names_no_more_than_three() -> None:
    assert history_row(record(**{f"s{n}": ("skipped", "") for n in range(5)}))[-1] == (
        "s0 (skipped), s1 (skipped), s2 (skipped) and 2 more"
    )
    assert history_row(record(**{f"s{n}": ("skipped", "") for n in range(3)}))[-1].endswith("s2 (skipped)")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "scan.toml"
    path.write_text('[store]\nurl = "sqlite:///state.db"\n')
    return path


def fill(config: Path, times: int) -> list[str]:
    """Run a few times, as other processes do, and return the runs' ids, newest first."""
    ids = []
    for number in range(times):
        url = f"sqlite:///{config.with_name('state.db')}"
        policy = Policy(retry=None, cache=Cache(ttl=60))
        clock = FakeClock(start=1_000_000.0 + number)
        scanners = [healthy("good", empty_ok=True), broken("bad", OSError("down"))]
        with ScanRunner(scanners, store=url, policy=policy, listeners=(), clock=clock) as runner:
            ids.append(runner.run({}).run_id)
    return ids[::-1]


def test_the_newest_come_first_in_a_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(config, 3)
    assert main(["history", "--config", str(config), "--limit", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["started", "took", "answered", "statuses", "note"]
    assert [line[:20] for line in lines] == ["1970-01-12 13:46:42Z", "1970-01-12 13:46:41Z"]
    assert all("1 of 2" in line and "bad (OSError)" in line for line in lines)


def test_json_has_them_whole(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = fill(config, 2)
    assert main(["history", "--config", str(config), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["run_id"] for run in runs] == ids
    assert runs[0]["counts"] == {"cached": 1, "error": 1}
    assert runs[0]["scans"]["bad"]["error"] == "OSError"


def test_nothing_yet_is_no_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--config", str(config)]) == 0
    assert capsys.readouterr().err == "no run is remembered yet\n"
    assert main(["history", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_without_a_store_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history"]) == 2
    assert "name a settings file with --config" in capsys.readouterr().err


def test_a_store_that_fails_is_told_in_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.with_name("state.db").mkdir()
    assert main(["history", "--config", str(config)]) == 2
    assert capsys.readouterr().err.endswith("state.db cannot be used: it is a directory\n")


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    assert main(["history", "--limit", limit]) == 2
