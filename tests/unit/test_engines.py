"""One attempt on a thread: the call of a scanner, and the check of what it returned."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import selectors
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from resilient_scan import Candidate, InvalidCandidate, ScanCancelled, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.engines.loop import Loops
from resilient_scan.engines.thread import Once
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.call import Maker
from resilient_scan.scanning import ScannerSpec, spec_of
from resilient_scan.snapshot import Snapshot
from resilient_scan.testing import FakeClock

AAPL = Candidate("AAPL", "one", "rose")


class Struct(msgspec.Struct):
    ticker: str
    score: float = 0.0


@dataclasses.dataclass
class Data:
    ticker: str
    score: float = 0.0


class Pydantic:
    """Looks like a pydantic model."""

    def __init__(self, ticker: str) -> None:
        self.ticker = ticker

    @classmethod
    def model_validate(cls, mapping: dict[str, Any]) -> Pydantic:
        if "ticker" not in mapping:
            raise ValueError("ticker: field required")
        return cls(mapping["ticker"])


class Plain:
    def __init__(self, ticker: str) -> None:
        self.ticker = ticker


Engine = Callable[[ScannerSpec], Call]


class OnThreads:
    """Run each blocking call of a coroutine on a thread of its own."""

    def admit(self, _context: AttemptContext, /) -> None:
        """Let every attempt pass."""

    def submit(self, call: Callable[[], Any], _context: AttemptContext, /) -> Future[Any]:
        """Start the thread."""
        future: Future[Any] = Future()
        threading.Thread(target=lambda: future.set_result(call())).start()
        return future


@pytest.fixture
def engine() -> Iterator[Engine]:
    loops = Loops()
    yield lambda spec: Once(spec, loops, OnThreads()).call
    loops.close()


def asked(
    answer: Any, engine: Engine, *, candidate: type = Candidate, context: AttemptContext | None = None
) -> AttemptContext:
    """Ask a scanner once that returns `answer` (or what it returns, if it is a function); return the context."""

    @scanner(pipeline="test", name="one", candidate=candidate)
    def one(state: dict[str, Any], context: AttemptContext) -> Any:
        return answer(context) if callable(answer) else answer

    context = context or AttemptContext("one")
    found = engine(spec_of(one))(context)
    assert found is context.found or not (found or context.found)
    return context


@pytest.mark.parametrize(
    "answer",
    [
        [AAPL, {"ticker": "IBM"}],
        (AAPL, {"ticker": "IBM"}),
        deque([AAPL, {"ticker": "IBM"}]),
        {0: AAPL, 1: {"ticker": "IBM"}}.values(),
        iter([AAPL, {"ticker": "IBM"}]),
        (one for one in (AAPL, {"ticker": "IBM"})),
    ],
)
def test_any_iterable_is_an_answer(answer: Any, engine: Engine) -> None:
    assert asked(answer, engine).found == [AAPL, Candidate("IBM", "one", "")]


@pytest.mark.parametrize("answer", [[], (), iter(()), set()])
def test_nothing_found_is_an_answer_too(answer: Any, engine: Engine) -> None:
    context = asked(answer, engine)
    assert (list(context.found), context.dropped, context.attempt) == ([], 0, 1)


@pytest.mark.parametrize("answer", [None, 5, "AAPL", b"AAPL", {"ticker": "AAPL"}, MappingProxyType({}), AAPL, object])
def test_anything_else_is_the_scanners_error(answer: Any, engine: Engine) -> None:
    with pytest.raises(TypeError) as caught:
        asked(lambda _context: answer, engine)
    assert str(caught.value) == (f"scan returned {type(answer).__name__}; return a list of candidates, or yield them")


def test_invalid_ones_are_dropped_and_the_first_says_why(engine: Engine) -> None:
    context = asked([{"ticker": ""}, AAPL, {"symbol": "X"}, None, {"ticker": "IBM"}], engine)
    assert [one.ticker for one in context.found] == ["AAPL", "IBM"]
    assert context.dropped == 3
    assert context.invalid == "candidate.ticker must be a symbol without blanks, got ''"


def test_every_attempt_gets_a_state_of_its_own(engine: Engine) -> None:
    seen: list[Any] = []

    @scanner(pipeline="test")
    def one(state: dict[str, Any]) -> list[Any]:
        seen.append(list(state["tickers"]))
        state["tickers"].append("SPOILT")
        return []

    context = AttemptContext("one", snapshot=Snapshot({"tickers": ["AAPL"]}))
    call = engine(spec_of(one))
    call(context)
    call(context)
    assert seen == [["AAPL"], ["AAPL"]]
    assert context.attempt == 2


def test_what_was_yielded_before_an_error_stays(engine: Engine) -> None:
    def answer(_context: AttemptContext) -> Iterator[Any]:
        yield AAPL
        yield {"no": "ticker"}
        raise OSError("down")

    context = AttemptContext("one")
    with pytest.raises(OSError, match="down"):
        asked(answer, engine, context=context)
    assert (context.found, context.dropped) == ([AAPL], 1)


def test_an_endless_generator_ends_with_the_scan(engine: Engine) -> None:
    clock = FakeClock()
    context = AttemptContext("one", clock=clock, deadline=3.0)

    def answer(_context: AttemptContext) -> Iterator[Any]:
        while True:
            clock.advance(1)
            yield AAPL

    with pytest.raises(ScanCancelled):
        asked(answer, engine, context=context)
    assert context.found == [AAPL, AAPL]


def test_a_coroutine_is_awaited(engine: Engine) -> None:
    async def answer(_context: AttemptContext) -> list[Any]:
        return [AAPL, {}]

    context = asked(answer, engine)
    assert (context.found, context.dropped) == ([AAPL], 1)


def test_a_coroutine_may_return_nothing_but_an_iterable(engine: Engine) -> None:
    async def answer(_context: AttemptContext) -> None:
        """Return nothing."""

    with pytest.raises(TypeError, match=r"^scan returned NoneType; "):
        asked(answer, engine)


def test_an_async_generator_is_read_to_the_end(engine: Engine) -> None:
    async def answer(_context: AttemptContext) -> AsyncIterator[Any]:
        yield AAPL
        yield {"ticker": "IBM", "price": 1.5}
        yield "no candidate"

    context = asked(answer, engine)
    assert context.found == [AAPL, Candidate("IBM", "one", "", extras={"price": 1.5})]
    assert context.dropped == 1


def test_what_an_async_generator_yielded_before_an_error_stays(engine: Engine) -> None:
    async def answer(_context: AttemptContext) -> AsyncIterator[Any]:
        yield AAPL
        raise OSError("down")

    context = AttemptContext("one")
    with pytest.raises(OSError, match="down"):
        asked(answer, engine, context=context)
    assert context.found == [AAPL]


# event loops


async def _loop_in_use(_context: AttemptContext) -> list[Any]:
    _used.append(asyncio.get_running_loop())
    return []


_used: list[asyncio.AbstractEventLoop] = []


@pytest.fixture
def used() -> Iterator[list[asyncio.AbstractEventLoop]]:
    """The loops that attempts ran on."""
    _used.clear()
    yield _used
    _used.clear()


def test_each_attempt_has_a_loop_of_its_own_that_is_closed_at_its_end(
    engine: Engine, used: list[asyncio.AbstractEventLoop]
) -> None:
    """Each holds three descriptors: one kept for each of 400 scanners is more than a process may have."""
    for _ in range(3):
        asked(_loop_in_use, engine)
    assert len(set(used)) == 3
    assert all(loop.is_closed() for loop in used)


def test_what_one_attempt_leaves_on_its_loop_does_not_run_in_the_next_one(engine: Engine) -> None:
    ran: list[str] = []

    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ran.append(f"generator on {id(asyncio.get_running_loop())}")

    async def leaves(_context: AttemptContext) -> list[Any]:
        loop = asyncio.get_running_loop()
        ran.append(f"generator on {id(loop)}")
        loop.call_later(0.01, ran.append, "timer")
        await anext(stubborn())
        return []

    async def waits(_context: AttemptContext) -> list[Any]:
        await asyncio.sleep(0.05)
        return []

    asked(leaves, engine)
    assert len(ran) == 2
    assert ran[0] == ran[1], "the generator is closed, on its own loop"
    asked(waits, engine)
    assert len(ran) == 2


def test_a_task_factory_that_raises_costs_no_answer(engine: Engine) -> None:
    async def sets(_context: AttemptContext) -> list[Any]:
        asyncio.get_running_loop().set_task_factory(lambda *_args, **_kwargs: 1 / 0)
        return [AAPL]

    assert asked(sets, engine).found == [AAPL]


class Feed:
    """Iterable without an end, but no iterator."""

    def __init__(self, context: AttemptContext) -> None:
        self.context = context

    def __iter__(self) -> Iterator[Any]:
        for number in range(10):
            if number == 3:
                self.context.cancel()
            yield AAPL
        raise AssertionError("read on after the cancel")


def test_a_feed_that_is_no_iterator_ends_with_its_scan(engine: Engine) -> None:
    context = AttemptContext("one")
    with pytest.raises(ScanCancelled):
        asked(Feed, engine, context=context)
    assert context.found == [AAPL] * 3


def test_what_is_wrong_with_an_item_is_told_in_reasonable_length(engine: Engine) -> None:
    context = asked([{"ticker": "a b" * 1_000_000}], engine)
    assert context.dropped == 1
    assert len(context.invalid) < 11_000
    assert "characters)" in context.invalid


@pytest.mark.parametrize(
    "change",
    [
        lambda loop: loop.set_task_factory(lambda own, work, **options: asyncio.Task(work, loop=own, **options)),
        lambda loop: loop.set_exception_handler(lambda _loop, _failure: None),
        lambda loop: loop.set_default_executor(ThreadPoolExecutor(1)),
    ],
)
def test_a_loop_that_a_scanner_has_changed_is_not_given_to_another(
    change: Callable[[Any], None], engine: Engine, used: list[asyncio.AbstractEventLoop]
) -> None:
    async def changes(context: AttemptContext) -> list[Any]:
        change(asyncio.get_running_loop())
        return await _loop_in_use(context)

    asked(changes, engine)
    asked(_loop_in_use, engine)
    assert used[0] is not used[1]
    assert used[0].is_closed()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("part", ["selector", "pipe"])
def test_a_loop_that_cannot_be_made_is_the_scanners_error_and_no_more(
    part: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `__del__` would close a pipe that is not there, and the coroutine would never be awaited."""

    def fails(*_args: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def answer(_context: AttemptContext) -> list[Any]:
        return [AAPL]

    with monkeypatch.context() as patch:
        if part == "selector":
            patch.setattr(selectors, "DefaultSelector", fails)
        else:
            patch.setattr(asyncio.SelectorEventLoop, "_make_self_pipe", fails)
        with pytest.raises(OSError, match="Too many open files"):
            asked(answer, engine)
    gc.collect()
    assert asked(answer, engine).found == [AAPL]


@pytest.mark.parametrize("cancels", [1, 2])
def test_a_coroutine_is_cancelled_once(cancels: int, engine: Engine) -> None:
    """By the alarm of its loop and by the watchdog: the second cancel would interrupt the cleanup of the first."""
    context = AttemptContext("one", deadline=SystemClock().monotonic() + 0.05)
    cleaned: list[int] = []

    async def answer(_context: AttemptContext) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(cancels):
                context.cancel()
            await asyncio.sleep(0.01)
            cleaned.append(1)

    with pytest.raises(ScanCancelled):
        asked(answer, engine, context=context)
    assert cleaned == [1]


def test_a_blocking_call_is_handed_to_the_engines_threads(engine: Engine) -> None:
    async def answer(_context: AttemptContext) -> list[Any]:
        found = await asyncio.to_thread(lambda: [AAPL])
        (address, *_) = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        return [*found, {"ticker": address[4][0]}]

    assert [candidate.ticker for candidate in asked(answer, engine).found] == ["AAPL", "127.0.0.1"]


# candidates of mappings


@pytest.mark.parametrize(
    ("mapping", "candidate"),
    [
        ({"ticker": "A"}, Candidate("A", "src", "")),
        (MappingProxyType({"ticker": "A"}), Candidate("A", "src", "")),
        ({"ticker": "A", "source": "own", "context": "c"}, Candidate("A", "own", "c")),
        ({"ticker": "A", "priority": None, "context": None}, Candidate("A", "src", "")),
        ({"ticker": "A", "price": 1, "x": None}, Candidate("A", "src", "", extras={"price": 1, "x": None})),
        ({"ticker": "A", "extras": {"y": 1}}, Candidate("A", "src", "", extras={"y": 1})),
        (
            {"ticker": "A", "extras": {"y": 1, "z": 1}, "z": 2},
            Candidate("A", "src", "", extras={"y": 1, "z": 2}),
        ),
        ({"ticker": "A", 5: "odd"}, Candidate("A", "src", "", extras={5: "odd"})),
    ],
)
def test_a_mapping_needs_no_more_than_a_ticker(mapping: Any, candidate: Candidate) -> None:
    assert Maker(Candidate, "src")(mapping) == candidate


def test_a_mapping_is_not_changed() -> None:
    mapping = {"ticker": "A", "extras": {"y": 1}, "z": 2}
    Maker(Candidate, "src")(mapping)
    assert mapping == {"ticker": "A", "extras": {"y": 1}, "z": 2}


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({}, "candidate.ticker is missing"),
        ({"ticker": None}, "candidate.ticker is missing"),
        ({"ticker": 5}, "candidate.ticker must be text, got 5"),
        ({"ticker": "A", "priority": 1}, "candidate.priority must be text, got 1"),
        ({"ticker": "A", "extras": [1]}, "candidate.extras must be a dict, got [1]"),
        (5, "a Candidate or a mapping was expected, got 5"),
        ("AAPL", "a Candidate or a mapping was expected, got 'AAPL'"),
        (Struct("A"), f"a Candidate or a mapping was expected, got {Struct('A')!r}"),
        (["x" * 300], "a Candidate or a mapping was expected, got " + str(["x" * 300])[:200]),
    ],
)
def test_what_is_no_candidate_says_why(item: Any, sentence: str) -> None:
    with pytest.raises(InvalidCandidate) as caught:
        Maker(Candidate, "src")(item)
    assert str(caught.value) == sentence


def test_extras_that_cannot_be_joined_are_invalid() -> None:
    with pytest.raises(InvalidCandidate, match=r"^no Candidate can be made of a mapping: "):
        Maker(Candidate, "src")({"ticker": "A", "extras": 5, "price": 1})


# other types


@pytest.mark.parametrize("kind", [Struct, Data, Pydantic, Plain])
def test_another_type_takes_its_own_and_mappings(kind: type) -> None:
    make = Maker(kind, "src")
    own: Any = kind("A")
    assert make(own) is own
    made = make(MappingProxyType({"ticker": "B"}) if kind is not Pydantic else {"ticker": "B"})
    assert type(made) is kind
    assert made.ticker == "B"


@pytest.mark.parametrize("kind", [Struct, Data, Pydantic, Plain])
@pytest.mark.parametrize("item", [{}, {"symbol": "A"}, 5, None, AAPL])
def test_another_type_refuses_what_does_not_fit(kind: type, item: Any) -> None:
    with pytest.raises(InvalidCandidate) as caught:
        Maker(kind, "src")(item)
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize("kind", [Struct, Data])
def test_types_of_fields_are_checked(kind: type) -> None:
    with pytest.raises(InvalidCandidate, match=r"no .* can be made of a mapping: Expected `float`, got `str`"):
        Maker(kind, "src")({"ticker": "A", "score": "high"})


def test_a_type_that_says_itself_what_is_wrong_is_believed() -> None:
    class Own:
        def __init__(self, **_fields: Any) -> None:
            raise InvalidCandidate("own words")

    with pytest.raises(InvalidCandidate, match=r"^own words$"):
        Maker(Own, "src")({"ticker": "A"})


def test_a_scanner_may_have_its_own_type(engine: Engine) -> None:
    context = asked([{"ticker": "A", "score": 2}, Struct("B"), AAPL], engine, candidate=Struct)
    assert context.found == [Struct("A", 2.0), Struct("B")]
    assert context.dropped == 1
