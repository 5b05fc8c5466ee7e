"""The register of the poison zoo: each poison with what it does, what its scan ends as, and whether a process holds it.

A poison is a scanner's function. `FOREVER` is what a poison hangs on: it is set when the measuring is over, so that the
threads can be seen to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resilient_scan import Candidate, Retry, Timeout
from resilient_scan.scanning import FunctionScanner, scanner

FOREVER = threading.Event()
PATIENCE = 1.0  # seconds that the scan of a poison that hangs may take
ENOUGH = 20.0  # likewise of one that does not, on a machine that has other work
CONTAINED_GROUPS = ("raises", "objects", "threads", "asyncio", "process", "runner")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Poison:
    """One poison.

    Attributes:
        name: of the function, and of its scanner.
        group: whose members run together.
        what: what it does, for people; after "a scanner that".
        expect: the statuses in which its scan may end in the first run.
        again: likewise in the second; in the third, which asks for what the first did, it may also be `cached`.
        keeps: whether it keeps a thread of the runner's until the end.
        layers: options of its own.
        isolation: what will contain it, where one process cannot; empty: one process contains it.
        effect: what happens as long as nothing does, for the documents.
    """

    name: str
    group: str
    what: str
    function: Function
    expect: frozenset[str]
    again: frozenset[str]
    keeps: bool
    layers: dict[str, Any]
    isolation: str = ""
    effect: str = ""

    @property
    def contained(self) -> bool:
        """Whether it costs no other scanner its result, and ends no process."""
        return not self.isolation

    def scanner(self) -> FunctionScanner:
        """Make its scanner; one that hangs has a short timeout, and all have short waits between their attempts."""
        total = PATIENCE if "timeout" in self.expect or not self.expect else ENOUGH
        layers = {"timeout": Timeout(total=total), "retry": Retry(attempts=2, base=0.01, cap=0.02), **self.layers}
        return scanner(pipeline="poison", name=self.name, **layers)(self.function)


POISONS: dict[str, Poison] = {}


def poison(
    what: str,
    *expect: str,
    group: str,
    again: tuple[str, ...] = (),
    keeps: bool | None = None,
    isolation: str = "",
    effect: str = "",
    **layers: Any,
) -> Callable[[Function], Function]:
    """Enter a function into the register.

    Unless told otherwise, a scanner whose scan ends `timeout`, and nothing else, keeps its thread. A scanner that may
    keep its thread may be `rejected` the next time.
    """
    keeps = (expect == ("timeout",)) if keeps is None else keeps
    follow = again or (*expect, *(("rejected",) if "timeout" in expect else ()))

    def enter(function: Function) -> Function:
        name = function.__name__
        assert name not in POISONS
        POISONS[name] = Poison(
            name=name,
            group=group,
            what=what,
            function=function,
            expect=frozenset(expect),
            again=frozenset(follow),
            keeps=keeps,
            layers=layers,
            isolation=isolation,
            effect=effect,
        )
        return function

    return enter


def members(*groups: str) -> list[Poison]:
    """Return the poisons of some groups, in order."""
    return [one for one in POISONS.values() if one.group in groups]


def hang(*_args: Any, **_kwargs: Any) -> Any:
    """Hang until the measuring is over."""
    FOREVER.wait()


def found(name: str = "AAPL", **extras: Any) -> list[Candidate]:
    """Return a sound answer."""
    return [Candidate(ticker=name, source="poison", context="found it", extras=extras)]
