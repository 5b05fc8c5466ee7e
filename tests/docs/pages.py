"""The pages (those of `docs/`, and those at the top) as data: their blocks of code, their links and their headings.

A comment on the line before a block says how the block is run:

    <!-- block: file scan.toml -->            write it into the page's folder; later blocks find it there
    <!-- block: continued -->                 run it with the names of the page's previous Python block
    <!-- block: output -->                    it is what the page's previous Python block printed
    <!-- block: exit 2 -->                    the last command of the block ends with this status
    <!-- block: not run: needs a server -->   do not run it, for this reason; it is still parsed
    <!-- block: recipe -->                    tests/recipes/ runs it, with a real server around it; here it is parsed

Several of them are separated by `; `.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
DOCS: Final = ROOT / "docs"
LANGUAGES: Final = {"console", "{eval-rst}", "ini", "json", "promql", "python", "sh", "text", "toml", "yaml"}

_FENCE = re.compile(
    r"^(?:<!-- block: (?P<orders>.+?) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    text: str
    orders: tuple[str, ...]

    @property
    def place(self) -> str:
        """Return where it stands, as an editor understands it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def order(self, name: str) -> str | None:
        """Return what follows the name of an order, or `None` if the block has no such order."""
        for order in self.orders:
            if order == name or order.startswith((f"{name} ", f"{name}:")):
                return order[len(name) :].lstrip(": ")
        return None


def pages() -> list[Path]:
    """Return the pages at the top, README first, and all pages of `docs/`."""
    top = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    return [*top, *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    """Return how a page is called in the name of a test."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")),
            found["language"].strip(),
            found["text"],
            tuple((found["orders"] or "").split("; ")) if found["orders"] else (),
        )
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return a page without its blocks of code and without its comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text()), flags=re.DOTALL)


def headings(page: Path) -> list[str]:
    """Return the titles on a page, in order."""
    return re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE)


def anchor(title: str) -> str:
    """Return how a heading is linked to, on the site and on a host that shows Markdown."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    """Return what a page links to, pictures included; nothing that stands in code."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def without_times(text: str) -> list[str]:
    """Return the words of a screen without what differs from run to run and from machine to machine."""
    root = r"\s*".join(map(re.escape, f"{ROOT}/"))  # where it is long, a line may end anywhere in it
    text = re.sub(rf"{root}([\w/\s]*\.py)", lambda found: "".join(found[1].split()), text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|\d\d:\d\d:\d\d", "INSTANT", text)
    text = re.sub(r"\.py\s*:\s*\d+", ".py", text)
    return re.sub(r"<?\d[\d.]*(ms|s|m| times)\b", "TIME", text).split()
