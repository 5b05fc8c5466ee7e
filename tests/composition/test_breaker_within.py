"""Attempts that count for a time only, answers that are suspicious, and failures that a predicate sorts."""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    ConfigError,
    Limit,
    PermanentError,
    Policy,
    Rejected,
    Retry,
    ScanContext,
    Status,
    Timeout,
    load_settings,
    scanner,
)
from resilient_scan.errors import is_listed
from resilient_scan.testing import FakeClock, hanging
from tests.support import breakers
from tests.support.breakers import OPENED, fail, record, succeed
from tests.support.fixtures import Bare, Fleet

HOUR = 3600.0


class StatusError(Exception):
    """What an HTTP client raises for every status: one class, two meanings."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def is_transient(error: BaseException) -> bool:
    """Say what `retry.on` and `breaker.on` name in the settings of a test."""
    return isinstance(error, StatusError) and error.status == 503


async def is_async(_error: BaseException) -> bool:
    return True


def asked(steps: list[Any], calls: list[int]) -> Any:
    @scanner(name="one", pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        step = steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return list(step)

    return one


# within


def spread(options: Breaker, seconds: float, times: int = 6) -> str:
    """Return the state after half as many failures, a success before each, spread evenly over a time."""
    fleet = breakers.Fleet()
    breaker = fleet.breaker(**{field: getattr(options, field) for field in options.__struct_fields__})
    for turn in range(times):
        (fail if turn % 2 else succeed)(breaker)
        fleet.clock.advance(seconds / times)
    return breaker.state


HALF = {"failures": 100, "failure_rate": 0.5, "window": 20, "minimum": 6}


@pytest.mark.parametrize(("seconds", "state"), [(60.0, "open"), (6 * HOUR, "closed")])
def test_rates_look_back_within_a_time_only(seconds: float, state: str) -> None:
    assert spread(Breaker(**HALF, within=600), seconds) == state  # type: ignore[arg-type]
    assert spread(Breaker(**HALF), seconds) == "open"  # type: ignore[arg-type] - what happens without it


def test_failures_in_a_row_look_back_within_a_time_only() -> None:
    fleet = breakers.Fleet(failures=3, within=600)
    breaker = fleet.breaker()
    for _ in range(6):  # over six hours
        assert fail(breaker) is None
        fleet.clock.advance(HOUR)
    assert breaker.failures == 0  # the last one is an hour old
    fail(breaker)
    fleet.clock.advance(300)
    fail(breaker)
    assert breaker.failures == 2
    fleet.clock.advance(300)
    assert fail(breaker) == OPENED  # the first one is exactly 600 s old, and no older


def test_a_success_that_ends_nothing_that_counts_costs_no_exchange() -> None:
    fleet = breakers.Fleet(failures=2, within=600)
    breaker = fleet.breaker()
    fail(breaker)
    fleet.clock.advance(601)
    updates = fleet.store.updates
    assert succeed(breaker) is None
    assert breaker.flush() is None
    assert fleet.store.updates == updates


def test_a_success_ends_the_row_as_ever() -> None:
    breaker = breakers.Fleet(failures=2, within=600).breaker()
    fail(breaker)
    succeed(breaker)
    assert fail(breaker) is None
    assert breaker.failures == 1


def test_the_age_survives_a_restart() -> None:
    fleet = breakers.Fleet(failures=3, failure_rate=0.9, window=10, minimum=10, within=600)
    for _ in range(2):
        fail(fleet.breaker())
    fleet.clock.advance(599)
    assert fleet.breaker().failures == 2
    assert fleet.breaker().window_counts() == (2, 2, 0)
    fleet.clock.advance(2)
    assert fleet.breaker().failures == 0
    assert fleet.breaker().window_counts() == (0, 0, 0)
    assert fail(fleet.breaker()) is None
    assert (record(fleet).failures, len(record(fleet).window)) == (1, 1)


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_opens_nothing_and_blocks_nothing(jump: float) -> None:
    fleet = breakers.Fleet(failures=2, failure_rate=1.0, window=2, minimum=2, within=600)
    fail(fleet.breaker())
    fleet.clock.jumped += jump
    breaker = fleet.breaker()
    known = 1 if jump < 0 else 0
    assert (breaker.failures, breaker.window_counts()) == (known, (known, known, 0))
    fleet.clock.advance(601)
    assert (breaker.failures, breaker.window_counts()) == (0, (0, 0, 0))
    assert fail(breaker) is None  # what lay in the future has become as old as what was cast at the jump
    assert fail(breaker) == OPENED


def test_a_vote_that_comes_late_counts_at_its_own_time() -> None:
    fleet = breakers.Fleet(failures=2, within=600)
    late, other = fleet.breaker(), fleet.breaker()
    fleet.store.away = breakers.StoreError("down")
    fail(late)
    fleet.store.away = None
    fleet.clock.advance(HOUR)
    fail(other)
    assert late.flush() is None  # an hour old: neither does it count, nor does it end the row
    assert other.failures == record(fleet).failures == 1
    assert fail(other) == OPENED


@pytest.mark.parametrize("before", [{}, {"within": 600}])
def test_failures_of_unknown_age_are_forgotten_where_age_matters(before: dict[str, Any]) -> None:
    options = {"failures": 3, "failure_rate": 0.9, "window": 10, "minimum": 10}
    fleet = breakers.Fleet(**options)
    for _ in range(2):
        fail(fleet.breaker(**before))
    known = 2 if before else 0
    assert fleet.breaker(within=600).failures == known
    assert fleet.breaker(within=600).window_counts() == (known, known, 0)
    assert fleet.breaker().failures == 2  # without `within`, age is no matter


@pytest.mark.parametrize(("apart", "opens"), [(1.0, True), (HOUR, False)])
def test_a_provider_is_down_only_if_its_scanners_fail_together(apart: float, opens: bool, fleet: Fleet) -> None:
    def dead(name: str) -> Any:
        @scanner(name=name, pipeline="test")
        def one(_state: dict[str, Any]) -> list[Any]:
            raise ConnectionError("refused")

        return one

    clock = FakeClock(auto=True)
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=3, within=600), limit=Limit("acme"))
    runner = fleet(dead("one"), dead("two"), policy=policy, clock=clock, concurrent=False)
    runner.run({}, only=["one"])
    clock.advance(apart)
    for _ in range(3):  # alone, and often enough
        runner.run({}, only=["two"])
    (provider,) = runner.providers()
    assert (provider.state == "open") is opens


# suspicious


def test_a_suspicious_answer_is_a_failure_where_it_is_said(fleet: Fleet, bare: Bare) -> None:
    calls: list[int] = []
    clock = FakeClock()
    one = scanner(name="one", pipeline="test", empty_ok=False)(lambda _state: calls.append(1) or [])
    policy = bare(breaker=Breaker(failures=2, suspicious=True, open_for=60))
    runner = fleet(one, policy=policy, clock=clock)
    ended = [runner.run({}).results["one"] for _ in range(3)]
    assert [result.status for result in ended] == [Status.COMPLETED, Status.COMPLETED, Status.REJECTED]
    assert all(result.suspicious for result in ended[:2])
    assert len(calls) == 2
    (reason,) = runner.explain("one").verdict.reasons
    assert "the last one with a suspicious answer: empty: the scanner says" in reason.why
    clock.advance(60)
    assert runner.run({}).results["one"].status is Status.COMPLETED  # a trial, which fails
    assert runner.run({}).results["one"].status is Status.REJECTED


def test_elsewhere_it_is_a_success(fleet: Fleet, bare: Bare) -> None:
    one = scanner(name="one", pipeline="test", empty_ok=False)(lambda _state: [])
    runner = fleet(one, policy=bare(breaker=Breaker(failures=2)))
    assert {runner.run({}).results["one"].status for _ in range(4)} == {Status.COMPLETED}


def test_a_doubt_of_the_scanners_own_counts(fleet: Fleet, bare: Bare) -> None:
    @scanner(name="one", pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.doubt("yesterday's page")
        return []

    runner = fleet(one, policy=bare(breaker=Breaker(failures=1, suspicious=True)))
    assert [runner.run({}).results["one"].status for _ in range(2)] == [Status.COMPLETED, Status.REJECTED]


def test_what_is_learned_of_answers_is_learned_once(fleet: Fleet, bare: Bare) -> None:
    """Ten answers are enough to doubt the next empty one; were each counted twice, five would be."""
    calls: list[int] = []
    steps: list[Any] = [[{"ticker": "A"}]] * 9 + [[]] + [[{"ticker": "A"}]] + [[]]
    runner = fleet(asked(steps, calls), policy=bare(breaker=Breaker(failures=1, suspicious=True)))
    ended = [runner.run({}).results["one"].suspicious for _ in range(12)]
    assert [bool(doubt) for doubt in ended] == [False] * 11 + [True]


# a predicate


@pytest.mark.parametrize(("status", "calls", "state"), [(503, 2, "open"), (404, 3, "closed")])
def test_a_breaker_can_tell_two_meanings_of_one_class(
    status: int, calls: int, state: str, fleet: Fleet, bare: Bare
) -> None:
    made: list[int] = []
    one = asked([StatusError(status)] * 3, made)
    runner = fleet(one, policy=bare(breaker=Breaker(failures=2, on=is_transient)))
    for _ in range(3):
        runner.run({})
    assert (len(made), runner.breaker("one")) == (calls, state)


@pytest.mark.parametrize(("status", "calls"), [(503, 3), (404, 1)])
def test_a_retry_can_tell_them_too(status: int, calls: int, fleet: Fleet, bare: Bare) -> None:
    made: list[int] = []
    retry = Retry(attempts=3, base=0, cap=0, on=is_transient)
    fleet(asked([StatusError(status)] * 3, made), policy=bare(retry=retry)).run({})
    assert len(made) == calls


@pytest.mark.parametrize("error", [PermanentError("bad key"), Rejected("no thread")])
def test_a_predicate_is_not_asked_about_what_never_counts(error: Exception) -> None:
    assert not is_listed(error, lambda _error: True)
    assert is_listed(ExceptionGroup("tasks", [error, ValueError("x")]), lambda _error: True)


def test_a_predicate_sees_the_leaves_of_a_group(fleet: Fleet, bare: Bare) -> None:
    seen: list[BaseException] = []

    def note(error: BaseException) -> bool:
        seen.append(error)
        return False

    group = ExceptionGroup("tasks", [ValueError("a"), ExceptionGroup("inner", [StatusError(404)])])
    result = fleet(asked([group], []), policy=bare(retry=Retry(on=note))).run({}).results["one"]
    assert [type(error) for error in seen] == [ValueError, StatusError]
    assert result.status is Status.ERROR


@pytest.mark.parametrize("raised", [AttributeError("'StatusError' object has no attribute 'response'"), SystemExit(1)])
def test_a_predicate_that_raises_loses_no_result_and_means_yes(
    raised: BaseException, fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    def stumbles(_error: BaseException) -> bool:
        raise raised

    stumbles.__qualname__ = f"stumbles_over_{type(raised).__name__}"  # it warns once for each name
    made: list[int] = []
    policy = bare(retry=Retry(attempts=2, base=0, cap=0, on=stumbles), breaker=Breaker(failures=3, on=stumbles))
    runner = fleet(asked([StatusError(404)] * 4, made), policy=policy)
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        results = [runner.run({}).results["one"] for _ in range(3)]
    assert [result.status for result in results] == [Status.ERROR, Status.ERROR, Status.REJECTED]
    assert [result.error.message for result in results[:2] if result.error] == ["HTTP 404"] * 2
    assert len(made) == 3
    assert runner.breaker("one") == "open"
    (warned,) = [entry.getMessage() for entry in caplog.records if "predicate" in entry.getMessage()]
    asked_about = f"the predicate {__name__}.{stumbles.__qualname__}, asked about StatusError"
    assert warned == f"{asked_about}, raised {type(raised).__name__}: that counts as yes"


def test_the_watchdog_asks_no_predicate(fleet: Fleet, bare: Bare) -> None:
    """A predicate that hangs would hold up every deadline. Case: an attempt hangs, and the retry has to decide."""
    threads: list[str] = []

    def note(_error: BaseException) -> bool:
        threads.append(threading.current_thread().name)
        return False

    policy = bare(retry=Retry(attempts=3, base=0, cap=0, on=note), timeout=Timeout(5, attempt=0.05, max_abandoned=2))
    release = threading.Event()
    result = fleet(hanging("one", release), policy=policy).run({}).results["one"]
    release.set()
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
    assert result.error is not None
    assert "attempt 1: timeout after 0.05s" in result.error.message
    assert len(threads) == 1
    assert "watchdog" not in threads[0]


def test_options_show_a_predicate_by_its_name(fleet: Fleet, bare: Bare) -> None:
    named = f"{__name__}.is_transient"
    assert f"on={named}, " in repr(Retry(on=is_transient))
    assert f"on={named}, " in repr(Breaker(on=functools.partial(is_transient)))
    assert "0x" not in repr(Breaker(on=lambda _error: True))
    assert Retry(on=is_transient) == Retry(on=is_transient)
    runner = fleet(asked([], []), policy=bare(retry=Retry(on=is_transient)))
    values = {number.option: number.value for layer in runner.explain("one").layers for number in layer.numbers}
    assert values["retry.on"] == f"{named}()"


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, _error: BaseException) -> bool:
        return True


@pytest.mark.parametrize(
    ("wrong", "must"),
    [
        (is_async, "a predicate that is not async"),
        (ValueError, "a tuple of exception classes, or a predicate (exception) -> bool"),
        (Unhashable(), "a predicate that can be hashed, as every option can"),
    ],
)
def test_what_is_no_predicate(wrong: Any, must: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Retry(on=wrong)
    assert str(caught.value).startswith(f"retry.on must be {must}, got ")


# in settings

SETTINGS = """
[defaults]
retry = {{ attempts = 2, base = 0, on = {on} }}
breaker = {{ within = "10m", suspicious = true }}
"""


def read(tmp_path: Path, on: str, environ: dict[str, str] | None = None) -> Any:
    path = tmp_path / "scan.toml"
    path.write_text(SETTINGS.format(on=on))
    return load_settings(str(path), environ=environ or {})


def test_settings_name_a_predicate_by_its_path(tmp_path: Path) -> None:
    one = asked([], [])
    policy = read(tmp_path, f'"{__name__}.is_transient"').effective([one])["one"].policy
    assert policy.retry.on is is_transient
    assert (policy.breaker.within, policy.breaker.suspicious) == (600.0, True)
    variable = {"RESILIENT_SCAN__DEFAULTS__RETRY__ON": f"{__name__}.is_transient"}
    assert read(tmp_path, '["ValueError"]', variable).effective([one])["one"].policy.retry.on is is_transient


@pytest.mark.parametrize(
    ("on", "sentence"),
    [
        ('"ValueError"', """'ValueError' is not a predicate; write ["ValueError"]"""),
        (f'"{__name__}.HOUR"', f"'{__name__}.HOUR' is not a predicate"),
        (f'"{__name__}.is_async"', f"'{__name__}.is_async' is async; a predicate must not be"),
        (f'["ValueError", "{__name__}.is_transient"]', f"'{__name__}.is_transient' is not an exception class"),
        (
            "7",
            'must be a list of exceptions such as ["ValueError", "httpx.TransportError"], or the name of a predicate',
        ),
    ],
)
def test_what_settings_cannot_name(on: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, on)
    assert sentence in str(caught.value)
