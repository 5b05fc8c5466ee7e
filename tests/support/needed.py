"""What tests need from the machine; without it they fail if `RESILIENT_SCAN_REQUIRE_SERVERS=1`, else they skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A directory in memory, for what is to wait for no disk."""

PACKAGES = {
    "amtool": "prometheus-alertmanager",
    "caddy": "caddy",
    "chromium": "chromium",
    "nginx": "nginx-light",
    "npm": "npm",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}


def missing(reason: str) -> None:
    """Fail or skip, for something is not there."""
    if os.environ.get("RESILIENT_SCAN_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def binary(name: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name)
    if path is None:
        missing(f"no {name} on this machine; install it: apt-get install --no-install-recommends {PACKAGES[name]}")
    return str(path)


def testdata(folder: str) -> Path:
    """Return a folder of the data that `RESILIENT_SCAN_TESTDATA` names."""
    path = Path(os.environ.get("RESILIENT_SCAN_TESTDATA") or "/nowhere") / folder
    if not path.is_dir():
        missing(f"RESILIENT_SCAN_TESTDATA names no directory that has {folder}")
    return path
