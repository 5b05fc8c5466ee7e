"""Extract the bundled price history from the package `bokeh_sampledata`; the same package gives the same bytes.

    python scanners/data/make_history.py [--check]

With `--check`, nothing is written; the exit code says whether the bundled file is what this script would write.
PROVENANCE.md describes the source.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

TARGET: Final = Path(__file__).with_name("daily.csv")
FIRST_DAY: Final = "2011-06-01"
LAST_DAY: Final = "2013-03-01"
COLUMNS: Final = ("ticker", "date", "open", "high", "low", "close", "volume")
# The digest of the CSV inside stocks.csv.gz, not of the archive: other versions of gzip pack the same text differently.
SOURCE_SHA256: Final = "e73fe05d106b7da1abe8f947264c514afd02cef5c9db4864b9437c84d6bd6069"

Row = dict[str, str]


def source() -> str:
    """Return the source's CSV; `SystemExit` unless it is the one that this script was written for."""
    packed = (resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz").read_bytes()
    text = gzip.decompress(packed)
    found = hashlib.sha256(text).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(f"stocks.csv has sha256 {found}, not {SOURCE_SHA256}: see PROVENANCE.md for the version")
    return text.decode()


def check(before: Row, row: Row) -> None:
    """Refuse bars that contradict themselves, and splits, which would look like falls."""
    low, high = float(row["low"]), float(row["high"])
    if not (0 < low <= min(float(row["open"]), float(row["close"])) and int(row["volume"]) > 0):
        raise SystemExit(f"low, open, close or volume is wrong in {row}")
    if high < max(float(row["open"]), float(row["close"])):
        raise SystemExit(f"high is wrong in {row}")
    factors = [float(bar["adj_close"]) / float(bar["close"]) for bar in (before, row)]
    if before["ticker"] == row["ticker"] and not 0.95 < factors[0] / factors[1] <= 1.0001:
        raise SystemExit(f"a split between {before['date']} and {row['date']} of {row['ticker']}")


def rows(text: str) -> Iterator[Row]:
    """Yield the checked rows of the chosen days, by ticker and day as in the source."""
    before: Row | None = None
    for row in csv.DictReader(io.StringIO(text.partition("\n")[2]), (*COLUMNS, "adj_close")):
        if FIRST_DAY <= row["date"] <= LAST_DAY:
            check(before or row, row)
            before = row
            yield row


def extract() -> bytes:
    """Return the bytes of the bundled file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(source()))
    return out.getvalue().encode()


def main(arguments: list[str]) -> int:
    """Write the file, or compare it; return the exit code."""
    data = extract()
    if arguments == ["--check"]:
        return int(TARGET.read_bytes() != data)
    TARGET.write_bytes(data)
    sys.stdout.write(f"{TARGET.name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
