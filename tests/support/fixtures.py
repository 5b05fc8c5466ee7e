"""What the fixtures of the conftest files return, for the signatures of tests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from resilient_scan import Policy, ScanRunner
from tests.support.control import Served

Fleet = Callable[..., ScanRunner]
Bare = Callable[..., Policy]
Background = Callable[..., "Future[Any]"]
Eventually = Callable[..., None]
Crew = Callable[..., list[Any]]
Distribute = Callable[..., Path]
Serve = Callable[..., Served]
