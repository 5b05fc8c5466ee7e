"""Run the blocks of a page in order, in one folder, as a reader who follows the page would.

Queries for Prometheus are left to `promtool`, in a test of their own, and directives to Sphinx, which builds the site.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any, Final

import click
import yaml

from resilient_scan import load_settings
from resilient_scan.cli.main import command
from tests.docs.pages import Block, blocks, without_times

OURS: Final = {"scanner_execution", "defaults", "providers", "scanners", "store", "quarantine", "service", "cluster"}
LIMIT: Final = 60  # seconds for one command


class Reader:
    """Somebody who copies the blocks of one page into a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._module = types.ModuleType("page")
        self._printed = ""

    def follow(self, page: Path) -> None:
        """Run all blocks of a page; what is wrong is an assertion that names the block's place."""
        for block in blocks(page):
            try:
                self._take(block)
            except Exception as error:
                error.add_note(f"in the block at {block.place}")
                raise

    def _take(self, block: Block) -> None:
        target = block.order("file")
        if target is not None:
            path = self._folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        action = getattr(self, f"_{block.language}", None)
        if action is not None:
            action(block)

    def _python(self, block: Block) -> None:
        cell = block.order("recipe") is not None
        code = compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if cell else 0)
        if cell or block.order("file") is not None or block.order("not run") is not None:
            return
        if block.order("continued") is None:
            self._module = types.ModuleType("page")
        printed = io.StringIO()
        sys.modules["page"] = self._module  # dataclasses look the module of a class up
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, vars(self._module))
        finally:
            del sys.modules["page"]
        self._printed = printed.getvalue()

    def _text(self, block: Block) -> None:
        assert not block.text.startswith("$ "), "a block with commands is `console`"
        if block.order("output") is not None:
            compare(self._printed, block.text)

    def _console(self, block: Block) -> None:
        steps = commands(block.text)
        assert steps, "a console block has lines that begin with `$ `"
        for line, _ in steps:
            parse(line)
        if block.order("not run") is not None or block.order("recipe") is not None:
            return
        wanted = int(block.order("exit") or 0)
        for number, (line, expected) in enumerate(steps, 1):
            done = subprocess.run(
                ["bash", "-uo", "pipefail", "-c", line],
                cwd=self._folder,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                env=self._environment(),
            )
            status = wanted if number == len(steps) else 0
            assert done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            if expected:
                compare(done.stdout if block.order("stderr") is None else done.stderr, expected)

    def _environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        quiet = {"NO_COLOR": "1", "COLUMNS": "100", "HOME": str(self._folder), "XDG_STATE_HOME": str(self._folder)}
        ours = {name: text for name, text in os.environ.items() if not name.startswith(("RESILIENT_SCAN__", "COV_"))}
        return {**ours, **quiet, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(self._folder)}

    def _sh(self, block: Block) -> None:
        assert block.order("not run"), "a shell block that is run is `console`; for any other say why it is not run"
        for line in block.text.splitlines():
            parse(line.partition("#")[0])

    def _toml(self, block: Block) -> None:
        tables = tomllib.loads(block.text)
        if block.order("file") == "pyproject.toml":
            self._install(tables["project"])
        if set(tables) & OURS:
            path = self._folder / "of-a-block.toml"
            path.write_text(block.text)
            settings = load_settings(path, environ={})
            assert settings.check(known=tables.get("scanners", {})) == ()

    def _install(self, project: dict[str, Any]) -> None:
        """Make a package known in this folder, as `pip install -e .` does, with neither pip nor a network."""
        info = self._folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in named.items())
            for group, named in project.get("entry-points", {}).items()
        ]
        (info / "entry_points.txt").write_text("\n".join(points))

    def _yaml(self, block: Block) -> None:
        assert yaml.safe_load(block.text)

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _ini(self, block: Block) -> None:
        configparser.ConfigParser(strict=False, interpolation=None).read_string(block.text)


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that is shown below it."""
    found = re.findall(r"^\$ (.*(?:\\\n.*)*)\n?((?:(?!\$ ).*\n?)*)", text, re.MULTILINE)
    return [(line, output.strip("\n")) for line, output in found]


def parse(line: str) -> None:
    """Hold a command line of ours against the command: its names and options must exist."""
    for part in re.split(r"[|;&]+", line.replace("\\\n", " ")):
        words = re.sub(r"[<>]+\s*\S+", "", part.partition(" #")[0]).split()
        while words and re.fullmatch(r"\w+=\S*|[\d*/,-]+|nice", words[0]):  # variables, the times of a crontab
            del words[0]
        if words and Path(words[0]).name == "resilient-scan":
            _parsed([word.strip("'\"") for word in words[1:]], line)


def _parsed(arguments: list[str], line: str) -> None:
    if not arguments or arguments[0].startswith("-"):
        return
    assert arguments[0] in command.commands, f"{line}: there is no such command"
    sub = command.commands[arguments[0]]
    known = {name for parameter in sub.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in arguments[1:]:
        if word.startswith("-") and word not in {"-h", "--help"}:
            assert word.partition("=")[0] in known, f"{line}: {arguments[0]} has no option {word}"
    assert isinstance(sub, click.Command)


def compare(shown: str, expected: str) -> None:
    """Hold what a program printed against what the page shows, word by word; `...` stands for any words."""
    words, wanted = without_times(shown), without_times(expected)
    pattern = "".join(r"(?:.*\n)*?" if word == "..." else f"{re.escape(word)}\n" for word in wanted)
    assert re.fullmatch(pattern, "".join(f"{word}\n" for word in words)), f"on the page:\n{expected}\nshown:\n{shown}"
