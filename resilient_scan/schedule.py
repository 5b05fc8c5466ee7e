"""When the next run is due: on a grid, a little late by chance, never two at once.

|---- every ----|---- every ----|---- every ----|
run             run ========= too long ======== run      catch_up="once": one at once for all that were missed
run             run ========= too long ========     run  catch_up="skip": wait for the grid's next instant
"""

from __future__ import annotations

import math
from random import Random

from resilient_scan.errors import ConfigError, is_number

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
