"""Find scanners by entry points; the built-in ones come by the same door as anybody's.

A package offers a scanner with

    [project.entry-points."resilient_scan.scanners"]
    my_scanner = "my_package.module:my_scanner"

One that cannot be used is a problem with a name and a reason, never the end of the others.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec

from resilient_scan.errors import PluginError
from resilient_scan.scanning import ScannerSpec, spec_of

GROUP: Final = "resilient_scan.scanners"
DEMO_GROUP: Final = "resilient_scan.demo"
OURS: Final = "resilient-scan"
BUILT_IN: Final = "scanners"


class Found(msgspec.Struct, frozen=True):
    """A scanner that can be used.

    Attributes:
        name, pipeline: the scanner's own.
        summary: first line of its docstring, may be empty.
        built_in: whether it ships with this package.
        scanner: the object itself, for `ScanRunner`.
        needs: by the name of a setting, the environment variable that stands in for it; empty text: none does.
        sources: hosts that it asks, as far as it says so.
    """

    name: str
    pipeline: str
    summary: str
    built_in: bool
    scanner: Any
    needs: Mapping[str, str] = {}
    sources: tuple[str, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """A scanner that cannot be used: the entry point's name, and why."""

    name: str
    error: PluginError


class Plugins(msgspec.Struct, frozen=True):
    """What was found: built-in scanners first, then by distribution and name; and what was refused."""

    scanners: tuple[Found, ...]
    problems: tuple[Problem, ...]

    @property
    def names(self) -> list[str]:
        """The names of all that may have tables in the settings, usable or not."""
        return [found.name for found in self.scanners] + [problem.name for problem in self.problems]


def discover(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Find all scanners that are installed.

    Of two scanners with one name the first keeps it (the built-in one, else by distribution), the other is a problem.

    Args:
        points: entry points to look at; those of the group `resilient_scan.scanners`, unless given.
    """
    found: dict[str, tuple[Found, EntryPoint]] = {}
    problems: list[Problem] = []
    shadow = None
    for point in sorted(entry_points(group=GROUP) if points is None else points, key=_order):
        if _is_ours(point) and (shadow := shadow or _shadow()):
            continue
        try:
            new = _load(point)
            if new.name in found:
                raise PluginError(f"its name {new.name!r} is taken by {_origin(found[new.name][1])}")
            found[new.name] = new, point
        except PluginError as error:
            problems.append(Problem(point.name, PluginError(f"scanner {point.name} of {_origin(point)}: {error}")))
    if shadow:
        problems.insert(0, Problem(BUILT_IN, shadow))
    return Plugins(tuple(entry for entry, _ in found.values()), tuple(problems))


def found_of(thing: Any, *, built_in: bool = False) -> Found:
    """Bring one scanner into its normal form.

    Raises:
        PluginError: it is none.
    """
    spec = spec_of(thing)
    text = getattr(spec.origin, "__doc__", None)
    summary = text.strip().partition("\n")[0] if isinstance(text, str) else ""
    return Found(spec.name, spec.pipeline, summary, built_in, thing, _needs(spec), _sources(spec))


def _needs(spec: ScannerSpec) -> dict[str, str]:
    """Return what a scanner says it needs; an attribute of that name that means something else does not count."""
    needs = getattr(spec.origin, "needs", None)
    texts = isinstance(needs, Mapping) and all(isinstance(text, str) for pair in needs.items() for text in pair)
    return dict(needs) if texts and needs else {}


def _sources(spec: ScannerSpec) -> tuple[str, ...]:
    sources = getattr(spec.origin, "sources", None)
    texts = isinstance(sources, list | tuple) and all(isinstance(host, str) for host in sources)
    return tuple(host.lower() for host in sources) if texts and sources else ()


def load_demo() -> Any:
    """Return the bundled demo, or `None` where it is not installed, shadowed, or lacks what it needs itself."""
    for point in entry_points(group=DEMO_GROUP):
        if _is_ours(point) and not _shadow():
            try:
                return point.load()
            except ImportError:  # the scanners, which need the same, say what is missing
                return None
    return None


def _order(point: EntryPoint) -> tuple[bool, str, str]:
    return not _is_ours(point), _distribution(point), point.name


def _is_ours(point: EntryPoint) -> bool:
    return _distribution(point) == OURS


def _distribution(point: EntryPoint) -> str:
    return "" if point.dist is None else point.dist.name.replace("_", "-").lower()


def _origin(point: EntryPoint) -> str:
    return f"{_distribution(point) or 'an unknown distribution'} ({point.value})"


def _load(point: EntryPoint) -> Found:
    """Import one scanner and bring it into its normal form; whatever foreign code does wrong is a `PluginError`."""
    doing = "its import failed"
    try:
        thing = point.load()
        doing = "it cannot be brought into its normal form"
        return found_of(thing, built_in=_is_ours(point))
    except (PluginError, KeyboardInterrupt):
        raise
    except BaseException as error:  # `sys.exit()`, and panics of foreign extensions, which are no `Exception`
        raise PluginError(f"{doing}: {type(error).__name__}: {error}") from error


def _shadow() -> PluginError | None:
    """Say why the package `scanners` that Python would import is not ours, or `None` if it is."""
    spec = importlib.util.find_spec(BUILT_IN)
    if spec is None:
        return PluginError("the built-in scanners are missing: no package 'scanners'; install resilient-scan again")
    if importlib.util.find_spec("httpx") is None:
        return PluginError("the built-in scanners need an extra: pip install 'resilient-scan[scanners]'")
    try:
        if hasattr(importlib.import_module(BUILT_IN), "__resilient_scan__"):
            return None
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: S110 - whatever it is, it is not ours
        pass
    place = spec.origin or ", ".join(spec.submodule_search_locations or [])
    return PluginError(
        f"the built-in scanners are not available: the package 'scanners' at {place} shadows ours; "
        "rename it, or run from another directory"
    )
