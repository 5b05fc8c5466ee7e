"""Single-flight over real processes on one store: an outside API is asked once, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Cache, Policy, ScanRunner, Status, Timeout, scanner
from resilient_scan.stores import Store, leases
from resilient_scan.stores.leases import LEASE_SECONDS
from tests.e2e.store_crew import Say, Worker
from tests.support.waiting import eventually

DAY = {"trade_date": "2026-11-24"}
WAIT_TIMEOUT = 10.0
_PAUSE = threading.Event()


class Source:
    """An outside API that counts who asks it, over all processes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "asked"

    def ask(self, name: str = "one") -> int:
        """Count one up and return how many have asked."""
        handle = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(handle, f"{name}\n".encode())
        os.close(handle)
        return len(self.asked())

    def asked(self) -> list[str]:
        return self._path.read_text().split() if self._path.exists() else []

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.asked()) >= count, f"{count} have asked")


@pytest.fixture
def source(quick_path: Path) -> Source:
    return Source(quick_path)


Act = Callable[[int], None]


def asking(source: Source, act: Act, name: str = "one") -> Any:
    """Make a scanner that asks the source; `act` gets the number of the call."""

    @scanner(name=name, pipeline="test")
    def scan(_state: dict[str, Any]) -> list[Any]:
        number = source.ask(name)
        act(number)
        return [{"ticker": "AAPL", "source": name, "context": f"call {number}"}]

    return scan


def runner_of(url: str, *scanners: Any, total: float = WAIT_TIMEOUT, **options: Any) -> ScanRunner:
    policy = Policy(cache=Cache(ttl=300), retry=None, breaker=Breaker(failures=50, open_for=1), timeout=Timeout(total))
    return ScanRunner(scanners, policy=policy, store=url, listeners=(), **options)


def running(make: Callable[[], ScanRunner], at: float = 0.0, **run: Any) -> Callable[[Store, Say], None]:
    """Return a job: run once, at an instant of the machine's monotonic clock, and say how it ended."""

    def job(_store: Store, say: Say) -> None:
        with make() as runner:
            _PAUSE.wait(max(0.0, at - time.monotonic()))
            began = time.monotonic()
            report = runner.run(DAY, **run)
            took = time.monotonic() - began
        for result in report.results.values():
            context = result.candidates[0].context if result.candidates else "-"
            say(f"{result.scanner}|{result.status}|{result.attempts}|{context}|{took:.3f}")

    return job


def told(worker: Worker) -> list[list[str]]:
    lines = worker.wait()
    assert all(line.count("|") == 4 for line in lines), lines
    return [line.split("|") for line in lines]


def test_eight_at_once_ask_once(url: str, source: Source) -> None:
    def make() -> ScanRunner:
        return runner_of(url, asking(source, lambda _number: time.sleep(0.3)))

    at = time.monotonic() + 0.5
    crew = [Worker(url, running(make, at)) for _ in range(8)]
    found = [told(worker)[0] for worker in crew]
    assert source.asked() == ["one"]
    assert sorted(line[1] for line in found) == ["cached"] * 7 + ["completed"]
    assert {line[3] for line in found} == {"call 1"}
    assert {line[1]: line[2] for line in found} == {"completed": "1", "cached": "0"}
    assert max(float(line[4]) for line in found) < WAIT_TIMEOUT


def test_a_leader_that_is_killed_is_not_waited_for(url: str, source: Source) -> None:
    def make() -> ScanRunner:
        return runner_of(url, asking(source, lambda number: time.sleep(60 if number == 1 else 0)), total=60)

    leader = Worker(url, running(make))
    source.wait_for(1)
    followers = [Worker(url, running(make)) for _ in range(3)]
    _PAUSE.wait(0.3)
    leader.kill()
    found = [told(worker)[0] for worker in followers]
    assert source.asked() == ["one", "one"]
    assert sorted(line[1] for line in found) == ["cached", "cached", "completed"]
    assert {line[3] for line in found} == {"call 2"}
    assert all(float(line[4]) < LEASE_SECONDS for line in found), found


def test_a_leader_that_is_killed_between_its_lease_and_its_answer_is_not_waited_for(
    url: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ended its scan, and waits for others to end, so that it writes all their answers at once."""
    monkeypatch.setattr(leases, "LINGER", 60.0)

    def theirs() -> ScanRunner:
        held = asking(source, lambda _number: time.sleep(60), "held")
        return runner_of(url, asking(source, lambda _number: None), held, total=60)

    def job(_store: Store, say: Say) -> None:
        for result in theirs().stream(DAY):
            say(result.scanner)

    leader = Worker(url, job)
    eventually(lambda: leader.lines == ["one"], "its scan has ended")
    leader.kill()
    ((_, status, attempts, context, took),) = told(
        Worker(url, running(lambda: runner_of(url, asking(source, lambda _number: None))))
    )
    assert (status, attempts, context) == ("completed", "1", f"call {len(source.asked())}")
    assert source.asked().count("one") == 2
    assert float(took) < LEASE_SECONDS / 2


def test_two_runners_that_write_in_groups_ask_for_each_answer_once(url: str, source: Source) -> None:
    """As quick as they can be, so that what one has released is wanted by the other in the same moment."""
    names = [f"s{number}" for number in range(300)]
    runners = [runner_of(url, *[asking(source, lambda _number: None, name) for name in names]) for _ in "ab"]
    reports: list[Any] = []
    for number in range(3):
        day = {"n": number}
        crew = [threading.Thread(target=lambda one=one, day=day: reports.append(one.run(day))) for one in runners]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(WAIT_TIMEOUT)
        assert sorted(source.asked()) == sorted(names * (number + 1))
    for runner in runners:
        runner.close()
    assert len(reports) == 6
    assert all(report.complete for report in reports)


def test_a_leader_that_fails_is_followed_at_once(url: str, source: Source) -> None:
    def act(number: int) -> None:
        _PAUSE.wait(0.3)
        if number == 1:
            raise OSError("down")

    at = time.monotonic() + 0.4
    crew = [Worker(url, running(lambda: runner_of(url, asking(source, act)), at)) for _ in range(4)]
    found = [told(worker)[0] for worker in crew]
    assert len(source.asked()) == 2
    assert sorted(line[1] for line in found) == ["cached", "cached", "completed", "error"]
    assert max(float(line[4]) for line in found) < WAIT_TIMEOUT


def test_a_leader_that_hangs_is_followed_after_its_timeout(url: str, source: Source) -> None:
    def make() -> ScanRunner:
        return runner_of(url, asking(source, lambda number: time.sleep(20 if number == 1 else 0)), total=0.6)

    leader = Worker(url, running(make))
    source.wait_for(1)
    follower = Worker(url, running(make))
    ((_, status, attempts, context, took),) = told(follower)
    assert (status, attempts, context) == ("completed", "1", "call 2")
    assert float(took) < WAIT_TIMEOUT
    assert told(leader)[0][1] == "timeout"


def test_others_go_on_while_another_process_works_on_sixty_of_a_hundred(url: str, source: Source) -> None:
    names = [f"s{number}" for number in range(100)]
    gate = source._path.with_name("gate")

    def held(_number: int) -> None:
        while not gate.exists():
            _PAUSE.wait(0.01)

    def theirs() -> ScanRunner:
        return runner_of(url, *[asking(source, held, name) for name in names[:60]], max_workers=60)

    def ours() -> ScanRunner:
        return runner_of(url, *[asking(source, lambda _number: None, name) for name in names], max_workers=2)

    other = Worker(url, running(theirs))
    source.wait_for(60)
    with ours() as runner:
        began, ended = time.monotonic(), {}
        for result in runner.stream(DAY):
            ended[result.scanner] = (result.status, time.monotonic() - began)
            if len(ended) == 40:
                gate.touch()
    told(other)
    assert sorted(source.asked()) == sorted(names), "each is asked once"
    assert {status for name, (status, _) in ended.items() if name in names[60:]} == {Status.COMPLETED}
    assert {status for name, (status, _) in ended.items() if name in names[:60]} == {Status.CACHED}
    assert list(ended)[:40] == sorted(list(ended)[:40], key=lambda name: ended[name][1])
    assert set(list(ended)[:40]) == set(names[60:]), "who waits for another process holds up nobody"
    assert max(took for _, took in ended.values()) < WAIT_TIMEOUT


def test_a_forked_child_waits_for_its_parent_and_finds_its_answer(url: str, source: Source) -> None:
    release = threading.Event()
    runner = runner_of(url, asking(source, lambda _number: release.wait(WAIT_TIMEOUT)))
    with runner:
        leader = threading.Thread(target=runner.run, args=(DAY,))
        leader.start()
        source.wait_for(1)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            try:
                result = runner.run(DAY).results["one"]
                os.write(writer, f"{result.status} {result.candidates[0].context}".encode())
                runner.close()
            finally:
                os._exit(0)
        os.close(writer)
        _PAUSE.wait(0.3)
        release.set()
        leader.join(WAIT_TIMEOUT)
        with os.fdopen(reader) as pipe:
            assert pipe.read() == "cached call 1"
        os.waitpid(pid, 0)
    assert source.asked() == ["one"]


# a follower goes away: two runners in one process are to the store what two processes are


@pytest.fixture
def two(url: str, source: Source) -> Iterator[tuple[ScanRunner, ScanRunner, threading.Event]]:
    """Return a leader that is at work, a follower with one worker, and the event that the leader waits for."""
    release = threading.Event()
    held = asking(source, lambda _number: release.wait(WAIT_TIMEOUT))
    other = asking(source, lambda _number: None, "other")
    leader, follower = runner_of(url, held), runner_of(url, held, other, max_workers=1)
    thread = threading.Thread(target=leader.run, args=(DAY,))
    thread.start()
    source.wait_for(1)
    yield leader, follower, release
    release.set()
    thread.join(WAIT_TIMEOUT)
    leader.close()
    follower.close()
    assert source.asked().count("one") == 1


Two = tuple[ScanRunner, ScanRunner, threading.Event]


def test_a_followers_own_deadline_ends_it(two: Two) -> None:
    _, follower, _ = two
    began = time.monotonic()
    report = follower.run(DAY, deadline=0.4)
    assert 0.4 <= time.monotonic() - began < WAIT_TIMEOUT / 2
    assert report.results["one"].status is Status.SKIPPED
    assert report.results["other"].status is Status.COMPLETED, "who waits holds no worker"


def test_closing_ends_a_follower(two: Two) -> None:
    _, follower, _ = two
    results: list[Any] = []
    run = threading.Thread(target=lambda: results.append(follower.run(DAY)))
    run.start()
    _PAUSE.wait(0.3)
    began = time.monotonic()
    follower.close()
    run.join(WAIT_TIMEOUT)
    assert time.monotonic() - began < WAIT_TIMEOUT / 2
    assert {name: str(result.status) for name, result in results[0].results.items()} == {
        "one": "skipped",
        "other": "completed",
    }


def test_ctrl_c_ends_a_follower(two: Two) -> None:
    _, follower, _ = two
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as stop:
        follower.run(DAY)
    assert time.monotonic() - began < WAIT_TIMEOUT / 2
    assert stop.value.report.results["one"].status is Status.SKIPPED  # type: ignore[attr-defined]


def test_a_follower_that_gave_up_does_not_end_the_next_one(two: Two) -> None:
    _, follower, release = two
    for _ in range(5):
        assert follower.run(DAY, deadline=0.05).results["one"].status is Status.SKIPPED
    timer = threading.Timer(0.2, release.set)
    timer.start()
    assert follower.run(DAY).results["one"].status is Status.CACHED
