"""What must not be seen: which names tell of a secret, and how addresses and texts are freed of their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

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
