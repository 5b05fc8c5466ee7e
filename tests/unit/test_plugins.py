"""Discovery: what is found, what is refused, and that one refusal costs nobody else anything."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import PluginError, ScanRunner
from resilient_scan.settings import plugins
from resilient_scan.settings.plugins import GROUP, discover, load_demo
from resilient_scan.testing import healthy
from tests.support.fixtures import Distribute

GOOD = '''
class Good:
    """Say good things.

    At length.
    """
    name = "{name}"
    pipeline = "news"
    def scan(self, state):
        return []
'''


def found_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> plugins.Plugins:
    monkeypatch.syspath_prepend(str(site))
    points = [
        point
        for info in sorted(site.glob("*.dist-info"))
        for point in PathDistribution(info).entry_points
        if point.group == GROUP
    ]
    return discover(points)


def test_the_built_in_scanners_come_by_entry_points() -> None:
    plugins = discover()
    assert not plugins.problems
    ours = {scanner.name for scanner in plugins.scanners if scanner.built_in}
    assert ours >= {"market_movers", "volume_accumulation", "high_52w_breakout", "gap_up", "rsi_oversold"}
    assert ours >= {"insider_buying", "filings_8k", "reddit_trending", "reddit_dd"}
    assert all(scanner.summary for scanner in plugins.scanners if scanner.built_in)


def test_a_plain_class_is_found_with_its_first_docstring_line(
    distribute: Distribute, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = distribute("acme-plain", {"any": "acme_plain:Good"}, {"acme_plain.py": GOOD.format(name="plain")})
    (found,) = found_in(site, monkeypatch).scanners
    assert (found.name, found.pipeline, found.summary, found.built_in) == ("plain", "news", "Say good things.", False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "import no_such_module_at_all",
            "its import failed: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        ("1 / 0", "its import failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "its import failed: SystemExit: 3"),
        ("", "its import failed: AttributeError"),
        ("Good = 7", "7 is not a scanner: it has neither a name nor a method scan"),
        ("class Good:\n    name = 'Not Valid'\n    pipeline = 'p'\n    def scan(self, state): ...", "name must be"),
        ("class Good:\n    name = 'x'\n    pipeline = 'p'", "no method scan"),
        ("class Good:\n    def __init__(self, key): ...", "without arguments"),
    ],
)
def test_one_that_cannot_be_used_is_named_and_the_rest_is_found(
    text: str, reason: str, distribute: Distribute, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    module = f"acme_bad_{abs(hash(request.node.name))}"
    distribute("acme-bad", {"bad": f"{module}:Good"}, {f"{module}.py": text})
    site = distribute("acme-fine", {"fine": "acme_fine:Good"}, {"acme_fine.py": GOOD.format(name="fine")})
    result = found_in(site, monkeypatch)
    assert [found.name for found in result.scanners] == ["fine"]
    (problem,) = result.problems
    assert problem.name == "bad"
    assert str(problem.error).startswith(f"scanner bad of acme-bad ({module}:Good): ")
    assert reason in str(problem.error)


def test_of_two_with_one_name_the_first_keeps_it(distribute: Distribute, monkeypatch: pytest.MonkeyPatch) -> None:
    distribute("acme-b", {"two": "acme_b:Good"}, {"acme_b.py": GOOD.format(name="twin")})
    site = distribute("acme-a", {"one": "acme_a:Good"}, {"acme_a.py": GOOD.format(name="twin")})
    result = found_in(site, monkeypatch)
    assert [type(found.scanner).__name__ and found.name for found in result.scanners] == ["twin"]
    (problem,) = result.problems
    assert str(problem.error) == "scanner two of acme-b (acme_b:Good): its name 'twin' is taken by acme-a (acme_a:Good)"


def test_a_guest_cannot_take_the_name_of_a_built_in_scanner(
    distribute: Distribute, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = distribute("aaa", {"mine": "acme_guest:Good"}, {"acme_guest.py": GOOD.format(name="gap_up")})
    monkeypatch.syspath_prepend(str(site))
    result = discover()
    assert next(found for found in result.scanners if found.name == "gap_up").built_in
    (problem,) = result.problems
    assert "taken by resilient-scan (resilient_scan_scanners.gap_up:gap_up)" in str(problem.error)


def test_a_missing_extra_of_ours_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    (problem,) = discover().problems
    assert "pip install 'resilient-scan[scanners]'" in str(problem.error)


def test_a_demo_that_lacks_what_it_needs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_demo() is not None
    monkeypatch.setitem(sys.modules, "resilient_scan_scanners.demo", None)
    assert load_demo() is None


def test_an_entry_point_without_a_distribution_says_so() -> None:
    (problem,) = discover([EntryPoint("lost", "no_such_module:x", GROUP)]).problems
    assert str(problem.error).startswith(
        "scanner lost of an unknown distribution (no_such_module:x): its import failed"
    )


class Nameless:
    pipeline = "p"

    @property
    def name(self) -> str:
        raise ValueError("no name yet")

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return []


class Quitter:
    name, pipeline = "quitter", "p"

    def __init__(self) -> None:
        sys.exit("no key")

    def scan(self, _state: dict[str, Any]) -> list[Any]:
        return []


@pytest.mark.parametrize("thing", [Nameless, Quitter])
def test_a_plugin_that_misbehaves_after_its_import_is_reported(thing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("misbehaving")
    module.thing, module.well = thing, healthy("well")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misbehaving", module)
    points = [EntryPoint(name, f"misbehaving:{name}", plugins.GROUP) for name in ("thing", "well")]
    found = plugins.discover(points)
    assert [one.name for one in found.scanners] == ["well"]
    assert len(found.problems) == 1
    with pytest.raises(PluginError):
        ScanRunner([thing])
