"""What settings can say: the tables, their keys, and how a value from a file or a variable becomes an option's.

A key is a field of an option class and nothing more: its name, type, range and default are read from the class. So an
option that is added to a class can be set in the file and in the environment at once, and its errors are complete.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import pkgutil
import re
import types
import typing
from collections.abc import Callable
from datetime import date, time
from typing import Any, Final

import msgspec

from resilient_scan._text import brief, did_you_mean, hide, parse_duration
from resilient_scan.errors import ConfigError
from resilient_scan.layers.local import parse_address
from resilient_scan.options import Exceptions, Option, Predicate, Seconds, check_slo, durations, is_predicate
from resilient_scan.scanning import check_isolation, size_of
from resilient_scan.settings.imports import IMPORT_TIMEOUT, ImportHangs, within
from resilient_scan.settings.toml import value_of
from resilient_scan.stores import ATTEMPTS_KEPT_FOR, check_form, check_space, split_space


class Execution(Option, frozen=True, kw_only=True):
    """The table `[scanner_execution]`: how runs are executed; `None` means that the settings do not say.

    Attributes:
        concurrent: `False`: one scanner at a time, in the given order.
        max_workers: scanners that run at a time, >= 1.
        max_async: scans of `async def` scanners under way at a time, >= 1.
        timeout_seconds: `timeout.total` of every scanner without one of its own, in seconds, > 0.
        deadline: seconds for a whole run, > 0.
        engine: where attempts run: `"threads"`, in this process, or `"dask"`, at the workers of `[cluster]`.
        isolation: what scanners run in that do not say so themselves: `"thread"`, unless set, or `"process"`.
        import_timeout_seconds: seconds that the import of each scanner gets, > 0; 10, unless set.
    """

    concurrent: bool | None = None
    max_workers: int | None = None
    max_async: int | None = None
    timeout_seconds: Seconds | None = None
    deadline: Seconds | None = None
    engine: str | None = None
    isolation: str | None = None
    import_timeout_seconds: Seconds | None = None

    def __post_init__(self) -> None:
        for name in ("max_workers", "max_async"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        self._optional("timeout_seconds", above=0)
        self._optional("deadline", above=0)
        self._optional("import_timeout_seconds", above=0)
        if self.engine not in {None, "threads", "dask"}:
            raise ConfigError(f'execution.engine must be "threads" or "dask", got "{self.engine}"')
        check_isolation("execution.isolation", self.isolation)


class Store(Option, frozen=True):
    """The table `[store]`: where state lives.

    Attributes:
        url: `"sqlite:///path.db"` (a relative path starts in the directory of the settings file),
            `"redis://host:port/db"`, or `"memory:"`: in the runner itself. None: a file in the user's state directory.
        space: a part of the store that is separate from the rest, so that fleets which share the store share nothing
            in it: 1 to 64 letters, digits, `_`, `.` or `-`. The same as `?space=` after the URL.
        history: seconds for which every attempt is kept, such as `"90d"`, >= 0: whole days, in UTC. 0: none is kept. Of
            each scanner at most 4 MiB are kept, more than a million attempts; the oldest days make room.
    """

    url: str | None = None
    space: str | None = None
    history: Seconds = ATTEMPTS_KEPT_FOR

    def __post_init__(self) -> None:
        self._number("history", least=0)
        if self.url is not None:
            check_form(self.url)
        if self.space is not None:
            check_space(self.space)
        if self.url is not None and self.space is not None and split_space(self.url).space:
            raise ConfigError("store.space: store.url names a space too; remove one of the two")


class Local(Option, frozen=True):
    """The table `[local]`: how this machine's own faults are recognised.

    Attributes:
        probe: host and port of something near that always answers, such as `"192.0.2.1:53"`, the network's resolver. If
            it cannot be reached either, a name that does not resolve is this machine's fault. None: scanners of two
            providers have to fail likewise within five seconds.
    """

    probe: str | None = None

    def __post_init__(self) -> None:
        if self.probe is not None:
            parse_address("local.probe", self.probe)


class Service(Option, frozen=True):
    """The table `[service]`: how `resilient-scan serve` can be reached, and what it asks for.

    Attributes:
        listen: address and port, such as `"127.0.0.1:9108"`; port 0 takes a free one.
        token_file: a file whose text is the token for every request that changes something; none: nothing can be
            changed over HTTP.
        read_token_file: a file whose text is the token for the page, the API and the metrics, which `token_file`'s
            opens too; none: everyone who reaches the port may read.
        allowed_hosts: names by which clients may ask for the service, besides those of loopback. A request for another
            is refused where the service listens on loopback, and everywhere if names are given.
        alertmanager: the URL of an Alertmanager that is asked for its active alerts; none: it is not asked.
        receiver: the receiver there whose alerts are ours; none: those of all receivers. If several services share an
            Alertmanager, each needs its own.
        reconcile: seconds between two such questions, > 0.
        dashboard_url: of a Grafana dashboard, to which the page links; `{scanner}` in it stands for the scanner's name.
        runbook_url: of the runbook, to which the page links alerts, each at its own heading.
        instance: the name of this process in Prometheus, such as `"10.0.0.7:9108"`: of the alerts about one process,
            only those about it are acted on. None: as it is scraped. `"*"`: those about every process are.
    """

    listen: str = "127.0.0.1:9108"
    token_file: str | None = None
    read_token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    alertmanager: str | None = None
    receiver: str | None = None
    reconcile: Seconds = 60.0
    dashboard_url: str | None = None
    runbook_url: str | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", self.listen, re.ASCII) or self.port > 65535:
            raise self._fail("listen", 'an address and a port such as "127.0.0.1:9108"')
        self._names("allowed_hosts")
        for name in self.allowed_hosts:
            if not _is_host(name):
                raise ConfigError(
                    "service.allowed_hosts must be names without scheme, port and wildcard, such as "
                    f'"scan.example.org", got {name!r}'
                )
        if self.alertmanager is not None and not re.match(r"https?://[^/?#@]+(/|$)", self.alertmanager):
            raise ConfigError('service.alertmanager must be a URL such as "http://127.0.0.1:9093", without a password')
        for name in ("dashboard_url", "runbook_url"):
            if not re.match(r"https?://[^\s/?#@]+([/?#]|$)", getattr(self, name) or "http://x"):
                raise ConfigError(f'service.{name} must be a URL such as "https://grafana.example/d/fleet"')
        self._number("reconcile", above=0)
        if self.instance is not None and not self.instance.strip():
            raise ConfigError('service.instance must be a name such as "10.0.0.7:9108" and not empty; or leave it out')

    @property
    def host(self) -> str:
        """The address to listen at."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen at."""
        return int(self.listen.rpartition(":")[2])


def _is_host(name: str) -> bool:
    """Say whether a text is the name of a host, or an IPv6 address without brackets, and nothing more."""
    try:
        return bool(re.fullmatch(r"(?!-)[\w-]+(\.[\w-]+)*", name, re.ASCII) or ipaddress.IPv6Address(name))
    except ValueError:
        return False


class Notify(Option, frozen=True):
    """The table `[notify]`: who outside learns how runs end.

    Attributes:
        ping: the address of a dead-man's switch, such as `"https://hc-ping.com/UUID"`: `resilient-scan run` asks for it
            when every scanner in service has answered, and for the same with `/fail` behind the path when not. It
            contains a token, and stands in no message. None: nobody is notified.
    """

    ping: str | None = None

    def __post_init__(self) -> None:
        if self.ping is not None and not re.fullmatch(r"https?://[^/?#\s]+([/?][^#\s]*)?", self.ping):
            raise ConfigError('notify.ping must be a URL such as "https://hc-ping.com/UUID"')


class Own(msgspec.Struct, frozen=True):
    """What a table `[scanners.x]` can say besides the layers.

    Attributes:
        enabled: `False`: the scanner takes part in no run.
        provider: the provider whose limit it shares; short for `limit = { provider = "..." }`.
        isolation: what a scan runs in: `"thread"`, or `"process"`, a child process that is killed when its time is up.
            None: as the scanner says, else as `[scanner_execution]` does.
        memory: how much memory its child process may use in addition to what it uses at the start: bytes, or a text
            such as `"512MB"`. None: as the scanner says.
        slo: the share of its last 1,000 executions that should succeed, such as 0.99, > 0 and <= 0.999.
        settings: what the scanner finds in `context.settings`.
    """

    enabled: bool = True
    provider: str | None = None
    isolation: str | None = None
    memory: str | int | None = None
    slo: float | None = None
    settings: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.provider is not None and not self.provider.strip():
            raise ConfigError("own.provider must not be empty")
        check_isolation("own.isolation", self.isolation)
        size_of("own.memory", self.memory)
        check_slo(self.slo, "own.slo")


# Keys

WORDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "array": "a list",
    "object": "a table",
}
"""The kinds of values, by msgspec's names."""


class Wrong(Exception):
    """A value is not what its key takes; the message says what it must be, or what is wrong."""


class Field(msgspec.Struct, frozen=True):
    """A key of a table.

    Attributes:
        default: the option's own; `msgspec.NODEFAULT` if the option cannot be built without the key.
        union: the types that it allows.
        must: what a value must be, to go after "must be".
        read: brings a value from a file into the option's form, or raises `Wrong`, `TypeError` or `ValueError`.
    """

    default: Any
    union: tuple[Any, ...]
    must: str
    read: Callable[[Any], Any]

    @property
    def required(self) -> bool:
        """Say whether the option cannot be built without it."""
        return self.default is msgspec.NODEFAULT

    def convert(self, value: Any) -> Any:
        """Return the value in the option's form.

        Raises:
            Wrong: it is of another kind.
        """
        try:
            return self.read(_from_variable(value, self.union) if isinstance(value, Variable) else value)
        except (TypeError, ValueError, OverflowError):
            raise Wrong(f"must be {self.must}") from None


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, Field]:
    """Return the keys that a table of an option class can have."""
    hints = typing.get_type_hints(kind)
    return {field.name: _field(kind, field, hints[field.name]) for field in msgspec.structs.fields(kind)}


def _field(kind: type[msgspec.Struct], info: msgspec.structs.FieldInfo, hint: Any) -> Field:
    members = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    union = tuple(each for each in members if each not in {type(None), msgspec.UnsetType})
    default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    if Exceptions in union:
        must = 'a list of exceptions such as ["ValueError", "httpx.TransportError"], or the name of a predicate'
        return Field(default, union, must, _exceptions)
    if info.name in durations(kind):
        return Field(default, union, 'a duration such as 300 or "5m"', _duration)
    if isinstance(union[0], type) and issubclass(union[0], Option):
        leave = ", or false to leave it out" if type(None) in members else ""
        return Field(default, union, f"a table{leave}", functools.partial(_option, union[0]))
    read = _number if float in union else functools.partial(_strictly, union)
    return Field(default, union, " or ".join(map(_words, union)), read)


def _words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    return "a list of texts" if origin is tuple else WORDS["object" if origin is dict else hint.__name__]


def own_fault(kind: type[msgspec.Struct], field: str, value: Any) -> str:
    """Return the option's sentence about a value that is wrong whatever the other fields are, else an empty text."""
    required = {name: "-" for name, each in fields_of(kind).items() if each.required}
    try:
        kind(**{**required, field: value})
    except ConfigError as error:
        return "" if named_in(kind, str(error)) - {field} else str(error)
    return ""


def named_in(kind: type[msgspec.Struct], sentence: str) -> set[str]:
    """Return the fields of an option class that a sentence names."""
    return set(re.findall(r"\w+", sentence)) & set(kind.__struct_fields__)


# Values from a file


def _duration(value: Any) -> float:
    return parse_duration(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> float:
    return float(_strictly((int, float), value))


def _strictly(union: tuple[Any, ...], value: Any) -> Any:
    """Return a value that already has one of these types (a `bool` is not an `int`), a list as a tuple."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if type(value) not in {typing.get_origin(each) or each for each in union}:
        raise TypeError(value)
    if isinstance(value, int) and value.bit_length() > 63:  # TOML has 64 bits
        raise OverflowError(value)
    return value


def _option(kind: type[Option], value: Any) -> Option | None:
    """Return the option object that a table describes, or `None` for `false`.

    Raises:
        Wrong: a key is unknown, or a value is wrong.
        TypeError: the value is neither.
    """
    if value is False:
        return None
    if not isinstance(value, dict):
        raise TypeError(value)
    fields, given = fields_of(kind), {}
    for key, inner in value.items():
        if key not in fields:
            keys = f"the keys are {', '.join(fields)}"
            raise Wrong(f"unknown key {key}; {did_you_mean(key, fields, keys)}")
        try:
            given[key] = fields[key].convert(inner)
        except Wrong as wrong:
            raise Wrong(f"{key} {wrong}") from None
    try:
        return kind(**given)
    except ConfigError as error:
        raise Wrong(str(error)) from None


def _exceptions(value: Any) -> Exceptions | Predicate:
    """Import the exception classes of a list of names (Python's own, or dotted ones), or a predicate.

    A variable's text is a list here even if it is one name, so a list of one predicate is that predicate.

    Raises:
        Wrong: a name cannot be found, or is neither an exception nor a predicate.
        TypeError: the value is not a list of texts.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(value)
    found = [_named(name) for name in names]
    if len(found) == 1 and is_predicate(found[0]):
        if inspect.iscoroutinefunction(found[0]):
            raise Wrong(f"{names[0]!r} is async; a predicate must not be")
        return typing.cast("Predicate", found[0])
    if isinstance(value, str):
        known = f'; write ["{value}"]' if _is_exception(found[0]) else ""
        raise Wrong(f"{value!r} is not a predicate{known}")
    for name, kind in zip(names, found, strict=True):
        if not _is_exception(kind):
            raise Wrong(f"{name!r} is not an exception class")
    return tuple(found)


def _named(name: str) -> Any:
    try:
        found = (
            within(IMPORT_TIMEOUT, lambda: pkgutil.resolve_name(name), f"the exception {name!r}")
            if "." in name
            else pkgutil.resolve_name(f"builtins.{name}")
        )
    except AttributeError as error:
        raise Wrong(_not_there(name, error)) from None
    except ValueError:
        raise Wrong(f"{name!r} is not the name of an exception") from None
    except (Exception, SystemExit) as error:  # foreign code runs when a module is imported
        reason = str(error) if isinstance(error, ImportHangs) else f"{type(error).__name__}: {error}"
        raise Wrong(f"{name!r} cannot be imported: {brief(hide(reason))}") from None
    return found


def _not_there(name: str, error: AttributeError) -> str:
    missing = str(error.name)
    known = [each for each, value in vars(error.obj).items() if _is_exception(value)]
    if "." not in name:
        hint = "one of another module needs the module too, as in httpx.TransportError"
        return f"Python has no exception {name!r}; {did_you_mean(missing, known, hint)}"
    return (
        f"{name[: name.rindex(f'.{missing}')]} has no {missing!r}; {did_you_mean(missing, known, 'look the name up')}"
    )


def _is_exception(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


# Values from a variable, brought into the form that a file would have given them


class Variable(str):
    """The value of an environment variable: text, whatever it is meant to be."""

    __slots__ = ()


_SWITCHES: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def guess(text: str) -> Any:
    """Return what a variable's text means where no type is known: TOML's value, else the text."""
    try:
        value = value_of(text)
    except ValueError:
        return str(text)
    return str(text) if isinstance(value, date | time) else value


def as_table(value: Any) -> Any:
    """Return what a variable says where a table is expected, or `False`; other values as they are."""
    if not isinstance(value, Variable):
        return value
    return False if _SWITCHES.get(value.strip().lower()) is False else guess(value)


def _from_variable(text: str, union: tuple[Any, ...]) -> Any:
    if union == (bool,):
        return _SWITCHES.get(text.strip().lower(), str(text))
    value = guess(text)
    if isinstance(value, list | dict):
        return value
    if any(typing.get_origin(each) is tuple for each in union) and (str not in union or "," in text):
        return [part.strip() for part in text.split(",")]
    return str(text) if str in union else value
