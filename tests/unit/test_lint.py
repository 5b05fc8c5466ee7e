"""What the linter says: each rule at its limit, with the arithmetic; and nothing about sensible settings."""

import pytest

from resilient_scan import Breaker, Cache, Limit, Policy, Retry, ScanTimeout, Timeout
from resilient_scan.lint import ADVICE, ADVISING, ERROR, RULES, WARNING, Finding, lint, lint_fleet, sentences
from resilient_scan.stores.columns import Measured

SENSIBLE = [
    Policy(),
    Policy(cache=None, retry=None, breaker=None),
    Policy(timeout=Timeout(total=60, attempt=15, max_abandoned=3)),
    Policy(cache=Cache(ttl=900, stale_if_error=86_400), limit=Limit("finnhub", rate=("60/min", "30/s"))),
    Policy(cache=Cache(ttl=5, stale_if_error=3600), timeout=Timeout(total=5), breaker=Breaker(open_for=10)),
    Policy(retry=Retry(attempts=1), breaker=Breaker(failures=1)),
    Policy(retry=Retry(attempts=5, base=0.2, cap=5, budget=0.2), breaker=Breaker(failures=5)),
    Policy(retry=Retry(on=(ConnectionError,)), breaker=Breaker(on=(OSError,))),
    Policy(breaker=Breaker(failure_rate=0.5, slow_after=10, slow_rate=0.5)),
    Policy(breaker=Breaker(within=600)),
    Policy(breaker=Breaker(failure_rate=0.5, within=60)),
    Policy(cache=Cache(ttl=300, ttl_empty=60, ttl_error=30)),
]


@pytest.mark.parametrize("policy", SENSIBLE)
def test_nothing_is_said_about_sensible_settings(policy):
    assert lint("movers", policy) == ()
    assert lint("movers", policy, interval=120, deadline=120, state={"trade_date": "2026-11-24"}) == ()


def case(policy, known, message):
    return policy, known, message


CASES = {
    "attempts-do-not-fit": case(
        Policy(retry=Retry(attempts=3), timeout=Timeout(total=30, attempt=15, max_abandoned=3)),
        {},
        "retry.attempts=3 x timeout.attempt=15s + waits of up to 1.5s = 46.5s, more than timeout.total=30s: "
        "the last attempts are cut short or never made; raise timeout.total to 46.5 or lower timeout.attempt to 9.5",
    ),
    "waits-do-not-fit": case(
        Policy(retry=Retry(attempts=10, base=1, cap=10), breaker=Breaker(failures=20)),
        {},
        "the waits between retry.attempts=10 attempts (retry.base=1s, doubled up to retry.cap=10s) add up to 65s, on "
        "average to 32.5s, more than timeout.total=30s: the last attempts are never made; "
        "lower retry.cap or retry.attempts, or raise timeout.total",
    ),
    "attempts-over-abandoned": case(
        Policy(retry=Retry(attempts=3), timeout=Timeout(total=30, attempt=5)),
        {},
        "each attempt that hangs for timeout.attempt=5s leaves an abandoned thread, and timeout.max_abandoned=1 of "
        "them may exist at a time: of retry.attempts=3 such attempts only 1 would be made; "
        "raise timeout.max_abandoned to 3",
    ),
    "rate-below-attempts": case(
        Policy(limit=Limit("sec", rate="1/min")),
        {},
        "limit.rate=1/min gives one scan 1 of its retry.attempts=3 attempts within timeout.total=30s: the others "
        "wait for a turn that does not come; lower retry.attempts or raise timeout.total",
    ),
    "budget-without-retry": case(
        Policy(retry=Retry(attempts=1, budget=0.2)),
        {},
        "retry.attempts=1 makes 0 retries, so retry.budget=0.2 has nothing to limit; "
        "raise retry.attempts or leave retry.budget out",
    ),
    "retry-after-over-total": case(
        Policy(retry=Retry(retry_after_cap=120)),
        {},
        "retry.retry_after_cap=120s never shortens a wait, because one that does not fit into timeout.total=30s is "
        "never started; lower retry.retry_after_cap below 30, or raise timeout.total",
    ),
    "retried-not-counted": case(
        Policy(breaker=Breaker(on=(OSError,))),
        {},
        "retry.on repeats Exception and breaker.on counts OSError only: a source that fails otherwise is called "
        "retry.attempts=3 times in every scan forever, and its breaker never opens; "
        "widen breaker.on to (Exception) or narrow retry.on to (OSError)",
    ),
    "attempts-over-failures": case(
        Policy(breaker=Breaker(failures=2)),
        {},
        "breaker.failures=2 opens the breaker in the middle of a scan: of retry.attempts=3 attempts that fail only 2 "
        "would be made; raise breaker.failures to 3 or more, or lower retry.attempts",
    ),
    "one-scan-opens": case(
        Policy(breaker=Breaker(failures=3)),
        {"interval": 10},
        "one scan of retry.attempts=3 failures opens the breaker (breaker.failures=3) for breaker.open_for=60s, and "
        "with a run every 10s that refuses the next 5; raise breaker.failures above 3",
    ),
    "trial-outlives-permit": case(
        Policy(breaker=Breaker(open_for=10)),
        {},
        "a trial may take timeout.total=30s, but its permit expires after breaker.open_for=10s: a source that is slow "
        "to come back gets up to 3 calls at a time instead of breaker.trials=1; raise breaker.open_for to 30 or more",
    ),
    "within-below-attempt": case(
        Policy(breaker=Breaker(within=119)),
        {},
        "breaker.failures=5 attempts that hang for timeout.total=30s each, one after another, end over 120s, and only "
        "those of the last breaker.within=119s count: a source that hangs never opens the breaker; "
        "raise breaker.within to 120, or lower timeout.total",
    ),
    "within-below-schedule": case(
        Policy(cache=None, breaker=Breaker(within=299)),
        {"interval": 300},
        "breaker.within=299s sees at most 3 attempts, with a run every 300s of retry.attempts=3: breaker.failures=5 in "
        "a row are never reached; raise breaker.within to 300, or lower breaker.failures",
    ),
    "slow-after-timeout": case(
        Policy(breaker=Breaker(slow_after=30, slow_rate=0.5)),
        {},
        "no attempt can succeed after breaker.slow_after=30s, because timeout.total=30s ends it before: "
        "breaker.slow_rate never opens the breaker; lower breaker.slow_after below 30",
    ),
    "deadline-hides-timeout": case(
        Policy(cache=None),
        {"deadline": 20},
        "a run's deadline of 20s comes before timeout.total=30s, and a scan that is cut by its run has no vote: the "
        "breaker never hears of a source that hangs; lower timeout.total below 20",
    ),
    "window-never-full": case(
        Policy(cache=None, breaker=Breaker(failure_rate=0.5, minimum=10)),
        {"interval": 86_400 / 4},
        "breaker.minimum=10 attempts, one every 21600s, take 60 hours, and before that no rate opens the breaker; "
        "lower breaker.minimum to 4 or less, or rely on breaker.failures alone",
    ),
    "ttl-below-interval": case(
        Policy(cache=Cache(ttl=60)),
        {"interval": 300},
        "cache.ttl=60s has expired when the next run comes after 300s: no run finds an answer in the cache; "
        "raise cache.ttl above 334, or leave the cache out",
    ),
    "jitter-below-interval": case(
        Policy(cache=Cache(ttl=300)),
        {"interval": 300},
        "cache.ttl=300s less a cache.jitter of up to 10% is 270s, shorter than the 300s between runs: some answers "
        "have expired when the next run comes; raise cache.ttl above 334",
    ),
    "stale-without-ttl": case(
        Policy(cache=Cache(ttl=0.001, stale_if_error=3600)),
        {},
        "cache.ttl=0.001s expires at once, so every scan calls the source, and the answers that are kept for "
        "cache.stale_if_error=3600s only stand in for failures; "
        "raise cache.ttl to the seconds for which an answer is good",
    ),
    "stale-ends-before-trial": case(
        Policy(cache=Cache(stale_if_error=20)),
        {},
        "breaker.open_for=60s outlasts cache.stale_if_error=20s: in the last 40s before the first trial no stale "
        "answer stands in; raise cache.stale_if_error to 60 or more",
    ),
    "error-outlives-open": case(
        Policy(cache=Cache(ttl_error=90)),
        {},
        "cache.ttl_error=90s repeats a failure for 30s longer than breaker.open_for=60s, after which a trial could "
        "find the source healthy; lower cache.ttl_error to 60 or less",
    ),
    "state-without-key": case(
        Policy(),
        {"state": {"trade_date": "2026-11-24", "client": object(), "tool_logs": [object()]}},
        "1 of the 2 values of the state that make the cache's key have no stable form, 'client' (object): nothing is "
        "ever kept; name those that the scanner reads, such as cache.inputs=('trade_date',), or leave the cache out",
    ),
}

CASES |= {
    "timeout-far-above-p99": case(
        Policy(retry=None, timeout=Timeout(total=10)),
        {"measured": {"movers": Measured(30, (*[0.2] * 1970, *[0.4] * 30), ())}},
        "timeout.total=10s, but the p99 of 2,000 attempts in 30 days is 0.4s: one that hangs is waited for 25 times as "
        "long; lower timeout.total to 2",
    ),
    "timeout-below-p95": case(
        Policy(timeout=Timeout(total=5)),
        {"measured": {"movers": Measured(30, tuple([3.0] * 188), tuple([5.0] * 12))}},
        "timeout.total=5s is below the p95 of 200 attempts in 30 days: 12 of them (6%) took as long or longer; "
        "raise timeout.total, or have the scanner ask for less at a time",
    ),
}


def test_every_rule_has_a_case():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("code", CASES)
def test_a_rule_gives_the_arithmetic_and_the_fix(code):
    policy, known, message = CASES[code]
    severity = ADVICE if code in ADVISING else WARNING
    assert lint_fleet({"movers": policy}, **known) == (Finding("movers", code, severity, message),)


def codes(policy, **known):
    return [finding.code for finding in lint("movers", policy, **known)]


def test_a_rule_is_silent_at_its_limit():
    fits = Policy(timeout=Timeout(total=31.5, attempt=10, max_abandoned=3))
    assert codes(fits) == []
    assert codes(Policy(breaker=Breaker(failures=3))) == []
    assert codes(Policy(breaker=Breaker(failures=3)), interval=60) == []
    assert codes(Policy(breaker=Breaker(open_for=30))) == []
    assert codes(Policy(cache=Cache(stale_if_error=60))) == []
    assert codes(Policy(cache=Cache(ttl_error=60))) == []
    assert codes(Policy(cache=Cache(ttl=334)), interval=300) == []
    assert codes(Policy(limit=Limit("sec", rate="1/10s"))) == []
    assert codes(Policy(retry=Retry(retry_after_cap=30))) == []


def test_an_attempt_of_its_own_time_is_what_a_trial_takes():
    policy = Policy(breaker=Breaker(open_for=10), timeout=Timeout(total=60, attempt=10, max_abandoned=3))
    assert codes(policy) == []


def test_attempts_whose_waits_alone_are_too_long_need_fewer_attempts():
    policy = Policy(retry=Retry(attempts=3, base=20, cap=20), timeout=Timeout(total=30, attempt=5, max_abandoned=3))
    (finding,) = lint("movers", policy)
    assert finding.message.endswith("raise timeout.total to 55 or lower retry.attempts")


def test_a_first_wait_longer_than_the_scan():
    (finding,) = lint("movers", Policy(retry=Retry(attempts=2, base=40, cap=40)))
    assert "only 75% of such waits fit into timeout.total=30s" in finding.message


def test_many_attempts_are_added_up_at_once():
    (finding,) = lint("movers", Policy(retry=Retry(attempts=10**9), breaker=None))
    assert finding.code == "waits-do-not-fit"
    assert codes(Policy(retry=Retry(attempts=10**9, base=0), breaker=None)) == []


def test_failures_that_always_count_may_be_retried():
    assert codes(Policy(retry=Retry(on=(ScanTimeout, OSError)), breaker=Breaker(on=(OSError,)))) == []


def test_a_cache_that_only_replaces_failures_is_fine():
    assert codes(Policy(cache=Cache(ttl=60, stale_if_error=3600)), interval=300) == []
    (finding,) = lint("movers", Policy(cache=Cache(ttl=60, stale_if_error=120)), interval=300)
    assert finding.message.startswith("cache.ttl=60s + cache.stale_if_error=120s has expired")


def test_named_inputs_need_a_key_too():
    state = {"trade_date": "2026-11-24", "client": object()}
    assert codes(Policy(cache=Cache(inputs=("trade_date",))), state=state) == []
    assert codes(Policy(cache=Cache(inputs=("client",))), state=state) == ["state-without-key"]
    assert codes(Policy(cache=None), state=state) == []


# Rates


def finnhub(count, **layers):
    shared = Policy(**{"cache": None, **layers}, limit=Limit("finnhub"))
    first = shared.replace({"limit": Limit("finnhub", rate="60/min")})
    return {f"scanner_{number}": first if number == 0 else shared for number in range(count)}


def test_a_rate_that_serves_first_attempts_but_not_retries():
    (finding,) = lint_fleet(finnhub(4), interval=5)
    assert finding == Finding(
        "",
        "rate-below-schedule",
        WARNING,
        "4 scanners of finnhub ask up to 12 times every 5s, 144/min; its rate is 60/min: retries wait for turns that "
        "do not come; run every 12s or slower, raise cache.ttl, or lower retry.attempts",
        ("scanner_0", "scanner_1", "scanner_2", "scanner_3"),
    )
    assert str(finding) == finding.message
    assert finding.concerns("scanner_3")
    assert not finding.concerns("scanner_4")


def test_a_rate_that_serves_not_even_first_attempts_is_an_error():
    (finding,) = lint_fleet(finnhub(6), interval=5)
    assert finding.severity == ERROR
    assert finding.message.startswith(
        "6 scanners of finnhub ask up to 18 times every 5s, 216/min; its rate is 60/min: even first attempts wait"
    )


def test_a_rate_that_serves_the_schedule_is_fine():
    assert lint_fleet(finnhub(4), interval=12) == ()
    assert lint_fleet(finnhub(4)) == ()


def test_what_the_cache_answers_is_not_counted():
    assert lint_fleet(finnhub(6, cache=Cache(ttl=60, jitter=0)), interval=5) == ()


def test_scanners_of_different_periods_are_added_up():
    fleet = finnhub(4)
    fleet["scanner_0"] = fleet["scanner_0"].replace({"cache": Cache(ttl=60, jitter=0), "retry": None})
    (finding,) = lint_fleet(fleet, interval=5)
    assert finding.message.startswith("4 scanners of finnhub ask up to 109/min; its rate is 60/min: retries wait")


def test_one_scanner_alone_can_ask_too_much():
    policy = Policy(cache=None, limit=Limit("sec", rate="10/min"))
    (finding,) = lint("insider_buying", policy, interval=5)
    assert str(finding).startswith("insider_buying: it asks sec up to 3 times every 5s, 36/min; its rate is 10/min")
    assert finding.severity == ERROR


def test_more_scanners_than_turns_in_one_run():
    policy = Policy(retry=None, limit=Limit("sec", rate="2/min"))
    fleet = {f"scanner_{number}": policy for number in range(3)}
    (finding,) = lint_fleet(fleet)
    assert (finding.code, finding.severity) == ("rate-below-run", WARNING)
    assert finding.message.startswith(
        "3 scanners of sec start together, and its rate of 2/min has a turn for 2 of them within timeout.total=30s: "
        "1 are rejected"
    )
    (finding,) = lint_fleet({name: each.replace({"cache": None}) for name, each in fleet.items()})
    assert finding.severity == ERROR


# Text


def test_the_same_sentence_about_many_scanners_is_one_line():
    fleet = dict.fromkeys(["a", "b", "c", "d", "e"], Policy(retry=Retry(attempts=1, budget=0.2)))
    fleet["f"] = Policy(breaker=Breaker(failures=2))
    budget, failures = sentences(lint_fleet(fleet))
    assert budget.startswith("a, b, c and 2 more: retry.attempts=1 makes 0 retries")
    assert failures.startswith("f: breaker.failures=2")


def test_a_sentence_about_a_provider_stands_alone():
    (line,) = sentences(lint_fleet(finnhub(6), interval=5))
    assert line.startswith("6 scanners of finnhub ask")


# what was measured


def measured_codes(policy, spans, cut=()):
    measured = Measured(30, tuple(sorted(spans)), tuple(sorted(cut)))
    return [finding.code for finding in lint_fleet({"a": policy}, measured={"a": measured})]


def test_a_timeout_is_far_above_what_was_measured_from_ten_times_the_p99_on():
    policy = Policy(retry=None, timeout=Timeout(total=10))
    assert measured_codes(policy, [1.0] * 200) == ["timeout-far-above-p99"]
    assert measured_codes(policy, [1.01] * 200) == []
    assert measured_codes(policy, [0.001] * 199) == [], "too few"
    assert measured_codes(policy, [0.001] * 200, [10.0] * 3) == [], "nobody knows how long one in a hundred would take"
    assert measured_codes(Policy(retry=None, timeout=Timeout(total=0.9)), [0.0] * 200) == [], "short enough anyway"


def test_a_total_has_room_for_all_attempts_and_their_waits():
    measured = {"a": Measured(30, tuple([0.5] * 200), ())}
    assert lint_fleet({"a": Policy(timeout=Timeout(total=16.4))}, measured=measured) == ()
    (finding,) = lint_fleet({"a": Policy(timeout=Timeout(total=16.5))}, measured=measured)
    assert finding.message.endswith("lower timeout.total to 8 for 3 attempts and waits of up to 1.5s")
    attempt = Policy(timeout=Timeout(total=30, attempt=5, max_abandoned=3))
    (finding,) = lint_fleet({"a": attempt}, measured=measured)
    assert finding.message.endswith("lower timeout.attempt to 2")


def test_a_timeout_is_too_short_where_more_than_one_attempt_in_twenty_is_cut_off():
    policy = Policy(timeout=Timeout(total=5))
    assert measured_codes(policy, [3.0] * 190, [5.0] * 10) == []
    assert measured_codes(policy, [3.0] * 188, [5.0] * 11) == [], "too few"
    assert measured_codes(policy, [3.0] * 150, [4.0] * 50) == [], "cut off by a timeout that was shorter then"
    assert measured_codes(policy, [3.0] * 150 + [6.0] * 50) == ["timeout-below-p95"], "by one that was longer"


def test_what_was_measured_of_one_scanner_says_nothing_about_another():
    policies = dict.fromkeys(("a", "b"), Policy(retry=None))
    (finding,) = lint_fleet(policies, measured={"a": Measured(30, tuple([0.1] * 200), ())})
    assert finding.scanner == "a"
