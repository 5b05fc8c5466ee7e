"""Talk to the service that runs on this machine, for orders and `explain`; else use the store."""

from __future__ import annotations

import base64
import getpass
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from resilient_scan.cli.choice import Request, choose
from resilient_scan.cli.fleet import installed
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.observe.explain import Explanation
from resilient_scan.quarantine import ORDER_DURATION
from resilient_scan.runner import ScanRunner
from resilient_scan.service.auth import REALM
from resilient_scan.service.openapi import TITLE
from resilient_scan.settings import load_settings
from resilient_scan.stores import without_password

REQUEST_TIMEOUT = 5.0
FIND_TIMEOUT = 1.0  # a service on this machine answers at once; another program at its port may never


def order(config: Path | None, name: str, action: str, reason: str, seconds: float = ORDER_DURATION) -> str:
    """Give an order about a scanner: to the running service, else in the store.

    Args:
        config: the settings file.
        name: the scanner's.
        action: `disable`, `enable`, `reset`, `forget` or `probe`.
        reason: why.
        seconds: how long it holds, if it is one of the first two.

    Returns:
        A sentence about what was done, and where.

    Raises:
        ConfigError: there is no such scanner, the service refuses, or nothing would remember the order.
    """
    lasting = {"duration": seconds} if action in {"disable", "enable"} else {}
    client = running(config)
    if client is not None:
        answer = client.post(f"/scanners/{name}/{action}", {"reason": reason, **lasting})
        return f"{_done(name, action, answer['state'])} in the service at {client.url}"
    with _stored(config, f"{action} {name}", name) as (runner, store):
        getattr(runner, action)(name, reason=reason, who=_user(), **lasting)
        state = next(state.state for state in runner.scanners() if state.name == name)
    return f"{_done(name, action, state)} in {store}"


def reset_provider(config: Path | None, provider: str, reason: str) -> str:
    """Close a provider's breaker: in the running service, else in the store.

    Arguments, result and errors are those of `order`.
    """
    client = running(config)
    done = f"the breaker of provider {provider} is closed"
    if client is not None:
        client.post(f"/providers/{provider}/reset", {"reason": reason})
        return f"{done} in the service at {client.url}"
    with _stored(config, f"reset provider {provider}") as (runner, store):
        runner.reset(provider=provider, reason=reason, who=_user())
    return f"{done} in {store}"


@contextmanager
def _stored(config: Path | None, action: str, *only: str) -> Iterator[tuple[ScanRunner, str]]:
    """Yield a runner of the whole fleet for an order that goes to the store, and the store's address.

    It has the scanners that could not run here, too: an order needs no keys, and the cap on how many may be out of
    service is a share of all of them.

    Args:
        config: the settings file.
        action: what is ordered, for messages.
        only: the scanner that it is about; there has to be one of this name.

    Raises:
        ConfigError: there is no such scanner, nothing would remember the order, or the store fails.
    """
    settings = load_settings(config)
    if settings.store == "memory:":
        raise ConfigError(
            f"{action}: nothing would remember it: no service runs here, and no store is configured; "
            "start 'resilient-scan serve', or name a settings file with --config"
        )
    settings, plugins = installed(Request(config=config))
    if only:
        choose(plugins, Request(only=only), settings)
    scanners = [found.scanner for found in plugins.scanners]
    with settings.runner(scanners, known=plugins.names, listeners=()) as runner:
        try:
            yield runner, without_password(settings.store)
        except StoreError as error:
            raise ConfigError(f"{action}: {error}; nothing was changed") from None


def _done(name: str, action: str, state: str) -> str:
    said = {
        "reset": f"the breaker of {name} is closed",
        "forget": f"the cached answers of {name} are forgotten",
        "probe": f"the next scan of {name} is a probe",
    }
    return said.get(action, f"{name} is {state}")


def explained(config: Path | None, name: str) -> Explanation | None:
    """Return what the running service says about a scanner; `None`: no service runs here.

    Raises:
        ConfigError: the service knows no such scanner, or is of another version.
    """
    client = running(config)
    if client is None:
        return None
    answer = client.get(f"/scanners/{name}")
    try:
        return msgspec.convert(answer["explanation"], Explanation)
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise ConfigError(
            f"the service at {client.url} is of another version; restart it, or use its command"
        ) from None


def running(config: Path | None) -> Client | None:
    """Return the service that these settings describe, if it runs on this machine."""
    settings = load_settings(config)
    tokens = []
    for read in (settings.token, settings.read_token):
        try:
            tokens.append(read())
        except ConfigError:  # who may not read one of them may have no need of it; the service refuses if not
            tokens.append(None)
    return find(settings.service.host, settings.service.port, *tokens, user=_user())


class Client:
    """A running service.

    Args:
        url: its base URL.
        token: shown with every change; `None`: none is configured.
        read_token: shown with everything else; `None`: reading takes none.
        user: recorded in the audit trail.
    """

    def __init__(self, url: str, token: str | None, read_token: str | None = None, *, user: str = "") -> None:
        self.url = url
        self._token = token
        self._read_token = read_token
        self._user = user.replace(":", "_")

    def get(self, path: str) -> Any:
        """Return the service's answer.

        Raises:
            ConfigError: it refuses; the message is its own.
        """
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Order something, and return the service's answer.

        Raises:
            ConfigError: it refuses; the message is its own.
        """
        if self._token is None:
            raise ConfigError(
                f"the service at {self.url} changes nothing without its token; name its file as service.token_file"
            )
        return self._ask(path, body)

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{quote(path)}", data=data)  # noqa: S310 - http, from settings
        token = self._read_token if data is None else self._token
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if token is not None:
            credentials = base64.b64encode(f"{self._user}:{token}".encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        try:
            with _open(request, REQUEST_TIMEOUT) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(f"the service at {self.url} refuses: {_reason(error)}") from None
        except (OSError, ValueError, HTTPException) as error:
            why = str(error)[:200] or type(error).__name__
            raise ConfigError(f"the service at {self.url} does not answer: {why}") from None


def find(host: str, port: int, token: str | None, read_token: str | None = None, *, user: str = "") -> Client | None:
    """Return the service of ours that listens at an address; `None`: there is none.

    It is asked without a token, which another program that listens there must not get to see.

    Args:
        host: where it would listen; if that is all addresses, the loopback one is tried.
        port: where it would listen; at port 0 nothing is tried.
        token: shown with every change.
        read_token: shown with everything else if reading takes a token; `None`: `token` is.
        user: recorded in the audit trail.
    """
    if port == 0:
        return None
    near = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - the other way round
    url = f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
    try:
        with _open(urllib.request.Request(f"{url}/openapi.json"), FIND_TIMEOUT) as answer:  # noqa: S310
            document = json.loads(answer.read(1_000_000))
    except urllib.error.HTTPError as error:
        with error:
            ours = error.code == 401 and f'realm="{REALM}"' in error.headers.get("WWW-Authenticate", "")
        return Client(url, token, read_token or token, user=user) if ours else None
    except (OSError, ValueError, HTTPException, RecursionError):
        return None
    info = document.get("info") if isinstance(document, dict) else None
    return Client(url, token, user=user) if isinstance(info, dict) and info.get("title") == TITLE else None


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Connect directly: no proxy stands between two programs on one machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(100_000))["error"]["message"])
    except (OSError, ValueError, HTTPException, KeyError, TypeError):
        return f"HTTP {error.code}"


def _user() -> str:
    """Return who gives the order: behind `sudo` the person, not the account that may read the token."""
    if behind := os.environ.get("SUDO_USER"):
        return behind
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in some containers
        return "command line"
