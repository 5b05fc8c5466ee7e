"""The JSON Schema of the settings file: what the reader takes is right, what an editor can know is wrong is marked."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator

from resilient_scan import load_settings
from resilient_scan.cli import main as cli
from resilient_scan.options import LAYERS, Quarantine
from resilient_scan.settings.schema import schema
from tests.support.settings import write_settings

ROOT = Path(__file__).parents[2]
EVERYTHING = """
[scanner_execution]
concurrent = true
max_workers = 8
timeout_seconds = 30
deadline = "60s"
engine = "threads"

[defaults]
cache = { ttl = "5m", stale_if_error = "1h", inputs = ["trade_date"], jitter = 0 }
retry = { attempts = 3, base = "500ms", cap = 10.5, on = ["ValueError"] }
breaker = { failures = 5, open_for = "60s", failure_rate = 0.5 }
timeout = { total = "30s" }

[providers.finnhub]
rate = ["60/min", "30/s"]
concurrency = 4

[scanners.one]
enabled = true
cache = false
limit = { provider = "sec", rate = "5/s" }
provider = "sec"
isolation = "thread"
settings = { lookback_days = 14, deep = { anything = [1] } }

[store]
url = "memory:"

[quarantine]
cooloff = "60s"
critical = ["one"]

[service]
listen = "127.0.0.1:9108"
reconcile = 60
"""


def problems(text: str) -> list[str]:
    return [error.json_path for error in Draft7Validator(schema()).iter_errors(tomllib.loads(text))]


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(schema())


def test_what_the_reader_takes_is_right(tmp_path: Path) -> None:
    load_settings(write_settings(tmp_path, EVERYTHING), environ={})
    assert problems(EVERYTHING) == []
    assert problems((ROOT / "grafana/resilient-scan.toml").read_text()) == []
    assert problems("") == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[scaners.one]\nenabled = true", "$"),
        ("[defaults]\nretry = { atempts = 3 }", "$.defaults.retry"),
        ('[defaults]\ncache = { ttl = "5 minutes" }', "$.defaults.cache"),
        ("[defaults]\ntimeout = false", "$.defaults.timeout"),
        ("[scanner_execution]\nmax_workers = 2.5", "$.scanner_execution.max_workers"),
        ('[scanners.one]\nenabled = "no"', "$.scanners.one.enabled"),
        ('[providers.sec]\nprovider = "sec"', "$.providers.sec"),
        ("[quarantine]\ncritical = [1]", "$.quarantine.critical[0]"),
    ],
)
def test_what_an_editor_can_know_is_marked(text: str, where: str) -> None:
    assert problems(text) == [where]


def test_every_option_is_in_it_with_its_description() -> None:
    defaults: dict[str, Any] = schema()["properties"]["defaults"]["properties"]
    tables = {name: layer.get("anyOf", [layer])[0] for name, layer in defaults.items()}
    tables["quarantine"] = schema()["properties"]["quarantine"]
    for name, kind in {**LAYERS, "quarantine": Quarantine}.items():
        fields = tables[name]["properties"]
        assert set(fields) == {field.name for field in msgspec.structs.fields(kind)}
        assert all(field["description"] for field in fields.values())
    assert tables["retry"]["properties"]["attempts"]["default"] == 3
    assert "default" not in tables["retry"]["properties"]["on"]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
