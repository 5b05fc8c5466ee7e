"""The command `resilient-scan`, also where the extra that it needs is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command and return its exit code; without the extra `cli` say in one sentence how to get it."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - closed from outside: nobody reads
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    try:
        from resilient_scan.cli.main import main as command  # noqa: PLC0415 - the library works without this extra
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"resilient-scan: the command needs {missing.name}, which is in an extra: "
            "pip install 'resilient-scan[cli]' (or 'resilient-scan[all]', with the built-in scanners)\n"
        )
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
