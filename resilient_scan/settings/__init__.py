"""Settings: from a TOML file and environment variables to a runner.

    runner = load_settings("resilient-scan.toml").runner()

Every number has one source. From the lowest priority to the highest: built-in; `[defaults]`, `policy=` and
`timeout_seconds`; the decorator; `[scanners.x]`; the environment; the arguments of `runner`. A variable stands for the
key of the same name in the file, an argument of `runner` for the key of the same name in `[scanner_execution]`: so a
default stays a default wherever it is set, and a scanner's own table overrides it. An option object replaces its whole
layer, a table only the fields that it names.

The path of a setting through the files here: `toml` (text to data) -> `read` (data to tables, with `tables`: what a key
can be) -> `layering` (file, environment and code, one over the other). `plugins` finds the installed scanners,
`imports` gives them a limit.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from resilient_scan._text import did_you_mean
from resilient_scan.errors import ConfigError, PluginError
from resilient_scan.layers.providers import differing
from resilient_scan.options import Cluster, Policy, Quarantine
from resilient_scan.runner import ScanRunner
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.settings.imports import IMPORT_TIMEOUT
from resilient_scan.settings.layering import (
    BUILT_IN,
    Effective,
    Layers,
    build,
    layers_of,
    layers_of_policy,
    limit_places,
    merged,
    misfits,
    option_of,
    over,
    patched,
    provider_of,
)
from resilient_scan.settings.plugins import Plugins, discover, to_set
from resilient_scan.settings.read import (
    OPTIONS,
    ScannerTable,
    Setting,
    Tables,
    from_environment,
    from_file,
    read_tables,
)
from resilient_scan.settings.tables import Execution, Local, Notify, Service, own_fault
from resilient_scan.settings.toml import path_text
from resilient_scan.stores import ATTEMPTS_KEPT_FOR, with_space

__all__ = ["Effective", "Execution", "Settings", "SettingsError", "examine_settings", "load_installed", "load_settings"]

_log = logging.getLogger("resilient_scan")
_SQLITE: Final = "sqlite:///"


class SettingsError(ConfigError):
    """Settings are wrong; the message has a line for each problem.

    Attributes:
        problems: a sentence for each, with file and line or the variable's name, and the fix.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        """Pickle it with its problems: by default, they would be the letters of its message."""
        return type(self), (self.problems,)


class Settings(msgspec.Struct, frozen=True):
    """What file and environment say; made by `load_settings`.

    Attributes:
        path: the file, or `None`.
        execution: `[scanner_execution]`, with `None` for what it does not say.
        policy: the layers of a scanner for which nothing else is said.
        origins: where each number of `policy` came from, by `layer.field`.
        store: the URL of where state lives.
        service: `[service]`.
        notify: `[notify]`.
        quarantine: when scanners are taken out of service.
        cluster: `[cluster]`.
        tables: the tables of the file and of the environment, as one.
        local: `[local]`.
        history: seconds for which the store keeps attempts; 0: it keeps none.
    """

    path: Path | None
    execution: Execution
    policy: Policy
    origins: Mapping[str, str]
    store: str
    service: Service
    notify: Notify
    quarantine: Quarantine
    cluster: Cluster
    tables: Tables
    local: Local = Local()
    history: float = ATTEMPTS_KEPT_FOR

    def __repr__(self) -> str:
        """Name the file only: settings may contain secrets."""
        return f"<Settings of {self.path or 'the environment'}>"

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole run, or `None`: no limit."""
        return self.execution.deadline

    @property
    def import_timeout(self) -> float:
        """Seconds that the import of each scanner gets."""
        return self.execution.import_timeout_seconds or IMPORT_TIMEOUT

    @property
    def mentioned(self) -> set[str]:
        """Names of scanners that settings are about, whether they exist or not."""
        critical = self.tables.options.get("quarantine", {}).get("critical")
        return {*self.tables.scanners, *(critical.value if critical else ())}

    def token(self) -> str | None:
        """Return the token that changes take, read from its file, or `None` if no file is named.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        return self._text_of("token_file")

    def read_token(self) -> str | None:
        """Return the token that reading takes, as `token` does."""
        return self._text_of("read_token_file")

    def file_of(self, key: str) -> Path | None:
        """Return the file that a key of `[service]` names, or `None`."""
        name = getattr(self.service, key)
        if name is None:
            return None
        return Path(name) if self.path is None else self.path.absolute().parent / name

    def _text_of(self, key: str) -> str | None:
        path = self.file_of(key)
        if path is None:
            return None
        try:
            token = path.read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not a text"
            raise ConfigError(f"service.{key}: {path} cannot be read: {why}") from None
        if not token:
            raise ConfigError(f"service.{key}: {path} is empty; write one word into it, such as `openssl rand -hex 32`")
        return token

    def enabled(self, name: str) -> bool:
        """Say whether a scanner takes part in runs."""
        said = self._table(name).own.get("enabled")
        return said is None or said.value

    def isolation_of(self, spec: ScannerSpec, default: str | None = None) -> str | None:
        """Return what a scanner runs in; `None`: neither the settings say so nor the scanner.

        Args:
            spec: the scanner.
            default: replaces `[scanner_execution] isolation`.
        """
        said = self._table(spec.name).own.get("isolation")
        if said is not None:
            kind: str = said.value
            return kind
        return spec.isolation or default or self.execution.isolation

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return what a scanner finds in `context.settings`; the caller may change it."""
        return over({}, self._table(name).settings)

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
            PluginError: one of them is not a scanner.
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
        installed = discover(timeout=self.import_timeout) if scanners is None else scanners
        specs, names, unusable = _specs(installed, known)
        problems = [*map(str, unusable), *self._faults(specs, names)]
        self._build(specs, self._base(None, None), problems)
        return tuple(problems)

    def misfits(self, plugins: Plugins, *, known: Iterable[str] = ()) -> tuple[str, ...]:
        """Do the same for plugins that have been found, those that cannot be used included."""
        scanners = [found.scanner for found in plugins.scanners]
        refused = [str(problem.error) for problem in plugins.problems]
        return (*refused, *self.check(scanners, known=[*plugins.names, *known]))

    def runner(self, scanners: Iterable[Any] | None = None, *, known: Iterable[str] = (), **options: Any) -> ScanRunner:
        """Return a runner of the scanners that are not `enabled = false`.

        Args:
            scanners: as in `ScanRunner`; `None`: all that are installed and have what they need. One that cannot be
                used is logged; one that lacks a key or a setting is left out, and `runner.not_configured` says what to
                set.
            known: names of other scanners, which may have tables too.
            options: of `ScanRunner`; they override `[scanner_execution]`. `policy` replaces `[defaults]`. `settings`
                overrides the scanners' own, key by key.

        Raises:
            ConfigError: a table names an unknown scanner, layers do not fit together, or an option is wrong.
            PluginError: one of `scanners` is not a scanner.
        """
        plugins = discover(timeout=self.import_timeout) if scanners is None else Plugins((), ())
        specs, names, unusable = _specs(plugins if scanners is None else scanners, known)
        for error in unusable:
            if scanners is not None:
                raise error
            _log.warning("%s", error)
        base = self._base(options.get("policy"), options.get("timeout_seconds"))
        problems = self._faults(specs, names)
        effective = self._build(specs, base, problems)
        if problems:
            raise SettingsError(problems)
        specs = [spec for spec in specs if self.enabled(spec.name)]
        lacking = {found.name: to_set(found, self.settings_of(found.name)) for found in plugins.scanners}
        not_configured = {spec.name: lack for spec in specs if (lack := lacking.get(spec.name))}
        specs = [spec for spec in specs if spec.name not in not_configured]
        options |= self._isolation(specs, options.pop("isolation", None), options.pop("memory", None) or {})
        own = self._options([spec.name for spec in specs], effective, options.pop("settings", None) or {})
        runner = ScanRunner([self._with_objective(spec) for spec in specs], **{**own, **options})
        runner.set_origins({spec.name: {**effective[spec.name].origins, **self._objective(spec)} for spec in specs})
        if not_configured:
            runner.set_not_configured(not_configured)
        return runner

    def _options(
        self, names: Sequence[str], effective: Mapping[str, Effective], settings: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the runner's arguments for these scanners."""
        execution = msgspec.structs.asdict(self.execution)
        for said in ("timeout_seconds", "import_timeout_seconds", "isolation"):
            del execution[said]  # in the policies, over, and by scanner
        critical = tuple(name for name in self.quarantine.critical if name in names)
        tables = {n: over(self.settings_of(n), settings.get(n, {})) for n in dict.fromkeys([*names, *settings])}
        return {
            **{key: value for key, value in execution.items() if value is not None},
            **({"cluster": self.cluster} if self.execution.engine == "dask" else {}),
            "store": self.store,
            "history": self.history,
            "local_probe": self.local.probe,
            "settings": {name: table for name, table in tables.items() if table},
            "quarantine": msgspec.structs.replace(self.quarantine, critical=critical),
            "policies": {name: effective[name].policy for name in names},
        }

    def _with_objective(self, spec: ScannerSpec) -> Any:
        """Return a scanner, in its normal form where it was a class, or its table names an objective."""
        slo = self._table(spec.name).own.get("slo")
        if slo is not None:
            return msgspec.structs.replace(spec, slo=slo.value)
        return spec.origin if spec.made_of is None else spec

    def _objective(self, spec: ScannerSpec) -> dict[str, str]:
        """Return who set a scanner's objective, if it has one."""
        slo = self._table(spec.name).own.get("slo")
        if slo is not None:
            return {"scanner.slo": slo.origin}
        return {} if spec.slo is None else {"scanner.slo": "decorator"}

    def _isolation(
        self, specs: Sequence[ScannerSpec], given: str | Mapping[str, str] | None, memory: Mapping[str, str | int]
    ) -> dict[str, Any]:
        """Return what each scanner runs in, and its memory, as arguments of the runner."""
        by_name = given if isinstance(given, Mapping) else {}
        default = given if isinstance(given, str) else None
        found = {spec.name: by_name.get(spec.name) or self.isolation_of(spec, default) for spec in specs}
        sizes = {spec.name: said.value for spec in specs if (said := self._table(spec.name).own.get("memory"))}
        chosen = {name: kind for name, kind in found.items() if kind is not None}
        return {"isolation": {**by_name, **chosen}, "memory": {**sizes, **memory}}

    def _table(self, name: str) -> ScannerTable:
        return self.tables.scanners.get(name) or ScannerTable()

    def _base(self, policy: Policy | None, timeout_seconds: float | None) -> Layers:
        """Return the layers that hold for all scanners, with what is given in code."""
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigError(f"policy must be a Policy, got {policy!r}")
        base = _defaults(self.tables) if policy is None else layers_of_policy(policy, "policy=")
        if timeout_seconds is None:
            return base
        if fault := own_fault(Execution, "timeout_seconds", timeout_seconds):
            raise ConfigError(fault.removeprefix("execution."))
        return patched(base, {"timeout": {"total": Setting(timeout_seconds, "timeout_seconds=")}})

    def _build(self, specs: Iterable[ScannerSpec], base: Layers, problems: list[str]) -> dict[str, Effective]:
        layers = layers_of(specs, base, self.tables)
        found = {name: build(each, problems) for name, each in layers.items()}
        limits = [(name, each.policy.limit) for name, each in found.items() if each.policy.limit is not None]
        for first, second, sentence in differing(limits):
            places = [*limit_places(layers[second]), *limit_places(layers[first])]
            problems.append(": ".join([*places[:1], sentence]))
        return found

    def _faults(self, specs: Sequence[ScannerSpec], names: Sequence[str]) -> list[str]:
        """Return a sentence for each table without a scanner, and for each setting that does not fit its scanner.

        Args:
            specs: the scanners at hand.
            names: theirs, and those of other known scanners, which may have providers that we do not see.
        """
        faults = [*self._unknown_scanners(names), *(self._unused_providers(specs) if len(names) == len(specs) else ())]
        for spec in specs:
            if spec.settings is not None:
                faults += misfits(spec.name, spec.settings, self._table(spec.name))
        return faults

    def _unknown_scanners(self, names: Sequence[str]) -> Iterator[str]:
        critical = self.tables.options.get("quarantine", {}).get("critical")
        places = [(place, name) for name, table in self.tables.scanners.items() for place in table.begins]
        if critical is not None:
            places += [(f"{critical.place}: quarantine.critical", name) for name in critical.value]
        for place, name in places:
            if name not in names:
                yield f"{place}: unknown scanner {path_text((name,))}; {did_you_mean(name, names)}"

    def _unused_providers(self, specs: Iterable[ScannerSpec]) -> Iterator[str]:
        layers = layers_of(specs, self._base(None, None), self.tables).values()
        used = {provider.lower(): provider for each in layers if (provider := provider_of(each))}
        for name, table in self.tables.providers.items():
            if name not in used:
                meant = did_you_mean(name, used.values())
                yield from (f"{place}: no scanner has the provider {table.name!r}; {meant}" for place in table.begins)


def _specs(
    scanners: Iterable[Any] | Plugins, known: Iterable[str]
) -> tuple[list[ScannerSpec], list[str], list[PluginError]]:
    """Return the scanners, the names of all that are known, and what is unusable."""
    plugins = scanners if isinstance(scanners, Plugins) else Plugins((), ())
    specs, unusable = [], [problem.error for problem in plugins.problems]
    for thing in [found.scanner for found in plugins.scanners] if isinstance(scanners, Plugins) else scanners:
        try:
            specs.append(spec_of(thing))
        except PluginError as error:
            unusable.append(error)
    return specs, list(dict.fromkeys([*(spec.name for spec in specs), *known, *plugins.names])), unusable


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


def load_installed(
    path: str | os.PathLike[str] | None = None, *, only: Collection[str] | None = None, known: Iterable[str] = ()
) -> tuple[Settings, Plugins]:
    """Read settings and find the installed scanners; problems with regard to these are reported with the rest.

    Args:
        path: as in `load_settings`.
        only: the scanners that are wanted; others are imported only if that cannot be avoided. `None`: all.
        known: names of other scanners, which may have tables too.

    Raises:
        ConfigError: as in `load_settings`.
    """
    settings, problems = examine_settings(path)
    known = set(known)
    plugins = discover(only=only, mentioned=settings.mentioned - known, timeout=settings.import_timeout)
    if problems:
        raise SettingsError(dict.fromkeys([*problems, *settings.misfits(plugins, known=known)]))
    return settings, plugins


def examine_settings(
    path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] = os.environ
) -> tuple[Settings, tuple[str, ...]]:
    """Do the same without raising: return what could be read, and a sentence for everything that is wrong."""
    sources = [*([] if path is None else [from_file(os.fspath(path))]), from_environment(environ)]
    tables = functools.reduce(merged, map(read_tables, sources), Tables())
    problems = [sentence for source in sources for _, sentence in sorted(source.problems, key=itemgetter(0))]
    effective = build(_defaults(tables), problems)
    options: dict[str, Any] = {
        name: option_of(kind, tables.options.get(name, {}), problems) or kind() for name, kind in OPTIONS.items()
    }
    settings = Settings(
        path=None if path is None else Path(path),
        execution=options["scanner_execution"],
        policy=effective.policy,
        origins=effective.origins,
        store=_store(tables, path, environ),
        service=options["service"],
        notify=options["notify"],
        local=options["local"],
        history=options["store"].history,
        quarantine=options["quarantine"],
        cluster=_beside(options["cluster"], path),
        tables=tables,
    )
    return settings, tuple(dict.fromkeys(problems))


def _defaults(tables: Tables) -> Layers:
    """Return what holds for a scanner for which nothing is said."""
    return patched(layers_of_policy(Policy(), BUILT_IN), tables.defaults)


def _beside(cluster: Cluster, path: str | os.PathLike[str] | None) -> Cluster:
    """Return a cluster whose files are found from the settings' folder, like a service's and a store's."""
    if cluster.tls is None or path is None:
        return cluster
    folder = Path(path).absolute().parent
    files = {name: str(folder / file) for name, file in msgspec.structs.asdict(cluster.tls).items()}
    return msgspec.structs.replace(cluster, tls=msgspec.structs.replace(cluster.tls, **files))


def _store(tables: Tables, path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> str:
    """Return the store's URL: what the settings say, else a file in the user's state directory."""
    table = tables.options.get("store", {})
    url, space = (table.get(key) for key in ("url", "space"))
    store = _in_state_directory(environ) if url is None else _absolute_url(url, path)
    if url is None and path is None:
        return "memory:"
    if store.partition("?")[0] == "memory:":  # nobody else sees it, whatever its space is called
        return "memory:"
    if space is not None:
        return with_space(store, space.value)
    return store if path is None or url is not None else with_space(store, *_own_space(Path(path), environ))


def _absolute_url(url: Setting, path: str | os.PathLike[str] | None) -> str:
    relative = url.value.removeprefix(_SQLITE)
    if path is None or not url.is_of_file or relative == url.value or relative.startswith("/"):
        return str(url.value)
    return f"{_SQLITE}{Path(path).absolute().parent / relative}"  # a cron job starts in another directory


def _in_state_directory(environ: Mapping[str, str]) -> str:
    """Return a file that all settings files of a user share."""
    directory = Path(environ.get("XDG_STATE_HOME", ""))
    try:
        directory = directory if directory.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        return "memory:"
    return f"{_SQLITE}{directory / 'resilient-scan.db'}"


def _own_space(settings: Path, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the space that a settings file has of its own where it names none, and the one that it had before.

    It is named by the path as it is given. Where that leads through a link, as in `/srv/app/current/scan.toml`, the
    path behind it changes with every deploy, and state kept by that path would be forgotten each time. Earlier versions
    did so; the second space is theirs, empty where it is the same.
    """
    given, behind = (
        hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        for path in (_absolute(settings, environ), os.path.realpath(settings))
    )
    return given, "" if behind == given else behind


def _absolute(path: Path, environ: Mapping[str, str]) -> Path:
    """Return a path as it is given, absolute, with its links.

    A relative one begins in the shell's working directory, which may lead through a link too; the system knows only
    what is behind that.
    """
    if not path.is_absolute():
        path = _working_directory(environ) / path
    found = Path(path.anchor)
    for part in path.parts[1:]:
        if part == "..":
            found = Path(os.path.realpath(found)).parent if found.is_symlink() else found.parent
        else:
            found /= part
    return found


def _working_directory(environ: Mapping[str, str]) -> Path:
    named = Path(environ.get("PWD", ""))
    with suppress(OSError):  # it does not exist, or may not be looked at
        if named.is_absolute() and named.samefile(Path.cwd()):
            return named
    return Path.cwd()
