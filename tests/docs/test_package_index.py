"""What a package index shows of README, and what it links to."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

from tests.docs.pages import README, ROOT

HOME = "https://host.example/owner/resilient_scan"
_spec = importlib.util.spec_from_file_location("the_setup", ROOT / "setup.py")
assert _spec is not None
assert _spec.loader is not None
setup = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(setup)


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_with_an_address_every_link_and_picture_is_absolute() -> None:
    text = setup.description(README.read_text(), HOME)
    assert all(target.startswith("https://") for target in targets(text))
    assert f"]({HOME}/raw/HEAD/docs/pictures/layers.svg)" in text
    assert f"]({HOME}/blob/HEAD/docs/layers/cache.md)" in text
    files = [target.partition("/HEAD/")[2].partition("#")[0] for target in targets(text)]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_without_an_address_nothing_is_broken() -> None:
    text = setup.description(README.read_text(), "")
    assert targets(text) == []
    assert "![" not in text
    assert "<!--" not in text
    assert "A scanner in an hour" in text


def test_what_is_absolute_already_is_left_alone() -> None:
    text = "[a](https://a.example) [b](#b) ![c](http://c.example/d.png)"
    assert setup.description(text, HOME) == setup.description(text, "") == text


@pytest.mark.slow
@pytest.mark.parametrize("home", ["", HOME])
def test_the_metadata_has_the_urls(home: str, tmp_path: Path) -> None:
    program = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    environment = {**os.environ, "RESILIENT_SCAN_REPOSITORY": home}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    found = Parser().parsestr(metadata.read_text())
    named = dict(text.split(", ") for text in found.get_all("Project-URL", []))
    assert named == setup.urls(home)
    assert found["Description-Content-Type"] == "text/markdown"
    assert "One bad scanner never costs another its result" in str(found.get_payload())
