"""What the dashboards show of a healthy, an ill and a cured fleet, that runs every minute, 5 minutes or hour.

Every query is asked of a real Prometheus, which has been given the past of such fleets (see `history`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from grafana.source import theme
from grafana.source.boards import FIXED
from tests.grafana.boards import BOARDS, board, chosen, panels, queries
from tests.grafana.history import (
    BROKEN,
    BY_HAND,
    CACHED,
    CADENCES,
    EARLIER,
    FAILING,
    FLAKY,
    FOUND_LATE,
    HANGING,
    NAMES,
    ODD,
    PHASES,
    PROVIDER,
    RESTARTED,
    START,
    STEADY,
    WINDOW,
    Cadence,
    History,
)

pytestmark = pytest.mark.servers

BY_JOB = {cadence.job: cadence for cadence in CADENCES}
SCHEDULED = [cadence.job for cadence in CADENCES if cadence.scheduled]
CASES = [(job, phase) for job in SCHEDULED for phase in PHASES]
POINTS = 40  # of a graph

Answer = dict[tuple[str, ...], float]


class Viewer:
    """Looks at a dashboard at the end of a phase, as Grafana would."""

    def __init__(self, past: History, job: str, phase: str) -> None:
        self._api, self.job, self.phase = past.api, job, phase
        self.cadence: Cadence = BY_JOB[job]
        self.at = self.cadence.end(phase) + 0.4 * self.cadence.scrape  # nobody looks just when Prometheus does
        self.range = 30 * self.cadence.every

    def windows(self) -> dict[str, str]:
        """Return the choices of the variable `window` by their text, as Grafana takes them from the answer."""
        (variable,) = (each for each in board("fleet")["templating"]["list"] if each["name"] == "window")
        query = re.fullmatch(r"query_result\((.+)\)\s*", variable["query"])
        assert query
        pattern = variable["regex"].strip("/").replace("(?<", "(?P<")
        found = {}
        for each in self._api.instant_at(chosen(query[1], job=self.job), self.at):
            labels = ",".join(f'{name}="{value}"' for name, value in each["metric"].items())
            match = re.search(pattern, f"{{{labels}}} {each['value'][1]} {each['value'][0] * 1000:.0f}")
            assert match, each
            found[match["text"]] = match["value"]
        return found

    def fill(self, expression: str, scanner: str = ".+") -> str:
        window = str(WINDOW * self.cadence.every)
        return chosen(expression, job=self.job, scanner=scanner, window=window, __range=f"{self.range}s")

    def ask(self, target: dict[str, Any], scanner: str = ".+") -> list[dict[str, Any]]:
        """Return the answer to a panel's query, as series with `values`."""
        query = self.fill(target["expr"], scanner)
        if target.get("instant"):
            return [{**each, "values": [each["value"]]} for each in self._api.instant_at(query, self.at)]
        return self._api.range_to(query, self.at, self.range, self.range / POINTS)

    def now(self, name: str, title: str, scanner: str = ".+", number: int = 0) -> Answer:
        """Return what a panel shows last, by the labels of its series."""
        target = [target for shown, target in queries(board(name)) if shown == title][number]
        return {tuple(each["metric"].values()): float(each["values"][-1][1]) for each in self.ask(target, scanner)}

    def column(self, title: str) -> Answer:
        """Return a column of the table of the dashboard Fleet, by scanner."""
        table = table_of_fleet()
        renamed = table["transformations"][-1]["options"]["renameByName"]
        (letter,) = (name.removeprefix("Value #") for name, shown in renamed.items() if shown == title)
        (target,) = (each for each in table["targets"] if each["refId"] == letter)
        return {each["metric"]["scanner"]: float(each["values"][-1][1]) for each in self.ask(target)}  # type: ignore[misc]

    def words(self, label: str) -> dict[str, str]:
        """Return a column of words of that table, by scanner."""
        return {
            each["metric"]["scanner"]: each["metric"][label]
            for target in table_of_fleet()["targets"]
            for each in self.ask(target)
            if label in each["metric"]
        }


@cache
def table_of_fleet() -> dict[str, Any]:
    (table,) = (panel for panel in panels(board("fleet")) if panel["type"] == "table")
    return table


@pytest.fixture(params=CASES, ids="-".join)
def viewer(past: History, request: pytest.FixtureRequest) -> Viewer:
    """Look at each fleet at the end of each phase."""
    return Viewer(past, *request.param)


@pytest.fixture(params=SCHEDULED)
def ill(past: History, request: pytest.FixtureRequest) -> Viewer:
    """Look at each fleet while it is ill."""
    return Viewer(past, request.param, "ill")


# Every panel


@pytest.mark.parametrize("name", BOARDS)
def test_a_panel_shows_numbers_or_says_that_there_is_nothing(viewer: Viewer, name: str) -> None:
    """NaN and "No data" tell nobody anything: a panel without data has words of its own."""
    wrong = []
    for panel in panels(board(name)):
        answers = [viewer.ask(target, {"scanner": FLAKY}.get(name, ".+")) for target in panel["targets"]]
        values = [float(value) for answer in answers for each in answer for _, value in each["values"]]
        if not all(math.isfinite(value) for value in values):
            wrong.append(f"{panel['title']}: NaN or infinite")
        if not values and not panel["fieldConfig"]["defaults"].get("noValue"):
            wrong.append(f"{panel['title']}: nothing, without a word")
    assert wrong == []


GAPLESS = {  # panels that have something to show as long as the fleet runs
    "fleet": {"Scans by the status in which they ended", "Executions by outcome", "Runs by result", "Workers", "Queue"},
    "scanner": {
        "Executions that fail, over time",
        "Duration of executions",
        "In service",
        "Breaker over time",
        "Odd answers",
        "Executions near their timeout",
    },
}


@pytest.mark.parametrize("name", BOARDS)
def test_a_graph_has_no_gaps_while_the_fleet_runs(viewer: Viewer, name: str) -> None:
    """Of 241 points of a ratio 193 used to be NaN with a run every five minutes."""
    begin = START + 3 * viewer.cadence.every  # some scrapes after the first run
    for title, target in queries(board(name)):
        if title in GAPLESS[name]:
            points = {
                float(at) for each in viewer.ask(target, {"scanner": FLAKY}.get(name, ".+")) for at, _ in each["values"]
            }
            step = viewer.range / POINTS
            wanted = [viewer.at - viewer.range + number * step for number in range(POINTS + 1)]
            missing = [at for at in wanted if at >= begin and not any(abs(at - point) < 1 for point in points)]
            assert missing == [], title


# What is true


def test_the_share_that_fails_is_the_truth(viewer: Viewer, past: History) -> None:
    """With a run every minute, a scanner that fails 30 % used to be shown with 0, 1 or NaN."""
    shown = viewer.column("Failed")
    for scanner in NAMES:
        truth = past.truth(viewer.job, scanner, viewer.phase)
        if truth is None:
            assert scanner not in shown, scanner
        else:
            assert shown[scanner] == pytest.approx(truth, abs=0.05), scanner
    if viewer.phase == "ill":
        assert shown[FLAKY] == pytest.approx(0.3, abs=0.05)
        assert {HANGING, BY_HAND}.isdisjoint(shown), "they did not execute"


def test_the_share_that_fails_is_the_truth_at_every_point(ill: Viewer) -> None:
    (target,) = (target for title, target in queries(board("scanner")) if title == "Executions that fail, over time")
    (line,) = ill.ask(target, FLAKY)
    first = ill.at - (PHASES["ill"] - WINDOW) * ill.cadence.every + ill.cadence.scrape  # a window of illness
    shown = [float(value) for at, value in line["values"] if at >= first]
    assert len(shown) > POINTS / 4
    assert all(value == pytest.approx(0.3, abs=0.05) for value in shown), shown


PAIRS = {  # a stat of the dashboard Scanner, and the column of the dashboard Fleet that shows the same
    "Last success": "Last success",
    "Executions that fail": "Failed",
    "Error budget left": "Budget left",
    "95th percentile": "p95",
    "Hung threads": "Hung threads",
}


def test_both_dashboards_agree_on_every_number(viewer: Viewer) -> None:
    for title, column in PAIRS.items():
        fleet = viewer.column(column)
        for scanner in NAMES:
            assert viewer.now("scanner", title, scanner) == ({(scanner,): fleet[scanner]} if scanner in fleet else {})
    candidates = viewer.column("Candidates")
    for scanner in (STEADY[0], ODD):
        assert viewer.now("scanner", "Candidates", scanner) == {(): candidates[scanner]}
    shown = sum(
        viewer.now("scanner", "Executions by outcome", FLAKY).get((outcome,), 0) for outcome in ("error", "timeout")
    )
    assert shown == viewer.column("Failures")[FLAKY]


def test_counts_are_counts(viewer: Viewer) -> None:
    """Each of 20 runs is one scan of each scanner, whatever the cadence is."""
    for scanner in NAMES:
        scans = viewer.now("scanner", "Scans by status", scanner)
        assert sum(scans.values()) in {WINDOW - 1, WINDOW, WINDOW + 1}, scanner
        assert all(value == round(value) for value in scans.values())
    assert sum(viewer.now("fleet", "Runs by result").values()) in {WINDOW - 1, WINDOW, WINDOW + 1}


WELL = dict.fromkeys(NAMES, "healthy")
ILL = WELL | {
    FLAKY: "fails at times",
    FAILING: "FAILING",
    HANGING: "THREADS HANG",
    BROKEN: "QUARANTINED",
    BY_HAND: "DISABLED by hand",
    ODD: "suspicious answers",
}


def test_the_table_tells_who_is_in_trouble_and_why(viewer: Viewer) -> None:
    ill = viewer.phase == "ill"
    assert viewer.words("now") == (ILL if ill else WELL)
    kinds, sources = viewer.words("kind"), viewer.words("source")
    assert kinds == ({FLAKY: "ConnectionError", FAILING: "ValueError", BROKEN: "ConnectionError"} if ill else {})
    if ill:
        assert sources == {BROKEN: "alert", BY_HAND: "hand"}, "each went out once, so its series began with that"
    trouble = {FLAKY, FAILING, HANGING, BROKEN}
    assert viewer.now("fleet", "Scanners in trouble") == {(): len(trouble) if ill else 0}
    assert viewer.now("fleet", "Out of service") == {(): 2 if ill else 0}
    assert viewer.now("fleet", "Hung threads") == {(): 1 if ill else 0}


def test_the_first_of_what_is_rare_is_counted(ill: Viewer) -> None:
    """A series that begins with its first event has not grown; it shows that event all the same."""
    changes = ill.now("scanner", "Changes of its state", BROKEN)
    assert changes == {("alert", "quarantined"): 1, ("probe", "probing"): 3, ("probe", "quarantined"): 3}
    assert ill.now("scanner", "Changes of its state", BY_HAND) == {("hand", "disabled"): 1}
    odd = ill.now("scanner", "Odd answers", ODD, number=1)
    assert next(iter(odd.values())) in {6, 7}
    assert ill.now("scanner", "Odd answers", FLAKY, number=1) == {(): 0}


@pytest.mark.parametrize(("job", "window", "shown"), [(FOUND_LATE, "7200", []), (RESTARTED, "2700", ["1"])])
def test_what_was_counted_before_is_not_counted_again(past: History, job: str, window: str, shown: list[str]) -> None:
    """A series that Prometheus did not know need not be new: it may be Prometheus that is, or the process."""
    (query,) = (target["expr"] for title, target in queries(board("scanner")) if title == "Errors by kind")
    answer = past.api.instant_at(chosen(query, job=job, window=window), EARLIER + 3600)
    assert [each["value"][1] for each in answer] == shown


def test_cache_hits_are_shown_of_those_that_have_a_cache(ill: Viewer) -> None:
    shown = ill.now("fleet", "Cache hits, by scanner")
    assert shown == {(CACHED,): pytest.approx(0.5, abs=0.05), (FAILING,): 0}


def test_seconds_and_times_are_right(viewer: Viewer) -> None:
    p95, success = viewer.column("p95"), viewer.column("Last success")
    assert p95[STEADY[0]] == pytest.approx(0.24, abs=0.01)
    assert -success[STEADY[0]] == pytest.approx(viewer.cadence.every - 0.6 * viewer.cadence.scrape - 3, abs=1)
    if viewer.phase == "ill":
        assert HANGING not in p95
        assert -success[HANGING] == pytest.approx(viewer.cadence.every * (PHASES["ill"] + 1), rel=0.05)
        slow = viewer.now("fleet", "Executions near their timeout, by scanner")
        assert slow[CACHED,] == WINDOW / 2


def test_the_budget_is_what_one_per_cent_leaves(viewer: Viewer) -> None:
    budget = viewer.column("Budget left")
    assert budget[STEADY[0]] == 1
    assert budget[FLAKY] == (
        1 if viewer.phase == "healthy" or (viewer.job == "every-1h" and viewer.phase == "cured") else 0
    )


# What is chosen at the top, and what marks the graphs


@pytest.mark.parametrize("job", BY_JOB)
@pytest.mark.parametrize("phase", PHASES)
def test_the_window_follows_the_schedule(past: History, job: str, phase: str) -> None:
    viewer = Viewer(past, job, phase)
    windows = viewer.windows()
    every = viewer.cadence.every
    assert next(iter(windows)) == "20 runs"
    assert {text: int(windows[text]) for text in FIXED} == FIXED
    if viewer.cadence.scheduled:
        assert {text: int(seconds) for text, seconds in windows.items() if text not in FIXED} == {
            "20 runs": 20 * every,
            "5 runs": max(5 * every, 120),
            "100 runs": 100 * every,
        }
    elif phase == "cured":  # for more than six hours the runs have shown how often they come
        assert int(windows["20 runs"]) == pytest.approx(20 * every, rel=0.1)
    else:  # the window is too long rather than too short
        assert 20 * every * 0.95 <= int(windows["20 runs"])


def test_a_window_is_there_before_the_first_run(past: History) -> None:
    viewer = Viewer(past, "embedded-5m", "healthy")
    viewer.job = "not-yet"
    assert viewer.windows()["20 runs"] == "1200"


@pytest.mark.parametrize("name", BOARDS)
def test_variables_have_values(viewer: Viewer, past: History, name: str) -> None:
    for variable in board(name)["templating"]["list"][1:]:
        if variable["name"] != "window":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
            found = past.api.instant_at(f"group by ({label}) ({viewer.fill(metric)})", viewer.at)
            values = {each["metric"][label] for each in found}
            assert (
                values
                >= {"job": {viewer.job}, "instance": {f"{viewer.job}:9108"}, "scanner": {*NAMES}}[variable["name"]]
            )


def marked(viewer: Viewer, past: History) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the marks on the graphs."""
    for mark in board("fleet")["annotations"]["list"]:
        assert mark["step"] == "1m"
        length = PHASES[viewer.phase] * viewer.cadence.every
        for each in past.api.range_to(viewer.fill(mark["expr"]), viewer.at, length, 60):
            labels = each["metric"]
            yield mark["name"], re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), mark["titleFormat"])  # noqa: B023


def test_what_happened_is_marked(viewer: Viewer, past: History) -> None:
    marks = {*marked(viewer, past)}
    if viewer.phase == "cured":  # the last sample of the alert, which ended before, counts for five minutes
        marks = {(name, text) for name, text in marks if name != "Alerts"}
    expected: dict[str, set[tuple[str, str]]] = {
        "healthy": set(),
        "ill": {
            ("Alerts", f"ScannerOutOfService {BROKEN}"),
            ("Taken out of service", f"{BROKEN} quarantined"),
            ("Taken out of service", f"{BY_HAND} disabled"),
            ("Breaker opened", f"{BROKEN} breaker opened"),
        },
        "cured": {
            ("Back in service", f"{BROKEN} enabled"),
            ("Back in service", f"{BY_HAND} enabled"),
            ("Breaker closed", f"{BROKEN} breaker closed"),
        },
    }
    assert marks == expected[viewer.phase]


def test_states_over_time_are_those_of_whom_something_happened_to(viewer: Viewer) -> None:
    """Two hundred green bars tell nothing: only those are drawn that were out at some time."""
    (states,) = (viewer.ask(target) for title, target in queries(board("fleet")) if title == "In service")
    (breakers,) = (viewer.ask(target) for title, target in queries(board("fleet")) if title == "Breakers")
    (providers,) = (viewer.ask(target) for title, target in queries(board("fleet")) if title == "Providers")
    by_scanner = {each["metric"]["scanner"]: {int(value) for _, value in each["values"]} for each in states}
    out = {word: number for number, (word, _) in theme.STATE.items()}
    if viewer.phase == "healthy":
        assert (states, breakers, providers) == ([], [], [])
    else:
        assert {out["QUARANTINED"], out["enabled"]} <= by_scanner[BROKEN]
        assert {out["DISABLED by hand"], out["enabled"]} <= by_scanner[BY_HAND]
        assert set(by_scanner) == {BROKEN, BY_HAND}
        assert {each["metric"]["scanner"] for each in breakers} == {BROKEN}
        assert {each["metric"]["provider"] for each in providers} == {PROVIDER}
        stood = {theme.PROVIDER[int(value)][0] for each in providers for _, value in each["values"]}
        assert {"closed", "DOWN"} <= stood
