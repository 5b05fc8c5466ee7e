"""A store that does not answer: one caller a second tries again."""

from __future__ import annotations

import pytest

from resilient_scan.errors import StoreError
from resilient_scan.stores.health import Backoff
from resilient_scan.testing import FakeClock


def test_one_caller_tries_again_while_the_others_fail_at_once() -> None:
    clock = FakeClock()
    backoff = Backoff(clock)
    backoff.check()
    assert str(backoff.failed("it is away")) == "it is away"
    clock.advance(1)
    backoff.check()
    with pytest.raises(StoreError, match="it is away"):
        backoff.check()
    backoff.succeeded()
    backoff.check()
    assert backoff.reachable
