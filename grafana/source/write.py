"""Write what is made here into `grafana/`: `python -m grafana.source.write`; a test compares."""

from __future__ import annotations

from pathlib import Path

from grafana.source import fleet, rules, scanner
from grafana.source.presets import CRON, SERVICE, Preset

HOME = Path(__file__).parents[1]


def made() -> dict[str, str]:
    """Return every file that is made, by its path below `grafana/`."""
    return {
        "dashboards/fleet.json": fleet.build(),
        "dashboards/scanner.json": scanner.build(),
        **_rules(SERVICE, ""),
        **_rules(CRON, "presets/cron/"),
    }


def _rules(preset: Preset, folder: str) -> dict[str, str]:
    return {
        f"{folder}prometheus/recording.yml": rules.recording(preset),
        f"{folder}prometheus/alerts.yml": rules.prometheus(preset),
        f"{folder}alerting/rules.yml": rules.grafana(preset),
    }


def write() -> None:
    """Write them."""
    for path, text in made().items():
        (HOME / path).parent.mkdir(parents=True, exist_ok=True)
        (HOME / path).write_text(text)


if __name__ == "__main__":
    write()
