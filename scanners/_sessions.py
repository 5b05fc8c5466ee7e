"""Know on which days an exchange was open: what is missing, late or still under way depends on it.

The calendars are bundled (`data/closed.txt`). A session that ends early is a session like any other. Exchanges without
a calendar, and years before and after it, count as open from Monday to Friday: what is missing because of a holiday is
then reported, not overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import cache
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

NEW_YORK: Final = ZoneInfo("America/New_York")
CLOSING: Final = time(16)
"""When a session ends that does not say so; some exchanges close earlier, few close later."""
SATURDAY: Final = 5
_DAY: Final = timedelta(days=1)
_LONGEST_PAUSE: Final = 15  # days without a session that are looked at: a Golden Week has 9


def zone_of(name: str) -> ZoneInfo | None:
    """Return the time zone of this name; `None` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def is_session(day: date, zone: ZoneInfo = NEW_YORK) -> bool:
    """Say whether the exchange in `zone` was open on `day`, or will be."""
    return day.weekday() < SATURDAY and day not in _closed().get((zone.key, day.year), ())


def has_calendar(day: date, zone: ZoneInfo) -> bool:
    """Say whether it is known on which days of that year the exchange in `zone` was closed."""
    return (zone.key, day.year) in _closed()


def last_session(day: date, zone: ZoneInfo = NEW_YORK) -> date:
    """Return the last session on `day` or before it."""
    return next((each for each in _backwards(day) if is_session(each, zone)), day)


def sessions(first: date, last: date, zone: ZoneInfo = NEW_YORK) -> Iterator[date]:
    """Yield the sessions from `first` to `last`, both included."""
    return (day for day in each_day(first, last) if is_session(day, zone))


def each_day(first: date, last: date) -> Iterator[date]:
    """Yield the days from `first` to `last`, both included."""
    return (first + number * _DAY for number in range((last - first).days + 1))


def is_current(day: date, trade_date: date, now: datetime, zone: ZoneInfo = NEW_YORK) -> bool:
    """Say whether data of `day` are the latest that there can be on `trade_date`.

    They are those of the last session on that date or before it. On the day of a session itself, those of the session
    before will do, because nobody may have traded yet.

    Args:
        day: the exchange's date of the data.
        trade_date: what a scan is about; a date that is still to come counts as today.
        now: an aware datetime.
        zone: of the exchange.
    """
    today = now.astimezone(zone).date()
    newest = last_session(min(trade_date, today), zone)
    return newest <= day <= trade_date or (newest == today and day == last_session(newest - _DAY, zone))


def is_under_way(day: date, ends: datetime | None, now: datetime, zone: ZoneInfo = NEW_YORK) -> bool:
    """Say whether the session of `day` has not ended yet.

    Args:
        day: of the session.
        ends: when it ends; `None`: at 16:00.
        now: an aware datetime.
        zone: of the exchange.
    """
    return now < (datetime.combine(day, CLOSING, zone) if ends is None else ends)


def _backwards(day: date) -> Iterator[date]:
    return (day - number * _DAY for number in range(_LONGEST_PAUSE))


@cache
def _closed() -> dict[tuple[str, int], frozenset[date]]:
    """Return the weekdays on which exchanges are closed, by time zone and year."""
    text = (resources.files(__package__) / "data" / "closed.txt").read_text(encoding="utf-8")
    rows = (line.split() for line in text.splitlines())
    return {
        (zone, int(year)): frozenset(date(int(year), int(day[:2]), int(day[2:])) for day in days)
        for zone, year, *days in rows
    }
