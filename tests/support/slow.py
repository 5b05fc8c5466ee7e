"""A network that is slow: a proxy on loopback that holds back everything that passes, both ways, in order."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from random import Random
from typing import Self

CHUNK = 65_536


class SlowLink:
    """A port that leads to another one of this machine, slowly.

    Args:
        delay: seconds by which each direction is late; it may be changed while bytes pass.
        jitter: seconds that are added at random.

    Attributes:
        port: where it listens.
        target: the port to which it leads; it may be set later.
    """

    def __init__(self, delay: float = 0.0, jitter: float = 0.0, target: int = 0) -> None:
        self.delay = delay
        self.jitter = jitter
        self.target = target
        self._random = Random(23)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-link", daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.get_running_loop().create_task(self._deliver(late, sink))
        self._tasks.add(delivery)
        delivery.add_done_callback(self._tasks.discard)
        data = b"first"
        while data:
            data = b""
            with suppress(OSError):
                data = await source.read(CHUNK)
            due = asyncio.get_running_loop().time() + self.delay + self._random.uniform(0, self.jitter)
            late.put_nowait((due, data))

    async def _deliver(self, late: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        try:
            while True:
                due, data = await late.get()
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                if not data:
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            return
        finally:
            sink.close()
