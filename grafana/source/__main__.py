"""Write the dashboards and rules into `grafana/`: `python -m grafana.source`. A test compares them with the source."""

from __future__ import annotations

from pathlib import Path

from grafana.source import fleet_dashboard, rules, scanner_dashboard
from grafana.source.presets import CRON, SERVICE, Preset
from resilient_scan.cli.links import with_links

HOME = Path(__file__).parents[1]


def made() -> dict[str, str]:
    """Return the text of every generated file, by its path below `grafana/`."""
    return {
        **dashboards(),
        **_rules(SERVICE, ""),
        **_rules(CRON, "presets/cron/"),
    }


def dashboards(public_url: str | None = None, runbook_url: str | None = None) -> dict[str, str]:
    """Return the text of the dashboards, by path; without a URL there are no links that would need it.

    Args:
        public_url: where people reach the service, and so its control page.
        runbook_url: where they read the runbook.
    """
    return {
        "dashboards/fleet.json": with_links(fleet_dashboard.build(), public_url, runbook_url),
        "dashboards/scanner.json": with_links(scanner_dashboard.build(), public_url, runbook_url),
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
