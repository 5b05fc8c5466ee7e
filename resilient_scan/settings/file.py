"""Settings from a file."""

from __future__ import annotations

from pathlib import Path as File

from resilient_scan.settings.reading import Source
from resilient_scan.settings.toml import Document, Malformed, Path, parse


def from_file(name: str) -> Source:
    """Return what a TOML file says; if it cannot be read, that is the one problem of an empty source."""
    problems: list[tuple[int, str]] = []
    document = Document({}, {})
    try:
        document = parse(File(name).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        problems.append((0, f"{name}: there is no such file"))
    except OSError as error:
        problems.append((0, f"{name}: cannot be read: {error.strerror}"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append((line, f"{name}:{line}: not UTF-8, which TOML has to be"))
    except Malformed as error:
        problems.append((error.line, f"{name}:{error.line}: {error.reason}"))

    def where(path: Path) -> tuple[int, str]:
        line = document.line(path)
        return line, f"{name}:{line}"

    return Source(document.data, where, problems)
