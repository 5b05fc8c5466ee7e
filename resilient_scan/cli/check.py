"""Find everything that is wrong with the settings, the plugins and their options, and run nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from resilient_scan._text import counted
from resilient_scan.cli.choice import bundled, lacks
from resilient_scan.cli.export import misfit
from resilient_scan.cli.fleet import measured_durations, state_for
from resilient_scan.engines.process.transfer import reference_of
from resilient_scan.errors import ConfigError, PluginError
from resilient_scan.lint import ADVICE, ERROR, WARNING, lint_fleet, sentences
from resilient_scan.lint.blocking import blocking_calls
from resilient_scan.options import Policy
from resilient_scan.scanning import spec_of
from resilient_scan.service.auth import TokenAuth
from resilient_scan.settings import Settings, examine_settings
from resilient_scan.settings.plugins import Plugins, discover, load_demo
from resilient_scan.stores.sqlite import refusal


class Checked(msgspec.Struct, frozen=True):
    """What a check found.

    Attributes:
        errors: a sentence for everything that keeps a scanner, or the whole fleet, from running.
        warnings: a sentence for everything that runs, but not the way someone may think.
        looked_at: what was checked, for people.
        not_configured: a sentence for every scanner that would not run, with what to set.
        hints: a sentence for every call in an `async def` scanner that is known to block, and for every timeout that is
            far above what was measured.
        isolation: what the scanners run in, and whether those in threads could run in a process.
    """

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    looked_at: str
    not_configured: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line: how much was found in what."""
        if not self.errors and not self.warnings:
            return f"no findings in {self.looked_at}"
        found = [counted(len(self.errors), "error"), counted(len(self.warnings), "warning")]
        return f"{' and '.join(text for text in found if not text.startswith('0'))} in {self.looked_at}"


def check(config: Path | None, interval: float | None = None) -> Checked:
    """Check settings, plugins and options.

    Args:
        config: the settings file; `None`: environment variables only.
        interval: seconds from one run to the next, for the rules that need it, or `None`.
    """
    settings, wrong = examine_settings(config)
    plugins = discover(timeout=settings.import_timeout)
    looked_at = f"{counted(len(plugins.scanners), 'scanner')} and {config or 'the environment'}"
    errors = [*wrong, *(text for text in settings.misfits(plugins) if text not in wrong)]
    isolation, unfit = _isolation(settings, plugins)
    errors += unfit
    if settings.store.startswith("sqlite:") and (refused := refusal(settings.store)):
        errors.append(refused)
    unusable, lacking = _cluster(settings)
    errors += unusable
    policies = _policies(settings, plugins)
    findings = lint_fleet(
        policies,
        interval=interval,
        deadline=settings.deadline,
        state=state_for(None),
        measured=measured_durations(settings, policies),
    )
    return Checked(
        (*errors, *sentences(finding for finding in findings if finding.severity == ERROR)),
        (
            *_tokens(settings),
            *_eviction(settings),
            *lacking,
            *([why] if interval is not None and (why := misfit(interval)) else []),
            *sentences(finding for finding in findings if finding.severity == WARNING),
        ),
        looked_at,
        _not_configured(settings, plugins),
        (*_hints(settings, plugins), *sentences(finding for finding in findings if finding.severity == ADVICE)),
        isolation,
    )


def _isolation(settings: Settings, plugins: Plugins) -> tuple[tuple[str, ...], list[str]]:
    """Return what the scanners run in, and why those cannot run that are to run in a process."""
    inside: list[str] = []
    fit: list[str] = []
    bound: list[str] = []
    unfit: list[str] = []
    for found in plugins.scanners:
        if settings.enabled(found.name):
            spec = spec_of(found.scanner)
            in_process = settings.isolation_of(spec) == "process"
            try:
                reference_of(spec)
            except PluginError as error:
                (unfit if in_process else bound).append(str(error))
            else:
                (inside if in_process else fit).append(found.name)
    lines = [
        *([f"in child processes: {', '.join(inside)}"] if inside else []),
        *([f"in threads, and fit for processes: {', '.join(fit)}"] if fit else []),
        *(f"in a thread, and not fit for a process: {reason}" for reason in bound),
    ]
    return tuple(lines), unfit


def _hints(settings: Settings, plugins: Plugins) -> Iterator[str]:
    """Yield what blocks the event loop that `async def` scanners share, as far as their source tells."""
    for found in plugins.scanners:
        if settings.enabled(found.name) and spec_of(found.scanner).is_async:
            for call in blocking_calls(found.scanner.scan):
                yield f"{found.name}: {call}"


def _tokens(settings: Settings) -> Iterator[str]:
    """Yield a warning about each token that `serve` would not find, or that is not much of a secret.

    The files need not exist where settings are checked. That a group can read one is as it should be: a group of its
    own is how the service, Alertmanager and Prometheus, which are different users, read the same file.
    """
    found = []
    for name, read in (("token", settings.token), ("read_token", settings.read_token)):
        try:
            token = read()
            if token is not None:
                TokenAuth(token, name)
                found.append(token)
        except ConfigError as error:
            yield f"{error}; `serve` will not start"
        path = settings.file_of(f"{name}_file")
        mode = _mode(path)
        if mode & 0o006:
            yield (
                f"service.{name}_file: every user of this machine can read or change {path} (mode {mode:03o}); "
                f"run: chmod o= {path}"
            )
    if len(found) > len(set(found)):
        yield (
            "service.read_token_file has the same token as service.token_file: who may read may change things too; "
            "write another one into it"
        )


def _mode(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_mode & 0o777
    except OSError:
        return 0


def _eviction(settings: Settings) -> Iterator[str]:
    """Yield a warning if a server in which state is kept may drop it; one that is away is the run's business."""
    if settings.store.startswith(("redis", "unix")):
        from resilient_scan.stores.redis import eviction  # noqa: PLC0415 - an extra

        if warning := eviction(settings.store):
            yield warning


def _cluster(settings: Settings) -> tuple[list[str], list[str]]:
    """Return why the cluster could not be used, and what it lacks otherwise; in a few seconds."""
    if settings.execution.engine == "dask":
        from resilient_scan.engines.cluster.connect import examined  # noqa: PLC0415 - few fleets need it

        return examined(settings.cluster)
    if settings.cluster.address is not None:
        return [], ['[cluster] is not used: write engine = "dask" into [scanner_execution], or leave it out']
    return [], []


def _policies(settings: Settings, plugins: Plugins) -> dict[str, Policy]:
    """Return the effective layers of each scanner that is switched on, unless its options contradict each other."""
    policies = {}
    for found in plugins.scanners:
        if settings.enabled(found.name):
            try:
                policies[found.name] = settings.effective([found.scanner])[found.name].policy
            except ConfigError:  # `Settings.check` reports it
                continue
    return policies


def _not_configured(settings: Settings, plugins: Plugins) -> tuple[str, ...]:
    wanted = [found for found in plugins.scanners if settings.enabled(found.name)]
    demo = bundled(load_demo(), plugins, wanted, settings)
    lacking = {found.name: lacks(found, demo, settings) for found in wanted}
    return tuple(f"{name}: {lack}" for name, lack in lacking.items() if lack)
