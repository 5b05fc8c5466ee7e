"""Packages that hang, print or quit at import: they are named, and the rest runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.e2e.test_command import BUILT_IN
from tests.support.fixtures import Distribute

HUNG = """
import threading
def wait():
    threading.Event().wait()
wait()
"""
GOOD = """
{at_import}
class Good:
    '''Find one.'''
    name = "{name}"
    pipeline = "own"
    def scan(self, state):
        import sys
        loaded = [name for name in sys.modules if name.startswith(("acme", "resilient_scan_scanners"))]
        return [dict(ticker="ABC", source="good", context=" ".join(loaded))]
"""
QUICK = {"RESILIENT_SCAN__SCANNER_EXECUTION__IMPORT_TIMEOUT_SECONDS": "700ms"}


def good(name: str, at_import: str = "") -> str:
    return GOOD.format(name=name, at_import=at_import)


def test_a_package_that_hangs_is_named_with_its_stack_and_the_rest_runs(distribute: Distribute) -> None:
    site = distribute("hung", {"hung": "acme_hung:x"}, {"acme_hung.py": HUNG})
    done = run("run", "--demo", "--json", code=1, PYTHONPATH=str(site), **QUICK)
    assert sorted(json.loads(done.stdout)["results"]) == BUILT_IN
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
    assert line.startswith("problem: scanner hung of hung (acme_hung:x): its import has not ended within 0.7s")
    assert "acme_hung.py:5 in <module>" in line
    assert "acme_hung.py:4 in wait" in line
    assert "scanner_execution.import_timeout_seconds" in line
    refused = run("run", "--only", "hung", code=2, PYTHONPATH=str(site), **QUICK)
    assert "error: scanner hung of hung (acme_hung:x): its import has not ended within 0.7s" in refused.stderr


@pytest.mark.parametrize(
    "arguments", [["list"], ["check"], ["explain", "gap_up", "--no-run", "--demo"], ["verify", "--demo"]]
)
def test_it_hangs_no_command(arguments: list[str], distribute: Distribute) -> None:
    site = distribute("hung", {"hung": "acme_hung:x"}, {"acme_hung.py": HUNG})
    done = run(*arguments, code=2 if arguments == ["check"] else 0, PYTHONPATH=str(site), **QUICK)
    said = done.stdout if arguments == ["check"] else done.stderr
    if arguments[0] != "explain":  # that one imports nothing else
        assert said.count("has not ended within 0.7s") == (0 if arguments[0] == "verify" else 1)


def test_the_limit_is_ten_seconds_unless_it_is_set(distribute: Distribute) -> None:
    site = distribute("hung", {"hung": "acme_hung:x"}, {"acme_hung.py": HUNG})
    began = time.monotonic()
    done = run("list", PYTHONPATH=str(site))
    assert time.monotonic() - began >= 10
    assert "has not ended within 10s" in done.stderr


def test_who_waits_for_a_module_that_hangs_names_the_one_that_imports_it(distribute: Distribute) -> None:
    distribute("one", {"first": "acme_first:Good"}, {"acme_first.py": good("first", "import acme_hung")})
    distribute("two", {"later": "acme_later:Good"}, {"acme_later.py": good("later", "import acme_hung.part")})
    distribute("zzz", {"third": "acme_third:Good"}, {"acme_third.py": good("third", "import acme_later")})
    site = distribute("well", {"well": "acme_well:Good"}, {"acme_well.py": good("well")})
    (site / "acme_hung").mkdir()
    (site / "acme_hung" / "__init__.py").write_text(HUNG)
    (site / "acme_hung" / "part.py").write_text("")
    began = time.monotonic()
    done = run(
        "list", PYTHONPATH=str(site), **{**QUICK, "RESILIENT_SCAN__SCANNER_EXECUTION__IMPORT_TIMEOUT_SECONDS": "5s"}
    )
    assert time.monotonic() - began < 14  # the limit has passed once, not three times
    problems = {line.split()[2]: line for line in done.stderr.splitlines() if line.startswith("problem: ")}
    assert list(problems) == ["first", "later", "third"]
    assert "acme_hung/__init__.py:5 in <module>" in problems["first"]
    for name, module in (("later", "acme_hung"), ("third", "acme_later")):
        assert problems[name].endswith(
            f"its import waits for {module}, because that of first of one (acme_first:Good) has not ended"
        )
    assert "well " in done.stdout


def test_only_imports_what_it_names(distribute: Distribute) -> None:
    distribute("hung", {"hung": "acme_hung:x"}, {"acme_hung.py": HUNG})
    distribute("loud", {"loud": "acme_loud:x"}, {"acme_loud.py": "print('LOUD')"})
    site = distribute("mine", {"mine": "acme_mine:Good"}, {"acme_mine.py": good("mine")})
    done = run("run", "--json", "--only", "mine", PYTHONPATH=str(site))
    (found,) = json.loads(done.stdout)["candidates"]
    assert found["context"] == "acme_mine"
    assert "LOUD" not in done.stderr
    assert "10s" not in done.stderr
    done = run("run", "--demo", "--json", "--only", "mine,gap_up", PYTHONPATH=str(site))
    found = next(one for one in json.loads(done.stdout)["candidates"] if one["source"] == "good")
    assert "resilient_scan_scanners.gap_up" in found["context"]
    assert "resilient_scan_scanners.reddit_dd" not in found["context"]


def test_tables_of_scanners_that_are_not_imported_are_no_error(distribute: Distribute, tmp_path: Path) -> None:
    distribute("loud", {"loud": "acme_loud:x"}, {"acme_loud.py": "print('LOUD')"})
    distribute("other", {"entry": "acme_other:Good"}, {"acme_other.py": good("other")})
    site = distribute("mine", {"mine": "acme_mine:Good"}, {"acme_mine.py": good("mine")})
    config = tmp_path / "scan.toml"
    config.write_text("[scanners.gap_up]\ntimeout = { total = 5 }\n[scanners.loud]\nenabled = true\n")
    arguments = ("run", "--json", "--only", "mine", "--config", str(config))
    assert "LOUD" not in run(*arguments, PYTHONPATH=str(site)).stderr
    config.write_text("[scanners.other]\nenabled = true\n")  # its entry point has another name: it must be looked for
    assert list(json.loads(run(*arguments, PYTHONPATH=str(site)).stdout)["results"]) == ["mine"]
    config.write_text("[scanners.othre]\nenabled = true\n")
    assert (
        "scan.toml:1: unknown scanner othre; did you mean 'other'?"
        in run(*arguments, code=2, PYTHONPATH=str(site)).stderr
    )


def test_a_scanner_is_found_by_its_own_name_too(distribute: Distribute) -> None:
    site = distribute("mine", {"entry": "acme_mine:Good"}, {"acme_mine.py": good("mine")})
    assert json.loads(run("run", "--json", "--only", "mine", PYTHONPATH=str(site)).stdout)["counts"] == {"completed": 1}
    said = run("run", "--only", "mien", code=2, PYTHONPATH=str(site)).stderr
    assert "unknown scanner 'mien'; did you mean 'mine'?" in said


def test_a_broken_package_is_imported_once(distribute: Distribute) -> None:
    site = distribute("loud", {"loud": "acme_loud:x"}, {"acme_loud.py": "print('LOUD')\n1 / 0"})
    for arguments in (["list"], ["check"], ["run", "--demo", "--json"], ["run", "--only", "nobody"]):
        done = run(*arguments, code={"list": 0, "check": 2, "--json": 1}.get(arguments[-1], 2), PYTHONPATH=str(site))
        assert done.stderr.count("LOUD") == 1


def test_exceptions_that_settings_name_are_imported_under_the_limit_too(distribute: Distribute) -> None:
    site = distribute("hung", {}, {"acme_hung.py": HUNG})
    done = run("list", code=2, PYTHONPATH=str(site), RESILIENT_SCAN__DEFAULTS__RETRY__ON="acme_hung.Error")
    assert "'acme_hung.Error' cannot be imported: its import has not ended within 10s" in done.stderr
