"""Wiring for the command line, without a process of its own."""

from __future__ import annotations

import re
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from resilient_scan import ConfigError
from resilient_scan.cli import fleet
from resilient_scan.cli.check import check
from resilient_scan.cli.choice import Request
from resilient_scan.cli.fleet import open_fleet, state_for, survey
from resilient_scan.observe.metrics import exposition
from tests.support.settings import write_settings
from tests.support.waiting import WAIT_TIMEOUT


def test_a_check_says_when_rules_and_interval_do_not_match(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "[defaults]\ncache = false\n")
    assert not [text for text in check(path, interval=300).warnings if "alert rules" in text]
    (said,) = [text for text in check(path, interval=1800).warnings if "alert rules" in text]
    assert said.startswith(
        "a run every 30m is too rare for the alert rules of a service, which want one every 5 minutes"
    )
    assert not [text for text in check(path).warnings if "alert rules" in text]


def test_a_scrape_has_every_number_and_no_instants() -> None:
    registry = CollectorRegistry()
    Counter("done", "Done.", ("who",), registry=registry).labels("x").inc()
    Histogram("took", "Took.", registry=registry).observe(1)
    Gauge("there_created", "A gauge that is only named so.", registry=registry).set(7)
    content_type, text = exposition(registry)
    assert content_type.startswith("text/plain")
    lines = text.decode().splitlines()
    assert 'done_total{who="x"} 1.0' in lines
    assert "took_count 1.0" in lines
    assert "# TYPE took histogram" in lines
    assert [line for line in lines if "_created" in line and not line.startswith("#")] == ["there_created 7.0"]


def test_the_metrics_are_served_and_nothing_else() -> None:
    with open_fleet(Request(metrics_port=0, only=("gap_up",)), listeners=()) as fleet:
        assert fleet.run().complete
        with urllib.request.urlopen(fleet.metrics_url, timeout=WAIT_TIMEOUT) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert (
                b'resilient_scan_scans_total{pipeline="momentum",scanner="gap_up",status="completed"}' in answer.read()
            )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{fleet.metrics_url}/no", timeout=WAIT_TIMEOUT)
        port = int(fleet.metrics_url.rpartition(":")[2].partition("/")[0])
        with (
            pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be had"),
            open_fleet(Request(metrics_port=port)),
        ):
            pass


def test_without_bundled_data_a_run_is_of_today_unless_somebody_says() -> None:
    assert state_for(date(2020, 1, 2)) == {"trade_date": "2020-01-02"}
    before = datetime.now(UTC).date()
    assert date.fromisoformat(state_for(None)["trade_date"]) >= before


def test_a_built_in_scanner_that_is_sent_elsewhere_does_not_get_bundled_data(tmp_path: Path) -> None:
    text = '[scanners.gap_up.settings]\nbase_url = "http://127.0.0.1:9"\nuniverse = ["AAPL"]\n'
    request = Request(config=write_settings(tmp_path, text), only=("gap_up",))
    with open_fleet(request, listeners=()) as fleet:
        assert fleet.demo is None
        assert fleet.state["trade_date"] != "2013-01-24"


def test_with_settings_of_its_own_a_built_in_scanner_needs_no_bundled_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "load_demo", lambda: None)
    config = write_settings(tmp_path, '[scanners.gap_up.settings]\nuniverse = ["AAPL"]\n')
    configured = [row["name"] for row in survey(config)[0] if row["configured"]]
    assert configured == ["gap_up"]


def test_everything_may_be_switched_off(tmp_path: Path) -> None:
    config = write_settings(tmp_path, "[scanners.gap_up]\nenabled = false\n")
    with (
        pytest.raises(ConfigError, match=r"scanner 'gap_up' is switched off by .*scan\.toml:2"),
        open_fleet(Request(config=config, only=("gap_up",))),
    ):
        pass
    names = [row["name"] for row in survey()[0]]
    config = write_settings(tmp_path, "".join(f"[scanners.{name}]\nenabled = false\n" for name in names))
    with (
        pytest.raises(ConfigError, match="nothing to run: switched off by the settings: "),
        open_fleet(Request(config=config)),
    ):
        pass
    assert check(config).summary.startswith(f"no findings in {len(names)} scanners and ")


def test_a_check_goes_on_where_the_layers_of_one_do_not_fit(tmp_path: Path) -> None:
    text = """
[scanners.gap_up]
timeout = { total = 1, attempt = 5 }

[scanners.market_movers]
timeout = { total = 10, attempt = 8 }
"""
    found = check(write_settings(tmp_path, text))
    assert any("gap_up" in error for error in found.errors)
    assert any("market_movers" in warning for warning in found.warnings)
    assert re.match(r"1 error and 2 warnings in \d+ scanners and ", found.summary)


def test_a_check_tells_of_unknown_scanners_beside_everything_else(tmp_path: Path) -> None:
    text = """
[scanner_execution]
max_workers = 0
[defaults]
retry = { attempts = 0 }
[scanners.gap_upp]
enabled = false
"""
    first, second, third = check(write_settings(tmp_path, text)).errors
    assert "scan.toml:3" in first
    assert "scan.toml:5" in second
    assert "scan.toml:6" in third
    assert "did you mean 'gap_up'?" in third


def test_a_check_warns_of_a_token_that_serve_would_not_find(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text("[service]\ntoken_file = 'token'")
    checked = check(path)
    assert checked.errors == ()
    assert checked.warnings == (
        f"service.token_file: {tmp_path / 'token'} cannot be read: No such file or directory; `serve` will not start",
    )


@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o640, False), (0o660, False), (0o644, True), (0o602, True), (0o641, False)]
)
@pytest.mark.parametrize("key", ["token_file", "read_token_file"])
def test_a_check_warns_of_a_token_that_is_no_secret(tmp_path: Path, key: str, mode: int, warns: bool) -> None:
    """Its group may read it: that is how the service and Alertmanager, which are different users, share it."""
    (tmp_path / "token").write_text("a-token-of-ours")
    (tmp_path / "token").chmod(mode)
    file = tmp_path / "token"
    wanted = (
        f"service.{key}: every user of this machine can read or change {file} (mode {mode:03o}); run: chmod o= {file}"
    )
    checked = check(write_settings(tmp_path, f"[service]\n{key} = 'token'"))
    assert checked.errors == ()
    assert checked.warnings == ((wanted,) if warns else ())


def test_a_check_warns_of_one_token_for_both(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("a-token-of-ours")
        (tmp_path / name).chmod(0o600)
    config = write_settings(tmp_path, "[service]\ntoken_file = 'one'\nread_token_file = 'two'")
    (warning,) = check(config).warnings
    assert warning.startswith(
        "service.read_token_file has the same token as service.token_file: who may read may change"
    )
    (tmp_path / "two").write_text("short")
    (warning,) = check(config).warnings
    assert warning.startswith("service.read_token must have at least 8 characters")
    assert warning.endswith("; `serve` will not start")
    (tmp_path / "two").write_text("another-token-of-ours")
    assert check(config).warnings == ()


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (
            "PRAGMA application_id = 1919251308; PRAGMA user_version = 1438518530; CREATE TABLE a (b)",
            "was written by a newer",
        ),
        ("CREATE TABLE a (b)", "is a database of another program; name another file"),
    ],
)
def test_a_check_tells_of_a_store_that_a_run_would_refuse(tmp_path: Path, statements: str, why: str) -> None:
    with closing(sqlite3.connect(tmp_path / "scan.db")) as database:
        database.executescript(statements)
    path = tmp_path / "scan.toml"
    path.write_text("[store]\nurl = 'sqlite:///scan.db'")
    (error,) = check(path).errors
    assert error.startswith(f"the store {tmp_path / 'scan.db'} {why}")


def test_a_check_leaves_a_store_that_is_damaged_or_not_there_to_the_run(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text("[store]\nurl = 'sqlite:///scan.db'")
    assert check(path).errors == ()
    (tmp_path / "scan.db").write_text("this is no database" * 99)
    assert check(path).errors == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.db", "scan.toml"]


def test_settings_that_are_wrong_are_told_of_with_unknown_scanners_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text("[scanner_execution]\nmax_workers = 0\n[scanners.gap_upp]\n[scanners.slow]\nenabled = false\n")
    with (
        pytest.raises(ConfigError) as caught,
        open_fleet(Request(config=path, faults=True)),
    ):
        pytest.fail("was opened")
    assert str(caught.value).splitlines() == [
        f"{path}:2: scanner_execution.max_workers must be >= 1, got 0",
        f"{path}:3: unknown scanner gap_upp; did you mean 'gap_up'?",
    ]


def test_a_faulty_scanner_is_only_known_with_its_option() -> None:
    with pytest.raises(ConfigError, match="join in with --faults"), open_fleet(Request(only=("hanging",))):
        pass


def test_the_summary_counts_only_the_scanners_in_service() -> None:
    with open_fleet(Request(only=("gap_up", "market_movers")), listeners=()) as fleet:
        why = "as of 2013-01-24 (a demo on bundled data of that time, as nothing is configured) and found "
        assert fleet.summary(fleet.run()).startswith(f"2 of 2 scanners answered {why}1 candidate: AAPL")
        fleet.runner.disable("gap_up", reason="for a test")
        assert fleet.summary(fleet.run()).startswith(f"1 of 1 scanner in service answered {why}")


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("rsi_oversold", 'universe = ["AAPL"]'),
        ("rsi_oversold", 'base_url = "http://127.0.0.1:9"\nuniverse = ["AAPL"]'),
        ("news_sentiment", 'api_key = "k3y-of-ours"'),
    ],
)
def test_where_anything_is_configured_no_scanner_gets_bundled_data(name: str, wish: str, tmp_path: Path) -> None:
    config = write_settings(tmp_path, f"[scanners.{name}.settings]\n{wish}\n")
    chosen = ("gap_up", "rsi_oversold", "news_sentiment")
    with open_fleet(Request(config=config, only=chosen, as_of=date(2026, 5, 15)), listeners=()) as fleet:
        assert (fleet.demo, fleet.state) == (None, {"trade_date": "2026-05-15"})
        assert set(fleet.not_configured) == {*chosen} - {name}
    assert [row["name"] for row in survey(config)[0] if row["configured"]] == [name]
    assert sum(text.startswith("gap_up: ") for text in check(config).not_configured) == 1


def test_bundled_data_may_be_looked_at_with_other_numbers(tmp_path: Path) -> None:
    config = write_settings(tmp_path, "[scanners.rsi_oversold.settings]\nmax_rsi = 20.0\n")
    with open_fleet(Request(config=config, demo=True), listeners=()) as fleet:
        assert fleet.demo is not None
        assert "(a demo on bundled data of that time, as --demo asks)" in fleet.summary(fleet.run())
