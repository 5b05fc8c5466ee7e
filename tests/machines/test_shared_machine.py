"""Values that several scanners share, against a model: who loads, who waits, who loads in the stead of a hung one."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from resilient_scan import ScanCancelled, ScanContext
from resilient_scan.layers.shared_values import SharedValues
from tests.support.clocks import WatchedClock
from tests.support.fixtures import Eventually
from tests.support.waiting import WAIT_TIMEOUT

APART = 2.0**-6  # seconds between any two deadlines, so that the model knows which one comes first


class LoadError(Exception):
    """What a loader raises."""


class Asker:
    """A thread that asks for a value once."""

    def __init__(self, values: SharedValues, clock: WatchedClock, key: str, ttl: float, seconds: float) -> None:
        self.key, self.ttl = key, ttl
        self.deadline = clock.monotonic() + seconds
        self.since = 0.0  # when it began to load
        self.loads = threading.Event()
        self.go = threading.Event()
        self.answer: Any = None
        self.outcome: Any = None  # what its load brings
        self.context = ScanContext("one", clock=clock, deadline=self.deadline)
        self.thread = threading.Thread(target=self._ask, args=(values,), daemon=True)
        self.thread.start()

    def _ask(self, values: SharedValues) -> None:
        try:
            self.answer = values.get(self.key, self._load, self.ttl, self.context)
        except (LoadError, ScanCancelled) as error:
            self.answer = error

    def _load(self) -> Any:
        self.loads.set()
        assert self.go.wait(2 * WAIT_TIMEOUT), "the test forgot a loader"
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    @property
    def spent(self) -> float:
        return self.deadline - self.since

    def done(self) -> bool:
        return not self.thread.is_alive()


class SharedMachine(RuleBasedStateMachine):
    eventually: Eventually

    @initialize()
    def build(self) -> None:
        self.clock = WatchedClock()
        self.values = SharedValues(self.clock)
        self.kept: dict[str, tuple[float, Any]] = {}
        self.loader: dict[str, Asker] = {}  # the one that the others wait for
        self.hung: list[Asker] = []  # loaders whose time is over
        self.dead: dict[str, Asker] = {}  # those of them in whose stead nobody loads
        self.waiting: list[Asker] = []
        self.numbers = 0

    @rule(key=st.sampled_from("ab"), ttl=st.sampled_from([2.0, 5.0]), seconds=st.sampled_from([1.5, 3.5, 9.5]))
    def ask(self, key: str, ttl: float, seconds: float) -> None:
        self.numbers += 1
        seconds += self.numbers * APART
        asker = Asker(self.values, self.clock, key, ttl, seconds)
        until, value = self.kept.get(key, (0.0, None))
        if self.clock.monotonic() < until:
            self.eventually(asker.done, "a kept value is answered at once")
            assert asker.answer is value
        elif key in self.loader:
            self.waiting.append(asker)
            self._settle()
            assert not asker.loads.is_set()
        elif key in self.dead and seconds <= self.dead[key].spent / 2:
            self.waiting.append(asker)
            self._settle()
            assert not asker.loads.is_set(), "what was not enough for the hung one is too little for this one"
        else:
            self.eventually(asker.loads.is_set, "the first asker loads")
            self._leads(asker)

    def _settle(self) -> None:
        """Wait until each that has to wait either does, for an instant to come, or loads, which the caller judges.

        One whose time has come, or whom another one has woken, may still be without the processor: a step taken before
        it looks would find it in a state that the model has left.
        """
        self.eventually(
            lambda: all(asker.loads.is_set() or self.clock.rests(thread=asker.thread.name) for asker in self.waiting),
            "who has to wait does",
        )

    def _leads(self, asker: Asker) -> None:
        asker.since = self.clock.monotonic()
        self.loader[asker.key] = asker
        self.dead.pop(asker.key, None)
        self._settle()

    @precondition(lambda self: self.loader or self.hung)
    @rule(data=st.data(), fails=st.booleans())
    def a_load_ends(self, data: st.DataObject, fails: bool) -> None:
        loading = [*self.loader.values(), *self.hung]
        asker = loading[data.draw(st.integers(0, len(loading) - 1), label="loader")]
        asker.outcome = LoadError() if fails else object()
        asker.go.set()
        self.eventually(asker.done, "a loader has its own outcome")
        assert asker.answer is asker.outcome
        if not fails:
            self.kept[asker.key] = (self.clock.monotonic() + asker.ttl, asker.outcome)
        if asker in self.hung:
            self.hung.remove(asker)
            if self.dead.get(asker.key) is not asker:
                return
            del self.dead[asker.key]
        else:
            del self.loader[asker.key]
        for waiter in [waiter for waiter in self.waiting if waiter.key == asker.key]:
            self.waiting.remove(waiter)
            self.eventually(waiter.done, "who waits for a load gets its outcome")
            assert waiter.answer is asker.outcome
            assert not waiter.loads.is_set()

    @rule(seconds=st.sampled_from([1.0, 2.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (
            asker := min([*self.loader.values(), *self.waiting], key=lambda asker: asker.deadline, default=None)
        ) and asker.deadline + APART / 2 <= end:
            self.clock.advance(asker.deadline + APART / 2 - self.clock.monotonic())
            if asker in self.waiting:
                self.waiting.remove(asker)
                self.eventually(asker.done, "nobody waits longer than its own time")
                assert isinstance(asker.answer, ScanCancelled)
            else:
                self.hung.append(asker)
                self._pass_on(asker)
            self._settle()
        self.clock.advance(end - self.clock.monotonic())

    def _pass_on(self, hung: Asker) -> None:
        """The loader's time is over: one of those that have time enough loads now, the others wait for that one."""
        del self.loader[hung.key]
        enough = self.clock.monotonic() + hung.spent / 2
        heirs = [waiter for waiter in self.waiting if waiter.key == hung.key and waiter.deadline > enough]
        if not heirs:
            self.dead[hung.key] = hung
            return
        self.eventually(lambda: any(heir.loads.is_set() for heir in heirs), "one loads in a hung one's stead")
        self._settle()
        (heir,) = [heir for heir in self.waiting if heir.loads.is_set()]
        assert heir in heirs
        self.waiting.remove(heir)
        self._leads(heir)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def pass_to_the_end_of_a_value(self, data: st.DataObject) -> None:
        until, _value = self.kept[data.draw(st.sampled_from(sorted(self.kept)), label="key")]
        left = until - self.clock.monotonic()
        if left > 0:
            self.pass_time(left)

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        askers = [*self.loader.values(), *self.hung, *self.waiting]
        for asker in askers:
            asker.go.set()
        self.clock.advance(1000.0)
        for asker in askers:
            self.eventually(asker.done, "all threads end")


def test_shared_values_are_those_of_the_model(machine_settings: settings, eventually: Eventually) -> None:
    machine = type("Machine", (SharedMachine,), {"eventually": staticmethod(eventually)})
    run_state_machine_as_test(machine, settings=settings(machine_settings, phases=[Phase.generate]))
