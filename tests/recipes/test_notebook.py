"""The recipe for notebooks: its cells, made a notebook, executed by a real kernel, print what the page shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.docs.running import compare
from tests.recipes.following import Recipe, needs

# Executes cells in a kernel, interrupts the second one when its scanner works, and prints what the third one prints.
INTERRUPT = """
import sys
import time
from pathlib import Path

from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel()
try:
    cells = Path("cells").read_text().split("---")
    client.execute_interactive(cells[0], timeout=60)
    client.execute(cells[1])
    while not Path("works").exists():
        time.sleep(0.01)
    manager.interrupt_kernel()
    client.execute_interactive(cells[2], timeout=60)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
CELLS = """
import threading
from pathlib import Path

from resilient_scan import ScanRunner, scanner
from resilient_scan.testing import healthy

@scanner(pipeline="news")
def headlines(state, context):
    Path("works").touch()
    context.sleep(60)

runner = ScanRunner([healthy("well"), headlines], max_workers=1, order="given", listeners=())
---
try:
    runner.run({})
except KeyboardInterrupt as interrupt:
    report = interrupt.report
---
print(*(result.status for result in report.results.values()))
"""


def notebook(cells: list[str]) -> dict[str, Any]:
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    made = [{**empty, "id": f"cell-{number}", "source": cell} for number, cell in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_the_cells_print_what_the_page_shows(tmp_path: Path) -> None:
    needs("nbclient", "ipykernel")
    page = Recipe("notebook", tmp_path)
    cells: list[str] = []
    shown: list[str] = []
    for block in page.page:
        if block.language == "python":
            cells.append(block.text)
            shown.append("")
        elif block.language == "text":
            shown[-1] = block.text
    path = tmp_path / "scan.ipynb"
    path.write_text(json.dumps(notebook(cells)))
    page.run()
    assert page.left == []
    executed = json.loads(path.read_text())["cells"]
    assert len(executed) == len(cells) == 5
    for cell, expected in zip(executed, shown, strict=True):
        compare("".join("".join(output["text"]) for output in cell["outputs"]), expected)


def test_the_button_that_interrupts_ends_a_run(tmp_path: Path) -> None:
    needs("nbclient", "ipykernel")
    page = Recipe("notebook", tmp_path)
    (tmp_path / "cells").write_text(CELLS)
    (tmp_path / "client.py").write_text(INTERRUPT)
    assert page.call([sys.executable, "client.py"]).split() == ["completed", "skipped"]
