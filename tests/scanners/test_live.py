"""The scanners on the real sources, with your keys: `pytest -m live tests/scanners/test_live.py`.

They need the environment variables that `resilient-scan list` names; a scanner without its key is skipped. What comes
is of the day, so only its form is held to.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from resilient_scan import ConfigError
from resilient_scan.cli.choice import Request
from resilient_scan.cli.fleet import open_fleet

pytestmark = pytest.mark.live

OF_TICKERS = (
    "market_movers",
    "volume_accumulation",
    "high_52w_breakout",
    "gap_up",
    "rsi_oversold",
    "options_flow",
    "analyst_revisions",
)
OTHERS = (
    "sector_rotation",
    "news_sentiment",
    "earnings_calendar",
    "insider_buying",
    "filings_8k",
    "reddit_trending",
    "reddit_dd",
)


@pytest.mark.parametrize("name", [*OF_TICKERS, *OTHERS])
def test_a_live_source_is_understood(name: str, tmp_path: Path) -> None:
    config = tmp_path / "scan.toml"
    wish = 'universe = ["AAPL", "MSFT", "NVDA"]' if name in OF_TICKERS else ""
    wish = 'benchmark = "SPY"' if name == "sector_rotation" else wish
    config.write_text(f"[scanners.{name}.settings]\n{wish}\n")
    try:
        with open_fleet(Request(config=config, only=(name,)), listeners=()) as fleet:
            assert fleet.demo is None
            report = fleet.run()
    except ConfigError as error:
        if "not configured" not in str(error):
            raise
        pytest.skip(str(error))
    result = report.results[name]
    assert result.error is None
    assert result.status == "completed"
    assert all(each.source == name and each.ticker and each.context for each in result.candidates)
