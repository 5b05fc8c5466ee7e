"""The command `resilient-scan`, which also has an answer where the extra `cli` is not installed."""

from __future__ import annotations

import os
import sys

from resilient_scan import __version__


def main() -> int:
    """Run the command and return its exit code; without the extra `cli`, say in one sentence how to get it."""
    # A stream that was closed before the process started is None, and click writes to it all the same.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - pathlib would double the time to start
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    if sys.argv[1:] == ["--version"] and _version():
        return 0
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


def _version() -> bool:
    """Write the version as click would, without loading it and all that the commands need; say whether that worked."""
    try:
        sys.stdout.write(f"resilient-scan, version {__version__}\n")
        sys.stdout.flush()
    except OSError:  # the command tries again, and knows what to say
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
