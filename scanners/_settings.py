"""Read a scanner's table of settings into its own class."""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

from resilient_scan import ConfigError, ScanContext
from resilient_scan.http import REDACTED, Replay, ready

Kind = TypeVar("Kind", bound=msgspec.Struct)


def read_settings(kind: type[Kind], context: ScanContext) -> Kind:
    """Return the scanner's table as an object of `kind`; a `ConfigError` names the wrong key, never its value."""
    try:
        return msgspec.convert(dict(context.settings), ready(kind))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        known = ", ".join(sorted(kind.__struct_fields__))
        place = f"settings.{path.rstrip('`')}" if path else "settings"
        raise ConfigError(f"{context.scanner}: {place}: {reason}; the settings are {known}") from None


def key_if_any(context: ScanContext, setting: str, variable: str) -> str:
    """Return an optional key: the setting, or else the environment variable, or else an empty text.

    In a replay the key always exists: recordings contain no keys, and no source is called.
    """
    if isinstance(context.traffic, Replay):
        return REDACTED
    value = context.settings.get(setting) or os.environ.get(variable, "")
    return str(value).strip()
