"""URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilient_scan import ConfigError
from resilient_scan.stores import check_form, open_store, without_password
from resilient_scan.testing import FakeClock

FORMS = "memory:, sqlite:///relative.db or sqlite:////absolute.db, redis://host:port/db (or rediss://, unix://path)"


@pytest.mark.parametrize("url", ["", "memory", "memory:x", "file:x", "sqlite", "postgres://host", "x.db"])
def test_a_wrong_url_is_refused_with_the_right_forms(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, FakeClock())
    assert str(caught.value) == f"store must be one of {FORMS}, got {url!r}"


@pytest.mark.parametrize("thing", [None, 5, object(), b"memory:"])
def test_what_is_no_store_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="or an object with the methods of Store, got"):
        open_store(thing, FakeClock())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@host/0",
        "redis://me:hunter2@host:1/0",
        "redis://me:hun@ter2@host",
        "rediss://host?password=hunter2",
        "unix:///x?db=1&PASSWORD=hunter2&b=c",
        "postgres://me:hunter2@host/db",
    ],
)
def test_a_password_is_not_shown(url: str) -> None:
    shown = without_password(url)
    assert "ter2" not in shown
    assert "***" in shown


def test_what_is_no_password_is_shown() -> None:
    for url in ("redis://host:6379/0", "unix:///tmp/x?db=1", "sqlite:///a.db", "memory:"):
        assert without_password(url) == url


def test_spaces_of_one_file_know_nothing_of_each_other(tmp_path: Path) -> None:
    clock = FakeClock()
    one, other = (open_store(f"sqlite:///{tmp_path}/x.db?space={name}", clock) for name in ("one", "other"))
    one.put("value", b"1", 60)
    one.update("document", lambda _old, _now: (b"2", None))
    one.append("audit", b"3", 10)
    assert one.lease("lease", "me", 60)
    one.flush()
    assert (other.get("value"), other.read(""), other.tail("audit", 9)) == (None, {}, [])
    assert other.lease("lease", "you", 60)
    one.close()
    other.close()
    again = open_store(f"sqlite:///{tmp_path}/x.db?space=one", clock)
    assert (again.get("value"), again.read(""), again.tail("audit", 9)) == (b"1", {"document": b"2"}, [b"3"])
    assert again.url.endswith("x.db?space=one")
    again.close()


@pytest.mark.parametrize(
    "url", ["memory:", "sqlite:///x.db", "sqlite:////x.db", "redis://h", "rediss://h", "unix:///s"]
)
def test_a_right_form(url: str) -> None:
    check_form(url)


@pytest.mark.parametrize(
    ("url", "kind"), [("", "something else"), ("sqlite:x", "something else with 'sqlite:'"), ("redis:/x", "'redis:'")]
)
def test_a_wrong_form_is_refused(url: str, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_form(url)
    assert f"store.url must be one of {FORMS}, not " in str(caught.value)
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("sqlite:///:memory:", "must be memory: for a store in memory"),
        ("sqlite:///x.db?mode=ro", "the name of a file without a '?'"),
        ("sqlite:////", "must be sqlite:///relative.db or sqlite:////absolute.db"),
        ("redis://:hunter2", "host and port cannot be read; what a password has of / ? # @ is written %2F %3F %23 %40"),
        ("redis://:hunter2@host/db", "after the host comes the number of a database"),
        ("unix:///socket?no_such=1", "there is no option 'no_such'; those there are: db, username, "),
    ],
)
def test_what_no_store_could_be_opened_by_is_refused_at_once(url: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_form(url)
    assert str(caught.value).startswith("store.url ")
    assert fault in str(caught.value)
    assert "hunter2" not in str(caught.value)
