"""What one process cannot contain: what really happens, by name, and that the documents lists it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.torture.cage import SOUND, Order, Run
from tests.torture.outlaws import GROUP
from tests.torture.register import PATIENCE, members
from tests.torture.test_zoo import NO_DESCRIPTORS, ROOT, Caged, caged, check_run, pytestmark  # noqa: F401 - marks all

DEADLINE = 5.0


def alone(name: str, folder: Path, **changes: Any) -> Caged:
    return caged(Order(**{"poisons": (name,), "runs": 1, "deadline": DEADLINE, "longest": 30.0, **changes}), folder)


def whole(run: Run) -> None:
    """Check that the report is whole, whatever its statuses are."""
    assert len(run.statuses) == SOUND + 1
    assert run.ended == dict.fromkeys(run.statuses, 1)
    assert (run.started_events, run.ended_events) == (1, 1)


def statuses(run: Run, *kinds: str) -> Counter[str]:
    """Return how the sound scanners of some kinds ended."""
    order = Order(poisons=()).sound
    wanted = [name for name in run.statuses if name.startswith("sound_") and order[int(name[-3:]) % 5] in kinds]
    return Counter(run.statuses[name] for name in wanted)


def test_a_c_call_that_keeps_the_lock_delays_everything_and_costs_no_result(tmp_path: Path) -> None:
    (run,) = alone("keeps_the_lock", tmp_path, deadline=60.0, longest=120.0).told.runs
    check_run(run, ("keeps_the_lock",), "completed")
    assert run.took > PATIENCE, "its timeout could not be kept"


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="children are made by a fork server here")
def test_child_processes_contain_all_of_them(tmp_path: Path) -> None:
    names = tuple(one.name for one in members(GROUP))
    options = {"isolation": dict.fromkeys(names, "process"), "memory": {"keeps_all_memory": "200MB"}}
    (run,) = caged(Order(poisons=names, runs=1, deadline=60.0, longest=120.0, options=options), tmp_path).told.runs
    sound = {name: status for name, status in run.statuses.items() if name not in names}
    assert len(sound) == SOUND
    assert set(sound.values()) == {"completed"}
    assert {run.statuses[name] for name in names} <= {"completed", "error", "timeout"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("exits_the_process", 7),
        ("crashes", -signal.SIGSEGV),
        ("aborts", -signal.SIGABRT),
        ("kills_the_process", -signal.SIGKILL),
        ("sets_an_alarm", -signal.SIGALRM),
        ("sets_a_fault_timer", 1),
    ],
)
def test_the_process_ends_without_a_report(name: str, code: int, tmp_path: Path) -> None:
    done = alone(name, tmp_path)
    dumped = done.code == -signal.SIGSEGV and name == "sets_a_fault_timer"  # it reads stacks of threads that run
    assert done.code == code or dumped
    assert done.account is None


def test_an_interrupt_ends_the_run_as_ctrl_c_does(tmp_path: Path) -> None:
    (run,) = alone("interrupts_the_process", tmp_path).told.runs
    assert run.raised.startswith("KeyboardInterrupt")
    whole(run)
    assert set(statuses(run, "function")) <= {"completed", "skipped"}


def test_a_closed_runner_ends_the_run(tmp_path: Path) -> None:
    (run,) = alone("closes_its_runner", tmp_path).told.runs
    assert not run.raised
    whole(run)
    assert set(statuses(run, "function")) <= {"completed", "skipped"}


def test_without_descriptors_those_that_need_none_complete(tmp_path: Path) -> None:
    (run,) = alone("keeps_all_descriptors", tmp_path, limits={"RLIMIT_NOFILE": 64}).told.runs
    whole(run)
    assert set(statuses(run, *NO_DESCRIPTORS)) == {"completed"}
    assert set(statuses(run, "coroutine")) <= {"error", "completed"}  # its loop may have got some before they were gone


def test_closed_descriptors_leave_a_whole_report(tmp_path: Path) -> None:
    (run,) = alone("closes_all_descriptors", tmp_path).told.runs
    whole(run)
    assert set(statuses(run, *NO_DESCRIPTORS)) == {"completed"}


def test_a_low_recursion_limit_fails_whoever_needs_more(tmp_path: Path) -> None:
    """Scanners, the run, its watchdog or the cage: which one comes first differs from version to version."""
    done = alone("lowers_the_recursion_limit", tmp_path, longest=DEADLINE + 3)
    runs = [] if done.account is None else done.account.runs
    ends = {status for run in runs for status in run.statuses.values()} | {run.raised for run in runs}
    assert done.code != 0 or "RecursionError" in done.said or ends - {"completed", ""}


def test_a_logging_handler_that_hangs_hangs_the_run(tmp_path: Path) -> None:
    done = alone("adds_a_stuck_handler", tmp_path, longest=DEADLINE + 3)
    assert done.code == 1
    assert "Timeout (" in done.said, "the cage was ended long after the deadline"
    assert "in emit" in done.said


def test_a_thread_that_is_no_daemon_keeps_the_program(tmp_path: Path) -> None:
    done = alone("leaves_a_thread_for_ever", tmp_path, longest=6.0)
    check_run(done.told.runs[0], ("leaves_a_thread_for_ever",), "completed")
    assert done.code == -1000, "the process did not end by itself"


def test_a_patched_interpreter_does_not_replace_hung_threads(tmp_path: Path) -> None:
    done = alone("patches_threads", tmp_path, options={"max_workers": 1}, deadline=2.0)
    (run,) = done.told.runs
    whole(run)
    assert run.took < DEADLINE + 2
    assert "skipped" in run.statuses.values()


@pytest.mark.long
def test_memory_that_is_kept_fails_whoever_needs_some(tmp_path: Path) -> None:
    done = alone("keeps_all_memory", tmp_path, limits={"RLIMIT_AS": 1 << 30})
    assert done.code != 0 or done.account is not None
    assert "MemoryError" in done.said or done.account is None or "error" in done.told.runs[0].statuses.values()


def test_the_documents_list_what_is_not_contained() -> None:
    text = (ROOT / "docs" / "how-a-timeout-works.md").read_text()
    for one in members(GROUP):
        assert f"| {one.what} | {one.effect} |" in text, one.name
