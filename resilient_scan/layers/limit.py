"""Limit what all scanners of one provider ask of it together.

There are two limits: *concurrency*, the attempts under way at a time, and *rate*, the requests in a window of time.

    further requests of attempts under way ----+
    attempts that hold a worker ---------------+--> granted when there is room: a permit (one attempt, one request)
    attempts that do not have a worker yet ----+

Each of the three is a queue, first come, first served, and they are served in this order. Attempts under way go first:
were their further requests to wait behind attempts that wait for a permit, and thus for them, all would wait forever.

A scan waits for its first permit before it takes a worker; otherwise eight scanners of one saturated provider would
hold all eight workers. An attempt that hangs keeps its permit until its thread has really ended, because the provider
still has its connection.

A provider has a breaker, too (`layers.breaker.provider`). If it asks to be left alone (`RetryAfter`), nobody is served
before the instant that it named: those that can wait for it wait, and the others are refused at once.

pyrate-limiter (extra `limits`) counts rates in sliding windows: there are never more than N requests in any window.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError, LimitExceeded, requested_wait
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.options import Limit, parse_rate

if TYPE_CHECKING:
    from resilient_scan.layers.breaker.provider import ProviderBreaker

T = TypeVar("T")
Timer = Callable[[float, Callable[[], None]], Callable[[], None]]
DEADLINE_MARGIN = 0.05  # seconds before the deadline at which a wait gives up: `rejected`, before it is a `timeout`


class Ticket:
    """A place in one of a provider's queues.

    Args:
        granted: called once, without a lock, on any thread.
        refused: likewise, if the time for waiting has passed instead.
        with_permit: whether it is for an attempt, which takes a permit, or for a further request of one.
        on_worker: whether it holds a worker while it waits, and so goes first.
        attempt: the attempt under way that makes the request, if it is one.
    """

    __slots__ = ("attempt", "cancel_timer", "done", "ends", "granted", "on_worker", "refused", "until", "with_permit")

    def __init__(
        self,
        granted: Callable[[], None],
        refused: Callable[[LimitExceeded], None],
        *,
        with_permit: bool = True,
        on_worker: bool = False,
        attempt: ScanContext | None = None,
    ) -> None:
        self.granted: Callable[[], None] = granted
        self.refused: Callable[[LimitExceeded], None] = refused
        self.on_worker: bool = on_worker
        self.with_permit: bool = with_permit
        self.attempt: ScanContext | None = attempt
        self.until: float = 0.0  # when it is refused, monotonic
        self.ends: float = 0.0  # after which it is of no use: a hold that lasts longer is not waited for
        self.done: bool = False  # granted, refused or withdrawn; changes once, under the provider's lock
        self.cancel_timer: Callable[[], None] = lambda: None


class ProviderState(msgspec.Struct, frozen=True):
    """How one provider stands.

    Attributes:
        provider: its name; a host and its port, if no scanner's options name it.
        state: of its breaker, `closed`, `open` or `half_open`; `held`, if it asked to be left alone; `None`: it has
            none.
        reason: why it cannot be called and when it can be, in words; empty if it can be.
        scanners: those that share it, by name.
        taken, waiting: attempts under way, and those in its queue.
        since: when it went down, in epoch seconds.
        until: when it is tried again, or may be called again, in epoch seconds; `None` while a trial is under way.
        by: the scanner that is trying it, or that tried it last.
    """

    provider: str
    state: str | None
    reason: str
    scanners: tuple[str, ...]
    taken: int
    waiting: int
    since: float | None = None
    until: float | None = None
    by: str = ""


class Provider:
    """One provider's limits, shared by all scanners, threads and runs of a runner that name it.

    Args:
        limit: the numbers.
        clock: measures the windows.
        at: the engine's timer; calls a function at an instant, and returns a function that cancels that.
        breaker: the provider's, if it has one.

    Raises:
        ConfigError: a rate is given, and the extra `limits` is not installed.
    """

    def __init__(self, limit: Limit, clock: Clock, at: Timer, breaker: ProviderBreaker | None = None) -> None:
        self.limit = limit
        self.breaker = breaker
        if breaker is not None:
            breaker.on_hold = self._pump
        self._clock = clock
        self._at = at
        self._lock = threading.Lock()
        self._requests: deque[Ticket] = deque()  # further ones, of attempts under way
        self._on_workers: deque[Ticket] = deque()  # attempts that hold a worker
        self._attempts: deque[Ticket] = deque()  # attempts that do not have a worker yet
        self._prepaid: dict[AttemptContext, None] = {}  # executions that have a permit and wait for a worker
        self._taken = 0  # permits
        self._bucket = _bucket(limit)
        self._timer: tuple[float, Callable[[], None]] | None = None  # when the queues are looked at again
        self._pumping = False
        self._skip: Callable[..., None] | None = getattr(clock, "skip", None)

    @property
    def taken(self) -> int:
        """The number of attempts under way, hanging ones included."""
        return self._taken

    @property
    def waiting(self) -> int:
        """The number of attempts and requests that wait."""
        return len(self._requests) + len(self._on_workers) + len(self._attempts)

    def view(self) -> ProviderState:
        """Return how it stands."""
        breaker = self.breaker
        state = None if breaker is None else breaker.status
        reason = "" if breaker is None else breaker.reason()
        scanners = () if breaker is None else tuple(sorted(breaker.scanners.copy()))
        instants = (None, None, "") if breaker is None else breaker.instants()
        return ProviderState(self.limit.provider, state, reason, scanners, self.taken, self.waiting, *instants)

    @property
    def is_down(self) -> bool:
        """Whether its breaker is open, so that an attempt would be refused."""
        return self.breaker is not None and self.breaker.is_open()

    @property
    def is_held(self) -> bool:
        """Whether it has asked to be left alone."""
        until = 0.0 if self.breaker is None else self.breaker.held_until
        return until > 0 and until > self._clock.monotonic()

    def reach(self, scanner: str, call: Callable[[], T], context: ScanContext) -> T:
        """Return what `call` returns, one call of an attempt; the provider's breaker admits it, and counts its end."""
        if self.breaker is None:
            return call()
        if scanner not in self.breaker.scanners:
            self.breaker.join(scanner)
        if self.is_held:
            self.acquire(context, with_permit=False)
        return self.breaker.ask(scanner, lambda: self._noting(call, context), context)

    def _noting(self, call: Callable[[], T], context: ScanContext) -> T:
        try:
            return call()
        except BaseException as error:
            self.note(error, context)
            raise

    def note(self, error: BaseException, context: ScanContext) -> None:
        """Leave the provider alone if an exception says that it asked for that."""
        wait = requested_wait(error)
        if wait is not None and self.breaker is not None:
            self.breaker.hold(wait, context.run_id)

    def request(self, ticket: Ticket, until: float, ends: float | None = None) -> None:
        """Join the queue; `granted` or `refused` is called by `until` (monotonic).

        Args:
            ticket: the place.
            until: when it is refused.
            ends: after which it is of no use, if that is earlier: it is refused at once if the provider is held longer.
        """
        ticket.until, ticket.ends = until, until if ends is None else min(ends, until)
        with self._lock:
            self._queue_of(ticket).append(ticket)
        self._pump()
        if not ticket.done:
            self._set_timer(ticket, until)

    def _set_timer(self, ticket: Ticket, until: float) -> None:
        cancel_timer = self._at(until, lambda: self._give_up(ticket))
        # Another thread may grant the ticket while the timer is being set. It has called the ticket's `cancel_timer`,
        # which did nothing yet, so this thread has to cancel.
        with self._lock:
            done = ticket.done
            if not done:
                ticket.cancel_timer = cancel_timer
        if done:
            cancel_timer()

    def withdraw(self, ticket: Ticket) -> bool:
        """Leave the queue; return False if the ticket has been granted or refused already."""
        with self._lock:
            if ticket.done:
                return False
            ticket.done = True
            with suppress(ValueError):  # an interrupt kept it from joining the queue
                self._queue_of(ticket).remove(ticket)
        ticket.cancel_timer()
        self._pump()
        return True

    def release(self) -> None:
        """Give a permit back."""
        with self._lock:
            self._taken -= 1
        self._pump()

    def take_prepaid(self, context: AttemptContext) -> bool:
        """Take the permit that an execution got before its worker, if it still has it; return whether it does."""
        with self._lock:
            self._prepaid.pop(context, None)
            there, context.prepaid = context.prepaid, False
        return there

    def prepay(self, context: AttemptContext) -> None:
        """Note that an execution has a permit, and waits for a worker."""
        with self._lock:
            context.prepaid = True
            self._prepaid[context] = None

    def confirm_prepaid(self, context: AttemptContext) -> bool:
        """Take the permit that an execution got before its worker; return False if it has to wait for another one.

        It may have waited for its worker for long, and the provider may have asked to be left alone meanwhile.
        """
        if not self.take_prepaid(context):
            return False
        if not self.is_held:
            return True
        self.release()
        return False

    def _steal_prepaid(self) -> bool:
        """Take the permit of an execution that has no worker yet; return whether there was one.

        Without this, workers and permits could wait for each other. Case: one worker, one permit. Execution A has the
        permit and is queued for the worker. The worker retries an attempt of B, which waits for a permit: A's permit,
        which comes back only when a worker has run A. The execution that loses its permit gets another on its worker.
        """
        with self._lock:
            if not self._prepaid:
                return False
            loser, _ = self._prepaid.popitem()
            loser.prepaid = False
            return True

    def prepaid_request(self, context: AttemptContext) -> bool:
        """Take the request that came with the attempt's permit; return False if it has been used."""
        with self._lock:
            there, context.requests = context.requests > 0, 0
        return there

    def acquire(self, context: ScanContext, *, with_permit: bool) -> None:
        """Wait on the worker for a permit, or for one more request, within the scan's time.

        Raises:
            LimitExceeded: the turn did not come before the deadline.
            ScanCancelled: nobody waits for the answer any more.
        """
        if with_permit and not self.is_held and self._steal_prepaid():
            return
        answer: list[LimitExceeded | None] = []
        left: list[bool] = []

        def settle(refusal: LimitExceeded | None) -> None:
            with self._lock:
                answer.append(refusal)
                unwanted = bool(left)
            if unwanted and refusal is None and with_permit:
                self.release()
            context.poke()

        ticket = Ticket(lambda: settle(None), settle, with_permit=with_permit, on_worker=True, attempt=context)
        began = self._clock.monotonic()
        self.request(ticket, began + max(0.0, context.remaining() - DEADLINE_MARGIN))
        try:
            context.wait(context.remaining(), lambda: bool(answer))
        except BaseException:
            # The ticket may have been granted on another thread that has not called `settle` yet. Then the permit is
            # given back by the second of the two: here if `settle` has been called before, or else by `settle`.
            if not self.withdraw(ticket):
                with self._lock:
                    left.append(True)
                    granted = answer == [None]
                if granted and with_permit:
                    self.release()
            raise
        finally:
            context.queued += self._clock.monotonic() - began
        if answer and answer[0] is not None:
            raise answer[0]

    def _pump(self) -> None:
        """Serve the queues as far as possible.

        One thread at a time does this, because `granted` runs without the lock and may take a while. Another thread
        that comes with a change (a permit given back, a new ticket) leaves it to the one at work. That one sees the
        change, because it stops only in the same step under the lock in which it finds nothing to do.
        """
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        try:
            while True:
                with self._lock:
                    ticket, refusal = self._next()
                    if ticket is None:
                        self._pumping = False
                        return
                ticket.cancel_timer()
                if refusal is None:
                    ticket.granted()
                else:
                    ticket.refused(refusal)
        except BaseException:  # a Ctrl-C, or no thread for a timer: the next thread that comes goes on
            with self._lock:
                self._pumping = False
            raise

    def _next(self) -> tuple[Ticket | None, LimitExceeded | None]:
        """Take the first ticket that may go, or has to, out of its queue, and return why it is refused, if it is.

        Under the lock.
        """
        if self.is_held:
            return self._next_in_hold()
        ticket = self._first()
        if ticket is None:
            return None, None
        wait = self._take_request()
        if wait > 0:
            self._pump_in(wait)
            return None, None
        self._queue_of(ticket).popleft()
        ticket.done = True
        self._taken += ticket.with_permit
        return ticket, None

    def _first(self) -> Ticket | None:
        """Return the first ticket for which there is room. Under the lock."""
        most = self.limit.concurrency
        if self._requests:
            return self._requests[0]
        if most is not None and self._taken >= most:
            return None
        queue = self._on_workers or self._attempts
        return queue[0] if queue else None

    def _next_in_hold(self) -> tuple[Ticket | None, LimitExceeded | None]:
        """Take a ticket that cannot wait until the provider may be called again. Under the lock."""
        breaker = self.breaker
        waiting = (*self._requests, *self._on_workers, *self._attempts)
        if breaker is None or not waiting:
            return None, None
        until = breaker.held_until
        for ticket in waiting:
            if ticket.ends <= until:
                self._queue_of(ticket).remove(ticket)
                ticket.done = True
                return ticket, LimitExceeded(breaker.describe_hold())
        self._pump_in(until - self._clock.monotonic())
        return None, None

    def _queue_of(self, ticket: Ticket) -> deque[Ticket]:
        if not ticket.with_permit:
            return self._requests
        return self._on_workers if ticket.on_worker else self._attempts

    def _take_request(self) -> float:
        """Count one request and return 0, or return the seconds to wait if the window is full."""
        if self._bucket is None:
            return 0.0
        now = int(self._clock.monotonic() * 1000)
        self._bucket.leak(now)
        item = self._item(now)
        return 0.0 if self._bucket.put(item) else max(1, self._bucket.waiting(item)) / 1000

    def _item(self, now: int) -> Any:
        from pyrate_limiter import RateItem  # noqa: PLC0415 - an extra

        return RateItem(self.limit.provider, now)

    def _pump_in(self, wait: float) -> None:
        """Look at the queues again after `wait` seconds, or earlier. Under the lock."""
        instant, timer = self._clock.monotonic() + wait, self._timer
        if timer is None or instant < timer[0]:
            if timer is not None:  # a hold of an hour that was ended by hand, say
                timer[1]()
            self._timer = instant, self._at(instant, self._pump_now)
        if self._skip is not None:
            self._skip_to(self._clock.monotonic() + wait, self._skip)

    def _skip_to(self, refill: float, skip: Callable[..., None]) -> None:
        """Have a clock that advances instead of waiting pass the wait for the rate. Under the lock.

        No thread sleeps until then, so nothing else would move it. While an attempt of this provider is at work, it
        should not move yet: that attempt would time out, although it takes no time on this clock. When it ends, it
        comes by here. But it may also wait for something else (a worker, a shared value that another one loads), so the
        clock moves all the same after a while. It never moves past a ticket's end: with a rate per day, it would let
        everything that is cached expire, for nobody.
        """
        waiting = {ticket.attempt for ticket in self._requests}
        tickets = (*self._requests, *self._on_workers, *self._attempts)
        skip(min(refill, *(ticket.until for ticket in tickets)), idle=self._taken <= len(waiting))

    def _pump_now(self) -> None:
        with self._lock:
            self._timer = None
        self._pump()

    def _give_up(self, ticket: Ticket) -> None:
        if self.withdraw(ticket):
            ticket.refused(LimitExceeded(f"no turn at provider {self.limit.provider} in time: {self._reason()}"))

    def _reason(self) -> str:
        most = self.limit.concurrency
        if most is not None and self._taken >= most:
            return f"all {most} of its attempts are under way"
        return f"its rate ({', '.join(self.limit.rates)}) is used up"


def permitted(provider: Provider, call: Call) -> Call:
    """Wrap `call` so that each attempt holds a permit of the provider.

    Raises (when called):
        LimitExceeded: there was none before the deadline.
    """

    def attempt(context: AttemptContext) -> list[Any]:
        context.provider = provider
        if not provider.confirm_prepaid(context):  # the first attempt waited for it before it had a worker
            provider.acquire(context, with_permit=True)
        context.requests = 1  # the permit came with one request
        try:
            return call(context)
        except BaseException as error:
            provider.note(error, context)  # before the permit is back: a scanner that waits for it has to wait longer
            raise
        finally:
            # On the attempt's own thread: an attempt that hangs keeps its permit, long after its scan was handed over.
            provider.release()

    return attempt


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
