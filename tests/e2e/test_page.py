"""The page for people, in a real browser: in the dark, on a phone, by keyboard, without JavaScript, and by axe-core."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from resilient_scan import Breaker, ControlService, Limit, Policy, RetryAfter, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import FakeClock, broken, healthy
from tests.docs.pages import ROOT
from tests.e2e.axe import install, violations
from tests.e2e.browser import Browser, chromium
from tests.e2e.night import HOSTILE, QUOTA, START, Sleepless, five, many, night
from tests.support.control import TOKEN, alert, alertmanager

pytestmark = pytest.mark.servers
PICTURES = ROOT / "docs" / "pictures"
WIDTHS = (390, 1440)
TAB, ENTER, SPACE = "\ue004", "\ue007", " "
Nights = Callable[..., Sleepless]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="module")
def nights() -> Iterator[Nights]:
    """Return a function that serves a night; each is made once, for tests that change nothing."""
    with ExitStack() as stack:
        made: dict[Any, Sleepless] = {}

        def serve(scanners: Callable[..., list[Any]], *, ill: bool) -> Sleepless:
            key = scanners, ill
            if key not in made:
                made[key] = stack.enter_context(night(scanners, ill=ill))
            return made[key]

        yield serve


@pytest.fixture
def served() -> Iterator[Sleepless]:
    """An ill fleet of five, of one's own."""
    with night(five, ill=True) as made:
        yield made


@pytest.fixture(autouse=True)
def _silence(browser: Browser) -> Iterator[None]:
    yield
    browser.open("about:blank")  # what a page goes on to say is not the next test's
    browser.look()
    browser.console()


def order(browser: Browser, button: str, reason: str, token: str = TOKEN, who: str = "") -> None:
    browser.click(f"button{button}")
    browser.type("#change [name=reason]", reason)
    if who:
        browser.type("#change [name=who]", who)
    browser.type("#change [name=token]", token)
    browser.click("#change .go")


def arrived(browser: Browser, selector: str) -> str:
    """Return what is to be read there; an empty text: between two pages there is nothing."""
    with suppress(AssertionError):
        return browser.text(selector)
    return ""


# how it looks


@pytest.mark.parametrize(
    ("scanners", "ill", "page"),
    [
        (five, True, "/"),
        (five, False, "/"),
        (five, True, "/page/insider_buying"),
        (five, False, "/page/market_movers"),
        (many, True, "/"),
        (many, False, "/"),
        (many, True, "/page/scanner_030"),
    ],
    ids=["five ill", "five well", "ill", "well", "many ill", "many well", "hostile"],
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser: Browser, axe: str, nights: Nights, scanners: Any, ill: bool, page: str
) -> None:
    url = nights(scanners, ill=ill).service.url + page
    found = {}
    for dark in (False, True):
        browser.look(dark=dark)
        browser.open(url)
        for width in WIDTHS:
            browser.size(width, 900)
            if scanners is five or ill or dark == (width == 390):  # of the largest, which has nothing that others lack
                found[dark, width] = violations(browser, axe)
            assert browser.run("return document.documentElement.scrollWidth") <= width
            beyond = "[...document.querySelectorAll('button, h1, #headline')]"
            assert browser.run(f"return Math.max(...{beyond}.map(each => each.getBoundingClientRect().right))") <= width
    assert {key: rules for key, rules in found.items() if rules} == {}
    assert browser.console() == []


def test_three_hundred_scanners_are_found_in_a_moment(browser: Browser, nights: Nights) -> None:
    served = nights(many, ill=True)
    browser.size(1440, 900)
    browser.open(served.service.url + "/")
    assert browser.run("return document.documentElement.scrollHeight") < 10_500
    browser.type("#find [name=q]", "scanner_0 QUARANTINED")
    browser.wait(lambda: browser.text(".count") == "3 of 300 scanners")
    assert browser.run("return location.search") == "?q=scanner_0+QUARANTINED"
    assert browser.run("return document.activeElement.value") == "scanner_0 QUARANTINED"
    browser.run("document.querySelector('[name=sort]').value = 'pipeline'; find.requestSubmit()")
    browser.run("return refresh()")
    assert browser.run("return location.search") == "?q=scanner_0+QUARANTINED&sort=pipeline"
    assert browser.text(".count") == "3 of 300 scanners"
    browser.open(served.service.url + "/?show=trouble")
    assert browser.text(".count") == "31 of 300 scanners"
    assert browser.run("return document.querySelector('[name=show]').value") == "trouble"


def test_the_wire_carries_little(nights: Nights) -> None:
    sizes = {}
    for name, scanners, page in (("five", five, "/"), ("one", five, "/page/insider_buying"), ("many", many, "/")):
        served = nights(scanners, ill=True)
        plain, small = served.get(page), served.get(page, Accept_Encoding="gzip, br")
        assert small.headers["Content-Encoding"] == "gzip"
        assert len(gzip.decompress(small.body)) == len(plain.body)
        sizes[name] = len(plain.body), len(small.body)
    assert sizes["five"][0] < 30_000
    assert sizes["one"][0] < 60_000
    assert sizes["many"][0] < 260_000
    assert max(small for _, small in sizes.values()) < 16_000


def test_without_javascript_everything_can_be_read_and_found(browser: Browser, nights: Nights) -> None:
    url = nights(five, ill=True).service.url
    browser.look(scripts=False)
    browser.open(url + "/")
    text = browser.text("body")
    assert "1 failing, 1 disabled, 1 quarantined; 2 of 5 well" in text
    assert "Orders need it, or the command line" in text
    assert not browser.shown("button[data-scanner=market_movers]")
    browser.type("#find [name=q]", "429 edge")
    browser.click("#find button")
    browser.wait(lambda: arrived(browser, ".count") == "1 of 5 scanners")
    browser.click("td[data-label=Why] summary")
    assert QUOTA in browser.text("td[data-label=Why] pre")
    browser.click("tbody th a")
    browser.wait(lambda: "insider_buying" in arrived(browser, "h1"))
    assert "03:09:36 UTC" in browser.text("#audit")
    assert not browser.shown("#orders button")


def test_texts_from_outside_are_texts(browser: Browser, nights: Nights) -> None:
    url = nights(many, ill=True).service.url
    browser.open(url + "/?q=scanner_070")
    assert browser.text("td[data-label=Why]") == f"OSError: {HOSTILE}"
    browser.open(url + "/page/scanner_070")
    assert HOSTILE in browser.text("#error pre")
    assert "taken" not in browser.run("return document.title")
    assert browser.console() == []


# how it is used


def test_an_order_says_who_gave_it(browser: Browser, served: Sleepless) -> None:
    browser.open(served.service.url + "/")
    order(browser, "[data-scanner=market_movers]", "quota", "wrong", who="Åsa Öberg")
    browser.wait(lambda: browser.text("#problem").startswith("the token is missing or wrong"))
    assert [message for message in browser.console() if "401" not in message] == []
    browser.click("#change .cancel")
    assert not browser.shown("#change")
    browser.click("button[data-scanner=market_movers]")
    assert browser.run("return document.querySelector('#change [name=token]').value") == ""
    browser.click("#change .cancel")

    order(browser, "[data-scanner=market_movers]", "quota", who="Åsa Öberg")
    browser.wait(lambda: browser.text("#said") == "Done: disable market_movers.")
    assert served.state("market_movers") == "disabled"
    assert (served.runner.audit()[0].who, served.runner.audit()[0].reason) == ("Åsa Öberg", "quota")
    browser.wait(lambda: "by Åsa Öberg" in browser.text("#at-market_movers"))
    assert browser.run("return document.activeElement.dataset.scanner") == "market_movers"
    order(browser, "[data-scanner=market_movers]", "back")  # the name is remembered
    browser.wait(lambda: not browser.shown("#change"))
    assert served.state("market_movers") == "enabled"
    assert served.runner.audit()[0].who == "Åsa Öberg"

    kept = browser.run(
        "return [location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage),"
        " document.documentElement.outerHTML,"
        " ...[...document.querySelectorAll('input')].map(each => each.value)].join()"
    )
    assert "Åsa Öberg" in kept
    assert TOKEN not in kept
    assert browser.console() == []
    loaded = browser.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(name.startswith(served.service.url) for name in loaded)


def test_one_scanner_has_all_orders(browser: Browser, served: Sleepless) -> None:
    browser.open(served.service.url + "/page/insider_buying")
    order(browser, "[data-action=run]", "try", who="bo")
    browser.wait(lambda: browser.text("#problem").startswith("run insider_buying: it is quarantined"))
    browser.click("#change .cancel")
    order(browser, "[data-action=probe]", "new key", who="bo")
    browser.wait(lambda: "probe" in browser.text("#audit"))
    assert not browser.shown("#for")
    order(browser, "[data-action=run]", "try it")
    browser.wait(lambda: served.asked == ["insider_buying"])
    for action in ("reset", "enable", "disable"):
        order(browser, f"[data-action={action}]", f"to {action}")
        browser.wait(lambda: not browser.shown("#change") or browser.text("#problem"))
        assert browser.text("#said").startswith("Done: "), browser.text("#change")
    done = [(entry.action or entry.new, entry.who) for entry in reversed(served.runner.audit(5))]
    assert done == [(action, "bo") for action in ("probe", "run", "reset", "enabled", "disabled")]
    names = browser.run("return [...document.querySelectorAll('#orders button')].map(each => each.ariaLabel)")
    assert all(name.endswith(" insider_buying") for name in names)
    assert len(names) == 6
    assert browser.run("return [...document.querySelectorAll('.foot a')].map(each => each.href)")[:2] == [
        "https://grafana.example/d/scanner?var-scanner=insider_buying",
        "https://wiki.example/runbook",
    ]
    assert browser.run("return document.querySelector('#alerts a').hash") == "#scannererrorratiohigh"
    browser.click("nav a")
    assert browser.run("return location.pathname") == "/"


def test_a_keyboard_is_enough(browser: Browser, served: Sleepless) -> None:
    browser.open(served.service.url + "/")
    reached = []
    for _ in range(24):
        browser.press(TAB)
        reached.append(
            browser.run("return document.activeElement.ariaLabel || document.activeElement.textContent.trim()")
        )
    for name in ("insider_buying", "probe insider_buying", "enable insider_buying", "traceback of reddit_dd"):
        assert name in reached
    outline = "return getComputedStyle(document.activeElement).outlineWidth"
    assert browser.run(outline) == "2px"
    browser.run("document.querySelector('button[data-action=reset]').focus()")
    browser.press(ENTER)
    browser.press("by hand" + TAB + "anna" + TAB + TOKEN + ENTER)
    browser.wait(lambda: served.runner.audit()[0].action == "reset")
    browser.wait(lambda: not browser.shown("#change"))
    assert browser.run("return document.activeElement.dataset.action") in {"reset", "disable"}
    assert browser.run("return document.activeElement.dataset.scanner") == "news_sentiment"


def test_a_screen_reader_finds_a_table_on_a_phone_too(browser: Browser, nights: Nights) -> None:
    url = nights(five, ill=True).service.url
    for width in WIDTHS:
        browser.size(width, 900)
        browser.open(url + "/")
        nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
        said = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
        roles = [role for role, _ in said]
        assert roles.count("row") >= 5, (width, sorted(set(roles)))
        assert roles.count("rowheader") == 5
        assert ("button", "enable reddit_dd") in said
        assert ("image", "Last 50 scans: 19 answered, 1 failed, 30 out of service or skipped") in said


# providers


@pytest.fixture
def down() -> Iterator[Sleepless]:
    """A fleet of whose providers one is down, one is held, and one is up; and a host with a port is another."""
    clock, registry = FakeClock(START), CollectorRegistry()
    refused, busy = ConnectionRefusedError("nobody listens"), RetryAfter(90, "429")
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=2, open_for=600))
    scanners = [
        *(broken(f"feed_{number}", refused, limit=Limit("acme/eu")) for number in range(12)),
        broken("quota", busy, limit=Limit("busy")),
        healthy("well", limit=Limit("127.0.0.1:8080")),
    ]
    with (
        ScanRunner(scanners, policy=policy, listeners=(), clock=clock, concurrent=False) as runner,
        ControlService(runner, TOKEN, registry=registry, clock=clock) as service,
    ):
        made = Sleepless(service, runner, registry)
        made.clock = clock
        runner.run()
        clock.advance(60)
        yield made


def test_a_provider_is_seen_and_reset(browser: Browser, axe: str, down: Sleepless) -> None:
    for dark in (False, True):
        browser.look(dark=dark)
        for width in WIDTHS:
            browser.size(width, 900)
            browser.open(down.service.url + "/")
            assert violations(browser, axe) == [], (dark, width)
            assert browser.run("return document.documentElement.scrollWidth") <= width
    assert "acme/eu is down: the scanners are not called, except for trials." in browser.text("#troubles")
    rows = browser.run("return [...document.querySelectorAll('#providers tbody tr')].map(each => each.innerText)")
    assert [row.split()[0] for row in rows] == ["acme/eu", "busy", "127.0.0.1:8080"]
    assert "tried last by feed_1, next trial in 9m" in " ".join(rows[0].split())
    assert "and 4 more" in rows[0]
    assert "asked to be left alone until" in rows[1]

    order(browser, "[data-provider='acme%2Feu']", "it is back", who="anna")
    browser.wait(lambda: browser.text("#said") == "Done: reset provider acme/eu.")
    browser.wait(lambda: "up" in browser.text("[id='provider-acme%2Feu'] .state"))
    assert browser.run("return document.activeElement.dataset.provider") == "acme%2Feu"
    assert (down.runner.audit()[0].scanner, down.runner.audit()[0].who) == ("provider acme/eu", "anna")
    assert arrived(browser, "#troubles") == ""

    browser.open(down.service.url + "/page/quota")
    assert "busy: " in browser.text("dl")
    assert violations(browser, axe) == []
    assert browser.console() == []


# how it follows


def test_a_refresh_leaves_alone_what_somebody_is_at(browser: Browser, served: Sleepless) -> None:
    browser.open(served.service.url + "/")
    browser.click("td[data-label=Why] summary")
    browser.run(
        "find.elements.q.value = 'typed so f';"
        "getSelection().selectAllChildren(document.querySelector('#at-reddit_dd .err'));"
        "document.querySelector('#at-insider_buying button').focus();"
        "window.marked = [...document.querySelectorAll('tr')]"
    )
    assert served.post("/alerts", alertmanager(alert("market_movers"))).status == 200
    served.clock.advance(60)
    browser.run("return refresh()")
    assert "market_movers fails" in browser.text("#at-market_movers")
    assert "for 5m" in browser.text("#at-insider_buying")
    state = browser.run(
        "return [getSelection().toString(), document.activeElement.ariaLabel, find.elements.q.value,"
        " document.querySelector('details').open, window.marked.every(each => each.isConnected),"
        " [...document.querySelectorAll('tbody tr')].map(each => each.id.slice(3))]"
    )
    given = ["insider_buying", "news_sentiment", "reddit_dd", "market_movers", "options_flow"]
    assert state == ["PermissionError: HTTP 403", "probe insider_buying", "typed so f", True, True, given]

    served.runner.enable("reddit_dd", reason="x")  # what is selected goes, but not yet
    browser.run("getSelection().selectAllChildren(document.querySelector('#at-reddit_dd td[data-label=Why]'))")
    browser.run("return refresh()")
    assert "quota is used up" in browser.run("return getSelection().toString()")
    browser.run("getSelection().removeAllRanges(); document.activeElement.blur(); moved = 0; return refresh()")
    assert "quota is used up" not in browser.text("#at-reddit_dd")
    rows = browser.run("return [...document.querySelectorAll('tbody tr')].map(each => each.id.slice(3))")
    assert rows == ["market_movers", *given[:3], "options_flow"]  # trouble first, in the given order
    assert browser.console() == []


def test_no_refresh_comes_between_somebody_and_a_dialog(browser: Browser, served: Sleepless) -> None:
    browser.open(served.service.url + "/")
    browser.click("button[data-scanner=market_movers]")
    browser.type("#change [name=reason]", "typed so far")
    served.runner.disable("options_flow", reason="meanwhile")
    browser.run("return refresh()")
    assert "meanwhile" not in browser.text("#fleet")
    assert browser.run("return document.activeElement.value") == "typed so far"
    browser.click("#change .cancel")
    browser.wait(lambda: "meanwhile" in browser.text("#fleet"))


def test_it_follows_by_itself_and_says_when_it_cannot(browser: Browser, served: Sleepless) -> None:
    browser.run("window.name = ''")
    browser.open(served.service.url + "/page/options_flow")
    served.runner.disable("options_flow", reason="followed by itself")
    browser.wait(lambda: "followed by itself" in browser.text("main"))
    assert browser.console() == []
    served.service.stop()
    browser.run("return refresh()")
    assert browser.text("#headline") == "No answer from the service; what follows is old."
    assert "followed by itself" in browser.text("main")


def test_who_logs_in_reads_on(browser: Browser) -> None:
    with (
        ScanRunner([healthy("options_flow")], listeners=()) as runner,
        ControlService(runner, TOKEN, registry=CollectorRegistry(), read_token="may-only-look-17") as service,
    ):
        log_in = service.url.replace("http://", "http://anna:may-only-look-17@")
        browser.open(f"{log_in}/")
        browser.open(f"{service.url}/page/options_flow")  # the browser has kept name and password
        runner.disable("options_flow", reason="meanwhile")
        browser.run("return refresh()")
        assert "meanwhile" in browser.text("main")
        assert browser.run("return fetch('../metrics').then(answer => answer.status)") == 200
        assert browser.console() == []


@pytest.mark.parametrize("name", ["page", "page-phone", "scanner"])
def test_the_pictures_in_the_manual_are_small(name: str) -> None:
    picture = (PICTURES / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 200_000
