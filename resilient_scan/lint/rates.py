"""The rules for a provider's rate and all the scanners that share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resilient_scan._text import exact as s
from resilient_scan.lint.rules import period_of, rounded_up, turns_within
from resilient_scan.options import Limit, Policy, parse_rate

ADVICE, WARNING, ERROR = "advice", "warning", "error"

Rated = tuple[str, str, str]
"""Code, severity, message."""


def with_numbers(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Return the policies, with the numbers of another scanner's limit in each limit that only names its provider."""
    numbers: dict[str, Limit] = {}
    for policy in policies.values():
        if policy.limit is not None and not policy.limit.is_bare:
            numbers.setdefault(policy.limit.provider, policy.limit)
    return {
        name: policy.replace({"limit": numbers.get(policy.limit.provider, policy.limit)} if policy.limit else {})
        for name, policy in policies.items()
    }


def by_provider(policies: Mapping[str, Policy]) -> Iterator[tuple[tuple[str, ...], list[Policy]]]:
    """Yield names and policies of the scanners that share a rate, provider by provider."""
    groups: dict[str, list[str]] = {}
    for name, policy in policies.items():
        if policy.limit is not None and policy.limit.rates:
            groups.setdefault(policy.limit.provider, []).append(name)
    for names in groups.values():
        yield tuple(names), [policies[name] for name in names]


def over_rate(policies: list[Policy], interval: float | None) -> Iterator[Rated]:
    """Yield what is wrong with the rates of the one provider that these policies have in common."""
    limit = policies[0].limit
    if limit is None:
        return
    for rate in limit.rates:
        yield from _in_one_run(limit.provider, rate, policies)
        if interval is not None:
            yield from _run_after_run(limit.provider, rate, policies, interval)


def _in_one_run(provider: str, rate: str, policies: list[Policy]) -> Iterator[Rated]:
    total = min(policy.timeout.total for policy in policies)
    turns, count = turns_within(rate, total), len(policies)
    if count <= turns:
        return
    cached = all(policy.cache is not None for policy in policies)
    message = (
        f"{count} scanners of {provider} start together, and its rate of {rate} has a turn for {turns} of them within "
        f"timeout.total={s(total)}: {count - turns} are rejected in a run that finds nothing in the cache; "
        "raise timeout.total, or spread them over several runs"
    )
    yield "rate-below-run", WARNING if cached else ERROR, message


def _run_after_run(provider: str, rate: str, policies: list[Policy], interval: float) -> Iterator[Rated]:
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
