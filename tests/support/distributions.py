"""Lay out installed distributions in a directory, ready for `sys.path` or `PYTHONPATH`."""

from __future__ import annotations

from pathlib import Path


def lay_out(site: Path, name: str, scanners: dict[str, str], files: dict[str, str]) -> None:
    """Put a distribution with entry points of scanners and with files into a directory."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{entry} = {target}" for entry, target in scanners.items()]
    (info / "entry_points.txt").write_text("\n".join(["[resilient_scan.scanners]", *lines, ""]))
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
