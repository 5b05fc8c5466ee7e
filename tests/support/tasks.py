"""A task of the pool or the lane that takes note of nothing; tests override what they look at."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from resilient_scan.core.hangs import LateEnd


class QuietTask:
    """Everything but the work itself, which `start` and `run` are."""

    name: str = "job"
    through: bool = False
    frees_sockets: bool = False
    helpers: Sequence[threading.Thread] = ()

    def expire(self, _thread: str, _age: float, _lateness: float, /) -> None: ...

    def mark_passed(self) -> None: ...

    def cut_off(self) -> None: ...

    def returned(self) -> None: ...

    def abandon(self, _thread: str, _age: float, _hint: str, /) -> None: ...

    def late(self, _end: LateEnd, /) -> None: ...

    def refuse(self, _reason: str, /) -> None: ...

    def stop(self) -> None: ...
