"""Many processes of many threads on one breaker.

`python -m tests.e2e.breaker_crew URL DIRECTORY PROCESSES THREADS TRIALS SECONDS OPEN_FOR`

Each thread asks again and again. One that finds the breaker closed fails, which opens it; one that gets a trial takes a
few milliseconds and fails half of the time. Each process leaves what it saw as a file of JSON: all `trials` as
(generation, asked, began, ended, failed), on the machine's monotonic clock, and all `changes`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from resilient_scan import Breaker, CircuitOpen
from resilient_scan.clock import SystemClock
from resilient_scan.layers.breaker import BreakerStore, CircuitBreaker
from resilient_scan.stores import open_store


class Crew:
    """The threads of one process."""

    def __init__(self, url: str, trials: int, open_for: float, number: int) -> None:
        clock = SystemClock()
        self.seen: dict[str, list[Any]] = {"trials": [], "changes": [], "errors": []}
        self.number = number
        errors = self.seen["errors"]
        store = BreakerStore(open_store(url, clock), "breaker/one", lambda *error: errors.append(str(error)))
        options = Breaker(failures=1, open_for=open_for, open_cap=open_for, trials=trials)
        self.breaker = CircuitBreaker("one", options, clock, Random(number), store)

    def work(self, chance: Random, until: float) -> None:
        while (asked := time.monotonic()) < until:
            try:
                permit, change = self.breaker.admit()
            except CircuitOpen:
                time.sleep(0.002 * chance.random())
                continue
            self.note(change)
            trial = permit.expires is not None
            failed, began = not trial or chance.random() < 0.5, time.monotonic()
            if trial:
                time.sleep(0.004 * chance.random())
            ended = time.monotonic()
            self.note(self.breaker.vote(permit, failed))
            if trial:
                self.seen["trials"].append((permit.generation, asked, began, ended, failed))

    def note(self, change: Any) -> None:
        if change is not None:
            self.seen["changes"].append((change.old, change.new))

    def run(self, threads: int, until: float) -> None:
        chances = [Random(100 * self.number + number) for number in range(threads)]
        crew = [threading.Thread(target=self.work, args=(chance, until)) for chance in chances]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()


def main(url: str, directory: str, processes: int, threads: int, trials: int, seconds: float, open_for: float) -> None:
    importlib.import_module("resilient_scan.layers.breaker.machine")  # once, not in each child: it takes half a second
    begin = time.monotonic() + 0.2
    children = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            crew = Crew(url, trials, open_for, number)
            time.sleep(max(0.0, begin - time.monotonic()))
            crew.run(threads, begin + seconds)
            (Path(directory) / f"{number}.json").write_text(json.dumps(crew.seen))
            os._exit(0)
        children.append(pid)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), *map(float, sys.argv[6:8]))  # type: ignore[arg-type]
