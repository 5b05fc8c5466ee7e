"""Run a fleet of scanners: concurrently, each with a timeout that works, none costing another its result."""

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
)
from resilient_scan.events import Listener
from resilient_scan.observe.logs import LogEvents
from resilient_scan.observe.metrics import PrometheusMetrics
from resilient_scan.options import Breaker, Cache, Limit, Policy, Quarantine, Retry, Timeout
from resilient_scan.results import RunReport, ScanResult, Status
from resilient_scan.runner import ScanRunner
from resilient_scan.scanning import Candidate, Scanner, scanner
from resilient_scan.service import ControlService
from resilient_scan.settings import Settings, load_settings
from resilient_scan.version import __version__

__all__ = [
    "Breaker",
    "Cache",
    "Candidate",
    "CircuitOpen",
    "ConfigError",
    "ControlService",
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
    "__version__",
    "load_settings",
    "scanner",
]
