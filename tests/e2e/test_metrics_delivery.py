"""Metrics of the real command on real servers: a scrape, a Pushgateway, a file."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.e2e.command import run, started, wait_for

ONE = ("run", "--json", "--only", "gap_up")


def program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"no {name} on this machine; install it: apt-get install --no-install-recommends {package}"
        if os.environ.get("RESILIENT_SCAN_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def fetch(url: str, accept: str = "*/*") -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def values(text: str, name: str) -> dict[str, float]:
    """Return a metric's values by the scanner's name and all other labels but the gateway's own."""
    return {
        " ".join(
            value for label, value in sorted(sample.labels.items()) if label not in {"job", "instance"}
        ): sample.value
        for family in read_text(text)
        for sample in family.samples
        if sample.name == f"resilient_scan_{name}"
    }


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    path = program("prometheus-pushgateway", "prometheus-pushgateway")
    arguments = [path, "--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"address=(127\.0\.0\.1:\d*[1-9]\d*)", line) for line in process.stderr)))
        yield f"http://{found[1]}"
        process.terminate()


@pytest.mark.servers
def test_a_run_from_cron_pushes_its_metrics(gateway: str) -> None:
    assert json.loads(run(*ONE, "--push", gateway).stdout)["complete"]
    content_type, text = fetch(f"{gateway}/metrics")
    assert content_type.startswith("text/plain")
    assert values(text, "scans_total")["momentum gap_up completed"] == 1
    assert values(text, "runs_total") == {"complete": 1, "partial": 0, "failed": 0}
    assert values(text, "breaker_state") == {"gap_up closed": 1, "gap_up open": 0, "gap_up half_open": 0}
    pushed = [line for line in text.splitlines() if line.startswith("resilient_scan_")]
    assert pushed
    assert all('job="resilient_scan"' in line for line in pushed)
    assert not any("_created" in line for line in pushed)
    run(*ONE, "--push", gateway)  # a second one replaces the first: it is another process, which counts from 0
    assert values(fetch(f"{gateway}/metrics")[1], "scans_total")["momentum gap_up completed"] == 1


def test_a_push_that_fails_is_one_warning() -> None:
    done = run(*ONE, "--push", "http://user:hunter2@127.0.0.1:1/")
    (warning,) = [line for line in done.stderr.splitlines() if "pushed" in line]
    where = "the metrics could not be pushed to http://127.0.0.1:1/"
    assert warning == f"{where}: Connection refused; the run is not affected"
    assert "hunter2" not in done.stderr
    assert json.loads(done.stdout)["complete"]


def test_a_file_is_written_for_others_to_read(tmp_path: Path) -> None:
    target = tmp_path / "scan.prom"
    previous = os.umask(0o077)
    try:
        run(*ONE, "--textfile", str(target))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [target]
    text = target.read_text()
    assert values(text, "scans_total")["momentum gap_up completed"] == 1
    assert all(family.name.startswith("resilient_scan_") for family in read_text(text))


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "scan.prom"
    done = run(*ONE, "--textfile", str(target))
    (warning,) = [line for line in done.stderr.splitlines() if "written" in line]
    assert (
        warning == f"the metrics could not be written to {target}: No such file or directory; the run is not affected"
    )


@pytest.mark.servers
def test_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    promtool, target = program("promtool", "prometheus"), tmp_path / "scan.prom"
    run("run", "--json", "--faults", "--textfile", str(target), code=1)
    done = subprocess.run([promtool, "check", "metrics"], input=target.read_text(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_scrape_in_openmetrics_has_the_run_as_exemplar() -> None:
    with started(*ONE, "--metrics-port", "0", "--hold", "30s") as process:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", wait_for(process, "metrics: "))
        assert url is not None
        wait_for(process, "metrics stay at")
        content_type, text = fetch(url[0], "application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        samples = [sample for family in read_openmetrics(text) for sample in family.samples]
        exemplars = {sample.exemplar.labels["run_id"] for sample in samples if sample.exemplar}
        assert len(exemplars) == 1
        assert re.fullmatch("[0-9a-f]{32}", exemplars.pop())
        assert not [sample for sample in samples if sample.name.endswith("_created")]
        content_type, text = fetch(url[0])
        assert content_type.startswith("text/plain")
        assert values(text, "scans_total")["momentum gap_up completed"] == 1


def test_stderr_is_one_object_a_line() -> None:
    done = run(
        "run",
        "--json",
        "--faults",
        "--log-format",
        "json",
        "--metrics-port",
        "0",
        "--push",
        "http://127.0.0.1:1",
        code=1,
    )
    seen = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"ts", "level", "event"} <= set(line) for line in seen)
    report = json.loads(done.stdout)
    (ended,) = [line for line in seen if line["event"] == "run_ended"]
    assert (ended["run_id"], ended["counts"]) == (report["run_id"], report["counts"])
    scans = {line["scanner"]: line["status"] for line in seen if line["event"] == "scan_ended"}
    assert scans == {name: result["status"] for name, result in report["results"].items()}
    assert [line["level"] for line in seen if "pushed" in line.get("message", "")] == ["warning"]


def test_an_error_is_an_object_too() -> None:
    (line,) = run("run", "--log-format", "json", "--only", "nobody", code=2).stderr.splitlines()
    assert json.loads(line)["level"] == "error"
