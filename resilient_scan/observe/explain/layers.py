"""The layers of one scanner, in words and numbers: what each does, who set its options, and its state now."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping

from msgspec import UNSET

from resilient_scan._text import clean, counted, exact, moment, span
from resilient_scan.core.stack import Stack
from resilient_scan.errors import name_of
from resilient_scan.layers.breaker.provider import ProviderBreaker
from resilient_scan.layers.local import EXCUSED
from resilient_scan.layers.outcomes import BEGINS, ENDS, KEPT, LOOKED_AT, allowed, change_share, failures
from resilient_scan.observe.explain.text import Layer, Number
from resilient_scan.observe.logs import NOTABLE_LATENESS
from resilient_scan.options import Breaker, Cache, Limit, Option, Policy, Retry, durations
from resilient_scan.quarantine import ScannerState
from resilient_scan.scanning import Candidate, FunctionScanner, ScannerSpec

BUILT_IN, POLICY, POLICIES, DECORATOR, CLASS = "built-in", "policy", "policies", "decorator", "the scanner's class"
_NONE = {"cache.inputs": "all of the state but tool_logs", "cache.ttl_empty": "as ttl", "cache.ttl_error": "never"}
_SOURCES = {"alert": "by an alert", "failures": "by its own failures", "probe": "by a failed probe"}


def layers_of(stack: Stack, state: ScannerState, origins: Mapping[str, str]) -> tuple[Layer, ...]:
    """Describe the layers of a stack, outermost first."""
    policy = stack.policy
    limit = policy.limit if stack.provider is None else stack.provider.limit
    total, attempt = ("timeout.total",), ("timeout.attempt", "timeout.max_abandoned")
    timeouts = _numbers(policy, "timeout", origins)
    return (
        Layer("gate", _gate(state), (), tuple(_known(state))),
        Layer("cache", _cache(policy.cache), _numbers(policy, "cache", origins), tuple(_kept(stack))),
        Layer(
            "timeout.total",
            _total(policy),
            tuple(n for n in timeouts if n.option in total),
            (*_lateness(stack), *_lane(stack), *_process(stack)),
        ),
        Layer("retry", _retry(policy.retry), _numbers(policy, "retry", origins), tuple(_budget(stack))),
        Layer("breaker", _breaker(policy.breaker), _numbers(policy, "breaker", origins), tuple(_breaker_now(stack))),
        Layer("limit", _limit(limit), _limits(policy, limit, origins), tuple(_provider(stack))),
        Layer(
            "timeout.attempt", _attempt(policy), tuple(n for n in timeouts if n.option in attempt), (_threads(stack),)
        ),
        Layer(
            "scanner",
            _scanner(stack),
            _objective(stack, origins),
            (*_expected(stack), *_stability(stack), *own_faults(stack)),
        ),
    )


# the numbers, and who set them


def _numbers(policy: Policy, layer: str, origins: Mapping[str, str]) -> tuple[Number, ...]:
    option = getattr(policy, layer)
    if option is None:
        return (Number(layer, "left out", origins.get(layer, BUILT_IN)),)
    paths = [f"{layer}.{field}" for field in option.__struct_fields__]
    return tuple(Number(path, _value(path, option), origins.get(path, BUILT_IN)) for path in paths)


def _limits(policy: Policy, limit: Limit | None, origins: Mapping[str, str]) -> tuple[Number, ...]:
    """Return a limit's numbers, some of which another scanner of the provider may have set."""
    own = policy.limit
    if limit is None or own is None or own == limit:
        return _numbers(policy, "limit", origins)
    numbers = ("rate", "concurrency", "breaker")
    shared = {f"limit.{field}": f"another scanner of {limit.provider}" for field in numbers}
    return _numbers(policy.replace({"limit": limit}), "limit", {**origins, **shared})


def _objective(stack: Stack, origins: Mapping[str, str]) -> tuple[Number, ...]:
    slo = stack.spec.slo
    return () if slo is None else (Number("scanner.slo", f"{slo:.10g}", origins.get("scanner.slo", DECORATOR)),)


def _value(path: str, option: Option) -> str:
    field = path.partition(".")[2]
    value = getattr(option, field)
    if value is None or value is UNSET:
        return _NONE.get(path, "none") if value is None else "the scanners' own"
    if isinstance(value, Breaker):
        return f"{value.failures} failures, open for {exact(value.open_for)}"
    if field in durations(type(option)):
        return exact(value)
    if callable(value):
        return f"{name_of(value)}()"
    if isinstance(value, tuple):
        return "(" + ", ".join(item.__name__ if isinstance(item, type) else str(item) for item in value) + ")"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def origins_in_code(
    spec: ScannerSpec, policy: Policy, base: Policy | None, *, whole: bool, timeout_seconds: bool
) -> dict[str, str]:
    """Return who set each number that code sets, by `layer.field`, or by `layer` for a layer that is left out.

    Args:
        spec: the scanner.
        policy: its effective policy.
        base: the runner's `policy` argument, if any.
        whole: whether the whole policy was given for this scanner, by the runner's `policies`.
        timeout_seconds: whether the runner was given `timeout_seconds`.
    """
    origins: dict[str, str] = {}
    for layer in policy.__struct_fields__:
        option = getattr(policy, layer)
        place = POLICIES if whole else _place(spec, layer, base)
        origins |= (
            {layer: place} if option is None else {f"{layer}.{field}": place for field in option.__struct_fields__}
        )
    if timeout_seconds and not whole and "timeout" not in spec.layers:
        origins["timeout.total"] = "timeout_seconds"
    if spec.slo is not None:
        origins["scanner.slo"] = DECORATOR if isinstance(spec.origin, FunctionScanner) else CLASS
    return origins


def _place(spec: ScannerSpec, layer: str, base: Policy | None) -> str:
    if layer in spec.layers:
        return DECORATOR if isinstance(spec.origin, FunctionScanner) else CLASS
    return BUILT_IN if base is None or getattr(base, layer) == getattr(Policy(), layer) else POLICY


# what each layer does


def _gate(state: ScannerState) -> str:
    if state.state == "enabled":
        by_hand = f" by hand, against alerts, until {moment(state.until)}" if state.by_hand and state.until else ""
        return f"the scanner is in service{by_hand}: it is called"
    if is_probe(state):
        how = "its cool-off has passed" if state.state == "quarantined" else how_out(state)
        return f"on probation: {how}; the next scan is a probe"
    left = "" if state.until is None else f", in {span(max(0.0, state.until - state.at))}"
    return f"out of service: {how_out(state)}{left}; reason: {clean(state.reason)}"


def how_out(state: ScannerState) -> str:
    """Say how a scanner went out of service, by whom, and until when."""
    who = f" ({clean(state.who)})" if state.who else ""
    until = "" if state.until is None else f" until {moment(state.until)}"
    if state.state == "disabled":
        return f"disabled by hand{who}{until}"
    if state.state == "quarantined":
        return f"quarantined {_SOURCES.get(state.source, state.source)}{who}{until}"
    return f"probing, {state.passed} of {counted(state.needed, 'probe')} succeeded"


def is_probe(state: ScannerState) -> bool:
    """Return whether a scan that began now would be a probe."""
    return state.next_probe is not None and state.at >= state.next_probe


def _cache(cache: Cache | None) -> str:
    if cache is None:
        return "none: every scan calls the source"
    same = "state" if cache.inputs is None else ", ".join(cache.inputs) or "key (there is only one)"
    jitter = f" (at random up to {cache.jitter:.0%} less)" if cache.jitter else ""
    stale = cache.stale_if_error
    then = f"for {span(stale)} after that it stands in when the source fails" if stale else "after that it is not used"
    return f"an answer is fresh for {span(cache.ttl)}{jitter}: a scan of the same {same} gets it without a call; {then}"


def _total(policy: Policy) -> str:
    return f"a scan has {span(policy.timeout.total)} for all its attempts and waits, counted from the worker's start"


def _lane(stack: Stack) -> Iterator[str]:
    """Say where an `async def` scanner runs, or one whose attempts are made elsewhere."""
    at_workers = stack.engine is not None
    if stack.lane is not None:
        queued, under_way, _ = stack.lane.counts()
        if at_workers:
            yield f"its attempts are made at the workers of a cluster: {under_way} scans under way, {queued} queued"
            return
        yield f"its coroutine shares an event loop with others: {under_way} under way, {queued} queued"
    elif stack.left_lane:
        what = "what comes from its process" if at_workers else "its coroutine"
        yield f"{what} blocked the event loop that it shared with others; it takes a worker now"


def _process(stack: Stack) -> Iterator[str]:
    """Say that a scanner runs in a process of its own."""
    if stack.spec.isolation == "process":
        memory = stack.spec.memory
        most = "" if memory is None else f" and may use {memory:,} bytes of memory"
        yield f"it runs in a child process, which is killed when the time is up{most}"


def _lateness(stack: Stack) -> Iterator[str]:
    worst = stack.pool.worst_lateness
    if worst >= NOTABLE_LATENESS:
        yield (
            f"deadlines were acted on up to {span(worst)} late: some scanner's call held the interpreter's lock, "
            "and nothing else could run meanwhile"
        )


def _retry(retry: Retry | None) -> str:
    if retry is None or retry.attempts == 1:
        return "none: one attempt per scan"
    waits = [min(retry.cap, retry.base * 2.0**done) for done in range(min(3, retry.attempts - 1))]
    more = ", ..." if retry.attempts - 1 > len(waits) else ""
    return (
        f"up to {retry.attempts} attempts per scan; the waits between them are drawn at random, "
        f"of at most {', '.join(map(span, waits))}{more}"
    )


def _breaker(breaker: Breaker | None) -> str:
    if breaker is None:
        return "none: a source that keeps failing is still called"
    failures = f"{breaker.failures} failed attempts in a row" if breaker.failures > 1 else "1 failed attempt"
    doubts = " (a suspicious answer is one)" if breaker.suspicious else ""
    within = "" if breaker.within is None else f", within {span(breaker.within)},"
    rates = [
        f"{rate:.0%} {what} among the last {breaker.window}"
        for rate, what in ((breaker.failure_rate, "failures"), (breaker.slow_rate, "slow ones"))
        if rate is not None
    ]
    trials = "1 half-open trial decides" if breaker.trials == 1 else f"{breaker.trials} half-open trials decide"
    opens = " or ".join([failures, *rates])
    return f"{opens}{doubts}{within} open it: no scan is admitted for {span(breaker.open_for)}, then {trials}"


def _limit(limit: Limit | None) -> str:
    if limit is None:
        return "none: no provider is named, and none has been called so far"
    rates = " and ".join(limit.rates)
    numbers = [f"{rates} requests"] if rates else []
    numbers += [f"{counted(limit.concurrency, 'attempt')} at a time"] if limit.concurrency is not None else []
    return f"all scanners of provider {clean(limit.provider)} share {', '.join(numbers) or 'a quota without numbers'}"


def _attempt(policy: Policy) -> str:
    timeout = policy.timeout
    each = "may take all the time there is" if timeout.attempt is None else f"has {span(timeout.attempt)}"
    most = timeout.max_abandoned
    return f"one attempt {each}; a thread that does not stop is abandoned, and no more than {most} may hang"


def _scanner(stack: Stack) -> str:
    spec = stack.spec
    call = inspect.unwrap(spec.origin) if isinstance(spec.origin, FunctionScanner) else type(spec.origin)
    where = f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', '?')}"
    code = getattr(inspect.unwrap(spec.origin.scan), "__code__", None)
    line = "" if code is None else f" at {code.co_filename}:{code.co_firstlineno}"
    kind = "" if spec.candidate is Candidate else f"; its candidates are {spec.candidate.__name__}"
    keys = ", ".join(sorted(map(str, stack.own.settings)))  # their values may be secret
    return f"{clean(where + line)}{kind}" + (f"; it has settings for {clean(keys)}" if keys else "")


# the state of each layer


def _known(state: ScannerState) -> Iterator[str]:
    if state.since is not None and state.state != "enabled":
        yield f"{state.state} since {moment(state.since)}, {span(max(0.0, state.at - state.since))} ago"
    if state.by_hand and state.beneath != "enabled":
        yield f"without the manual order it would be {state.beneath}"
    if state.level:
        yield f"it has failed to come back {counted(state.level, 'time')}: the cool-off is that much longer"
    if state.failures:
        yield f"{counted(state.failures, 'execution')} in a row failed"
    for alert in state.evidence:
        blocks = ", keeps it out of service" if alert.blocks and state.state != "enabled" else ""
        text = ": ".join(part for part in (alert.name, alert.summary) if part)
        ago = span(max(0.0, state.at - alert.said_at))
        yield f"alert {clean(text)}: {alert.status} ({alert.source}, said {ago} ago){blocks}"


def _kept(stack: Stack) -> Iterator[str]:
    if stack.cache is None:
        return
    (answers, failures), newest = stack.cache.sizes(), stack.cache.newest()
    age = "" if newest is None else f", the newest {span(max(0.0, stack.clock.monotonic() - newest.stored_at))} old"
    where = " in this process, besides those in the store" if stack.cache.answers is not None else ""
    yield f"{counted(answers, 'answer')} kept{where}{age}"
    if failures:
        yield f"{counted(failures, 'failure')} remembered"


def _budget(stack: Stack) -> Iterator[str]:
    if stack.budget is not None:
        yield f"{stack.budget.left()} more retries fit into the budget of this minute"


def _breaker_now(stack: Stack) -> Iterator[str]:
    breaker, options = stack.breaker, stack.policy.breaker
    if breaker is None or options is None:
        return
    state, wait = breaker.state.replace("_", "-"), breaker.next_trial_in()
    next_trial = f"next half-open trial in {span(wait)}" if wait else "the next scan is a half-open trial"
    trial = "" if state == "closed" else f", {next_trial}"
    yield f"{state}, {counted(breaker.failures, 'failure')} in a row{trial}"
    troubled = breaker.window_counts()
    if troubled is not None:
        seen, failed, slow = troubled
        yield f"of the last {seen} attempts (rates count from {options.minimum}) {failed} failed, {slow} were slow"


def _provider(stack: Stack) -> Iterator[str]:
    provider = stack.provider
    if provider is not None:
        most = provider.limit.concurrency
        of = "" if most is None else f" of {most}"
        yield f"attempts of all its scanners under way: {provider.taken}{of}; in its queue: {provider.waiting}"
        if provider.breaker is not None:
            yield _provider_breaker(provider.breaker)


def _provider_breaker(breaker: ProviderBreaker) -> str:
    """Say how a provider's breaker stands."""
    names = ", ".join(sorted(breaker.scanners.copy()))
    why = breaker.reason()
    state = breaker.status.replace("_", "-")
    return f"its breaker is {state}{f': {clean(why)}' if why else ''}; it has {names}"


def _threads(stack: Stack) -> str:
    count = stack.hung.count
    return f"{counted(count, 'thread')} hang{'s' if count == 1 else ''}" if count else "no thread hangs"


def _expected(stack: Stack) -> Iterator[str]:
    if math.isfinite(stack.expected):
        yield f"a scan is expected to take {span(stack.expected)}, from those seen"


def _stability(stack: Stack) -> Iterator[str]:
    """Say whether it is flapping, and what is left of its error budget."""
    outcomes, slo, left = stack.outcomes, stack.spec.slo, stack.slo_budget()
    if stack.flapping():
        yield (
            f"it is flapping: success and failure changed in {change_share(outcomes):.0%} of its last {LOOKED_AT} "
            f"executions, newer changes counting more (it begins at {BEGINS:.0%}, and ends below {ENDS:.0%})"
        )
    if slo is None or left is None:
        return
    failed = f"{failures(outcomes)} of its last {KEPT:,} executions failed, and {allowed(slo):.4g} may"
    used = f"{left:.0%} of its error budget is left" if left > 0 else "its error budget is used up"
    yield f"{used}: {failed} (slo={slo:.10g})"


def own_faults(stack: Stack) -> Iterator[str]:
    """Say that this machine fails the scanner, if it does, and how long that counts against nobody."""
    found = stack.faults.excused(stack.name)
    if found is None or not found[0]:
        return
    count, ago, is_own = found
    lately = f"since its last success, {counted(count, 'execution')} failed by this machine's fault"
    if is_own:
        yield f"{lately}, the first {span(ago)} ago: the next one counts as its own"
    else:
        yield f"{lately}: that counts against nobody for another {span(EXCUSED - ago)}"
