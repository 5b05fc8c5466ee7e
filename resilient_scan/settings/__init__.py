"""Settings: a TOML file and environment variables to a runner.

    runner = load_settings("resilient-scan.toml").runner()

Every number has one source, by this priority: built-in < `[defaults]`, `policy=` and `timeout_seconds` < decorator
< `[scanners.x]` < environment < what `runner` is given. A variable stands for the key of the same name in the file, an
argument of `runner` for the key of the same name in `[scanner_execution]`: so a default stays a default, whoever sets
it, and what a scanner's own table says wins over it. An option object replaces its whole layer, a table only the
fields that it names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from resilient_scan.errors import ConfigError, PluginError
from resilient_scan.layers.limit import differing
from resilient_scan.options import Policy, Quarantine
from resilient_scan.runner import ScanRunner
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.settings.layering import (
    Effective,
    Layering,
    defaults,
    from_environment,
    home,
    layers_of,
    misfits,
    option_of,
    over,
    tables_of,
)
from resilient_scan.settings.plugins import discover
from resilient_scan.settings.read import from_file, own_fault, read, seconds, way_out
from resilient_scan.settings.tables import Execution, Service, Setting, Tables
from resilient_scan.settings.toml import path_text

__all__ = [
    "Effective",
    "Execution",
    "Settings",
    "SettingsError",
    "examine_settings",
    "load_installed",
    "load_settings",
    "seconds",
]

_log = logging.getLogger("resilient_scan")


class SettingsError(ConfigError):
    """Settings are wrong; the message has a line for each problem.

    Attributes:
        problems: a sentence for each, with file and line or the variable's name, and the way out.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Settings(msgspec.Struct, frozen=True):
    """What file and environment say; made by `load_settings`.

    Attributes:
        path: the file, or `None`.
        execution: `[scanner_execution]`, with `None` for what is not said.
        policy: the layers around a scanner of which nobody says anything.
        origins: where each number of `policy` came from, by `layer.field`.
        store: the URL of where state lives.
        service: `[service]`.
        quarantine: when scanners go out of service by themselves.
        sources: the tables as they were read, the file's first.
    """

    path: Path | None
    execution: Execution
    policy: Policy
    origins: Mapping[str, str]
    store: str
    service: Service
    quarantine: Quarantine
    sources: tuple[Tables, ...]

    def __repr__(self) -> str:
        """Name the file only: settings may hold secrets."""
        return f"<Settings of {self.path or 'the environment'}>"

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole run, or `None`: no limit."""
        return self.execution.deadline

    def token(self) -> str | None:
        """Return the service's token, read from its file; `None`: there is none.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        name = self.service.token_file
        if name is None:
            return None
        path = Path(name) if self.path is None else self.path.absolute().parent / name
        try:
            token = path.read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"service.token_file: {path} cannot be read: {why}") from None
        if not token:
            raise ConfigError(
                f"service.token_file: {path} is empty; write one word into it, such as `openssl rand -hex 32`"
            )
        return token

    def enabled(self, name: str) -> bool:
        """Say whether a scanner is part of runs."""
        said = [table.own["enabled"].value for table in tables_of(name, self.sources) if "enabled" in table.own]
        return said[-1] if said else True

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return what a scanner finds in `context.settings`."""
        found: dict[str, Any] = {}
        for table in tables_of(name, self.sources):
            if "settings" in table.own:
                found = over(found, table.own["settings"].value)
        return found

    def effective(
        self, scanners: Iterable[Any], *, policy: Policy | None = None, timeout_seconds: float | None = None
    ) -> dict[str, Effective]:
        """Return by name the layers that hold for each scanner, each number with where it came from.

        Args:
            scanners: as in `ScanRunner`.
            policy: replaces `[defaults]`.
            timeout_seconds: replaces `timeout.total` of the defaults, > 0.

        Raises:
            ConfigError: layers do not fit together, or an argument is wrong.
            PluginError: one is no scanner.
        """
        problems: list[str] = []
        found = self._build([spec_of(thing) for thing in scanners], self._base(policy, timeout_seconds), problems)
        if problems:
            raise SettingsError(problems)
        return found

    def check(self, scanners: Iterable[Any] | None = None, *, known: Iterable[str] = ()) -> tuple[str, ...]:
        """Return a sentence for everything that is wrong, without running anything.

        Args:
            scanners: as in `ScanRunner`; `None`: all that are installed.
            known: names of other scanners, which may have tables too.
        """
        problems: list[str] = []
        if scanners is None:
            plugins = discover()
            scanners, known = [found.scanner for found in plugins.scanners], [*known, *plugins.names]
            problems = [str(problem.error) for problem in plugins.problems]
        specs: list[ScannerSpec] = []
        for thing in scanners:
            try:
                specs.append(spec_of(thing))
            except PluginError as error:
                problems.append(str(error))
        problems += self._strangers(specs, known) + self._misfits(specs)
        self._build(specs, self._base(None, None), problems)
        return tuple(problems)

    def runner(self, scanners: Iterable[Any] | None = None, *, known: Iterable[str] = (), **options: Any) -> ScanRunner:
        """Return a runner of the scanners that are not `enabled = false`.

        Args:
            scanners: as in `ScanRunner`; `None`: all that are installed; one that cannot be used is logged.
            known: names of other scanners, which may have tables too.
            options: of `ScanRunner`; they win over `[scanner_execution]`. `policy` stands for all of `[defaults]`.
                `settings` wins, key by key, over the scanners' own.

        Raises:
            ConfigError: a table speaks of a scanner that is not there, layers do not fit together, or an option is
                wrong.
            PluginError: one of `scanners` is none.
        """
        if scanners is None:
            plugins = discover()
            scanners, known = [found.scanner for found in plugins.scanners], plugins.names
            for problem in plugins.problems:
                _log.warning("%s", problem.error)
        specs = [spec_of(thing) for thing in scanners]
        base = self._base(options.get("policy"), options.get("timeout_seconds"))
        faults = self._strangers(specs, known) + self._misfits(specs)
        effective = self._build(specs, base, faults)
        if faults:
            raise SettingsError(faults)
        specs = [spec for spec in specs if self.enabled(spec.name)]
        own = self._options(specs, options.pop("settings", None) or {})
        own["quarantine"] = self._quarantine_of(specs)
        own["policies"] = {spec.name: effective[spec.name].policy for spec in specs}
        own["deadline"] = self.deadline
        runner = ScanRunner([spec.origin for spec in specs], **{**own, **options})
        runner.came_from({spec.name: effective[spec.name].origins for spec in specs})
        return runner

    def _options(self, specs: Iterable[ScannerSpec], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the runner is to be told, as far as anything is said."""
        execution = msgspec.structs.asdict(self.execution)
        said = {key: execution[key] for key in ("concurrent", "max_workers", "engine") if execution[key] is not None}
        names = dict.fromkeys([*(spec.name for spec in specs), *settings])
        merged = {name: over(self.settings_of(name), settings.get(name, {})) for name in names}
        return {"store": self.store, "settings": {name: table for name, table in merged.items() if table}, **said}

    def _quarantine_of(self, specs: Iterable[ScannerSpec]) -> Quarantine:
        """Return the quarantine for some of the scanners: of the critical ones only those that are among them."""
        names = {spec.name for spec in specs}
        critical = tuple(name for name in self.quarantine.critical if name in names)
        return msgspec.structs.replace(self.quarantine, critical=critical)

    def _base(self, policy: Policy | None, timeout_seconds: float | None) -> Layering:
        """Return what holds for all scanners, where code has its say too."""
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigError(f"policy must be a Policy, got {policy!r}")
        base = defaults(self.sources) if policy is None else Layering.of(policy, "policy=")
        if timeout_seconds is not None:
            if fault := own_fault(Execution, "timeout_seconds", timeout_seconds):
                raise ConfigError(fault.removeprefix("execution."))
            base.patch("timeout", {"total": Setting(timeout_seconds, "timeout_seconds=")})
        return base

    def _build(self, specs: Iterable[ScannerSpec], base: Layering, problems: list[str]) -> dict[str, Effective]:
        layerings = layers_of(specs, base, self.sources)
        found = {name: layering.build(problems) for name, layering in layerings.items()}
        limits = [(name, each.policy.limit) for name, each in found.items() if each.policy.limit is not None]
        for first, second, sentence in differing(limits):
            said = [*layerings[second].numbers.values(), *layerings[first].numbers.values()]
            place = next((f"{setting.place}: " for setting in said if setting.path), "")
            problems.append(f"{place}{sentence}")
        return found

    def _strangers(self, specs: Sequence[ScannerSpec], known: Iterable[str]) -> list[str]:
        """Return a sentence for each table of a scanner, or of a provider, that is not there."""
        own = [spec.name for spec in specs]
        names = list(dict.fromkeys([*own, *known]))
        problems = [
            f"{table.place}: unknown scanner {path_text((name,))}; {way_out(name, names)}"
            for tables in self.sources
            for name, table in tables.scanners.items()
            if name not in names
        ]
        problems += [
            f"{setting.place}: quarantine.critical: unknown scanner {path_text((name,))}; {way_out(name, names)}"
            for tables in self.sources
            for key, setting in tables.quarantine.items()
            for name in (setting.value if key == "critical" else ())
            if name not in names
        ]
        # A provider may be that of a scanner which is known and not among these.
        return [*problems, *(self._unused_providers(specs) if names == own else ())]

    def _misfits(self, specs: Sequence[ScannerSpec]) -> list[str]:
        return list(misfits(specs, self.sources, {spec.name: self.settings_of(spec.name) for spec in specs}))

    def _unused_providers(self, specs: Iterable[ScannerSpec]) -> Iterator[str]:
        layerings = layers_of(specs, self._base(None, None), self.sources).values()
        used = {layering.provider.lower(): layering.provider for layering in layerings if layering.provider}
        for tables in self.sources:
            for name, table in tables.providers.items():
                if name not in used:
                    yield f"{table.place}: no scanner has the provider {table.name!r}; {way_out(name, used.values())}"


def load_settings(path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from a TOML file and from the environment.

    Args:
        path: the file; `None`: the environment only.
        environ: variables; those that begin with `RESILIENT_SCAN__` count.

    Raises:
        ConfigError: the file cannot be read, or something in it or in the environment is wrong. The message has a line
            for every problem, the attribute `problems` a tuple of them.
    """
    settings, problems = examine_settings(path, environ=environ)
    if problems:
        raise SettingsError(problems)
    return settings


def load_installed(path: str | os.PathLike[str] | None = None, *, known: Iterable[str] = ()) -> Settings:
    """Read settings for the scanners that are installed: what is wrong with regard to these is told with the rest.

    Args:
        path: as in `load_settings`.
        known: names of other scanners, which may have tables too.

    Raises:
        ConfigError: as `load_settings` does.
    """
    settings, problems = examine_settings(path)
    if problems:
        raise SettingsError(dict.fromkeys([*problems, *settings.check(known=known)]))
    return settings


def examine_settings(
    path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] = os.environ
) -> tuple[Settings, tuple[str, ...]]:
    """Do the same without raising: return what could be read, and a sentence for everything that is wrong."""
    sources = [*([] if path is None else [from_file(os.fspath(path))]), from_environment(environ)]
    tables = tuple(read(source) for source in sources)
    problems = [sentence for source in sources for _, sentence in sorted(source.problems, key=itemgetter(0))]
    effective = defaults(tables).build(problems)
    execution = {key: setting.value for each in tables for key, setting in each.execution.items()}
    service = {key: setting.value for each in tables for key, setting in each.service.items()}
    quarantine = {key: setting for each in tables for key, setting in each.quarantine.items()}
    settings = Settings(
        path=None if path is None else Path(path),
        execution=Execution(**execution),
        policy=effective.policy,
        origins=effective.origins,
        store=home(path, tables, environ),
        service=Service(**service),
        quarantine=option_of(Quarantine, quarantine, problems) or Quarantine(),
        sources=tables,
    )
    return settings, tuple(dict.fromkeys(problems))
