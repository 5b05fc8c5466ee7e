"""How things cross between driver and child: a scanner, its settings, states, candidates and errors.

Each is pickled, and cloudpickle (the extra `process`) takes what pickle refuses: functions and classes of `__main__`,
of a notebook, or inside another function. It does so by value, because the child never imports the driver's main
module: an unguarded script would run itself again.

A scanner goes by module and name wherever these lead to the very same object. The child then imports the module, and
the scanner has its own connections, locks and caches there. Only without such a name is it pickled.

These bytes come from our own child, which runs the same code as we do, and go back into no store.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

import msgspec

from resilient_scan._once import IMPORTING
from resilient_scan._trace import Home
from resilient_scan.engines.process import bootstrap
from resilient_scan.errors import PluginError
from resilient_scan.results import ErrorInfo
from resilient_scan.scanning import FunctionScanner, ScannerSpec, spec_of

_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL
_MAIN: Final = {"__main__", "__mp_main__"}
_PLAIN: Final = (str, int, float, bool, type(None))
PROCESS: Final = 'isolation="process"'
BY_NAME: Final = "by name"
BY_PICKLE: Final = "by pickle"
BY_VALUE: Final = "by cloudpickle"


class Unsendable(Exception):
    """A value cannot go to another process; the message says why."""


def pack(value: Any) -> bytes:
    """Return a value as bytes for the other process.

    Raises:
        Unsendable: neither pickle nor cloudpickle takes it.
    """
    return _packed(value)[1]


def unpack(data: bytes) -> Any:
    """Return the value; whatever foreign code raises meanwhile is raised."""
    return pickle.loads(data)  # noqa: S301 - from our own child, or the driver that has started us


def _packed(value: Any) -> tuple[str, bytes]:
    """Return how a value was packed, and the bytes."""
    data, why = b"", ""
    try:
        data = pickle.dumps(value, _PROTOCOL)
        if b"__main__" not in data:
            return BY_PICKLE, data
    except Exception as error:  # foreign code
        why = _reason(error)
    by_value = _cloudpickle()
    if by_value is None:
        if data:  # most probably it is only a text; a class would be missed in the child, which says so
            return BY_PICKLE, data
        raise Unsendable(f"{why}; what is not importable needs the extra: pip install 'resilient-scan[process]'")
    try:
        return BY_VALUE, by_value.dumps(value, _PROTOCOL)
    except Exception as error:
        raise Unsendable(_reason(error)) from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _cloudpickle() -> Any:
    """Return cloudpickle, or `None` where the extra is not installed."""
    with IMPORTING:
        try:
            import cloudpickle  # noqa: PLC0415 - an extra, and most values need none
        except ImportError:
            return None
    return cloudpickle


# scanners


class Reference(msgspec.Struct, frozen=True):
    """How a scanner goes to a child.

    Attributes:
        how: `BY_NAME`, `BY_PICKLE` or `BY_VALUE`.
        module, attribute: where it is, if it goes by name.
        file: of that module, where the name does not lead to it in another process.
        data: its function or method, if it goes otherwise.
    """

    how: str
    module: str = ""
    attribute: str = ""
    file: str = ""
    data: bytes = b""


class ScannerPayload(msgspec.Struct, frozen=True):
    """A scanner on its way to a child, with the surroundings that it has in the driver.

    Attributes:
        name, pipeline: the scanner's.
        way: how to find it.
        settings: pickled.
        home: the module of its code.
        traffic: what stands between it and the network, and its folder: see `traffic`.
        surroundings: where Python imports from, where relative files are, and the environment: see `bootstrap`.
            Empty: those of the other machine.
        version: of its code, where that is imported there; empty: nobody knows.
    """

    name: str
    pipeline: str
    way: Reference
    settings: bytes
    home: str
    traffic: tuple[str, str]
    surroundings: dict[str, Any]
    version: str = ""


class _Carried:
    """A scanner that came as a function or method."""

    def __init__(self, name: str, pipeline: str, scan: Callable[..., Any]) -> None:
        self.name = name
        self.pipeline = pipeline
        self.scan = scan


def reference_of(spec: ScannerSpec, option: str = PROCESS) -> Reference:
    """Return how a scanner can go to a child, because of this option.

    Raises:
        PluginError: it cannot; the message says why.
    """
    for thing in (spec.origin, spec.made_of):
        if thing is not None and (found := _named(thing)) is not None:
            return found
    try:
        how, data = _packed(spec.origin.scan)
    except Unsendable as error:
        raise PluginError(
            f"scanner {spec.name}: {option} sends it to a child process, and {error}; define it at the top of a "
            "module, and make there what cannot be sent"
        ) from None
    return Reference(how, data=data)


def _named(thing: Any) -> Reference | None:
    """Return the module and name that lead to the very same object in another process, if there are any."""
    owner = thing if inspect.isclass(thing) or isinstance(thing, FunctionScanner) else type(thing)
    name = owner.__module__
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is None or name in _MAIN or spec is None:
        return None
    attribute = _attribute(module, thing, getattr(thing, "__qualname__", ""))
    file = getattr(module, "__file__", None)
    return Reference(BY_NAME, name, attribute, file if isinstance(file, str) else "") if attribute else None


def _attribute(module: ModuleType, thing: Any, qualname: str) -> str:
    if qualname and _walk(module, qualname) is thing:
        return qualname
    return next((name for name, value in list(vars(module).items()) if value is thing), "")


def _walk(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def payload_of(
    spec: ScannerSpec, way: Reference, settings: bytes, traffic: tuple[str, str], *, away: bool = False
) -> bytes:
    """Return a scanner as bytes for a child, with the surroundings as they are now.

    A child on another machine has that one's: its folders and its environment, which may hold other secrets.
    """
    home = getattr(spec.origin, "__module__", None)
    if away:
        way = msgspec.structs.replace(way, file="")
    surroundings = {} if away else bootstrap.surroundings()
    version = spec.code.version if way.how == BY_NAME else ""
    payload = ScannerPayload(spec.name, spec.pipeline, way, settings, str(home or ""), traffic, surroundings, version)
    return pickle.dumps(payload, _PROTOCOL)


def settings_of(spec: ScannerSpec, settings: Mapping[str, Any], option: str = PROCESS) -> bytes:
    """Return a scanner's settings as bytes for a child, to which it goes because of this option.

    Raises:
        PluginError: they cannot go there.
    """
    try:
        return pack(dict(settings))
    except Unsendable as error:
        raise PluginError(f"scanner {spec.name}: {option} sends its settings to a child process, and {error}") from None


def state_error(state: Mapping[str, Any], why: object) -> str:
    """Say which value of a state cannot go to a child."""
    for key, value in state.items():
        try:
            pack(value)
        except Unsendable as error:
            return f"the state's {key!r} cannot be sent to a child process: {error}"
    return f"the state cannot be sent to a child process: {why}"


def settle(payload: ScannerPayload) -> ScannerSpec:
    """Take over the driver's surroundings, and find the scanner; in the child.

    Raises:
        BaseException: its module, or what its pickle calls, has raised this.
    """
    if payload.surroundings:
        bootstrap.settle(payload.surroundings)
    way = payload.way
    if way.how == BY_NAME:
        found = _walk(_module(way), way.attribute)
        if found is None:
            raise PluginError(f"there is no {way.attribute} in {way.module} when a child process imports it")
        spec = spec_of(found)
        if payload.version != spec.code.version:
            raise PluginError(
                f"{way.module} is another version there ({spec.code.version:.12}) than here ({payload.version:.12}); "
                "deploy the same code to all workers"
            )
        return spec
    return spec_of(_Carried(payload.name, payload.pipeline, unpack(way.data)))


def _module(way: Reference) -> ModuleType:
    """Import a module: the one that the driver has, also where its name leads elsewhere or nowhere here."""
    try:
        module = importlib.import_module(way.module)
    except ModuleNotFoundError as error:
        if not way.file or error.name is None or not f"{way.module}.".startswith(f"{error.name}."):
            raise
    else:
        if not way.file or getattr(module, "__file__", None) == way.file:
            return module
    spec = importlib.util.spec_from_file_location(way.module, way.file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module named {way.module!r}", name=way.module)
    module = importlib.util.module_from_spec(spec)
    sys.modules[way.module] = module
    spec.loader.exec_module(module)
    return module


# errors


class SentError(msgspec.Struct, frozen=True):
    """An exception on its way.

    Attributes:
        data: the exception itself, where a copy of it is like it.
        names: of its class and that one's bases: module and qualified name.
        text: its message.
        attributes: plain ones that were set on it.
        members: of a group whose copy is not like it.
        info: where it was raised, with its traceback.
    """

    data: bytes | None
    names: tuple[tuple[str, str], ...]
    text: str
    attributes: dict[str, Any]
    members: tuple[SentError, ...]
    info: ErrorInfo


def pack_error(error: BaseException, home: Home) -> bytes:
    """Return an exception as bytes: itself if possible, else its name, message and the names of its bases."""
    return pickle.dumps(_sent(error, home), _PROTOCOL)


def unpack_error(data: bytes) -> tuple[BaseException, ErrorInfo]:
    """Return the exception, or one that `except` and `on` take for it, and where it was raised."""
    sent: SentError = pickle.loads(data)  # noqa: S301
    return _received(sent), sent.info


def _sent(error: BaseException, home: Home) -> SentError:
    kinds = type(error).__mro__[:-1]
    info = ErrorInfo.of(error, home)
    data = _copied(error)
    members: tuple[SentError, ...] = ()
    if data is None and isinstance(error, BaseExceptionGroup):
        members = tuple(_sent(member, home) for member in error.exceptions)
    own = getattr(error, "__dict__", {})
    return SentError(
        data,
        tuple((str(kind.__module__), kind.__qualname__) for kind in kinds),
        _text(error),
        {name: value for name, value in own.items() if isinstance(name, str) and type(value) in _PLAIN},
        members,
        info,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # its class is foreign code
        return ""


def _copied(error: BaseException) -> bytes | None:
    """Return an exception pickled, if that gives the same again.

    Many do not: pickle calls the class with `args`, which are what was passed on to `Exception`, and not what the
    class itself was called with.
    """
    try:
        data = pack(error)
        copy = unpack(data)
        alike = type(copy) is type(error) and _text(copy) == _text(error)
    except Exception:  # foreign constructors
        return None
    return data if alike else None


def _received(sent: SentError) -> BaseException:
    if sent.data is not None:
        try:
            error = unpack(sent.data)
        except Exception:  # of a module that is not here, for example
            error = None
        if isinstance(error, BaseException):
            return error
    if sent.members:
        return BaseExceptionGroup(sent.text, [_received(member) for member in sent.members])
    return _stand_in(sent)


def _stand_in(sent: SentError) -> BaseException:
    """Return an exception with a class of the same name, and bases of the same names.

    Bases that are loaded here are the real ones, so that `except` and `Retry.on` know them.
    """
    kind = _kind(sent.names)
    error = kind.__new__(kind, sent.text)
    error.args = (sent.text,)
    error.__dict__.update(sent.attributes)
    return error


@functools.lru_cache(256)
def _kind(names: tuple[tuple[str, str], ...]) -> type[BaseException]:
    top: type[BaseException] = BaseException
    for module, qualname in reversed(names):
        real = _loaded(module, qualname)
        if real is None:
            top = _class(module, qualname, top)
        elif issubclass(real, top):
            top = real
        elif not issubclass(top, real):
            top = _class(module, qualname, top, real)
    without_constructors = {
        "__new__": lambda kind, *_args: _bare(kind),
        "__init__": lambda _self, *_args: None,
        "__str__": lambda self: str(self.args[0]),
    }
    return _class(top.__module__, top.__qualname__, top, **without_constructors)


def _bare(kind: type[BaseException]) -> BaseException:
    native: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error: BaseException = native.__new__(kind)
    return error


def _class(module: str, qualname: str, *bases: type[BaseException], **names: Any) -> type[BaseException]:
    meta: Any = type(bases[0])
    names |= {"__module__": module, "__qualname__": qualname}
    try:
        made: type[BaseException] = meta(qualname.rpartition(".")[2], bases, names)
        return made
    except TypeError:  # the layouts of two bases do not fit together
        return bases[0]


def _loaded(module: str, qualname: str) -> type[BaseException] | None:
    """Return a class of exceptions, if it can be had here without importing anything."""
    found = _walk(sys.modules.get(module), qualname)
    return found if inspect.isclass(found) and issubclass(found, BaseException) else None
