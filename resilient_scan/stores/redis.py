"""State in Redis or Valkey: shared by all that can reach the server, as durable as the server is set up to be.

Nothing here waits for a server for more than 250 ms, neither for a connection nor for an answer, and for about a second
if the answer drips in. A server that does not answer in that time is away: for a second all calls fail at once, then
one caller tries again.

What a run needs goes in few round trips: many answers are read, and many are written, by one script each. A connection
may break when the server has carried out a script and before its answer is here. Then it is sent again: values are
written a second time, which changes nothing, and records are recognized by their numbers.
"""

from __future__ import annotations

import hashlib
import math
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.stores import Change, split_space, without_password
from resilient_scan.stores.batching import BatchingStore, Records, Value, Writes, check_size, to_bytes, to_text
from resilient_scan.stores.groups import MAX_BLOCK_BYTES
from resilient_scan.stores.health import Backoff, CallWatchdog, allowed_wait, waits_are_unlimited
from resilient_scan.stores.redis_scripts import SCRIPTS

T = TypeVar("T")
PREFIX = "resilient_scan:"
DOCUMENTS = f"{PREFIX}documents"  # one hash, so that all of them can be read at one instant
READ_TIMEOUT = 0.25  # seconds, also to connect
CALL_TIMEOUT = 1.0  # seconds, of a call whose every read ends in time
UPDATE_QUEUE_TIMEOUT = 2.0  # seconds for which the threads of a process wait for each other while the server answers
MAX_TRIES = 200  # of one update; each that fails is the success of another process
MAX_LIFETIME = 10 * 365 * 86400.0  # seconds, of a value and a lease
CHUNK_VALUES, CHUNK_BYTES = 1_000, 1024 * 1024  # sent or asked for at once, so that the answer comes in time
TIME_TRUSTED = 1.0  # seconds for which the server's time is known from its last answer
SECONDS_OF_DAY = 86_400.0
NUMBER_KEPT = 3600.0  # seconds for which the server knows which records a process has written

OPTIONS: Final = """db username password client_name protocol health_check_interval max_connections socket_keepalive
    socket_timeout socket_connect_timeout retry_on_timeout decode_responses ssl_ca_certs ssl_ca_path ssl_ca_data
    ssl_cert_reqs ssl_certfile ssl_keyfile ssl_password ssl_check_hostname"""
"""What may follow the `?` of a URL besides `space`; all else that the library takes are objects."""


class RedisStore(BatchingStore):
    """Documents, values, leases and logs under keys that begin with `resilient_scan:`.

    Args:
        url: `redis://user:password@host:port/db`, `rediss://...` or `unix://path`.
        clock: the time of what is held back; everything else has the server's time.

    Raises:
        ConfigError: the URL is wrong, or the extra `redis` is not installed.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._backoff = Backoff(clock)
        self._updating = threading.Lock()
        self._address = url
        self._connect()
        super().__init__(without_password(url), clock)

    def _connect(self) -> None:
        self._client, self._errors, self._secrets = _client(self._address)
        self._time = 0.0, -math.inf  # by how much the server's clock is ahead of the monotonic one, and since when
        self._number_key = f"{PREFIX}written:{uuid.uuid4().hex}"
        self._watchdog = CallWatchdog(self._client.connection_pool.disconnect, CALL_TIMEOUT)
        self._scripts = {name: self._client.register_script(text) for name, text in SCRIPTS.items()}

    def now(self) -> float:
        """Return the server's wall time, without asking for it again within a second."""
        self._check_open()
        ahead, known_at = self._time
        here = self._clock.monotonic()
        if here - known_at < TIME_TRUSTED:
            return here + ahead
        return self._learn_time(self._call(lambda client: _instant(*client.time())))

    def _learn_time(self, now: float) -> float:
        here = self._clock.monotonic()
        self._time = now - here, here
        return now

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document: read it, change it, write it if no other process has written in between, else retry."""
        self._check_open()
        # Eight threads that update one document would make each other's compare-and-set fail, and retry. So they queue
        # here. If the server does not answer, the first of them finds out, and the others fail at once (`_backoff`).
        if not self._updating.acquire(timeout=allowed_wait(UPDATE_QUEUE_TIMEOUT)):
            raise StoreError(f"the store {self.url} is busy: other threads of this process wait for it")
        try:
            return self._update(to_bytes(key), change)
        finally:
            self._updating.release()

    def _update(self, name: bytes, change: Change[T]) -> T:
        there = self._run("look", (DOCUMENTS,), name, read=_seen)
        for _ in range(MAX_TRIES):
            old, now = there
            self._learn_time(now)
            new, result = change(old, now)
            if new is old:
                return result
            check_size(new or b"")
            expected = (b"0", b"") if old is None else (b"1", old)
            wanted = (b"0", b"") if new is None else (b"1", new)
            there = self._run("swap", (DOCUMENTS,), name, *expected, *wanted, read=_swapped)
            if there is None:
                return result
        raise StoreError(f"the store {self.url} is busy: {MAX_TRIES} times another process was faster")

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin with `prefix`."""
        found: dict[str, bytes] = self._run("read", (DOCUMENTS,), to_bytes(prefix), read=_documents)
        return found

    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        """Take, renew and give back leases in one step; return the owners of those that others hold."""
        return self._exchange(take, owner, seconds, give_back, dead, ())[0]

    def exchange_and_fetch(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], names: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, bytes] | None]:
        """Take and give back leases and then read values, in one step."""
        ours, rest = self._unwritten(names)
        held, found = self._exchange(take, owner, seconds, give_back, (), rest)
        return held, ours | found

    def _exchange(
        self,
        take: Sequence[str],
        owner: str,
        seconds: float,
        give_back: Sequence[str],
        dead: Collection[str],
        names: Sequence[str],
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        leases = [_key("lease", key) for key in (*take, *give_back)]
        first = names[:CHUNK_VALUES]
        keys = [*leases, *(_key("answer", name) for name in first)]
        arguments = (to_bytes(owner), _milliseconds(seconds), len(take), len(leases), CHUNK_BYTES)
        answer = self._run("exchange", keys, *arguments, *map(to_bytes, dead), read=_exchanged)
        held, (now, values) = answer
        self._learn_time(now)
        found = {name: data for name, data in zip(first, values, strict=False) if data is not None}
        found |= self._fetch(names[len(values) :])
        return {take[place - 1]: holder for place, holder in held.items()}, found

    def memory(self) -> dict[str, Any]:
        """Return what the server says of its memory; also where `CONFIG` is forbidden, as managed servers do."""
        facts: dict[str, Any] = self._call(lambda client: dict(client.info("memory")))
        return facts

    def _reconnect(self) -> None:
        self._backoff = Backoff(self._clock)
        self._updating = threading.Lock()
        self._connect()

    def _fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        asked = 0
        while asked < len(keys):
            group = keys[asked : asked + CHUNK_VALUES]
            names = [_key("answer", key) for key in group]
            now, values = self._run("fetch", names, CHUNK_BYTES, read=_fetched)
            if not values:
                raise StoreError(f"the store {self.url} does not answer as a Redis server does")
            self._learn_time(now)
            found.update((key, data) for key, data in zip(group, values, strict=False) if data is not None)
            asked += len(values)
        return found

    def _remove(self, key: str) -> None:
        self._call(lambda client: client.delete(_key("answer", key)))

    def _write(self, values: Writes, records: Records) -> None:
        """Write the values, which may be written twice if this fails, and then the records, in one transaction."""
        for chunk in _chunks(values):
            self._write_values(chunk)
        if records:
            self._write_records(records)

    def _write_values(self, values: Writes) -> None:
        now = self._clock.monotonic()
        arguments: list[Any] = []
        for _, value in values:
            arguments += (value.data, _milliseconds(value.until - now)) if value.until > now else (b"", 0)
        self._run("put", [_key("answer", key) for key, _ in values], *arguments, read=_nothing)

    def _write_records(self, records: Records) -> None:
        keeps = {record.log: record.keep for _, record in records}
        place = {log: number for number, log in enumerate(keeps, 2)}
        arguments: list[Any] = [len(records), _milliseconds(NUMBER_KEPT)]
        for number, record in records:
            arguments += number, place[record.log], record.data
        keys = [self._number_key, *(_key("log", log) for log in keeps)]
        self._run("append", keys, *arguments, *keeps.values(), read=_nothing)

    def _newest(self, log: str, limit: int) -> list[bytes]:
        newest: list[bytes] = self._call(lambda client: _records(client.lrange(_key("log", log), -limit, -1)))
        return newest

    def oldest(self, log: str, limit: int, /) -> list[bytes]:
        """Return the oldest written records of a log, oldest first."""
        oldest: list[bytes] = self._call(lambda client: _records(client.lrange(_key("log", log), 0, limit - 1)))
        return oldest[::-1]

    def blocks(self, names: Sequence[str], since: int, most: int, /) -> dict[str, dict[int, bytes]]:
        """Return blocks by name and day."""
        found: dict[str, dict[int, bytes]] = {}
        while len(found) < len(names):
            group = names[len(found) : len(found) + CHUNK_VALUES]
            keys = [_key("blocks", name) for name in group]
            answer = self._run("blocks", keys, CHUNK_BYTES, since, most, read=_blocks)
            if not answer:
                raise StoreError(f"the store {self.url} does not answer as a Redis server does")
            found.update(zip(group, answer, strict=False))
        return found

    def fold(
        self, log: str, records: Sequence[bytes], blocks: Mapping[str, Mapping[int, bytes]], since: int, /
    ) -> bool:
        """Write blocks in place of the oldest records of a log, in one step."""
        if not records:
            return False
        ends = [hashlib.sha1(record, usedforsecurity=False).hexdigest() for record in (records[0], records[-1])]
        kept = self.now() - since * SECONDS_OF_DAY + SECONDS_OF_DAY
        arguments: list[Any] = [len(records), *ends, since, _milliseconds(kept), MAX_BLOCK_BYTES]
        for place, days in enumerate(blocks.values(), 2):
            for day, data in days.items():
                arguments += place, day, data
        keys = [_key("log", log), *(_key("blocks", name) for name in blocks)]
        return bool(self._run("fold", keys, *arguments, read=int))

    def _disconnect(self) -> None:
        self._watchdog.stop()
        self._client.connection_pool.disconnect()

    def _run(self, script: str, keys: Sequence[Any], *arguments: Any, read: Callable[[Any], Any]) -> Any:
        return self._call(lambda client: read(self._scripts[script](keys=keys, args=arguments, client=client)))

    def _call(self, ask: Callable[[Any], Any]) -> Any:
        self._check_open()
        if not waits_are_unlimited():
            self._backoff.check()
        late = False
        self._watchdog.begin()
        try:
            try:
                answer = ask(self._client)
            finally:
                late = self._watchdog.end()
        except Exception as error:  # a server that does not speak Redis confuses the library, and us, in any way
            raise self._meaning(self._errors.TimeoutError() if late else error) from error
        self._backoff.succeeded()
        return answer

    def _meaning(self, error: Exception) -> StoreError:
        """Return what an error means, and begin a backoff if it means that the server is away."""
        errors, text = self._errors, self._words(error)
        if not isinstance(error, errors.RedisError | OSError):
            return self._backoff.failed(f"the store {self.url} does not answer as a Redis server does")
        match error:
            case errors.AuthenticationError() | errors.AuthorizationError():
                return self._backoff.failed(f"the store {self.url} refuses the user name or the password")
            case errors.NoPermissionError():
                return StoreError(f"the store {self.url} does not permit its user what is needed: {text}")
            case errors.TimeoutError():
                return self._backoff.failed(
                    f"the store {self.url} is away: no answer within {READ_TIMEOUT * 1000:g} ms"
                )
            case errors.ConnectionError() | OSError():
                return self._backoff.failed(f"the store {self.url} is away: {text}")
            case errors.OutOfMemoryError():
                return StoreError(f"the store {self.url} cannot be written: its memory is full")
            case errors.ResponseError() if text.startswith(("MOVED ", "ASK ")) or isinstance(error, errors.AskError):
                return StoreError(
                    f"the store {self.url} is a part of a cluster, which is not supported: name one server"
                )
        return StoreError(f"the store {self.url} cannot be used: {text}")

    def _words(self, error: Exception) -> str:
        """Return what an error says, without secrets: some servers repeat what they were sent."""
        text = str(error).partition(" script: ")[0]
        if text.startswith("WRONGTYPE"):
            return f"under a key that begins with {PREFIX} is something that is not ours"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _instant(seconds: Any, microseconds: Any) -> float:
    return int(seconds) + int(microseconds) / 1e6


def _data(answer: Any) -> bytes | None:
    if answer is not None and not isinstance(answer, bytes):
        raise TypeError(type(answer))
    return answer


def _records(answer: Any) -> list[bytes]:
    """Return the records of a log, newest first."""
    if not isinstance(answer, list) or not all(isinstance(record, bytes) for record in answer):
        raise TypeError(type(answer))
    return answer[::-1]


def _seen(answer: Any) -> tuple[bytes | None, float]:
    """Return a document as it is, and the server's time."""
    return _data(answer[0]), _instant(*answer[1:])


def _fetched(answer: Any) -> tuple[float, list[bytes | None]]:
    """Return the server's time, and as many of the values as it has sent at once."""
    seconds, microseconds, values = answer
    return _instant(seconds, microseconds), [_data(value) for value in values]


def _nothing(answer: Any) -> None:
    """Check that a script that returns nothing has run."""
    if answer is not None:
        raise TypeError(type(answer))


def _swapped(answer: Any) -> tuple[bytes | None, float] | None:
    return None if answer == 1 else _seen(answer)


def _exchanged(answer: Any) -> tuple[dict[int, str], tuple[float, list[bytes | None]]]:
    """Return who holds which of the leases, and what `_fetched` does."""
    held, values = answer
    return _holders(held), _fetched(values)


def _blocks(answer: Any) -> list[dict[int, bytes]]:
    """Return the blocks of as many names as the server has sent at once, by day."""
    return [{int(day): _bytes(data) for day, data in zip(days[::2], days[1::2], strict=True)} for days in answer]


def _bytes(answer: Any) -> bytes:
    if not isinstance(answer, bytes):
        raise TypeError(type(answer))
    return answer


def _holders(answer: Any) -> dict[int, str]:
    return {int(place): to_text(holder) for place, holder in zip(answer[::2], answer[1::2], strict=True)}


def _documents(answer: Any) -> dict[str, bytes]:
    return {to_text(key): data for key, data in zip(answer[::2], answer[1::2], strict=True)}


def fault_of(url: str) -> str:
    """Say what is wrong with a URL, without showing it; an empty text means nothing is.

    Raises:
        ConfigError: the extra `redis` is not installed.
    """
    why = _why_not(url)
    if not why:
        redis = _library()
        try:
            pool = redis.ConnectionPool.from_url(url)
            pool.connection_class(**pool.connection_kwargs)  # connects nowhere yet
        except (ValueError, TypeError, redis.exceptions.RedisError) as error:
            why = str(error)
    return f"is not the URL of a Redis server such as redis://:password@host:6379/0: {why}" if why else ""


def eviction(url: str) -> str:
    """Say what the server drops of ours when its memory is full; an empty text: nothing that lasts, or nobody knows.

    Under `volatile-*` it drops answers and leases, which is as if they had expired.
    """
    try:
        store = RedisStore(split_space(url).url, SystemClock())
        with closing(store):
            facts = store.memory()
    except (StoreError, ConfigError):  # a run reports it
        return ""
    policy = str(facts.get("maxmemory_policy", ""))
    if not policy.startswith("allkeys") or not facts.get("maxmemory"):
        return ""
    return (
        f"the store {store.url} may drop manual overrides, breakers and the audit trail when its memory is full "
        f"(its maxmemory-policy is {policy}); set it to noeviction or to volatile-lru"
    )


def _why_not(url: str) -> str:
    """Say what the library would overlook, or report with a secret in its sentence."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises
    except ValueError:
        return "host and port cannot be read; what a password has of / ? # @ is written %2F %3F %23 %40"
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        return "after the host comes the number of a database"
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - set(OPTIONS.split()))
    return (
        f"there is no option {unknown[0]!r:.40}; those there are: {', '.join(OPTIONS.split())}, space"
        if unknown
        else ""
    )


def _library() -> Any:
    try:
        import redis  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("a store in Redis needs the extra: pip install 'resilient-scan[redis]'") from None
    return redis


def _client(url: str) -> tuple[Any, Any, list[str]]:
    """Return a client with our timeouts, its library's errors, and the secrets in the URL."""
    redis = _library()
    if fault := fault_of(url):
        raise ConfigError(f"store {fault}")
    pool = redis.ConnectionPool.from_url(url)
    pool.connection_kwargs.update(  # whatever the URL says about these
        socket_timeout=READ_TIMEOUT,
        socket_connect_timeout=READ_TIMEOUT,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        retry_on_timeout=False,
        decode_responses=False,
    )
    secrets = [str(secret) for name, secret in pool.connection_kwargs.items() if "password" in name and secret]
    return redis.Redis(connection_pool=pool), redis.exceptions, secrets


def _chunks(values: Writes) -> Iterator[list[tuple[str, Value]]]:
    chunk: list[tuple[str, Value]] = []
    size = 0
    for key, value in values:
        if chunk and (len(chunk) == CHUNK_VALUES or size + len(value.data) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += len(value.data)
    if chunk:
        yield chunk


def _key(kind: str, name: str) -> bytes:
    return to_bytes(f"{PREFIX}{kind}:{name}")


def _milliseconds(seconds: float) -> int:
    return max(1, int(min(seconds, MAX_LIFETIME) * 1000))
