"""Compare an answer with what the scanner used to find: an answer without an error may still be wrong.

A source that changed its page, or that answers a ban with an empty list, raises nothing. An answer is *suspicious* if

    most of it is malformed     more candidates were dropped as invalid than kept
    it is empty                 the scanner declares `empty_ok=False`, or none of its trusted answers was empty
    it is far too small         it has less than a tenth of the candidates of the smallest trusted answer

What is learned needs `MIN_HISTORY` trusted answers, and does not apply to a scanner that declares `empty_ok=True`. All
answers that are not suspicious are trusted, and a small one lowers the mark. A suspicious one never does, so a source
that stays broken stays suspicious. What is learned lives as long as the runner: a process that runs once learns
nothing, and only `empty_ok=False` helps there.
"""

from __future__ import annotations

from typing import Final

MIN_HISTORY: Final = 10  # trusted answers, before an answer is compared with them
FAR_BELOW: Final = 10  # times smaller than the smallest trusted answer


class Baseline:
    """What one scanner's trusted answers were like. It is safe to use from any thread, without a lock.

    Two answers that arrive in the same moment may be counted as one, or the larger of the two may set the mark. So a
    suspicion may come one answer too late or too early, and the next answer corrects that.
    """

    __slots__ = ("_answers", "_empty_ok", "_fewest")

    def __init__(self, empty_ok: bool | None) -> None:
        self._empty_ok = empty_ok
        self._answers = 0  # trusted ones, counted up to MIN_HISTORY
        self._fewest: float = float("inf")  # candidates in the smallest of them

    def doubt(self, found: int, dropped: int) -> str | None:
        """Return why an answer is suspicious; or learn from it, and return `None`.

        Args:
            found: the number of candidates in it.
            dropped: the number that were dropped from it as invalid.
        """
        if found < self._fewest or dropped:
            reason = self._reason(found, dropped)
            if reason is not None:
                return reason
            self._fewest = min(found, self._fewest)
        if self._answers < MIN_HISTORY:
            self._answers += 1
        return None

    def _reason(self, found: int, dropped: int) -> str | None:
        if dropped > found:
            return f"malformed: {dropped} of {dropped + found} candidates are invalid"
        if found == 0 and self._empty_ok is False:
            return "empty: the scanner says that it always finds something (empty_ok=False)"
        if self._empty_ok or self._answers < MIN_HISTORY or found * FAR_BELOW >= self._fewest:
            return None
        what = "empty" if found == 0 else f"only {found}"
        return f"{what}: no answer since this runner began had fewer than {self._fewest:g} candidates"
