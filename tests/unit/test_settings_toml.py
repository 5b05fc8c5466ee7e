"""Where a key stands: exact lines for random documents in every style that TOML has, and what is not TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan.settings.toml import Malformed, Path, parse, path_text, value_of

DECOY = "[defaults]\nretry = { attempts = 3 } # no key\n[[a]]\n"


class Writer:
    """Write a random TOML document and note where it puts every key."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.text = ""
        self.expected: dict[Path, int] = {}
        self.count = 0

    def put(self, text: str) -> None:
        self.text += text

    def one_of(self, *texts: str) -> str:
        return self.random.choice(texts)

    def note(self, path: Path) -> None:
        self.expected.setdefault(path, self.text.count("\n") + 1)

    def key(self) -> tuple[str, str]:
        """Return a new key, and how it is written."""
        self.count += 1
        plain = f"k{self.count}"
        odd = plain + self.one_of(".x", " =", "#", "[", "]]", '"', "é", "{,}")
        literal = [(odd, f"'{odd}'")]
        escaped = (plain, f'"\\u006b{self.count}"')
        return self.random.choice([(plain, plain), (plain, f'"{plain}"'), (odd, json.dumps(odd)), escaped, *literal])

    def space(self) -> str:
        return self.one_of("", " ", "\t")

    def gap(self) -> str:
        """Return what may stand between the items of an array."""
        return self.one_of("", " ", "\n", " # ] } , = '''\n", "\r\n\t")

    def dotted(self, table: Path, keys: list[tuple[str, str]]) -> Path:
        for index, (key, written) in enumerate(keys):
            table = (*table, key)
            self.note(table)
            dot = f"{self.space()}.{self.space()}" if index < len(keys) - 1 else ""
            self.put(written + dot)
        return table

    def scalar(self) -> str:
        decoy = DECOY.replace("\n", self.one_of("\n", "\r\n"))
        return self.one_of(
            "1", "-1.5e3", "true", "inf", "0xff", "1979-05-27 07:32:00Z", "07:32:00",
            '"a # b ] } , \\" \\\\"', "'a # \\'", '""', "''",
            f'"""{decoy}"""', f"'''{decoy}'''", '"""a\\""" b""""', '""""x"""""', "''''x'''''", '""""""', "''''''",
            '"""\\\n   x"""', "'''\n'''",
        )  # fmt: skip

    def value(self, path: Path, depth: int) -> None:
        kind = self.random.randrange(4) if depth else 0
        if kind < 2:
            self.put(self.scalar())
        elif kind == 2:
            self.put("[" + self.gap())
            size = self.random.randrange(4)
            for index in range(size):
                self.note((*path, index))
                self.value((*path, index), depth - 1)
                self.put(self.gap() + ("," if index < size - 1 else self.one_of("", ",")) + self.gap())
            self.put("]")
        else:
            self.put("{" + self.space())
            size = self.random.randrange(3)
            for index in range(size):
                self.pair(path, depth - 1)
                self.put(self.space() + ("," if index < size - 1 else "") + self.space())
            self.put("}")

    def pair(self, table: Path, depth: int) -> None:
        path = self.dotted(table, [self.key() for _ in range(self.random.choice([1, 1, 2, 3]))])
        self.put(f"{self.space()}={self.space()}")
        self.value(path, depth)

    def pairs(self, table: Path) -> None:
        for _ in range(self.random.randrange(4)):
            self.put(self.one_of("", "\n", "# [x]\n", "  "))
            self.pair(table, 2)
            self.put(self.one_of("\n", " # = {\n", "\r\n"))

    def tables(self, table: Path, written: list[str], depth: int) -> None:
        """Write tables with headers inside `table`, whose header's keys are `written`."""
        for _ in range(self.random.randrange(3) if depth else 0):
            key, how = self.key()
            array = self.random.random() < 0.4
            for index in range(self.random.randrange(1, 3) if array else 1):
                path = (*table, key, index) if array else (*table, key)
                self.note((*table, key))
                self.note(path)
                dot = f"{self.space()}.{self.space()}"
                header = self.space() + dot.join([*written, how]) + self.space()
                self.put((f"[[{header}]]" if array else f"[{header}]") + self.one_of("\n", " # x\n"))
                self.pairs(path)
                self.tables(path, [*written, how], depth - 1)


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_key_is_found_in_its_line(random: Random) -> None:
    writer = Writer(random)
    writer.pairs(())
    writer.tables((), [], 3)
    document = parse(writer.text)
    assert document.data == tomllib.loads(writer.text)
    assert document.lines == writer.expected
    assert set(paths(document.data)) == set(document.lines)


def test_a_path_without_a_line_has_that_of_the_table_around_it() -> None:
    document = parse("\n[a]\nb = { c = 1 }\n")
    assert document.line(("a", "b", "missing", 3)) == 3
    assert document.line(("a", "missing")) == 2
    assert document.line(("missing",)) == 1


@settings(deadline=None)
@given(st.text(alphabet="[]{}=.,\"'#\\ \n\rab1-", max_size=40))
def test_any_text_is_a_document_or_malformed(text: str) -> None:
    try:
        document = parse(text)
    except Malformed as error:
        line, reason = error.line, error.reason
    else:
        assert set(paths(document.data)) == set(document.lines)
        return
    assert reason
    assert 1 <= line <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a = 1\nb = \n", 2, "not TOML: Invalid value"),
        ("a = 1\n[b\n", 2, "not TOML: Expected ']' at the end of a table declaration"),
        ("a = 1\n\n", 3, ""),
        ("a = 1\nb = 2\na = 3\n", 3, "a appears twice, first in line 1"),
        ("[a]\nx = 1\n[b]\n[a]\n", 4, "a appears twice, first in line 1"),
        ('[a]\nx = 1\n"x" = """\n\n"""\n', 3, "a.x appears twice, first in line 2"),
        ("a = { x = 1, x = 2 }\n", 1, "a.x appears twice, first in line 1"),
        ("a = [{ x = 1, x = 2 }]\n", 1, "a[0].x appears twice, first in line 1"),
        ("[[a]]\nx = 1\n[[a]]\nx = 1\nx = 2\n", 5, "a[1].x appears twice, first in line 4"),
        ("a = 1\n[a]\n", 2, "a appears twice, first in line 1"),
        ("a.b = 1\n[a]\n", 2, "not TOML: Cannot declare ('a',) twice"),
        ("a = 'x\n", 1, "not TOML: "),
        ("x = 1\na = " + "[" * 20_000, 1, "tables or arrays are nested too deeply"),
        ("a = " + "1" * 5_000, 1, "not TOML: Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_what_is_not_toml_is_reported_with_its_line(text: str, line: int, reason: str) -> None:
    if not reason:
        assert parse(text).data == {"a": 1}
        return
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert caught.value.line == line
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("a", "b-c", "d_1"), "a.b-c.d_1"),
        (("scanners", "brk.b", "on", 0), 'scanners."brk.b".on[0]'),
        (("a", "", 'x"y', "é"), 'a."".' + '"x\\"y"."é"'),
    ],
)
def test_a_path_is_written_as_a_dotted_key(path: Path, text: str) -> None:
    assert path_text(path) == text


@pytest.mark.parametrize("text", ["", "5s", "1\nb = 2", "1 2", "[" * 20_000])
def test_some_texts_are_not_values(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever tomllib says
        value_of(text)
