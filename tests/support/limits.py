"""The queues of a provider without an engine: a timer that rings when the test lets time pass, and who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.testing import FakeClock


class Timers:
    """Stands for the engine's timer: rings when the test lets time pass."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self._set: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, instant: float, call: Callable[[], None]) -> Callable[[], None]:
        entry = (instant, call)
        self._set.append(entry)
        return lambda: self._set.remove(entry) if entry in self._set else None

    @property
    def instants(self) -> list[float]:
        return sorted(instant for instant, _call in self._set)

    def advance(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while due := sorted((entry for entry in self._set if entry[0] <= end), key=lambda entry: entry[0]):
            instant, call = due[0]
            self._set.remove(due[0])
            self.clock.advance(max(0.0, instant - self.clock.monotonic()))
            call()
        self.clock.advance(end - self.clock.monotonic())


class Asker:
    """Someone in the queue, who notes the answers it gets."""

    def __init__(self, *, with_permit: bool = True) -> None:
        self.answers: list[Any] = []
        self.ticket = Ticket(lambda: self.answers.append("granted"), self.answers.append, with_permit=with_permit)


def ask(provider: Provider, until: float = 100.0, *, with_permit: bool = True) -> Asker:
    asker = Asker(with_permit=with_permit)
    provider.request(asker.ticket, until)
    return asker
