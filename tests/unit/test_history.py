"""What the command tells of past runs: in a table for people, as JSON, and what it says where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resilient_scan import Cache, Policy, Retry, ScanRunner
from resilient_scan.cli.fleet import measured_durations
from resilient_scan.cli.main import main
from resilient_scan.cli.screens import attempts_row, history_row
from resilient_scan.lint import lint_fleet
from resilient_scan.settings import load_settings
from resilient_scan.stores.columns import DaySummary
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


# attempts by day

DAYS = 30 * 86_400.0


def attempts_of(config: Path, *days: float) -> None:
    """Run once on each of these days."""
    for day in days:
        url = f"sqlite:///{config.with_name('state.db')}"
        clock = FakeClock(start=DAYS + day * 86_400)
        scanners = [healthy("good", empty_ok=True), broken("bad", OSError("down"))]
        policy = Policy(retry=Retry(attempts=2, base=0), cache=None, breaker=None)
        with ScanRunner(scanners, store=url, policy=policy, listeners=(), clock=clock) as runner:
            runner.run({})


def test_a_scanners_attempts_are_shown_by_day(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempts_of(config, 0, 0.5, 1)
    assert main(["history", "bad", "--attempts", "--config", str(config)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["day", "attempts", "p50", "p90", "p99", "longest", "errors", "timeouts", "note"]
    assert [line.split() for line in lines] == [
        ["1970-02-01", "2", "0ms", "0ms", "0ms", "0ms", "2", "0", "1", "retried"],
        ["1970-01-31", "4", "0ms", "0ms", "0ms", "0ms", "4", "0", "2", "retried"],
    ]
    assert main(["history", "good", "--attempts", "--config", str(config), "--limit", "1", "--json"]) == 0
    (day,) = json.loads(capsys.readouterr().out)
    assert day == {
        "day": "1970-02-01",
        "attempts": 1,
        "retries": 0,
        "errors": 0,
        "timeouts": 0,
        "cancelled": 0,
        "p50": 0.0,
        "p90": 0.0,
        "p99": 0.0,
        "longest": 0.0,
        "returned": 0,
        "returned_after": None,
    }


def test_a_row_says_what_else_is_to_be_known() -> None:
    day = DaySummary("2026-11-24", 1440, 12, 9, 3, 1, 0.35, 0.59, 0.88, 10.0, 2, 14.2)
    assert attempts_row(day) == (
        "2026-11-24",
        "1,440",
        "350ms",
        "590ms",
        "880ms",
        "10s",
        "9",
        "3",
        "12 retried, 1 cancelled, 2 threads came back late, half of them after 14s",
    )
    assert attempts_row(DaySummary("2026-11-24", 1, 0, 0, 0, 1, None, None, None, None, 0, None))[2:6] == ("-",) * 4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["bad"], 2, "error: attempts are shown scanner by scanner: resilient-scan history NAME --attempts"),
        (["--attempts"], 2, "error: attempts are shown scanner by scanner: resilient-scan history NAME --attempts"),
        (["nobody", "--attempts"], 0, "no attempt of nobody is remembered"),
    ],
)
def test_what_is_said_where_there_is_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    attempts_of(config, 0)
    assert main(["history", *arguments, "--config", str(config)]) == code
    assert capsys.readouterr().err == f"{said}\n"


def test_attempts_need_a_store_that_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.toml"
    path.write_text('[store]\nurl = "sqlite:///state.db"\nhistory = 0\n')
    assert main(["history", "a", "--attempts", "--config", str(path)]) == 2
    assert "no attempt is remembered, for no store is configured, or [store] history is 0" in capsys.readouterr().err
    assert main(["history", "a", "--attempts"]) == 2


def test_a_check_advises_from_what_was_measured(config: Path) -> None:
    names = {"good": "timeout-far-above-p99"}
    attempts_of(config, 0)
    settings = load_settings(config)
    assert measured_durations(settings, names) == {}, "that was long ago"
    url = f"sqlite:///{config.with_name('state.db')}"
    with ScanRunner([healthy("good", empty_ok=True)], store=url, policy=Policy(cache=None), listeners=()) as runner:
        for _ in runner.map("good", [{} for _ in range(250)]):
            pass
    measured = measured_durations(settings, names)
    assert measured["good"].count == 250
    (finding,) = lint_fleet({"good": Policy()}, measured=measured)
    assert finding.code == names["good"]


def test_a_check_needs_no_store(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_durations(load_settings(config), ["a"]) == {}
    assert not config.with_name("state.db").exists()
    monkeypatch.setenv("RESILIENT_SCAN__STORE__URL", "redis://127.0.0.1:1/0")
    assert measured_durations(load_settings(config), ["a"]) == {}
