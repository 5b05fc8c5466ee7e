"""Credentials: the token in its three forms, and everything that only looks like it."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import ConfigError
from resilient_scan.service.auth import SIGNATURE, TIMESTAMP, TokenAuth

TOKEN = "open-sesame-42"
NOW = 1_790_000_000.0
BODY = b'{"alerts": []}'


@pytest.fixture
def auth() -> TokenAuth:
    return TokenAuth(TOKEN)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def signed(body: bytes = BODY, *, key: str = TOKEN, at: float = NOW) -> dict[str, str]:
    stamp = str(int(at))
    signature = hmac.new(key.encode(), stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return {SIGNATURE: signature, TIMESTAMP: stamp}


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"  BEARER   {TOKEN} ", basic("", TOKEN), basic("anna", TOKEN)]
)
def test_the_token_opens(auth: TokenAuth, header: str) -> None:
    assert auth.accepts(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Token {TOKEN}",
        f"Basic {TOKEN}",
        "Basic ====",
        "Basic \xff\xfe",
        "Bearer \xff",
        basic(TOKEN, ""),
        basic(TOKEN, "x"),
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
    ],
)
def test_nothing_else_opens(auth: TokenAuth, header: str) -> None:
    assert not auth.accepts(header)


@given(st.text(max_size=60))
def test_no_text_but_the_token_opens_and_none_raises(text: str) -> None:
    assert TokenAuth(TOKEN).accepts(f"Bearer {text}") == (text.strip() == TOKEN)


@pytest.mark.parametrize(
    ("header", "user"),
    [
        (basic("anna", TOKEN), "anna"),
        (basic("", TOKEN), ""),
        (basic("x\n\x1b[31m<b>", TOKEN), "x \N{REPLACEMENT CHARACTER}[31m<b>"),
        (basic("a" * 1000, TOKEN), "a" * 64),
        (f"Bearer {TOKEN}", ""),
        ("Basic !!!", ""),
        ("", ""),
    ],
)
def test_the_user_is_whom_basic_authentication_names(header: str, user: str) -> None:
    assert TokenAuth(TOKEN).user(header) == user


def test_a_password_may_hold_colons() -> None:
    assert TokenAuth("a:b:c:d:e").accepts(basic("user", "a:b:c:d:e"))


def test_a_token_that_can_be_guessed_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match=r"service\.token must have at least 8 characters") as caught:
        TokenAuth("hunter2")
    assert "hunter2" not in str(caught.value)
    assert TokenAuth("hunter22").accepts(basic("user", "hunter22"))


@pytest.mark.parametrize("token", ["", " ", "two words", "tab\there", "naïve", "line\n", None, 7])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(token: object) -> None:
    with pytest.raises(ConfigError, match=r"service\.token must be one word") as caught:
        TokenAuth(token)  # type: ignore[arg-type]
    assert "naïve" not in str(caught.value)
    assert "two words" not in str(caught.value)


def test_the_token_is_not_shown(auth: TokenAuth) -> None:
    assert TOKEN not in repr(auth)


def test_a_signed_body_opens(auth: TokenAuth) -> None:
    assert auth.signed(signed(), BODY, NOW)
    upper = {**signed(), SIGNATURE: signed()[SIGNATURE].upper()}
    assert auth.signed(upper, BODY, NOW)


@pytest.mark.parametrize("skew", [-300, 300])
def test_a_clock_may_be_five_minutes_off(auth: TokenAuth, skew: float) -> None:
    assert auth.signed(signed(at=NOW + skew), BODY, NOW)


@pytest.mark.parametrize("skew", [-301, 301, 86_400])
def test_an_old_signature_is_worth_nothing(auth: TokenAuth, skew: float) -> None:
    assert not auth.signed(signed(at=NOW + skew), BODY, NOW)


def test_a_signature_is_for_its_own_body_key_and_time(auth: TokenAuth) -> None:
    good = signed()
    assert not auth.signed(good, BODY + b" ", NOW)
    assert not auth.signed(signed(key="another"), BODY, NOW)
    assert not auth.signed({**good, TIMESTAMP: str(int(NOW) + 1)}, BODY, NOW)
    assert not auth.signed({**good, SIGNATURE: ""}, BODY, NOW)
    assert not auth.signed({TIMESTAMP: good[TIMESTAMP]}, BODY, NOW)


@pytest.mark.parametrize("stamp", [None, "", "soon", "-1", "1e9", "٣", "9" * 13, "1790000000.0"])
def test_a_signature_without_a_timestamp_is_refused(auth: TokenAuth, stamp: str | None) -> None:
    plain = hmac.new(TOKEN.encode(), BODY, hashlib.sha256).hexdigest()
    headers = {SIGNATURE: plain} | ({} if stamp is None else {TIMESTAMP: stamp})
    assert not auth.signed(headers, BODY, NOW)
