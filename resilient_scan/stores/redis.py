"""State in Redis or Valkey: shared by all that can reach the server, as durable as the server is set up to be.

Nothing here waits for a server for more than 250 ms, neither for a connection nor for an answer, and for about a second
if the answer drips in. A server that does not answer in that time is away: for a second all calls fail at once, then
one caller tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.stores import Change, split_space, without_password
from resilient_scan.stores.batching import BatchingStore, Records, Value, Writes, check_size, to_bytes, to_text
from resilient_scan.stores.health import Backoff, CallWatchdog, allowed_wait, waits_are_unlimited

T = TypeVar("T")
PREFIX = "resilient_scan:"
DOCUMENTS = f"{PREFIX}documents"  # one hash, so that all of them can be read at one instant
READ_TIMEOUT = 0.25  # seconds, also to connect
CALL_TIMEOUT = 1.0  # seconds, of a call whose every read ends in time
UPDATE_QUEUE_TIMEOUT = 2.0  # seconds for which the threads of a process wait for each other while the server answers
MAX_TRIES = 200  # of one update; each that fails is the success of another process
MAX_LIFETIME = 10 * 365 * 86400.0  # seconds, of a value and a lease
CHUNK_VALUES, CHUNK_BYTES = 200, 1024 * 1024  # sent at once, so that the answer comes in time

OPTIONS: Final = """db username password client_name protocol health_check_interval max_connections socket_keepalive
    socket_timeout socket_connect_timeout retry_on_timeout decode_responses ssl_ca_certs ssl_ca_path ssl_ca_data
    ssl_cert_reqs ssl_certfile ssl_keyfile ssl_password ssl_check_hostname"""
"""What may follow the `?` of a URL besides `space`; all else that the library takes are objects."""

_LOOK = """
local time = redis.call('TIME')
return {redis.call('HGET', KEYS[1], ARGV[1]), time[1], time[2]}
"""
# Compare and set in one step: if the document is not what the change started from, return what it is now.
_SWAP = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
local expected = ARGV[2] == '1' and ARGV[3] or false
if there ~= expected then
  local time = redis.call('TIME')
  return {there, time[1], time[2]}
end
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[5]) else redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""
_READ = """
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #ARGV[1]) == ARGV[1] then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  end
end
return found
"""
_EXCHANGE = """
local dead, held = {}, {}
for i = 4, #ARGV do dead[ARGV[i]] = true end
for i = 1, tonumber(ARGV[3]) do
  local holder = redis.call('GET', KEYS[i])
  if holder and holder ~= ARGV[1] and not dead[holder] then
    held[#held + 1] = i
    held[#held + 1] = holder
  else
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
  end
end
for i = ARGV[3] + 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('DEL', KEYS[i]) end
end
return held
"""


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
        names = {"look": _LOOK, "swap": _SWAP, "read": _READ, "exchange": _EXCHANGE}
        self._watchdog = CallWatchdog(self._client.connection_pool.disconnect, CALL_TIMEOUT)
        self._scripts = {name: self._client.register_script(text) for name, text in names.items()}

    def now(self) -> float:
        """Return the server's wall time."""
        now: float = self._call(lambda client: _instant(*client.time()))
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
        keys = [_key("lease", key) for key in (*take, *give_back)]
        arguments = (to_bytes(owner), _milliseconds(seconds), len(take), *map(to_bytes, dead))
        held: dict[int, str] = self._run("exchange", keys, *arguments, read=_holders)
        return {take[place - 1]: holder for place, holder in held.items()}

    def memory(self) -> dict[str, Any]:
        """Return what the server says of its memory; also where `CONFIG` is forbidden, as managed servers do."""
        facts: dict[str, Any] = self._call(lambda client: dict(client.info("memory")))
        return facts

    def _reconnect(self) -> None:
        self._backoff = Backoff(self._clock)
        self._updating = threading.Lock()
        self._connect()

    def _fetch(self, key: str) -> bytes | None:
        data: bytes | None = self._call(lambda client: _data(client.get(_key("answer", key))))
        return data

    def _remove(self, key: str) -> None:
        self._call(lambda client: client.delete(_key("answer", key)))

    def _write(self, values: Writes, records: Records) -> None:
        """Write the values, which may be written twice if this fails, and then the records, in one transaction."""
        for chunk in _chunks(values):
            self._call(lambda client, chunk=chunk: self._write_values(client, chunk))  # type: ignore[misc]
        if records:
            self._call(lambda client: _write_records(client, records))

    def _write_values(self, client: Any, values: Writes) -> None:
        now = self._clock.monotonic()
        with client.pipeline(transaction=False) as pipeline:
            for key, value in values:
                if value.until <= now:
                    pipeline.delete(_key("answer", key))
                else:
                    pipeline.set(_key("answer", key), value.data, px=_milliseconds(value.until - now))
            pipeline.execute()

    def _newest(self, log: str, limit: int) -> list[bytes]:
        newest: list[bytes] = self._call(lambda client: _records(client.lrange(_key("log", log), -limit, -1)))
        return newest

    def _disconnect(self) -> None:
        self._watchdog.stop()
        self._client.connection_pool.disconnect()

    def _run(self, script: str, keys: Sequence[str | bytes], *arguments: Any, read: Callable[[Any], Any]) -> Any:
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


def _swapped(answer: Any) -> tuple[bytes | None, float] | None:
    return None if answer == 1 else _seen(answer)


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


def _write_records(client: Any, records: Records) -> None:
    with client.pipeline(transaction=True) as pipeline:
        for record in records:
            pipeline.rpush(_key("log", record.log), record.data)
        for log, keep in {record.log: record.keep for record in records}.items():
            pipeline.ltrim(_key("log", log), *((-keep, -1) if keep > 0 else (1, 0)))
        pipeline.execute()


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
