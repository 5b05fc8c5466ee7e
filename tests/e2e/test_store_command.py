"""The command twice, as cron calls it: the second process goes on where the first one stopped."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.stores.schema import stamp
from tests.e2e.command import on_a_terminal, run
from tests.support.needed import binary
from tests.support.servers import RedisServer

ONE = ("--demo", "--only", "market_movers")


def settings(folder: Path, url: str | None = None) -> Path:
    path = folder / "x.toml"
    path.write_text('[defaults]\ncache = { ttl = "5m" }\n' + ("" if url is None else f'\n[store]\nurl = "{url}"\n'))
    return path


def statuses(config: Path, *arguments: str, code: int = 0, **extra: Any) -> dict[str, str]:
    report = json.loads(run("run", "--demo", "--config", str(config), "--json", *arguments, code=code, **extra).stdout)
    return {name: result["status"] for name, result in report["results"].items()}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_second_run_is_served_from_the_first_ones_answers(tmp_path: Path) -> None:
    """The bundled data's server has another port each time: that makes no other answer of it."""
    state = tmp_path / "state"
    config = settings(tmp_path)
    assert set(statuses(config, XDG_STATE_HOME=str(state)).values()) == {"completed"}
    assert set(statuses(config, XDG_STATE_HOME=str(state)).values()) == {"cached"}
    assert any(name.endswith("resilient-scan.db") for name in files(state))
    runs = json.loads(run("history", "--config", str(config), "--json", XDG_STATE_HOME=str(state)).stdout)
    assert [set(each["counts"]) for each in runs] == [{"cached"}, {"completed"}]
    other = tmp_path / "other"
    other.mkdir()
    assert set(statuses(settings(other), XDG_STATE_HOME=str(state)).values()) == {"completed"}, "a part by itself"


def test_a_deploy_by_link_keeps_orders(tmp_path: Path) -> None:
    current, state = tmp_path / "current", {"XDG_STATE_HOME": str(tmp_path / "state")}
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        settings(tmp_path / release)
    current.symlink_to("one")
    run("disable", "market_movers", "--reason", "quota", "--config", str(current / "x.toml"), **state)
    current.unlink()
    current.symlink_to("two")
    assert statuses(current / "x.toml", *ONE, **state) == {"market_movers": "disabled"}
    assert statuses(Path("x.toml"), *ONE, cwd=current, PWD=str(current), **state) == {"market_movers": "disabled"}


def test_a_newer_store_costs_no_run_and_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path, "sqlite:///kept.db")
    run("run", "--config", str(config), *ONE)
    with closing(sqlite3.connect(tmp_path / "kept.db", isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version = {stamp(2)}")
    done = run("run", "--config", str(config), *ONE)
    (line,) = [line for line in done.stderr.splitlines() if "store" in line]
    assert "was written by a newer version of resilient_scan" in line
    assert line.endswith("; runs go on without it")
    refused = run("disable", "market_movers", "--reason", "quota", "--config", str(config), code=2)
    assert "market_movers is not disabled, no order can be given: the store" in refused.stderr
    assert "a newer version" in run("history", "--config", str(config), code=2).stderr
    assert "a newer version" in run("check", "--config", str(config), code=2).stdout


def test_without_settings_no_file_is_made_anywhere(tmp_path: Path) -> None:
    done = run("run", "--json", cwd=tmp_path, HOME=str(tmp_path), XDG_STATE_HOME=str(tmp_path / "state"))
    assert {result["status"] for result in json.loads(done.stdout)["results"].values()} == {"completed"}
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("verify", *ONE), 0),
        (("run", "--demo", "--json", "--faults", "--only", "market_movers,broken"), 1),
        (("run", "--json", "--record", "{folder}/kept", "--only", "market_movers"), 1),
    ],
    ids=["verify", "faults", "record"],
)
def test_what_is_no_real_run_uses_no_store(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    """Else the first would compare the cache with itself, and the last record what was not asked."""
    config = settings(tmp_path)
    with config.open("a") as file:  # nobody listens there
        file.write("[scanners.market_movers]\nretry = false\n")
        file.write('settings = { base_url = "http://127.0.0.1:9" }\n' if "--record" in arguments else "")
    words = [word.format(folder=tmp_path) for word in arguments]
    run(*words, "--config", str(config), code=code, XDG_STATE_HOME=str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_a_relative_path_begins_where_the_settings_are(tmp_path: Path) -> None:
    config, elsewhere = settings(tmp_path, "sqlite:///kept.db"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("run", "--config", str(config), *ONE, cwd=elsewhere)
    assert "kept.db" in files(tmp_path)
    assert files(elsewhere) == set()
    assert statuses(config, *ONE) == {"market_movers": "cached"}


@pytest.mark.servers
def test_redis_with_a_password_that_is_told_nowhere(tmp_path: Path) -> None:
    server = RedisServer(binary("redis-server"), tmp_path, "--requirepass", "hunter2")
    try:
        url = f"redis://:hunter2@127.0.0.1:{server.port}/3"
        config = settings(tmp_path, url)
        assert statuses(config, *ONE) == {"market_movers": "completed"}
        assert statuses(config, *ONE) == {"market_movers": "cached"}
        told = run("explain", "market_movers", "--demo", "--config", str(config))
        assert "cached" in told.stdout
        assert "hunter2" not in told.stdout + told.stderr
    finally:
        server.kill()
    done = run("run", "--config", str(config), *ONE)
    (line,) = [line for line in done.stderr.splitlines() if "store" in line]
    assert line.startswith(f"the store redis://127.0.0.1:{server.port}/3 is away")
    assert line.endswith("; runs go on without it")
    assert "hunter2" not in done.stderr


def test_settings_by_a_variable_alone_keep_nothing_unless_it_names_a_store(tmp_path: Path) -> None:
    extra = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    run("run", *ONE, RESILIENT_SCAN__DEFAULTS__CACHE__TTL="5m", **extra)
    assert files(tmp_path) == set()
    run("run", *ONE, RESILIENT_SCAN__STORE__URL=f"sqlite:///{tmp_path}/kept.db", **extra)
    assert "kept.db" in files(tmp_path)


@pytest.mark.parametrize("url", ["sqlite:", "postgres://x", "redis:", "scan.db", "sqlite://kept.db"])
def test_a_form_that_is_none_is_refused_with_those_there_are(tmp_path: Path, url: str) -> None:
    done = run("run", "--config", str(settings(tmp_path, url)), code=2)
    assert "x.toml:" in done.stderr
    for form in ("memory:", "sqlite:///", "redis://"):
        assert form in done.stderr


def test_a_store_that_fails_is_told_above_the_live_table_too(tmp_path: Path) -> None:
    config = settings(tmp_path, "sqlite:////proc/none/state.db")
    seen = on_a_terminal("run", "--config", str(config), *ONE, stream="stderr", COLUMNS="200")
    assert seen.count("the store /proc/none/state.db cannot be made") == 1
    assert "runs go on without it" in seen
