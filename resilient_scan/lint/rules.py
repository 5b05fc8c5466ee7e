"""The rules for one scanner's policy; each returns its sentence, or `None` where all is well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from resilient_scan.errors import RetryAfter, ScanTimeout
from resilient_scan.lint.case import ERROR, WARNING, Case, period_of, rounded_up, s, turns_within
from resilient_scan.options import Exceptions, Limit, Policy, Retry, parse_rate
from resilient_scan.snapshot import TOOL_LOGS, Snapshot

DAY = 86_400.0
AT_ONCE = 1.0  # seconds: a shorter ttl is over before another scan could use the answer


# Attempts and time


def attempts_do_not_fit(case: Case) -> str | None:
    """Tell that attempts of full length and the longest waits take more than the scan has."""
    retry, total, each = case.retry, case.policy.timeout.total, case.policy.timeout.attempt
    if retry is None or each is None:
        return None
    waits = longest_waits(retry)
    needed, room = retry.attempts * each + waits, (total - waits) / retry.attempts
    if needed <= total:
        return None
    smaller = f"timeout.attempt to {_rounded_down(room)}" if room > 0 else "retry.attempts"
    return (
        f"retry.attempts={retry.attempts} x timeout.attempt={s(each)} + waits of up to {s(waits)} = {s(needed)}, more "
        f"than timeout.total={s(total)}: the last attempts are cut short or never made; "
        f"raise timeout.total to {needed:g} or lower {smaller}"
    )


def waits_do_not_fit(case: Case) -> str | None:
    """Tell that the waits alone use up the time of the scan."""
    retry, total = case.retry, case.policy.timeout.total
    if retry is None or attempts_do_not_fit(case) is not None:
        return None
    waits = longest_waits(retry)
    if waits / 2 > total:
        return (
            f"the waits between retry.attempts={retry.attempts} attempts (retry.base={s(retry.base)}, doubled up to "
            f"retry.cap={s(retry.cap)}) add up to {s(waits)}, on average to {s(waits / 2)}, more than "
            f"timeout.total={s(total)}: the last attempts are never made; "
            "lower retry.cap or retry.attempts, or raise timeout.total"
        )
    if retry.base > total:
        return (
            f"the first wait is drawn from 0 to retry.base={s(retry.base)} and only {total / retry.base:.0%} of such "
            f"waits fit into timeout.total={s(total)}, and one that does not fit ends the scan; "
            f"lower retry.base below {total:g}, or raise timeout.total"
        )
    return None


def longest_waits(retry: Retry) -> float:
    """Return the seconds that all waits of a scan take at most: min(cap, base * 2**k) added up."""
    if retry.base == 0:
        return 0.0
    seconds, step = 0.0, retry.base
    for left in range(retry.attempts - 1, 0, -1):
        if step >= retry.cap:
            return seconds + left * retry.cap
        seconds, step = seconds + step, step * 2
    return seconds


def attempts_over_abandoned(case: Case) -> str | None:
    """Tell that attempts which hang use up the threads that may hang."""
    retry, timeout = case.retry, case.policy.timeout
    if retry is None or timeout.attempt is None or timeout.max_abandoned >= retry.attempts:
        return None
    return (
        f"each attempt that hangs for timeout.attempt={s(timeout.attempt)} leaves a thread behind, and "
        f"timeout.max_abandoned={timeout.max_abandoned} of them may hang at a time: of retry.attempts={retry.attempts} "
        f"such attempts only {timeout.max_abandoned} would be made; raise timeout.max_abandoned to {retry.attempts}"
    )


def rate_below_attempts(case: Case) -> str | None:
    """Tell that a provider's rate has no turn for all attempts of one scan."""
    retry, limit, total = case.retry, case.policy.limit, case.policy.timeout.total
    for rate in limit.rates if limit is not None and retry is not None else ():
        turns = turns_within(rate, total)
        if retry is not None and turns < retry.attempts:
            return (
                f"limit.rate={rate} gives one scan {turns} of its retry.attempts={retry.attempts} attempts within "
                f"timeout.total={s(total)}: the others wait for a turn that does not come; "
                "lower retry.attempts or raise timeout.total"
            )
    return None


def budget_without_retry(case: Case) -> str | None:
    """Tell that there is no retry for the budget to limit."""
    retry = case.policy.retry
    if retry is None or retry.attempts > 1 or retry.budget is None:
        return None
    return (
        f"retry.attempts=1 makes 0 retries, so retry.budget={retry.budget:g} has nothing to limit; "
        "raise retry.attempts or leave retry.budget out"
    )


def retry_after_over_total(case: Case) -> str | None:
    """Tell that the cap on a source's own wait is never reached; the default one is nobody's choice."""
    retry, total = case.retry, case.policy.timeout.total
    if retry is None or retry.retry_after_cap <= total or retry.retry_after_cap == Retry().retry_after_cap:
        return None
    return (
        f"retry.retry_after_cap={s(retry.retry_after_cap)} never shortens a wait, because one that does not fit into "
        f"timeout.total={s(total)} is not begun at all; lower retry.retry_after_cap below {total:g}, "
        "or raise timeout.total"
    )


# Breaker and its neighbours


def retried_not_counted(case: Case) -> str | None:
    """Tell that some failures are repeated and never open the breaker."""
    retry, breaker = case.retry, case.policy.breaker
    if retry is None or breaker is None:
        return None
    if all(issubclass(kind, (*breaker.on, RetryAfter, ScanTimeout)) for kind in retry.on):
        return None
    return (
        f"retry.on repeats {_names(retry.on)} and breaker.on counts {_names(breaker.on)} only: a source that fails "
        f"otherwise is asked retry.attempts={retry.attempts} times in every scan for ever, and its breaker never "
        f"opens; widen breaker.on to ({_names(retry.on)}) or narrow retry.on to ({_names(breaker.on)})"
    )


def attempts_over_failures(case: Case) -> str | None:
    """Tell that the breaker opens in the middle of a scan."""
    retry, breaker = case.retry, case.policy.breaker
    if retry is None or breaker is None or breaker.failures >= retry.attempts:
        return None
    return (
        f"breaker.failures={breaker.failures} opens the breaker in the middle of a scan: of "
        f"retry.attempts={retry.attempts} attempts that fail only {breaker.failures} would be made; "
        f"raise breaker.failures to {retry.attempts} or more, or lower retry.attempts"
    )


def one_scan_opens(case: Case) -> str | None:
    """Tell that one bad scan costs the next ones their turn."""
    retry, breaker, interval = case.retry, case.policy.breaker, case.interval
    if retry is None or breaker is None or interval is None:
        return None
    if breaker.failures != retry.attempts or interval >= breaker.open_for:
        return None
    lost = math.ceil(breaker.open_for / interval) - 1
    return (
        f"one scan of retry.attempts={retry.attempts} failures opens the breaker (breaker.failures={breaker.failures}) "
        f"for breaker.open_for={s(breaker.open_for)}, and with a run every {s(interval)} that refuses the next {lost}; "
        f"raise breaker.failures above {retry.attempts}"
    )


def trial_outlives_permit(case: Case) -> str | None:
    """Tell that a trial's permit expires under a trial that still runs."""
    breaker, longest = case.policy.breaker, case.longest
    if breaker is None or breaker.open_for >= longest:
        return None
    calls = breaker.trials * math.ceil(longest / breaker.open_for)
    return (
        f"a trial may take {case.longest_path}, but its permit expires after breaker.open_for={s(breaker.open_for)}: a "
        f"source that is slow to come back gets up to {calls} calls at a time instead of "
        f"breaker.trials={breaker.trials}; raise breaker.open_for to {longest:g} or more"
    )


def slow_after_timeout(case: Case) -> str | None:
    """Tell that no success can be slow."""
    breaker, longest = case.policy.breaker, case.longest
    if breaker is None or breaker.slow_after is None or breaker.slow_after < longest:
        return None
    return (
        f"no attempt can succeed after breaker.slow_after={s(breaker.slow_after)}, because {case.longest_path} ends it "
        f"before: breaker.slow_rate never opens the breaker; lower breaker.slow_after below {longest:g}"
    )


def deadline_hides_timeout(case: Case) -> str | None:
    """Tell that runs end before a source that hangs is found out; an execution for a cache outlives its run."""
    deadline, policy = case.deadline, case.policy
    if deadline is None or deadline > case.longest or policy.cache is not None or policy.breaker is None:
        return None
    return (
        f"a run's deadline of {s(deadline)} comes before {case.longest_path}, and a scan that is cut by its run has no "
        f"vote: the breaker never hears of a source that hangs; lower timeout.total below {deadline:g}"
    )


def window_never_full(case: Case) -> str | None:
    """Tell that it takes days until the rates have something to look at."""
    breaker, interval = case.policy.breaker, case.interval
    if breaker is None or interval is None or breaker.failure_rate is breaker.slow_rate is None:
        return None
    period = period_of(case.policy, interval)
    if breaker.minimum * period <= DAY:
        return None
    return (
        f"breaker.minimum={breaker.minimum} attempts, one every {s(period)}, take "
        f"{breaker.minimum * period / 3600:.3g} hours, and before that no rate opens the breaker; "
        f"lower breaker.minimum to {max(1, int(DAY / period))} or less, or rely on breaker.failures alone"
    )


# Cache and its neighbours


def ttl_below_interval(case: Case) -> str | None:
    """Tell that every answer is gone when the next run asks; one kept for failures only is well."""
    cache, interval = case.policy.cache, case.interval
    if cache is None or interval is None or cache.ttl + cache.stale_if_error >= interval:
        return None
    kept = f" + cache.stale_if_error={s(cache.stale_if_error)}" if cache.stale_if_error else ""
    return (
        f"cache.ttl={s(cache.ttl)}{kept} is over when the next run comes after {s(interval)}: no run ever finds an "
        f"answer in the cache; raise cache.ttl above {_outlasting(interval, cache.jitter)}, or leave the cache out"
    )


def jitter_below_interval(case: Case) -> str | None:
    """Tell that jitter makes a ttl shorter than the time between runs."""
    cache, interval = case.policy.cache, case.interval
    if cache is None or interval is None:
        return None
    shortest = cache.ttl * (1 - cache.jitter)
    if not shortest < interval <= cache.ttl:
        return None
    return (
        f"cache.ttl={s(cache.ttl)} less a cache.jitter of up to {cache.jitter:.0%} is {s(shortest)}, shorter than the "
        f"{s(interval)} between runs: some answers are gone when the next run asks; "
        f"raise cache.ttl above {_outlasting(interval, cache.jitter)}"
    )


def stale_without_ttl(case: Case) -> str | None:
    """Tell that answers are kept and never used, unless something fails."""
    cache = case.policy.cache
    if cache is None or not cache.stale_if_error or cache.ttl >= AT_ONCE:
        return None
    return (
        f"cache.ttl={s(cache.ttl)} is over at once, so every scan asks the source and the answers that are kept for "
        f"cache.stale_if_error={s(cache.stale_if_error)} only stand in for failures; "
        "raise cache.ttl to the seconds for which an answer is good"
    )


def stale_ends_before_trial(case: Case) -> str | None:
    """Tell that stale answers end while the breaker is open."""
    cache, breaker = case.policy.cache, case.policy.breaker
    if cache is None or breaker is None or not 0 < cache.stale_if_error < breaker.open_for:
        return None
    return (
        f"breaker.open_for={s(breaker.open_for)} outlasts cache.stale_if_error={s(cache.stale_if_error)}: in the last "
        f"{s(breaker.open_for - cache.stale_if_error)} before the first trial no stale answer stands in; "
        f"raise cache.stale_if_error to {breaker.open_for:g} or more"
    )


def error_outlives_open(case: Case) -> str | None:
    """Tell that a remembered failure hides that the source is back."""
    cache, breaker = case.policy.cache, case.policy.breaker
    if cache is None or breaker is None or cache.ttl_error is None or cache.ttl_error <= breaker.open_for:
        return None
    return (
        f"cache.ttl_error={s(cache.ttl_error)} repeats a failure for {s(cache.ttl_error - breaker.open_for)} longer "
        f"than breaker.open_for={s(breaker.open_for)}, after which a trial could find the source well; "
        f"lower cache.ttl_error to {breaker.open_for:g} or less"
    )


def state_without_key(case: Case) -> str | None:
    """Tell that a state like the sample has no key, so that the cache keeps nothing."""
    cache, state = case.policy.cache, case.state
    if cache is None or state is None or Snapshot(state).keys[cache.inputs] is not None:
        return None
    read = [name for name in state if name != TOOL_LOGS and (cache.inputs is None or name in cache.inputs)]
    bad = [name for name in read if Snapshot({name: state[name]}).keys[None] is None]
    kinds = ", ".join(f"{name!r} ({type(state[name]).__name__})" for name in bad) or "its keys"
    good = tuple(name for name in read if name not in bad)
    return (
        f"{len(bad)} of the {len(read)} values of the state that make the cache's key have no stable form, {kinds}: "
        f"nothing is ever kept; name those that the scanner reads, such as cache.inputs={good!r}, "
        "or leave the cache out"
    )


RULES: dict[str, Callable[[Case], str | None]] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        attempts_do_not_fit,
        waits_do_not_fit,
        attempts_over_abandoned,
        rate_below_attempts,
        budget_without_retry,
        retry_after_over_total,
        retried_not_counted,
        attempts_over_failures,
        one_scan_opens,
        trial_outlives_permit,
        slow_after_timeout,
        deadline_hides_timeout,
        window_never_full,
        ttl_below_interval,
        jitter_below_interval,
        stale_without_ttl,
        stale_ends_before_trial,
        error_outlives_open,
        state_without_key,
    )
}
"""The rules for one policy, by code."""


def _names(kinds: Exceptions) -> str:
    return ", ".join(kind.__name__ for kind in kinds) or "nothing"


def _rounded_down(seconds: float) -> str:
    return f"{math.floor(seconds * 100) / 100:g}" if seconds >= 0.01 else f"{seconds:.2g}"


def _outlasting(interval: float, jitter: float) -> str:
    """Return the ttl that outlasts the interval even when jitter shortens it most."""
    return rounded_up(interval / (1 - jitter))


# The rules for a provider's rate and all scanners that share it.

Told = tuple[str, str, str]
"""Code, severity, message."""


def with_numbers(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Give each limit that only names its provider the numbers that another scanner gives."""
    numbers: dict[str, Limit] = {}
    for policy in policies.values():
        if policy.limit is not None and not policy.limit.is_bare:
            numbers.setdefault(policy.limit.provider, policy.limit)
    return {name: _with_numbers(policy, numbers) for name, policy in policies.items()}


def _with_numbers(policy: Policy, numbers: Mapping[str, Limit]) -> Policy:
    limit = policy.limit
    return policy if limit is None else policy.replace({"limit": numbers.get(limit.provider, limit)})


def by_provider(policies: Mapping[str, Policy]) -> Iterator[tuple[tuple[str, ...], list[Policy]]]:
    """Yield names and policies of the scanners that share a rate, provider by provider."""
    groups: dict[str, list[str]] = {}
    for name, policy in policies.items():
        if policy.limit is not None and policy.limit.rates:
            groups.setdefault(policy.limit.provider, []).append(name)
    for names in groups.values():
        yield tuple(names), [policies[name] for name in names]


def over_rate(policies: list[Policy], interval: float | None) -> Iterator[Told]:
    """Yield what there is to say about the rates of the one provider that these have in common."""
    limit = policies[0].limit
    if limit is None:
        return
    for rate in limit.rates:
        yield from _in_one_run(limit.provider, rate, policies)
        if interval is not None:
            yield from _run_after_run(limit.provider, rate, policies, interval)


def _in_one_run(provider: str, rate: str, policies: list[Policy]) -> Iterator[Told]:
    total = min(policy.timeout.total for policy in policies)
    turns, count = turns_within(rate, total), len(policies)
    if count <= turns:
        return
    cached = all(policy.cache is not None for policy in policies)
    message = (
        f"{count} scanners of {provider} begin together, and its rate of {rate} has a turn for {turns} of them within "
        f"timeout.total={s(total)}: {count - turns} are rejected in a run that finds nothing in the cache; "
        "raise timeout.total, or spread them over several runs"
    )
    yield "rate-below-run", WARNING if cached else ERROR, message


def _run_after_run(provider: str, rate: str, policies: list[Policy], interval: float) -> Iterator[Told]:
    count, window = parse_rate(rate)
    periods = [period_of(policy, interval) for policy in policies]
    attempts = [1 if policy.retry is None else policy.retry.attempts for policy in policies]
    least = sum(window / period for period in periods)
    most = sum(tries * window / period for tries, period in zip(attempts, periods, strict=True))
    if most <= count:
        return
    who = f"{len(policies)} scanners of {provider} ask" if len(policies) > 1 else f"it asks {provider}"
    alike = len(set(periods)) == 1
    how = f"up to {sum(attempts)} times every {s(periods[0])}," if alike else "up to"
    message = (
        f"{who} {how} {most:.4g}/{rate.partition('/')[2].strip()}; its rate is {rate}: "
        f"{'even first attempts' if least > count else 'retries'} wait for turns that do not come; run every "
        f"{rounded_up(interval * most / count)}s or slower, raise cache.ttl, or lower retry.attempts"
    )
    yield "rate-below-schedule", ERROR if least > count else WARNING, message
