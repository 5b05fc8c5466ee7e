"""Take a picture of `resilient-scan run --faults` on a terminal: `python -m tests.pictures.faults`.

The command really runs; what it writes to a terminal is drawn as an SVG, whose text can be read, searched and tested.
"""

from __future__ import annotations

import html
import re
from io import StringIO
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.docs.pages import DOCS
from tests.e2e.command import on_a_terminal

PICTURE: Final = DOCS / "pictures" / "faults.svg"
COMMAND: Final = "resilient-scan run --faults"
WIDTH: Final = 128
RULE: Final = "─"
FROM_AFAR: Final = re.compile(r"\s*(@font-face \{.*?\}|<!--.*?-->)", re.DOTALL)  # a picture in a page loads no fonts


def screen() -> Text:
    """Run the command on a terminal and return what stands there afterwards."""
    seen = on_a_terminal("run", "--faults", code=1, COLUMNS=str(WIDTH))
    return Text.from_ansi("\n".join([f"$ {COMMAND}", *seen.strip().splitlines()]))


def drawn(text: Text) -> str:
    """Return a terminal's window with this text as an SVG."""
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(text)
    return FROM_AFAR.sub("", console.export_svg(title=COMMAND, unique_id="faults"))


def words(svg: str) -> list[str]:
    """Return the words in a picture's lines; not the window's title, nor the rules, whose lengths differ."""
    texts = re.findall(r'<text class="faults-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg)
    inside = sorted((float(y), float(x), html.unescape(text)) for x, y, text in texts)
    return " ".join(text for _, _, text in inside).replace(RULE, " ").split()


if __name__ == "__main__":
    PICTURE.write_text(drawn(screen()))
