"""The package's own log lines, which cost nobody a result: filters and handlers are the program's, and may raise.

The watchdog and the threads of runs log what has failed. Were a filter's exception to come out of that, the watchdog
would end, or a run would not.
"""

from __future__ import annotations

import logging
from typing import Any


class SafeLogger:
    """The logger `resilient_scan`, as far as the package needs it, with methods that do not raise."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("resilient_scan")

    def debug(self, message: str, *args: Any) -> None:
        """Log a debug message."""
        self._log(logging.DEBUG, message, args)

    def warning(self, message: str, *args: Any) -> None:
        """Log a warning."""
        self._log(logging.WARNING, message, args)

    def error(self, message: str, *args: Any) -> None:
        """Log an error."""
        self._log(logging.ERROR, message, args)

    def exception(self, message: str, *args: Any) -> None:
        """Log an error with the exception that is being handled."""
        self._log(logging.ERROR, message, args, with_exception=True)

    def _log(self, level: int, message: str, args: tuple[Any, ...], *, with_exception: bool = False) -> None:
        try:
            self._logger.log(level, message, *args, exc_info=with_exception, stacklevel=3)
        except KeyboardInterrupt:  # the user's Ctrl-C came in the middle of it
            raise
        except BaseException:  # there is nowhere left to report it
            return


log = SafeLogger()
