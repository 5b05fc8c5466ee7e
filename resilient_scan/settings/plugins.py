"""Find scanners by their entry points; the built-in ones are found in the same way as any others.

A package offers a scanner with

    [project.entry-points."resilient_scan.scanners"]
    my_scanner = "my_package.module:my_scanner"

A scanner that cannot be used is a problem with a name and a reason; it never costs us the others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec

from resilient_scan.errors import PluginError
from resilient_scan.scanning import spec_of

GROUP: Final = "resilient_scan.scanners"
DEMO_GROUP: Final = "resilient_scan.demo"
OURS: Final = "resilient-scan"
BUILT_IN: Final = "scanners"


class Found(msgspec.Struct, frozen=True):
    """A scanner that can be used.

    Attributes:
        name, pipeline: the scanner's own.
        summary: first line of its docstring; may be empty.
        built_in: whether it ships with this package.
        scanner: the object itself, for `ScanRunner`.
        needs: by the name of a setting, the environment variable that can replace it; empty text: none can.
        sources: hosts that it calls, as far as it names them.
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
    """What was found (built-in scanners first, then by distribution and name), and what was refused."""

    scanners: tuple[Found, ...]
    problems: tuple[Problem, ...]

    @property
    def names(self) -> list[str]:
        """The names that may have tables in the settings, of usable scanners and of others."""
        return [found.name for found in self.scanners] + [problem.name for problem in self.problems]


def discover(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Find all installed scanners.

    If two scanners have the same name, the first keeps it (the built-in one, else by distribution) and the second is a
    problem.

    Args:
        points: entry points to look at; those of the group `resilient_scan.scanners`, unless given.
    """
    found: dict[str, tuple[Found, EntryPoint]] = {}
    problems: list[Problem] = []
    missing = None
    for point in sorted(entry_points(group=GROUP) if points is None else points, key=_order):
        if _is_ours(point) and (missing := missing or _missing_extra()):
            continue
        try:
            new = _load(point)
            if new.name in found:
                raise PluginError(f"its name {new.name!r} is taken by {_origin(found[new.name][1])}")
            found[new.name] = new, point
        except PluginError as error:
            problems.append(Problem(point.name, PluginError(f"scanner {point.name} of {_origin(point)}: {error}")))
    if missing:
        problems.insert(0, Problem(BUILT_IN, missing))
    return Plugins(tuple(entry for entry, _ in found.values()), tuple(problems))


def found_of(thing: Any, *, built_in: bool = False) -> Found:
    """Describe one scanner; an attribute that has the name of one of ours and another meaning does not count.

    Raises:
        PluginError: it is not a scanner.
    """
    spec = spec_of(thing)
    text, needs, sources = (getattr(spec.origin, name, None) for name in ("__doc__", "needs", "sources"))
    summary = text.strip().partition("\n")[0] if isinstance(text, str) else ""
    needs = dict(needs) if isinstance(needs, Mapping) and _are_texts([*needs, *needs.values()]) else {}
    sources = [host.lower() for host in sources] if isinstance(sources, list | tuple) and _are_texts(sources) else []
    return Found(spec.name, spec.pipeline, summary, built_in, thing, needs, tuple(sources))


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def load_demo() -> Any:
    """Return the bundled demo, or `None` if it is not installed or lacks what it needs itself."""
    for point in entry_points(group=DEMO_GROUP):
        if _is_ours(point):
            try:
                return point.load()
            except ImportError:  # the scanners need the same packages, and their errors name what is missing
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
    """Import one scanner and describe it; whatever foreign code does wrong is a `PluginError`."""
    doing = "its import failed"
    try:
        thing = point.load()
        doing = "it cannot be brought into its normal form"
        return found_of(thing, built_in=_is_ours(point))
    except (PluginError, KeyboardInterrupt):
        raise
    except BaseException as error:  # not only `Exception`: `sys.exit()`, and panics of foreign extensions
        raise PluginError(f"{doing}: {type(error).__name__}: {error}") from error


def _missing_extra() -> PluginError | None:
    """Return which extra the built-in scanners lack, once for all of them, or `None` if they lack none."""
    if importlib.util.find_spec("httpx") is not None:
        return None
    return PluginError("the built-in scanners need an extra: pip install 'resilient-scan[scanners]'")
