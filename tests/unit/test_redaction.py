"""Secrets in foreign texts."""

from __future__ import annotations

import logging

import pytest

from resilient_scan import ScanRunner, _text
from resilient_scan._text import (
    hide,
    hider,
    is_secret,
    know,
    may_be_secret,
    redact,
    secrets_of_environment,
    secrets_of_table,
    without_secrets,
)
from resilient_scan.testing import broken


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://user:pw@host/x failed", "GET https://host/x failed"),
        ("at redis://:hunter2@db:6379/0", "at redis://db:6379/0"),
        ("https://host/q?apikey=abc&symbol=A: HTTP 500", "https://host/q?apikey=REDACTED&symbol=A: HTTP 500"),
        ("bad api_key=abc123", "bad api_key=REDACTED"),
        ("password: hunter2, retry", "password: REDACTED, retry"),
        ('{"access_token": "abc.def"}', '{"access_token": "REDACTED"}'),
        ("{'token': 'abc'}", "{'token': 'REDACTED'}"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: REDACTED"),
        ("ValueError: token=hunter2", "ValueError: token=REDACTED"),
        ("sent Bearer abcdefgh12345", "sent Bearer REDACTED"),
    ],
)
def test_a_value_with_a_secret_name_is_removed(text: str, shown: str) -> None:
    assert hide(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HTTP 500 error",
        "timeout after 30s",
        "100%s %d",
        "KeyError: 'price'",
        "candidate.ticker is missing",
        "https://host/path?symbol=BRK.B",
        "breaker: 5 failures; next trial in 60s",
        "the bearer of bad news",
        "a=1, b: 2",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert hide(text) == text


@pytest.mark.parametrize("before", ["_", "9", "é", "x", "1-", "+", "://", "a://b/"])
def test_an_address_is_found_whatever_precedes_it(before: str) -> None:
    assert "hunter2" not in hide(f"{before}http://user:hunter2@host/")


@pytest.mark.parametrize(
    "piece",
    ["a-", "key-", "key", "a.", "1-", "a://", "http://", "key=", "key :", "key:'", "Bearer ", "Basic a", "token ", " "],
)
def test_a_long_text_takes_no_longer_than_it_is_long(piece: str) -> None:
    """A source says what it likes; while we look at it, no other thread runs. By n * n steps this would take hours."""
    assert isinstance(hide(piece * 200_000), str)


def test_an_invalid_address_is_not_shown_at_all() -> None:
    assert "hunter2" not in hide("at http://user:hunter2@[::1")


def test_secret_names() -> None:
    assert all(map(is_secret, ("apikey", "API_KEY", "X-Auth-Token", "client_secret", "key", "sessionid", "passwd")))
    assert not any(map(is_secret, ("symbol", "keyboard", "monkey", "limit", "passage")))
    assert all(map(may_be_secret, ("API_KEY", "accessKey", "private_id", "monkey")))
    assert not any(map(may_be_secret, ("symbol", "limit", "passage")))


def test_parameters_keep_their_order() -> None:
    assert redact("https://a/b?x=1&token=t&y=2") == "https://a/b?x=1&token=REDACTED&y=2"


def test_secrets_leave_a_table_at_any_depth_and_the_original_stays() -> None:
    table = {"a": 1, "api_key": "x", "deep": {"token": "y", "b": [{"password": "z", "c": 2}, 3]}, 4: ("d",)}
    assert without_secrets(table) == {"a": 1, "deep": {"b": [{"c": 2}, 3]}, 4: ["d"]}
    assert table["api_key"] == "x"


# Messages as sources, libraries and people write them. What is said about a key is a diagnosis; the key is a secret.

DIAGNOSES = [
    "missing key: price",
    "KeyError: missing key: 'price'",
    "missing key: rsi14",
    "missing key: sma_200",
    "key: AAPL",
    "unknown key: BRK.B",
    "duplicate key: 2013-01-24",
    "duplicate key: 20130124",
    "duplicate key: 2013-01-24T20:00:00Z",
    "unknown key: trade_date; did you mean 'trade_dates'?",
    "unexpected key=adjustedClosePriceValue",
    "access_token: HTTP 403",
    "access_token: 403",
    "token: 401 Unauthorized",
    "token=403",
    "token: expired",
    "token: expired.",
    "invalid_token: The access token expired",
    "error: invalid_grant, token: revoked",
    '{"error": "invalid_token", "token": "expired"}',
    '{"auth": "required", "status": 401}',
    '{"token": null, "code": 403}',
    "{'key': 'EPS', 'value': 3}",
    "needs api_key: set the variable FINNHUB_API_KEY",
    "api_key: FINNHUB_API_KEY is not set",
    "api_key: required",
    "apikey: none given",
    "api_key=None",
    "api_key=<missing>",
    "API key: invalid or missing",
    "password: must not be empty",
    "password: authentication failed for user postgres",
    "secret: misconfiguration",
    "session: ReadTimeout",
    "session: JSONDecodeError at line 1",
    "session: requests.exceptions.ConnectTimeout",
    "session: closed after 30s",
    "session: 2013-01-24",
    "cookie: missing",
    "crumb: unauthorized",
    "auth: oauth2",
    "auth: HTTP/1.1 required",
    "Authorization: missing",
    "Authorization: Basic authentication required",
    "WWW-Authenticate: Bearer realm=finnhub",
    "signature: HMAC-SHA256",
    "signature: sha256 does not match",
    "credentials: /run/secrets/token cannot be read",
    "key: /etc/ssl/private/server.pem",
    "the bearer of bad news",
    "tokens: 12 of 60 left",
    "author: Jane",
    "max_tokens: 4096",
    "token bucket: empty",
]
SECRETS = [
    ("bad api_key=abc123", "bad api_key=REDACTED"),
    ("api_key: c8q2ad2ad3idmhk0", "api_key: REDACTED"),
    ("api_key: c8q2ad2ad3idmhk0 is not valid", "api_key: REDACTED is not valid"),
    ("apikey=demo1234&symbol=AAPL", "apikey=REDACTED&symbol=AAPL"),
    ("password: hunter2, retry", "password: REDACTED, retry"),
    ("password=Tr0ub4dor", "password=REDACTED"),
    ("pwd=p@ssw0rd!", "pwd=REDACTED"),
    ("key: AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "key: REDACTED"),
    ("key=4f3c2b1a0d9e8f7a", "key=REDACTED"),
    ("token=hunter2", "token=REDACTED"),
    ("token: ghp_16C7e42F292c6912E7710c838347Ae178B4a", "token: REDACTED"),
    ("token: xoxb-123456789012-1234567890123-4mt0t4l1yf3k3", "token: REDACTED"),
    ("token: 123456789012345678", "token: REDACTED"),
    ("token: qwrtplkjhgfdszxc", "token: REDACTED"),
    ("token: YWxhZGRpbjpvcGVuc2VzYW1l", "token: REDACTED"),
    ("secret=sk_live_4eC39HqLyjWDarjtT1zdp7dc", "secret=REDACTED"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = REDACTED"),
    ("The AWS Access Key Id AKIAIOSFODNN7EXAMPLE does not exist", "The AWS Access Key Id REDACTED does not exist"),
    ("AKIAIOSFODNN7EXAMPLE", "REDACTED"),
    ("ASIAY34FZKBOKMUTVV7A: expired", "REDACTED: expired"),
    ("session: 123e4567-e89b-12d3-a456-426614174000", "session: REDACTED"),
    ("Cookie: B=3f2a9c81d0e7", "Cookie: REDACTED"),
    ("crumb=x9Kd2mVq1Lz", "crumb=REDACTED"),
    ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmN", "Authorization: REDACTED"),
    ("Authorization: Basic dXNlcjpwdw==", "Authorization: REDACTED"),
    ("X-Auth-Token: 9f86d081884c7d65", "X-Auth-Token: REDACTED"),
    ("sent Bearer abcdefgh12345", "sent Bearer REDACTED"),
    ('{"access_token": "abc.def"}', '{"access_token": "REDACTED"}'),
    ('{"access_token":"ya29.a0AfH6SMBx"}', '{"access_token":"REDACTED"}'),
    (r'b\'{\\"token\\": \\"a1b2c3d4\\"}\'', r'b\'{\\"token\\": \\"REDACTED\\"}\''),
    ("signature: 5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd", "signature: REDACTED"),
    ("https://host/q?apikey=abc&symbol=A: HTTP 500", "https://host/q?apikey=REDACTED&symbol=A: HTTP 500"),
    ("at /q?symbol=A&token=t failed", "at /q?symbol=A&token=REDACTED failed"),
    ("redis://:hunter2@db:6379/0 refused", "redis://db:6379/0 refused"),
]


@pytest.mark.parametrize("text", DIAGNOSES)
def test_what_is_said_about_a_key_stays(text: str) -> None:
    assert hide(text) == text


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_what_looks_like_a_secret_goes(text: str, shown: str) -> None:
    assert hide(text) == shown


# what is known to be a secret


def test_a_known_secret_goes_wherever_it_stands() -> None:
    know(["plain words", "correcthorse", "a/b+c=d&e"])
    assert hide("no correcthorse here") == "no REDACTED here"
    assert hide("incorrecthorses") == "inREDACTEDs"
    assert hide("plainwords, plain words") == "plainwords, REDACTED"
    assert hide("at /x/a%2Fb%2Bc%3Dd%26e") == "at /x/REDACTED"


def test_a_known_secret_of_less_than_eight_characters_goes_as_a_whole_token_only() -> None:
    know(["price"])
    assert hide("key price, 'price': prices price_1") == "key REDACTED, 'REDACTED': prices price_1"
    assert hider(["seven77"])("seven77 seven777 xseven77") == "REDACTED seven777 xseven77"
    assert hider(["eight888"])("xeight8889") == "xREDACTED9"


def test_of_two_known_secrets_the_longer_goes_first() -> None:
    know(["abcd1234", "abcd1234efgh5678"])
    assert hide("x abcd1234efgh5678 abcd1234") == "x REDACTED REDACTED"


def test_a_secret_of_three_characters_is_none() -> None:
    know(["abc", ""])
    assert hide("abc") == "abc"


def test_the_oldest_known_secrets_are_forgotten_first() -> None:
    know(f"token-{number:08}" for number in range(2_500))
    assert hide("token-00000001 token-00002499") == "token-00000001 REDACTED"
    assert len(_text._known) == 2_000


def test_secrets_of_the_environment_are_those_with_a_telling_name_and_the_passwords_in_addresses() -> None:
    environ = {
        "FINNHUB_API_KEY": "c8q2ad2a",
        "RESILIENT_SCAN__SCANNERS__X__SETTINGS__TOKEN": "word",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "DATABASE_URL": "postgres://me:swordfish@db/x",
        "PGPASSWORD": "open sesame",
        "DB_PASS": "letmein",
        "FINNHUB_KEY": "c8q2ad2ad3idmhk0",
        # none of these is one
        "PWD": "/home/me/project",
        "SSH_KEY": "~/.ssh/id",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "XDG_SESSION_TYPE": "wayland",
        "USE_TOKEN": "true",
        "MAX_KEY": "100",
        "HOME_URL": "https://host/",
        "KEYBOARD": "qwerty",
        "SORT_KEY": "ticker",
        "GIT_AUTHOR_NAME": "Jane",
    }
    assert secrets_of_environment(environ) == {
        *("c8q2ad2a", "word", "AKIA", "swordfish", "open sesame", "letmein", "c8q2ad2ad3idmhk0"),
    }


def test_what_settings_environment_and_store_call_a_secret_is_in_no_result_and_in_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "swordfish")
    caplog.set_level(logging.INFO)
    bad = broken("bad", ValueError("no openly for swordfish and opensesame"))
    settings = {"bad": {"deep": {"password": "opensesame"}, "token": "open"}}
    with ScanRunner([bad], settings=settings) as runner:
        error = runner.run().results["bad"].error
    assert error is not None
    assert error.message == "no openly for REDACTED and REDACTED"
    assert "swordfish" not in caplog.text
    assert "opensesame" not in caplog.text


def test_secrets_of_settings_are_those_with_a_secret_name_at_any_depth() -> None:
    table = {
        "session": "regular",
        "author": "Jane",
        "max_tokens": "many",
        "key": "ticker",
        "api_key": "one",
        "deep": {"token": "two", "limit": 3},
        "url": "http://u:three@h/",
    }
    assert sorted(secrets_of_table(table)) == ["one", "three", "two"]
