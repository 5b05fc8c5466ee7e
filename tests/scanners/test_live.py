"""The scanners on the real sources, with your keys: `pytest -m live tests/scanners/test_live.py`.

They need the environment variables that `resilient-scan list` names; a scanner without its key is skipped. What comes
is of the day, so only its form is held to.
"""

from __future__ import annotations

import pytest

from resilient_scan import ConfigError
from resilient_scan.app import Request, open_fleet

pytestmark = pytest.mark.live


@pytest.mark.parametrize("name", ["insider_buying", "filings_8k", "reddit_trending", "reddit_dd"])
def test_a_live_source_is_understood(name: str) -> None:
    try:
        with open_fleet(Request(only=(name,)), listeners=()) as fleet:
            report = fleet.run()
    except ConfigError as error:
        if "not configured" not in str(error):
            raise
        pytest.skip(str(error))
    result = report.results[name]
    assert result.error is None
    assert result.status == "completed"
    assert all(each.source == name and each.ticker and each.context for each in result.candidates)
