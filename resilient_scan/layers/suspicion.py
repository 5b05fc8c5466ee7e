"""Baseline: whether an answer without an error can be true, held against what the scanner used to find.

A source that changed its page, or that answers a ban with an empty list, raises nothing. An answer is *suspicious* if

    most of it is malformed     more candidates were dropped as invalid than kept
    it is empty                 the scanner declares `empty_ok=False`, or none of its trusted answers was ever empty
    it is far too small         less than a tenth of its smallest trusted answer

The last two of the learned kind need `HISTORY` trusted answers; a scanner that declares `empty_ok=True` is spared them.
All other answers are trusted, and a smaller one lowers the mark. Suspicious ones never do: a source that stays broken
stays suspicious. What is learned lives as long as the runner; a process that runs once learns nothing, so there it is
`empty_ok=False` that counts.
"""

from __future__ import annotations

from typing import Final

HISTORY: Final = 10
FAR_BELOW: Final = 10  # times smaller than the smallest trusted answer


class Baseline:
    """What one scanner's trusted answers were like; safe to use from any thread.

    It has no lock: two answers at one moment may count as one, or the larger of them set the mark. Both only put off
    or bring forward a suspicion by an answer, and the next answer mends it.
    """

    __slots__ = ("_answers", "_empty_ok", "_least")

    def __init__(self, empty_ok: bool | None) -> None:
        self._empty_ok = empty_ok
        self._answers = 0  # trusted ones, counted up to HISTORY
        self._least: float = float("inf")  # candidates of the smallest of them

    def doubt(self, found: int, dropped: int) -> str | None:
        """Return why an answer is suspicious, or `None`, and learn from it.

        Args:
            found: how many candidates it has.
            dropped: how many were left out of it as invalid.
        """
        if found < self._least or dropped:
            reason = self._reason(found, dropped)
            if reason is not None:
                return reason
            self._least = min(found, self._least)
        if self._answers < HISTORY:
            self._answers += 1
        return None

    def _reason(self, found: int, dropped: int) -> str | None:
        if dropped > found:
            return f"malformed: {dropped} of {dropped + found} candidates are invalid"
        if found == 0 and self._empty_ok is False:
            return "empty: the scanner says that it always finds something (empty_ok=False)"
        if self._empty_ok or self._answers < HISTORY or found * FAR_BELOW >= self._least:
            return None
        what = "empty" if found == 0 else f"only {found}"
        return f"{what}: no answer since this runner began had fewer than {self._least:g} candidates"
