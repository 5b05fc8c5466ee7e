"""What the control endpoint knows about the process around it, and which alerts are about that process.

A rule about something that each process has for itself (a breaker, a hung thread, a share of failures) carries the
label `instance`. Alertmanager sends such an alert to all replicas, and only the one that it is about may act on it.

How does a process know its own name? Prometheus takes `instance` from the address that it scrapes, and sends that
address as the header `Host`. So the names of the last scrapes are the process's own. Only an order to Prometheus to
rename the target (`relabel_configs`), or a proxy that changes `Host`, makes it differ: then the name has to be set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from resilient_scan._text import brief
from resilient_scan.errors import ConfigError

_log = logging.getLogger("resilient_scan")
EVERY = "*"
MAX_NAMES = 4  # two Prometheus servers may use different addresses, and may have moved
MAX_LENGTH = 260  # characters of a host name and a port


class Instance:
    """The names of this process in Prometheus; safe to use from any thread.

    Args:
        name: the only one, such as `"10.0.0.7:9108"`; `None`: as it is scraped. `"*"` contains every name, for
            a process that receives alerts and shares its store with those that run the scanners.

    Raises:
        ConfigError: the name is empty.
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None and not name.strip():
            raise ConfigError("instance must be a name such as '10.0.0.7:9108', or '*', and not empty")
        self._set = name
        self._names: tuple[str, ...] = () if name is None else (name,)
        self._lock = threading.Lock()
        self._warned = False

    def __contains__(self, name: object) -> bool:
        return self._set == EVERY or name in self._names

    def scraped(self, host: str) -> bool:
        """Learn from a scrape under which name this process is known, unless that is set; say whether it is news."""
        if self._set is not None or not 0 < len(host) <= MAX_LENGTH:
            return False
        with self._lock:
            is_new = host not in self._names
            self._names = (*(name for name in self._names if name != host), host)[-MAX_NAMES:]
        return is_new

    def note_ignored(self, name: str) -> None:
        """Say once, for a process that waits in vain, that an alert about another process was ignored."""
        with self._lock:
            warned, self._warned = self._warned, True
        if warned:
            return
        if self._set is not None:
            known = f"is {self._set!r}"
        else:
            known = f"is scraped as {' and '.join(map(repr, self._names))}" if self._names else "was never scraped"
        _log.warning(
            "an alert about the instance %r is ignored, for this process %s: among replicas that is right; otherwise "
            "set service.instance",
            brief(name),
            known,
        )


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint has to know about the process around it.

    Attributes:
        why_not: returns a sentence while scans cannot run, else an empty text; for `/readyz` and the page.
        run: has a scanner run soon, without waiting for that; `None`: only the process itself starts runs.
        alerting: returns what is wrong with the way to the alerts, else an empty text.
        ask_again: called when alerts may have been missed, to ask their sender for all of them.
        instance: its names in Prometheus; `None`: those under which it is scraped.
        dashboard_url: of a dashboard; `{scanner}` in it stands for the scanner on whose page it is. May be empty.
        runbook_url: of a page with a heading for each alert; may be empty.
    """

    why_not: Callable[[], str] = str
    run: Callable[[str], None] | None = None
    alerting: Callable[[], str] = str
    ask_again: Callable[[], object] | None = None
    instance: Instance | None = None
    dashboard_url: str = ""
    runbook_url: str = ""
