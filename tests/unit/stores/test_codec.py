"""Candidates in bytes: everything comes back exactly, or is refused by name; bytes of others do no harm."""

from __future__ import annotations

import dataclasses
import enum
import math
import random
import struct
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, Status
from resilient_scan.stores import codec
from resilient_scan.stores.codec import Mark, Undecodable, decode_candidates, encode_candidates, types_of


class Side(enum.Enum):
    BUY = "buy"
    SELL = Decimal("1.0")


class Word(enum.StrEnum):
    HIGH = "high"


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Outer:
    class Inner(enum.Enum):
        X = 1


class Pair(NamedTuple):
    left: int
    right: Any = None


@dataclasses.dataclass(frozen=True)
class Leg:
    strike: Decimal
    side: Side = Side.BUY


@dataclasses.dataclass
class Deal:
    ticker: str
    when: datetime | None = None
    legs: list[Leg] = dataclasses.field(default_factory=list)
    pair: Pair | None = None
    rest: Any = None
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted(Leg):
    extra: Any = None


@dataclasses.dataclass
class Derived:
    ticker: str
    doubled: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.doubled = self.ticker * 2


class Tick(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    ticker: str
    the_price: float = math.nan
    legs: tuple[Leg, ...] = ()
    more: Any = msgspec.UNSET


class Counting(msgspec.Struct):
    ticker: str
    made: int = 0

    def __post_init__(self) -> None:
        self.made += 1


class Open(msgspec.Struct, dict=True):
    ticker: str


class Plain:
    """What a mapping makes by keywords."""

    def __init__(self, ticker: str, **rest: Any) -> None:
        self.ticker = ticker
        self.rest = rest


def same(one: Any, two: Any) -> bool:
    """Say whether two values are the same to the last bit and type, not-a-number included."""
    return type(one) is type(two) and (_parts(one) == _parts(two) if _is_leaf(one) else _all_same(one, two))


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, list | tuple | dict | msgspec.Struct) and not dataclasses.is_dataclass(value)


def _parts(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("d", value)
    if isinstance(value, Decimal):
        return value.as_tuple()
    if isinstance(value, set | frozenset):
        return frozenset(map(_parts, value))
    return (value, value.fold, value.tzinfo) if isinstance(value, datetime | time) else value


def _all_same(one: Any, two: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return same(list(one), list(two)) and same(list(one.values()), list(two.values()))
    names = getattr(one, "__struct_fields__", None) or [field.name for field in dataclasses.fields(one)]
    return all(same(getattr(one, name, None), getattr(two, name, None)) for name in names)


def there_and_back(kind: type, *candidates: Any) -> list[Any]:
    back = decode_candidates(kind, encode_candidates(kind, candidates))
    assert back is not None
    return back


def with_extra(value: Any) -> Candidate:
    return Candidate("AAPL", "me", "why", extras={"value": value})


VALUES = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    1 + 2j,
    "",
    "é中😀\0",
    "\ud800 half",
    b"",
    b"\0\xff",
    bytearray(b"x"),
    [],
    [[], [[]]],
    (),
    (1, (2, [3])),
    set(),
    {1, "a", None, (2, 3), frozenset({4})},
    frozenset({1.5}),
    {},
    {1: "a", "1": "b", None: 1, (1, 2): {3: {4: 5}}, 2.5: 1, date(2026, 1, 1): 2},
    {"z": 1, "a": 2},
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("NaN"),
    Decimal("-Infinity"),
    Decimal("1E+400"),
    UUID("12345678123456781234567812345678"),
    UUID(int=5, is_safe=SafeUUID.safe),
    date(1, 1, 1),
    date(9999, 12, 31),
    time(1, 2, 3, 4),
    time(1, 2, tzinfo=UTC, fold=1),
    datetime(2026, 11, 24, 18, 0, 0, 1),  # noqa: DTZ001
    datetime(2026, 11, 24, tzinfo=UTC),
    datetime(2026, 11, 24, tzinfo=timezone(timedelta(hours=-5, seconds=3, microseconds=9), "ODD")),
    datetime(2026, 11, 1, 1, 30, fold=1, tzinfo=ZoneInfo("America/New_York")),
    datetime.max,  # noqa: DTZ901
    timedelta.min,
    timedelta(days=-1, microseconds=1),
    UTC,
    timezone(timedelta(hours=2)),
    ZoneInfo("Europe/Berlin"),
    Side.BUY,
    Side.SELL,
    Word.HIGH,
    Outer.Inner.X,
    Bits.A | Bits.B,
    Bits(0),
    Bits(2**70),
    Status.STALE,
    msgspec.UNSET,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{value!r:.30}")
def test_every_value_comes_back_exactly(value: Any) -> None:
    (back,) = there_and_back(Candidate, with_extra(value))
    assert same(back, with_extra(value))
    (deal,) = there_and_back(Deal, Deal("A", rest={"deep": [value, (value,)]}))
    assert same(deal, Deal("A", rest={"deep": [value, (value,)]}))


CANDIDATES = [
    Candidate("BRK.B", "me", "why", "high", "momentum", {"a": [1, {"b": (2,)}]}),
    Deal("A", datetime(2026, 1, 1, tzinfo=UTC), [Leg(Decimal("1.50")), Leg(Decimal(2), Side.SELL)], Pair(1, [2])),
    Deal("A", note="not compared, but kept"),
    Slotted(Decimal(1), extra={1}),
    Derived("AB"),
    Tick(ticker="A", the_price=-0.0, legs=(Leg(Decimal(0)),)),
    Pair(1, (2, 3)),
    {"a": 1, 2: "b"},
]


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda value: type(value).__name__)
def test_candidates_of_every_kind_come_back_exactly(candidate: Any) -> None:
    back = there_and_back(type(candidate), candidate, candidate)
    assert same(back, [candidate, candidate])
    assert back[0] is not back[1]


def test_no_candidates_come_back_as_none() -> None:
    assert there_and_back(Candidate) == []


def test_a_plain_object_comes_back() -> None:
    (back,) = there_and_back(Plain, Plain("A", price=Decimal("1.5"), legs=[1]))
    assert type(back) is Plain
    assert vars(back) == {"ticker": "A", "rest": {"price": Decimal("1.5"), "legs": [1]}}


def test_attributes_that_are_no_fields_come_back() -> None:
    deal = Deal("A")
    deal.later = date(2026, 1, 1)  # type: ignore[attr-defined]
    assert vars(there_and_back(Deal, deal)[0]) == vars(deal)


def test_pydantic_models_come_back() -> None:
    pydantic = pytest.importorskip("pydantic")
    leg = pydantic.create_model("LegModel", strike=(Decimal, ...), at=(datetime | None, None))
    model = pydantic.create_model(
        "Model",
        __config__=pydantic.ConfigDict(extra="allow", frozen=True),
        ticker=(str, ...),
        legs=(list[leg], []),
        price=(float, math.nan),
    )
    one = model(ticker="A", legs=[leg(strike="1.50", at=datetime(2026, 1, 1, tzinfo=UTC))], more={1: 2}, price=math.inf)
    two = model(ticker="B")
    back = there_and_back(model, one, two)
    assert back[0] == one
    assert type(back[0].legs[0]) is leg
    assert str(back[0].legs[0].strike) == "1.50"
    assert back[0].model_extra == {"more": {1: 2}}
    assert [each.model_fields_set for each in back] == [one.model_fields_set, two.model_fields_set]
    assert math.isnan(back[1].price)


class OddZone(tzinfo):
    pass


class Liar(str):
    __slots__ = ()


LOCAL = enum.Enum("LOCAL", "A")
LOCAL.__qualname__ = "f.<locals>.LOCAL"
LEAVES: list[tuple[Any, str]] = [
    (object(), "is of type builtins.object, which cannot be kept exactly"),
    (Liar("x"), f"is of type {__name__}.Liar, which cannot be kept exactly"),
    (OrderedDict(a=1), "is of type collections.OrderedDict, which cannot be kept exactly"),
    (Leg(Decimal(1)), f"is of type {__name__}.Leg, which cannot be kept exactly"),
    (datetime(2026, 1, 1, tzinfo=OddZone()), f"has a zone of type {__name__}.OddZone, which cannot be kept exactly"),
    (LOCAL.A, f"is of type {__name__}.f.<locals>.LOCAL, which is not found under its name"),
    (lambda: 1, "is of type builtins.function, which cannot be kept exactly"),
]


@pytest.mark.parametrize(("value", "why"), LEAVES)
def test_what_cannot_be_kept_is_refused_by_name(value: Any, why: str) -> None:
    with pytest.raises(TypeError) as caught:
        encode_candidates(Candidate, [with_extra(1), with_extra([0, {"k": value}])])
    assert str(caught.value) == f"candidate 1 cannot be stored: .extras['value'][1]['k'] {why}"
    with pytest.raises(TypeError, match=r"^candidate 0 cannot be stored: \.extras\['value'\] "):
        encode_candidates(Candidate, [with_extra(value)])


def test_what_would_not_come_back_as_it_was_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^candidate 0 cannot be stored: it would not come back as it was$"):
        encode_candidates(Counting, [Counting("A")])
    loose = Open("A")
    loose.b = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="it has attributes that are no fields"):
        encode_candidates(Open, [loose])
    assert there_and_back(Open, Open("A")) == [Open("A")]


def test_what_refuses_to_be_made_again_is_refused() -> None:
    class Once(msgspec.Struct):
        ticker: str

        def __post_init__(self) -> None:
            if self.ticker == "late":
                raise RuntimeError("not again")

    once = Once("early")
    once.ticker = "late"
    with pytest.raises(TypeError, match=r"candidate 0 cannot be stored: it cannot be made again \(not again\)"):
        encode_candidates(Once, [once])


def test_a_subclass_is_another_type() -> None:
    class Special(Candidate, frozen=True):
        pass

    with pytest.raises(TypeError, match=r"candidate 0 cannot be stored: it is of type .*Special, which cannot be kept"):
        encode_candidates(Candidate, [Special("A", "b", "c")])
    with pytest.raises(TypeError, match=r"candidate 0 cannot be stored: it is no resilient_scan\.scanning\.Candidate"):
        encode_candidates(Candidate, [{"ticker": "A"}])


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="is nested more than 100 levels deep"):
        encode_candidates(Candidate, [with_extra(loop)])


def test_what_is_nested_just_deep_enough_comes_back() -> None:
    value: Any = 1
    for _ in range(98):
        value = [value]
    assert there_and_back(Candidate, with_extra(value))[0].extras == {"value": value}


def test_too_much_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^1 candidates of 16,777,\d\d\d bytes are more than the store takes at once$"):
        encode_candidates(Candidate, [with_extra(bytes(16 * 1024 * 1024))])


# another type


def test_another_type_or_other_fields_are_a_miss() -> None:
    data = encode_candidates(Candidate, [with_extra(1)])
    assert decode_candidates(Deal, data) is None
    assert decode_candidates(dict, data) is None

    def made(**fields: Any) -> type:
        kind = dataclasses.make_dataclass("Made", fields.items())
        kind.__module__ = __name__
        return kind

    first = made(ticker=str, price=float)
    data = encode_candidates(first, [first("A", 1.0)])
    assert decode_candidates(made(ticker=str, price=float), data) is not None
    assert decode_candidates(made(ticker=str, price=Decimal), data) is None
    assert decode_candidates(made(ticker=str, price=float, more=int), data) is None
    assert decode_candidates(made(price=float, ticker=str), data) is None
    assert decode_candidates(made(ticker=str), data) is None


def test_a_changed_part_is_a_miss() -> None:
    def made(part: type) -> type:
        return dataclasses.make_dataclass("Whole", [("ticker", str), ("parts", list[part])])  # type: ignore[valid-type]

    def part(*names: str) -> type:
        return dataclasses.make_dataclass("Part", names)

    one = made(part("a"))
    assert decode_candidates(made(part("a", "b")), encode_candidates(one, [])) is None
    assert decode_candidates(made(part("a")), encode_candidates(one, [])) == []


def test_another_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_candidates(Candidate, [])
    monkeypatch.setattr(codec, "VERSION", 2)
    assert decode_candidates(Candidate, data) is None


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    code = """
from resilient_scan import Candidate
from resilient_scan.stores.codec import types_of
print(types_of(Candidate).fingerprint.hex())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == types_of(Candidate).fingerprint.hex()


# bytes of others


def bytes_of(*content: Any) -> bytes:
    return msgspec.msgpack.encode([codec.VERSION, "resilient_scan.scanning.Candidate", *content])


def head(candidate: Any) -> bytes:
    return bytes_of(types_of(Candidate).fingerprint, [candidate])


NAME = "resilient_scan.scanning.Candidate"
GOOD = [Mark.STRUCT, NAME, "A", "me", "why", "", "", [Mark.DICT]]
TAMPERED = [
    b"",
    b"\xc1",
    b"hello",
    b"\x93",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x94" * 200_000 + b"\xc0",
    msgspec.msgpack.encode(5),
    msgspec.msgpack.encode([]),
    msgspec.msgpack.encode([1, 2, 3]),
    msgspec.msgpack.encode({"a": 1}),
    bytes_of(b"", 5),
    head(5),
    head(None),
    head({"a": 1}),
    head(datetime(2026, 1, 1, tzinfo=UTC)),
    head([]),
    head([999]),
    head([None]),
    head([[1], 2]),
    head(["__import__('os').system('true')"]),
    head([Mark.LIST, 1]),
    head([Mark.INT, "zz"]),
    head([Mark.INT]),
    head([Mark.DECIMAL, "x"]),
    head([Mark.DATE, "2026-99-99"]),
    head([Mark.DATETIME, "2026-01-01", 7, None]),
    head([Mark.DATETIME, "2026-01-01T00:00:00", 0, "UTC"]),
    head([Mark.ZONE, "../../../etc/passwd"]),
    head([Mark.ZONE, "No/Where"]),
    head([Mark.OFFSET, 400, 0, 0]),
    head([Mark.UUID, b"short", None]),
    head([Mark.SET, [Mark.LIST]]),
    head([Mark.DICT, 1]),
    head([Mark.DICT, [Mark.LIST], 1]),
    head([Mark.ENUM, "os", "system", "x"]),
    head([Mark.ENUM, "signal", "Signals", "NONE"]),
    head([Mark.ENUM, "no.such.module", "A", "b"]),
    head([Mark.FLAG, "signal", "Signals", "1"]),
    head([Mark.OBJECT, "subprocess.Popen", ["args"], "true"]),
    head([Mark.OBJECT, NAME, ["ticker"], "A"]),
    head([Mark.MODEL, NAME, "a", 1]),
    head([Mark.NAMEDTUPLE, "os.stat_result", 1]),
    head(GOOD[:-1]),
    head([*GOOD, 1]),
    head([Mark.STRUCT, NAME, " ", "me", "why", "", "", [Mark.DICT]]),
    head([Mark.STRUCT, NAME, 5, "me", "why", "", "", [Mark.DICT]]),
    head([Mark.STRUCT, [NAME], "A"]),
    head([Mark.STRUCT]),
    bytes(16 * 1024 * 1024 + 1),
]


@pytest.mark.parametrize("data", TAMPERED, ids=lambda data: f"{len(data)}-{data[:40]!r}")
def test_tampered_bytes_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_candidates(Candidate, data)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_bytes_that_tampering_began_with_are_good() -> None:
    assert decode_candidates(Candidate, head(GOOD)) == [Candidate("A", "me", "why", "", "")]


def test_tampered_bytes_load_no_module() -> None:
    assert "this" not in sys.modules
    with pytest.raises(Undecodable):
        decode_candidates(Candidate, head([Mark.ENUM, "this", "s", "x"]))
    assert "this" not in sys.modules


def test_tampered_bytes_take_no_memory_beyond_their_size() -> None:
    tracemalloc.start()
    try:
        for data in (
            b"\xdd\xff\xff\xff\xff",
            b"\x94\x01\xa1x\xc0\xdd\x7f\xff\xff\xff",
            b"\xdd\x00\xff\xff\xff" + b"\x90" * 99,
        ):
            with pytest.raises(Undecodable):
                decode_candidates(Candidate, data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_flipped_and_cut_bytes_are_refused_or_give_candidates() -> None:
    data = encode_candidates(Candidate, [with_extra(value) for value in VALUES])
    chance = random.Random(3)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 9])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            back = decode_candidates(
                Candidate, bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
            )
        except Undecodable:
            continue
        assert back is None or all(type(each) is Candidate for each in back)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_miss(data: bytes) -> None:
    with suppress(Undecodable):
        assert decode_candidates(Candidate, data) is None


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.decimals()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones())
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([*Side, *Word, *Outer.Inner])
)
keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.dates()
    | st.tuples(st.integers(), st.text())
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_whatever_is_in_the_extras_comes_back(extras: list[dict[str, Any]]) -> None:
    candidates = [Candidate("A", "me", "why", extras=each) for each in extras]
    assert same(there_and_back(Candidate, *candidates), candidates)


# records


def test_ids_are_not_shared() -> None:
    one = uuid4()
    assert there_and_back(Candidate, with_extra(one))[0].extras["value"] == one
