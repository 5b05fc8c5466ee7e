"""Events as log lines: `LogEvents` for the runner's listeners, `JsonLines` for your handlers."""

from resilient_scan.observe.logs import JsonLines, LogEvents

__all__ = ["JsonLines", "LogEvents"]
