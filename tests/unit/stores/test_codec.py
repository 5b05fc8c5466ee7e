"""Candidates in bytes: what is kept comes back the same, all else is refused; bytes of others do no harm."""

from __future__ import annotations

import dataclasses
import enum
import math
import random
import re
import struct
import subprocess
import sys
import tracemalloc
import typing
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, get_type_hints
from uuid import UUID, SafeUUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, Status
from resilient_scan.stores import codec
from resilient_scan.stores.codec import DIGEST_SIZE, Undecodable, decode_candidates, encode_candidates
from tests.support.examples import examples


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Number(enum.Enum):
    ONE = 1
    HALF = Decimal("0.5")


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


class NotedPair(Pair):
    note: str


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


NOBODY = UUID(int=0)


@dataclasses.dataclass
class Typed:
    """A field for every type that comes back only where it is declared."""

    decimal: Decimal = Decimal(0)
    day: date = date(2026, 1, 1)
    clock: time = time()
    moment: datetime = datetime(2026, 1, 1)  # noqa: DTZ001
    span: timedelta = timedelta()
    id: UUID = NOBODY
    side: Side = Side.BUY
    word: Word = Word.HIGH
    bits: Bits = Bits.A
    number: float = 0.0
    whole: int = 0
    text: str = ""
    items: tuple[Any, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    set: set[Any] = dataclasses.field(default_factory=set)
    frozen: frozenset[int] = frozenset()
    table: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Worded(msgspec.Struct):
    words: frozenset[str] = frozenset({"one", "two", "three", "four", "five"})


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


class Model:
    """Stands in for a pydantic model where pydantic is not there."""


with suppress(ImportError):
    import pydantic

    class Model(pydantic.BaseModel):  # type: ignore[no-redef]
        ticker: str
        parts: frozenset[str] = frozenset({"one", "two", "three", "four", "five"})
        made: list[Leg] = pydantic.Field(default_factory=list)


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
        return frozenset((type(item), repr(item)) for item in value)
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


KEPT = [  # among extras, where anything may be
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.0,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    "",
    "é中😀\0",
    "2026-11-24",
    b"",
    b"\0\xff",
    [],
    [[], [[]]],
    {},
    {1: "a", "1": "b", None: 1, (1, 2): {3: {4: 5}}, 2.5: 1},
    {"z": 1, "a": 2},
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("NaN"),
    Decimal("-Infinity"),
    Decimal("1E+400"),
    date(1, 1, 1),
    date(9999, 12, 31),
    [date(2026, 1, 1), {"deep": [Decimal("1.0")]}],
    datetime(2026, 11, 24, 18, 0, 0, 1, tzinfo=UTC),
]
REFUSED = [  # there; each would come back as something else, or not at all
    2**64,
    -(10**400),
    1 + 2j,
    "\ud800 half",
    bytearray(b"x"),
    (),
    [1, (2, [3])],
    set(),
    {1, "a", None},
    frozenset({1.5}),
    {date(2026, 1, 1): 2},
    {"deep": (1,)},
    UUID("12345678123456781234567812345678"),
    time(1, 2, 3, 4),
    datetime(2026, 11, 24, 18, 0, 0, 1),  # noqa: DTZ001
    datetime(2026, 11, 24, tzinfo=UTC, fold=1),
    datetime(2026, 11, 24, tzinfo=timezone(timedelta(hours=-5))),
    datetime(2026, 11, 24, tzinfo=timezone(timedelta(0), "ODD")),
    datetime(2026, 11, 24, tzinfo=ZoneInfo("UTC")),
    timedelta(days=-1, microseconds=1),
    UTC,
    ZoneInfo("Europe/Berlin"),
    Side.BUY,
    Number.HALF,
    Word.HIGH,
    Bits.A | Bits.B,
    Status.STALE,
    msgspec.UNSET,
    msgspec.msgpack.Ext(1, b"2026-01-01"),
    msgspec.msgpack.Ext(9, b""),
    Pair(1),
    OrderedDict(a=1),
]


def name(value: Any) -> str:
    return type(value).__name__  # no repr: a set's depends on the process


@pytest.mark.parametrize("value", KEPT, ids=name)
def test_what_is_kept_comes_back_the_same(value: Any) -> None:
    (back,) = there_and_back(Candidate, with_extra(value))
    assert same(back, with_extra(value))


@pytest.mark.parametrize("value", REFUSED, ids=name)
def test_what_would_come_back_as_something_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^they cannot be stored: "):
        encode_candidates(Candidate, [with_extra(1), with_extra(value)])
    with pytest.raises(TypeError, match=r"^they cannot be stored: "):
        encode_candidates(Deal, [Deal("A", rest={"deep": [value]})])


CANDIDATES = [
    Candidate("BRK.B", "me", "why", "high", "momentum", {"a": [1, {"b": [2]}]}),
    Deal("A", datetime(2026, 1, 1, tzinfo=UTC), [Leg(Decimal("1.50")), Leg(Decimal(2), Side.SELL)], Pair(1, [2])),
    Deal("A", note="not compared, but kept"),
    Slotted(Decimal(1), extra={"a": 1}),
    Derived("AB"),
    Tick(ticker="A", the_price=-0.0, legs=(Leg(Decimal(0)),)),
    Tick(ticker="A", more=[1]),
    Pair(1, [2, 3]),
    {"a": 1, 2: "b"},
    Typed(),
    Typed(Decimal("-1.10"), date.max, time(1, 2, 3, 4, UTC), datetime.max, timedelta.min, uuid4(), Side.SELL),  # noqa: DTZ901
    Typed(items=(1, [2]), pair=(3, -0.0), set={1, "a", None}, frozen=frozenset({1, 2}), table={(1, 2): [3]}),
    Typed(span=timedelta(microseconds=-1), bits=Bits.A | Bits.B, number=math.nan),
]


@pytest.mark.parametrize("candidate", CANDIDATES, ids=name)
def test_candidates_of_every_kind_come_back_the_same(candidate: Any) -> None:
    back = there_and_back(type(candidate), candidate, candidate)
    assert same(back, [candidate, candidate])
    assert back[0] is not back[1]


@pytest.mark.parametrize(
    "candidate",
    [
        Typed(number=3),  # would come back as 3.0
        Typed(whole=3.0),  # type: ignore[arg-type]
        Typed(whole=True),
        Typed(number=False),
        Typed(text=Word.HIGH),
        Typed(items=[1]),  # type: ignore[arg-type]
        Typed(pair=(0, 0)),
        Typed(set={1, (2, frozenset({3}))}),
        Typed(moment=datetime(2026, 11, 1, 1, 30, fold=1)),  # noqa: DTZ001
        Typed(moment=datetime(2026, 11, 1, 1, 30, tzinfo=ZoneInfo("America/New_York"))),
        Typed(clock=time(1, 2, fold=1)),
        Typed(id=UUID(int=5, is_safe=SafeUUID.safe)),
        Typed(day=datetime(2026, 1, 1)),  # noqa: DTZ001
        Typed(side="buy"),  # type: ignore[arg-type]
        Typed(table={date(2026, 1, 1): 1}),
        Candidate("A", "b", "c", extras={1: 2}),
        Candidate("A", Word.HIGH, "c"),
        Deal("A", legs=[Slotted(Decimal(1))]),
        Tick(ticker="A", the_price=1),
    ],
    ids=name,
)
def test_a_value_of_another_type_than_declared_is_refused(candidate: Any) -> None:
    """Its own class does not check it, and the stored bytes would come back as what was declared."""
    with pytest.raises(TypeError, match=r"^they cannot be stored: "):
        encode_candidates(type(candidate), [candidate])


def test_no_candidates_come_back_as_none() -> None:
    assert there_and_back(Candidate) == []


def test_attributes_that_are_no_fields_are_refused() -> None:
    deal, loose = Deal("A"), Open("A")
    deal.later = loose.b = 1  # type: ignore[attr-defined]
    for candidate in (deal, loose):
        with pytest.raises(TypeError, match=r"candidates\[0\] would not come back as it is$"):
            encode_candidates(type(candidate), [candidate])
    assert there_and_back(Open, Open("A")) == [Open("A")]
    named = NotedPair(1)
    assert same(there_and_back(NotedPair, named), [named])
    named.note = "lost"
    with pytest.raises(TypeError, match=r"candidates\[0\] would not come back as it is$"):
        encode_candidates(NotedPair, [named])


def test_pydantic_models_come_back() -> None:
    pydantic = pytest.importorskip("pydantic")
    leg = pydantic.create_model("LegModel", strike=(Decimal, ...), at=(datetime | None, None))
    model = pydantic.create_model(
        "Model",
        __config__=pydantic.ConfigDict(extra="allow", frozen=True),
        ticker=(str, pydantic.Field(alias="symbol")),
        legs=(list[leg], []),
        price=(float, math.nan),
        pair=(tuple[int, ...], ()),
    )
    one = model(symbol="A", legs=[leg(strike="1.50", at=datetime(2026, 1, 1, tzinfo=UTC))], more={1: 2}, price=math.inf)
    two = model(symbol="B", pair=(1, 2))
    back = there_and_back(model, one, two)
    assert back[0] == one
    assert type(back[0].legs[0]) is leg
    assert str(back[0].legs[0].strike) == "1.50"
    assert back[0].model_extra == {"more": {1: 2}}
    assert [each.model_fields_set for each in back] == [one.model_fields_set, two.model_fields_set]
    assert math.isnan(back[1].price)
    assert back[1].pair == (1, 2)
    for bad in (model(symbol="A", more=(1,)), model.model_construct(ticker="A", price=1), Deal("A")):
        with pytest.raises(TypeError, match=r"^they cannot be stored: "):
            encode_candidates(model, [bad])


def test_a_pydantic_model_whose_default_has_changed_is_a_miss() -> None:
    """A field that was not set stays unset, so it would be read as today's default."""
    pydantic = pytest.importorskip("pydantic")

    def made(default: float) -> type:
        return pydantic.create_model("Model", ticker=(str, ...), price=(float, default))

    old = made(1.0)
    data = encode_candidates(old, [old(ticker="A")])
    assert decode_candidates(made(1.0), data) is not None
    assert decode_candidates(made(2.0), data) is None


class Liar(str):
    __slots__ = ()


class Plain:
    """What a mapping makes by keywords; only pickle could bring it back."""

    def __init__(self, ticker: str, **rest: Any) -> None:
        self.ticker = ticker
        self.rest = rest


@dataclasses.dataclass
class Either:
    """MessagePack does not say which of the two it was."""

    part: Leg | Derived


@dataclasses.dataclass
class Unresolved:
    part: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "candidate", [Plain("A"), Either(Derived("A")), Unresolved(1), Number.ONE, object(), lambda: 1], ids=name
)
def test_a_type_that_cannot_be_read_back_is_refused_and_never_found(candidate: Any) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=r"^they cannot be stored: "):
            encode_candidates(type(candidate), [candidate])
    data = encode_candidates(Candidate, [with_extra(1)])
    with suppress(Undecodable):
        assert decode_candidates(type(candidate), data) is None


@pytest.mark.parametrize("value", [(1,), Word.HIGH, Pair(1), datetime(2026, 1, 1)])  # noqa: DTZ001
def test_the_way_to_what_is_refused_is_named(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        encode_candidates(Candidate, [with_extra(1), with_extra([0, {"k": value}])])
    path = "candidates[1]['extras']['value'][1]['k']"
    assert str(caught.value) == f"they cannot be stored: {path} would not come back as it is"


def test_the_type_that_is_not_known_at_all_is_named() -> None:
    with pytest.raises(TypeError, match=r"^they cannot be stored: Encoding objects of type Plain is unsupported$"):
        encode_candidates(Candidate, [with_extra([Plain("A")])])
    with pytest.raises(TypeError, match=r"^they cannot be stored: Encoding objects of type Liar is unsupported$"):
        encode_candidates(Candidate, [with_extra(Liar("x"))])


def test_what_a_foreign_class_says_is_cut_to_its_first_line_and_shows_no_secret() -> None:
    class Once(msgspec.Struct):
        ticker: str

        def __post_init__(self) -> None:
            if self.ticker == "late":
                raise RuntimeError("not again: token=hunter2hunter2\nand more")

    once = Once("early")
    once.ticker = "late"
    with pytest.raises(TypeError) as caught:
        encode_candidates(Once, [once])
    assert str(caught.value).startswith("they cannot be stored: not again: token=")
    assert "hunter2" not in str(caught.value)
    assert "and more" not in str(caught.value)


def test_an_object_that_changes_when_it_is_made_is_refused() -> None:
    with pytest.raises(TypeError, match=r"candidates\[0\]\['made'\] would not come back as it is$"):
        encode_candidates(Counting, [Counting("A")])


def test_a_subclass_is_another_type() -> None:
    class Special(Candidate, frozen=True):
        pass

    with pytest.raises(TypeError, match=r"candidates\[0\] would not come back as it is"):
        encode_candidates(Candidate, [Special("A", "b", "c")])
    with pytest.raises(TypeError, match="they cannot be stored"):
        encode_candidates(Candidate, [{"ticker": "A"}])


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="recursion"):
        encode_candidates(Candidate, [with_extra(loop)])


def test_what_is_nested_a_hundred_levels_deep_comes_back() -> None:
    value: Any = 1
    for _ in range(98):
        value = [value]
    assert there_and_back(Candidate, with_extra(value))[0].extras == {"value": value}


def test_plain_candidates_are_not_read_back_to_see_whether_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes ten times as long as to write them."""
    compared: list[Any] = []
    monkeypatch.setattr(codec, "_difference", lambda *both: compared.append(both))
    extras = {"price": 12.5, "tags": ["a", {"deep": [None, True, b"x"]}], "none": {}}
    there_and_back(Candidate, Candidate("A", "me", "why", extras=extras), Candidate("B", "me", ""))
    assert not compared
    for doubtful in ({"pair": (1, 2)}, {"deep": {1: 2}}, {"deep": [{"set": {1}}]}, {"day": date(2026, 1, 1)}):
        compared.clear()
        encode_candidates(Candidate, [Candidate("A", "me", "", extras=doubtful)])
        assert compared


def test_too_much_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^an answer of 16,777,\d{3} bytes \(1 candidate\) is more than"):
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
        return dataclasses.make_dataclass("Part", [(name, int) for name in names])

    one = made(part("a"))
    assert decode_candidates(made(part("a", "b")), encode_candidates(one, [])) is None
    assert decode_candidates(made(part("a")), encode_candidates(one, [])) == []


def test_a_renamed_field_and_an_exchanged_member_are_a_miss() -> None:
    """Each would be read without an error, as something else."""

    def struct_of(**options: Any) -> type:
        return msgspec.defstruct("Made", [("ticker", str), ("price", float, 0.0)], module=__name__, **options)

    def dataclass_of(**members: str) -> type:
        return dataclasses.make_dataclass("Made", [("side", enum.Enum("Sides", members))])  # type: ignore[misc]

    pairs: list[tuple[Callable[[], type], Callable[[], type], Callable[[type], Any]]] = [
        (struct_of, lambda: struct_of(rename={"price": "p"}), lambda kind: kind("A", 1.5)),
        (
            lambda: dataclass_of(BUY="b", SELL="s"),
            lambda: dataclass_of(SELL="b", BUY="s"),
            lambda kind: kind(next(iter(kind.__annotations__["side"]))),
        ),
    ]
    for old, new, candidate in pairs:
        kind = old()
        data = encode_candidates(kind, [candidate(kind)])
        assert decode_candidates(old(), data) is not None
        assert decode_candidates(new(), data) is None


BEFORE_AND_AFTER = {  # the fields are the same; old bytes would be read without an error, as something else
    "tags": (
        """
class Up(msgspec.Struct, tag="up"): by: int
class Down(msgspec.Struct, tag="down"): by: int
class Made(msgspec.Struct): move: Up | Down
one = Made(Up(1))
""",
        {'"up"': '"down"', '"down"': '"up"'},
    ),
    "members that do not show their values": (
        """
class Side(enum.Enum):
    BUY = 1
    SELL = 2
    __repr__ = enum.Enum.__str__
class Made(msgspec.Struct): side: Side
one = Made(Side.BUY)
""",
        {"1": "2", "2": "1"},
    ),
    "members behind another name": (
        """
class Side(enum.Enum):
    BUY = 1
    SELL = 2
Named = NewType("Named", Side)
class Made(msgspec.Struct): side: Named
one = Made(Side.BUY)
""",
        {"1": "2", "2": "1"},
    ),
    "members behind a type variable": (
        """
class Side(enum.Enum):
    BUY = 1
    SELL = 2
Any_ = TypeVar("Any_", bound=Side)
class Made(msgspec.Struct, Generic[Any_]): side: Any_
one = Made(Side.BUY)
""",
        {"1": "2", "2": "1"},
    ),
    "what makes a default that was left out": (
        """
class Made(msgspec.Struct, omit_defaults=True):
    ticker: str
    legs: list[int] = msgspec.field(default_factory=list)
one = Made("A")
""",
        {"=list": "=lambda: [1]"},
    ),
    "fields without annotations": (
        """
from collections import namedtuple
Pair = namedtuple("Pair", "bid ask")
class Made(msgspec.Struct): pair: Pair
one = Made(Pair(1, 2))
""",
        {"bid ask": "ask bid"},
    ),
    "what runs when an object is made": (
        """
@dataclasses.dataclass
class Made:
    price: float
    def __post_init__(self): self.price = round(self.price, 2)
one = Made(1.25)
""",
        {", 2)": ", 1)"},
    ),
    "a model's default": (
        """
class Made(pydantic.BaseModel): legs: list[int] = pydantic.Field(default_factory=lambda: [1])
one = Made()
""",
        {"[1]": "[2]"},
    ),
    "a model's validator": (
        """
class Made(pydantic.BaseModel): price: Annotated[float, pydantic.AfterValidator(lambda price: round(price, 2))]
one = Made(price=1.25)
""",
        {", 2)": ", 1)"},
    ),
}


@pytest.mark.parametrize("change", BEFORE_AND_AFTER)
def test_a_class_that_changed_in_another_way_is_a_miss(change: str) -> None:
    source, exchanged = BEFORE_AND_AFTER[change]
    if "pydantic" in source:
        pytest.importorskip("pydantic")

    def made(source: str) -> dict[str, Any]:
        names = {"__name__": "theirs", "pydantic": sys.modules.get("pydantic")}
        known = {**vars(typing), "msgspec": msgspec, "enum": enum, "dataclasses": dataclasses, **names}
        exec(compile(source, "theirs", "exec", dont_inherit=True), known)  # as a module that was edited
        return known

    old, same_again = made(source), made(source)
    new = made(re.sub("|".join(map(re.escape, exchanged)), lambda found: exchanged[found[0]], source))
    data = encode_candidates(old["Made"], [old["one"]])
    assert decode_candidates(same_again["Made"], data) is not None
    assert decode_candidates(new["Made"], data) is None


def test_another_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_candidates(Candidate, [])
    monkeypatch.setattr(codec, "VERSION", codec.VERSION + 1)
    codec._format_of.cache_clear()
    try:
        assert decode_candidates(Candidate, data) is None
    finally:
        codec._format_of.cache_clear()


def test_what_version_one_has_written_is_a_miss() -> None:
    name = "resilient_scan.scanning.Candidate"
    for fingerprint in (b"", bytes(16)):
        old = msgspec.msgpack.encode([1, name, fingerprint, [[21, name, "A", "me", "why", "", "", [4]]]])
        assert decode_candidates(Candidate, old) is None


@pytest.mark.slow
def test_the_digest_is_the_same_in_every_process() -> None:
    code = """
import dataclasses, sys
from typing import Any
from resilient_scan import Candidate
from resilient_scan.stores.codec import encode_candidates
from tests.unit.stores.test_codec import Deal, Model, Tick, Typed, Worded
print(*(encode_candidates(kind, []).hex() for kind in (Candidate, Deal, Model, Tick, Typed, Worded)))
"""
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1, "sets of text have another order in every process"


# bytes of others


DIGEST = encode_candidates(Candidate, [])[:DIGEST_SIZE]
GOOD = {"ticker": "A", "source": "me", "context": "why", "priority": "", "strategy": "", "extras": {}}


def head(candidate: Any) -> bytes:
    """Return bytes that are ours, but for what is in them."""
    return DIGEST + msgspec.msgpack.encode([candidate])


def extra(value: Any) -> bytes:
    return head({**GOOD, "extras": {"value": value}})


TAMPERED = [
    DIGEST,
    DIGEST + b"\xc1",
    DIGEST + b"hello",
    DIGEST + b"\x93",
    DIGEST + b"\xdd\xff\xff\xff\xff",
    DIGEST + b"\xdf\xff\xff\xff\xff",
    DIGEST + b"\xc6\xff\xff\xff\xff",
    DIGEST + b"\x91" * 100_000,
    DIGEST + b"\x94" * 200_000 + b"\xc0",
    DIGEST + msgspec.msgpack.encode(5),
    DIGEST + msgspec.msgpack.encode({"a": 1}),
    DIGEST + msgspec.msgpack.encode([GOOD]) + b"\xc0",
    encode_candidates(Candidate, [with_extra(1)])[:-1],
    head(5),
    head(None),
    head([]),
    head({}),
    head({"a": 1}),
    head(datetime(2026, 1, 1, tzinfo=UTC)),
    head("__import__('os').system('true')"),
    head({**GOOD, "ticker": " "}),
    head({**GOOD, "ticker": 5}),
    head({**GOOD, "extras": []}),
    head({**GOOD, "extras": {1: 2}}),
    head(msgspec.msgpack.Ext(1, b"2026-01-01")),
    extra(msgspec.msgpack.Ext(1, b"2026-99-99")),
    extra(msgspec.msgpack.Ext(2, b"x")),
    extra(msgspec.msgpack.Ext(2, b"\xff")),
    extra(msgspec.msgpack.Ext(3, b"os.system")),
    extra(msgspec.msgpack.Ext(-1, b"x")),
    DIGEST + msgspec.msgpack.encode([GOOD])[:-1] + b"\x81\x80\x80",  # a dict as a key
]


@pytest.mark.parametrize("data", TAMPERED, ids=lambda data: f"{len(data)}-{data[:40]!r}")
def test_tampered_bytes_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_candidates(Candidate, data)
    assert isinstance(caught.value, ValueError)
    assert re.fullmatch(r"stored candidates are damaged: \w+", str(caught.value))


def test_the_bytes_that_tampering_began_with_are_good() -> None:
    assert decode_candidates(Candidate, head(GOOD)) == [Candidate("A", "me", "why", "", "")]
    assert decode_candidates(Candidate, extra(msgspec.msgpack.Ext(2, b"1"))) == [
        Candidate("A", "me", "why", "", "", {"value": Decimal(1)})
    ]


ALLOWED = {*map(type, KEPT), Candidate, tuple}


def types_in(value: Any) -> set[type]:
    parts: list[Any] = []
    if isinstance(value, Candidate):
        parts = [getattr(value, name) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    return {type(value)}.union(*map(types_in, parts))


def test_tampered_bytes_take_no_memory_beyond_their_size() -> None:
    tracemalloc.start()
    try:
        for data in (
            DIGEST + b"\xdd\xff\xff\xff\xff",
            DIGEST + b"\x91\x81\xa6extras\x81\xa1x\xdd\x7f\xff\xff\xff",
            DIGEST + b"\xdd\x00\xff\xff\xff" + b"\x90" * 99,
        ):
            with pytest.raises(Undecodable):
                decode_candidates(Candidate, data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_flipped_and_cut_bytes_are_refused_or_give_candidates() -> None:
    data = encode_candidates(Candidate, [with_extra(value) for value in KEPT])
    chance = random.Random(3)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 9])):
            damaged[chance.randrange(DIGEST_SIZE, len(damaged))] = chance.randrange(256)
        try:
            back = decode_candidates(
                Candidate, bytes(damaged[: chance.choice([len(damaged), chance.randrange(DIGEST_SIZE, len(damaged))])])
            )
        except Undecodable:
            continue
        assert back is not None
        assert types_in(back) <= ALLOWED


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_miss(data: bytes) -> None:
    assert decode_candidates(Candidate, data) is None
    for kind in (Candidate, Deal, Tick, Typed):
        with suppress(Undecodable):
            assert decode_candidates(kind, encode_candidates(kind, [])[:DIGEST_SIZE] + data) == []


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
plain_extras = st.dictionaries(
    st.text(),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text()
        | st.binary()
        | st.decimals(allow_nan=False)
        | st.dates()
        | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    max_size=4,
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


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_whatever_is_in_the_extras_comes_back_the_same_or_is_refused(extras: list[dict[str, Any]]) -> None:
    candidates = [Candidate("A", "me", "why", extras=each) for each in extras]
    with suppress(TypeError):
        assert same(there_and_back(Candidate, *candidates), candidates)


typed = st.fixed_dictionaries(
    {},
    optional={
        field.name: values if field.name == "table" else st.from_type(kind)  # type: ignore[arg-type]
        for field, kind in zip(dataclasses.fields(Typed), get_type_hints(Typed).values(), strict=True)
        if field.name not in {"items", "set", "table"}
    }
    | dict.fromkeys(("number", "whole", "text"), scalars)
    | {"items": values, "set": st.sets(keys), "table": st.dictionaries(keys, values)},
)


@settings(max_examples=examples(300), deadline=None)
@given(typed)
def test_whatever_is_in_declared_fields_comes_back_the_same_or_is_refused(fields: dict[str, Any]) -> None:
    with suppress(TypeError):
        assert same(there_and_back(Typed, Typed(**fields)), [Typed(**fields)])


@settings(max_examples=examples(200), deadline=None)
@given(plain_extras)
def test_plain_extras_are_never_refused(extras: dict[str, Any]) -> None:
    """What JSON has, bytes, dates, Decimals and instants: else a store would forget what it should keep."""
    candidate = Candidate("A", "me", "why", extras=extras)
    assert same(there_and_back(Candidate, candidate), [candidate])
