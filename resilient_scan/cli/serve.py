"""Wire a fleet, its schedule, the control endpoint and Alertmanager together, for `resilient-scan serve`.

Beside it, what `disable`, `enable` and `explain` do: ask the service that runs on this machine, else the store.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from resilient_scan.cli.fleet import ReadyFleet, Request, choose, installed, open_fleet, state_for
from resilient_scan.clock import SystemClock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.events import Listener
from resilient_scan.observe.explain import Explanation
from resilient_scan.service import ControlService
from resilient_scan.service.client import Client, find
from resilient_scan.service.reconcile import Reconciler
from resilient_scan.service.schedule import ONCE, Rounds, Schedule
from resilient_scan.settings import load_installed, load_settings
from resilient_scan.stores import without_password

EVERY = 300.0
LAST = 2.0  # seconds that a run which was cut off gets to be written down


class ServeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is to run.

    Attributes:
        run: what a run is, as for `open_fleet`.
        every: seconds from one run to the next, > 0.
        jitter: share of that by which a run may be late, 0 to 0.5.
        catch_up: `once` or `skip`: what becomes of runs that were missed.
        listen: address and port; `None`: what the settings say.
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
        can_change: whether there is a token by which something can be changed.
        stop: begins no further run, waits at most so many seconds for the one under way, and says whether it has ended.
    """

    fleet: ReadyFleet
    url: str
    can_change: bool
    stop: Callable[[float], bool]


@contextmanager
def open_service(request: ServeRequest, *, listeners: Iterable[Listener] | None = None) -> Iterator[Serving]:
    """Run a fleet on a schedule, with its control endpoint.

    Args:
        request: how.
        listeners: who is told what happens; `None`: the log.

    Raises:
        ConfigError: settings are wrong, an extra is missing, the address cannot be had; else as `open_fleet`.
    """
    settings = load_installed(request.run.config)
    serve = settings.service
    if request.listen is not None:
        serve = msgspec.structs.replace(serve, listen=request.listen)
    token, clock = settings.token(), SystemClock()
    schedule = Schedule(
        request.every,
        jitter=request.jitter,
        catch_up=request.catch_up,
        start=clock.monotonic(),
        random=Random(),  # noqa: S311 - jitter
    )
    with ExitStack() as stack:
        closed = stack.enter_context(ExitStack())  # what is to be done once the runner is closed
        fleet = stack.enter_context(open_fleet(request.run, listeners=listeners))
        rounds = Rounds(
            fleet.runner,
            schedule,
            state=lambda: state_for(request.run.as_of, fleet.demo),
            deadline=fleet.deadline,
            probe_every=settings.quarantine.cooloff / 4,
            clock=clock,
        )
        service = ControlService(
            fleet.runner, token, serve.host, serve.port, why_not=lambda: "" if rounds.alive else "no further run begins"
        )
        stack.enter_context(service)
        if serve.alertmanager is not None:
            reconciler = Reconciler(
                fleet.runner.reconcile, serve.alertmanager, serve.reconcile, receiver=serve.receiver
            )
            reconciler.start()
            stack.callback(reconciler.stop)
        rounds.start()
        stack.callback(rounds.stop, 0.0)
        closed.callback(rounds.stop, LAST)
        yield Serving(fleet, service.url, token is not None, rounds.stop)


def running(config: Path | None) -> Client | None:
    """Return the service that these settings mean, if it runs on this machine."""
    settings = load_settings(config)
    try:
        token = settings.token()
    except ConfigError:  # to look needs none
        token = None
    return find(settings.service.host, settings.service.port, token, _me())


def order(config: Path | None, name: str, action: str, reason: str, seconds: float) -> str:
    """Take a scanner out of service, or bring it back: in the running service, else in the store.

    Args:
        config: the settings file.
        name: the scanner's.
        action: `disable` or `enable`.
        reason: why.
        seconds: how long it holds.

    Returns:
        A sentence about what was done, and where.

    Raises:
        ConfigError: there is no such scanner, the service refuses, or nothing would remember it.
    """
    client = running(config)
    if client is not None:
        body: dict[str, Any] = {"reason": reason}
        if action == "disable":
            body["duration"] = seconds
        said = client.post(f"/scanners/{name}/{action}", body)
        return f"{name} is {said['state']} in the service at {client.url}"
    settings = load_settings(config)
    if settings.store == "memory:":
        raise ConfigError(
            f"{action} {name}: nothing would remember it: no service runs here, and no store is configured; "
            "start 'resilient-scan serve', or name a settings file with --config"
        )
    wanted = Request(config=config, only=(name,))
    plugins = installed(wanted)
    choose(plugins, wanted, settings)
    # All of the fleet, whether it could run here or not: an order needs no keys, and the fuse counts all.
    scanners = [found.scanner for found in plugins.scanners]
    with settings.runner(scanners, known=plugins.names, listeners=()) as runner:
        act = runner.disable if action == "disable" else runner.enable
        try:
            act(name, reason=reason, duration=seconds, who=_me())
        except StoreError as error:
            raise ConfigError(f"{action} {name}: {error}; nothing was changed") from None
        state = next(state.state for state in runner.scanners() if state.name == name)
    return f"{name} is {state} in {without_password(settings.store)}"


def explained(config: Path | None, name: str) -> Explanation | None:
    """Return what the running service says about a scanner; `None`: none runs here.

    Raises:
        ConfigError: it knows no such scanner, or is of another version.
    """
    client = running(config)
    if client is None:
        return None
    said = client.get(f"/scanners/{name}")
    try:
        return msgspec.convert(said["explanation"], Explanation)
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise ConfigError(
            f"the service at {client.url} is of another version; restart it, or use its command"
        ) from None


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in some containers
        return "command line"
