"""What a scanner remembers from one scan to the next (`ScanContext.remember`): bytes under names of its own.

They are kept where the scanner's answers are, under the same rules: another release of the scanner, or other settings,
find nothing of them, and neither does anybody once they were forgotten. Without a store, or where the answers are not
shared, they last as long as the runner.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores.answers import AnswerStore
from resilient_scan.stores.memory import MemoryStore

_making = threading.Lock()  # two threads of one scanner may put its first notes


class Notes:
    """One scanner's notes; no method raises: a store that fails is reported, and counts as empty.

    Args:
        answers: where the scanner's answers are stored; `None`: nowhere.
        clock: measures how old the notes in memory are.
    """

    __slots__ = ("_answers", "_clock", "_local")

    def __init__(self, answers: AnswerStore | None, clock: Clock) -> None:
        self._answers = answers
        self._clock = clock
        self._local: MemoryStore | None = None  # made for the first note: most scanners have none

    def get(self, key: str, /) -> bytes | None:
        """Return what was put under `key`, unless it has expired, or was forgotten."""
        if self._answers is not None:
            return self._answers.recall(_bytes(key))
        local = self._local
        return None if local is None else local.get(key)

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for `seconds`."""
        if self._answers is None:
            with _making:
                local = self._local = self._local or MemoryStore(self._clock)
            with suppress(StoreError):  # it is larger than any store takes
                local.put(key, value, seconds)
        else:
            self._answers.remember(_bytes(key), value, seconds)

    def forget(self) -> None:
        """Drop what is in memory; what is in the store is forgotten with the answers."""
        self._local = None


def _bytes(key: str) -> bytes:
    return b"note\0" + key.encode(errors="surrogatepass")
