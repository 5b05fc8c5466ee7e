"""What people see: nothing is cut in a pipe, and nothing that was found can drive a terminal."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from resilient_scan import Candidate, Status
from resilient_scan.cli import screens as progress
from resilient_scan.events import AttemptEnded, Registered, RunEnded, RunStarted, ScanEnded, ScannersRegistered
from resilient_scan.results import ErrorInfo
from tests.support.results import result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_aligned_lines_that_are_not_cut() -> None:
    out = io.StringIO()
    progress.draw(("name", "count"), [("a" * 200, "7"), ("b", "123")], out, right=("count",))
    head, first, second = out.getvalue().splitlines()
    assert head == "name" + " " * 198 + "count"
    assert first == "a" * 200 + "      7"
    assert second == "b" + " " * 201 + "  123"


def test_a_terminal_gets_a_table_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    progress.draw(("name", "status"), [("word " * 30, "error")], out)
    assert "\x1b[31m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    progress.draw(("name", "status"), [("word " * 30, "error")], out)
    assert "\x1b" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 40


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_control_characters_and_markup_of_a_source_are_only_text(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    out = stream()
    context = "[bold]up[/bold]\x1b]0;owned\x07\r\nnext\u202eline"
    progress.show_candidates([Candidate(ticker="AAPL", source="one", context=context)], out)
    text = out.getvalue()
    assert "[bold]up[/bold] ]0;owned next line" in text
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)


def test_candidates_of_another_type_are_shown_whole_and_many_are_counted() -> None:
    out = io.StringIO()
    progress.show_candidates([{"isin": f"US{number}"} for number in range(50)], out)
    lines = out.getvalue().splitlines()
    assert "{'isin': 'US0'}" in lines[1]
    assert len(lines) == 1 + 40 + 1
    assert lines[-1] == "... and 10 more; --json has them all"


def test_a_result_says_beside_its_status_what_a_reader_should_know() -> None:
    out = io.StringIO()
    stale = result(
        status=Status.STALE,
        error=ErrorInfo("httpx.ConnectError", "no route"),
        age=12.4,
        partial=True,
        dropped=2,
        attempts=3,
    )
    progress.show_results([result(), stale], out)
    head, first, second = out.getvalue().splitlines()
    assert head.split() == ["scanner", "pipeline", "status", "candidates", "duration", "note"]
    assert first.split() == ["one", "news", "completed", "0", "500ms"]
    assert second.endswith("ConnectError: no route, partial, 2 invalid dropped, 12s old, 3 attempts")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0ms"),
        (0.00004, "<0.1ms"),
        (0.0004, "0.4ms"),
        (0.0123, "12ms"),
        (0.9999, "1.00s"),
        (1.5, "1.50s"),
        (95.2, "95s"),
    ],
)
def test_durations_are_written_as_people_do(value: float, text: str) -> None:
    assert progress.elapsed(value) == text


def registered(*names: str) -> ScannersRegistered:
    return ScannersRegistered(tuple(Registered(name, "news", None, lambda: 0) for name in names))


def test_a_live_table_shows_what_has_ended_and_what_failed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with progress.LiveTable(out) as table:
        table(registered("one", "two"))
        table(RunStarted("run", 2, True, 8, 0.0))
        table(ScanEnded("run", result(), "miss", ""))
        table(
            AttemptEnded(
                "two", 1, "error", 0.1, ErrorInfo("ValueError", "HTTP 500 [bold]\x1b[31m at the far end of the line")
            )
        )
        table(AttemptEnded("two", 2, "success", 0.1, None))
        table(RunEnded("run", 0.1, {}, True, 0.0))
        text = out.getvalue()
        assert "1 of 2 scans ended" in text
        assert any(line.split()[:2] == ["one", "completed"] for line in text.splitlines())
        (line,) = [line.strip() for line in text.splitlines() if "attempt 1" in line]
        assert line.startswith("two       ...")
        assert line.endswith("attempt 1 ended: error: ValueError: HTTP 500 [bold]…")
        table(RunStarted("again", 2, True, 8, 0.0))
        assert "0 of 2 scans ended" in out.getvalue()
    assert out.getvalue().count("\x1b[?25h") == 2  # the cursor is back after each run, whatever ended it
    assert "\x1b[1m" not in out.getvalue()


def test_of_a_large_fleet_those_are_shown_that_have_not_ended() -> None:
    names = [f"s{number}" for number in range(30)]
    assert progress.shown(names[:20], {}) == names[:20]
    ended = {name: result() for name in names[:15]}
    assert progress.shown(names, ended) == [*names[:5], *names[15:]]
    assert progress.shown(names, {}) == names[:20]


def test_a_live_table_needs_a_terminal_that_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert progress.is_live(Terminal())
    assert not progress.is_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.is_live(Terminal())


@pytest.mark.parametrize("columns", [1, 5, 20, 30, 40])
def test_a_table_is_drawn_on_any_terminal_and_loses_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    row = ("volume", "error", "2", "connection reset by peer 東京")
    progress.draw(("scanner", "status", "found", "note"), [row, ("gap", "completed", "0", "")], out, right=("found",))
    text = out.getvalue()
    letters = "".join(text.split())
    if columns >= 20:
        assert max(map(cell_len, text.splitlines())) <= columns
    if columns >= 40:
        assert {*" ".join(row).split(), "gap", "completed", "0"} <= set(text.split())
    for word in ("東京", "peer"):
        assert word in letters or columns < 10


def test_spare_columns_go_before_words_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = {}
    for columns in (60, 23, 14):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal()
        row = ("volume", "momentum", "12ms", "reset")
        progress.draw(("scanner", "pipeline", "took", "note"), [row], out, spare=("pipeline", "took"))
        drawn[columns] = out.getvalue().split()
    assert [word for word in drawn[60] if "─" not in word] == ["scanner", "pipeline", "took", "note", *row]
    assert [word for word in drawn[23] if "─" not in word] == ["scanner", "pipeline", "took", *row]
    assert [word for word in drawn[14] if "─" not in word] == ["scanner", "took", "volume", "12ms", "reset"]
