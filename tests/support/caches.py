"""Answers put into a cache without an execution."""

from __future__ import annotations

from typing import Any

from resilient_scan.layers.cache import Entry, ResultCache


def put(cache: ResultCache[Any], key: Any, candidates: list[Any], flight: Any, *, keep: bool = True) -> Entry:
    """Make an entry of an answer, put it into the cache as an execution does, and return it."""
    entry = cache.entry_of(key, candidates)
    cache.put(key, entry, flight, keep=keep)
    return entry
