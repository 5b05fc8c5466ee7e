"""Innermost: make candidates of what a scanner returned, and drop the ones that are not valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from resilient_scan._once import ready
from resilient_scan.errors import InvalidCandidate
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.results import short
from resilient_scan.scanning import Candidate

_FINITE = frozenset({list, tuple, set, frozenset})
_CANDIDATE: frozenset[type] = frozenset({Candidate})
_FIELDS = frozenset(Candidate.__struct_fields__)


def keep_valid(items: Any, make: Maker, context: AttemptContext) -> None:
    """Fill `context.found` as the items come, so that a timeout finds there what was yielded before it.

    Raises:
        TypeError: the items are not an iterable of candidates.
        ScanCancelled: the time was up before the last item.
    """
    found = context.found
    if isinstance(found, tuple):
        found = context.found = []
    if type(items) in _FINITE and make.passes.issuperset(map(type, items)):  # most answers: no call for each item
        found.extend(items)
        return
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"scan returned {type(items).__name__}; return a list of candidates, or yield them")
    if type(items).__name__ == "DataFrame":  # it is an iterable, too: of the names of its columns
        rows = "frame.to_dicts()" if hasattr(items, "to_dicts") else 'frame.to_dict("records")'
        raise TypeError(f"scan returned a DataFrame; return its rows, {rows}, each with a ticker")
    lazy = type(items) not in _FINITE
    keep = found.append
    for item in items:
        if lazy and context.cancelled:  # also ends a generator, or a feed that makes one, that never would
            context.check()
        try:
            keep(make(item))
        except InvalidCandidate as error:
            context.invalid = context.invalid or short(str(error))
            context.dropped += 1


class Maker:
    """Checks an item and makes a candidate of type `kind` of it.

    Mappings are converted, instances of `kind` pass; anything else raises `InvalidCandidate`. A mapping for the
    default `Candidate` needs no more than a ticker: its `source` is then the scanner, unknown keys go to `extras`.

    Attributes:
        passes: the type of which items need not be looked at.
    """

    __slots__ = ("_convert", "_kind", "_source", "passes")

    def __init__(self, kind: type, source: str) -> None:
        self._kind, self._source = kind, source
        self._convert = None if kind is Candidate else _converter(kind)
        self.passes: frozenset[type] = _CANDIDATE if kind is Candidate else frozenset({kind})

    def __call__(self, item: Any) -> Any:
        """Return the candidate."""
        kind = self._kind
        if isinstance(item, kind):
            return item
        if not isinstance(item, Mapping):
            raise InvalidCandidate(f"a {kind.__name__} or a mapping was expected, got {_seen(item)}")
        try:
            return _candidate(item, self._source) if self._convert is None else self._convert(item)
        except InvalidCandidate:
            raise
        except Exception as error:  # the candidate's class is foreign code
            raise InvalidCandidate(f"no {kind.__name__} can be made of a mapping: {error}") from error


def _candidate(mapping: Mapping[str, Any], source: str) -> Candidate:
    known = {key: value for key, value in mapping.items() if key in _FIELDS and value is not None}
    unknown = {key: value for key, value in mapping.items() if key not in _FIELDS}
    extras = known.pop("extras", {})
    if "ticker" not in known:
        raise InvalidCandidate("candidate.ticker is missing")
    if unknown:
        extras = {**extras, **unknown}
    return Candidate(**{"source": source, "context": "", **known}, extras=extras)


def _converter(kind: type) -> Callable[[Any], Any]:
    if hasattr(kind, "model_validate"):  # pydantic, where the user brings it
        return kind.model_validate  # type: ignore[no-any-return]
    if issubclass(kind, msgspec.Struct) or hasattr(kind, "__dataclass_fields__"):
        return lambda mapping: msgspec.convert(dict(mapping), ready(kind))
    return lambda mapping: kind(**mapping)


def _seen(item: Any) -> str:
    try:
        return f"{item!r:.200}"
    except Exception:  # foreign code
        return f"a {type(item).__qualname__}"
