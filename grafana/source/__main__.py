"""Write the dashboards and rules into `grafana/`: `python -m grafana.source`. A test compares them with the source."""

from __future__ import annotations

from pathlib import Path

from grafana.source import fleet_dashboard, rules, scanner_dashboard
from grafana.source.presets import CRON, SERVICE, Preset

HOME = Path(__file__).parents[1]


def made() -> dict[str, str]:
    """Return the text of every generated file, by its path below `grafana/`."""
    return {
        "dashboards/fleet.json": fleet_dashboard.build(),
        "dashboards/scanner.json": scanner_dashboard.build(),
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
    """Write the generated files."""
    for path, text in made().items():
        (HOME / path).parent.mkdir(parents=True, exist_ok=True)
        (HOME / path).write_text(text)


if __name__ == "__main__":
    write()
