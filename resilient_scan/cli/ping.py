"""Notify a dead-man's switch how a run ended: a service outside that raises the alarm when no notice comes.

The convention is that of healthchecks.io: a GET of the address means success, and one of the address with `/fail`
behind its path means failure. Whatever becomes of the notice, the run is not affected. The address contains a token:
anyone who knows it can report that all is well. So it stands in no message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final
from urllib.parse import urlsplit

from resilient_scan._text import know
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError, ScanError
from resilient_scan.http import Client
from resilient_scan.http.wire import need_httpx

_log = logging.getLogger("resilient_scan")
TIMEOUT = 5.0  # seconds for the whole notice
LOOKUP_TIMEOUT = 1.0  # seconds more that the lookup of a name may take, which nothing can interrupt
MAX_ANSWER = 65_536  # bytes
_SHORT: Final = 8  # characters; a shorter part of a path may be a word, and is not taken out of other messages


class Ping:
    """The notice of how one run ended.

    Attributes:
        succeeded: how it ended; until that is known, it has failed.
    """

    def __init__(self, url: str | None) -> None:
        self.succeeded = False
        self._url: str | None = None
        if url is not None:
            self.send_to(url)

    def send_to(self, url: str | None) -> None:
        """Name the address, unless there is one already or `url` is None.

        Raises:
            ConfigError: it is not an address, or httpx is not installed.
        """
        if self._url is not None or url is None:
            return
        need_httpx()
        if not is_address(url):
            raise ConfigError('--ping must be an address such as "https://hc-ping.com/UUID"')
        know(part for part in _parts(url) if len(part) >= _SHORT)
        self._url = url

    def send(self) -> None:
        """Send the notice, and wait for at most `TIMEOUT + LOOKUP_TIMEOUT` seconds."""
        if self._url is None:
            return
        outcome = [f"no answer within {TIMEOUT + LOOKUP_TIMEOUT:g}s"]
        # On a thread of its own, because nothing bounds the lookup of a name. The thread is a daemon, so it does not
        # keep the process alive either.
        thread = threading.Thread(target=_get, args=(_address(self._url, self.succeeded), outcome), daemon=True)
        thread.start()
        thread.join(TIMEOUT + LOOKUP_TIMEOUT)
        if outcome[-1]:
            host = urlsplit(self._url).hostname
            _log.warning("the ping could not be delivered to %s: %s; the run is not affected", host, outcome[-1])


@contextmanager
def pinging(url: str | None) -> Iterator[Ping]:
    """Yield the notice of a run, and send it when the run has ended, however it did.

    Raises:
        ConfigError: as in `Ping.send_to`.
    """
    ping = Ping(url)
    try:
        yield ping
    except BaseException:
        ping.succeeded = False
        raise
    finally:
        ping.send()


def is_address(url: str) -> bool:
    """Say whether this is an address that can be notified: `http` or `https` and a host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0 and not set(url) & set(" \t\n#")


def _address(url: str, succeeded: bool) -> str:
    parts = urlsplit(url)
    return url if succeeded else parts._replace(path=f"{parts.path.rstrip('/')}/fail").geturl()


def _get(url: str, outcome: list[str]) -> None:
    """Ask for the address; append why that failed, or an empty text."""
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}"
    try:
        client = Client(base, timeout=TIMEOUT, max_bytes=MAX_ANSWER, secrets=_parts(url))
        with closing(client):
            client.get(url.removeprefix(base), context=ScanContext("ping", deadline=time.monotonic() + TIMEOUT))
        outcome.append("")
    except ScanError as error:  # it begins with the address, whose secret parts are left out
        outcome.append(str(error).partition(": ")[2] or type(error).__name__)
    except Exception as error:  # its text is not ours, and may have the address in it
        outcome.append(type(error).__name__)


def _parts(url: str) -> set[str]:
    """Return what of an address may be a token: its path, its query, and the parts of both."""
    parts = urlsplit(url)
    whole = {parts.path.strip("/"), parts.query}
    return {part for text in whole for part in (text, *text.replace("&", "/").replace("=", "/").split("/")) if part}
