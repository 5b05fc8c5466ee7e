"""Empty is not success: an answer that cannot be true is told, and never kept as fresh."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from resilient_scan import Cache, Candidate, ConfigError, Retry, ScanContext, ScanRunner, Status, scanner
from resilient_scan.events import ExecutionEnded, RunStarted, ScanEnded, SuspiciousResult
from resilient_scan.layers.cache import ResultCache
from resilient_scan.testing import FakeClock, Recorder
from tests.support.caches import put
from tests.support.fixtures import Eventually

ONE = [Candidate("AAPL", "s", "c")]


def answering(answers: list[Any], **options: Any) -> tuple[Any, list[int]]:
    """Return a scanner that gives these answers in turn, and the list that grows with its calls."""
    calls: list[int] = []

    @scanner(pipeline="p", **options)
    def source(state: dict[str, Any]) -> Any:
        calls.append(1)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return source, calls


def run(thing: Any, times: int, between: Callable[[], None] = lambda: None, **options: Any) -> list[Any]:
    """Run one scanner several times by one runner; return its results."""
    results = []
    with ScanRunner([thing], **{"listeners": (), **options}) as runner:
        for _ in range(times):
            results.append(runner.run({}).results["source"])
            between()
    return results


def test_an_empty_answer_of_one_that_always_finds_something_is_told_and_not_kept() -> None:
    source, calls = answering([[], ONE], empty_ok=False, cache=Cache(ttl=300))
    recorder = Recorder()
    first, second, third = run(source, 3, listeners=(recorder,))
    assert first.status is Status.COMPLETED
    assert first.suspicious == "empty: the scanner says that it always finds something (empty_ok=False)"
    assert first.to_dict()["suspicious"] == first.suspicious
    assert (second.status, second.suspicious) == (Status.COMPLETED, None)
    assert (third.status, third.suspicious) == (Status.CACHED, None)
    assert len(calls) == 2
    run_id = recorder.of(RunStarted)[0].run_id
    (event,) = recorder.of(SuspiciousResult)
    assert event == SuspiciousResult("source", "p", first.suspicious, 0, 0, run_id, 1)
    ends = recorder.of(SuspiciousResult, ScanEnded, ExecutionEnded)
    assert [type(each) for each in ends[:3]] == [SuspiciousResult, ExecutionEnded, ScanEnded]


def test_an_empty_answer_of_any_other_is_believed_and_kept() -> None:
    source, calls = answering([[]], cache=Cache(ttl=300))
    first, second = run(source, 2)
    assert (first.suspicious, second.status) == (None, Status.CACHED)
    assert len(calls) == 1


def test_after_ten_answers_the_first_empty_one_is_suspicious() -> None:
    source, _ = answering([*[ONE] * 10, [], ONE], cache=None)
    results = run(source, 12)
    assert [result.suspicious is not None for result in results] == [False] * 10 + [True, False]


def test_mostly_malformed_candidates_are_suspicious_and_the_good_ones_are_handed_over() -> None:
    source, calls = answering([[*ONE, {"ticker": ""}, {}], ONE], cache=Cache(ttl=300))
    first, _ = run(source, 2)
    assert (first.suspicious, first.dropped) == ("malformed: 2 of 3 candidates are invalid", 2)
    assert first.candidates == ONE
    assert len(calls) == 2


def test_a_scanner_may_doubt_its_own_answer() -> None:
    doubts = ["the source has no volumes", None]

    @scanner(pipeline="p", cache=Cache(ttl=300), retry=Retry(attempts=2, on=(OSError,)))
    def source(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        reason = doubts.pop(0)
        if reason is not None and context.attempt == 1:
            context.doubt(reason)
        return ONE

    first, second, third = run(source, 3)
    assert (first.suspicious, first.candidates) == ("the source has no volumes", ONE)
    assert (second.suspicious, second.status, third.status) == (None, Status.COMPLETED, Status.CACHED)


def test_a_doubt_ends_with_its_attempt() -> None:
    @scanner(pipeline="p", retry=Retry(attempts=2, base=0, on=(OSError,)))
    def source(state: dict[str, Any], context: ScanContext) -> list[Candidate]:
        if context.attempt == 1:
            context.doubt("too early to say")
            raise OSError
        return ONE

    (result,) = run(source, 1, clock=FakeClock(auto=True))
    assert (result.attempts, result.suspicious) == (2, None)


def test_a_suspicious_answer_leaves_an_older_one_to_stand_in_for_a_failure() -> None:
    clock = FakeClock()
    options = {"empty_ok": False, "cache": Cache(ttl=10, stale_if_error=100, jitter=0), "retry": None}
    source, _ = answering([ONE, [], ValueError("down")], **options)
    first, second, third = run(source, 3, lambda: clock.advance(20), clock=clock)
    assert (second.status, second.candidates) == (Status.COMPLETED, [])
    assert (third.status, third.candidates) == (Status.STALE, first.candidates)


def test_those_that_wait_for_a_suspicious_answer_learn_it_too_and_get_objects_of_their_own(
    eventually: Eventually,
) -> None:
    entered, go = threading.Event(), threading.Event()

    @scanner(pipeline="p", cache=Cache(ttl=300))
    def source(state: dict[str, Any]) -> list[Any]:
        entered.set()
        go.wait(5)
        return [Candidate("A", "s", "c", extras={"n": [1]}), {}, {}]

    results: list[Any] = []
    recorder = Recorder()
    with ScanRunner([source], listeners=(recorder,)) as runner:
        threads = [threading.Thread(target=lambda: results.append(runner.run({}).results["source"])) for _ in range(2)]
        threads[0].start()
        assert entered.wait(5)
        threads[1].start()
        (flight,) = _flights(runner).values()
        eventually(lambda: len(flight.waiters) == 2)
        go.set()
        for thread in threads:
            thread.join(5)
    assert sorted(result.status for result in results) == [Status.CACHED, Status.COMPLETED]
    assert {result.suspicious for result in results} == {"malformed: 2 of 3 candidates are invalid"}
    one, other = (result.candidates[0] for result in results)
    assert one == other
    assert one.extras["n"] is not other.extras["n"]
    assert len(recorder.of(SuspiciousResult)) == 1


def _flights(runner: ScanRunner) -> Any:
    cache = runner._fleet.stack("source").cache
    assert cache is not None
    return cache._flights


def test_a_suspicious_answer_is_not_kept_beyond_the_process_either() -> None:
    kept: list[bytes] = []

    class Answers:
        def find(self, key: bytes, /) -> None:
            return None

        def keep(self, key: bytes, candidates: Any, fresh: float, stale: float, /) -> None:
            kept.append(key)

    cache: ResultCache[object] = ResultCache(Cache(ttl=300), FakeClock(), Random(0), answers=Answers())
    put(cache, b"doubted", [], object(), keep=False)
    put(cache, b"trusted", [], object())
    assert kept == [b"trusted"]


def test_it_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    source, _ = answering([[]], empty_ok=False)
    with caplog.at_level(logging.INFO, "resilient_scan"):
        run(source, 1, listeners=None)
    (line,) = [record for record in caplog.records if "suspicious" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith("⚠️ source: suspicious answer: empty: ")


def test_a_class_may_declare_it_too_and_other_words_are_no_declaration() -> None:
    class Declares:
        name, pipeline, empty_ok = "source", "p", False

        def scan(self, state: dict[str, Any]) -> list[Any]:
            return []

    class Vague(Declares):
        empty_ok = "no"

    assert run(Declares, 1)[0].suspicious is not None
    assert run(Vague, 1)[0].suspicious is None
    with pytest.raises(ConfigError, match="empty_ok must be True, False or None, got 'no'"):
        scanner(pipeline="p", empty_ok="no")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- one process after the other


def runs_of_processes(answers: list[Any], store: str, **options: Any) -> list[str | None]:
    """Return why each answer is suspicious, each given in a runner of its own, as cron would make them."""
    source, _ = answering(list(answers), cache=None)
    return [run(source, 1, store=store, **options)[0].suspicious for _ in answers]


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    assert runs_of_processes([[], *[ONE] * 10], store) == [None] * 11
    assert runs_of_processes([[], [], ONE, []], store) == [
        said := "empty: 1 of 11 trusted answers were",
        said,
        None,
        "empty: 1 of 12 trusted answers were",
    ]


def test_with_other_settings_it_begins_anew(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    runs_of_processes([ONE] * 10, store)
    assert runs_of_processes([[]], store, settings={"source": {"universe": ["AAPL"]}}) == [None]


def test_with_forgotten_answers_it_begins_anew(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    source, _ = answering([*[ONE] * 10, [], []], cache=Cache(ttl=1), retry=None)
    clock = FakeClock()
    run(source, 10, lambda: clock.advance(2), store=store, clock=clock)
    with ScanRunner([source], listeners=(), store=store, clock=clock) as runner:
        runner.forget("source")
    assert run(source, 2, lambda: clock.advance(2), store=store, clock=clock)[0].suspicious is None
