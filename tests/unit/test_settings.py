"""Settings: which source wins, where each number came from, and that all errors come at once, with their places."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import sys
import types
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    PluginError,
    Policy,
    Quarantine,
    Retry,
    ScanContext,
    ScanRunner,
    Timeout,
    scanner,
)
from resilient_scan import settings as package
from resilient_scan._text import parse_duration
from resilient_scan.options import LAYERS, Seconds
from resilient_scan.settings import Effective, Settings, SettingsError, layering, load_settings, read
from resilient_scan.settings.plugins import discover
from resilient_scan.settings.read import Source, scanner_keys
from resilient_scan.stores import split_space

FORMS = "memory:, sqlite:///relative.db or sqlite:////absolute.db, redis://host:port/db (or rediss://, unix://path)"


@scanner(pipeline="social", retry=Retry(attempts=2, base=1), cache=None, timeout=Timeout(total=20))
def reddit_dd(state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.log("seen", settings=dict(context.settings))
    return []


@scanner(pipeline="news")
def plain(state: dict[str, Any], context: ScanContext) -> list[Any]:
    context.log("seen", settings=dict(context.settings))
    return []


def problems_of(load: Any, text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(text, environ)
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


def seen(runner: ScanRunner) -> dict[str, Any]:
    """Run and return what each scanner found in `context.settings`."""
    with runner:
        return {log["scanner"]: log["settings"] for log in runner.run().tool_logs}


def effective(loaded: Settings, one: Any, **options: Any) -> Effective:
    return loaded.effective([one], **options)[one.name]


# what is wrong

DURATION = 'must be a duration such as 300 or "5m", got'
EXCEPTIONS = (
    'must be a list of exceptions such as ["ValueError", "httpx.TransportError"], or the name of a predicate, got'
)
RETRY_KEYS = ", ".join(Retry.__struct_fields__)
WRONG = [
    # unknown keys
    ("[defaults]\n\n\nretry = { atempts = 3 }", "4: unknown key defaults.retry.atempts; did you mean 'attempts'?"),
    ("[defaults.retry]\natempts = 3", "2: unknown key defaults.retry.atempts; did you mean 'attempts'?"),
    ("defaults.retry.Attempts = 3", "1: unknown key defaults.retry.Attempts; did you mean 'attempts'?"),
    ("[defaults]\nretry = { x = 3 }", f"2: unknown key defaults.retry.x; the keys are {RETRY_KEYS}"),
    ("[defaults]\ncahce = { ttl = 3 }", "2: unknown key defaults.cahce; did you mean 'cache'?"),
    ("[defaults]\nttl = 3", "2: unknown key defaults.ttl; did you mean defaults.cache.ttl?"),
    ("[defaults]\non = []", "2: unknown key defaults.on; did you mean defaults.retry.on or defaults.breaker.on?"),
    ("[default]", "1: unknown key default; did you mean 'defaults'?"),
    ("[scanner-execution]", "1: unknown key scanner-execution; did you mean 'scanner_execution'?"),
    ("[scanners.x]\ntimout = {}", "2: unknown key scanners.x.timout; did you mean 'timeout'?"),
    ("[scanners.x]\nlookback_days = 1", "2: unknown key scanners.x.lookback_days; the keys are enabled, provider, "),
    ('[scanners."brk.b"]\nretry = { " " = 1 }', '2: unknown key scanners."brk.b".retry." "; the keys are attempts, '),
    ("[scanner_execution]\ntimeout = 3", "2: unknown key scanner_execution.timeout; did you mean 'timeout_seconds'?"),
    ("[scanner_execution]\nworkers = 3", "2: unknown key scanner_execution.workers; did you mean 'max_workers'?"),
    ("[store]\npath = 'x'", "2: unknown key store.path; the keys are url, space, history"),
    # kinds
    ("[defaults]\ncache = { ttl = true }", f"2: defaults.cache.ttl {DURATION} true"),
    ("[defaults]\ncache.ttl = 'five'", f'2: defaults.cache.ttl {DURATION} "five"'),
    ("[defaults]\ncache.ttl = '5M'", f'2: defaults.cache.ttl {DURATION} "5M"'),
    ("[defaults]\ncache.ttl = '1h30m'", f'2: defaults.cache.ttl {DURATION} "1h30m"'),
    ("[defaults]\ncache.ttl = '-5s'", f'2: defaults.cache.ttl {DURATION} "-5s"'),
    ("[defaults]\ncache.ttl = '300'", f'2: defaults.cache.ttl {DURATION} "300"'),
    ("[defaults]\ncache.ttl = ''", f'2: defaults.cache.ttl {DURATION} ""'),
    ("[defaults]\ncache.ttl = []", f"2: defaults.cache.ttl {DURATION} a list"),
    ("[defaults]\ncache.ttl = {}", f"2: defaults.cache.ttl {DURATION} a table"),
    ("[defaults]\ncache.ttl = 07:30:00", f"2: defaults.cache.ttl {DURATION} 07:30:00"),
    ("[defaults]\ncache.ttl = " + "9" * 50, f"2: defaults.cache.ttl {DURATION} a number of more than 64 bits"),
    ("[defaults]\ncache.jitter = '5s'", '2: defaults.cache.jitter must be a number, got "5s"'),
    ("[defaults]\ncache.inputs = 'tickers'", '2: defaults.cache.inputs must be a list of texts, got "tickers"'),
    ("[defaults]\ncache.inputs = ['a', 1]", "2: defaults.cache.inputs must be a list of texts, got a list"),
    ("[defaults]\ncache.maxsize = 1.5", "2: defaults.cache.maxsize must be a whole number, got 1.5"),
    ("[defaults]\nretry.attempts = '3'", '2: defaults.retry.attempts must be a whole number, got "3"'),
    ("[defaults]\nretry.attempts = true", "2: defaults.retry.attempts must be a whole number, got true"),
    ("[defaults]\nretry.attempts = " + f"'{'x' * 99}'", f'got "{"x" * 40}..."'),
    ("[scanners.x]\nenabled = 'no'", '2: scanners.x.enabled must be true or false, got "no"'),
    ("[scanners.x]\nprovider = 5", "2: scanners.x.provider must be a text, got 5"),
    ("[scanner_execution]\nconcurrent = 1", "2: scanner_execution.concurrent must be true or false, got 1"),
    ("[scanner_execution]\nmax_workers = '8'", '2: scanner_execution.max_workers must be a whole number, got "8"'),
    ("[scanner_execution]\ndeadline = '60'", f'2: scanner_execution.deadline {DURATION} "60"'),
    # tables
    (
        "[defaults]\ncache = true",
        "2: defaults.cache must be a table such as { ttl = 300 }, or false to leave the layer out, got true",
    ),
    (
        "[[defaults.retry]]",
        "1: defaults.retry must be a table such as { attempts = 3 }, or false to leave the layer out, got a list",
    ),
    ("[scanners.x]\ntimeout = '45s'", '2: scanners.x.timeout must be a table such as { total = 30 }, got "45s"'),
    ("[scanners.x]\ntimeout = false", "2: scanners.x.timeout cannot be left out; give it a table such as { total ="),
    ("[scanners]\nx = false", "2: scanners.x must be a table, got false"),
    ("[[scanners.x]]", "1: scanners.x must be a table, got a list"),
    ("scanners = 1", "1: scanners must be a table, got 1"),
    ("defaults = []", "1: defaults must be a table, got a list"),
    ("scanner_execution = 8", "1: scanner_execution must be a table, got 8"),
    ("store = 'memory:'", '1: store must be a table, got "memory:"'),
    # ranges: the options' own sentences
    ("[defaults]\nretry.attempts = 0", "2: defaults.retry.attempts must be >= 1, got 0"),
    ("[defaults.cache]\nttl = 0", "2: defaults.cache.ttl must be > 0, got 0.0"),
    ("[defaults.cache]\nttl = nan", "2: defaults.cache.ttl must be a finite number, got nan"),
    ("[defaults.cache]\njitter = 1.0", "2: defaults.cache.jitter must be < 1, got 1.0"),
    ("[defaults.retry]\nbase = '20s'", "2: defaults.retry.cap must be >= base (20), got 10.0"),
    ("[defaults.retry]\nbase = '5s'\ncap = '1s'", "2: defaults.retry.cap must be >= base (5), got 1.0"),
    ("[scanners.x]\n[scanners.x.timeout]\ntotal = 0", "3: scanners.x.timeout.total must be > 0, got 0.0"),
    ("[scanners.x]\nbreaker = { failures = 0 }", "2: scanners.x.breaker.failures must be >= 1, got 0"),
    ("[scanners.x]\nprovider = ' '", "2: scanners.x.provider must not be empty"),
    ("[scanner_execution]\nmax_workers = 0", "2: scanner_execution.max_workers must be >= 1, got 0"),
    ("[scanner_execution]\ntimeout_seconds = 0", "2: scanner_execution.timeout_seconds must be > 0, got 0.0"),
    ("[scanner_execution]\ndeadline = inf", "2: scanner_execution.deadline must be a finite number, got inf"),
    ("[scanner_execution]\nengine = 'thread'", '2: scanner_execution.engine must be "threads" or "dask", got "thread"'),
    ("[scanners.x]\nisolation = 'none'", '2: scanners.x.isolation must be "thread" or "process", got \'none\''),
    (
        "[scanner_execution]\nisolation = 'none'",
        '2: scanner_execution.isolation must be "thread" or "process", got \'none\'',
    ),
    (
        "[scanners.x]\nmemory = '512'",
        "2: scanners.x.memory must be a number of bytes, or a text such as \"512MB\", got '512'",
    ),
    ("[scanners.x]\nmemory = 1.5", "2: scanners.x.memory must be a text or a whole number, got 1.5"),
    # exceptions
    (
        "[defaults]\nretry.on = 'ValueError'",
        "2: defaults.retry.on: 'ValueError' is not a predicate; write [\"ValueError\"]",
    ),
    ("[defaults]\nretry.on = [1]", f"2: defaults.retry.on {EXCEPTIONS} a list"),
    (
        "[defaults]\nretry.on = ['ValueErorr']",
        "2: defaults.retry.on: Python has no exception 'ValueErorr'; did you mean 'ValueError'?",
    ),
    (
        "[defaults]\nretry.on = ['Frobnicated']",
        (
            "2: defaults.retry.on: Python has no exception 'Frobnicated'; one of another module needs the module too, "
            "as in httpx.TransportError"
        ),
    ),
    (
        "[scanners.x]\nbreaker.on = ['json.DecodeError']",
        "2: scanners.x.breaker.on: json has no 'DecodeError'; did you mean 'JSONDecodeError'?",
    ),
    (
        "[scanners.x]\nbreaker.on = ['no_such_module_at_all.Error']",
        (
            "2: scanners.x.breaker.on: 'no_such_module_at_all.Error' cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module_at_all'"
        ),
    ),
    ("[defaults]\nretry.on = ['os.sep']", "2: defaults.retry.on: 'os.sep' is not an exception class"),
    ("[defaults]\nretry.on = ['a..b']", "2: defaults.retry.on: 'a..b' is not the name of an exception"),
    # what is not there yet
    (
        "[store]\nurl = 'http://user:hunter2@host'",
        f"2: store.url must be one of {FORMS}, not something else with 'http:'",
    ),
    ("[store]\nurl = 'x'", f"2: store.url must be one of {FORMS}, not something else"),
    (
        "[providers.sec]\nrate = ['10/s', '5/min']",
        "2: providers.sec.rate: 10/s never matters next to 5/min; leave it out, or correct it",
    ),
    ("[store]\nurl = 'sqlite:///:memory:'", "2: store.url must be memory: for a store in memory"),
    (
        "[scanners.x.settings]\n" + ".".join("a" * 1000) + " = 1",
        "1: scanners is nested more than 100 levels deep; make it flatter",
    ),
    (
        "[providers.SEC]\n[providers.sec]\nconcurrency = 1",
        "2: providers.sec appears twice, as 'SEC' in scan.toml:1 too; names match in any case",
    ),
    ("[quarantine]\ncooloff = 0", "2: quarantine.cooloff must be > 0, got 0.0"),
    ("[quarantine]\ncooloff = '2h'", "2: quarantine.cooloff_cap must be >= cooloff (7200), got 3600.0"),
    ("[quarantine]\nmax_share = 2", "2: quarantine.max_share must be <= 1, got 2.0"),
    ("[quarantine]\nmax_share = '5s'", '2: quarantine.max_share must be a number, got "5s"'),
    ("[quarantine]\nafter_failures = '10'", '2: quarantine.after_failures must be a whole number, got "10"'),
    ("[quarantine]\ncritical = 'x'", '2: quarantine.critical must be a list of texts, got "x"'),
    ("[quarantine]\ncool_off = 5", "2: unknown key quarantine.cool_off; did you mean 'cooloff'?"),
    ("quarantine = false", "1: quarantine must be a table, got false"),
    (
        "\n[service]\ntoken = 'hunter2'",
        "3: unknown key service.token; did you mean 'token_file'?",
    ),
    (
        "[service]\nlisten = '9108'",
        "2: service.listen must be an address and a port such as \"127.0.0.1:9108\", got '9108'",
    ),
    (
        "[service]\nlisten = 'localhost:99999'",
        "2: service.listen must be an address and a port such as \"127.0.0.1:9108\", got 'localhost:99999'",
    ),
    (
        "[service]\nallowed_hosts = ['b.test', '*']",
        (
            "2: service.allowed_hosts must be names without scheme, port and wildcard, "
            "such as \"scan.example.org\", got '*'"
        ),
    ),
    ("[service]\nallowed_hosts = 'a.test'", '2: service.allowed_hosts must be a list of texts, got "a.test"'),
    ("[service]\nlisten = 9108", "2: service.listen must be a text, got 9108"),
    ("[service]\nreconcile = '0s'", "2: service.reconcile must be > 0, got 0.0"),
    (
        "[service]\nalertmanager = 'http://me:hunter2@host'",
        '2: service.alertmanager must be a URL such as "http://127.0.0.1:9093", without a password',
    ),
    (
        "[service]\ndashboard_url = 'javascript:alert(1)'",
        '2: service.dashboard_url must be a URL such as "https://grafana.example/d/fleet"',
    ),
    (
        "[service]\nrunbook_url = 'https://me:hunter2@host'",
        '2: service.runbook_url must be a URL such as "https://grafana.example/d/fleet"',
    ),
    # not TOML
    ("[defaults]\nretry =", "2: not TOML: Invalid value"),
    ("[defaults]\nretry = {}\n[defaults]", "3: defaults appears twice, first in line 1"),
    ("[scanners.x]\nenabled = true\nenabled = false", "3: scanners.x.enabled appears twice, first in line 2"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_an_error_names_file_line_and_the_fix(load: Any, text: str, message: str) -> None:
    (problem,) = problems_of(load, text)
    if message[0].isdigit():
        message = f"scan.toml:{message}"
    assert problem == message or (message.endswith((", ", "total =", '..."')) and message in problem)


def test_a_providers_breaker_is_a_table_of_its_own(load: Any) -> None:
    text = """
    [providers.sec]
    breaker = { failures = 3, open_for = "2m" }
    [scanners.plain]
    provider = "sec"
    """
    environ = {"RESILIENT_SCAN__PROVIDERS__SEC__BREAKER__FAILURES": "4"}
    for variables, failures in (({}, 3), (environ, 4)):
        limit = load(text, variables).effective([plain])["plain"].policy.limit
        assert limit == Limit("sec", breaker=Breaker(failures=failures, open_for=120))
    without = load('[providers.sec]\nbreaker = false\n[scanners.plain]\nprovider = "sec"')
    assert without.effective([plain])["plain"].policy.limit == Limit("sec", breaker=None)
    bare = load('[scanners.plain]\nprovider = "sec"')
    assert bare.effective([plain])["plain"].policy.limit == Limit("sec")


def test_a_providers_breaker_in_its_table_holds_for_scanners_that_give_numbers(load: Any) -> None:
    text = '[providers.sec]\nbreaker = false\n[scanners.plain]\nlimit = { provider = "sec", concurrency = 2 }'
    assert load(text).effective([plain])["plain"].policy.limit == Limit("sec", concurrency=2, breaker=None)


WRONG_LIMITS = [
    ("[providers.sec]\nrates = 1", "2: unknown key providers.sec.rates; did you mean 'rate'?"),
    (
        "[providers.sec]\nprovider = 'x'",
        "2: unknown key providers.sec.provider; the keys are rate, concurrency, breaker",
    ),
    ("[providers]\nsec = 1", "2: providers.sec must be a table, got 1"),
    ("[providers.sec]\nrate = 60", "2: providers.sec.rate must be a text or a list of texts, got 60"),
    ("[providers.sec]\nconcurrency = 0", "2: providers.sec.concurrency must be >= 1, got 0"),
    (
        "[providers.sec]\nrate = '60'",
        """2: providers.sec.rate must be a rate such as "60/min", "30/s" or "1000/10min", got '60'""",
    ),
    ("[defaults]\nlimit = { concurrency = 2 }", "2: defaults.limit.provider is missing"),
    (
        "[providers.sec]\nbreaker = 3",
        "2: providers.sec.breaker must be a table, or false to leave it out, got 3",
    ),
    (
        "[providers.sec]\nbreaker = { failuers = 3 }",
        "2: providers.sec.breaker: unknown key failuers; did you mean 'failures'?",
    ),
    (
        "[providers.sec]\nbreaker = { open_for = 'long' }",
        """2: providers.sec.breaker: open_for must be a duration such as 300 or "5m\"""",
    ),
    (
        "[providers.sec]\nbreaker = { failures = 0 }",
        "2: providers.sec.breaker: breaker.failures must be >= 1, got 0",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG_LIMITS, ids=[message for _, message in WRONG_LIMITS])
def test_wrong_limits_are_reported_likewise(load: Any, text: str, message: str) -> None:
    assert problems_of(load, text) == (f"scan.toml:{message}",)


def test_a_wrong_field_has_no_second_problem_in_its_wake(load: Any) -> None:
    text = "[defaults]\nlimit = { concurrency = 0 }\nretry = { base = 'x', cap = 0.1 }"
    assert [problem[:11] for problem in problems_of(load, text)] == ["scan.toml:2", "scan.toml:3"]


def test_whatever_an_import_does_is_one_sentence(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "raises_at_import.py").write_text("raise SystemExit('no\\n  entry')")
    assert problems_of(load, "[defaults]\nretry.on = ['raises_at_import.X']") == (
        "scan.toml:2: defaults.retry.on: 'raises_at_import.X' cannot be imported: SystemExit: no entry",
    )


def test_an_empty_table_says_nothing(load: Any) -> None:
    loaded = load("[defaults]\nlimit = {}\n[defaults.cache]\n[scanners.reddit_dd.cache]\n[providers.x]\n")
    assert loaded.policy == Policy()
    assert effective(loaded, reddit_dd).policy.cache is None


def test_all_problems_come_at_once_by_line_then_by_variable(load: Any) -> None:
    text = "[scanners.x]\nretry = { attempts = 0, on = ['X'] }\n[defaults]\nbreaker = 3\ncache.tl = 2\n[service]\nx = 1"
    environ = {"RESILIENT_SCAN__STORE__URL": "sqlite:x", "RESILIENT_SCAN__DEFAULTS__RETRY__BASE": "x"}
    places = [problem.partition(": ")[0] for problem in problems_of(load, text, environ)]
    assert places == [
        "scan.toml:2",
        "scan.toml:2",
        "scan.toml:4",
        "scan.toml:5",
        "scan.toml:7",
        "RESILIENT_SCAN__DEFAULTS__RETRY__BASE",
        "RESILIENT_SCAN__STORE__URL",
    ]


def test_a_file_that_cannot_be_read_is_a_problem_next_to_those_of_the_environment(tmp_path: Path) -> None:
    environ = {"RESILIENT_SCAN__X": "1"}
    missing = tmp_path / "missing.toml"
    with pytest.raises(SettingsError) as caught:
        load_settings(missing, environ=environ)
    assert caught.value.problems[0] == f"{missing}: there is no such file"
    assert caught.value.problems[1].startswith("RESILIENT_SCAN__X: unknown key x; ")
    with pytest.raises(SettingsError, match=f"^{re.escape(str(tmp_path))}: cannot be read: Is a directory$"):
        load_settings(tmp_path, environ={})


def test_a_file_has_to_be_utf_8_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "scan.toml"
    file.write_bytes(b"# one\n# \xff\n")
    with pytest.raises(SettingsError, match=r"scan\.toml:2: not UTF-8, which TOML has to be$"):
        load_settings(file, environ={})
    file.write_bytes(b"\xef\xbb\xbf[scanner_execution]\r\ndeadline = 5\r\n")
    assert load_settings(file, environ={}).deadline == 5


# who wins


def test_nothing_said_is_the_built_in_policy() -> None:
    nothing = load_settings(environ={"PATH": "/bin", "RESILIENT_SCAN_TESTDATA": "x"})
    assert nothing.policy == Policy()
    assert set(nothing.origins.values()) == {"built-in"}
    assert nothing.deadline is None
    assert effective(nothing, plain).policy == Policy()
    assert repr(nothing) == "<Settings of the environment>"


FILE = """
[scanner_execution]
timeout_seconds = 11
[defaults]
retry = { attempts = 4, cap = "7s" }
cache = { ttl = "5m" }
timeout = { total = 12 }
[scanners.reddit_dd]
retry = { attempts = 5 }
cache = { ttl = 60 }
timeout = { total = 13 }
[scanners.plain]
retry = false
"""
X = "RESILIENT_SCAN__SCANNERS__reddit_dd__"


def test_every_number_has_one_source_and_says_which(load: Any) -> None:
    """The built-in one, the defaults', the decorator's and the scanner's table, one over the other."""
    loaded = load(FILE)
    found = effective(loaded, reddit_dd)
    assert found.policy.retry == Retry(attempts=5, base=1)  # an object replaces the layer, a table what it names
    assert found.policy.cache == Cache(ttl=60)  # the decorator left it out, so the defaults' are gone
    assert found.policy.timeout == Timeout(total=13)
    assert found.policy.breaker == Breaker()
    expected = {
        "retry.attempts": "scan.toml:9",
        "retry.base": "decorator",
        "cache.ttl": "scan.toml:10",
        "cache.jitter": "built-in",
        "timeout.total": "scan.toml:11",
        "breaker.failures": "built-in",
    }
    assert {key: found.origins[key] for key in expected} == expected


def test_defaults_go_over_what_is_built_in(load: Any) -> None:
    found = effective(load(FILE), plain)
    assert found.policy.retry is None
    assert found.origins["retry"] == "scan.toml:13"
    assert found.policy.cache == Cache(ttl=300)
    assert found.origins["cache.ttl"] == "defaults scan.toml:6"
    loaded = load(FILE.replace("[scanners.plain]\nretry = false", ""))
    assert effective(loaded, plain).policy.retry == Retry(attempts=4, cap=7)
    assert effective(loaded, plain).origins["retry.base"] == "built-in"
    assert loaded.policy == effective(loaded, plain).policy
    assert loaded.origins == effective(loaded, plain).origins


def test_the_decorator_goes_over_the_defaults(load: Any) -> None:
    loaded = load(
        "[defaults]\nretry.attempts = 9\ncache.ttl = 9\nbreaker = false\n[scanner_execution]\ntimeout_seconds = 9"
    )
    found = effective(loaded, reddit_dd)
    assert found.policy == Policy(retry=Retry(attempts=2, base=1), cache=None, breaker=None, timeout=Timeout(total=20))
    assert found.origins["retry.attempts"] == found.origins["cache"] == found.origins["timeout.total"] == "decorator"
    assert found.origins["breaker"] == "defaults scan.toml:4"


def test_timeout_seconds_replaces_the_defaults_total(load: Any) -> None:
    found = effective(load(FILE), plain)
    assert found.policy.timeout.total == 11
    assert found.origins["timeout.total"] == "scanner_execution scan.toml:3"


def test_the_environment_goes_over_the_scanners_table(load: Any) -> None:
    environ = {f"{X}TIMEOUT__TOTAL": "5s", f"{X}RETRY": "false", f"{X}CACHE__TTL": "1.5h", f"{X}BREAKER__ON": "OSError"}
    found = effective(load(FILE, environ), reddit_dd)
    assert found.policy == Policy(
        timeout=Timeout(total=5), retry=None, cache=Cache(ttl=5400), breaker=Breaker(on=(OSError,))
    )
    assert found.origins["timeout.total"] == f"{X}TIMEOUT__TOTAL"
    assert found.origins["retry"] == f"{X}RETRY"


def test_the_environment_may_bring_back_what_the_file_leaves_out(load: Any) -> None:
    text = "[scanners.plain]\nlimit = false\nretry = false\n[providers.sec]\nconcurrency = 2"
    assert effective(load(text), plain).policy.limit is None
    found = effective(load(text, {"RESILIENT_SCAN__SCANNERS__PLAIN__RETRY__ATTEMPTS": "2"}), plain)
    assert found.policy.retry == Retry(attempts=2)
    assert found.origins["retry.cap"] == "built-in"
    found = effective(load(text, {"RESILIENT_SCAN__SCANNERS__PLAIN__PROVIDER": "sec"}), plain)
    assert found.policy.limit == Limit("sec", concurrency=2)


def test_a_variable_stands_for_the_key_of_its_name_so_a_default_stays_one(load: Any) -> None:
    environ = {"RESILIENT_SCAN__DEFAULTS__TIMEOUT__TOTAL": "1s", "RESILIENT_SCAN__DEFAULTS__RETRY__ATTEMPTS": "8"}
    loaded = load(FILE, environ)
    assert effective(loaded, reddit_dd).policy.timeout.total == 13
    assert loaded.policy.timeout.total == 1  # over the file's timeout_seconds too: it is later
    assert loaded.policy.retry == Retry(attempts=8, cap=7)
    assert loaded.origins["retry.attempts"] == "RESILIENT_SCAN__DEFAULTS__RETRY__ATTEMPTS"
    environ["RESILIENT_SCAN__SCANNER_EXECUTION__TIMEOUT_SECONDS"] = "3"
    assert load(FILE, environ).policy.timeout.total == 3


def test_a_policy_in_code_replaces_the_defaults_and_nothing_more(load: Any) -> None:
    loaded = load(FILE)
    policy = Policy(breaker=None, timeout=Timeout(total=2))
    assert effective(loaded, plain, policy=policy).policy == policy.replace({"retry": None})
    assert effective(loaded, plain, policy=policy).origins["breaker"] == "policy="
    found = effective(loaded, reddit_dd, policy=policy, timeout_seconds=3)
    assert found.policy.retry == Retry(attempts=5, base=1)
    assert found.policy.timeout.total == 13
    assert found.policy.breaker is None
    bare = effective(loaded, plain, policy=policy, timeout_seconds=3)
    assert (bare.policy.timeout.total, bare.origins["timeout.total"]) == (3, "timeout_seconds=")
    with pytest.raises(ConfigError, match=r"^timeout.attempt must be <= total \(3\), got 10$"):
        effective(loaded, plain, policy=Policy(timeout=Timeout(total=20, attempt=10)), timeout_seconds=3)
    with pytest.raises(ConfigError, match=r"^policy must be a Policy, got 5$"):
        effective(loaded, plain, policy=5)
    with pytest.raises(ConfigError, match=r"^timeout_seconds must be > 0, got 0$"):
        loaded.runner([plain], timeout_seconds=0)


def test_a_provider_gives_its_numbers_to_all_that_name_it(load: Any) -> None:
    @scanner(pipeline="x", limit=Limit("sec", concurrency=1))
    def decorated(state: dict[str, Any]) -> list[Any]:
        return []

    text = """
    [providers.sec]
    rate = ["60/min", "30/s"]
    [providers.Finn]
    concurrency = 4
    [scanners.plain]
    provider = "Finn"
    """
    loaded = load(text, {"RESILIENT_SCAN__PROVIDERS__FINN__RATE": "5/s"})
    found = effective(loaded, decorated)
    assert found.policy.limit == Limit("sec", rate=("60/min", "30/s"), concurrency=1)
    assert (found.origins["limit.rate"], found.origins["limit.concurrency"]) == ("providers scan.toml:3", "decorator")
    other = effective(loaded, plain)
    assert other.policy.limit == Limit("Finn", rate="5/s", concurrency=4)
    assert other.origins["limit.provider"] == "scan.toml:7"
    moved = effective(load("[scanners.decorated]\nprovider = 'Finn'\nlimit = { concurrency = 9 }"), decorated)
    assert moved.policy.limit == Limit("Finn", concurrency=9)
    assert effective(load("[scanners.decorated]\nlimit = false"), decorated).policy.limit is None
    named = effective(load("[providers.x]\nconcurrency = 3\n[scanners.plain]\nlimit = { provider = 'x' }"), plain)
    assert named.policy.limit == Limit("x", concurrency=3)


def test_a_providers_numbers_are_the_same_for_all_that_share_it(load: Any) -> None:
    @scanner(pipeline="x", limit=Limit("sec", rate="60/min"))
    def first(state: dict[str, Any]) -> list[Any]:
        return []

    @scanner(pipeline="x", limit=Limit("sec"))
    def second(state: dict[str, Any]) -> list[Any]:
        return []

    found = load("[providers.sec]\nconcurrency = 4").effective([second, first])
    both = Limit("sec", rate="60/min", concurrency=4)
    assert (found["first"].policy.limit, found["second"].policy.limit) == (both, both)
    found = load("[scanners.first]\nlimit = { concurrency = 4 }").effective([second, first])
    assert (found["first"].policy.limit, found["second"].policy.limit) == (both, both)
    for scanners in ([first, second], [second, first]):
        (problem,) = load("[scanners.second]\nlimit = { rate = '1/s' }").check(scanners)
        assert problem.startswith("scan.toml:2: provider sec has two limits: rate ")


def test_numbers_without_a_provider_are_reported_once_and_belong_to_nobody_else(load: Any) -> None:
    loaded = load("[scanners.plain]\nlimit = { concurrency = 2 }")
    assert loaded.check([plain, reddit_dd]) == ("scan.toml:2: scanners.plain.limit.provider is missing",)


def test_a_provider_that_nobody_has_is_wrong_where_all_scanners_are_known(load: Any) -> None:
    loaded = load("[providers.Secc]\nconcurrency = 4\n[scanners.plain]\nprovider = 'sec'")
    expected = "scan.toml:1: no scanner has the provider 'Secc'; did you mean 'sec'?"
    assert loaded.check([plain]) == (expected,)
    assert loaded.check([plain], known=["other"]) == ()


def test_a_table_that_nobody_has_is_reported_in_the_file_and_in_the_environment(load: Any) -> None:
    """Who corrects one of the two would meet the other in the next run."""
    text = "[providers.sec]\nconcurrency = 4\n[scanners.other]\nenabled = false"
    environ = {"RESILIENT_SCAN__PROVIDERS__SEC__RATE": "1/s", "RESILIENT_SCAN__SCANNERS__OTHER__RETRY": "false"}
    problems = load(text, environ).check([plain])
    assert [problem.partition(";")[0] for problem in problems] == [
        "scan.toml:3: unknown scanner other",
        "RESILIENT_SCAN__SCANNERS__OTHER__RETRY: unknown scanner other",
        "scan.toml:1: no scanner has the provider 'sec'",
        "RESILIENT_SCAN__PROVIDERS__SEC__RATE: no scanner has the provider 'sec'",
    ]


def test_layers_that_do_not_fit_a_decorator_are_reported_when_the_scanner_is_known(load: Any) -> None:
    loaded = load("[scanners.reddit_dd]\nretry = { base = 20 }")
    expected = "scan.toml:2: scanners.reddit_dd.retry.cap must be >= base (20), got 10.0"
    assert loaded.check([reddit_dd]) == (expected,)
    for fails in (loaded.effective, loaded.runner):
        with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
            fails([reddit_dd])


# the environment


def test_variables_match_in_any_case(load: Any) -> None:
    environ = {
        "resilient_scan__scanners__REDDIT_DD__retry__Attempts": "7",
        "RESILIENT_SCAN__SCANNER_EXECUTION__CONCURRENT": "No",
        "RESILIENT_SCAN__SCANNER_EXECUTION__DEADLINE": " 90s ",
        "RESILIENT_SCAN__DEFAULTS__CACHE__INPUTS": "trade_date, tickers",
        "RESILIENT_SCAN__DEFAULTS__BREAKER": "{ failures = 2 }",
        "RESILIENT_SCAN__STORE__URL": "memory:",
    }
    loaded = load("", environ)
    assert effective(loaded, reddit_dd).policy.retry == Retry(attempts=7, base=1)
    assert loaded.execution.concurrent is False
    assert loaded.deadline == 90
    assert loaded.policy.cache == Cache(inputs=("trade_date", "tickers"))
    assert loaded.policy.breaker == Breaker(failures=2)


def test_two_underscores_and_dots_may_be_part_of_a_scanners_name() -> None:
    environ = {
        "RESILIENT_SCAN__SCANNERS__MY__SCANNER__TIMEOUT__TOTAL": "5s",
        "RESILIENT_SCAN__SCANNERS__brk.b-2__ENABLED": "off",
        "RESILIENT_SCAN__SCANNERS__cache__CACHE__TTL": "5s",
    }
    loaded = load_settings(environ=environ)
    assert set(loaded.tables.scanners) == {"my__scanner", "brk.b-2", "cache"}
    assert not loaded.enabled("brk.b-2")


WRONG_VARIABLES = [
    ({"DEFAULTS__RETRY__ATEMPTS": "3"}, "unknown key defaults.retry.atempts; did you mean 'attempts'?"),
    ({"SCANNER__X__ENABLED": "1"}, "unknown key scanner; did you mean 'scanners'?"),
    ({"DEFAULT__CACHE": "false"}, "unknown key default; did you mean 'defaults'?"),
    ({"SCANNERS__x__TIMOUT__TOTAL": "5s"}, "unknown key scanners.x.timout; did you mean 'timeout'?"),
    ({"SCANNERS__x": "5s"}, 'scanners.x must be a table, got "5s"'),
    ({"SCANNERS": "5"}, "scanners must be a table, got 5"),
    ({"DEFAULTS__CACHE__TTL": "soon"}, f'defaults.cache.ttl {DURATION} "soon"'),
    ({"DEFAULTS__CACHE__TTL": ""}, f'defaults.cache.ttl {DURATION} ""'),
    ({"DEFAULTS__CACHE__TTL": "0"}, "defaults.cache.ttl must be > 0, got 0.0"),
    ({"DEFAULTS__RETRY__ATTEMPTS": "2.5"}, 'defaults.retry.attempts must be a whole number, got "2.5"'),
    ({"SCANNER_EXECUTION__CONCURRENT": "maybe"}, 'scanner_execution.concurrent must be true or false, got "maybe"'),
    ({"DEFAULTS__RETRY__ON": "os.Nope"}, "defaults.retry.on: os has no 'Nope'; look the name up"),
    (
        {"SCANNERS__x__SETTINGS__" + "__".join("a" * 500): "1"},
        "scanners is nested more than 100 levels deep; make it flatter",
    ),
    ({"SERVICE__TOKEN": "hunter2"}, "unknown key service.token; did you mean 'token_file'?"),
    (
        {"DEFAULTS__CACHE": "false", "DEFAULTS__CACHE__TTL": "5"},
        "RESILIENT_SCAN__DEFAULTS__CACHE sets the whole of it; use one of the two",
    ),
    (
        {"DEFAULTS__cache": "false", "DEFAULTS__CACHE__TTL": "5"},
        "RESILIENT_SCAN__DEFAULTS__cache sets the whole of it; use one of the two",
    ),
    (
        {"DEFAULTS__CACHE__TTL": "5", "DEFAULTS__CACHE__ttl": "5"},
        "RESILIENT_SCAN__DEFAULTS__CACHE__TTL sets the same; use one of the two",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "message"), WRONG_VARIABLES, ids=[message for _, message in WRONG_VARIABLES])
def test_an_error_names_the_variable(load: Any, variables: dict[str, str], message: str) -> None:
    environ = {f"RESILIENT_SCAN__{name}": value for name, value in variables.items()}
    assert problems_of(load, "", environ) == (f"RESILIENT_SCAN__{list(variables)[-1]}: {message}",)


# scanners' settings


def test_settings_are_put_together_key_by_key(load: Any) -> None:
    text = """
    [scanners.plain.settings]
    lookback_days = 14
    API_KEY = "file"
    zip = "02134"
    nested = { a = 1, b = 2 }
    """
    environ = {
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__LOOKBACK_DAYS": "21",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__api_key": "12345",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__TOKEN": "1e5",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__ZIP": "10001",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__NESTED__B": "3",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__UNIVERSE": '["AAPL", "MSFT"]',
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__SINCE": "2026-01-01",
        "RESILIENT_SCAN__SCANNERS__PLAIN__SETTINGS__CACHE__DIR": "/tmp",
    }
    expected = {
        "lookback_days": 21,
        "API_KEY": "12345",
        "zip": "10001",
        "nested": {"a": 1, "b": 3},
        "token": "1e5",
        "universe": ["AAPL", "MSFT"],
        "since": "2026-01-01",
        "cache": {"dir": "/tmp"},
    }
    loaded = load(text, environ)
    assert loaded.settings_of("plain") == expected
    loaded.settings_of("plain")["nested"]["a"] = 9
    assert loaded.settings_of("plain") == expected
    assert load(text).settings_of("reddit_dd") == {}
    runner = load("[scanners.plain]\nsettings = { a = 1, b = 2 }").runner(
        [plain, reddit_dd], settings={"plain": {"b": 3}, "reddit_dd": {"c": 4}}, listeners=()
    )
    assert seen(runner) == {"plain": {"a": 1, "b": 3}, "reddit_dd": {"c": 4}}


def test_state_lives_in_the_users_state_directory_unless_somebody_says_so(load: Any, tmp_path: Path) -> None:
    default = load("").store
    assert re.fullmatch(
        rf"sqlite:///{tmp_path}/.local/state/resilient-scan.db[?]space=[0-9a-f]{{12}}(&was=\w+)?", default
    )
    assert load("").store == default
    kept = load("", {"XDG_STATE_HOME": "/var/kept"}).store
    assert kept.startswith("sqlite:////var/kept/resilient-scan.db?space=")
    assert load("", {"XDG_STATE_HOME": "not/absolute"}).store == default
    other = Path("other.toml")
    other.write_text("")
    assert load_settings(other, environ={}).store not in {default, "memory:"}
    assert load_settings(environ={}).store == "memory:"


def test_a_relative_path_of_a_store_is_read_from_the_settings_files_directory(load: Any, tmp_path: Path) -> None:
    text = "[store]\nurl = 'sqlite:///state/scan.db'"
    assert load(text).store == f"sqlite:///{tmp_path}/state/scan.db"
    assert load("[store]\nurl = 'sqlite:////state/scan.db'").store == "sqlite:////state/scan.db"
    assert load("[store]\nurl = 'redis://h'").store == "redis://h"
    assert load(text, {"RESILIENT_SCAN__STORE__URL": "sqlite:///here.db"}).store == "sqlite:///here.db"
    assert load_settings(environ={"RESILIENT_SCAN__STORE__URL": "redis://h"}).store == "redis://h"


def space_of(path: Path | str, **environ: str) -> str:
    return split_space(load_settings(path, environ=environ).store).space


def test_a_deploy_by_link_keeps_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = tmp_path / "current"
    spaces = []
    for release in ("one", "two"):
        (tmp_path / release / "bin").mkdir(parents=True)
        (tmp_path / release / "scan.toml").write_text("")
        current.unlink(missing_ok=True)
        current.symlink_to(release)
        monkeypatch.chdir(current)  # the system calls it by its name behind the link
        spaces += [space_of(current / "scan.toml"), space_of("scan.toml", PWD=str(current))]
        spaces += [space_of("./bin/../scan.toml", PWD=str(current)), space_of(current / "../current/scan.toml")]
        was = split_space(load_settings(current / "scan.toml", environ={}).store).was
        assert was == space_of(tmp_path / release / "scan.toml"), "where earlier versions kept it"
    assert len(set(spaces)) == 1
    assert split_space(load_settings(tmp_path / "two" / "scan.toml", environ={}).store).was == ""


@pytest.mark.parametrize("shells", ["", "relative", "/", "/no/such", "/" + "x" * 5000])
def test_a_shells_directory_that_is_not_ours_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shells: str
) -> None:
    (tmp_path / "scan.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert space_of("scan.toml", PWD=shells) == space_of(tmp_path / "scan.toml")


def test_an_absolute_path_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan.toml").write_text("")
    (tmp_path / "gone").mkdir()
    space = space_of(tmp_path / "scan.toml")
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert space_of(tmp_path / "scan.toml") == space


def test_the_settings_name_a_space_of_any_store(load: Any, tmp_path: Path) -> None:
    own = "[store]\nspace = 'blue'"
    assert load(own).store == f"sqlite:///{tmp_path}/.local/state/resilient-scan.db?space=blue"
    assert load(f"{own}\nurl = 'sqlite:///scan.db'").store == f"sqlite:///{tmp_path}/scan.db?space=blue"
    assert load("[store]\nurl = 'sqlite:///scan.db?space=red'").store == f"sqlite:///{tmp_path}/scan.db?space=red"
    assert load(f"{own}\nurl = 'redis://h/1'").store == "redis://h/1?space=blue"
    assert load(f"{own}\nurl = 'unix:///s?db=1'").store == "unix:///s?db=1&space=blue"
    assert load(f"{own}\nurl = 'memory:'").store == load("[store]\nurl = 'memory:?space=red'").store == "memory:"
    assert load("", {"RESILIENT_SCAN__STORE__SPACE": "green"}).store.endswith("resilient-scan.db?space=green")
    assert load_settings(environ={"RESILIENT_SCAN__STORE__SPACE": "green"}).store == "memory:"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("space = 'a/b'", "store.space must be 1 to 64 letters, digits, '_', '.' or '-', and not answers, attempts, "),
        ("space = 'a'\nurl = 'redis://h?space=b'", "store.space: url names a space too; remove one of the two"),
    ],
)
def test_a_space_that_cannot_be_is_refused(load: Any, text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"[store]\n{text}")
    assert problem in str(caught.value)
    assert "scan.toml:2" in str(caught.value)


def test_where_the_service_listens(load: Any) -> None:
    assert (load("").service.host, load("").service.port) == ("127.0.0.1", 9108)
    found = load("[service]\nlisten = '[::1]:0'\ntoken_file = 't'\nalertmanager = 'https://am.test/x'").service
    assert (found.host, found.port, found.token_file, found.alertmanager) == ("::1", 0, "t", "https://am.test/x")
    assert load("", {"RESILIENT_SCAN__SERVICE__LISTEN": "0.0.0.0:80"}).service.host == "0.0.0.0"


def test_the_names_and_tokens_of_the_service(load: Any, tmp_path: Path) -> None:
    assert (load("").service.allowed_hosts, load("").service.read_token_file) == ((), None)
    found = load("[service]\nallowed_hosts = ['scan.example.org', '10.0.0.5', 'fe80::1']\nread_token_file = 'reading'")
    assert found.service.allowed_hosts == ("scan.example.org", "10.0.0.5", "fe80::1")
    assert found.token() is None
    with pytest.raises(ConfigError, match=r"service\.read_token_file: .*reading cannot be read: No such file"):
        found.read_token()
    environ = {"RESILIENT_SCAN__SERVICE__ALLOWED_HOSTS": '["a.test", "b.test"]'}
    assert load("", environ).service.allowed_hosts == ("a.test", "b.test")


def test_no_secret_is_ever_shown(load: Any) -> None:
    text = """
    [scanners.plain]
    settings = "hunter2"
    api_key = "hunter2"
    [scanners.other]
    enabled = 3
    settings = { password = "hunter2", nested = { token = "hunter2" } }
    [service]
    token = "hunter2"
    [store]
    url = "redisx://:hunter2@host"
    """
    environ = {
        "RESILIENT_SCAN__SCANNERS__OTHER__SETTINGS": "hunter2",
        "RESILIENT_SCAN__SCANNERS__OTHER__API_KEY": "hunter2",
        "RESILIENT_SCAN__API_TOKEN": "hunter2",
    }
    problems = problems_of(load, text, environ)
    assert len(problems) == 8
    assert "hunter2" not in "\n".join(problems)
    assert "scan.toml:3: scanners.plain.settings must be a table, got '***'" in problems
    loaded = load("[scanners.plain]\nsettings = { password = 'hunter2' }")
    assert repr(loaded) == "<Settings of scan.toml>"


# runners


@pytest.mark.parametrize(
    ("text", "options", "isolation"),
    [
        ("", {}, {"reddit_dd": None, "plain": None}),
        ("[scanners.plain]\nisolation = 'process'", {}, {"reddit_dd": None, "plain": "process"}),
        ("[scanner_execution]\nisolation = 'process'", {}, {"reddit_dd": "process", "plain": "process"}),
        (
            "[scanner_execution]\nisolation = 'process'\n[scanners.plain]\nisolation = 'thread'",
            {},
            {"reddit_dd": "process", "plain": "thread"},
        ),
        (
            "[scanners.plain]\nisolation = 'thread'",
            {"isolation": "process"},
            {"reddit_dd": "process", "plain": "thread"},
        ),
        (
            "[scanners.plain]\nisolation = 'thread'",
            {"isolation": {"plain": "process"}},
            {"reddit_dd": None, "plain": "process"},
        ),
    ],
)
def test_what_scanners_run_in(
    text: str, options: dict[str, Any], isolation: dict[str, str | None], load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        package, "ScanRunner", lambda _scanners, **all_: given.update(all_) or SimpleNamespace(set_origins=print)
    )
    load(text).runner([plain, reddit_dd], **options)
    assert given["isolation"] == {name: kind for name, kind in isolation.items() if kind is not None}


def test_memory_is_set_for_each_scanner(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        package, "ScanRunner", lambda _scanners, **all_: given.update(all_) or SimpleNamespace(set_origins=print)
    )
    text = "[scanners.plain]\nisolation = 'process'\nmemory = '512MB'\n[scanners.reddit_dd]\nmemory = 1000"
    load(text).runner([plain, reddit_dd], memory={"reddit_dd": 2000})
    assert given["memory"] == {"plain": "512MB", "reddit_dd": 2000}


def test_a_runner_gets_what_the_settings_say_and_options_win(load: Any) -> None:
    text = "[scanner_execution]\nmax_workers = 3\nconcurrent = false\nengine = 'threads'\n[store]\nurl = 'memory:'"
    given: dict[str, Any] = {}

    def fake(scanners: list[Any], **options: Any) -> Any:
        given.update(options, scanners=scanners)
        return SimpleNamespace(set_origins=lambda origins: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "ScanRunner", fake)
        load(text).runner([plain, reddit_dd], max_workers=5, order="given")
    assert given["scanners"] == [plain, reddit_dd]
    assert (given["max_workers"], given["concurrent"], given["engine"]) == (5, False, "threads")
    assert (given["order"], given["store"], given["settings"]) == ("given", "memory:", {})
    assert given["policies"]["reddit_dd"].retry == Retry(attempts=2, base=1)


def test_a_scanner_that_is_not_enabled_takes_no_part(load: Any) -> None:
    text = "[scanners.plain]\nenabled = false\nsettings = { a = 1 }"
    with load(text).runner([plain, reddit_dd], listeners=()) as runner:
        assert runner.names == ("reddit_dd",)
    environ = {"RESILIENT_SCAN__SCANNERS__PLAIN__ENABLED": "true"}
    with load(text, environ).runner([plain, reddit_dd], listeners=()) as runner:
        assert runner.names == ("plain", "reddit_dd")
    loaded = load(text)
    assert (loaded.enabled("plain"), loaded.enabled("reddit_dd")) == (False, True)


def test_a_table_for_a_scanner_that_is_not_there_is_wrong(load: Any) -> None:
    loaded = load(
        "[scanners.redit_dd]\nenabled = false\n[scanners.other]",
        {f"{X}ENABLED": "1", "RESILIENT_SCAN__SCANNERS__Y__ENABLED": "1"},
    )
    expected = (
        "scan.toml:1: unknown scanner redit_dd; did you mean 'reddit_dd'?",
        "scan.toml:3: unknown scanner other; there are plain, reddit_dd",
        "RESILIENT_SCAN__SCANNERS__Y__ENABLED: unknown scanner y; there are plain, reddit_dd",
    )
    assert loaded.check([plain, reddit_dd]) == expected
    with pytest.raises(SettingsError) as caught:
        loaded.runner([plain, reddit_dd])
    assert caught.value.problems == expected
    assert loaded.check([plain], known=["reddit_dd", "redit_dd", "other", "y"]) == ()


def test_check_reports_what_is_not_a_scanner_and_a_runner_raises(load: Any) -> None:
    (problem,) = load("").check([object()])
    assert "is not a scanner: it has neither a name nor a method scan" in problem
    with pytest.raises(PluginError):
        load("").runner([object()])


def test_without_scanners_the_installed_ones_run_and_what_cannot_is_logged(
    load: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = types.ModuleType("home_of_scanners")
    home.__dict__.update(plain=plain, reddit_dd=reddit_dd)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    targets = {"plain": "home_of_scanners:plain", "reddit_dd": "home_of_scanners:reddit_dd", "broken": "no_such_home:x"}
    points = [EntryPoint(name, target, "resilient_scan.scanners") for name, target in targets.items()]
    monkeypatch.setattr(package, "discover", lambda **_: discover(points))
    loaded = load("[scanners.plain]\nenabled = false\n[scanners.broken]\nretry.attempts = 2")
    with caplog.at_level(logging.WARNING, "resilient_scan"), loaded.runner(listeners=()) as runner:
        assert runner.names == ("reddit_dd",)
    assert [record.getMessage() for record in caplog.records] == list(loaded.check())
    assert "broken" in loaded.check()[0]


def test_the_built_in_scanners_run_without_an_argument_once_they_have_what_they_need(load: Any) -> None:
    with load('[scanners.market_movers.settings]\nuniverse = ["A"]\n').runner(listeners=()) as runner:
        assert runner.names == ("market_movers",)
        assert "universe" in runner.not_configured["gap_up"]


# properties

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@given(st.decimals(0, 10_000, places=3), st.sampled_from(list(UNITS)))
def test_a_duration_is_its_number_times_its_unit(number: Any, unit: str) -> None:
    assert math.isclose(parse_duration(f"{number}{unit}"), float(number) * UNITS[unit])


@pytest.mark.parametrize("text", ["5", "", "s", "5 s", "٥s", "1e3s", "5S", "5w", "+5s", "5.s", "0x5s", "5s5s"])
def test_a_duration_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller knows where it stands
        parse_duration(text)


NUMBERS = {
    "retry": {"attempts": st.integers(1, 9), "base": st.floats(0, 5), "cap": st.floats(5, 9)},
    "cache": {"ttl": st.floats(1, 9), "maxsize": st.integers(1, 9), "jitter": st.floats(0, 0.9)},
    "breaker": {"failures": st.integers(1, 9), "open_for": st.floats(1, 9)},
    "timeout": {"total": st.floats(1, 9)},
}
TABLES = st.fixed_dictionaries(
    {}, optional={layer: st.fixed_dictionaries({}, optional=fields) for layer, fields in NUMBERS.items()}
)


@dataclasses.dataclass
class Sources:
    defaults: dict[str, Any]
    decorator: dict[str, Any]
    file: dict[str, Any]
    environment: dict[str, Any]


def winner(sources: Sources, layer: str, field: str) -> tuple[Any, str]:
    """Return the value that must hold and where it must come from, written as plainly as the priority is."""
    if field in sources.environment.get(layer, {}):
        return sources.environment[layer][field], "RESILIENT_SCAN__"
    if field in sources.file.get(layer, {}):
        return sources.file[layer][field], "file:"
    if layer in sources.decorator:
        return getattr(LAYERS[layer](**sources.decorator[layer]), field), "decorator"
    if field in sources.defaults.get(layer, {}):
        return sources.defaults[layer][field], "defaults file:"
    return getattr(LAYERS[layer](), field), "built-in"


@settings(deadline=None)
@given(st.builds(Sources, TABLES, TABLES, TABLES, TABLES))
def test_the_last_source_wins(sources: Sources) -> None:
    one = scanner(pipeline="x", name="one", **{k: LAYERS[k](**v) for k, v in sources.decorator.items()})(
        lambda state: []
    )
    environ = {
        f"RESILIENT_SCAN__SCANNERS__ONE__{layer}__{field}".upper(): repr(value)
        for layer, fields in sources.environment.items()
        for field, value in fields.items()
    }
    data = {"defaults": sources.defaults, "scanners": {"one": sources.file}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "from_file", lambda _: Source(data, lambda _: (1, "file:1"), []))
        found = effective(load_settings("file", environ=environ), one)
    for layer, fields in NUMBERS.items():
        for field in fields:
            value, origin = winner(sources, layer, field)
            assert getattr(getattr(found.policy, layer), field) == value
            assert found.origins[f"{layer}.{field}"].startswith(origin)


KEYS = st.sampled_from(
    ["defaults", "scanners", "providers", "store", "scanner_execution", "plain", "sec", "x", *scanner_keys(), *LAYERS]
    + [field for kind in LAYERS.values() for field in kind.__struct_fields__]
)
LEAVES = st.one_of(
    st.integers(-1, 5),
    st.booleans(),
    st.floats(),
    st.sampled_from(["5s", "sec", "ValueError", "60/min", ""]),
    st.dates(),
)
DATA = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3))


@settings(deadline=None)
@given(st.dictionaries(KEYS, DATA, max_size=3))
def test_whatever_a_file_says_is_right_or_reported(data: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "from_file", lambda _: Source(data, lambda _: (1, "file:1"), []))
        try:
            problems = load_settings("file", environ={}).check([plain, reddit_dd], known=["x"])
        except SettingsError as error:
            problems = error.problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_field_of_every_option_can_be_set_to_its_default(load: Any, layer: str) -> None:
    """So that a field of a kind that the settings cannot read is noticed here."""
    for field in msgspec.structs.fields(LAYERS[layer]):
        value = {"on": "['Exception']", "provider": "'x'", "breaker": "{}"}.get(field.name, field.default)
        if value is None:
            value = "[]" if field.name == "inputs" else "0.5" if "float" in str(field.type) else "1"
        value = str(value).lower() if isinstance(value, bool) else value
        if field.name not in {"slow_after", "slow_rate", "rate", "concurrency"}:
            load(f"[scanners.x.{layer}]\n{field.name} = {value}")


def test_a_new_option_is_written_in_its_class_and_nowhere_else(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(Cache, frozen=True):
        refresh_after: Seconds | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            self._optional("refresh_after", above=0)

    Newer.__name__ = "Cache"
    for module in (layering, read):
        monkeypatch.setattr(module, "LAYERS", {**LAYERS, "cache": Newer})
    text = "[defaults]\ncache = { refresh_after = '2m' }"
    environ = {"RESILIENT_SCAN__SCANNERS__plain__CACHE__REFRESH_AFTER": "1.5m"}
    assert effective(load(text), plain).policy.cache == Newer(refresh_after=120)
    with load(text, environ).runner([plain], listeners=()) as runner:
        explained = {number.option: number for layer in runner.explain("plain").layers for number in layer.numbers}
    number = explained["cache.refresh_after"]
    assert (number.value, number.origin) == ("90s", next(iter(environ)))
    for wrong in ("'soon'", "0", "true"):
        (problem,) = problems_of(load, f"[defaults]\ncache = {{ refresh_after = {wrong} }}")
        assert problem.startswith("scan.toml:2: defaults.cache.refresh_after must be ")
    (problem,) = problems_of(load, "[defaults]\ncache = { refresh_aftr = 1 }")
    assert problem.endswith("; did you mean 'refresh_after'?")


def test_the_quarantine_is_read_and_given_to_the_runner(load: Any) -> None:
    text = (
        "[quarantine]\ncooloff = '2m'\nlease = '1h'\nheartbeat = '30s'\nafter_failures = 10\ncritical = ['one', 'two']"
    )
    settings = load(text, {"RESILIENT_SCAN__QUARANTINE__SUCCESSES": "1"})
    assert settings.quarantine == Quarantine(
        cooloff=120, lease=3600, heartbeat=30, after_failures=10, critical=("one", "two"), successes=1
    )
    one, two = (scanner(name=name, pipeline="test")(lambda _state: []) for name in ("one", "two"))
    with settings.runner([one, two], listeners=()) as runner:
        assert runner.scanners()[0].needed == 1
    with settings.runner([one], known=["two"], listeners=()):  # the critical ones of these
        pass
    assert settings.check([one, two]) == ()
    (problem,) = settings.check([one])
    assert (
        problem.endswith(":6: quarantine.critical: unknown scanner two; did you mean 'one'?") or "there are" in problem
    )
    assert load("").quarantine == Quarantine()
