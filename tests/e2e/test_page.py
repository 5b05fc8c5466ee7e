"""The page for people, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from grafana.source.__main__ import HOME
from resilient_scan import ControlService, Quarantine, ScanError, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import broken, healthy
from tests.e2e.browser import Browser, chromium
from tests.support.control import TOKEN, Served, alert, alertmanager

pytestmark = pytest.mark.servers
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
PICTURE = HOME / "pictures" / "page.png"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(autouse=True)
def _silence(browser: Browser) -> Iterator[None]:
    yield
    browser.open("about:blank")  # what a page goes on to say is not the next test's
    browser.console()


@pytest.fixture
def served() -> Iterator[Served]:
    scanners = [
        healthy("market_movers", pipeline="momentum"),
        healthy("insider_buying", pipeline="edge"),
        broken("news_sentiment", ScanError(f"HTTP 503 {HOSTILE}"), pipeline="news", retry=None),
        healthy("options_flow", pipeline="edge"),
        healthy("reddit_dd", pipeline="social"),
    ]
    registry = CollectorRegistry()
    with (
        ScanRunner(scanners, listeners=(), quarantine=Quarantine()) as runner,
        ControlService(runner, TOKEN, registry=registry) as service,
    ):
        runner.run()
        made = Served(service, runner, registry)
        assert made.post("/alerts", alertmanager(alert("options_flow"))).json["accepted"] == 1
        assert made.post("/scanners/reddit_dd/disable", {"reason": HOSTILE}).status == 200
        yield made


def order(browser: Browser, button: str, reason: str, token: str) -> None:
    browser.click(f"button[data-scanner={button}]")
    browser.type("#change input[name=reason]", reason)
    browser.type("#change input[name=token]", token)
    browser.click("#change .go")


def test_the_fleet_is_shown_and_changed(browser: Browser, served: Served) -> None:
    browser.open(f"{served.service.url}/")
    assert browser.text("#headline") == "1 failing, 1 disabled, 1 quarantined; 2 of 5 well"
    fleet = browser.text("#fleet")
    for word in (
        "market_movers",
        "news_sentiment",
        "quarantined",
        "ScannerErrorRatioHigh: options_flow fails",
        "error",
    ):
        assert word in fleet
    assert HOSTILE in fleet  # as text
    assert "HTTP 503 <img" in fleet
    assert "taken" not in browser.run("return document.title")

    order(browser, "market_movers", "quota", "wrong")
    browser.wait(lambda: browser.text("#problem").startswith("the token is missing or wrong"))
    assert [message for message in browser.console() if "401" not in message] == []
    browser.click("#change .cancel")
    assert not browser.shown("#change")
    browser.click("button[data-scanner=market_movers]")
    assert browser.run("return document.querySelector('#change input[name=token]').value") == ""
    assert browser.shown("#for")
    browser.click("#change .cancel")

    order(browser, "market_movers", "quota", TOKEN)
    browser.wait(lambda: "quota" in browser.text("#fleet"))
    assert served.state("market_movers") == "disabled"
    assert served.runner.audit()[0].who == "control endpoint"
    browser.click("button[data-scanner=market_movers]")
    assert not browser.shown("#for")
    browser.click("#change .cancel")
    order(browser, "market_movers", "back", TOKEN)
    browser.wait(lambda: not browser.shown("#change"))
    assert served.state("market_movers") == "enabled"

    kept = browser.run(
        "return [location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage),"
        " document.documentElement.outerHTML,"
        " ...[...document.querySelectorAll('input')].map(each => each.value)].join()"
    )
    assert TOKEN not in kept
    assert browser.console() == []
    loaded = browser.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(name.startswith(served.service.url) for name in loaded)


def test_it_follows_by_itself_and_says_when_it_cannot(browser: Browser, served: Served) -> None:
    browser.open(f"{served.service.url}/")
    served.runner.disable("insider_buying", reason="followed by itself")
    browser.wait(lambda: "followed by itself" in browser.text("#fleet"))
    assert browser.console() == []
    served.service.stop()
    browser.wait(lambda: browser.text("#headline") == "No answer from the service; what follows is old.")
    assert "followed by itself" in browser.text("#fleet")


def test_one_scanner_has_a_page(browser: Browser, served: Served) -> None:
    browser.open(f"{served.service.url}/")
    browser.click("a[href='page/options_flow']")
    assert browser.text("#headline") == "options_flow"
    text = browser.text("main")
    assert "quarantined" in text
    assert "ScannerErrorRatioHigh" in text
    browser.click("h1 a")
    assert browser.run("return location.pathname") == "/"
    browser.open(f"{served.service.url}/page/news_sentiment")
    assert "HTTP 503 <img" in browser.text("pre")
    assert browser.run("return document.title") == "news_sentiment · resilient_scan"
    assert browser.console() == []


@pytest.mark.parametrize("path", ["/", "/page/options_flow"])
def test_it_fits_a_phone(browser: Browser, served: Served, path: str, tmp_path: Path) -> None:
    browser.size(400, 800)
    browser.open(served.service.url + path)
    assert browser.run("return document.documentElement.scrollWidth") <= 400
    assert browser.run("return document.querySelector('#headline').getBoundingClientRect().width") <= 400
    (tmp_path / "phone.png").write_bytes(browser.picture())
    browser.command("Emulation.clearDeviceMetricsOverride")


def test_the_picture_in_the_manual_is_small() -> None:
    picture = PICTURE.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 200_000
