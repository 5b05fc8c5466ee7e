"""The scanner's side: what a scanner is, what it is given, what it returns."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

import msgspec
from msgspec import UNSET, UnsetType

from resilient_scan._text import is_utf8
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError, InvalidCandidate, PluginError, is_number
from resilient_scan.options import (
    LAYERS,
    MAX_SLO,
    Breaker,
    Cache,
    Expect,
    Limit,
    Retry,
    Timeout,
    check_layer,
    check_slo,
)

Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")
NAME = re.compile(r"[a-z0-9_.-]{1,64}")


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One thing a scanner found.

    Attributes:
        ticker: a non-empty symbol without blanks, such as `AAPL` or `BRK.B`.
        source: who found it, usually the scanner's name.
        context: one sentence for people.
        priority: `unknown`, or any word that the pipeline uses (`critical`, `high`, `medium`, `low`).
        strategy: which strategy it is meant for; may be empty.
        extras: everything else, by name.

    Raises:
        InvalidCandidate: a field has a wrong type, or the ticker is empty or has a blank in it.
    """

    ticker: str
    source: str
    context: str
    priority: str = "unknown"
    strategy: str = ""
    extras: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for field in ("ticker", "source", "context", "priority", "strategy"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise InvalidCandidate(f"candidate.{field} must be text, got {value!r}")
        if not isinstance(self.extras, dict):
            raise InvalidCandidate(f"candidate.extras must be a dict, got {self.extras!r}")
        if not self.ticker or any(map(str.isspace, self.ticker)):
            raise InvalidCandidate(f"candidate.ticker must be a symbol without blanks, got {self.ticker!r}")


@runtime_checkable
class Scanner(Protocol):
    """A plugin: an object, or a class without required arguments, with these three.

    Attributes:
        name: unique in a runner; 1 to 64 of `a-z 0-9 _ . -`, the first not `-`.
        pipeline: which pipeline it belongs to, free text.
        scan: `scan(state)` or `scan(state, context)`; returns an iterable of candidates or mappings, or yields them;
            `async def` is allowed.

    An object may also have attributes named like the layers (`cache`, `retry`, ...), which count if they are option
    objects, as well as `candidate` (a class), `empty_ok`, `expect` (an `Expect`), `isolation` (with `memory`),
    `needs`, `slo`, `sources` and `version`, as in `@scanner`.
    """

    name: str
    pipeline: str

    @property
    def scan(self) -> Callable[..., Any]:
        """Call the source and return candidates."""


class Code(msgspec.Struct, frozen=True):
    """Which code a scanner runs, in words that are the same in all processes of one deploy.

    Attributes:
        module: where it is, by the name under which others import it.
        qualname: of its function or class.
        version: what the scanner itself says, else a digest of the module's source; empty where that cannot be read.
    """

    module: str
    qualname: str
    version: str


@dataclass(eq=False, repr=False)
class FunctionScanner(Generic[Parameters, Found]):
    """A scanner made from a function by `@scanner`; calling it calls the function."""

    scan: Callable[Parameters, Found]
    name: str
    pipeline: str
    layers: dict[str, Any]
    candidate: type
    empty_ok: bool | None
    needs: Mapping[str, str]
    sources: Sequence[str]
    settings: type[msgspec.Struct] | None
    version: str | None
    free_sockets: bool = True
    expect: Expect | None = None
    slo: float | None = None
    isolation: str | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        self.needs, self.sources = dict(self.needs), tuple(self.sources)
        # Here, because the module is being imported: later, a deploy may have replaced its file, and the old code would
        # store its answers under the new one's name. A worker that was forked before would do so each time.
        self.code: Code = code_of(self.scan, self.version)
        self.__doc__ = self.scan.__doc__
        self.__name__: str = getattr(self.scan, "__name__", self.name)
        self.__qualname__: str = self.code.qualname
        self.__module__ = self.scan.__module__
        self.__wrapped__: Callable[Parameters, Found] = self.scan

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Found:
        """Call the function itself, without any layer."""
        return self.scan(*args, **kwargs)

    def __reduce__(self) -> str:
        """Pickle it as a function is pickled: by its name in its module."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<scanner {self.name} of {self.pipeline}>"


class Decorator(Protocol):
    """What `@scanner(...)` returns: it keeps the function's own arguments and result, for type checkers."""

    def __call__(self, function: Callable[Parameters, Found], /) -> FunctionScanner[Parameters, Found]:
        """Make a scanner from a function."""


@overload
def scanner(function: Callable[Parameters, Found], /) -> FunctionScanner[Parameters, Found]: ...


@overload
def scanner(
    *,
    pipeline: str = ...,
    name: str | None = ...,
    candidate: type = ...,
    empty_ok: bool | None = ...,
    needs: Mapping[str, str] = ...,
    sources: Sequence[str] = ...,
    settings: type[msgspec.Struct] | None = ...,
    version: str | None = ...,
    free_sockets: bool = ...,
    expect: Expect | None = ...,
    slo: float | None = ...,
    isolation: str | None = ...,
    memory: str | int | None = ...,
    cache: Cache | None | UnsetType = ...,
    retry: Retry | None | UnsetType = ...,
    breaker: Breaker | None | UnsetType = ...,
    limit: Limit | None | UnsetType = ...,
    timeout: Timeout | UnsetType = ...,
) -> Decorator: ...


def scanner(  # noqa: PLR0913 - the public face: an option is an argument
    function: Callable[..., Any] | None = None,
    /,
    *,
    pipeline: str = "default",
    name: str | None = None,
    candidate: type = Candidate,
    empty_ok: bool | None = None,
    needs: Mapping[str, str] = MappingProxyType({}),
    sources: Sequence[str] = (),
    settings: type[msgspec.Struct] | None = None,
    version: str | None = None,
    free_sockets: bool = True,
    expect: Expect | None = None,
    slo: float | None = None,
    isolation: str | None = None,
    memory: str | int | None = None,
    cache: Cache | None | UnsetType = UNSET,
    retry: Retry | None | UnsetType = UNSET,
    breaker: Breaker | None | UnsetType = UNSET,
    limit: Limit | None | UnsetType = UNSET,
    timeout: Timeout | UnsetType = UNSET,
) -> FunctionScanner[..., Any] | Decorator:
    """Make a scanner from a function `(state)` or `(state, context)`.

    `@scanner` without parentheses takes all the defaults.

    Args:
        function: the function; given by `@scanner` without parentheses.
        pipeline: which pipeline it belongs to.
        name: the scanner's name; the function's, unless given.
        candidate: what it returns, if not `Candidate`: a dataclass, a msgspec struct, or a pydantic model.
        empty_ok: whether an answer without candidates is believed. `False`: never, it is always suspicious; `True`:
            always, and so is any small one; `None`: it depends on the scanner's former answers
            (`ScanResult.suspicious`).
        needs: what it cannot run without: setting names, each with the environment variable that can take its place
            (`{"api_key": "FINNHUB_API_KEY"}`; an empty text: only our own, `RESILIENT_SCAN__SCANNERS__...`). The
            command lists a scanner with missing settings as not configured, says what to set, and does not run it.
        sources: hosts that it calls (`"finnhub.io"`); a replay sets the scanner's clock to their recordings.
        settings: a msgspec struct that the scanner's table of settings has to fit: what does not fit is reported with
            file and line when settings are read. The function still finds the plain table in `context.settings`.
        version: of its code. Stored answers of another version are not found, so code that was put right never gets
            those of the wrong code. `None`: a digest of its module's source, where that can be read. Set it if answers
            depend on other code too, or on what a closure or an object holds; or if they should outlive other changes
            to the module.
        free_sockets: whether a connection may be shut down that the scanner waits for when its time is up, so that its
            thread comes back. `False`: its threads are left to hang.
        expect: what each of its answers must be like; one that is not is suspicious.
        slo: the share of its last 1,000 executions that should succeed, such as 0.99, > 0 and <= 0.999; what is left of
            the failures that this allows is reported. `None`: nothing is promised.
        isolation: what it runs in: `"process"`, a child process that is killed when its time is up, or `"thread"`.
            `None`: as the runner says.
        memory: how much memory its child process may use in addition to what it uses at the start: bytes, or a text
            such as `"512MB"`. Beyond it, Python raises `MemoryError` in the scanner.
        cache: an option object replaces the runner's whole layer, `None` leaves it out for this scanner; a layer that
            is not named is inherited from the runner.
        retry: likewise.
        breaker: likewise.
        limit: likewise.
        timeout: likewise, but it cannot be left out.

    Raises:
        ConfigError: a layer is neither an option object of its kind nor `None`; or another argument is wrong.
        PluginError: the name or the pipeline is not valid.
    """
    given = {"cache": cache, "retry": retry, "breaker": breaker, "limit": limit, "timeout": timeout}
    layers = {layer: value for layer, value in given.items() if value is not UNSET}
    _check_declarations(empty_ok, free_sockets, settings, version, expect)
    check_slo(slo, "@scanner: slo")
    check_isolation("@scanner: isolation", isolation)
    size = size_of("@scanner: memory", memory)

    def make(function: Callable[..., Any], /) -> FunctionScanner[..., Any]:
        if not callable(function):
            raise PluginError(
                f"@scanner makes a scanner of a function (state) or (state, context), got {function!r:.200}"
            )
        own = name if name is not None else getattr(function, "__name__", "")
        for layer, value in layers.items():
            check_layer(layer, value, LAYERS[layer], where=f"@scanner {own}")
        made = FunctionScanner(
            function,
            own,
            pipeline,
            layers,
            candidate,
            empty_ok,
            needs,
            sources,
            settings,
            version,
            free_sockets,
            expect,
            slo,
            isolation,
            size,
        )
        check_identity(made)
        return made

    return cast("Decorator", make) if function is None else make(function)


def _check_declarations(empty_ok: Any, free_sockets: Any, settings: Any, version: Any, expect: Any) -> None:
    """Raise `ConfigError` unless what `@scanner` was given about a scanner is what it takes."""
    if not (empty_ok is None or isinstance(empty_ok, bool)):
        raise ConfigError(f"@scanner: empty_ok must be True, False or None, got {empty_ok!r}")
    if not isinstance(free_sockets, bool):
        raise ConfigError(f"@scanner: free_sockets must be True or False, got {free_sockets!r:.200}")
    if settings is not None and not (inspect.isclass(settings) and issubclass(settings, msgspec.Struct)):
        raise ConfigError(f"@scanner: settings must be a msgspec.Struct class or None, got {settings!r:.200}")
    if version is not None and not (isinstance(version, str) and version):
        raise ConfigError(f"@scanner: version must be a text that is not empty, or None, got {version!r:.200}")
    if not (expect is None or isinstance(expect, Expect)):
        raise ConfigError(f"@scanner: expect must be an Expect or None, got {expect!r:.200}")


ISOLATIONS = ("thread", "process")
_SIZES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def check_isolation(where: str, value: object) -> None:
    """Raise `ConfigError` unless it is `"thread"`, `"process"` or `None`."""
    if value is not None and value not in ISOLATIONS:
        raise ConfigError(f'{where} must be "thread" or "process", got {value!r:.200}')


def size_of(where: str, value: object) -> int | None:
    """Return a size in bytes: a whole number, or a text such as `"512MB"`; `None` stays `None`.

    Raises:
        ConfigError: it is neither, or 0 or less.
    """
    size = value
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+)\s*([KMG]?I?B)", value.strip().upper(), re.ASCII)):
        size = int(found[1]) * _SIZES.get(found[2], 0)
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f'{where} must be a number of bytes, or a text such as "512MB", got {value!r:.200}')
    return size


class ScannerSpec(msgspec.Struct, frozen=True):
    """A scanner in its normal form, as the runner uses it."""

    name: str
    pipeline: str
    scan: Callable[..., Any]
    takes_context: bool
    layers: dict[str, Any]
    candidate: type
    origin: Any
    code: Code
    empty_ok: bool | None = None
    settings: type[msgspec.Struct] | None = None
    is_async: bool = False
    free_sockets: bool = True
    expect: Expect | None = None
    slo: float | None = None
    isolation: str | None = None
    memory: int | None = None
    made_of: type | None = None  # the class that was given, where `origin` was made of one

    def call(self, state: dict[str, Any], context: ScanContext) -> Any:
        """Call its function, with the context if it takes one."""
        return self.scan(state, context) if self.takes_context else self.scan(state)


def spec_of(thing: Any) -> ScannerSpec:
    """Bring a scanner object or class into its normal form.

    Raises:
        PluginError: it lacks `name`, `pipeline` or `scan`, or one of them is not valid.
    """
    made_of = thing if inspect.isclass(thing) else None
    if made_of is not None:
        try:
            thing = made_of()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"scanner class {made_of.__qualname__} cannot be made without arguments: {error}"
            ) from error
    check_identity(thing)
    layers = getattr(thing, "layers", None)
    if not isinstance(thing, FunctionScanner):
        layers = {key: getattr(thing, key) for key, kind in LAYERS.items() if isinstance(getattr(thing, key, 0), kind)}
    isolation = getattr(thing, "isolation", None)
    if isolation not in ISOLATIONS:  # an attribute of the same name that means something else
        isolation = None
    candidate = getattr(thing, "candidate", Candidate)
    if not inspect.isclass(candidate):
        if isinstance(thing, FunctionScanner):
            raise PluginError(f"scanner {thing.name}: candidate must be a class, got {candidate!r}")
        candidate = Candidate  # an attribute of the same name that means something else
    scan, takes_context = _called(thing.name, thing.scan)
    return ScannerSpec(
        name=str.__str__(thing.name),  # of an enum that is a text, the text
        pipeline=str.__str__(thing.pipeline),
        scan=scan,
        takes_context=takes_context,
        layers=dict(layers or {}),
        candidate=candidate,
        origin=thing,
        code=thing.code if isinstance(thing, FunctionScanner) else code_of(thing, _own_version(thing)),
        empty_ok=empty_ok if isinstance(empty_ok := getattr(thing, "empty_ok", None), bool) else None,
        settings=thing.settings if isinstance(thing, FunctionScanner) else None,
        is_async=_is_async(thing.scan),
        free_sockets=getattr(thing, "free_sockets", True) is not False,
        expect=expect if isinstance(expect := getattr(thing, "expect", None), Expect) else None,
        slo=slo if is_number(slo := getattr(thing, "slo", None), 0, MAX_SLO) and slo else None,
        isolation=isolation,
        memory=_memory_of(thing, isolation),
        made_of=made_of,
    )


def _memory_of(thing: Any, isolation: str | None) -> int | None:
    """Return how much memory a scanner may use; of another object the attribute counts only next to `isolation`."""
    if isinstance(thing, FunctionScanner):
        return thing.memory
    return None if isolation is None else size_of(f"scanner {thing.name}: memory", getattr(thing, "memory", None))


def _is_async(scan: Any) -> bool:
    """Return whether `scan` is an `async def`, with `yield` or without; one that just returns an awaitable is not."""
    while isinstance(scan, functools.partial):
        scan = scan.func
    ways = (scan, getattr(type(scan), "__call__", None))  # noqa: B004 - an object whose `__call__` is `async def`
    return any(inspect.iscoroutinefunction(way) or inspect.isasyncgenfunction(way) for way in ways)


def check_identity(thing: Any) -> None:
    """Raise `PluginError` unless `thing` has a valid name, a pipeline and a `scan` that can be called."""
    try:
        name, pipeline, scan = (getattr(thing, part, None) for part in ("name", "pipeline", "scan"))
    except Exception as error:  # properties are foreign code
        raise PluginError(f"scanner {type(thing).__qualname__} cannot be looked at: {error}") from error
    if inspect.isroutine(thing) and name is None:
        shown = getattr(thing, "__qualname__", repr(thing))
        raise PluginError(
            f'{shown} is a plain function; decorate it: @scanner, or @scanner(pipeline="...", name="..."); '
            "a scanner's name must be 1 to 64 of a-z, 0-9, '_', '.', '-'"
        )
    if name is None and scan is None:
        raise PluginError(f"{thing!r:.200} is not a scanner: it has neither a name nor a method scan(state)")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(f"scanner {thing!r}: name must be 1 to 64 of a-z, 0-9, '_', '.', '-', got {name!r}")
    if name.startswith("-"):
        raise PluginError(f"scanner {thing!r}: name must not begin with '-', which begins options, got {name!r}")
    _check_pipeline(name, pipeline)
    if not callable(scan):
        raise PluginError(f"scanner {name}: it has no method scan(state) or scan(state, context)")


def _check_pipeline(name: str, pipeline: Any) -> None:
    if not isinstance(pipeline, str) or not pipeline.strip():
        raise PluginError(f"scanner {name}: pipeline must be a text that is not empty, got {pipeline!r}")
    if not is_utf8(str.__str__(pipeline)):  # it is a label of all metrics
        raise PluginError(f"scanner {name}: pipeline must be text that UTF-8 can write, got {pipeline!r}")


def _called(name: str, scan: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return what to call, and whether with a context, too.

    It gets one if its second positional parameter is required or called `context`: an optional one of another name
    is the scanner's own business.

    Raises:
        PluginError: it cannot be called with a state, or with a state and a context.
    """
    try:
        signature = inspect.signature(scan)
    except (TypeError, ValueError):  # a builtin without a signature
        return scan, False
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    both = second is not None and (second.default is second.empty or second.name == "context")
    by_name = not both and any(p.kind is p.KEYWORD_ONLY and p.name == "context" for p in parameters)
    try:
        signature.bind(*([None] * (1 + both)), **({"context": None} if by_name else {}))
    except TypeError as error:
        shown = ", ".join(map(_shown, parameters))
        raise PluginError(f"scanner {name}: it must take (state) or (state, context), not ({shown}): {error}") from None
    if by_name:
        return lambda state, context: scan(state, context=context), True
    return scan, both


def _shown(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=parameter.empty, default=parameter.empty))


# which code a scanner runs

_COMPILED = (*BYTECODE_SUFFIXES, *EXTENSION_SUFFIXES)
_digests: dict[str, tuple[object, str]] = {}  # by file: when it was changed and how long it is, and its digest


def code_of(thing: Any, version: object) -> Code:
    """Say which code a function, or the class of an object, is; `version` counts if it is a text that is not empty."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__qualname__", None)
    if inspect.ismethod(thing):  # an inherited one does what its object's class makes of it
        owner = thing.__self__ if inspect.isclass(thing.__self__) else type(thing.__self__)
        thing, name = owner, f"{owner.__qualname__}.{thing.__name__}"
    elif not isinstance(name, str):
        thing, name = type(thing), type(thing).__qualname__
    module = str(getattr(thing, "__module__", None) or "")
    said = version if isinstance(version, str) else ""
    return Code(_imported_name(module), name, said or _source_digest(module))


def _own_version(thing: Any) -> object:
    try:
        return getattr(thing, "version", None)
    except Exception:  # a property of that name that means something else
        return None


def _imported_name(module: str) -> str:
    """Return the name under which others know a module: `python -m fleet` calls it `__main__`.

    A process that `multiprocessing` has spawned calls its parent's `__main__` `__mp_main__`.
    """
    if module not in {"__main__", "__mp_main__"}:
        return module
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return str(getattr(spec, "name", None) or "__main__")


def _source_digest(module: str) -> str:
    """Return a digest of a module's source; an empty text if it has none, as in a notebook, or it cannot be read."""
    found = sys.modules.get(module)
    path, loader = getattr(found, "__file__", None), getattr(found, "__loader__", None)
    if not isinstance(path, str) or path.endswith(_COMPILED):
        return ""
    try:
        file = Path(path).stat()
        changed = file.st_mtime_ns, file.st_size
    except OSError:
        changed = None  # in a zip archive, which only its loader can read
    known = _digests.get(path)
    if known is None or known[0] != changed:
        try:
            source = Path(path).read_bytes() if changed else loader.get_data(path)  # type: ignore[union-attr]
            known = changed, hashlib.sha256(source).hexdigest()
        except Exception:  # a loader is foreign code
            return ""
        _digests[path] = known
    return known[1]
