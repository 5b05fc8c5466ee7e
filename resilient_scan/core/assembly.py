"""Everything that lives as long as a runner: the live parts, made from its configuration."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from resilient_scan._dispatch import Bus
from resilient_scan._once import IMPORTING
from resilient_scan._text import no_provider, no_scanner
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.context import NEVER
from resilient_scan.core.calls import MAX_CALLS
from resilient_scan.core.config import Config
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.shared import Shared, abandoned_in
from resilient_scan.core.stack import Stack
from resilient_scan.engines.loop import Loops
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.events import Listener, Load, ScannersRegistered
from resilient_scan.layers.breaker import BREAKER_PREFIX, PROVIDER_PREFIX, BreakerStore
from resilient_scan.layers.cache import ResultCache
from resilient_scan.layers.limit import Provider
from resilient_scan.layers.local import ControlProbe, LocalFaults
from resilient_scan.layers.outcomes import unpacked
from resilient_scan.layers.providers import Providers
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.layers.timeout import Abandoned
from resilient_scan.options import Breaker
from resilient_scan.quarantine import Gate, ScannerState, check_reason
from resilient_scan.stores import Refused, Store, open_store, split_space
from resilient_scan.stores.answers import EPOCH_PREFIX, new_epoch
from resilient_scan.stores.groups import fetch_many, has_blocks
from resilient_scan.stores.health import Health, UnlimitedWait
from resilient_scan.stores.history import Past, Remembered
from resilient_scan.stores.leases import LeaseKeeper
from resilient_scan.stores.wrappers import Checked

if TYPE_CHECKING:
    from resilient_scan.core.lane import Lane
    from resilient_scan.engines.cluster.workers import ClusterWorkers
    from resilient_scan.engines.process.children import Children
    from resilient_scan.layers.breaker.provider import ProviderBreaker
    from resilient_scan.stores.attempts import AttemptHistory

CLOSE_TIMEOUT = 1.0  # seconds for which closing waits until everything is in the store


def opened(store: str | Store | None, clock: Clock) -> Store | None:
    """Return the store that a URL names, or one around the given object; `None`: state stays in memory.

    Raises:
        ConfigError: it is neither, or its extra is missing.
    """
    if store is None or (isinstance(store, str) and split_space(store).url == "memory:"):
        return None
    found = open_store(store, clock)
    return found if isinstance(store, str) else Checked(found)


class Fleet:
    """The live parts: one pool, one gate, one stack per scanner, one provider per name.

    Args:
        config: what they are made from.
        store: the open store, if there is one.
    """

    detached: bool = False  # left to the parent, in a forked child
    closed: bool = False
    keep_rest: Callable[[Mapping[str, Sequence[Past]]], None] | None = None  # the run history's

    def __init__(self, config: Config, store: Store | None) -> None:
        clock = config.clock
        self.names: tuple[str, ...] = config.names
        self.workers: int = config.max_workers
        self._store = store
        self._close_store = store.close if store is not None and isinstance(config.store, str) else None
        self.bus: Bus = Bus(config.listeners)
        health = Health(self.bus.send, clock)
        self.store_failed: Callable[[str, StoreError], None] = health.failed
        self.leases: LeaseKeeper | None = (
            None if store is None else LeaseKeeper(store, clock, health, config.max_workers)
        )
        self.attempts = _attempt_history(config, store, self.leases, self.store_failed)
        self.gate: Gate = Gate(
            config.names,
            clock,
            self.bus,
            options=config.quarantine,
            store=store,
            random=config.random,
            on_error=self.store_failed,
        )
        self.bus.subscribe(self.gate)
        if self.attempts is not None:
            self.bus.subscribe(self.attempts)
        self.pool: ThreadPool = ThreadPool(config.max_workers, max_abandoned=config.max_abandoned, clock=clock)
        self.call_pool: ThreadPool = ThreadPool(  # no thread is started before the first call
            config.max_workers * MAX_CALLS, max_abandoned=config.max_abandoned, clock=clock, name="resilient-scan-call"
        )
        self.loops: Loops = Loops(self.call_pool.stop)  # not before the last coroutine: its cleanup may make calls
        self.children = _children(config)
        self.lane = _shared_loop(config, self.children, self.pool, self.call_pool, self.loops)
        limits = [(name, policy.limit) for name, policy in config.policies.items() if policy.limit is not None]
        own_breakers = {name: policy.breaker for name, policy in config.policies.items()}
        make_breaker = partial(_provider_breaker, config, self.bus, store, self.store_failed)
        self.providers: Providers = Providers(limits, clock, self.pool.at, make_breaker, own_breakers)
        values = SharedValues(clock)
        probe = None if config.local_probe is None else ControlProbe(config.local_probe).failed
        self.faults: LocalFaults = LocalFaults(clock, config.names, probe)
        self._awake: set[str] = set()  # the keys of the breakers that a run looks after (`BreakerStore.awake`)
        shared = Shared(
            gate=self.gate,
            pool=self.pool,
            loops=self.loops,
            call_pool=self.call_pool,
            lane=self.lane,
            children=self.children,
            bus=self.bus,
            send=self.bus.send,
            providers=self.providers,
            values=values,
            faults=self.faults,
            store=store,
            leases=self.leases,
            store_failed=self.store_failed,
            awake=self._awake,
        )
        self.stacks: dict[str, Stack] = {spec.name: Stack(spec, config, shared) for spec in config.specs}
        if self.children is not None:  # now that each scanner is known to be fit for it
            self.children.start()
        stacks = self.stacks.values()
        self._breakers = {BREAKER_PREFIX + stack.name: stack.breaker for stack in stacks if stack.breaker is not None}
        self._cached = [stack for stack in stacks if stack.shares_answers]
        self._adopted: Mapping[str, bytes] = {}  # the epochs that were taken over last
        self._forgotten = 0  # orders to forget answers that this process has carried out
        self._epochs = threading.Lock()  # between taking over epochs that were read, and counting such an order

    def provider_breakers(self) -> list[ProviderBreaker]:
        """Return the breakers of all providers that have one."""
        found = [provider.breaker for provider in tuple(self.providers.values())]
        return [breaker for breaker in found if breaker is not None]

    def announce(self) -> None:
        """Tell the listeners which scanners there are; before anything else happens."""
        self.bus.send(self._registered())

    def _registered(self) -> ScannersRegistered:
        scanners = tuple(stack.registered() for stack in self.stacks.values())
        this = weakref.ref(self)
        return ScannersRegistered(scanners, partial(_load, this), partial(_provider_states, this))

    def listen(self, listener: Listener) -> None:
        """Let one more listen to what happens from now on."""
        Bus((listener,)).send(self._registered())
        self.bus.subscribe(listener)
        for stack in self.stacks.values():
            stack.update_listeners()

    def recall(self, before: Remembered) -> None:
        """Learn how long scans take, what their answers were like and how they ended, where that is not known yet."""
        expected = before.expected if self.attempts is None else self.attempts.recall(before.expected, self.names)
        for name, stack in self.stacks.items():
            if stack.expected == NEVER:
                stack.expected = expected.get(name, NEVER)
            if (learned := before.learned.get(name)) is not None:
                stack.recall(learned)
            stack.outcomes = stack.outcomes or unpacked(before.outcomes.get(name, b""))

    def load_answers(self, wanted: Mapping[str, tuple[ResultCache[Any], bytes]]) -> None:
        """Take what the store has into the caches, all with one read.

        Args:
            wanted: by the store's key, the cache and its key.
        """
        if self._store is None or not wanted:
            return
        try:
            found = fetch_many(self._store, list(wanted))
            now = self._store.now() if found else 0.0
        except StoreError as error:
            self.store_failed("get", error)
            return
        for name, data in found.items():
            cache, key = wanted[name]
            cache.load(key, data, now)

    def refresh(self) -> None:
        """See what other processes know of quarantine and breakers, at the start of a run: one read for each."""
        self.pool.run_errands()
        self.call_pool.run_errands()
        self.gate.refresh()
        if self._store is None:
            return
        self._refresh_epochs(self._store)
        try:
            now, records = self._store.now(), self._store.read(BREAKER_PREFIX)
        except StoreError as error:
            self.store_failed("read", error)
            for breaker in (*self._breakers.values(), *self.provider_breakers()):
                breaker.trust_local()
            return
        looked_at = sorted(self._awake.union(records))  # of a large healthy fleet next to none
        changes = [self._breakers[key].sync(records.get(key), now) for key in looked_at if key in self._breakers]
        self.bus.send_all([change for change in changes if change is not None])
        for provider in self.provider_breakers():
            provider.take_over(records.get(PROVIDER_PREFIX + provider.provider), now)

    def _refresh_epochs(self, store: Store) -> None:
        """Learn which scanners' answers another process has forgotten."""
        if not self._cached:
            return
        before = self._forgotten
        try:
            epochs = store.read(EPOCH_PREFIX)
        except StoreError as error:
            self.store_failed("read", error)
            return
        # A run may read the epochs just before an operator on another thread forgets a scanner's answers. If it took
        # them over afterwards, it would return to the epoch before the order, and the forgotten answers would be found
        # again. Then it leaves them; what other processes have forgotten meanwhile, the next run learns. The lock is
        # not held while the store is read: an order waits for its store as long as it takes, and runs would wait with
        # it.
        with self._epochs:
            if self._forgotten == before and epochs != self._adopted:
                for stack in self._cached:
                    stack.adopt_epoch(epochs.get(EPOCH_PREFIX + stack.name, b""))
                self._adopted = epochs

    # orders of an operator

    def enable(self, name: str, reason: str, duration: float, who: str) -> None:
        """Bring a scanner back, and let its next scan be a trial if its breaker is open."""
        try:
            self.gate.enable(name, reason, duration, who)
        except Refused:
            raise
        except StoreError:  # then the order holds in this process, and so does the trial
            self._end_open_time(name)
            raise
        self._end_open_time(name)

    def _end_open_time(self, name: str) -> None:
        with UnlimitedWait():
            self.stacks[name].end_open_time()

    def reset(self, name: str, reason: str, who: str) -> None:
        """Close a scanner's breaker; see `ScanRunner.reset`."""
        stack = self._ordered("reset", name, reason)
        if stack.breaker is None and (stack.policy.cache is None or stack.policy.cache.ttl_error is None):
            raise ConfigError(f"reset {name}: it has no breaker, and remembers no errors")
        with UnlimitedWait():
            error = stack.reset()
        if error is not None:
            raise StoreError(f"the breaker of {name} is reset in this process only, until its store is back: {error}")
        self.gate.note(name, "reset", reason, who)

    def reset_provider(self, name: str, reason: str, who: str) -> None:
        """Close a provider's breaker, and end its hold; see `ScanRunner.reset`."""
        check_reason("reset", f"provider {name}", reason)
        with UnlimitedWait():
            self._recall_provider(name)
        breaker = self.provider(name).breaker
        if breaker is None:
            raise ConfigError(f"reset provider {name}: it has no breaker")
        with UnlimitedWait():
            error = breaker.clear()
        if error is not None:
            raise StoreError(f"provider {name} is reset in this process only, until its store is back: {error}")
        self.gate.note(f"provider {name}", "reset", reason, who)

    def _recall_provider(self, name: str) -> None:
        """Make a host known that another process has called, as far as the store knows it."""
        if name not in self.providers and self._store is not None:
            try:
                known = PROVIDER_PREFIX + name in self._store.read(PROVIDER_PREFIX + name)
            except StoreError as error:
                self.store_failed("read", error)
                return
            if known:
                self.providers.at(name, Breaker())

    def forget(self, name: str, reason: str, who: str) -> None:
        """Drop a scanner's cached answers; see `ScanRunner.forget`."""
        stack = self._ordered("forget", name, reason)
        if stack.cache is None:
            raise ConfigError(f"forget {name}: it has no cache")
        try:
            with UnlimitedWait():
                epoch = None if self._store is None else new_epoch(self._store, name)
        except StoreError as error:
            stack.cache.forget()
            raise StoreError(f"the answers of {name} are forgotten in memory only, try again: {error}") from None
        with self._epochs:
            self._forgotten += 1
            if epoch is not None:
                stack.adopt_epoch(epoch)
        stack.cache.forget()  # after the store's: before, a scan could take an answer from the store in between
        stack.notes.forget()
        self.gate.note(name, "forget", reason, who)

    def probe(self, name: str, reason: str, who: str) -> None:
        """Make a scanner's next scan a probe; see `ScanRunner.probe`."""
        self._ordered("probe", name, reason)
        self.gate.probe(name, reason, who)

    def _ordered(self, order: str, name: str, reason: str) -> Stack:
        stack = self.stack(name)
        check_reason(order, name, reason)
        return stack

    def flush_votes(self, run_id: str) -> None:
        """Bring the breakers' votes that still wait to the store, at the end of a run."""
        if self._store is not None:
            for key in sorted(self._awake):
                self.stacks[key.removeprefix(BREAKER_PREFIX)].flush_votes(run_id)
            for breaker in self.provider_breakers():
                breaker.store_votes(run_id)

    def stack(self, name: str) -> Stack:
        """Return one scanner's stack.

        Raises:
            ConfigError: there is no such scanner; the message names the nearest.
        """
        if name not in self.stacks:
            raise ConfigError(no_scanner(name, self.names))
        return self.stacks[name]

    def provider(self, name: str) -> Provider:
        """Return one provider.

        Raises:
            ConfigError: there is no such provider; the message names the nearest.
        """
        if name not in self.providers:
            raise ConfigError(no_provider(name, self.providers))
        return self.providers[name]

    def states(self) -> tuple[ScannerState, ...]:
        """Return how each scanner stands, with its pipeline, and how its last scan in this process ended."""
        return tuple(_with_last(state, self.stacks[state.name]) for state in self.gate.views())

    def abandoned(self) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first."""
        return abandoned_in(self.lane, self.pool, self.call_pool)

    def returned(self) -> list[Abandoned]:
        """List the threads that came back after their time, with what freed them; of each scanner, oldest first."""
        return [thread for stack in self.stacks.values() for thread in stack.hung.came_back]

    def detach(self) -> None:
        """Leave it to the parent, in a forked child: nothing here is used any more, its locks may be held forever."""
        self.detached = True
        for stack in self.stacks.values():
            stack.retired = True

    def close_soon(self) -> threading.Thread | None:
        """Have a thread close all this, and return it; take no lock that the caller may hold, see `Runs.close`.

        The garbage collector may call this, too: on any thread, at any point. On a machine that has no thread left, a
        worker closes it; where there is no worker either, no scan is under way, and the caller does it.
        """
        closer = start_closer(self.close)
        if closer is None and not self.pool.lend_worker(self.close):
            self.close()
        return closer

    def close(self) -> None:
        """Let the threads and event loops go; hung ones are not waited for."""
        self.closed = True
        self.pool.stop()
        if self.children is not None:
            self.children.close()
        if self.lane is not None:
            self.lane.stop()
        for stack in self.stacks.values():
            stack.retired = True
        self.loops.close()
        if self.leases is not None:
            self.leases.close(CLOSE_TIMEOUT, self._finish_store)

    def _finish_store(self) -> None:
        """Write what the run history does not have yet, and close the store if it is ours."""
        rest = {stack.name: scans for stack in self.stacks.values() if (scans := stack.unkept())}
        if self.keep_rest is not None and rest:
            self.keep_rest(rest)
        if self.attempts is not None:
            self.attempts.finish(CLOSE_TIMEOUT / 2)
        if self._close_store is not None:
            self._close_store()
        elif self._store is not None and (rest or self.attempts is not None):
            self._store.flush()


def _shared_loop(
    config: Config, children: Children | ClusterWorkers | None, pool: ThreadPool, call_pool: ThreadPool, loops: Loops
) -> Lane | None:
    """Return the loop that coroutines share, and what waits for a cluster; `None`: there is neither, or on workers."""
    share: Callable[[str], float] | None = getattr(children, "share", None)  # a cluster's
    on_lane = share is not None or any(spec.is_async and spec.isolation != "process" for spec in config.specs)
    # The fakes of a test do not move an event loop's time.
    if not on_lane or not isinstance(config.clock, SystemClock):
        return None
    from resilient_scan.engines.greenlets import AVAILABLE  # noqa: PLC0415 - of an extra, and most fleets need none

    if not AVAILABLE:
        return None
    from resilient_scan.core.lane import Lane  # noqa: PLC0415

    most = config.max_async if share is None else config.max_workers
    return Lane(most, pool, call_pool, loops, config.clock, share)


def _children(config: Config) -> Children | ClusterWorkers | None:
    """Return the child processes for scanners that are isolated, or the cluster's; `None`: there is no such scanner."""
    if config.engine == "dask":
        with IMPORTING:
            from resilient_scan.engines.cluster.workers import ClusterWorkers  # noqa: PLC0415 - likewise

        return ClusterWorkers(config.cluster)
    if not any(spec.isolation == "process" for spec in config.specs):
        return None
    with IMPORTING:
        from resilient_scan.engines.process.children import Children  # noqa: PLC0415 - few fleets need it

    return Children(config.max_workers)


def _attempt_history(
    config: Config, store: Store | None, leases: LeaseKeeper | None, store_failed: Callable[[str, StoreError], None]
) -> AttemptHistory | None:
    """Return what keeps the attempts; `None`: nobody wants them kept, or the store cannot keep them."""
    if store is None or leases is None or not config.history or not store.shared or not has_blocks(store):
        return None
    with IMPORTING:
        from resilient_scan.stores.attempts import AttemptHistory  # noqa: PLC0415 - without a store, nobody needs it

    return AttemptHistory(store, config.clock, config.history, leases, config.random, store_failed)


def _provider_breaker(
    config: Config,
    bus: Bus,
    store: Store | None,
    store_failed: Callable[[str, StoreError], None],
    provider: str,
    options: Breaker,
    scanners: Collection[str] | None,
) -> ProviderBreaker:
    """Make a provider's breaker; scanners that are `None`: it is a host that nobody names."""
    with IMPORTING:
        from resilient_scan.layers.breaker.provider import ProviderBreaker  # noqa: PLC0415 - few fleets need it

    home = None if store is None else BreakerStore(store, PROVIDER_PREFIX + provider, store_failed)
    return ProviderBreaker(provider, options, config.clock, config.random, bus.send, home, scanners)


def start_closer(call: Callable[[], None]) -> threading.Thread | None:
    """Call `call` on a thread of its own; `None`: there is none to be had, and it is not called."""
    if sys.is_finalizing():  # a thread that is started now never runs, and its start would wait for it
        return None
    closer = threading.Thread(target=call, name="resilient-scan-close", daemon=True)
    try:
        closer.start()
    except RuntimeError:
        return None
    return closer


def _load(fleet: weakref.ref[Fleet]) -> Load | None:
    """Return how busy a fleet's pool is; a listener must not keep one alive that is gone."""
    live = fleet()
    if live is None or live.detached:
        return None
    counts = live.pool.counts()
    queued, under_way, hung = (0, 0, 0) if live.lane is None else live.lane.counts()
    counts["abandoned"] += live.call_pool.counts()["abandoned"] + hung
    counts["busy"] += under_way
    return Load(queued=live.pool.queued + queued, **counts)


def _provider_states(fleet: weakref.ref[Fleet]) -> dict[str, str] | None:
    """Return the states of a fleet's providers; a listener must not keep one alive that is gone."""
    live = fleet()
    if live is None or live.detached or live.closed:
        return None
    return {breaker.provider: breaker.status for breaker in live.provider_breakers()}


def _with_last(state: ScannerState, stack: Stack) -> ScannerState:
    last = next((flight.result for flight in stack.recorded()), None)
    return msgspec.structs.replace(
        state,
        pipeline=stack.pipeline,
        last_status=None if last is None else last.status.value,
        last_at=None if last is None else last.started_at,
        flapping=stack.flapping(),
        slo_budget=stack.slo_budget(),
    )
