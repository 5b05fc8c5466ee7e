"""A pytest plugin: runners have their attempts made at a real cluster, unless a test says otherwise.

    pytest -n0 -p tests.support.on_cluster tests/composition/test_limit.py

The tests of the thread engine then show that it makes no difference to them. They are lent three things that a user
does not have. All runners use the same workers, one after another, so that none has to wait for new processes. What a
test has in memory its scanners have, too (`lent`). And a test's clock may stand in for the driver's; the scanner's
process has the machine's clock all the same.

`not_on_cluster.toml` names the tests that cannot pass, each with the reason. They are expected to fail, and one that
passes fails the session: it has to be taken off the list. With `RESILIENT_SCAN_CLUSTER_LIST=skip` they are left out.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from resilient_scan import PluginError, ScanRunner
from resilient_scan.clock import SystemClock
from resilient_scan.core import assembly
from resilient_scan.engines.cluster.workers import ClusterWorkers
from resilient_scan.engines.process import engine, transfer
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.options import Cluster
from resilient_scan.scanning import ScannerSpec
from resilient_scan.testing import FakeClock
from tests.support import waiting
from tests.support.clusters import DaskCluster
from tests.support.lent import LENDERS, Lender

WORKERS: Final = 2
THREADS: Final = 6  # of each
PATIENCE: Final = 5.0  # seconds after which what a listed test waits for will not come
GRACE: Final = 5.0  # seconds: on a busy machine too, it is the worker that notices that a scan's time is up
NOT_TRIED: Final = {"busy", "clock", "moment"}  # they would wait for long, or pass by chance
LIST: Final = tomllib.loads(Path(__file__).with_name("not_on_cluster.toml").read_text())


class SharedWorkers(ClusterWorkers):
    """Workers that all runners of the session use."""

    def register(self, number: int, name: str, payload: bytes) -> None:
        """Make a scanner known to the workers at once: they were started before it."""
        super().register(number, name, payload)
        for worker in tuple(self._workers.values()):
            error = worker.define(self._scanners[-1])
            if error is not None:
                raise PluginError(f"worker {worker.where} cannot have {name}: {transfer.unpack_error(error)[0]}")

    def start(self) -> None:
        """Do nothing: they were started with the session."""

    def close(self) -> None:
        """Do nothing: the next runner uses them."""


class _AnyClock(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, (SystemClock, FakeClock))


class DriversClock(metaclass=_AnyClock):
    """What the engine takes for the machine's clock: a test's is one, too."""

    time = staticmethod(SystemClock.time)


def _entered(
    enter: Callable[..., float], self: engine.ProcessEngine, child: Any, context: AttemptContext, state: bytes
) -> float:
    """Return when an attempt has begun, by the driver's clock; a worker says it by the machine's."""
    began = enter(self, child, context, state)
    if isinstance(self._clock, FakeClock):
        began = context.open_attempt = context.attempt_began = self._clock.monotonic()
    return began


class OnCluster:
    """The hooks of the plugin."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="resilient-scan-cluster-")
        self._lender = Lender()

    def pytest_sessionstart(self) -> None:
        """Start a cluster, and have runners use it."""
        self._cluster = DaskCluster(Path(self._folder.name))
        self._cluster.add(WORKERS, THREADS)
        self._cluster.until(WORKERS)
        self._workers = SharedWorkers(Cluster(self._cluster.address, grace=GRACE))
        ClusterWorkers.start(self._workers)
        assert self._workers.slots() == WORKERS * THREADS, self._cluster.errors()
        LENDERS[self._lender.address] = self._lender
        patched: Any = assembly, engine, waiting, ScanRunner.__init__
        patched[0]._children = lambda _config: self._workers
        patched[1].SystemClock = DriversClock
        patched[1].reference_of = self._reference_of
        enter = engine.ProcessEngine._enter
        patched[1].ProcessEngine._enter = lambda *arguments, **named: _entered(enter, *arguments, **named)
        patched[2].eventually.__defaults__ = ("the condition", PATIENCE)
        patched[3].__kwdefaults__ |= {"engine": "dask", "cluster": "local"}

    def _reference_of(self, spec: ScannerSpec, _option: str) -> transfer.Reference:
        """Send what is not importable with stand-ins for what its test has in memory."""
        if any(thing is not None and transfer._named(thing) for thing in (spec.origin, spec.made_of)):
            return transfer.reference_of(spec)
        carried = transfer._Carried(spec.name, spec.pipeline, self._lender.lent(spec.origin.scan))
        return transfer.reference_of(msgspec.structs.replace(spec, origin=carried, made_of=None))

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Expect those that are listed to fail, or leave them out."""
        listed = {item: reason for item in items if (reason := reason_of(item)) is not None}
        if os.environ.get("RESILIENT_SCAN_CLUSTER_LIST") == "skip":
            config.hook.pytest_deselected(items=[*listed])
            items[:] = [item for item in items if item not in listed]
        for item, reason in listed.items():
            tried = reason not in {LIST["reasons"][name] for name in NOT_TRIED}
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, run=tried))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Forget what the test has lent."""
        self._lender.forget()

    def pytest_sessionfinish(self) -> None:
        """Leave nothing behind."""
        ClusterWorkers.close(self._workers)
        self._cluster.__exit__()
        self._lender.close()
        self._folder.cleanup()


def reason_of(item: pytest.Item) -> str | None:
    """Return why a test cannot pass; `None`: it has to."""
    name = f"{item.path.name}::{item.name}"
    reason = LIST["tests"].get(name, LIST["tests"].get(name.partition("[")[0]))
    return None if reason is None else str(LIST["reasons"][reason])


def pytest_configure(config: pytest.Config) -> None:
    """Register the hooks."""
    config.pluginmanager.register(OnCluster())
