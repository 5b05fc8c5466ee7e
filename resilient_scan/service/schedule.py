"""Run a fleet again and again: all scanners on a schedule, and one on probation as soon as its probe is due.

`Schedule` is the arithmetic of when the next run is due: on a grid, a little late by chance, never two runs at once.
`Scheduler` is the thread that keeps to it.

    |---- every ----|---- every ----|---- every ----|
    run             run ========= too long ======== run      catch_up="once": one run at once for all that were missed
    run             run ========= too long ========     run  catch_up="skip": wait for the next instant of the grid
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import ConfigError, is_number
from resilient_scan.events import ScheduledRunBegins, ScheduleStarted
from resilient_scan.runner import ScanRunner

_log = logging.getLogger("resilient_scan")
ONCE, SKIP = "once", "skip"
POLL_INTERVAL = 1.0  # seconds between two looks for probes that have become due


class Schedule:
    """The instants at which a fleet runs, on a monotonic clock.

    Args:
        every: seconds from one instant of the grid to the next, > 0.
        jitter: share of `every` by which a run may be late, drawn for each run, from 0 to 0.5: so that several services
            that were started together do not call their sources at the same moment.
        catch_up: what happens to instants that were missed because a run took longer or the machine slept: `once` makes
            up for all of them with one run at once, `skip` leaves them out.
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
        self.every, self._jitter, self._random = float(every), jitter, random
        self._catch_up = catch_up
        self._start = start
        self._step = 0
        self.due: float = start
        self._since = start  # the instant that the next run is meant for

    def ran(self, now: float) -> None:
        """Note that the run which was due has ended, and set when the next one is."""
        ahead = self._step + 1
        passed = math.floor((now - self._start) / self.every)
        if passed < ahead:
            self._set(ahead)
        elif self._catch_up == SKIP:
            self._set(passed + 1)
        else:
            self._step, self.due = passed, now
            self._since = self._start + ahead * self.every

    def lateness(self, now: float) -> float:
        """Return how long ago the run that is due should have begun: the first of those that it makes up for."""
        return max(0.0, now - self._since)

    def _set(self, step: int) -> None:
        self._step = step
        self.due = self._since = self._start + (step + self._jitter * self._random.random()) * self.every


class Scheduler:
    """Make one run after another, on its own thread, until `stop`.

    A run that fails as a whole (its state cannot be made, say) is logged, and the next one comes on time. A source that
    was ill is treated gently: probe runs are at least `probe_every` seconds apart, however well they do.

    Args:
        runner: runs the scanners; it stays open.
        schedule: when all of them run.
        state: called before each run for the state that its scanners get.
        deadline: seconds for a run; `None`: the runner's own.
        probe_every: seconds from the end of a probe run to the next one, >= 0; at least `POLL_INTERVAL` are kept.
        clock: tells and waits for the time.
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
        self._pause, self._probe_from = max(POLL_INTERVAL, probe_every), -math.inf
        self._clock = clock
        self._wake: Wake = clock.event()
        self._asked: dict[str, None] = {}  # scanners that somebody wants to see run now, in the order of the orders
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="resilient-scan-scheduler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether further runs will begin."""
        return self._thread.is_alive() and not self._stopped

    def start(self) -> None:
        """Begin, and tell the listeners that runs are to be expected from now on."""
        self._runner.tell(ScheduleStarted(tuple(self._runner.names), self._schedule.every, self._clock.time()))
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Begin no further run, and wait at most `timeout` seconds for the one under way; say whether it has ended."""
        # The flag comes before the wake-up. The other way round, the thread could wake, see no flag yet, and go back to
        # sleep until its next look: `stop` would wait a second for a thread that has nothing to do.
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def ask(self, name: str) -> None:
        """Have one scanner run as soon as no run is under way; two orders that wait are one run."""
        self._asked[name] = None
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopped:
            try:
                self._step()
            except Exception:
                # `stop(0)` does not wait for the run under way, and what comes after it closes the runner. A run that
                # begins just then is refused: that is the end, not a failure to log.
                if self._runner.closed:
                    return
                _log.exception("a run failed as a whole; the next one comes in its time")
                self._clock.wait(self._clock.monotonic() + POLL_INTERVAL, self._wake)

    def _step(self) -> None:
        """Make the run that is asked for, the one that is due, or that of the probes that are due, or wait."""
        # The flag is lowered before the two looks, at `_stopped` and at `_asked`. The other way round, a stop or an
        # order could come in between: its flag would be lowered although nobody has seen it, and it would wait for a
        # second.
        self._wake.clear()
        if self._stopped:
            return
        now = self._clock.monotonic()
        if self._asked:
            name = next(iter(self._asked))
            del self._asked[name]  # before the run: an order that comes during it wants another one
            self._runner.run(self._state(), deadline=self._deadline, only=(name,))
        elif now >= self._schedule.due:
            try:
                self._runner.tell(ScheduledRunBegins(self._schedule.lateness(now), self._clock.time()))
                self._runner.run(self._state(), deadline=self._deadline)
            finally:
                self._schedule.ran(self._clock.monotonic())
        elif (due := self._runner.probes_due()) and now >= self._probe_from:
            try:
                self._runner.run(self._state(), deadline=self._deadline, only=due)
            finally:
                self._probe_from = self._clock.monotonic() + self._pause
        else:
            self._clock.wait(min(self._schedule.due, now + POLL_INTERVAL), self._wake)
