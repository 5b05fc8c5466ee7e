"""The page as HTML: what it says of a fleet, in which order, and that nobody's text is markup."""

from __future__ import annotations

import re
from typing import Any

import pytest

from resilient_scan.quarantine import Evidence
from resilient_scan.service.control import Scanner, Scanners
from resilient_scan.service.page import HEADERS, page, scanner_page

NOW = 1_790_000_000.0


def row(name: str, **fields: Any) -> Scanner:
    plain: dict[str, Any] = dict.fromkeys(Scanner.__struct_fields__)
    texts = dict.fromkeys(("reason", "who", "last_error"), "")
    return Scanner(**{**plain, **texts, "name": name, "pipeline": "test", "state": "enabled", **fields})


def shown(*rows: Scanner, blind: float | None = None, can_change: bool = True) -> str:
    return page(Scanners(list(rows), blind), now=NOW, can_change=can_change)


def headline(*rows: Scanner) -> tuple[str, str]:
    (found,) = re.findall(r'<p id="headline" class="(\w+)">(.*?)</p>', shown(*rows))
    return found


def test_the_headline_says_how_the_fleet_is() -> None:
    well, failing = row("a"), row("b", last_status="error")
    out, off = row("c", state="quarantined"), row("d", state="disabled")
    assert headline(well) == ("good", "The scanner is in service")
    assert headline(well, failing) == ("bad", "1 failing; 1 of 2 well")
    assert headline(well, out) == ("bad", "1 quarantined; 1 of 2 well")
    assert headline(well, off) == ("warn", "1 disabled; 1 of 2 well")
    assert headline(well, failing, out, off, row("e", state="probing")) == (
        "bad",
        "1 failing, 1 disabled, 1 probing, 1 quarantined; 1 of 5 well",
    )


def test_trouble_comes_first() -> None:
    html = shown(
        row("well"), row("off", state="disabled"), row("ill", last_status="timeout"), row("out", state="quarantined")
    )
    assert re.findall(r'href="page/(\w+)"', html) == ["ill", "out", "off", "well"]
    assert re.findall(r'data-action="(\w+)"', html) == ["disable", "enable", "enable", "disable"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "&lt; 1 ms"),
        (0.25, "250 ms"),
        (1.5, "1.5 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (7200, "2 h"),
        (None, "–"),
    ],
)
def test_durations_as_people_say_them(seconds: float | None, text: str) -> None:
    assert f'data-label="Took">{text}</td>' in shown(row("a", last_duration=seconds))


@pytest.mark.parametrize(("at", "text"), [(NOW + 90, "in 90 s"), (NOW, "with the next run"), (None, "–")])
def test_when_the_next_probe_is(at: float | None, text: str) -> None:
    assert f'data-label="Next probe">{text}</td>' in shown(row("a", state="quarantined", next_probe=at))


@pytest.mark.parametrize(("at", "text"), [(NOW, "2026-09-21 14:13:20"), (-1e300, "long ago"), (1e18, "long ago")])
def test_instants(at: float, text: str) -> None:
    assert f"<small>{text}</small>" in shown(row("a", last_status="completed", last_at=at))


def test_who_and_until_are_said_with_the_reason() -> None:
    html = shown(row("a", state="disabled", reason="quota", who="anna", since=NOW, until=NOW + 3600))
    assert "quota<small>anna, since 2026-09-21 14:13:20, until 2026-09-21 15:13:20</small>" in html


def test_without_a_token_there_is_nothing_to_change() -> None:
    assert "<button" not in shown(row("a"), can_change=False)
    assert "no token is configured" in shown(row("a"), can_change=False)


def test_a_missing_heartbeat_is_said() -> None:
    assert "No heartbeat from the alerts since 2026-09-21 14:13:20" in shown(row("a"), blind=NOW)
    assert "heartbeat" not in shown(row("a"))


def test_no_text_is_markup() -> None:
    evil = "</script><script>x</script>\"'><img>"
    html = shown(row("a", reason=evil, who=evil, since=NOW, pipeline=evil, last_error=evil, last_status=evil))
    assert html.count("<script>") == 1
    assert "<img>" not in html
    alert = Evidence("f", evil, evil, evil, "firing", starts_at=NOW, said_at=NOW, blocks=True)
    one = scanner_page("a", evil, [alert], now=NOW)
    assert "<script>" not in one
    assert "<img>" not in one
    assert "2026-09-21 14:13:20" in one


def test_nothing_but_our_own_script_and_style_may_run() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"\bon\w+=|style=|javascript:", shown(row("a")))
