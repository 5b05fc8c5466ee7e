"""Ask Alertmanager for its active alerts now and then: a message that got lost must not count for ever."""

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
PATIENCE = 5.0  # seconds for an answer
LIMIT = 8_000_000  # bytes of one
_PATH = "/api/v2/alerts?active=true&silenced=false&inhibited=false&unprocessed=false"


class Unreachable(ScanError):
    """Alertmanager does not answer, or not with a list of alerts."""


def active_alerts(url: str, receiver: str | None = None) -> list[Alert]:
    """Return the alerts that an Alertmanager has for active and not silenced; those that cannot be read are left out.

    Args:
        url: its base URL, with `http://` or `https://`.
        receiver: name of the receiver that they go to; `None`: any.

    Raises:
        Unreachable: it does not answer in time, or with something else.
    """
    chosen = "" if receiver is None else f"&receiver={quote(re.escape(receiver))}"
    try:
        with urllib.request.urlopen(url.rstrip("/") + _PATH + chosen, timeout=PATIENCE) as answer:  # noqa: S310 - checked in settings
            said = json.loads(answer.read(LIMIT))
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = str(error)[:200] or type(error).__name__
        raise Unreachable(f"Alertmanager at {url} gives no list of its alerts: {why}") from None
    if not isinstance(said, list):
        raise Unreachable(f"Alertmanager at {url} gives no list of its alerts, but {type(said).__name__}")
    found = []
    for item in said:
        try:
            found.append(alert_of({**item, "status": "firing"}))
        except (TypeError, ValueError) as error:
            _log.debug("an alert in Alertmanager's list cannot be read: %s", error)
    return found


class Reconciler:
    """Bring what a runner knows of alerts in line with Alertmanager's list, on a thread of its own, until `stop`.

    Args:
        reconcile: `ScanRunner.reconcile`.
        url: Alertmanager's.
        every: seconds from one time to the next, > 0.
        receiver: whose alerts are the runner's; `None`: all of them.
    """

    def __init__(
        self, reconcile: Callable[..., object], url: str, every: float, *, receiver: str | None = None
    ) -> None:
        self._reconcile, self._url, self._every = reconcile, url, every
        self._fetch = partial(active_alerts, url, receiver)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="resilient-scan-reconcile", daemon=True)
        self._away = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a request under way is not waited for longer than a moment."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(0.2)

    def _work(self) -> None:
        """Ask at once, too: what was said while no process listened is known to Alertmanager only."""
        while not self._stopped.is_set():
            try:
                self.once()
            except Exception:  # the thread's end would go unnoticed
                _log.exception("Alertmanager's alerts could not be brought in line")
            self._stopped.wait(self._every)

    def once(self) -> None:
        """Ask and act; what fails is told once, and once that it works again. A store's trouble is told by its own."""
        try:
            self._reconcile(self._fetch, source=ALERTMANAGER)
        except StoreError:
            return
        except Unreachable as error:
            if not self._away:
                _log.warning("%s; what its messages said goes on to count, each for its lease", error)
            self._away = True
        else:
            if self._away:
                _log.info("Alertmanager at %s answers again", self._url)
            self._away = False
