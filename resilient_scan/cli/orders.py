"""Orders of a person about one scanner or provider: to the service on this machine, or else to the store.

disable   enable            out of service, and back, for some time
reset     forget   probe    a breaker closed, cached answers dropped, a cool-off ended
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from resilient_scan.cli.client import order, reset_provider
from resilient_scan.cli.options import OwnProcess, config_option, duration
from resilient_scan.cli.process import OK, OUTPUT
from resilient_scan.quarantine import ORDER_DURATION


def an_order(short_help: str, lasting: str = "") -> Callable[[Callable[[], None]], click.Command]:
    """Make a command of a documented name: it gives the order of that name about one scanner.

    Args:
        short_help: for the list of all commands.
        lasting: what `--for` means; empty: the order has no duration.
    """

    def made(named: Callable[[], None]) -> click.Command:
        def give(name: str, config: Path | None, reason: str, seconds: float = ORDER_DURATION) -> int:
            OUTPUT.stream.write(f"{order(config, name, named.__name__, reason, seconds)}\n")
            return OK

        give.__doc__ = named.__doc__
        if lasting:
            give = click.option(
                "--for",
                "seconds",
                metavar="DURATION",
                default="24h",
                show_default=True,
                callback=duration,
                help=lasting,
            )(give)
        kept = "with the order" if lasting else "in the audit trail"
        give = click.option("--reason", required=True, help=f"Why; it is kept {kept}.")(give)
        return click.command(named.__name__, cls=OwnProcess, short_help=short_help)(
            click.argument("name")(config_option(give))
        )

    return made


@an_order("Take a scanner out of service for a while.", lasting="How long it holds; nothing is disabled forever.")
def disable() -> None:
    """Take scanner NAME out of service: in the service on this machine, or else in the store."""


@an_order("Bring a scanner back into service.", lasting="How long alerts cannot take it out again.")
def enable() -> None:
    """Bring scanner NAME back into service: in the service on this machine, or else in the store.

    If its breaker is open, its next scan is a trial.
    """


@click.command(cls=OwnProcess, short_help="Close a scanner's or a provider's breaker and forget its failures.")
@click.argument("name", required=False)
@config_option
@click.option("--provider", metavar="PROVIDER", help="Close a provider's breaker instead, and end its hold.")
@click.option("--reason", required=True, help="Why; it is kept in the audit trail.")
def reset(name: str | None, config: Path | None, provider: str | None, reason: str) -> int:
    """Close the breaker of scanner NAME, or of a provider.

    The order goes to the service on this machine, or else to the store. A provider that no scanner's options
    name is a host and its port.
    """
    if (name is None) == (provider is None):
        raise click.UsageError("name either a scanner, or a provider with --provider")
    done = order(config, name, "reset", reason) if name else reset_provider(config, provider or "", reason)
    OUTPUT.stream.write(f"{done}\n")
    return OK


@an_order("Drop a scanner's cached answers.")
def forget() -> None:
    """Drop the cached answers of scanner NAME: in the service on this machine, or else in the store."""


@an_order("Make a quarantined scanner's next scan a probe.")
def probe() -> None:
    """End the cool-off of scanner NAME: its next scan is a probe.

    The order goes to the service on this machine, or else to the store.
    """


ORDERS = (disable, enable, reset, forget, probe)
