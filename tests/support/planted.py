"""Faults that are planted, each with whose it is: a test plants them all, and `docs/blame.md` has its table from here.

A fault is planted in real scanners that call real loopback servers with real libraries, on a machine that is really
short of something, as far as a test can take that away.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import urllib3

from resilient_scan import Breaker, Limit, PermanentError, Policy, Quarantine, ScanContext, ScanRunner, Timeout, scanner
from resilient_scan.events import ExecutionEnded
from resilient_scan.http import Client
from resilient_scan.testing import Recorder, healthy
from tests.support.http import CHUNKED, CUT, answering, dropped, hang, raw_server, refused, say, tls_garbage

Work = Callable[[str, ScanContext], object]
TIMEOUT = 0.3

# whom a fault counts against

PROVIDERS = "the provider's breaker"
SCANNERS = "the scanner's own breaker"
NOBODYS = "nobody"


# how a scanner calls its source


def by_socket(url: str, _context: ScanContext) -> object:
    host, _, port = url.partition("//")[2].rstrip("/").partition(":")
    with socket.create_connection((host, int(port or 80)), TIMEOUT) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        if not connection.recv(1000):
            raise ConnectionResetError("dropped")
    return None


def by_urllib(url: str, _context: ScanContext) -> object:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT) as answer:
        return answer.read()


def by_httpx(url: str, _context: ScanContext) -> object:
    answer = httpx.get(url, timeout=TIMEOUT, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def by_requests(url: str, _context: ScanContext) -> object:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(url, timeout=TIMEOUT)
    answer.raise_for_status()
    return answer.json()


def by_urllib3(url: str, _context: ScanContext) -> object:
    with urllib3.PoolManager(retries=1) as pool:
        return pool.request("GET", url, timeout=TIMEOUT)


@cache
def _client(url: str, _process: int) -> Client:
    return Client(url, timeout=TIMEOUT)


def by_ours(url: str, context: ScanContext) -> object:
    return _client(url, os.getpid()).get("/", context=context).json()


LIBRARIES: tuple[Work, ...] = (by_urllib, by_httpx, by_requests, by_urllib3, by_ours)
FOREIGN = LIBRARIES[:-1]
WITH_STATUS = (by_urllib, by_httpx, by_requests)
OURS = (by_ours,)


# what the scanner's own code does


def code(work: Callable[[], object]) -> Work:
    return lambda _url, _context: work()


def no_thread() -> None:
    """Start a thread whose stack no machine has room for."""
    threading.stack_size(1 << 47)
    try:
        threading.Thread(target=int).start()
    finally:
        threading.stack_size(0)


def full_disk() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def raises(error: Callable[[], BaseException]) -> Work:
    def work(_url: str, _context: ScanContext) -> object:
        raise error()

    return work


def wrapped(number: int) -> Work:
    def work(_url: str, _context: ScanContext) -> object:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("the feed could not be read") from error

    return work


def no_list(_url: str, _context: ScanContext) -> object:
    return None  # what its scanner returns is


def slow(_url: str, context: ScanContext) -> object:
    context.sleep(60)
    return None


# what the machine lacks


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process no descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


def without_network() -> None:
    """Take this process, which has one thread, off every network, loopback included; as far as the machine allows."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000) == 0:  # CLONE_NEWUSER | CLONE_NEWNET
        return

    def unreachable(_self: socket.socket, _address: object) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def unknown(*_arguments: object, **_options: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    socket.socket.connect = unreachable  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = unknown  # type: ignore[assignment]


@contextmanager
def names(**codes: int) -> Iterator[None]:
    """Let names fail that end in one of these words: `servfail=EAI_AGAIN`."""
    real = socket.getaddrinfo

    def looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
        found = codes.get(str(host).rpartition(".")[2])
        if found is None:
            return real(host, *arguments, **options)
        raise socket.gaierror(found, "Temporary failure in name resolution" if found == socket.EAI_AGAIN else "unknown")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", looked_up)
        yield


# the faults

HERE, DESCRIPTORS, OFFLINE = "here", "without descriptors", "without a network"


def at(*urls: str) -> Callable[[], AbstractContextManager[Sequence[str]]]:
    return lambda: nullcontext(urls)


def served(server: Callable[[], AbstractContextManager[str]]) -> Callable[[], AbstractContextManager[Sequence[str]]]:
    @contextmanager
    def urls() -> Iterator[Sequence[str]]:
        with server() as url:
            yield [url]

    return urls


@dataclass(frozen=True)
class Planted:
    """One kind of fault.

    Attributes:
        says: what happens, for the documentation.
        blame: whose fault it is.
        against: whom it counts against.
        urls: yields the address of each victim; one victim's provider is not the next one's, unless `shared`.
        by: how the victims call them, each way one fleet of its own.
        shared: whether all victims are of one provider.
        others: whether scanners of other providers succeed meanwhile.
        where: in which process it is planted.
        victims: how many scanners it hits.
        before: how many runs it hits before the one that counts.
        probe: yields what the control probe calls.
        status: how the victims' scans end.
    """

    says: str
    blame: str
    against: str
    urls: Callable[[], AbstractContextManager[Sequence[str]]] = field(default=lambda: nullcontext([""]))
    by: tuple[Work, ...] = LIBRARIES
    shared: bool = False
    others: bool = True
    where: str = HERE
    victims: int = 2
    before: int = 0
    probe: Callable[[], AbstractContextManager[str | None]] = field(default=lambda: nullcontext(None))
    status: str = "error"


def _closed_port() -> AbstractContextManager[str]:
    return _bare(refused())


@contextmanager
def _bare(server: AbstractContextManager[str]) -> Iterator[str]:
    with server as url:
        yield url.partition("//")[2]


NOWHERE = at("http://one.servfail/", "http://two.servfail/", "http://three.servfail/")
UNKNOWN = at("http://one.unknown/", "http://two.unknown/", "http://three.unknown/")
ONE_ZONE = at("http://a.servfail/")
ONE_NAME = at("http://a.unknown/")

PLANTED: tuple[Planted, ...] = (
    Planted("nobody listens at the provider", "provider", PROVIDERS, served(refused), (by_socket, *LIBRARIES), True),
    Planted(
        "it drops the connection before the answer",
        "provider",
        PROVIDERS,
        served(lambda: raw_server(dropped)),
        (by_socket, *LIBRARIES),
        True,
    ),
    Planted(
        "it drops the connection in the middle of a body",
        "provider",
        PROVIDERS,
        served(lambda: raw_server(say(CUT))),
        shared=True,
    ),
    Planted(
        "it drops the connection in the middle of a chunk",
        "provider",
        PROVIDERS,
        served(lambda: raw_server(say(CHUNKED))),
        shared=True,
    ),
    Planted("it speaks no TLS", "provider", PROVIDERS, served(tls_garbage), shared=True),
    Planted(
        "its gateway answers 502, 503 or 504, through `resilient_scan.http`",
        "provider",
        PROVIDERS,
        served(lambda: answering(503)),
        OURS,
        True,
    ),
    Planted(
        "its name does not exist, and others answer", "provider", PROVIDERS, ONE_NAME, (by_socket, *LIBRARIES), True
    ),
    Planted("its zone answers SERVFAIL, and others answer", "provider", PROVIDERS, ONE_ZONE, shared=True),
    Planted(
        "the same, and nobody else is called meanwhile", "provider", PROVIDERS, ONE_ZONE, shared=True, others=False
    ),
    Planted(
        "a name does not resolve, and the control probe succeeds",
        "provider",
        PROVIDERS,
        ONE_ZONE,
        shared=True,
        others=False,
        probe=lambda: _bare(raw_server(hang)),
    ),
    Planted("it answers 404", "source", SCANNERS, served(lambda: answering(404)), WITH_STATUS),
    Planted("it answers 404, through `resilient_scan.http`", "source", NOBODYS, served(lambda: answering(404)), OURS),
    Planted("it answers 500", "source", SCANNERS, served(lambda: answering(500)), (*WITH_STATUS, by_ours)),
    Planted("it answers 503, through another library", "source", SCANNERS, served(lambda: answering(503)), WITH_STATUS),
    Planted(
        "it asks to be left alone: `RetryAfter`",
        "source",
        SCANNERS,
        served(lambda: answering(429, {"Retry-After": "1"})),
        OURS,
    ),
    Planted(
        "its answer is not JSON",
        "source",
        SCANNERS,
        served(lambda: answering(body=b"<html>")),
        (by_httpx, by_requests, by_ours),
    ),
    Planted(
        "it accepts the connection and then says nothing",
        "source",
        SCANNERS,
        served(lambda: raw_server(hang)),
        (by_socket, by_httpx, by_requests, by_ours),
    ),
    Planted(
        "the scanner says that its source refuses it: `PermanentError`",
        "source",
        NOBODYS,
        by=(raises(lambda: PermanentError("a bad key")),),
    ),
    Planted("the scanner raises `KeyError`", "scanner", SCANNERS, by=(code(lambda: {}["close"]),), victims=4),
    Planted("it raises `ValueError`", "scanner", SCANNERS, by=(code(lambda: int("x")),), victims=4),
    Planted(
        "a file of its own is missing",
        "scanner",
        SCANNERS,
        by=(code(Path("/no/such/file").read_text),),
        victims=4,
    ),
    Planted("it returns something else than candidates", "scanner", SCANNERS, by=(no_list,), victims=4),
    Planted("its time is up (`timeout.total`)", "scanner", SCANNERS, by=(slow,), status="timeout", victims=3),
    Planted(
        "it alone has no memory left, and others answer", "scanner", SCANNERS, by=(code(lambda: bytearray(1 << 62)),)
    ),
    Planted(
        "it alone has no descriptors left, five times in a row, while others succeed",
        "scanner",
        SCANNERS,
        by=(wrapped(errno.EMFILE), raises(lambda: OSError(errno.EMFILE, "Too many open files"))),
        before=4,
    ),
    Planted(
        "no file descriptor is left (EMFILE)",
        "local",
        NOBODYS,
        at("http://127.0.0.1:9/", "http://127.0.0.1:9/", "http://127.0.0.1:9/"),
        (by_socket, *LIBRARIES),
        where=DESCRIPTORS,
        victims=3,
    ),
    Planted("no file can be opened on the machine (ENFILE)", "local", NOBODYS, by=(wrapped(errno.ENFILE),), victims=3),
    Planted("no thread can be started", "local", NOBODYS, by=(code(no_thread),), victims=4),
    Planted(
        "the network is unreachable (ENETUNREACH)",
        "local",
        NOBODYS,
        at("http://127.0.0.1:9/", "http://127.0.0.1:9/", "http://127.0.0.1:9/"),
        (by_socket, *LIBRARIES),
        where=OFFLINE,
        victims=3,
    ),
    Planted("the network is down (ENETDOWN)", "local", NOBODYS, by=(wrapped(errno.ENETDOWN),), victims=3),
    Planted("a disk is full (ENOSPC)", "local", NOBODYS, by=(code(full_disk), wrapped(errno.ENOSPC)), victims=3),
    Planted(
        "names do not resolve for scanners of two providers, and none succeeds",
        "local",
        NOBODYS,
        UNKNOWN,
        (by_socket, *LIBRARIES),
        others=False,
        victims=3,
    ),
    Planted(
        "the resolver does not answer any of them (EAI_AGAIN)",
        "local",
        NOBODYS,
        NOWHERE,
        (by_socket, *LIBRARIES),
        others=False,
        victims=3,
    ),
    Planted(
        "the same on a machine without a network",
        "local",
        NOBODYS,
        NOWHERE,
        LIBRARIES,
        others=False,
        where=OFFLINE,
        victims=3,
    ),
    Planted(
        "one name does not resolve, and the control probe fails",
        "local",
        NOBODYS,
        ONE_ZONE,
        shared=True,
        others=False,
        probe=_closed_port,
    ),
    Planted(
        "scanners of two providers have no memory left, and none succeeds",
        "local",
        NOBODYS,
        by=(code(lambda: bytearray(1 << 62)),),
        others=False,
        victims=3,
    ),
)


@dataclass(frozen=True)
class Seen:
    """What became of one victim: whose fault it was said to be, and whom it counted against."""

    says: str
    by: str
    expected: list[str]
    found: list[str]


def plant(fault: Planted) -> Iterator[Seen]:
    """Plant a fault, once for each way of calling; yield what became of each victim."""
    for number, work in enumerate(fault.by):
        with fault.urls() as urls, fault.probe() as probe:
            yield from _run(fault, work, urls, probe, concurrent=number % 2 == 0 and work is not no_thread)


def _run(fault: Planted, work: Work, urls: Sequence[str], probe: str | None, *, concurrent: bool) -> Iterator[Seen]:
    recorder = Recorder()
    hit = [_victim(number, work, urls[number % len(urls)], shared=fault.shared) for number in range(fault.victims)]
    well = [healthy(f"well_{number}") for number in range(2 if fault.others else 0)]
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1), timeout=Timeout(total=2.0))
    with ScanRunner(
        [*hit, *well],
        policy=policy,
        concurrent=concurrent,
        listeners=(recorder,),
        quarantine=Quarantine(after_failures=1, max_share=1.0),
        local_probe=probe,
        max_workers=len(hit) + len(well),
    ) as runner:
        around = no_descriptors if fault.where == DESCRIPTORS else nullcontext
        for _ in range(fault.before):
            runner.run()
        with around():
            report = runner.run()
        states = {each.provider: each.state for each in runner.providers()}
        outcomes = {event.scanner: event.outcome for event in recorder.of(ExecutionEnded)}
        for victim in hit:
            result = report.results[victim.name]
            against = [
                *([SCANNERS] if runner.breaker(victim.name) == "open" else []),
                *([PROVIDERS] if "open" in states.values() else []),
            ]
            counted = outcomes[victim.name] != "local" and runner.scanners()[hit.index(victim)].state == "quarantined"
            error = result.error
            blame = "nobody" if error is None else error.blame
            outcome = "local" if fault.blame == "local" else fault.status
            yield Seen(
                fault.says,
                work.__name__,
                [fault.status, outcome, fault.blame, fault.against, str(fault.blame != "local")],
                [result.status.value, outcomes[victim.name], blame, " and ".join(against) or NOBODYS, str(counted)],
            )


def _victim(number: int, work: Work, url: str, *, shared: bool) -> Any:
    limit = Limit("acme" if shared else f"provider_{number}") if url else None
    layers = {"timeout": Timeout(total=0.1)} if work is slow else {}

    @scanner(name=f"victim_{number}", pipeline="planted", limit=limit, **layers)
    def scan(_state: dict[str, Any], context: ScanContext) -> Any:
        work(url, context)
        return 42 if work is no_list else []

    return scan
