"""The service as a process: it runs on schedule, answers, and ends when it is told to, with its state saved."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.command import environment, run
from tests.e2e.served import READ_TOKEN, TOKEN, Served, Switches, configured, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers  # processes take their time: on one Python only
FAST = ("--every", "200ms", "--jitter", "0")
RARE = ("--every", "1h")
TOKENS = (TOKEN, READ_TOKEN)


@pytest.fixture
def switches(tmp_path: Path) -> Switches:
    return Switches(tmp_path, "alpha", "beta")


def test_it_runs_again_and_again_and_sigterm_ends_it(tmp_path: Path, switches: Switches) -> None:
    config = configured(tmp_path, more='[defaults]\ncache = { ttl = "10ms" }')
    began = time.time()
    with serving(switches, config, *FAST) as served:
        assert re.search(
            r"serving at http://127\.0\.0\.1:\d+/ \(orders and alerts need the token\)", served.line("serv")
        )
        eventually(lambda: len(switches.asked("alpha")) >= 12, "a dozen runs")
        assert served.status("/readyz") == served.status("/healthz") == 200
        assert served.states() == {"alpha": "enabled", "beta": "enabled"}
        assert served.end(signal.SIGTERM) == 0
        assert served.lines[-1] == "stopped"
        assert served.process.stdout is not None
        assert served.process.stdout.read() == ""
    asked = switches.asked("alpha")
    assert len(asked) <= (asked[-1] - began) / 0.2 + 1  # on the grid, not as fast as it can
    assert not any("Traceback" in line for line in served.lines)


def test_ctrl_c_ends_it_and_the_run_under_way_gets_its_time(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "hang")
    config = configured(tmp_path)
    with serving(switches, config, *RARE, "--grace", "30s") as served:
        served.line("serving at")
        eventually(lambda: switches.asked("alpha"), "it began")
        served.process.send_signal(signal.SIGINT)
        served.line("stopping: the run under way gets 30s; a second signal cuts it off")
        assert served.status("/healthz") == 200
        assert served.status("/readyz") == 503
        switches.turn("alpha", "well")
        assert served.end() == 0
        assert served.lines[-1] == "stopped"
        served.line("✓ alpha: 1 candidate")


def test_a_second_signal_cuts_the_run_off_and_its_rest_is_written_down(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "hang")
    config = configured(tmp_path)
    with serving(switches, config, *RARE, "--grace", "1h") as served:
        served.line("serving at")
        eventually(lambda: switches.asked("alpha"), "it began")
        served.line("✓ beta")
        served.process.send_signal(signal.SIGTERM)
        served.line("stopping")
        began = time.monotonic()
        assert served.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
        assert served.lines[-1] == "stopped; the run under way was cut off"
    assert not any("Traceback" in line for line in served.lines)
    with serving(switches, config, *RARE) as again:
        eventually(lambda: again.get("/scanners/beta")["explanation"], "it answers")
        assert again.end(signal.SIGTERM, signal.SIGINT) == 0


def test_grace_is_a_limit(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "hang")
    with serving(switches, configured(tmp_path), *RARE, "--grace", "300ms") as served:
        served.line("serving at")
        eventually(lambda: switches.asked("alpha"), "it began")
        began = time.monotonic()
        assert served.end(signal.SIGTERM) == 0
        assert 0.3 <= time.monotonic() - began < 10
        assert served.lines[-1] == "stopped; the run under way was cut off"


def test_a_scanner_is_run_when_somebody_asks_for_it(tmp_path: Path, switches: Switches) -> None:
    config = configured(tmp_path, more="[defaults]\ncache = false")
    with serving(switches, config, *RARE) as served:
        served.line("✓ alpha")
        served.line("✓ beta")
        assert served.post("/scanners/alpha/run", {"reason": "is it back?"})["name"] == "alpha"
        served.line("✓ alpha", 2)
        assert len(switches.asked("beta")) == 1
        assert served.end(signal.SIGTERM) == 0


def test_what_hangs_holds_up_nothing_but_its_own_scan(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "hang")
    more = '[defaults]\ncache = { ttl = "10ms" }\ntimeout = { total = "200ms" }'
    with serving(switches, configured(tmp_path, more=more), *FAST) as served:
        served.line("alpha: timeout")
        eventually(lambda: len(switches.asked("beta")) >= 3, "beta goes on")
        assert len(switches.asked("alpha")) == 1
        hung = served.get("/scanners/alpha")
        assert hung["abandoned_threads"] == 1
        assert served.end(signal.SIGTERM) == 0


# what it refuses


def refused(config: Path, switches: Switches, *arguments: str) -> str:
    done = run("serve", "--config", str(config), "--pipeline", "switched", *arguments, code=2, **switches.environ)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_port_that_is_taken(tmp_path: Path, switches: Switches) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(configured(tmp_path), switches, "--listen", at)
    assert f"error: the control endpoint cannot listen at {at}: Address already in use; port 0 takes a free one" in said
    assert switches.asked("alpha") == []


def test_without_a_token_it_only_shows(tmp_path: Path, switches: Switches) -> None:
    with serving(switches, configured(tmp_path, token=False), *RARE) as served:
        assert "/ (no token is configured: it only shows); a run every " in served.line("serving at")
        assert served.line("a run every 1h is too rare for the alert rules of a service")
        assert served.status("/alerts") == 404
        assert served.end(signal.SIGTERM) == 0


def test_the_tokens_are_seen_nowhere(tmp_path: Path, switches: Switches) -> None:
    with serving(switches, configured(tmp_path, read_token=True), *RARE) as served:
        assert "(orders and alerts need the token; reading needs one); a run every " in served.line("serving at")
        assert [served.status(path) for path in ("/", "/metrics", "/healthz", "/readyz")] == [401, 401, 200, 200]
        served.reads = {"Authorization": f"Bearer {READ_TOKEN}"}
        served.post("/scanners/alpha/disable", {"reason": "quota"})
        shown = "".join(served.text(path) for path in ("/", "/metrics", "/scanners", "/scanners/alpha", "/audit"))
        assert not any(token in shown for token in TOKENS)
        process = Path(f"/proc/{served.process.pid}")
        told = (process / "cmdline").read_text()
        assert "serve" in told
        told += (process / "environ").read_text()
        assert served.end(signal.SIGTERM) == 0
        told += "\n".join(served.lines)
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))
    assert not any(token in told or token.encode() in kept for token in TOKENS)


def test_two_services_on_one_store_know_of_each_other(tmp_path: Path, switches: Switches) -> None:
    config = configured(tmp_path)
    with serving(switches, config, *RARE) as one, serving(switches, config, *RARE) as other:
        assert one.url != other.url
        one.post("/scanners/alpha/disable", {"reason": "quota"})
        other.wait_for("alpha", "disabled")
        other.post("/scanners/alpha/enable", {"reason": "paid"})
        one.wait_for("alpha", "enabled")
        assert [each[0] for each in one.moves("alpha")] == ["disabled", "enabled"]
        assert one.end(signal.SIGTERM) == other.end(signal.SIGTERM) == 0


def test_killed_during_a_quarantine_it_comes_back_with_it(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "ill")
    more = '[defaults]\nretry = false\nbreaker = false\ncache = false\n[quarantine]\nafter_failures = 3\ncooloff = "1h"'
    config = configured(tmp_path, more=more)
    with serving(switches, config, *FAST) as served:
        served.wait_for("alpha", "quarantined")
        served.end(signal.SIGKILL)
    asked = len(switches.asked("alpha"))
    assert asked == 3
    with serving(switches, config, *FAST) as again:
        again.line("beta", 3)
        assert again.states() == {"alpha": "quarantined", "beta": "enabled"}
        assert [each[:2] for each in again.moves("alpha")] == [("quarantined", "failures")]
        assert again.end(signal.SIGTERM) == 0
    assert len(switches.asked("alpha")) == asked


def shorter(switches: Switches, folder: Path) -> Switches:
    """Return the same fleet without its first scanner."""
    folder.mkdir()
    return Switches(folder, *switches.names[1:])


def test_a_scanner_that_left_the_fleet_in_quarantine_is_in_nobodys_way(tmp_path: Path, switches: Switches) -> None:
    switches.turn("alpha", "ill")
    more = '[defaults]\nretry = false\nbreaker = false\ncache = false\n[quarantine]\nafter_failures = 2\ncooloff = "1h"'
    config = configured(tmp_path, more=more)
    with serving(switches, config, *FAST) as served:
        served.wait_for("alpha", "quarantined")
        assert served.end(signal.SIGTERM) == 0
    less = shorter(switches, tmp_path / "less")
    less.turn("beta", "ill")
    with serving(less, config, *FAST) as again:
        again.wait_for("beta", "quarantined")  # one may always be out: the one that left does not count
        assert again.states() == {"beta": "quarantined"}
        assert again.end(signal.SIGTERM) == 0
    with serving(switches, config, *RARE) as back:
        assert back.states() == {"alpha": "quarantined", "beta": "quarantined"}
        assert back.end(signal.SIGTERM) == 0


def still(served: Served) -> None:
    assert served.process.poll() is None


def test_a_store_that_goes_away_ends_nothing(tmp_path: Path, switches: Switches) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    config = configured(tmp_path, more='[defaults]\ncache = { ttl = "10ms" }')
    config.write_text(config.read_text().replace(str(tmp_path / "state.db"), str(folder / "state.db")))
    with serving(switches, config, *FAST) as served:
        served.post("/scanners/alpha/disable", {"reason": "quota"})
        folder.rename(tmp_path / "away")
        folder.write_text("what is here now is no folder")
        before = len(switches.asked("beta"))
        eventually(lambda: len(switches.asked("beta")) >= before + 3, "runs go on")
        still(served)
        assert served.states() == {"alpha": "disabled", "beta": "enabled"}
        assert served.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in served.lines)


FREEZING = """
import gc, os
from resilient_scan.cli import main
main.first = lambda _signals: os.write(2, f"frozen: {gc.get_freeze_count() > 10_000}\\n".encode())
main.main(["serve", "--pipeline", "switched", "--every", "1h", "--listen", "127.0.0.1:0", *CONFIG], own_process=True)
"""


def test_no_garbage_collection_looks_again_at_what_stays(tmp_path: Path, switches: Switches) -> None:
    program = f"CONFIG = ['--config', {str(configured(tmp_path))!r}]\n{FREEZING}"
    environ = environment(**switches.environ)
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "frozen: True" in done.stderr
