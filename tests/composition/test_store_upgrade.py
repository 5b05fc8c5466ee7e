"""A store that belongs to a newer version costs no run its results, whether it did so before the runner was built."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, LogEvents, Quarantine, ScanRunner, Status
from resilient_scan.errors import StoreError
from resilient_scan.stores import schema
from resilient_scan.testing import Recorder, broken, healthy
from tests.support.fixtures import Bare, Fleet

Build = Callable[..., ScanRunner]


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "state.db"


@pytest.fixture
def build(fleet: Fleet, bare: Bare, path: Path) -> Build:
    def make(*listeners: Any) -> ScanRunner:
        return fleet(
            healthy("one"),
            healthy("two"),
            policy=bare(cache=Cache(ttl=300)),
            store=f"sqlite:///{path}",
            listeners=listeners,
            quarantine=Quarantine(),
        )

    return make


def upgrade(path: Path) -> None:
    """Do what a newer version does, in another process."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version = {schema.stamp(2)}")


@pytest.mark.parametrize("moment", ["before", "during"])
def test_runs_go_on_loudly_and_orders_are_refused(
    build: Build, path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with build() as first:
        first.run({"n": 0})
        first.disable("two", reason="by hand")
    if moment == "before":
        upgrade(path)
    recorder = Recorder()
    runner = build(LogEvents(), recorder)
    if moment == "during":
        assert runner.run({"n": 0}).results["two"].status is Status.DISABLED
        upgrade(path)
    before = path.read_bytes()
    for n in (1, 2):
        report = runner.run({"n": n})
        assert report.results["one"].status is Status.COMPLETED
        expected = Status.DISABLED if moment == "during" else Status.COMPLETED
        assert report.results["two"].status is expected, "what is known stays known"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == (
        f"the store {path} was written by a newer version of resilient_scan (its schema is 2, this one knows 1); "
        "update, or name another file; runs go on without it"
    )
    for order, state in ((runner.disable, "disabled"), (runner.enable, "enabled")):
        with pytest.raises(
            StoreError, match=f"^one is not {state}, no order can be given: the store {path} was written"
        ):
            order("one", reason="by hand")
    assert runner.run({"n": 3}).results["one"].status is Status.COMPLETED, "the order was not kept here either"
    runner.close()
    assert path.read_bytes() == before


def test_an_order_that_is_refused_grants_no_trial_either(fleet: Fleet, bare: Bare, path: Path) -> None:
    policy = bare(breaker=Breaker(failures=1, open_for=60))
    runner = fleet(broken("one"), policy=policy, store=f"sqlite:///{path}", listeners=())
    runner.run()
    upgrade(path)
    with pytest.raises(StoreError, match="no order can be given"):
        runner.enable("one", reason="by hand")
    assert runner.run().results["one"].status is Status.REJECTED


def test_orders_are_refused_where_only_the_quarantines_record_is_newer(build: Build, path: Path) -> None:
    with build() as runner:
        runner.disable("two", reason="by hand")
        with closing(sqlite3.connect(path)) as database, database:
            data = b"\x81\xa6schema\x09"
            row = (data, schema.seal(b"quarantine/fleet", data), b"quarantine/fleet")
            database.execute("UPDATE documents SET data = ?, sum = ? WHERE key = ?", row)
        with pytest.raises(StoreError, match=r"^one is not disabled, no order can be given: a newer version of this"):
            runner.disable("one", reason="by hand")
        assert runner.run().results["one"].status is Status.COMPLETED
