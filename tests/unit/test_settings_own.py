"""A scanner's own table of settings, held against its class where settings are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from resilient_scan import ConfigError, Settings, scanner

Load = Callable[..., Settings]


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """What the scanner takes."""

    days: Annotated[int, Meta(ge=1)] = 7
    share: float = 0.5
    names: list[str] = []
    api_key: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError("high must be >= low")


@scanner(pipeline="x", settings=Own)
def mine(state: dict[str, Any]) -> list[Any]:
    return []


@scanner(pipeline="x")
def free(state: dict[str, Any]) -> list[Any]:
    return []


def test_everything_that_does_not_fit_is_reported_with_its_line(load: Load) -> None:
    loaded = load(
        "[scanners.mine.settings]\ndayz = 3\ndays = 0\nshare = 'hunter2'\nnames = ['a', 5]\nfoo = 1\n"
        "[scanners.free.settings]\nanything = 1\n"
    )
    expected = (
        "scan.toml:2: unknown key scanners.mine.settings.dayz; did you mean 'days'?",
        "scan.toml:3: scanners.mine.settings.days must be a whole number >= 1",
        "scan.toml:4: scanners.mine.settings.share must be a number, got a text",
        "scan.toml:5: scanners.mine.settings.names[1] must be a text, got a whole number",
        "scan.toml:6: unknown key scanners.mine.settings.foo; the settings are days, share, names, api_key, low, high",
    )
    assert loaded.check([mine, free]) == expected
    with pytest.raises(ConfigError) as caught:
        loaded.runner([mine, free])
    assert tuple(str(caught.value).splitlines()) == expected


def test_what_is_missing_may_come_from_elsewhere_and_a_table_that_fits_says_nothing(load: Load) -> None:
    assert load("[scanners.mine.settings]\ndays = 3").check([mine]) == ()
    assert load("").check([mine]) == ()
    assert load("[scanners.mine]\nsettings = { days = 3, api_key = 'k', share = 1 }").check([mine]) == ()


def test_values_that_do_not_fit_each_other_are_reported(load: Load) -> None:
    loaded = load("[scanners.mine]\nsettings = { api_key = 'k', low = 2 }")
    assert loaded.check([mine]) == ("scan.toml:2: scanners.mine.settings: high must be >= low",)


def test_a_variable_is_reported_by_its_name(load: Load) -> None:
    prefix, path = "RESILIENT_SCAN__SCANNERS__mine__SETTINGS__", "scanners.mine.settings"
    loaded = load("[scanners.mine.settings]\ndays = 3", {f"{prefix}DAYS": "many", f"{prefix}DAYZ": "5"})
    assert loaded.check([mine]) == (
        f"{prefix}DAYS: {path}.days must be a whole number, got a text",
        f"{prefix}DAYZ: unknown key {path}.dayz; did you mean 'days'?",
    )


@pytest.mark.parametrize("kind", [dict, 5, "Own", Own(api_key="k")])
def test_the_class_is_a_struct(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"^@scanner: settings must be a msgspec\.Struct class or None, got "):
        scanner(pipeline="x", settings=kind)


def test_every_built_in_scanner_names_its_class() -> None:
    from resilient_scan.settings.plugins import discover

    for found in discover().scanners:
        assert not found.built_in or issubclass(found.scanner.settings, msgspec.Struct), found.name
