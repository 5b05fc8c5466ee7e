"""What an explanation consists of, as frozen values."""

from __future__ import annotations

import msgspec


class Number(msgspec.Struct, frozen=True):
    """One option of a layer.

    Attributes:
        option: its path, such as `cache.ttl`.
        value: with its unit, such as `300s`.
        origin: who set it: `built-in`, `policy`, `decorator`, `timeout_seconds`, a file's line, or a variable.
    """

    option: str
    value: str
    origin: str


class Layer(msgspec.Struct, frozen=True):
    """One layer of the stack.

    Attributes:
        name: such as `cache`.
        does: what it does to a scan, with the numbers, in a sentence.
        numbers: its options.
        now: its state, in sentences.
    """

    name: str
    does: str
    numbers: tuple[Number, ...] = ()
    now: tuple[str, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """Why a scan would not simply run, and what would change that."""

    layer: str
    why: str
    way_out: str


class Verdict(msgspec.Struct, frozen=True):
    """Whether a scan that began now would call the source.

    Attributes:
        answer: `yes`; `waits`, which means yes, but later; `cached`, which means the cache has the answer; or `no`.
        status: how such a scan would end, such as `rejected`, or `""` if that is not known.
        says: the same in a sentence.
        reasons: outermost layer first.
    """

    answer: str
    status: str
    says: str
    reasons: tuple[Reason, ...] = ()


class Hung(msgspec.Struct, frozen=True):
    """A thread of the scanner that did not stop in time: its name, seconds since it began, and its stack now."""

    thread: str
    age: float
    stack: str
