"""What must not be seen: which names tell of a secret, and how texts and addresses are freed of their values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Final
from urllib.parse import quote, quote_plus

from resilient_scan.redaction import REDACTED, is_secret, redact

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
