"""Lint: options that are each valid and do not work together, told with the arithmetic and the way out.

A rule speaks only where something that was configured can never happen, or where one option breaks what another one
promises. It looks at frozen options alone: nothing runs, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from resilient_scan.lint.case import ERROR, WARNING, Case
from resilient_scan.lint.rules import RULES, by_provider, over_rate, with_numbers
from resilient_scan.options import Policy

__all__ = ["ERROR", "RULES", "WARNING", "Finding", "lint", "lint_fleet", "sentences"]

NAMED = 3  # scanners of which one sentence names


class Finding(msgspec.Struct, frozen=True):
    """What does not work together.

    Attributes:
        scanner: whose options they are; `""` where it is about several scanners together.
        code: the rule, such as `attempts-do-not-fit`.
        severity: `warning`: something configured has no effect or a bad one; `error`: scans will fail of it.
        message: one sentence with the arithmetic, the options' paths and the way out.
        scanners: those concerned, where it is about several together.
    """

    scanner: str
    code: str
    severity: str
    message: str
    scanners: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the sentence, after the scanner's name where it is about one."""
        return f"{self.scanner}: {self.message}" if self.scanner else self.message

    def concerns(self, scanner: str) -> bool:
        """Say whether it is about this scanner, alone or among others."""
        return scanner in {self.scanner, *self.scanners}


def lint(
    name: str,
    policy: Policy,
    *,
    interval: float | None = None,
    deadline: float | None = None,
    state: Mapping[str, Any] | None = None,
) -> tuple[Finding, ...]:
    """Find what does not work together in one scanner's policy.

    Args:
        name: the scanner's.
        policy: its layers.
        interval: seconds from one run to the next, > 0; `None`: not known, and nothing is said about it.
        deadline: seconds that a run has; `None`: no limit, or not known.
        state: what a run is given, as a sample.

    Raises:
        TypeError: the state is no mapping, or cannot be copied.
    """
    return lint_fleet({name: policy}, interval=interval, deadline=deadline, state=state)


def lint_fleet(
    policies: Mapping[str, Policy],
    *,
    interval: float | None = None,
    deadline: float | None = None,
    state: Mapping[str, Any] | None = None,
) -> tuple[Finding, ...]:
    """Find what does not work together in the policies of all scanners, by name; the rest is as in `lint`.

    Scanners that only name a provider share the numbers that another one gives.
    """
    policies = with_numbers(policies)
    known: dict[Policy, list[tuple[str, str, str]]] = {}  # most scanners of a fleet have the same
    findings = []
    for name, policy in policies.items():
        if policy not in known:
            known[policy] = _alone(Case(policy, interval, deadline, state))
        findings += [Finding(name, *told) for told in known[policy]]
    for names, group in by_provider(policies):
        alone = len(names) == 1
        for told in over_rate(group, interval):
            findings.append(Finding(names[0] if alone else "", *told, () if alone else names))
    return tuple(findings)


def _alone(case: Case) -> list[tuple[str, str, str]]:
    """Apply the rules for one policy; `[(code, severity, message), ...]`."""
    told = ((code, WARNING, rule(case)) for code, rule in RULES.items())
    return [(code, severity, message) for code, severity, message in told if message is not None]


def sentences(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return one line for each message, after the names of the scanners that it is about, or of the first few."""
    by_message: dict[str, list[str]] = {}
    for finding in findings:
        by_message.setdefault(finding.message, []).append(finding.scanner)
    return tuple(f"{_and(names)}: {text}" if any(names) else text for text, names in by_message.items())


def _and(names: list[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
