"""CONTRIBUTING and the hooks keep up with CI."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires

import yaml
from packaging.requirements import Requirement

from tests.docs.pages import ROOT


def test_the_hooks_run_what_ci_runs_first() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    first = script.partition('step "Style: ruff"')[2].partition('step "Documentation')[0]
    in_ci = re.findall(r'^"\$uv" run --quiet --group dev (.+)$', first, re.MULTILINE)
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removeprefix("uv run --quiet --group dev ") for hook in local["hooks"]]
    assert in_ci == entries[: len(in_ci)]
    assert len(in_ci) == 4


def test_the_first_command_installs_little() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["uv"]["default-groups"] == ["try"]
    (wanted,) = project["dependency-groups"]["try"]
    installed = needed_by(Requirement(wanted))
    assert {"resilient-scan", "rich", "httpx", "uvicorn"} <= installed
    assert len(installed) <= 25, sorted(installed)


def needed_by(requirement: Requirement) -> set[str]:
    """Return what is installed with it, as the installed packages say."""
    found: dict[str, set[str]] = {}
    left = [requirement]
    while left:
        one = left.pop()
        name, extras = one.name.lower().replace("_", "-"), one.extras or {""}
        if extras <= found.setdefault(name, set()):
            continue
        found[name] |= extras
        for text in requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(needed)
    return set(found)


def test_contributing_lists_every_marker_and_folder_of_tests() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for marker in re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        assert re.search(rf"-m .*\b{marker}\b|\b{marker}`", text), marker
    for path in re.findall(r"`(?:[^`]* )?((?:tests|docs|resilient_scan)/[\w/.-]+)", text):
        assert (ROOT / path).exists(), path
    folders = [path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("*.py"))]
    for folder in folders:
        assert f"tests/{folder}`" in text or folder == "pictures", folder
