"""Stores that fail when they are told to."""

from __future__ import annotations

from resilient_scan.errors import StoreError
from resilient_scan.stores.memory import MemoryStore

AWAY = StoreError("the store is away")


class FailingStore(MemoryStore):
    """A store of which every operation raises `error` while there is one."""

    error: Exception | None = None

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error
        super()._check_open()
