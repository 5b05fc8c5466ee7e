"""Find scanners by their entry points; the built-in ones are found in the same way as any others.

A package offers a scanner with

    [project.entry-points."resilient_scan.scanners"]
    my_scanner = "my_package.module:my_scanner"

A scanner that cannot be used is a problem with a name and a reason; it never costs us the others. Not even one that
hangs at import, or whose distribution describes its entry points wrongly.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Container, Iterable, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Final

import msgspec

from resilient_scan._text import brief, clean, hide, is_utf8
from resilient_scan.errors import PluginError
from resilient_scan.scanning import spec_of
from resilient_scan.settings.imports import IMPORT_TIMEOUT, ImportHangs, within

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
    """What was found (built-in scanners first, then by distribution and name), and what was refused.

    Attributes:
        scanners: those that can be used.
        problems: those that cannot.
        unopened: names of entry points that nobody asked for, so that they were not imported.
        foreign: whether another package offers scanners, usable or not, asked for or not.
    """

    scanners: tuple[Found, ...]
    problems: tuple[Problem, ...]
    unopened: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def names(self) -> list[str]:
        """The names that may have tables in the settings, of usable scanners and of others."""
        return [found.name for found in self.scanners] + [problem.name for problem in self.problems] + [*self.unopened]


def discover(
    points: Iterable[EntryPoint] | None = None,
    *,
    only: Collection[str] | None = None,
    mentioned: Collection[str] = (),
    timeout: float = IMPORT_TIMEOUT,
) -> Plugins:
    """Find the installed scanners.

    If two scanners have the same name, the first keeps it (the built-in one, else by distribution) and the second is a
    problem.

    Args:
        points: entry points to look at; those of the group `resilient_scan.scanners`, unless given.
        only: names of the scanners that are wanted; `None`: all. Entry points of other names are not imported, unless
            a wanted scanner is still missing then: it may have another name than its entry point.
        mentioned: names that are known to somebody and must turn up, if not imported, then as entry points.
        timeout: seconds that each import gets.
    """
    malformed: list[Problem] = []
    points = sorted(_installed(GROUP, malformed) if points is None else points, key=_order)
    opened: dict[int, Found | PluginError] = {}
    chosen = [number for number, point in enumerate(points) if only is None or point.name in only]
    plugins = _opened(points, chosen, opened, timeout)
    found, refused = {one.name for one in plugins.scanners}, {problem.name for problem in plugins.problems}
    if set(only or ()) - found - refused or set(mentioned) - {*plugins.names}:
        plugins = _opened(points, range(len(points)), opened, timeout)
    foreign = bool(malformed) or not all(map(_is_ours, points))
    return msgspec.structs.replace(plugins, problems=(*malformed, *plugins.problems), foreign=foreign)


def _opened(
    points: list[EntryPoint], chosen: Collection[int], opened: dict[int, Found | PluginError], timeout: float
) -> Plugins:
    """Import the chosen entry points, except those that are opened already."""
    found: dict[str, tuple[Found, EntryPoint]] = {}
    problems: list[Problem] = []
    missing = None
    for number in chosen:
        point = points[number]
        if _is_ours(point) and (missing := missing or _missing_extra()):
            continue
        if number not in opened:
            opened[number] = _open(point, timeout)
        new = opened[number]
        if isinstance(new, Found) and new.name in found:
            new = PluginError(f"its name {new.name!r} is taken by {_origin(found[new.name][1])}")
        if isinstance(new, Found):
            found[new.name] = new, point
        else:
            said = f"scanner {clean(point.name)} of {_origin(point)}: {new}"
            problems.append(Problem(point.name, PluginError(said)))
    if missing:
        problems.insert(0, Problem(BUILT_IN, missing))
    unopened = tuple(point.name for number, point in enumerate(points) if number not in chosen)
    return Plugins(tuple(entry for entry, _ in found.values()), tuple(problems), unopened)


def _installed(group: str, malformed: list[Problem]) -> Iterable[EntryPoint]:
    """Return the entry points of a group; a distribution whose entry points cannot be read is a problem."""
    try:
        return entry_points(group=group)
    except Exception:  # one bad line in one file costs `entry_points` all of them
        points: dict[str, list[EntryPoint]] = {}
        for distribution in distributions():
            name = clean(str(distribution.metadata["Name"]))
            try:  # of two with the same name, the first on the path counts
                points.setdefault(name, [*distribution.entry_points.select(group=group)])
            except Exception:
                sentence = f"scanners of {name}: its entry_points.txt has a line that is not name = module:attribute"
                malformed.append(Problem(name, PluginError(f"{sentence}, so none of its scanners is known")))
        return [point for each in points.values() for point in each]


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


def to_set(found: Found, table: Mapping[str, Any], given: Container[str] = ()) -> str:
    """Say what to set before a scanner can run; an empty text: nothing.

    A scanner needs what it declares. A built-in one that declares nothing waits until any of its settings is set, so
    that no source is called before someone wants it.

    Args:
        found: the scanner.
        table: its settings.
        given: names of settings that it can do without.
    """
    needs = {setting: variable for setting, variable in found.needs.items() if setting not in given}
    for setting, variable in needs.items():
        if variable and not table.get(setting) and not is_utf8(os.environ.get(variable, "")):
            return f"the environment variable {variable} is not UTF-8"
    missing = [
        f"scanners.{found.name}.settings.{setting}" + (f" or the environment variable {variable}" if variable else "")
        for setting, variable in needs.items()
        if not (table.get(setting) or (variable and os.environ.get(variable, "").strip()))
    ]
    if missing:
        return f"set {', and '.join(missing)}"
    if not found.built_in or found.needs or table:
        return ""
    hosts = " and ".join(found.sources) or "its source"
    return f"set scanners.{found.name}.settings.universe, or any other of its settings, to have it ask {hosts}"


def load_demo() -> Any:
    """Return the bundled demo, or `None` if it is not installed or lacks what it needs itself."""
    for point in _installed(DEMO_GROUP, []):
        if _is_ours(point):
            try:
                return within(IMPORT_TIMEOUT, point.load, "the bundled data")
            except (
                ImportError,
                ImportHangs,
            ):  # the scanners need the same packages, and their errors say what is wrong
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


def _open(point: EntryPoint, timeout: float) -> Found | PluginError:
    """Import one scanner and describe it; whatever foreign code does wrong is a `PluginError`."""
    doing = "its import failed"

    def load() -> Found:
        nonlocal doing
        thing = point.load()
        doing = "it cannot be brought into its normal form"
        return found_of(thing, built_in=_is_ours(point))

    if point.pattern.match(point.value) is None:
        return PluginError("its entry point must read name = 'module:attribute'")
    try:
        return within(timeout, load, f"{clean(point.name)} of {_origin(point)}")
    except ImportHangs as hang:
        return PluginError(
            f"{hang}{'' if hang.is_victim else '; scanner_execution.import_timeout_seconds sets the limit'}"
        )
    except PluginError as error:
        return PluginError(brief(hide(str(error))))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # not only `Exception`: `sys.exit()`, and panics of foreign extensions
        return PluginError(f"{doing}: {brief(hide(f'{type(error).__name__}: {error}'))}")


def _missing_extra() -> PluginError | None:
    """Return which extra the built-in scanners lack, once for all of them, or `None` if they lack none."""
    if importlib.util.find_spec("httpx") is not None:
        return None
    return PluginError("the built-in scanners need an extra: pip install 'resilient-scan[scanners]'")
