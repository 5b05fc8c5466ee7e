"""The parts of an explanation: durations, foreign text, where numbers come from."""

from resilient_scan import Breaker, Cache, Limit, Policy, Retry, Timeout, scanner
from resilient_scan.explain import origins_in_code
from resilient_scan.explain.words import ago, clean, counted, moment, shortened, span
from resilient_scan.scanning import spec_of


def test_durations_have_two_units_at_most():
    spans = [0, 0.0001, 0.0206, 0.25, 1.5, 9.994, 58.31, 59.96, 90, 300, 3599.9, 5400, 90_000, 1e9]
    assert [span(seconds) for seconds in spans] == [
        *("0s", "<0.001s", "0.021s", "0.25s", "1.5s", "9.99s", "58.3s", "1m", "1m 30s", "5m", "1h", "1h 30m"),
        *("1d 1h", "11574d 1h"),
    ]
    assert [ago(seconds) for seconds in (-0.5, 0.2, 3.9, 7300)] == ["just now", "just now", "3s ago", "2h 1m ago"]


def test_an_instant_of_today_has_no_date():
    noon = 1_795_521_600.0
    assert moment(noon) == "2026-11-24 12:00:00 UTC"
    assert moment(noon, noon + 60) == "12:00:00"
    assert moment(noon, noon + 86_400) == "11-24 12:00"


def test_foreign_text_cannot_steer_the_terminal():
    assert clean("red\x1b[31m\n  two   lines\u202e") == "red [31m two lines"
    assert shortened("a\x1b[2Jb" + "x" * 50, 10) == "a [2Jbxxx…"
    assert [counted(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]


@scanner(pipeline="edge", cache=Cache(ttl=60), breaker=None)
def insider_buying(state):
    return []


class Plain:
    name = "plain"
    pipeline = "edge"
    retry = Retry(attempts=2)

    def scan(self, state):
        return []


def origins(thing, base=None, *, whole=False, timeout_seconds=False):
    spec = spec_of(thing)
    policy = (base or Policy()).replace(spec.layers)
    return origins_in_code(spec, policy, base, whole=whole, timeout_seconds=timeout_seconds)


def test_every_number_has_an_origin():
    found = origins(insider_buying, Policy(retry=Retry(attempts=2), limit=Limit("sec")))
    assert found["cache.ttl"] == found["cache.jitter"] == "decorator"
    assert found["breaker"] == "decorator"
    assert found["retry.attempts"] == found["limit.provider"] == "policy"
    assert found["timeout.total"] == "built-in"


def test_a_layer_of_the_policy_that_is_the_default_is_built_in():
    assert origins(insider_buying)["limit"] == "built-in"
    assert origins(insider_buying, Policy(retry=Retry(), breaker=Breaker()))["retry.base"] == "built-in"


def test_a_class_can_carry_its_layers():
    assert origins(Plain)["retry.attempts"] == "the scanner's class"


def test_timeout_seconds_is_the_total_of_who_has_no_timeout_of_its_own():
    timed = scanner(pipeline="edge", name="timed", timeout=Timeout(total=5))(lambda state: [])
    assert origins(insider_buying, timeout_seconds=True)["timeout.total"] == "timeout_seconds"
    assert origins(insider_buying, timeout_seconds=True)["timeout.max_abandoned"] == "built-in"
    assert origins(timed, timeout_seconds=True)["timeout.total"] == "decorator"
    assert origins(timed, whole=True, timeout_seconds=True)["timeout.total"] == "policies"
