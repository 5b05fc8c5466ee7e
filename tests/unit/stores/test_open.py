"""URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilient_scan import ConfigError
from resilient_scan.core.assembly import opened
from resilient_scan.stores import check_form, open_store, split_space, with_space, without_password
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
    ("url", "parts"),
    [
        ("memory:", ("memory:", "")),
        ("memory:?space=a", ("memory:", "a")),
        ("sqlite:////x.db?space=A_1.b-2", ("sqlite:////x.db", "A_1.b-2")),
        ("redis://h:1/0?space=a", ("redis://h:1/0", "a")),
        ("unix:///s?db=1&space=a&client_name=b", ("unix:///s?db=1&client_name=b", "a")),
        ("unix:///s?space=a&db=1", ("unix:///s?db=1", "a")),
        ("sqlite:///x.db?mode=ro", ("sqlite:///x.db?mode=ro", "")),
    ],
)
def test_every_url_can_name_a_space(url: str, parts: tuple[str, str]) -> None:
    assert split_space(url) == (*parts, "")
    check_form(url) if "mode" not in url else None
    if parts[1]:
        assert split_space(with_space(*parts)) == (*parts, "")


@pytest.mark.parametrize("name", ["", "a/b", "é", "a b", "hunter2@host", "x" * 65, "last", "quarantine", "cache"])
def test_a_space_whose_keys_would_be_anothers_is_refused_without_showing_the_url(name: str) -> None:
    for url in (f"sqlite:///x.db?space={name}", f"redis://h?db=1&space={name}", f"memory:?space={name}"):
        for attempt in (check_form, lambda each: open_store(each, FakeClock())):
            with pytest.raises(ConfigError, match=r"^store\.space must be 1 to 64 letters, digits, ") as caught:
                attempt(url)
            assert "hunter2" not in str(caught.value)


def test_a_url_names_one_space() -> None:
    with pytest.raises(ConfigError, match=r"^store\.space: the URL names more than one$"):
        check_form("redis://h?space=a&space=b")


def test_only_a_file_can_begin_with_the_state_of_another_space() -> None:
    url = with_space("sqlite:///x.db", "a", "b")
    assert split_space(url) == ("sqlite:///x.db", "a", "b")
    assert without_password(url) == "sqlite:///x.db?space=a"
    with pytest.raises(ConfigError, match="there is no option 'was'"):
        check_form("redis://h?space=a&was=b")


def test_a_runner_needs_no_store_for_a_space_in_its_own_memory() -> None:
    assert opened("memory:?space=a", FakeClock()) is None


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
