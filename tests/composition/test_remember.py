"""What a scanner remembers: found again by its next scan, in its store by the next process, and by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resilient_scan import Cache, ScanCancelled, ScanContext, ScanRunner, Timeout, scanner
from resilient_scan.http import Replay
from resilient_scan.testing import FakeClock


class Seen(msgspec.Struct):
    """What the scanner below remembers."""

    runs: int
    days: list[date]


def counting(name: str = "counting", version: str = "1", cache: Cache | None = None) -> Any:
    """Return a scanner that tells how many scans of it there were before."""

    @scanner(pipeline="p", name=name, version=version, cache=cache)
    def count(_state: dict[str, Any], context: ScanContext) -> list[dict[str, Any]]:
        seen = context.recall("seen", Seen) or Seen(0, [])
        context.remember("seen", Seen(seen.runs + 1, [*seen.days, date(2026, 1, 2)]), ttl=60)
        return [{"ticker": "A", "source": name, "context": "", "runs": seen.runs, "days": len(seen.days)}]

    return count


def runs(runner: ScanRunner, name: str = "counting") -> int:
    (found,) = runner.run().results[name].candidates
    assert found.extras["days"] == found.extras["runs"]
    return int(found.extras["runs"])


def test_without_a_store_it_lasts_as_long_as_the_runner() -> None:
    clock = FakeClock()
    with ScanRunner([counting(), counting("other")], clock=clock, listeners=()) as runner:
        assert [runs(runner) for _ in range(3)] == [0, 1, 2]
        assert runs(runner, "other") == 3  # its own, and not the sum of both
        clock.advance(61)
        assert runs(runner) == 0
    with ScanRunner([counting()], clock=clock, listeners=()) as runner:
        assert runs(runner) == 0


def test_in_a_store_it_outlives_the_process_but_not_the_release_the_settings_and_an_order(tmp_path: Path) -> None:
    url, clock = f"sqlite:///{tmp_path}/s.db", FakeClock()

    def runner(each: Any, **options: Any) -> ScanRunner:
        return ScanRunner([each], store=url, clock=clock, listeners=(), **options)

    for before in (0, 1):
        with runner(counting()) as one:
            assert runs(one) == before
    with runner(counting(version="2")) as one:
        assert runs(one) == 0
    with runner(counting(), settings={"counting": {"least": 5}}) as one:
        assert runs(one) == 0
    clock.advance(61)
    with runner(counting()) as one:
        assert runs(one) == 0


def test_an_order_to_forget_covers_it(tmp_path: Path) -> None:
    for store in (None, f"sqlite:///{tmp_path}/s.db"):
        with ScanRunner([counting(cache=Cache(ttl=1e-9))], store=store, listeners=()) as runner:
            assert [runs(runner), runs(runner)] == [0, 1]
            runner.forget("counting")
            assert runs(runner) == 0


def test_while_requests_are_replayed_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with ScanRunner([counting()], traffic=Replay(tmp_path), listeners=()) as runner:
        assert [runs(runner), runs(runner)] == [0, 0]


def test_a_scan_that_is_over_keeps_nothing_more_and_another_type_is_not_found() -> None:
    late: list[BaseException] = []

    @scanner(pipeline="p", cache=None, retry=None, timeout=Timeout(total=30))
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        assert context.recall("x", dict[str, int]) is None
        context.remember("x", {"a": 1}, ttl=60)
        assert context.recall("x", dict[str, int]) == {"a": 1}
        assert context.recall("x", list[int]) is None
        with pytest.raises(TypeError):
            context.remember("x", object(), ttl=60)
        context.abandoned = True
        try:
            context.remember("x", {"a": 2}, ttl=60)
        except ScanCancelled as error:
            late.append(error)
        assert context.recall("x", dict[str, int]) == {"a": 1}
        return []

    with ScanRunner([one], listeners=()) as runner:
        runner.run()
    assert len(late) == 1


@pytest.mark.parametrize("make", [ScanContext, lambda: ScanContext("x", settings={})])
def test_without_a_runner_nothing_is_remembered(make: Callable[[], ScanContext]) -> None:
    context = make()
    context.remember("x", 1, ttl=60)
    assert context.recall("x", int) is None
