"""How soon a hung thread is free after its deadline: `uv run --group dev python -m tests.benchmarks.freeing [rounds]`.

Each client waits for a server that does not answer, until `timeout.total` of 0.3 s is up; the time from there to its
thread's return is printed, and what freed it. Other work makes everything late: the load is printed, too. No test
depends on these figures.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from resilient_scan import Policy, ScanRunner, Timeout, scanner
from resilient_scan.events import LateCompletion
from resilient_scan.testing import Recorder
from tests.support import clients
from tests.support.http import Handler, black_holes, hang, raw_server, tls_server
from tests.support.waiting import eventually

TOTAL = 0.3


@contextmanager
def nobody() -> Iterator[str]:
    with black_holes(1) as (addresses, port):
        yield f"http://{addresses[0]}:{port}"


def after_the_deadline(client: Callable[[str], Any], url: str) -> tuple[float, str]:
    """Return the seconds from a timeout to the return of the thread, and what freed it."""
    recorder = Recorder()

    @scanner(pipeline="p", timeout=Timeout(total=TOTAL))
    def calls(_state: dict[str, Any]) -> list[Any]:
        client(url)
        return []

    with ScanRunner([calls], policy=Policy(cache=None, retry=None, breaker=None), listeners=[recorder]) as runner:
        runner.run({})
        eventually(lambda: recorder.of(LateCompletion))
    late = recorder.of(LateCompletion)[0]
    return late.duration - TOTAL, late.method


def main(rounds: int) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    tls = [clients.urllib_request, clients.urllib3_pool, clients.requests_session, clients.httpx_client]
    plain = [clients.receive, clients.receive_with_a_timeout, clients.http_client, *tls, clients.mysql]
    handlers: list[Handler] = [clients.half_a_body, clients.body_without_a_length, clients.dripping_body]
    rows: list[tuple[str, Callable[[str], Any], Callable[[], AbstractContextManager[str]]]] = [
        *[(each.__name__, each, lambda: raw_server(hang)) for each in plain],
        *[(f"{each.__name__}, TLS", each, lambda: tls_server(folder, hang)) for each in tls],
        *[
            (f"{handle.__name__}, {each.__name__}", each, lambda handle=handle: raw_server(handle))
            for handle in handlers
            for each in (clients.urllib_request, clients.httpx_client)
        ],
        ("a connect whose SYN is lost", clients.receive_with_a_timeout, nobody),
        ("catch and retry, 5 connections", clients.catch_and_retry, lambda: raw_server(hang)),
    ]
    print(f"{'client':<44}{'median ms':>10}{'max ms':>8}  freed by    (load {os.getloadavg()[0]:.1f})")
    for name, client, server in rows:
        with ExitStack() as stack:
            url = stack.enter_context(server())
            took = [after_the_deadline(client, url) for _ in range(rounds)]
        late = [1000 * seconds for seconds, _ in took]
        methods = ", ".join(sorted({method for _, method in took}))
        print(f"{name:<44}{statistics.median(late):>10.1f}{max(late):>8.1f}  {methods}")
    print(f"threads now: {threading.active_count()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
