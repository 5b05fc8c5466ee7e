"""Write files that other programs read: whole or not at all, through links, and never in place of what is not a file.

A file is written next to its place and then put there, so that a reader finds the old text or the new one. This
replaces whatever has the name: a symbolic link would become a plain file, and so would a FIFO, or for root a device,
such as `/dev/full` of the whole machine. So links are followed first, and nothing but a plain file is replaced.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o644  # whatever the umask: what reads these files runs as another user, often in a container
FOLDER_MODE: Final = 0o755


def refuse_unless_plain(path: Path) -> os.stat_result | None:
    """Return what is known about the file at the end of `path`; `None`: there is none yet.

    Raises:
        OSError: it is something else than a plain file, or cannot be looked at.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):  # writing fails by itself where a folder is missing
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return found


def write_file(path: Path, content: bytes | Sequence[bytes], *, durable: bool = False) -> None:
    """Replace the content of a file, or make a new one that everybody can read.

    A file that is there keeps its mode, and its owner if we may give it away.

    Args:
        path: if it is a symbolic link, what it leads to is replaced.
        content: all of it, in one piece or several.
        durable: whether it must survive a crash of the machine right afterwards.

    Raises:
        OSError: it cannot be written, or something else than a plain file is there.
    """
    before = refuse_unless_plain(path)
    target = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            if before is not None:
                with suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), FILE_MODE if before is None else stat.S_IMODE(before.st_mode))
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, so that everybody can look into them.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        each.chmod(FOLDER_MODE)
