"""Poisons that change the process for everybody, or the runner that they are part of."""

from __future__ import annotations

import contextlib
import decimal
import faulthandler
import gc
import locale
import logging
import logging.config
import os
import random
import signal
import sys
import threading
import time
import warnings
from typing import Any

from resilient_scan import ScanContext, ScanRunner
from tests.torture.raising import OwnBase
from tests.torture.register import FOREVER, found, poison

GROUP = "process"
RUNNERS: list[ScanRunner] = []  # the one that runs the zoo


def fail(*_args: Any, **_kwargs: Any) -> Any:
    raise OwnBase("a hook")


@poison("empties `os.environ`", "completed", group=GROUP)
def environ(_state: dict[str, Any]) -> Any:
    os.environ.clear()
    return found()


@poison("changes the current folder and the umask", "completed", group=GROUP)
def folder(_state: dict[str, Any]) -> Any:
    os.chdir("/")
    os.umask(0)
    return found()


@poison("changes the locale", "completed", group=GROUP)
def other_locale(_state: dict[str, Any]) -> Any:
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    decimal.getcontext().prec = 1
    return found()


@poison("seeds `random`", "completed", group=GROUP)
def seeds(_state: dict[str, Any]) -> Any:
    random.seed(0)
    return found()


@poison("takes modules out of `sys.modules`", "completed", group=GROUP)
def modules(_state: dict[str, Any]) -> Any:
    for name in ("asyncio", "json", "traceback", "uuid", "resilient_scan.layers.cache"):
        sys.modules.pop(name, None)
    return found()


@poison("makes every warning an error", "completed", group=GROUP)
def warnings_are_errors(_state: dict[str, Any]) -> Any:
    warnings.simplefilter("error")
    return found()


@poison("sets hooks for uncaught errors that raise", "completed", group=GROUP)
def hooks(_state: dict[str, Any]) -> Any:
    threading.excepthook = sys.excepthook = sys.unraisablehook = fail
    threading.Thread(target=int, args=("x",), name="poison", daemon=True).start()
    return found()


@poison("lets threads switch 1,000 times more often", "completed", group=GROUP)
def switch_interval(_state: dict[str, Any]) -> Any:
    sys.setswitchinterval(5e-6)
    return found()


@poison("switches the garbage collector off", "completed", group=GROUP)
def no_collector(_state: dict[str, Any]) -> Any:
    gc.disable()
    return found()


@poison("sets a trace function that raises", "error", group=GROUP)
def traces(_state: dict[str, Any]) -> Any:
    sys.settrace(fail)
    return found()


@poison("sets a profile function that raises", "error", group=GROUP)
def profiles(_state: dict[str, Any]) -> Any:
    sys.setprofile(fail)
    return found()


@poison("enables `faulthandler`", "completed", group=GROUP)
def fault_handler(_state: dict[str, Any]) -> Any:
    with contextlib.suppress(RuntimeError):  # another poison has taken `sys.stderr` away
        faulthandler.enable(file=sys.__stderr__)
    return found()


@poison("sets a signal handler outside the main thread", "error", group=GROUP)
def signal_handler(_state: dict[str, Any]) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@poison("blocks all signals in its thread", "completed", group=GROUP)
def signal_mask(_state: dict[str, Any]) -> Any:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return found()


@poison("switches logging off and takes its handlers away", "completed", group=GROUP)
def no_logging(_state: dict[str, Any]) -> Any:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    logging.disable(logging.CRITICAL)
    return found()


class Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise OwnBase("filter")


@poison("adds a logging filter that raises", "completed", group=GROUP)
def logging_raises(_state: dict[str, Any]) -> Any:
    logging.disable(logging.NOTSET)
    logging.getLogger("resilient_scan").addFilter(Filter())
    return found()


@poison("closes `sys.stdout` and takes `sys.stderr` away", "completed", group=GROUP)
def no_output(_state: dict[str, Any]) -> Any:
    sys.stdout.close()
    sys.stderr = sys.__stderr__ = None  # type: ignore[assignment]
    return found()


@poison("closes the descriptors 0 to 2", "completed", group=GROUP)
def closes_the_standard_descriptors(_state: dict[str, Any]) -> Any:
    for number in range(3):
        with contextlib.suppress(OSError):
            os.close(number)
    return found()


@poison("patches `time.monotonic` to stand still", "completed", group=GROUP)
def monotonic_stands_still(_state: dict[str, Any]) -> Any:
    time.monotonic = lambda: 0.0
    return found()


@poison("patches `time.time` to stand still", "completed", group=GROUP)
def time_stands_still(_state: dict[str, Any]) -> Any:
    time.time = lambda: 0.0
    return found()


@poison("opens all descriptors that the process may have, and closes them", "completed", group=GROUP)
def takes_descriptors(_state: dict[str, Any]) -> Any:
    taken: list[int] = []
    try:
        while len(taken) < 2_000:
            taken.append(os.dup(3))
    finally:
        for number in taken:
            os.close(number)
    return found()


# the runner itself

RUNNER = "runner"


@poison("takes itself out of service", "completed", group=RUNNER, again=("disabled",))
def disables_itself(_state: dict[str, Any]) -> Any:
    RUNNERS[0].disable("disables_itself", reason="by itself")
    return found()


@poison("runs its own runner", "error", group=RUNNER)
def runs_its_runner(state: dict[str, Any]) -> Any:
    return RUNNERS[0].run(state).candidates


@poison("runs its own runner from a thread", "timeout", "error", group=RUNNER, keeps=True)
def runs_its_runner_from_a_thread(state: dict[str, Any]) -> Any:
    def run() -> None:
        RUNNERS[0].run(state, only=["runs_its_runner_from_a_thread"])

    thread = threading.Thread(target=run, name="poison", daemon=True)
    thread.start()
    thread.join()
    raise ValueError("no answer")


@poison("runs another runner, which hangs", "timeout", group=RUNNER)
def runs_another_runner(state: dict[str, Any]) -> Any:
    class Hanging:
        name, pipeline = "inner", "poison"

        def scan(self, _state: dict[str, Any]) -> Any:
            FOREVER.wait()
            return []

    with ScanRunner([Hanging()], listeners=()) as runner:
        return runner.run(state).candidates


@poison("asks its runner everything", "completed", group=RUNNER)
def asks_its_runner(_state: dict[str, Any]) -> Any:
    runner = RUNNERS[0]
    str(runner.explain("asks_its_runner"))
    runner.scanners(), runner.abandoned(), runner.flights("asks_its_runner"), runner.history(), runner.audit(5)
    runner.reset("asks_its_runner", reason="by itself")
    runner.forget("asks_its_runner", reason="by itself")
    return found()


@poison("collects garbage whose `__del__` runs its runner", "completed", group=RUNNER)
def garbage_runs_the_runner(state: dict[str, Any]) -> Any:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            RUNNERS[0].run(state, only=["garbage_runs_the_runner"])

    Cycle()
    gc.collect()
    return found()


@poison("pokes its own context", "completed", group=RUNNER)
def pokes_its_context(_state: dict[str, Any], context: ScanContext) -> Any:
    context.poke()
    return found()
