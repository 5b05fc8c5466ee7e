"""`uv run --group dev python -m tests.peers [ROW...]`: measure rows, write results.json and the page."""

from __future__ import annotations

import datetime as dt
import json
import platform
import sys
import tempfile
from pathlib import Path

from tests.docs import reference
from tests.peers import measure, table
from tests.peers.costs import KINDS
from tests.peers.faults import FAULTS

ROWS = [*FAULTS, *KINDS]


def main(*names: str) -> None:
    """Measure and write."""
    read = table.results() if table.RESULTS.exists() else {"told": {}}
    with tempfile.TemporaryDirectory(prefix="resilient-scan-peers-") as packages:
        trouble = measure.install(Path(packages))
        if trouble:
            sys.exit(trouble)
        for name in names or ROWS:
            print(f"{name} ...", flush=True)
            told = measure.row if name in FAULTS else measure.cost
            read["told"][name] = told(name, Path(packages))
    read["told"] = {name: read["told"][name] for name in ROWS if name in read["told"]}
    today = dt.datetime.now(dt.UTC).date().isoformat()
    read |= {"date": today, "python": platform.python_version()}
    table.RESULTS.write_text(json.dumps(read, indent=1, ensure_ascii=False) + "\n")
    reference.write()


if __name__ == "__main__":
    main(*sys.argv[1:])
