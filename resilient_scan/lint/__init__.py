"""Lint: find options that are each valid and do not work together; say why with the arithmetic, and name the fix.

It looks at frozen options only: nothing runs, and nothing is called. `rules` looks at one scanner, `rates` at all the
scanners of a provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from resilient_scan.lint.rates import ADVICE, ERROR, WARNING, by_provider, over_rate, with_numbers
from resilient_scan.lint.rules import RULES, Case
from resilient_scan.options import Policy

if TYPE_CHECKING:
    from resilient_scan.stores.columns import Measured

__all__ = ["ADVICE", "ERROR", "RULES", "WARNING", "Finding", "lint", "lint_fleet", "sentences"]

ADVISING: Final = {"timeout-far-above-p99"}  # rules about what works, and could work better
MAX_NAMES: Final = 3  # in one sentence


class Finding(msgspec.Struct, frozen=True):
    """What does not work together.

    Attributes:
        scanner: whose options they are; `""` if it is about several scanners together.
        code: the rule, such as `attempts-do-not-fit`.
        severity: `warning`: something configured has no effect or a bad one; `error`: scans will fail because of it;
            `advice`: it works, and could work better.
        message: one sentence with the arithmetic, the options' paths and the fix.
        scanners: those concerned, if it is about several together.
    """

    scanner: str
    code: str
    severity: str
    message: str
    scanners: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the sentence, after the scanner's name if it is about one."""
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
        interval: seconds from one run to the next, > 0; `None`: not known, and the rules about it are silent.
        deadline: seconds that a run has; `None`: no limit, or not known.
        state: what a run is given, as a sample.

    Raises:
        TypeError: the state is not a mapping, or cannot be copied.
    """
    return lint_fleet({name: policy}, interval=interval, deadline=deadline, state=state)


def lint_fleet(
    policies: Mapping[str, Policy],
    *,
    interval: float | None = None,
    deadline: float | None = None,
    state: Mapping[str, Any] | None = None,
    measured: Mapping[str, Measured] = MappingProxyType({}),
) -> tuple[Finding, ...]:
    """Find what does not work together in the policies of all scanners, by name; the rest is as in `lint`.

    Scanners that only name a provider share the numbers that another one gives. `measured` says, by scanner's name, how
    long attempts have really taken; about others, the rules that need it are silent.
    """
    policies = with_numbers(policies)
    known: dict[Policy, list[tuple[str, str, str]]] = {}  # most scanners of a fleet have the same
    findings = []
    for name, policy in policies.items():
        if name in measured:
            findings += [Finding(name, *f) for f in _alone(Case(policy, interval, deadline, state, measured[name]))]
            continue
        if policy not in known:
            known[policy] = _alone(Case(policy, interval, deadline, state))
        findings += [Finding(name, *found) for found in known[policy]]
    for names, group in by_provider(policies):
        alone = len(names) == 1
        for found in over_rate(group, interval):
            findings.append(Finding(names[0] if alone else "", *found, () if alone else names))
    return tuple(findings)


def _alone(case: Case) -> list[tuple[str, str, str]]:
    """Apply the rules for one policy; `[(code, severity, message), ...]`."""
    found = ((code, rule(case)) for code, rule in RULES.items())
    return [(code, ADVICE if code in ADVISING else WARNING, message) for code, message in found if message is not None]


def sentences(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return one line for each message, after the names of the scanners that it is about, or the first few of them."""
    by_message: dict[str, list[str]] = {}
    for finding in findings:
        by_message.setdefault(finding.message, []).append(finding.scanner)
    return tuple(f"{_and(names)}: {text}" if any(names) else text for text, names in by_message.items())


def _and(names: list[str]) -> str:
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more"
