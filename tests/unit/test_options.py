"""Options check themselves: every wrong value of every field, word by word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from resilient_scan import Breaker, Cache, ConfigError, Limit, Policy, Retry, RetryAfter, RunReport, ScanRunner, Timeout
from resilient_scan._dispatch import Bus
from resilient_scan.options import LAYERS, Quarantine, check_layer, parse_rate
from resilient_scan.quarantine import Gate
from resilient_scan.testing import FakeClock

NUMBER = "a finite number"
WHOLE = "a whole number"
NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, True, False, "1", "", [1], (1,), 1j, object]
NO_WHOLES: list[Any] = [math.nan, 1.0, 1.5, True, False, "1", None, [1]]
NO_TUPLES: list[Any] = ["abc", ["a"], 5, 0, True, {"a": 1}]


def wrong() -> list[tuple[type, str, Any, str, dict[str, Any]]]:
    """Return (class, field, value, what it must be, the other fields that it needs)."""
    numbers = [
        (Cache, "ttl", "> 0"),
        (Cache, "stale_if_error", ">= 0"),
        (Cache, "jitter", ">= 0"),
        (Cache, "ttl_empty", "> 0"),
        (Cache, "ttl_error", "> 0"),
        (Retry, "base", ">= 0"),
        (Retry, "cap", ">= 0"),
        (Retry, "retry_after_cap", ">= 0"),
        (Retry, "budget", "> 0"),
        (Breaker, "open_for", "> 0"),
        (Breaker, "open_cap", "> 0"),
        (Breaker, "failure_rate", "> 0"),
        (Breaker, "slow_after", "> 0"),
        (Breaker, "within", "> 0"),
        (Breaker, "slow_rate", "> 0"),
        (Timeout, "total", "> 0"),
        (Timeout, "attempt", "> 0"),
        (Quarantine, "cooloff", "> 0"),
        (Quarantine, "cooloff_cap", "> 0"),
        (Quarantine, "max_share", ">= 0"),
        (Quarantine, "lease", "> 0"),
        (Quarantine, "heartbeat", "> 0"),
    ]
    optional = {"ttl_empty", "ttl_error", "budget", "failure_rate", "slow_after", "slow_rate", "attempt", "heartbeat"}
    optional |= {"within"}
    wholes = [
        (Cache, "maxsize", 1),
        (Retry, "attempts", 1),
        (Retry, "budget_min", 0),
        (Breaker, "failures", 1),
        (Breaker, "trials", 1),
        (Breaker, "window", 1),
        (Breaker, "minimum", 1),
        (Timeout, "max_abandoned", 1),
        (Quarantine, "successes", 1),
        (Quarantine, "after_failures", 1),
    ]
    table: list[tuple[type, str, Any, str, dict[str, Any]]] = []
    for kind, field, bound in numbers:
        values = NO_NUMBERS if field in optional else [*NO_NUMBERS, None]
        table += [(kind, field, value, NUMBER, {}) for value in values]
        table += [(kind, field, value, bound, {}) for value in (-1, -0.001)]
        if bound == "> 0":
            table += [(kind, field, value, bound, {}) for value in (0, 0.0, -0.0)]
        most = "<= 1" if field in ("budget", "failure_rate", "slow_rate", "max_share") else "<= 1e+09"
        if field != "jitter":
            table += [(kind, field, value, most, {}) for value in (1e9 + 1, 2e9)]
    for kind, field, least in wholes:
        values = [value for value in NO_WHOLES if field != "after_failures" or value is not None]
        table += [(kind, field, value, WHOLE, {}) for value in values]
        table += [(kind, field, value, f">= {least}", {}) for value in (least - 1, -1, -(10**30))]
    table += [(Cache, "jitter", value, "< 1", {}) for value in (1, 1.0, 1.5)]
    table += [(Cache, "inputs", value, "a tuple of names", {}) for value in [*NO_TUPLES, ("a", 1), (None,), (b"a",)]]
    table += [(Quarantine, "critical", value, "a tuple of names", {}) for value in [*NO_TUPLES, None, ("a", 1)]]
    for kind in (Retry, Breaker):
        table += [
            (kind, "on", value, "a tuple of exception classes, or a predicate (exception) -> bool", {})
            for value in [*NO_TUPLES, None, OSError, [OSError], (OSError(),), (int,), ("OSError",), (OSError, None)]
        ]
    table += [(Breaker, "suspicious", value, "True or False", {}) for value in (None, 1, "yes")]
    table += [
        (Retry, "cap", 0.25, ">= base (0.5)", {}),
        (Retry, "cap", 0, ">= base (0.5)", {}),
        (Retry, "budget", 1.01, "<= 1", {}),
        (Breaker, "open_cap", 59.9, ">= open_for (60)", {}),
        (Breaker, "minimum", 21, "<= window (20)", {}),
        (Breaker, "minimum", 10, "<= window (5)", {"window": 5}),
        (Timeout, "attempt", 30.5, "<= total (30)", {}),
        (Timeout, "attempt", 3, "<= total (2.5)", {"total": 2.5}),
        (Quarantine, "cooloff_cap", 59.9, ">= cooloff (60)", {}),
        (Quarantine, "max_share", 1.01, "<= 1", {}),
    ]
    table += [
        (Limit, "provider", value, "a name that is not empty", {}) for value in ("", "  ", None, 5, True, b"sec", ())
    ]
    rates = 'a rate such as "60/min", or a tuple of rates'
    table += [(Limit, "rate", value, rates, {"provider": "sec"}) for value in [{"a": 1}, (5,), (None,)]]
    table += [(Limit, "concurrency", value, WHOLE, {"provider": "sec"}) for value in NO_WHOLES if value is not None]
    table += [(Limit, "concurrency", value, ">= 1", {"provider": "sec"}) for value in (0, -1)]
    table += [(Limit, "breaker", value, "a Breaker or None", {"provider": "sec"}) for value in (False, 3, {})]
    return table


@pytest.mark.parametrize(("kind", "field", "value", "must", "others"), wrong())
def test_a_wrong_value_is_refused_by_name(
    kind: type, field: str, value: Any, must: str, others: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{**others, field: value})
    assert str(caught.value) == f"{kind.__name__.lower()}.{field} must be {must}, got {value!r}"


def test_every_field_has_a_wrong_value_in_the_table() -> None:
    tested = {(kind, field) for kind, field, *_ in wrong()}
    fields = {(kind, field) for kind in (*LAYERS.values(), Quarantine) for field in kind.__struct_fields__}
    assert tested == fields


HUGE = 10**400


@pytest.mark.parametrize(
    "build",
    [
        lambda: RetryAfter(HUGE),
        lambda: Timeout(total=HUGE),
        lambda: Cache(ttl=HUGE),
        lambda: ScanRunner([], timeout_seconds=HUGE),  # type: ignore[arg-type]
        lambda: ScanRunner([], listeners=()).run({}, deadline=HUGE),
        lambda: Gate(("one",), FakeClock(), Bus([])).disable("one", "x", HUGE),
        lambda: RunReport("id", {}, 0.0, 1.0).require(HUGE),
    ],
)
def test_a_huge_number_is_a_wrong_value_like_any_other(build: Callable[[], object]) -> None:
    """math.isfinite raises OverflowError."""
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize(
    ("option", "defaults"),
    [
        (
            Cache(),
            {
                "ttl": 300,
                "stale_if_error": 0,
                "inputs": None,
                "maxsize": 1024,
                "jitter": 0.1,
                "ttl_empty": None,
                "ttl_error": None,
            },
        ),
        (
            Retry(),
            {
                "attempts": 3,
                "base": 0.5,
                "cap": 10,
                "on": (Exception,),
                "retry_after_cap": 60,
                "budget": None,
                "budget_min": 10,
            },
        ),
        (
            Breaker(),
            {
                "failures": 5,
                "open_for": 60,
                "open_cap": 3600,
                "trials": 1,
                "on": (Exception,),
                "failure_rate": None,
                "slow_after": None,
                "slow_rate": None,
                "window": 20,
                "minimum": 10,
                "within": None,
                "suspicious": False,
            },
        ),
        (Limit("sec"), {"provider": "sec", "rate": None, "concurrency": None, "breaker": msgspec.UNSET}),
        (Timeout(), {"total": 30, "attempt": None, "max_abandoned": 1}),
        (
            Quarantine(),
            {
                "cooloff": 60,
                "cooloff_cap": 3600,
                "successes": 3,
                "max_share": 0.5,
                "critical": (),
                "lease": 3600,
                "heartbeat": None,
                "after_failures": None,
            },
        ),
        (
            Policy(),
            {"cache": Cache(300), "retry": Retry(), "breaker": Breaker(), "limit": None, "timeout": Timeout(total=30)},
        ),
    ],
)
def test_defaults_are_those_of_the_documentation(option: msgspec.Struct, defaults: dict[str, Any]) -> None:
    assert msgspec.structs.asdict(option) == defaults


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        (Cache(stale_if_error=0, jitter=0), "jitter", 0),
        (Cache(inputs=()), "inputs", ()),
        (Cache(maxsize=1), "maxsize", 1),
        (Cache(jitter=0.999), "jitter", 0.999),
        (Retry(attempts=1), "attempts", 1),
        (Retry(base=0, cap=0), "cap", 0),
        (Retry(retry_after_cap=0), "retry_after_cap", 0),
        (Retry(on=()), "on", ()),
        (Retry(budget=1), "budget", 1),
        (Retry(budget_min=0), "budget_min", 0),
        (Retry(on=(KeyboardInterrupt,)), "on", (KeyboardInterrupt,)),
        (Breaker(open_for=60, open_cap=60), "open_cap", 60),
        (Breaker(slow_after=1, slow_rate=1), "slow_rate", 1),
        (Breaker(window=1, minimum=1), "minimum", 1),
        (Timeout(total=1, attempt=1), "attempt", 1),
        (Timeout(total=1e9), "total", 1e9),
        (Timeout(total=1e-9), "total", 1e-9),
        (Quarantine(cooloff=60, cooloff_cap=60), "cooloff_cap", 60),
        (Quarantine(max_share=0), "max_share", 0),
        (Quarantine(max_share=1), "max_share", 1),
        (Quarantine(successes=1, after_failures=1), "after_failures", 1),
    ],
)
def test_the_ends_of_a_range_belong_to_it_and_never_mean_default(
    option: msgspec.Struct, field: str, value: object
) -> None:
    assert getattr(option, field) == value


@pytest.mark.parametrize("one", [{"slow_after": 1.0}, {"slow_rate": 0.5}])
def test_slow_calls_need_both_numbers(one: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        Breaker(**one)  # type: ignore[arg-type]
    assert str(caught.value) == "breaker.slow_after and breaker.slow_rate go together; give both, or none"


def test_options_are_values() -> None:
    assert Retry(attempts=2) == Retry(attempts=2) != Retry(attempts=3)
    assert hash(Cache()) == hash(Cache())
    with pytest.raises(AttributeError):
        Retry().attempts = 9  # type: ignore[misc]
    with pytest.raises(ConfigError, match="got 0"):
        msgspec.structs.replace(Retry(), attempts=0)


@pytest.mark.parametrize("layer", list(LAYERS))
@pytest.mark.parametrize("value", [0, False, "", {}, 300, Policy])
def test_a_policy_takes_option_objects_only(layer: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy(**{layer: value})  # type: ignore[arg-type]
    name = LAYERS[layer].__name__
    allowed = f"a {name}" if layer == "timeout" else f"a {name} or None"
    assert str(caught.value) == f"policy: {layer} must be {allowed}, got {value!r}"


def test_a_timeout_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError) as caught:
        Policy(timeout=None)  # type: ignore[arg-type]
    assert str(caught.value) == "policy: timeout must be a Timeout, got None"


def test_an_option_of_another_layer_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        check_layer("cache", Timeout(), Cache, where="@scanner one")
    assert str(caught.value).startswith("@scanner one: cache must be a Cache or None, got Timeout(")


def test_every_layer_but_the_timeout_can_be_left_out() -> None:
    policy = Policy(cache=None, retry=None, breaker=None, limit=None)
    assert (policy.cache, policy.retry, policy.breaker, policy.limit) == (None, None, None, None)
    assert policy.timeout == Timeout()


def test_layers_are_replaced_whole() -> None:
    policy = Policy(retry=Retry(attempts=9, base=1, cap=2))
    changed = policy.replace({"retry": Retry(attempts=2), "cache": None})
    assert changed.retry == Retry(attempts=2)
    assert changed.cache is None
    assert changed.breaker == policy.breaker
    assert policy.replace({}) is policy
    with pytest.raises(ConfigError, match="policy: timeout must be a Timeout, got None"):
        policy.replace({"timeout": None})


def test_a_policy_takes_its_layers_in_their_order() -> None:
    layers = (Cache(), Retry(), Breaker(), Limit("sec"), Timeout(total=5))
    policy = Policy(*layers)
    assert (policy.cache, policy.retry, policy.breaker, policy.limit, policy.timeout) == layers


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/min", (60, 60.0)),
        ("30/s", (30, 1.0)),
        ("30/sec", (30, 1.0)),
        ("1/second", (1, 1.0)),
        ("1/seconds", (1, 1.0)),
        ("1000/10min", (1000, 600.0)),
        ("1000/10minutes", (1000, 600.0)),
        ("5/h", (5, 3600.0)),
        ("5/2hours", (5, 7200.0)),
        ("25/day", (25, 86400.0)),
        ("25/7days", (25, 604800.0)),
        ("25/d", (25, 86400.0)),
        (" 10 / 2 s ", (10, 2.0)),
    ],
)
def test_a_rate_is_requests_in_a_window(text: str, rate: tuple[int, float]) -> None:
    assert parse_rate(text) == rate
    assert Limit("sec", rate=text).rates == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "60",
        "/min",
        "0/min",
        "-1/min",
        "60/0min",
        "1.5/s",
        "60/m",
        "60/week",
        "60 per min",
        "60/min/h",
        "60/MIN",
        "a/s",
    ],
)
def test_anything_else_is_no_rate(text: str) -> None:
    sentence = f'limit.rate must be a rate such as "60/min", "30/s" or "1000/10min", got {text!r}'
    for build in (lambda: parse_rate(text), lambda: Limit("sec", rate=text), lambda: Limit("sec", rate=("1/s", text))):
        with pytest.raises(ConfigError) as caught:
            build()
        assert str(caught.value) == sentence


@pytest.mark.parametrize("text", ["5/00min", "5/00s", "60/ss", "60/ds", "60/hs", "9" * 5000 + "/s"])
def test_these_are_no_rates(text: str) -> None:
    """a window of no time at all; units with one s too many; more digits than `int` takes."""
    with pytest.raises(ConfigError):
        parse_rate(text)


@pytest.mark.parametrize("rate", [5, 60.0, ["60/min"], True])
def test_a_wrong_rate_is_told_what_a_rate_is(rate: Any) -> None:
    """ "limit.rate must be a tuple of names" is no help to who wrote 60."""
    with pytest.raises(ConfigError, match='such as "60/min"'):
        Limit("sec", rate=rate)


def test_no_rates_at_all_are_not_a_rate() -> None:
    """an empty tuple is neither bare (so two scanners quarrel about it) nor a number."""
    try:
        assert Limit("sec", rate=()).is_bare
    except ConfigError:
        return


def test_a_limit_may_have_several_rates_or_none() -> None:
    assert Limit("sec").rates == ()
    assert Limit("sec", rate=("60/min", "30/s")).rates == ("60/min", "30/s")


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        (("10/s", "5/min"), "limit.rate: 10/s never matters next to 5/min; leave it out, or correct it"),
        (("10/h", "10/min"), "limit.rate: 10/min never matters next to 10/h; leave it out, or correct it"),
        (("100/min", "1/s"), "limit.rate: 100/min never matters next to 1/s; leave it out, or correct it"),
        (("60/min", "59/60s"), "limit.rate has two numbers for one window, 59/60s and 60/min; keep one of them"),
    ],
)
def test_rates_of_which_one_never_matters_are_refused(rates: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limit("sec", rate=rates)
    assert str(caught.value) == sentence


def test_rates_of_one_density_go_together() -> None:
    assert Limit("sec", rate=("60/min", "1/s", "20/20s")).rates == ("60/min", "1/s", "20/20s")


def test_a_limit_that_only_names_a_provider_is_bare() -> None:
    assert Limit("sec").is_bare
    assert not Limit("sec", rate="1/s").is_bare
    assert not Limit("sec", concurrency=1).is_bare
