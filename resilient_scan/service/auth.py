"""A token, and the three ways to show that you know it: one allows changes, another may allow to read only.

It comes as `Authorization: Bearer TOKEN`, as basic authentication (the token is the password; the user, who may be
anyone, is recorded with the order), or, for alerts only, as Grafana's signature: hex HMAC-SHA256, with the token as its
key, over `timestamp + ":" + body`. The timestamp makes yesterday's signed alert worthless today, so a signature without
one is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping

from resilient_scan._text import know
from resilient_scan.errors import ConfigError
from resilient_scan.service.bounds import readable

SIGNATURE, TIMESTAMP = "x-grafana-alerting-signature", "x-grafana-alerting-timestamp"
SHORTEST_TOKEN = 8  # characters: a shorter one can be guessed
MAX_USER = 64  # characters of a user's name
REALM = "resilient_scan"  # what a browser is asked to log in to; by it the command recognizes a service of ours
MAX_SKEW = 300.0  # seconds between the signer's clock and ours


class TokenAuth:
    """Compare credentials with one token, in constant time.

    Args:
        token: the secret, one word of printable ASCII; it is never logged or shown.
        name: what messages call it.

    Raises:
        ConfigError: the token is shorter than 8 characters, or an HTTP header cannot carry it.
    """

    def __init__(self, token: str, name: str = "token") -> None:
        given: object = token
        if not isinstance(given, str) or not re.fullmatch(r"[!-~]+", given):
            without = "nothing can be changed over HTTP" if name == "token" else "everyone may read"
            raise ConfigError(f"service.{name} must be one word of printable ASCII; leave it out and {without}")
        if len(token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"service.{name} must have at least {SHORTEST_TOKEN} characters: a shorter one can be guessed; "
                "take one such as `openssl rand -hex 32` prints"
            )
        know((token,))
        self._token = token.encode()

    def __repr__(self) -> str:
        return "TokenAuth(token='***')"

    def accepts(self, authorization: str) -> bool:
        """Say whether an `Authorization` header carries the token."""
        scheme, _, credentials = authorization.strip().partition(" ")
        sent = credentials.strip().encode(errors="replace")
        match scheme.lower():
            case "bearer":
                return self._same(sent)
            case "basic":
                return self._same(_pair(sent)[1])
            case _:
                return False

    def user(self, authorization: str) -> str:
        """Return the user that basic authentication names, unchecked and on one line, or an empty text."""
        scheme, _, credentials = authorization.strip().partition(" ")
        if scheme.lower() != "basic":
            return ""
        return readable(_pair(credentials.strip().encode(errors="replace"))[0].decode(errors="replace"))[:MAX_USER]

    def signed(self, headers: Mapping[str, str], body: bytes, now: float) -> bool:
        """Say whether a body was signed with the token within the last minutes.

        Args:
            headers: of the request.
            body: as received.
            now: epoch seconds.
        """
        signature, timestamp = headers.get(SIGNATURE, ""), headers.get(TIMESTAMP, "")
        if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
            return False
        expected = hmac.new(self._token, timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()
        right = hmac.compare_digest(expected.encode(), signature.strip().lower().encode(errors="replace"))
        return right and abs(now - int(timestamp)) <= MAX_SKEW

    def _same(self, token: bytes) -> bool:
        return hmac.compare_digest(self._token, token)


def _pair(credentials: bytes) -> tuple[bytes, bytes]:
    try:
        user, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b"", b""
    return user, password
