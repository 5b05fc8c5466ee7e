"""What the stateful tests share."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.support.examples import examples

settings.register_profile(
    "machines",
    deadline=None,  # threads start in some steps; a busy machine must not fail a test
    derandomize=True,  # the same examples each time: a failure is the change's fault
    max_examples=examples(60),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="session")
def machine_settings() -> settings:
    """Return the settings that the machines run with."""
    return settings.get_profile("machines")
