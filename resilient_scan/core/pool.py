"""The thread pool: hands over on time, abandons hung threads, and never makes the interpreter wait for one.

Python cannot stop a thread that sits in a C call. So a task has a time limit, counted from the moment a worker begins
it. When the time is up, the watchdog tells the task (`expire`), which hands over its result on time. Its thread is
*abandoned*: listed in a ledger with its stack, and replaced by a new worker at once. At most `max_abandoned` threads
are replaced like that. Beyond it a hung thread keeps its slot until it ends, and when no slot is left, queued tasks are
refused (`refuse`).

    execute ---> queue ---> worker: start, run -------------------> takes the next task
                              |                                        ^
                              | deadline: the watchdog calls expire    | it was not replaced
                              v                                        |
                            hung (in the ledger) ---- it ends: late ---+---> its thread exits, if it was replaced
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock, SystemClock, Wake
from resilient_scan.core.hangs import Hang, Hangs, current_frames, guarded
from resilient_scan.core.task import NEVER, SHUT_DOWN, FutureTask, Task, Worker
from resilient_scan.engines.stuck import in_c_calls
from resilient_scan.layers.timeout import Abandoned

T = TypeVar("T")
POLL_INTERVAL = 0.05  # seconds between two looks at whether a worker that is waited for hangs
THREAD_RETRY_INTERVAL = 0.1  # seconds until the next try to start a thread on a machine that had none left


class ThreadPool(concurrent.futures.ThreadPoolExecutor):
    """A `ThreadPoolExecutor` whose workers are its own: daemons with a time limit per task.

    Usable wherever an executor is expected: `submit` runs without a limit. At the end of the program it does not wait
    for work that is still under way.

    Args:
        max_workers: threads at work at a time, >= 1.
        max_abandoned: hung threads that are replaced by a new worker, >= 0.
        clock: what deadlines are measured on.
        name: prefix of the threads' names.
    """

    def __init__(
        self, max_workers: int, *, max_abandoned: int = 16, clock: Clock | None = None, name: str = "resilient-scan"
    ) -> None:
        super().__init__(max_workers)  # starts nothing: only its own `submit` makes threads
        self._most = max_workers
        self._max_abandoned = max_abandoned
        self._clock: Clock = clock or SystemClock()
        self._name = name
        self._numbers = itertools.count()
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._mutex = threading.Lock()
        self._workers: set[Worker] = set()  # those that have a slot, at most `_most`
        self._hung: set[Worker] = set()  # expired and still running, with or without a slot
        self._unfinished = 0  # tasks submitted and not ended, apart from those of replaced workers
        self._closed = False
        self._wake: Wake = self._clock.event()
        self._next_look = NEVER
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._watchdog: threading.Thread | None = None
        self.hangs: Hangs = Hangs(self._mutex, self._clock, self._set_timer, self.run_soon)
        self._errands: deque[Callable[[], None]] = deque()
        self.worst_lateness: float = 0.0  # seconds after a deadline at which the watchdog acted, at worst

    # what a user of executors knows

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run `fn(*args, **kwargs)` on a worker, without a time limit."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        variables = contextvars.copy_context()
        self.execute(FutureTask(future, lambda: variables.run(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; what is queued still runs unless `cancel_futures`.

        With `wait`, wait for the workers to end, though never for a hung one.
        """
        with self._mutex:
            if not self._closed:
                self._closed = True
                self._queue.put(None)  # for all workers, see `_work`
            workers = [worker for worker in self._workers if not worker.expired]
        if cancel_futures:
            self._refuse_queued(SHUT_DOWN)
        self._wake.set()
        if wait:
            for worker in workers:
                thread = worker.thread
                while thread is not None and thread is not threading.current_thread() and thread.is_alive():
                    if worker.expired:
                        break
                    thread.join(POLL_INTERVAL)

    # what the runner adds

    def stop(self) -> None:
        """Shut down, refuse what is queued, and tell what is under way to stop; wait for nothing."""
        self.shutdown(wait=False, cancel_futures=True)
        with self._mutex:
            tasks = [worker.task for worker in self._workers | self._hung]
            self.hangs.decide_all()
        for task in tasks:
            if task is not None:
                task.stop()
        self.hangs.report()

    def execute(self, task: Task) -> None:
        """Queue a task; see `execute_all`."""
        self.execute_all([task])

    def execute_all(self, tasks: list[Any]) -> None:
        """Queue tasks, all of them or none; each is taken out of the list as it is queued.

        Raises:
            RuntimeError: the pool is shut down, or not even one thread can be started.
        """
        with self._mutex:
            if self._closed:
                raise RuntimeError(SHUT_DOWN)
            if self._watchdog is None and self._workers:
                _log.error("the watchdog of the thread pool had ended; a new one is started")
                self._start_watchdog()
            stuck = bool(self._hung) and self._is_stuck()
            if not stuck:
                self._queue_all(tasks)
        while stuck and tasks:
            tasks[0].refuse(self._reason())  # see `Run._hand_over`
            del tasks[0]

    def _queue_all(self, tasks: list[Any]) -> None:
        """Count tasks, start the workers that they can use, and queue them, all or none; under the mutex.

        A signal handler may raise at any point in here, on the main thread. Tasks that count and are not queued would
        take places that nobody ever gives back, and one that is neither queued nor in its owner's list would be lost.
        So each statement, and each call into C, is done or not done.
        """
        counted = False
        try:
            counted, self._unfinished = True, self._unfinished + len(tasks)
            if len(self._workers) < self._most and len(self._workers) < self._unfinished:
                self._start_workers()
            if not self._workers:
                raise RuntimeError("no thread can be started on this machine just now")
            any(map(self._queue.put, map(tasks.pop, itertools.repeat(0, len(tasks)))))  # one call
        except BaseException:
            if counted:
                self._unfinished -= len(tasks)  # those that are not queued
            raise

    def at(self, instant: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` (quick, it must not raise) on the watchdog's thread at `instant`; return what takes it back."""
        entry = (instant, next(self._numbers), call)
        with self._mutex:
            heapq.heappush(self._timers, entry)
            self._start_watchdog()
        self.look_by(instant)
        return lambda: self._forget(entry)

    def lend_worker(self, call: Callable[[], None]) -> bool:
        """Have a worker call `call`; `False`: there is none. No lock is taken: for signal handlers and finalizers."""
        if self._workers:
            self._queue.put(FutureTask(concurrent.futures.Future(), call))
        return bool(self._workers)

    def run_soon(self, call: Callable[[], None]) -> None:
        """Run `call` on a thread that may be made to wait, as soon as there is one; for the watchdog.

        It never raises. Where the machine has no thread left, "can't start new thread" would come out of the watch
        loop, and no deadline of this pool would be kept from then on. If no worker can take the call now (all hang, or
        the pool is shut down), it waits for `run_errands`: the start of a run calls that, and so does a hung thread
        that ends.
        """
        self._errands.append(call)
        with self._mutex:
            if self._closed or self._is_stuck():
                return
            self._unfinished += 1
            self._queue.put(FutureTask(concurrent.futures.Future(), self.run_errands))
            self._start_workers()

    def run_errands(self) -> None:
        """Do what the watchdog has put off; never raises."""
        while self._errands:
            try:
                call = self._errands.popleft()
            except IndexError:  # another thread took the last one
                return
            guarded(call, "what the watchdog had put off failed")

    def abandoned(self) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first."""
        with self._mutex:
            hung = [(one, one.task, one.hang) for one in sorted(self._hung, key=lambda worker: worker.started)]
        if not hung:
            return []
        in_c = in_c_calls([hang.native_id for _, _, hang in hung if hang is not None and hang.hint is None])
        now, frames = self._clock.monotonic(), current_frames()
        return [
            worker.describe(task, now, frames, hang.hint_if(in_c_call=hang.native_id in in_c))
            for worker, task, hang in hung
            if task is not None and hang is not None
        ]

    def counts(self) -> dict[str, int]:
        """Return how many threads are `busy`, `idle` and `abandoned`."""
        with self._mutex:
            busy = sum(worker.task is not None and not worker.expired for worker in self._workers)
            hung_with_slot = len(self._hung & self._workers)
            return {"busy": busy, "idle": len(self._workers) - busy - hung_with_slot, "abandoned": len(self._hung)}

    @property
    def queued(self) -> int:
        """How many tasks wait for a worker."""
        with self._mutex:
            return 0 if self._closed else self._queue.qsize()

    @property
    def free(self) -> int:
        """How many further tasks could begin now; a worker that is handing over is as good as free."""
        with self._mutex:
            at_work = [worker.task for worker in self._workers if worker.task is not None and not worker.expired]
            return max(0, self._most - self._unfinished + sum(task.through for task in at_work))

    def why_stuck(self) -> str | None:
        """Say why no work is taken, where every worker hangs and none can be replaced."""
        with self._mutex:
            return self._reason() if self._is_stuck() else None

    def look_by(self, instant: float) -> None:
        """See to it that the watchdog looks at the deadlines no later than at `instant`.

        The watchdog sets `_next_look` to infinity *before* it reads the workers' deadlines. When a caller sets a
        deadline while the watchdog reads, there are two cases. Either the watchdog reads the new deadline, or it read
        the old one first, and then this call sees the infinity (or a later look) and wakes it. Were `_next_look` still
        the instant of the look under way, every new deadline would be later than that: this call would not wake the
        watchdog, which would then sleep past the deadline that it has not read.
        """
        if instant < self._next_look:
            self._wake.set()

    # workers

    def _start_workers(self) -> None:
        """Start the workers that the queued work can use; under the mutex.

        A machine that has no thread left gets by with the workers it has; another try follows a little later.
        """
        try:
            while self._unfinished > len(self._workers) and len(self._workers) < self._most:
                self._start_worker()
        except RuntimeError:
            self._set_timer(self._clock.monotonic() + THREAD_RETRY_INTERVAL, self._replace_hung)
            self._wake.set()

    def _start_worker(self) -> None:
        worker = Worker(self.look_by)
        name = f"{self._name}-{next(self._numbers)}"
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        self._start_watchdog()
        worker.thread.start()
        self._workers.add(worker)

    def _enter(self, worker: Worker) -> bool:
        """See to it that a worker is timed out: an interrupt may have kept its starter from adding it."""
        with self._mutex:
            if worker not in self._workers and self._closed:
                return False
            self._workers.add(worker)
        return True

    def _work(self, worker: Worker) -> None:
        if not self._enter(worker):
            return
        while (task := self._queue.get()) is not None:
            started = self._clock.monotonic()
            deadline = task.start(started, worker)
            if deadline is not None:
                worker.started = started
                worker.deadline = deadline  # before the task, or that would have the last one's for a moment
                worker.task = task
                if deadline < self._next_look:  # `look_by`, without the call
                    self._wake.set()
                try:
                    task.run()
                except BaseException:  # it must not raise, but where no memory is left, anything may
                    _log.exception("%s: a task failed", task.name)
            with self._mutex:
                worker.task = None  # the deadline stays, see `_upcoming`
                in_time = not worker.expired
                if in_time:
                    self._unfinished -= 1
            if not in_time and not self._come_back(worker, task):
                return
            del task  # else an idle worker keeps its last task, and all that this holds, alive
        # Left for the next one. Were there one for each worker, it would have to be known at the close which threads
        # come for it: a hung one that was replaced does not, and a worker that is started later, in its place, does.
        self._queue.put(None)
        with self._mutex:
            self._workers.discard(worker)
        self._wake.set()  # the watchdog of a closed pool ends with the last worker

    def _come_back(self, worker: Worker, task: Task) -> bool:
        """Note that a worker is back from a task whose time was up; `False`: it was replaced, and its thread ends."""
        with self._mutex:
            worker.expired = False
            self._hung.discard(worker)
            if not worker.replaced:
                self._unfinished -= 1
            report = None if worker.hang is None else worker.hang.end(self._clock.monotonic())
            worker.hang = None
        task.returned()
        if report is not None:
            report()
        self.run_errands()
        self._replace_hung()
        return not worker.replaced

    # the watchdog

    def _start_watchdog(self) -> None:
        """Start the watchdog if there is none; under the mutex."""
        if self._watchdog is None:
            watchdog = threading.Thread(target=self._watch, name=f"{self._name}-watchdog", daemon=True)
            self._watchdog = watchdog  # first: a thread that ends at once takes its name out again
            try:
                watchdog.start()
            except BaseException:  # no thread is left; or an interrupt, and nobody knows whether it runs: see `_watch`
                self._watchdog = None
                raise

    def _watch(self) -> None:
        """Keep the deadlines until the pool is done.

        A failure in one look (a bug of ours, no memory) must not end the looking: every timeout and every deadline of
        the runner depends on this thread. If it ends all the same, `execute` starts another one.
        """
        with self._mutex:
            self._watchdog = self._watchdog or threading.current_thread()
            if self._watchdog is not threading.current_thread():
                return
        try:
            while not guarded(self._look, "the watchdog failed; it looks again", failed=False):
                guarded(self._pause, "the watchdog could not wait")
        finally:
            with self._mutex:
                if self._watchdog is threading.current_thread():
                    self._watchdog = None

    def _pause(self) -> None:
        """Wait a moment after a failure, which may last and would fill the log."""
        self._clock.wait(self._clock.monotonic() + POLL_INTERVAL, self._wake)

    def _look(self) -> bool:
        """Act on the deadlines that have come and wait for the next one; `True`: the pool is done."""
        while True:
            # Cleared before the look around. The last worker of a closed pool leaves its slot first and sets this flag
            # then: cleared afterwards, its call would be lost, and this thread would wait for ever.
            self._wake.clear()
            if self._is_done():
                return True
            self._next_look = NEVER  # before the deadlines are read, see `look_by`
            now = self._clock.monotonic()
            self._call_timers(now)
            self._pass_marks(now)
            expired = self._past_deadline(now)
            if expired:
                self._expire_all(expired, now)
            self.hangs.go_on_freeing(self._clock.monotonic)
            self._next_look = upcoming = self._upcoming(now)
            if upcoming > now:
                self._clock.wait(upcoming, self._wake)

    def _is_done(self) -> bool:
        with self._mutex:
            if not self._closed or self._workers:
                return False
        self.hangs.free_the_last()
        with self._mutex:
            self._watchdog = None  # nobody waits for the timers that are left
        return True

    def _pass_marks(self, now: float) -> None:
        """Tell the tasks whose mark has come."""
        with self._mutex:
            marks = [(worker, worker.mark) for worker in self._workers if not worker.expired]
            due = [(worker, mark) for worker, mark in marks if mark <= now and mark != worker.passed]
            tasks = [worker.task for worker, _ in due]
            for worker, mark in due:
                worker.passed = mark
        for task in tasks:
            if task is not None:
                guarded(task.mark_passed, f"{task.name}: what was due at its mark failed")

    def _past_deadline(self, now: float) -> list[Worker]:
        with self._mutex:
            return [w for w in self._workers if w.task is not None and w.deadline <= now and not w.expired]

    def _upcoming(self, now: float) -> float:
        """Return when to look next.

        The last deadline of an idle worker counts, until it has passed. Most runs are short, and nothing is under way
        when the watchdog comes to look. If it then slept until it is woken, each run's first task would wake it again:
        two more switches of threads, for a run of one scanner as many as all else takes. So it sleeps until a deadline
        that was met, and the deadlines of the next runs are later than that.
        """
        with self._mutex:
            looked_at = [w for w in self._workers if (w.task is not None or w.deadline > now) and not w.expired]
            deadlines = [w.deadline for w in looked_at]
            marks = [w.next_mark for w in looked_at if w.task is not None]  # an idle worker's concerns nobody
            timers = [instant for instant, _, _ in self._timers[:1]]
            return min([*deadlines, *marks, *timers, self.hangs.next_step])

    def _call_timers(self, now: float) -> None:
        while True:
            with self._mutex:
                if not self._timers or self._timers[0][0] > now:
                    return
                instant, _, call = heapq.heappop(self._timers)
            self.worst_lateness = max(self.worst_lateness, now - instant)
            guarded(call, "a timer failed")

    def _set_timer(self, instant: float, call: Callable[[], None]) -> None:
        """Have the watchdog call `call` at `instant`, if it looks by then. Under the mutex."""
        heapq.heappush(self._timers, (instant, next(self._numbers), call))

    def _forget(self, entry: tuple[float, int, Callable[[], None]]) -> None:
        with self._mutex:
            if entry in self._timers:
                self._timers.remove(entry)
                heapq.heapify(self._timers)

    def _expire_all(self, workers: Sequence[Worker], now: float) -> None:
        """Tell tasks that their time is up; nothing of them is kept here while the watchdog waits."""
        hung = [hang for worker in workers if (hang := self._expire(worker, now)) is not None]
        self._replace_hung()
        self.hangs.look_for_the_lock(hung, now, self._native_ids)

    def _native_ids(self) -> list[int]:
        """Return the kernel's numbers of the threads at work, hung ones too."""
        with self._mutex:
            at_work = [one.thread for one in self._workers | self._hung if one.task is not None]
        return [thread.native_id or 0 for thread in at_work if thread is not None]

    def _expire(self, worker: Worker, now: float) -> Hang | None:
        """Tell a task that its time is up, unless it ended between the watchdog's look and the mutex (`None`).

        Without this second look, a worker that took the next task in between would be expired for the task before.
        """
        with self._mutex:
            task = worker.task
            if task is None or worker.expired or worker.deadline > now:
                return None
            worker.expired = True
            lateness, worker.deadline = now - worker.deadline, NEVER
            self._hung.add(worker)
            thread = worker.thread.name if worker.thread is not None else ""
            native_id = 0 if worker.thread is None else worker.thread.native_id or 0
            hang = worker.hang = Hang(task, thread, worker.started, native_id, lateness)
            self.hangs.note(hang, now, worker.thread if task.frees_sockets else None)
        self.worst_lateness = max(self.worst_lateness, lateness)
        age = now - worker.started
        guarded(lambda: task.expire(thread, age, lateness), f"the timeout of {task.name} could not be handed over")
        return hang

    def _replace_hung(self) -> None:
        """Replace hung threads by new workers, up to `max_abandoned`; refuse what waits if no slot is left."""
        with self._mutex:
            replaced = len(self._hung - self._workers)
            for worker in [w for w in self._workers if w.expired][: max(0, self._max_abandoned - replaced)]:
                worker.replaced = True
                self._workers.discard(worker)
                self._unfinished -= 1
            self._start_workers()
            stuck = self._is_stuck()
        if self._closed:
            self._wake.set()  # the watchdog may be the last to go
        if stuck:
            self._refuse_queued(self._reason())

    # when every thread hangs

    def _is_stuck(self) -> bool:
        """Say whether every slot is taken by a hung thread that cannot be replaced; under the mutex."""
        return (
            len(self._workers) >= self._most
            and all(worker.expired for worker in self._workers)
            and len(self._hung - self._workers) >= self._max_abandoned
        )

    def _reason(self) -> str:
        return (
            f"all {self._most} workers hang and {self._max_abandoned} hung threads were already replaced "
            "(max_abandoned); work is taken again when one of them ends"
        )

    def _refuse_queued(self, reason: str) -> None:
        while True:
            try:
                task = self._queue.get_nowait()
            except Empty:
                return
            if task is None:  # the order to end
                self._queue.put(None)
                return
            with self._mutex:
                self._unfinished -= 1
            task.refuse(reason)
