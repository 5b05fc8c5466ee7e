"""What `runner.explain` says about scanners that are well, slow, hanging, flapping, broken, limited, disabled."""

import json
import logging
import re
import threading

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    ConfigError,
    Limit,
    Policy,
    Retry,
    RetryAfter,
    ScanRunner,
    Timeout,
    scanner,
)
from resilient_scan.core.execution import Execution
from resilient_scan.core.flights import Flight
from resilient_scan.testing import FakeClock, broken, flapping, healthy, polite

STATE = {"trade_date": "2026-11-24"}
FOUND = [Candidate("NVDA", "movers", "up 7%"), Candidate("AMD", "movers", "up 5%")]
ONE_ATTEMPT = {"cache": None, "retry": None}


@pytest.fixture
def clock():
    return FakeClock(auto=True)


def runner_of(*scanners, clock, **options):
    return ScanRunner(scanners, clock=clock, **{"listeners": (), **options})


def verdict(runner, name):
    found = runner.explain(name).verdict
    return found.answer, found.status, [(reason.layer, reason.why, reason.way_out) for reason in found.reasons]


def says(runner, name, **options):
    """Return the text with its lines joined, so that a test does not depend on where they break."""
    return " ".join(str(runner.explain(name, **options)).split())


# Would it run?


def test_a_scanner_that_was_never_called_would_be(clock):
    with runner_of(healthy("movers", FOUND), clock=clock) as runner:
        assert verdict(runner, "movers") == ("yes", "", [])
        assert "runs now? YES. A scan would call the source at once." in says(runner, "movers")
        assert "LAST SCANS: none yet" in says(runner, "movers")
        assert "FLIGHT RECORDER: no scan yet" in says(runner, "movers", trace=True)


def test_a_fresh_answer_makes_it_unnecessary(clock):
    with runner_of(healthy("movers", FOUND, cache=Cache(ttl=300, jitter=0)), clock=clock) as runner:
        runner.run(STATE)
        clock.advance(20)
        assert verdict(runner, "movers") == ("cached", "cached", [])
        assert (
            "NOT NEEDED. The answer of 20s ago is fresh for another 4m 40s: a scan of the same state would end "
            "`cached` with its 2 candidates; one of another state would call the source."
        ) in says(runner, "movers")


def test_a_cache_with_one_key_for_all_states_says_so(clock):
    with runner_of(healthy("movers", FOUND, cache=Cache(inputs=(), jitter=0)), clock=clock) as runner:
        assert "a scan of the same key (there is only one) gets it without a call" in says(runner, "movers")


def test_a_worker_that_has_just_handed_over_is_as_good_as_free(clock, monkeypatch):
    """After a run of the only worker it said, now and then, that all of them are busy."""
    run, looked = Execution.run, threading.Event()

    def slow_to_finish(execution):
        run(execution)
        assert looked.wait(5)

    monkeypatch.setattr(Execution, "run", slow_to_finish)
    with runner_of(healthy("movers", cache=None), broken("feed", cache=None), clock=clock, max_workers=1) as runner:
        runner.run(STATE, only=["movers"])
        try:
            assert verdict(runner, "movers") == ("yes", "", [])
        finally:
            looked.set()
        looked.clear()
        runner.run(STATE, only=["feed"])
        try:
            assert verdict(runner, "feed")[0] == "yes"
        finally:
            looked.set()


def test_disabled_by_hand(clock):
    with runner_of(healthy("movers"), clock=clock) as runner:
        runner.disable("movers", reason="premium\nendpoint", duration=3600)
        clock.advance(600)
        assert verdict(runner, "movers") == (
            "no",
            "disabled",
            [
                (
                    "gate",
                    "disabled by hand until 2013-01-24 19:00:00 UTC, reason: premium endpoint",
                    "wait 50m, or runner.enable('movers'), `resilient-scan enable movers --reason WHY`",
                )
            ],
        )
        assert "1 gate out of service: disabled by hand until" in says(runner, "movers")
        clock.advance(3000)
        assert verdict(runner, "movers") == ("yes", "", [])


def test_an_open_breaker_says_why_and_when(clock, eventually):
    feed = broken("feed", cache=None, retry=None, breaker=Breaker(failures=2, open_for=60))
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        runner.run(STATE)
        eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)  # else its worker is late, on this clock
        clock.advance(48)
        answer, status, ((layer, why, way_out),) = verdict(runner, "feed")
        assert (answer, status, layer) == ("no", "rejected", "breaker")
        assert why == "open after 2 failed attempts in a row, the last one with ScanError: HTTP 500 error"
        assert way_out == (
            "wait 12s: the first scan after that is a half-open trial, and one success closes the breaker; "
            "or runner.reset('feed'), `resilient-scan reset feed --reason WHY`"
        )
        assert "now: open, 2 failures in a row, next half-open trial in 12s" in says(runner, "feed")
        clock.advance(12)
        assert "YES. A scan would call the source at once, as a half-open trial" in says(runner, "feed")


def test_a_fault_of_this_machine_says_how_long_it_is_excused(clock):
    feed = broken("feed", OSError(24, "Too many open files"), **ONE_ATTEMPT)
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        clock.advance(60)
        runner.run(STATE)
        text = says(runner, "feed")
        assert (
            "A scan would call the source at once. Since its last success, 2 executions failed by this machine's "
            "fault: that counts against nobody for another 14m."
        ) in text
        assert "now: since its last success, 2 executions failed by this machine's fault" in text
        assert "(local) OSError" in text
        assert "fault this machine's own: it counts against nobody" in says(runner, "feed", trace=True)
        clock.advance(840)
        assert "the first 15m ago: the next one counts as its own." in says(runner, "feed")


def test_a_trial_under_way(clock):
    begun, release = threading.Event(), threading.Event()

    @scanner(pipeline="test", breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=30), **ONE_ATTEMPT)
    def feed(state):
        if begun.is_set() or not state:
            raise OSError
        begun.set()
        release.wait()
        return []

    with runner_of(feed, clock=clock) as runner:
        runner.run({})
        clock.advance(60)
        other = threading.Thread(target=runner.run, args=(STATE,))
        other.start()
        assert begun.wait(5)
        answer, status, ((layer, why, way_out),) = verdict(runner, "feed")
        release.set()
        other.join()
    assert (answer, status, layer) == ("no", "rejected", "breaker")
    assert why == "half-open, and as many trials as breaker.trials=1 allows are under way"
    assert way_out.startswith("the next trial begins when one ends, within 31s")


def test_a_stale_answer_stands_in_for_an_open_breaker(clock):
    feed = flapping(
        "feed",
        [FOUND, OSError("down")],
        cache=Cache(ttl=60, stale_if_error=3600, jitter=0),
        retry=None,
        breaker=Breaker(failures=1, open_for=600),
    )
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        clock.advance(100)
        runner.run(STATE)
        answer, status, (reason,) = verdict(runner, "feed")
        assert (answer, status, reason[0]) == ("no", "stale", "breaker")
        assert (
            "NO. A scan of the same state as 1m 40s ago would end `stale`, with the 2 candidates found then; that "
            "answer stands in for another 59m 20s. One of another state would end `rejected`."
        ) in says(runner, "feed")


def test_a_remembered_failure(clock):
    with runner_of(broken("feed", cache=Cache(ttl_error=30), retry=None), clock=clock) as runner:
        runner.run(STATE)
        clock.advance(10)
        answer, status, ((layer, why, way_out),) = verdict(runner, "feed")
        assert (answer, status, layer) == ("no", "error", "cache")
        assert why == (
            "a failure of 10s ago is remembered (cache.ttl_error) and not repeated: ScanError: HTTP 500 error"
        )
        assert way_out == (
            "wait 20s, or run with another state, or runner.reset('feed'), `resilient-scan reset feed --reason WHY`"
        )
        assert "0 answers kept now: 1 failure remembered" in says(runner, "feed")
        clock.advance(20)
        assert verdict(runner, "feed") == ("yes", "", [])


def test_a_stale_answer_stands_in_for_a_remembered_failure(clock):
    cache = Cache(ttl=60, stale_if_error=3600, ttl_error=30, jitter=0)
    with runner_of(flapping("feed", [FOUND, OSError("down")], cache=cache, retry=None), clock=clock) as runner:
        runner.run(STATE)
        clock.advance(61)
        runner.run(STATE)
        answer, status, ((layer, _why, _way_out),) = verdict(runner, "feed")
        assert (answer, status, layer) == ("no", "stale", "cache")
        assert runner.run(STATE).results["feed"].status == "stale"


def test_a_breaker_that_a_rate_has_opened(clock):
    breaker = Breaker(failures=3, failure_rate=0.5, minimum=4, window=4)
    feed = flapping("feed", [[], OSError(), [], OSError("down")], cache=None, retry=None, breaker=breaker)
    with runner_of(feed, clock=clock) as runner:
        for _ in range(4):
            runner.run(STATE)
        _, _, ((_, why, _),) = verdict(runner, "feed")
        text = says(runner, "feed")
    assert why == (
        "open, because too many of the last 4 attempts failed or were slow (breaker.window), "
        "the last one with OSError: down"
    )
    assert "3 failed attempts in a row or 50% failures among the last 4 open it" in text
    assert "now: open, 1 failure in a row, next half-open trial in 1m" in text


def test_a_hung_thread_is_shown_where_it_hangs():
    clock, begun, release = FakeClock(), threading.Event(), threading.Event()

    @scanner(pipeline="test", timeout=Timeout(total=30), **ONE_ATTEMPT)
    def feed(state):
        begun.set()
        release.wait()
        return []

    with runner_of(feed, clock=clock) as runner:
        run = threading.Thread(target=runner.run, args=(STATE,))
        run.start()
        assert begun.wait(5)
        clock.advance(30)
        run.join(5)
        clock.advance(5)
        explained = runner.explain("feed")
        text = " ".join(str(explained).split())
        release.set()
    assert (explained.verdict.answer, explained.verdict.status) == ("no", "rejected")
    (reason,) = explained.verdict.reasons
    assert reason.layer == "timeout"
    assert reason.why == (
        "1 thread of earlier scans still hangs, the oldest at work for 35s; "
        "timeout.max_abandoned=1 risks no further one"
    )
    assert "now: 1 thread hangs" in text
    assert "THREADS THAT DID NOT STOP" in text
    assert "release.wait()" in text
    assert "release.wait()" in explained.hung[0].stack


def test_the_frames_of_a_hung_thread_begin_with_the_scanner():
    """Those that lead to it, from the worker through the layers, would only push the place where it hangs aside."""
    clock, begun, held = FakeClock(), threading.Event(), threading.Lock()

    @scanner(pipeline="test", timeout=Timeout(total=30), **ONE_ATTEMPT)
    def feed(state):
        begun.set()
        held.acquire()  # in C, so the scanner's frame is the innermost one
        return []

    with held, runner_of(feed, clock=clock) as runner:
        run = threading.Thread(target=runner.run, args=(STATE,))
        run.start()
        assert begun.wait(5)
        clock.advance(30)
        run.join(5)
        _, _, hung = str(runner.explain("feed")).partition("THREADS THAT DID NOT STOP")
        _heading, _thread, first, code, *_ = hung.splitlines()
    assert first.strip().startswith(__file__)
    assert code.strip().startswith("held.acquire()")


def test_a_provider_without_a_place():
    clock = FakeClock()
    feeds = [polite(f"feed_{n}", 3600, limit=Limit("finnhub", concurrency=1), **ONE_ATTEMPT) for n in range(2)]
    with runner_of(*feeds, clock=clock, order="given") as runner:
        run = threading.Thread(target=runner.run, args=(STATE,))
        run.start()
        clock.wait_for_sleepers(1)
        answer, status, ((layer, why, way_out),) = verdict(runner, "feed_1")
        text = says(runner, "feed_1")
        runner.close()
        run.join()
    assert (answer, status, layer) == ("waits", "", "limit")
    assert why == "all attempts that finnhub allows at a time (1) are under way"
    assert way_out == "a scan waits its turn for up to timeout.total=30s, then it ends `rejected`"
    assert "YES, BUT IT WAITS." in text
    assert "attempts of all its scanners under way: 1 of 1; in its queue: 1" in text


def test_a_provider_that_is_down():
    clock = FakeClock(start=1_800_000_000)
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=2, open_for=60))
    feeds = [broken(f"feed_{n}", ConnectionError("refused"), limit=Limit("acme")) for n in range(2)]
    with runner_of(*feeds, clock=clock, policy=policy, concurrent=False, order="given") as runner:
        assert "its breaker is closed; it has feed_0, feed_1" in says(runner, "feed_0")
        runner.run(STATE)
        clock.advance(40)
        answer, status, ((layer, why, way_out),) = verdict(runner, "feed_0")
        text = says(runner, "feed_0")
        clock.advance(20)
        assert verdict(runner, "feed_0")[0] == "yes"
    assert (answer, status, layer) == ("no", "rejected", "provider")
    assert why == "provider acme: down since 08:00:00, tried by feed_1, next trial in 20 s"
    assert way_out == (
        "wait 20s: then one of its scanners makes a trial; or runner.reset(provider='acme'), "
        "`resilient-scan reset --provider acme --reason WHY`"
    )
    assert "its breaker is open: provider acme: down since 08:00:00" in text
    assert "closed, 0 failures in a row" in text  # its own breaker has nothing to do with it


@pytest.mark.parametrize(("seconds", "answer", "status"), [(20, "waits", ""), (90, "no", "rejected")])
def test_a_provider_that_asked_to_be_left_alone(seconds, answer, status):
    clock = FakeClock(start=1_800_000_000)
    feed = flapping("feed", [RetryAfter(seconds)], limit=Limit("acme", concurrency=2))
    with runner_of(feed, clock=clock, policy=Policy(cache=None, retry=None)) as runner:
        runner.run(STATE)
        said = verdict(runner, "feed")
    assert said[:2] == (answer, status)
    assert [reason[0] for reason in said[2]] == ["provider"]
    assert (
        f"provider acme asked to be left alone until 08:0{seconds // 60}:{seconds % 60}, in {seconds} s"
        == said[2][0][1]
    )


def test_all_workers_busy():
    clock = FakeClock()
    with runner_of(polite("feed", 3600, **ONE_ATTEMPT), healthy("movers"), clock=clock, max_workers=1) as runner:
        run = threading.Thread(target=runner.run, args=(STATE,))
        run.start()
        clock.wait_for_sleepers(1)
        answer, _, ((layer, _why, _way_out),) = verdict(runner, "movers")
        runner.close()
        run.join()
    assert (answer, layer) == ("waits", "workers")


# The stack


def test_each_number_says_who_set_it(clock):
    movers = healthy("movers", cache=Cache(ttl=60, inputs=("trade_date",)))
    given = {"movers": {"retry.attempts": "scan.toml:12", "timeout.total": "RESILIENT_SCAN__TIMEOUT_SECONDS"}}
    with runner_of(movers, clock=clock, policy=Policy(retry=Retry(attempts=2)), timeout_seconds=20) as runner:
        runner.set_origins(given)
        explained = runner.explain("movers")
    numbers = {number.option: (number.value, number.origin) for layer in explained.layers for number in layer.numbers}
    assert numbers["cache.ttl"] == ("60s", "decorator")
    assert numbers["cache.inputs"] == ("(trade_date)", "decorator")
    assert numbers["retry.attempts"] == ("2", "scan.toml:12")
    assert numbers["retry.base"] == ("0.5s", "policy")
    assert numbers["breaker.failures"] == ("5", "built-in")
    assert numbers["timeout.total"] == ("20s", "RESILIENT_SCAN__TIMEOUT_SECONDS")
    assert numbers["timeout.attempt"] == ("none", "built-in")
    assert numbers["limit"] == ("left out", "built-in")
    assert "[scan.toml:12] attempts=2" in str(explained)


def test_layers_come_outermost_first(clock):
    with runner_of(healthy("movers"), clock=clock) as runner:
        names = [layer.name for layer in runner.explain("movers").layers]
    assert names == ["gate", "cache", "timeout.total", "retry", "breaker", "limit", "timeout.attempt", "scanner"]


def test_numbers_of_a_provider_name_the_scanner_that_set_them(clock):
    first = healthy("first", limit=Limit("finnhub", concurrency=4))
    with runner_of(first, healthy("second", limit=Limit("finnhub")), clock=clock) as runner:
        text = says(runner, "second")
    assert "all scanners of provider finnhub share 4 attempts at a time" in text
    assert "[another scanner of finnhub] rate=none, concurrency=4, breaker=the scanners' own" in text


def test_values_of_settings_are_not_shown(clock):
    with runner_of(healthy("movers"), clock=clock, settings={"movers": {"api_key": "hush"}}) as runner:
        text = says(runner, "movers")
    assert "it has settings for api_key" in text
    assert "hush" not in text


def test_layers_left_out_are_said_to_be(clock):
    bare = healthy("bare", cache=None, retry=None, breaker=None)
    with runner_of(bare, clock=clock) as runner:
        text = says(runner, "bare")
    assert "none: every scan calls the source [decorator] left out" in text
    assert "none: one attempt per scan [decorator] left out" in text
    assert "none: a source that keeps failing is still called [decorator] left out" in text


def test_rates_and_budget_show_their_state(clock):
    policy = Policy(
        cache=None, retry=Retry(attempts=2, budget=0.5, budget_min=1), breaker=Breaker(failure_rate=0.5, minimum=2)
    )
    with runner_of(flapping("feed", [OSError("down"), FOUND]), clock=clock, policy=policy) as runner:
        runner.run(STATE)
        text = says(runner, "feed")
    assert "now: 0 more retries fit into the budget of this minute" in text
    assert "5 failed attempts in a row or 50% failures among the last 20 open it" in text


def test_findings_are_logged_at_the_start_and_explained(clock, caplog):
    caplog.set_level(logging.WARNING, logger="resilient_scan")
    policy = Policy(breaker=Breaker(failures=2))
    with runner_of(*(healthy(f"feed_{n}") for n in range(5)), clock=clock, policy=policy) as runner:
        explained = runner.explain("feed_4")
    (line,) = caplog.messages
    assert line.startswith("feed_0, feed_1, feed_2 and 2 more: breaker.failures=2 opens the breaker in the middle")
    assert explained.findings[0].startswith("breaker.failures=2 opens the breaker in the middle")
    assert "WHAT DOES NOT WORK TOGETHER" in str(explained)


# Past scans


def test_the_flight_recorder_shows_each_layer(clock):
    feed = flapping("feed", [OSError("reset"), OSError("reset again"), FOUND], retry=Retry(attempts=3))
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        runner.run(STATE)
        text = says(runner, "feed", trace=True)
        first, second = runner.flights("feed")
    assert isinstance(first, Flight)
    assert (first.cache, first.found, first.result.attempts, len(first.steps)) == ("miss", 2, 3, 2)
    assert (second.cache, second.found, second.result.status) == ("hit", 2, "cached")
    assert first.result.candidates == []
    assert "FLIGHT RECORDER, 2 scans, newest first" in text
    assert "cache had the answer (hit)" in text
    assert "attempt 1 0s: OSError: reset pause 0." in text
    assert "attempt 3 0s: answered with 2 candidates end completed after" in text
    assert re.search(r"failed at testing.py:\d+ in scan", text)


def test_a_scan_that_gave_up_says_so(clock):
    feed = broken("feed", KeyError("rows"), cache=None, retry=Retry(attempts=3, on=(OSError,)))
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        text = says(runner, "feed", trace=True)
    assert "KeyError: 'rows'; given up after 1 of 3 attempts end error after 0s, 0 candidates" in text
    assert re.search(r"failed at testing.py:\d+ in scan \| Traceback .* \| KeyError: 'rows'", text)


def test_a_refusal_does_not_count_as_an_attempt(clock):
    feed = broken("feed", cache=None, breaker=Breaker(failures=1), retry=Retry(attempts=2))
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        runner.run(STATE)
        explained = runner.explain("feed", trace=True)
    refused, failed = explained.past
    assert refused.attempts == ()
    assert [attempt.number for attempt in failed.attempts] == [1]
    assert "end rejected after 0s, 0 candidates: CircuitOpen: " in " ".join(str(explained).split())


def test_the_last_scans_are_a_table(clock):
    feed = flapping("feed", [FOUND, OSError("x" * 300)], **ONE_ATTEMPT)
    with runner_of(feed, clock=clock) as runner:
        runner.run(STATE)
        clock.advance(90)
        runner.run(STATE)
        text = str(runner.explain("feed"))
    newest, oldest = text.splitlines()[-2:]
    assert newest.split()[1:8] == ["just", "now", "error", "0", "0s", "1", "OSError:"]
    assert newest.endswith("x…")
    assert oldest.split()[1:] == ["1m", "30s", "ago", "completed", "2", "0s", "1"]
    assert max(map(len, text.splitlines())) <= 100


def test_only_the_last_fifty_are_remembered(clock):
    with runner_of(healthy("movers"), clock=clock) as runner:
        for _ in range(60):
            runner.run(STATE)
        assert len(runner.flights("movers")) == 50
        assert "(8 of 50 remembered" in says(runner, "movers")


# The whole


def test_an_explanation_is_data_too(clock):
    with runner_of(broken("feed", cache=None), clock=clock) as runner:
        runner.run(STATE)
        data = json.loads(json.dumps(runner.explain("feed").to_dict()))
    assert data["scanner"] == "feed"
    assert data["verdict"]["answer"] == "yes"
    assert data["past"][0]["attempts"][0]["outcome"] == "ScanError: HTTP 500 error"
    assert data["layers"][1]["numbers"] == [{"option": "cache", "value": "left out", "origin": "decorator"}]


def test_an_unknown_scanner_is_named_with_the_nearest(clock):
    with runner_of(healthy("reddit_dd"), clock=clock) as runner:
        with pytest.raises(ConfigError, match="there is no scanner 'redit_dd'; did you mean 'reddit_dd'"):
            runner.explain("redit_dd")
        with pytest.raises(ConfigError, match="did you mean 'reddit_dd'"):
            runner.flights("redit_dd")


def test_explaining_changes_nothing(clock):
    with runner_of(healthy("movers", FOUND), clock=clock) as runner:
        runner.run(STATE)
        before = runner.explain("movers")
        assert runner.explain("movers") == before
        assert [flight.result.status for flight in runner.flights("movers")] == ["completed"]
