"""The reference is what the code says, and so are the lists and pictures that are written by hand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

import resilient_scan
from resilient_scan import Status, load_settings, scanner
from tests.docs.diagrams import DRAWN, PICTURES
from tests.docs.pages import DOCS, ROOT, blocks
from tests.docs.reference import PARTS, made, parts
from tests.docs.svg import Picture

FOUND = parts()


@pytest.mark.parametrize(("page", "mark", "text"), FOUND, ids=[mark for _, mark, _ in FOUND])
def test_a_generated_part_is_what_the_code_says(page: Path, mark: str, text: str) -> None:
    assert text.split() == made(mark).split(), "run: uv run --group dev python -m tests.docs.reference"


def test_every_part_is_on_a_page() -> None:
    assert {mark.split()[0] for _, mark, _ in FOUND} == set(PARTS)


@pytest.mark.parametrize("name", DRAWN)
def test_a_diagram_is_what_its_source_draws(name: str) -> None:
    drawn = DRAWN[name]().svg()
    assert (PICTURES / f"{name}.svg").read_text() == drawn, "run: uv run --group dev python -m tests.docs.diagrams"
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")  # it loads nothing


def test_a_text_that_is_too_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="is wider than 110"):
        Picture(200, 100, "").box((0, 0), (120, 40), "a title that does not fit into this box")


def test_the_statuses_are_all_there() -> None:
    text = (DOCS / "reference" / "statuses.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", text, re.MULTILINE))
    assert rows == {status.value: "yes" if status.answered else "no" for status in Status}


def test_the_api_has_every_public_name() -> None:
    text = (DOCS / "reference" / "api.md").read_text()
    documented = set(re.findall(r"resilient_scan\.(?:\w+\.)?(\w+)$", text, re.MULTILINE))
    public = {name for name in resilient_scan.__all__ if not name.startswith("__")}
    assert public - documented - {"Listener"} == set()  # a listener is any callable


def test_the_rooms_are_listed_in_their_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["id"] == "rooms"]
    text = (DOCS / "design.md").read_text()
    rows = text.partition("| room | what it does |")[2].partition("\n\n")[0].splitlines()[2:]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    rooms = [module.rpartition(".")[2] for layer in contract["layers"] for module in re.split(r"\s+[:|]\s+", layer)]
    plain = {"__main__", "logs", "metrics", "tracing", "_text", "_once", "_files", "_log", "_trace", "_forms"}
    assert sorted(listed) == sorted(set(rooms) - plain)
    assert [name for name in listed if name in rooms] == listed


def test_the_sample_of_settings_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [block.text for block in blocks(DOCS / "settings.md") if "[scanner_execution]" in block.text][1:]
    (tmp_path / "scan.toml").write_text(text)
    settings = load_settings(tmp_path / "scan.toml", environ={})
    assert settings.check() == ()
    monkeypatch.setenv("FINNHUB_API_KEY", "a-key-of-nobody")  # or the scanner would be left out, as not configured
    with settings.runner(listeners=(), store=None) as runner:
        assert "60/min" in str(runner.explain("analyst_revisions"))


def test_the_sample_of_a_service_is_right(tmp_path: Path) -> None:
    found = blocks(DOCS / "service.md")
    text, *_ = [block.text for block in found if block.language == "toml"]
    (tmp_path / "scan.toml").write_text(text)
    settings = load_settings(tmp_path / "scan.toml", environ={})
    assert (settings.service.host, settings.service.port, settings.quarantine.heartbeat) == ("127.0.0.1", 9108, 60)
    assert settings.check([scanner(name="insider_buying", pipeline="edge")(lambda _state: [])]) == ()
    shipped = yaml.safe_load((ROOT / "grafana/alertmanager/alertmanager.yml").read_text())["receivers"][0]
    text, *_ = [block.text for block in found if block.language == "yaml"]
    (shown,) = yaml.safe_load(text)["receivers"]
    for webhook in (shown["webhook_configs"][0], shipped["webhook_configs"][0]):
        webhook.pop("url")
        webhook["http_config"]["authorization"].pop("credentials_file")
    assert shown == shipped
