"""Keeps msgspec from meeting a class in two threads at once: it learns the class then, and crashes."""

from __future__ import annotations

import os
import threading
from typing import Any, Final, TypeVar

import msgspec

Shape = TypeVar("Shape")

_known: Final[set[Any]] = set()
_learning: Final = threading.Lock()


def ready(kind: Shape) -> Shape:
    """Return a type once msgspec has learnt it; give `msgspec.convert` no other where threads may read at once."""
    if kind not in _known:
        with _learning:
            msgspec.msgpack.Decoder(kind)
            _known.add(kind)
    return kind


if hasattr(os, "register_at_fork"):  # a child begins with nothing half learnt
    os.register_at_fork(before=_learning.acquire, after_in_parent=_learning.release, after_in_child=_learning.release)
