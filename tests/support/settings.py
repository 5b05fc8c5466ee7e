"""Settings files."""

from __future__ import annotations

from pathlib import Path


def write_settings(folder: Path, text: str) -> Path:
    """Write `scan.toml` into a folder and return its path."""
    path = folder / "scan.toml"
    path.write_text(text)
    return path
