"""The recipe for systemd: its units pass `systemd-analyze verify`, and their commands do what the page says."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, blocks
from tests.docs.running import commands, parse
from tests.e2e.command import environment
from tests.recipes.following import SCRIPTS, Recipe, free_port, get
from tests.support.needed import binary, missing
from tests.support.waiting import eventually

UNITS = ("resilient-scan.service", "scan.service", "scan.timer")
PROGRAM = "/opt/resilient-scan/bin/resilient-scan"


class Options(configparser.ConfigParser):
    """A unit as data; names keep their case, and `%d` is systemd's."""

    def __init__(self, path: Path) -> None:
        super().__init__(interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a system's root, with systemd's own units, the page's units and a program where they say it is."""
    binary("systemd-analyze")
    Recipe("systemd", tmp_path)
    units = tmp_path / "root" / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(tmp_path / unit, units)
    own = Path("lib/systemd/system")
    shutil.copytree(f"/usr/{own}", tmp_path / "root" / "usr" / own, symlinks=True)
    for program, real in ((PROGRAM, SCRIPTS / "resilient-scan"), ("/bin/sh", "/bin/sh")):
        path = tmp_path / "root" / program[1:]
        path.parent.mkdir(parents=True)
        shutil.copy(real, path)
    return tmp_path / "root"


def verify(root: Path, unit: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "--recursive-errors=one", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(unit: str, root: Path) -> None:
    done = verify(root, unit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("TimeoutStopSec=45", "TimeoutStopSec=soon", "Failed to parse time value"),
        ("Restart=on-failure", "Restrat=on-failure", "Restrat"),
        (PROGRAM, "/opt/resilient-scan/bin/resilient", "not executable"),
    ],
)
def test_a_mistake_would_be_found(right: str, wrong: str, message: str, root: Path) -> None:
    path = root / "etc/systemd/system" / UNITS[0]
    path.write_text(path.read_text().replace(right, wrong))
    assert message in verify(root, UNITS[0]).stderr


@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 20), (UNITS[1], 30)])
def test_the_units_are_locked_down(unit: str, most: int, root: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--root={root}", f"--threshold={most}", unit],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(SYSTEMD_PAGER="", SYSTEMD_COLORS="0"),
    )
    assert done.returncode == 0, done.stdout


def test_the_service_stops_cleanly_within_its_time(tmp_path: Path) -> None:
    Recipe("systemd", tmp_path)
    service = Options(tmp_path / UNITS[0])["Service"]
    parse(service["ExecStart"])
    words = shlex.split(service["ExecStart"])
    grace = int(words[words.index("--grace") + 1].removesuffix("s"))
    assert int(service["TimeoutStopSec"]) > grace

    port = free_port()
    settings = tmp_path / "scan.toml"
    settings.write_text(
        settings.read_text().replace("/var/lib/resilient-scan", str(tmp_path)).replace("9108", str(port))
    )
    (tmp_path / "token").write_text("a-token-of-this-test")
    name, _, value = service["Environment"].partition("=")
    extra = {name: value.replace("%d", str(tmp_path))}
    with subprocess.Popen(at(tmp_path, words), env=environment(**extra), stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: port_answers(port), "the service answers")
            assert get(f"http://127.0.0.1:{port}/healthz")[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_timer_writes_a_report(tmp_path: Path) -> None:
    Recipe("systemd", tmp_path)
    service = Options(tmp_path / UNITS[1])["Service"]
    settings = tmp_path / "scan.toml"
    settings.write_text(settings.read_text().replace("/var/lib/resilient-scan", str(tmp_path)))
    words = at(tmp_path, shlex.split(service["ExecStart"]))
    parse(words[-1])
    report = tmp_path / "report.json"
    subprocess.run(words, cwd=tmp_path, check=True, timeout=60)
    assert json.loads(report.read_text())["complete"]

    settings.write_text("nonsense")
    assert subprocess.run(words, cwd=tmp_path, stderr=subprocess.DEVNULL, timeout=60).returncode == 2
    assert json.loads(report.read_text())["complete"]  # the old one stays


IN_A_COPY = """
set -euo pipefail
mkdir -p etc/ssl state
for file in passwd group shadow gshadow login.defs nsswitch.conf ssl/openssl.cnf; do
    [ ! -e /etc/$file ] || cp /etc/$file etc/$file
done
mount --bind etc /etc
mount --bind state /var/lib
"""


@pytest.fixture
def as_root(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs commands as root, with copies of `/etc` and `/var/lib` in place of the real ones."""
    unshare = binary("unshare")
    if subprocess.run([unshare, "--mount", "mount", "--bind", "/tmp", "/tmp"], capture_output=True).returncode:
        missing("the how-to makes a user: it needs root, who may mount")

    def run(script: str) -> str:
        done = subprocess.run(
            [unshare, "--mount", "bash", "-c", f"{IN_A_COPY}\n{script}"],
            cwd=tmp_path,
            env=environment(PATH=f"{SCRIPTS}:/usr/sbin:/usr/bin:/sbin:/bin"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def how_to(page: Path) -> str:
    """Return a page's first commands that tests run, with the errors of each ending all."""
    block = next(each for each in blocks(page) if each.language == "console" and each.order("recipe") is not None)
    return "\n".join(line for line, _ in commands(block.text))


def can(user: str, test: str, path: str) -> str:
    """Write a command that says whether a user can do something, `r` or `w`, with a file or a folder."""
    names = f"--reuid={user} --regid=$(id -g {user}) --init-groups"
    return f"setpriv {names} test -{test} {path} && echo {user} can || echo {user} cannot"


def test_the_how_to_makes_what_the_service_needs(as_root: Callable[[str], str]) -> None:
    (settings, *_) = [block.text for block in blocks(DOCS / "service.md") if block.language == "toml"]
    token, store = "/etc/resilient-scan/token", "/var/lib/resilient-scan"
    shown = as_root(
        f"""{how_to(DOCS / "service.md")}
stat --format='%a %U:%G' /etc/resilient-scan {token} {store}
wc --chars < {token}
{can("resilient-scan", "r", token)}
{can("resilient-scan", "w", token)}
{can("resilient-scan", "w", store)}
{can("nobody", "r", token)}
cat > /etc/resilient-scan/scan.toml <<'TOML'
{settings}
TOML
resilient-scan check --config /etc/resilient-scan/scan.toml 2>&1 | grep -c 'service\\.' || true
"""
    )
    assert shown.splitlines() == [
        "750 root:resilient-scan",
        "640 root:resilient-scan",
        "750 resilient-scan:resilient-scan",
        "65",
        "resilient-scan can",
        "resilient-scan cannot",
        "resilient-scan can",
        "nobody cannot",
        "0",
    ]


def test_the_recipe_makes_what_systemd_reads(as_root: Callable[[str], str]) -> None:
    shown = as_root(
        f"""{how_to(DOCS / "recipes" / "systemd.md")}
stat --format='%a %U:%G' /etc/resilient-scan /etc/resilient-scan/token
{can("nobody", "r", "/etc/resilient-scan/token")}
"""
    )
    assert shown.splitlines() == ["755 root:root", "600 root:root", "nobody cannot"]


def at(folder: Path, words: list[str]) -> list[str]:
    """Return a unit's command with this environment's program and this folder's settings, on bundled data."""
    program = str(SCRIPTS / "resilient-scan")
    places = {PROGRAM: program, "/etc/resilient-scan/scan.toml": str(folder / "scan.toml")}
    for old, new in places.items():
        words = [word.replace(old, new) for word in words]
    words = [word.replace(f"{program} run ", f"{program} run --demo ") for word in words]
    return [part for word in words for part in ([word, "--demo"] if word == "serve" else [word])]


def port_answers(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/healthz")[0] == 200
    except OSError:
        return False
