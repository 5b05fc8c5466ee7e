"""The faults: each happens to one stack in a process of its own, and a few words say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.peers.faults import caches, calls, fleets, providers, threads
from tests.peers.stacks.base import Stack


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        title: what happens, and the question that the row answers.
        run: makes it happen and returns what came of it.
        ends: that goes on with whether the process ends by itself afterwards.
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
        "A call hangs. Is its caller free at the timeout? Can the program end?", threads.hung_call, ends=True
    ),
    "eight_hang": Fault("8 scanners hang on 8 workers. What becomes of a healthy one behind them?", fleets.eight_hang),
    "forty_hang": Fault(
        "40 scanners hang. What becomes of a healthy one behind them, and how many threads hang by then?",
        fleets.forty_hang,
    ),
    "same_source": Fault(
        "8 calls of one scanner hang. What becomes of its next call, which would work?", threads.same_source
    ),
    "sys_exit": Fault("One of 100 scanners calls `sys.exit()`. What happens?", fleets.sys_exit),
    "ctrl_c": Fault(
        "Ctrl-C while 4 of 8 scanners have a minute to go. What does the program do?", fleets.ctrl_c, interrupted=True
    ),
    "context": Fault("What becomes of the caller's context variables (a trace) in the call?", threads.context),
    "burst": Fault("How do 8 calls of 0.3 s run through one breaker?", threads.burst),
    "hangs_vote": Fault("Do 3 timeouts open a breaker of 3 failures?", threads.hangs_vote),
    "every_other": Fault(
        "Every other call fails, and only the number of failures is set. What does the breaker do?", calls.every_other
    ),
    "long_ago": Fault(
        "5 failures in a row, 0.4 s apart; a breaker of 5 failures looks back on 1 s. What does it do?", calls.long_ago
    ),
    "two_meanings": Fault(
        "One class of error means a 503 or a 404. What does a breaker do that counts the 503 only?", calls.two_meanings
    ),
    "doubtful": Fault(
        "A source answers, but with nothing in it, again and again. What does a breaker do that is to see that?",
        calls.doubtful,
    ),
    "half_open": Fault("64 threads meet a half-open breaker. How many are let through at once?", threads.half_open),
    "hung_trial": Fault(
        "The trial of a half-open breaker hangs. What becomes of the source later?", threads.hung_trial
    ),
    "open_breaker": Fault(
        "A source is down; the breaker takes 5 failures; 20 calls make 3 attempts. How often is it called?",
        calls.open_breaker,
    ),
    "told_to_wait": Fault(
        'A source says "again in 1 s", or "in 5 s" with 1 s left. What does the retry do?', calls.told_to_wait
    ),
    "dead_host": Fault(
        "6 scanners share a dead host and a breaker of 3 failures; 5 rounds, 3 attempts. How often is the host called?",
        providers.dead_host,
    ),
    "broken_page": Fault(
        "One of the 6 asks for a page that always fails; the host is well. What becomes of the others?",
        providers.broken_page,
    ),
    "sibling_told": Fault(
        "One of them is asked to come again in 1.5 s. When does the next one call the host?", providers.sibling_told
    ),
    "ten_miss": Fault(
        "10 callers miss one cache key. How often is a healthy source called, and a failing one?", caches.ten_miss
    ),
    "follower": Fault(
        "A caller with 0.5 s left is behind one that hangs for 3 s, same key. What does it do?", caches.follower
    ),
    "mutation": Fault("A caller changes the list that came from the cache. Who notices?", caches.mutation),
    "stale": Fault("The source fails after its answer has expired. What does the caller get?", caches.stale),
    "restart": Fault(
        "What is left after a restart of an open breaker, and of an answer?",
        caches.after_restart,
        before=caches.before_restart,
    ),
    "metrics": Fault("How long is a call of 0.2 s in Prometheus?", calls.metrics),
    "packages": Fault("How many packages does it bring along?", calls.packages),
}
