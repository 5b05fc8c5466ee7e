"""The layers of one scanner, put together from all who have a say, each number with where it came from.

Built-in, then `[defaults]`, then the decorator, then `[providers.x]`, then `[scanners.x]`. In each of them the
environment goes over the file. An option object replaces its whole layer, a table only the fields that it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Self

import msgspec

from resilient_scan.errors import ConfigError
from resilient_scan.options import LAYERS, Policy
from resilient_scan.scanning import ScannerSpec
from resilient_scan.settings.reading import LIMIT, in_place
from resilient_scan.settings.tables import Patch, ScannerTable, Setting, Tables
from resilient_scan.settings.values import fields_of, named_in

BUILT_IN: Final = "built-in"


class Effective(msgspec.Struct, frozen=True):
    """What holds for one scanner.

    Attributes:
        policy: its layers.
        origins: by `layer.field` where the number came from: `built-in`, `defaults scan.toml:7`, `decorator`,
            `scan.toml:12`, a variable's name...; by `layer` alone for a layer that is left out.
    """

    policy: Policy
    origins: Mapping[str, str]


class Layering:
    """Layers under construction; later calls win."""

    def __init__(self, layers: Mapping[str, Patch] | None = None) -> None:
        self._layers: dict[str, Patch] = dict(layers or {})

    @classmethod
    def of(cls, policy: Policy, place: str) -> Self:
        """Return the layers of a policy."""
        layering = cls()
        for layer in LAYERS:
            layering.replace(layer, getattr(policy, layer), place)
        return layering

    def copy(self) -> Layering:
        """Return the same layers, to go on from."""
        return Layering(self._layers)

    def replace(self, layer: str, option: msgspec.Struct | None, place: str) -> None:
        """Put an option object, or `None`, in a layer's place."""
        self._layers[layer] = Setting(None, place) if option is None else _settings_of(option, place)

    def patch(self, layer: str, patch: Patch) -> None:
        """Change the fields that a table names; a layer that was left out begins with the option's own defaults."""
        if isinstance(patch, Setting):
            self._layers[layer] = patch
            return
        below = self._layers.get(layer)
        below = below if isinstance(below, dict) else _defaults_of(LAYERS[layer])
        self._layers[layer] = {**below, **patch}

    def provide(self, provider: Setting) -> None:
        """Let the scanner share the limit of a provider; numbers of another one do not hold for it."""
        if self.provider != provider.value:
            self._layers[LIMIT] = {**_defaults_of(LAYERS[LIMIT]), "provider": provider}

    @property
    def provider(self) -> str | None:
        """Whose limit the scanner shares, if anybody's."""
        return self.limit["provider"].value if "provider" in self.limit else None

    @property
    def limit(self) -> dict[str, Setting]:
        """The fields of the limit, none where it is left out."""
        limit = self._layers.get(LIMIT)
        return limit if isinstance(limit, dict) else {}

    @property
    def numbers(self) -> dict[str, Setting]:
        """The fields of the limit that say how much."""
        return {field: each for field, each in self.limit.items() if field != "provider" and each.value is not None}

    @property
    def gives_numbers(self) -> bool:
        """Say whether more is said about them than in the provider's own table."""
        return any(number.path[:1] != ("providers",) for number in self.numbers.values())

    def build(self, problems: list[str]) -> Effective:
        """Return what was put together; layers that do not fit together go to `problems` and are left out."""
        options = {layer: option_of(LAYERS[layer], patch, problems) for layer, patch in self._layers.items()}
        origins: dict[str, str] = {}
        for layer, patch in self._layers.items():
            if isinstance(patch, Setting):
                origins[layer] = patch.origin
            else:
                origins.update({f"{layer}.{field}": setting.origin for field, setting in patch.items()})
        if options["timeout"] is None:
            del options["timeout"]
        return Effective(Policy(**options), MappingProxyType(origins))


def defaults(sources: Iterable[Tables]) -> Layering:
    """Return what holds where nobody speaks of a scanner; `timeout_seconds` replaces `timeout.total`."""
    layering = Layering.of(Policy(), BUILT_IN)
    for tables in sources:
        for layer, patch in tables.defaults.items():
            layering.patch(layer, patch)
        if total := tables.execution.get("timeout_seconds"):
            layering.patch("timeout", {"total": total})
    return layering


def layers_of(specs: Iterable[ScannerSpec], base: Layering, sources: Sequence[Tables]) -> dict[str, Layering]:
    """Return what holds for each scanner, on top of what holds for all."""
    layerings = {spec.name: _of_one(spec, base, sources) for spec in specs}
    numbers = {
        each.provider: each.numbers
        for each in reversed(layerings.values())
        if each.gives_numbers and each.provider is not None
    }
    for layering in layerings.values():
        # Numbers are the provider's: a scanner that only names it takes those that another one gives.
        if not layering.gives_numbers and layering.provider in numbers:
            layering.patch(LIMIT, numbers[layering.provider])
    return layerings


def _of_one(spec: ScannerSpec, base: Layering, sources: Sequence[Tables]) -> Layering:
    layering, own = base.copy(), tables_of(spec.name, sources)
    for layer, option in spec.layers.items():
        layering.replace(layer, option, "decorator")
    for provider in _providers(own):
        layering.provide(provider)
    if layering.provider is not None:
        for tables in sources:
            if table := tables.providers.get(layering.provider.lower()):
                layering.patch(LIMIT, table.numbers)
    for scanner_table in own:
        for layer, patch in scanner_table.layers.items():
            layering.patch(layer, patch)
    return layering


def tables_of(name: str, sources: Iterable[Tables]) -> list[ScannerTable]:
    """Return what the sources say about one scanner."""
    return [tables.scanners[name] for tables in sources if name in tables.scanners]


def _providers(own: Iterable[ScannerTable]) -> Iterator[Setting]:
    """Yield what a scanner's tables say about its provider: `provider = "sec"` or `limit = { provider = "sec" }`."""
    for table in own:
        if provider := table.own.get("provider"):
            yield provider
        limit = table.layers.get(LIMIT)
        if isinstance(limit, dict) and "provider" in limit:
            yield limit["provider"]


def _settings_of(option: msgspec.Struct, place: str) -> dict[str, Setting]:
    return {field: Setting(getattr(option, field), place) for field in option.__struct_fields__}


def _defaults_of(kind: type[msgspec.Struct]) -> dict[str, Setting]:
    return {name: Setting(field.default, BUILT_IN) for name, field in fields_of(kind).items() if not field.required}


def option_of(kind: type[msgspec.Struct], patch: Patch, problems: list[str]) -> Any:
    """Return the option that was put together, or `None`, with a sentence to `problems`, where that is none."""
    if isinstance(patch, Setting):
        return None
    missing = [name for name, field in fields_of(kind).items() if field.required and name not in patch]
    given = {field: setting for field, setting in patch.items() if setting.path}
    if missing:
        problems.append(_blame(f"{kind.__name__.lower()}.{missing[0]} is missing", kind, given))
        return None
    try:
        return kind(**{field: setting.value for field, setting in patch.items()})
    except ConfigError as error:
        problems.append(_blame(str(error), kind, given))
        return None


def _blame(sentence: str, kind: type[msgspec.Struct], given: Mapping[str, Setting]) -> str:
    """Let an option's sentence speak of the place of a field that it names, or of any that was given."""
    named = [field for field in given if field in named_in(kind, sentence)] or list(given)
    if not named:
        return sentence
    setting = given[named[0]]
    return f"{setting.place}: {in_place(sentence, kind, setting.path[:-1])}"
