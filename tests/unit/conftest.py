"""What many unit tests need."""

from __future__ import annotations

import pytest

from resilient_scan.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still until it is told otherwise."""
    return FakeClock()
