"""Make the reference tables of README from the code.

`python -m tests.docs.reference` writes them into README; the tests compare.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from click.testing import CliRunner

from resilient_scan.cli.main import command
from resilient_scan.observe.metrics import families
from resilient_scan.options import LAYERS, Quarantine
from resilient_scan.service.openapi import document
from tests.peers.table import table as table_of_peers

README = Path(__file__).parents[2] / "README.md"


def options() -> str:
    """Return a table of the fields of all option classes: default, and what the docstring says."""
    rows = []
    for layer, kind in {**LAYERS, "quarantine": Quarantine}.items():
        said = described(inspect.getdoc(kind) or "", "Attributes")
        rows += [
            (f"`{layer}.{field.name}`", f"`{shown(field.default)}`", sentence(said[field.name]))
            for field in msgspec.structs.fields(kind)
        ]
    return table(("option", "default", "meaning, unit and range"), rows)


def metrics() -> str:
    """Return a table of all metrics."""
    return table(
        ("metric", "type", "labels", "meaning"),
        (
            (
                f"`{family.name}`",
                family.type,
                ", ".join(f"`{label}`" for label in family.labels),
                sentence(family.help),
            )
            for family in families()
        ),
    )


def usage() -> str:
    """Return what `--help` prints for the command and each of its subcommands."""
    texts = []
    for arguments in ([], *([name] for name in sorted(command.commands))):
        shown = CliRunner().invoke(command, [*arguments, "--help"], prog_name="resilient-scan", terminal_width=100)
        texts.append(f"$ {' '.join(['resilient-scan', *arguments, '--help'])}\n{shown.output.rstrip()}")
    return "```text\n" + "\n\n".join(texts) + "\n```\n"


def endpoints() -> str:
    """Return a table of the control endpoint's addresses, as its own document has them."""
    return table(
        ("address", "what it is"),
        (
            (f"`{verb.upper()} {path}`", sentence(said["summary"]))
            for path, verbs in document(can_change=True)["paths"].items()
            for verb, said in verbs.items()
        ),
    )


def contents() -> str:
    """Return links to README's sections, each with those in it; alerts are linked to by themselves."""
    prose = re.sub(r"^```.*?^```", "", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [
        f"{'  ' * (len(level) - 2)}* [{title}](#{anchor(title)})\n"
        for level, title in re.findall(r"^(##|###) (.+)$", prose, re.MULTILINE)
    ]
    return "".join(lines)


def anchor(title: str) -> str:
    """Return how a heading is linked to on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


PARTS: dict[str, Callable[[], str]] = {
    "contents": contents,
    "endpoints": endpoints,
    "options": options,
    "peers": table_of_peers,
    "metrics": metrics,
    "usage": usage,
}


def described(doc: str, section: str) -> dict[str, str]:
    """Return `{name: text}` of a docstring's section; `a, b: text` describes both."""
    lines = doc.partition(f"{section}:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8,}.*)*)", lines, re.MULTILINE)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def shown(value: object) -> str:
    """Return a default as a reader would write it."""
    if value is msgspec.NODEFAULT:
        return "required"
    if isinstance(value, tuple):
        return "(" + "".join(f"{getattr(item, '__name__', item)}," for item in value) + ")"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def sentence(text: str) -> str:
    """Return `text` in a form that fits into a table's cell."""
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts_of(readme: str) -> dict[str, str]:
    """Return what README has between its marks `<!-- name -->` and `<!-- end -->`."""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", readme, re.DOTALL))


def write() -> None:
    """Put fresh tables into README."""
    text = README.read_text()
    for name, make in PARTS.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        text = before + mark + make() + rest[rest.index("<!-- end -->") :]
    README.write_text(text)


if __name__ == "__main__":
    write()
