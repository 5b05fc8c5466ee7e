"""The parts of an explanation: where numbers come from."""

from resilient_scan import Breaker, Cache, Limit, Policy, Retry, Timeout, scanner
from resilient_scan.observe.explain import origins_in_code
from resilient_scan.scanning import spec_of


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


def test_timeout_seconds_is_the_total_of_scanners_without_a_timeout():
    timed = scanner(pipeline="edge", name="timed", timeout=Timeout(total=5))(lambda state: [])
    assert origins(insider_buying, timeout_seconds=True)["timeout.total"] == "timeout_seconds"
    assert origins(insider_buying, timeout_seconds=True)["timeout.max_abandoned"] == "built-in"
    assert origins(timed, timeout_seconds=True)["timeout.total"] == "decorator"
    assert origins(timed, whole=True, timeout_seconds=True)["timeout.total"] == "policies"
