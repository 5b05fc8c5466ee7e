"""Know on which days an exchange was open: what is missing, late or still under way depends on it.

The calendars are those of the package `holidays` (extra `scanners`). A session that ends early is a session like any
other. Exchanges without a calendar count as open from Monday to Friday: what is missing because of one of their
holidays is then reported, not overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resilient_scan import ConfigError

NEW_YORK: Final = ZoneInfo("America/New_York")
CLOSING: Final = time(16)
"""When a session ends that does not say so; some exchanges close earlier, few close later."""
_DAY: Final = timedelta(days=1)
_LONGEST_PAUSE: Final = 15  # days without a session that are looked at: a Golden Week has 9
_CALENDARS: Final = {
    "America/Bogota": "XBOG",
    "America/Mexico_City": "XMEX",
    "America/New_York": "XNYS",
    "America/Sao_Paulo": "BVMF",
    "America/Toronto": "XTSE",
    "Asia/Hong_Kong": "XHKG",
    "Asia/Kolkata": "XNSE",
    "Asia/Seoul": "XKRX",
    "Asia/Shanghai": "XSHG",
    "Asia/Singapore": "XSES",
    "Asia/Taipei": "XTAI",
    "Asia/Tokyo": "XJPX",
    "Australia/Sydney": "XASX",
    "Europe/Amsterdam": "XAMS",
    "Europe/Athens": "XATH",
    "Europe/Berlin": "XETR",
    "Europe/Brussels": "XBRU",
    "Europe/Dublin": "XDUB",
    "Europe/Istanbul": "XIST",
    "Europe/Lisbon": "XLIS",
    "Europe/London": "XLON",
    "Europe/Madrid": "XMAD",
    "Europe/Oslo": "XOSL",
    "Europe/Paris": "XPAR",
    "Europe/Rome": "XMIL",
    "Europe/Warsaw": "XWAR",
    "Europe/Zurich": "XSWX",
    "Pacific/Auckland": "XNZE",
}
"""Exchanges by time zone; an older version of `holidays` may not know them all."""


def zone_of(name: str) -> ZoneInfo | None:
    """Return the time zone of this name; `None` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def is_session(day: date, zone: ZoneInfo = NEW_YORK) -> bool:
    """Say whether the exchange in `zone` was open on `day`, or will be."""
    known = _sessions_of(zone.key, day.year)
    return day.weekday() < 5 if known is None else day in known


def has_calendar(zone: ZoneInfo) -> bool:
    """Say whether the holidays of the exchanges in `zone` are known."""
    return _sessions_of(zone.key, 2000) is not None


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


# Once for each year, and frozen: a calendar of `holidays` works a year out when it is first asked about it, and another
# thread that asks in that moment would find a year without holidays.
@lru_cache(maxsize=256)
def _sessions_of(zone: str, year: int) -> frozenset[date] | None:
    """Return the sessions of one year in a time zone; `None` if its exchanges have no calendar."""
    if zone not in _CALENDARS:
        return None
    try:
        from holidays import financial_holidays  # noqa: PLC0415 - takes a quarter of a second, and not all need it
    except ModuleNotFoundError:
        raise ConfigError(
            "the sessions of exchanges need holidays, which is not installed: pip install 'resilient-scan[scanners]'"
        ) from None
    try:
        calendar = financial_holidays(_CALENDARS[zone], years=(year, year + 1))
    except NotImplementedError:
        return None
    days = (date(year, 1, 1) + number * _DAY for number in range(366))
    return frozenset(day for day in days if day.year == year and calendar.is_working_day(day))
