"""The day that a scan is about, for sources that know only now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from resilient_scan import PermanentError, ScanContext

from ._charts import trade_date

NEW_YORK: Final = ZoneInfo("America/New_York")
THIS_WEEK: Final = timedelta(days=5)
"""From a Thursday to the Tuesday after a long weekend: a run of these days may be about the last session."""


def recent_day(
    state: Mapping[str, Any], context: ScanContext, source: str, *, looks_ahead: bool = False
) -> date | None:
    """Return the trade date if it is a past day of this week; `None`: it is now.

    A weekend's run asks for Friday, and where it is tomorrow already for New York's tomorrow.

    Args:
        state: the scan's state.
        context: the scan's.
        source: what cannot answer for other days, as the subject of a sentence.
        looks_ahead: whether it can answer for any day that is to come.

    Raises:
        ConfigError: the trade date is not a date.
        PermanentError: it is another day.
    """
    today, day = trade_date({}, context), trade_date(state, context)
    if abs(day - today) > THIS_WEEK and not (looks_ahead and day > today):
        raise PermanentError(
            f"{context.scanner}: {source} knows only the last days, not {day} (today is {today} in New York); "
            "leave this scanner out of runs for another day"
        )
    return day if day < today else None


def end_of(day: date) -> datetime:
    """Return the instant at which a day ends in New York."""
    return datetime.combine(day + timedelta(days=1), time(), NEW_YORK)
