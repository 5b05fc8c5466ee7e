"""A real headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.needed import binary
from tests.support.waiting import eventually

WAIT_TIMEOUT = 60.0


class Stale(AssertionError):
    """An element was found, and replaced before it was looked at."""


class Browser:
    """One window of it."""

    def __init__(self, session: str) -> None:
        self._session = session

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; return what it returns."""
        return ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def open(self, url: str) -> None:
        """Go somewhere."""
        ask("POST", f"{self._session}/url", {"url": url})

    def click(self, selector: str) -> None:
        """Click as a person does: what is hidden or covered cannot be clicked."""
        ask("POST", f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        ask("POST", f"{self._element(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        """Return what is to be read there."""
        for _ in range(5):  # the page replaces its parts by itself, just now perhaps
            with contextlib.suppress(Stale):
                return str(ask("GET", f"{self._element(selector)}/text"))
        raise AssertionError(f"{selector} never stays")

    def shown(self, selector: str) -> bool:
        """Say whether it can be seen."""
        return bool(ask("GET", f"{self._element(selector)}/displayed"))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        eventually(condition, "the page gets so far")

    def size(self, width: int, height: int) -> None:
        """Make the page so wide and so high, as on a phone."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def look(self, *, dark: bool = False, scripts: bool = True) -> None:
        """Prefer dark pages or light ones, and run their scripts or not; the window has its own size again."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.command("Emulation.clearDeviceMetricsOverride")

    def press(self, keys: str) -> None:
        """Press keys, wherever the focus is."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        ask("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def picture(self) -> bytes:
        """Return a PNG of what the window shows."""
        found = self.command("Page.captureScreenshot")
        return base64.b64decode(found["data"])

    def command(self, name: str, **parameters: Any) -> Any:
        """Give an order of the DevTools protocol."""
        return ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def console(self) -> list[str]:
        """Return what has been logged since the last time, broken rules of the security policy included."""
        return [entry["message"] for entry in ask("POST", f"{self._session}/se/log", {"type": "browser"})]

    def _element(self, selector: str) -> str:
        found = ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{next(iter(found.values()))}"


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start a browser, and end it."""
    driver, browser = binary("chromedriver"), binary("chromium")
    with subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = next(
                found[1] for line in process.stdout if (found := re.search(r"started successfully on port (\d+)", line))
            )
            options = {
                "binary": browser,
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--hide-scrollbars",
                    f"--user-data-dir={profile}",
                ],
            }
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            sessions = f"http://127.0.0.1:{port}/session"
            session = f"{sessions}/{ask('POST', sessions, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
            yield Browser(session)
            ask("DELETE", session)
        finally:
            process.terminate()


def ask(method: str, url: str, body: Any = None) -> Any:
    """Ask chromedriver."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        text = error.read().decode()[:500]
        gone = "stale element" in text or "does not belong to the document" in text
        raise (Stale if gone else AssertionError)(text) from None
