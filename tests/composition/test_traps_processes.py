"""What only a process of its own can show: the end of the program, Ctrl-C, a fork."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HUNG = """
    import threading, time
    from resilient_scan import Policy, ScanRunner, Timeout, scanner

    @scanner(pipeline="test")
    def hung(state):
        threading.Event().wait(60)

    @scanner(pipeline="test", timeout=Timeout(total=20))
    def well(state):
        return [{"ticker": "AAPL"}]

    policy = Policy(retry=None, timeout=Timeout(total=0.1))
"""


def start(text: str, **options: Any) -> subprocess.Popen[str]:
    code = textwrap.dedent(HUNG) + textwrap.dedent(text)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("closing", ["with", "close", "left open", "abandoned in a local"])
def test_a_hung_call_does_not_hold_the_end_of_the_program(closing: str) -> None:
    ends = {
        "with": "with ScanRunner([hung, well], policy=policy) as runner: report = runner.run({})",
        "close": "runner = ScanRunner([hung, well], policy=policy); report = runner.run({}); runner.close()",
        "left open": "runner = ScanRunner([hung, well], policy=policy); report = runner.run({})",
        "abandoned in a local": "report = (lambda: ScanRunner([hung, well], policy=policy).run({}))()",
    }
    process = start(f"""
    {ends[closing]}
    assert [result.status.value for result in report.results.values()] == ["timeout", "completed"], report
    print(time.time(), flush=True)
    """)
    output, errors = process.communicate(timeout=20)
    ended = time.time()
    assert (process.returncode, errors) == (0, "")
    assert ended - float(output) < 10  # on a machine that does nothing else 0.5; what hangs does so for a minute


def test_work_that_is_still_under_way_does_not_hold_the_end_of_the_program() -> None:
    """A run on a daemon thread, a scanner far from its timeout: nobody waits for either."""
    process = start("""
    began = threading.Event()

    @scanner(pipeline="test", timeout=Timeout(total=60))
    def long(state):
        began.set()
        threading.Event().wait(60)

    runner = ScanRunner([long], policy=policy)
    threading.Thread(target=runner.run, daemon=True).start()
    began.wait()
    print(time.time(), flush=True)
    """)
    output, errors = process.communicate(timeout=20)
    ended = time.time()
    assert (process.returncode, errors) == (0, "")
    assert ended - float(output) < 10


CTRL_C = """
    import json
    began = threading.Event()

    @scanner(pipeline="test", timeout=Timeout(total=60))
    def long(state):
        print("ready", flush=True)
        threading.Event().wait(60)

    @scanner(pipeline="test", timeout=Timeout(total=60))
    def queued(state):
        return []

    with ScanRunner([well, long, queued], policy=policy, max_workers=1, concurrent=CONCURRENT, order="given") as runner:
        try:
            runner.run({})
        except KeyboardInterrupt as interrupt:
            print(json.dumps(interrupt.report.to_dict()), flush=True)
            raise
"""


@pytest.mark.parametrize("concurrent", [True, False])
def test_ctrl_c_reports_what_there_is_and_ends(concurrent: bool) -> None:
    process = start(CTRL_C.replace("CONCURRENT", str(concurrent)), start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    report = json.loads(output)
    assert {name: result["status"] for name, result in report["results"].items()} == {
        "well": "completed",
        "long": "skipped",
        "queued": "skipped",
    }
    assert [candidate["ticker"] for candidate in report["candidates"]] == ["AAPL"]


def test_the_library_installs_no_signal_handlers_and_no_log_handlers() -> None:
    process = start("""
    import logging, signal
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    with ScanRunner([well], policy=policy) as runner:
        runner.run({})
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert logging.getLogger().handlers == []
    (handler,) = logging.getLogger("resilient_scan").handlers
    assert isinstance(handler, logging.NullHandler)
    """)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_importing_starts_no_thread_and_asks_no_network() -> None:
    process = start("""
    assert threading.active_count() == 1
    ScanRunner([well], policy=policy)
    assert threading.active_count() == 1
    """)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_the_stacks_of_hung_threads_can_be_read_while_garbage_is_collected() -> None:
    """On Python 3.11 a collection inside `sys._current_frames` may wait for a lock that its own thread holds."""
    process = start("""
    import gc

    class Junk: pass

    def litter():
        for _ in range(100):
            local, junk = threading.local(), Junk()
            local.itself, junk.local, junk.itself = local, local, junk

    def keep_littering():
        while True:
            thread = threading.Thread(target=litter)
            thread.start()
            thread.join()

    with ScanRunner([hung], policy=policy, listeners=()) as runner:
        runner.run({})
        threading.Thread(target=keep_littering, daemon=True).start()
        gc.set_threshold(1)  # a collection at nearly every allocation
        for number in range(1500):
            if number % 10 == 0:
                litter()
            assert len(runner.abandoned()) == 1
        assert gc.isenabled()
        print("read", flush=True)
    """)
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert output == "read\n", errors
