"""Memory and SQLite against one model: two views of one place, time that passes and jumps, flushes, restarts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from resilient_scan.stores import Store, open_store
from resilient_scan.testing import FakeClock
from tests.support.needed import MEMORY

KEYS = st.sampled_from(["a", "a/b", "a/c", "b", "é"])
DATA = st.binary(max_size=3)
VIEWS = st.integers(0, 1)
SECONDS = st.sampled_from([0.0, 1.0, 10.0, 100.0])
KEEP = 4


class StoreMachine(RuleBasedStateMachine):
    """The model: dictionaries, and for each view what it has kept back."""

    home = "memory"

    @initialize()
    def build(self) -> None:
        self.directory = Path(mkdtemp(dir=MEMORY))
        self.clock = FakeClock()
        self.stores = [self.open(), self.open()] if self.home == "sqlite" else [self.open()] * 2
        self.documents: dict[str, bytes] = {}
        self.written: dict[str, tuple[bytes, float]] = {}
        self.kept: list[dict[str, tuple[bytes, float]]] = [{}, {}]
        self.leases: dict[str, tuple[str, float]] = {}
        self.logs: dict[str, list[bytes]] = {}
        self.kept_records: list[list[bytes]] = [[], []]

    def open(self) -> Store:
        return open_store("memory:" if self.home == "memory" else f"sqlite:///{self.directory}/scan.db", self.clock)

    def view(self, number: int) -> int:
        return number if self.home == "sqlite" else 0

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    # documents

    @rule(view=VIEWS, key=KEYS, new=st.none() | DATA)
    def update(self, view: int, key: str, new: bytes | None) -> None:
        old = self.documents.get(key)
        found = self.stores[view].update(key, lambda there, now: (new, (there, now)))
        assert found == (old, self.clock.time())
        self.documents.pop(key, None)
        if new is not None:
            self.documents[key] = new

    @rule(view=VIEWS, key=KEYS)
    def look(self, view: int, key: str) -> None:
        assert self.stores[view].update(key, lambda there, _now: (there, there)) == self.documents.get(key)

    @rule(view=VIEWS, key=KEYS)
    def fail(self, view: int, key: str) -> None:
        def failing(_old: bytes | None, _now: float) -> tuple[bytes | None, None]:
            raise LookupError

        with pytest.raises(LookupError):
            self.stores[view].update(key, failing)

    @rule(view=VIEWS, prefix=st.sampled_from(["", "a", "a/", "x"]))
    def read(self, view: int, prefix: str) -> None:
        expected = {key: data for key, data in self.documents.items() if key.startswith(prefix)}
        assert self.stores[view].read(prefix) == expected

    # values

    @rule(view=VIEWS, key=KEYS, data=DATA, seconds=SECONDS)
    def put(self, view: int, key: str, data: bytes, seconds: float) -> None:
        self.stores[view].put(key, data, seconds)
        self.kept[self.view(view)][key] = (data, self.now + seconds)

    @rule(view=VIEWS, key=KEYS)
    def get(self, view: int, key: str) -> None:
        data, until = self.kept[self.view(view)].get(key) or self.written.get(key, (None, 0.0))
        assert self.stores[view].get(key) == (data if self.now < until else None)

    @rule(view=VIEWS, key=KEYS)
    def delete(self, view: int, key: str) -> None:
        self.stores[view].delete(key)
        self.kept[self.view(view)].pop(key, None)
        self.written.pop(key, None)

    # leases

    @rule(view=VIEWS, key=KEYS, owner=st.sampled_from(["me", "you"]), seconds=SECONDS)
    def lease(self, view: int, key: str, owner: str, seconds: float) -> None:
        holder, until = self.leases.get(key, (owner, 0.0))
        free = holder == owner or self.now >= until
        assert self.stores[view].lease(key, owner, seconds) is free
        if free:
            self.leases[key] = (owner, self.now + seconds)

    @rule(view=VIEWS, key=KEYS, owner=st.sampled_from(["me", "you"]))
    def release(self, view: int, key: str, owner: str) -> None:
        self.stores[view].release(key, owner)
        if self.leases.get(key, ("", 0.0))[0] == owner:
            del self.leases[key]

    # logs

    @rule(view=VIEWS, data=DATA)
    def order(self, view: int, data: bytes) -> None:
        self.stores[view].append("audit", data, KEEP)
        self.logs["audit"] = [*self.logs.get("audit", []), data][-KEEP:]

    @rule(view=VIEWS, data=DATA)
    def record(self, view: int, data: bytes) -> None:
        self.stores[view].append("runs", data, KEEP)
        self.kept_records[self.view(view)].append(data)

    @rule(view=VIEWS, limit=st.integers(0, 6))
    def tail(self, view: int, limit: int) -> None:
        assert self.stores[view].tail("audit", limit) == self.logs.get("audit", [])[::-1][:limit]
        runs = [*self.logs.get("runs", []), *self.kept_records[self.view(view)]]
        if self.home == "memory":
            runs = runs[-KEEP:]
        assert self.stores[view].tail("runs", limit) == runs[::-1][:limit]

    # the whole

    @rule(view=VIEWS)
    def flush(self, view: int) -> None:
        self.stores[view].flush()
        self._written(self.view(view))

    @rule(view=VIEWS)
    def restart(self, view: int) -> None:
        if self.home == "sqlite":
            self.stores[view].close()
            self._written(view)
            self.stores[view] = self.open()

    def _written(self, view: int) -> None:
        self.written.update(self.kept[view])
        self.kept[view] = {}
        self.logs["runs"] = [*self.logs.get("runs", []), *self.kept_records[view]][-KEEP:]
        self.kept_records[view] = []

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def the_time_is_read(self) -> None:
        assert self.stores[0].now() == self.clock.time()

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        assert [each.name for each in self.directory.iterdir() if ".corrupt-" in each.name] == []
        shutil.rmtree(self.directory)


@pytest.mark.parametrize("home", ["memory", "sqlite"])
def test_a_store_is_as_the_model(home: str, machine_settings: settings) -> None:
    machine: Callable[[], Any] = type("Machine", (StoreMachine,), {"home": home})
    run_state_machine_as_test(machine, settings=machine_settings)
