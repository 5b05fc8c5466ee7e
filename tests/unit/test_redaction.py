"""Secrets in foreign texts."""

from __future__ import annotations

import pytest

from resilient_scan._text import hide, is_secret, may_be_secret, redact, without_secrets


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
