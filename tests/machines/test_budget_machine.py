"""The budget of retries against a model: two lists of instants."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from resilient_scan import Retry
from resilient_scan.layers.retry import RetryBudget
from resilient_scan.testing import FakeClock
from tests.support.examples import examples

WINDOW = 60.0


class BudgetMachine(RuleBasedStateMachine):
    @initialize(share=st.sampled_from([0.125, 0.25, 0.5, 1.0]), least=st.integers(0, 3))
    def build(self, share: float, least: int) -> None:
        self.share, self.least = share, least
        self.clock = FakeClock()
        self.budget = RetryBudget(Retry(budget=share, budget_min=least), self.clock)
        self.executions: list[float] = []
        self.retries: list[float] = []

    def recent(self, instants: list[float]) -> int:
        return sum(self.clock.monotonic() - instant < WINDOW for instant in instants)

    @rule(times=st.integers(1, 6))
    def execute(self, times: int) -> None:
        for _ in range(times):
            self.executions.append(self.clock.monotonic())
            self.budget.count()

    @rule(times=st.integers(1, 4))
    def ask(self, times: int) -> None:
        for _ in range(times):
            allowed = max(self.least, self.share * self.recent(self.executions))
            expected = self.recent(self.retries) < allowed
            assert self.budget.spend() is expected
            if expected:
                self.retries.append(self.clock.monotonic())

    @rule(seconds=st.sampled_from([0.5, 7.0, 30.0, WINDOW]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.recent(self.executions) or self.recent(self.retries))
    @rule(before=st.sampled_from([0.0, 0.25]), of_retries=st.booleans())
    def pass_to_the_instant_at_which_one_is_forgotten(self, before: float, of_retries: bool) -> None:
        now = self.clock.monotonic()
        instants = self.retries if of_retries else self.executions
        left = [instant + WINDOW - now - before for instant in instants if now - instant < WINDOW]
        if left and left[0] > 0:
            self.clock.advance(left[0])


def test_the_budget_is_the_one_of_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(BudgetMachine, settings=settings(machine_settings, max_examples=examples(150)))
