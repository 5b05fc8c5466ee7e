"""The page as HTML: what it says of a fleet, in which order, and that nobody's text is markup."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from resilient_scan.layers.limit import ProviderState
from resilient_scan.observe.explain import Explanation, Past, Verdict
from resilient_scan.quarantine import AuditEntry, Evidence
from resilient_scan.service.control import Fleet, OneScanner, Row, Scanner, down_troubles
from resilient_scan.service.page import FEW, HEADERS, SHORT, Choice, Page
from resilient_scan.service.process import Process
from resilient_scan.service.watch import Outcome, Trouble, machine_troubles, streak

NOW = 1_790_000_000.0
ADVICE = "look at this machine, its network and its proxy before their sources"
ALL = Choice()
TIME = '<time datetime="2026-09-21T14:13:20Z"'


def outcome(status: str = "error", error: str = "OSError: no route", at: float = NOW - 90, **fields: Any) -> Outcome:
    return Outcome(
        **{"status": status, "at": at, "duration": 0.25, "attempts": 1, "error": error, "where": "", **fields}
    )


def row(name: str, scans: tuple[str, ...] = (), traceback: str = "", failures: int = 0, **fields: Any) -> Row:
    plain: dict[str, Any] = dict.fromkeys(Scanner.__struct_fields__)
    texts = dict.fromkeys(("reason", "who", "source", "last_error"), "")
    numbers = {"abandoned_threads": 0, "at": NOW, "passed": 0, "needed": 3, "evidence": ()}
    known = {"name": name, "pipeline": "test", "state": "enabled", **fields}
    return Row(
        Scanner(**{**plain, **texts, **numbers, **known}), traceback, scans, failures, NOW - 720 if failures else None
    )


def failing(name: str, **fields: Any) -> Row:
    return row(name, **{"last_status": "error", "failures": 12, "outcome": outcome(), **fields})


def shown(*rows: Row, choice: Choice = ALL, troubles: list[Trouble] | None = None, **options: Any) -> str:
    return Page(NOW, **options).fleet(Fleet(list(rows), troubles or []), choice)


def one(found: Row, audit: tuple[AuditEntry, ...] | None = (), past: tuple[Past, ...] = (), **options: Any) -> str:
    verdict = Verdict("no", "disabled", "A scan would end `disabled` at once.")
    explanation = Explanation(found.scanner.name, "test", NOW, verdict, (), None, past, (), ())
    return Page(NOW, **options).one(OneScanner(found, explanation, audit))


def scan(number: int, error: str = "") -> Past:
    status = "error" if error else "completed"
    return Past(f"run{number}", NOW - number, status, 0, 0.5, 0.0, None, False, 0, "miss", (), 3, error)


def with_providers(*providers: ProviderState) -> str:
    return Page(NOW).fleet(Fleet([row("a")], [], providers=providers), ALL)


def headline(*rows: Row) -> tuple[str, str]:
    (found,) = re.findall(r'<p id="headline" class="(\w+)" role="status">(.*?)</p>', shown(*rows))
    return found


def cell(html: str, label: str) -> str:
    (found,) = re.findall(rf'<td data-label="{label}"[^>]*>(.*?)</td>', html, re.DOTALL)
    return str(found)


def test_the_headline_says_how_the_fleet_is() -> None:
    well, ill = row("a"), failing("b")
    out, off = row("c", state="quarantined"), row("d", state="disabled")
    assert headline(well) == ("good", "The scanner is in service")
    assert headline(well, row("b")) == ("good", "All 2 scanners are in service")
    assert headline() == ("warn", "There are no scanners")
    assert headline(well, ill) == ("bad", "1 failing; 1 of 2 well")
    assert headline(well, out) == ("bad", "1 quarantined; 1 of 2 well")
    assert headline(well, off) == ("warn", "1 disabled; 1 of 2 well")
    assert headline(well, ill, out, off, row("e", state="probing")) == (
        "bad",
        "1 failing, 1 disabled, 1 probing, 1 quarantined; 1 of 5 well",
    )


@pytest.mark.parametrize(
    ("fields", "word", "mood"),
    [
        ({}, "enabled", "good"),
        ({"last_status": "completed"}, "enabled", "good"),
        ({"last_status": "timeout"}, "failing", "bad"),
        ({"last_status": "rejected"}, "rejected", "bad"),
        ({"last_status": "rejected", "failures": 1}, "failing", "bad"),
        ({"last_status": "stale"}, "stale", "warn"),
        ({"state": "probing"}, "probing", "warn"),
        ({"state": "disabled", "last_status": "error"}, "disabled", "warn"),
    ],
)
def test_a_state_is_a_word_with_a_shape(fields: dict[str, Any], word: str, mood: str) -> None:
    html = shown(row("a", **fields))
    assert f'<tr id="at-a" class="{mood}">' in html
    assert cell(html, "State").startswith(f'<span class="state s-{word}">{word}</span>')
    assert word == "enabled" or f".s-{word}::before" in html


def test_trouble_comes_first_and_has_the_orders_that_help() -> None:
    html = shown(
        row("well"),
        row("off", state="disabled"),
        failing("ill"),
        failing("tripped", breaker="open"),
        row("out", state="quarantined"),
    )
    assert re.findall(r'href="page/(\w+)"', html) == ["ill", "tripped", "out", "off", "well"]
    assert re.findall(r'data-action="(\w+)" aria-label="([\w ]+)"', html) == [
        ("disable", "disable ill"),
        ("reset", "reset tripped"),
        ("disable", "disable tripped"),
        ("probe", "probe out"),
        ("enable", "enable out"),
        ("enable", "enable off"),
        ("disable", "disable well"),
    ]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, "ill out ok slow"),
        ({"q": "  NO Route "}, "ill"),
        ({"q": "quarantined"}, "out"),
        ({"q": "news"}, "slow"),
        ({"q": "no news"}, ""),
        ({"show": "trouble"}, "ill out"),
        ({"show": "x", "sort": "x"}, "ill out ok slow"),
        ({"sort": "name"}, "ill ok out slow"),
        ({"sort": "pipeline"}, "slow ok ill out"),
        ({"sort": "slowest"}, "slow ill ok out"),
    ],
)
def test_find_show_and_sort(query: dict[str, str], names: str) -> None:
    rows = (
        row("ok", pipeline="o"),
        row("slow", pipeline="news", outcome=outcome("completed", "", duration=9.0)),
        failing("ill", pipeline="p"),
        row("out", pipeline="q", state="quarantined"),
    )
    html = shown(*rows, choice=Choice.of(query))
    assert re.findall(r'href="page/(\w+)"', html) == names.split()
    count = len(names.split())
    assert f'<p class="count">{"4 scanners" if count == 4 else f"{count} of 4 scanners"}</p>' in html
    assert ">1 failing, 1 quarantined; 2 of 4 well</p>" in html  # whatever is shown of it
    assert Choice.of({"q": "x" * 200}).q == "x" * 100


def test_who_is_out_shows_its_last_real_outcome_and_why() -> None:
    fields: dict[str, Any] = {
        "state": "disabled",
        "reason": "quota",
        "who": "anna",
        "since": NOW - 120,
        "until": NOW + 7200,
    }
    html = shown(row("a", outcome=outcome(), traceback="Trace\nback", **fields))
    assert cell(html, "Last outcome").startswith("error <small>0.25s, <time ")
    assert "1m ago</time>" in cell(html, "Last outcome")
    why = cell(html, "Why")
    assert "<bdi>quota</bdi> <small>by anna, for another 2h</small>" in why
    assert '<bdi class="err">OSError: no route</bdi>' in why
    assert "<pre>Trace\nback</pre></details>" in why
    assert "for 2m</time>" in cell(html, "State")


def test_an_error_says_whose_fault_it_is_unless_it_is_the_scanners() -> None:
    for blame, said in (("local", "this machine"), ("provider", "the provider"), ("source", "the source")):
        for html in (
            cell(shown(failing("a", outcome=outcome(blame=blame))), "Why"),
            one(failing("a", outcome=outcome(blame=blame))),
        ):
            assert f"{said}&#39;s" in html
        html = cell(shown(failing("a", outcome=outcome(where="at feeds.py:42 in parse", blame=blame))), "Why")
        assert f"at feeds.py:42 in parse; {said}&#39;s" in html, "two things, not one sentence"
    for blame in ("scanner", ""):
        assert "fault" not in cell(shown(failing("a", outcome=outcome(blame=blame))), "Why")


def test_who_fails_says_since_when() -> None:
    state = cell(shown(failing("a", breaker="half_open", abandoned_threads=2)), "State")
    assert "for 12m</time>, 12 scans in a row, breaker half-open, 2 hung threads</small>" in state


def test_who_flaps_or_has_used_up_its_budget_says_so_wherever_it_is_shown() -> None:
    assert "flapping, error budget used up</small>" in cell(shown(failing("a", flapping=True, slo_budget=0.0)), "State")
    assert "flapping" not in cell(shown(row("a", slo_budget=0.1)), "State")
    well_now = row("a", flapping=True, last_status="completed")
    assert headline(well_now, row("b")) == ("warn", "1 flapping; 1 of 2 well")
    assert '<span class="state s-flapping">flapping</span></dd>' in one(well_now)


@pytest.mark.parametrize(
    ("left", "says"), [(0.7, "70% is left"), (0.0, "used up, 100% of it"), (-0.5, "used up, 150% of it"), (None, "")]
)
def test_the_page_of_one_scanner_says_what_is_left_of_its_error_budget(left: float | None, says: str) -> None:
    html = one(row("a", slo_budget=left))
    assert (f"<dt>Error budget</dt><dd>{says}</dd>" in html) == bool(says)
    assert ("Error budget" in html) == bool(says)


@pytest.mark.parametrize(("at", "text"), [(NOW + 90, "probed in 1m"), (NOW, "probed with the next run")])
def test_when_the_next_probe_is(at: float, text: str) -> None:
    found = row("a", state="quarantined", reason="r", source="failures", next_probe=at, passed=1)
    assert f"<small>by failures, {text}</small>" in shown(found)
    assert "1 of 3 have succeeded" in one(found)


def test_a_long_error_is_folded_and_of_many_rows_cut() -> None:
    long = "OSError: " + "x" * 5000
    html = shown(failing("a", outcome=outcome(error=long), traceback="t" * 5000))
    summary = re.findall(r'<summary><bdi class="err">(.*?)</bdi></summary><pre>(.*?)</pre>', html)
    assert [(len(short), len(full)) for short, full in summary] == [(SHORT, 2001)]
    assert "…" + "t" * 1500 + "</pre>" in html
    many = shown(*(failing(f"s{place}", outcome=outcome(error=long), traceback="t") for place in range(FEW + 1)))
    assert "<pre>" not in many
    assert long in one(failing("a", outcome=outcome(error=long)))


def test_a_line_of_ticks_has_a_text() -> None:
    scans = ("completed", "cached", "stale", "error", "timeout", "rejected", "disabled", "skipped", "completed")
    html = shown(row("a", scans=scans))
    assert (
        'aria-label="Last 9 scans: 3 answered, 2 failed, 1 stale, 1 rejected, 2 out of service or skipped">'
        '<path class="o" d="M82 12h4M98 12h2"/><path class="w" d="M86 10h2M92 10h2"/><path class="b" d="M88 7h4"/>'
        '<path class="n" d="M94 13h4"/></svg>'
    ) in html
    assert 'aria-label="No scan yet"></svg>' in shown(row("a"))


@pytest.mark.parametrize(("at", "text"), [(NOW, "0s ago"), (-1e300, "long ago"), (1e18, "long ago")])
def test_instants(at: float, text: str) -> None:
    html = shown(row("a", last_status="completed", outcome=outcome("completed", "", at=at)))
    assert text in cell(html, "Last outcome")
    assert (TIME in cell(html, "Last outcome")) is (at == NOW)


def test_without_a_token_there_is_nothing_to_change() -> None:
    for html in (shown(row("a"), can_change=False), one(row("a"), can_change=False)):
        assert "data-scanner=" not in html.partition("<script>")[0]
        assert "<dialog" not in html
        assert "no token is configured" in html


def test_trouble_around_the_scanners_is_on_top() -> None:
    html = shown(row("a"), troubles=[Trouble("store", "It fails.", NOW), Trouble("machine", "No scan runs.")])
    assert f"<b>store</b> It fails. <small>since {TIME}" in html
    assert html.index("No scan runs.") < html.index("<table")
    assert "<ul" not in shown(row("a")).partition("<script>")[0]


def test_scanners_that_fail_alike_point_at_the_machine() -> None:
    def said(*errors: str) -> list[str]:
        return list(machine_troubles(outcome("error" if error else "completed", error) for error in errors))

    assert said("ConnectError: a", "ConnectError: b", "ConnectError: c", "", "") == [
        f"3 of 5 scanners fail alike (ConnectError): {ADVICE}"
    ]
    assert said("ConnectError: a", "ConnectError: b", "ConnectError: c", "", "", "") == []
    assert said("ConnectError: a", "ConnectError: b") == []
    assert said("A: a", "B: b", "C: c") == []
    assert said("OSError: [Errno 24] Too many open files", "", "", "") == [
        "This machine has run out of something: 1 scanner failed with OSError: [Errno 24] Too many open files"
    ]


def test_a_streak_ends_at_an_answer_and_not_at_a_rejection() -> None:
    assert streak([("rejected", 9), ("error", 8), ("disabled", 7), ("timeout", 6), ("completed", 5), ("error", 4)]) == (
        2,
        6,
    )
    assert streak([("completed", 5), ("error", 4)]) == (0, None)
    assert streak([]) == (0, None)


def test_one_scanner_has_history_audit_and_all_orders() -> None:
    trail = (
        AuditEntry(NOW - 60, "a", "enabled", "disabled", "hand", "anna", "quota", NOW),
        AuditEntry(NOW, "a", "disabled", "disabled", "hand", "bo", "x", None, "reset"),
    )
    html = one(row("a", state="quarantined", breaker="closed"), trail, tuple(scan(n, "E: x") for n in range(30)))
    assert re.findall(r'data-action="(\w+)"[^>]*?( aria-disabled="true")?>', html) == [
        ("enable", ""),
        ("disable", ""),
        ("probe", ""),
        ("run", ' aria-disabled="true"'),
        ("reset", ""),
        ("forget", ' aria-disabled="true"'),
    ]
    assert re.findall(r'class="helps" data-scanner="a" data-action="(\w+)"', html) == ["enable", "probe"]
    assert html.count("<bdi>the same</bdi>") == 19
    assert "The newest 20 of 30 that are remembered." in html
    assert '<td data-label="What">enabled → disabled</td>\n<td data-label="By">anna</td>' in html
    assert '<td data-label="What">reset</td>\n<td data-label="By">bo</td>' in html
    assert f'<td data-label="Until">{TIME}' in html
    assert "A scan would end <code>disabled</code> at once." in html
    assert "The store does not tell" in one(row("a"), None)


def test_links_lead_to_dashboard_and_runbook_where_they_are_known() -> None:
    alert = Evidence("f", "ScannerStale", "s", "alertmanager", "firing", starts_at=NOW, said_at=NOW, blocks=True)
    odd = msgspec.structs.replace(alert, name="my alert")
    process = Process(dashboard_url="https://g.test/d/x?var-scanner={scanner}", runbook_url="https://r.test/book")
    html = one(row("a", evidence=(alert, odd)), process=process)
    links = re.findall(r'href="(https[^"]*)"', html)
    assert links == [
        "https://r.test/book#scannerstale",
        "https://r.test/book",
        "https://g.test/d/x?var-scanner=a",
        "https://r.test/book",
    ]
    assert re.findall(r'href="(https[^"]*)"', shown(row("a"), process=process)) == [
        "https://g.test/d/x",
        "https://r.test/book",
    ]
    assert "https:" not in re.sub("<script>.*", "", shown(row("a")) + one(row("a", evidence=(alert,))), flags=re.DOTALL)


def test_no_text_is_markup() -> None:
    evil = "</script><script>x</script>\"'><img>\u202e\x00\x1b"
    found = row(
        "a",
        state="disabled",
        reason=evil,
        who=evil,
        since=NOW,
        pipeline=evil,
        traceback=evil,
        outcome=outcome(error=evil, where=evil),
        evidence=(Evidence("f", evil, evil, evil, "firing", starts_at=NOW, said_at=NOW, blocks=True),),
    )
    entry = AuditEntry(NOW, "a", "enabled", "disabled", "hand", evil, evil, None)
    pages = [
        shown(found, choice=Choice.of({"q": evil, "show": evil}), troubles=[Trouble("store", evil)], user="<img>"),
        shown(found, troubles=[Trouble("store", evil)]),
        one(found, (entry,), (scan(1, evil),), user="<img>"),
    ]
    for html in pages:
        assert html.count("<script>") == 1
        assert "<img>" not in html
        assert not re.search("[\u202e\x00\x1b]", html)


def test_nothing_but_our_own_script_and_style_may_run() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    for html in (shown(row("a")), one(row("a"))):
        assert not re.search(r"\bon\w+=|style=|javascript:", html.partition("<script>")[0])


def provider(name: str = "acme", state: str | None = "open", **fields: Any) -> ProviderState:
    known: dict[str, Any] = {"reason": "", "scanners": ("a", "b"), "taken": 0, "waiting": 0, **fields}
    return ProviderState(name, state, **known)


@pytest.mark.parametrize(
    ("found", "word", "mood", "why"),
    [
        (provider(state="closed"), "up", "good", "–"),
        (
            *(provider(since=NOW - 90, until=NOW + 20, by="gap_up"), "down", "bad"),
            "tried last by gap_up, next trial in 20s",
        ),
        (provider(since=NOW - 90, until=NOW - 1), "down", "bad", "next trial with the next scan"),
        (provider(state="half_open", since=NOW - 90, by="gap_up"), "on trial", "warn", "gap_up is trying it now"),
        (provider(state="held", until=NOW + 90), "held", "warn", "asked to be left alone until {at}, in 1m"),
    ],
)
def test_a_provider_says_how_it_is_since_when_and_what_comes_next(
    found: ProviderState, word: str, mood: str, why: str
) -> None:
    html = with_providers(found).partition('<section id="providers">')[2].partition("</section>")[0]
    assert f'<tr id="provider-acme" class="{mood}">' in html
    state = cell(html, "State")
    assert state.startswith(f'<span class="state s-{word.replace(" ", "-")}">{word}</span>')
    assert ("for 1m" in state) is (found.since is not None)
    at = '<time datetime="2026-09-21T14:14:50Z">2026-09-21 14:14:50 UTC</time>'
    assert cell(html, "Why") == why.format(at=at)
    assert re.findall(r'href="page/(\w+)"', cell(html, "Scanners")) == ["a", "b"]
    assert 'data-provider="acme" data-action="reset" aria-label="reset provider acme"' in html


def test_providers_in_trouble_come_first_and_few_are_shown() -> None:
    assert 'id="providers"' not in with_providers(provider(state=None))
    many = [provider(f"host-{number}:80", "closed") for number in range(FEW + 2)]
    html = with_providers(*many, provider("down.example:80/x y"), provider(state=None))
    rows = re.findall(r'<tr id="provider-([^"]+)"', html)
    assert (len(rows), rows[0]) == (FEW, "down.example%3A80%2Fx%20y")
    assert "And 3 more." in html
    html = with_providers(provider("<i>", scanners=tuple("abcdefghij")))
    assert "<bdi>&lt;i&gt;</bdi>" in html
    assert "and 2 more" in cell(html.partition('id="providers"')[2], "Scanners")


def test_providers_that_are_down_are_trouble() -> None:
    up, held = provider("up", "closed"), provider("held", "held", until=NOW + 9)
    assert [*down_troubles([up, held])] == []
    (one_down,) = down_troubles([up, provider(since=NOW - 5), held])
    assert one_down.since == NOW - 5
    assert one_down.says == "acme is down: the scanners are not called, except for trials."
    down = [provider(f"p{number}", "half_open", since=NOW - number) for number in range(5)]
    (five_down,) = down_troubles(down)
    assert five_down.since == NOW - 4
    assert five_down.says.startswith("p0, p1, p2 and 2 more are down:")
