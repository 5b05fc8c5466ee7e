"""The commands of who operates a fleet: serve it, take a scanner out of service, bring it back. Knows click."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final

import click

from resilient_scan.arguments import config_option, duration, log_format_option, run_options
from resilient_scan.choice import Request
from resilient_scan.logs import LogEvents
from resilient_scan.progress import elapsed
from resilient_scan.schedule import ONCE, SKIP
from resilient_scan.screens import MESSAGES, introduce, say
from resilient_scan.serving import ServeRequest, Serving, open_service, order

DONE, FAILED = 0, 1
ROUND = 0.25  # seconds: how long a signal may go unnoticed that did not end the wait for it


@click.command(short_help="Run the scanners again and again, and answer over HTTP.")
@run_options
@click.option(
    "--every", metavar="DURATION", default="5m", show_default=True, callback=duration, help="Time between two runs."
)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="Share of that by which a run may be late, by chance.",
)
@click.option(
    "--catch-up",
    type=click.Choice([ONCE, SKIP]),
    default=ONCE,
    show_default=True,
    help="Make up for missed runs by one at once, or leave them out.",
)
@click.option("--listen", metavar="HOST:PORT", help="Where to answer; 127.0.0.1:9108, unless the settings say.")
@click.option(
    "--grace",
    metavar="DURATION",
    default="30s",
    show_default=True,
    callback=duration,
    help="Time that a run under way gets when the service is stopped.",
)
@log_format_option
def serve(
    every: float, jitter: float, catch_up: str, listen: str | None, grace: float, log_format: str, **options: Any
) -> int:
    """Run the scanners again and again, and answer over HTTP: page, metrics, alerts, orders.

    Alerts that come in take a failing scanner out of service; a probe brings it back. SIGTERM and Ctrl-C end it: the
    run under way gets its time, a second one cuts it off.
    """
    MESSAGES.json = log_format == "json"
    request = ServeRequest(run=Request(**options), every=every, jitter=jitter, catch_up=catch_up, listen=listen)
    with caught_signals() as signals, open_service(request, listeners=[LogEvents(format=log_format)]) as serving:
        introduce(serving.fleet)
        say(_greeting(serving, every))
        first(signals)
        say([f"stopping: the run under way gets {elapsed(grace)}; a second signal cuts it off"])
        ended = _wind_up(serving, signals, grace)
    say(["stopped" if ended else "stopped; the run under way was cut off"])
    return DONE


@click.command(short_help="Take a scanner out of service for a while.")
@click.argument("name")
@config_option
@click.option("--reason", required=True, help="Why; it is kept with the order.")
@click.option(
    "--for",
    "seconds",
    metavar="DURATION",
    default="24h",
    show_default=True,
    callback=duration,
    help="How long it holds; nothing is disabled for ever.",
)
def disable(name: str, config: Path | None, reason: str, seconds: float) -> int:
    """Take scanner NAME out of service: in the service that runs on this machine, else in the store."""
    sys.stdout.write(f"{order(config, name, 'disable', reason, seconds)}\n")
    return DONE


@click.command(short_help="Bring a scanner back into service.")
@click.argument("name")
@config_option
@click.option("--reason", required=True, help="Why; it is kept with the order.")
def enable(name: str, config: Path | None, reason: str) -> int:
    """Bring scanner NAME back into service: in the service that runs on this machine, else in the store."""
    sys.stdout.write(f"{order(config, name, 'enable', reason, 86_400.0)}\n")
    return DONE


COMMANDS: Final = (serve, disable, enable)


def _greeting(serving: Serving, every: float) -> list[str]:
    orders = "orders and alerts need the token" if serving.can_change else "no token is configured: it only shows"
    return [f"serving at {serving.url}/ ({orders}); a run every {elapsed(every)}"]


def first(signals: SimpleQueue[int]) -> int:
    """Wait for a signal, in rounds: one that another thread receives does not wake this one from an untimed wait."""
    while True:
        with contextlib.suppress(Empty):
            return signals.get(timeout=ROUND)


def _wind_up(serving: Serving, signals: SimpleQueue[int], grace: float) -> bool:
    """Let the run under way end in its time, unless a second signal comes; say whether it did."""
    step, left = 0.1, grace
    while not serving.stop(min(step, left)):
        left -= step
        if left <= 0 or not signals.empty():
            return False
    return True


@contextlib.contextmanager
def caught_signals() -> Iterator[SimpleQueue[int]]:
    """Yield a queue that SIGTERM and Ctrl-C go into, instead of what else they do.

    A second signal may come while the first one's handler runs, on the same thread: a flag of `threading` would wait
    for its own lock then, for ever. This queue is made for it.
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
