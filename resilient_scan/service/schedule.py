"""Run a fleet again and again: all of it on schedule, scanners on probation as soon as their probe is due."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import ConfigError, is_number
from resilient_scan.runner import ScanRunner

# When the next run is due: on a grid, a little late by chance, never two at once.
#
# |---- every ----|---- every ----|---- every ----|
# run             run ========= too long ======== run      catch_up="once": one at once for all that were missed
# run             run ========= too long ========     run  catch_up="skip": wait for the grid's next instant

ONCE, SKIP = "once", "skip"


class Schedule:
    """The instants at which a fleet runs, on a monotonic clock.

    Args:
        every: seconds from one instant of the grid to the next, > 0.
        jitter: share of `every` by which a run may be late, drawn anew for each, from 0 to 0.5: so that several
            services that were started together do not ask their sources in one moment.
        catch_up: what becomes of instants that were missed, because a run took longer or the machine slept: `once`
            makes up for all of them by one run at once, `skip` leaves them out.
        start: instant of the first run.
        random: where the jitter comes from.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self, every: float, *, jitter: float = 0.1, catch_up: str = ONCE, start: float = 0.0, random: Random
    ) -> None:
        if not is_number(every, 0, 1e9) or every == 0:
            raise ConfigError(f"every must be a number of seconds > 0 and <= 1e9, got {every!r}")
        if not is_number(jitter, 0, 0.5):
            raise ConfigError(f"jitter must be a number from 0 to 0.5, got {jitter!r}")
        if catch_up not in {ONCE, SKIP}:
            raise ConfigError(f"catch_up must be 'once' or 'skip', got {catch_up!r}")
        self._every, self._jitter, self._random = float(every), jitter, random
        self._catch_up = catch_up
        self._start = start
        self._step = 0
        self.due = start

    def ran(self, now: float) -> None:
        """Note that the run which was due is over, and set the next one."""
        ahead = self._step + 1
        passed = math.floor((now - self._start) / self._every)
        if passed < ahead:
            self._set(ahead)
        elif self._catch_up == SKIP:
            self._set(passed + 1)
        else:
            self._step, self.due = passed, now

    def _set(self, step: int) -> None:
        self._step = step
        self.due = self._start + (step + self._jitter * self._random.random()) * self._every


_log = logging.getLogger("resilient_scan")
LOOK = 1.0  # seconds between two looks for probes that have become due


class Rounds:
    """One run at a time, on a thread of its own, until `stop`.

    A run that fails as a whole (its state cannot be made, say) is logged, and the next one comes in its time. A source
    that was ill is asked gently: probes come at most every `probe_every` seconds, however well they do.

    Args:
        runner: what runs; it stays open.
        schedule: when all of it runs.
        state: called before each run, for what its scanners are given.
        deadline: seconds for a run; `None`: the runner's own.
        probe_every: seconds from the end of a run for probes to the next one, >= 0; less than `LOOK` is as much.
        clock: what is waited on.
    """

    def __init__(
        self,
        runner: ScanRunner,
        schedule: Schedule,
        *,
        state: Callable[[], Mapping[str, Any]] = dict,
        deadline: float | None = None,
        probe_every: float = 0.0,
        clock: Clock,
    ) -> None:
        self._runner, self._schedule = runner, schedule
        self._state, self._deadline = state, deadline
        self._pause, self._probe_from = max(LOOK, probe_every), -math.inf
        self._clock = clock
        self._wake: Wake = clock.event()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="resilient-scan-rounds", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether runs go on."""
        return self._thread.is_alive() and not self._stopped

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, grace: float) -> bool:
        """Begin no further run, and wait at most `grace` seconds for the one under way; say whether it has ended."""
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(grace)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while not self._stopped:
            try:
                self._round()
            except Exception:
                if self._runner.closed:
                    return
                _log.exception("a run failed as a whole; the next one comes in its time")
                self._clock.wait(self._clock.monotonic() + LOOK, self._wake)

    def _round(self) -> None:
        now = self._clock.monotonic()
        if now >= self._schedule.due:
            try:
                self._runner.run(self._state(), deadline=self._deadline)
            finally:
                self._schedule.ran(self._clock.monotonic())
        elif (due := self._runner.probes_due()) and now >= self._probe_from:
            try:
                self._runner.run(self._state(), deadline=self._deadline, only=due)
            finally:
                self._probe_from = self._clock.monotonic() + self._pause
        else:
            self._clock.wait(min(self._schedule.due, now + LOOK), self._wake)
