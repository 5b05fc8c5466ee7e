"""Limit: what all scanners of one provider may ask of it together.

Two measures: *concurrency*, attempts under way at a time, and *rate*, requests in a window of time. Whoever wants to
begin an attempt stands in one queue, first come first served; the further requests of attempts under way go before
them, for an attempt that waits behind others for which it must make room would wait for ever.

The first permit of a scan is waited for before it takes a worker, so that eight scanners of one saturated provider do
not hold all eight workers. An attempt that hangs keeps its permit until its thread has really ended: the provider
still sees its connection.

Rates are counted in sliding windows by pyrate-limiter (extra `limits`): never more than N requests in any window.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, LimitExceeded
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.options import Limit, parse_rate

Timer = Callable[[float, Callable[[], None]], Callable[[], None]]
MARGIN = 0.05  # seconds before the deadline at which a wait on a worker gives up, so that no timeout is blamed


class Ticket:
    """A place in a provider's queue."""

    __slots__ = ("done", "granted", "on_worker", "refused", "take_back", "with_permit")

    def __init__(
        self,
        granted: Callable[[], None],
        refused: Callable[[LimitExceeded], None],
        *,
        with_permit: bool = True,
        on_worker: bool = False,
    ) -> None:
        self.granted = granted  # called once, without a lock, on any thread
        self.refused = refused  # likewise, when the time for waiting is over
        self.on_worker = on_worker  # whether it holds a worker meanwhile, and so goes first
        self.with_permit = with_permit  # whether it takes a place among the attempts, or only a request
        self.done = False
        self.take_back: Callable[[], None] = lambda: None


class Provider:
    """One provider's limits, shared by all scanners, threads and runs of a runner that name it.

    Args:
        limit: the numbers.
        clock: what windows are measured on.
        at: calls something at an instant; the engine's timer.

    Raises:
        ConfigError: a rate is given and the extra `limits` is not installed.
    """

    def __init__(self, limit: Limit, clock: Clock, at: Timer) -> None:
        self.limit = limit
        self._clock = clock
        self._at = at
        self._lock = threading.Lock()
        self._requests: deque[Ticket] = deque()  # of attempts under way
        self._on_workers: deque[Ticket] = deque()  # attempts that wait on a worker
        self._attempts: deque[Ticket] = deque()  # that want to begin
        self._granted: dict[AttemptContext, None] = {}  # whose permit waits for a worker
        self._taken = 0
        self._bucket = _bucket(limit)
        self._timer_set = False
        self._pumping = False

    @property
    def taken(self) -> int:
        """How many attempts are under way, hanging ones included."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._requests) + len(self._on_workers) + len(self._attempts)

    def request(self, ticket: Ticket, until: float) -> None:
        """Stand in the queue; `granted` or `refused` is called, at `until` (monotonic) at the latest."""
        with self._lock:
            self._line(ticket).append(ticket)
        self._pump()
        if not ticket.done:
            self._bound(ticket, until)

    def _bound(self, ticket: Ticket, until: float) -> None:
        take_back = self._at(until, lambda: self._give_up(ticket))
        with self._lock:
            settled = ticket.done  # while the timer was set
            if not settled:
                ticket.take_back = take_back
        if settled:
            take_back()

    def withdraw(self, ticket: Ticket) -> bool:
        """Leave the queue; `False`: it was granted or refused before."""
        with self._lock:
            if ticket.done:
                return False
            ticket.done = True
            self._line(ticket).remove(ticket)
        ticket.take_back()
        self._pump()
        return True

    def release(self) -> None:
        """Give a permit back."""
        with self._lock:
            self._taken -= 1
        self._pump()

    def take_prepaid(self, context: AttemptContext) -> bool:
        """Take the permit that was granted to an execution beforehand, if it is still there."""
        with self._lock:
            self._granted.pop(context, None)
            there, context.prepaid = context.prepaid, False
        return there

    def prepay(self, context: AttemptContext) -> None:
        """Note that an execution has a permit and waits for a worker."""
        with self._lock:
            context.prepaid = True
            self._granted[context] = None

    def _take_over(self) -> bool:
        """Take the permit of an execution that has no worker yet; it will wait for another on its own.

        Else a worker could wait for a permit that waits for a worker.
        """
        with self._lock:
            if not self._granted:
                return False
            robbed, _ = self._granted.popitem()
            robbed.prepaid = False
            return True

    def prepaid_request(self, context: AttemptContext) -> bool:
        """Take the request that came with the attempt's permit, if it is still there."""
        with self._lock:
            there, context.requests = context.requests > 0, 0
        return there

    def acquire(self, context: AttemptContext, *, with_permit: bool) -> None:
        """Wait for a turn on the worker, within the scan's time.

        Raises:
            LimitExceeded: it did not come before the deadline.
            ScanCancelled: nobody waits for the answer any more.
        """
        if with_permit and self._take_over():
            return
        answer: list[LimitExceeded | None] = []
        gone: list[bool] = []

        def settle(refusal: LimitExceeded | None) -> None:
            with self._lock:
                answer.append(refusal)
                unwanted = bool(gone)
            if unwanted and refusal is None and with_permit:
                self.release()
            context.poke()

        ticket = Ticket(lambda: settle(None), settle, with_permit=with_permit, on_worker=True)
        self.request(ticket, self._clock.monotonic() + max(0.0, context.remaining() - MARGIN))
        try:
            context.wait(context.remaining(), lambda: bool(answer))
        except BaseException:
            if not self.withdraw(ticket):  # settled, but perhaps not told yet: whoever is second gives the permit back
                with self._lock:
                    gone.append(True)
                    granted = answer == [None]
                if granted and with_permit:
                    self.release()
            raise
        if answer and answer[0] is not None:
            raise answer[0]

    def _pump(self) -> None:
        """Serve the queue as far as it goes; one thread at a time does, and it sees what the others have changed."""
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        try:
            while True:
                with self._lock:
                    ticket = self._next()
                    if ticket is None:
                        self._pumping = False
                        return
                ticket.take_back()
                ticket.granted()
        except BaseException:  # a Ctrl-C, or no thread for a timer: the next one to come serves
            with self._lock:
                self._pumping = False
            raise

    def _next(self) -> Ticket | None:
        """Take the first of the queue if it may begin; under the lock."""
        most = self.limit.concurrency
        if self._requests:
            ticket = self._requests[0]
        elif most is not None and self._taken >= most:
            return None
        else:
            line = self._on_workers or self._attempts
            if not line:
                return None
            ticket = line[0]
        wait = self._take_request()
        if wait > 0:
            self._look_again(wait)
            return None
        self._line(ticket).popleft()
        ticket.done = True
        self._taken += ticket.with_permit
        return ticket

    def _line(self, ticket: Ticket) -> deque[Ticket]:
        if not ticket.with_permit:
            return self._requests
        return self._on_workers if ticket.on_worker else self._attempts

    def _take_request(self) -> float:
        """Count one request; return the seconds to wait where the window is full."""
        if self._bucket is None:
            return 0.0
        now = int(self._clock.monotonic() * 1000)
        self._bucket.leak(now)
        item = self._item(now)
        return 0.0 if self._bucket.put(item) else max(1, self._bucket.waiting(item)) / 1000

    def _item(self, now: int) -> Any:
        from pyrate_limiter import RateItem  # noqa: PLC0415 - an extra

        return RateItem(self.limit.provider, now)

    def _look_again(self, wait: float) -> None:
        if not self._timer_set:
            self._timer_set = True
            self._at(self._clock.monotonic() + wait, self._ring)

    def _ring(self) -> None:
        with self._lock:
            self._timer_set = False
        self._pump()

    def _give_up(self, ticket: Ticket) -> None:
        if self.withdraw(ticket):
            ticket.refused(LimitExceeded(f"no turn at provider {self.limit.provider} in time: {self._why()}"))

    def _why(self) -> str:
        most = self.limit.concurrency
        if most is not None and self._taken >= most:
            return f"all {most} of its attempts are under way"
        return f"its rate ({', '.join(self.limit.rates)}) is used up"


class Providers(dict[str, Provider]):
    """The providers of one runner, by name: those that its scanners' options name, and what scanners ask beside them.

    Args:
        limits: what the scanners say about their providers, `[(scanner, limit), ...]`.
        clock, at: each provider's.

    Raises:
        ConfigError: two scanners give different numbers for one provider, or the extra `limits` is not installed.
    """

    def __init__(self, limits: list[tuple[str, Limit]], clock: Clock, at: Timer) -> None:
        super().__init__({name: Provider(limit, clock, at) for name, limit in merged(limits).items()})
        self._clock = clock
        self._at = at

    def of(self, source: str, limit: Limit | None) -> Provider | None:
        """Return the provider of that name, `None` where there is none and no limit is given to make one of."""
        if source in self or limit is None:
            return self.get(source)
        return self.setdefault(source, Provider(limit, self._clock, self._at))


def permitted(provider: Provider, call: Call) -> Call:
    """Wrap `call` so that each attempt holds a permit of the provider.

    Raises (when called):
        LimitExceeded: none came before the deadline.
    """

    def attempt(context: AttemptContext) -> list[Any]:
        if not provider.take_prepaid(context):  # the first one was waited for before the worker was taken
            provider.acquire(context, with_permit=True)
        context.requests = 1  # the permit came with one request
        try:
            return call(context)
        finally:
            provider.release()

    return attempt


def merged(limits: list[tuple[str, Limit]]) -> dict[str, Limit]:
    """Bring together what several scanners say about their providers, `[(scanner, limit), ...]`.

    A `Limit` without numbers joins the one that has them.

    Raises:
        ConfigError: two scanners give different numbers for one provider.
    """
    for _, _, sentence in differing(limits):
        raise ConfigError(sentence)
    return {provider: limit for provider, (_, limit) in _first(limits).items()}


def differing(limits: list[tuple[str, Limit]]) -> Iterator[tuple[str, str, str]]:
    """Yield two scanners and a sentence wherever the second gives other numbers for a provider than the first."""
    known = _first(limits)
    for scanner, limit in limits:
        first, there = known[limit.provider]
        if not limit.is_bare and limit != there:
            both = f"{_numbers(there)} by {first}, {_numbers(limit)} by {scanner}"
            way_out = "give the numbers once, the others name the provider only"
            yield first, scanner, f"provider {limit.provider} has two limits: {both}; {way_out}"


def _first(limits: list[tuple[str, Limit]]) -> dict[str, tuple[str, Limit]]:
    """Return by provider the first who gives numbers, else the first who names it."""
    known: dict[str, tuple[str, Limit]] = {}
    for scanner, limit in limits:
        there = known.get(limit.provider)
        if there is None or there[1].is_bare:
            known[limit.provider] = (scanner, limit)
    return known


def _numbers(limit: Limit) -> str:
    rates = [f"rate {', '.join(limit.rates)}"] if limit.rates else []
    return " and ".join([*rates, *([] if limit.concurrency is None else [f"concurrency {limit.concurrency}"])])


def _bucket(limit: Limit) -> Any:
    if not limit.rates:
        return None
    try:
        from pyrate_limiter import InMemoryBucket, Rate  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            f"provider {limit.provider} has a rate, which needs the extra: pip install 'resilient-scan[limits]'"
        ) from None
    rates = sorted((parse_rate(text) for text in limit.rates), key=lambda rate: rate[1])
    return InMemoryBucket([Rate(count, int(seconds * 1000)) for count, seconds in rates])
