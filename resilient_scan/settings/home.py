"""Where state lives, as a URL: what the settings say, else a file in the user's state directory."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

from resilient_scan.settings.tables import Tables

_FILE = "sqlite:///"


def home(path: str | os.PathLike[str] | None, sources: Sequence[Tables], environ: Mapping[str, str]) -> str:
    """Return the store's URL.

    Args:
        path: the settings file; `None`: there is none, and nothing is kept unless a variable says so.
        sources: the tables as they were read, the file's first.
        environ: variables, for the state directory: `XDG_STATE_HOME`, else `~/.local/state`.
    """
    for position, tables in reversed(list(enumerate(sources))):
        if "url" in tables.store:
            url = str(tables.store["url"].value)
            return _beside(pathlib.Path(path), url) if path is not None and position == 0 else url
    return "memory:" if path is None else _default(pathlib.Path(path), environ)


def _beside(settings: pathlib.Path, url: str) -> str:
    """Read a relative path from the settings file's directory: a job of cron starts somewhere else."""
    if not url.startswith(_FILE) or url.startswith(f"{_FILE}/"):
        return url
    return f"{_FILE}{settings.absolute().parent / url.removeprefix(_FILE)}"


def _default(settings: pathlib.Path, environ: Mapping[str, str]) -> str:
    """Return a file for all of a user's settings files, with a part by itself for each of them."""
    told = environ.get("XDG_STATE_HOME", "")
    try:
        directory = pathlib.Path(told) if pathlib.Path(told).is_absolute() else pathlib.Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        return "memory:"
    space = hashlib.sha256(os.fsencode(settings.resolve())).hexdigest()[:12]
    return f"{_FILE}{directory / 'resilient-scan.db'}?space={space}"
