"""Settings of the scanners: a class of each scanner's own, filled from its table."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from resilient_scan import ConfigError, ScanContext

Kind = TypeVar("Kind", bound=msgspec.Struct)


def read_settings(kind: type[Kind], context: ScanContext) -> Kind:
    """Return the scanner's table as an object of `kind`, or raise `ConfigError` that names the key, not its value."""
    try:
        return msgspec.convert(dict(context.settings), kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        known = ", ".join(sorted(kind.__struct_fields__))
        place = f"settings.{path.rstrip('`')}" if path else "settings"
        raise ConfigError(f"{context.scanner}: {place}: {reason}; the settings are {known}") from None
