"""Hanging and healthy scanners on one pool of connections: to free the ones must not hit the others."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from itertools import count
from typing import Any

import httpx
import pytest

from resilient_scan import Policy, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import LateCompletion
from resilient_scan.testing import FunctionScanner, Recorder
from tests.support.http import raw_server

NUMBER = 12  # of the healthy and of the hanging ones


def serve(connection: socket.socket, over: threading.Event) -> None:
    """Answer one request after another; one for /hang is answered half."""
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            piece = connection.recv(4096)
            if not piece:
                return
            buffer += piece
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        if b"/hang" in head:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            over.wait()
            return
        time.sleep(0.002)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    "seconds", [pytest.param(5.0, marks=pytest.mark.slow), pytest.param(60.0, marks=pytest.mark.long)]
)
def test_to_free_hanging_ones_hits_no_healthy_request_of_their_pool(seconds: float) -> None:
    answers: Counter[str] = Counter()
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=4 * NUMBER, max_keepalive_connections=2 * NUMBER)
    with raw_server(serve) as url, httpx.Client(base_url=url, timeout=600, limits=limits) as client:

        def made(number: int, *, hangs: bool) -> FunctionScanner:
            timeout = Timeout(total=0.25 if hangs else 30.0)

            @scanner(name=f"{'hangs' if hangs else 'well'}{number}", pipeline="p", timeout=timeout)
            def scan(_state: dict[str, Any]) -> list[Any]:
                for _ in range(5):  # its connection is another one's a moment before it hangs
                    answers[client.get("/well").text] += 1
                if hangs:
                    client.get("/hang")
                return []

            return scan

        fleet = [made(number, hangs=hangs) for number in range(NUMBER) for hangs in (True, False)]
        policy = Policy(cache=None, retry=None, breaker=None)
        recorder, numbers = Recorder(), count()
        with ScanRunner(fleet, policy=policy, listeners=[recorder], max_workers=2 * NUMBER) as runner:
            while time.monotonic() < end:
                report = runner.run({"run": next(numbers)})
                for name, result in report.results.items():
                    if name.startswith("well"):
                        assert result.status is Status.COMPLETED, result.error
        late = Counter(event.method for event in recorder.of(LateCompletion))
    assert set(answers) == {"ok"}
    assert late["sockets"] > NUMBER * seconds / 2
