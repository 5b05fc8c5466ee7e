"""Texts for people: one-line texts, instants, durations, and what is taken out of a text before it is shown.

This is the one home of secrets. They are recognised in two ways. By *value*: what is known to be a secret (`know`: the
settings and the environment said so; `hider`: we sent it, or an answer handed it out) is removed wherever it stands. By
*name*: `redact` (a URL) and `without_secrets` (a table) remove whatever stands behind a name such as `api_key`; `hide`
(any text) removes it only if it looks like a secret, because most of what people write there is a diagnosis:
`missing api_key: set the variable FINNHUB_API_KEY`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit, urlunsplit

# One-line texts


def clean(text: str) -> str:
    """Return foreign text on one line, without control characters that a terminal would obey."""
    return " ".join(_printable(text).split())


def brief(text: str) -> str:
    """Return foreign text on one line of at most 500 characters, so that it cannot flood a log."""
    return shortened(clean(text), 500)


def shortened(text: str, most: int) -> str:
    """Return foreign text on one line of at most `most` characters."""
    text = _printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def is_utf8(text: str) -> bool:
    """Say whether a text from the system was UTF-8; Python puts half characters where bytes were not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def writable(text: str) -> str:
    """Return a text that can be written everywhere: with a backslash and its number for each half character."""
    return text if is_utf8(text) else str.encode(text, "utf-8", "backslashreplace").decode()


def counted(number: int, thing: str) -> str:
    """Write a number of things: `1 scan`, `2 scans`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return `did you mean ...?` if a known name is similar, else `otherwise` or the list of known names."""
    known = list(known)
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, 1)
    if near:
        return f"did you mean {by_lower[near[0]]!r}?"
    return otherwise or f"there are {', '.join(known) or 'none'}"


def no_scanner(name: object, names: Sequence[str]) -> str:
    """Say that a scanner does not exist, and which one may be meant."""
    return f"there is no scanner {name!r}; {did_you_mean(name, names)}"


def no_provider(name: object, names: Iterable[str]) -> str:
    """Say that a provider does not exist, and which one may be meant."""
    return f"there is no provider {name!r}; {did_you_mean(name, tuple(names), 'no scanner has one')}"


# Instants and durations. A duration is written in three ways: `span` is for people who read about minutes and days,
# `in_seconds` for log lines and errors, whose readers compare it with an option, and `exact` for the option itself.
# (Tables of the command line have a fourth, `elapsed`, which keeps to a fixed width and goes down to milliseconds.)


def moment(instant: float, now: float | None = None) -> str:
    """Write an instant, without the date if it is today."""
    at = datetime.fromtimestamp(instant, UTC)
    if now is None:
        return f"{at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{at:%H:%M:%S}" if at.date() == datetime.fromtimestamp(now, UTC).date() else f"{at:%m-%d %H:%M}"


def ago(seconds: float) -> str:
    """Write how long ago something happened."""
    return "just now" if seconds < 1 else f"{span(int(seconds))} ago"


_SPANS: Final = (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def span(seconds: float) -> str:
    """Write a duration in at most two units: `0.25s`, `1m 30s`, `2d 3h`."""
    if seconds < 0.0005:
        return "<0.001s" if seconds > 0 else "0s"
    if seconds < 59.95:
        digits = 3 if seconds < 1 else 2 if seconds < 10 else 1
        return f"{seconds:.{digits}f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    unit, size, smaller, part = next(row for row in _SPANS if whole >= row[1])
    rest = whole % size // part
    return f"{whole // size}{unit}" + (f" {rest}{smaller}" if rest else "")


def in_seconds(seconds: float) -> str:
    """Write a duration in seconds, without the unit: three digits, and never an exponent."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def exact(seconds: float) -> str:
    """Write a duration in seconds as it was configured."""
    return f"{seconds:.10g}s"


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|d)", re.ASCII)


def parse_duration(text: str) -> float:
    """Return the seconds that `"250ms"`, `"5s"`, `"1.5h"`... stand for.

    Raises:
        ValueError: the text is not a number with one of these units.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNITS[match[2]]


# Secrets recognised by their names

REDACTED: Final = "REDACTED"
_SECRET: Final = re.compile(
    r"api-?key|token|secret|passw(?:or)?d|crumb|auth|signature|cookie|session|credential|(^|-)(key|pwd|pass|sig)$"
)
_SUSPECT: Final = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|private", re.IGNORECASE)
# A source may send any text at all. So each pattern starts only where nothing that it could start with stands before,
# and gives nothing back (`++`): a text of n characters costs n steps, not n * n.
_ADDRESS: Final = re.compile(r"(?<![A-Za-z0-9+.-])([0-9+.-]*+)([A-Za-z][A-Za-z0-9+.-]*+://[^\s'\"<>]++)")
_USER: Final = re.compile(r"://[^\s/@'\"<>]*+@")  # of a URL within another URL's path
_NAME: Final = re.compile(r"""(?<![\w-])([\w-]++)(\\*+["']?+)\s*+[=:]\s*+(\\*+["']?+)""")
_VALUE: Final = re.compile(r"""(?:(Bearer|Basic|Token)\s+)?([^\s"'&,;)}\]\\]++)""", re.IGNORECASE)
_SCHEME: Final = re.compile(r"\b(Bearer|Basic)\s+([A-Za-z0-9._~+/=-]{8,}+)", re.IGNORECASE)
_TOKEN68: Final = re.compile(r"(?=.{8})(?![A-Za-z]+[.:!?]*$)[^=]+=*")  # not `realm=...`, and not a word
_AWS: Final = re.compile(r"(?<![A-Za-z0-9])A(?:KI|SI|BI|CC)A[A-Z0-9]{16}(?![A-Za-z0-9])")


def is_secret(name: str) -> bool:
    """Say whether the value of this header, parameter or setting must not be shown."""
    return _SECRET.search(name.lower().replace("_", "-")) is not None


def may_be_secret(name: str) -> bool:
    """Say whether a setting of this name might be a secret, in a place where hiding too much costs nothing.

    `is_secret` must not take `monkey=` out of a log line; an error about a setting `monkey` can do without its value.
    """
    return _SUSPECT.search(name) is not None


def redact(url: str) -> str:
    """Return `url` without user, password and the values of secret query parameters; "" if it is not valid."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, REDACTED if is_secret(name) else value) for name, value in pairs], safe=":,")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def hide(text: str) -> str:
    """Return foreign text without its secrets.

    What is known to be a secret is removed wherever it stands, and so are the ids of AWS keys. URLs lose user, password
    and secret parameters. `apikey=...`, `"token": "..."` and `Authorization: Bearer ...` lose a value that looks like a
    secret; another secret cannot be distinguished from any other word.
    """
    text = without_known(text)
    if "A" in text:
        text = _AWS.sub(REDACTED, text)
    if not any(sign in text for sign in "=:/ "):
        return text
    text = _USER.sub("://", _ADDRESS.sub(lambda found: found[1] + redact(found[2]), text))
    text = _SCHEME.sub(lambda found: f"{found[1]} {REDACTED}" if _is_sent(found[2]) else found[0], text)
    return "".join(_without_values(text))


def _without_values(text: str) -> Iterator[str]:
    """Yield the parts of a text, with the values behind secret names replaced where they look like secrets."""
    done = 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end()) if name.start() >= done and is_secret(name[1]) else None
        if value is None:
            continue
        if _is_sent(value[2]) if value[1] else _is_secret_of(name, value[2]):
            yield text[done : name.end()]
            yield REDACTED
            done = value.end()
    yield text[done:]


def _is_secret_of(name: re.Match[str], value: str) -> bool:
    if name.string[max(0, name.start() - 1) : name.start()] in {"?", "&"}:  # a parameter: the rest of an address
        return True
    if name[1].lower() == "key":
        return looks_secret(value, shortest=_LONG_KEY)
    return looks_secret(value) or (bool(name[2] and name[3]) and _is_data(value))


# What a secret looks like: it is long enough, and not made of words, numbers and names of algorithms. `price`, `HTTP`,
# `403`, `FINNHUB_API_KEY`, `ReadTimeout`, `HMAC-SHA256`, `2013-01-24T20:00:00Z` and `BRK.B` are; `hunter2` is not.

_SHORT: Final = 6  # characters
_ENDLESS: Final = 200
_LONG_KEY: Final = 16  # behind `key`, which is most often that of a table: `missing key: rsi14`
_PIECE: Final = re.compile(
    r"\d{1,8}(?:T\d{1,6})?Z?|\d{1,4}[A-Za-z]{1,3}"  # numbers, instants, and numbers with a unit
    r"|(?:sha|md|utf|oauth|rsa|ecdsa|ed|es|hs|rs|ps|aes|aws|http|ipv|tls|ssl|base|v|q|p|x)\d{1,4}",
    re.IGNORECASE,
)
_PART: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SPOKEN: Final = re.compile(r"(?:[^aeiouy]{0,4}[aeiouy]{1,3})+[^aeiouy]{0,4}", re.IGNORECASE)


def looks_secret(value: str, *, shortest: int = _SHORT) -> bool:
    """Say whether a text has the length and the alphabet of a secret, and is not made of words and numbers."""
    if len(value) > _ENDLESS:  # not looked at: there may be as many values as characters in a text
        return True
    value = value.rstrip(".:!?")
    if len(value) < shortest or not value.isascii():
        return False
    return not all(_is_word(piece) for piece in re.split(r"[\W_]+", value) if piece)


def _is_word(piece: str) -> bool:
    """Say whether letters and digits are a word (`price`, `ReadTimeout`), a number or the name of an algorithm."""
    if not piece.isalpha():
        return _PIECE.fullmatch(piece) is not None
    parts = _PART.findall(piece) if len(piece) <= 24 else []  # no word is longer
    long = all(len(part) < 12 or _SPOKEN.fullmatch(part) for part in parts)
    return long and (len(parts) == 1 or 0 < 3.5 * len(parts) <= len(piece))


def _is_sent(value: str) -> bool:
    """Say whether a text behind `Bearer` or `Basic` is a credential: it is, unless it is one word."""
    return value == REDACTED or looks_secret(value) or _TOKEN68.fullmatch(value) is not None


def _is_data(value: str) -> bool:
    """Say whether a quoted value behind a quoted name, as in JSON, may be a short secret: words have four letters."""
    return not value.isdigit() and all(len(piece) < 4 for piece in re.split(r"[\W_]+", value[:_ENDLESS]))


def without_secrets(table: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a table without the entries that have a secret name, at any depth."""
    return {name: _bare(value) for name, value in table.items() if not (isinstance(name, str) and is_secret(name))}


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    return [_bare(item) for item in value] if isinstance(value, list | tuple) else value


# Secrets recognised by their values

Hide = Callable[[str], str]

_SHORTEST: Final = 4  # a secret of fewer characters would be found in many innocent texts
_LONG: Final = 8  # one of fewer may be a word, and part of others: `demo` is not a secret in `democracy`
_BEGINS: Final = (  # a token begins after an escape too: %3D, \n, \x3d, \u0022
    r"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrtbf])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
)
_MOST: Final = 2_000  # known forms; the oldest are forgotten first, as tokens of a service that renews them all day
_HEX: Final = re.compile(r"%[0-9A-F]{2}")
_SURE: Final = re.compile(
    r"(?:^|[_-]|PG)(?:(?:API|ACCESS|SECRET|PRIVATE|AUTH|SIGNING|ENCRYPTION|ACCOUNT)[_-]?KEY(?:[_-](?:ID|BASE))?"
    r"|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|CREDENTIALS?)$|[_-]PWD$",
    re.IGNORECASE,
)
_PATH: Final = re.compile(r"[/~.]|[A-Za-z]:\\")
_SWITCH: Final = re.compile(r"\d{1,5}|true|false|none|null|auto|never|always", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"://[^\s/:@]*:([^\s/@]+)@")
_known: dict[str, bool] = {}  # forms of secrets; changed by single operations of a dict only, so it needs no lock


def know(secrets: Iterable[str]) -> None:
    """Note values that `hide` removes from now on, wherever they stand."""
    _known.update(_all_forms(secret for secret in secrets if secret not in _known))
    for form in tuple(_known)[: max(0, len(_known) - _MOST)]:
        _known.pop(form, None)


def secrets_of_environment(environ: Mapping[str, str]) -> set[str]:
    """Return the values of variables such as `FINNHUB_API_KEY`, and the passwords in the URLs of all.

    Paths, numbers and switches do not count: `SSH_KEY=/home/me/.ssh/id` names a file.
    """
    named = {value for name, value in environ.items() if _is_known(name, value)}
    return named | {password for value in environ.values() if "://" in value for password in _PASSWORD.findall(value)}


def _is_known(name: str, value: str) -> bool:
    """Say whether a variable or a setting is a secret: `SORT_KEY=ticker` and `session = "regular"` are not."""
    if not _SURE.search(name):
        return is_secret(name) and looks_secret(value) and not _PATH.match(value)
    return not _SWITCH.fullmatch(value) and (not _PATH.match(value) or looks_secret(value))


def secrets_of_table(table: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the texts with a secret name in a table of settings, at any depth."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from secrets_of_table(value)
        elif isinstance(value, str):
            if isinstance(name, str) and _is_known(name, value):
                yield value
            yield from _PASSWORD.findall(value)


def without_known(text: str) -> str:
    """Remove the known secrets from a text. To look for each is much faster than a pattern of all of them."""
    found = {form: long for form, long in tuple(_known.items()) if form in text}
    return _pattern(found).sub(REDACTED, text) if found else text


def _pattern(forms: Mapping[str, bool]) -> re.Pattern[str]:
    longest_first = sorted(forms, key=len, reverse=True)  # or the rest of one that begins with another would stay
    words = (re.escape(form) if forms[form] else _as_token(form) for form in longest_first)
    return re.compile("|".join(words) or r"(?!)")


def _all_forms(secrets: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield the forms of secrets, each with whether it is looked for inside of words too."""
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            yield from ((form, len(secret) >= _LONG) for form in _forms(secret))


_GRANTED: Final = re.compile(
    r"""("(?:access_?token|refresh_?token|id_?token|client_?secret|api_?key|password|session_?id|crumb)"\s*:\s*")"""
    r"""((?:[^"\\]|\\.)+)"""
    r"""|("(?:\w*[_-])?(?:token|secret|jwt)"\s*:\s*")([\w.~+/=-]{16,})\"""",  # a shorter one may be a word
    re.IGNORECASE,
)


def secret_values(named: Iterable[tuple[str, str]]) -> set[str]:
    """Return the values that have a secret name, whole and without their scheme (`Bearer abc`: also `abc`)."""
    values = [value for name, value in named if is_secret(name)]
    return {form for value in values for form in (value, *value.split()[-1:])}


def granted_secrets(text: str, path: str) -> set[str]:
    """Return the secrets that an answer hands out: the value of `access_token` in JSON, or all of `/getcrumb`."""
    word = text.strip()
    alone = is_secret(path.rpartition("/")[2]) and re.fullmatch(r"[^\s{<\[]\S{3,4000}", word)
    return {*(one or other for _, one, _, other in _GRANTED.findall(text)), *([word] if alone else [])}


def hider(secrets: Iterable[str]) -> Hide:
    """Return a function that takes these values out of a text, however they are quoted.

    A value of fewer than 8 characters is taken out as a whole token only, not as a part of a longer word.
    """
    pattern = _pattern(dict(_all_forms(secrets)))
    return lambda text: pattern.sub(REDACTED, text)


def _as_token(form: str) -> str:
    """Return the pattern of a form that no letter, digit or underscore continues on either side."""
    begins = _BEGINS if re.match(r"\w", form) else ""
    ends = r"(?!\w)" if re.search(r"\w\Z", form) else ""
    return begins + re.escape(form) + ends


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it may appear in a URL, in JSON and in a page."""
    yield secret
    yield from (escape(secret), escape(secret, quote=False), repr(secret)[1:-1], repr(secret.encode())[2:-1])
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield from (quoted, _HEX.sub(lambda found: found[0].lower(), quoted))
    for inside in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield from (inside, inside.replace("/", "\\/"))
