"""What the documentation says of this library and of its peers is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS
from tests.peers import measure
from tests.peers.costs import KINDS
from tests.peers.faults import FAULTS
from tests.peers.table import results
from tests.support.needed import binary, missing


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the peers are installed."""
    target = tmp_path_factory.mktemp("peers")
    trouble = measure.install(target)
    if trouble:
        missing(trouble)
    binary("redis-server")
    return target


@pytest.mark.long
@pytest.mark.servers
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_the_effects_that_the_page_shows(name: str, packages: Path) -> None:
    assert measure.row(name, packages) == results()["told"][name], "run: uv run --group dev python -m tests.peers"


def test_the_rows_that_the_page_explains_are_those_that_need_it() -> None:
    refused = [name for name, told in results()["told"].items() if "refused" in told["here"]]
    assert refused == ["forty_hang", "same_source"]
    assert "`refused` in two rows" in (DOCS / "compare.md").read_text()
    assert results()["told"]["every_other"]["here"] == "stays closed"


def test_the_costs_that_the_page_admits_are_those_that_were_measured() -> None:
    alone, cached = (
        {stack: float(cost.split()[0]) for stack, cost in results()["told"][name].items() if cost != "–"}
        for name in ("alone", "cached")
    )
    assert alone["here"] > max(alone["by hand"], alone["pyresilience"])
    assert cached["here"] > 3 * max(cached["nopanic"], cached["pyresilience"])


def test_each_row_has_been_measured() -> None:
    assert list(results()["told"]) == [*FAULTS, *KINDS]
