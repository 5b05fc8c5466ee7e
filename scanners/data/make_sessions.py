"""Write `closed.txt`: the weekdays on which exchanges are closed, by time zone and year.

    uv run --group dev python scanners/data/make_sessions.py

The days are those of the package `holidays`. They are bundled, because that package takes half a second to load, and
three packages to install, for what are a few kilobytes. A test compares the two.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Final

from holidays import financial_holidays

FILE: Final = Path(__file__).with_name("closed.txt")
YEARS: Final = range(2000, 2031)
EXCHANGES: Final = {
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


def lines() -> list[str]:
    """Return a line for each exchange and year: `America/New_York 2026 0101 0119 ...`."""
    found = []
    for zone, code in EXCHANGES.items():
        calendar = financial_holidays(code, years=range(YEARS.start, YEARS.stop + 1))
        for year in YEARS:
            days = (date(year, 1, 1) + timedelta(number) for number in range(366))
            closed = [
                day for day in days if day.year == year and day.weekday() < 5 and not calendar.is_working_day(day)
            ]
            if closed:  # else the package knows nothing about that year
                found.append(" ".join((zone, str(year), *(f"{day:%m%d}" for day in closed))))
    return found


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
