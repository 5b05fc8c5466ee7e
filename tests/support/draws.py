"""Random numbers that are not random."""

from __future__ import annotations

from random import Random


class SameDraw(Random):
    """Always draws the same share of the range: 0 its lower end, 1 its upper one."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__(0)
        self.share = share

    def random(self) -> float:
        return self.share


class EitherEnd(Random):
    """Draws one of the two ends of a range, so that a model knows the sums exactly."""

    def uniform(self, a: float, b: float) -> float:
        return a if self.random() < 0.5 else b
