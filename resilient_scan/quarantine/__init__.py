"""In service or out of it: what takes a scanner out, and what brings it back.

                    an alert fires, or executions fail         the cool-off is over
          ENABLED ------------------------------> QUARANTINED -----------------------> PROBING
             ^                                         ^                                |   |
             |                                         +--------- a probe fails --------+   |
             +---- enough probes succeed, and no alert is active ---------------------------+

Beside it stand orders by hand, which win over everything: *disabled*, and *enabled* against the machine; they expire.
An alert that is over never brings a scanner back, it only stops standing in the way: a scanner out of service has no
executions, so the alert about them ends whether the source is well or not.

`records` is what is kept, `machine` and `alerts` how it changes, `step` one change of stored bytes (all of them pure),
`gate` the live face: it asks the store, and tells the listeners.
"""

from resilient_scan.quarantine.gate import DAY, Gate
from resilient_scan.quarantine.machine import RESULTS, Alert, Turn
from resilient_scan.quarantine.records import MOST_TEXT
from resilient_scan.quarantine.view import Entry, Evidence, ScannerState

__all__ = ["DAY", "MOST_TEXT", "RESULTS", "Alert", "Entry", "Evidence", "Gate", "ScannerState", "Turn"]
