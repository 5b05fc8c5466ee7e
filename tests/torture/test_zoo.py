"""A zoo of poison scanners next to 100 sound ones, each group in a process of its own, three runs in each.

What must hold, whatever the poisons do: each scan has one result and one `ScanEnded`, each run one `RunStarted` and one
`RunEnded`; the sound scanners answer, and rightly; Prometheus counts what the reports say; a run ends in time; and no
thread, descriptor or process is left, apart from those that the poisons themselves leave or hang on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.torture.cage import SOUND, Account, Order, Run
from tests.torture.register import CONTAINED_GROUPS, PATIENCE, POISONS, Poison, members

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parents[2]
NO_DESCRIPTORS = ("function", "generator", "mapping", "sharing")
# `asyncio.run` of the standard library reads the patched `time.monotonic`, and never ends.
NOT_TOGETHER = {"runs_a_loop"}


class Caged(msgspec.Struct):
    """A cage that was opened again; `account` is None if its process could not write one."""

    code: int
    account: Account | None
    said: str

    @property
    def told(self) -> Account:
        assert self.account is not None, self.said[-4000:]
        return self.account


def caged(order: Order, folder: Path, *, lane: bool = False) -> Caged:
    """Run an order in a process of its own, and end what that leaves; `lane`: coroutines share a loop."""
    environment = {**os.environ, "ZOO_WITHOUT_LANE": "" if lane else "1"}
    out, said = folder / "account.json", folder / "said.txt"
    command = [sys.executable, "-m", "tests.torture.cage", str(out), msgspec.json.encode(order).decode()]
    with said.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            code = process.wait(order.longest + 3)
        except subprocess.TimeoutExpired:
            code = -1000
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else _end_group(process.pid)
            process.wait()
    account = msgspec.json.decode(out.read_bytes(), type=Account) if out.exists() else None
    lines = [line for line in said.read_text(errors="replace").splitlines() if "✓" not in line]
    return Caged(code, account, "\n".join(lines))


def _end_group(group: int) -> None:
    """End the processes that a poison has left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def names(poisons: list[Poison]) -> tuple[str, ...]:
    return tuple(one.name for one in poisons)


def check_run(run: Run, poisons: tuple[str, ...], sound_status: str) -> None:
    """Check what holds for every run that nobody ended."""
    assert not run.raised
    assert len(run.statuses) == SOUND + len(poisons)
    assert run.ended == dict.fromkeys(run.statuses, 1), "one ScanEnded for each scan"
    assert (run.started_events, run.ended_events) == (1, 1)
    assert run.counts == dict(Counter(run.statuses.values()))
    sound = {name: status for name, status in run.statuses.items() if name.startswith("sound_")}
    lost = {name: (status, run.errors.get(name)) for name, status in sound.items() if status != sound_status}
    assert (len(sound), lost, run.wrong) == (SOUND, {}, [])


def check_account(account: Account, order: Order) -> None:
    """Check what holds for a cage as a whole."""
    for number, run in enumerate(account.runs):
        check_run(run, order.poisons, "completed" if number < 2 else "cached")
    assert len(account.runs) == order.runs
    if order.metrics:
        assert account.counted == account.heard
    kept = {name for name in order.poisons if POISONS[name].keeps}
    assert set(account.abandoned) <= kept
    assert (account.left, account.descriptors) == ([], [])
    assert set(account.threads) <= {"poison"}


def unexpected(account: Account, order: Order) -> list[tuple[Any, ...]]:
    """Return the poisons' scans that ended as they should not."""
    found = []
    for number, run in enumerate(account.runs):
        for name in order.poisons:
            one = POISONS[name]
            allowed = (one.expect, one.again, one.again | {"cached", "rejected"})[min(number, 2)]
            if run.statuses[name] not in allowed:
                found.append((number, name, run.statuses[name], run.errors.get(name), sorted(allowed)))
    return found


def length(order: Order) -> float:
    """Return the seconds that a run may take: the timeouts of what hangs, eight at a time, and some for the rest."""
    hanging = sum("timeout" in POISONS[name].expect for name in order.poisons)
    return PATIENCE * -(-hanging // 8) + 12


def check(order: Order, folder: Path) -> Account:
    done = caged(order, folder)
    account = done.told
    assert done.code == 0, done.said[-4000:]
    check_account(account, order)
    assert unexpected(account, order) == []
    assert max(run.took for run in account.runs) < length(order) < order.deadline
    return account


def test_the_zoo_has_at_least_forty_poisons() -> None:
    assert len(POISONS) >= 120
    contained = sum(one.contained for one in POISONS.values())
    assert f"A zoo of {contained} poison scanners " in (ROOT / "docs" / "how-a-timeout-works.md").read_text()
    assert {one.group for one in POISONS.values() if one.contained} == {*CONTAINED_GROUPS, "scarcity"}
    assert {one.group for one in POISONS.values() if not one.contained} == {"outlaws"}


@pytest.mark.long
@pytest.mark.parametrize("group", CONTAINED_GROUPS)
def test_a_group_of_poisons_costs_no_sound_scanner_its_result(group: str, tmp_path: Path) -> None:
    check(Order(poisons=names(members(group)), options={"max_abandoned": 64}), tmp_path)


@pytest.mark.parametrize("name", ["leaves_a_call", "stops_the_loop"])
def test_a_coroutine_that_breaks_the_loop_that_it_shares(name: str, tmp_path: Path) -> None:
    """One at a time: each loop that is given up costs what was on it an attempt, and a sound scanner has three."""
    order = Order(poisons=(name,), runs=1, deadline=8.0)
    (run,) = caged(order, tmp_path, lane=True).told.runs
    check_run(run, order.poisons, "completed")
    assert name == "stops_the_loop" or run.took < 7, "it was not left to the run's deadline"


@pytest.mark.long
def test_poisons_cost_nothing_where_no_listener_wants_attempts(tmp_path: Path) -> None:
    """Attempts are not reported then, and other code is the first to look at an exception."""
    poisons = names([*members("raises"), *members("objects")])
    check(Order(poisons=poisons, options={"max_abandoned": 64}, metrics=False), tmp_path)


def together(**changes: Any) -> Order:
    poisons = tuple(name for name in names(members(*CONTAINED_GROUPS)) if name not in NOT_TOGETHER)
    return Order(
        **{"poisons": poisons, "deadline": 60.0, "options": {"max_abandoned": 100}, "longest": 240.0, **changes}
    )


def check_together(order: Order, folder: Path) -> None:
    """Check the sound scanners; the poisons are in each other's way, and may end differently than alone."""
    done = caged(order, folder)
    account = done.told
    for number, run in enumerate(account.runs):
        check_run(run, order.poisons, "completed" if number < 2 else "cached")
        assert run.took < order.deadline
    assert account.counted == account.heard
    assert set(account.abandoned) | set(account.left) <= set(order.poisons)
    assert len(account.runs) == order.runs


def test_the_whole_zoo_at_once_costs_no_sound_scanner_its_result(tmp_path: Path) -> None:
    check_together(together(), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"max_abandoned": 100, "concurrent": False, "max_workers": 1}, "deadline": 200.0, "runs": 2},
        {"options": {"max_abandoned": 100, "max_workers": 32}},
        {"options": {"max_abandoned": 100}, "switch": 1e-5},
        {"options": {"max_abandoned": 100, "order": "given"}, "runs": 6},
    ],
    ids=["one at a time", "32 workers", "threads that switch often", "six runs"],
)
def test_the_whole_zoo_in_other_circumstances(changes: dict[str, Any], tmp_path: Path) -> None:
    check_together(together(longest=600.0, **changes), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("number", range(5))
def test_the_zoo_with_a_store(number: int, tmp_path: Path) -> None:
    check_together(together(options={"max_abandoned": 100, "store": f"sqlite:///{tmp_path}/scan.db"}), tmp_path)


# where a machine has too little


def test_a_poison_that_takes_all_threads(tmp_path: Path) -> None:
    """Root has no limit on them, so the process takes another user's id."""
    order = Order(poisons=("takes_all_threads",), limits={"RLIMIT_NPROC": 60}, user=54_321)
    done = caged(order, tmp_path)
    check_account(done.told, order)
    assert unexpected(done.told, order) == []


def test_a_poison_that_takes_all_memory(tmp_path: Path) -> None:
    order = Order(poisons=("takes_all_memory",), limits={"RLIMIT_AS": 1 << 30}, runs=2)
    done = caged(order, tmp_path)
    check_account(done.told, order)
    assert unexpected(done.told, order) == []


def test_poisons_that_take_all_descriptors_and_give_them_back(tmp_path: Path) -> None:
    order = Order(poisons=("takes_descriptors",), sound=NO_DESCRIPTORS, limits={"RLIMIT_NOFILE": 64})
    done = caged(order, tmp_path)
    check_account(done.told, order)


def test_poisons_that_fill_the_stores_disk(tmp_path: Path) -> None:
    order = Order(
        poisons=("fills_the_disk", "finds_little"),
        options={"store": f"sqlite:///{tmp_path}/scan.db"},
        limits={"RLIMIT_FSIZE": 256 * 1024},
        runs=2,
    )
    done = caged(order, tmp_path)
    check_account(done.told, order)
    assert unexpected(done.told, order) == []
