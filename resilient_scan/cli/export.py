"""Write dashboards, alert rules and everything around them where the user wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from resilient_scan._files import make_folder, refuse_unless_plain, write_file
from resilient_scan.errors import ConfigError

PRESETS: Final = ("service", "cron")
RUNBOOK: Final = "docs/runbook.md"  # the beginning of the rules' links to the runbook
SHIPPED: Final = (
    "Dockerfile",
    "alerting",
    "alertmanager",
    "compose.yaml",
    "dashboards",
    "prometheus",
    "provisioning",
    "resilient-scan.toml",
    "wheels",
)


def export_grafana(into: Path, preset: str = "service", *, runbook: str = RUNBOOK, force: bool = False) -> list[Path]:
    """Write the files for Prometheus, Alertmanager and Grafana, and return their paths, sorted.

    All of them are written or none: obstacles are found first. Containers run as other users, so everybody can read
    what is new, under any umask. Links are followed, and files that are there keep their modes.

    Args:
        into: a directory, which is created if it does not exist.
        preset: `service` or `cron`: for runs that follow one another closely, or for runs that are hours apart.
        runbook: where the runbook can be read; alerts link to it.
        force: whether existing files that differ are overwritten.

    Raises:
        ConfigError: an existing file differs, or something else is in the way.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset must be {' or '.join(PRESETS)}, got {preset!r}")
    files = {into / path: text for path, text in _texts(preset, runbook).items()}
    if not force:
        _refuse_to_overwrite(files)
    try:
        for path in files:
            refuse_unless_plain(path)
        for path, text in files.items():
            make_folder(path.parent)
            write_file(path, text)
    except OSError as error:
        raise ConfigError(f"{error.filename or into} cannot be written: {error.strerror}") from None
    return sorted(files)


def _texts(preset: str, runbook: str) -> dict[Path, bytes]:
    """Return what is to be written; a file of the preset replaces the common one."""
    home = _home()
    found = {path: text for name in SHIPPED for path, text in _below(home, home / name)}
    found.update(_below(home / "presets" / preset, home / "presets" / preset))
    link = f"runbook_url: {RUNBOOK}#".encode()
    return {path: text.replace(link, f"runbook_url: {runbook}#".encode()) for path, text in found.items()}


def _below(home: Path, top: Path) -> Iterator[tuple[Path, bytes]]:
    paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
    return ((path.relative_to(home), path.read_bytes()) for path in paths)


def _home() -> Path:
    """Return where the files are: inside the package, or next to it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "grafana"
    return inside if inside.is_dir() else package.parent / "grafana"


def _refuse_to_overwrite(files: dict[Path, bytes]) -> None:
    foreign = [str(path) for path, text in files.items() if path.exists() and not _is(path, text)]
    if foreign:
        more = f" (and {len(foreign) - 1} more like it)" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{foreign[0]} is there already and differs from what would be written{more}; "
            "take another directory, or overwrite with --force"
        )


def _is(path: Path, text: bytes) -> bool:
    return path.is_file() and path.read_bytes() == text
