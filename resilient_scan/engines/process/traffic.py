"""Recordings and replays in a child: the folder, and the place in it, are the driver's, which the child asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resilient_scan._text import Hide
from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext, Traffic
from resilient_scan.errors import PluginError
from resilient_scan.http.errors import Answer
from resilient_scan.http.recording import Recorder, Replay, Request

Ask = Callable[..., Any]


def kind_of(traffic: Traffic, scanner: str) -> tuple[str, str]:
    """Return what a child needs to know of the traffic: `record` or `replay`, and the folder.

    Raises:
        PluginError: it is of another kind.
    """
    match traffic:
        case Recorder():
            return "record", str(traffic.folder)
        case Replay():
            return "replay", str(traffic.folder)
    raise PluginError(
        f'scanner {scanner}: isolation="process" knows a Recorder and a Replay, and a {type(traffic).__name__} stays '
        'in the driver; use isolation="thread" with it'
    )


def answered(traffic: Any, arguments: tuple[Any, ...], context: ScanContext) -> Any:
    """Answer what a stand-in asks; in the driver."""
    request = Request(*arguments[:3])
    if isinstance(traffic, Replay):
        answer = traffic.answer(request, context.scanner)
        return answer.status, dict(answer.headers), b"".join(answer.pieces), traffic.now(context.scanner)
    status, headers, body = arguments[3:]
    return traffic.keep(request, Answer(status, headers, iter(())), body, str, context)


def stand_in(kind: str, folder: str, ask: Ask, set_time: Callable[[float | None], None]) -> Traffic:
    """Return what stands for the driver's recorder or replay in the child.

    Args:
        kind: from `kind_of`.
        folder: likewise.
        ask: sends the driver a question.
        set_time: sets the scanner's time of day; `None` leaves it as it is.
    """
    return _Recorder(folder, ask) if kind == "record" else _Replay(folder, ask, set_time)


class _Recorder(Recorder):
    def __init__(self, folder: str, ask: Ask) -> None:
        self.folder = Path(folder)
        self._ask = ask

    def keep(self, request: Request, answer: Answer, body: bytes, hide: Hide, _context: ScanContext) -> None:
        """Have the driver keep an answer, without the secrets that only this process knows."""
        text = hide(body.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        headers = {name: hide(value) for name, value in answer.headers.items()}
        self._ask("traffic", request.method, request.url, request.body, answer.status, headers, text)


class _Replay(Replay):
    def __init__(self, folder: str, ask: Ask, set_time: Callable[[float | None], None]) -> None:
        self.folder = Path(folder)
        self._ask = ask
        self._set_time = set_time

    def clock(self, _scanner: str, clock: Clock) -> Clock:
        """Return the clock as it is: the time of day comes with each attempt."""
        return clock

    def answer(self, request: Request, _scanner: str) -> Answer:
        """Return the recorded answer to a request."""
        status, headers, body, now = self._ask("traffic", request.method, request.url, request.body)
        self._set_time(now)
        return Answer(status, headers, iter([body]))
