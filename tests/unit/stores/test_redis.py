"""Redis: away, silent, full, refusing, killed and back; and what needs no server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan.cli.check import check
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.redis import eviction
from resilient_scan.testing import FakeClock
from tests.support.needed import binary
from tests.support.servers import RedisServer
from tests.unit.stores.conftest import keep

pytest.importorskip("redis")
Opener = Callable[..., Store]
BOUND = 0.25
SLACK = 1.5  # a busy machine's; the 30 s that an address may ask for are longer, and 16 turns of 250 ms


@pytest.fixture
def opened(clock: FakeClock) -> Iterator[Opener]:
    stores: list[Store] = []

    def make(url: str) -> Store:
        stores.append(open_store(url, clock))
        return stores[-1]

    yield make
    for store in stores:
        with contextlib.suppress(StoreError):
            store.close()


@pytest.fixture
def nobody() -> str:
    """Return a URL where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"redis://:hunter2@127.0.0.1:{port}"


def command(url: str, *words: Any) -> Any:
    import redis

    with redis.Redis.from_url(url) as client:
        return client.execute_command(*words)


class Line:
    """The connections to a server, of which one breaks: amid a request, or when an answer has come but is not read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import redis

        self.left, self.loses = -1, ""
        connection: Any = redis.connection.Connection
        send, read = connection.send_packed_command, connection.read_response

        def sent(each: Any, command: Any, *rest: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self.loses == "request":
                data = command if isinstance(command, bytes) else b"".join(command)
                each._sock.sendall(data[: len(data) // 2])
                self.fall(each)
            return send(each, command, *rest, **options)

        def answered(each: Any, *rest: Any, **options: Any) -> Any:
            if self.left == 0 and self.loses == "answer":
                each._sock.recv(1, socket.MSG_PEEK)
                self.fall(each)
            return read(each, *rest, **options)

        monkeypatch.setattr(connection, "send_packed_command", sent)
        monkeypatch.setattr(connection, "read_response", answered)

    def fall(self, connection: Any) -> None:
        import redis

        self.left = -1
        connection.disconnect()
        raise redis.ConnectionError("broken")

    def loses_at(self, number: int, what: str) -> None:
        """Lose the n-th request from now on, or its answer."""
        self.left, self.loses = number, what


@pytest.mark.servers
@pytest.mark.parametrize("loses", ["request", "answer"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_connection_that_breaks_amid_a_flush_loses_and_doubles_nothing(
    redis_url: str, opened: Opener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, number: int, loses: str
) -> None:
    """The first request of a flush brings the values, the second the records."""
    store, other = opened(redis_url), opened(redis_url)
    store.put("a", b"1", 60)
    store.append("runs", b"1", 10)
    store.flush()
    store.put("b", b"2", 60)
    for record in (b"2", b"3"):
        store.append("runs", record, 10)
    Line(monkeypatch).loses_at(number, loses)
    with pytest.raises(StoreError, match="is away"):
        store.flush()
    assert other.get("a") == b"1"
    assert other.get("b") == (None if (number, loses) == (1, "request") else b"2"), "what the server has got"
    assert other.tail("runs", 10) == ([b"3", b"2", b"1"] if (number, loses) == (2, "answer") else [b"1"])
    assert store.get("b") == b"2"
    clock.advance(1)
    store.append("runs", b"4", 10)
    store.flush()
    assert other.get("b") == b"2"
    assert other.tail("runs", 10) == [b"4", b"3", b"2", b"1"]


@pytest.mark.servers
def test_a_lease_whose_answer_was_lost_is_its_owners(
    redis_url: str, opened: Opener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opened(redis_url), opened(redis_url)
    assert store.lease("warm", "me", 60)
    Line(monkeypatch).loses_at(1, "answer")
    with pytest.raises(StoreError, match="is away"):
        store.lease("a", "me", 60)
    assert not other.lease("a", "you", 60)
    clock.advance(1)
    assert store.lease("a", "me", 60)
    store.release("a", "me")
    assert other.lease("a", "you", 60)


# without a server


@pytest.mark.parametrize(
    "rest",
    [
        "host:port",
        "host:123456/0",
        "host/db",
        "host?socket_timeout=soon",
        "host?protocol=9",
        "host?no_such_option=1",
        "host?credential_provider=1",
        "[::1",
    ],
)
def test_a_wrong_url_is_refused_without_the_password(rest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(f"redis://me:hunter2@{rest}", FakeClock())
    assert str(caught.value).startswith(
        "store is not the URL of a Redis server such as redis://:password@host:6379/0: "
    )
    assert "hunter2" not in str(caught.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError) as caught:
        open_store("redis://:hunter2@host", FakeClock())
    assert str(caught.value) == "a store in Redis needs the extra: pip install 'resilient-scan[redis]'"


def test_an_unreachable_server_fails_at_once_and_is_tried_again_after_a_second(
    nobody: str, opened: Opener, clock: FakeClock
) -> None:
    store = opened(nobody)
    with pytest.raises(StoreError, match=r"^the store redis://\*\*\*@127\.0\.0\.1:\d+ is away: ") as caught:
        store.get("a")
    assert "hunter2" not in str(caught.value)
    calls: list[int] = []

    def fetch(**_arguments: Any) -> list[Any]:
        calls.append(1)
        return [b"0", b"0", [None]]

    store._scripts["fetch"] = fetch  # type: ignore[attr-defined]
    for _ in range(1000):
        with pytest.raises(StoreError, match="is away"):
            store.get("a")
    assert calls == []
    clock.advance(0.99)
    with pytest.raises(StoreError, match="is away"):
        store.get("a")
    clock.advance(0.01)
    assert store.get("a") is None
    assert calls == [1]


def timed(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(StoreError):
        call()
    return time.monotonic() - began


OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "now": lambda store: store.now(),
    "update": lambda store: store.update("a", keep(b"1")),
    "read": lambda store: store.read(""),
    "get": lambda store: store.get("a"),
    "delete": lambda store: store.delete("a"),
    "lease": lambda store: store.lease("a", "me", 1),
    "release": lambda store: store.release("a", "me"),
    "audit": lambda store: store.append("audit", b"1", 1),
    "tail": lambda store: store.tail("runs", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_server_that_never_answers_is_not_waited_for(operation: str, silent: str, opened: Opener) -> None:
    store = opened(f"{silent}?socket_timeout=30&socket_connect_timeout=30")
    assert BOUND * 0.9 <= timed(lambda: OPERATIONS[operation](store)) <= BOUND + SLACK
    assert timed(lambda: [OPERATIONS[operation](store) for _ in range(100)]) <= 20 * BOUND, "one of 100 waits"


def test_a_server_that_never_answers_holds_nobody_longer_than_the_first(silent: str, opened: Opener) -> None:
    store = opened(silent)
    took: list[float] = []
    threads = [
        threading.Thread(target=lambda: took.append(timed(lambda: store.update("a", keep(b"1"))))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(took) <= BOUND + SLACK


def test_a_wire_that_swallows_everything_is_not_waited_for(opened: Opener) -> None:
    """A listener whose queue is full drops what would connect: the connect timeout."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the queue
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        store = opened(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        assert timed(lambda: store.get("a")) <= 2 * BOUND + SLACK


def test_what_is_kept_back_is_found_while_the_server_is_away(nobody: str, opened: Opener) -> None:
    store = opened(nobody)
    store.put("v", b"1", 60)
    store.append("runs", b"2", 10)
    with pytest.raises(StoreError):
        store.flush()
    assert store.get("v") == b"1"
    with pytest.raises(StoreError):
        store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.get("v")
    store.close()


# with a server


@pytest.mark.servers
def test_killed_and_back(own_redis: RedisServer, opened: Opener, clock: FakeClock) -> None:
    store = opened(own_redis.url)
    store.update("a", keep(b"1"))
    own_redis.kill()
    store.put("v", b"2", 60)
    store.append("runs", b"3", 10)
    with pytest.raises(StoreError, match="is away"):
        store.update("a", keep(b"2"))
    with pytest.raises(StoreError, match="is away"):
        store.flush()
    own_redis.start()
    with pytest.raises(StoreError, match="is away"):
        store.read("")
    clock.advance(1)
    assert store.update("a", keep(b"3")) is None, "it has forgotten everything, scripts included"
    store.flush()
    other = opened(own_redis.url)
    assert (other.read(""), other.get("v"), other.tail("runs", 9)) == ({"a": b"3"}, b"2", [b"3"])


@pytest.mark.servers
def test_restarted_between_two_calls_is_not_noticed(own_redis: RedisServer, opened: Opener) -> None:
    store = opened(own_redis.url)
    store.update("a", keep(b"1"))
    own_redis.kill()
    own_redis.start()
    assert store.update("a", keep(b"2")) is None


@pytest.mark.servers
def test_everything_is_under_our_prefix(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    store.update("breaker/a", keep(b"1"))
    store.put("cache/a", b"1", 60)
    store.lease("flight/a", "me", 60)
    store.append("audit", b"1", 10)
    store.flush()
    keys = {key.decode() for key in command(redis_url, "KEYS", "*")}
    assert keys == {
        "resilient_scan:documents",
        "resilient_scan:answer:cache/a",
        "resilient_scan:lease:flight/a",
        "resilient_scan:log:audit",
    }
    assert 0 < command(redis_url, "PTTL", "resilient_scan:answer:cache/a") <= 60_000
    assert 0 < command(redis_url, "PTTL", "resilient_scan:lease:flight/a") <= 60_000


@pytest.mark.servers
def test_by_a_unix_socket(redis_url: str, redis_server: RedisServer, opened: Opener) -> None:
    opened(f"unix://{redis_server.socket}").update("a", keep(b"1"))
    assert opened(redis_url).read("") == {"a": b"1"}


@pytest.mark.servers
def test_the_servers_time_is_returned(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    seconds, microseconds = command(redis_url, "TIME")
    assert 0 <= store.now() - (seconds + microseconds / 1e6) < 5
    assert store.update("a", lambda old, now: (old, now)) == pytest.approx(store.now(), abs=5)


@pytest.mark.servers
@pytest.mark.parametrize("word", ["decode_responses=true", "protocol=3", "db=3", "retry_on_timeout=true"])
def test_what_the_url_says_beside_does_no_harm(word: str, redis_url: str, opened: Opener) -> None:
    store = opened(f"{redis_url.rpartition('/')[0]}?{word}")
    store.update("a", keep(b"\xff"))
    store.put("v", b"\xff", 60)
    store.append("audit", b"\xff", 3)
    store.flush()
    assert (store.read("a"), store.get("v"), store.tail("audit", 1)) == ({"a": b"\xff"}, b"\xff", [b"\xff"])
    assert store.now() > 1e9


@pytest.mark.servers
def test_a_change_is_made_again_where_another_was_faster(redis_url: str, opened: Opener) -> None:
    one, two = opened(redis_url), opened(redis_url)
    seen: list[bytes | None] = []

    def slow(old: bytes | None, _now: float) -> tuple[bytes | None, str]:
        seen.append(old)
        if len(seen) < 4:
            two.update("a", keep(None if len(seen) == 2 else b"%d" % len(seen)))
        return b"mine", "done"

    assert one.update("a", slow) == "done"
    assert seen == [None, b"1", None, b"3"]
    assert two.read("") == {"a": b"mine"}


@pytest.mark.servers
def test_an_update_that_is_never_the_first_is_given_up(redis_url: str, opened: Opener) -> None:
    one, two = opened(redis_url), opened(redis_url)
    count = iter(range(10_000))

    def outrun(_old: bytes | None, _now: float) -> tuple[bytes | None, None]:
        two.update("a", keep(b"%d" % next(count)))
        return b"mine", None

    with pytest.raises(StoreError, match="is busy: 200 times another process was faster"):
        one.update("a", outrun)


@pytest.mark.servers
def test_many_values_are_written_in_parts(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    for number in range(450):
        store.put(f"{number}", bytes(10_000 if number < 300 else 1), 60)
    store.put("over", b"1", -1)
    store.flush()
    assert command(redis_url, "DBSIZE") == 450


@pytest.mark.servers
@pytest.mark.parametrize("seconds", [1e300, float("inf"), 1e-9])
def test_any_time_is_a_time(seconds: float, redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    assert store.lease("a", "me", seconds)
    store.put("v", b"1", seconds)
    store.flush()


@pytest.mark.servers
def test_a_wrong_password_is_reported_without_it(tmp_path: Path, opened: Opener) -> None:
    server = RedisServer(binary("redis-server"), tmp_path, "--requirepass", "hunter1")
    try:
        for auth in (":hunter2@", "", "somebody:hunter2@"):
            with pytest.raises(StoreError) as caught:
                opened(server.url.replace("redis://", f"redis://{auth}")).read("")
            shown = server.url.replace("redis://", "redis://***@" if auth else "redis://")
            assert str(caught.value) == f"the store {shown} refuses the user name or the password"
        store = opened(server.url.replace("redis://", "redis://:hunter1@"))
        store.update("a", keep(b"1"))
        assert "hunter1" not in store.url
    finally:
        server.kill()


@pytest.mark.servers
def test_a_user_without_permission_is_reported(tmp_path: Path, opened: Opener) -> None:
    server = RedisServer(binary("redis-server"), tmp_path)
    try:
        command(server.url, "ACL", "SETUSER", "scan", "on", ">hunter2", "~other:*", "+@all")
        with pytest.raises(StoreError, match="does not permit its user what is needed: ") as caught:
            opened(server.url.replace("redis://", "redis://scan:hunter2@")).update("a", keep(b"1"))
        assert "hunter2" not in str(caught.value)
    finally:
        server.kill()


@pytest.mark.servers
def test_a_full_server_is_reported_and_can_be_read(tmp_path: Path, opened: Opener) -> None:
    server = RedisServer(binary("redis-server"), tmp_path)
    try:
        store = opened(server.url)
        store.update("a", keep(b"1"))
        store.put("v", bytes(1000), 60)
        command(server.url, "CONFIG", "SET", "maxmemory", "1")
        for operation in (lambda: store.update("a", keep(b"2")), store.flush):
            with pytest.raises(StoreError, match=r"cannot be written: its memory is full$"):
                operation()
        assert store.read("") == {"a": b"1"}
        command(server.url, "CONFIG", "SET", "maxmemory", "100mb")
        store.flush()
        assert opened(server.url).get("v") == bytes(1000)
    finally:
        server.kill()


@pytest.mark.servers
def test_a_key_of_another_kind_is_reported(redis_url: str, opened: Opener) -> None:
    command(redis_url, "SET", "resilient_scan:documents", "text")
    with pytest.raises(StoreError, match="cannot be used: under a key that begins with resilient_scan: is something"):
        opened(redis_url).read("")


@pytest.mark.servers
def test_it_leaves_nothing_open(redis_url: str) -> None:
    """Neither closed nor forgotten stores: an open socket would warn."""
    code = """
import sys, threading
from resilient_scan.stores import open_store
from resilient_scan.clock import SystemClock
for close in (True, False):
    store = open_store(sys.argv[1], SystemClock())
    threads = [threading.Thread(target=lambda: store.read("")) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if close: store.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, redis_url],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stderr) == (0, "")


# what the server drops when its memory is full


@pytest.fixture
def policy(redis_url: str) -> Iterator[Callable[..., None]]:
    """Return a function that sets the server's policy, and how much memory it may take."""

    def change(name: str, most: str = "256mb") -> None:
        command(redis_url, "CONFIG", "SET", "maxmemory-policy", name)
        command(redis_url, "CONFIG", "SET", "maxmemory", most)

    yield change
    change("noeviction")


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "most", "drops"),
    [
        ("noeviction", "256mb", False),
        ("volatile-lru", "256mb", False),
        ("allkeys-lru", "256mb", True),
        ("allkeys-random", "256mb", True),
        ("allkeys-lru", "0", False),
    ],
)
def test_a_check_warns_of_a_server_that_may_drop_orders(
    redis_url: str, policy: Callable[..., None], name: str, most: str, drops: bool, tmp_path: Path
) -> None:
    policy(name, most)
    config = tmp_path / "scan.toml"
    config.write_text(f"[store]\nurl = '{redis_url}'\nspace = 'blue'")
    checked = check(config)
    assert checked.errors == ()
    warning = (
        f"the store {redis_url} may drop manual overrides, breakers and the audit trail when its memory is full "
        f"(its maxmemory-policy is {name}); set it to noeviction or to volatile-lru"
    )
    assert checked.warnings == ((warning,) if drops else ())


@pytest.mark.servers
@pytest.mark.parametrize(("forbidden", "known"), [("-config", True), ("-info", False)])
def test_the_policy_is_known_where_the_servers_options_are_not_shown(
    redis_url: str, policy: Callable[..., None], forbidden: str, known: bool
) -> None:
    policy("allkeys-lru")
    command(redis_url, "ACL", "SETUSER", "limited", "on", ">hunter2", "~*", "+@all", forbidden)
    said = eviction(redis_url.replace("redis://", "redis://limited:hunter2@"))
    assert bool(said) is known
    assert "hunter2" not in said
    command(redis_url, "ACL", "DELUSER", "limited")


def test_a_server_that_is_away_has_no_policy(nobody: str) -> None:
    assert eviction(nobody) == eviction("redis://h?no_such=1") == ""
