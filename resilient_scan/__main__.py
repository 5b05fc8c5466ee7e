"""The command `resilient-scan`, which also has an answer where the extra `cli` is not installed."""

from __future__ import annotations

import os
import sys

from resilient_scan import __version__


def main() -> int:
    """Run the command and return its exit code; without the extra `cli`, say in one sentence how to get it."""
    _open_what_is_closed()
    if sys.argv[1:] == ["--version"] and _version():
        return 0
    import signal  # noqa: PLC0415 - the version needs neither

    from resilient_scan.cli.process import end_at_once  # noqa: PLC0415

    on_interrupt = end_at_once()
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
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    return command(own_process=True)


def _open_what_is_closed() -> None:
    """Give the process the three standard streams, on the null device where they were closed before it started.

    Otherwise the first file that anybody opens takes the free number: a store's, say, and a child's `echo`, which goes
    to descriptor 1, would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest free number: this one
    # Python has no stream for a descriptor that was closed, and click writes to it all the same.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


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
