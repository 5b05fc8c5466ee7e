"""The quarantine: what takes a scanner out of service, and what brings it back.

                an alert fires, or executions fail         the cool-off has passed
      ENABLED ------------------------------> QUARANTINED -------------------------> PROBING
         ^                                         ^                                  |   |
         |                                         +---------- a probe fails ---------+   |
         +---- enough probes succeed, and no alert is active ------------------------------+

Manual orders take precedence over all of it: *disabled*, and *enabled* against the machine. They expire.
A resolved alert alone never brings a scanner back. A scanner out of service has no executions, so the alert about them
resolves whether its source is well or not; to believe it would bring the scanner back, fail, and fire again.

`records` is what is stored and `machine` how it changes; both are pure. `store` makes each change in one atomic step
and keeps this process's copy, `view` describes it, and `gate` is the live face: it decides for scans and notifies
listeners.
"""

from resilient_scan.quarantine.gate import ORDER_DURATION, Gate, check_reason
from resilient_scan.quarantine.machine import RESULTS, Alert, Turn
from resilient_scan.quarantine.records import MAX_TEXT
from resilient_scan.quarantine.view import AuditEntry, Evidence, ScannerState

__all__ = [
    "MAX_TEXT",
    "ORDER_DURATION",
    "RESULTS",
    "Alert",
    "AuditEntry",
    "Evidence",
    "Gate",
    "ScannerState",
    "Turn",
    "check_reason",
]
