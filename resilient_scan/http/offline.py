"""Keep a scanner's own code off the network while its answers are replayed.

Only what goes through `resilient_scan.http` is recorded. A scanner that uses `requests`, say, has no recording, and
would call the live source in the middle of a replay. So while a replayed scanner's code runs, `socket` is patched:
connections, datagrams and look-ups of names that leave this machine raise `NotRecorded`.

A context variable says whose code runs. It is set around the scanner's function only, in a copy of the context
variables. The layers, listeners and stores around it run on the same threads, and do not have it:

    worker, shared event loop                           `guarded` sets it
    tasks, `context.map`, blocking calls of coroutines  run in a copy of the scanner's context variables
    `threading.Thread`                                  begins without variables, so `start` is patched to set it
    `ThreadPoolExecutor`                                may serve the whole program: `submit` is patched to set it for
                                                        the call, and not for a thread that is started meanwhile

The patches are in place while such code runs, and no longer: a count of those calls and threads is kept, also of the
ones that outlive their scan. An audit hook (`sys.addaudithook`) would see more, but can never be removed.

What does not go through the names patched here is out of reach: C libraries with sockets of their own, other programs,
connections that were open before, and methods that were bound before (`connect = sock.connect`).
"""

from __future__ import annotations

import _socket
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from resilient_scan.context import ScanContext
from resilient_scan.http.errors import NotRecorded

C = TypeVar("C", bound=ScanContext)
T = TypeVar("T")

_LOCAL_FAMILIES: Final = {getattr(socket, name, None) for name in ("AF_UNIX", "AF_NETLINK")}
_OUR_THREADS: Final = "resilient-scan"  # how the names of a runner's threads begin: they serve others, too


class _Attempt:
    """An attempt of a replayed scanner: what it must not reach, and the first thing that it tried to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.refused: str | None = None

    def refuse(self, what: str) -> NotRecorded:
        """Return the error for a step that would leave this machine."""
        message = (
            f"{what} was refused: a replay asks no network, and {self._folder} holds only what went through "
            "resilient_scan.http; make this call through it and record again, or leave this scanner out"
        )
        self.refused = self.refused or message
        return NotRecorded(message)


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)


def guarded(folder: Path, call: Callable[[C], T]) -> Callable[[C], T]:
    """Return what makes an attempt of a scanner without the network.

    An attempt that fails after a refusal fails with that refusal, whatever the scanner made of it. An answer that comes
    all the same is marked as suspicious: it may lack what the scanner did not get.

    Args:
        folder: the recording, for messages.
        call: runs the scanner's code.
    """

    def offline(context: C) -> T:
        attempt = _Attempt(folder)
        try:
            answer = _as_part_of(attempt, call, context)
        except Exception as error:
            if attempt.refused is None or isinstance(error, NotRecorded):
                raise
            raise NotRecorded(attempt.refused).with_traceback(error.__traceback__) from error
        if attempt.refused is not None and context.doubted is None:
            context.doubt(attempt.refused)
        return answer

    return offline


def carried(call: Callable[[], T]) -> Callable[[], T]:
    """Return a call for another thread, which may go on when the attempt that makes it has ended."""
    attempt = _attempt.get()
    return call if attempt is None else partial(_as_part_of, attempt, call)


def _as_part_of(attempt: _Attempt | None, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call as part of an attempt, or of none.

    In a copy of the context variables: those of an execution are copied for its successor while an abandoned attempt
    is under way. Were the variable set there, the successor's layers would run as the scanner's code, and be refused
    their store.
    """
    return copy_context().run(_call_as_part_of, attempt, call, args, options)


def _call_as_part_of(
    attempt: _Attempt | None, call: Callable[..., T], args: tuple[Any, ...], options: dict[str, Any]
) -> T:
    _attempt.set(attempt)
    if attempt is None:
        return call(*args, **options)
    _patches.enter()
    try:
        return call(*args, **options)
    finally:
        _patches.leave()


# what is refused


def _connecting(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(sock: socket.socket, address: Any, /) -> Any:
        attempt = _attempt.get()
        if attempt is not None and _leaves_machine(sock, address):
            sock.close()  # its owner may do so for an OSError only, as `socket.create_connection` does
            raise attempt.refuse(f"a connection to {_shown(address)}")
        return original(sock, address)

    return connect


def _sending(original: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    """Patch a method whose last argument is an address, if it has so many."""

    def send(sock: socket.socket, *args: Any) -> Any:
        attempt = _attempt.get()
        if attempt is not None and len(args) >= arguments and _leaves_machine(sock, args[-1]):
            raise attempt.refuse(f"a datagram to {_shown(args[-1])}")
        return original(sock, *args)

    return send


def _looking_up(original: Callable[..., Any]) -> Callable[..., Any]:
    """Patch a function that looks up the address of a name; an address needs no look-up."""

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        attempt = _attempt.get()
        if attempt is not None and not (_is_loopback(host) or _is_address(host) or _text(host) == socket.gethostname()):
            raise attempt.refuse(f"a look-up of {_text(host)}")
        return original(host, *args, **options)

    return look_up


def _looking_back(original: Callable[..., Any]) -> Callable[..., Any]:
    """Patch a function that looks up the name of an address."""

    def look_up(host: Any, *args: Any) -> Any:
        attempt = _attempt.get()
        name = host[0] if isinstance(host, tuple) and host else host
        numeric = bool(args) and args[0] & socket.NI_NUMERICHOST
        if attempt is not None and not (numeric or _is_loopback(name) or _text(name) == socket.gethostname()):
            raise attempt.refuse(f"a look-up of {_text(name)}")
        return original(host, *args)

    return look_up


def _leaves_machine(sock: socket.socket, address: Any) -> bool:
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return sock.family not in _LOCAL_FAMILIES
    return isinstance(address, tuple) and bool(address) and not _is_loopback(address[0])


def _is_loopback(host: Any) -> bool:
    """Say whether a host is this machine by loopback; a connection to the unspecified address goes there, too."""
    text = _text(host)
    if text in {"", "localhost"}:
        return True
    if not _is_address(host):
        return False
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_unspecified


def _is_address(host: Any) -> bool:
    try:
        return bool(ip_address(_text(host)))
    except ValueError:
        return False


def _text(host: Any) -> str:
    text = host.decode(errors="replace") if isinstance(host, bytes | bytearray) else str(host or "")
    return text.partition("%")[0].rstrip(".").lower()


def _shown(address: Any) -> str:
    if not isinstance(address, tuple) or len(address) < 2:
        return str(address)
    host = _text(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


# what the scanner starts


def _starting(original: Callable[..., None]) -> Callable[..., None]:
    def start(thread: threading.Thread) -> None:
        attempt = _attempt.get()
        if attempt is None:
            original(thread)
            return
        if thread.name.startswith(_OUR_THREADS):
            _as_part_of(None, original, thread)
            return
        run = thread.run

        def run_as_part() -> None:
            del thread.run  # else the thread and this function keep each other alive
            _as_part_of(attempt, run)

        thread.run = run_as_part  # type: ignore[method-assign]
        original(thread)

    return start


def _submitting(original: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    def submit(pool: ThreadPoolExecutor, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        attempt = _attempt.get()
        if attempt is None:
            return original(pool, call, *args, **options)
        return _as_part_of(None, original, pool, partial(_as_part_of, attempt, call), *args, **options)

    return submit


# the patches

_MISSING: Final = object()
_PATCHED: Final[tuple[tuple[Any, str, Callable[[Any], Callable[..., Any]]], ...]] = (
    (socket.socket, "connect", _connecting),
    (socket.socket, "connect_ex", _connecting),
    (socket.socket, "sendto", partial(_sending, arguments=2)),
    (socket.socket, "sendmsg", partial(_sending, arguments=4)),
    (
        _socket,
        "getaddrinfo",
        _looking_up,
    ),  # called by `socket.getaddrinfo`, of which there may be references
    (socket, "gethostbyname", _looking_up),
    (socket, "gethostbyname_ex", _looking_up),
    (socket, "gethostbyaddr", _looking_back),
    (socket, "getnameinfo", _looking_back),
    (threading.Thread, "start", _starting),
    (ThreadPoolExecutor, "submit", _submitting),
)


class _Patches:
    """The patches, in place while anybody needs them.

    Where someone else patches the same name meanwhile and keeps ours as the original, ours stays beneath theirs. It
    passes everything on then: no code runs as a scanner's.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # never held while foreign code runs
        self._needed = 0
        self._applied: list[tuple[Any, str, Any, Any]] = []

    def enter(self) -> None:
        """Put them in place, unless they are."""
        with self.lock:
            self._needed += 1
            if self._needed == 1:
                for owner, name, patch in _PATCHED:
                    if (original := getattr(owner, name, None)) is None:  # not on this system
                        continue
                    own, patched = vars(owner).get(name, _MISSING), patch(original)
                    setattr(owner, name, patched)
                    self._applied.append((owner, name, own, patched))

    def leave(self) -> None:
        """Take them away, unless somebody else needs them."""
        with self.lock:
            self._needed -= 1
            if self._needed:
                return
            for owner, name, own, patched in self._applied:
                if vars(owner).get(name) is not patched:
                    continue
                if own is _MISSING:  # inherited
                    delattr(owner, name)
                else:
                    setattr(owner, name, own)
            self._applied.clear()


_patches: Final = _Patches()
if hasattr(os, "register_at_fork"):  # a child must not find the lock held for ever
    os.register_at_fork(
        before=_patches.lock.acquire,
        after_in_parent=_patches.lock.release,
        after_in_child=_patches.lock.release,
    )
