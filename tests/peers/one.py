"""One fault, one stack, this process: `python -m tests.peers.one FAULT STACK [before]` tells what comes of it."""

from __future__ import annotations

import os
import signal
import sys

from tests.peers.children import Child
from tests.peers.faults import FAULTS
from tests.peers.stacks import load
from tests.peers.stacks.base import NotOffered


def main(name: str, stack: str, *before: str) -> None:
    """Tell it and end at once, unless the end is what is looked at."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is born deaf to Ctrl-C
    fault = FAULTS[name]
    run = fault.before if before and fault.before else fault.run
    try:
        cell = run(load(stack))
    except NotOffered as instead:
        cell = f"– {instead}".strip()
    Child.tell(cell)
    if not fault.ends and not fault.interrupted:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
