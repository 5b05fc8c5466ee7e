"""A fault of our own machine, through the public API: it counts against nobody, but nobody can hide behind it."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    LogEvents,
    Policy,
    PrometheusMetrics,
    Quarantine,
    Retry,
    RunReport,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    load_settings,
    scanner,
)
from resilient_scan.events import AttemptEnded, ExecutionEnded, LocalFault, ProbeEnded
from resilient_scan.http import Client, TransientError
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.http import raw_server
from tests.support.metrics import value
from tests.support.planted import names

A = [{"ticker": "A"}]
TWITCHY = Breaker(failures=1, open_for=60)


def lacks(number: int) -> Callable[[], OSError]:
    return lambda: OSError(number, os.strerror(number))


FULL = lacks(errno.EMFILE)


def nameless() -> OSError:
    return socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class Source:
    """A scanner that fails while `error` is set, and counts its calls."""

    def __init__(self, name: str, error: Callable[[], BaseException] | None = None, **layers: Any) -> None:
        self.error = error
        self.calls = 0

        @scanner(name=name, pipeline="test", **layers)
        def scan(_state: dict[str, Any]) -> list[Any]:
            self.calls += 1
            if self.error is not None:
                raise self.error()
            return A

        self.scanner = scan


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def blames(report: RunReport) -> dict[str, str]:
    return {name: result.error.blame for name, result in report.results.items() if result.error is not None}


def states(runner: ScanRunner) -> dict[str, str | None]:
    return {name: runner.breaker(name) for name in runner.names}


# what it counts for


def test_it_counts_for_nothing_but_metrics(fleet: Fleet, bare: Bare) -> None:
    registry, recorder = CollectorRegistry(), Recorder()
    runner = fleet(
        Source("one", FULL).scanner,
        Source("two", FULL).scanner,
        policy=bare(breaker=TWITCHY),
        quarantine=Quarantine(after_failures=1, max_share=1.0),
        listeners=(PrometheusMetrics(registry), recorder),
    )
    report = runner.run()
    assert {result.status for result in report.results.values()} == {Status.ERROR}
    assert blames(report) == {"one": "local", "two": "local"}
    assert states(runner) == {"one": "closed", "two": "closed"}
    assert {each.state for each in runner.scanners()} == {"enabled"}
    for name in ("one", "two"):
        labels = {"scanner": name, "pipeline": "test"}
        assert value(registry, "executions_total", **labels, outcome="local") == 1
        assert value(registry, "executions_total", **labels, outcome="error") == 0
        assert value(registry, "errors_total", scanner=name, kind="OSError", blame="local") == 1
    assert value(registry, "local_faults_total", kind="descriptors") == 2
    assert value(registry, "local_faults_total", kind="names") == 0
    assert [event.first for event in recorder.of(LocalFault)] == [True, False]
    assert {event.error.blame for event in recorder.of(AttemptEnded, ExecutionEnded, LocalFault)} == {"local"}


def test_it_is_one_warning_and_not_one_a_scan(
    fleet: Fleet, bare: Bare, clock: FakeClock, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    caplog.set_level(logging.INFO, "resilient_scan")
    sources = [Source(f"s{number}", FULL) for number in range(3)]
    runner = fleet(*(each.scanner for each in sources), policy=bare(), clock=clock, listeners=(LogEvents(),))
    for _ in range(3):
        runner.run()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    (line,) = {record.getMessage() for record in warnings}
    assert line.startswith("this machine has no file descriptors left (s")
    assert line.endswith("OSError: [Errno 24] Too many open files); scans that fail by that count against nobody")
    assert len(warnings) == 1
    scans = [record for record in caplog.records if record.status is Status.ERROR]
    assert len(scans) == 9
    assert {record.blame for record in scans} == {"local"}
    for source in sources:
        source.error = None
    runner.run()
    eventually(lambda: not runner._fleet.pool.counts()["busy"], "no worker is late in 15 minutes")
    clock.advance(900)
    sources[0].error = FULL
    runner.run()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_lines_of_json_say_whose_fault_it_is(fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "resilient_scan")
    fleet(
        Source("one", FULL).scanner,
        Source("two", KeyError).scanner,
        policy=bare(),
        listeners=(LogEvents(format="json"),),
        concurrent=False,
    ).run()
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    said = {(line["event"], line["scanner"]): line["blame"] for line in lines if line.get("error")}
    assert said == {
        ("attempt_ended", "one"): "local",
        ("local_fault", "one"): "local",
        ("execution_ended", "one"): "local",
        ("scan_ended", "one"): "local",
        ("attempt_ended", "two"): "scanner",
        ("execution_ended", "two"): "scanner",
        ("scan_ended", "two"): "scanner",
    }


def test_an_old_answer_stands_in_and_the_failure_is_not_remembered(fleet: Fleet, clock: FakeClock) -> None:
    source = Source("one", FULL, cache=Cache(ttl=10, stale_if_error=100, ttl_error=50, jitter=0))
    runner = fleet(source.scanner, policy=Policy(retry=None), clock=clock, listeners=())
    assert runner.run().results["one"].status is Status.ERROR
    source.error = None
    assert runner.run().results["one"].status is Status.COMPLETED  # at once: nothing was remembered
    clock.advance(11)
    source.error = FULL
    result = runner.run().results["one"]
    assert (result.status, result.error is not None and result.error.blame) == (Status.STALE, "local")


def test_a_probe_neither_passes_nor_fails_by_it(fleet: Fleet, bare: Bare, clock: FakeClock) -> None:
    recorder = Recorder()
    source = Source("one", KeyError)
    runner = fleet(
        source.scanner,
        policy=bare(),
        clock=clock,
        quarantine=Quarantine(after_failures=1, cooloff=10, successes=1, max_share=1.0),
        listeners=(recorder,),
    )
    runner.run()
    assert runner.scanners()[0].state == "quarantined"
    clock.advance(20)
    source.error = FULL
    runner.run()
    assert [event.outcome for event in recorder.of(ProbeEnded)] == ["local"]
    source.error = None
    runner.run()  # not after a longer cool-off
    assert runner.scanners()[0].state == "enabled"


def test_a_trial_of_the_breaker_is_given_back(fleet: Fleet, bare: Bare, clock: FakeClock) -> None:
    source = Source("one", KeyError)
    runner = fleet(source.scanner, policy=bare(breaker=TWITCHY), clock=clock, listeners=())
    runner.run()
    assert runner.breaker("one") == "open"
    clock.advance(60)
    source.error = FULL
    assert runner.run().results["one"].status is Status.ERROR
    assert runner.breaker("one") == "half_open"
    source.error = None
    runner.run()
    assert runner.breaker("one") == "closed"


def test_it_is_retried_like_any_error(fleet: Fleet, bare: Bare) -> None:
    source = Source("one", FULL)
    runner = fleet(source.scanner, policy=bare(retry=Retry(attempts=3, base=0)), listeners=())
    assert runner.run().results["one"].attempts == 3
    errors = iter([FULL, FULL, None])
    source.error = None
    calls: list[int] = []

    @scanner(pipeline="test")
    def recovers(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        error = next(errors)
        if error is not None:
            raise error()
        return A

    runner = fleet(recovers, policy=bare(retry=Retry(attempts=3, base=0), breaker=TWITCHY), listeners=())
    assert runner.run().results["recovers"].status is Status.COMPLETED
    assert len(calls) == 3


# nobody hides behind it


def test_who_alone_fails_by_it_five_times_in_a_row_leaks(fleet: Fleet, bare: Bare) -> None:
    leaks, well = Source("leaks", FULL), Source("well")
    runner = fleet(leaks.scanner, well.scanner, policy=bare(breaker=TWITCHY), listeners=(), concurrent=False)
    for _ in range(4):
        assert blames(runner.run()) == {"leaks": "local"}
    assert runner.breaker("leaks") == "closed"
    assert blames(runner.run()) == {"leaks": "scanner"}
    assert runner.breaker("leaks") == "open"


def test_a_success_in_between_begins_a_new_row(fleet: Fleet, bare: Bare, clock: FakeClock) -> None:
    leaks, well = Source("leaks", FULL), Source("well")
    runner = fleet(leaks.scanner, well.scanner, policy=bare(), clock=clock, listeners=(), concurrent=False)
    for number in range(12):
        leaks.error = None if number % 4 == 3 else FULL
        clock.advance(300)
        assert blames(runner.run()) == ({} if number % 4 == 3 else {"leaks": "local"}), number


def test_who_fails_by_it_while_nobody_succeeds_does_not_leak(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(*(Source(name, FULL).scanner for name in "ab"), policy=bare(breaker=TWITCHY), listeners=())
    for _ in range(8):
        assert blames(runner.run()) == {"a": "local", "b": "local"}


@pytest.mark.parametrize("error", [FULL, nameless])
def test_nobody_is_excused_for_more_than_15_minutes(
    error: Callable[[], OSError], fleet: Fleet, bare: Bare, clock: FakeClock
) -> None:
    sources = [Source(name, error) for name in "ab"]
    runner = fleet(*(each.scanner for each in sources), policy=bare(breaker=TWITCHY), clock=clock, listeners=())
    assert set(blames(runner.run()).values()) == {"local"}
    clock.advance(899)
    assert set(blames(runner.run()).values()) == {"local"}
    assert states(runner) == {"a": "closed", "b": "closed"}
    clock.advance(1)
    assert set(blames(runner.run()).values()) == {"scanner" if error is FULL else "provider"}
    assert states(runner) == {"a": "open", "b": "open"}


# what nobody can know at once


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize(
    ("providers", "blame"), [(("a", "b"), "local"), ((None, None), "local"), (("a", "a"), "provider")]
)
def test_names_that_do_not_resolve_for_two_providers_are_ours(
    providers: tuple[str | None, str | None], blame: str, concurrent: bool, fleet: Fleet, bare: Bare
) -> None:
    sources = [
        Source(f"s{number}", nameless, limit=None if each is None else Limit(each))
        for number, each in enumerate(providers)
    ]
    runner = fleet(
        *(each.scanner for each in sources), policy=bare(breaker=TWITCHY), listeners=(), concurrent=concurrent
    )
    assert set(blames(runner.run()).values()) == {blame}
    assert states(runner) == {"s0": "closed", "s1": "closed"}
    breakers = {each.state for each in runner.providers()}
    assert breakers <= {"closed" if blame == "local" else "open"}


@pytest.mark.parametrize("concurrent", [True, False])
def test_one_that_succeeds_later_testifies(concurrent: bool, fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()
    sources = [Source("a", nameless, limit=Limit("a")), Source("b", nameless, limit=Limit("b")), Source("well")]
    runner = fleet(
        *(each.scanner for each in sources),
        policy=bare(breaker=TWITCHY),
        concurrent=concurrent,
        listeners=(recorder,),
    )
    report = runner.run()
    assert list(report.results) == ["a", "b", "well"]
    assert blames(report) == {"a": "provider", "b": "provider"}
    assert {each.provider: each.state for each in runner.providers()} == {"a": "open", "b": "open"}
    assert {event.outcome for event in recorder.of(ExecutionEnded)} == {"error", "success"}


def test_no_worker_waits_for_the_decision(fleet: Fleet, bare: Bare) -> None:
    sources = [Source(name, nameless, limit=Limit(name)) for name in "abcd"]
    runner = fleet(*(each.scanner for each in sources), policy=bare(), listeners=(), max_workers=1)
    assert set(blames(runner.run()).values()) == {"local"}


def test_the_runs_deadline_decides(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    sources = [Source(name, nameless, limit=Limit(name)) for name in "ab"]
    alone = Source("alone", MemoryError)
    recorder = Recorder()
    runner = fleet(
        *(each.scanner for each in sources),
        alone.scanner,
        hanging("hung", release),
        policy=bare(breaker=TWITCHY),
        listeners=(recorder,),
    )
    report = runner.run(deadline=0.3)
    assert blames(report) == {"a": "local", "b": "local", "alone": "scanner", "hung": "scanner"}
    assert report.results["a"].status is Status.ERROR
    assert runner.breaker("alone") == "open"
    assert len([event for event in recorder.of(ExecutionEnded) if event.scanner in "ab"]) == 2
    release.set()


def test_a_run_that_is_left_ends(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    runner = fleet(
        Source("a", nameless).scanner, Source("well").scanner, hanging("hung", release), policy=bare(), listeners=()
    )
    for _ in runner.stream():
        break
    release.set()
    assert runner._fleet.faults.runs == set()
    assert not runner._fleet.faults._suspects


def test_after_five_seconds_it_is_decided(
    fleet: Fleet, bare: Bare, clock: FakeClock, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Recorder()
    source = Source("a", nameless, limit=Limit("a"))
    runner = fleet(
        source.scanner,
        hanging("hung", release, timeout=Timeout(total=60)),
        policy=bare(breaker=TWITCHY),
        clock=clock,
        listeners=(recorder,),
    )
    run = threading.Thread(target=runner.run)
    run.start()
    eventually(lambda: runner._fleet.faults._suspects)
    clock.advance(4.9)
    assert not recorder.of(ExecutionEnded)
    clock.advance(0.1)
    eventually(lambda: recorder.of(ExecutionEnded))
    assert [event.error.blame for event in recorder.of(ExecutionEnded)] == ["provider"]
    assert runner.providers()[0].state == "open"
    release.set()
    run.join()


def test_another_run_may_testify(fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually) -> None:
    """A's only witness is a scan of another run."""

    @scanner(pipeline="test")
    def late(_state: dict[str, Any]) -> list[Any]:
        release.wait(10)
        return A

    source = Source("a", nameless, limit=Limit("a"))
    runner = fleet(source.scanner, late, policy=bare(breaker=TWITCHY), listeners=())
    reports: list[RunReport] = []
    other = threading.Thread(target=lambda: reports.append(runner.run(only=["late"])))
    other.start()
    eventually(lambda: runner._fleet.faults.runs)
    mine = threading.Thread(target=lambda: reports.append(runner.run(only=["a"])))
    mine.start()
    eventually(lambda: runner._fleet.faults._suspects)
    release.set()
    other.join()
    mine.join()
    assert {name: blame for report in reports for name, blame in blames(report).items()} == {"a": "provider"}
    assert runner.providers()[0].state == "open"


def test_votes_that_wait_come_in_the_end(fleet: Fleet, bare: Bare) -> None:
    """Its three attempts count one by one, as they would have at once."""
    source = Source("a", nameless)
    policy = bare(breaker=Breaker(failures=3), retry=Retry(attempts=3, base=0))
    runner = fleet(source.scanner, Source("well").scanner, policy=policy, listeners=(), concurrent=False)
    runner.run()
    assert source.calls == 3
    assert runner.breaker("a") == "open"


def test_six_scanners_of_a_host_without_a_name_call_it_as_often_as_of_one_that_is_down(
    fleet: Fleet, bare: Bare
) -> None:
    sources = [Source(f"s{number}", nameless, limit=Limit("acme")) for number in range(6)]
    well = Source("well")
    scanners = [*(each.scanner for each in sources), well.scanner]
    runner = fleet(*scanners, policy=bare(breaker=Breaker(failures=3)), listeners=(), concurrent=False)
    reports = [runner.run() for _ in range(5)]
    assert sum(source.calls for source in sources) <= 6
    assert {result.status for result in reports[0].results.values()} >= {Status.ERROR, Status.REJECTED}
    assert all(report.results["well"].status is Status.COMPLETED for report in reports)


def test_what_the_scanner_gets_over_counts_for_the_host_unless_it_is_ours(fleet: Fleet, bare: Bare) -> None:
    """The client's failure is judged where it happens: the scanner need not pass it on."""

    def gets_over(name: str) -> Any:
        client = Client(f"http://{name}.servfail")

        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            with pytest.raises(TransientError):
                client.get("/", context=context)
            raise KeyError("close")

        return scan

    policy = bare(breaker=TWITCHY)
    with names(servfail=socket.EAI_AGAIN):
        both = fleet(gets_over("a"), gets_over("b"), policy=policy, listeners=())
        assert blames(both.run()) == {"a": "scanner", "b": "scanner"}
        one = fleet(gets_over("c"), policy=policy, listeners=())
        one.run()
    assert {each.state for each in both.providers()} == {"closed"}
    assert {each.state for each in one.providers()} == {"open"}


# the control probe


def test_the_probe_is_asked_once_in_a_few_seconds(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    connections: list[int] = []

    def count(connection: socket.socket, _over: threading.Event) -> None:
        connections.append(1)

    with raw_server(count) as url:
        source = Source("a", nameless, limit=Limit("a"))
        runner = fleet(
            source.scanner,
            policy=bare(breaker=Breaker(failures=100)),
            listeners=(),
            local_probe=url.removeprefix("http://"),
        )
        assert not any(thread.name == "resilient-scan-probe" for thread in threading.enumerate())
        reports = [runner.run() for _ in range(5)]
        eventually(lambda: connections == [1])
    assert {blame for report in reports for blame in blames(report).values()} == {"provider"}
    assert runner.breaker("a") == "closed"


@pytest.mark.parametrize("address", ["", "host", "host:", ":53", "host:port", "host:0", "host:65536", 53, "[]:53"])
def test_an_address_that_is_none_is_refused(address: Any) -> None:
    with pytest.raises(ConfigError, match="local_probe must be a host and a port"):
        ScanRunner([healthy("one")], local_probe=address)


def test_the_settings_name_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text('[store]\nurl = "memory:"\n[local]\nprobe = "[::1]:53"\n')
    with load_settings(path, environ={}).runner([healthy("one")], listeners=()) as runner:
        assert runner._runs.config.local_probe == "[::1]:53"
    path.write_text('[local]\nprobe = "resolver"\n')
    with pytest.raises(ConfigError, match=r"scan.toml:2: local.probe must be a host and a port"):
        load_settings(path, environ={})
