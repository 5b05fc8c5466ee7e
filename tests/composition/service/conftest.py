"""A real service over loopback, on a real runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from resilient_scan import ControlService, Quarantine, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.service.process import Process
from resilient_scan.testing import FakeClock, healthy
from tests.support.control import TOKEN, Served
from tests.support.fixtures import Fleet, Serve

AROUND = ("why_not", "run", "alerting", "instance", "ask_again")
NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def serve(fleet: Fleet) -> Iterator[Serve]:
    """Return a function that starts a service on a runner (of four healthy scanners, unless given)."""
    with ExitStack() as stack:

        def start(*scanners: Any, runner: Any = None, token: str | None = TOKEN, **options: Any) -> Served:
            of_service = ("allowed_hosts", "bounds", "host", "read_token")
            named = {key: options.pop(key) for key in of_service if key in options}
            around = {key: options.pop(key) for key in AROUND if key in options}
            clock = options.setdefault("clock", FakeClock())
            if runner is None:
                runner = fleet(*(scanners or map(healthy, NAMES)), **{"quarantine": Quarantine(), **options})
            registry = CollectorRegistry()
            service = ControlService(runner, token, registry=registry, clock=clock, process=Process(**around), **named)
            stack.enter_context(service)
            return Served(service, runner, registry)

        yield start


@pytest.fixture
def served(serve: Serve) -> Served:
    """A service on four healthy scanners."""
    return serve()


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """The same, for the tests of a module that change nothing."""
    registry = CollectorRegistry()
    with (
        ScanRunner(map(healthy, NAMES), listeners=()) as runner,
        ControlService(runner, TOKEN, registry=registry, clock=FakeClock()) as service,
    ):
        served = Served(service, runner, registry)
        yield served
        assert served.get("/audit").json == {"entries": []}
