"""Installs the peers into a directory of their own and makes the faults happen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.peers import costs
from tests.peers.children import Child
from tests.peers.faults import FAULTS
from tests.peers.stacks import MODULES
from tests.support.servers import RedisServer

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def install(target: Path, requirements: Path = REQUIREMENTS) -> str:
    """Install the peers, or what another file lists, there; return why that cannot be, if so, in one sentence."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        return "no uv to install the peers with; start this by uv run"
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", target, "-r", requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else f"the peers cannot be installed: {' '.join(done.stderr.split())[:500]}"


def row(name: str, packages: Path) -> dict[str, str]:
    """Make a fault happen to all stacks at the same time; return what is told of each."""
    with ThreadPoolExecutor(len(MODULES)) as pool:
        return dict(zip(MODULES, pool.map(lambda stack: cell(name, stack, packages), MODULES), strict=True))


def cell(name: str, stack: str, packages: Path) -> str:
    """Make a fault happen to a stack and return what is told of it."""
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory(prefix="resilient-scan-peers-") as place, ExitStack() as over:
        options = {"packages": packages, "directory": Path(place)}
        if fault.before is not None:
            server = RedisServer("redis-server", Path(place))
            over.callback(server.kill)
            options["redis"] = server.url
            with Child("tests.peers.one", name, stack, "before", **options) as child:
                child.told()
        child = over.enter_context(Child("tests.peers.one", name, stack, **options))
        if fault.interrupted:
            child.told()
            child.interrupt()
            return "ends at once" if child.ends(8) else "waits for what runs"
        told: str = child.told()
        if fault.ends:
            told += "; yes" if child.ends(8) else "; no"
        return told


def cost(name: str, packages: Path) -> dict[str, str]:
    """Return what a call that does nothing costs in each stack."""
    with ExitStack() as over:
        stacks = {}
        for stack in MODULES:
            place = over.enter_context(tempfile.TemporaryDirectory(prefix="resilient-scan-peers-"))
            child = Child("tests.peers.costs", stack, packages=packages, directory=Path(place))
            stacks[stack] = over.enter_context(child)
        return costs.measure(name, stacks)
