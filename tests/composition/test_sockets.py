"""A thread that waits for a connection beyond its deadline comes back: the connection is shut down under it."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from resilient_scan import Breaker, Cache, Candidate, CircuitOpen, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.core.hangs import LateEnd
from resilient_scan.core.pool import ThreadPool
from resilient_scan.engines import sockets
from resilient_scan.engines.sockets import LOOK_INTERVAL, MAX_SHUTDOWNS, Release
from resilient_scan.events import LateCompletion, SuspiciousResult, ThreadAbandoned
from resilient_scan.testing import Recorder
from tests.support.clients import (
    FOREVER,
    address,
    body_without_a_length,
    catch_and_retry,
    dripping_body,
    half_a_body,
    http_client,
    httpx_client,
    mysql,
    receive,
    receive_with_a_timeout,
    requests_session,
    urllib3_pool,
    urllib_request,
)
from tests.support.fixtures import Bare, Fleet
from tests.support.http import black_holes, hang, raw_server, read_request, tls_server
from tests.support.waiting import eventually

SHORT = Timeout(total=0.3)
Freed = Callable[[Callable[[str], Any], str], LateCompletion]


@pytest.fixture
def freed(fleet: Fleet, bare: Bare) -> Freed:
    """Return a function that times a call out and returns the event of its thread's return."""

    def run(call: Callable[[str], Any], url: str) -> LateCompletion:
        recorder = Recorder()

        @scanner(pipeline="p")
        def calls(_state: dict[str, Any]) -> list[Any]:
            call(url)
            return [{"ticker": "AAPL"}]

        runner = fleet(calls, policy=bare(timeout=SHORT), listeners=[recorder])
        assert runner.run({}).results["calls"].status is Status.TIMEOUT
        eventually(lambda: recorder.of(LateCompletion), "the thread's return")
        assert runner.abandoned() == []
        assert [each.method for each in runner.abandoned(returned=True)] == [recorder.of(LateCompletion)[0].method]
        assert f"\n    {recorder.of(LateCompletion)[0].method}: " in str(runner.explain("calls"))
        return recorder.of(LateCompletion)[0]

    return run


CLIENTS = [receive, receive_with_a_timeout, http_client, urllib_request, urllib3_pool, requests_session, httpx_client]


@pytest.mark.parametrize("client", [*CLIENTS, mysql, catch_and_retry], ids=lambda client: client.__name__)
def test_a_client_that_waits_for_an_answer_is_freed(client: Callable[[str], Any], freed: Freed) -> None:
    with raw_server(hang) as url:
        assert freed(client, url).method == "sockets"


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize(
    "client", [urllib_request, urllib3_pool, requests_session, httpx_client], ids=lambda client: client.__name__
)
def test_a_client_behind_tls_is_freed(client: Callable[[str], Any], freed: Freed, tmp_path: Path) -> None:
    with tls_server(tmp_path, hang) as url:
        assert freed(client, url).method == "sockets"


@pytest.mark.parametrize("client", [http_client, requests_session, httpx_client], ids=lambda client: client.__name__)
def test_a_handshake_that_is_not_answered_is_freed(client: Callable[[str], Any], freed: Freed) -> None:
    with raw_server(hang) as url:
        assert freed(client, url.replace("http:", "https:") if client is not http_client else url).method == "sockets"


@pytest.mark.parametrize("handle", [half_a_body, body_without_a_length, dripping_body], ids=lambda each: each.__name__)
@pytest.mark.parametrize("client", [urllib_request, requests_session, httpx_client], ids=lambda each: each.__name__)
def test_a_body_that_does_not_end_is_freed(client: Callable[[str], Any], handle: Any, freed: Freed) -> None:
    with raw_server(handle) as url:
        late = freed(client, url)
    assert (late.method, late.outcome) == ("sockets", "error")


def test_a_connection_that_is_not_accepted_is_freed(freed: Freed) -> None:
    with black_holes(1) as (addresses, port):
        assert freed(receive_with_a_timeout, f"http://{addresses[0]}:{port}").method == "sockets"


def test_what_a_shut_connection_gave_is_no_answer(fleet: Fleet, bare: Bare) -> None:
    """A body without a length looks complete where it was cut off: `[1, 2, 3` and `["AAPL"]` both "succeed"."""
    recorder, read = Recorder(), []

    @scanner(pipeline="p")
    def reads(_state: dict[str, Any]) -> list[Any]:
        read.append(json.loads(urllib.request.urlopen(url, timeout=FOREVER).read()))
        return [Candidate(ticker, "reads", "listed") for ticker in read[-1]]

    with raw_server(body_without_a_length) as url:
        runner = fleet(reads, policy=bare(timeout=SHORT, cache=Cache(ttl=60, stale_if_error=60)), listeners=[recorder])
        assert runner.run({}).results["reads"].status is Status.TIMEOUT
        eventually(lambda: recorder.of(LateCompletion), "the thread's return")
        assert read == [["AAPL"]]  # it did come back with what looks like an answer
        assert runner.run({}).results["reads"].status is Status.TIMEOUT  # and neither fresh nor stale is in the cache
    assert recorder.of(SuspiciousResult) == []
    assert {late.outcome for late in recorder.of(LateCompletion)} == {"error"}


def test_a_shared_value_from_a_shut_connection_is_nobody_elses(fleet: Fleet, bare: Bare) -> None:
    entered = threading.Event()

    def load() -> bytes:
        entered.set()
        return bytes(urllib.request.urlopen(url, timeout=FOREVER).read())

    @scanner(pipeline="p", timeout=SHORT)
    def loads(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        return [Candidate("AAPL", "loads", str(context.shared("listing", load)))]

    @scanner(pipeline="p", timeout=Timeout(total=60))
    def waits(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        entered.wait(10)
        return [Candidate("AAPL", "waits", str(context.shared("listing", lambda: b"whole")))]

    with raw_server(body_without_a_length) as url:
        report = fleet(loads, waits, policy=bare(), max_workers=2).run({})
    assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]
    assert report.results["waits"].candidates[0].context == "b'whole'"


@pytest.mark.parametrize("by", ["a thread", "a coroutine"])
def test_threads_that_help_with_a_map_come_back_too(by: str, fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()

    @scanner(pipeline="p")
    def maps(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.map(receive, [url] * 6, concurrency=3)
        return []

    @scanner(name="maps", pipeline="p")
    async def maps_on_the_loop(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.map(receive, [url] * 6, concurrency=3)
        return []

    with raw_server(hang) as url:
        chosen = maps if by == "a thread" else maps_on_the_loop
        runner = fleet(chosen, policy=bare(timeout=SHORT), listeners=[recorder])
        assert runner.run({}).results["maps"].status is Status.TIMEOUT
        if by == "a thread":
            eventually(lambda: recorder.of(LateCompletion), "the thread's return")
            assert recorder.of(LateCompletion)[0].method == "sockets"
        eventually(lambda: runner.abandoned() == [], "the thread's return")


def test_what_a_coroutines_thread_loads_from_a_shut_connection_is_nobody_elses(fleet: Fleet, bare: Bare) -> None:
    returned = threading.Event()

    def load() -> bytes:
        return bytes(urllib.request.urlopen(url, timeout=FOREVER).read())

    def call(context: ScanContext) -> None:
        try:
            context.shared("listing", load)
        finally:
            returned.set()

    @scanner(pipeline="p", timeout=SHORT)
    async def loads(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        await asyncio.to_thread(call, context)
        return []

    @scanner(pipeline="p", timeout=Timeout(total=60))
    def asks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        return [Candidate("AAPL", "asks", str(context.shared("listing", lambda: b"whole")))]

    with raw_server(body_without_a_length) as url:
        runner = fleet(loads, asks, policy=bare())
        assert runner.run({}, only=["loads"]).results["loads"].status is Status.TIMEOUT
        assert returned.wait(10)
        assert runner.run({}, only=["asks"]).results["asks"].candidates[0].context == "b'whole'"


def test_a_source_whose_connection_was_shut_down_has_not_succeeded(fleet: Fleet, bare: Bare) -> None:
    """Nor has one after it failed: nobody knows which of the two answers is whole."""
    came_back = threading.Event()

    @scanner(pipeline="p", timeout=SHORT)
    def reads(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        with suppress(CircuitOpen):
            context.guarded("hangs", lambda: urllib.request.urlopen(url, timeout=FOREVER).read())
        context.guarded("sound", lambda: None)
        came_back.set()
        return []

    with raw_server(body_without_a_length) as url:
        runner = fleet(reads, policy=bare(breaker=Breaker(failures=1)))
        runner.run({})
        assert came_back.wait(10)
        sources = runner._fleet.stacks["reads"].sources
        assert {name: breaker.state for name, breaker in sources._breakers.items()} == {
            "hangs": "open",
            "sound": "closed",
        }


def test_a_thread_that_waits_for_something_else_is_left_alone(fleet: Fleet, release: threading.Event) -> None:
    """Its connection may be at work for another scanner: it is among this one's variables, and both are in a pool."""
    begun, answered = threading.Event(), []

    with raw_server(answers_late(release)) as url, socket.create_connection(address(url)) as shared:

        @scanner(pipeline="p", timeout=SHORT)
        def waits_for_its_turn(_state: dict[str, Any]) -> list[Any]:
            connection = shared  # noqa: F841 - a variable of the frame that waits
            release.wait()
            return []

        @scanner(pipeline="p", timeout=Timeout(total=60))
        def uses_it(_state: dict[str, Any]) -> list[Any]:
            begun.set()
            answered.append(shared.recv(100))
            return []

        runner = fleet(waits_for_its_turn, uses_it, max_workers=2)
        for result in runner.stream({}):
            if result.scanner == "waits_for_its_turn":
                assert result.status is Status.TIMEOUT
                eventually(lambda: len(runner.abandoned()) == 1)
                threading.Event().wait(0.15)  # past the last look
                release.set()
    assert answered == [b"late"]


def answers_late(when: threading.Event) -> Any:
    def handle(connection: socket.socket, over: threading.Event) -> None:
        when.wait(60)
        connection.sendall(b"late")
        over.wait()

    return handle


def test_a_scanner_can_be_left_to_hang(fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()

    @scanner(pipeline="p", free_sockets=False)
    def hangs(_state: dict[str, Any]) -> list[Any]:
        receive(url)
        return []

    with raw_server(hang) as url:
        runner = fleet(hangs, policy=bare(timeout=SHORT), listeners=[recorder])
        assert runner.run({}).results["hangs"].status is Status.TIMEOUT
        eventually(lambda: recorder.of(ThreadAbandoned), "the report of its thread")
        threading.Event().wait(0.15)
        assert len(runner.abandoned()) == 1
    eventually(lambda: recorder.of(LateCompletion), "the thread's return")
    assert recorder.of(LateCompletion)[0].method == "abandoned"


def test_a_connection_of_http2_is_left_alone(fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()

    @scanner(pipeline="p")
    def multiplexed(_state: dict[str, Any]) -> list[Any]:
        with httpx.Client(http1=False, http2=True, timeout=FOREVER) as client:
            client.get(url)
        return []

    with raw_server(hang) as url:
        runner = fleet(multiplexed, policy=bare(timeout=SHORT), listeners=[recorder])
        assert runner.run({}).results["multiplexed"].status is Status.TIMEOUT
        eventually(lambda: recorder.of(ThreadAbandoned), "the report of its thread")
        threading.Event().wait(0.15)
        assert len(runner.abandoned()) == 1


def test_a_client_that_never_gives_up_is_left_in_the_end(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    recorder, connections = Recorder(), []

    @scanner(pipeline="p")
    def stubborn(_state: dict[str, Any]) -> list[Any]:
        while not release.is_set():
            connections.append(1)
            with suppress(OSError):
                receive_with_a_timeout(url)
        return []

    with raw_server(hang) as url:
        runner = fleet(stubborn, policy=bare(timeout=SHORT), listeners=[recorder])
        assert runner.run({}).results["stubborn"].status is Status.TIMEOUT
        eventually(lambda: recorder.of(ThreadAbandoned), "the report of its thread")
        threading.Event().wait(0.1)
        assert 2 <= len(connections) <= MAX_SHUTDOWNS + 1
        release.set()
    eventually(lambda: recorder.of(LateCompletion), "the thread's return")


def test_a_session_can_be_used_afterwards(fleet: Fleet, bare: Bare) -> None:
    requests_made = []

    def first_hangs(connection: socket.socket, over: threading.Event) -> None:
        requests_made.append(1)
        if len(requests_made) == 1:
            over.wait()
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with raw_server(first_hangs) as url, httpx.Client(timeout=FOREVER) as client, requests.Session() as session:

        @scanner(pipeline="p")
        def reads(_state: dict[str, Any]) -> list[Any]:
            client.get(url)
            session.get(url, timeout=FOREVER)
            return []

        runner = fleet(reads, policy=bare(timeout=SHORT))
        assert runner.run({}).results["reads"].status is Status.TIMEOUT
        eventually(lambda: runner.abandoned() == [])
        assert runner.run({}).results["reads"].status is Status.COMPLETED


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Fail if a test leaves descriptors open that it did not find open."""
    before = set(Path("/proc/self/fd").iterdir())
    yield
    eventually(lambda: len(set(Path("/proc/self/fd").iterdir())) <= len(before), "the descriptors closed")


@pytest.mark.usefixtures("descriptors")
def test_no_descriptor_is_left(freed: Freed) -> None:
    with raw_server(hang) as url:
        for _ in range(5):
            freed(receive, url)


def test_a_thread_is_freed_after_its_runner_was_closed(bare: Bare) -> None:
    """At once after the run, which ends at the deadline: before the first look."""
    came_back = threading.Event()

    @scanner(pipeline="p", timeout=SHORT)
    def calls(_state: dict[str, Any]) -> list[Any]:
        try:
            receive(url)
        finally:
            came_back.set()
        return []

    with raw_server(hang) as url:
        with ScanRunner([calls], policy=bare(), listeners=()) as runner:
            runner.run({})
        assert came_back.wait(10)


@pytest.mark.usefixtures("descriptors")
def test_no_descriptor_is_left_when_the_runner_is_closed_in_between(bare: Bare) -> None:
    @scanner(pipeline="p", timeout=SHORT)
    def calls(_state: dict[str, Any]) -> list[Any]:
        receive(url)
        return []

    with raw_server(hang) as url:
        for pause in (0.0, 0.004, 0.006, 0.01):
            with ScanRunner([calls], policy=bare(), listeners=()) as runner:
                runner.run({})
                time.sleep(pause)


class Job:
    """Work for a pool: waits for a connection beyond its time, and then hands over, which takes a while."""

    name = "job"
    frees_sockets = True
    helpers: Sequence[threading.Thread] = ()
    limit = 0.05

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.begun, self.through = threading.Event(), False
        self.cut = 0
        self.reported: list[str] = []

    def start(self, now: float, _place: Any, /) -> float:
        return now + self.limit

    def run(self) -> None:
        self.begun.set()
        with suppress(OSError):
            self.work()

    def mark_passed(self) -> None: ...

    def cut_off(self) -> None:
        self.cut += 1

    def abandon(self, _thread: str, _age: float, _hint: str, /) -> None:
        self.reported.append("abandoned")

    def late(self, end: LateEnd, /) -> None:
        self.reported.append("sockets" if end.by_sockets else "late")

    def expire(self, _thread: str, _age: float, _lateness: float, /) -> None: ...

    def returned(self) -> None: ...

    def refuse(self, _reason: str, /) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    made = ThreadPool(1)
    yield made
    made.shutdown(wait=False)


def test_a_thread_that_hands_over_is_left_alone(pool: ThreadPool) -> None:
    """It waits for a store to take a late answer, on a connection of the store's."""
    with raw_server(hang) as url, socket.create_connection(address(url)) as store:
        job = Job(lambda: store.recv(1))
        job.through = True
        pool.execute(job)
        eventually(lambda: job.reported)
        threading.Event().wait(0.1)
        assert (job.reported, job.cut) == (["abandoned"], 0)
        store.shutdown(socket.SHUT_RDWR)
        eventually(lambda: job.reported == ["abandoned", "late"])


def test_nothing_of_a_freed_thread_is_kept_until_a_garbage_collection(pool: ThreadPool) -> None:
    gc.disable()
    try:
        with raw_server(hang) as url:
            jobs = [Job(lambda: receive(url))]
            pool.execute(jobs[0])
            eventually(lambda: jobs[0].reported == ["sockets"])
        this = weakref.ref(jobs.pop())
        eventually(lambda: this() is None, "the job's end")
    finally:
        gc.enable()


def test_a_pool_that_ends_while_a_connection_is_looked_at_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread came back by itself after the look: the server must hear of it when its owner hangs up."""
    step, looked = Release.step, threading.Event()

    def look(release: Release, now: float) -> float | None:
        again = step(release, now)
        if release.under_way:
            looked.set()
        return again

    monkeypatch.setattr(sockets, "LOOK_INTERVAL", 60.0)
    monkeypatch.setattr(Release, "step", look)
    left, right = connected()
    pool, job = ThreadPool(1, max_abandoned=0), Job(lambda: left.recv(1))
    with left, right:
        pool.execute(job)
        assert job.begun.wait(10)
        pool.shutdown(wait=False)
        assert looked.wait(10)
        right.send(b"x")
        eventually(lambda: not pool._workers)
        left.close()
        right.settimeout(10)
        assert right.recv(1) == b""


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


def test_hung_threads_by_the_dozen_hold_up_no_deadline(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    def look(_self: Any, now: float) -> float:
        time.sleep(0.02)
        looks.append(now)
        return now + LOOK_INTERVAL

    looks: list[float] = []
    monkeypatch.setattr(Release, "step", look)
    pool, acted = ThreadPool(50, max_abandoned=0), []
    for _ in range(50):  # all their looks together take a second
        pool.execute(Job(release.wait))
    eventually(lambda: looks)
    pool.at(time.monotonic() + 0.01, lambda: acted.append(len(looks)))
    eventually(lambda: acted)
    assert acted[0] < 10
    pool.shutdown(wait=False)
