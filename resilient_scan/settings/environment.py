"""Settings from environment variables: `RESILIENT_SCAN__SCANNERS__reddit_dd__TIMEOUT__TOTAL=5s`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from resilient_scan.settings.reading import Source, provider_keys, scanner_keys
from resilient_scan.settings.toml import Path
from resilient_scan.settings.values import Variable, guess, looks_secret

PREFIX: Final = "RESILIENT_SCAN__"


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return what the variables with our prefix say, as a file would.

    Sections, keys and scanners' names match in any case. Parts are separated by two underscores.
    """
    names = sorted(name for name in environ if name.upper().startswith(PREFIX))
    places = _Places(names)
    source = Source({}, places.where, [])
    data: dict[str, Any] = {}
    for path, name in places.by_path.items():
        if other := _put(data, path, Variable(environ[name])):
            source.fail(path, f"{places.where(other)[1]} sets the whole of it; use one of the two")
    for name, other_name in places.twice:
        source.problems.append((names.index(name), f"{name}: {other_name} sets the same; use one of the two"))
    source.data = data
    return source


class _Places:
    """Which variable stands for which path."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.by_path: dict[Path, str] = {}
        self.twice: list[tuple[str, str]] = []
        for name in names:
            if (first := self.by_path.setdefault(_path(name), name)) != name:
                self.twice.append((name, first))

    def where(self, path: Path) -> tuple[int, str]:
        """Return number and name of the variable for a path: its own, of something in it, or of what it is in."""
        name = self.by_path.get(path) or self._inside(path) or self.where(path[:-1])[1]
        return self.names.index(name), name

    def _inside(self, path: Path) -> str | None:
        return next((name for each, name in self.by_path.items() if each[: len(path)] == path), None)


def _path(name: str) -> Path:
    section, *parts = (part.lower() for part in name[len(PREFIX) :].split("__"))
    keys = {"scanners": scanner_keys, "providers": provider_keys}.get(section)
    if keys is None or len(parts) < 2:
        return (section, *parts)
    # Two underscores may be part of a scanner's name; it ends where a key of its table begins.
    end = next((index for index, part in enumerate(parts) if index and part in keys()), 1)
    return (section, "__".join(parts[:end]), *parts[end:])


def _put(data: dict[str, Any], path: Path, value: Variable) -> Path | None:
    """Put a value in its place; return the path of the value that is in the way, if one is."""
    for depth, key in enumerate(path[:-1], 1):
        inner = data.setdefault(str(key), {})
        if isinstance(inner, Variable):
            return path[:depth]
        data = inner
    data[str(path[-1])] = value
    return None


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one's keys over it, tables in them likewise; a variable's key matches in any case."""
    merged = dict(below)
    for key, value in above.items():
        own = next((each for each in below if each.lower() == key), key) if _from_variables(value) else key
        merged[own] = _value(merged.get(own), own, value)
    return merged


def _from_variables(value: Any) -> bool:
    return isinstance(value, Variable) or (isinstance(value, dict) and any(map(_from_variables, value.values())))


def _value(below: Any, key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return over(below if isinstance(below, Mapping) else {}, value)
    if isinstance(value, Variable):
        # A key that looks like a number must not become one.
        return str(value) if isinstance(below, str) or looks_secret(key) else guess(value)
    return value
