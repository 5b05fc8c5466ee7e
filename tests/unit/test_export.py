"""`export-grafana`: what it writes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from resilient_scan import ConfigError
from resilient_scan.cli.export import export_grafana, misfit
from resilient_scan.cli.main import main

HOME = Path(__file__).parents[2] / "grafana"
COMMON = {"dashboards/fleet.json", "dashboards/scanner.json", "alertmanager/alertmanager.yml", "compose.yaml"}
OF_A_PRESET = ("prometheus/alerts.yml", "prometheus/recording.yml", "prometheus/prometheus.yml", "alerting/rules.yml")


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_written_and_nothing_else(tmp_path: Path) -> None:
    paths = export_grafana(tmp_path / "new" / "folder")
    files = written(tmp_path / "new" / "folder")
    assert [path.relative_to(tmp_path / "new" / "folder") for path in paths] == sorted(Path(name) for name in files)
    assert files >= {*COMMON, *OF_A_PRESET}
    assert not [name for name in files if name.startswith(("source", "pictures", "presets")) or name.endswith(".py")]
    for name in files:
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (HOME / name).read_bytes()


def test_a_preset_has_files_of_its_own(tmp_path: Path) -> None:
    export_grafana(tmp_path / "service")
    export_grafana(tmp_path / "cron", "cron")
    assert written(tmp_path / "service") == written(tmp_path / "cron")
    for name in OF_A_PRESET:
        assert (tmp_path / "cron" / name).read_bytes() == (HOME / "presets" / "cron" / name).read_bytes()
        assert (tmp_path / "cron" / name).read_bytes() != (tmp_path / "service" / name).read_bytes()


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    assert export_grafana(tmp_path) == export_grafana(tmp_path)


def test_foreign_files_are_kept_and_nothing_is_written_beside_them(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"compose\.yaml is there already and differs.*--force"):
        export_grafana(tmp_path)
    assert written(tmp_path) == {"compose.yaml"}
    (tmp_path / "Dockerfile").write_text("mine too")
    with pytest.raises(ConfigError, match=r"Dockerfile is there already.*\(and 1 more like it\)"):
        export_grafana(tmp_path)
    export_grafana(tmp_path, force=True)
    assert (tmp_path / "compose.yaml").read_bytes() == (HOME / "compose.yaml").read_bytes()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, *, force: bool) -> None:
    (tmp_path / "compose.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"compose\.yaml"):
        export_grafana(tmp_path, force=force)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dashboards").write_text("")
    with pytest.raises(ConfigError, match="dashboards cannot be written"):
        export_grafana(tmp_path, force=True)


def annotations(folder: Path) -> list[dict[str, dict[str, str]]]:
    """Return the annotations of the alerts in both forms, by the alert's name."""
    prometheus = yaml.safe_load((folder / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    managed = yaml.safe_load((folder / "alerting/rules.yml").read_text())["groups"][0]["rules"]
    return [
        {rule["alert"]: rule["annotations"] for rule in prometheus},
        {rule["title"]: rule["annotations"] for rule in managed},
    ]


@pytest.mark.parametrize("preset", ["service", "cron"])
def test_alerts_link_to_where_the_user_says(tmp_path: Path, preset: str) -> None:
    export_grafana(tmp_path, preset, runbook_url="https://wiki.test/scans", public_url="https://grafana.test/g/")
    for found in annotations(tmp_path):
        for name, said in found.items():
            assert said["runbook_url"] == f"https://wiki.test/scans#{name.lower()}"
        of_scanner, of_fleet = found["ScannerStale"], found["ResilientScanBlind"]
        scanner = "https://grafana.test/g/d/resilient-scan-scanner?var-scanner={{ $labels.scanner }}"
        assert of_scanner["dashboard"] == scanner
        assert of_fleet["dashboard"] == "https://grafana.test/g/d/resilient-scan-fleet"
    for name, uid in (("fleet", "resilient-scan-fleet"), ("scanner", "resilient-scan-scanner")):
        assert f'"uid": "{uid}"' in (tmp_path / "dashboards" / f"{name}.json").read_text()


def test_the_dashboards_link_to_the_service_and_to_the_runbook(tmp_path: Path) -> None:
    export_grafana(tmp_path, control_url="https://scan.test", runbook_url="https://wiki.test/scans")
    for name in ("fleet", "scanner"):
        text = (tmp_path / "dashboards" / f"{name}.json").read_text()
        assert "https://scan.test/" in text
        assert "https://wiki.test/scans#scanner" in text
    export_grafana(tmp_path, force=True)
    assert (tmp_path / "dashboards/fleet.json").read_bytes() == (HOME / "dashboards/fleet.json").read_bytes()


def test_without_an_address_there_is_no_link_rather_than_a_dead_one(tmp_path: Path) -> None:
    export_grafana(tmp_path, runbook_url="https://wiki.test/scans")
    for found in annotations(tmp_path):
        assert {tuple(said) for said in found.values()} == {("summary", "description", "runbook_url")}
    export_grafana(tmp_path, force=True)
    for found in annotations(tmp_path):
        assert {tuple(said) for said in found.values()} == {("summary", "description")}


@pytest.mark.parametrize(
    "url", ["docs/runbook.md", "https://", "https://wiki.test/a b", "https://wiki.test/#x", "x\n- y"]
)
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    for name in ("--runbook-url", "--public-url", "--control-url"):
        option = name.removeprefix("--").replace("-", "_")
        with pytest.raises(ConfigError, match=f"{name} must be an address that people can open"):
            export_grafana(tmp_path, **{option: url})  # type: ignore[arg-type]
    assert written(tmp_path) == set()


def test_rules_and_interval_have_to_match() -> None:
    assert misfit(60) == misfit(300) == ""
    assert misfit(301) == misfit(3600).replace("1h", "5m 1s") != ""
    assert "--preset cron`" in misfit(3600)
    assert "want one every hour" in misfit(3601)


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset must be service or cron, got 'daily'"):
        export_grafana(tmp_path, "daily")


def test_the_command_lists_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-grafana", str(tmp_path), "--preset", "cron"]) == 0
    assert capsys.readouterr().out.splitlines() == sorted(str(tmp_path / name) for name in written(tmp_path))
    (tmp_path / "compose.yaml").write_text("mine")
    assert main(["export-grafana", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export-grafana", str(tmp_path), "--force"]) == 0
