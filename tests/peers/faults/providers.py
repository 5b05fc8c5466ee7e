"""Faults of a provider that several scanners share."""

from __future__ import annotations

from tests.peers.faults.threads import Source, took
from tests.peers.stacks.base import Call, Stack, TooMany, Wanted, ended

NAMES = ("gap_up", "gap_down", "movers", "volume", "news", "filings")


def dead_host(stack: Stack) -> str:
    source = Source()
    source.does = refuse
    wanted = Wanted(attempts=3, failures=3, provider="acme")
    calls = stack.siblings(dict.fromkeys(NAMES, source), wanted)
    for _ in range(5):
        for call in calls.values():
            ended(call)
    return f"{source.asked} x"


def broken_page(stack: Stack) -> str:
    pages: dict[str, Call] = dict.fromkeys(NAMES, lambda: None)
    pages["gap_up"] = refuse  # it is the first of every round
    calls = stack.siblings(pages, Wanted(attempts=3, failures=3, provider="acme"))
    ends = [(name, ended(call)) for _ in range(5) for name, call in calls.items()]
    others = {how for name, how in ends if name != "gap_up"}
    return "answered" if others == {"answered"} else "refused"


def sibling_told(stack: Stack) -> str:
    source = Source()

    def told() -> None:
        raise TooMany(1.5)

    calls = stack.siblings({"told": told, "sibling": source}, Wanted(failures=3, total=10, provider="acme"))
    ended(calls["sibling"])  # what is set up at the first call is no wait
    ended(calls["told"])
    return "waits as long" if took(calls["sibling"]) >= 1.4 else "calls at once"


def refuse() -> None:
    raise ConnectionRefusedError("nobody listens")
