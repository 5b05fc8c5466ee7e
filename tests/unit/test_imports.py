"""Imports under a limit: what comes of one that ends, one that hangs, and one that waits for one that hangs."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.settings import imports
from resilient_scan.settings.imports import ImportHangs, within
from tests.support.waiting import WAIT_TIMEOUT, eventually

LIMIT = 0.5  # seconds in which an import comes to where it hangs
GATE = "gate_of_these_tests"
HANGING = f"import {GATE}\ndef wait():\n    {GATE}.opened.wait()\nwait()\n"


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the event that modules hang on, in whose folder modules can be written."""
    gate: Any = type(sys)(GATE)
    gate.opened = threading.Event()
    monkeypatch.setitem(sys.modules, GATE, gate)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield gate.opened
    gate.opened.set()
    for work in imports._abandoned:
        work.ended.wait(WAIT_TIMEOUT)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def loader(name: str) -> Callable[[], Any]:
    return lambda: importlib.import_module(name)


def test_what_it_returns_and_raises_comes_back() -> None:
    assert within(WAIT_TIMEOUT, lambda: threading.current_thread().daemon, "x") is True
    error = ValueError("no")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        within(WAIT_TIMEOUT, fail, "x")
    assert caught.value is error


def test_one_that_hangs_says_where(opened: threading.Event, tmp_path: Path) -> None:
    (tmp_path / "acme_hangs.py").write_text(HANGING)
    with pytest.raises(ImportHangs) as caught:
        within(LIMIT, loader("acme_hangs"), "x")
    said = str(caught.value)
    assert said.startswith("its import has not ended within 0.5s; it is at ")
    assert "acme_hangs.py:4 in <module>, acme_hangs.py:3 in wait, threading.py:" in said
    assert "importlib" not in said
    assert not caught.value.is_victim


def test_one_that_never_began_to_import_says_where_too(opened: threading.Event) -> None:
    with pytest.raises(ImportHangs, match=r"it is at threading\.py:\d+ in wait, threading\.py:\d+ in wait$"):
        within(LIMIT, opened.wait, "x")


def test_who_waits_for_its_module_is_no_culprit_and_need_not_wait_long(opened: threading.Event, tmp_path: Path) -> None:
    (tmp_path / "acme_hangs.py").write_text(HANGING)
    (tmp_path / "acme_waits.py").write_text("import acme_hangs")
    with pytest.raises(ImportHangs):
        within(LIMIT, loader("acme_hangs"), "the first")
    for module, awaited in (("acme_waits", "acme_hangs"), ("acme_hangs", "acme_hangs"), ("acme_waits", "acme_waits")):
        with pytest.raises(ImportHangs) as caught:
            within(WAIT_TIMEOUT, loader(module), "another")
        assert str(caught.value) == f"its import waits for {awaited}, because that of the first has not ended"
        assert caught.value.is_victim


def test_one_that_waits_for_nobody_gets_its_whole_time(opened: threading.Event, tmp_path: Path) -> None:
    (tmp_path / "acme_hangs.py").write_text(HANGING)
    with pytest.raises(ImportHangs):
        within(LIMIT, loader("acme_hangs"), "the first")
    slow = threading.Event()
    timer = threading.Timer(3 * imports.POLL_INTERVAL, slow.set)
    timer.start()
    assert within(WAIT_TIMEOUT, slow.wait, "the second")
    timer.join()
    with pytest.raises(ImportHangs, match=r"has not ended within 0\.5s") as caught:
        within(LIMIT, opened.wait, "the third")
    assert not caught.value.is_victim


def test_what_ends_late_can_be_used(opened: threading.Event, tmp_path: Path) -> None:
    (tmp_path / "acme_hangs.py").write_text(HANGING)
    with pytest.raises(ImportHangs):
        within(LIMIT, loader("acme_hangs"), "x")
    opened.set()
    eventually(lambda: all(work.ended.is_set() for work in imports._abandoned))
    assert within(WAIT_TIMEOUT, loader("acme_hangs"), "x").__name__ == "acme_hangs"
    assert imports._abandoned == []


def test_a_module_that_makes_its_runner_while_it_is_imported_may_be_imported_by_its_scanners(
    opened: threading.Event, tmp_path: Path
) -> None:
    (tmp_path / "acme_app.py").write_text(
        "import importlib\n"
        "from resilient_scan.settings.imports import within\n"
        "NUMBER = 7\n"
        "scanners = within(5, lambda: importlib.import_module('acme_app_scanners'), 'x')\n"
    )
    (tmp_path / "acme_app_scanners.py").write_text("from acme_app import NUMBER\n")
    assert importlib.import_module("acme_app").scanners.NUMBER == 7
