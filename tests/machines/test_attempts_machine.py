"""The history of attempts against one model: two processes that note, write, fold, end and are killed, in any order."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from resilient_scan.events import AttemptEnded
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.attempts import JOURNAL, AttemptHistory, AttemptReader
from resilient_scan.stores.columns import DAY
from resilient_scan.testing import FakeClock
from tests.support.needed import MEMORY

PROCESSES = st.integers(0, 1)
SCANNERS = ("a", "b")
KEPT = 3  # days
Known = Counter[tuple[str, float]]


class Keeper:
    def flush(self, *_: Any, **__: Any) -> None:
        """Do nothing: the machine says when something is done."""


class AttemptsMachine(RuleBasedStateMachine):
    """The model: what is committed, and for each process what it has noted and what it has put into its store."""

    @initialize()
    def build(self) -> None:
        self.directory = Path(mkdtemp(dir=MEMORY))
        self.clock = FakeClock(start=20_000 * DAY)
        self.committed: Known = Counter()
        self.histories: list[AttemptHistory] = []
        self.stores: list[Store] = []
        self.noted: list[Known] = [Counter(), Counter()]
        self.put: list[Known] = [Counter(), Counter()]
        self.read: dict[int, list[bytes]] = {}
        for number in range(2):
            self.start(number)
        self.reader = AttemptReader(self.open())

    def open(self) -> Store:
        return open_store(f"sqlite:///{self.directory}/scan.db", self.clock)

    def start(self, number: int) -> None:
        store = self.open()
        history = AttemptHistory(store, self.clock, KEPT * DAY, Keeper(), Random(0), lambda *_: None)  # type: ignore[arg-type]
        self.stores[number:] = [store, *self.stores[number + 1 :]]
        self.histories[number:] = [history, *self.histories[number + 1 :]]

    @rule(number=PROCESSES, scanner=st.sampled_from(SCANNERS), back=st.sampled_from([0.0, 60.0, DAY]))
    def note(self, number: int, scanner: str, back: float) -> None:
        begin = self.clock.time() - back
        self.histories[number](AttemptEnded(scanner, 1, "success", 0.5, None, "r", begin + 0.5))
        self.noted[number][scanner, begin] += 1

    @rule(number=PROCESSES)
    def drain(self, number: int) -> None:
        self.histories[number].drain()
        self.put[number] += self.noted[number]
        self.noted[number] = Counter()

    @rule(number=PROCESSES)
    def flush(self, number: int) -> None:
        self.stores[number].flush()
        self.committed += self.put[number]
        self.put[number] = Counter()

    @rule(number=PROCESSES)
    def fold(self, number: int) -> None:
        self.histories[number].fold()

    @rule(number=PROCESSES)
    def begin_to_fold(self, number: int) -> None:
        self.read[number] = self.stores[number].oldest(JOURNAL, 3)  # type: ignore[attr-defined]

    @rule(number=PROCESSES)
    def end_a_fold_that_was_begun_before(self, number: int) -> None:
        segments = self.read.pop(number, [])
        if segments:
            self.histories[number]._folded(segments)

    @rule(number=PROCESSES)
    def kill(self, number: int) -> None:
        self.noted[number], self.put[number] = Counter(), Counter()
        self.read.pop(number, None)
        self.start(number)

    @rule(number=PROCESSES)
    def end(self, number: int) -> None:
        self.drain(number)
        self.stores[number].close()
        self.committed += self.put[number]
        self.put[number] = Counter()
        self.kill(number)

    @rule(seconds=st.sampled_from([0.25, 3600.0, DAY, 2 * DAY]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def each_is_found_once(self) -> None:
        """What is committed is found, but for days that are over; and nothing else."""
        found: Known = Counter()
        for scanner, days in self.reader.read(SCANNERS).items():
            for day, columns in days.items():
                found.update((scanner, row.begin) for row in columns.rows(day))
        assert found <= self.committed, "nothing is counted twice, or made up"
        kept = int(self.clock.time() // DAY) - KEPT
        lost = self.committed - found
        assert all(begin // DAY < kept for _, begin in lost), lost
        self.committed = found  # what is over has gone for ever

    def teardown(self) -> None:
        for store in getattr(self, "stores", []):
            store.close()
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)


def test_the_history_of_attempts_follows_its_model(machine_settings: settings) -> None:
    run_state_machine_as_test(AttemptsMachine, settings=settings(machine_settings, stateful_step_count=25))
