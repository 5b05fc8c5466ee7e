"""Small words for people: foreign text made harmless, numbers of things, instants and durations."""

from __future__ import annotations

from datetime import UTC, datetime


def clean(text: str) -> str:
    """Return foreign text on one line, without what a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def brief(text: str) -> str:
    """Return foreign text on one line that is no flood: at most 500 characters of it."""
    return shortened(clean(text), 500)


def shortened(text: str, most: int) -> str:
    """Return foreign text on one line of at most `most` characters."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(number: int, thing: str) -> str:
    """Write a number of things."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def moment(instant: float, now: float | None = None) -> str:
    """Write an instant, without the date where that is today's."""
    at = datetime.fromtimestamp(instant, UTC)
    if now is None:
        return f"{at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{at:%H:%M:%S}" if at.date() == datetime.fromtimestamp(now, UTC).date() else f"{at:%m-%d %H:%M}"


def ago(seconds: float) -> str:
    """Write how long something is past."""
    return "just now" if seconds < 1 else f"{span(int(seconds))} ago"


_UNITS = (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def span(seconds: float) -> str:
    """Write a duration in at most two units."""
    if seconds < 0.0005:
        return "<0.001s" if seconds > 0 else "0s"
    if seconds < 59.95:
        digits = 3 if seconds < 1 else 2 if seconds < 10 else 1
        return f"{seconds:.{digits}f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    unit, size, smaller, part = next(row for row in _UNITS if whole >= row[1])
    rest = whole % size // part
    return f"{whole // size}{unit}" + (f" {rest}{smaller}" if rest else "")
