"""The keys of states: two states share a key if they are equal, types included, and only then.

If two different states shared a key, the second one would get the answer that was found for the first.
"""

from __future__ import annotations

import copy
import datetime as dt
import enum
import hashlib
import itertools
import os
import subprocess
import sys
import uuid
from collections import Counter, OrderedDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan.snapshot import Snapshot, stable_key

RULES = settings(deadline=None, derandomize=True)
UTC, BERLIN = dt.UTC, ZoneInfo("Europe/Berlin")
ONE_HOUR = dt.timezone(dt.timedelta(hours=1))
NOON = dt.datetime(2026, 11, 24, 12, tzinfo=UTC)
MIDNIGHT = dt.datetime(2026, 11, 24)  # noqa: DTZ001
DAY = dt.date(2026, 11, 24)


def key(value: Any) -> bytes | None:
    """Return the key of a state with this value in it."""
    return stable_key({"value": value})


# what states are made of


class Level(enum.Enum):
    ONE = 1
    TEXT = "1"
    ODD = object()  # has no stable form


class Rank(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "1"


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class Option(enum.Flag, boundary=enum.KEEP):
    FIRST = 1


class Items(list[Any]):
    """A subclass that has attributes."""


class Slotted(list[Any]):
    """One that has a slot instead."""

    __slots__ = ("first",)
    first: Any


class Triple(tuple[Any, ...]):
    __slots__ = ()


class Table(dict[Any, Any]):
    pass


class Sequence(dict[Any, Any]):
    """A dict whose order counts."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self.items()) == list(other.items())


class Bag(set[Any]):
    pass


class Row(NamedTuple):
    first: Any = None


class OtherRow(NamedTuple):
    first: Any = None


@dataclass
class Plain:
    first: Any = None


@dataclass(slots=True)
class Slots:
    first: Any = None


@dataclass
class Base:
    first: Any = None
    shared: ClassVar[Any] = 1


@dataclass
class Derived(Base):
    """A dataclass that is a list as well."""

    cached: Any = field(default=None, init=False)


@dataclass
class Both(list[Any]):
    first: Any = None


@dataclass(init=False)
class Label(str):
    __slots__ = ()


class Struct(msgspec.Struct):
    first: Any = None


class Attribute:
    def __init__(self, name: str) -> None:
        self.name = name


class Attrs:
    """What attrs makes of a class with one attribute, as far as anybody else can see."""

    __attrs_attrs__ = (Attribute("first"),)
    __slots__ = ("first",)

    def __init__(self, first: Any = None) -> None:
        self.first = first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and self.first == other.first

    def __hash__(self) -> int:
        return hash(self.first)


class Zone(dt.tzinfo):
    """A zone of another library."""

    def __init__(self, hours: int = 0) -> None:
        self.hours = hours

    def utcoffset(self, _when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=self.hours)

    def dst(self, _when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    def tzname(self, _when: dt.datetime | None) -> str:
        return "local"


class Hidden(dt.tzinfo):
    """A zone that has a class of its own, which cannot be imported, as those of pytz."""

    hours = 0
    utcoffset, dst, tzname = Zone.utcoffset, Zone.dst, Zone.tzname

    def __reduce__(self) -> Any:
        return zone_of, (self.hours,)


def zone_of(hours: int) -> Hidden:
    zone: Hidden = type("Europe/Nowhere", (Hidden,), {"hours": hours})()
    return zone


def with_slot(inner: Any) -> Slotted:
    value = Slotted()
    value.first = inner
    return value


def with_extra(value: Any, extra: Any) -> Any:
    value.extra = extra
    return value


LEAVES: list[Any] = [  # each differs from all others, if only by its type
    *(None, False, True, 0, 1, 0.0, -0.0, 1.0, "", "1", b"", b"1", 2**70, -(2**70), hex(2**70)),
    *("UTC", "Europe/Berlin", "builtins:list", "datetime:date", [], (), {}, set(), frozenset(), bytearray(b"1")),
    *(*Level, *Rank, *Word),
    *map(Permission, (0, 1, 2, 3, 4, 8, 16, 24, 2**70)),
    *map(Option, (0, 1, 8, 16)),
    *(Decimal(1), Decimal("1.0"), Decimal("NaN"), Fraction(1), Fraction(1, 2**70)),
    *(uuid.UUID(int=1), str(uuid.UUID(int=1))),
    *(Path("1"), PurePosixPath("1"), PureWindowsPath("1"), Path(os.fsdecode(b"\xff"))),
    *(DAY, DAY.isoformat(), dt.timedelta(1), dt.timedelta(microseconds=1)),
    *(MIDNIGHT, MIDNIGHT.isoformat(), NOON.timestamp(), NOON.replace(tzinfo=None)),
    *map(NOON.astimezone, (UTC, ZoneInfo("UTC"), BERLIN, ZoneInfo("Europe/Paris"), ZoneInfo("America/New_York"))),
    *map(NOON.astimezone, (ONE_HOUR, dt.timezone(dt.timedelta(hours=1), "CET"), dt.timezone(dt.timedelta(hours=2)))),
    *map(NOON.astimezone, (Zone(0), Zone(1), zone_of(0), zone_of(1))),
    *(dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)),
    *(dt.time(12, tzinfo=zone) for zone in (None, UTC, BERLIN, ONE_HOUR)),
    dt.time(12, fold=1),
    *(UTC, BERLIN, ONE_HOUR, Zone(0)),
    *(deque(), deque(maxlen=1), OrderedDict(), Counter(), defaultdict(), defaultdict(list), defaultdict(set)),
    *(Items(), Slotted(), Triple(), Table(), Sequence(), Bag()),
]

WRAPPERS: list[Callable[[Any], Any]] = [  # each makes another value of every value
    lambda inner: [inner],
    lambda inner: [inner, inner],
    lambda inner: ["left", inner],
    lambda inner: [[inner], [inner]],
    lambda inner: (inner,),
    lambda inner: (inner, None),
    lambda inner: {"first": inner},
    lambda inner: {"second": inner},
    lambda inner: {1: inner},
    lambda inner: {True: inner},
    lambda inner: {"first": inner, "second": inner},
    lambda inner: OrderedDict(first=inner),
    lambda inner: OrderedDict(first=inner, second=None),
    lambda inner: OrderedDict(second=None, first=inner),
    lambda inner: Sequence(first=inner, second=None),
    lambda inner: Sequence(second=None, first=inner),
    lambda inner: defaultdict(None, first=inner),
    lambda inner: defaultdict(list, first=inner),
    lambda inner: Table(first=inner),
    lambda inner: deque([inner]),
    lambda inner: deque([inner], maxlen=1),
    lambda inner: Items([inner]),
    lambda inner: Slotted([inner]),
    lambda inner: with_extra(Items(), inner),
    lambda inner: with_extra(Items([1]), inner),
    with_slot,
    lambda inner: with_extra(Bag(), inner),
    lambda inner: Triple([inner]),
    Row,
    OtherRow,
    Plain,
    Slots,
    Base,
    Derived,
    Both,
    Struct,
    Attrs,
    lambda inner: with_extra(Plain(), inner),
]
HASHED: list[Callable[[Any], Any]] = [  # those for values that can be in a set
    lambda inner: {inner},
    lambda inner: frozenset([inner]),
    lambda inner: {inner, "other"},
    lambda inner: Bag([inner]),
    lambda inner: {inner: "value"},
    lambda inner: {inner: "value", "other": "value"},
    lambda inner: OrderedDict([(inner, "value")]),
    lambda inner: Table([(inner, "value")]),
]


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def wrapped(values: list[Any]) -> list[Any]:
    """Return all that the wrappers make of these values."""
    return [wrap(value) for value in values for wrap in [*WRAPPERS, *(HASHED if hashable(value) else ())]]


# all look-alikes, one by one

each_collection = pytest.mark.parametrize("values", [LEAVES, wrapped(LEAVES)], ids=["values", "one level down"])


@each_collection
def test_no_two_of_these_states_share_a_key(values: list[Any]) -> None:
    found: dict[bytes | None, Any] = {None: "what has no key"}
    for value in values:
        other = found.setdefault(key(value), value)
        assert other is value, f"{value!r} ({type(value)}) and {other!r} ({type(other)}) share a key"


@each_collection
def test_equal_states_share_a_key(values: list[Any]) -> None:
    keys = list(map(key, values))
    assert list(map(key, map(copy.deepcopy, values))) == keys
    assert [Snapshot({"value": value}).keys[None] for value in values] == keys


def digest() -> str:
    """Return a digest of many keys, of values whose order in memory differs from process to process."""
    words = list(map(str, range(40)))
    sets = [set(words), frozenset(words), Bag(words), {frozenset(words): set(words)}, {"a": [(set(words),)]}]
    keys = list(map(key, [*LEAVES, *wrapped(LEAVES), *sets]))
    return hashlib.sha256(repr(keys).encode()).hexdigest()


def test_a_key_is_the_same_in_every_process() -> None:
    """Processes that share a store find each other's answers, whatever their hashes of text are."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", "from tests.unit.test_snapshot_keys import digest; print(digest())"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


# at any depth

Spec = Any  # the number of a leaf, or the number of a branch and the specs of what is in it

BRANCHES: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    deque,
    Items,
    Slotted,
    Triple,
    lambda inner: with_extra(Items(inner[1:]), inner[0]),
    lambda inner: dict(zip("abc", inner, strict=False)),
    lambda inner: dict(enumerate(inner)),
    lambda inner: OrderedDict(zip("abc", inner, strict=False)),
    lambda inner: defaultdict(list, zip("abc", inner, strict=False)),
    lambda inner: Table(zip("abc", inner, strict=False)),
    Plain,
    Struct,
    Attrs,
    Row,
]
_specs = st.recursive(
    st.integers(0, len(LEAVES) - 1),
    lambda inner: st.tuples(st.integers(0, len(BRANCHES) - 1), st.lists(inner, min_size=1, max_size=3).map(tuple)),
    max_leaves=8,
)


def built(spec: Spec) -> Any:
    if isinstance(spec, int):
        return LEAVES[spec]
    branch, inner = spec
    return BRANCHES[branch]([built(one) for one in inner])


def places(spec: Spec) -> Iterator[tuple[int, ...]]:
    """Yield the way to each spec inside."""
    yield ()
    if not isinstance(spec, int):
        for index, one in enumerate(spec[1]):
            yield from ((index, *place) for place in places(one))


def replaced(spec: Spec, place: tuple[int, ...], new: Spec) -> Spec:
    if not place:
        return new
    first, *rest = place
    branch, inner = spec
    return branch, (*inner[:first], replaced(inner[first], tuple(rest), new), *inner[first + 1 :])


@settings(RULES, max_examples=300)
@given(st.data(), _specs, _specs)
def test_states_share_a_key_if_they_are_equal_and_only_then(data: st.DataObject, one: Spec, new: Spec) -> None:
    place = data.draw(st.sampled_from(list(places(one))))
    other = replaced(one, place, new)
    ours, theirs = key(built(one)), key(built(other))
    assert ours == key(built(one)) is not None
    assert (ours == theirs) == (one == other)


_values = (
    st.dates()
    | st.times(timezones=st.none() | st.just(UTC))
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones())
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.integers()
    | st.text()
    | st.text(st.characters(min_codepoint=1)).map(PurePosixPath)
)


@RULES
@given(st.lists(_values, min_size=2, max_size=6))
def test_values_share_a_key_only_if_they_are_shown_alike(values: list[Any]) -> None:
    """What `repr` shows of these is all that there is to them."""
    for one, other in itertools.combinations(values, 2):
        assert (key(one) == key(other)) == (type(one) is type(other) and repr(one) == repr(other))
        assert key(one) is not None


# what equal means


def test_the_order_of_a_dict_counts_only_where_it_makes_two_of_them_differ() -> None:
    kinds: list[Any] = [dict, Table, Counter, lambda pairs: defaultdict(int, pairs)]
    for kind in kinds:
        assert key(kind({"a": 1, "b": 2})) == key(kind({"b": 2, "a": 1})) is not None
    moved = OrderedDict(a=1, b=2)
    moved.move_to_end("a")
    assert key(moved) == key(OrderedDict(b=2, a=1)) != key(OrderedDict(a=1, b=2))


def test_a_field_that_was_set_to_its_default_is_like_one_that_was_not() -> None:
    late = Derived(1)
    late.cached = None
    assert key(late) == key(Derived(1)) is not None


def test_what_a_real_class_of_attrs_holds_is_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    attrs = pytest.importorskip("attrs")
    for options in ({"slots": True}, {"slots": False}, {"frozen": True}):
        made = attrs.make_class("Lot", ["day"], **options)
        monkeypatch.setattr(made, "__module__", __name__)
        monkeypatch.setattr(sys.modules[__name__], "Lot", made, raising=False)
        assert key(made(DAY)) == key(made(DAY)) is not None
        assert len({key(made(DAY)), key(made(DAY.isoformat())), key({"day": DAY})}) == 3


# no key


def local_class() -> type:
    @dataclass
    class Local:
        first: Any = None

    return Local


Twin: Any = namedtuple("Twin", "a b")  # noqa: PYI024
FirstTwin = Twin
Twin = namedtuple("Twin", "b a")  # type: ignore[no-redef]  # noqa: PYI024


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(local_class()(), id="class of a function"),
        pytest.param(FirstTwin(1, 2), id="class whose name another one has"),
        pytest.param(enum.Enum("Color", "RED").RED, id="enum without a name"),  # type: ignore[attr-defined]
        pytest.param(defaultdict(lambda: 1), id="lambda"),
        pytest.param(defaultdict({}.copy), id="method"),
        pytest.param(UserList([1]), id="object that is like a list"),
        pytest.param(Label("text"), id="dataclass that is a str"),
        pytest.param(Plain, id="class"),
        pytest.param(len, id="function"),
        pytest.param(with_extra(Items(), object()), id="attribute of a list"),
        pytest.param(with_extra(Plain(), object()), id="attribute of a dataclass"),
        pytest.param(Attrs(object()), id="field of an attrs class"),
        pytest.param(Plain(object()), id="field of a dataclass"),
        pytest.param({object(): 1}, id="key"),
        pytest.param(deque([object()]), id="item"),
        pytest.param(NOON.astimezone(type("Nameless", (Zone,), {})()), id="zone"),
    ],
)
def test_what_no_other_process_could_have_has_no_key(value: Any) -> None:
    assert key(value) is None
    assert key([{"deep": (value,)}]) is None


def test_a_zone_from_a_file_without_a_name_has_no_key() -> None:
    path = Path("/usr/share/zoneinfo/Europe/Berlin")
    if not path.exists():
        pytest.skip("this system has no zones in files")
    with path.open("rb") as file:
        assert key(NOON.astimezone(ZoneInfo.from_file(file))) is None


def cyclic(value: Any, put: Callable[[Any, Any], object]) -> Any:
    put(value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        cyclic([], list.append),
        cyclic({}, lambda own, inner: own.update(own=inner)),
        cyclic({}, lambda own, inner: own.update({1: inner})),
        cyclic(deque(), deque.append),
        cyclic(OrderedDict(), lambda own, inner: own.update(own=inner)),
        cyclic(Items(), with_extra),
        cyclic(Plain(), with_extra),
        cyclic([()], lambda own, inner: own.append((inner,))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_cycle_is_copied_and_has_no_key(value: Any) -> None:
    snapshot = Snapshot({"value": value, "day": 1})
    assert snapshot.keys[None] is None
    assert snapshot.keys[("day",)] is not None
    assert type(snapshot.copy()["value"]) is type(value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"in": inner},
        lambda inner: {1: inner},
        lambda inner: OrderedDict(inner=inner),
        lambda inner: deque([inner]),
        Plain,
        Struct,
    ],
)
def test_a_state_may_be_deep_but_not_without_end(wrap: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(50):
        value = wrap(value)
    assert key(value) == key(copy.deepcopy(value)) != key(wrap(value))
    for _ in range(20_000):
        value = wrap(value)
    assert key(value) is None
    with pytest.raises(TypeError, match=r"^state cannot be copied: "):
        Snapshot({"value": value})
