"""The server of recordings itself: it answers as the sources did."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from resilient_scan import ScanContext
from resilient_scan.http import Client
from tests.scanners.recorded import RecordedServer, answer, body, folder, manifest


def test_every_recording_is_the_file_that_the_manifest_describes() -> None:
    for row in manifest():
        assert hashlib.sha256(body(row["file"])).hexdigest() == row["sha256"], row["file"]


def test_recordings_are_found_by_path_and_query_whatever_the_order_and_the_secrets() -> None:
    folder()
    with RecordedServer({"/mine/*": (418, {"x-mine": "1"}, b"mine")}) as server:
        context = ScanContext(deadline=time.monotonic() + 10)
        client = Client(server.url)
        feed = {"output": "atom", "type": "4", "owner": "include", "start": 100, "count": 100, "action": "getcurrent"}
        found = client.get("/cgi-bin/browse-edgar", feed, context=context)
        assert found.body == body("sec/current_feed/getcurrent_type4_start100.atom")
        assert (
            found.headers["content-type"]
            == answer("sec/current_feed/getcurrent_type4_start100.atom")[1]["content-type"]
        )
        movers = client.get("/query", {"function": "TOP_GAINERS_LOSERS", "apikey": "k"}, context=context)
        assert movers.body == body("alphavantage/top_gainers_losers/TOP_GAINERS_LOSERS.json")
        assert client.get("/mine/x", context=context, accept=[418]).headers["x-mine"] == "1"
        assert client.get("/nowhere", context=context, accept=[404]).body == b"not recorded\n"
    assert server.paths() == ["/cgi-bin/browse-edgar", "/query", "/mine/x", "/nowhere"]


def test_without_recordings_tests_skip_or_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESILIENT_SCAN_TESTDATA", str(tmp_path))
    monkeypatch.setenv("RESILIENT_SCAN_REQUIRE_SERVERS", "0")
    with pytest.raises(pytest.skip.Exception, match="RESILIENT_SCAN_TESTDATA"):
        folder()
    monkeypatch.setenv("RESILIENT_SCAN_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="RESILIENT_SCAN_TESTDATA"):
        folder()
