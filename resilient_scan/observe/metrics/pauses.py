"""Pauses in long work, so that other threads need not wait for the interpreter.

A run must not suffer from a scrape. Python takes the interpreter from a thread that computes only after 5 ms, so
each hand-over in a run takes 5 ms while a scrape computes, and a run has many. So a scrape steps aside by itself.
"""

from __future__ import annotations

import time

TURN = 0.001  # seconds of work between two pauses
PAUSE = 5e-5  # seconds; with 0 the lock is taken back before a thread that waits for it has woken up
PATIENCE = 2.0  # seconds after which there are no more pauses: Prometheus does not wait for ever


class Pauses:
    """Steps aside for other threads when it is called after the end of a turn, unless the whole takes too long."""

    def __init__(self) -> None:
        now = time.perf_counter()
        self._turn_ends, self._patience_ends = now + TURN, now + PATIENCE

    def __call__(self) -> None:
        """Pause, if it is time to."""
        now = time.perf_counter()
        if self._turn_ends <= now < self._patience_ends:
            time.sleep(PAUSE)
            self._turn_ends = time.perf_counter() + TURN
