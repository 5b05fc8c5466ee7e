"""Wire a fleet, its schedule, the control endpoint and Alertmanager together, and end them in order on a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from random import Random
from types import FrameType

import msgspec

from resilient_scan.cli.choice import Request
from resilient_scan.cli.fleet import ReadyFleet, open_fleet, state_for
from resilient_scan.clock import SystemClock
from resilient_scan.events import Listener
from resilient_scan.service import ControlService
from resilient_scan.service.process import Instance, Process
from resilient_scan.service.reconcile import Reconciler
from resilient_scan.service.schedule import ONCE, Schedule, Scheduler

EVERY = 60.0
STORE_TIMEOUT = 2.0  # seconds that a run which was cut off gets to write down its results
POLL_INTERVAL = 0.25  # seconds that a signal may go unnoticed if it did not end the wait for it


class ServeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is to run.

    Attributes:
        run: what a run is, as for `open_fleet`.
        every: seconds from one run to the next, > 0.
        jitter: share of that by which a run may be late, 0 to 0.5.
        catch_up: `once` or `skip`: what happens to runs that were missed.
        listen: address and port; `None`: those in the settings.
    """

    run: Request
    every: float = EVERY
    jitter: float = 0.1
    catch_up: str = ONCE
    listen: str | None = None


class Serving(msgspec.Struct, frozen=True):
    """A service that runs.

    Attributes:
        fleet: what it runs.
        url: of its control endpoint.
        can_change: whether a token is configured that allows changes.
        protected: whether reading takes a token.
        stop: begins no further run, waits at most `n` seconds for the one under way, and says whether it has ended.
    """

    fleet: ReadyFleet
    url: str
    can_change: bool
    protected: bool
    stop: Callable[[float], bool]


@contextmanager
def open_service(request: ServeRequest, *, listeners: Iterable[Listener] | None = None) -> Iterator[Serving]:
    """Run a fleet on a schedule, with its control endpoint.

    Args:
        request: how.
        listeners: called with what happens; `None`: the log.

    Raises:
        ConfigError: settings are wrong, an extra is missing, or the address is taken; otherwise as `open_fleet`.
    """
    clock = SystemClock()
    with ExitStack() as stack:
        after_close = stack.enter_context(ExitStack())
        # A service runs for weeks: it does not answer from bundled data unless someone asks for that.
        wanted = msgspec.structs.replace(request.run, demo=bool(request.run.demo))
        fleet = stack.enter_context(open_fleet(wanted, listeners=listeners))
        serve, token, read_token = fleet.settings.service, fleet.settings.token(), fleet.settings.read_token()
        if request.listen is not None:
            serve = msgspec.structs.replace(serve, listen=request.listen)
        schedule = Schedule(
            request.every,
            jitter=request.jitter,
            catch_up=request.catch_up,
            start=clock.monotonic(),
            random=Random(),  # noqa: S311 - jitter
        )
        scheduler = Scheduler(
            fleet.runner,
            schedule,
            state=lambda: state_for(request.run.as_of),
            deadline=fleet.deadline,
            probe_every=fleet.settings.quarantine.cooloff / 4,
            clock=clock,
        )
        instance = Instance(serve.instance)
        reconciler: Reconciler | None = None
        if serve.alertmanager is not None:
            reconcile = partial(fleet.runner.reconcile, instances=instance)
            reconciler = Reconciler(reconcile, serve.alertmanager, serve.reconcile, receiver=serve.receiver)
        process = Process(
            why_not=lambda: "" if scheduler.alive else "no further run begins",
            run=scheduler.ask,
            alerting=lambda: "" if reconciler is None else reconciler.trouble,
            ask_again=None if reconciler is None else reconciler.ask_again,
            instance=instance,
            dashboard_url=serve.dashboard_url or "",
            runbook_url=serve.runbook_url or "",
        )
        service = ControlService(
            fleet.runner,
            token,
            serve.host,
            serve.port,
            read_token=read_token,
            allowed_hosts=serve.allowed_hosts,
            process=process,
        )
        stack.enter_context(service)
        if reconciler is not None:
            reconciler.start()
            stack.callback(reconciler.stop)
        scheduler.start()
        # The scheduler is stopped twice, on either side of closing the runner. Before: no run may begin any more; but a
        # run under way ends only when the runner is closed, so waiting for it here would wait for a hanging scanner.
        # After: its thread writes down the results of the run that was just cut off. It is a daemon: if the process
        # went on to exit without waiting, the thread would be frozen in the middle of that.
        stack.callback(scheduler.stop, 0.0)
        after_close.callback(scheduler.stop, STORE_TIMEOUT)
        yield Serving(fleet, service.url, token is not None, read_token is not None, scheduler.stop)


@contextmanager
def caught_signals() -> Iterator[SimpleQueue[int]]:
    """Yield a queue that receives SIGTERM and Ctrl-C, instead of what they do otherwise.

    A handler runs on the main thread between two instructions of whatever runs there. If a second signal comes while
    the first one's handler sets a `threading.Event`, its own handler runs inside that call and waits for the event's
    lock, which the interrupted call below it holds: for ever. `SimpleQueue.put` is made to be interrupted like this.
    """
    signals: SimpleQueue[int] = SimpleQueue()

    def stop(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def first(signals: SimpleQueue[int]) -> int:
    """Wait for a signal, looking again every `POLL_INTERVAL`.

    The system may deliver a signal to any thread, and Python runs the handler on the main thread. If another thread
    received it, nothing wakes the main thread from an untimed `get`, and the handler would wait for that to return.
    """
    while True:
        with contextlib.suppress(Empty):
            return signals.get(timeout=POLL_INTERVAL)


def wind_up(serving: Serving, signals: SimpleQueue[int], grace: float) -> bool:
    """Give the run under way `grace` seconds to end, unless a second signal comes; say whether it has ended."""
    step, left = 0.1, grace
    while not serving.stop(min(step, left)):
        left -= step
        if left <= 0 or not signals.empty():
            return False
    return True
