"""Candidates as bytes and back, exactly: typed MessagePack, never pickle.

Objects are made again from their fields, and only of the classes that the candidates' type and its annotations name. So
whoever can write to the store can give false answers, but cannot run anything.

What cannot be kept exactly is refused by name when it is encoded: what was encoded is decoded and encoded again, and
must be the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from resilient_scan.stores.packing import Packer, Unstorable
from resilient_scan.stores.types import Types, name_of, types_of
from resilient_scan.stores.unpacking import Undecodable, Unpacker
from resilient_scan.stores.values import MOST_BYTES_OF_ONE

__all__ = [
    "Undecodable",
    "decode_candidates",
    "encode_candidates",
]

VERSION = 1
S = TypeVar("S", bound=msgspec.Struct)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def encode_candidates(kind: type, candidates: Iterable[Any]) -> bytes:
    """Return candidates of type `kind` as bytes.

    Raises:
        TypeError: something in them cannot be kept exactly; the message names it.
    """
    types = types_of(kind)
    packed = [_packed(types, kind, candidate, number) for number, candidate in enumerate(candidates)]
    data = _encode([VERSION, name_of(kind), types.fingerprint, packed])
    if len(data) > MOST_BYTES_OF_ONE:
        raise TypeError(f"{len(packed)} candidates of {len(data):,} bytes are more than the store takes at once")
    _check_same(types, packed)
    return data


def decode_candidates(kind: type, data: bytes) -> list[Any] | None:
    """Return the candidates that were encoded.

    `None`: they were encoded by another version, or `kind` was another type then, or had other fields.

    Raises:
        Undecodable: the bytes were not written by an encoder.
    """
    content = _plain(data)
    if len(content) != 4 or not isinstance(content[3], list):
        raise Undecodable("stored candidates are damaged: their head is not ours")
    types = types_of(kind)
    if content[:3] != [VERSION, name_of(kind), types.fingerprint]:
        return None
    try:
        candidates = [Unpacker(types).unpack(candidate, 0) for candidate in content[3]]
    except Undecodable:
        raise
    except Exception as error:  # values that no encoder writes fail in as many ways as there are types
        raise Undecodable(f"stored candidates are damaged: {type(error).__name__}: {error}") from error
    if not all(isinstance(candidate, kind) for candidate in candidates):
        raise Undecodable(f"stored candidates are damaged: not all are of type {name_of(kind)}")
    return candidates


def _plain(data: bytes) -> list[Any]:
    if len(data) > MOST_BYTES_OF_ONE:
        raise Undecodable(f"{len(data):,} stored bytes are more than an encoder writes")
    try:
        content = _decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise Undecodable(f"stored bytes are damaged: {error}") from error
    if not isinstance(content, list) or not content:
        raise Undecodable("stored bytes are damaged: their head is not ours")
    return content


def _packed(types: Types, kind: type, candidate: Any, number: int) -> Any:
    if not isinstance(candidate, kind):
        raise TypeError(f"candidate {number} cannot be stored: it is no {name_of(kind)}")
    try:
        return Packer(types).pack(candidate, 0)
    except Unstorable as error:
        raise TypeError(
            f"candidate {number} cannot be stored: {''.join(reversed(error.path)) or 'it'} {error.why}"
        ) from None


def _check_same(types: Types, packed: list[Any]) -> None:
    for number, each in enumerate(packed):
        before = _encode(each)
        try:
            again = _encode(Packer(types).pack(Unpacker(types).unpack(_decode(before), 0), 0))
        except Exception as error:  # foreign classes
            raise TypeError(f"candidate {number} cannot be stored: it cannot be made again ({error})") from error
        if before != again:
            raise TypeError(f"candidate {number} cannot be stored: it would not come back as it was")
