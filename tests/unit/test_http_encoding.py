"""Bodies that are packed: whole however they are cut, and never larger in memory than the client allows."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from resilient_scan import PermanentError
from resilient_scan.http import Client, TransientError
from resilient_scan.http.encoding import STEP, decoded
from tests.scanners.recorded import RecordedServer
from tests.support.http import answering, context_for, raw_server, say

GZIP = {"Content-Encoding": "gzip"}


def bomb(megabytes: int) -> bytes:
    """Return zeros, packed."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def peak_while_asking(body: bytes, headers: dict[str, str], max_bytes: int) -> tuple[int, Exception | None]:
    """Return the most memory that a request needed, in bytes, and how it failed."""
    with answering(200, headers, body) as url:
        client = Client(url, max_bytes=max_bytes)
        with pytest.raises(PermanentError):  # the first request sets up what stays
            client.get("/", context=context_for(60))
        tracemalloc.start()
        try:
            client.get("/", context=context_for(60))
            failure = None
        except PermanentError as error:
            failure = error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            client.close()
    return peak, failure


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP, identity"])
def test_a_bomb_takes_no_more_memory_than_the_largest_body(coding: str) -> None:
    peak, failure = peak_while_asking(bomb(128), {"Content-Encoding": coding}, 2**20)
    assert "larger than 1048576 bytes; raise max_bytes" in str(failure)
    assert peak < 4 * 2**20


def test_a_body_that_is_packed_twice_is_not_unpacked_at_all() -> None:
    body = gzip.compress(bomb(128))
    peak, failure = peak_while_asking(body, {"Content-Encoding": "gzip, gzip"}, 2**20)
    assert len(body) < 2000
    assert "the content encoding 'gzip, gzip', and only gzip was asked for; correct base_url" in str(failure)
    assert peak < 2**20


def test_a_large_body_is_held_in_memory_once() -> None:
    body = bytes(16 * 2**20)
    with raw_server(say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))) as url:
        client = Client(url)
        tracemalloc.start()
        try:
            assert client.get("/", context=context_for(60)).body == body
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            client.close()
    assert peak < 1.5 * len(body)


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "compress", "br, gzip", "gzip, br"])
def test_only_gzip_is_asked_for_and_another_coding_is_refused(coding: str) -> None:
    headers = {"content-encoding": coding}
    answers = {"/full": (200, headers, b"xyz"), "/empty": (200, headers, b""), "/busy": (503, headers, b"xyz")}
    with RecordedServer(answers, manifest=False) as server:
        client = Client(server.url)
        with pytest.raises(PermanentError, match=f"/full: the body has the content encoding '{coding}', and only gzip"):
            client.get("/full", context=context_for())
        assert client.get("/empty", context=context_for()).body == b""
        with pytest.raises(TransientError, match="HTTP 503; "):  # the status says more than a body that nobody can read
            client.get("/busy", context=context_for())
        client.get("/empty", context=context_for(), headers={"accept-encoding": "identity"})
        Client(server.url, headers={"ACCEPT-encoding": "br"}).get("/empty", context=context_for())
    assert [asked.headers["accept-encoding"] for asked in server.asked] == ["gzip"] * 3 + ["identity", "br"]


@pytest.mark.parametrize("coding", ["", "identity", "none", "UTF-8"])
def test_a_coding_that_is_none_leaves_the_body_as_it_is(coding: str) -> None:
    with answering(200, {"Content-Encoding": coding}, b"as it is") as url:
        assert Client(url).get("/", context=context_for()).body == b"as it is"


@pytest.mark.parametrize("size", [0, 1, 258, STEP - 1, STEP, STEP + 1, 3 * STEP + 300])
@pytest.mark.parametrize("cut", [1, 7, STEP])
def test_a_body_is_whole_however_it_is_cut(size: int, cut: int) -> None:
    body = bytes(size)
    packed = gzip.compress(body) + gzip.compress(b"second") + gzip.compress(b"") + gzip.compress(body)
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    steps = list(decoded(iter(pieces), "gzip"))
    assert b"".join(steps) == body + b"second" + body
    assert max(map(len, steps)) <= STEP


def test_a_body_that_is_empty_is_whole() -> None:
    with answering(200, GZIP, b"") as url:
        assert Client(url).get("/", context=context_for()).body == b""


def test_members_that_follow_one_another_are_one_body() -> None:
    packed = gzip.compress(b"one, ") + gzip.compress(b"two")
    with answering(200, GZIP, packed) as url:
        assert Client(url).get("/", context=context_for()).text == "one, two"


@pytest.mark.parametrize("rest", [b"\n", b"\0" * 700, b"<!-- cached -->", b"\r\n\x1f\x8b"])
def test_what_follows_the_last_member_is_ignored(rest: bytes) -> None:
    with answering(200, GZIP, gzip.compress(b"whole") + rest) as url:
        assert Client(url).get("/", context=context_for()).text == "whole"


@pytest.mark.parametrize("left", [1, 2, 9, 15, -9, -1])
@pytest.mark.parametrize("before", [b"", gzip.compress(b"a member before it")], ids=["first", "second"])
def test_a_body_that_ends_in_the_middle_of_its_stream_is_transient(left: int, before: bytes) -> None:
    packed = before + gzip.compress(b"a body that is long enough to be cut in the middle")[:left]
    with (
        answering(200, GZIP, packed) as url,
        pytest.raises(TransientError, match="the body ends in the middle of its gzip stream; the source is in trouble"),
    ):
        Client(url).get("/", context=context_for())


def test_a_body_that_was_damaged_on_its_way_is_transient() -> None:
    packed = bytearray(gzip.compress(b"a body with a checksum at its end"))
    packed[-6] ^= 1
    with answering(200, GZIP, bytes(packed)) as url, pytest.raises(TransientError, match=r"\(incorrect data check\)"):
        Client(url).get("/", context=context_for())


WHOLE = b"a body that is long enough to be cut in the middle, " * 40
PACKED = gzip.compress(WHOLE)
HALF = PACKED[: len(PACKED) // 2]


def chunks(body: bytes, *, end: bool = True) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if end else b"")


def with_length(body: bytes, length: int, *more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % length, *more, b"", body])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
GZIPPED = b"Content-Encoding: gzip"


@pytest.mark.parametrize(
    "sent",
    [
        with_length(WHOLE[:900], len(WHOLE)),
        with_length(HALF, len(PACKED), GZIPPED),
        with_length(HALF, len(HALF), GZIPPED),  # cut by a proxy that counts again
        with_length(b"", len(WHOLE)),
        CHUNKED + b"\r\n" + chunks(WHOLE, end=False),
        CHUNKED + b"\r\n" + chunks(WHOLE)[:900],
        CHUNKED + GZIPPED + b"\r\n\r\n" + chunks(HALF),
        b"HTTP/1.1 200 OK\r\n" + GZIPPED + b"\r\n\r\n" + HALF,  # ends with the connection
        with_length(PACKED[:-4] + b"\0\0\0\0", len(PACKED), GZIPPED),  # another length than it says
        with_length(PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], len(PACKED), GZIPPED),  # another checksum
    ],
    ids=["length", "gzip", "recounted", "nothing", "no end", "chunk", "gzip chunks", "closed", "isize", "crc"],
)
def test_a_body_of_which_a_part_is_missing_is_an_error_however_it_is_sent(sent: bytes) -> None:
    with raw_server(say(sent)) as url, pytest.raises(TransientError):
        Client(url, timeout=5).get("/", context=context_for())


def test_the_same_bodies_are_read_when_they_are_whole() -> None:
    for sent in (
        with_length(WHOLE, len(WHOLE)),
        with_length(PACKED, len(PACKED), GZIPPED),
        CHUNKED + b"\r\n" + chunks(WHOLE),
        CHUNKED + GZIPPED + b"\r\n\r\n" + chunks(PACKED),
    ):
        with raw_server(say(sent)) as url:
            assert Client(url, timeout=5).get("/", context=context_for()).body == WHOLE
