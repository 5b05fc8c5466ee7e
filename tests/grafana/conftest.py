"""One Prometheus with a past, for all tests that ask it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grafana.history import History, history
from tests.support.needed import MEMORY


@pytest.fixture(scope="session")
def past() -> Iterator[History]:
    """Fleets that were healthy, ill and cured, at each cadence."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, history(Path(folder)) as found:
        yield found
