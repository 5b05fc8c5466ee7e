"""README keeps its word: its blocks run, its tables and its help texts are the code's."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from resilient_scan import Status, load_settings, scanner
from tests.docs.reference import PARTS, README, anchor, parts_of

TEXT = README.read_text()
PROJECT = README.with_name("pyproject.toml")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
TOML = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SCREENS = re.findall(r"^```text\n\$ resilient-scan (?!--help)(.*?)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_a_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_sample_of_settings_is_right(tmp_path: Path) -> None:
    (text,) = [block for block in TOML if "[scanner_execution]" in block]
    (tmp_path / "scan.toml").write_text(text)
    settings = load_settings(tmp_path / "scan.toml", environ={})
    assert settings.check() == ()
    with settings.runner(listeners=(), store=None) as runner:
        assert "60/min" in str(runner.explain("analyst_revisions"))


def test_the_sample_of_a_service_is_right(tmp_path: Path) -> None:
    (text,) = [block for block in TOML if "[service]" in block and "[scanner_execution]" not in block]
    (tmp_path / "scan.toml").write_text(text)
    settings = load_settings(tmp_path / "scan.toml", environ={})
    assert (settings.service.host, settings.service.port, settings.quarantine.heartbeat) == ("127.0.0.1", 9108, 60)
    assert settings.check([scanner(name="insider_buying", pipeline="edge")(lambda _state: [])]) == ()
    shipped = yaml.safe_load((README.parent / "grafana/alertmanager/alertmanager.yml").read_text())["receivers"][0]
    (block,) = re.findall(r"^```yaml\n(receivers:.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (told,) = yaml.safe_load(block)["receivers"]
    for webhook in (told["webhook_configs"][0], shipped["webhook_configs"][0]):
        webhook.pop("url")
        webhook["http_config"]["authorization"].pop("credentials_file")
    assert told == shipped


def without_times(text: str) -> list[str]:
    """Return the words of a screen without what differs from run to run and from machine to machine."""
    root = r"\s*".join(map(re.escape, f"{README.parent}/"))  # where it is long, a line may end anywhere in it
    text = re.sub(rf"{root}([\w/\s]*\.py)", lambda found: "".join(found[1].split()), text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|\d\d:\d\d:\d\d", "INSTANT", text)
    text = re.sub(r"\.py\s*:\s*\d+", ".py", text)
    return re.sub(r"<?\d[\d.]*(ms|s|m| times)\b", "TIME", text).split()


@pytest.mark.parametrize(("arguments", "screen"), SCREENS, ids=[arguments for arguments, _ in SCREENS])
def test_a_screen_is_what_the_command_shows(arguments: str, screen: str) -> None:
    script = Path(sys.executable).with_name("resilient-scan")
    done = subprocess.run([script, *arguments.split()], capture_output=True, text=True, timeout=60)
    assert without_times(done.stdout) == without_times(screen)


def test_there_are_screens() -> None:
    assert [arguments for arguments, _ in SCREENS] == ["run --faults", "explain broken --faults", "verify"]


@pytest.mark.parametrize("part", PARTS)
def test_a_reference_table_is_what_the_code_says(part: str) -> None:
    way_out = "run: uv run python -m tests.docs.reference"
    assert parts_of(TEXT)[part].split() == PARTS[part]().split(), way_out


def test_the_table_of_statuses_is_whole() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", TEXT, re.MULTILINE))
    assert rows == {status.value: "yes" if status.answered else "no" for status in Status}


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target
    anchors = [anchor(title) for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)]
    for target in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert target in anchors


def test_the_picture_of_the_layout_has_every_room_in_order() -> None:
    (contract,) = [
        each
        for each in tomllib.loads(PROJECT.read_text())["tool"]["importlinter"]["contracts"]
        if each["id"] == "rooms"
    ]
    rows = TEXT.partition("| room | what it does |")[2].partition("\n\n")[0].splitlines()[2:]
    drawn = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    rooms = [module.rpartition(".")[2] for floor in contract["layers"] for module in re.split(r"\s+[:|]\s+", floor)]
    plain = {"__main__", "logs", "metrics", "tracing", "_text", "_once"}
    assert sorted(drawn) == sorted(set(rooms) - plain)
    assert [name for name in drawn if name in rooms] == drawn


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = TEXT.splitlines()
    assert "pip install uv && uv run resilient-scan run" in lines
    assert "pip install uv && uv run pytest" in lines
