"""The faults: each happens to one stack in a process of its own and is told in a few words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.peers.faults import caches, calls, fleets, threads
from tests.peers.stacks.base import Stack


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        title: what happens, and what is reported.
        run: makes it happen and returns what is told.
        ends: what is told goes on with whether the process ends by itself after that.
        interrupted: the process gets Ctrl-C when it has said that it is ready.
        before: runs first, in a process that leaves what lasts behind.
    """

    title: str
    run: Callable[[Stack], str]
    ends: bool = False
    interrupted: bool = False
    before: Callable[[Stack], str] | None = None


FAULTS = {
    "hung_call": Fault(
        "a call hangs: its caller is free at the timeout; the program can end", threads.hung_call, ends=True
    ),
    "eight_hang": Fault("8 scanners hang on 8 workers: a sound one behind them is", fleets.eight_hang),
    "forty_hang": Fault("40 scanners hang: a sound one behind them is; threads that hang by then", fleets.forty_hang),
    "same_source": Fault("8 calls of one scanner hang: its next, sound one is", threads.same_source),
    "sys_exit": Fault("one of 100 scanners calls `sys.exit()`", fleets.sys_exit),
    "ctrl_c": Fault("Ctrl-C while 4 of 8 scanners have a minute to go: the program", fleets.ctrl_c, interrupted=True),
    "context": Fault("context variables of the caller (a trace) in the call", threads.context),
    "burst": Fault("8 calls of 0.3 s through one breaker run", threads.burst),
    "hangs_vote": Fault("3 timeouts open a breaker of 3 failures", threads.hangs_vote),
    "every_other": Fault("every other call fails: the breaker, only its failures set", calls.every_other),
    "half_open": Fault("64 threads meet a half-open breaker: let through at once", threads.half_open),
    "hung_trial": Fault("a half-open breaker's trial hangs: later the source is", threads.hung_trial),
    "open_breaker": Fault(
        "a source that is down, breaker of 5 failures, 20 calls of 3 attempts: called", calls.open_breaker
    ),
    "told_to_wait": Fault('a source says "again in 1 s"; "in 5 s" with 1 s left', calls.told_to_wait),
    "ten_miss": Fault("10 callers miss one cache key: the source is called; a failing one", caches.ten_miss),
    "follower": Fault("a caller with 0.5 s to wait behind one that hangs for 3 s, same key", caches.follower),
    "mutation": Fault("a caller changes the list that came from the cache", caches.mutation),
    "stale": Fault("the source fails when its answer has expired", caches.stale),
    "restart": Fault("after a restart: an open breaker; an answer", caches.after_restart, before=caches.before_restart),
    "metrics": Fault("a call of 0.2 s takes in Prometheus", calls.metrics),
    "packages": Fault("packages that it brings along", calls.packages),
}
