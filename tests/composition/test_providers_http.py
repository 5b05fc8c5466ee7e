"""Scanners whose options name no provider: it is the host and port that `resilient_scan.http` calls. Real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Limit, Retry, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.events import AttemptEnded, ExecutionEnded
from resilient_scan.http import Client, TransientError
from resilient_scan.layers import providers as providers_module
from resilient_scan.testing import FakeClock, Recorder
from tests.support.fixtures import Bare, Fleet
from tests.support.http import (
    CHUNKED,
    CUT,
    UNAVAILABLE,
    dropped,
    hang,
    no_such_host,
    raw_server,
    refused,
    say,
    tls_garbage,
)
from tests.support.results import statuses

NAMES = ("gap_up", "gap_down", "movers", "volume", "news", "filings")

# The server says that it closes the connection: else the next request may be sent on one that is just closing.
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    no_such_host(monkeypatch)


def one_page_is_broken(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
    return (503 if path == "/broken" else 200), {}, b"{}"


class Host:
    """Scanners that each make one request to a host, and who has called."""

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.client = Client(url, timeout=timeout)
        self.place = url.partition("://")[2]
        self.calls: list[str] = []
        self.paths: dict[str, str] = {}

    def scanner(self, name: str, **layers: Any) -> Any:
        @scanner(name=name, pipeline="test", **layers)
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            self.calls.append(name)
            self.client.get(self.paths.get(name, "/"), context=context)
            return []

        return scan


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(url: str, **options: Any) -> Host:
        made.append(Host(url, **options))
        return made[-1]

    yield make
    for each in made:
        each.client.close()


def states(runner: ScanRunner) -> dict[str, str | None]:
    return {each.provider: each.state for each in runner.providers()}


WAYS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "nobody listens": refused,
    "503": lambda: raw_server(say(UNAVAILABLE)),
    "502": lambda: raw_server(say(UNAVAILABLE.replace(b"503", b"502"))),
    "504": lambda: raw_server(say(UNAVAILABLE.replace(b"503", b"504"))),
    "dropped before the answer": lambda: raw_server(dropped),
    "dropped in the middle of a body": lambda: raw_server(say(CUT)),
    "dropped in the middle of a chunk": lambda: raw_server(say(CHUNKED)),
    "TLS garbage": tls_garbage,
    "no such host": lambda: nullcontext("http://no-such-host.invalid:80"),
}


@pytest.mark.parametrize("kind", WAYS)
def test_a_way_that_breaks_down_counts_at_the_host(
    kind: str, host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with WAYS[kind]() as url:
        dead = host(url)
        policy = bare(breaker=Breaker(failures=3), retry=Retry(attempts=3, base=0, cap=0))
        runner = fleet(*map(dead.scanner, NAMES), policy=policy, concurrent=False)
        reports = [runner.run() for _ in range(5)]
    assert len(dead.calls) <= 6 + 2  # until its first request, nobody knows whom a scanner calls
    assert states(runner) == {dead.place: "open"}
    assert {runner.breaker(name) for name in NAMES} == {"closed"}
    assert {result.status for result in reports[-1].results.values()} == {Status.REJECTED}


@pytest.mark.parametrize("status", [400, 404, 429, 500, 501])
def test_other_answers_stay_the_scanners(status: int, host: Callable[..., Host], fleet: Fleet, bare: Bare) -> None:
    answer = f"HTTP/1.1 {status} Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with raw_server(say(answer)) as url:
        source = host(url)
        runner = fleet(*map(source.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)), concurrent=False)
        for _ in range(3):
            runner.run()
    assert states(runner) == {source.place: "closed"}
    assert runner.breaker("gap_up") == ("closed" if status in {400, 404} else "open")


def test_a_host_that_accepts_and_then_hangs_is_not_found_out(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with raw_server(hang) as url:
        silent = host(url, timeout=0.05)
        runner = fleet(*map(silent.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)))
        for _ in range(3):
            runner.run()
    assert states(runner) == {silent.place: "closed"}
    assert [runner.breaker(name) for name in NAMES[:2]] == ["open", "open"]


def test_a_page_that_is_always_503_does_not_take_the_host_from_the_others(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with LoopbackServer(one_page_is_broken) as server:
        source = host(server.url)
        source.paths["gap_up"] = "/broken"
        policy = bare(breaker=Breaker(failures=3), retry=Retry(attempts=2, base=0, cap=0))
        runner = fleet(*map(source.scanner, NAMES[:3]), policy=policy, concurrent=False, order="given")
        for _ in range(8):
            assert statuses(runner.run())[1:] == [Status.COMPLETED, Status.COMPLETED]
    assert states(runner) == {source.place: "closed"}
    assert runner.breaker("gap_up") == "open"


def test_a_scanner_that_comes_later_may_try_a_host_that_one_alone_has_given_up(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with LoopbackServer(one_page_is_broken) as server:
        source = host(server.url)
        source.paths["gap_up"] = "/broken"
        runner = fleet(*map(source.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)))
        for _ in range(3):
            runner.run(only=["gap_up"])
        assert states(runner) == {source.place: "open"}
        assert statuses(runner.run(only=["gap_down"])) == [Status.COMPLETED]
    assert states(runner) == {source.place: "closed"}


def test_retry_after_of_a_503_holds_the_host_and_counts(host: Callable[..., Host], fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    answer = UNAVAILABLE.replace(b"Content-Length: 0", b"Content-Length: 0\r\nRetry-After: 90")
    with raw_server(say(answer)) as url:
        source = host(url)
        policy = bare(breaker=Breaker(failures=2, open_for=10), timeout=Timeout(total=30))
        runner = fleet(*map(source.scanner, NAMES[:2]), policy=policy, clock=clock, concurrent=False)
        runner.run()
        assert states(runner) == {source.place: "held"}
        report = runner.run(only=["gap_down"])
        assert len(source.calls) == 1 or report.results["gap_down"].status is Status.REJECTED
        clock.advance(90)
        runner.run(only=["gap_down"])
    assert states(runner) == {source.place: "open"}
    breaker = runner._fleet.provider(source.place).breaker
    assert breaker is not None
    assert breaker.next_trial_in() == 90  # not the 10 s of `open_for`


def test_a_scanner_that_calls_two_hosts_is_refused_request_by_request(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    """It may get along without one of them: so nobody rejects it before it begins."""
    with refused() as dead, raw_server(say(OK)) as url:
        down, up = Client(dead), Client(url)
        outcomes: list[str] = []

        @scanner(pipeline="test")
        def both(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            try:
                down.get("/", context=context)
            except Exception as error:
                outcomes.append(type(error).__name__)
            return [] if up.get("/", context=context).text == "ok" else [{"ticker": "A"}]

        runner = fleet(both, policy=bare(breaker=Breaker(failures=2)))
        assert [statuses(runner.run())[0] for _ in range(4)] == [Status.COMPLETED] * 4
        down.close()
        up.close()
    assert outcomes == ["TransientError", "TransientError", "CircuitOpen", "CircuitOpen"]
    assert sorted(map(str, states(runner).values())) == ["closed", "open"]


def test_a_scanner_that_tries_sources_in_turn_is_not_rejected_for_the_first_of_them(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with refused() as dead:
        down = host(dead)

        @scanner(pipeline="test")
        def either(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            try:
                context.guarded("first", lambda: down.client.get("/", context=context))
            except Exception:
                return []
            return []

        runner = fleet(either, *map(down.scanner, NAMES[:2]), policy=bare(breaker=Breaker(failures=2)))
        reports = [runner.run() for _ in range(4)]
    assert states(runner) == {down.place: "open"}
    assert {report.results["either"].status for report in reports} == {Status.COMPLETED}
    assert reports[-1].results["gap_up"].status is Status.REJECTED


def test_a_trial_whose_page_is_not_there_closes_it_all_the_same(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    """A 404 is the scanner's business. It is an answer, so the way is there."""
    clock, status = FakeClock(), [503]
    with LoopbackServer(lambda _path, _query: (status[0], {}, b"")) as server:
        source = host(server.url)
        limited = [source.scanner(name, limit=Limit("acme")) for name in NAMES[:2]]
        policy = bare(breaker=Breaker(failures=2, open_for=10))
        runner = fleet(*limited, policy=policy, clock=clock, concurrent=False)
        runner.run()
        assert states(runner) == {"acme": "open"}  # what they name, and not the host
        status[0] = 404
        clock.advance(10)
        runner.run()
    assert states(runner) == {"acme": "closed"}


def test_a_coroutine_is_behind_it_too(fleet: Fleet, bare: Bare) -> None:
    calls: list[str] = []

    def coroutine(name: str) -> Any:
        @scanner(name=name, pipeline="test", limit=Limit("acme"))
        async def scan(_state: dict[str, Any]) -> list[Any]:
            calls.append(name)
            raise ConnectionResetError("reset")

        return scan

    runner = fleet(*map(coroutine, NAMES), policy=bare(breaker=Breaker(failures=3)))
    for _ in range(5):
        report = runner.run()
    assert len(calls) <= 6
    assert statuses(report) == [Status.REJECTED] * 6
    assert states(runner) == {"acme": "open"}


def test_the_state_of_a_host_is_shared_through_the_store(
    host: Callable[..., Host], fleet: Fleet, bare: Bare, tmp_path: Path
) -> None:
    with refused() as dead:
        down = host(dead)
        policy, store = bare(breaker=Breaker(failures=2)), f"sqlite:///{tmp_path}/state.db"
        one, two = (fleet(*map(down.scanner, NAMES[:2]), policy=policy, store=store) for _ in range(2))
        one.run()
        report = two.run()
        assert len(down.calls) == 4  # whom a scanner calls is learned anew in each process, by its first request
        assert {(result.status, result.attempts) for result in report.results.values()} == {(Status.REJECTED, 0)}
        assert {error.kind for result in report.results.values() if (error := result.error)} == {"CircuitOpen"}
        assert statuses(two.run()) == [Status.REJECTED] * 2
        assert len(down.calls) == 4


def test_a_first_request_that_is_refused_is_no_attempt(
    host: Callable[..., Host], fleet: Fleet, bare: Bare, tmp_path: Path
) -> None:
    """Each run from cron is a process of its own, which has yet to learn whom its scanners call."""
    with refused() as dead:
        down = host(dead)
        options: dict[str, Any] = {"policy": bare(breaker=Breaker(failures=2)), "store": f"sqlite:///{tmp_path}/s.db"}
        fleet(*map(down.scanner, NAMES[:2]), **options).run()
        recorder = Recorder()
        fleet(*map(down.scanner, NAMES[:2]), **options, listeners=(recorder,)).run()
    ended = [event for event in recorder.events_seen if isinstance(event, AttemptEnded | ExecutionEnded)]
    assert [type(event) for event in ended].count(AttemptEnded) == 2  # what was begun ends, and is not counted
    assert {event.outcome for event in ended} == {"cancelled"}
    assert len(ended) == 4


def test_a_request_that_is_refused_after_another_one_is_part_of_an_attempt(
    host: Callable[..., Host], fleet: Fleet, bare: Bare, tmp_path: Path
) -> None:
    with refused() as dead, raw_server(say(OK)) as url:
        down, up = host(dead), host(url)
        policy, store = bare(breaker=Breaker(failures=2)), f"sqlite:///{tmp_path}/s.db"
        fleet(*map(down.scanner, NAMES[:2]), policy=policy, store=store).run()

        @scanner(pipeline="test")
        def both(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            up.client.get("/", context=context)
            down.client.get("/", context=context)
            return []

        result = fleet(both, *map(down.scanner, NAMES[:2]), policy=policy, store=store).run().results["both"]
    assert (result.status, result.attempts) == (Status.ERROR, 1)
    assert result.error is not None
    assert result.error.kind == "CircuitOpen"


def test_a_host_answers_for_its_own_failures_only(host: Callable[..., Host], fleet: Fleet, bare: Bare) -> None:
    """Whom else a scanner calls by other means, nobody knows: that stays the scanner's."""
    with raw_server(say(OK)) as url:
        source = host(url)

        @scanner(pipeline="test")
        def elsewhere(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            source.client.get("/", context=context)
            raise ConnectionRefusedError("somebody else")

        runner = fleet(elsewhere, policy=bare(breaker=Breaker(failures=2)))
        for _ in range(3):
            runner.run()
    assert states(runner) == {source.place: "closed"}
    assert runner.breaker("elsewhere") == "open"


def test_a_trial_that_is_asked_to_wait_does_not_close_it(host: Callable[..., Host], fleet: Fleet, bare: Bare) -> None:
    clock, answer = FakeClock(), [(503, {})]
    with LoopbackServer(lambda _path, _query: (*answer[0], b"")) as server:
        source = host(server.url)
        runner = fleet(source.scanner("gap_up"), policy=bare(breaker=Breaker(failures=1, open_for=10)), clock=clock)
        runner.run()
        answer[0] = (429, {"Retry-After": "90"})
        clock.advance(10)
        runner.run()
    assert states(runner) == {source.place: "half_open"}


def test_what_an_earlier_attempt_heard_does_not_count_for_a_later_one(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    answers = [(500, b""), (503, b""), (503, b"")]
    with LoopbackServer(lambda _path, _query: (answers[0][0], {}, answers.pop(0)[1])) as server:
        source = host(server.url)
        limited = source.scanner("gap_up", limit=Limit("acme"))
        policy = bare(breaker=Breaker(failures=2), retry=Retry(attempts=3, base=0, cap=0))
        runner = fleet(limited, policy=policy)
        runner.run()
    assert states(runner) == {"acme": "open"}


def test_a_scanner_without_a_breaker_has_no_host_with_one(host: Callable[..., Host], fleet: Fleet, bare: Bare) -> None:
    with refused() as dead:
        down = host(dead)
        runner = fleet(down.scanner("gap_up"), policy=bare(breaker=None))
        assert [statuses(runner.run())[0] for _ in range(8)] == [Status.ERROR] * 8
    assert states(runner) == {}


def test_more_hosts_than_a_runner_watches_are_called_as_before(
    fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers_module, "MAX_HOSTS", 2)
    with ExitStack() as stack:
        clients = [Client(stack.enter_context(refused())) for _ in range(4)]

        @scanner(pipeline="test")
        def many(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            for client in clients:
                with suppress(TransientError):
                    client.get("/", context=context)
            return []

        runner = fleet(many, policy=bare(breaker=Breaker()))
        assert statuses(runner.run()) == [Status.COMPLETED]
        for client in clients:
            client.close()
    assert len(states(runner)) == 2


def test_a_scanner_that_begins_to_try_sources_is_not_rejected_for_one_host_any_more(
    host: Callable[..., Host], fleet: Fleet, bare: Bare
) -> None:
    with refused() as dead:
        down = host(dead)

        @scanner(pipeline="test")
        def learns(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            try:
                down.client.get("/", context=context)
            except TransientError:
                return context.guarded("fallback", list)
            return []

        runner = fleet(learns, policy=bare(breaker=Breaker(failures=5)))
        assert statuses(runner.run()) == [Status.COMPLETED]
        assert runner._fleet.stacks["learns"].provider is None
