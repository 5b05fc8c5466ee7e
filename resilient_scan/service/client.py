"""What the command line asks of a service that runs on this machine."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from resilient_scan.errors import ConfigError

PATIENCE = 5.0
TITLE = "resilient_scan control endpoint"


class Client:
    """A running service.

    Args:
        url: its base URL.
        token: for what changes something; `None`: there is none.
        user: who asks, for the audit trail.
    """

    def __init__(self, url: str, token: str | None, user: str = "") -> None:
        self.url = url
        self._token = token
        self._user = user.replace(":", "_")

    def get(self, path: str) -> Any:
        """Return what it answers.

        Raises:
            ConfigError: it refuses; the message is its own.
        """
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Tell it to do something, and return what it answers.

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
        if data is not None:
            request.add_header("Content-Type", "application/json")
            credentials = base64.b64encode(f"{self._user}:{self._token}".encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        try:
            with _open(request, PATIENCE) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(f"the service at {self.url} refuses: {_reason(error)}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise ConfigError(f"the service at {self.url} does not answer: {_text(error)}") from None


def find(host: str, port: int, token: str | None, user: str = "") -> Client | None:
    """Return the service that listens at an address; `None`: none of ours does.

    Args:
        host: where it would listen; instead of all addresses the loopback one is asked.
        port: there; at port 0 nothing is asked.
        token: for what changes something.
        user: who asks, for the audit trail.
    """
    if port == 0:
        return None
    near = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - the other way round
    url = f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
    try:
        with _open(urllib.request.Request(f"{url}/openapi.json"), 1.0) as answer:  # noqa: S310
            said = json.loads(answer.read(1_000_000))
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except (OSError, ValueError, HTTPException, RecursionError):
        return None
    ours = isinstance(said, dict) and isinstance(said.get("info"), dict) and said["info"].get("title") == TITLE
    return Client(url, token, user) if ours else None


def _open(request: urllib.request.Request, patience: float) -> Any:
    """Ask directly: what is on this machine is behind no proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=patience)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(100_000))["error"]["message"])
    except (OSError, ValueError, HTTPException, KeyError, TypeError):
        return f"HTTP {error.code}"


def _text(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
