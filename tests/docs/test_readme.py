"""README keeps its word: its blocks run, its tables and its help texts are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resilient_scan import Status
from tests.docs.reference import PARTS, README, parts_of

TEXT = README.read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_a_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("part", PARTS)
def test_a_reference_table_is_what_the_code_says(part: str) -> None:
    way_out = "run: uv run python -m tests.docs.reference"
    assert parts_of(TEXT)[part].split() == PARTS[part]().split(), way_out


def test_the_table_of_statuses_is_whole() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", TEXT, re.MULTILINE))
    assert rows == {status.value: "yes" if status.answered else "no" for status in Status}


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = TEXT.splitlines()
    assert "pip install uv && uv run resilient-scan run" in lines
    assert "pip install uv && uv run pytest" in lines
