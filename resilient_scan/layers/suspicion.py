"""Compare an answer with what its scanner declares and with what it used to find: one without an error may be wrong.

A source that changed its page, or that answers a ban with an empty list, raises nothing. An answer is *suspicious* if

    its scanner doubts it       `context.doubt`
    it breaks a declaration     `@scanner(expect=Expect(...))`: too few, without a field, too old, out of range, twice
    most of it is malformed     more candidates were dropped as invalid than kept
    it is empty                 the scanner declares `empty_ok=False`, or it hardly ever was, or never as often in a row
    it is far too small         it has less than a tenth of the candidates of the smallest trusted answer

What is learned needs `MIN_HISTORY` trusted answers, and does not apply to a scanner that declares `empty_ok=True`. All
answers that are not suspicious are trusted; a suspicious one teaches nothing, so a source that stays broken stays
suspicious. A few empty answers do not end that. Where a tenth of the answers were empty, or more, empty ones are
trusted until as many in a row would come once in a hundred times: 3 of 13 were empty, and the fourth in a row is not
believed. What is learned is stored with the history of runs, so that a process that runs once knows it; a scanner with
other code or other settings, or whose answers were forgotten, starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from resilient_scan.errors import is_number
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.options import Expect
from resilient_scan.stores.history import Learned

MIN_HISTORY: Final = 10  # trusted answers, before an answer is compared with them
FAR_BELOW: Final = 10  # times smaller than the smallest trusted answer
RARELY: Final = 10  # one answer of ten is empty, or fewer: then no empty one is believed
UNLIKELY: Final = 0.01  # the chance of as many empty answers in a row, below which the last one is not believed
MEMORY: Final = 200  # answers; beyond them, the older ones count half
NONE_YET: Final = float("inf")
_DAY: Final = timedelta(days=1)


class Baseline:
    """What one scanner's trusted answers were like. It is safe to use from any thread, without a lock.

    Two answers that arrive in the same moment may be counted as one, or the larger of the two may set the mark. So a
    suspicion may come one answer too late or too early, and the next answer corrects that.
    """

    __slots__ = ("_answers", "_empty", "_empty_ok", "_fewest", "_in_a_row")

    def __init__(self, empty_ok: bool | None) -> None:
        self._empty_ok = empty_ok
        self.forget()

    def forget(self) -> None:
        """Start from nothing."""
        self._answers = 0  # trusted ones
        self._empty = 0  # of these
        self._in_a_row = 0  # trusted empty ones since the last that was not; they count once that one comes
        self._fewest = NONE_YET  # candidates in the smallest that was not empty

    def learned(self, mark: str) -> Learned:
        """Return what another process may `recall`, if its mark is the same."""
        fewest = 0.0 if self._fewest == NONE_YET else self._fewest
        return Learned(mark, self._answers, self._empty, self._in_a_row, fewest)

    def recall(self, before: Learned) -> None:
        """Go on with what another process has learned, unless something was learned here already."""
        if not self._answers and not self._in_a_row:
            self._answers, self._empty, self._in_a_row = before.answers, before.empty, before.in_a_row
            self._fewest = before.fewest or NONE_YET

    def doubt(self, found: int, dropped: int) -> str | None:
        """Return why an answer is suspicious; or learn from it, and return `None`.

        Args:
            found: the number of candidates in it.
            dropped: the number that were dropped from it as invalid.
        """
        if dropped or found < self._fewest:
            if found or dropped or self._answers >= MIN_HISTORY or self._empty_ok is not None:
                reason = self._reason(found, dropped)  # the first empty answers give none, see `_reason_for_empty`
                if reason is not None:
                    return reason
            if not found:
                self._in_a_row = min(self._in_a_row + 1, MEMORY)
                return None
            self._fewest = min(found, self._fewest)
        if self._in_a_row:
            self._answers += self._in_a_row
            self._empty += self._in_a_row
            self._in_a_row = 0
        self._answers += 1
        if self._answers > MEMORY:
            self._answers //= 2
            self._empty //= 2
        return None

    def _reason(self, found: int, dropped: int) -> str | None:
        if dropped > found:
            return f"malformed: {dropped} of {dropped + found} candidates are invalid"
        if found == 0 and self._empty_ok is False:
            return "empty: the scanner says that it always finds something (empty_ok=False)"
        if self._empty_ok:
            return None
        if found == 0:
            return self._reason_for_empty()
        few = self._answers + self._in_a_row < MIN_HISTORY
        if few or self._fewest == NONE_YET or found * FAR_BELOW >= self._fewest:
            return None
        return f"incomplete: only {found}, and no trusted answer that was not empty had fewer than {self._fewest:g}"

    def _reason_for_empty(self) -> str | None:
        answers, empty, last = self._answers, self._empty, self._in_a_row
        if answers < MIN_HISTORY:
            return None
        if empty * RARELY >= answers and (empty / answers) ** (last + 1) >= UNLIKELY:
            return None
        said = f"empty: {empty} of {answers} trusted answers were"
        return f"{said}, and not {last + 1} in a row" if last else said


# what a scanner declares


def expecting(expect: Expect | None, call: Call) -> Call:
    """Return a call that doubts the answer of `call` if it is not what the scanner declares.

    Args:
        expect: what is declared; `None`: nothing is.
        call: asks the scanner once.
    """
    if expect is None:
        return call

    def checked(context: AttemptContext) -> list[Any]:
        found = call(context)
        for kind, reason in breaches(expect, found, context):
            context.doubt(reason, kind=kind)
        return found

    return checked


def doubting(doubt: Callable[[int, int], str | None] | None, call: Call) -> Call:
    """Return a call that compares the answer of `call` with former ones, while a breaker still waits for its vote.

    Args:
        doubt: says why an answer of that many candidates, of which others were dropped, is suspicious, or learns from
            it; `None`: no breaker waits.
        call: asks the scanner once.
    """
    if doubt is None:
        return call

    def judged(context: AttemptContext) -> list[Any]:
        found = call(context)
        if context.doubted is None and not context.incomplete:
            context.doubted = doubt(len(found), context.dropped)
        return found

    return judged


def breaches(expect: Expect, found: list[Any], context: AttemptContext) -> Iterable[tuple[str, str]]:
    """Yield each declaration that an answer breaks: the doubt's kind, and the reason with the numbers.

    Args:
        expect: what is declared.
        found: the candidates.
        context: of the attempt; it knows the time and the state.
    """
    if len(found) < expect.at_least:
        yield "incomplete" if found else "empty", f"{len(found)} candidates, {expect.at_least} or more are expected"
    for name in expect.fields:
        if lacking := sum(_value(one, name) in (None, "") for one in found):
            yield "missing", f"{lacking} of {len(found)} candidates have no {name}"
    if expect.max_age is not None:
        yield from _untimely(expect.max_age, expect.time, found, context)
    for name, (least, most) in expect.ranges.items():
        values = [value for one in found if (value := _value(one, name)) is not None]
        if wrong := [value for value in values if not is_number(value, least, most)]:
            yield "out_of_range", f"{name} is {wrong[0]!r:.40}, which must be from {least:g} to {most:g}"
    if twice := len(found) - len({repr(one) for one in found}):
        yield "duplicate", f"{twice} of {len(found)} candidates are there twice"


def _value(candidate: Any, name: str) -> Any:
    value = getattr(candidate, name, None)
    if value is None:
        extras = getattr(candidate, "extras", None)
        return extras.get(name) if isinstance(extras, Mapping) else None
    return value


def _untimely(max_age: float, name: str, found: list[Any], context: AttemptContext) -> Iterable[tuple[str, str]]:
    """Yield what is wrong with the candidates' times. A date without a time of day is as old as the end of its day."""
    now = as_of(context)
    times = [_instant(_value(one, name)) for one in found]
    known = [time for time in times if time is not None]
    if len(known) < len(found):
        yield "missing", f"{len(found) - len(known)} of {len(found)} candidates have no {name} that is a time"
    if known and min(known) < now - timedelta(seconds=max_age):
        yield "stale", f"the oldest {name} is {_shown(min(known))}, more than {max_age:g} s before {_shown(now)}"
    if known and max(known) > now + _DAY:
        yield "wrong_day", f"the latest {name} is {_shown(max(known))}, after {_shown(now)}"


def as_of(context: AttemptContext) -> datetime:
    """Return the time that a scan is about: now, or the end of its `trade_date`, if that is earlier."""
    day = _instant(context.given("trade_date"))
    return context.now if day is None else min(context.now, day)


def _instant(value: Any) -> datetime | None:
    """Return the instant that a value means, in UTC; of a date, the end of its day. `None`: it means none."""
    try:
        if isinstance(value, str):
            value = date.fromisoformat(value) if len(value) <= 10 else datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC) + _DAY
        return datetime.fromtimestamp(value, UTC) if is_number(value) else None
    except (ValueError, OverflowError, OSError):
        return None


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
