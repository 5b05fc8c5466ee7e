"""What a registry of metrics says."""

from __future__ import annotations

from resilient_scan.observe.metrics import CollectorRegistry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Return the value of one series of ours."""
    return registry.get_sample_value(f"resilient_scan_{name}", labels)
