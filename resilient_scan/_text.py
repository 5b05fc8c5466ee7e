"""What must not be seen: which names tell of a secret, and how addresses and texts are freed of their values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit, urlunsplit

# Small words for people: foreign text made harmless, numbers of things, instants and durations.


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


REDACTED: Final = "REDACTED"
_WORDS = "api-?key|token|secret|passw(?:or)?d|crumb|auth|signature|cookie|session|credential"
_SECRET = re.compile(rf"{_WORDS}|(^|-)(key|pwd|pass|sig)$")
# A source may answer with whatever it likes. So each begins where nothing that it could begin with stands before, and
# gives nothing back (`++`): a text of n characters is looked at n times, not n * n times.
_ADDRESS = re.compile(r"(?<![A-Za-z0-9+.-])([0-9+.-]*+)([A-Za-z][A-Za-z0-9+.-]*+://[^\s'\"<>]++)")
_USER = re.compile(r"://[^\s/@'\"<>]*+@")  # of an address within another one's path
_NAME = re.compile(r"""(?<![\w-])([\w-]++)["']?\s*+[=:]\s*+["']?""")
_VALUE = re.compile(r"""(?:(?:Bearer|Basic|Token)\s+)?[^\s"'&,;)}\]]++""", re.IGNORECASE)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Say whether what goes by this name (a header, a parameter, a setting) is not to be shown."""
    return _SECRET.search(name.lower().replace("_", "-")) is not None


def redact(url: str) -> str:
    """Return `url` without user, password and the values of telling query parameters; "" if it is not valid."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, REDACTED if is_secret(name) else value) for name, value in pairs], safe=":,")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def hide(text: str) -> str:
    """Return a text that somebody else wrote without the secrets that can be told by their names.

    Addresses lose user, password and telling parameters; of `apikey=...`, `"token": "..."` and
    `Authorization: Bearer ...` the value goes. What has no telling name cannot be told from other words.
    """
    if not any(sign in text for sign in "=:/ "):
        return text
    text = _USER.sub("://", _ADDRESS.sub(lambda found: found[1] + redact(found[2]), text))
    text = _SCHEME.sub(lambda found: f"{found[1]} {REDACTED}", text)
    return "".join(_bare_values(text))


def _bare_values(text: str) -> Iterator[str]:
    """Yield the parts of a text, the values behind telling names replaced."""
    told = 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end()) if name.start() >= told and is_secret(name[1]) else None
        if value is not None:
            yield text[told : name.end()]
            yield REDACTED
            told = value.end()
    yield text[told:]


def without_secrets(table: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a table without what goes by a telling name, at any depth."""
    return {name: _bare(value) for name, value in table.items() if not (isinstance(name, str) and is_secret(name))}


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    return [_bare(item) for item in value] if isinstance(value, list | tuple) else value


# What must not be seen: which names tell of a secret, and how texts and addresses are freed of their values.

__all__ = [
    "REDACTED",
    "Hide",
    "hider",
    "is_secret",
    "redact",
    "secret_values",
    "told_secrets",
]

Hide = Callable[[str], str]

_SHORTEST: Final = 4  # what is shorter than this many characters is a word of many other texts
_HEX: Final = re.compile(r"%[0-9A-F]{2}")
_TOLD = re.compile(
    r"""("(?:access_?token|refresh_?token|id_?token|client_?secret|api_?key|password|session_?id|crumb)"\s*:\s*")"""
    r"""((?:[^"\\]|\\.)+)"""
    r"""|("(?:\w*[_-])?(?:token|secret|jwt)"\s*:\s*")([\w.~+/=-]{16,})\"""",  # a shorter one may be a word
    re.IGNORECASE,
)


def secret_values(named: Iterable[tuple[str, str]]) -> set[str]:
    """Return the values under telling names, whole and without their scheme (`Bearer abc`: also `abc`)."""
    values = [value for name, value in named if is_secret(name)]
    return {form for value in values for form in (value, *value.split()[-1:])}


def told_secrets(text: str, path: str) -> set[str]:
    """Return the secrets that an answer hands out: the value of `access_token` in JSON, or all of `/getcrumb`."""
    word = text.strip()
    alone = is_secret(path.rpartition("/")[2]) and re.fullmatch(r"[^\s{<\[]\S{3,4000}", word)
    return {*(one or other for _, one, _, other in _TOLD.findall(text)), *([word] if alone else [])}


def hider(secrets: Iterable[str]) -> Hide:
    """Return a function that takes these values out of a text, however they are quoted."""
    long = [secret for secret in secrets if len(secret) >= _SHORTEST]
    forms = {form for secret in long for form in _forms(secret)}
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or r"(?!)")
    return lambda text: pattern.sub(REDACTED, text)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it may stand in an address, in JSON and in a page."""
    yield secret
    yield from (escape(secret), escape(secret, quote=False), repr(secret)[1:-1], repr(secret.encode())[2:-1])
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield from (quoted, _HEX.sub(lambda found: found[0].lower(), quoted))
    for inside in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield from (inside, inside.replace("/", "\\/"))
