"""What many unit tests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from resilient_scan import Settings, load_settings
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import FakeClock


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return a registry of metrics that nobody else uses."""
    return CollectorRegistry()


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still until a test advances it."""
    return FakeClock()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return a function that loads a text as the file `scan.toml` of the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def loaded(text: str, environ: Mapping[str, str] | None = None) -> Settings:
        Path("scan.toml").write_text(text, encoding="utf-8")
        return load_settings("scan.toml", environ=environ or {})

    return loaded
