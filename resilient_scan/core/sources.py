"""The sources that one scanner tries in turn: each behind a breaker of its own, in a share of the scan's time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar

from resilient_scan._text import in_seconds
from resilient_scan.clock import Clock
from resilient_scan.errors import Rejected, ScanTimeout, is_cancellation
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.layers.limit import Provider
from resilient_scan.layers.providers import Providers
from resilient_scan.options import Breaker, Limit

T = TypeVar("T")
_NONE: frozenset[str] = frozenset()


class Learner(Protocol):
    """What has to know the provider of a scanner whose options name none."""

    def learn_provider(self, provider: Provider | None, /) -> None:
        """Take over the one host that it calls, or let go of it."""


class Sources:
    """One scanner's sources; a breaker is made when its source is first called.

    Args:
        scanner: whose they are.
        breaker: the breakers' numbers; `None`: there are none.
        clock, random: where time and chance come from.
        providers: a source that is one of them keeps that one's rate and breaker instead of the scanner's own.
        learner: takes the one host that the scanner calls, or `None` as soon as it calls another one, or a source.
    """

    __slots__ = (
        "_breakers",
        "_clock",
        "_has_sources",
        "_learner",
        "_options",
        "_places",
        "_providers",
        "_random",
        "_scanner",
    )

    def __init__(
        self,
        scanner: str,
        breaker: Breaker | None,
        clock: Clock,
        random: Random,
        providers: Providers,
        learner: Learner | None = None,
    ) -> None:
        self._scanner = scanner
        self._options = breaker
        self._clock = clock
        self._random = random
        self._providers = providers
        # A scanner may keep its context, which knows these, and not all that the stack holds.
        self._learner = None if learner is None else weakref.ref(learner)
        self._breakers: dict[str, CircuitBreaker] = {}
        self._places: frozenset[str] = _NONE  # hosts that it calls, as far as they matter
        self._has_sources = False

    def ask(
        self, source: str, call: Callable[[], T], seconds: float, context: AttemptContext, limit: Limit | None = None, /
    ) -> T:
        """Return what `call` returns; see `ScanContext.guarded`."""
        if not self._has_sources:
            with self._providers.learning:
                self._has_sources = True
                if self._places:
                    self._learn(None)
        breaker = self._breaker_of(source)
        if breaker is None:
            return self._in_time(source, call, seconds, context, limit)
        now = self._clock.monotonic()
        permit, _ = breaker.admit(min(context.ends, now + seconds))
        if breaker.slow_after is not None:
            permit.slow_at = now + breaker.slow_after - context.postponed - context.queued
        failed: bool | None = None
        cut_before = context.cut_off()
        try:
            try:
                answer = self._in_time(source, call, seconds, context, limit)
            finally:  # before the vote, as for a scanner's attempt
                breaker.note_slow(permit, context.postponed + context.queued)
            if not cut_before:  # else nobody knows whether this answer is whole
                failed = context.cut_off()
            return answer
        except BaseException as error:
            failed, permit = breaker.judge(permit, error, context)
            raise
        finally:
            breaker.vote(permit, failed)

    def reach(self, place: str, call: Callable[[], T], context: AttemptContext, /) -> T:
        """Return what `call` returns, behind the breaker of the host that it calls; see `ScanContext.reach`.

        A scanner that calls one host only has that as its provider from then on, as if its options named it: its next
        attempts are admitted there before they begin. One that calls several, or tries sources in turn, may get along
        without one of them, so each request is admitted by itself.
        """
        provider = self._providers.at(place, self._options)
        if provider is None:
            return call()
        if place not in self._places:
            with self._providers.learning:
                self._places |= {place}
                only = len(self._places) == 1 and not self._has_sources
                self._learn(provider if only else None)

        def request() -> T:
            context.requested = True
            return call()

        try:
            return provider.reach(self._scanner, request, context)
        except Rejected:
            context.turned_away = not context.requested
            raise

    def _learn(self, provider: Provider | None) -> None:
        learner = None if self._learner is None else self._learner()
        if learner is not None:
            learner.learn_provider(provider)

    def end_open_time(self) -> None:
        """Let the next call of each source be a trial, if its breaker is open."""
        for breaker in self._known():
            breaker.allow_trial()

    def reset(self) -> None:
        """Close the breakers of all sources, and forget their failures."""
        for breaker in self._known():
            breaker.reset()

    def _known(self) -> tuple[CircuitBreaker, ...]:
        return tuple(self._breakers.copy().values())

    def _breaker_of(self, source: str) -> CircuitBreaker | None:
        if self._options is None:
            return None
        known = self._breakers.get(source)
        if known is not None:
            return known
        made = CircuitBreaker(f"{self._scanner}'s source {source}", self._options, self._clock, self._random)
        return self._breakers.setdefault(source, made)  # two threads may both get here: they get the same

    def _in_time(
        self, source: str, call: Callable[[], T], seconds: float, context: AttemptContext, limit: Limit | None
    ) -> T:
        """Call with an earlier end than the scan's, and under the source's own rate, if it has one."""
        own = self._providers.of(source, limit)
        whole, provider, requests = context.ends, context.provider, context.requests
        postponed = context.postponed
        end = self._clock.monotonic() + seconds
        context.ends = min(whole, end)
        if own is not None:
            context.provider, context.requests = own, 0
        try:
            return call() if own is None else own.reach(self._scanner, call, context)
        except BaseException as error:
            later = context.postponed - postponed
            at_its_end = end + later <= self._clock.monotonic() < whole + later
            if context.abandoned or not at_its_end or not is_cancellation(error):
                raise
            raise ScanTimeout(f"{source}: no answer within {in_seconds(seconds)}s", by_clock=True) from None
        finally:
            context.ends = min(whole + context.postponed - postponed, context.cut_at)
            context.provider, context.requests = provider, requests
