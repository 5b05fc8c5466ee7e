"""What holds in the end: for the fleet and for each scanner, every number with where it came from.

First the environment goes over the file (`merged`). Then, for the layers: built-in, `[defaults]`, the decorator,
`[providers.x]`, `[scanners.x]`; later ones win. An option object replaces its whole layer, a table only the fields that
it names.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import UNSET

from resilient_scan._once import ready
from resilient_scan._text import did_you_mean, may_be_secret
from resilient_scan.errors import ConfigError
from resilient_scan.options import LAYERS, Policy
from resilient_scan.scanning import ScannerSpec
from resilient_scan.settings.read import LIMIT, Patch, ProviderTable, ScannerTable, Setting, Tables, in_place
from resilient_scan.settings.tables import WORDS, Variable, fields_of, guess, named_in
from resilient_scan.settings.toml import Path, path_text

BUILT_IN: Final = "built-in"

Layers = Mapping[str, Patch]
"""By layer, its fields with where they came from, or (a single setting) where it is said that it is left out."""


class Effective(msgspec.Struct, frozen=True):
    """What holds for one scanner.

    Attributes:
        policy: its layers.
        origins: by `layer.field`, where the number came from: `built-in`, `defaults scan.toml:7`, `decorator`,
            `scan.toml:12`, a variable's name...; by `layer` alone for a layer that is left out.
    """

    policy: Policy
    origins: Mapping[str, str]


# One source over the other


def merged(below: Tables, above: Tables) -> Tables:
    """Return the tables of two sources as one; what stands `above` wins, key by key."""
    options, providers, scanners = dict(below.options), dict(below.providers), dict(below.scanners)
    for section, settings in above.options.items():
        options[section] = {**options.get(section, {}), **settings}
    for name, new in above.providers.items():
        provider = providers.get(name, ProviderTable(new.name, ()))
        begins = (*provider.begins, *new.begins)
        said = {key: number.over(provider.numbers.get(key)) for key, number in new.numbers.items()}
        numbers = {**provider.numbers, **said}
        providers[name] = ProviderTable(provider.name, begins, numbers)
    for name, table in above.scanners.items():
        scanner = scanners.get(name, ScannerTable())
        scanners[name] = ScannerTable(
            (*scanner.begins, *table.begins),
            {**scanner.own, **table.own},
            patched(scanner.layers, table.layers),
            over(scanner.settings, table.settings),
            {**scanner.places, **table.places},
        )
    return Tables(options, patched(below.defaults, above.defaults), providers, scanners)


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one's keys over it, and so on within it; a variable's key matches in any case."""
    result = dict(below)
    for key, value in above.items():
        own = next((each for each in below if each.lower() == key), key) if _from_variables(value) else key
        result[own] = _value(result.get(own), own, value)
    return result


def _from_variables(value: Any) -> bool:
    return isinstance(value, Variable) or (isinstance(value, dict) and any(map(_from_variables, value.values())))


def _value(below: Any, key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return over(below if isinstance(below, Mapping) else {}, value)
    if isinstance(value, Variable):
        # An API key of digits only must not become a number.
        return str(value) if isinstance(below, str) or may_be_secret(key) else guess(value)
    return value


# Layers


def layers_of_policy(policy: Policy, place: str) -> Layers:
    """Return the layers of a policy."""
    return {layer: _of_option(getattr(policy, layer), place) for layer in LAYERS}


def patched(layers: Layers, patches: Layers) -> dict[str, Patch]:
    """Return layers with the fields that tables name; fields of which nothing is said have the option's defaults."""
    result = dict(layers)
    for layer, patch in patches.items():
        below = result.get(layer)
        result[layer] = {**below, **patch} if isinstance(below, dict) and isinstance(patch, dict) else patch
    return result


def layers_of(specs: Iterable[ScannerSpec], base: Layers, tables: Tables) -> dict[str, Layers]:
    """Return what holds for each scanner, on top of what holds for all of them."""
    found = {spec.name: _of_one(spec, base, tables) for spec in specs}
    numbers = {provider_of(layers): _numbers(layers) for layers in reversed(found.values()) if _has_own(layers)}
    for name, layers in found.items():
        # The numbers belong to the provider: a scanner that only names it takes those that another scanner gives.
        if provider_of(layers) in numbers and not _has_own(layers):
            found[name] = patched(layers, {LIMIT: numbers[provider_of(layers)]})
    return found


def _of_one(spec: ScannerSpec, base: Layers, tables: Tables) -> Layers:
    layers = {**base, **{layer: _of_option(option, "decorator") for layer, option in spec.layers.items()}}
    own = tables.scanners.get(spec.name, ScannerTable()).layers
    provider = _limit(own).get("provider")
    if provider is not None and provider.value != provider_of(layers):
        layers[LIMIT] = {"provider": provider}  # another provider's numbers do not hold for it
    if table := tables.providers.get((provider_of(layers) or "").lower()):
        layers = patched(layers, {LIMIT: table.numbers})
    return patched(layers, own)


def provider_of(layers: Layers) -> str | None:
    """Return the provider whose limit a scanner shares, if it has one."""
    limit = _limit(layers)
    return limit["provider"].value if "provider" in limit else None


def limit_places(layers: Layers) -> list[str]:
    """Return where the numbers of a scanner's limit are written, as far as they are written in a source."""
    return [number.place for number in _numbers(layers).values() if number.path]


def _limit(layers: Layers) -> dict[str, Setting]:
    limit = layers.get(LIMIT)
    return limit if isinstance(limit, dict) else {}


def _numbers(layers: Layers) -> dict[str, Setting]:
    not_given = {"breaker": UNSET}  # its `None` says that there is none
    numbers = {field: each for field, each in _limit(layers).items() if field != "provider"}
    return {field: each for field, each in numbers.items() if each.value is not not_given.get(field)}


def _has_own(layers: Layers) -> bool:
    """Say whether a scanner has a provider, and gives numbers that are not in the provider's own table."""
    own = any(number.path[:1] != ("providers",) for number in _numbers(layers).values())
    return own and provider_of(layers) is not None


def _of_option(option: msgspec.Struct | None, place: str) -> Patch:
    if option is None:
        return Setting(None, place)
    return {field: Setting(getattr(option, field), place) for field in option.__struct_fields__}


# From layers to options


def build(layers: Layers, problems: list[str]) -> Effective:
    """Return the layers as options; those that do not fit together go to `problems` and are left out."""
    options = {layer: option_of(LAYERS[layer], patch, problems) for layer, patch in layers.items()}
    origins: dict[str, str] = {}
    for layer, patch in layers.items():
        if isinstance(patch, Setting):
            origins[layer] = patch.origin
        else:
            known = dict.fromkeys(fields_of(LAYERS[layer]), BUILT_IN) | {k: s.origin for k, s in patch.items()}
            origins |= {f"{layer}.{field}": origin for field, origin in known.items()}
    if options["timeout"] is None:
        del options["timeout"]
    return Effective(Policy(**options), MappingProxyType(origins))


def option_of(kind: type[msgspec.Struct], patch: Patch, problems: list[str]) -> Any:
    """Return an option object, or `None` if it is left out, or wrong: a sentence about that goes to `problems`."""
    if isinstance(patch, Setting):
        return None
    missing = [name for name, field in fields_of(kind).items() if field.required and name not in patch]
    try:
        if missing:
            raise ConfigError(f"{kind.__name__.lower()}.{missing[0]} is missing")
        return kind(**{field: setting.value for field, setting in patch.items()})
    except ConfigError as error:
        problems.append(_blame(str(error), kind, {field: setting for field, setting in patch.items() if setting.path}))
        return None


def _blame(sentence: str, kind: type[msgspec.Struct], given: Mapping[str, Setting]) -> str:
    """Let an option's sentence name the place of a field that it is about, or of any field that was given."""
    named = [field for field in given if field in named_in(kind, sentence)] or list(given)
    if not named:
        return sentence
    setting = given[named[0]]
    return f"{setting.place}: {in_place(sentence, kind, setting.path[:-1])}"


# A scanner's own settings


def misfits(name: str, kind: type[msgspec.Struct], table: ScannerTable) -> Iterator[str]:
    """Yield a sentence, with its place, for everything in a scanner's settings that does not fit their class."""
    hints, fields = typing.get_type_hints(kind, include_extras=True), msgspec.structs.fields(kind)
    known = {field.encode_name: hints[field.name] for field in fields}
    home = ("scanners", name, "settings")
    faults = {key: fault for key, value in table.settings.items() if (fault := _fault((*home, key), value, known))}
    yield from (f"{table.places[key.lower()]}: {fault}" for key, fault in faults.items())
    if not faults and table.settings.keys() >= {field.encode_name for field in fields if field.required}:
        try:
            msgspec.convert(table.settings, ready(kind))
        except msgspec.ValidationError as error:  # values that do not fit each other
            yield f"{next(reversed(table.places.values()))}: {path_text(home)}: {_reason(error)[0]}"


def _fault(path: Path, value: Any, known: Mapping[str, Any]) -> str:
    key = str(path[-1])
    if key not in known:
        meant = did_you_mean(key, known, f"the settings are {', '.join(known)}")
        return f"unknown key {path_text(path)}; {meant}"
    try:
        msgspec.convert(value, known[key])
    except msgspec.ValidationError as error:
        reason, inner = _reason(error)
        return f"{path_text(path)}{inner} {reason.replace('Expected', 'must be', 1)}"
    return ""


def _reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong, and where in the value; the value itself, which may be secret, is not in it."""
    reason, _, inner = str(error).partition(" - at `$")
    for kind, words in WORDS.items():
        reason = reason.replace(f"`{kind}`", words)
    return reason, inner.removesuffix("`")
