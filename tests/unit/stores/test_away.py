"""A store that is away: one caller a second finds out."""

from __future__ import annotations

import pytest

from resilient_scan.errors import StoreError
from resilient_scan.stores.health import Backoff
from resilient_scan.testing import FakeClock


def test_one_caller_tries_again_while_the_others_are_told() -> None:
    clock = FakeClock()
    away = Backoff(clock)
    away.check()
    assert str(away.gone("it is away")) == "it is away"
    clock.advance(1)
    away.check()
    with pytest.raises(StoreError, match="it is away"):
        away.check()
    away.back()
    away.check()
    assert away.seen
