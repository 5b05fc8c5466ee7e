"""A replay keeps the scanners' own code off the network, and nobody else."""

from __future__ import annotations

import _socket
import asyncio
import http.client
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from socket import create_connection, getaddrinfo
from typing import Any

import httpx
import pytest

from resilient_scan import Cache, PermanentError, Retry, ScanContext, ScanResult, ScanRunner, Status, Timeout, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.engines import greenlets
from resilient_scan.http import Recorder, Replay
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock
from tests.support.results import only
from tests.support.waiting import eventually

FOREIGN = "198.51.100.1"  # of a net for documentation: nobody has it
NAME = "feed.example.invalid"
FOUND = [{"ticker": "AAPL"}]


def _own_address() -> str:
    """Return an address of this machine that is not loopback; without any, one that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((FOREIGN, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return FOREIGN


HOST = _own_address()


class Elsewhere:
    """A server on an address that is not loopback, and what has come to it."""

    def __init__(self, listener: socket.socket, datagrams: socket.socket) -> None:
        self.port = int(listener.getsockname()[1])
        self.address = (HOST, self.port)
        self.datagrams = datagrams.getsockname()
        self._listener, self._datagrams = listener, datagrams
        listener.setblocking(False)
        datagrams.setblocking(False)

    def reached(self) -> int:
        """Return how many connections and datagrams have come since the last call."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        with suppress(BlockingIOError):
            while True:
                self._datagrams.recv(9)
                count += 1
        return count

    def connect(self) -> None:
        """Connect to it, as the rest of a program may."""
        with socket.create_connection(self.address, 5):
            pass


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    bound = "" if HOST == FOREIGN else HOST
    with socket.create_server((bound, 0)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((bound, 0))
        yield Elsewhere(listener, datagrams)


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    (tmp_path / "manifest.json").write_text("[]")
    return Replay(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_stays_patched() -> Iterator[None]:
    before = patched()
    yield
    eventually(lambda: patched() == before, "nothing is patched any more")


def patched() -> list[Any]:
    """Return what stands where a patch may be."""
    return [
        *(vars(socket.socket).get(name) for name in ("connect", "connect_ex", "sendto", "sendmsg")),
        *(getattr(socket, name) for name in ("gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")),
        _socket.getaddrinfo,
        threading.Thread.start,
        ThreadPoolExecutor.submit,
    ]


def made(call: Callable[..., Any], **layers: Any) -> Any:
    """Make a scanner of a function of its context."""

    @scanner(name="mine", pipeline="test", **{"retry": None, "breaker": None, "cache": None, **layers})
    def scan(_state: dict[str, Any], context: ScanContext) -> Any:
        call(context)
        return FOUND

    return scan


def made_async(call: Callable[..., Any], **layers: Any) -> Any:
    @scanner(name="mine", pipeline="test", **{"retry": None, "breaker": None, "cache": None, **layers})
    async def scan(_state: dict[str, Any], context: ScanContext) -> Any:
        await call(context)
        return FOUND

    return scan


def scanned(one: Any, replay: Any, **options: Any) -> ScanResult:
    with ScanRunner([one], traffic=replay, **{"listeners": (), **options}) as runner:
        return only(runner)


def refused(result: ScanResult, what: str) -> bool:
    """Say whether a scan failed because a replay refused something."""
    assert result.status is Status.ERROR, result
    assert result.error is not None
    assert f"{what} was refused: a replay" in result.error.message, result.error
    return result.error.kind.endswith("NotRecorded")


# --------------------------------------------------------------------------------------------------- what is refused


def _udp(send: Callable[[socket.socket], object]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        send(sock)


def _tls(address: tuple[str, int]) -> None:
    with ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="x") as sock:
        sock.settimeout(0.2)
        sock.connect(address)


def _in_a_thread(call: Callable[[], object], kind: type[threading.Thread] = threading.Thread) -> None:
    errors = []

    def work() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = kind(target=work)
    thread.start()
    thread.join()
    for error in errors:
        raise error


class Subclass(threading.Thread):
    def run(self) -> None:
        super().run()


def _in_an_executor(call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(call).result()


def _dial(address: tuple[str, int]) -> None:
    create_connection(address, 0.2).close()


CONNECTIONS: dict[str, Callable[[tuple[str, int], ScanContext], object]] = {
    "connect": lambda to, _: socket.socket().connect(to),
    "connect_ex": lambda to, _: socket.socket().connect_ex(to),
    "a function imported before": lambda to, _: _dial(to),
    "TLS": lambda to, _: _tls(to),
    "http.client": lambda to, _: http.client.HTTPConnection(*to, timeout=0.2).request("GET", "/"),
    "urllib": lambda to, _: urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://{to[0]}:{to[1]}/", timeout=0.2
    ),
    "httpx": lambda to, _: httpx.get(f"http://{to[0]}:{to[1]}/", timeout=0.2, trust_env=False),
    "a thread": lambda to, _: _in_a_thread(lambda: _dial(to)),
    "a thread of a thread": lambda to, _: _in_a_thread(lambda: _in_a_thread(lambda: _dial(to))),
    "a subclass of Thread": lambda to, _: _in_a_thread(lambda: _dial(to), Subclass),
    "an executor": lambda to, _: _in_an_executor(lambda: _dial(to)),
    "context.map": lambda to, context: context.map(lambda _: _dial(to), range(3), concurrency=3),
    "context.shared": lambda to, context: context.shared("key", lambda: _dial(to)),
    "context.guarded": lambda to, context: context.guarded("feed", lambda: _dial(to)),
    "asyncio.run": lambda to, _: asyncio.run(_open(to)),
}


async def _open(to: tuple[str, int]) -> None:
    _, writer = await asyncio.wait_for(asyncio.open_connection(*to), 5)
    writer.close()


@pytest.mark.parametrize("way", CONNECTIONS)
def test_a_connection_of_a_scanners_own_is_refused(way: str, replay: Replay, elsewhere: Elsewhere) -> None:
    result = scanned(made(lambda context: CONNECTIONS[way](elsewhere.address, context)), replay)
    assert refused(result, f"a connection to {HOST}:{elsewhere.port}")
    assert str(replay.folder) in str(result.error)
    assert not elsewhere.reached()


async def _sock_connect(to: tuple[str, int]) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, to), 5)


async def _in_a_task(to: tuple[str, int]) -> None:
    await asyncio.create_task(_open(to))


COROUTINES: dict[str, Callable[[tuple[str, int]], Any]] = {
    "open_connection": _open,
    "sock_connect": _sock_connect,
    "a task": _in_a_task,
    "to_thread": lambda to: asyncio.to_thread(_dial, to),
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared loop", "own loop"])
@pytest.mark.parametrize("way", COROUTINES)
def test_a_connection_of_a_coroutine_is_refused(
    way: str, shared: bool, replay: Replay, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(greenlets, "AVAILABLE", False)
    result = scanned(made_async(lambda _: COROUTINES[way](elsewhere.address)), replay)
    assert refused(result, f"a connection to {HOST}:{elsewhere.port}")
    assert not elsewhere.reached()


def test_only_loopback_and_local_sockets_are_left(replay: Replay, tmp_path: Path) -> None:
    """Its own server may be called by any name, on IPv6 and on IPv4 within IPv6."""
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as six,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        datagrams.bind(("127.0.0.1", 0))

        def calls(_context: ScanContext) -> None:
            for host, server in [
                ("127.0.0.1", four), ("localhost", four), ("127.0.0.2", six), ("::1", six), ("::ffff:127.0.0.1", six),
                ("0.0.0.0", four),
            ]:  # fmt: skip
                socket.create_connection((host, server.getsockname()[1]), 5).close()
            with socket.socket() as sock:
                sock.connect(("", four.getsockname()[1]))
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / "socket"))
            _udp(lambda sock: sock.sendto(b"x", datagrams.getsockname()))
            _udp(lambda sock: sock.sendmsg([b"x"], [], 0, datagrams.getsockname()))
            assert socket.getaddrinfo(None, 80)
            assert socket.getaddrinfo(FOREIGN, 80)  # nobody is called for that
            assert socket.gethostbyname(FOREIGN) == FOREIGN
            assert socket.gethostbyname(socket.gethostname())
            assert socket.getnameinfo((FOREIGN, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV) == (FOREIGN, "80")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(datagrams.getsockname())
                sock.sendmsg((b"no address", b"x"))

        result = scanned(made(calls), replay)
    assert result.status is Status.COMPLETED, result.error
    assert result.suspicious is None


FOREIGN_HOSTS = [FOREIGN, "::ffff:198.51.100.1", "2001:db8::1", "fe80::1%1", "255.255.255.255", NAME]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_every_other_address_is_refused(host: str, replay: Replay) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def calls(_context: ScanContext) -> None:
        with socket.socket(family) as sock:
            sock.settimeout(0.2)
            sock.connect((host, 443))

    assert refused(scanned(made(calls), replay), f"{host.partition('%')[0]}]:443" if ":" in host else f"{host}:443")


LOOK_UPS: dict[str, Callable[[], object]] = {
    "getaddrinfo": lambda: socket.getaddrinfo(NAME, 443),
    "bytes": lambda: socket.getaddrinfo(NAME.encode(), 443),
    "imported before": lambda: getaddrinfo(NAME, 443),
    "create_connection": lambda: create_connection((NAME, 443), 0.2),
    "gethostbyname": lambda: socket.gethostbyname(NAME),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex(NAME),
    "gethostbyaddr": lambda: socket.gethostbyaddr(NAME),
    "asyncio": lambda: asyncio.run(_open((NAME, 443))),
    "httpx": lambda: httpx.get(f"http://{NAME}/", timeout=0.2, trust_env=False),
}


@pytest.mark.parametrize("way", LOOK_UPS)
def test_a_look_up_of_a_foreign_name_is_refused(way: str, replay: Replay) -> None:
    assert refused(scanned(made(lambda _: LOOK_UPS[way]()), replay), f"a look-up of {NAME}")


@pytest.mark.parametrize(
    "call", [lambda: socket.gethostbyaddr(FOREIGN), lambda: socket.getnameinfo((FOREIGN, 80), 0)], ids=["old", "new"]
)
def test_a_look_up_of_a_foreign_address_is_refused(call: Callable[[], object], replay: Replay) -> None:
    assert refused(scanned(made(lambda _: call()), replay), f"a look-up of {FOREIGN}")


@pytest.mark.parametrize("way", ["sendto", "sendto with flags", "sendmsg", "connect"])
def test_a_datagram_is_refused(way: str, replay: Replay, elsewhere: Elsewhere) -> None:
    to = elsewhere.datagrams if HOST != FOREIGN else (FOREIGN, 9)
    send: dict[str, Callable[[socket.socket], object]] = {
        "sendto": lambda sock: sock.sendto(b"x", to),
        "sendto with flags": lambda sock: sock.sendto(b"x", 0, to),
        "sendmsg": lambda sock: sock.sendmsg([b"x"], [], 0, to),
        "connect": lambda sock: sock.connect(to),
    }
    what = "a connection" if way == "connect" else "a datagram"
    assert refused(scanned(made(lambda _: _udp(send[way])), replay), f"{what} to {to[0]}:{to[1]}")
    assert not elsewhere.reached()


def test_a_failure_after_a_refusal_is_the_refusal_and_is_not_tried_again(replay: Replay) -> None:
    def calls(_context: ScanContext) -> None:
        try:
            _dial((FOREIGN, 443))
        except Exception:
            raise RuntimeError("the feed is down") from None

    result = scanned(made(calls, retry=Retry(attempts=3, base=0)), replay)
    assert refused(result, f"a connection to {FOREIGN}:443")
    assert result.error is not None
    assert result.error.where.endswith(" in calls")  # the scanner's own line
    assert result.attempts == 1


def test_the_scanner_s_own_traceback_is_kept(replay: Replay) -> None:
    raised: list[Exception] = []

    def call(_context: ScanContext) -> None:
        try:
            _dial((FOREIGN, 443))
        except Exception as error:
            raised.append(error)
            raise

    with pytest.raises(PermanentError) as caught:
        replay.guarded(call)(ScanContext("mine"))
    assert caught.value is raised[0]


def test_an_answer_in_spite_of_a_refusal_is_suspicious(replay: Replay) -> None:
    def calls(_context: ScanContext) -> None:
        with suppress(Exception):
            _dial((FOREIGN, 443))

    result = scanned(made(calls), replay)
    assert result.status is Status.COMPLETED
    assert f"{FOREIGN}:443 was refused" in str(result.suspicious)


def test_a_recorder_refuses_nothing(tmp_path: Path, elsewhere: Elsewhere) -> None:
    if HOST == FOREIGN:
        pytest.skip("this machine has loopback only")
    for traffic in (Recorder(tmp_path / "tape"), None):
        assert scanned(made(lambda _: elsewhere.connect()), traffic).status is Status.COMPLETED
        assert elsewhere.reached() == 1


# ----------------------------------------------------------------------------------------- nobody else, and no longer

reachable = pytest.mark.skipif(HOST == FOREIGN, reason="this machine has loopback only")


@reachable
def test_the_rest_of_the_program_is_left_alone(replay: Replay, elsewhere: Elsewhere) -> None:
    """Another thread, another runner, a listener on the worker's own thread, an executor that both use."""
    begun, release, heard = threading.Event(), threading.Event(), []

    def listener(_event: object) -> None:
        elsewhere.connect()
        heard.append(threading.current_thread().name)

    with ThreadPoolExecutor(1) as executor:

        def calls(_context: ScanContext) -> None:
            executor.submit(int).result()  # which starts its thread
            begun.set()
            assert release.wait(30)

        with ScanRunner([made(calls)], traffic=replay, listeners=(listener,)) as runner:
            run = threading.Thread(target=runner.run)
            run.start()
            assert begun.wait(30)
            elsewhere.reached()
            elsewhere.connect()
            executor.submit(elsewhere.connect).result()
            assert scanned(made(lambda _: elsewhere.connect()), None).status is Status.COMPLETED
            assert elsewhere.reached() == 3
            release.set()
            run.join()
    assert any(name.startswith("resilient-scan-") for name in heard)  # a worker


class StoreElsewhere(MemoryStore):
    """A store that connects to another machine whenever it is used."""

    def __init__(self, server: Elsewhere) -> None:
        super().__init__(SystemClock())
        self.server = server
        self.failures: list[BaseException] = []
        self.threads: set[str] = set()

    def _check_open(self) -> None:
        self.threads.add(threading.current_thread().name)
        try:
            self.server.connect()
        except BaseException as error:
            self.failures.append(error)
            raise


@reachable
@pytest.mark.parametrize("kind", [made, made_async])
def test_the_store_may_be_on_another_machine(kind: Callable[..., Any], replay: Replay, elsewhere: Elsewhere) -> None:
    async def call_later() -> None:
        await asyncio.to_thread(int)

    store = StoreElsewhere(elsewhere)
    one = kind(lambda _: call_later() if kind is made_async else 0, cache=Cache(ttl=60))
    with ScanRunner([one], traffic=replay, store=store, listeners=()) as runner:
        assert [only(runner, {"n": n}).status for n in (1, 2, 1)] == ["completed", "completed", "cached"]
    assert any(name.startswith("resilient-scan-") for name in store.threads)
    assert not store.failures


@reachable
def test_the_attempt_after_one_that_hangs_may_use_the_store(replay: Replay, elsewhere: Elsewhere) -> None:
    """Its context variables are copied from the one that hangs, in which the scanner's code runs."""
    begun, release = threading.Event(), threading.Event()
    results: list[ScanResult] = []

    def calls(context: ScanContext) -> None:
        if context.attempt == 1:
            begun.set()
            release.wait(30)

    store, clock = StoreElsewhere(elsewhere), FakeClock()
    layers = {"timeout": Timeout(total=20, attempt=1, max_abandoned=2), "retry": Retry(attempts=2, base=0)}
    one = made(calls, cache=Cache(ttl=60), **layers)
    with ScanRunner([one], traffic=replay, store=store, clock=clock, listeners=()) as runner:
        run = threading.Thread(target=lambda: results.append(only(runner)))
        run.start()
        assert begun.wait(30)
        clock.advance(1)
        run.join()
        release.set()
    assert (results[0].status, results[0].attempts) == (Status.COMPLETED, 2)
    assert not store.failures


def test_replays_at_once_end_one_after_the_other(replay: Replay, tmp_path: Path) -> None:
    before = patched()
    begun = [threading.Event() for _ in range(2)]
    release = [threading.Event() for _ in range(2)]
    results: list[Any] = [None, None]

    def work(number: int) -> None:
        def calls(_context: ScanContext) -> None:
            begun[number].set()
            assert release[number].wait(30)
            _dial((FOREIGN, number + 1))

        results[number] = scanned(made(calls), Replay(tmp_path))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        assert begun[number].wait(30)
    for number, thread in enumerate(threads):
        assert patched() != before
        release[number].set()
        thread.join()
        assert refused(results[number], f"{FOREIGN}:{number + 1}")
    assert patched() == before


def test_a_runner_within_a_replayed_scanner_reaches_no_network_either(replay: Replay, tmp_path: Path) -> None:
    within: list[ScanResult] = []

    def calls(_context: ScanContext) -> None:
        within.extend(scanned(made(lambda _: _dial((FOREIGN, 443))), each) for each in (Replay(tmp_path), None))

    assert scanned(made(calls), replay).suspicious is not None
    assert all(refused(result, f"{FOREIGN}:443") for result in within)


def test_a_thread_that_outlives_its_scan_is_kept_off_the_network(replay: Replay) -> None:
    before = patched()
    release, errors = threading.Event(), []

    def work() -> None:
        assert release.wait(30)
        try:
            _dial((FOREIGN, 443))
        except Exception as error:
            errors.append(str(error))

    threads: list[threading.Thread] = []

    def calls(_context: ScanContext) -> None:
        threads.append(threading.Thread(target=work))
        threads[0].start()

    assert scanned(made(calls), replay).status is Status.COMPLETED
    assert patched() != before
    release.set()
    threads[0].join()
    assert f"{FOREIGN}:443 was refused: a replay" in errors[0]
    assert patched() == before


@pytest.mark.parametrize("shared", [True, False], ids=["shared loop", "own loop"])
def test_a_blocking_call_that_outlives_its_scan_is_kept_off_the_network(
    shared: bool, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(greenlets, "AVAILABLE", False)
    before = patched()
    begun, release, errors = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert release.wait(30)
        try:
            _dial((FOREIGN, 443))
        except Exception as error:
            errors.append(str(error))

    async def calls(_context: ScanContext) -> None:
        asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.to_thread(begun.wait, 30)

    with ScanRunner([made_async(calls)], traffic=replay, listeners=()) as runner:
        assert only(runner).status is Status.COMPLETED
        release.set()
        eventually(lambda: errors)
        eventually(lambda: patched() == before, "the runner's own threads keep no patch in place")
    assert f"{FOREIGN}:443 was refused: a replay" in errors[0]


def test_a_patch_of_someone_else_made_meanwhile_is_left_in_place(replay: Replay) -> None:
    before = socket.gethostbyname
    theirs: list[Callable[[str], str]] = []

    def calls(_context: ScanContext) -> None:
        ours = socket.gethostbyname
        theirs.append(lambda name: ours(f"127.0.0.{name}"))
        socket.gethostbyname = theirs[0]

    try:
        assert scanned(made(calls), replay).status is Status.COMPLETED
        assert socket.gethostbyname is theirs[0]
        assert socket.gethostbyname("1") == "127.0.0.1"
    finally:
        socket.gethostbyname = before
