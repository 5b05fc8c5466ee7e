"""Make the reference parts of the documentation from the code.

`python -m tests.docs.reference` writes them between the marks `<!-- generated: NAME -->` and `<!-- end -->` of the
pages; a test compares.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from click.testing import CliRunner

from resilient_scan import events, lint
from resilient_scan.cli.main import command
from resilient_scan.observe.metrics import families
from resilient_scan.options import LAYERS, Quarantine
from resilient_scan.service.openapi import document
from resilient_scan.settings.read import OPTIONS
from resilient_scan.settings.tables import Own, fields_of
from tests.benchmarks.table import pages as costs
from tests.docs.pages import pages
from tests.peers.table import table as table_of_peers
from tests.support.planted import PLANTED

OPTION_CLASSES: Final[dict[str, type[msgspec.Struct]]] = {**LAYERS, "quarantine": Quarantine}
_PART: Final = re.compile(r"<!-- generated: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def options(*layers: str) -> str:
    """Return a table of the fields of these option classes, or of all: default, and what the docstring says."""
    rows = []
    for layer in layers or OPTION_CLASSES:
        kind = OPTION_CLASSES[layer]
        texts = described(kind)
        rows += [
            (f"`{layer}.{field.name}`", f"`{shown(field.default)}`", sentence(texts[field.name]))
            for field in msgspec.structs.fields(kind)
        ]
    return table(("option", "default", "meaning, unit and range"), rows)


def metrics() -> str:
    """Return a table of all metrics."""
    return table(
        ("metric", "type", "labels", "from the start", "meaning"),
        (
            (
                f"`{family.name}`",
                family.type,
                ", ".join(f"`{label}`" for label in family.labels),
                "yes" if family.from_the_start else "",
                sentence(family.help),
            )
            for family in families()
        ),
    )


def all_events() -> str:
    """Return a section for each event: what it says, and its fields."""
    texts = []
    for kind in events.Event.__subclasses__():
        fields = ", ".join(f"`{field}`" for field in kind.__struct_fields__)
        texts.append(f"## {kind.__name__}\n\n{flowing(kind)}\n\nFields: {fields}.\n")
    return "\n".join(texts)


def usage() -> str:
    """Return what `--help` prints for the command and each of its subcommands."""
    texts = []
    for arguments in ([], *([name] for name in sorted(command.commands))):
        shown = CliRunner().invoke(command, [*arguments, "--help"], prog_name="resilient-scan", terminal_width=100)
        texts.append(f"## {' '.join(['resilient-scan', *arguments])}\n\n```text\n{shown.output.rstrip()}\n```\n")
    return "\n".join(texts)


def endpoints() -> str:
    """Return a table of the control endpoint's addresses, as its own document has them."""
    return table(
        ("address", "what it is", "errors"),
        (
            (f"`{verb.upper()} {path}`", sentence(said["summary"]), ", ".join(sorted(said["responses"])[1:]))
            for path, verbs in document(can_change=True, protected=True)["paths"].items()
            for verb, said in verbs.items()
        ),
    )


def bodies() -> str:
    """Return a table of what the control endpoint receives and sends."""
    schemas = document(can_change=True)["components"]["schemas"]
    return table(
        ("body", "fields", "what it is"),
        (
            (
                f"`{name}`",
                ", ".join(f"`{field}`" for field in schema.get("properties", {})),
                sentence(schema["description"].partition("\n\n")[0]),
            )
            for name, schema in sorted(schemas.items())
        ),
    )


def settings(name: str) -> str:
    """Return the keys of a table of the settings file: their defaults, and what they can be."""
    kind: type[msgspec.Struct] = Own if name == "scanners" else OPTIONS[name]
    texts = described(kind)
    return table(
        ("key", "default", "value", "meaning"),
        (
            (f"`{key}`", in_toml(field.default), sentence(field.must), sentence(without_python(texts[key])))
            for key, field in fields_of(kind).items()
        ),
    )


def rules() -> str:
    """Return a table of the linter's rules."""
    return table(
        ("code", "what does not work together"),
        ((f"`{code}`", sentence(inspect.getdoc(rule) or "")) for code, rule in lint.RULES.items()),
    )


def faults() -> str:
    """Return a table of the faults that a test plants, and whose each is."""
    return table(
        ("what happens", "blame", "counts against"),
        ((fault.says, f"`{fault.blame}`", fault.against) for fault in PLANTED),
    )


PARTS: Final[dict[str, Callable[..., str]]] = {
    "bodies": bodies,
    "endpoints": endpoints,
    "costs": costs,
    "events": all_events,
    "faults": faults,
    "metrics": metrics,
    "options": options,
    "peers": table_of_peers,
    "rules": rules,
    "settings": settings,
    "usage": usage,
}


def made(mark: str) -> str:
    """Return the part that a mark asks for: a name of `PARTS`, and arguments after it."""
    name, *arguments = mark.split()
    return PARTS[name](*arguments)


def parts() -> list[tuple[Path, str, str]]:
    """Return all generated parts of the pages, `[(page, mark, text), ...]`."""
    return [(page, mark, text) for page in pages() for mark, text in _PART.findall(page.read_text())]


def described(kind: type) -> dict[str, str]:
    """Return `{attribute: text}` of a class; `a, b: text` describes both."""
    lines = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8,}.*)*)", lines, re.MULTILINE)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def flowing(kind: type) -> str:
    """Return a docstring as paragraphs, each on one line."""
    return "\n\n".join(" ".join(text.split()) for text in (inspect.getdoc(kind) or "").split("\n\n"))


def shown(value: object) -> str:
    """Return a default as a reader would write it in Python."""
    if value is msgspec.NODEFAULT:
        return "required"
    if value is msgspec.UNSET:
        return "not given"
    if isinstance(value, tuple):
        return "(" + "".join(f"{getattr(item, '__name__', item)}," for item in value) + ")"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def in_toml(value: Any) -> str:
    """Return a default as a reader would write it in TOML."""
    if value is None:
        return "not set"
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return f"`{text}`"


def without_python(text: str) -> str:
    """Return a text about an option as readers of TOML know its values."""
    return re.sub(r"`?\bNone\b`?", "not set", text).replace("`False`", "`false`")


def sentence(text: str) -> str:
    """Return `text` in a form that fits into a table's cell."""
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def write() -> None:
    """Put fresh parts into all pages."""
    for page in pages():
        text = page.read_text()
        fresh = _PART.sub(lambda found: f"<!-- generated: {found[1]} -->\n{made(found[1])}<!-- end -->", text)
        if fresh != text:
            page.write_text(fresh)


if __name__ == "__main__":
    write()
