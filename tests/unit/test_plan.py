"""What a runner is built from: every wrong argument is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    ConfigError,
    Limit,
    PluginError,
    Policy,
    Retry,
    ScanContext,
    ScanRunner,
    Timeout,
    scanner,
)
from resilient_scan.core.config import base_policy, distinct, effective, execution_table, no_scanner, one_of, whole
from resilient_scan.events import Event, RunEnded
from resilient_scan.testing import Recorder, healthy

FORMS = "memory:, sqlite:///relative.db or sqlite:////absolute.db, redis://host:port/db (or rediss://, unix://path)"


def refused(**options: Any) -> str:
    """Return the sentence with which a runner of `one` and `two` refuses its options."""
    with pytest.raises(ConfigError) as caught:
        ScanRunner([healthy("one"), healthy("two")], **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("max_workers", 0, "max_workers must be >= 1, got 0"),
        ("max_workers", -3, "max_workers must be >= 1, got -3"),
        ("max_workers", 2.0, "max_workers must be a whole number, got 2.0"),
        ("max_workers", True, "max_workers must be a whole number, got True"),
        ("max_workers", "8", "max_workers must be a whole number, got '8'"),
        ("max_workers", None, "max_workers must be a whole number, got None"),
        ("max_abandoned", -1, "max_abandoned must be >= 0, got -1"),
        ("max_abandoned", False, "max_abandoned must be a whole number, got False"),
        ("max_abandoned", math.nan, "max_abandoned must be a whole number, got nan"),
        ("concurrent", 1, "concurrent must be True or False, got 1"),
        ("concurrent", 0, "concurrent must be True or False, got 0"),
        ("concurrent", None, "concurrent must be True or False, got None"),
        ("concurrent", "true", "concurrent must be True or False, got 'true'"),
        ("order", "longest", "order must be 'longest_first' or 'given', got 'longest'"),
        ("order", None, "order must be 'longest_first' or 'given', got None"),
        ("store", "memory", f"store must be one of {FORMS}, got 'memory'"),
        ("store", "file:x", f"store must be one of {FORMS}, got 'file:x'"),
        ("store", "http://me:hunter2@host", f"store must be one of {FORMS}, got 'http://***@host'"),
        ("store", False, f"store must be a URL ({FORMS}) or an object with the methods of Store, got False"),
        ("engine", "processes", "engine must be 'threads' or 'dask', got 'processes'"),
        ("engine", None, "engine must be 'threads' or 'dask', got None"),
        ("timeout_seconds", 0, "timeout_seconds must be > 0, got 0"),
        ("timeout_seconds", -1, "timeout_seconds must be > 0, got -1"),
        ("timeout_seconds", math.nan, "timeout_seconds must be a finite number, got nan"),
        ("timeout_seconds", math.inf, "timeout_seconds must be a finite number, got inf"),
        ("timeout_seconds", True, "timeout_seconds must be a finite number, got True"),
        ("timeout_seconds", "30", "timeout_seconds must be a finite number, got '30'"),
        ("policy", 5, "policy must be a Policy, got 5"),
        ("policy", Timeout, f"policy must be a Policy, got {Timeout!r}"),
        ("policies", {"one": None}, "policies: one must be a Policy, got None"),
        ("policies", {"on": Policy()}, "policies: there is no scanner 'on'; did you mean 'one'?"),
        ("policies", {"xyz": Policy()}, "policies: there is no scanner 'xyz'; there are one, two"),
        ("settings", {"one": 5}, "settings: one must be a Mapping, got 5"),
        ("settings", {"twoo": {}}, "settings: there is no scanner 'twoo'; did you mean 'two'?"),
        ("policies", [], "policies must be a mapping from scanners' names, got []"),
        ("policies", False, "policies must be a mapping from scanners' names, got False"),
        ("settings", [], "settings must be a mapping from scanners' names, got []"),
        ("settings", "", "settings must be a mapping from scanners' names, got ''"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(option: str, value: Any, sentence: str) -> None:
    assert refused(**{option: value}) == sentence


def test_a_runner_without_scanners_can_run() -> None:
    with ScanRunner([], listeners=()) as runner:
        report = runner.run({})
    assert (report.results, report.complete) == ({}, True)


def test_two_scanners_of_one_name_are_refused() -> None:
    first, second = healthy("same"), healthy("same", pipeline="edge")
    with pytest.raises(ConfigError) as caught:
        distinct([first, second])
    assert str(caught.value) == (
        "two scanners are named 'same': <scanner same of test> and <scanner same of edge>; rename one"
    )


def test_what_is_no_scanner_is_refused() -> None:
    with pytest.raises(PluginError, match="is not a scanner: it has neither a name nor a method scan"):
        ScanRunner([healthy("one"), object()])


def test_scanners_come_in_the_given_order() -> None:
    specs = distinct(healthy(name) for name in ("c", "a", "b"))
    assert [spec.name for spec in specs] == ["c", "a", "b"]
    with ScanRunner([healthy(name) for name in ("c", "a", "b")], listeners=()) as runner:
        assert runner.names == ("c", "a", "b")
        assert list(runner.run({}).results) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("name", "names", "sentence"),
    [
        (
            "market_mover",
            ("market_movers", "gap_up"),
            "there is no scanner 'market_mover'; did you mean 'market_movers'?",
        ),
        ("xyz", ("market_movers", "gap_up"), "there is no scanner 'xyz'; there are market_movers, gap_up"),
        ("xyz", (), "there is no scanner 'xyz'; there are none"),
        (5, ("one",), "there is no scanner 5; there are one"),
    ],
)
def test_a_wrong_name_gets_the_nearest(name: object, names: tuple[str, ...], sentence: str) -> None:
    assert no_scanner(name, names) == sentence


# policies


def test_the_base_is_the_built_in_policy_unless_given() -> None:
    assert base_policy(None, None) == Policy()
    own = Policy(cache=None)
    assert base_policy(own, None) is own


def test_timeout_seconds_replaces_the_total_and_nothing_else() -> None:
    own = Policy(cache=None, timeout=Timeout(total=30, attempt=2, max_abandoned=3))
    assert base_policy(own, 5) == Policy(cache=None, timeout=Timeout(total=5, attempt=2, max_abandoned=3))


def test_timeout_seconds_has_to_fit_the_rest() -> None:
    with pytest.raises(ConfigError) as caught:
        base_policy(Policy(timeout=Timeout(total=30, attempt=20)), 10)
    assert str(caught.value) == "timeout.attempt must be <= total (10), got 20"


def test_a_policy_by_name_wins_over_the_scanners_own_and_that_over_the_base() -> None:
    specs = distinct(
        [
            healthy("base"),
            healthy("own", retry=None, breaker=Breaker(failures=9)),
            healthy("given", retry=None),
        ]
    )
    base, given = Policy(cache=Cache(ttl=5)), Policy(retry=Retry(attempts=7))
    assert effective(specs, base, {"given": given}) == {
        "base": base,
        "own": Policy(cache=Cache(ttl=5), retry=None, breaker=Breaker(failures=9)),
        "given": given,
    }


def test_numbers_of_a_provider_are_given_once() -> None:
    fleet = [healthy("one", limit=Limit("sec", concurrency=1)), healthy("two", limit=Limit("sec", concurrency=2))]
    with pytest.raises(ConfigError, match=r"provider sec has two limits: .* by one, .* by two; give the numbers once"):
        ScanRunner(fleet)


# settings and listeners


def test_settings_arrive_read_only_and_apart() -> None:
    seen: dict[str, Any] = {}

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        seen["one"] = context.settings
        return []

    @scanner(pipeline="test")
    def two(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        seen["two"] = context.settings
        return []

    given = {"one": {"token": "x"}}
    with ScanRunner([one, two], settings=given, listeners=()) as runner:
        given["one"]["token"] = "changed later"
        runner.run({})
    assert (dict(seen["one"]), dict(seen["two"])) == ({"token": "x"}, {})
    with pytest.raises(TypeError):
        seen["one"]["token"] = "spoilt"


def test_listeners_may_come_from_anywhere() -> None:
    recorder = Recorder()
    with ScanRunner([healthy("one", [Candidate("A", "one", "")])], listeners=iter([recorder])) as runner:
        runner.run({})
        runner.run({})
    assert len(recorder.events_seen) > 6


def test_each_listener_listens_once_and_those_that_are_alike_by_chance_all_do() -> None:
    first: Any = Counting()
    second: Any = Counting()
    assert first == second
    with ScanRunner([healthy("one")], listeners=[first, second, first]) as runner:
        runner.run({})
    assert first.kinds == second.kinds == ["RunEnded"]


@dataclass
class Counting:
    """A listener that is equal to others as long as it has heard the same."""

    events: ClassVar[tuple[type[Event], ...]] = (RunEnded,)
    kinds: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.kinds.append(type(event).__name__)


# configurations

TABLE = {"concurrent": False, "max_workers": 3, "timeout_seconds": 5}


@pytest.mark.parametrize(
    ("config", "table"),
    [
        ({}, {}),
        ({"scanner_execution": {}}, {}),
        ({"scanner_execution": TABLE}, TABLE),
        ({"discovery": {"scanner_execution": TABLE}}, TABLE),
        ({"discovery": {"scanners": ["x"], "scanner_execution": {"max_workers": 3}}}, {"max_workers": 3}),
        ({"discovery": {}}, {}),
        ({"discovery": "on"}, {}),
        ({"discovery": None}, {}),
        (
            {"llm": {"model": "x"}, "max_workers": "not ours", "scanner_execution": {"max_workers": 3}},
            {"max_workers": 3},
        ),
        (
            {"scanner_execution": {"max_workers": 3}, "discovery": {"scanner_execution": {"max_workers": 9}}},
            {"max_workers": 3},
        ),
    ],
)
def test_a_configuration_may_have_a_table_of_ours(config: dict[str, Any], table: dict[str, Any]) -> None:
    assert execution_table(config) == table


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"scanner_execution": {"max_worker": 3}},
            "scanner_execution: unknown key 'max_worker'; the keys are concurrent, max_workers, timeout_seconds",
        ),
        (
            {"discovery": {"scanner_execution": {"engine": "threads"}}},
            "scanner_execution: unknown key 'engine'; the keys are concurrent, max_workers, timeout_seconds",
        ),
        ({"scanner_execution": None}, "scanner_execution must be a table, got None"),
        ({"scanner_execution": [1]}, "scanner_execution must be a table, got [1]"),
        ({"scanner_execution": {"max_workers": 0}}, "max_workers must be >= 1, got 0"),
        ({"scanner_execution": {"concurrent": "yes"}}, "concurrent must be True or False, got 'yes'"),
        ({"scanner_execution": {"timeout_seconds": 0}}, "timeout_seconds must be > 0, got 0"),
        (
            {"discovery": {"scanners": {"one": {"limit": 3}}}},
            (
                "discovery.scanners.one: unknown key 'limit'; the keys are enabled and settings: what is the scanner's "
                "own goes into settings, and layers go into a settings file (load_settings)"
            ),
        ),
        (
            {"discovery": {"scanners": {"one": {"enabled": "no"}}}},
            "discovery.scanners.one.enabled must be True or False, got 'no'",
        ),
        (
            {"discovery": {"scanners": {"one": {"settings": 3}}}},
            "discovery.scanners.one.settings must be a table, got 3",
        ),
        ({"discovery": {"scanners": {"one": False}}}, "discovery.scanners: one must be a Mapping, got False"),
        (
            {"discovery": {"scanners": {"onne": {"enabled": False}}}},
            "discovery.scanners: there is no scanner 'onne'; did you mean 'one'?",
        ),
    ],
)
def test_a_wrong_table_is_refused_by_name(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScanRunner.from_config([healthy("one")], config)
    assert str(caught.value) == sentence


def test_a_runner_from_a_configuration_does_what_it_says() -> None:
    recorder = Recorder()
    fleet = [healthy("one")]
    with ScanRunner.from_config(fleet, {"scanner_execution": TABLE}, listeners=(recorder,)) as runner:
        runner.run({})
    (started,) = [event for event in recorder.events_seen if type(event).__name__ == "RunStarted"]
    assert (started.concurrent, started.max_workers) == (False, 3)


@pytest.mark.parametrize("execution", [{}, {"scanner_execution": TABLE}])
def test_a_scanner_that_the_configuration_switches_off_does_not_run(execution: dict[str, Any]) -> None:
    tables = {"two": {"enabled": False}, "one": {"enabled": True, "settings": {"depth": 3}}}
    fleet = [healthy("one"), healthy("two"), healthy("three")]
    config = {**execution, "discovery": {"scanners": tables}}
    with ScanRunner.from_config(fleet, config, settings={"one": {"width": 4}}, listeners=()) as runner:
        assert list(runner.run({}).results) == ["one", "three"]
        assert runner._runs.config.settings == {"one": {"depth": 3, "width": 4}}
    with ScanRunner.from_config(fleet, {"discovery": {"scanners": ["two"]}}, listeners=()) as runner:
        assert runner.names == ("one", "two", "three")


def test_options_win_over_the_configuration() -> None:
    recorder = Recorder()
    config = {"scanner_execution": {"max_workers": 3}}
    with ScanRunner.from_config([healthy("one")], config, max_workers=5, listeners=(recorder,)) as runner:
        runner.run({})
    (started,) = [event for event in recorder.events_seen if type(event).__name__ == "RunStarted"]
    assert started.max_workers == 5


@pytest.mark.parametrize("value", [0, 1, "a", None, True])
def test_one_of_takes_neither_an_equal_of_another_type_nor_anything_else(value: object) -> None:
    with pytest.raises(ConfigError, match="x must be False or 2, got"):
        one_of("x", value, (False, 2))
    assert one_of("x", False, (False, 2)) is False
    assert one_of("x", 2, (False, 2)) == 2


def test_whole_returns_what_it_is_given() -> None:
    assert whole("x", 5, 5) == 5
    with pytest.raises(ConfigError, match="x must be >= 5, got 4"):
        whole("x", 4, 5)


@pytest.mark.parametrize("thing", [None, 5, healthy("one")])
def test_scanners_are_a_list(thing: Any) -> None:
    with pytest.raises(ConfigError, match=r"^scanners must be a list of scanners, got "):
        ScanRunner(thing)
