"""The rules for one scanner's policy; each returns a sentence with its arithmetic and the fix, or `None`.

A rule is a function of a `Case`; its name is the code under which it is reported. It speaks only of options that can
never take effect, or that break what another option promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from resilient_scan._text import exact as s
from resilient_scan.errors import RetryAfter, ScanTimeout
from resilient_scan.options import Exceptions, Policy, Retry, parse_rate
from resilient_scan.snapshot import TOOL_LOGS, Snapshot

if TYPE_CHECKING:
    from resilient_scan.stores.columns import Measured

DAY: Final = 86_400.0
ENOUGH: Final = 200  # attempts, for a sentence about one in a hundred of them
FAR: Final = 10  # times the p99 that an attempt may take: a hang costs ten times what it might
AMPLE: Final = 4  # times the p99 that are advised
AT_ONCE: Final = 1.0  # seconds: a shorter ttl expires before another scan could use the answer


class Case(msgspec.Struct, frozen=True):
    """One policy, and what is known of its runs; `None`: not known.

    Attributes:
        policy: the layers.
        interval: seconds from one run to the next.
        deadline: seconds that a run has.
        state: a sample of what a run is given.
        measured: how long attempts have really taken.
    """

    policy: Policy
    interval: float | None = None
    deadline: float | None = None
    state: Mapping[str, Any] | None = None
    measured: Measured | None = None

    @property
    def retry(self) -> Retry | None:
        """The retry layer, if it makes more than one attempt."""
        retry = self.policy.retry
        return retry if retry is not None and retry.attempts > 1 else None

    @property
    def longest(self) -> float:
        """Seconds that an attempt may take."""
        return self.policy.timeout.attempt or self.policy.timeout.total

    @property
    def longest_path(self) -> str:
        """The option that sets `longest`, with its value."""
        return f"timeout.{'total' if self.policy.timeout.attempt is None else 'attempt'}={s(self.longest)}"


Rule = Callable[[Case], str | None]
RULES: Final[dict[str, Rule]] = {}
"""The rules for one policy, by code."""


def _rule(rule: Rule) -> Rule:
    """Put a function into `RULES`: its name is its code."""
    RULES[rule.__name__.replace("_", "-")] = rule
    return rule


# Attempts and time


@_rule
def attempts_do_not_fit(case: Case) -> str | None:
    """Attempts of full length and the longest waits take more time than the scan has."""
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


@_rule
def waits_do_not_fit(case: Case) -> str | None:
    """The waits alone use up the time of the scan."""
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


@_rule
def attempts_over_abandoned(case: Case) -> str | None:
    """Attempts that hang use up the abandoned threads that the scanner may have."""
    retry, timeout = case.retry, case.policy.timeout
    if retry is None or timeout.attempt is None or timeout.max_abandoned >= retry.attempts:
        return None
    return (
        f"each attempt that hangs for timeout.attempt={s(timeout.attempt)} leaves an abandoned thread, and "
        f"timeout.max_abandoned={timeout.max_abandoned} of them may exist at a time: of "
        f"retry.attempts={retry.attempts} such attempts only {timeout.max_abandoned} would be made; "
        f"raise timeout.max_abandoned to {retry.attempts}"
    )


@_rule
def rate_below_attempts(case: Case) -> str | None:
    """A provider's rate has no turn for some attempts of one scan."""
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


@_rule
def budget_without_retry(case: Case) -> str | None:
    """The budget has no retries to limit."""
    retry = case.policy.retry
    if retry is None or retry.attempts > 1 or retry.budget is None:
        return None
    return (
        f"retry.attempts=1 makes 0 retries, so retry.budget={retry.budget:g} has nothing to limit; "
        "raise retry.attempts or leave retry.budget out"
    )


@_rule
def retry_after_over_total(case: Case) -> str | None:
    """The cap on a wait that a source asks for is never reached; the default cap is nobody's choice."""
    retry, total = case.retry, case.policy.timeout.total
    if retry is None or retry.retry_after_cap <= total or retry.retry_after_cap == Retry().retry_after_cap:
        return None
    return (
        f"retry.retry_after_cap={s(retry.retry_after_cap)} never shortens a wait, because one that does not fit into "
        f"timeout.total={s(total)} is never started; lower retry.retry_after_cap below {total:g}, "
        "or raise timeout.total"
    )


# Breaker and its neighbours


@_rule
def retried_not_counted(case: Case) -> str | None:
    """Some failures are retried and never open the breaker."""
    retry, breaker = case.retry, case.policy.breaker
    if retry is None or breaker is None or not (isinstance(retry.on, tuple) and isinstance(breaker.on, tuple)):
        return None  # nobody can tell what a predicate says
    if all(issubclass(kind, (*breaker.on, RetryAfter, ScanTimeout)) for kind in retry.on):
        return None
    return (
        f"retry.on repeats {_names(retry.on)} and breaker.on counts {_names(breaker.on)} only: a source that fails "
        f"otherwise is called retry.attempts={retry.attempts} times in every scan forever, and its breaker never "
        f"opens; widen breaker.on to ({_names(retry.on)}) or narrow retry.on to ({_names(breaker.on)})"
    )


@_rule
def attempts_over_failures(case: Case) -> str | None:
    """The breaker opens in the middle of a scan."""
    retry, breaker = case.retry, case.policy.breaker
    if retry is None or breaker is None or breaker.failures >= retry.attempts:
        return None
    return (
        f"breaker.failures={breaker.failures} opens the breaker in the middle of a scan: of "
        f"retry.attempts={retry.attempts} attempts that fail only {breaker.failures} would be made; "
        f"raise breaker.failures to {retry.attempts} or more, or lower retry.attempts"
    )


@_rule
def within_below_attempt(case: Case) -> str | None:
    """Attempts that hang are forgotten before the next one has hung."""
    breaker, longest = case.policy.breaker, case.longest
    if breaker is None or breaker.within is None or breaker.failure_rate is not None:
        return None
    if breaker.within >= (breaker.failures - 1) * longest:
        return None
    least = (breaker.failures - 1) * longest
    return (
        f"breaker.failures={breaker.failures} attempts that hang for {case.longest_path} each, one after another, end "
        f"over {s(least)}, and only those of the last breaker.within={s(breaker.within)} count: a source that hangs "
        f"never opens the breaker; raise breaker.within to {least:g}, or lower {case.longest_path.partition('=')[0]}"
    )


@_rule
def within_below_schedule(case: Case) -> str | None:
    """The runs are too far apart for their failures to count together."""
    breaker, interval = case.policy.breaker, case.interval
    if breaker is None or breaker.within is None or breaker.failure_rate is not None or interval is None:
        return None
    attempts = 1 if case.retry is None else case.retry.attempts
    seen = attempts * (1 + math.floor(breaker.within / interval))
    needed = interval * (math.ceil(breaker.failures / attempts) - 1)
    if seen >= breaker.failures:
        return None
    return (
        f"breaker.within={s(breaker.within)} sees at most {seen} attempts, with a run every {s(interval)} of "
        f"retry.attempts={attempts}: breaker.failures={breaker.failures} in a row are never reached; "
        f"raise breaker.within to {needed:g}, or lower breaker.failures"
    )


@_rule
def one_scan_opens(case: Case) -> str | None:
    """One bad scan costs the next ones their turn."""
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


@_rule
def trial_outlives_permit(case: Case) -> str | None:
    """A trial's permit expires while the trial still runs."""
    breaker, longest = case.policy.breaker, case.longest
    if breaker is None or breaker.open_for >= longest:
        return None
    calls = breaker.trials * math.ceil(longest / breaker.open_for)
    return (
        f"a trial may take {case.longest_path}, but its permit expires after breaker.open_for={s(breaker.open_for)}: a "
        f"source that is slow to come back gets up to {calls} calls at a time instead of "
        f"breaker.trials={breaker.trials}; raise breaker.open_for to {longest:g} or more"
    )


@_rule
def slow_after_timeout(case: Case) -> str | None:
    """No successful attempt can be slow."""
    breaker, longest = case.policy.breaker, case.longest
    if breaker is None or breaker.slow_after is None or breaker.slow_after < longest:
        return None
    return (
        f"no attempt can succeed after breaker.slow_after={s(breaker.slow_after)}, because {case.longest_path} ends it "
        f"before: breaker.slow_rate never opens the breaker; lower breaker.slow_after below {longest:g}"
    )


@_rule
def deadline_hides_timeout(case: Case) -> str | None:
    """Runs end before a hanging source is noticed; with a cache, the execution outlives its run and notices it."""
    deadline, policy = case.deadline, case.policy
    if deadline is None or deadline > case.longest or policy.cache is not None or policy.breaker is None:
        return None
    return (
        f"a run's deadline of {s(deadline)} comes before {case.longest_path}, and a scan that is cut by its run has no "
        f"vote: the breaker never hears of a source that hangs; lower timeout.total below {deadline:g}"
    )


@_rule
def window_never_full(case: Case) -> str | None:
    """It takes days until the rates have enough attempts to look at."""
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


@_rule
def ttl_below_interval(case: Case) -> str | None:
    """Every answer has expired when the next run comes, and is not even kept for failures until then."""
    cache, interval = case.policy.cache, case.interval
    if cache is None or interval is None or cache.ttl + cache.stale_if_error >= interval:
        return None
    kept = f" + cache.stale_if_error={s(cache.stale_if_error)}" if cache.stale_if_error else ""
    return (
        f"cache.ttl={s(cache.ttl)}{kept} has expired when the next run comes after {s(interval)}: no run finds an "
        f"answer in the cache; raise cache.ttl above {_outlasting(interval, cache.jitter)}, or leave the cache out"
    )


@_rule
def jitter_below_interval(case: Case) -> str | None:
    """Jitter makes the ttl shorter than the time between runs."""
    cache, interval = case.policy.cache, case.interval
    if cache is None or interval is None:
        return None
    shortest = cache.ttl * (1 - cache.jitter)
    if not shortest < interval <= cache.ttl:
        return None
    return (
        f"cache.ttl={s(cache.ttl)} less a cache.jitter of up to {cache.jitter:.0%} is {s(shortest)}, shorter than the "
        f"{s(interval)} between runs: some answers have expired when the next run comes; "
        f"raise cache.ttl above {_outlasting(interval, cache.jitter)}"
    )


@_rule
def stale_without_ttl(case: Case) -> str | None:
    """Answers are kept and never used, unless something fails."""
    cache = case.policy.cache
    if cache is None or not cache.stale_if_error or cache.ttl >= AT_ONCE:
        return None
    return (
        f"cache.ttl={s(cache.ttl)} expires at once, so every scan calls the source, and the answers that are kept for "
        f"cache.stale_if_error={s(cache.stale_if_error)} only stand in for failures; "
        "raise cache.ttl to the seconds for which an answer is good"
    )


@_rule
def stale_ends_before_trial(case: Case) -> str | None:
    """Stale answers expire while the breaker is still open."""
    cache, breaker = case.policy.cache, case.policy.breaker
    if cache is None or breaker is None or not 0 < cache.stale_if_error < breaker.open_for:
        return None
    return (
        f"breaker.open_for={s(breaker.open_for)} outlasts cache.stale_if_error={s(cache.stale_if_error)}: in the last "
        f"{s(breaker.open_for - cache.stale_if_error)} before the first trial no stale answer stands in; "
        f"raise cache.stale_if_error to {breaker.open_for:g} or more"
    )


@_rule
def error_outlives_open(case: Case) -> str | None:
    """A remembered failure hides that the source has recovered."""
    cache, breaker = case.policy.cache, case.policy.breaker
    if cache is None or breaker is None or cache.ttl_error is None or cache.ttl_error <= breaker.open_for:
        return None
    return (
        f"cache.ttl_error={s(cache.ttl_error)} repeats a failure for {s(cache.ttl_error - breaker.open_for)} longer "
        f"than breaker.open_for={s(breaker.open_for)}, after which a trial could find the source healthy; "
        f"lower cache.ttl_error to {breaker.open_for:g} or less"
    )


@_rule
def state_without_key(case: Case) -> str | None:
    """A state like the sample has no key, so that the cache keeps nothing."""
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


# What was measured


@_rule
def timeout_far_above_p99(case: Case) -> str | None:
    """A scan that hangs holds its worker many times as long as an answer has ever needed."""
    measured, timeout, retry = case.measured, case.policy.timeout, case.retry
    if measured is None or measured.count < ENOUGH:
        return None
    attempts, waits = (1, 0.0) if retry is None or timeout.attempt else (retry.attempts, longest_waits(retry))
    p99 = max(measured.quantile(0.99), 1e-6)
    if (case.longest - waits) / attempts < FAR * max(p99, AT_ONCE / FAR):
        return None
    enough = attempts * max(AMPLE * p99, AT_ONCE) + waits
    parts = f" for {attempts} attempts and waits of up to {s(waits)}" if attempts > 1 else ""
    return (
        f"{case.longest_path}, but the p99 of {measured.count:,} attempts in {measured.days} days is {s(p99)}: one "
        f"that hangs is waited for {case.longest / p99:.0f} times as long; "
        f"lower {case.longest_path.partition('=')[0]} to {rounded_up(enough)}{parts}"
    )


@_rule
def timeout_below_p95(case: Case) -> str | None:
    """One attempt in twenty or more is cut off before it could answer."""
    measured, longest = case.measured, case.longest
    if measured is None or measured.count < ENOUGH:
        return None
    cut = measured.longer_than(longest)
    if cut <= 0.05 * measured.count:
        return None
    return (
        f"{case.longest_path} is below the p95 of {measured.count:,} attempts in {measured.days} days: {cut:,} of them "
        f"({cut / measured.count:.0%}) took as long or longer; raise {case.longest_path.partition('=')[0]}, or have "
        "the scanner ask for less at a time"
    )


# Arithmetic


def longest_waits(retry: Retry) -> float:
    """Return the longest total of a scan's waits in seconds: the sum of min(cap, base * 2**k)."""
    if retry.base == 0:
        return 0.0
    seconds, step = 0.0, retry.base
    for left in range(retry.attempts - 1, 0, -1):
        if step >= retry.cap:
            return seconds + left * retry.cap
        seconds, step = seconds + step, step * 2
    return seconds


def turns_within(rate: str, seconds: float) -> int:
    """Return how many simultaneous requests get a turn within `seconds`: `count` at the start of each window."""
    count, window = parse_rate(rate)
    return count * math.ceil(seconds / window)


def period_of(policy: Policy, interval: float) -> float:
    """Return the seconds between two executions for one state: the first run without a fresh answer executes."""
    cache = policy.cache
    if cache is None:
        return interval
    return interval * max(1, math.ceil(cache.ttl * (1 - cache.jitter) / interval))


def rounded_up(seconds: float) -> str:
    """Write seconds without a unit, rounded up to two digits after the point at most."""
    return f"{math.ceil(seconds):g}" if seconds >= 1 else f"{math.ceil(seconds * 100) / 100:g}"


def _rounded_down(seconds: float) -> str:
    return f"{math.floor(seconds * 100) / 100:g}" if seconds >= 0.01 else f"{seconds:.2g}"


def _outlasting(interval: float, jitter: float) -> str:
    """Return the ttl that outlasts the interval even if jitter shortens it as far as it can."""
    return rounded_up(interval / (1 - jitter))


def _names(kinds: Exceptions) -> str:
    return ", ".join(kind.__name__ for kind in kinds) or "nothing"
