"""Ask Alertmanager for its active alerts now and then, so that a lost message does not count for ever.

Alertmanager sends "resolved" once. If nothing listened at that moment, the alert would hold its scanner back until its
lease ends; and an alert that began firing then would be heard of only when Alertmanager repeats it, hours later.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from urllib.parse import quote

from resilient_scan.errors import ScanError, StoreError
from resilient_scan.quarantine import Alert
from resilient_scan.service.alerts import ALERTMANAGER, alert_of

_log = logging.getLogger("resilient_scan")
REQUEST_TIMEOUT = 5.0
MAX_ANSWER = 8_000_000  # bytes
PAUSE = 1.0  # seconds between two requests at least
STOP_TIMEOUT = 0.2  # seconds that `stop` waits for a request under way
_PATH = "/api/v2/alerts?active=true&silenced=false&inhibited=false&unprocessed=false"


class Unreachable(ScanError):
    """Alertmanager does not answer, or answers with something else than a list of alerts."""


def active_alerts(url: str, receiver: str | None = None) -> list[Alert]:
    """Return Alertmanager's active and unsilenced alerts, without those that cannot be read.

    Args:
        url: Alertmanager's base URL, with `http://` or `https://`.
        receiver: name of the receiver that the alerts go to; `None`: any.

    Raises:
        Unreachable: Alertmanager does not answer in time, or answers with something else.
    """
    chosen = "" if receiver is None else f"&receiver={quote(re.escape(receiver))}"
    try:
        with urllib.request.urlopen(url.rstrip("/") + _PATH + chosen, timeout=REQUEST_TIMEOUT) as answer:  # noqa: S310 - checked in settings
            listed = json.loads(answer.read(MAX_ANSWER))
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = str(error)[:200] or type(error).__name__
        raise Unreachable(f"Alertmanager at {url} gives no list of its alerts: {why}") from None
    if not isinstance(listed, list):
        raise Unreachable(f"Alertmanager at {url} gives no list of its alerts, but {type(listed).__name__}")
    found = []
    for item in listed:
        try:
            found.append(alert_of({**item, "status": "firing"}))
        except (TypeError, ValueError) as error:
            _log.debug("an alert in Alertmanager's list cannot be read: %s", error)
    return found


class Reconciler:
    """Bring what a runner knows about alerts in line with Alertmanager's list, on its own thread, until `stop`.

    Args:
        reconcile: `ScanRunner.reconcile`, with the instances whose alerts are the runner's.
        url: Alertmanager's base URL.
        every: seconds from one request to the next, > 0.
        receiver: name of the receiver whose alerts are the runner's; `None`: all alerts are.
    """

    def __init__(
        self, reconcile: Callable[..., object], url: str, every: float, *, receiver: str | None = None
    ) -> None:
        self._reconcile, self._url, self._every = reconcile, url, every
        self._fetch = partial(active_alerts, url, receiver)
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="resilient-scan-reconcile", daemon=True)
        self._unreachable = False
        self.trouble: str = ""  # why Alertmanager cannot be asked, for people

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask_again(self) -> None:
        """Ask now: a message was cut off, or was not acted on."""
        self._wake.set()

    def stop(self) -> None:
        """End; wait only a moment for a request under way.

        Nothing interrupts a thread that waits for a socket, and no process should take `REQUEST_TIMEOUT` to exit.
        The thread is a daemon, and an answer that comes too late is not missed: the next process asks at its start.
        """
        self._stopped.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)

    def _loop(self) -> None:
        # The first request goes out at once: only Alertmanager knows what was sent while no process listened.
        while not self._stopped.is_set():
            self._wake.clear()  # before the question: who wakes it during that one wants another
            try:
                self.once()
            except Exception:  # without this the thread would end, and nobody would notice
                _log.exception("Alertmanager's alerts could not be brought in line")
            # The pause bounds how often anybody can make us ask: a scrape under a new name does, and may need no token.
            if not self._stopped.wait(min(self._every, PAUSE)):
                self._wake.wait(max(0.0, self._every - PAUSE))

    def once(self) -> None:
        """Ask and act. A failure is logged once, and once more when it has passed; a store reports its own trouble."""
        try:
            self._reconcile(self._fetch, source=ALERTMANAGER)
        except StoreError:
            return
        except Unreachable as error:
            if not self._unreachable:
                _log.warning("%s; what its messages said goes on to count, each for its lease", error)
            self._unreachable = True
            self.trouble = f"{error}."
        else:
            if self._unreachable:
                _log.info("Alertmanager at %s answers again", self._url)
            self._unreachable = False
            self.trouble = ""
