"""Write dashboards, alert rules and everything around them where the user wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from resilient_scan._files import make_folder, refuse_unless_plain, write_file
from resilient_scan._text import span
from resilient_scan.cli.links import with_links
from resilient_scan.errors import ConfigError

PRESETS: Final[Mapping[str, float]] = {"service": 300.0, "cron": 3600.0}
"""The sets of rules, each with the longest time from run to run for which it works, in seconds."""
FLEET: Final = "resilient-scan-fleet"  # what links call the dashboards
SCANNER: Final = "resilient-scan-scanner"
RULES: Final = (Path("prometheus/alerts.yml"), Path("alerting/rules.yml"))
BOARDS: Final = (Path("dashboards/fleet.json"), Path("dashboards/scanner.json"))
_ALERT: Final = re.compile(r" +(?:- alert|title): (\w+)")
_DESCRIPTION: Final = re.compile(r"( +)description: ")
_URL: Final = re.compile(r"https?://[\w.\-\[\]:]+(/[\w./~%+\-]*)?")  # goes into YAML, and gets a fragment
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


def misfit(every: float) -> str:
    """Say that rules and the time from run to run do not match, and what to do; an empty text: they match."""
    if every <= PRESETS["service"]:
        return ""
    if every <= PRESETS["cron"]:
        return (
            f"a run every {span(every)} is too rare for the alert rules of a service, which want one every 5 minutes: "
            "take those of `export-grafana DIR --preset cron`"
        )
    return (
        f"a run every {span(every)} is too rare for the alert rules: those of `export-grafana DIR --preset cron` want "
        "one every hour"
    )


def export_grafana(
    into: Path,
    preset: str = "service",
    *,
    public_url: str | None = None,
    control_url: str | None = None,
    runbook_url: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the files for Prometheus, Alertmanager and Grafana, and return their paths, sorted.

    All of them are written or none: obstacles are found first. Containers run as other users, so everybody can read
    what is new, under any umask. Links are followed, and files that are there keep their modes.

    Args:
        into: a directory, which is created if it does not exist.
        preset: `service` or `cron`: for runs that follow one another closely, or for runs that are hours apart.
        public_url: where people reach Grafana; alerts link to the dashboards there. `None`: they do not.
        control_url: where people reach the service; dashboards link to its page. `None`: they do not.
        runbook_url: where the runbook can be read; alerts and dashboards link to it. `None`: they do not.
        force: whether existing files that differ are overwritten.

    Raises:
        ConfigError: an existing file differs, something else is in the way, or a URL is wrong.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset must be {' or '.join(PRESETS)}, got {preset!r}")
    for option, url in (("public", public_url), ("control", control_url), ("runbook", runbook_url)):
        _check_url(option, url)
    texts = _texts(preset)
    texts |= {path: _linked(texts[path].decode(), public_url, runbook_url).encode() for path in RULES}
    if control_url or runbook_url:
        texts |= {path: with_links(texts[path].decode(), control_url, runbook_url).encode() for path in BOARDS}
    files = {into / path: text for path, text in texts.items()}
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


def _check_url(option: str, url: str | None) -> None:
    if url is not None and not _URL.fullmatch(url):
        raise ConfigError(
            f"--{option}-url must be an address that people can open, such as https://grafana.example.org, "
            f"got {url!r:.200}"
        )


def _texts(preset: str) -> dict[Path, bytes]:
    """Return what is to be written; a file of the preset replaces the common one."""
    home = _home()
    found = {path: text for name in SHIPPED for path, text in _below(home, home / name)}
    found.update(_below(home / "presets" / preset, home / "presets" / preset))
    return found


def _linked(rules: str, public_url: str | None, runbook_url: str | None) -> str:
    """Add the links to the annotations of alerts; without an address that people can open, a link would be dead."""
    lines, alert = [], ""
    for line in rules.splitlines():
        lines.append(line)
        if name := _ALERT.fullmatch(line):
            alert = name[1]
        elif described := _DESCRIPTION.match(line):
            if public_url is not None:
                board = f"{SCANNER}?var-scanner={{{{ $labels.scanner }}}}" if alert.startswith("Scanner") else FLEET
                lines.append(f"{described[1]}dashboard: {public_url.rstrip('/')}/d/{board}")
            if runbook_url is not None:
                lines.append(f"{described[1]}runbook_url: {runbook_url}#{alert.lower()}")
    return "\n".join(lines) + "\n"


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
