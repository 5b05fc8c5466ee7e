"""Words that we avoid, what to write instead, and where they are: `python -m tests.docs.words` lists them.

Every rule has an example of what it means to find, and one that it must leave alone. Words in `code` are names, and not
looked at.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.docs.pages import ROOT, pages, prose


class Rule(NamedTuple):
    """A word to avoid.

    Attributes:
        pattern: finds it, in text without code, whatever its case.
        instead: what to write.
        bad, good: examples.
    """

    pattern: str
    instead: str
    bad: str
    good: str


RULES: Final = (
    Rule(r"whoever|whomever", "the caller, the waiter, anyone who", "Whoever asks waits.", "The caller waits."),
    Rule(r"anew", "again", "It begins anew.", "It begins again."),
    Rule(
        r"(?<!there )(?:is|are|was|were) (?-i:none)(?! of| the)",
        "isn't one",
        "One that is none.",
        "If there is none, it is None; they are none of ours.",
    ),
    Rule(
        r"(?<!there )(?:is|are|was|were) no (?!one\b|longer|more\b|later|earlier|sooner|worse|better)",
        "is not a",
        "That is no error.",
        "There is no such scanner, and it is no longer there.",
    ),
    Rule(r"told(?! apart)", "notified, logged, described, returned, reported", "It is told.", "They are told apart."),
    Rule(r"beside", "next to, besides", "It runs beside the service.", "Besides, it runs."),
    Rule(r"at the latest", "by", "It ends at the latest after a minute.", "The latest one ends."),
    Rule(
        r"(?:for|in|after|by|of|at) so (?:many|long|much|few)|so (?:many|much) longer",
        "`n` seconds",
        "fresh for so many seconds",
        "There are so many of them.",
    ),
    Rule(r"(?:go|goes|going|went|come|comes) home", "exits", "The worker goes home.", "The home of secrets."),
    Rule(
        r"(?:is|are|was|were|be|been|being) over(?! \d)(?=[\s.,;:)]|$)",
        "has ended, is done, has expired",
        "When the run is over, it ends.",
        "It is over 9,000, and handed over.",
    ),
    Rule(r"left behind|leaves? behind", "abandoned", "Its thread is left behind.", "It leaves a thread."),
    Rule(r"rungs?", "method", "the rung that freed it", "It wrung them."),
    # Words to use, by what would stand for them.
    Rule(r"(?:he|she|those) who", "waiter, holder, caller", "he who waits", "people who wait"),
    Rule(r"back-off|waiting time between", "backoff", "a back-off of 1 s", "the backoff"),
    Rule(r"time[ -]to[ -]live", "TTL", "its time to live", "its TTL"),
    Rule(r"(?:quota|allowance) of retries", "retry budget", "the quota of retries", "the retry budget"),
    Rule(r"write-out|writing-out", "flush", "a write-out of the batch", "a flush of the batch"),
    Rule(r"grave ?stone|death marker", "tombstone", "a gravestone in the store", "a tombstone in the store"),
)

_FOUND: Final = [(rule, re.compile(rf"\b(?:{rule.pattern})\b", re.IGNORECASE)) for rule in RULES]
CODE: Final = ("resilient_scan", "scanners", "grafana/source")

LIMITS: Final = {"pages": 0, "changelog": 0, "docstrings": 0, "comments": 0, "messages": 0}
"""How many there may be. Lower a number when you have lowered the count; never raise one."""


class Finding(NamedTuple):
    """A word that we avoid, in its place."""

    place: str
    word: str
    instead: str


def faults(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield offset, word and what to write instead, for each word to avoid in a text."""
    bare = re.sub(r"`[^`\n]*`", lambda code: "`" + "." * (len(code[0]) - 2) + "`", text)
    for rule, pattern in _FOUND:
        for found in pattern.finditer(bare):
            yield found.start(), found[0], rule.instead


def found_in(context: str) -> list[Finding]:
    """Return what there is in a context: a key of `LIMITS`."""
    if context == "pages":
        texts = [(page, 1, prose(page)) for page in pages()]
    elif context == "changelog":
        texts = [(ROOT / "CHANGELOG.md", 1, (ROOT / "CHANGELOG.md").read_text())]
    else:
        texts = [
            (path, line, text) for path in sources() for kind, line, text in pieces(path.read_text()) if kind == context
        ]
    return [
        Finding(f"{path.relative_to(ROOT)}:{line + text.count(chr(10), 0, offset)}", word, instead)
        for path, line, text in texts
        for offset, word, instead in faults(text)
    ]


def sources() -> list[Path]:
    """Return the files of code that is shipped, or that makes what is shipped."""
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


def pieces(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield kind (`docstrings`, `comments`, `messages`), line and text of what people read in a file of Python."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            kind = "docstrings" if id(node) in docs else "messages"
            yield kind, node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield "comments", token.start[0], token.string


def main() -> None:
    """List what there is, by context."""
    for context in sys.argv[1:] or LIMITS:
        findings = found_in(context)
        print(f"{context}: {len(findings)}, at most {LIMITS[context]}")
        for finding in findings:
            print(f"  {finding.place}: {finding.word!r}: {finding.instead}")


if __name__ == "__main__":
    main()
