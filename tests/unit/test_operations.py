"""Orders from the command line: to the service that runs here, else to the store; what `serve` refuses."""

from __future__ import annotations

import getpass
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, ConfigError, ControlService, Policy, Quarantine, ScanContext, ScanRunner, scanner
from resilient_scan.cli import client as asking
from resilient_scan.cli import main as cli
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.cli.serve import caught_signals, first
from resilient_scan.http import Client
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.settings import load_settings
from resilient_scan.testing import broken, healthy
from tests.support.settings import write_settings

TOKEN = "a-token-of-ours"
WHO = os.environ.get("SUDO_USER") or getpass.getuser()
Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a command and returns what it says, on stdout if it succeeds, else on stderr."""

    def run(*arguments: object, code: int = 0) -> str:
        assert cli.main([str(each) for each in arguments]) == code
        out, err = capsys.readouterr()
        assert (out if code else err) == ""
        return err if code else out

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return settings with a store, and with a service that does not run."""
    return write_settings(
        tmp_path, f'[store]\nurl = "sqlite:///{tmp_path / "state.db"}"\n[service]\nlisten = "127.0.0.1:1"\n'
    )


@pytest.fixture
def service() -> Iterator[ControlService]:
    scanner = healthy("gap_up")
    with ScanRunner([scanner], listeners=()) as runner, ControlService(runner, TOKEN) as running:
        yield running


@pytest.fixture
def near(service: ControlService, tmp_path: Path) -> Path:
    """Return settings of the service that runs, without any store."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    at = service.url.removeprefix("http://")
    return write_settings(tmp_path, f'[store]\nurl = "memory:"\n[service]\nlisten = "{at}"\ntoken_file = "token"\n')


# to the service


def test_orders_go_to_the_service_that_runs(near: Path, service: ControlService, say: Say) -> None:
    said = say("disable", "gap_up", "--reason", "quota", "--for", "2h", "--config", near)
    assert said == f"gap_up is disabled in the service at {service.url}\n"
    shown = say("explain", "gap_up", "--config", near)
    assert "quota" in shown
    assert "by hand" in shown
    said = say("enable", "gap_up", "--reason", "paid", "--config", near)
    assert said == f"gap_up is enabled in the service at {service.url}\n"


def test_how_long_it_holds_is_said_to_the_service(near: Path, say: Say, service: ControlService) -> None:
    say("disable", "gap_up", "--reason", "quota", "--for", "2h", "--config", near)
    client = asking.running(near)
    assert client is not None
    row = client.get("/scanners/gap_up")
    assert row["until"] - row["since"] == pytest.approx(7200)


def test_what_went_wrong_is_undone_in_the_service_that_runs(near: Path, service: ControlService, say: Say) -> None:
    at = f"in the service at {service.url}\n"
    assert say("reset", "gap_up", "--reason", "key", "--config", near) == f"the breaker of gap_up is closed {at}"
    assert say("forget", "gap_up", "--reason", "bad", "--config", near) == (
        f"the cached answers of gap_up are forgotten {at}"
    )
    said = say("probe", "gap_up", "--reason", "fixed", "--config", near, code=2)
    assert said == (
        f"error: the service at {service.url} refuses: probe gap_up: it is enabled; only a quarantined scanner is "
        "probed\n"
    )


def test_how_long_it_is_protected_from_alerts_is_said_to_the_service(
    near: Path, say: Say, service: ControlService
) -> None:
    client = asking.running(near)
    assert client is not None
    say("disable", "gap_up", "--reason", "quota", "--config", near)
    sent: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking.Client, "post", lambda _self, _path, body: sent.append(body) or {"state": "enabled"})
        say("enable", "gap_up", "--reason", "paid", "--for", "2h", "--config", near)
    assert sent == [{"reason": "paid", "duration": 7200.0}]


def test_what_the_service_refuses_is_told_in_its_words(near: Path, service: ControlService, say: Say) -> None:
    said = say("disable", "gap_upp", "--reason", "quota", "--config", near, code=2)
    why = f"the service at {service.url} refuses: there is no scanner 'gap_upp'; did you mean 'gap_up'?"
    assert said == f"error: {why}\n"
    said = say("explain", "gap_upp", "--no-run", "--config", near, code=2)
    assert why in said
    said = say("disable", "gap_up", "--reason", " ", "--config", near, code=2)
    assert "refuses: reason must say why" in said


def test_with_a_wrong_token_nothing_is_changed(near: Path, service: ControlService, say: Say) -> None:
    (near.parent / "token").write_text("another-one")
    said = say("disable", "gap_up", "--reason", "quota", "--config", near, code=2)
    assert said.startswith(f"error: the service at {service.url} refuses: the token is missing or wrong")
    assert "another-one" not in said


def test_without_its_token_a_service_is_looked_at_only(near: Path, service: ControlService, say: Say) -> None:
    (near.parent / "token").unlink()
    assert "gap_up" in say("explain", "gap_up", "--no-run", "--config", near)
    said = say("disable", "gap_up", "--reason", "quota", "--config", near, code=2)
    assert said == (
        f"error: the service at {service.url} changes nothing without its token; name its file as service.token_file\n"
    )


def test_a_service_of_another_version_is_told(near: Path, monkeypatch: pytest.MonkeyPatch, say: Say) -> None:
    monkeypatch.setattr("resilient_scan.cli.client.Client.get", lambda *_: {"explanation": {"scanner": 1}})
    said = say("explain", "gap_up", "--no-run", "--config", near, code=2)
    assert "is of another version; restart it" in said


# to the store


def states(config: Path) -> dict[str, Any]:
    with load_settings(config).runner([healthy("gap_up")], listeners=()) as runner:
        (state,) = runner.scanners()
        return state.to_dict()


def test_without_a_service_orders_go_to_the_store(config: Path, say: Say) -> None:
    at = f"sqlite:///{config.parent / 'state.db'}"
    said = say("disable", "gap_up", "--reason", "quota", "--for", "90m", "--config", config)
    assert said == f"gap_up is disabled in {at}\n"
    state = states(config)
    assert (state["state"], state["reason"], state["who"]) == ("disabled", "quota", WHO)
    assert state["until"] - state["since"] == pytest.approx(5400)
    assert "quota" in say("explain", "gap_up", "--no-run", "--demo", "--config", config)
    assert say("enable", "gap_up", "--reason", "paid", "--config", config) == f"gap_up is enabled in {at}\n"
    assert states(config)["state"] == "enabled"


def test_without_a_service_what_went_wrong_is_undone_in_the_store(config: Path, say: Say) -> None:
    at = f"in sqlite:///{config.parent / 'state.db'}\n"
    policy = Policy(retry=None, cache=None, breaker=Breaker(failures=1, open_for=600))
    options: dict[str, Any] = {"listeners": (), "store": load_settings(config).store, "policy": policy}
    options["quarantine"] = Quarantine(after_failures=2, cooloff=600)
    with ScanRunner([broken("gap_up")], **options) as runner:
        runner.run()
        assert runner.breaker("gap_up") == "open"
        assert say("reset", "gap_up", "--reason", "key", "--config", config) == f"the breaker of gap_up is closed {at}"
        runner.run()
        assert [state.state for state in runner.scanners()] == ["quarantined"]
        assert (
            say("probe", "gap_up", "--reason", "up", "--config", config) == f"the next scan of gap_up is a probe {at}"
        )
        assert runner.probes_due() == ("gap_up",)
        assert say("forget", "gap_up", "--reason", "bad", "--config", config) == (
            f"the cached answers of gap_up are forgotten {at}"
        )
        assert [entry.action for entry in runner.audit()] == ["forget", "probe", "", "reset"]
        assert {entry.who for entry in runner.audit() if entry.action} == {WHO}


def test_without_a_service_a_provider_is_reset_in_the_store(config: Path, say: Say) -> None:
    """It is a host that another process has called: here, nobody has."""
    with LoopbackServer(lambda _path, _query: (503, {}, b"")) as server:
        client, host = Client(server.url), server.url.partition("://")[2]

        @scanner(pipeline="test")
        def calls(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            client.get("/", context=context)
            return []

        policy = Policy(retry=None, cache=None, breaker=Breaker(failures=1, open_for=600))
        with ScanRunner([calls], policy=policy, store=load_settings(config).store, listeners=()) as runner:
            runner.run()
            assert runner.run().results["calls"].status == "rejected"
            said = say("reset", "--provider", host, "--reason", "up", "--config", config)
            assert said == f"the breaker of provider {host} is closed in sqlite:///{config.parent / 'state.db'}\n"
            assert runner.run().results["calls"].status == "error"
        client.close()
    said = say("reset", "--provider", "nobody", "--reason", "up", "--config", config, code=2)
    assert said.startswith("error: there is no provider 'nobody'; ")


def test_a_provider_is_reset_in_the_service_that_runs(near: Path, service: ControlService, say: Say) -> None:
    said = say("reset", "--provider", "acme", "--reason", "up", "--config", near, code=2)
    assert "refuses: there is no provider 'acme'" in said


def test_an_order_needs_no_keys(config: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FINNHUB_API_KEY", "ALPHA_VANTAGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert "earnings_calendar is disabled in" in say(
        "disable", "earnings_calendar", "--reason", "no key", "--config", config
    )


def test_nobody_is_told_that_an_order_holds_which_nothing_remembers(tmp_path: Path, say: Say) -> None:
    config = write_settings(tmp_path, '[store]\nurl = "memory:"\n[service]\nlisten = "127.0.0.1:1"\n')
    assert say("disable", "gap_up", "--reason", "quota", "--config", config, code=2) == (
        "error: disable gap_up: nothing would remember it: no service runs here, and no store is configured; "
        "start 'resilient-scan serve', or name a settings file with --config\n"
    )


def test_a_store_that_is_away_is_told_and_nothing_claimed(tmp_path: Path, say: Say) -> None:
    (tmp_path / "file").write_text("no folder")
    config = write_settings(
        tmp_path, f'[store]\nurl = "sqlite:///{tmp_path}/file/state.db"\n[service]\nlisten = "127.0.0.1:1"\n'
    )
    said = say("disable", "gap_up", "--reason", "quota", "--config", config, code=2)
    assert said.startswith("error: ")
    assert "state.db" in said


def test_an_unknown_scanner_and_one_that_is_switched_off(config: Path, say: Say) -> None:
    said = say("disable", "gap_upp", "--reason", "quota", "--config", config, code=2)
    assert said == "error: unknown scanner 'gap_upp'; did you mean 'gap_up'?\n"
    config.write_text(config.read_text() + "[scanners.gap_up]\nenabled = false\n")
    said = say("disable", "gap_up", "--reason", "quota", "--config", config, code=2)
    assert said.startswith("error: scanner 'gap_up' is switched off by ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["disable", "gap_up"], "Missing option '--reason'"),
        (["enable", "gap_up"], "Missing option '--reason'"),
        (["reset", "gap_up"], "Missing option '--reason'"),
        (["reset", "--reason", "x"], "name either a scanner, or a provider with --provider"),
        (["reset", "gap_up", "--provider", "acme", "--reason", "x"], "name either a scanner, or a provider"),
        (["forget", "gap_up"], "Missing option '--reason'"),
        (["probe", "gap_up"], "Missing option '--reason'"),
        (["enable", "gap_up", "--reason", "x", "--for", "0s"], "'0s' is not a duration above zero"),
        (["disable", "--reason", "x"], "Missing argument 'NAME'"),
        (["disable", "gap_up", "--reason", "x", "--for", "0s"], "'0s' is not a duration above zero"),
    ],
)
def test_orders_that_are_none(arguments: list[str], sentence: str, say: Say) -> None:
    assert sentence in say(*arguments, code=2)


# what `serve` refuses


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--listen", "nowhere"], "must be an address and a port such as \"127.0.0.1:9108\", got 'nowhere'"),
        (["--listen", "127.0.0.1:99999"], "must be an address and a port"),
        (["--every", "0s"], "'0s' is not a duration above zero"),
        (["--every", "soon"], "'soon' is not a duration above zero"),
        (["--grace", "-1s"], "'-1s' is not a duration above zero"),
        (["--jitter", "0.6"], "0.6 is not in the range 0<=x<=0.5"),
        (["--catch-up", "all"], "'once', 'skip'"),
    ],
)
def test_serve_refuses_what_makes_no_sense(arguments: list[str], sentence: str, say: Say, config: Path) -> None:
    assert sentence in say("serve", "--demo", "--config", config, *arguments, code=2)


def test_a_token_file_that_is_missing_empty_or_not_a_text(config: Path, say: Say) -> None:
    file = config.parent / "token"
    config.write_text(config.read_text() + 'token_file = "token"\n')
    assert say("serve", "--demo", "--config", config, code=2) == (
        f"error: service.token_file: {file} cannot be read: No such file or directory\n"
    )
    file.write_text(" \n")
    assert say("serve", "--demo", "--config", config, code=2) == (
        f"error: service.token_file: {file} is empty; write one word into it, such as `openssl rand -hex 32`\n"
    )
    file.write_bytes(b"\xff\xfe")
    assert (
        say("serve", "--demo", "--config", config, code=2)
        == f"error: service.token_file: {file} cannot be read: it is not a text\n"
    )
    file.write_text("two words")
    said = say("serve", "--demo", "--config", config, code=2)
    assert "token" in said
    assert "two words" not in said


def test_a_token_file_is_named_from_the_settings_folder_or_the_root(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    config = write_settings(tmp_path, '[service]\ntoken_file = "token"\n')
    assert load_settings(config).token() == "one"
    other = tmp_path / "other"
    other.write_text("two")
    config.write_text(f'[service]\ntoken_file = "{other}"\n')
    assert load_settings(config).token() == "two"
    config.write_text("")
    assert load_settings(config).token() is None


def test_the_token_to_read_is_found_like_the_other(tmp_path: Path, say: Say) -> None:
    for name, token in (("token", TOKEN), ("reading", "a-token-to-read")):
        (tmp_path / name).write_text(f"{token}\n")
    with (
        ScanRunner([healthy("gap_up")], listeners=()) as runner,
        ControlService(runner, TOKEN, registry=CollectorRegistry(), read_token="a-token-to-read") as service,
    ):
        at = service.url.removeprefix("http://")
        config = write_settings(tmp_path, f'[service]\nlisten = "{at}"\nread_token_file = "reading"\n')
        assert load_settings(config).read_token() == "a-token-to-read"
        assert "gap_up" in say("explain", "gap_up", "--config", config)
        config.write_text(config.read_text().replace("reading", "token"))
        assert "gap_up" in say("explain", "gap_up", "--config", config)  # the other one allows to read, too
        config.write_text(config.read_text().replace('"token"', '"nowhere"'))
        assert "refuses: reading takes a token here" in say("explain", "gap_up", "--config", config, code=2)


def test_an_order_of_somebody_without_a_name(config: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.delenv("SUDO_USER", raising=False)
    say("disable", "gap_up", "--reason", "quota", "--config", config)
    assert states(config)["who"] == "command line"


def test_behind_sudo_the_person_gives_the_order(config: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    say("disable", "gap_up", "--reason", "quota", "--config", config)
    assert states(config)["who"] == "anna"


def test_what_is_asked_of_a_service_that_went_away_in_between(near: Path, service: ControlService) -> None:
    client = asking.running(near)
    assert client is not None
    service.stop()
    with pytest.raises(ConfigError, match="does not answer"):
        client.get("/scanners/gap_up")


def test_a_signal_that_another_thread_receives_is_seen() -> None:
    with caught_signals() as signals:
        nobody = threading.Timer(10, signals.put, (0,))  # so that a failure fails, and does not hang

        def receive() -> None:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        nobody.start()
        threading.Timer(0.05, receive).start()  # by then the main thread waits
        assert first(signals) == signal.SIGTERM
        nobody.cancel()


def test_signals_of_one_moment_are_two() -> None:
    with caught_signals() as signals:
        for each in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), each)
        assert {first(signals), first(signals)} == {signal.SIGTERM, signal.SIGINT}
