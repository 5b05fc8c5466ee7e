"""The documentation keeps its word: its blocks run, its links lead somewhere, its names exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from resilient_scan.observe.metrics import families
from resilient_scan.options import LAYERS, Quarantine
from tests.docs.pages import DOCS, LANGUAGES, README, ROOT, anchor, blocks, headings, links, name, pages, prose
from tests.docs.running import Reader, compare, parse
from tests.support.needed import binary

NOT_RUN = 20  # blocks that are only parsed, at most; each says why
OTHER_NAMES = {"resilient_scan_scanners", "resilient_scan_action", "resilient_scan_repository"}


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    Reader(tmp_path).follow(page)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_block_has_a_language_that_is_checked(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert page.read_text().count("\n```") % 2 == 0


def test_few_blocks_are_not_run() -> None:
    skipped = [block for page in pages() for block in blocks(page) if block.order("not run") is not None]
    assert all(block.order("not run") for block in skipped), "say why"
    assert len(skipped) <= NOT_RUN, [block.place for block in skipped]


@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, fragment = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert path.is_relative_to(ROOT), link
        if fragment and path.suffix == ".md":
            assert fragment in [anchor(title) for title in headings(path)], link
        if page.is_relative_to(DOCS) and path.suffix != ".png":
            assert path.is_relative_to(DOCS), f"{link}: the site has only what is in docs/"


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "index.md"
    led = {(DOCS / link.partition("#")[0]).resolve() for link in links(index)}
    assert [name(page) for page in pages() if page.is_relative_to(DOCS) and page not in {index, *led}] == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_metrics_that_a_page_names_exist(page: Path) -> None:
    known = {family.name for family in families()} | OTHER_NAMES
    for found in re.findall(r"\bresilient_scan_\w+", page.read_text()):
        assert re.sub(r"_(bucket|sum|count)$", "", found) in known, found


@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_options_that_a_page_names_exist(page: Path) -> None:
    kinds = {**LAYERS, "quarantine": Quarantine}
    for layer, field in re.findall(rf"`({'|'.join(kinds)})\.(\w+)`", prose(page)):
        assert field in kinds[layer].__struct_fields__, f"{layer}.{field}"


@pytest.mark.servers
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    promtool = binary("promtool")
    found = [block for page in pages() for block in blocks(page) if block.language == "promql"]
    assert found
    rules = tmp_path / "rules.yml"
    for block in found:
        rules.write_text(
            yaml.safe_dump({"groups": [{"name": "page", "rules": [{"record": "one", "expr": block.text}]}]})
        )
        done = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = README.read_text().splitlines()
    assert "pip install uv && uv run resilient-scan run" in lines
    assert "pip install uv && uv run --group dev pytest" in lines


def test_readme_is_read_in_one_go() -> None:
    assert len(README.read_text().splitlines()) <= 250


def test_what_a_page_leaves_to_the_tests_of_recipes_has_one() -> None:
    left = {block.page for page in pages() for block in blocks(page) if block.order("recipe") is not None}
    left.remove(DOCS / "service.md")  # test_systemd.py makes the same user and folders as its how-to
    assert {page.parent for page in left} == {DOCS / "recipes"}
    tests = {f"test_{page.stem}.py" for page in (DOCS / "recipes").glob("*.md")} - {"test_index.py"}
    assert {path.name for path in (ROOT / "tests" / "recipes").glob("test_*.py")} == tests


def test_each_layer_has_the_same_sections_and_a_diagram() -> None:
    for page in sorted((DOCS / "layers").glob("*.md")):
        if page.name != "index.md":
            assert "**What it does.**" in page.read_text(), page.name
            assert {"Usage", "What it reports", "Do and don't"} <= set(headings(page)), page.name
            assert any(link.endswith(".svg") for link in links(page)), page.name
            assert "Defaults" in headings(page) or page.name == "suspicion.md"


def test_the_node_of_a_pipeline_takes_25_lines() -> None:
    before, after = (block for block in blocks(DOCS / "from-a-loop.md") if block.language == "python")
    assert "ThreadPoolExecutor" in before.text
    node = after.text.partition("\n\nconfig = ")[0]
    assert len(node.splitlines()) <= 25


# The checks themselves


def reader_of(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    Reader(tmp_path).follow(page)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```python\nassert 1 == 2, 'no'\n```\n", "no"),
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n", "name 'x' is not defined"),
        ("```python\nprint(1)\n```\n\n<!-- block: output -->\n```text\n2\n```\n", "on the page:\n2"),
        ("```console\n$ echo one\ntwo\n```\n", "shown:\none"),
        ("```console\n$ false\n```\n", "false: 1"),
        ("```console\n$ resilient-scan rum\n```\n", "no such command"),
        ("<!-- block: not run: why not -->\n```sh\nresilient-scan run --fault\n```\n", "no option --fault"),
        ("```sh\necho\n```\n", "say why it is not run"),
        ("<!-- block: recipe -->\n```console\n$ resilient-scan rum\n```\n", "no such command"),
        ("<!-- block: recipe -->\n```python\nawait (\n```\n", "was never closed"),
        ("```python\nawait x\n```\n", "'await' outside function"),
        ("```toml\n[defaults]\nretry = { atempts = 3 }\n```\n", "atempts"),
        ("```yaml\na: [\n```\n", "while parsing"),
        ("```json\n{\n```\n", "Expecting property name"),
    ],
)
def test_a_wrong_block_is_found(text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    with pytest.raises(Exception, match=re.escape(fault)):
        reader_of(text, tmp_path)


def test_blocks_build_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    reader_of(
        "<!-- block: file one.txt -->\n```text\nhello\n```\n\n```console\n$ cat one.txt\nhello\n$ echo 2\n2\n```\n\n"
        "```python\nx = 1\n```\n\n<!-- block: continued -->\n```python\nprint(x)\n```\n\n"
        "<!-- block: output -->\n```text\n1\n```\n\n<!-- block: exit 3 -->\n```console\n$ exit 3\n```\n",
        tmp_path,
    )


def test_what_belongs_to_a_recipe_is_parsed_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    recipe = "<!-- block: recipe -->\n"
    reader_of(f"{recipe}```python\nawait nothing\n```\n\n{recipe}```console\n$ exit 3\n```\n", tmp_path)


def test_three_dots_stand_for_anything() -> None:
    compare("a b c d", "a ... d")
    compare("a d", "a ... d")
    compare("x 12ms", "x 0.5s")
    with pytest.raises(AssertionError):
        compare("a b c", "a ... d")
    with pytest.raises(AssertionError):
        compare("ab c", "a ... c")


def test_a_command_line_is_parsed() -> None:
    parse("resilient-scan run --json > report.json")
    parse("/opt/bin/resilient-scan serve --every 1m --grace 30s | cat")
    with pytest.raises(AssertionError, match="no option --jsonn"):
        parse("nice resilient-scan run --jsonn")
