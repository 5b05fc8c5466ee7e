"""Child processes that do what a test sends them, and looks at processes from the outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from resilient_scan.engines.process.children import Child, Children
from tests.support.waiting import eventually

SERVE = "tests.support.children:serve"


def serve(connection: Connection) -> None:
    """Execute what comes, and send `answer` back."""
    while True:
        try:
            source = connection.recv()
        except EOFError:
            return
        scope: dict[str, Any] = {}
        exec(source, scope)
        connection.send(scope.get("answer"))


def broken(connection: Connection) -> None:
    """End before anything is served."""
    os._exit(3)


def ask(child: Child, source: str) -> Any:
    """Have a child execute something, and return its `answer`."""
    child.connection.send(source)
    return child.connection.recv()


def take(children: Children) -> Child:
    """Take a child, however long it takes."""
    return children.take(lambda: False)


class Lending(Children):
    """Children that know who is out, so that a test need not give them back at its end."""

    def take(self, over: Callable[[], bool]) -> Child:
        """Take a child."""
        self.out: list[Child] = [*getattr(self, "out", ()), child := super().take(over)]
        return child

    def collect(self) -> None:
        """Give back what is out."""
        for child in getattr(self, "out", ()):
            if child.taken:
                self.give_back(child)

    def processes(self) -> set[int]:
        """Return the numbers of the children, of the fork server, and of all below."""
        server = getattr(getattr(self._keeper, "_starter", None), "_process", None)
        found = {*self.pids(), *([] if server is None else [server.pid])}
        return found.union(*map(descendants, found))


@contextmanager
def children(most: int = 2, serve: str = SERVE, *, counted: bool = True, **options: Any) -> Iterator[Children]:
    """Make children, and check that nothing is left of them: no process, and if `counted`, no thread or descriptor."""
    before = resources()
    made = Lending(most, serve, **options)
    try:
        yield made
    finally:
        mine = made.processes()
        made.close()
        made.collect()
        made.join(10)
    if counted:  # where no others come and go meanwhile
        eventually(lambda: resources() <= before, "no descriptor and no thread is left")
    eventually(lambda: not mine & set(descendants(os.getpid())), "no process is left")


def resources() -> frozenset[str]:
    """Return the descriptors and threads of this process, by name: those of an earlier test may end meanwhile."""
    found = {f"{thread.name} ({id(thread)})" for thread in threading.enumerate()}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found.add(f"{path.name} {path.readlink()}")
    return frozenset(found)


def descendants(pid: int) -> list[int]:
    """Return the processes below one, zombies included."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    for child in tuple(found):
        found += descendants(child)
    return sorted(found)


def exists(pid: int) -> bool:
    """Say whether there is such a process; one that waits to be reaped does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
