"""Whether a scanner would run now, and if not: why, and what would make it run."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from resilient_scan._text import brief, clean, counted, span
from resilient_scan.core.stack import Stack
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.layers.breaker.provider import HELD
from resilient_scan.layers.cache import Entry
from resilient_scan.observe.explain.layers import how_out, is_probe, own_faults
from resilient_scan.observe.explain.text import Hung, Reason, Verdict
from resilient_scan.options import Breaker
from resilient_scan.quarantine import ScannerState
from resilient_scan.results import Status

HINDERS, DELAYS = "hinders", "delays"


def verdict_of(stack: Stack, state: ScannerState, hung: tuple[Hung, ...]) -> Verdict:
    """Judge what a scan that began now would come to."""
    verdict = _verdict_of(stack, state, hung)
    faults = "".join(f" {text[0].upper()}{text[1:]}." for text in own_faults(stack))
    return msgspec.structs.replace(verdict, says=verdict.says + faults) if faults else verdict


def _verdict_of(stack: Stack, state: ScannerState, hung: tuple[Hung, ...]) -> Verdict:
    closed = tuple(_gate(state))
    if closed:
        return Verdict("no", Status.DISABLED, "A scan would end `disabled` at once.", closed)
    if is_probe(state):
        return _probe(state, [*_hung(stack, hung), *_pool(stack), *_provider(stack)])
    found = [*_breaker(stack), *_provider_down(stack), *_hung(stack, hung), *_pool(stack), *_provider(stack)]
    hindering = tuple(reason for weight, reason in found if weight == HINDERS)
    delaying = tuple(reason for weight, reason in found if weight == DELAYS)
    newest = None if stack.cache is None else stack.cache.newest()
    if newest is not None and stack.clock.monotonic() < newest.fresh_until:
        return Verdict("cached", Status.CACHED, _fresh(stack, newest, bool(hindering)), hindering)
    failure = None if stack.cache is None else stack.cache.newest_failure()
    if failure is not None:
        return _instead(stack, newest, Status.ERROR, (_failed(stack, failure), *hindering))
    if hindering:
        return _instead(stack, newest, Status.REJECTED, hindering)
    if delaying:
        says = f"A scan would call the source as soon as there is room for it.{_stored(stack, ' fresh')}"
        return Verdict("waits", "", says, delaying)
    return Verdict("yes", "", _now(stack))


def _probe(state: ScannerState, found: list[tuple[str, Reason]]) -> Verdict:
    """Judge a probe, which reads no cache and takes the breaker's half-open permit."""
    hindering = tuple(reason for weight, reason in found if weight == HINDERS)
    if hindering:
        return Verdict("no", Status.REJECTED, "A scan would be a probe, but end `rejected`.", hindering)
    return Verdict("waits" if found else "yes", "", _probe_decides(state), tuple(reason for _, reason in found))


def _probe_decides(state: ScannerState) -> str:
    """Say what a probe is for."""
    missing = max(1, state.needed - state.passed)
    return (
        "A scan would call the source at once, as a probe, whatever cache and breaker say: "
        f"{'one more success' if missing == 1 else f'{missing} successes in a row'} "
        f"{'brings' if missing == 1 else 'bring'} the scanner back, a failure quarantines it for longer."
    )


def _now(stack: Stack) -> str:
    if stack.breaker is not None and stack.breaker.state != "closed":
        does = "as a half-open trial: its success closes the breaker, its failure opens it"
        return f"A scan would call the source at once, {does}.{_stored(stack, ' fresh')}"
    return f"A scan would call the source at once.{_stored(stack, ' fresh')}"


def _stored(stack: Stack, fresh: str = "") -> str:
    """Say that the store may have an answer; which one depends on the state of the run."""
    if stack.cache is None or stack.cache.answers is None:
        return ""
    return f" If the store has a{fresh or 'n'} answer to its state, it gets that instead."


def _fresh(stack: Stack, newest: Entry, hindered: bool) -> str:
    now = stack.clock.monotonic()
    found = (
        f"The answer of {span(max(0.0, now - newest.stored_at))} ago is fresh for another "
        f"{span(newest.fresh_until - now)}: a scan of the same state would end `cached` with its "
        f"{counted(len(newest.candidates), 'candidate')}"
    )
    other = ", one of another state `rejected`." if hindered else "; one of another state would call the source."
    return found + other


def _instead(stack: Stack, newest: Entry | None, status: Status, reasons: tuple[Reason, ...]) -> Verdict:
    """Say what a scan gets that does not call the source: an old answer if there is one, else a failure."""
    now = stack.clock.monotonic()
    which = "A scan of the same state" if status is Status.ERROR else "A scan"
    if newest is None or now >= newest.stale_until:
        stored = _stored(stack) if status is Status.REJECTED else ""
        return Verdict("no", status, f"{which} would end `{status}`, without calling the source.{stored}", reasons)
    found = (
        f"A scan of the same state as {span(now - newest.stored_at)} ago would end `stale`, with the "
        f"{counted(len(newest.candidates), 'candidate')} found then; that answer stands in for another "
        f"{span(newest.stale_until - now)}."
    )
    other = "" if status is Status.ERROR else f" One of another state would end `{status}`."
    return Verdict("no", Status.STALE, found + other, reasons)


# what stands in the way, outermost layer first


def _gate(state: ScannerState) -> Iterator[Reason]:
    """Yield why the gate admits no scan, and what would change that."""
    if state.state == "enabled" or is_probe(state):
        return
    yield Reason("gate", f"{how_out(state)}, reason: {clean(state.reason)}", _way_out(state))


def _way_out(state: ScannerState) -> str:
    enable = f"runner.enable({state.name!r}), `resilient-scan enable {state.name} --reason WHY`"
    if state.state == "disabled":
        return f"wait {span(max(0.0, (state.until or state.at) - state.at))}, or {enable}"
    left = span(max(0.0, (state.next_probe or state.at) - state.at))
    if state.probing:
        return f"its probe is under way; the next one begins when that ends, within {left}; or {enable}"
    needed = f"{state.needed} successes in a row bring" if state.needed > 1 else "its success brings"
    return f"wait {left}: the first scan after that is a probe, and {needed} the scanner back; or {enable}"


def _failed(stack: Stack, failure: Entry) -> Reason:
    now = stack.clock.monotonic()
    error = "" if failure.error is None else f"{failure.error.kind}: {brief(failure.error.message)}"
    return Reason(
        "cache",
        f"a failure of {span(now - failure.stored_at)} ago is remembered (cache.ttl_error) and not repeated: {error}",
        f"wait {span(failure.fresh_until - now)}, or run with another state, or {_reset(stack)}",
    )


def _reset(stack: Stack) -> str:
    return f"runner.reset({stack.name!r}), `resilient-scan reset {stack.name} --reason WHY`"


def _breaker(stack: Stack) -> Iterator[tuple[str, Reason]]:
    breaker, options = stack.breaker, stack.policy.breaker
    if breaker is None or options is None:
        return
    wait = breaker.next_trial_in()
    if not wait:
        return
    trials = "one success closes" if options.trials == 1 else f"{options.trials} successes close"
    if breaker.state == "open":
        yield (
            HINDERS,
            Reason(
                "breaker",
                f"{_opened(breaker, options)}{_last_error(stack, suspicious=options.suspicious)}",
                f"wait {span(wait)}: the first scan after that is a half-open trial, and {trials} the breaker; or "
                f"{_reset(stack)}",
            ),
        )
    else:
        yield (
            HINDERS,
            Reason(
                "breaker",
                f"half-open, and as many trials as breaker.trials={options.trials} allows are under way",
                f"the next trial begins when one ends, within {span(wait)}; {trials} the breaker",
            ),
        )


def _opened(breaker: CircuitBreaker, options: Breaker) -> str:
    """Say what opened it; a failed half-open trial counts as one more in a row."""
    if breaker.failures >= options.failures:
        return f"open after {counted(breaker.failures, 'failed attempt')} in a row"
    return f"open, because too many of the last {options.window} attempts failed or were slow (breaker.window)"


def _last_error(stack: Stack, *, suspicious: bool) -> str:
    for flight in stack.recorded():
        error, doubt = flight.result.error, flight.result.suspicious
        if error is not None and flight.result.attempts:
            return f", the last one with {error.kind}: {brief(error.message)}"
        if doubt is not None and suspicious:
            return f", the last one with a suspicious answer: {brief(doubt)}"
    return ""


def _hung(stack: Stack, hung: tuple[Hung, ...]) -> Iterator[tuple[str, Reason]]:
    count, most = stack.hung.count, stack.policy.timeout.max_abandoned
    if count >= most:
        since = f", the oldest at work for {span(hung[0].age)}" if hung else ""
        yield (
            HINDERS,
            Reason(
                "timeout",
                f"{counted(count, 'thread')} of earlier scans still hang{'s' if count == 1 else ''}{since}; "
                f"timeout.max_abandoned={most} risks no further one",
                "Python cannot stop a thread: scans go on when it ends by itself, or after a restart; give the call "
                "that hangs (see below) a timeout of its own, or risk more with a higher timeout.max_abandoned",
            ),
        )


def _pool(stack: Stack) -> Iterator[tuple[str, Reason]]:
    stuck = stack.pool.why_stuck() or (stack.calls.pool.why_stuck() if stack.calls.used else None)
    if stuck is not None:
        yield HINDERS, Reason("workers", stuck, "raise the runner's max_abandoned, or restart the process")
    elif not stack.pool.free:
        yield (
            DELAYS,
            Reason("workers", "all of them are busy", "the scan begins when one is free; max_workers adds some"),
        )


def _provider_down(stack: Stack) -> Iterator[tuple[str, Reason]]:
    """Yield why the provider may not be called, and what would change that."""
    breaker = None if stack.provider is None else stack.provider.breaker
    why = "" if breaker is None else breaker.reason()
    if breaker is None or not why:
        return
    name = breaker.provider
    reset = f"runner.reset(provider={name!r}), `resilient-scan reset --provider {name} --reason WHY`"
    if breaker.status == HELD:
        weight = DELAYS if breaker.admits_by(stack.clock.monotonic() + stack.total) else HINDERS
        yield weight, Reason("provider", clean(why), f"wait until then, as a scan does that has the time; or {reset}")
    elif breaker.next_trial_in():
        way_out = f"wait {span(breaker.next_trial_in())}: then one of its scanners makes a trial; or {reset}"
        yield HINDERS, Reason("provider", clean(why), way_out)


def _provider(stack: Stack) -> Iterator[tuple[str, Reason]]:
    provider = stack.provider
    if provider is None:
        return
    most, name = provider.limit.concurrency, provider.limit.provider
    turn = f"a scan waits its turn for up to timeout.total={span(stack.total)}, then it ends `rejected`"
    if most is not None and provider.taken >= most:
        yield (
            DELAYS,
            Reason("limit", f"all attempts that {name} allows at a time ({most}) are under way", turn),
        )
    elif provider.waiting:
        rates = ", ".join(provider.limit.rates) or "none"
        yield DELAYS, Reason("limit", f"{provider.waiting} wait ahead of it for provider {name} (rate {rates})", turn)
