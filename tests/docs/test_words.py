"""Nobody writes the words that we avoid; see `tests/docs/words.py` for what to write instead."""

from __future__ import annotations

import pytest

from tests.docs.words import LIMITS, RULES, Rule, faults, found_in, pieces


@pytest.mark.parametrize("context", LIMITS)
def test_words_to_avoid_do_not_spread(context: str) -> None:
    findings = found_in(context)
    shown = "\n".join(f"{found.place}: {found.word!r}; write: {found.instead}" for found in findings)
    assert len(findings) <= LIMITS[context], shown


@pytest.mark.parametrize("rule", RULES, ids=[rule.instead for rule in RULES])
def test_a_rule_finds_what_it_means_to_find(rule: Rule) -> None:
    assert [instead for _, _, instead in faults(rule.bad)] == [rule.instead]
    assert list(faults(rule.good)) == []


def test_code_is_not_language() -> None:
    assert list(faults("`told` and `whoever` are names")) == []
    assert [(offset, word) for offset, word, _ in faults("`x` told")] == [(4, "told")]


def test_docstrings_comments_and_messages_are_told_apart() -> None:
    source = '"""A module."""\n\n# a comment\n\n\ndef f():\n    """A function."""\n    raise E(f"{x} is wrong")\n'
    assert list(pieces(source)) == [
        ("docstrings", 1, "A module."),
        ("docstrings", 7, "A function."),
        ("messages", 8, " is wrong"),
        ("comments", 3, "# a comment"),
    ]
