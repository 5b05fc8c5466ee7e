"""What a type checker of our users sees of `@scanner` and of the options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.command import WAIT_TIMEOUT

ROOT = Path(__file__).parents[2]
CODE = """
from typing import Any
from resilient_scan import Candidate, Policy, ScanContext, Scanner, scanner

@scanner
def bare(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
    return []

@scanner(pipeline="x", cache=None)
async def called(state: dict[str, Any]) -> list[Candidate]:
    return []

one: Scanner = bare
reveal_type(bare({}, ScanContext()))
reveal_type(called)
bare(3)
Policy(retries=3)
"""


def test_a_decorated_function_keeps_its_arguments_and_its_result(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", "cache", "code.py"]
    environ = {**os.environ, "MYPYPATH": str(ROOT)}  # it does not follow an editable installation
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=3 * WAIT_TIMEOUT, check=False
    )
    said = [line for line in done.stdout.replace("builtins.", "").splitlines() if line.startswith("code.py")]
    shown, errors = [[line for line in said if word in line] for word in ("Revealed", "error:")]
    assert shown[0].endswith('"list[resilient_scan.scanning.Candidate]"')
    assert "FunctionScanner[[state: dict[str, Any]], typing.Coroutine[Any, Any, list[" in shown[1]
    for error, part in zip(errors, ('argument "context"', 'incompatible type "int"', '"retries"'), strict=True):
        assert part in error
