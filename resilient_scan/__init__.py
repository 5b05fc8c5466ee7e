"""Run a fleet of scanners: concurrently, each with a timeout that works, none costing another its result."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resilient_scan.context import ScanContext
    from resilient_scan.errors import (
        CircuitOpen,
        ConfigError,
        InvalidCandidate,
        LimitExceeded,
        PermanentError,
        PluginError,
        Rejected,
        RetryAfter,
        ScanCancelled,
        ScanError,
        ScanTimeout,
        WorkerLost,
    )
    from resilient_scan.events import Listener
    from resilient_scan.logs import LogEvents
    from resilient_scan.metrics import PrometheusMetrics
    from resilient_scan.options import Breaker, Cache, Expect, Limit, Policy, Quarantine, Retry, Timeout
    from resilient_scan.results import RunReport, ScanResult, Status
    from resilient_scan.runner import ScanRunner
    from resilient_scan.scanning import Candidate, Scanner, scanner
    from resilient_scan.service import ControlService
    from resilient_scan.settings import Settings, load_settings

__all__ = [
    "Breaker",
    "Cache",
    "Candidate",
    "CircuitOpen",
    "ConfigError",
    "ControlService",
    "Expect",
    "InvalidCandidate",
    "Limit",
    "LimitExceeded",
    "Listener",
    "LogEvents",
    "PermanentError",
    "PluginError",
    "Policy",
    "PrometheusMetrics",
    "Quarantine",
    "Rejected",
    "Retry",
    "RetryAfter",
    "RunReport",
    "ScanCancelled",
    "ScanContext",
    "ScanError",
    "ScanResult",
    "ScanRunner",
    "ScanTimeout",
    "Scanner",
    "Settings",
    "Status",
    "Timeout",
    "WorkerLost",
    "__version__",
    "load_settings",
    "scanner",
]

# Each name is imported when it is first used (PEP 562). A program that only defines scanners never loads the runner;
# one that never asks for metrics never loads Prometheus. Type checkers see the imports above.
_NAMES_BY_MODULE = {
    "context": ["ScanContext"],
    "errors": [
        "CircuitOpen",
        "ConfigError",
        "InvalidCandidate",
        "LimitExceeded",
        "PermanentError",
        "PluginError",
        "Rejected",
        "RetryAfter",
        "ScanCancelled",
        "ScanError",
        "ScanTimeout",
        "WorkerLost",
    ],
    "events": ["Listener"],
    "observe.logs": ["LogEvents"],
    "observe.metrics": ["PrometheusMetrics"],
    "options": ["Breaker", "Cache", "Expect", "Limit", "Policy", "Quarantine", "Retry", "Timeout"],
    "results": ["RunReport", "ScanResult", "Status"],
    "runner": ["ScanRunner"],
    "scanning": ["Candidate", "Scanner", "scanner"],
    "service": ["ControlService"],
    "settings": ["Settings", "load_settings"],
}
_MODULE_OF = {name: f"resilient_scan.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names}

# The docs write `resilient_scan.metrics.worker_ended(pid)`, so `import resilient_scan` has to be enough for that. If
# these modules were not imported here, it would depend on what the program has used before whether they are there.
_MODULES = {
    "clock",
    "context",
    "errors",
    "events",
    "logs",
    "metrics",
    "options",
    "results",
    "runner",
    "scanning",
    "service",
    "settings",
}

if not TYPE_CHECKING:  # a type checker that saw it would take any name, a misspelt one too, for an `object`

    def __getattr__(name: str) -> object:
        if name not in _MODULES and name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from resilient_scan._once import IMPORTING  # noqa: PLC0415 - with the first name

        with IMPORTING:
            if name in _MODULES:
                return _import_module(f"resilient_scan.{name}")
            value = globals()[name] = getattr(_import_module(_MODULE_OF[name]), name)
            return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
