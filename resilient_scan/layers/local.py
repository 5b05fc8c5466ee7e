"""Our own fault: what fails because of this machine counts against no scanner and no provider.

    an attempt fails by ... ---- certain (no descriptor is left) -------------------------------> local
                            `--- a name does not resolve, no memory: it is a suspect
                                     |
                                     |   a scanner answers meanwhile -------------------------------> not local
                                     |   the control address cannot be reached either --------------> local
                                     |   nobody can testify any more, or 5 s have passed:
                                     |        scanners of two providers have failed likewise -------> local
                                     `        else -------------------------------------------------> not local

A suspect is a `Fault` that waits: its votes, and the report of its execution, are calls that are made once it is
decided (`then`). Nobody is held up by that. The worker goes on, the votes come a moment later, and the run's thread,
which waits for other scans anyway, looks from time to time (`look`).

*Nobody can testify any more* when every run under way has a result for each of its scans, apart from those that wait
here and those of the same provider. So a run is never longer for it, and where only one scanner runs, or those of one
provider, the decision comes at once.

A success costs one store, of its instant (`answered`); all else happens after a failure.

Two rules keep a scanner from hiding behind the machine. Five such executions in a row, while others succeed, are its
own doing: it is the one that leaks descriptors. And after 15 minutes without a success its failures are its own in any
case.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final, Protocol

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError
from resilient_scan.layers.blame import CERTAIN
from resilient_scan.results import LOCAL, SCANNER

TOGETHER: Final = 5.0  # seconds within which scanners of two providers have to fail likewise
EXCUSED: Final = 900.0  # seconds without a success after which a scanner's local faults are its own
LEAKING: Final = 5  # executions in a row that end in a local fault while others succeed
PROBE_TIMEOUT: Final = 2.0  # seconds for the control address
PROBE_EVERY: Final = 3.0  # seconds for which what a probe has found holds
MAX_SUSPECTS: Final = 1000  # that wait at a time; a fleet's retries may bring many, and they are all decided alike


class Fault:
    """One failed attempt that this machine may be to blame for.

    Attributes:
        kind: what it lacks; see `blame`.
        scanner, party: whose attempt, and the scanner's provider, or else the scanner.
        at: when it failed, monotonic.
        local: whether it is this machine's fault; `None`: that is not known yet.
        own: whether it is the scanner's, although it looks like the machine's.
        alone: whether no scanner of another party has failed likewise so far.
        excused: whether the provider's breaker has taken it over, once it is decided.
    """

    __slots__ = ("_calling", "_lock", "_waiting", "alone", "at", "excused", "kind", "local", "own", "party", "scanner")

    def __init__(self, kind: str, scanner: str, party: str, at: float) -> None:
        self.kind = kind
        self.scanner = scanner
        self.party = party
        self.at = at
        self.local: bool | None = None
        self.own = False
        self.alone = True
        self.excused = False
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._calling = False

    @property
    def done(self) -> bool:
        """Whether it is decided, and everything that waited for that has been called."""
        with self._lock:
            return self.local is not None and not self._waiting and not self._calling

    def blame(self, otherwise: str) -> str:
        """Return whose fault it is, as far as it is known; `otherwise`: if not this machine's."""
        return LOCAL if self.local else SCANNER if self.own else otherwise

    def then(self, call: Callable[[], None]) -> None:
        """Call `call` once it is decided: on the thread that decides, under no lock."""
        with self._lock:
            self._waiting.append(call)
        if self.local is not None:  # decided in this very moment: that thread may have missed the call
            self.settle()

    def settle(self) -> None:
        """Call what waits, in order, one at a time, whichever threads come here.

        The order matters: the scanner's own breaker votes only if its provider's, which comes first, has not taken the
        failure over. A thread that finds another one at it leaves the rest to that one.
        """
        while True:
            with self._lock:
                if self._calling or not self._waiting:
                    return
                self._calling, call = True, self._waiting.pop(0)
            try:
                call()
            finally:
                with self._lock:
                    self._calling = False


def _are_alike(one: Fault, other: Fault) -> bool:
    return one.kind == other.kind and abs(one.at - other.at) <= TOGETHER


class Witness(Protocol):
    """A run under way."""

    def witnesses(self) -> Iterator[str]:
        """Yield the party of each scan that has no result, and does not wait for a decision here."""


class ControlProbe:
    """Says whether an address that should always be there can be reached; asked at most once every few seconds.

    Args:
        address: `host:port`; something near, which depends on nothing but the network.
    """

    def __init__(self, address: str) -> None:
        self.host, self.port = parse_address("local_probe", address)
        self._lock = threading.Lock()
        self._began = -math.inf
        self._reached: bool | None = None
        self._thread: threading.Thread | None = None

    def failed(self) -> bool | None:
        """Return whether it cannot be reached; `None`: that is not known yet. The first to ask starts a thread."""
        now = monotonic()  # real time, as sockets have it
        with self._lock:
            under_way = self._thread is not None and self._thread.is_alive() and self._reached is None
            if under_way:  # a look-up of the name has no timeout, and may hang for long
                return True if now - self._began > PROBE_TIMEOUT else None
            if now - self._began < PROBE_EVERY:
                return None if self._reached is None else not self._reached
            self._began, self._reached = now, None
            self._thread = threading.Thread(target=self._probe, name="resilient-scan-probe", daemon=True)
            thread = self._thread
        try:
            thread.start()
        except RuntimeError:  # no thread: nothing is known of the network
            self._reached = True
        return None

    def _probe(self) -> None:
        import socket  # noqa: PLC0415 - few fleets have a probe, and it is slow to import

        try:
            socket.create_connection((self.host, self.port), PROBE_TIMEOUT).close()
        except (OSError, MemoryError, UnicodeError):
            self._reached = False
        else:
            self._reached = True


def parse_address(option: str, address: object) -> tuple[str, int]:
    """Return host and port of the `host:port` that an option gives.

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host.strip("[]") or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigError(f'{option} must be a host and a port such as "192.0.2.1:53", got {address!r}')
    return host.strip("[]"), int(port)


class _Streak:
    """A scanner's local faults since its last success: when the first one was, and how many executions they ended."""

    __slots__ = ("executions", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.executions = 0


class LocalFaults:
    """What one runner knows of its machine's faults; safe to use from any thread.

    Args:
        clock: where time comes from.
        names: of the scanners.
        probe: returns whether the control address cannot be reached, as `ControlProbe.failed`; `None`: there is none.

    Attributes:
        answered: when an execution of each scanner last succeeded, monotonic; each success writes it. An array, because
            what all scanners write all the time is to fill as little of a processor's cache as it can.
        places: by scanner, where that is.
        runs: those under way.
        decisions: how many there were; so a run's thread need not look at all that wait.
    """

    def __init__(self, clock: Clock, names: Iterable[str], probe: Callable[[], bool | None] | None = None) -> None:
        self.places: dict[str, int] = {name: place for place, name in enumerate(names)}
        self.answered: array[float] = array("d", [-math.inf]) * len(self.places)
        self.runs: set[Witness] = set()
        self.decisions: int = 0
        self._clock = clock
        self._probe = probe
        self._lock = threading.Lock()
        self._suspects: list[Fault] = []  # not decided
        self._hits: deque[Fault] = deque(maxlen=MAX_SUSPECTS)  # suspects of the last seconds, decided or not
        self._alone: list[Fault] = []  # those of them that nobody of another party shares
        self._streaks: dict[str, _Streak] = {}
        self._seen: dict[str, float] = {}  # by kind, when an execution last ended by it

    # what happens

    def judge(self, scanner: str, party: str, kind: str) -> Fault | None:
        """Return the fault that an attempt has failed by; `None`: it is the scanner's or its provider's.

        Args:
            scanner: whose attempt it was.
            party: its provider, or the scanner again.
            kind: what the machine may lack, by `blame.local_kind`.
        """
        fault = Fault(kind, scanner, party, self._clock.monotonic())
        with self._lock:
            fault.own = self._is_own(scanner, fault.at)
            if kind in CERTAIN:
                fault.local = not fault.own
                if fault.local:
                    self._excuse(fault)
                return fault
            if fault.own:
                return None
            self._meet(fault)
            self._suspects.append(fault)
            self._hits.append(fault)
            full = len(self._suspects) > MAX_SUSPECTS
        self.look(full=full)
        return fault

    def _meet(self, fault: Fault) -> None:
        """Note who is not alone any more, now that one more has failed. Under the lock."""
        others = [hit for hit in self._alone if hit.party != fault.party and _are_alike(hit, fault)]
        for hit in others:
            hit.alone = False
        alike = (hit for hit in reversed(self._hits) if hit.party != fault.party and _are_alike(hit, fault))
        fault.alone = next(alike, None) is None
        if others or len(self._alone) > MAX_SUSPECTS:
            self._alone = [hit for hit in self._alone if hit.alone and hit.local is None]
        if fault.alone:
            self._alone.append(fault)

    def ended(self, fault: Fault) -> bool:
        """Count an execution that a local fault has ended; return whether it is the first of its kind for long."""
        now = self._clock.monotonic()
        with self._lock:
            self._excuse(fault).executions += 1
            before = self._seen.get(fault.kind, -math.inf)
            self._seen[fault.kind] = now
        return now - before >= EXCUSED

    # the decision

    @property
    def waits(self) -> bool:
        """Whether a suspect is not decided yet."""
        return bool(self._suspects)

    def look(self, now: Fault | None = None, *, full: bool = False) -> None:
        """Decide about the suspects as far as that is possible.

        Args:
            now: is decided in any case, because its scan cannot wait any longer.
            full: decide about all of them.
        """
        if not self._suspects:
            return
        unreachable = None if self._probe is None else self._probe()
        unheard = self._witnesses() if self._probe is None or unreachable is not None else {"", "the probe"}
        at, answer = self._clock.monotonic(), self._last_answer()
        decided = []
        with self._lock:
            if not self._suspects or not (
                now
                or full
                or unreachable
                or len(unheard) < 2
                or at - self._suspects[0].at >= TOGETHER
                or answer >= self._hits[0].at
            ):
                return
            for fault in self._suspects:
                late = full or fault is now or unheard <= {fault.party} or at - fault.at >= TOGETHER
                if (unreachable or late or answer >= self._hits[0].at) and self._decide(
                    fault, answer, unreachable, late
                ):
                    decided.append(fault)
            if decided:
                self._suspects = [fault for fault in self._suspects if fault.local is None]
            while self._hits and self._hits[0].at < at - 2 * TOGETHER:
                self._hits.popleft()
        for fault in decided:
            fault.settle()
        self.decisions += len(decided)

    def _witnesses(self) -> set[str]:
        """Return parties that may still testify: none, one, or any two of them."""
        found: set[str] = set()
        for run in self.runs.copy():
            for party in run.witnesses():
                found.add(party)
                if len(found) > 1:
                    return found
        return found

    def _decide(self, fault: Fault, answer: float, unreachable: bool | None, late: bool) -> bool:
        """Decide about a suspect, if that is possible; return whether it was. Under the lock."""
        alike = [hit for hit in self._hits if _are_alike(hit, fault)]
        if unreachable:
            fault.local = True
        elif answer >= min((hit.at for hit in alike), default=fault.at):
            fault.local = False
        elif late:
            fault.local = len({hit.party for hit in alike}) > 1
        if fault.local:
            self._excuse(fault)
        return fault.local is not None

    def _last_answer(self, but: str = "") -> float:
        answers = zip(self.places, self.answered, strict=True)
        return max((at for name, at in answers if name != but), default=-math.inf)

    # who is excused

    def _excuse(self, fault: Fault) -> _Streak:
        """Return the scanner's streak, which begins with this fault unless there is one. Under the lock."""
        streak = self._streak(fault.scanner)
        if streak is None:
            streak = self._streaks[fault.scanner] = _Streak(fault.at)
        return streak

    def _streak(self, scanner: str) -> _Streak | None:
        """Return a scanner's streak, unless it has succeeded since. Under the lock."""
        streak = self._streaks.get(scanner)
        place = self.places.get(scanner)
        if streak is not None and place is not None and self.answered[place] >= streak.since:
            del self._streaks[scanner]
            return None
        return streak

    def _is_own(self, scanner: str, now: float) -> bool:
        """Return whether one more local fault of a scanner is its own. Under the lock."""
        streak = self._streak(scanner)
        if streak is None:
            return False
        leaks = streak.executions >= LEAKING - 1 and self._last_answer(but=scanner) >= streak.since
        return leaks or now - streak.since >= EXCUSED

    def excused(self, scanner: str) -> tuple[int, float, bool] | None:
        """Describe a scanner's local faults since its last success; `None`: there were none.

        Returns:
            How many executions they have ended, how many seconds ago the first was, and whether the next is its own.
        """
        now = self._clock.monotonic()
        with self._lock:
            streak = self._streak(scanner)
            return None if streak is None else (streak.executions, now - streak.since, self._is_own(scanner, now))
